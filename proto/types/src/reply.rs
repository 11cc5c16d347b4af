//! What a shard answers. Each request is answered exactly once.

use crate::descriptor::Descriptor;
use crate::effect::TierUsage;
use crate::error::PayloadError;
use crate::find::FoundPart;
use crate::ids::{LeaseId, PayloadId};
use crate::report::{Explanation, Holders, Outlook};
use crate::scrub::ScrubbedReplica;
use crate::state::PayloadState;
use crate::tier::{PerTier, Tier};
use crate::time::WallMs;
use crate::units::ByteCount;

/// The answer to a request, or why there is none.
pub type ReplyResult = Result<Reply, PayloadError>;

/// One answer; its variant follows from the request's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// Allocate: ALLOCATED, with its location.
    Allocated(Descriptor),
    /// Commit.
    Committed(Descriptor),
    /// Delete.
    Deleted,
    /// Resolve.
    Resolved(Descriptor),
    /// Acquire.
    Leased(LeaseGrant),
    /// Release.
    Released,
    /// Promote: the descriptor as it is now.
    Promoted(Descriptor),
    /// Spill: the descriptor as it is now; `None` when it was discarded.
    Spilled(Option<Descriptor>),
    /// Prefetch: validated and scheduled.
    Prefetching,
    /// Enrol.
    Enrolled,
    /// Hold.
    Held,
    /// Pin.
    Pinned,
    /// Unpin.
    Unpinned,
    /// List.
    Page(ShardPage),
    /// Find, Describe.
    Found(FoundPart),
    /// Scrub: every replica that was looked at; none when the payload is not committed.
    Scrubbed(Vec<ScrubbedReplica>),
    /// Stats.
    Stats(Box<ShardStats>),
    /// Holders.
    Holders(Holders),
    /// Explain.
    Explained(Box<Explanation>),
    /// Outlook.
    Outlook(Outlook),
    /// SpillArenas.
    ArenasSpilled(ArenasSpilled),
}

/// How far [`Request::SpillArenas`](crate::request::Request::SpillArenas) came.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ArenasSpilled {
    /// Payloads that have a copy on DISK now and had none.
    pub spilled: u64,
    /// Payloads that will be lost, at most `limits::ITEMS_PER_TURN_MAX` of them.
    pub lost: Vec<PayloadId>,
    /// Those that are not named in `lost`.
    pub lost_more: u64,
}

/// A granted lease.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseGrant {
    /// Its id.
    pub lease: LeaseId,
    /// The replica that is pinned.
    pub descriptor: Descriptor,
    /// When it ends by itself.
    pub expires_at: WallMs,
}

/// One row of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Summary {
    /// Identity.
    pub id: PayloadId,
    /// Tier of the descriptor.
    pub tier: Tier,
    /// State, as shown.
    pub state: PayloadState,
    /// Logical size.
    pub size: ByteCount,
    /// Creation time.
    pub created_at: WallMs,
    /// Expiry, if any.
    pub expires_at: Option<WallMs>,
    /// Leases held now.
    pub leases: u32,
}

/// One shard's part of a page.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ShardPage {
    /// Newest first, at most `page_size`.
    pub rows: Vec<Summary>,
    /// All payloads of this shard that match the filter, whatever the cursor.
    pub total: u64,
}

/// One tier of one shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TierStats {
    /// Payloads whose descriptor shows this tier.
    pub payloads: u64,
    /// Logical bytes of the replicas on this tier.
    pub bytes: u64,
    /// What the tier may hold on the whole node; `None`: not configured.
    pub capacity: Option<u64>,
    /// Granted to this shard and not charged.
    pub reserved: u64,
    /// What is charged, and what of it is leased, pinned, spilling and in limbo.
    pub usage: TierUsage,
    /// Of what is charged: current replicas, in whole pages.
    pub current: u64,
    /// Of the current: payloads that are not committed.
    pub uncommitted: u64,
    /// The most this shard had charged at a time since start.
    pub peak: u64,
    /// What was moved here and away, since start.
    pub moved: MovedTotals,
}

impl TierStats {
    /// Charged for what is being made: neither a current replica nor in limbo.
    pub fn under_way(&self) -> u64 {
        self.usage.allocated.saturating_sub(self.current + self.usage.limbo)
    }
}

/// What has happened to one tier of one shard since start. Counters only grow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MovedTotals {
    /// Logical bytes of copies that arrived here from a faster tier.
    pub spilled_bytes: u64,
    /// Logical bytes of copies that arrived here from a slower tier.
    pub promoted_bytes: u64,
    /// Copies to this tier that a driver could not make.
    pub transfers_failed: u64,
    /// Replicas of this tier that were evicted under pressure.
    pub evictions: u64,
    /// Of those: dropped without a write, because a slower tier had the same bytes.
    pub evictions_twin: u64,
    /// Of those: discarded, as their payload allowed (`spill_target` VOID). The rest was copied to a slower tier first.
    pub evictions_void: u64,
}

/// One shard's part of the statistics.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ShardStats {
    /// By tier.
    pub tiers: PerTier<TierStats>,
    /// Leases held now.
    pub leases: u64,
    /// When the oldest of them was granted; of a very large table the oldest that was looked at.
    pub lease_oldest_at: Option<WallMs>,
    /// Leases granted since start.
    pub leases_granted: u64,
    /// Operations under way.
    pub operations: u64,
    /// Requests that wait for a payload.
    pub parked: u64,
    /// Memory of native sessions.
    pub arenas: ArenaStats,
}

/// Memory of native sessions on one shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ArenaStats {
    /// Sessions that hold or held memory here, dead ones with payloads left included.
    pub sessions: u64,
    /// Slabs that several payloads share.
    pub slabs: u64,
    /// Slabs of one payload: large ones, and sealed ones.
    pub own: u64,
    /// Bytes charged for both, what is being made or returned included.
    pub charged_bytes: u64,
    /// Payloads whose RAM replica lies in a slab.
    pub payloads: u64,
    /// Their logical bytes.
    pub payload_bytes: u64,
    /// Dropped blocks that wait for their leases, or for the end of a process.
    pub limbo_blocks: u64,
    /// Slabs that were given back and may still be mapped by somebody.
    pub returning: u64,
    /// Payloads that readers may lease without asking.
    pub shown: u64,
    /// Bytes of blocks that nobody has been proven not to read directly.
    pub direct_limbo_bytes: u64,
}
