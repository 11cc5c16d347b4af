//! `stream/append`, `lineage/walk-1e4` and `lineage/10k-postgres`: what the catalog keeps beside payload rows, through the
//! writer and a reader.
//!
//! ```text
//!   64 appends of 100 entries outstanding -> Writer -> SQLite, durable      one question at a time -> Reader -> SQLite
//! ```
//! Entries name random payloads among 10^5 committed ones: each append looks up whether its 100 are.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use crossbeam::channel::{Receiver, Sender, bounded};
use payload_catalog::{Change, SqliteStore, Store, Synchronous, Writer};
use payload_types::effect::CatalogChange;
use payload_types::record::{
    LineageEdge, RecordAnswer, RecordChange, RecordOutcome, RecordQuery, StreamItem, StreamLimits, StreamName,
};
use payload_types::{PayloadKey, PayloadRow, WallMs, limits};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::catalog::Rows;
use super::catalog_postgres::postgres_store;
use crate::context::{Context, ROUNDS, ROUNDS_SHORT, Skip};
use crate::histogram::{Latencies, Unit};
use crate::postgres_server::Postgres;
use crate::report::{Figure, Findings};
use crate::series::Series;

/// Payloads that entries name.
const PAYLOADS: usize = 100_000;
/// Entries of one append (DESIGN §10).
const ENTRIES: usize = 100;
/// Appends that wait for their acknowledgement.
const OUTSTANDING: usize = 64;
/// Edges of the chain.
const CHAIN: usize = 10_000;
/// Any moment after the rows were made.
const NOW: WallMs = WallMs::from_millis(1_800_000_000_000);

fn opened(path: &Path) -> anyhow::Result<SqliteStore> {
    Ok(SqliteStore::open(path, Synchronous::Full)?)
}

/// Starts a store, and puts so many payloads into it.
fn filled(store: &mut dyn Store, payloads: usize) -> anyhow::Result<Vec<PayloadKey>> {
    let mut rows = Rows::new(store.begin_epoch("bench")?);
    let rows: Vec<PayloadRow> = (0..payloads).map(|_| rows.next()).collect();
    for some in rows.chunks(10_000) {
        let batch: Vec<Change> =
            some.iter().map(|row| CatalogChange::Put(Box::new(row.clone())).into()).collect();
        store.apply(&batch)?;
    }
    store.checkpoint()?;
    Ok(rows.into_iter().map(|row| row.key).collect())
}

fn made(store: &mut dyn Store, batch: &[Change]) -> anyhow::Result<()> {
    let outcomes = store.apply(batch)?;
    anyhow::ensure!(outcomes.iter().all(|outcome| *outcome == RecordOutcome::Done), "{outcomes:?}");
    Ok(())
}

/// Appends that end: when each was submitted, or why it failed.
type Ended = Result<Instant, String>;

struct Appender {
    writer: Writer,
    keys: Vec<PayloadKey>,
    random: SmallRng,
    stream: StreamName,
    ended: (Sender<Ended>, Receiver<Ended>),
}

impl Appender {
    fn start(path: &Path) -> anyhow::Result<Self> {
        let mut store = opened(path)?;
        let keys = filled(&mut store, PAYLOADS)?;
        let stream = StreamName { namespace: "bench".to_owned(), name: "append".to_owned() };
        let create =
            RecordChange::StreamCreate { stream: stream.clone(), limits: StreamLimits::default(), at: NOW };
        made(&mut store, &[create.into()])?;
        let writer =
            Writer::start(Box::new(store), limits::CATALOG_LANE_PER_SHARD, Arc::new(|_, _completion| {}));
        let random = SmallRng::seed_from_u64(7);
        Ok(Self { writer, keys, random, stream, ended: bounded(OUTSTANDING) })
    }

    fn submit(&mut self) -> anyhow::Result<()> {
        let mut item = || StreamItem {
            payload: self.keys[self.random.next_u64() as usize % self.keys.len()].id,
            event_time: None,
            duration_ns: 0,
            tags: Vec::new(),
        };
        let items = (0..ENTRIES).map(|_| item()).collect();
        let change = RecordChange::StreamAppend { stream: self.stream.clone(), items, held: false, at: NOW };
        let (ended, submitted_at) = (self.ended.0.clone(), Instant::now());
        let reply = move |result: Result<RecordOutcome, _>| {
            let result = match result {
                Ok(RecordOutcome::Appended { .. }) => Ok(submitted_at),
                other => Err(format!("an append met {other:?}")),
            };
            // One place for each outstanding append; a bench that gave up listens no more.
            drop(ended.send(result));
        };
        let taken = self.writer.handle().submit_record(change, Box::new(reply));
        taken.map_err(|refused| anyhow::anyhow!("{}", refused.error))
    }

    /// Appends for so long; returns entries in a second.
    fn append_for(&mut self, duration: Duration, latencies: &mut Latencies) -> anyhow::Result<f64> {
        let started = Instant::now();
        for _ in 0..OUTSTANDING {
            self.submit()?;
        }
        let (mut appends, mut outstanding) = (0_u64, OUTSTANDING);
        while outstanding > 0 {
            let ended = self.ended.1.recv_timeout(Duration::from_secs(60));
            let submitted_at =
                ended.context("the catalog writer went silent")?.map_err(anyhow::Error::msg)?;
            latencies.record(submitted_at.elapsed());
            appends += 1;
            if started.elapsed() < duration {
                self.submit()?;
            } else {
                outstanding -= 1;
            }
        }
        Ok((appends * ENTRIES as u64) as f64 / started.elapsed().as_secs_f64())
    }
}

/// `stream/append`.
pub fn append(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    context.require_own()?;
    let mut appender = Appender::start(&context.directory().join("append.db"))?;
    appender.append_for(context.slice(ROUNDS), &mut Latencies::default())?;
    let (mut series, mut latencies) = (Series::default(), Latencies::default());
    for _ in 0..ROUNDS {
        series.push(appender.append_for(context.slice(ROUNDS), &mut latencies)?);
    }
    appender.writer.shutdown().close()?;
    let note = format!("{OUTSTANDING} appends of {ENTRIES} outstanding; percentiles of an append");
    findings.put("stream/append", Figure::of(&series)?.with(&latencies, Unit::Microseconds).noted(note));
    Ok(())
}

/// `lineage/walk-1e4`.
pub fn lineage(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    context.require_own()?;
    let mut store = opened(&context.directory().join("lineage.db"))?;
    let keys = filled(&mut store, PAYLOADS)?;
    findings.put("lineage/walk-1e4", Figure::of(&walks(Box::new(store), &keys, ROUNDS_SHORT)?)?);
    Ok(())
}

/// `lineage/10k-postgres`.
pub fn lineage_postgres(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    context.require_own()?;
    let server = Postgres::start().map_err(Skip)?;
    let mut store = postgres_store(&server)?;
    // Each edge that is added asks for its two payloads, so only those of the chain are there.
    let keys = filled(&mut store, CHAIN + 1)?;
    findings.put("lineage/10k-postgres", Figure::of(&walks(Box::new(store), &keys, ROUNDS_SHORT)?)?);
    Ok(())
}

/// Makes the chain, and walks it up and down in turns: the milliseconds of each walk.
fn walks(mut store: Box<dyn Store>, keys: &[PayloadKey], rounds: usize) -> anyhow::Result<Series> {
    let mut batch = Vec::new();
    for pair in keys[..=CHAIN].windows(2) {
        let edge = LineageEdge {
            child: pair[1].id,
            parent: pair[0].id,
            operation: "transform".to_owned(),
            role: "input".to_owned(),
            parameters: Vec::new(),
        };
        batch.push(RecordChange::LineageAdd { child: pair[1], edges: vec![edge], at: NOW }.into());
    }
    made(store.as_mut(), &batch)?;
    let mut reader = store.reader()?;
    let mut series = Series::default();
    for round in 0..rounds {
        let upstream = round % 2 == 0;
        let key = keys[if upstream { CHAIN } else { 0 }];
        let query = RecordQuery::Lineage { key, upstream, depth_max: 0, at: NOW };
        let started = Instant::now();
        let answer = reader.read(&query)?;
        let taken = started.elapsed();
        let RecordAnswer::Lineage(edges) = answer else { anyhow::bail!("a walk met {answer:?}") };
        anyhow::ensure!(edges.len() == CHAIN, "the walk met {} edges", edges.len());
        series.push(taken.as_secs_f64() * 1e3);
    }
    drop(reader);
    store.close()?;
    Ok(series)
}
