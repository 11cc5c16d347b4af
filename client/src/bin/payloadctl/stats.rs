//! `stats`: how much each tier holds.

use payload_client::Client;
use payload_types::reply::TierStats;
use payload_types::{ByteCount, PerTier, Tier};
use serde::Serialize;

use crate::output::{Column, Output, Row, left, right};
use crate::view::word;

/// The contract's `StatsResponse`.
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
}

#[derive(Serialize)]
struct TierRow {
    tier: String,
    payloads: u64,
    bytes: u64,
}

impl Row for TierRow {
    const COLUMNS: &'static [Column] = &[left("TIER", 6), right("PAYLOADS", 8), right("BYTES", 10)];
    fn cells(&self) -> Vec<String> {
        vec![self.tier.clone(), self.payloads.to_string(), ByteCount(self.bytes).to_string()]
    }
}

/// Shows the statistics.
pub async fn run(client: &Client, output: &mut Output) -> anyhow::Result<()> {
    let tiers = client.stats().await?;
    if output.is_json() {
        return Ok(output.object(&object(&tiers))?);
    }
    for tier in Tier::ALL {
        let TierStats { payloads, bytes, .. } = tiers[tier];
        output.row(&TierRow { tier: word(tier), payloads, bytes })?;
    }
    Ok(())
}

fn object(tiers: &PerTier<TierStats>) -> Stats {
    Stats {
        payloads_gpu: tiers[Tier::Gpu].payloads,
        payloads_ram: tiers[Tier::Ram].payloads,
        payloads_disk: tiers[Tier::Disk].payloads,
        payloads_object: tiers[Tier::Object].payloads,
        bytes_gpu: tiers[Tier::Gpu].bytes,
        bytes_ram: tiers[Tier::Ram].bytes,
        bytes_disk: tiers[Tier::Disk].bytes,
        bytes_object: tiers[Tier::Object].bytes,
    }
}
