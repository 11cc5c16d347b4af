//! What is on the devices, by replica: the table that descriptors are made from.
//!
//! Written by the tier's own threads: a replica is entered before its maker is answered, and taken out when it is dropped. Read by
//! whoever shows a descriptor, on any thread: the lock is held for a look-up, never for a call of the driver. One entry a replica,
//! each of which is charged a page at least, so there are at most capacity / 4096 of them, at some 200 bytes.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError, RwLock};

use payload_types::effect::ReplicaRef;
use payload_types::{Generation, GpuPlace, PayloadId};

use super::device::Allocation;

/// One replica.
pub(super) struct Held {
    /// Which of the tier's devices.
    pub(super) slot: usize,
    pub(super) allocation: Allocation,
    pub(super) place: GpuPlace,
    /// Where it has been exported.
    pub(super) descriptor: Option<OwnedFd>,
}

type Table = HashMap<(PayloadId, Generation), Arc<Held>>;

/// Where replicas on GPU lie. Cheap to clone; clones are the same one.
#[derive(Clone, Default)]
pub struct Places(Arc<RwLock<Table>>);

impl Places {
    /// Where this replica lies; `None`: it was dropped, or its device is lost. Whoever leases it, or asked for its allocation,
    /// finds it until he lets go.
    pub fn look(&self, id: PayloadId, generation: Generation) -> Option<GpuPlace> {
        self.read(|table| table.get(&(id, generation)).map(|held| held.place))
    }

    /// A descriptor of the replica's allocation, to be sent to one client; `None` as for [`look`](Self::look), and for one that has
    /// a handle instead.
    ///
    /// # Errors
    /// As dup(2): no descriptor is left.
    pub fn descriptor(&self, id: PayloadId, generation: Generation) -> Option<io::Result<OwnedFd>> {
        let held = self.read(|table| table.get(&(id, generation)).cloned())?;
        held.descriptor.as_ref().map(OwnedFd::try_clone)
    }

    /// How many replicas are on the devices.
    pub fn count(&self) -> usize {
        self.read(Table::len)
    }

    pub(super) fn find(&self, replica: &ReplicaRef) -> Option<Arc<Held>> {
        self.read(|table| table.get(&key(replica)).cloned())
    }

    pub(super) fn enter(&self, replica: &ReplicaRef, held: Arc<Held>) {
        let before = self.write(|table| table.insert(key(replica), held));
        assert!(before.is_none(), "a replica is made once");
    }

    pub(super) fn take(&self, replica: &ReplicaRef) -> Option<Arc<Held>> {
        self.write(|table| table.remove(&key(replica)))
    }

    /// All of a device, at the end.
    pub(super) fn take_all(&self, slot: usize) -> Vec<Arc<Held>> {
        self.write(|table| table.extract_if(|_, held| held.slot == slot).map(|(_, held)| held).collect())
    }

    fn read<T>(&self, look: impl FnOnce(&Table) -> T) -> T {
        look(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Table) -> T) -> T {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner))
    }
}

fn key(replica: &ReplicaRef) -> (PayloadId, Generation) {
    (replica.id, replica.generation)
}
