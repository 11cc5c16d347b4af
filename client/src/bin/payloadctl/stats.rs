//! `stats`: how much each tier holds, and what keeps it.

use std::collections::BTreeMap;

use payload_client::Client;
use payload_types::{ByteCount, time};
use payload_wire::enums;
use payload_wire::pb::admin::v1::StatsResponse;
use payload_wire::pb::operations::v1::{
    ArenaAccounting, DiskHealth, DiskSegments, NodeAccounting, ObjectStoreHealth, TierAccounting,
};
use serde::Serialize;

use crate::output::{Block, Output};
use crate::view::word;

/// The contract's `StatsResponse`, and what is ours in it.
#[derive(Serialize)]
struct Stats {
    payloads_gpu: u64,
    payloads_ram: u64,
    payloads_disk: u64,
    payloads_object: u64,
    bytes_gpu: u64,
    bytes_ram: u64,
    bytes_disk: u64,
    bytes_object: u64,
    /// By tier: every figure of the accounting under its field's name.
    tiers: BTreeMap<String, BTreeMap<&'static str, Option<u64>>>,
    node: BTreeMap<&'static str, u64>,
    /// The disk root; null on a server that does not tell.
    disk: Option<Disk>,
    /// Its segment files; null where no payloads share files.
    disk_segments: Option<BTreeMap<&'static str, u64>>,
    /// Memory of native sessions; null where they are not served.
    arenas: Option<BTreeMap<&'static str, u64>>,
    /// The object store; null where there is none.
    object_store: Option<ObjectStore>,
}

/// How the object store is doing.
#[derive(Serialize)]
struct ObjectStore {
    root: String,
    state: String,
    /// Why it is not used, and which key to change.
    error: String,
    probed: bool,
    signs: bool,
    retry_ms: u64,
    clock_skew_ms: i64,
    parts_limit: u64,
    parts_in_flight: u64,
    parts_in_flight_max: u64,
    requests_total: u64,
    failures_total: u64,
    throttled_total: u64,
    refused_total: u64,
    slow_total: u64,
    stored_bytes_total: u64,
    fetched_bytes_total: u64,
}

/// How the disk root is doing.
#[derive(Serialize)]
struct Disk {
    state: String,
    writable: bool,
    since: Option<String>,
    error: String,
    advice: String,
    attempts: u32,
    retry_ms: u64,
    failures_total: u64,
    refused_total: u64,
    read_failures_total: u64,
    slow_total: u64,
}

/// How a figure is shown to people.
#[derive(Clone, Copy)]
enum Unit {
    Count,
    Bytes,
}

type Figure = (&'static str, &'static str, Unit, fn(&TierAccounting) -> Option<u64>);

/// Every figure of a tier: its field, its heading, its unit. Those that add up to the capacity come first.
const FIGURES: [Figure; 20] = [
    ("payloads", "payloads", Unit::Count, |tier| Some(tier.payloads)),
    ("logical_bytes", "bytes", Unit::Bytes, |tier| Some(tier.logical_bytes)),
    ("capacity_bytes", "capacity", Unit::Bytes, |tier| Some(tier.capacity_bytes)),
    ("allocated_bytes", "allocated", Unit::Bytes, |tier| Some(tier.allocated_bytes)),
    ("reserved_bytes", "reserved", Unit::Bytes, |tier| Some(tier.reserved_bytes)),
    ("free_bytes", "free", Unit::Bytes, |tier| Some(tier.free_bytes)),
    ("uncommitted_bytes", "uncommitted", Unit::Bytes, |tier| Some(tier.uncommitted_bytes)),
    ("leased_bytes", "leased", Unit::Bytes, |tier| Some(tier.leased_bytes)),
    ("pinned_bytes", "pinned", Unit::Bytes, |tier| Some(tier.pinned_bytes)),
    ("spilling_bytes", "spilling", Unit::Bytes, |tier| Some(tier.spilling_bytes)),
    ("under_way_bytes", "under way", Unit::Bytes, |tier| Some(tier.under_way_bytes)),
    ("limbo_bytes", "limbo", Unit::Bytes, |tier| Some(tier.limbo_bytes)),
    ("overhead_bytes", "overhead", Unit::Bytes, |tier| Some(tier.overhead_bytes)),
    ("physical_bytes", "physical", Unit::Bytes, |tier| tier.physical_bytes),
    ("fragmentation_bytes", "fragmentation", Unit::Bytes, |tier| tier.fragmentation_bytes),
    ("peak_bytes", "peak", Unit::Bytes, |tier| Some(tier.peak_bytes)),
    ("spilled_bytes_total", "spilled to it", Unit::Bytes, |tier| Some(tier.spilled_bytes_total)),
    ("promoted_bytes_total", "promoted to it", Unit::Bytes, |tier| Some(tier.promoted_bytes_total)),
    ("transfers_failed_total", "failed copies", Unit::Count, |tier| Some(tier.transfers_failed_total)),
    ("evictions_total", "evictions", Unit::Count, |tier| Some(tier.evictions_total)),
];

type NodeFigure = (&'static str, fn(&NodeAccounting) -> u64);

const NODE_FIGURES: [NodeFigure; 11] = [
    ("leases", |node| node.leases),
    ("leases_granted_total", |node| node.leases_granted_total),
    ("operations", |node| node.operations),
    ("requests_parked", |node| node.requests_parked),
    ("connections", |node| node.connections),
    ("native_sessions", |node| node.native_sessions),
    ("direct_leases", |node| node.direct_leases),
    ("direct_sessions", |node| node.direct_sessions),
    ("direct_samples_total", |node| node.direct_samples_total),
    ("direct_unplaced_total", |node| node.direct_unplaced_total),
    ("uptime_ms", |node| node.uptime_ms),
];

type SegmentFigure = (&'static str, fn(&DiskSegments) -> u64);

const SEGMENT_FIGURES: [SegmentFigure; 10] = [
    ("files", |segments| segments.files),
    ("files_free", |segments| segments.files_free),
    ("files_held", |segments| segments.files_held),
    ("file_bytes", |segments| segments.file_bytes),
    ("live_bytes", |segments| segments.live_bytes),
    ("dead_bytes", |segments| segments.dead_bytes),
    ("recycled_total", |segments| segments.recycled_total),
    ("emptied_total", |segments| segments.emptied_total),
    ("moved_total", |segments| segments.moved_total),
    ("moved_bytes_total", |segments| segments.moved_bytes_total),
];

type ArenaFigure = (&'static str, fn(&ArenaAccounting) -> u64);

const ARENA_FIGURES: [ArenaFigure; 18] = [
    ("sessions", |arenas| arenas.sessions),
    ("slabs", |arenas| arenas.slabs),
    ("slabs_own", |arenas| arenas.slabs_own),
    ("charged_bytes", |arenas| arenas.charged_bytes),
    ("payloads", |arenas| arenas.payloads),
    ("payload_bytes", |arenas| arenas.payload_bytes),
    ("blocks_limbo", |arenas| arenas.blocks_limbo),
    ("slabs_returning", |arenas| arenas.slabs_returning),
    ("memories", |arenas| arenas.memories),
    ("memory_bytes", |arenas| arenas.memory_bytes),
    ("memories_held", |arenas| arenas.memories_held),
    ("made_bytes_total", |arenas| arenas.made_bytes_total),
    ("large_bytes_total", |arenas| arenas.large_bytes_total),
    ("large_refused_total", |arenas| arenas.large_refused_total),
    ("makes_failed_total", |arenas| arenas.makes_failed_total),
    ("opens_total", |arenas| arenas.opens_total),
    ("payloads_shown", |arenas| arenas.payloads_shown),
    ("direct_limbo_bytes", |arenas| arenas.direct_limbo_bytes),
];

/// Shows the statistics.
pub async fn run(client: &Client, output: &mut Output) -> anyhow::Result<()> {
    let answer = client.accounting().await?;
    Ok(output.block(&Stats::from(&answer))?)
}

fn tier_name(tier: &TierAccounting) -> String {
    word(enums::tier_or_void("tier", tier.tier).map_or("unknown".to_owned(), |tier| match tier {
        Some(payload_types::tier::SpillTarget::Tier(tier)) => tier.to_string(),
        _ => "unknown".to_owned(),
    }))
}

impl From<&StatsResponse> for Stats {
    fn from(answer: &StatsResponse) -> Self {
        let figures = |tier: &TierAccounting| {
            FIGURES.iter().map(|(field, _, _, figure)| (*field, figure(tier))).collect()
        };
        let node = answer.node.unwrap_or_default();
        Self {
            payloads_gpu: answer.payloads_gpu,
            payloads_ram: answer.payloads_ram,
            payloads_disk: answer.payloads_disk,
            payloads_object: answer.payloads_object,
            bytes_gpu: answer.bytes_gpu,
            bytes_ram: answer.bytes_ram,
            bytes_disk: answer.bytes_disk,
            bytes_object: answer.bytes_object,
            tiers: answer.tiers.iter().map(|tier| (tier_name(tier), figures(tier))).collect(),
            disk: answer.disk.as_ref().map(Disk::from),
            disk_segments: answer.disk_segments.as_ref().map(|segments| {
                SEGMENT_FIGURES.iter().map(|(field, figure)| (*field, figure(segments))).collect()
            }),
            arenas: answer
                .arenas
                .as_ref()
                .map(|arenas| ARENA_FIGURES.iter().map(|(field, figure)| (*field, figure(arenas))).collect()),
            object_store: answer.object_store.as_ref().map(ObjectStore::from),
            node: NODE_FIGURES.iter().map(|(field, figure)| (*field, figure(&node))).collect(),
        }
    }
}

impl From<&DiskHealth> for Disk {
    fn from(health: &DiskHealth) -> Self {
        Self {
            state: health.state.clone(),
            writable: health.writable,
            since: health.since.map(|since| since.to_string()),
            error: health.error.clone(),
            advice: health.advice.clone(),
            attempts: health.attempts,
            retry_ms: health.retry_ms,
            failures_total: health.failures_total,
            refused_total: health.refused_total,
            read_failures_total: health.read_failures_total,
            slow_total: health.slow_total,
        }
    }
}

impl From<&ObjectStoreHealth> for ObjectStore {
    fn from(health: &ObjectStoreHealth) -> Self {
        Self {
            root: health.root.clone(),
            state: health.state.clone(),
            error: health.error.clone(),
            probed: health.probed,
            signs: health.signs,
            retry_ms: health.retry_ms,
            clock_skew_ms: health.clock_skew_ms,
            parts_limit: health.parts_limit,
            parts_in_flight: health.parts_in_flight,
            parts_in_flight_max: health.parts_in_flight_max,
            requests_total: health.requests_total,
            failures_total: health.failures_total,
            throttled_total: health.throttled_total,
            refused_total: health.refused_total,
            slow_total: health.slow_total,
            stored_bytes_total: health.stored_bytes_total,
            fetched_bytes_total: health.fetched_bytes_total,
        }
    }
}

impl ObjectStore {
    fn sentence(&self) -> String {
        let root = &self.root;
        match (self.state.as_str(), self.probed) {
            ("healthy", true) => format!("healthy, at {root}"),
            ("healthy", false) => format!("not heard of yet, at {root}"),
            ("unreachable", _) => format!(
                "UNREACHABLE at {root}: payloads stay where they are ({}), next attempt in {}",
                self.error,
                time::format_millis(self.retry_ms)
            ),
            (state, _) => format!("{} at {root}: {}", state.to_uppercase(), self.error),
        }
    }
}

impl Disk {
    fn sentence(&self) -> String {
        let since = self.since.as_deref().unwrap_or("now");
        match (self.state.as_str(), self.writable) {
            ("healthy", _) => self.state.clone(),
            (state, true) => format!("{} since {since} ({})", state.to_uppercase(), self.error),
            (_, false) => format!(
                "FAILING since {since} ({}), {} failures in a row, next attempt in {}; {}",
                self.error,
                self.attempts,
                time::format_millis(self.retry_ms),
                self.advice
            ),
        }
    }
}

impl Block for Stats {
    /// One line a figure, one column a tier: people compare a figure across tiers, and no terminal is too narrow.
    // Long because: a line or two a figure.
    fn fields(&self) -> Vec<(&'static str, String)> {
        const WIDTH: usize = 12;
        // Fastest first, as everywhere; a map of names has them in another order.
        let tiers: Vec<_> = ["gpu", "ram", "disk", "object"]
            .into_iter()
            .filter_map(|name| Some((name, self.tiers.get(name)?)))
            .collect();
        let line = |cells: &mut dyn Iterator<Item = String>| {
            cells.map(|cell| format!("{cell:>WIDTH$}")).collect::<Vec<_>>().join("")
        };
        let mut fields = vec![("TIER", line(&mut tiers.iter().map(|(name, _)| (*name).to_owned())))];
        for (field, heading, unit, _) in FIGURES {
            let cell = |figures: &BTreeMap<&str, Option<u64>>| match (figures[field], unit) {
                (None, _) => "-".to_owned(),
                (Some(number), Unit::Count) => number.to_string(),
                (Some(bytes), Unit::Bytes) => ByteCount(bytes).to_string(),
            };
            fields.push((heading, line(&mut tiers.iter().map(|(_, figures)| cell(figures)))));
        }
        let number = |field: &str| self.node[field].to_string();
        fields.push(("", String::new()));
        fields.push((
            "leases",
            format!("{} held, {} granted", number("leases"), number("leases_granted_total")),
        ));
        fields.push((
            "operations",
            format!("{} under way, {} requests wait", number("operations"), number("requests_parked")),
        ));
        if let Some(disk) = &self.disk {
            fields.push(("disk", disk.sentence()));
        }
        if let Some(store) = &self.object_store {
            fields.push(("object store", store.sentence()));
        }
        if let Some(segments) = &self.disk_segments {
            let bytes = |field: &str| ByteCount(segments[field]);
            fields.push((
                "segment files",
                format!(
                    "{} of {} ({} free, {} held open): {} live, {} dead",
                    segments["files"],
                    bytes("file_bytes"),
                    segments["files_free"],
                    segments["files_held"],
                    bytes("live_bytes"),
                    bytes("dead_bytes")
                ),
            ));
            fields.push((
                "compaction",
                format!(
                    "{} payloads of {} moved, {} files emptied, {} used again or removed",
                    segments["moved_total"],
                    bytes("moved_bytes_total"),
                    segments["emptied_total"],
                    segments["recycled_total"]
                ),
            ));
        }
        fields.push(("connections", number("connections")));
        fields.push(("native sessions", number("native_sessions")));
        fields.push(("direct leases", number("direct_leases")));
        if let Some(arenas) = &self.arenas {
            fields.push((
                "arenas",
                format!(
                    "{} payloads of {} in {} slabs of {}, {} on their way back",
                    arenas["payloads"],
                    ByteCount(arenas["payload_bytes"]),
                    arenas["slabs"] + arenas["slabs_own"],
                    ByteCount(arenas["charged_bytes"]),
                    arenas["slabs_returning"]
                ),
            ));
        }
        // Whole seconds: nobody reads more of an uptime.
        fields.push(("up for", time::format_millis(self.node["uptime_ms"] / 1_000 * 1_000)));
        fields
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> StatsResponse {
        let ram = TierAccounting {
            tier: 2,
            capacity_bytes: 1 << 30,
            allocated_bytes: 1 << 20,
            physical_bytes: Some(1 << 20),
            payloads: 3,
            ..TierAccounting::default()
        };
        let disk = TierAccounting { tier: 3, capacity_bytes: 1 << 31, ..TierAccounting::default() };
        let node =
            NodeAccounting { leases: 2, leases_granted_total: 5, uptime_ms: 61_234, ..Default::default() };
        StatsResponse {
            payloads_ram: 3,
            tiers: vec![ram, disk],
            disk_segments: Some(DiskSegments { files: 7, live_bytes: 3 << 20, ..DiskSegments::default() }),
            node: Some(node),
            ..StatsResponse::default()
        }
    }

    #[test]
    fn given_statistics_when_shown_to_programs_then_every_field_is_there() {
        let json = serde_json::to_value(Stats::from(&answer())).expect("plain data");
        assert_eq!(json["payloads_ram"], 3);
        assert_eq!(json["tiers"]["ram"]["capacity_bytes"], 1u64 << 30);
        assert_eq!(json["tiers"]["ram"].as_object().expect("figures").len(), FIGURES.len());
        assert_eq!(json["tiers"]["ram"]["physical_bytes"], 1 << 20);
        assert!(json["tiers"]["disk"]["physical_bytes"].is_null(), "not measured yet");
        assert!(json["tiers"].get("gpu").is_none(), "not configured");
        assert_eq!(json["disk_segments"].as_object().expect("figures").len(), SEGMENT_FIGURES.len());
        assert_eq!(json["disk_segments"]["live_bytes"], 3 << 20);
        assert_eq!((&json["node"]["leases"], &json["node"]["uptime_ms"]), (&2.into(), &61_234.into()));
    }

    #[test]
    fn given_an_object_store_that_is_not_used_when_shown_then_it_says_why() {
        let store = ObjectStoreHealth {
            state: "refused".into(),
            error: "the store does not know the access key; change storage.object".into(),
            root: "s3://b/p".into(),
            ..ObjectStoreHealth::default()
        };
        let shown = Stats::from(&StatsResponse { object_store: Some(store), ..answer() });
        let sentence =
            &shown.fields().into_iter().find(|(name, _)| *name == "object store").expect("shown").1;
        assert!(sentence.contains("REFUSED at s3://b/p") && sentence.contains("access key"), "{sentence}");
        let json = serde_json::to_value(&shown).expect("plain data");
        assert_eq!(
            (&json["object_store"]["state"], &json["object_store"]["probed"]),
            (&"refused".into(), &false.into())
        );
        assert!(serde_json::to_value(Stats::from(&answer())).expect("plain data")["object_store"].is_null());
    }

    #[test]
    fn given_a_disk_that_fails_when_shown_then_since_when_why_and_what_comes_next() {
        let since = prost_types::Timestamp { seconds: 0, nanos: 0 };
        let disk = DiskHealth {
            state: "full".into(),
            since: Some(since),
            error: "No space left on device (os error 28)".into(),
            advice: "free space there".into(),
            attempts: 3,
            retry_ms: 2000,
            ..DiskHealth::default()
        };
        let of = |disk: DiskHealth| Disk::from(&disk).sentence();
        assert_eq!(
            of(disk.clone()),
            "FAILING since 1970-01-01T00:00:00Z (No space left on device (os error 28)), 3 failures in a row, next attempt in 2s; free space there"
        );
        let slow = DiskHealth { state: "slow".into(), writable: true, error: "7s".into(), ..disk };
        assert_eq!(of(slow), "SLOW since 1970-01-01T00:00:00Z (7s)");
        let healthy = DiskHealth { state: "healthy".into(), writable: true, ..DiskHealth::default() };
        assert_eq!(of(healthy), "healthy");
    }

    #[test]
    fn given_statistics_when_shown_to_people_then_sizes_read_as_people_write_them() {
        let fields = Stats::from(&answer()).fields();
        let of = |name: &str| fields.iter().find(|(field, _)| *field == name).expect(name).1.clone();
        assert_eq!(of("TIER").split_whitespace().collect::<Vec<_>>(), ["ram", "disk"]);
        assert_eq!(of("capacity").trim(), "1 GiB       2 GiB");
        assert_eq!(of("segment files"), "7 of 0 B (0 free, 0 held open): 3 MiB live, 0 B dead");
        assert_eq!(of("physical").split_whitespace().last(), Some("-"));
        assert_eq!((of("leases").as_str(), of("up for").as_str()), ("2 held, 5 granted", "61s"));
    }
}
