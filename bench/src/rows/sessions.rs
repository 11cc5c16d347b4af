//! `native/first-byte` beside `native/first-byte-4k`, and `native/fairness-64`.
//!
//! The first byte of a leased payload: what a reader waits for who wants to begin. Another session wrote it, so the reader
//! maps the memory of each payload once, at its first lease; that first time is in the note, the figure is of all others.
//! Fairness: so many sessions, a thread each, lease and release as fast as they can; who got most over who got least.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use payload_client::AcquireOptions;
use payload_client::blocking::Client;
use payload_types::{ByteCount, PayloadId};

use crate::context::{Context, ROUNDS_SHORT};
use crate::histogram::{Latencies, Unit};
use crate::report::{Figure, Findings};
use crate::scratch::Scratch;
use crate::series::Series;
use crate::server::Server;

/// Of each size: more than a processor's caches of addresses hold of the large ones.
const PAYLOADS: usize = 4;
const LARGE_BYTES: u64 = 64 << 20;
const SMALL_BYTES: u64 = 4096;

/// Room for all of them, and for the slab that is made ahead.
const CAPACITY: ByteCount = ByteCount(512 << 20);

const SESSIONS: usize = 64;

/// Leases of one size in a row, so that both see the same machine.
const RUN: usize = 64;

fn server(context: &Context) -> anyhow::Result<Server> {
    let scratch = Scratch::new(context.directory(), CAPACITY, CAPACITY)?;
    let mut config = OpenOptions::new().append(true).open(scratch.config())?;
    write!(config, "shards:\n  count: 1\n")?;
    Server::start_in(scratch)
}

fn connect(server: &Server) -> anyhow::Result<Client> {
    let client = Client::connect(server.address())?;
    client.session().context("the server gives no native session")?;
    Ok(client)
}

fn put(client: &Client, bytes: u64) -> anyhow::Result<PayloadId> {
    let mut payload = client.allocate(ByteCount(bytes)).open()?;
    payload.fill(7);
    Ok(payload.commit(None)?.id)
}

fn first_byte(client: &Client, id: PayloadId) -> anyhow::Result<Duration> {
    let before = Instant::now();
    let lease = client.acquire(id, &AcquireOptions::default())?;
    anyhow::ensure!(lease[0] == 7, "a wrong byte");
    Ok(before.elapsed())
}

/// The first byte of large payloads and of small ones, in turns.
pub fn first_bytes(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    context.require_own()?;
    let server = server(context)?;
    let (writer, reader) = (connect(&server)?, connect(&server)?);
    let ids_of = |bytes| (0..PAYLOADS).map(|_| put(&writer, bytes)).collect::<anyhow::Result<Vec<_>>>();
    let ids = [ids_of(LARGE_BYTES)?, ids_of(SMALL_BYTES)?];
    let first = [first_byte(&reader, ids[0][0])?, first_byte(&reader, ids[1][0])?];
    let mut sides = [(Series::default(), Latencies::default()), (Series::default(), Latencies::default())];
    for turn in 0..=ROUNDS_SHORT {
        let mut found = [Latencies::default(), Latencies::default()];
        let end = Instant::now() + context.slice(ROUNDS_SHORT);
        while Instant::now() < end {
            for (ids, latencies) in ids.iter().zip(&mut found) {
                for number in 0..RUN {
                    latencies.record(first_byte(&reader, ids[number % PAYLOADS])?);
                }
            }
        }
        for (side, latencies) in sides.iter_mut().zip(found) {
            if turn > 0 {
                side.0.push(latencies.p50(Unit::Microseconds));
                side.1.merge(&latencies);
            }
        }
    }
    let rows = ["native/first-byte", "native/first-byte-4k"];
    for ((row, (series, latencies)), first) in rows.into_iter().zip(&sides).zip(first) {
        let note = format!("a session's first lease of it: {} us", first.as_micros());
        findings.put(row, Figure::of(series)?.with(latencies, Unit::Microseconds).noted(note));
    }
    Ok(())
}

/// Pairs of each of the sessions, all at once.
pub fn fairness(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    context.require_own()?;
    let server = server(context)?;
    let writer = connect(&server)?;
    let id = put(&writer, SMALL_BYTES)?;
    let clients = (0..SESSIONS).map(|_| connect(&server)).collect::<anyhow::Result<Vec<_>>>()?;
    let (mut series, mut note) = (Series::default(), String::new());
    for turn in 0..=ROUNDS_SHORT {
        let stop = AtomicBool::new(false);
        let counts = std::thread::scope(|scope| {
            let threads: Vec<_> = clients
                .iter()
                .map(|client| {
                    scope.spawn(|| -> anyhow::Result<u64> {
                        let mut pairs = 0;
                        while !stop.load(Ordering::Relaxed) {
                            drop(client.acquire(id, &AcquireOptions::default())?);
                            pairs += 1;
                        }
                        Ok(pairs)
                    })
                })
                .collect();
            std::thread::sleep(context.slice(ROUNDS_SHORT).max(Duration::from_millis(250)));
            stop.store(true, Ordering::Relaxed);
            let joined = threads.into_iter().map(|thread| thread.join().expect("no thread panics"));
            joined.collect::<anyhow::Result<Vec<u64>>>()
        })?;
        let most = *counts.iter().max().context("there are sessions")?;
        let least = *counts.iter().min().context("there are sessions")?;
        if turn > 0 {
            series.push(most as f64 / least.max(1) as f64);
            note = format!("{most} and {least} pairs in the last round");
        }
    }
    findings.put("native/fairness-64", Figure::of(&series)?.noted(note));
    Ok(())
}
