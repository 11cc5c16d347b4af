//! The devices of the tier, what each of them may hold, and what is on them. Making, sealing and dropping one replica.
//!
//! Capacity is charged in whole pages, as the shards do, before a device is asked for memory: two replicas never take the same
//! room. Nothing of a failed call stays charged or allocated, but for memory
//! that a device refuses to take back. A lost device keeps its number and its charges until its replicas are dropped; what is on it
//! answers `DeviceLost`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use payload_types::effect::ReplicaRef;
use payload_types::event::{DriverError, DriverErrorKind};
use payload_types::{ByteCount, DeviceId, GpuPlace};

use super::GpuSharing;
use super::device::{Allocation, Device, DeviceError};
use super::places::{Held, Places};
use crate::fault::finding;

/// One device and its books.
pub(super) struct Slot {
    pub(super) id: DeviceId,
    pub(super) device: Arc<dyn Device>,
    pub(super) capacity: ByteCount,
    /// In whole pages.
    charged: AtomicU64,
    is_lost: AtomicBool,
}

impl Slot {
    pub(super) fn new(id: DeviceId, device: Arc<dyn Device>, capacity: ByteCount) -> Self {
        Self { id, device, capacity, charged: AtomicU64::new(0), is_lost: AtomicBool::new(false) }
    }

    pub(super) fn charged(&self) -> ByteCount {
        ByteCount(self.charged.load(Ordering::Relaxed))
    }

    pub(super) fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed)
    }

    fn room(&self) -> u64 {
        self.capacity.0.saturating_sub(self.charged().0)
    }

    /// Takes room, if it is still there.
    fn charge(&self, bytes: u64) -> bool {
        let taken = |charged: u64| charged.checked_add(bytes).filter(|sum| *sum <= self.capacity.0);
        self.charged.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok()
    }

    /// What a failed call means for the device, too.
    pub(super) fn heard(&self, error: DeviceError) -> DriverError {
        let error = DriverError::from(error);
        if error.kind == DriverErrorKind::DeviceLost {
            self.lose(&error.message);
        }
        error
    }

    /// Nothing is asked of it any more.
    pub(super) fn lose(&self, why: &str) {
        if !self.is_lost.swap(true, Ordering::Relaxed) {
            let id = self.id;
            tracing::error!(
                device = id.0,
                "GPU {id} is lost, and all payloads on it; restart the server to use it again: {why}"
            );
        }
    }

    fn lost(&self, replica: &ReplicaRef) -> DriverError {
        let message = format!("GPU {}, which has {}, is lost", self.id, replica.id);
        finding(DriverErrorKind::DeviceLost, message)
    }
}

/// See the module's description.
pub(super) struct GpuStore {
    pub(super) slots: Vec<Slot>,
    pub(super) places: Places,
    pub(super) sharing: GpuSharing,
}

impl GpuStore {
    /// Takes room for a new replica: on the device that has most of it.
    ///
    /// # Errors
    /// `Full`: no device has so much left; `DeviceLost`: there is none any more.
    pub(super) fn charge(&self, replica: &ReplicaRef) -> Result<usize, DriverError> {
        let bytes = replica.size.in_pages().0;
        let alive = || self.slots.iter().enumerate().filter(|(_, slot)| !slot.is_lost());
        loop {
            let Some((index, roomiest)) = alive().max_by_key(|(_, slot)| slot.room()) else {
                let message = "every configured GPU is lost; restart the server";
                return Err(finding(DriverErrorKind::DeviceLost, message));
            };
            if roomiest.room() < bytes {
                let left =
                    alive().map(|(_, slot)| format!("GPU {} has {} left", slot.id, ByteCount(slot.room())));
                let left = left.collect::<Vec<_>>().join(", ");
                let message = format!("{} do not fit one device: {left}", replica.size);
                return Err(finding(DriverErrorKind::Full, message));
            }
            if roomiest.charge(bytes) {
                return Ok(index);
            }
        }
    }

    /// Gives room back.
    pub(super) fn discharge(&self, slot: usize, replica: &ReplicaRef) {
        let bytes = replica.size.in_pages().0;
        let before = self.slots[slot].charged.fetch_sub(bytes, Ordering::Relaxed);
        assert!(before >= bytes, "only what was charged is given back");
    }

    /// Memory for a replica that was charged; it may hold anything.
    ///
    /// # Errors
    /// What was charged stays so.
    pub(super) fn allocate(&self, slot: usize, replica: &ReplicaRef) -> Result<Held, DriverError> {
        let Slot { device, id, .. } = &self.slots[slot];
        if self.slots[slot].is_lost() {
            return Err(self.slots[slot].lost(replica));
        }
        let heard = |error| self.slots[slot].heard(error);
        let allocation = match self.sharing {
            GpuSharing::Handles => device.allocate(replica.size.0),
            GpuSharing::Descriptors => device.allocate_exportable(replica.size.0),
        };
        let allocation = allocation.map_err(heard)?;
        let shared = match self.sharing {
            GpuSharing::Handles => device.handle(&allocation).map(|handle| (Some(handle), None)),
            GpuSharing::Descriptors => {
                device.descriptor(&allocation).map(|descriptor| (None, Some(descriptor)))
            }
        };
        let (handle, descriptor) = shared.map_err(|error| {
            self.release(slot, &allocation);
            heard(error)
        })?;
        let place = GpuPlace {
            device: *id,
            device_uuid: device.facts().uuid,
            generation: replica.generation,
            size: replica.size,
            arena: None,
            offset: 0,
            allocation: ByteCount(allocation.bytes),
            handle,
        };
        Ok(Held { slot, allocation, place, descriptor })
    }

    /// Zeroed memory for a producer to write, on a device that was charged for it. Nothing is left or charged after an error.
    pub(super) fn create(&self, slot: usize, replica: &ReplicaRef) -> Result<(), DriverError> {
        let made = self.allocate(slot, replica).and_then(|held| {
            // Before anybody can open it: what another program left there is nobody's business.
            match self.slots[slot].device.zero(&held.allocation) {
                Ok(()) => Ok(held),
                Err(error) => {
                    self.release(slot, &held.allocation);
                    Err(self.slots[slot].heard(error))
                }
            }
        });
        match made {
            Ok(held) => {
                self.places.enter(replica, Arc::new(held));
                Ok(())
            }
            Err(error) => {
                self.discharge(slot, replica);
                Err(error)
            }
        }
    }

    /// Commit: whether it is there. Its producer has waited for his own work before (docs/decisions, "GPU"): nothing of this
    /// process can order what another one's streams do.
    pub(super) fn seal(&self, replica: &ReplicaRef) -> Result<(), DriverError> {
        self.find(replica).map(drop)
    }

    /// What this replica has.
    ///
    /// # Errors
    /// `Missing`; `DeviceLost`.
    pub(super) fn find(&self, replica: &ReplicaRef) -> Result<Arc<Held>, DriverError> {
        let held = self.places.find(replica).ok_or_else(|| {
            finding(DriverErrorKind::Missing, format!("{} is not on a GPU of this node", replica.id))
        })?;
        let slot = &self.slots[held.slot];
        if slot.is_lost() { Err(slot.lost(replica)) } else { Ok(held) }
    }

    /// Frees a replica's memory; nobody uses it any more. What is not there is free.
    pub(super) fn drop_replica(&self, replica: &ReplicaRef) {
        if let Some(held) = self.places.take(replica) {
            self.release(held.slot, &held.allocation);
            self.discharge(held.slot, replica);
        }
    }

    /// Gives an allocation back to its device.
    pub(super) fn release(&self, slot: usize, allocation: &Allocation) {
        let slot = &self.slots[slot];
        if slot.is_lost() {
            return;
        }
        if let Err(error) = slot.device.free(allocation) {
            tracing::error!(
                device = slot.id.0,
                "{} bytes of GPU memory stay taken: {error}",
                allocation.bytes
            );
            slot.heard(error);
        }
    }

    /// At the end: frees all that is on a device.
    pub(super) fn clear(&self, slot: usize) {
        for held in self.places.take_all(slot) {
            self.release(slot, &held.allocation);
        }
    }
}
