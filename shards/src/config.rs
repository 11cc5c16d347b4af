//! What a shard is told once, before its first step.

use crate::sessions::SessionCaps;
use payload_types::{ByteCount, Epoch, PerTier, ShardIndex, Tier};

/// See the module.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Which shard this is.
    pub shard: ShardIndex,
    /// How many there are.
    pub shard_count: u16,
    /// The number of this start.
    pub epoch: Epoch,
    /// The node's capacity by tier; `None`: the tier is not configured on this node.
    pub capacity: PerTier<Option<ByteCount>>,
    /// `leases.default_lease`.
    pub lease_ms_default: u64,
    /// `leases.max_lease`.
    pub lease_ms_max: u64,
    /// `leases.allocation_timeout`.
    pub allocation_timeout_ms: u64,
    /// `storage.disk.fsync`.
    pub disk_fsync: bool,
    /// `spill_workers.retry_backoff`: the pause before a failed move in the background is tried again; it doubles.
    pub retry_backoff_ms: u64,
    /// `leases.dead_grace`: how long what was begun under a direct lease may go on after that was taken away.
    pub dead_grace_ms: u64,
    /// What one native session may lease on this shard, and hold back in limbo by direct leases.
    pub session_caps: SessionCaps,
}

impl ShardConfig {
    /// True when the tier is configured.
    pub fn has(&self, tier: Tier) -> bool {
        self.capacity[tier].is_some()
    }
}
