//! `scale/list-1e6` and `scale/stats-1e6`: what ListPayloads and Stats take with 10^6 payloads, through gRPC.
//!
//! On the server of `boot/1e6`: its payloads are spread over all shards. First the whole list is read, which must be
//! 10^6 different payloads, and gives places all over it. Then pages of 50 are asked for, one call at a time over one
//! connection, in turns: the first page, a page at a random place, and one at a random place of the list of one tier. The
//! row's value is the slowest of the three. Stats is measured before, on the server while it is empty, and after: it must
//! not depend on how many payloads there are.

use std::time::Instant;

use anyhow::Context as _;
use payload_client::Client;
use payload_types::{PayloadId, Tier};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use crate::context::{Context, ROUNDS_SHORT};
use crate::histogram::{Latencies, Unit};
use crate::report::{Figure, Findings};
use crate::series::Series;

/// Rows of the pages that are measured (DESIGN §10).
const PAGE: u16 = 50;

/// Rows of the pages by which the list is read once: the most there are.
const PAGE_READING: u16 = 500;

/// Measures Stats, as `row`.
pub(super) async fn stats(
    context: &Context,
    findings: &mut Findings,
    row: &'static str,
    address: &str,
) -> anyhow::Result<()> {
    let client = Client::connect_grpc(address).await?;
    let mut all = Latencies::default();
    let mut series = Series::default();
    // The first round warms up.
    for round in 0..=ROUNDS_SHORT {
        let mut latencies = Latencies::default();
        let end = Instant::now() + context.slice(2 * ROUNDS_SHORT);
        while Instant::now() < end {
            let asked = Instant::now();
            client.stats().await?;
            latencies.record(asked.elapsed());
        }
        if round > 0 {
            series.push(latencies.p50(Unit::Microseconds));
            all.merge(&latencies);
        }
    }
    findings.put(row, Figure::of(&series)?.with(&all, Unit::Microseconds));
    Ok(())
}

/// Measures pages of a list of `payloads`, all on DISK.
pub(super) async fn pages(
    context: &Context,
    findings: &mut Findings,
    address: &str,
    payloads: u64,
) -> anyhow::Result<()> {
    let client = Client::connect_grpc(address).await?;
    let places = [read(&client, None, payloads).await?, read(&client, Some(Tier::Disk), payloads).await?];
    let mut random = SmallRng::seed_from_u64(11);
    let mut anywhere = |tokens: &[String]| tokens[random.next_u64() as usize % tokens.len()].clone();
    let names = ["first page", "anywhere", "anywhere in one tier"];
    let mut series = [(); 3].map(|()| Series::default());
    let mut all = [(); 3].map(|()| Latencies::default());
    for round in 0..=ROUNDS_SHORT {
        for (kind, (series, all)) in series.iter_mut().zip(&mut all).enumerate() {
            let mut latencies = Latencies::default();
            let end = Instant::now() + context.slice(3 * ROUNDS_SHORT);
            while Instant::now() < end {
                let (tier, token) = match kind {
                    0 => (None, None),
                    1 => (None, Some(anywhere(&places[0]))),
                    _ => (Some(Tier::Disk), Some(anywhere(&places[1]))),
                };
                let asked = Instant::now();
                let page = client.list(tier, PAGE, token).await?;
                latencies.record(asked.elapsed());
                anyhow::ensure!(page.rows.len() == usize::from(PAGE), "a page has {} rows", page.rows.len());
                anyhow::ensure!(page.total_count == payloads, "the total is {}", page.total_count);
            }
            if round > 0 {
                series.push(latencies.p50(Unit::Microseconds) / 1e3);
                all.merge(&latencies);
            }
        }
    }
    let medians =
        series.iter().map(|series| series.median().context("no round")).collect::<Result<Vec<_>, _>>()?;
    let slowest = (0..3).max_by(|one, two| medians[*one].total_cmp(&medians[*two])).expect("there are three");
    let told: Vec<_> = names.iter().zip(&medians).map(|(name, ms)| format!("{name} {ms:.3}")).collect();
    let figure = Figure::of(&series[slowest])?.with(&all[slowest], Unit::Microseconds);
    findings.put("scale/list-1e6", figure.noted(format!("ms: {}", told.join(", "))));
    Ok(())
}

/// Reads a list to its end: the tokens of its pages. It must name so many payloads, each once, newest first.
async fn read(client: &Client, tier: Option<Tier>, payloads: u64) -> anyhow::Result<Vec<String>> {
    let (mut tokens, mut count) = (Vec::new(), 0);
    let mut last: Option<PayloadId> = None;
    let mut token = None;
    loop {
        let page = client.list(tier, PAGE_READING, token).await?;
        for row in &page.rows {
            anyhow::ensure!(last.is_none_or(|last| row.id < last), "the list is not in order at {}", row.id);
            last = Some(row.id);
            count += 1;
        }
        token = page.next_page_token;
        match &token {
            Some(next) => tokens.push(next.clone()),
            None => break,
        }
    }
    anyhow::ensure!(count == payloads, "the list has {count} payloads");
    // A page from the last token on may be short.
    tokens.pop();
    Ok(tokens)
}
