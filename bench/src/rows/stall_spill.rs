//! `stall/spill`: what a lease costs while the server spills as fast as it can, against what it costs without that.
//!
//! ```text
//! a round   put 8 x 64 MiB (untimed) | leases alone | leases while all 8 are spilled, 4 at a time | delete (untimed)
//! ```
//! Leases are taken as `grpc/acquire` takes them, one call after another over one connection, by a thread of their
//! own; what is spilled is asked for over another connection. Only calls that began while spills were under way count
//! as loaded. The value is the p99 of all rounds together: one round has too few calls to have a p99 of its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use payload_types::ByteCount;

use super::disk::{Load, Moves};
use crate::context::Context;
use crate::histogram::{Latencies, Unit};
use crate::lease_load::{LeaseLoad, put_payloads};
use crate::report::{Figure, Findings};
use crate::server::Server;

/// Spilled in a round, with calls in flight enough that the transfer threads never wait for the next one.
const LOAD: Load = Load { payloads: 8, payload_bytes: ByteCount(64 << 20), ids_per_call: 1, in_flight: 4 };

/// Leases alone, each round: as long as its spills take on the machine we know.
const ALONE: Duration = Duration::from_millis(300);

/// See the module.
pub fn run(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    context.require_own()?;
    let rounds = if context.quick { 6 } else { 20 };
    // Two rounds' worth: what was deleted is charged until it is proven free.
    let server =
        Server::start(context, ByteCount(2 * LOAD.bytes() + (64 << 20)), ByteCount(3 * LOAD.bytes()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ids = runtime.block_on(put_payloads(server.address()))?;
    let mut leases = runtime.block_on(LeaseLoad::connect(server.address(), ids))?;
    let mut moves = Moves::connect(server.address(), LOAD)?;

    let (mut alone, mut loaded) = (Latencies::default(), Latencies::default());
    let mut bytes_per_s = 0.0;
    // The first turn warms up.
    for turn in 0..=rounds {
        moves.put(turn)?;
        let quiet = runtime.block_on(leases.one_by_one(ALONE))?;
        let is_spilling = AtomicBool::new(true);
        let (busy, rate) = thread::scope(|scope| {
            let leasing = scope
                .spawn(|| runtime.block_on(leases.one_by_one_while(|| is_spilling.load(Ordering::Relaxed))));
            let rate = moves.spill();
            is_spilling.store(false, Ordering::Relaxed);
            let busy = leasing.join().map_err(|_panic| anyhow::anyhow!("the leasing thread panicked"));
            anyhow::Ok((busy??, rate?))
        })?;
        moves.delete()?;
        if turn > 0 {
            alone.merge(&quiet);
            loaded.merge(&busy);
            bytes_per_s += rate / rounds as f64;
        }
    }
    put(findings, "stall/lease-alone", &alone, rounds, format!("{} leases", alone.count()))?;
    let note = format!("{} leases while {:.0} MB/s went to disk", loaded.count(), bytes_per_s / 1e6);
    put(findings, "stall/spill", &loaded, rounds, note)
}

fn put(
    findings: &mut Findings,
    row: &'static str,
    latencies: &Latencies,
    rounds: usize,
    note: String,
) -> anyhow::Result<()> {
    let percentiles = latencies.percentiles(Unit::Microseconds).context("no lease was taken")?;
    let figure = Figure { value: percentiles.p99, rounds, ..Figure::default() };
    findings.put(row, figure.with(latencies, Unit::Microseconds).noted(note));
    Ok(())
}
