//! The disk root, its segment files, and the object store.

use payload_wire::pb::operations::v1::{DiskHealth, DiskSegments, ObjectStoreHealth};

use super::Kind::{self, Counter, Gauge};
use super::{Family, Sample, Source, push};
use crate::metrics::scrape::Scrape;

const fn one(
    name: &'static str,
    kind: Kind,
    help: &'static str,
    figure: fn(&Scrape) -> Option<f64>,
) -> Family {
    Family::new(name, kind, help, Source::Node(figure))
}

fn root(scrape: &Scrape, figure: impl Fn(&DiskHealth) -> u64) -> Option<f64> {
    scrape.stats.disk.as_ref().map(|disk| figure(disk) as f64)
}

fn files(scrape: &Scrape, figure: impl Fn(&DiskSegments) -> u64) -> Option<f64> {
    scrape.stats.disk_segments.as_ref().map(|segments| figure(segments) as f64)
}

fn store(scrape: &Scrape, figure: impl Fn(&ObjectStoreHealth) -> u64) -> Option<f64> {
    scrape.stats.object_store.as_ref().map(|store| figure(store) as f64)
}

/// A sample for each state, 1 for the one that holds.
fn states(samples: &mut Vec<Sample>, states: &[&str], holds: &str) {
    for state in states {
        push(samples, [(*state).to_owned()], u64::from(*state == holds));
    }
}

fn disk_states(scrape: &Scrape, samples: &mut Vec<Sample>) {
    if let Some(disk) = &scrape.stats.disk {
        states(samples, &["healthy", "slow", "full", "read_only", "sync_failed", "io"], &disk.state);
    }
}

fn object_states(scrape: &Scrape, samples: &mut Vec<Sample>) {
    if let Some(store) = &scrape.stats.object_store {
        states(samples, &["healthy", "slow", "throttling", "unreachable", "refused"], &store.state);
    }
}

#[rustfmt::skip]
pub(super) static FAMILIES: &[Family] = &[
    Family::new("payload_manager_disk_state", Gauge, "1 for the state that the disk root is in: healthy, slow, full, read_only, sync_failed, io.", Source::Many(disk_states)).labels(&["state"]),
    one("payload_manager_disk_writable", Gauge, "0 while new writes are refused.", |scrape| root(scrape, |disk| disk.writable.into())),
    one("payload_manager_disk_failures_in_a_row", Gauge, "Failures in a row.", |scrape| root(scrape, |disk| disk.attempts.into())),
    one("payload_manager_disk_write_failures_total", Counter, "Writes that failed.", |scrape| root(scrape, |disk| disk.failures_total)),
    one("payload_manager_disk_writes_refused_total", Counter, "Writes refused while the disk root is left alone.", |scrape| root(scrape, |disk| disk.refused_total)),
    one("payload_manager_disk_read_failures_total", Counter, "Reads that failed.", |scrape| root(scrape, |disk| disk.read_failures_total)),
    one("payload_manager_disk_slow_operations_total", Counter, "Operations that took too long.", |scrape| root(scrape, |disk| disk.slow_total)),
    one("payload_manager_segment_files", Gauge, "Segment files on disk, free ones included; these figures are in `payloadctl stats`, too.", |scrape| files(scrape, |segments| segments.files)),
    one("payload_manager_segment_files_free", Gauge, "Of those, kept for what is written next.", |scrape| files(scrape, |segments| segments.files_free)),
    one("payload_manager_segment_files_held", Gauge, "Of those, nothing lives in them, and somebody has them open.", |scrape| files(scrape, |segments| segments.files_held)),
    one("payload_manager_segment_file_bytes", Gauge, "What they take on the disk.", |scrape| files(scrape, |segments| segments.file_bytes)).unit("By"),
    one("payload_manager_segment_live_bytes", Gauge, "Of that, payloads that live, in whole pages.", |scrape| files(scrape, |segments| segments.live_bytes)).unit("By"),
    one("payload_manager_segment_dead_bytes", Gauge, "Of that, payloads that are dead, and whose file was not used again yet.", |scrape| files(scrape, |segments| segments.dead_bytes)).unit("By"),
    one("payload_manager_segment_recycled_total", Counter, "Files that were used again or removed.", |scrape| files(scrape, |segments| segments.recycled_total)),
    one("payload_manager_segment_emptied_total", Counter, "Of those, emptied by compaction.", |scrape| files(scrape, |segments| segments.emptied_total)),
    one("payload_manager_segment_moved_total", Counter, "Replicas that compaction moved.", |scrape| files(scrape, |segments| segments.moved_total)),
    one("payload_manager_segment_moved_bytes_total", Counter, "Their bytes.", |scrape| files(scrape, |segments| segments.moved_bytes_total)).unit("By"),
    Family::new("payload_manager_object_state", Gauge, "1 for the state that the object store is in: healthy, slow, throttling, unreachable, refused; only where one is configured, as all of these.", Source::Many(object_states)).labels(&["state"]),
    one("payload_manager_object_probed", Gauge, "1 once the store has answered since start.", |scrape| store(scrape, |store| store.probed.into())),
    one("payload_manager_object_parts_limit", Gauge, "Parts that may be under way now: less while the store asks for less.", |scrape| store(scrape, |store| store.parts_limit)),
    one("payload_manager_object_parts_in_flight", Gauge, "Parts under way, 8 MiB of memory each.", |scrape| store(scrape, |store| store.parts_in_flight)),
    one("payload_manager_object_requests_total", Counter, "Requests on the wire.", |scrape| store(scrape, |store| store.requests_total)),
    one("payload_manager_object_failures_total", Counter, "Requests that failed and were worth another.", |scrape| store(scrape, |store| store.failures_total)),
    one("payload_manager_object_throttled_total", Counter, "Of those: 503 and 429.", |scrape| store(scrape, |store| store.throttled_total)),
    one("payload_manager_object_refused_total", Counter, "Operations refused while the store is left alone.", |scrape| store(scrape, |store| store.refused_total)),
    one("payload_manager_object_slow_total", Counter, "Requests slower than ten seconds.", |scrape| store(scrape, |store| store.slow_total)),
    one("payload_manager_object_stored_bytes_total", Counter, "Bytes stored, as on the wire.", |scrape| store(scrape, |store| store.stored_bytes_total)).unit("By"),
    one("payload_manager_object_fetched_bytes_total", Counter, "Bytes fetched, as on the wire.", |scrape| store(scrape, |store| store.fetched_bytes_total)).unit("By"),
];
