//! What a shard tells operators about one payload: who holds it, and why it is where it is.

use crate::descriptor::{Descriptor, Location};
use crate::ids::{LeaseId, PayloadId};
use crate::peer::Peer;
use crate::policy::{Pin, Rank};
use crate::record::StreamName;
use crate::tier::{SpillTarget, Tier};
use crate::time::{Monotonic, WallMs};
use crate::units::ByteCount;

/// One lease and who took it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseHold {
    /// Its id.
    pub lease: LeaseId,
    /// Who took it.
    pub owner: Peer,
    /// The tier of the replica that it pins.
    pub tier: Tier,
    /// When it was granted.
    pub acquired_at: WallMs,
    /// When it ends by itself.
    pub expires_at: WallMs,
    /// The replica was dropped since; its space is freed when the lease ends.
    pub limbo: bool,
}

/// Who set a pin, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PinOwner {
    /// Who.
    pub peer: Peer,
    /// When.
    pub pinned_at: WallMs,
}

/// The pin of a payload and who set it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PinHold {
    /// `None`: it was set before the last start.
    pub owner: Option<PinOwner>,
    /// Until when.
    pub pin: Pin,
}

/// A stream that keeps a payload, because some group has not committed past an entry that refers to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamHold {
    /// Which; `None`: an append that refers to it is under way.
    pub stream: Option<StreamName>,
    /// The newest entry that refers to it.
    pub offset: u64,
}

/// Streams shown of those that hold one payload.
pub const STREAM_HOLDS_SHOWN: usize = 64;

/// One part of a payload's holders.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Holders {
    /// Oldest first, at most `limits::ITEMS_PER_TURN_MAX`.
    pub leases: Vec<LeaseHold>,
    /// True when there are leases after the last of these.
    pub more: bool,
    /// Leases held now.
    pub lease_count: u32,
    /// The pin, while it holds.
    pub pin: Option<PinHold>,
    /// Streams that keep it, at most [`STREAM_HOLDS_SHOWN`].
    pub streams: Vec<StreamHold>,
    /// Exactly what was allocated.
    pub size: ByteCount,
    /// Tiers that have a replica.
    pub replicas: u32,
}

/// Why pressure leaves a replica where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kept {
    /// Not committed: its producer is writing it.
    Uncommitted,
    /// So many leases are held on the payload.
    Leased(u32),
    /// Its pin holds.
    Pinned(Pin),
    /// Allocated with no_evict.
    NoEvict,
    /// Its priority is NEVER.
    PriorityNever,
    /// It must stay on this tier or a faster one.
    MinResidency(Tier),
    /// Something is being done to it.
    Busy(Work),
    /// Its bytes were found damaged: there is nothing good to move.
    Damaged,
    /// No slower tier is configured that it could go to, and it is not allowed to be discarded.
    Nowhere,
    /// Its ttl has passed or it is being deleted: it goes anyway.
    Ending,
    /// A faster copy, on this tier, goes first: only a payload's fastest replica is evicted.
    Behind(Tier),
    /// Its eviction failed a moment ago; it is tried again soon.
    PassedOver,
}

/// What pressure would do to a replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Pressure {
    /// Dropped without a write: the replica on this tier has the same bytes.
    Drop {
        /// The durable twin's tier.
        twin: Tier,
    },
    /// Copied there, then dropped.
    Move {
        /// The slower tier.
        to: Tier,
    },
    /// The payload is discarded.
    Discard,
    /// Nothing, for these reasons; never empty.
    Stays(Vec<Kept>),
}

/// What is being done to a payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Commit.
    Committing,
    /// A copy from one tier to another.
    Copying {
        /// Read from here.
        from: Tier,
        /// Made there.
        to: Tier,
    },
    /// Brought to stable storage.
    Syncing(Tier),
    /// Marked as damaged.
    Marking,
    /// Delete, expiry, discard.
    Removing,
    /// Its pin is being stored.
    Pinning,
    /// A row of it is being stored, before it is committed.
    Enrolling,
}

/// One current replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicaReport {
    /// Where.
    pub tier: Tier,
    /// Where exactly.
    pub location: Location,
    /// Made then; `None`: before the last start.
    pub since: Option<WallMs>,
    /// Leases on it.
    pub leases: u32,
    /// Copies that read it.
    pub copies: u32,
    /// On stable storage.
    pub synced: bool,
    /// What pressure on its tier would do.
    pub pressure: Pressure,
}

/// Why a payload is where it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explanation {
    /// As Resolve shows it.
    pub descriptor: Descriptor,
    /// Leases held, on all replicas.
    pub leases: u32,
    /// The pin, as far as it holds.
    pub pin: Pin,
    /// Streams that keep it, at most [`STREAM_HOLDS_SHOWN`].
    pub streams: Vec<StreamHold>,
    /// Allocated with no_evict.
    pub no_evict: bool,
    /// Where a spill without a target sends it.
    pub spill_target: SpillTarget,
    /// What is being done to it.
    pub work: Option<Work>,
    /// True when requests wait for it.
    pub requests_wait: bool,
    /// When its last lease ended, or when it arrived on its tier if it was never leased there; `None`: not known.
    pub used_at: Option<Monotonic>,
    /// Its rank among the victims of its fastest tier, while it is one.
    pub rank: Option<Rank>,
    /// Current replicas, fastest first.
    pub replicas: Vec<ReplicaReport>,
}

/// One payload that pressure would take soon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Victim {
    /// Identity.
    pub id: PayloadId,
    /// Logical size.
    pub size: ByteCount,
    /// The smallest goes first.
    pub rank: Rank,
}

/// What a tier of one shard would evict next.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outlook {
    /// The first ones, in order; at most [`VICTIMS_SHOWN`].
    pub victims: Vec<Victim>,
    /// How many go before the rank that was asked about; `None`: nothing was asked, or more than are looked at.
    pub before: Option<u32>,
    /// The tier is being evicted from now.
    pub under_pressure: bool,
}

/// Victims of one [`Outlook`].
pub const VICTIMS_SHOWN: usize = 5;
