//! What one look at the node finds: gathered once, read by every metric.
//!
//! ```text
//! /metrics, /debug/shards, OTLP --> Sources::scrape --> Accounting (asks every shard once) + lanes, turns, tallies
//! ```

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use payload_catalog::WriterStats;
use payload_reactor::{Drops, Lanes, ReactorHandle, TurnStats};
use payload_types::reply::ShardStats;
use payload_types::{PayloadError, ShardIndex, Tier};
use payload_wire::pb::admin::v1::StatsResponse;
use tonic::Code;

use super::histogram::Distribution;
use crate::accounting::Accounting;
use crate::admission::Gate;
use crate::logging;
use crate::tally::Tally;
use crate::telemetry::flights::Flights;
use crate::telemetry::{Fate, Telemetry};

/// Where the kernel lists this process's threads.
const THREADS: &str = "/proc/self/task";

/// What the kernel calls the threads that it makes for io_uring requests that would block.
const IO_WORKER: &str = "iou-wrk-";

/// Where figures come from. Shared by `/metrics` and the OTLP export.
pub struct Sources {
    /// As for Stats.
    pub accounting: Arc<Accounting>,
    /// Lanes and turns.
    pub reactor: ReactorHandle,
    /// Calls answered.
    pub tally: Tally,
    /// Calls in flight.
    pub gate: Gate,
    /// Work of drivers and catalog.
    pub flights: Arc<Flights>,
    /// What was told to OpenTelemetry.
    pub telemetry: Arc<Telemetry>,
}

/// All figures of one moment.
pub struct Scrape {
    /// What the Stats RPC would have answered.
    pub stats: StatsResponse,
    /// By shard.
    pub shards: Vec<ShardScrape>,
    /// Calls answered: RPC, code, how often.
    pub calls: Vec<(&'static str, Code, u64)>,
    /// How long they took, by RPC.
    pub latencies: Vec<(&'static str, Distribution)>,
    /// Calls admitted and not answered.
    pub in_flight: usize,
    /// Copies between tiers, by source and destination.
    pub copies: Vec<(Tier, Tier, Distribution)>,
    /// The catalog's writer.
    pub catalog: WriterStats,
    /// How long payloads' changes took, waiting included.
    pub catalog_wait: Option<Distribution>,
    /// Threads of the kernel; `None`: they cannot be counted here.
    pub io_workers: Option<u64>,
    /// Lines that logging left out.
    pub lines_suppressed: u64,
    /// What became of spans and metrics over OTLP; `None`: nothing is exported.
    pub fate: Option<Fate>,
}

/// One shard.
pub struct ShardScrape {
    /// Which.
    pub shard: u16,
    /// What it says of itself.
    pub stats: ShardStats,
    /// What waits for it.
    pub lanes: Lanes,
    /// What it was not given.
    pub drops: Drops,
    /// How long its turns took.
    pub turns: TurnStats,
    /// How long ago the oldest of its leases was granted; 0 without one.
    pub lease_age_seconds: f64,
}

impl Sources {
    /// Looks at everything. To be called on a tokio runtime, any one.
    ///
    /// # Errors
    /// As [`Accounting::gather`].
    pub async fn scrape(&self) -> Result<Scrape, PayloadError> {
        let workers = tokio::task::spawn_blocking(io_workers);
        let (stats, parts) = self.accounting.gather_parts(None).await?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let shards = parts.into_iter().zip(self.reactor.stalls()).map(|(stats, turns)| {
            let shard = turns.shard;
            let age_ms = stats.lease_oldest_at.map_or(0, |at| now_ms.saturating_sub(at.as_millis()));
            ShardScrape {
                shard: shard.0,
                stats,
                lanes: self.reactor.lanes(ShardIndex(shard.0)),
                drops: self.reactor.drops(shard),
                turns,
                lease_age_seconds: age_ms as f64 / 1e3,
            }
        });
        Ok(Scrape {
            stats,
            shards: shards.collect(),
            calls: self.tally.counted().collect(),
            latencies: self.tally.latencies(),
            in_flight: self.gate.taken(),
            copies: self.flights.copies(),
            catalog: self.flights.writer(),
            catalog_wait: self.flights.catalog_wait(),
            io_workers: workers.await.ok().flatten(),
            lines_suppressed: logging::lines_suppressed(),
            fate: self.telemetry.fate(),
        })
    }
}

/// Counts them by their names: nothing else tells them apart from the outside.
fn io_workers() -> Option<u64> {
    let threads = std::fs::read_dir(THREADS).ok()?.flatten();
    let names = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
    Some(names.filter(|name| name.starts_with(IO_WORKER)).count() as u64)
}
