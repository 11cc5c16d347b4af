//! Work of drivers and catalog that shards wait for: how long it takes, by what it is.
//!
//! ```text
//! shard --NodePorts--> begun(slot) --> driver or catalog --completion--> ended(slot) --> histogram
//! ```
//! An operation's slot has at most one thing under way (limits::COMPLETION_LANE_LEN), so that a number for each slot is
//! all there is: no lock, no allocation, two clock readings of 26 ns an operation. What a full queue handed back to its
//! shard is timed from its first try.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use payload_catalog::WriterStats;
use payload_types::event::{Completion, StorageDone};
use payload_types::{OpId, PayloadId, ShardIndex, Tier, limits};

use super::tracer::{Stage, Tracer};
use crate::metrics::histogram::{Distribution, Histogram};

/// What a shard waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// A row of the catalog.
    Catalog,
    /// A copy from one tier to another, or within one.
    Copy {
        /// From.
        from: Tier,
        /// To.
        to: Tier,
    },
    /// Making, sealing, syncing or verifying a replica on a tier.
    Storage(Tier),
}

/// Bits of a slot's number that say what is under way; the rest are nanoseconds, for nine years.
const CODE_BITS: u32 = 6;

impl Work {
    fn code(self) -> u64 {
        match self {
            Self::Catalog => 1,
            Self::Copy { from, to } => 2 + 4 * place(from) as u64 + place(to) as u64,
            Self::Storage(tier) => 18 + place(tier) as u64,
        }
    }

    /// As spans are called.
    fn name(self) -> String {
        match self {
            Self::Catalog => "catalog".to_owned(),
            Self::Copy { from, to } => format!("copy {from} to {to}"),
            Self::Storage(tier) => format!("storage {tier}"),
        }
    }

    fn of(code: u64) -> Option<Self> {
        let tier = |index: u64| Tier::ALL.get(usize::try_from(index).ok()?).copied();
        match code {
            1 => Some(Self::Catalog),
            2..18 => Some(Self::Copy { from: tier((code - 2) / 4)?, to: tier((code - 2) % 4)? }),
            _ => Some(Self::Storage(tier(code.checked_sub(18)?)?)),
        }
    }
}

/// A tier's place in [`Tier::ALL`].
const fn place(tier: Tier) -> usize {
    tier as usize - Tier::ALL[0] as usize
}

/// See the module.
pub struct Flights {
    started: Instant,
    /// By shard and slot: 0, or when it began and what it is.
    slots: Box<[Box<[AtomicU64]>]>,
    copies: [[Histogram; 4]; 4],
    catalog: Histogram,
    /// `None`: nothing is traced.
    tracer: Option<Arc<Tracer>>,
    /// Of what is under way, what belongs to a call that is traced.
    traced: Mutex<HashMap<(ShardIndex, u32), Stage>>,
    /// What the catalog's writer says of itself, once there is one.
    writer: OnceLock<Box<dyn Fn() -> WriterStats + Send + Sync>>,
}

impl Flights {
    /// For so many shards; what belongs to calls that `tracer` traces becomes spans of theirs.
    pub fn new(shard_count: u16, tracer: Option<Arc<Tracer>>) -> Self {
        let slots = || (0..limits::OPS_PER_SHARD_MAX).map(|_| AtomicU64::new(0)).collect();
        Self {
            started: Instant::now(),
            slots: (0..shard_count).map(|_| slots()).collect(),
            copies: Default::default(),
            catalog: Histogram::default(),
            tracer,
            traced: Mutex::default(),
            writer: OnceLock::new(),
        }
    }

    /// Who tells of the catalog's writer.
    pub fn watch_writer(&self, stats: impl Fn() -> WriterStats + Send + Sync + 'static) {
        let _twice = self.writer.set(Box::new(stats));
    }

    /// The slot's work for `payload` is queued. Again and again while its queue is full.
    pub fn begun(&self, (shard, op): (ShardIndex, OpId), payload: PayloadId, work: Work) {
        let Some(slot) = self.slot(shard, op).filter(|slot| slot.load(Ordering::Relaxed) == 0) else {
            return;
        };
        slot.store(self.now_ns() << CODE_BITS | work.code(), Ordering::Relaxed);
        if let Some(stage) = self.tracer.as_ref().and_then(|tracer| tracer.stage_of(payload)) {
            self.traced().insert((shard, op.index), stage.child());
        }
    }

    /// This is about to be told to the shard.
    pub fn ended(&self, shard: ShardIndex, completion: &Completion) {
        let Some(op) = op_of(completion) else { return };
        let Some(slot) = self.slot(shard, op) else { return };
        let begun = slot.swap(0, Ordering::Relaxed);
        let Some(work) = Work::of(begun & ((1 << CODE_BITS) - 1)) else { return };
        let took = Duration::from_nanos(self.now_ns().saturating_sub(begun >> CODE_BITS));
        match work {
            Work::Catalog => self.catalog.observe(took),
            Work::Copy { from, to } => self.copies[place(from)][place(to)].observe(took),
            Work::Storage(_) => {}
        }
        if self.tracer.is_some()
            && let Some(stage) = self.traced().remove(&(shard, op.index))
        {
            stage.end(work.name(), Vec::new(), error_of(completion));
        }
    }

    /// Held for a look at a map; nobody takes it without tracing.
    fn traced(&self) -> MutexGuard<'_, HashMap<(ShardIndex, u32), Stage>> {
        self.traced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies that ended: source, destination, how long they took.
    pub fn copies(&self) -> Vec<(Tier, Tier, Distribution)> {
        let pairs = Tier::ALL.into_iter().flat_map(|from| Tier::ALL.map(|to| (from, to)));
        pairs.filter_map(|(from, to)| Some((from, to, self.copies[place(from)][place(to)].read()?))).collect()
    }

    /// How long changes of payloads' rows took, from being queued to being acknowledged; `None`: there was none.
    pub fn catalog_wait(&self) -> Option<Distribution> {
        self.catalog.read()
    }

    /// What the catalog's writer says of itself.
    pub fn writer(&self) -> WriterStats {
        self.writer.get().map(|stats| stats()).unwrap_or_default()
    }

    fn slot(&self, shard: ShardIndex, op: OpId) -> Option<&AtomicU64> {
        self.slots.get(usize::from(shard.0))?.get(op.index as usize)
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// What went wrong, in words.
fn error_of(completion: &Completion) -> Option<String> {
    match completion {
        Completion::Storage(
            StorageDone::Created { result, .. }
            | StorageDone::Sealed { result, .. }
            | StorageDone::Synced { result, .. }
            | StorageDone::Verified { result, .. },
        ) => result.as_ref().err().map(|error| format!("{error:?}")),
        Completion::Transfer(done) => done.result.as_ref().err().map(|error| format!("{error:?}")),
        Completion::Catalog(ack) => ack.result.as_ref().err().cloned(),
        Completion::BatchRefused(_) => Some("another payload of the batch was refused".to_owned()),
        Completion::Claimed { reason, .. } => Some(reason.clone()),
        _ => None,
    }
}

/// The slot that waited for this, where one did.
fn op_of(completion: &Completion) -> Option<OpId> {
    match completion {
        Completion::Storage(
            StorageDone::Created { op, .. }
            | StorageDone::Sealed { op, .. }
            | StorageDone::Synced { op, .. }
            | StorageDone::Verified { op, .. },
        ) => Some(*op),
        Completion::Transfer(done) => Some(done.op),
        Completion::Catalog(ack) => Some(ack.op),
        Completion::BatchRefused(op) | Completion::Claimed { op, .. } => Some(*op),
        Completion::Storage(StorageDone::Detached { .. } | StorageDone::Freed { .. })
        | Completion::Budget(_)
        | Completion::Slab(_)
        | Completion::Relocate(_)
        | Completion::Durable { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use payload_types::event::CatalogAck;

    use super::*;

    fn op(index: u32) -> OpId {
        OpId { index, generation: 1 }
    }

    fn acked(index: u32) -> Completion {
        Completion::Catalog(CatalogAck { op: op(index), result: Ok(()), sequence: 0 })
    }

    #[test]
    fn given_every_kind_of_work_when_coded_then_it_reads_back() {
        let mut all = vec![Work::Catalog];
        for from in Tier::ALL {
            all.push(Work::Storage(from));
            all.extend(Tier::ALL.map(|to| Work::Copy { from, to }));
        }
        for work in all {
            assert_eq!(Work::of(work.code()), Some(work));
            assert!(work.code() < 1 << CODE_BITS);
        }
        assert_eq!((Work::of(0), Work::of(22)), (None, None));
    }

    #[test]
    fn given_work_when_it_ends_then_it_is_counted_once_and_only_what_began() {
        let flights = Flights::new(2, None);
        let (shard, payload) = (ShardIndex(1), PayloadId::mint(1 << 12, 7));
        flights.ended(shard, &acked(3));
        assert_eq!(flights.catalog_wait(), None, "nothing had begun");
        flights.begun((shard, op(3)), payload, Work::Catalog);
        // The queue was full, and the shard tries again.
        flights.begun((shard, op(3)), payload, Work::Catalog);
        flights.ended(shard, &acked(3));
        flights.ended(shard, &acked(3));
        assert_eq!(flights.catalog_wait().expect("one").count(), 1);
        let copy = Work::Copy { from: Tier::Ram, to: Tier::Disk };
        flights.begun((shard, op(3)), payload, copy);
        flights.ended(shard, &acked(3));
        let copies = flights.copies();
        assert_eq!((copies.len(), copies[0].0, copies[0].1), (1, Tier::Ram, Tier::Disk));
        // A slot or shard that does not exist is nobody's.
        flights.begun((ShardIndex(9), op(3)), payload, Work::Catalog);
        flights.begun((shard, op(u32::MAX)), payload, Work::Catalog);
    }
}
