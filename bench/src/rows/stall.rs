//! `stall/turn`: the longest turn of a shard while 1 GiB is spilled and promoted beside 10,000 leases a second.
//!
//! ```text
//! pacer   10,000 x (acquire ... release) a second --+
//!                                                   +--> a whole node in this process --> its stall detector
//! mover   16 x 64 MiB: put, spill, promote, delete -+
//! ```
//! The node is the server's own, without gRPC: only from inside can its stall detector be read. What counts is time
//! on the CPU; wall time, in which the kernel ran somebody else, is reported beside it. Turns before the load are
//! not counted; the puts of the 16 payloads are.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use crossbeam::queue::ArrayQueue;
use payload_front::bootstrap::{self, Node};
use payload_front::config::Config;
use payload_front::mint::Mint;
use payload_reactor::{Envelope, Handled, ReactorHandle, TurnStats, clock};
use payload_types::reply::{Reply, ReplyResult};
use payload_types::request::{Acquire, Allocate, Request, Spill};
use payload_types::tier::SpillTarget;
use payload_types::{
    ByteCount, ErrorKind, EvictionPolicy, LeaseId, Memory, Monotonic, NamespaceId, PayloadError, PayloadKey,
    Peer, PromotionPolicy, ShardIndex, SpillPolicy, Tier, limits,
};

use crate::context::{Context, Skip};
use crate::noise::Noise;
use crate::report::{Figure, Findings};
use crate::scratch::Scratch;

/// Leased in turn.
const SMALL_PAYLOADS: usize = 1000;

/// 16 x 64 MiB = 1 GiB.
const LARGE_PAYLOADS: usize = 16;
const LARGE_BYTES: usize = 64 << 20;

/// Moves in flight.
const IN_FLIGHT: usize = 4;

const LEASES_PER_S: u64 = 10_000;

/// The pacer's clock: ten leases each.
const TICK: Duration = Duration::from_millis(1);

/// A lease is given back this many leases later: 0.1 s.
const LEASES_HELD: usize = LEASES_PER_S as usize / 10;

/// What the stall detector records; shorter turns have no figure of their own.
const RECORDED_FROM_NS: u64 = 100_000;

/// How long one request may take: a 64 MiB move on a slow disk.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);

/// See the module.
pub fn run(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    context.require_own()?;
    let gibibyte = (LARGE_PAYLOADS * LARGE_BYTES) as u64;
    // Two cycles' worth: what was deleted is charged until it is proven free.
    let scratch =
        Scratch::new(context.directory(), ByteCount(2 * gibibyte + (64 << 20)), ByteCount(3 * gibibyte))?;
    let loaded = Config::load(Some(&scratch.config()), &scratch.data_dir(), std::iter::empty())?;
    bootstrap::preflight(&loaded.config)?;
    loaded.config.prepare()?;
    let node = Node::start(&loaded.config, &bootstrap::plan(&loaded.config)?, 0)?;
    let plant = Plant {
        shards: node.handle(),
        mint: Mint::new(loaded.config.shards.count),
        shard_count: loaded.config.shards.count,
    };
    let outcome = measure(&plant, &node, if context.quick { 2 } else { 5 });
    node.stop();
    drop(scratch);
    findings.put("stall/turn", outcome?);
    Ok(())
}

fn measure(plant: &Plant, node: &Node, cycles: usize) -> anyhow::Result<Figure> {
    let mut small = Vec::new();
    for _ in 0..SMALL_PAYLOADS {
        let (key, shard) = plant.allocate(limits::PAGE_BYTES)?;
        plant.ask(shard, Request::Commit { key, checksum: None, batch: None })?;
        small.push(key);
    }
    let before = plant.shards.stalls();
    let started = clock::monotonic();
    let pacer = Pacer::start(plant.shards.clone(), plant.shard_count, small)?;
    let moved = (0..cycles).try_for_each(|cycle| move_gibibyte(plant, node, cycle));
    let leases = pacer.stop()?;
    let seconds = (clock::monotonic().0 - started.0) as f64 / 1e9;
    moved?;
    let found = Found::since(started, &before, &plant.shards.stalls());
    let rate = leases.granted as f64 / seconds;
    if let Some(refusal) = leases.refusal {
        anyhow::bail!("leases were refused: {refusal}");
    }
    Ok(Figure {
        value: found.on_cpu_ns as f64 / 1e3,
        wall: Some(found.wall_ns as f64 / 1e3),
        rounds: cycles,
        note: Some(format!(
            "{} turns, on the CPU over 100 µs: {}, over 1 ms: {}, by the clock over 1 ms: {}; the longest handled {}; {rate:.0} leases/s while {cycles} GiB went down and up",
            found.turns, found.over_100us, found.over_1ms, found.wall_over_1ms, found.handled
        )),
        ..Figure::default()
    })
}

/// Puts, spills, promotes and deletes the large payloads.
fn move_gibibyte(plant: &Plant, node: &Node, cycle: usize) -> anyhow::Result<()> {
    let mut large = Vec::new();
    let mut bytes = vec![0; LARGE_BYTES];
    Noise::new(cycle as u64).fill(&mut bytes);
    for _ in 0..LARGE_PAYLOADS {
        let (key, shard) = plant.allocate(LARGE_BYTES as u64)?;
        let segment = format!("/dev/shm{}", node.locator().shm_name(key.id));
        let mut file =
            OpenOptions::new().write(true).open(segment).context("the segment cannot be opened")?;
        file.write_all(&bytes).context("the segment cannot be written")?;
        drop(file);
        plant.ask(shard, Request::Commit { key, checksum: None, batch: None })?;
        large.push(key);
    }
    plant.ask_each(&large, |key| {
        Request::Spill(Spill {
            key,
            target: Some(SpillTarget::Tier(Tier::Disk)),
            policy: SpillPolicy::Blocking,
            wait_for_leases: false,
            fsync: true,
            expected_version: None,
        })
    })?;
    plant.ask_each(&large, |key| Request::Promote {
        key,
        target: Tier::Ram,
        policy: PromotionPolicy::Blocking,
        expected_version: None,
    })?;
    plant.ask_each(&large, |key| Request::Delete { key, force: false, expected_version: None })
}

/// The node's shards, as the front talks to them.
struct Plant {
    shards: ReactorHandle,
    mint: Mint,
    shard_count: u16,
}

impl Plant {
    fn allocate(&self, bytes: u64) -> anyhow::Result<(PayloadKey, ShardIndex)> {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let (id, shard) = self.mint.payload_id();
            let key = PayloadKey { namespace: NamespaceId::DEFAULT, id };
            let request = Request::Allocate(Allocate {
                key,
                size: ByteCount(bytes),
                tier: Tier::Ram,
                ttl_ms: None,
                no_evict: false,
                policy: EvictionPolicy::default(),
                memory: Memory::Segment,
                owner: Peer::UNKNOWN,
            });
            match answer(&self.send(shard, request)?)? {
                Ok(_) => return Ok((key, shard)),
                Err(error) if is_full(&error) && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) if is_full(&error) => {
                    return Err(
                        Skip(format!("this machine's RAM tier is too small for the row: {error}")).into()
                    );
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn ask(&self, shard: ShardIndex, request: Request) -> anyhow::Result<Reply> {
        Ok(answer(&self.send(shard, request)?)??)
    }

    /// Asks about every key, [`IN_FLIGHT`] at a time.
    fn ask_each(&self, keys: &[PayloadKey], request: impl Fn(PayloadKey) -> Request) -> anyhow::Result<()> {
        let mut waiting = VecDeque::new();
        for key in keys {
            if waiting.len() == IN_FLIGHT
                && let Some(oldest) = waiting.pop_front()
            {
                answer(&oldest)??;
            }
            waiting.push_back(self.send(key.id.shard(self.shard_count), request(*key))?);
        }
        waiting.iter().try_for_each(|one| answer(one)?.map(drop).map_err(anyhow::Error::new))
    }

    fn send(&self, shard: ShardIndex, request: Request) -> anyhow::Result<Receiver<ReplyResult>> {
        let (sender, receiver) = sync_channel(1);
        // Room for the one answer; nobody listens when the bench has given up.
        let reply = Box::new(move |result| drop(sender.try_send(result)));
        let sent = self.shards.submit(shard, Envelope { request, deadline: None, reply });
        sent.map_err(|_full| anyhow::anyhow!("a shard's request lane is full"))?;
        Ok(receiver)
    }
}

fn answer(waiting: &Receiver<ReplyResult>) -> anyhow::Result<ReplyResult> {
    waiting.recv_timeout(ANSWER_WITHIN).context("a shard did not answer")
}

fn is_full(error: &PayloadError) -> bool {
    error.kind == ErrorKind::ResourceExhausted
}

/// What became of the leases.
struct Leases {
    granted: u64,
    refusal: Option<PayloadError>,
}

#[derive(Default)]
struct Tally {
    stop: AtomicBool,
    granted: AtomicU64,
    /// The first one.
    refusal: OnceLock<PayloadError>,
}

/// Leases at a steady rate, whatever the node is doing.
struct Pacer {
    tally: Arc<Tally>,
    thread: std::thread::JoinHandle<()>,
}

impl Pacer {
    fn start(shards: ReactorHandle, shard_count: u16, keys: Vec<PayloadKey>) -> anyhow::Result<Self> {
        let tally = Arc::new(Tally::default());
        let shared = Arc::clone(&tally);
        let body = move || pace(&shards, shard_count, &keys, &shared);
        let thread = std::thread::Builder::new().name("bench-pacer".to_owned()).spawn(body)?;
        Ok(Self { tally, thread })
    }

    fn stop(self) -> anyhow::Result<Leases> {
        self.tally.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_panic| anyhow::anyhow!("the pacer panicked"))?;
        let granted = self.tally.granted.load(Ordering::Relaxed);
        Ok(Leases { granted, refusal: self.tally.refusal.get().cloned() })
    }
}

fn pace(shards: &ReactorHandle, shard_count: u16, keys: &[PayloadKey], tally: &Arc<Tally>) {
    // Twice what is held: those that were granted and not yet looked at.
    let granted: Arc<ArrayQueue<LeaseId>> = Arc::new(ArrayQueue::new(2 * LEASES_HELD));
    let mint = Mint::new(shard_count);
    let started = Instant::now();
    let mut sent = 0u64;
    while !tally.stop.load(Ordering::Relaxed) {
        let due = started.elapsed().as_nanos() as u64 * LEASES_PER_S / 1_000_000_000;
        while sent < due {
            let key = keys[sent as usize % keys.len()];
            let acquire = Acquire {
                key,
                min_tier: None,
                policy: PromotionPolicy::Blocking,
                duration_ms: 0,
                expected_version: None,
                accepts_packed: true,
                accepts_slabs: false,
                nonce: mint.lease_nonce(),
                owner: Peer::UNKNOWN,
            };
            let (tally_of_reply, granted) = (Arc::clone(tally), Arc::clone(&granted));
            let reply = Box::new(move |result| match result {
                // A lease for which the queue has no room ends by itself.
                Ok(Reply::Leased(grant)) => {
                    tally_of_reply.granted.fetch_add(1, Ordering::Relaxed);
                    let _ends_by_itself = granted.push(grant.lease);
                }
                Ok(other) => drop(tally_of_reply.refusal.set(PayloadError::new(
                    ErrorKind::Internal,
                    format!("AcquireReadLease was answered with {other:?}"),
                ))),
                Err(error) => drop(tally_of_reply.refusal.set(error)),
            });
            let envelope = Envelope { request: Request::Acquire(acquire), deadline: None, reply };
            // A full lane (this thread was away for 0.1 s) is no refusal: it is tried again at the next tick.
            if shards.submit(key.id.shard(shard_count), envelope).is_err() {
                break;
            }
            sent += 1;
        }
        while granted.len() > LEASES_HELD
            && let Some(lease) = granted.pop()
        {
            let envelope = Envelope {
                request: Request::Release { lease, by: None },
                deadline: None,
                reply: Box::new(drop),
            };
            // A lease for whose release the lane has no room ends by itself.
            drop(shards.submit(lease.shard(), envelope));
        }
        std::thread::sleep(TICK);
    }
}

/// What the stall detector saw of the load.
#[derive(PartialEq, Eq, Debug, Default)]
struct Found {
    turns: u64,
    on_cpu_ns: u64,
    wall_ns: u64,
    over_100us: u64,
    over_1ms: u64,
    wall_over_1ms: u64,
    /// What the longest turn did.
    handled: String,
}

impl Found {
    /// Since `started`, over all shards. The detector keeps the ten longest turns of each shard since its start: if
    /// those of the load are not among them, the shortest of the ten is an upper bound.
    fn since(started: Monotonic, before: &[TurnStats], after: &[TurnStats]) -> Self {
        let mut found = Self { handled: "less than is recorded".to_owned(), ..Self::default() };
        for (before, after) in before.iter().zip(after) {
            found.turns += after.turns - before.turns;
            found.over_100us += after.over_100us - before.over_100us;
            found.over_1ms += after.over_1ms - before.over_1ms;
            found.wall_over_1ms += after.wall_over_1ms - before.wall_over_1ms;
            let ours = || after.longest.iter().filter(|turn| turn.started >= started);
            let longest = ours().max_by_key(|turn| turn.on_cpu_ns);
            let mut on_cpu_ns = longest.map_or(0, |turn| turn.on_cpu_ns);
            if on_cpu_ns > found.on_cpu_ns
                && let Some(turn) = longest
            {
                let Handled { completions, budget_requests, requests, timers } = turn.handled;
                found.handled = format!(
                    "{requests} requests, {completions} completions, {budget_requests} budget requests, {timers} timers"
                );
            }
            if on_cpu_ns == 0 && after.over_100us > before.over_100us {
                on_cpu_ns = after.longest.iter().map(|turn| turn.on_cpu_ns).min().unwrap_or(0);
            }
            found.on_cpu_ns = found.on_cpu_ns.max(on_cpu_ns.max(RECORDED_FROM_NS));
            found.wall_ns =
                found.wall_ns.max(ours().map(|turn| turn.wall_ns).max().unwrap_or(RECORDED_FROM_NS));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use payload_reactor::Turn;

    use super::*;

    fn stats(over_100us: u64, longest: &[(u64, u64)]) -> TurnStats {
        let turn = |&(started, on_cpu_ns)| Turn {
            on_cpu_ns,
            wall_ns: 2 * on_cpu_ns,
            started: Monotonic(started),
            handled: Handled::default(),
        };
        TurnStats {
            shard: ShardIndex(0),
            turns: 1000 + over_100us,
            over_100us,
            over_1ms: 0,
            wall_over_100us: over_100us,
            wall_over_1ms: 0,
            by_length: Default::default(),
            wall_ns: 0,
            longest: longest.iter().map(turn).collect(),
        }
    }

    #[test]
    fn given_turns_before_and_during_the_load_when_looked_at_then_only_the_loads_count() {
        let before = [stats(1, &[(5, 900_000)])];
        let quiet = Found::since(Monotonic(10), &before, &[stats(1, &[(5, 900_000)])]);
        assert_eq!(
            (quiet.on_cpu_ns, quiet.over_100us),
            (RECORDED_FROM_NS, 0),
            "nothing reached the detector"
        );
        let busy = Found::since(Monotonic(10), &before, &[stats(2, &[(5, 900_000), (12, 300_000)])]);
        assert_eq!((busy.on_cpu_ns, busy.wall_ns, busy.over_100us, busy.turns), (300_000, 600_000, 1, 1));
    }
}
