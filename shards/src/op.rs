//! Work that drivers, the catalog or the arbiter do for a payload: a fixed number of slots, and at most one exclusive
//! operation a payload. A pin's store is the one that may run beside a copy.
//!
//! ```text
//!   Allocate:  budget -> create                -> answered
//!   Commit:    seal   -> catalog               -> answered
//!   Copy:      budget -> copy -> catalog       -> published     requests that wait are parked with the payload
//!   Sync:      sync                            -> noted
//!   Mark:      catalog                         -> the failure that it marks is told
//!   Remove:    catalog                         -> answered
//!   Pin:       catalog                         -> answered
//! ```
//! Rows of one payload reach the catalog in the order of their versions: a pin is not stored while an exclusive
//! operation's row is on its way, and the catalog writer is one FIFO.

use std::num::NonZeroU32;

use payload_ledger::{SlotKey, Slots};
use payload_types::effect::{ReplicaRef, ReplyTo};
use payload_types::report::PinOwner;
use payload_types::{ByteCount, Checksum, Monotonic, OpId, PayloadError, PayloadState, PerTier, Pin, limits};

/// For whom an operation is done. Each class has slots of its own, so that neither starves the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// A client waits.
    Request,
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
    /// CommitPayload.
    Commit {
        /// The first caller; later ones are parked.
        reply_to: ReplyTo,
        /// As the producer gave it.
        checksum: Option<Checksum>,
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
    /// The payload's bytes were found damaged: its row is marked, and who waited is told `failure`.
    Mark {
        /// Why.
        failure: PayloadError,
    },
    /// Delete, expiry, spill to VOID.
    Remove {
        /// The caller, and what it asked.
        caller: Option<(ReplyTo, Removal)>,
        /// The state to go back to when the catalog fails.
        prior: PayloadState,
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
}

/// Why a payload is removed at a client's wish.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Removal {
    /// Delete.
    Delete,
    /// Spill to VOID.
    Void,
}

/// A copy to another tier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Copy {
    /// Read from here.
    pub from: ReplicaRef,
    /// Make this.
    pub to: ReplicaRef,
    /// On stable storage before it is done.
    pub sync: bool,
    /// How far it has come.
    pub step: Step,
}

impl Copy {
    /// True for a move down.
    pub fn is_spill(&self) -> bool {
        self.from.tier.is_faster_than(self.to.tier)
    }
}

/// All operations of a shard.
#[derive(Debug)]
pub struct Ops {
    slots: Slots<Op>,
    upkeep_len: usize,
    spilling: PerTier<u64>,
}

impl Default for Ops {
    fn default() -> Self {
        Self {
            slots: Slots::new(limits::OPS_PER_SHARD_MAX as u32),
            upkeep_len: 0,
            spilling: PerTier::default(),
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
            Class::Request => self.slots.len() as usize - self.upkeep_len < limits::OPS_FOR_REQUESTS,
            Class::Upkeep => self.upkeep_len < limits::OPS_FOR_UPKEEP,
        }
    }

    /// Starts an operation.
    ///
    /// # Panics
    /// When there is no room: callers ask `has_room` first, and answer RESOURCE_EXHAUSTED.
    pub fn start(&mut self, op: Op) -> SlotKey {
        assert!(self.has_room(op.class), "the caller checked has_room");
        self.upkeep_len += usize::from(op.class == Class::Upkeep);
        if let Kind::Copy(copy) = &op.kind
            && copy.is_spill()
        {
            self.spilling[copy.from.tier] += copy.from.size.in_pages().0;
        }
        self.slots.insert(op).expect("both classes together fit the table")
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
        self.upkeep_len -= usize::from(op.class == Class::Upkeep);
        if let Kind::Copy(copy) = &op.kind
            && copy.is_spill()
        {
            self.spilling[copy.from.tier] -= copy.from.size.in_pages().0;
        }
        op
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
    pub fn spilling(&self, tier: payload_types::Tier) -> ByteCount {
        ByteCount(self.spilling[tier])
    }
}
