//! The node as a whole, and what watches it.

use payload_wire::pb::operations::v1::NodeAccounting;

use super::Kind::{self, Counter, Gauge, Histogram};
use super::{Family, Sample, Source, Value, push};
use crate::metrics::scrape::Scrape;
use crate::telemetry::Fate;

const fn node(
    name: &'static str,
    kind: Kind,
    help: &'static str,
    figure: fn(&Scrape) -> Option<f64>,
) -> Family {
    Family::new(name, kind, help, Source::Node(figure))
}

fn told(scrape: &Scrape) -> NodeAccounting {
    scrape.stats.node.unwrap_or_default()
}

#[rustfmt::skip]
pub(super) static FAMILIES: &[Family] = &[
    node("payload_manager_leases", Gauge, "Leases held.", |scrape| Some(told(scrape).leases as f64)),
    node("payload_manager_leases_granted_total", Counter, "Leases granted since start.", |scrape| Some(told(scrape).leases_granted_total as f64)),
    node("payload_manager_operations", Gauge, "Allocations, commits, copies and removals under way in drivers and catalog.", |scrape| Some(told(scrape).operations as f64)),
    node("payload_manager_requests_parked", Gauge, "Requests that wait for a payload.", |scrape| Some(told(scrape).requests_parked as f64)),
    node("payload_manager_connections", Gauge, "Open client connections (limit: `limits.connections`).", |scrape| Some(told(scrape).connections as f64)),
    node("payload_manager_native_sessions", Gauge, "Open native sessions (limit: `local.sessions_max`).", |scrape| Some(told(scrape).native_sessions as f64)),
    node("payload_manager_direct_leases", Gauge, "Leases that sessions hold without asking anybody, as their cells say; not among `payload_manager_leases`.", |scrape| Some(told(scrape).direct_leases as f64)),
    node("payload_manager_direct_unplaced_total", Counter, "Payloads that found no place in the published tables since start, and are leased by asking.", |scrape| Some(told(scrape).direct_unplaced_total as f64)),
    node("payload_manager_direct_samples_total", Counter, "Samples of what was read without asking that have reached eviction since start.", |scrape| Some(told(scrape).direct_samples_total as f64)),
    node("payload_manager_uptime_seconds", Gauge, "Seconds since this start.", |scrape| Some(told(scrape).uptime_ms as f64 / 1000.0)).unit("s"),
    Family::new("payload_manager_build_info", Gauge, "Always 1; its label says more.", Source::Many(|_, samples| {
        push(samples, [env!("CARGO_PKG_VERSION").to_owned()], 1);
    })).labels(&["version"]),
    node("payload_manager_catalog_groups_total", Counter, "Transactions of the catalog's writer, well ended or not.", |scrape| Some(scrape.catalog.groups as f64)),
    node("payload_manager_catalog_changes_total", Counter, "Changes in them: divided by the groups, the group size.", |scrape| Some(scrape.catalog.rows as f64)),
    node("payload_manager_catalog_group_seconds_total", Counter, "Time of all transactions together, each from its first try to its outcome.", |scrape| Some(scrape.catalog.group_ns as f64 / 1e9)).unit("s"),
    node("payload_manager_catalog_group_longest_seconds", Gauge, "The longest of them since start.", |scrape| Some(scrape.catalog.group_ns_max as f64 / 1e9)).unit("s"),
    Family::new("payload_manager_catalog_wait_ms", Histogram, "Time of payloads' changes, from their being queued for the catalog to the acknowledgement: the wait for the group and the group itself.", Source::Many(|scrape, samples| {
        samples.extend(scrape.catalog_wait.clone().map(|spread| Sample { labels: Vec::new(), value: Value::Spread(spread) }));
    })).unit("ms"),
    node("payload_manager_io_wq_workers", Gauge, "Threads that the kernel made for io_uring requests that could not begin without waiting: punts. None is as it should be; they end after some seconds without work.", |scrape| scrape.io_workers.map(|workers| workers as f64)),
    node("payload_manager_log_lines_suppressed_total", Counter, "Log lines that were not written because they repeated others.", |scrape| Some(scrape.lines_suppressed as f64)),
    Family::new("payload_manager_otlp_exported_total", Counter, "Spans, and rounds of metrics, that the OTLP endpoint took; only where it is exported, as the next.", Source::Many(exported)).labels(&["signal"]),
    Family::new("payload_manager_otlp_dropped_total", Counter, "Spans, and rounds of metrics, that were dropped, by reason: queue_full (observability.tracing.batch.max_queue_size), export_failed.", Source::Many(dropped)).labels(&["signal", "reason"]),
];

fn exported(scrape: &Scrape, samples: &mut Vec<Sample>) {
    if let Some(Fate { exported, .. }) = scrape.fate {
        push(samples, ["spans".to_owned()], exported.spans);
        push(samples, ["metrics".to_owned()], exported.metrics);
    }
}

fn dropped(scrape: &Scrape, samples: &mut Vec<Sample>) {
    if let Some(Fate { exported, spans_dropped }) = scrape.fate {
        let mut one =
            |signal: &str, reason: &str, count| push(samples, [signal.to_owned(), reason.to_owned()], count);
        one("spans", "queue_full", spans_dropped);
        one("spans", "export_failed", exported.spans_failed);
        one("metrics", "export_failed", exported.metrics_failed);
    }
}
