//! Batches: commits that happen together or not at all, across shards and crashes.
//!
//! The front's part is simulated here: a part of a batch goes to each payload's shard, and at the first refusal the writer
//! is told to put the others back. What the writer keeps is the shipped `payload_catalog::Batches`.
//!
//! Two things must hold whatever happens in between: the answers of one batch are all good or all bad, and after a start
//! either all of its payloads are committed or none. Not counted are payloads of which a reason is known that they are
//! gone, and those that somebody commits by other calls, too.

use std::collections::{BTreeMap, BTreeSet};

use payload_catalog::Arrival;
use payload_types::effect::{CatalogChange, CatalogOp};
use payload_types::event::Completion;
use payload_types::reply::ReplyResult;
use payload_types::request::Request;
use payload_types::{BatchId, BatchPart, Checksum, Monotonic, PayloadKey, PayloadState};

use super::agenda::Task;
use super::faults::MILLIS;
use super::oracle::{Breach, Rule, breach};
use super::world::World;

/// Payloads of a batch at most: enough for all shards.
const PARTS_MAX: u64 = 6;

/// Batches after which the server dies within a few milliseconds, where servers die: few of the other crashes meet one.
const CRASH_PERMILLE: u64 = 250;

/// Batches of which somebody commits a payload alone, meanwhile.
const JOINED_PERMILLE: u64 = 100;

/// Batches that name a payload which is gone, or was committed before.
const DOOMED_PERMILLE: u64 = 150;

/// What a client was promised of one batch.
#[derive(Debug, Default)]
struct Batch {
    keys: Vec<PayloadKey>,
    /// Parts that are not answered.
    waiting: BTreeSet<u64>,
    committed: usize,
    refused: usize,
    /// The writer was told that a part was refused.
    told: bool,
}

/// All batches of a run.
#[derive(Debug, Default)]
pub(super) struct Batches {
    last: u64,
    batches: BTreeMap<BatchId, Batch>,
    /// Payloads that are written, and wait for a batch: with their checksum.
    written: BTreeMap<PayloadKey, Option<Checksum>>,
    /// By which calls each was committed: a batch, or `None` alone.
    committers: BTreeMap<PayloadKey, BTreeSet<Option<BatchId>>>,
}

impl World {
    /// True when a producer leaves the commit of what it wrote to a batch.
    pub(super) fn leaves_to_batch(&mut self, key: PayloadKey, checksum: Option<Checksum>) -> bool {
        let leaves = self.plan.batch_permille > 0 && self.rng.chance(500);
        if leaves {
            self.batches.written.insert(key, checksum);
        }
        leaves
    }

    /// Clients may think of a batch.
    pub(super) fn batch_tick(&mut self) {
        // Draws only where there are batches, so that other seeds' runs stay what they are.
        let permille = self.plan.batch_permille;
        if permille == 0 || self.batches.written.is_empty() || !self.rng.chance(permille) {
            return;
        }
        self.batches.last += 1;
        let batch = BatchId(self.batches.last);
        let mut keys: Vec<(PayloadKey, Option<Checksum>)> = Vec::new();
        for _ in 0..self.rng.between(1, PARTS_MAX) {
            let written = self.batches.written.len() as u64;
            if written > 0 {
                let at = self.rng.below(written) as usize;
                let key = *self.batches.written.keys().nth(at).expect("below the length");
                let checksum = self.batches.written.remove(&key).flatten();
                keys.push((key, checksum));
            }
        }
        if self.rng.chance(DOOMED_PERMILLE) {
            let others: Vec<PayloadKey> = self
                .oracle
                .facts
                .values()
                .filter(|fact| fact.committed || fact.gone)
                .map(|fact| fact.key)
                .filter(|key| keys.iter().all(|(chosen, _)| chosen != key))
                .collect();
            if !others.is_empty() {
                keys.push((self.rng.pick(&others), None));
            }
        }
        if self.rng.chance(JOINED_PERMILLE) {
            let (key, checksum) = keys[0];
            let at = self.now.0 + self.rng.between(0, 3 * MILLIS);
            self.agenda.add(Monotonic(at), Task::ClientCommit(key, checksum));
        }
        if self.plan.crash_per_10k > 0 && self.rng.chance(CRASH_PERMILLE) {
            let at = self.now.0 + self.rng.between(0, 5 * MILLIS);
            self.agenda.add(Monotonic(at), Task::Crash);
        }
        let mark = BatchPart { batch, len: keys.len() as u32 };
        let mut sent = Batch::default();
        let mut shards = BTreeSet::new();
        for (key, checksum) in keys {
            let shard = key.id.shard(self.shard_count()).0;
            shards.insert(shard);
            sent.keys.push(key);
            let ask = Request::Commit { key, checksum, batch: Some(mark) };
            sent.waiting.insert(self.send(usize::from(shard), ask));
        }
        if shards.len() > 1 {
            self.oracle.coverage.hit("batch_across_shards");
        }
        self.batches.batches.insert(batch, sent);
    }

    /// Somebody commits a payload.
    pub(super) fn note_committer(&mut self, request: &Request) {
        if let Request::Commit { key, batch, .. } = request {
            let known = self.oracle.facts.get(key).is_some_and(|fact| fact.committed || fact.commit_maybe);
            let committers = self.batches.committers.entry(*key).or_default();
            committers.insert(batch.map(|part| part.batch));
            if known {
                // By whomever that was, it was not by this batch.
                committers.insert(None);
            }
        }
    }

    /// A part was answered.
    pub(super) fn batch_answered(
        &mut self,
        to: u64,
        mark: BatchPart,
        result: &ReplyResult,
    ) -> Result<(), Breach> {
        let id = mark.batch;
        let Some(batch) = self.batches.batches.get_mut(&id) else { return Ok(()) };
        if !batch.waiting.remove(&to) {
            return Ok(());
        }
        match result {
            Ok(_) => batch.committed += 1,
            Err(_) => {
                batch.refused += 1;
                if batch.refused == 1 {
                    let at = Monotonic(self.now.0 + self.plan.hop_delay(&mut self.rng));
                    self.agenda.add(at, Task::BatchRefused(id));
                }
            }
        }
        let batch = &self.batches.batches[&id];
        if batch.committed > 0 && batch.refused > 0 {
            return breach(Rule::Batch, format!("answered both ways: {id:?} {batch:?}"));
        }
        if batch.waiting.is_empty() {
            if batch.told {
                self.catalog.batches.forget(id);
            }
            let met = if batch.refused > 0 { "batch_refused" } else { "batch_committed" };
            self.oracle.coverage.hit(met);
        }
        Ok(())
    }

    /// The front tells the writer that a part was refused.
    pub(super) fn batch_is_refused(&mut self, id: BatchId) {
        let parts = self.catalog.batches.refuse(id);
        for part in parts {
            self.put_back(&part);
        }
        if let Some(batch) = self.batches.batches.get_mut(&id) {
            batch.told = true;
            if batch.waiting.is_empty() {
                self.catalog.batches.forget(id);
            }
        }
    }

    fn put_back(&mut self, part: &CatalogOp) {
        self.oracle.coverage.hit("batch_part_put_back");
        let id = match &part.change {
            CatalogChange::Put(row) => row.key.id,
            CatalogChange::Remove { key, .. } => key.id,
        };
        self.complete(part.shard, Completion::BatchRefused(part.op), Some(id));
    }

    /// A part reaches the writer: true when something is to be written.
    pub(super) fn batch_part(&mut self, op: CatalogOp, mark: BatchPart) -> bool {
        match self.catalog.batches.part(op, mark) {
            Arrival::Kept => false,
            Arrival::Refused(part) => {
                self.put_back(&part);
                false
            }
            Arrival::Whole(parts) => {
                self.catalog.queue.extend(parts);
                true
            }
        }
    }

    /// The server died, or starts: after a start a batch is there whole, or not at all.
    pub(super) fn audit_batches(&mut self) -> Result<(), Breach> {
        let now = self.clock();
        for (id, batch) in &self.batches.batches {
            let alone = BTreeSet::from([Some(*id)]);
            let counted = batch.keys.iter().filter(|key| {
                self.batches.committers.get(key) == Some(&alone)
                    && self.oracle.facts.get(key).is_some_and(|fact| fact.must_exist(now, &self.plan))
            });
            let is_committed = |key: &PayloadKey| {
                self.catalog.rows.get(key).is_some_and(|row| row.state != PayloadState::Allocated)
            };
            let (there, missing): (Vec<&PayloadKey>, Vec<&PayloadKey>) =
                counted.partition(|key| is_committed(key));
            if !there.is_empty() && !missing.is_empty() {
                return breach(
                    Rule::Batch,
                    format!(
                        "after a start {there:?} are committed and {missing:?} are not: {id:?} {batch:?}"
                    ),
                );
            }
            if there.len() > 1 && !batch.waiting.is_empty() {
                self.oracle.coverage.hit("batch_without_an_answer_survived_a_crash");
            }
        }
        Ok(())
    }

    /// The server dies: nobody is answered any more, and what was written is lost with its allocation.
    pub(super) fn forget_batches(&mut self) {
        if !self.catalog.batches.is_empty() {
            self.oracle.coverage.hit("crash_with_a_batch_that_waits");
        }
        self.catalog.batches = payload_catalog::Batches::default();
        self.batches.written.clear();
    }
}
