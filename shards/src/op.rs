//! Work that drivers, the catalog or the arbiter do for a payload: a fixed number of slots, and at most one exclusive
//! operation a payload. A pin's store may run beside a copy, and verifications beside anything.
//!
//! ```text
//!   Allocate:  budget -> create                -> answered
//!   Commit:    seal   -> catalog               -> answered     a part of a batch may be put back by the catalog writer
//!   Copy:      budget -> copy -> catalog       -> published     requests that wait are parked with the payload
//!   (a relocation: without the budget step)
//!   Sync:      sync                            -> noted
//!   Verify:    read                            -> answered, or the next replica
//!   Mark:      catalog                         -> the failure that it marks is told, or a copy makes it good
//!   Remove:    catalog                         -> answered
//!   Pin:       catalog                         -> answered
//! ```
//! An operation in its budget step waits until its ask is met or cancelled ([`Wait`]).
//!
//! Rows of one payload reach the catalog in the order of their versions: a pin is not stored while an exclusive
//! operation's row is on its way, and the catalog writer is one FIFO.

use std::num::NonZeroU32;

use payload_ledger::{SlotKey, Slots, TimerId};
use payload_types::effect::{ReplicaRef, ReplyTo};
use payload_types::report::PinOwner;
use payload_types::{
    BatchPart, ByteCount, Checksum, Monotonic, OpId, PayloadError, PayloadState, PerTier, Pin, SessionId,
    SlabId, Tier, limits,
};

use crate::flow::scrub::Verify;

/// For whom an operation is done. Each class has slots of its own, so that neither starves the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// A client waits.
    Request,
    /// A client waits for a batch of them.
    Batch,
    /// Expiry, reclaim, moves in the background.
    Upkeep,
}

/// How far a commit or a copy has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Waits for the arbiter.
    Budget,
    /// A driver works.
    Driver,
    /// The catalog writes.
    Catalog,
}

/// One operation.
#[derive(Debug)]
pub struct Op {
    /// Its payload; stale when that was removed meanwhile.
    pub payload: SlotKey,
    /// For whom.
    pub class: Class,
    /// What.
    pub kind: Kind,
    /// The ask that the arbiter has.
    pub wait: Option<Wait>,
}

impl Op {
    /// One that waits for nothing.
    pub fn new(payload: SlotKey, class: Class, kind: Kind) -> Self {
        Self { payload, class, kind, wait: None }
    }

    /// For a move down that waits for space: what waits, the tier and the charged bytes of its source.
    fn spill_that_waits(&self) -> Option<(Wait, Tier, u64)> {
        match &self.kind {
            Kind::Copy(copy) if copy.is_spill() => {
                Some((self.wait?, copy.from.tier, copy.from.size.in_pages().0))
            }
            _ => None,
        }
    }

    fn evicts(&self) -> bool {
        matches!(&self.kind, Kind::Copy(copy) if copy.evicts)
    }
}

/// An open ask for capacity.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wait {
    /// The tier.
    pub tier: Tier,
    /// It is cancelled then; `None`: never.
    pub until: Option<Monotonic>,
    /// Fires at that moment.
    pub timer: Option<TimerId>,
    /// It lasts longer than a moment, or was begun for more room than a full tier has: what the operation would free does
    /// not count as on its way out.
    pub stuck: bool,
    /// How often the tier had been found full before. A wait that has seen it once more is stuck, too.
    pub found_full: u32,
    /// The arbiter was told.
    pub cancelled: bool,
}

/// What an operation does.
#[derive(Debug)]
pub enum Kind {
    /// AllocatePayload.
    Allocate {
        /// The caller.
        reply_to: ReplyTo,
        /// After this the caller is gone, and the allocation is taken back.
        deadline: Option<Monotonic>,
        /// What is being made.
        replica: ReplicaRef,
    },
    /// A session's next slab is made.
    MakeSlab {
        /// Whose.
        session: SessionId,
        /// Which.
        slab: SlabId,
        /// Its size.
        bytes: ByteCount,
    },
    /// CommitPayload.
    Commit {
        /// The first caller; later ones are parked.
        reply_to: ReplyTo,
        /// As the producer gave it.
        checksum: Option<Checksum>,
        /// Of which batch it is a part.
        batch: Option<BatchPart>,
        /// `Driver` (seal) or `Catalog`.
        step: Step,
    },
    /// Promote or spill.
    Copy(Copy),
    /// A replica that was written without fsync is brought to stable storage.
    Sync {
        /// Which.
        replica: ReplicaRef,
    },
    /// Bytes were found damaged: the row is marked.
    Mark(Mark),
    /// A replica is read again. Not exclusive.
    Verify(Box<Verify>),
    /// Delete, expiry, spill to VOID.
    Remove {
        /// The caller, and what it asked.
        caller: Option<(ReplyTo, Removal)>,
        /// The state to go back to when the catalog fails.
        prior: PayloadState,
        /// Charged bytes that are free once it is done.
        leaving: PerTier<u64>,
    },
    /// Pin or Unpin.
    Pin {
        /// The caller.
        reply_to: ReplyTo,
        /// What to go back to when the catalog fails.
        prior: Pin,
        /// Who had set that.
        prior_owner: Option<PinOwner>,
        /// True for Unpin.
        unpin: bool,
    },
    /// Stores the row of a payload that is not committed. Not exclusive.
    Enrol {
        /// Whom to answer.
        reply_to: ReplyTo,
    },
}

/// What follows once a row is marked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Mark {
    /// No replica is good: who waited is told this.
    Lost(PayloadError),
    /// The replica on this tier is not, and is written anew from a faster one.
    Rewrite(Tier),
}

/// Why a payload is removed at a client's wish.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Removal {
    /// Delete.
    Delete,
    /// Spill to VOID.
    Void,
}

/// A copy to another tier, into a file of its own, or, for the disk store's compaction, to another segment file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Copy {
    /// Read from here.
    pub from: ReplicaRef,
    /// Make this.
    pub to: ReplicaRef,
    /// On stable storage before it is done.
    pub sync: bool,
    /// Done under pressure, not because a client asked for it.
    pub evicts: bool,
    /// How far it has come.
    pub step: Step,
    /// The faster replicas stay: it only writes a damaged one anew, or moves one.
    pub keeps_source: bool,
    /// Within DISK, into a file of its own: a client that sets lengths is to lease it.
    pub alone: bool,
}

impl Copy {
    /// True for a move down.
    pub fn is_spill(&self) -> bool {
        self.from.tier.is_faster_than(self.to.tier)
    }

    /// True for what the disk store wished to be moved. It charges nothing: what it makes takes over the charge of what
    /// it replaces, and whichever of the two is dropped is in limbo without one. It is no use of the payload, either.
    pub fn is_relocation(&self) -> bool {
        self.from.tier == self.to.tier && !self.alone
    }
}

/// All operations of a shard.
#[derive(Debug)]
pub struct Ops {
    slots: Slots<Op>,
    batch_len: usize,
    upkeep_len: usize,
    /// Of those: evictions that copy.
    evictions_len: usize,
    /// Operations that wait for capacity.
    waiting_len: usize,
    /// Of those: clients'.
    waiting_requests_len: usize,
    spilling: PerTier<u64>,
    /// Of those: what waits for space on its destination, and is stuck.
    spilling_stuck: PerTier<u64>,
    /// Of those, by their destinations: what waits for space there and is not.
    spilling_hopes: PerTier<PerTier<u64>>,
    /// How often each tier was found full.
    found_full: PerTier<u32>,
    /// Evictions that wait for space on each tier.
    evictions_waiting: PerTier<usize>,
    removing: PerTier<u64>,
}

impl Default for Ops {
    fn default() -> Self {
        Self {
            slots: Slots::new(limits::OPS_PER_SHARD_MAX as u32),
            batch_len: 0,
            upkeep_len: 0,
            evictions_len: 0,
            waiting_len: 0,
            waiting_requests_len: 0,
            spilling: PerTier::default(),
            spilling_stuck: PerTier::default(),
            spilling_hopes: PerTier::default(),
            found_full: PerTier::default(),
            evictions_waiting: PerTier::default(),
            removing: PerTier::default(),
        }
    }
}

/// The id under which others know a slot.
pub fn op_id(key: SlotKey) -> OpId {
    OpId { index: key.index, generation: key.generation.get() }
}

/// The slot that others know under an id.
pub fn slot_key(op: OpId) -> SlotKey {
    NonZeroU32::new(op.generation)
        .map_or(SlotKey::NOWHERE, |generation| SlotKey { index: op.index, generation })
}

impl Ops {
    /// True when an operation of this class can start.
    pub fn has_room(&self, class: Class) -> bool {
        match class {
            Class::Request => {
                let others = self.upkeep_len + self.batch_len;
                self.slots.len() as usize - others < limits::OPS_FOR_REQUESTS
            }
            Class::Batch => self.batch_len < limits::OPS_FOR_BATCHES,
            Class::Upkeep => self.upkeep_len < limits::OPS_FOR_UPKEEP,
        }
    }

    /// True when one more of a client's operations may wait for capacity.
    pub fn may_wait(&self) -> bool {
        self.waiting_requests_len < limits::WAITERS_PER_SHARD_MAX
    }

    /// True when every operation under way waits for capacity.
    pub fn only_wait(&self) -> bool {
        self.waiting_len == self.slots.len() as usize
    }

    /// True when an eviction can start; one that copies needs more.
    pub fn may_evict(&self) -> bool {
        self.has_room(Class::Upkeep)
    }

    /// True when an eviction that copies can start.
    pub fn may_evict_by_copy(&self) -> bool {
        self.evictions_len < limits::EVICTIONS_PER_SHARD_MAX && self.may_evict()
    }

    /// True while an eviction waits for space on `tier`.
    pub fn waits_to_evict_to(&self, tier: Tier) -> bool {
        self.evictions_waiting[tier] > 0
    }

    /// How often `tier` was found full.
    pub fn found_full(&self, tier: Tier) -> u32 {
        self.found_full[tier]
    }

    /// `tier` is full: what waits for space there is stuck.
    pub fn finds_full(&mut self, tier: Tier) {
        self.found_full[tier] = self.found_full[tier].wrapping_add(1);
        let hopes = std::mem::take(&mut self.spilling_hopes[tier]);
        for from in Tier::ALL {
            self.spilling_stuck[from] += hopes[from];
        }
    }

    /// Charged bytes on `tier` that wait for space on `to` and are not stuck.
    pub fn hopes(&self, tier: Tier, to: Tier) -> u64 {
        self.spilling_hopes[to][tier]
    }

    /// True when the operation waits for space that nothing on its way would give it.
    pub fn is_stuck(&self, key: SlotKey) -> bool {
        self.get(key).and_then(|op| op.wait).is_some_and(|wait| self.is_stuck_wait(wait))
    }

    pub(crate) fn is_stuck_wait(&self, wait: Wait) -> bool {
        wait.stuck || wait.found_full != self.found_full[wait.tier]
    }

    /// Counts a move down that waits among the stuck ones or the others.
    fn count_wait(&mut self, spill: Option<(Wait, Tier, u64)>, add: bool) {
        let Some((wait, from, bytes)) = spill else { return };
        let sum = if self.is_stuck_wait(wait) {
            &mut self.spilling_stuck[from]
        } else {
            &mut self.spilling_hopes[wait.tier][from]
        };
        *sum = if add { *sum + bytes } else { *sum - bytes };
    }

    /// The operation waits for capacity from here on.
    ///
    /// # Panics
    /// When it has ended, or waits already.
    pub fn begin_wait(&mut self, key: SlotKey, wait: Wait) {
        let op = self.slots.get_mut(key).expect("only a live operation asks");
        assert!(op.wait.replace(wait).is_none(), "one ask at a time");
        self.waiting_len += 1;
        self.waiting_requests_len += usize::from(op.class == Class::Request);
        self.evictions_waiting[wait.tier] += usize::from(op.evicts());
        let spill = op.spill_that_waits();
        self.count_wait(spill, true);
    }

    /// The operation, which waits, waits longer.
    ///
    /// # Panics
    /// When it does not wait.
    pub fn prolong_wait(&mut self, key: SlotKey, wait: Wait) {
        let op = self.slots.get_mut(key).expect("only a live operation waits");
        let before = op.spill_that_waits();
        assert!(op.wait.replace(wait).is_some(), "it waits");
        let after = op.spill_that_waits();
        self.count_wait(before, false);
        self.count_wait(after, true);
    }

    /// The arbiter answered.
    pub fn end_wait(&mut self, key: SlotKey) -> Option<Wait> {
        let op = self.slots.get_mut(key)?;
        let spill = op.spill_that_waits();
        let wait = op.wait.take()?;
        self.waiting_len -= 1;
        self.waiting_requests_len -= usize::from(op.class == Class::Request);
        self.evictions_waiting[wait.tier] -= usize::from(op.evicts());
        self.count_wait(spill, false);
        Some(wait)
    }

    /// Starts an operation.
    ///
    /// # Panics
    /// When there is no room: callers ask `has_room` first, and answer RESOURCE_EXHAUSTED.
    pub fn start(&mut self, op: Op) -> SlotKey {
        assert!(self.has_room(op.class), "the caller checked has_room");
        self.upkeep_len += usize::from(op.class == Class::Upkeep);
        self.batch_len += usize::from(op.class == Class::Batch);
        self.count(&op.kind, true);
        self.slots.insert(op).expect("all classes together fit the table")
    }

    /// The operation, unless it has ended.
    pub fn get(&self, key: SlotKey) -> Option<&Op> {
        self.slots.get(key)
    }

    /// The operation, unless it has ended.
    pub fn get_mut(&mut self, key: SlotKey) -> Option<&mut Op> {
        self.slots.get_mut(key)
    }

    /// Ends an operation.
    ///
    /// # Panics
    /// When it has ended before.
    pub fn end(&mut self, key: SlotKey) -> Op {
        let op = self.slots.remove(key).expect("an operation ends once");
        assert!(op.wait.is_none(), "an operation ends after its ask");
        self.upkeep_len -= usize::from(op.class == Class::Upkeep);
        self.batch_len -= usize::from(op.class == Class::Batch);
        self.count(&op.kind, false);
        op
    }

    /// Turns the copy of a payload that was found damaged into the mark for it.
    ///
    /// # Panics
    /// When it has ended.
    pub fn becomes_mark(&mut self, key: SlotKey, mark: Mark) {
        let op = self.slots.get_mut(key).expect("the copy has not ended");
        let was = std::mem::replace(&mut op.kind, Kind::Mark(mark));
        self.count(&was, false);
    }

    fn count(&mut self, kind: &Kind, add: bool) {
        let put = |sum: &mut u64, bytes: u64| if add { *sum += bytes } else { *sum -= bytes };
        match kind {
            Kind::Copy(copy) => {
                if copy.is_spill() {
                    put(&mut self.spilling[copy.from.tier], copy.from.size.in_pages().0);
                }
                if copy.evicts {
                    self.evictions_len = if add { self.evictions_len + 1 } else { self.evictions_len - 1 };
                }
            }
            Kind::Remove { leaving, .. } => {
                for tier in Tier::ALL {
                    put(&mut self.removing[tier], leaving[tier]);
                }
            }
            Kind::Allocate { .. }
            | Kind::MakeSlab { .. }
            | Kind::Commit { .. }
            | Kind::Sync { .. }
            | Kind::Mark(_)
            | Kind::Verify(_)
            | Kind::Pin { .. }
            | Kind::Enrol { .. } => {}
        }
    }

    /// Replicas in slabs that are being made, or zeroed. For checks: as long as the table.
    pub fn blocks_under_way(&self) -> impl Iterator<Item = ReplicaRef> {
        let all = (0..limits::OPS_PER_SHARD_MAX as u32)
            .filter_map(|index| self.slots.get(self.slots.key_at(index)?));
        all.filter_map(|op| match op.kind {
            Kind::Allocate { replica, .. } if replica.block.is_some() => Some(replica),
            _ => None,
        })
    }

    /// Operations under way.
    pub fn len(&self) -> u32 {
        self.slots.len()
    }

    /// True when nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Charged bytes on `tier` that are being copied to a slower one.
    pub fn spilling(&self, tier: Tier) -> ByteCount {
        ByteCount(self.spilling[tier])
    }

    /// Charged bytes on `tier` that operations under way will free soon.
    pub fn leaving(&self, tier: Tier) -> u64 {
        self.spilling[tier] - self.spilling_stuck[tier] + self.removing[tier]
    }
}
