//! Calls, and moves between tiers: what existing dashboards know.

use super::Kind::{Counter, Gauge, Histogram};
use super::{Family, Sample, Source, Value, push};
use crate::metrics::scrape::Scrape;
use crate::tally::code_name;

pub(super) static FAMILIES: &[Family] = &[
    Family::new(
        "payload.request.count",
        Counter,
        "Calls answered, by RPC and gRPC code.",
        Source::Many(calls),
    )
    .labels(&["route", "status"]),
    Family::new(
        "payload.request.latency_ms",
        Histogram,
        "Time from a call's arrival to its answer (of streams: to its first byte), by RPC.",
        Source::Many(|scrape, samples| {
            samples.extend(scrape.latencies.iter().map(|(rpc, spread)| Sample {
                labels: vec![(*rpc).to_owned()],
                value: Value::Spread(spread.clone()),
            }));
        }),
    )
    .unit("ms")
    .labels(&["route"]),
    Family::new(
        "payload.spill.duration_ms",
        Histogram,
        "Time of copies between tiers, from their being queued to their end, failed ones included, by source and destination.",
        Source::Many(|scrape, samples| {
            samples.extend(scrape.copies.iter().map(|(from, to, spread)| Sample {
                labels: vec![from.to_string().to_ascii_lowercase(), to.to_string().to_ascii_lowercase()],
                value: Value::Spread(spread.clone()),
            }));
        }),
    )
    .unit("ms")
    .labels(&["from", "to"]),
    Family::new(
        "payload.tier.occupancy_bytes",
        Gauge,
        "Bytes in use on the tier: as payload_manager_tier_allocated_bytes.",
        Source::Tier(|tier| Some(tier.allocated_bytes)),
    )
    .unit("By")
    .labels(&["tier"]),
    Family::new(
        "payload_manager_requests_total",
        Counter,
        "Calls answered, by RPC and gRPC code; CANCELLED: the client hung up first.",
        Source::Many(calls),
    )
    .labels(&["rpc", "code"]),
    Family::new(
        "payload_manager_requests_in_flight",
        Gauge,
        "Calls admitted and not answered (limit: `limits.requests_in_flight`).",
        Source::Node(|scrape| Some(scrape.in_flight as f64)),
    ),
];

fn calls(scrape: &Scrape, samples: &mut Vec<Sample>) {
    for (rpc, code, count) in &scrape.calls {
        push(samples, [(*rpc).to_owned(), code_name(*code).to_owned()], *count);
    }
}
