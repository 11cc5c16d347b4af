//! The catalog as a shard meets it: one FIFO for all shards, one transaction a batch, acknowledged when it is durable.
//!
//! Drives a shipped `Store`; this file only decides when a batch is taken, when its transaction ends, and whether it
//! fails. `rows` is what the store holds, read back from it after every transaction.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use payload_catalog::{Batches, Change, MemoryStore, Store};
use payload_types::effect::{CatalogChange, CatalogOp};
use payload_types::{Epoch, PayloadKey, PayloadRow, PayloadState};

use super::faults::Rng;
use super::late::LateLog;

/// See the module.
pub(super) struct Catalog {
    store: MemoryStore,
    /// What the store holds.
    pub(super) rows: BTreeMap<PayloadKey, PayloadRow>,
    /// Keys that had a committed row at some time: their first commit was durable.
    pub(super) ever_stored: BTreeSet<PayloadKey>,
    pub(super) queue: VecDeque<CatalogOp>,
    pub(super) batch: Vec<CatalogOp>,
    /// Batches of commits that are not whole yet.
    pub(super) batches: Batches,
    /// What is applied and not synced.
    pub(super) late: LateLog,
}

impl Catalog {
    /// An empty store.
    pub(super) fn new() -> Self {
        Self {
            store: MemoryStore::new(),
            rows: BTreeMap::new(),
            ever_stored: BTreeSet::new(),
            queue: VecDeque::new(),
            batch: Vec::new(),
            batches: Batches::default(),
            late: LateLog::default(),
        }
    }

    /// A boot: the next epoch, with which the log is synced.
    pub(super) fn begin_epoch(&mut self) -> Epoch {
        self.late.begin();
        self.store.begin_epoch("sim").expect("the memory store does not fail")
    }

    /// Takes up to `batch_max` queued changes into a transaction, and the rest of a batch of commits, unless a bug `splits`
    /// it; false when there is nothing to do.
    pub(super) fn begin(&mut self, batch_max: usize, splits: bool) -> bool {
        let batch_max = if splits { 2 } else { batch_max };
        let count = batch_max.min(self.queue.len());
        self.batch = self.queue.drain(..count).collect();
        let last = self.batch.last().and_then(|op| op.batch);
        while last.is_some() && !splits && self.queue.front().is_some_and(|op| op.batch == last) {
            self.batch.extend(self.queue.pop_front());
        }
        count > 0
    }

    /// The transaction commits, and is acknowledged with this sequence.
    pub(super) fn apply(&mut self) -> u64 {
        let changes: Vec<Change> = self.batch.iter().map(|op| op.change.clone().into()).collect();
        let sequence = self.late.applies(&self.store, &changes);
        self.store.apply(&changes).expect("the memory store does not fail");
        for change in &changes {
            if let Change::Row(CatalogChange::Put(row)) = change
                && row.state != PayloadState::Allocated
            {
                self.ever_stored.insert(row.key);
            }
        }
        self.reload();
        sequence
    }

    /// Reads the store back.
    pub(super) fn reload(&mut self) {
        let rows = &mut self.rows;
        rows.clear();
        self.store
            .load(&mut |row| {
                rows.insert(row.key, row);
            })
            .expect("the memory store does not fail");
    }

    /// The server dies: the queue is lost, the transaction under way may have happened. True when with the power removals
    /// were lost that had happened.
    pub(super) fn crash(&mut self, batch_happened: bool, power_loss: bool, rng: &mut Rng) -> bool {
        self.queue.clear();
        if batch_happened && !self.batch.is_empty() {
            self.apply();
        }
        self.batch.clear();
        let undone = self.late.crash(&mut self.store, power_loss, rng);
        self.reload();
        undone
    }
}
