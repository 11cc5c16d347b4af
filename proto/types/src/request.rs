//! What a client may ask of one shard. Senders: `front`, and the rings of native sessions; lane: requests; a lost one
//! costs its caller a deadline, nothing else.

use crate::batch::BatchPart;
use crate::find::{Describe, Find};
use crate::hold::Hold;
use crate::ids::{LeaseId, LeaseNonce, NamespaceId, PayloadId, PayloadKey, Version};
use crate::peer::Peer;
use crate::policy::{EvictionPolicy, PromotionPolicy, Rank, SpillPolicy};
use crate::scrub::Scrub;
use crate::session::SessionId;
use crate::slab::Memory;
use crate::tier::{SpillTarget, Tier};
use crate::units::{ByteCount, Checksum};

/// One request, validated by `wire` and routed by its payload id.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Reserve space.
    Allocate(Allocate),
    /// Make the bytes immutable and durable as their class says.
    Commit {
        /// Target.
        key: PayloadKey,
        /// XXH3-64 of the bytes, when the producer knows it.
        checksum: Option<Checksum>,
        /// Together with others, or not at all.
        batch: Option<BatchPart>,
    },
    /// Remove the payload.
    Delete {
        /// Target.
        key: PayloadKey,
        /// Also when it is leased.
        force: bool,
        /// Version fencing.
        expected_version: Option<Version>,
    },
    /// Give an allocation back that this session made and nobody committed.
    Abort {
        /// Target.
        key: PayloadKey,
        /// Who asks.
        owner: Peer,
    },
    /// Describe it.
    Resolve {
        /// Target.
        key: PayloadKey,
    },
    /// Store a row of it, if it has none: metadata or lineage are to refer to it.
    Enrol {
        /// Target.
        key: PayloadKey,
    },
    /// Lease a replica for reading.
    Acquire(Acquire),
    /// End a lease; unknown ones are fine.
    Release {
        /// The lease.
        lease: LeaseId,
        /// The session that asks: another session's lease is unknown to it. `None`: a client that has the id may end it.
        by: Option<SessionId>,
    },
    /// Add a replica on a faster tier; a slower target is a blocking spill.
    Promote {
        /// Target.
        key: PayloadKey,
        /// Where to.
        target: Tier,
        /// Whether the deadline is an error.
        policy: PromotionPolicy,
        /// Version fencing.
        expected_version: Option<Version>,
    },
    /// Move it to a slower tier. One id; the front splits a batch and keeps its order.
    Spill(Spill),
    /// Promote in the background; answered at once.
    Prefetch {
        /// Target.
        key: PayloadKey,
        /// Where to.
        target: Tier,
    },
    /// Block spills for a while.
    Pin {
        /// Target.
        key: PayloadKey,
        /// For so long; `None` until Unpin.
        duration_ms: Option<u64>,
        /// Who asks.
        owner: Peer,
    },
    /// End the pin.
    Unpin {
        /// Target.
        key: PayloadKey,
    },
    /// What streams keep payloads for. Sent by the front itself, to the shards that it names.
    Hold(Hold),
    /// One shard's part of a page. Sent to every shard.
    List(List),
    /// One shard's part of what is looked for. Sent to every shard.
    Find(Find),
    /// What listings show of some payloads. Sent to the shards that they hash to.
    Describe(Describe),
    /// One shard's part of the statistics. Sent to every shard.
    Stats,
    /// Who leases and pins it, a part at a time.
    Holders {
        /// Target.
        key: PayloadKey,
        /// Go on after this lease; from the oldest when it is `None`, or ended meanwhile.
        after: Option<LeaseId>,
    },
    /// Whether its bytes are what was committed.
    Scrub(Scrub),
    /// Why it is where it is.
    Explain {
        /// Target.
        key: PayloadKey,
    },
    /// The server is about to stop: copy what lies in slabs and nowhere else to DISK, most recently used first, until the
    /// request's deadline, and take nothing more into slabs. Sent to every shard by the front itself, when it takes no other requests any more.
    SpillArenas,
    /// What a tier would evict next: one shard's part. Sent to every shard.
    Outlook {
        /// The tier.
        tier: Tier,
        /// Count who goes before this rank.
        rank: Option<Rank>,
    },
}

/// See [`Request::Allocate`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Allocate {
    /// Minted by the front so that it hashes to the shard it is sent to.
    pub key: PayloadKey,
    /// 1 ..= `limits::PAYLOAD_BYTES_MAX`.
    pub size: ByteCount,
    /// Where.
    pub tier: Tier,
    /// Life after creation; `None`: no expiry (0 on the wire, or no_evict, or priority NEVER).
    pub ttl_ms: Option<u64>,
    /// Never evicted automatically.
    pub no_evict: bool,
    /// Validated.
    pub policy: EvictionPolicy,
    /// Which kind of memory; `Segment` on every tier but RAM, and where `owner` names no session.
    pub memory: Memory,
    /// Who asks: what a native session did not commit goes with it.
    pub owner: Peer,
}

/// See [`Request::Acquire`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acquire {
    /// Target.
    pub key: PayloadKey,
    /// The slowest acceptable tier; `None`: any.
    pub min_tier: Option<Tier>,
    /// What to do when no replica is that fast.
    pub policy: PromotionPolicy,
    /// Asked-for duration; 0: the default.
    pub duration_ms: u64,
    /// Version fencing.
    pub expected_version: Option<Version>,
    /// It never sets a file's length, so it may be shown a place in a file that others share.
    pub accepts_packed: bool,
    /// It has a session that is sent slabs, so it may be shown a place in one.
    pub accepts_slabs: bool,
    /// The unguessable part of the lease id.
    pub nonce: LeaseNonce,
    /// Who asks.
    pub owner: Peer,
}

/// See [`Request::Spill`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Spill {
    /// Target.
    pub key: PayloadKey,
    /// Where to; `None`: the payload's spill_target, else DISK.
    pub target: Option<SpillTarget>,
    /// Whether to answer before it is done.
    pub policy: SpillPolicy,
    /// Wait for the leases that exist now, instead of refusing.
    pub wait_for_leases: bool,
    /// Data on stable storage before the answer, whatever `storage.disk.fsync` says.
    pub fsync: bool,
    /// Version fencing.
    pub expected_version: Option<Version>,
}

/// See [`Request::List`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct List {
    /// Whose payloads.
    pub namespace: NamespaceId,
    /// Only those whose descriptor shows this tier.
    pub tier: Option<Tier>,
    /// Only ids below this one: the cursor. Newest first.
    pub before: Option<PayloadId>,
    /// At most this many, 2 ..= `limits::LIST_PAGE_MAX` + 1: one more than the client's page, so that a row left
    /// over tells that there is a next page.
    pub page_size: usize,
}

impl Request {
    /// The id that decides the shard; `None` for those every shard gets and for Release, whose lease names it.
    pub fn routing_id(&self) -> Option<PayloadId> {
        match self {
            Self::Allocate(request) => Some(request.key.id),
            Self::Acquire(request) => Some(request.key.id),
            Self::Spill(request) => Some(request.key.id),
            Self::Scrub(request) => Some(request.key.id),
            Self::Commit { key, .. }
            | Self::Delete { key, .. }
            | Self::Abort { key, .. }
            | Self::Resolve { key }
            | Self::Enrol { key }
            | Self::Promote { key, .. }
            | Self::Prefetch { key, .. }
            | Self::Pin { key, .. }
            | Self::Unpin { key }
            | Self::Holders { key, .. }
            | Self::Explain { key } => Some(key.id),
            Self::Release { .. }
            | Self::Hold(_)
            | Self::List(_)
            | Self::Find(_)
            | Self::Describe(_)
            | Self::Stats
            | Self::SpillArenas
            | Self::Outlook { .. } => None,
        }
    }
}
