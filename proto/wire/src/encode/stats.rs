//! The answer to Stats, summed over shards.

use payload_types::reply::{ArenaStats, ShardStats, TierStats};
use payload_types::{DiskFault, DiskHealth, DiskSegments, DiskState, PerTier, Tier};

use crate::encode::timestamp;
use crate::enums;
use crate::pb::admin::v1 as pb;
use crate::pb::operations::v1 as pb_operations;
use crate::pb::operations::v1::{ArenaAccounting, NodeAccounting, TierAccounting};

/// Direct leases of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DirectFigures {
    /// Held now.
    pub leases: u64,
    /// Who may.
    pub sessions: u64,
    /// Samples of what was read, since start.
    pub samples_total: u64,
    /// Payloads that found no place in a table, since start.
    pub unplaced_total: u64,
}

/// Memory of native sessions, as the thread that makes it counts it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MemoryFigures {
    /// Memories that exist, those on their way back included.
    pub memories: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of those, offered to a client that did not map them in time and holds on to them.
    pub held: u64,
    /// Bytes made since start.
    pub made_bytes: u64,
    /// Of those, in large pages.
    pub large_bytes: u64,
    /// Memories that did not get all the large pages that were asked for.
    pub large_refused: u64,
    /// Memories that could not be made.
    pub failed: u64,
    /// Descriptors that readers were given.
    pub opened: u64,
}

/// What no shard knows of its node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeFigures {
    /// What the file system holds for a tier; `None` where nothing was measured.
    pub physical: PerTier<Option<u64>>,
    /// What the configuration allows a tier beyond the capacity that shards know.
    pub overhead: PerTier<u64>,
    /// Open connections.
    pub connections: u64,
    /// Open native sessions.
    pub native_sessions: u64,
    /// What they lease without asking.
    pub direct: DirectFigures,
    /// Their memory; `None`: they are not served.
    pub memory: Option<MemoryFigures>,
    /// Since this start.
    pub uptime_ms: u64,
    /// How the disk root is doing, where there is one.
    pub disk: Option<DiskHealth>,
    /// Its segment files, where there are any.
    pub segments: Option<DiskSegments>,
    /// How the object store is doing, where there is one.
    pub object_store: Option<pb_operations::ObjectStoreHealth>,
}

/// Sums what the shards answered. No sum of payload counts or sizes of one machine comes near 2^64.
pub fn stats(shards: &[ShardStats], node: &NodeFigures) -> pb::StatsResponse {
    let sum = |figure: &dyn Fn(&ShardStats) -> u64| shards.iter().map(figure).sum::<u64>();
    let payloads = |tier| sum(&|shard| shard.tiers[tier].payloads);
    let bytes = |tier| sum(&|shard| shard.tiers[tier].bytes);
    pb::StatsResponse {
        payloads_gpu: payloads(Tier::Gpu),
        payloads_ram: payloads(Tier::Ram),
        payloads_disk: payloads(Tier::Disk),
        payloads_object: payloads(Tier::Object),
        bytes_gpu: bytes(Tier::Gpu),
        bytes_ram: bytes(Tier::Ram),
        bytes_disk: bytes(Tier::Disk),
        bytes_object: bytes(Tier::Object),
        tiers: Tier::ALL.into_iter().filter_map(|tier| accounting(tier, shards, node)).collect(),
        node: Some(NodeAccounting {
            leases: sum(&|shard| shard.leases),
            leases_granted_total: sum(&|shard| shard.leases_granted),
            operations: sum(&|shard| shard.operations),
            requests_parked: sum(&|shard| shard.parked),
            connections: node.connections,
            uptime_ms: node.uptime_ms,
            native_sessions: node.native_sessions,
            direct_leases: node.direct.leases,
            direct_sessions: node.direct.sessions,
            direct_samples_total: node.direct.samples_total,
            direct_unplaced_total: node.direct.unplaced_total,
        }),
        arenas: node.memory.map(|memory| arenas(shards, &memory)),
        disk: node.disk.as_ref().map(disk),
        disk_segments: node.segments.map(segments),
        object_store: node.object_store.clone(),
    }
}

fn arenas(shards: &[ShardStats], memory: &MemoryFigures) -> ArenaAccounting {
    let sum = |figure: &dyn Fn(&ArenaStats) -> u64| shards.iter().map(|shard| figure(&shard.arenas)).sum();
    ArenaAccounting {
        sessions: shards.iter().map(|shard| shard.arenas.sessions).max().unwrap_or_default(),
        slabs: sum(&|arena| arena.slabs),
        slabs_own: sum(&|arena| arena.own),
        charged_bytes: sum(&|arena| arena.charged_bytes),
        payloads: sum(&|arena| arena.payloads),
        payload_bytes: sum(&|arena| arena.payload_bytes),
        blocks_limbo: sum(&|arena| arena.limbo_blocks),
        slabs_returning: sum(&|arena| arena.returning),
        memories: memory.memories,
        memory_bytes: memory.bytes,
        memories_held: memory.held,
        made_bytes_total: memory.made_bytes,
        large_bytes_total: memory.large_bytes,
        large_refused_total: memory.large_refused,
        makes_failed_total: memory.failed,
        opens_total: memory.opened,
        payloads_shown: sum(&|arena| arena.shown),
        direct_limbo_bytes: sum(&|arena| arena.direct_limbo_bytes),
    }
}

fn segments(found: DiskSegments) -> pb_operations::DiskSegments {
    pb_operations::DiskSegments {
        files: found.files,
        files_free: found.files_free,
        files_held: found.files_held,
        file_bytes: found.file_bytes.0,
        live_bytes: found.live_bytes.0,
        dead_bytes: found.dead_bytes.0,
        recycled_total: found.recycled_total,
        emptied_total: found.emptied_total,
        moved_total: found.moved_total,
        moved_bytes_total: found.moved_bytes_total,
    }
}

fn disk(health: &DiskHealth) -> pb_operations::DiskHealth {
    let failing = match health.state {
        DiskState::Failing(fault) => Some(fault),
        DiskState::Healthy | DiskState::Slow => None,
    };
    pb_operations::DiskHealth {
        state: health.state.word().to_owned(),
        writable: failing.is_none(),
        since: health.since.map(timestamp),
        error: health.error.clone(),
        advice: failing.map_or("", DiskFault::advice).to_owned(),
        attempts: health.attempts,
        retry_ms: health.retry_ms,
        failures_total: health.failures_total,
        refused_total: health.refused_total,
        read_failures_total: health.read_failures_total,
        slow_total: health.slow_total,
    }
}

/// One tier's figures; `None` when it is not configured. Shards answer one after the other, so a grant that moves
/// between two of them meanwhile may be counted twice or not at all: `free` never goes below 0 for it.
fn accounting(tier: Tier, shards: &[ShardStats], node: &NodeFigures) -> Option<TierAccounting> {
    let capacity = shards.first()?.tiers[tier].capacity?;
    let sum =
        |figure: &dyn Fn(&TierStats) -> u64| shards.iter().map(|shard| figure(&shard.tiers[tier])).sum();
    let (reserved, allocated): (u64, u64) = (sum(&|part| part.reserved), sum(&|part| part.usage.allocated));
    let physical = node.physical[tier];
    let peaks: u64 = sum(&|part| part.peak);
    Some(TierAccounting {
        tier: enums::tier_to_pb(tier).into(),
        capacity_bytes: capacity,
        reserved_bytes: reserved,
        allocated_bytes: allocated,
        uncommitted_bytes: sum(&|part| part.uncommitted),
        leased_bytes: sum(&|part| part.usage.leased),
        pinned_bytes: sum(&|part| part.usage.pinned),
        spilling_bytes: sum(&|part| part.usage.spilling),
        limbo_bytes: sum(&|part| part.usage.limbo),
        free_bytes: capacity.saturating_sub(reserved + allocated),
        physical_bytes: physical,
        fragmentation_bytes: physical.map(|physical| physical.saturating_sub(allocated)),
        // Shards need not have had their peaks at one moment; more than the capacity was never allocated.
        peak_bytes: peaks.min(capacity.max(allocated)),
        under_way_bytes: sum(&TierStats::under_way),
        payloads: sum(&|part| part.payloads),
        logical_bytes: sum(&|part| part.bytes),
        spilled_bytes_total: sum(&|part| part.moved.spilled_bytes),
        promoted_bytes_total: sum(&|part| part.moved.promoted_bytes),
        transfers_failed_total: sum(&|part| part.moved.transfers_failed),
        evictions_total: sum(&|part| part.moved.evictions),
        overhead_bytes: node.overhead[tier],
    })
}

#[cfg(test)]
mod tests {
    use payload_types::ByteCount;
    use payload_types::effect::TierUsage;
    use payload_types::reply::MovedTotals;

    use super::*;

    #[test]
    fn given_two_shards_when_summed_then_each_tier_has_its_own_totals() {
        let shard = |factor: u64| ShardStats {
            tiers: PerTier([1, 2, 3, 4].map(|n| TierStats {
                payloads: n * factor,
                bytes: n * factor * 100,
                ..TierStats::default()
            })),
            ..ShardStats::default()
        };
        let sum = stats(&[shard(1), shard(10)], &NodeFigures::default());
        let expected = pb::StatsResponse {
            payloads_gpu: 11,
            payloads_ram: 22,
            payloads_disk: 33,
            payloads_object: 44,
            bytes_gpu: 1_100,
            bytes_ram: 2_200,
            bytes_disk: 3_300,
            bytes_object: 4_400,
            node: Some(NodeAccounting::default()),
            ..pb::StatsResponse::default()
        };
        assert_eq!(sum, expected, "no tier is configured");
    }

    #[test]
    fn given_a_configured_tier_when_summed_then_its_parts_add_up_to_the_capacity() {
        let usage = TierUsage { allocated: 70, leased: 20, pinned: 10, spilling: 5, limbo: 8 };
        let moved = MovedTotals {
            spilled_bytes: 1,
            promoted_bytes: 2,
            transfers_failed: 3,
            evictions: 4,
            ..MovedTotals::default()
        };
        let mut shard =
            ShardStats { leases: 2, leases_granted: 9, operations: 1, parked: 3, ..Default::default() };
        shard.tiers[Tier::Ram] = TierStats {
            payloads: 3,
            bytes: 55,
            capacity: Some(1_000),
            reserved: 30,
            usage,
            current: 60,
            uncommitted: 12,
            peak: 90,
            moved,
        };
        let mut node =
            NodeFigures { connections: 6, uptime_ms: 7, native_sessions: 2, ..NodeFigures::default() };
        node.physical[Tier::Ram] = Some(160);
        node.overhead[Tier::Ram] = 24;
        let sum = stats(&[shard.clone(), shard], &node);
        let [ram] = &sum.tiers[..] else { panic!("only RAM is configured: {:?}", sum.tiers) };
        let expected = TierAccounting {
            tier: 2,
            capacity_bytes: 1_000,
            reserved_bytes: 60,
            allocated_bytes: 140,
            uncommitted_bytes: 24,
            leased_bytes: 40,
            pinned_bytes: 20,
            spilling_bytes: 10,
            limbo_bytes: 16,
            free_bytes: 800,
            physical_bytes: Some(160),
            fragmentation_bytes: Some(20),
            peak_bytes: 180,
            under_way_bytes: 4,
            payloads: 6,
            logical_bytes: 110,
            spilled_bytes_total: 2,
            promoted_bytes_total: 4,
            transfers_failed_total: 6,
            evictions_total: 8,
            overhead_bytes: 24,
        };
        assert_eq!(*ram, expected);
        assert_eq!(ram.capacity_bytes, ram.free_bytes + ram.reserved_bytes + ram.allocated_bytes);
        let node = sum.node.expect("always there");
        assert_eq!((node.leases, node.leases_granted_total), (4, 18));
        assert_eq!((node.connections, node.native_sessions), (6, 2));
        assert_eq!(sum.arenas, None, "no native sessions are served");
    }

    #[test]
    fn given_memory_of_sessions_when_told_then_shards_are_summed_and_each_figure_stands_in_its_own_field() {
        let arenas = ArenaStats {
            sessions: 1,
            slabs: 2,
            own: 3,
            charged_bytes: 4,
            payloads: 5,
            payload_bytes: 6,
            limbo_blocks: 7,
            returning: 8,
            shown: 17,
            direct_limbo_bytes: 18,
        };
        let shard = ShardStats { arenas, ..ShardStats::default() };
        let memory = MemoryFigures {
            memories: 9,
            bytes: 10,
            held: 11,
            made_bytes: 12,
            large_bytes: 13,
            large_refused: 14,
            failed: 15,
            opened: 16,
        };
        let node = NodeFigures { memory: Some(memory), ..NodeFigures::default() };
        let told = ArenaAccounting {
            sessions: 1,
            slabs: 4,
            slabs_own: 6,
            charged_bytes: 8,
            payloads: 10,
            payload_bytes: 12,
            blocks_limbo: 14,
            slabs_returning: 16,
            memories: 9,
            memory_bytes: 10,
            memories_held: 11,
            made_bytes_total: 12,
            large_bytes_total: 13,
            large_refused_total: 14,
            makes_failed_total: 15,
            opens_total: 16,
            payloads_shown: 34,
            direct_limbo_bytes: 36,
        };
        assert_eq!(stats(&[shard.clone(), shard], &node).arenas, Some(told));
    }

    #[test]
    fn given_segment_files_when_told_then_each_figure_stands_in_its_own_field() {
        let found = DiskSegments {
            files: 1,
            files_free: 2,
            files_held: 3,
            file_bytes: ByteCount(4),
            live_bytes: ByteCount(5),
            dead_bytes: ByteCount(6),
            recycled_total: 7,
            emptied_total: 8,
            moved_total: 9,
            moved_bytes_total: 10,
        };
        let node = NodeFigures { segments: Some(found), ..NodeFigures::default() };
        let told = stats(&[ShardStats::default()], &node).disk_segments.expect("there are some");
        let expected = pb_operations::DiskSegments {
            files: 1,
            files_free: 2,
            files_held: 3,
            file_bytes: 4,
            live_bytes: 5,
            dead_bytes: 6,
            recycled_total: 7,
            emptied_total: 8,
            moved_total: 9,
            moved_bytes_total: 10,
        };
        assert_eq!(told, expected);
    }

    #[test]
    fn given_a_lowered_capacity_when_summed_then_free_is_0_and_the_peak_is_not_hidden() {
        let mut shard = ShardStats::default();
        shard.tiers[Tier::Disk] = TierStats {
            capacity: Some(100),
            usage: TierUsage { allocated: 300, ..TierUsage::default() },
            peak: 300,
            ..TierStats::default()
        };
        let sum = stats(&[shard], &NodeFigures::default());
        assert_eq!((sum.tiers[0].free_bytes, sum.tiers[0].peak_bytes), (0, 300));
    }
}
