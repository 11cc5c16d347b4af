//! The GPU tier: device memory that the server allocates, and clients open where it lies.
//!
//! ```text
//! shard --StorageOp, TransferOp--> Drivers::submit --> lanes --> store (books, places) --> device (CUDA, or a fake in tests)
//! front --(payload id, generation)--> Places::look --> GpuPlace: device, handle --> GpuLocation of a descriptor
//! ```
//! A replica is one plain allocation of exactly its size ([`GpuSharing::Handles`]), which every client of the contract can open, or
//! an exportable one that only native sessions are sent ([`GpuSharing::Descriptors`]). It is zeroed before anybody can open it.
//! Nobody can be kept from writing to device memory that he has open: a hostile reader of a namespace can change its payloads,
//! which the checksum shows on the next copy.
//!
//! **Commit**: the producer waits for his own work first (`cudaStreamSynchronize`, or an event that he waits for), as CUDA orders
//! nothing between processes. Whoever reads after Commit then sees what was written.
//!
//! Called by `front` (open, `set_gpu`, and through [`Places`]); the rest through `Drivers`. Devices are called on the tier's own
//! threads only ([`lanes`]). A device that is not there, or that fails, takes nothing but itself with it.

mod copy;
mod cuda;
pub mod device;
mod digest;
#[doc(hidden)]
pub mod fake;
pub(crate) mod lanes;
mod places;
pub(crate) mod remote;
mod store;
mod striped;

use std::collections::HashSet;
use std::sync::Arc;

use payload_types::{ByteCount, DeviceId, GpuConfig, GpuDevice};

pub use cuda::Cuda;
pub use device::Platform;
pub use places::Places;

use crate::CompletionSink;
use crate::stores::Stores;

use store::{GpuStore, Slot};

/// How clients are given device memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum GpuSharing {
    /// By legacy CUDA IPC handles, which open in processes of the same PID and IPC namespaces.
    #[default]
    Handles,
    /// By POSIX file descriptors over a native session, which open everywhere; clients of the contract cannot open these.
    Descriptors,
}

/// How one configured device is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GpuHealth {
    /// Which.
    pub device: DeviceId,
    /// As its maker calls it; empty when it could not be opened.
    pub name: String,
    /// What payloads may take of it; 0 when it could not be opened.
    pub capacity: ByteCount,
    /// What they take, in whole pages.
    pub charged: ByteCount,
    /// Why it is not used: it could not be opened, or was lost.
    pub fault: Option<String>,
}

/// The devices of a node.
#[derive(Clone)]
pub struct Gpu {
    store: Arc<GpuStore>,
    /// Those that could not be opened.
    absent: Vec<GpuHealth>,
}

impl Gpu {
    /// Opens the configured devices, and touches no other. One that cannot be had is left out with a warning; without any there is
    /// no tier. A capacity of `u64::MAX` is nine tenths of what the device has. It may take seconds.
    pub fn open(config: &GpuConfig, sharing: GpuSharing, platform: &dyn Platform) -> Self {
        let (mut slots, mut absent, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        for wanted in config.devices.iter().filter(|wanted| seen.insert(wanted.device)) {
            match platform.open(wanted.device) {
                Ok(device) => {
                    let capacity = capacity_of(wanted, device.facts().total);
                    slots.push(Slot::new(wanted.device, device, capacity));
                }
                Err(error) => {
                    tracing::warn!(device = wanted.device.0, "GPU {} is not used: {error}", wanted.device);
                    absent.push(GpuHealth {
                        device: wanted.device,
                        name: String::new(),
                        capacity: ByteCount::ZERO,
                        charged: ByteCount::ZERO,
                        fault: Some(error.message),
                    });
                }
            }
        }
        let store = Arc::new(GpuStore { slots, places: Places::default(), sharing });
        Self { store, absent }
    }

    /// What the tier's threads share.
    pub(crate) fn shared(
        &self,
        stores: &Arc<Stores>,
        sink: &CompletionSink,
        engine: lanes::EngineMaker,
    ) -> lanes::Shared {
        lanes::Shared {
            store: Arc::clone(&self.store),
            stores: Arc::clone(stores),
            sink: Arc::clone(sink),
            engine,
            helper_count: lanes::helper_count(),
        }
    }

    /// What payloads may take of all devices together; `None`: there is none, and so no tier.
    pub fn capacity(&self) -> Option<ByteCount> {
        let capacities = self.store.slots.iter().map(|slot| slot.capacity.0);
        (!self.store.slots.is_empty()).then(|| ByteCount(capacities.sum()))
    }

    /// The largest payload that fits one device.
    pub fn payload_max(&self) -> ByteCount {
        self.store.slots.iter().map(|slot| slot.capacity).max().unwrap_or(ByteCount::ZERO)
    }

    /// Where replicas lie. For every thread: it never waits for a device.
    pub fn places(&self) -> Places {
        self.store.places.clone()
    }

    /// How every configured device is. For every thread.
    pub fn health(&self) -> Vec<GpuHealth> {
        let present = self.store.slots.iter().map(|slot| GpuHealth {
            device: slot.id,
            name: slot.device.facts().name.clone(),
            capacity: slot.capacity,
            charged: slot.charged(),
            fault: slot.is_lost().then(|| "it is lost until the server is started anew".to_owned()),
        });
        present.chain(self.absent.iter().cloned()).collect()
    }
}

/// What payloads may take of a device.
fn capacity_of(wanted: &GpuDevice, total: ByteCount) -> ByteCount {
    if wanted.capacity.0 == u64::MAX {
        return ByteCount(total.0 / 10 * 9);
    }
    if wanted.capacity > total {
        let (id, asked) = (wanted.device, wanted.capacity);
        tracing::warn!(
            device = id.0,
            "storage.gpu gives GPU {id} {asked}, and it has {total}; it is used up to that"
        );
    }
    wanted.capacity.min(total)
}
