//! `grpc/acquire`, `grpc/acquire-vs-echo`, `grpc/acquire-64` and their echo floors.
//!
//! Every server is a process of its own, and the same client code calls it. With `--target` the server is somebody
//! else's; the echoes stay ours. The bench's client runs on one thread, as the servers' sockets do.

use payload_types::{ByteCount, PayloadId};
use tokio::runtime::Runtime;

use crate::context::{Context, ROUNDS_SHORT};
use crate::floors::echo::{EchoServer, Mode};
use crate::histogram::{Latencies, Unit};
use crate::lease_load::{LeaseLoad, PAYLOADS, put_payloads};
use crate::report::{Figure, Findings};
use crate::series::Series;
use crate::server::Server;

/// What the server of these rows needs: 1,000 payloads of a page, with room to spare.
const CAPACITY: ByteCount = ByteCount(256 << 20);

/// Calls in flight.
const IN_FLIGHT: usize = 64;

/// One server and what was measured of it. The process lives as long as its side.
struct Side {
    row: &'static str,
    load: LeaseLoad,
    series: Series,
    latencies: Latencies,
    message_bytes: (usize, usize),
    _echo: Option<EchoServer>,
    _server: Option<Server>,
}

impl Side {
    fn connected(
        runtime: &Runtime,
        row: &'static str,
        address: &str,
        ids: Vec<PayloadId>,
        (echo, server): (Option<EchoServer>, Option<Server>),
    ) -> anyhow::Result<Self> {
        let mut load = runtime.block_on(LeaseLoad::connect(address, ids))?;
        let message_bytes = runtime.block_on(load.message_bytes())?;
        let (series, latencies) = (Series::default(), Latencies::default());
        Ok(Self { row, load, series, latencies, message_bytes, _echo: echo, _server: server })
    }

    fn echo(runtime: &Runtime, row: &'static str, mode: Mode) -> anyhow::Result<Self> {
        let echo = EchoServer::start(mode)?;
        let address = echo.address().to_owned();
        let ids = (0..PAYLOADS as u64).map(|number| PayloadId::mint(number, number)).collect();
        Self::connected(runtime, row, &address, ids, (Some(echo), None))
    }

    fn ours(runtime: &Runtime, row: &'static str, context: &Context) -> anyhow::Result<Self> {
        let (server, address) = Server::wanted(context, CAPACITY)?;
        let ids = runtime.block_on(put_payloads(&address))?;
        Self::connected(runtime, row, &address, ids, (None, server))
    }

    fn figure(&self) -> anyhow::Result<Figure> {
        let (request, answer) = self.message_bytes;
        let note = format!("request {request} bytes, answer {answer}");
        Ok(Figure::of(&self.series)?.with(&self.latencies, Unit::Microseconds).noted(note))
    }
}

fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// The sequential rows.
pub fn one_by_one(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    let runtime = runtime()?;
    let mut sides = Vec::new();
    if context.wants("grpc/echo") {
        sides.push(Side::echo(&runtime, "grpc/echo", Mode::Plain)?);
    }
    if context.wants("grpc/echo-hop") {
        sides.push(Side::echo(&runtime, "grpc/echo-hop", Mode::Hop)?);
    }
    if context.wants("grpc/acquire") || context.wants("grpc/acquire-vs-echo") {
        match Side::ours(&runtime, "grpc/acquire", context) {
            Ok(side) => sides.push(side),
            Err(error) => {
                findings.absent("grpc/acquire", &error);
                findings.absent("grpc/acquire-vs-echo", &error);
            }
        }
    }
    // The first turn warms up what it calls.
    for turn in 0..=ROUNDS_SHORT {
        for side in &mut sides {
            let latencies = runtime.block_on(side.load.one_by_one(context.slice(ROUNDS_SHORT)))?;
            if turn > 0 {
                side.series.push(latencies.p50(Unit::Microseconds));
                side.latencies.merge(&latencies);
            }
        }
    }
    for side in &sides {
        findings.put(side.row, side.figure()?);
        if side.row == "grpc/acquire" {
            findings.put("grpc/acquire-vs-echo", side.figure()?);
        }
    }
    Ok(())
}

/// The rows with many calls in flight.
pub fn many_in_flight(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    let runtime = runtime()?;
    let mut sides = vec![Side::echo(&runtime, "grpc/echo-64", Mode::Plain)?];
    if context.wants("grpc/acquire-64") {
        match Side::ours(&runtime, "grpc/acquire-64", context) {
            Ok(side) => sides.push(side),
            Err(error) => findings.absent("grpc/acquire-64", &error),
        }
    }
    for turn in 0..=ROUNDS_SHORT {
        for side in &mut sides {
            let burst = runtime.block_on(side.load.burst(IN_FLIGHT, context.slice(ROUNDS_SHORT)))?;
            if turn > 0 {
                side.series.push(burst.calls_per_s);
                side.latencies.merge(&burst.latencies);
            }
        }
    }
    for side in &sides {
        findings.put(side.row, side.figure()?);
    }
    Ok(())
}
