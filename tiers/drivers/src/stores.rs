//! The stores of a node, by tier.

use payload_types::Tier;
use payload_types::event::{DriverError, DriverErrorKind};

use crate::fault::finding;
use crate::packed::Packed;
use crate::store::FileStore;

/// Shared by all threads.
pub(crate) struct Stores {
    pub(crate) ram: FileStore,
    pub(crate) disk: Option<FileStore>,
}

impl Stores {
    /// The tier's store.
    ///
    /// # Errors
    /// When this node has none.
    pub(crate) fn get(&self, tier: Tier) -> Result<&FileStore, DriverError> {
        let store = match tier {
            Tier::Ram => Some(&self.ram),
            Tier::Disk => self.disk.as_ref(),
            Tier::Gpu | Tier::Object => None,
        };
        store.ok_or_else(|| {
            finding(
                DriverErrorKind::Io,
                format!("tier {tier} has no driver on this node; configure its storage"),
            )
        })
    }

    /// The disk's segment files, where it has any.
    pub(crate) fn packed(&self) -> Option<&Packed> {
        self.disk.as_ref()?.packed.as_ref()
    }

    /// The tiers that have storage.
    pub(crate) fn tiers(&self) -> impl Iterator<Item = Tier> + use<> {
        [Some(Tier::Ram), self.disk.is_some().then_some(Tier::Disk)].into_iter().flatten()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &FileStore> {
        std::iter::once(&self.ram).chain(&self.disk)
    }
}
