//! A store in memory: for tests, for `database.memory`, and for the simulator, where it stands for what survives a
//! crash. Deterministic: ordered maps, no clock, no randomness.
//!
//! `Clone` is the snapshot: every `apply` is whole when it returns, so a clone taken at any moment is what a crash
//! at that moment would leave.

mod tables;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use payload_types::effect::CatalogChange;
use payload_types::record::{RecordAnswer, RecordOutcome, RecordQuery};
use payload_types::upload::UploadEntry;
use payload_types::{Epoch, NamespaceId, PayloadKey, PayloadRow, ReplicaRow, Tier, WallMs};

use crate::change::{Change, EPOCH_MAX, storable};
use crate::error::StoreError;
use crate::records;
use crate::store::{Reader, Store, epochs_exhausted, supersedes};

/// See the module.
#[derive(Debug, Default)]
pub struct MemoryStore {
    /// Shared with its readers; written by this store alone, a whole batch at a time.
    state: Arc<RwLock<State>>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct State {
    rows: BTreeMap<PayloadKey, PayloadRow>,
    nodes: BTreeMap<String, u32>,
    disk_roots: BTreeMap<String, String>,
    records: tables::Records,
}

impl Clone for MemoryStore {
    /// A store of its own with the same contents.
    fn clone(&self) -> Self {
        Self { state: Arc::new(RwLock::new(self.read().clone())) }
    }
}

impl PartialEq for MemoryStore {
    fn eq(&self, other: &Self) -> bool {
        *self.read() == *other.read()
    }
}

impl Eq for MemoryStore {}

impl MemoryStore {
    /// An empty store that no node has started with.
    pub fn new() -> Self {
        Self::default()
    }

    /// Every row, ordered by key.
    pub fn rows(&self) -> Vec<PayloadRow> {
        self.read().rows.values().cloned().collect()
    }

    // Nothing panics half-way through a batch that a reader could mistake for a whole one: see `apply`.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn put(&mut self, row: &PayloadRow) {
        let newest = (row.epoch, row.version);
        if self.rows.get(&row.key).is_none_or(|old| supersedes(newest, (old.epoch, old.version))) {
            if object_of(row).is_some() {
                self.records.upload_named_by_row(row.key.id);
            }
            self.rows.insert(row.key, row.clone());
        }
    }

    fn remove(&mut self, key: PayloadKey, epoch: Epoch) -> Result<(), StoreError> {
        if self.rows.get(&key).is_some_and(|row| row.epoch <= epoch) {
            if let Some(row) = self.rows.remove(&key)
                && let Some(replica) = object_of(&row)
            {
                self.records.upload_orphaned(key.id, replica.generation, row.size);
            }
            records::forget(self, key)?;
        }
        Ok(())
    }
}

/// The replica of a row on OBJECT.
fn object_of(row: &PayloadRow) -> Option<&ReplicaRow> {
    row.replicas.iter().find(|replica| replica.tier == Tier::Object)
}

impl Store for MemoryStore {
    fn begin_epoch(&mut self, node: &str) -> Result<Epoch, StoreError> {
        let mut state = self.write();
        let epoch = state.nodes.values().max().map_or(1, |latest| latest + 1);
        if epoch > EPOCH_MAX {
            return Err(epochs_exhausted(node));
        }
        state.nodes.insert(node.to_owned(), epoch);
        Ok(Epoch(epoch))
    }

    fn disk_roots(&mut self) -> Result<Vec<String>, StoreError> {
        Ok(self.read().disk_roots.values().cloned().collect())
    }

    fn disk_root_bind(&mut self, node: &str, root_id: &str) -> Result<(), StoreError> {
        self.write().disk_roots.insert(node.to_owned(), root_id.to_owned());
        Ok(())
    }

    fn apply(&mut self, batch: &[Change]) -> Result<Vec<RecordOutcome>, StoreError> {
        batch.iter().try_for_each(storable)?;
        let mut outcomes = Vec::with_capacity(Change::records(batch));
        let mut state = self.write();
        for change in batch {
            // No operation of these tables fails, and what they hold fits together; so a batch is made whole.
            match change {
                Change::Row(CatalogChange::Put(row)) => state.put(row),
                Change::Row(CatalogChange::Remove { key, epoch }) => state.remove(*key, *epoch)?,
                Change::Record(change) => outcomes.push(records::apply(&mut *state, change)?),
            }
        }
        Ok(outcomes)
    }

    fn resolve(&mut self, _batch: &[Change]) -> Result<Option<Vec<RecordOutcome>>, StoreError> {
        // It never leaves anybody in doubt.
        Ok(None)
    }

    fn reader(&self) -> Result<Box<dyn Reader>, StoreError> {
        Ok(Box::new(MemoryReader { state: Arc::clone(&self.state) }))
    }

    fn sweep_is_due(&mut self, at: WallMs) -> Result<bool, StoreError> {
        records::sweep_is_due(&mut *self.write(), at)
    }

    fn load(&mut self, each: &mut dyn FnMut(PayloadRow)) -> Result<(), StoreError> {
        self.read().rows.values().cloned().for_each(each);
        Ok(())
    }

    fn get(&mut self, key: PayloadKey) -> Result<Option<PayloadRow>, StoreError> {
        Ok(self.read().rows.get(&key).cloned())
    }

    fn uploads(&mut self) -> Result<Vec<UploadEntry>, StoreError> {
        Ok(self.read().records.uploads())
    }

    fn count(&mut self) -> Result<u64, StoreError> {
        Ok(self.read().rows.len() as u64)
    }

    fn namespace(&mut self, name: &str) -> Result<Option<NamespaceId>, StoreError> {
        Ok((name == "default").then_some(NamespaceId::DEFAULT))
    }

    fn close(self: Box<Self>) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Another way to the same state.
struct MemoryReader {
    state: Arc<RwLock<State>>,
}

impl Reader for MemoryReader {
    fn read(&mut self, query: &RecordQuery) -> Result<RecordAnswer, StoreError> {
        // `Tables` takes `&mut self`, for backends that keep statements; nothing is changed here.
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        records::answer(&mut *state, query)
    }
}
