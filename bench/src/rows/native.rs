//! `native/lease`, `native/lease-asleep`, `native/lease-pipelined`, `native/commit` and the floors `ipc/cacheline`, `ipc/eventfd`.
//!
//! A pair is what a client does: Acquire, its answer, Release, whose answer nobody waits for. One thread, one session, a
//! server process of its own. "Awake" is a server whose shards spin (`shards.spin: on`); for "asleep" they never do, and each
//! pair begins when the shard has gone to sleep. The client's thread and the server's one shard are pinned to the two cores to
//! which the floors pin theirs: a scheduler that puts both on one core measures itself.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use payload_client::Session;
use payload_client::blocking::Client;
use payload_client::native::Ticket;
use payload_local::{Outcome, Submission};
use payload_types::{ByteCount, PayloadId, PromotionPolicy};

use crate::context::{Context, ROUNDS_SHORT, Skip};
use crate::floors::ipc;
use crate::histogram::{Latencies, Unit};
use crate::report::{Figure, Findings};
use crate::scratch::Scratch;
use crate::series::Series;
use crate::server::Server;

/// Payloads that are leased in turn.
const PAYLOADS: usize = 1000;

/// Bytes of each: the call's cost does not depend on it.
const PAYLOAD_BYTES: u64 = 4096;

/// Room for all of them, several times.
const CAPACITY: ByteCount = ByteCount(64 << 20);

/// Pairs under way at a time: as many as half a ring holds submissions of.
const PIPELINE: usize = 64;

/// A server, a session with it, and payloads to lease.
struct Side {
    client: Client,
    ids: Vec<PayloadId>,
    next: usize,
    _server: Server,
}

impl Side {
    fn start(context: &Context, spin: &str) -> anyhow::Result<Self> {
        let scratch = Scratch::new(context.directory(), CAPACITY, CAPACITY)?;
        let mut config = OpenOptions::new().append(true).open(scratch.config())?;
        write!(config, "shards:\n  count: 1\n  spin: \"{spin}\"\n")?;
        if let Some(core) = ipc::core(1) {
            writeln!(config, "  cores: [{core}]")?;
        }
        let server = Server::start_in(scratch)?;
        let client = Client::connect(server.address())?;
        client.session().context("the server gives no native session")?;
        let put = || -> anyhow::Result<PayloadId> {
            let payload = client.allocate(ByteCount(PAYLOAD_BYTES)).open()?;
            Ok(payload.commit(None)?.id)
        };
        let ids = (0..PAYLOADS).map(|_| put()).collect::<Result<_, _>>()?;
        Ok(Self { client, ids, next: 0, _server: server })
    }

    fn session(&self) -> &Session {
        self.client.session().expect("looked at when it was started")
    }

    fn next(&mut self) -> PayloadId {
        self.next = (self.next + 1) % self.ids.len();
        self.ids[self.next]
    }

    fn pair(&mut self) -> anyhow::Result<()> {
        let id = self.next();
        let session = self.session();
        let outcome = session.call(&acquire(id))?;
        Ok(session.post(&release(&outcome)?)?)
    }

    /// One pair after another.
    fn awake(&mut self, duration: Duration) -> anyhow::Result<Latencies> {
        let mut latencies = Latencies::default();
        let start = Instant::now();
        let mut last = start;
        while last - start < duration {
            self.pair()?;
            let now = Instant::now();
            latencies.record(now - last);
            last = now;
        }
        Ok(latencies)
    }

    /// Each pair finds its shard asleep.
    fn asleep(&mut self, duration: Duration) -> anyhow::Result<Latencies> {
        let mut latencies = Latencies::default();
        let start = Instant::now();
        while start.elapsed() < duration {
            let count = self.session().welcome().shard_count;
            let shard = self.ids[(self.next + 1) % self.ids.len()].shard(count).0;
            while !self.session().is_asleep(shard) {
                // It was about to; what it says before it parks is the truth after this.
                std::thread::sleep(Duration::from_micros(20));
            }
            std::thread::sleep(Duration::from_micros(20));
            let before = Instant::now();
            self.pair()?;
            latencies.record(before.elapsed());
        }
        Ok(latencies)
    }

    /// Pairs a second with many under way: whenever the oldest is answered, another one follows.
    fn pipelined(&mut self, duration: Duration) -> anyhow::Result<f64> {
        let session = self.client.session().expect("looked at when it was started");
        let mut ids = self.ids.iter().cycle();
        let mut submit = || {
            let id = ids.next().expect("there are payloads, and they go on for ever");
            session.submit(&acquire(*id))
        };
        let mut under_way = VecDeque::with_capacity(PIPELINE);
        for _ in 0..PIPELINE {
            under_way.push_back(submit()?);
        }
        let start = Instant::now();
        let mut pairs = 0u64;
        while start.elapsed() < duration {
            for _ in 0..PIPELINE {
                let oldest: Ticket<'_> = under_way.pop_front().context("as many as were submitted")?;
                session.post(&release(&oldest.wait()?)?)?;
                under_way.push_back(submit()?);
            }
            pairs += PIPELINE as u64;
        }
        let elapsed = start.elapsed();
        for ticket in under_way {
            session.post(&release(&ticket.wait()?)?)?;
        }
        Ok(pairs as f64 / elapsed.as_secs_f64())
    }
}

/// Payloads that are committed before those of a round are waited for and deleted.
const COMMITS: usize = 64;

impl Side {
    /// Allocate and commit until ACCEPTED, a payload after the other, nothing written. What makes room again is not timed.
    fn commits(&mut self, duration: Duration) -> anyhow::Result<Latencies> {
        let mut latencies = Latencies::default();
        let start = Instant::now();
        while start.elapsed() < duration {
            let mut accepted = Vec::with_capacity(COMMITS);
            for _ in 0..COMMITS {
                let before = Instant::now();
                let payload = self.client.allocate(ByteCount(PAYLOAD_BYTES)).open()?;
                accepted.push(payload.commit_accepted(None)?);
                latencies.record(before.elapsed());
            }
            for payload in accepted {
                let id = payload.durable()?.id;
                self.client.delete(id, false, None)?;
            }
        }
        Ok(latencies)
    }
}

fn acquire(id: PayloadId) -> Submission {
    Submission::Acquire {
        id,
        min_tier: None,
        policy: PromotionPolicy::Blocking,
        accepts_packed: true,
        expected_version: None,
        deadline_ms: 0,
    }
}

fn release(outcome: &Outcome) -> anyhow::Result<Submission> {
    match outcome {
        Outcome::Leased(lease, _) => Ok(Submission::Release { lease: *lease }),
        other => anyhow::bail!("Acquire was answered with {other:?}"),
    }
}

fn has_two_cores(context: &Context) -> anyhow::Result<()> {
    if context.cores < 2 {
        return Err(Skip("two that are awake need two cores".to_owned()).into());
    }
    Ok(())
}

/// Rounds of a latency in turns with those of its floor.
fn against_floor(
    context: &Context,
    findings: &mut Findings,
    rows: [&'static str; 2],
    floor: fn(Duration) -> anyhow::Result<Latencies>,
    mut measure: impl FnMut(Duration) -> anyhow::Result<Latencies>,
    unit: Unit,
) -> anyhow::Result<()> {
    let mut sides = [(Series::default(), Latencies::default()), (Series::default(), Latencies::default())];
    // The first turn warms up what it calls.
    for turn in 0..=ROUNDS_SHORT {
        let slice = context.slice(ROUNDS_SHORT);
        let of_floor = floor(slice)?;
        let pinned = ipc::pin(0);
        let of_row = measure(slice);
        drop(pinned);
        for (side, found) in sides.iter_mut().zip([of_floor, of_row?]) {
            if turn > 0 {
                side.0.push(found.p50(unit));
                side.1.merge(&found);
            }
        }
    }
    for (row, (series, latencies)) in rows.into_iter().zip(&sides) {
        findings.put(row, Figure::of(series)?.with(latencies, unit));
    }
    Ok(())
}

/// Server and client both awake: one at a time, and many.
pub fn awake(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    context.require_own()?;
    has_two_cores(context)?;
    let mut side = Side::start(context, "on")?;
    let rows = ["ipc/cacheline", "native/lease"];
    against_floor(context, findings, rows, ipc::cacheline, |slice| side.awake(slice), Unit::Nanoseconds)?;
    let mut series = Series::default();
    let _pinned = ipc::pin(0);
    for turn in 0..=ROUNDS_SHORT {
        let rate = side.pipelined(context.slice(ROUNDS_SHORT))?;
        if turn > 0 {
            series.push(rate);
        }
    }
    let note = format!("{PIPELINE} pairs under way, one thread, one session");
    findings.put("native/lease-pipelined", Figure::of(&series)?.noted(note));
    let (mut series, mut latencies) = (Series::default(), Latencies::default());
    for turn in 0..=ROUNDS_SHORT {
        let found = side.commits(context.slice(ROUNDS_SHORT))?;
        if turn > 0 {
            series.push(found.p50(Unit::Nanoseconds));
            latencies.merge(&found);
        }
    }
    findings.put("native/commit", Figure::of(&series)?.with(&latencies, Unit::Nanoseconds));
    Ok(())
}

/// The server asleep.
pub fn asleep(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    context.require_own()?;
    let mut side = Side::start(context, "off")?;
    let rows = ["ipc/eventfd", "native/lease-asleep"];
    against_floor(context, findings, rows, ipc::eventfd, |slice| side.asleep(slice), Unit::Microseconds)
}

/// Sessions that are open and silent, for `idle/cpu`.
///
/// # Errors
/// When the server gives none.
pub(super) fn idle_sessions(socket: &Path, count: usize) -> anyhow::Result<Vec<Session>> {
    (0..count).map(|_| Ok(Session::connect(socket)?)).collect()
}
