//! Tiers and the memory of native sessions, as Stats tells them.

use payload_wire::pb::operations::v1::{ArenaAccounting, TierAccounting};

use super::Kind::{self, Counter, Gauge};
use super::{Family, Source};

const fn tier(
    name: &'static str,
    kind: Kind,
    help: &'static str,
    figure: fn(&TierAccounting) -> Option<u64>,
) -> Family {
    Family::new(name, kind, help, Source::Tier(figure)).labels(&["tier"])
}

const fn arena(
    name: &'static str,
    kind: Kind,
    help: &'static str,
    figure: fn(&ArenaAccounting) -> u64,
) -> Family {
    Family::new(name, kind, help, Source::Arena(figure))
}

#[rustfmt::skip]
pub(super) static FAMILIES: &[Family] = &[
    tier("payload_manager_tier_capacity_bytes", Gauge, "What the tier may hold.", |tier| Some(tier.capacity_bytes)).unit("By"),
    tier("payload_manager_tier_overhead_bytes", Gauge, "Configured, and kept for the tier's own use.", |tier| Some(tier.overhead_bytes)).unit("By"),
    tier("payload_manager_tier_reserved_bytes", Gauge, "Granted to shards and not charged.", |tier| Some(tier.reserved_bytes)).unit("By"),
    tier("payload_manager_tier_allocated_bytes", Gauge, "Charged: replicas, limbo and what is under way.", |tier| Some(tier.allocated_bytes)).unit("By"),
    tier("payload_manager_tier_free_bytes", Gauge, "capacity - reserved - allocated.", |tier| Some(tier.free_bytes)).unit("By"),
    tier("payload_manager_tier_uncommitted_bytes", Gauge, "Of allocated: payloads not committed yet.", |tier| Some(tier.uncommitted_bytes)).unit("By"),
    tier("payload_manager_tier_leased_bytes", Gauge, "Of allocated: payloads that somebody leases.", |tier| Some(tier.leased_bytes)).unit("By"),
    tier("payload_manager_tier_pinned_bytes", Gauge, "Of allocated: pinned payloads.", |tier| Some(tier.pinned_bytes)).unit("By"),
    tier("payload_manager_tier_spilling_bytes", Gauge, "Of allocated: being copied to a slower tier.", |tier| Some(tier.spilling_bytes)).unit("By"),
    tier("payload_manager_tier_limbo_bytes", Gauge, "Of allocated: dropped and not proven free yet.", |tier| Some(tier.limbo_bytes)).unit("By"),
    tier("payload_manager_tier_under_way_bytes", Gauge, "Of allocated: space that is being made.", |tier| Some(tier.under_way_bytes)).unit("By"),
    tier("payload_manager_tier_peak_bytes", Gauge, "The largest allocated since start.", |tier| Some(tier.peak_bytes)).unit("By"),
    tier("payload_manager_tier_physical_bytes", Gauge, "What the file system holds for the tier.", |tier| tier.physical_bytes).unit("By"),
    tier("payload_manager_tier_fragmentation_bytes", Gauge, "physical - allocated, where that is more.", |tier| tier.fragmentation_bytes).unit("By"),
    tier("payload_manager_tier_logical_bytes", Gauge, "Replicas, as large as they were asked for.", |tier| Some(tier.logical_bytes)).unit("By"),
    tier("payload_manager_tier_payloads", Gauge, "Payloads whose descriptor shows the tier.", |tier| Some(tier.payloads)),
    tier("payload_manager_tier_spilled_bytes_total", Counter, "Bytes copied to the tier from a faster one.", |tier| Some(tier.spilled_bytes_total)).unit("By"),
    tier("payload_manager_tier_promoted_bytes_total", Counter, "Bytes copied to the tier from a slower one.", |tier| Some(tier.promoted_bytes_total)).unit("By"),
    tier("payload_manager_tier_transfers_failed_total", Counter, "Copies to the tier that failed.", |tier| Some(tier.transfers_failed_total)),
    tier("payload_manager_tier_evictions_total", Counter, "Replicas of the tier evicted under pressure.", |tier| Some(tier.evictions_total)),
    arena("payload_manager_arena_sessions", Gauge, "Sessions with memory on a shard, dead ones with payloads left included, of the shard that has most; `payloadctl stats` has these figures, too.", |arenas| arenas.sessions),
    arena("payload_manager_arena_slabs", Gauge, "Slabs that several payloads share.", |arenas| arenas.slabs),
    arena("payload_manager_arena_slabs_own", Gauge, "Slabs of one payload: large ones, and sealed ones.", |arenas| arenas.slabs_own),
    arena("payload_manager_arena_charged_bytes", Gauge, "Charged for both, what is being made or returned included.", |arenas| arenas.charged_bytes).unit("By"),
    arena("payload_manager_arena_payloads", Gauge, "Payloads whose RAM replica lies in a slab.", |arenas| arenas.payloads),
    arena("payload_manager_arena_payload_bytes", Gauge, "Their logical bytes.", |arenas| arenas.payload_bytes).unit("By"),
    arena("payload_manager_arena_blocks_limbo", Gauge, "Dropped blocks that wait for their leases, or for the end of a process.", |arenas| arenas.blocks_limbo),
    arena("payload_manager_arena_slabs_returning", Gauge, "Slabs that were given back and may still be mapped by somebody.", |arenas| arenas.slabs_returning),
    arena("payload_manager_arena_memories", Gauge, "Memories of slabs that exist, those on their way back included.", |arenas| arenas.memories),
    arena("payload_manager_arena_memory_bytes", Gauge, "Their bytes.", |arenas| arenas.memory_bytes).unit("By"),
    arena("payload_manager_arena_memories_held", Gauge, "Memories that a client was offered, did not map in time, and holds on to.", |arenas| arenas.memories_held),
    arena("payload_manager_arena_made_bytes_total", Counter, "Bytes of memories made, since start.", |arenas| arenas.made_bytes_total).unit("By"),
    arena("payload_manager_arena_large_bytes_total", Counter, "Of those, in large pages.", |arenas| arenas.large_bytes_total).unit("By"),
    arena("payload_manager_arena_large_refused_total", Counter, "Memories that did not get all the large pages that were asked for.", |arenas| arenas.large_refused_total),
    arena("payload_manager_arena_makes_failed_total", Counter, "Memories that could not be made.", |arenas| arenas.makes_failed_total),
    arena("payload_manager_arena_opens_total", Counter, "Descriptors of memories that readers were given.", |arenas| arenas.opens_total),
    arena("payload_manager_arena_payloads_shown", Gauge, "Payloads that sessions may lease without asking.", |arenas| arenas.payloads_shown),
    arena("payload_manager_arena_direct_limbo_bytes", Gauge, "Dropped blocks that were shown, until nobody is found to read them.", |arenas| arenas.direct_limbo_bytes).unit("By"),
];
