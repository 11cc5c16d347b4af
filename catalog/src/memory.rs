//! A store in memory: for tests, for `database.memory`, and for the simulator, where it stands for what survives a
//! crash. Deterministic: ordered maps, no clock, no randomness.
//!
//! `Clone` is the snapshot: every `apply` is whole when it returns, so a clone taken at any moment is what a crash
//! at that moment would leave.

use std::collections::BTreeMap;

use payload_types::effect::CatalogChange;
use payload_types::{Epoch, NamespaceId, PayloadKey, PayloadRow};

use crate::error::StoreError;
use crate::store::{EPOCH_MAX, Store, epochs_exhausted, storable, supersedes};

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MemoryStore {
    rows: BTreeMap<PayloadKey, PayloadRow>,
    nodes: BTreeMap<String, u32>,
    disk_roots: BTreeMap<String, String>,
}

impl MemoryStore {
    /// An empty store that no node has started with.
    pub fn new() -> Self {
        Self::default()
    }

    /// Every row, ordered by key.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &PayloadRow> {
        self.rows.values()
    }

    fn put(&mut self, row: &PayloadRow) {
        let newest = (row.epoch, row.version);
        if self.rows.get(&row.key).is_none_or(|old| supersedes(newest, (old.epoch, old.version))) {
            self.rows.insert(row.key, row.clone());
        }
    }

    fn remove(&mut self, key: PayloadKey, epoch: Epoch) {
        if self.rows.get(&key).is_some_and(|row| row.epoch <= epoch) {
            self.rows.remove(&key);
        }
    }
}

impl Store for MemoryStore {
    fn begin_epoch(&mut self, node: &str) -> Result<Epoch, StoreError> {
        let epoch = self.nodes.values().max().map_or(1, |latest| latest + 1);
        if epoch > EPOCH_MAX {
            return Err(epochs_exhausted(node));
        }
        self.nodes.insert(node.to_owned(), epoch);
        Ok(Epoch(epoch))
    }

    fn disk_roots(&mut self) -> Result<Vec<String>, StoreError> {
        Ok(self.disk_roots.values().cloned().collect())
    }

    fn disk_root_bind(&mut self, node: &str, root_id: &str) -> Result<(), StoreError> {
        self.disk_roots.insert(node.to_owned(), root_id.to_owned());
        Ok(())
    }

    fn apply(&mut self, batch: &[CatalogChange]) -> Result<(), StoreError> {
        batch.iter().try_for_each(storable)?;
        for change in batch {
            match change {
                CatalogChange::Put(row) => self.put(row),
                CatalogChange::Remove { key, epoch } => self.remove(*key, *epoch),
            }
        }
        Ok(())
    }

    fn load(&mut self, each: &mut dyn FnMut(PayloadRow)) -> Result<(), StoreError> {
        self.rows.values().cloned().for_each(each);
        Ok(())
    }

    fn get(&mut self, key: PayloadKey) -> Result<Option<PayloadRow>, StoreError> {
        Ok(self.rows.get(&key).cloned())
    }

    fn count(&mut self) -> Result<u64, StoreError> {
        Ok(self.rows.len() as u64)
    }

    fn namespace(&mut self, name: &str) -> Result<Option<NamespaceId>, StoreError> {
        Ok((name == "default").then_some(NamespaceId::DEFAULT))
    }

    fn close(self: Box<Self>) -> Result<(), StoreError> {
        Ok(())
    }
}
