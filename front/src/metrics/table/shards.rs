//! Each shard: its turns, lanes, leases, evictions, and what it was not given.

use payload_reactor::{Drops, Lanes, turn_bucket_ns};
use payload_types::Tier;

use super::Kind::{self, Counter, Gauge, Histogram};
use super::{Family, Sample, Source, Value, push};
use crate::metrics::histogram::Distribution;
use crate::metrics::scrape::{Scrape, ShardScrape};

const fn shard(
    name: &'static str,
    kind: Kind,
    help: &'static str,
    figure: fn(&ShardScrape) -> f64,
) -> Family {
    Family::new(name, kind, help, Source::Shard(figure)).labels(&["shard"])
}

const NS: f64 = 1e9;

#[rustfmt::skip]
pub(super) static FAMILIES: &[Family] = &[
    shard("payload_manager_shard_lane_requests", Gauge, "Requests that wait in the shard's lane, at most 1024.", |shard| shard.lanes.requests as f64),
    Family::new("payload_manager_shard_lane_messages", Gauge, "Messages that wait in the lanes of the shard's mailbox: requests, completions, budget, sessions, tables.", Source::Many(lanes)).labels(&["shard", "lane"]),
    Family::new("payload_manager_shard_drops_total", Counter, "Messages that were not delivered, by variant and reason: full (handed back to whoever sent them), stopping, closed.", Source::Many(drops)).labels(&["shard", "variant", "reason"]),
    shard("payload_manager_shard_turns_total", Counter, "Turns of the shard.", |shard| shard.turns.turns as f64),
    Family::new("payload_manager_shard_turn_seconds", Histogram, "Length of turns by the clock.", Source::Many(turns)).unit("s").labels(&["shard"]),
    shard("payload_manager_shard_turns_over_100us_total", Counter, "Turns with more than 100 us on the CPU.", |shard| shard.turns.over_100us as f64),
    shard("payload_manager_shard_turns_over_1ms_total", Counter, "Turns with more than 1 ms on the CPU: there should be none.", |shard| shard.turns.over_1ms as f64),
    shard("payload_manager_shard_turn_longest_seconds", Gauge, "CPU time of the longest turn over 100 us; 0: there was none.", |shard| shard.turns.longest.first().map_or(0.0, |turn| turn.on_cpu_ns as f64 / NS)).unit("s"),
    shard("payload_manager_shard_leases", Gauge, "Leases held.", |shard| shard.stats.leases as f64),
    shard("payload_manager_shard_lease_age_seconds", Gauge, "Age of the oldest lease; of more than 4096 the oldest that was looked at.", |shard| shard.lease_age_seconds).unit("s"),
    shard("payload_manager_shard_operations", Gauge, "Operations under way in drivers and catalog, at most 2304.", |shard| shard.stats.operations as f64),
    shard("payload_manager_shard_requests_parked", Gauge, "Requests that wait for a payload.", |shard| shard.stats.parked as f64),
    Family::new("payload_manager_shard_evictions_total", Counter, "Replicas that pressure took from the tier, by cause: twin (a slower tier had the same bytes), copied (to a slower tier first), void (discarded, as the payload allowed).", Source::Many(evictions)).labels(&["shard", "tier", "cause"]),
];

fn lanes(scrape: &Scrape, samples: &mut Vec<Sample>) {
    for shard in &scrape.shards {
        let Lanes { requests, completions, budget_replies, sessions, tables } = shard.lanes;
        for (lane, waiting) in [
            ("requests", requests),
            ("completions", completions),
            ("budget", budget_replies),
            ("sessions", sessions),
            ("tables", tables),
        ] {
            push(samples, [shard.shard.to_string(), lane.to_owned()], waiting as u64);
        }
    }
}

fn drops(scrape: &Scrape, samples: &mut Vec<Sample>) {
    for shard in &scrape.shards {
        let Drops { requests_full, requests_stopping, completions_closed, prefaults_full } = shard.drops;
        for (variant, reason, count) in [
            ("request", "full", requests_full),
            ("request", "stopping", requests_stopping),
            ("completion", "closed", completions_closed),
            ("prefault", "full", prefaults_full),
        ] {
            push(samples, [shard.shard.to_string(), variant.to_owned(), reason.to_owned()], count);
        }
    }
}

fn turns(scrape: &Scrape, samples: &mut Vec<Sample>) {
    for shard in &scrape.shards {
        let bounds = (0..).map_while(turn_bucket_ns).map(|end| end as f64 / NS).collect();
        let counts = shard.turns.by_length.to_vec();
        let spread = Distribution { bounds, counts, sum: shard.turns.wall_ns as f64 / NS };
        samples.push(Sample { labels: vec![shard.shard.to_string()], value: Value::Spread(spread) });
    }
}

fn evictions(scrape: &Scrape, samples: &mut Vec<Sample>) {
    for shard in &scrape.shards {
        for tier in Tier::ALL {
            let part = &shard.stats.tiers[tier];
            if part.capacity.is_none() {
                continue;
            }
            let moved = part.moved;
            let copied = moved.evictions.saturating_sub(moved.evictions_twin + moved.evictions_void);
            for (cause, count) in
                [("twin", moved.evictions_twin), ("copied", copied), ("void", moved.evictions_void)]
            {
                let tier = tier.to_string().to_ascii_lowercase();
                push(samples, [shard.shard.to_string(), tier, cause.to_owned()], count);
            }
        }
    }
}
