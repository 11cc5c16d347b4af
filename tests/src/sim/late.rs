//! `synchronous: normal`: removals that the catalog acknowledged and has not synced yet.
//!
//! ```text
//!   removal applied -> acknowledged with a sequence -> synced by a flush, or by a row that is made -> Durable to shards
//!                           ^ a loss of power here brings back any number of the last removals, in order
//! ```
//! What comes back must be as it was: its replicas on disk are there, or never were. The oracle therefore looks at each
//! drop (no row that may come back names it) and at each boot.

use std::collections::BTreeSet;

use payload_catalog::{Change, MemoryStore, Store};
use payload_types::effect::{CatalogChange, CatalogOp};
use payload_types::event::Completion;
use payload_types::request::{Acquire, Request};
use payload_types::{Monotonic, PayloadId, PayloadKey, PayloadRow, Peer, PromotionPolicy, ShardIndex};

use super::agenda::Task;
use super::canary::Canary;
use super::faults::{MILLIS, Rng, SECONDS};
use super::oracle::{Breach, Oracle, Rule, Scene, block_name, breach};
use super::storage::{BlockName, Damage};
use super::world::World;

/// As the shipped writer does it.
const FLUSH_AFTER: u64 = 50 * MILLIS;
/// See [`FLUSH_AFTER`].
const FLUSH_RETRY: u64 = SECONDS;

/// Flushes that find the server dead, where servers die: what is late is rarely late for long, so that few of the other
/// crashes meet it.
const CRASH_PERMILLE: u64 = 200;

/// The end of the log that no sync has reached.
#[derive(Default)]
pub(super) struct LateLog {
    /// `synchronous: normal`.
    pub(super) normal: bool,
    /// What the store held at the last sync; `None`: what it holds now.
    durable: Option<MemoryStore>,
    /// What was applied since, a transaction each.
    groups: Vec<Vec<Change>>,
    /// Transactions of this life that were acknowledged early.
    sequence: u64,
    /// Shards that were given a sequence and not told that it is durable.
    waiting: BTreeSet<ShardIndex>,
    flush_is_due: bool,
    /// Payloads that were removed early in this life.
    removed: BTreeSet<PayloadId>,
    /// What the last loss of power brought back.
    came_back: BTreeSet<PayloadKey>,
}

impl LateLog {
    /// Before `store` applies this: 0, or the sequence of a transaction that is not durable when it is acknowledged.
    pub(super) fn applies(&mut self, store: &MemoryStore, changes: &[Change]) -> u64 {
        if !self.normal || !changes.iter().all(Change::may_be_late) {
            self.synced();
            return 0;
        }
        self.durable.get_or_insert_with(|| store.clone());
        for change in changes {
            if let Change::Row(CatalogChange::Remove { key, .. }) = change {
                self.removed.insert(key.id);
            }
        }
        self.groups.push(changes.to_vec());
        self.sequence += 1;
        self.sequence
    }

    /// The log was synced.
    pub(super) fn synced(&mut self) {
        self.durable = None;
        self.groups.clear();
    }

    /// A start: what the last life left was synced with the new epoch, and nobody waits for it.
    pub(super) fn begin(&mut self) {
        self.synced();
        (self.sequence, self.flush_is_due) = (0, false);
        self.waiting.clear();
        self.removed.clear();
    }

    /// The server died. With the power go as many of the last transactions as chance has it; true when something came
    /// back.
    pub(super) fn crash(&mut self, store: &mut MemoryStore, power_loss: bool, rng: &mut Rng) -> bool {
        self.came_back.clear();
        if !power_loss {
            return false;
        }
        let Some(mut old) = self.durable.take() else { return false };
        let kept = rng.between(0, self.groups.len() as u64) as usize;
        for group in &self.groups[..kept] {
            old.apply(group).expect("the memory store does not fail");
        }
        let now: BTreeSet<PayloadKey> = store.rows().iter().map(|row| row.key).collect();
        self.came_back = old.rows().iter().map(|row| row.key).filter(|key| !now.contains(key)).collect();
        *store = old;
        !self.came_back.is_empty()
    }

    /// A row that a loss of power could bring back, and that names this block.
    fn names(&self, name: BlockName) -> Option<PayloadRow> {
        let names_it = |row: &PayloadRow| {
            row.key.id == name.id
                && row
                    .replicas
                    .iter()
                    .any(|replica| (replica.tier, replica.generation) == (name.tier, name.generation))
        };
        self.durable.as_ref()?.rows().into_iter().find(names_it)
    }
}

impl World {
    /// A block is about to be dropped: no loss of power may bring back what speaks of it. (Nothing in memory survives
    /// one anyway.)
    pub(super) fn audit_drop(&mut self, name: BlockName) -> Result<(), Breach> {
        let late = &self.catalog.late;
        if !name.tier.is_durable() || self.canary == Some(Canary::HalfRemoval) {
            return Ok(());
        }
        if let Some(row) = late.names(name) {
            return breach(
                Rule::FreeBeforeDurable,
                format!("{name:?} is dropped, and a loss of power would bring back {row:?}"),
            );
        }
        if late.removed.contains(&name.id) {
            self.oracle.coverage.hit("drop_waited_for_a_flush");
        }
        Ok(())
    }

    /// A transaction was acknowledged with this sequence.
    pub(super) fn transaction_acknowledged(&mut self, batch: &[CatalogOp], sequence: u64) {
        if sequence == 0 {
            return self.tell_durable();
        }
        self.catalog.late.waiting.extend(batch.iter().map(|op| op.shard));
        if !std::mem::replace(&mut self.catalog.late.flush_is_due, true) {
            let takes = self.plan.catalog_delay(&mut self.rng);
            self.agenda.add(Monotonic(self.now.0 + FLUSH_AFTER + takes), Task::CatalogFlush);
        }
    }

    /// What was acknowledged early is synced, if nothing else did so before.
    pub(super) fn catalog_flush(&mut self) -> Result<(), Breach> {
        let late = &mut self.catalog.late;
        late.flush_is_due = false;
        if late.groups.is_empty() {
            return Ok(());
        }
        if self.plan.crash_per_10k > 0 && self.rng.chance(CRASH_PERMILLE) {
            return self.crash();
        }
        if self.rng.chance(self.plan.catalog_fault_permille) {
            self.oracle.coverage.hit("flush_failed");
            self.catalog.late.flush_is_due = true;
            self.agenda.add(Monotonic(self.now.0 + FLUSH_RETRY), Task::CatalogFlush);
            return Ok(());
        }
        self.catalog.late.synced();
        self.trace.add(self.now, format_args!("catalog: flushed up to {}", self.catalog.late.sequence));
        self.tell_durable();
        Ok(())
    }

    /// After a boot: readers come for what a loss of power brought back.
    pub(super) fn lease_what_came_back(&mut self) {
        for key in self.oracle.came_back.clone() {
            let nonce = self.nonce();
            self.ask(Request::Acquire(Acquire {
                key,
                min_tier: None,
                policy: PromotionPolicy::BestEffort,
                duration_ms: 0,
                expected_version: None,
                accepts_packed: true,
                accepts_slabs: false,
                nonce,
                owner: Peer::UNKNOWN,
            }));
        }
    }

    fn tell_durable(&mut self) {
        let sequence = self.catalog.late.sequence;
        let waiting = std::mem::take(&mut self.catalog.late.waiting);
        if !waiting.is_empty() && self.asks_open > 0 {
            self.oracle.coverage.hit("flush_while_somebody_waits_for_space");
        }
        for shard in waiting {
            // It is no part of a lane: it may overtake acknowledgements.
            self.complete(shard, Completion::Durable { sequence }, None);
        }
    }
}

impl Oracle {
    /// Boot, before everything else: what came back with a loss of power was removed early, and is as it was.
    pub(super) fn judge_return(&mut self, scene: Scene<'_>) -> Result<(), Breach> {
        self.came_back.clear();
        let late = &scene.catalog.late;
        for row in scene.catalog.rows.values() {
            let Some(fact) = self.facts.get_mut(&row.key) else { continue };
            if !late.came_back.contains(&row.key) {
                if fact.gone {
                    return breach(Rule::Acknowledgement, format!("removed for good, and back: {row:?}"));
                }
                continue;
            }
            fact.gone = false;
            self.came_back.insert(row.key);
            for replica in row.replicas.iter().filter(|replica| replica.tier.is_durable() && replica.synced) {
                let block = scene.storage.blocks.get(&block_name(row.key, replica.tier, replica.generation));
                let whole = block.is_some_and(|block| {
                    block.damage != Damage::None
                        || (block.is_found_at_boot() && block.content == fact.content)
                });
                if !whole && !fact.damaged {
                    return breach(
                        Rule::FreeBeforeDurable,
                        format!("half of its removal happened: {row:?} {block:?}"),
                    );
                }
            }
        }
        Ok(())
    }
}
