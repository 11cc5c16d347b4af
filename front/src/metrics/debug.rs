//! `/debug/shards`: each shard's queues, slots and longest turns as JSON, for whoever looks into a stall.

use payload_reactor::{Handled, Turn};
use payload_types::limits;
use serde_json::{Value, json};

use super::scrape::{Scrape, ShardScrape};

/// All shards, as one JSON object that people can read.
pub fn shards(scrape: &Scrape) -> String {
    let shards: Vec<Value> = scrape.shards.iter().map(shard).collect();
    let node = json!({
        "requests_in_flight": scrape.in_flight,
        "io_wq_workers": scrape.io_workers,
        "catalog": {
            "groups": scrape.catalog.groups,
            "changes": scrape.catalog.rows,
            "group_longest_us": scrape.catalog.group_ns_max / 1000,
        },
        "shards": shards,
    });
    format!("{node:#}\n")
}

fn shard(shard: &ShardScrape) -> Value {
    let (lanes, drops, stats, turns) = (&shard.lanes, &shard.drops, &shard.stats, &shard.turns);
    json!({
        "shard": shard.shard,
        "queues": {
            "requests": {"waiting": lanes.requests, "limit": limits::REQUEST_LANE_LEN},
            "completions": {"waiting": lanes.completions, "limit": limits::COMPLETION_LANE_LEN},
            "budget_replies": {"waiting": lanes.budget_replies, "limit": limits::BUDGET_ASKS_PER_SHARD_MAX},
            "sessions": {"waiting": lanes.sessions},
            "tables": {"waiting": lanes.tables},
        },
        "dropped": {
            "requests_full": drops.requests_full,
            "requests_stopping": drops.requests_stopping,
            "completions_closed": drops.completions_closed,
            "prefaults_full": drops.prefaults_full,
        },
        "slots": {
            "operations": {"taken": stats.operations, "limit": limits::OPS_PER_SHARD_MAX},
            "requests_parked": {"taken": stats.parked, "limit": limits::REQUESTS_PER_SHARD_MAX},
            "leases": {"taken": stats.leases, "limit": limits::LEASES_PER_SHARD_MAX},
        },
        "lease_age_seconds": shard.lease_age_seconds,
        "turns": {
            "count": turns.turns,
            "wall_us": turns.wall_ns / 1000,
            "over_100us": turns.over_100us,
            "over_1ms": turns.over_1ms,
            "wall_over_100us": turns.wall_over_100us,
            "wall_over_1ms": turns.wall_over_1ms,
            "longest": turns.longest.iter().map(turn).collect::<Vec<_>>(),
        },
    })
}

fn turn(turn: &Turn) -> Value {
    let Handled { completions, budget_requests, requests, timers } = turn.handled;
    json!({
        "on_cpu_us": turn.on_cpu_ns / 1000,
        "wall_us": turn.wall_ns / 1000,
        "cause": cause(turn),
        "handled": {
            "requests": requests,
            "completions": completions,
            "timers": timers,
            "budget_requests": budget_requests,
        },
    })
}

/// What a long turn was about, in words.
fn cause(turn: &Turn) -> &'static str {
    let Handled { completions, budget_requests, requests, timers } = turn.handled;
    if turn.on_cpu_ns < turn.wall_ns / 2 {
        return "preempted: more than half of it the thread was not on a CPU";
    }
    let most = [
        (requests, "requests"),
        (completions, "completions of drivers and catalog"),
        (timers, "timers: leases and payloads that ended"),
        (budget_requests, "budgets of all shards"),
    ];
    match most.into_iter().max_by_key(|(count, _)| *count) {
        Some((1.., cause)) => cause,
        _ => "no message: memory of native sessions",
    }
}

#[cfg(test)]
mod tests {
    use payload_types::Monotonic;

    use super::*;

    #[test]
    fn given_long_turns_when_told_then_their_cause_is_what_they_handled_most_of() {
        let turn =
            |on_cpu_ns, handled| Turn { on_cpu_ns, wall_ns: 1_000_000, started: Monotonic(0), handled };
        let handled = Handled { requests: 2, completions: 30, ..Handled::default() };
        assert_eq!(cause(&turn(900_000, handled)), "completions of drivers and catalog");
        assert!(cause(&turn(100_000, handled)).starts_with("preempted"));
        assert!(cause(&turn(900_000, Handled::default())).starts_with("no message"));
    }
}
