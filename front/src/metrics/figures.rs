//! Which metrics there are. Names begin with `payload_manager_` and end with their unit; docs/OPERATIONS.md lists them,
//! and a test holds the list.

use payload_reactor::ReactorHandle;
use payload_types::ShardIndex;
use payload_wire::pb::admin::v1::StatsResponse;
use payload_wire::pb::operations::v1::{ArenaAccounting, TierAccounting};

use super::text::{Kind, Text};
use crate::tally::{Tally, code_name};

type TierFigure = (&'static str, &'static str, fn(&TierAccounting) -> Option<u64>);

/// Gauges of each tier, as Stats tells them.
const TIER_GAUGES: [TierFigure; 16] = [
    ("capacity_bytes", "What the tier may hold.", |tier| Some(tier.capacity_bytes)),
    ("overhead_bytes", "Configured, and kept for the tier's own use.", |tier| Some(tier.overhead_bytes)),
    ("reserved_bytes", "Granted to shards and not charged.", |tier| Some(tier.reserved_bytes)),
    ("allocated_bytes", "Charged: replicas, limbo and what is under way.", |tier| Some(tier.allocated_bytes)),
    ("free_bytes", "capacity - reserved - allocated.", |tier| Some(tier.free_bytes)),
    ("uncommitted_bytes", "Of allocated: payloads not committed yet.", |tier| Some(tier.uncommitted_bytes)),
    ("leased_bytes", "Of allocated: payloads that somebody leases.", |tier| Some(tier.leased_bytes)),
    ("pinned_bytes", "Of allocated: pinned payloads.", |tier| Some(tier.pinned_bytes)),
    ("spilling_bytes", "Of allocated: being copied to a slower tier.", |tier| Some(tier.spilling_bytes)),
    ("limbo_bytes", "Of allocated: dropped and not proven free yet.", |tier| Some(tier.limbo_bytes)),
    ("under_way_bytes", "Of allocated: space that is being made.", |tier| Some(tier.under_way_bytes)),
    ("peak_bytes", "The largest allocated since start.", |tier| Some(tier.peak_bytes)),
    ("physical_bytes", "What the file system holds for the tier.", |tier| tier.physical_bytes),
    ("fragmentation_bytes", "physical - allocated, where that is more.", |tier| tier.fragmentation_bytes),
    ("logical_bytes", "Replicas, as large as they were asked for.", |tier| Some(tier.logical_bytes)),
    ("payloads", "Payloads whose descriptor shows the tier.", |tier| Some(tier.payloads)),
];

/// Counters of each tier, as Stats tells them.
const TIER_COUNTERS: [TierFigure; 4] = [
    ("spilled_bytes_total", "Bytes copied to the tier from a faster one.", |tier| {
        Some(tier.spilled_bytes_total)
    }),
    ("promoted_bytes_total", "Bytes copied to the tier from a slower one.", |tier| {
        Some(tier.promoted_bytes_total)
    }),
    ("transfers_failed_total", "Copies to the tier that failed.", |tier| Some(tier.transfers_failed_total)),
    ("evictions_total", "Replicas of the tier evicted under pressure.", |tier| Some(tier.evictions_total)),
];

type ArenaFigure = (&'static str, Kind, &'static str, fn(&ArenaAccounting) -> u64);

/// Memory of native sessions, as Stats tells it.
const ARENA_FIGURES: [ArenaFigure; 18] = [
    ("sessions", Kind::Gauge, "Sessions with memory on a shard, of the shard that has most.", |arenas| {
        arenas.sessions
    }),
    ("slabs", Kind::Gauge, "Slabs that several payloads share.", |arenas| arenas.slabs),
    ("slabs_own", Kind::Gauge, "Slabs of one payload: large ones, and sealed ones.", |arenas| {
        arenas.slabs_own
    }),
    ("charged_bytes", Kind::Gauge, "Charged for both, what is being made or returned included.", |arenas| {
        arenas.charged_bytes
    }),
    ("payloads", Kind::Gauge, "Payloads whose RAM replica lies in a slab.", |arenas| arenas.payloads),
    ("payload_bytes", Kind::Gauge, "Their logical bytes.", |arenas| arenas.payload_bytes),
    (
        "blocks_limbo",
        Kind::Gauge,
        "Dropped blocks that wait for their leases, or for the end of a process.",
        |arenas| arenas.blocks_limbo,
    ),
    (
        "slabs_returning",
        Kind::Gauge,
        "Slabs that were given back and may still be mapped by somebody.",
        |arenas| arenas.slabs_returning,
    ),
    ("memories", Kind::Gauge, "Memories of slabs that exist, those on their way back included.", |arenas| {
        arenas.memories
    }),
    ("memory_bytes", Kind::Gauge, "Their bytes.", |arenas| arenas.memory_bytes),
    (
        "memories_held",
        Kind::Gauge,
        "Memories that a client was offered, did not map in time, and holds on to.",
        |arenas| arenas.memories_held,
    ),
    ("made_bytes_total", Kind::Counter, "Bytes of memories made, since start.", |arenas| {
        arenas.made_bytes_total
    }),
    ("large_bytes_total", Kind::Counter, "Of those, in large pages.", |arenas| arenas.large_bytes_total),
    (
        "large_refused_total",
        Kind::Counter,
        "Memories that did not get all the large pages that were asked for.",
        |arenas| arenas.large_refused_total,
    ),
    ("makes_failed_total", Kind::Counter, "Memories that could not be made.", |arenas| {
        arenas.makes_failed_total
    }),
    ("opens_total", Kind::Counter, "Descriptors of memories that readers were given.", |arenas| {
        arenas.opens_total
    }),
    ("payloads_shown", Kind::Gauge, "Payloads that sessions may lease without asking.", |arenas| {
        arenas.payloads_shown
    }),
    (
        "direct_limbo_bytes",
        Kind::Gauge,
        "Dropped blocks that were shown, until nobody is found to read them.",
        |arenas| arenas.direct_limbo_bytes,
    ),
];

/// What one scrape tells. `stats` is what the Stats RPC would have answered at this moment.
pub fn render(stats: &StatsResponse, reactor: &ReactorHandle, tally: &Tally, in_flight: usize) -> String {
    let mut text = Text::default();
    tiers(&mut text, &stats.tiers);
    node(&mut text, stats, in_flight);
    let answered = tally.counted().map(|(rpc, code, count)| {
        (vec![("rpc", rpc.to_owned()), ("code", code_name(code).to_owned())], count)
    });
    let help = "Calls answered, by RPC and gRPC code; CANCELLED: the client hung up first.";
    text.family("payload_manager_requests_total", Kind::Counter, help, answered);
    shards(&mut text, reactor);
    text.into_string()
}

fn tiers(text: &mut Text, tiers: &[TierAccounting]) {
    let families = TIER_GAUGES.iter().map(|figure| (figure, Kind::Gauge));
    for ((name, help, figure), kind) in
        families.chain(TIER_COUNTERS.iter().map(|figure| (figure, Kind::Counter)))
    {
        let samples = tiers.iter().filter_map(|tier| {
            let name = tier.tier().as_str_name().trim_start_matches("TIER_").to_ascii_lowercase();
            Some((vec![("tier", name)], figure(tier)?))
        });
        text.family(&format!("payload_manager_tier_{name}"), kind, help, samples);
    }
}

fn node(text: &mut Text, stats: &StatsResponse, in_flight: usize) {
    let node = stats.node.unwrap_or_default();
    let mut one = |name: &str, kind, help: &str, value: u64| {
        text.family(&format!("payload_manager_{name}"), kind, help, [(Vec::new(), value)]);
    };
    one("leases", Kind::Gauge, "Leases held.", node.leases);
    one("leases_granted_total", Kind::Counter, "Leases granted since start.", node.leases_granted_total);
    one("operations", Kind::Gauge, "Operations under way in drivers and catalog.", node.operations);
    one("requests_parked", Kind::Gauge, "Requests that wait for a payload.", node.requests_parked);
    one("requests_in_flight", Kind::Gauge, "Calls admitted and not answered.", in_flight as u64);
    one("connections", Kind::Gauge, "Open client connections.", node.connections);
    one("native_sessions", Kind::Gauge, "Open native sessions.", node.native_sessions);
    one("direct_leases", Kind::Gauge, "Leases held without asking anybody.", node.direct_leases);
    let help = "Payloads that found no place in the published tables since start.";
    one("direct_unplaced_total", Kind::Counter, help, node.direct_unplaced_total);
    let help = "Samples of what was read without asking that have reached eviction since start.";
    one("direct_samples_total", Kind::Counter, help, node.direct_samples_total);
    let uptime = node.uptime_ms as f64 / 1000.0;
    let help = "Seconds since this start.";
    text.family("payload_manager_uptime_seconds", Kind::Gauge, help, [(Vec::new(), uptime)]);
    if let Some(disk) = &stats.disk {
        let states = ["healthy", "slow", "full", "read_only", "sync_failed", "io"];
        let states = states.map(|state| (vec![("state", state.to_owned())], u64::from(disk.state == state)));
        let help = "1 for the state that the disk root is in.";
        text.family("payload_manager_disk_state", Kind::Gauge, help, states);
        let mut one = |name: &str, kind, help: &str, value: u64| {
            text.family(&format!("payload_manager_disk_{name}"), kind, help, [(Vec::new(), value)]);
        };
        one("writable", Kind::Gauge, "0 while new writes are refused.", u64::from(disk.writable));
        one("failures_in_a_row", Kind::Gauge, "Failures in a row.", u64::from(disk.attempts));
        one("write_failures_total", Kind::Counter, "Writes that failed.", disk.failures_total);
        one("writes_refused_total", Kind::Counter, "Writes refused while failing.", disk.refused_total);
        one("read_failures_total", Kind::Counter, "Reads that failed.", disk.read_failures_total);
        one("slow_operations_total", Kind::Counter, "Operations that took too long.", disk.slow_total);
    }
    if let Some(arenas) = &stats.arenas {
        for (name, kind, help, figure) in ARENA_FIGURES {
            text.family(&format!("payload_manager_arena_{name}"), kind, help, [(Vec::new(), figure(arenas))]);
        }
    }
    segments(text, stats);
    object_store(text, stats);
    let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    text.family("payload_manager_build_info", Kind::Gauge, "Always 1; its label says more.", [(version, 1)]);
}

fn segments(text: &mut Text, stats: &StatsResponse) {
    let Some(segments) = &stats.disk_segments else { return };
    let mut one = |name: &str, kind, help: &str, value: u64| {
        text.family(&format!("payload_manager_segment_{name}"), kind, help, [(Vec::new(), value)]);
    };
    let (gauge, counter) = (Kind::Gauge, Kind::Counter);
    one("files", gauge, "Segment files, free ones included.", segments.files);
    one("files_free", gauge, "Kept for what is written next.", segments.files_free);
    one("files_held", gauge, "Nothing lives in them, and somebody has them open.", segments.files_held);
    one("file_bytes", gauge, "What they take on the disk.", segments.file_bytes);
    one("live_bytes", gauge, "Of that: payloads that live.", segments.live_bytes);
    one("dead_bytes", gauge, "Of that: payloads that are dead and not free.", segments.dead_bytes);
    one("recycled_total", counter, "Files used again or removed.", segments.recycled_total);
    one("emptied_total", counter, "Of those: emptied by compaction.", segments.emptied_total);
    one("moved_total", counter, "Replicas that compaction moved.", segments.moved_total);
    one("moved_bytes_total", counter, "Their bytes.", segments.moved_bytes_total);
}

fn object_store(text: &mut Text, stats: &StatsResponse) {
    let Some(store) = &stats.object_store else { return };
    let states = ["healthy", "slow", "throttling", "unreachable", "refused"];
    let states = states.map(|state| (vec![("state", state.to_owned())], u64::from(store.state == state)));
    let help = "1 for the state that the object store is in.";
    text.family("payload_manager_object_state", Kind::Gauge, help, states);
    let mut one = |name: &str, kind, help: &str, value: u64| {
        text.family(&format!("payload_manager_object_{name}"), kind, help, [(Vec::new(), value)]);
    };
    let (gauge, counter) = (Kind::Gauge, Kind::Counter);
    one("probed", gauge, "1 once the store has answered since start.", u64::from(store.probed));
    one("parts_limit", gauge, "Parts that may be under way now.", store.parts_limit);
    one("parts_in_flight", gauge, "Parts under way, each of which takes memory.", store.parts_in_flight);
    one("requests_total", counter, "Requests on the wire.", store.requests_total);
    one("failures_total", counter, "Requests that failed and were worth another.", store.failures_total);
    one("throttled_total", counter, "Of those: 503 and 429.", store.throttled_total);
    one("refused_total", counter, "Operations refused while it is left alone.", store.refused_total);
    one("slow_total", counter, "Requests slower than ten seconds.", store.slow_total);
    one("stored_bytes_total", counter, "Bytes stored, as on the wire.", store.stored_bytes_total);
    one("fetched_bytes_total", counter, "Bytes fetched, as on the wire.", store.fetched_bytes_total);
}

fn shards(text: &mut Text, reactor: &ReactorHandle) {
    let label = |shard: ShardIndex| vec![("shard", shard.0.to_string())];
    let lanes = (0..reactor.shard_count())
        .map(|shard| (label(ShardIndex(shard)), reactor.requests_waiting(ShardIndex(shard))));
    let help = "Requests that wait in a shard's lane.";
    text.family("payload_manager_shard_lane_requests", Kind::Gauge, help, lanes);
    let stalls = reactor.stalls();
    let mut counter = |name: &str, help: &str, figure: fn(&payload_reactor::TurnStats) -> u64| {
        let samples = stalls.iter().map(|turns| (label(turns.shard), figure(turns)));
        text.family(&format!("payload_manager_shard_{name}"), Kind::Counter, help, samples);
    };
    counter("turns_total", "Turns of a shard.", |turns| turns.turns);
    counter("turns_over_100us_total", "Turns with more than 100 us on the CPU.", |turns| turns.over_100us);
    counter("turns_over_1ms_total", "Turns with more than 1 ms on the CPU.", |turns| turns.over_1ms);
    let longest = stalls.iter().map(|turns| {
        let longest = turns.longest.first().map_or(0, |turn| turn.on_cpu_ns);
        (label(turns.shard), longest as f64 / 1e9)
    });
    let help = "CPU time of a shard's longest turn over 100 us; 0: there was none.";
    text.family("payload_manager_shard_turn_longest_seconds", Kind::Gauge, help, longest);
}
