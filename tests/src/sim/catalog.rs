//! The catalog as a shard meets it: one FIFO for all shards, one transaction a batch, acknowledged when it is durable.
//!
//! Drives a shipped `Store`; this file only decides when a batch is taken, when its transaction ends, and whether it
//! fails. `rows` is what the store holds, read back from it after every transaction.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use payload_catalog::{Batches, Change, MemoryStore, Store};
use payload_types::effect::{CatalogChange, CatalogOp};
use payload_types::record::{RecordAnswer, RecordChange, RecordOutcome, RecordQuery, StreamName};
use payload_types::{Epoch, PayloadKey, PayloadRow, PayloadState};

use super::faults::Rng;
use super::late::LateLog;

/// Who waits for a change of records.
#[derive(Clone, Debug)]
pub(super) struct Ticket {
    /// The append, by its number; 0: nobody.
    pub(super) append: u64,
    /// The stream that is changed.
    pub(super) stream: Option<StreamName>,
}

/// See the module.
pub(super) struct Catalog {
    store: MemoryStore,
    /// What the store holds.
    pub(super) rows: BTreeMap<PayloadKey, PayloadRow>,
    /// Keys that had a committed row at some time: their first commit was durable.
    pub(super) ever_stored: BTreeSet<PayloadKey>,
    pub(super) queue: VecDeque<CatalogOp>,
    pub(super) batch: Vec<CatalogOp>,
    /// Changes of records, each behind the ops that were queued before it: so many were, since the start.
    records: VecDeque<(u64, Ticket, RecordChange)>,
    /// Those of the transaction under way.
    batch_records: Vec<(u64, Ticket, RecordChange)>,
    /// Ops that were taken from the queue.
    taken: u64,
    /// What the last transaction's records met.
    outcomes: Vec<RecordOutcome>,
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
            records: VecDeque::new(),
            batch_records: Vec::new(),
            taken: 0,
            outcomes: Vec::new(),
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
        self.taken += self.batch.len() as u64;
        while self.records.front().is_some_and(|(at, ..)| *at <= self.taken) {
            self.batch_records.extend(self.records.pop_front());
        }
        !self.batch.is_empty() || !self.batch_records.is_empty()
    }

    /// Queues a change of records.
    pub(super) fn push_record(&mut self, ticket: Ticket, change: RecordChange) {
        self.records.push_back((self.taken + self.queue.len() as u64, ticket, change));
    }

    /// Whom to tell of the records of the transaction that ended, and what each met: `None` where nothing was made.
    pub(super) fn records_end(&mut self) -> Vec<(Ticket, Option<RecordOutcome>)> {
        let mut outcomes = std::mem::take(&mut self.outcomes).into_iter();
        let ended = std::mem::take(&mut self.batch_records).into_iter();
        ended.map(|(_, ticket, _)| (ticket, outcomes.next())).collect()
    }

    /// Asks the store.
    pub(super) fn ask(&self, query: &RecordQuery) -> RecordAnswer {
        let mut reader = self.store.reader().expect("the memory store does not fail");
        reader.read(query).expect("the memory store does not fail")
    }

    /// The transaction's changes in the order in which they were queued.
    fn changes(&self) -> Vec<Change> {
        let mut records = self.batch_records.iter().peekable();
        let mut changes = Vec::new();
        let first = self.taken - self.batch.len() as u64;
        for (number, op) in (first..).zip(&self.batch) {
            while let Some((_, _, change)) = records.next_if(|(at, ..)| *at <= number) {
                changes.push(change.clone().into());
            }
            changes.push(op.change.clone().into());
        }
        changes.extend(records.map(|(_, _, change)| change.clone().into()));
        changes
    }

    /// The transaction commits, and is acknowledged with this sequence.
    pub(super) fn apply(&mut self) -> u64 {
        let changes = self.changes();
        let sequence = self.late.applies(&self.store, &changes);
        self.outcomes = self.store.apply(&changes).expect("the memory store does not fail");
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
        self.records.clear();
        if batch_happened && !(self.batch.is_empty() && self.batch_records.is_empty()) {
            self.apply();
        }
        self.batch.clear();
        self.records_end();
        let undone = self.late.crash(&mut self.store, power_loss, rng);
        self.reload();
        undone
    }
}
