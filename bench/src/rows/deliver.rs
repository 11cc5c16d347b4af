//! `stream/deliver`: from the call of Append to the entry's arrival at a subscriber, and what that is held against.
//!
//! ```text
//!   client --Append--> server --one FULL transaction--> knock --> subscription --entry--> the same client
//!   floor:  one echo of a call                +  one FULL transaction of one row
//! ```
//! One entry an append, one append at a time, one connection: what is measured is a way, not a rate.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use payload_client::{Client, Start};
use payload_types::record::{StreamItem, StreamLimits, StreamName};
use payload_types::{ByteCount, Epoch, PayloadId};
use tokio::runtime::Runtime;

use super::catalog::Rows;
use crate::context::{Context, ROUNDS_SHORT};
use crate::floors::echo::{EchoServer, Mode};
use crate::floors::sqlite::RawSqlite;
use crate::histogram::{Latencies, Unit};
use crate::lease_load::{LeaseLoad, PAYLOADS, put_payloads};
use crate::report::{Figure, Findings};
use crate::series::Series;
use crate::server::Server;

/// As `grpc/acquire` has.
const CAPACITY: ByteCount = ByteCount(256 << 20);

/// `stream/deliver` and its floor.
pub fn run(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let echo = EchoServer::start(Mode::Plain)?;
    let ids = (0..PAYLOADS as u64).map(|number| PayloadId::mint(number, number)).collect();
    let mut echoed = runtime.block_on(LeaseLoad::connect(echo.address(), ids))?;
    let mut sqlite = RawSqlite::create(&context.directory().join("deliver.db"))?;
    let mut rows = Rows::new(Epoch(1));
    let server = Server::start(context, CAPACITY, CAPACITY)?;
    let mut way = runtime.block_on(Way::open(server.address()))?;

    let slice = context.slice(ROUNDS_SHORT) / 3;
    let (mut floor, mut delivered, mut latencies) =
        (Series::default(), Series::default(), Latencies::default());
    // The first turn warms up what it calls.
    for turn in 0..=ROUNDS_SHORT {
        let echo_us = runtime.block_on(echoed.one_by_one(slice))?.p50(Unit::Microseconds);
        let mut transactions = Latencies::default();
        let started = Instant::now();
        while started.elapsed() < slice {
            transactions.record(sqlite.insert_alone(&rows.next())?);
        }
        let transaction_us = transactions.p50(Unit::Microseconds);
        let seen = way.deliver_for(&runtime, slice)?;
        if turn > 0 {
            floor.push(echo_us + transaction_us);
            delivered.push(seen.p50(Unit::Microseconds));
            latencies.merge(&seen);
        }
    }
    findings.put("stream/echo-and-transaction", Figure::of(&floor)?);
    findings.put("stream/deliver", Figure::of(&delivered)?.with(&latencies, Unit::Microseconds));
    Ok(())
}

/// A stream, and a subscriber at its end.
struct Way {
    client: Client,
    stream: StreamName,
    payload: PayloadId,
    subscription: payload_client::Subscription,
}

impl Way {
    async fn open(address: &str) -> anyhow::Result<Self> {
        let payload = *put_payloads(address).await?.first().context("payloads were put")?;
        let client = Client::connect_grpc(address).await?;
        let stream = StreamName { namespace: "bench".to_owned(), name: "deliver".to_owned() };
        client.stream_create(&stream, StreamLimits::default()).await?;
        let subscription = client.stream_subscribe(&stream, Start::Beginning, 0).await?;
        Ok(Self { client, stream, payload, subscription })
    }

    fn deliver_for(&mut self, runtime: &Runtime, duration: Duration) -> anyhow::Result<Latencies> {
        let mut latencies = Latencies::default();
        let started = Instant::now();
        while started.elapsed() < duration {
            latencies.record(runtime.block_on(self.deliver())?);
        }
        Ok(latencies)
    }

    async fn deliver(&mut self) -> anyhow::Result<Duration> {
        let Self { client, stream, payload, subscription } = self;
        let item = StreamItem { payload: *payload, event_time: None, duration_ns: 0, tags: Vec::new() };
        let called = Instant::now();
        let arrival = async {
            let entry = subscription.next().await?;
            anyhow::Ok((entry.offset, called.elapsed()))
        };
        let append = async { anyhow::Ok(client.stream_append(stream, vec![item]).await?) };
        let (arrived, appended) = tokio::try_join!(arrival, append)?;
        anyhow::ensure!(arrived.0 == *appended.start(), "offset {} came for {appended:?}", arrived.0);
        Ok(arrived.1)
    }
}
