//! What a shard answers. Each request is answered exactly once.

use crate::descriptor::Descriptor;
use crate::error::PayloadError;
use crate::ids::{LeaseId, PayloadId};
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
    /// Pin.
    Pinned,
    /// Unpin.
    Unpinned,
    /// List.
    Page(ShardPage),
    /// Stats.
    Stats(ShardStats),
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
}

/// One shard's part of the statistics.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ShardStats {
    /// By tier.
    pub tiers: PerTier<TierStats>,
}
