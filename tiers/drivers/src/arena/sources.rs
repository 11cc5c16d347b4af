//! The slabs of this node, as copies and verifications read them.
//!
//! By their own descriptors, never through the mapping that a client shares: what a writer does to bytes while they are
//! copied gives a copy whose checksum is that of its own bytes, and no signal for us. The session thread enters a slab when
//! it is sealed, and takes it out before it goes back; a shard gives none back that is being read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use payload_types::SlabId;

use super::slab::{Frozen, Isolated, Slab};

/// See the module. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Sources(Arc<RwLock<BTreeMap<SlabId, File>>>);

impl Sources {
    /// A sealed slab can be read from now on.
    ///
    /// # Errors
    /// As dup(2): no descriptor is left.
    pub fn add(&self, name: SlabId, slab: &Slab) -> io::Result<()> {
        self.enter(name, slab.own())
    }

    /// A payload's own memory that is not committed yet: whoever reads it meanwhile is told what is there.
    ///
    /// # Errors
    /// As dup(2): no descriptor is left.
    pub fn add_isolated(&self, name: SlabId, memory: &Isolated) -> io::Result<()> {
        self.enter(name, memory.own())
    }

    /// A payload's own memory, committed.
    ///
    /// # Errors
    /// As dup(2): no descriptor is left.
    pub fn add_frozen(&self, name: SlabId, memory: &Frozen) -> io::Result<()> {
        self.enter(name, memory.own())
    }

    fn enter(&self, name: SlabId, own: &File) -> io::Result<()> {
        // The same description, so a write lease that proves the memory to be nobody's is not refused because of it.
        let file = own.try_clone()?;
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(name, file);
        Ok(())
    }

    /// It goes back: nobody reads it any more.
    pub fn remove(&self, name: SlabId) {
        let removed = self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&name);
        drop(removed);
    }

    /// To read it.
    pub(crate) fn open(&self, name: SlabId) -> io::Result<File> {
        let files = self.0.read().unwrap_or_else(PoisonError::into_inner);
        files.get(&name).ok_or(io::ErrorKind::NotFound)?.try_clone()
    }
}
