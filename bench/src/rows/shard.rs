//! `shard/lease`: acquire + release inside one shard, without threads, queues or a reactor.
//!
//! The shipped `Shard` and `Arbiter`; drivers and catalog answer at once and well. Time is the real clock, read once
//! a batch, as a shard's pump reads it once a turn. Replies are taken from the outbox and used.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use payload_reactor::clock;
use payload_shards::{Arbiter, Outbox, Shard, ShardConfig};
use payload_types::effect::{Effect, ReplyTo, StorageAction};
use payload_types::event::{CatalogAck, Completion, Event, StorageDone};
use payload_types::reply::{Reply, ReplyResult};
use payload_types::request::{Acquire, Allocate, Request};
use payload_types::{
    ByteCount, Epoch, EvictionPolicy, LeaseId, LeaseNonce, Memory, NamespaceId, Now, PayloadId, PayloadKey,
    Peer, PerTier, PromotionPolicy, ShardIndex, Tier, limits,
};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use crate::context::{Context, ROUNDS_SHORT};
use crate::histogram::{Latencies, Unit};
use crate::report::{Figure, Findings};
use crate::series::Series;

/// Payloads of the shard (DESIGN §10).
const PAYLOADS: u64 = 10_000;

/// Pairs between two looks at the clock: as many requests as a pump handles in a turn.
const BATCH_PAIRS: usize = limits::REQUESTS_PER_TURN_MAX / 2;

/// Capacity of the shard's tier: enough for a page each.
const CAPACITY: ByteCount = ByteCount(2 * PAYLOADS * limits::PAGE_BYTES);

struct World {
    shard: Shard,
    outbox: Outbox,
    arbiter: Arbiter,
    now: Now,
    keys: Vec<PayloadKey>,
    random: SmallRng,
}

impl World {
    fn new() -> anyhow::Result<Self> {
        let mut capacity = PerTier::default();
        capacity[Tier::Ram] = Some(CAPACITY);
        let config = ShardConfig {
            dead_grace_ms: 1_000,
            shard: ShardIndex(0),
            shard_count: 1,
            epoch: Epoch(1),
            capacity,
            lease_ms_default: limits::LEASE_MS_DEFAULT,
            lease_ms_max: limits::LEASE_MS_MAX_DEFAULT,
            allocation_timeout_ms: limits::ALLOCATION_TIMEOUT_MS_DEFAULT,
            disk_fsync: true,
            retry_backoff_ms: 500,
            session_caps: payload_shards::SessionCaps::default(),
        };
        let mut world = Self {
            shard: Shard::new(config),
            outbox: Outbox::new(),
            arbiter: Arbiter::new(capacity, 1),
            now: clock::now(),
            keys: Vec::new(),
            random: SmallRng::seed_from_u64(1),
        };
        for number in 0..PAYLOADS {
            let id = PayloadId::mint((world.now.wall.as_millis() << 12) + number, world.random.next_u64());
            let key = PayloadKey { namespace: NamespaceId::DEFAULT, id };
            let policy = EvictionPolicy::default();
            let (size, tier) = (ByteCount(limits::PAGE_BYTES), Tier::Ram);
            world.settle(Request::Allocate(Allocate {
                key,
                size,
                tier,
                ttl_ms: None,
                no_evict: false,
                policy,
                memory: Memory::Segment,
                owner: Peer::UNKNOWN,
            }))?;
            world.settle(Request::Commit { key, checksum: None, batch: None })?;
            world.keys.push(key);
        }
        Ok(world)
    }

    /// Sends a request and does all the work that it leads to.
    fn settle(&mut self, request: Request) -> anyhow::Result<Reply> {
        let mut events = VecDeque::from([request_event(request)]);
        let mut answer = None;
        let mut budget = Vec::new();
        while let Some(event) = events.pop_front() {
            self.shard.step(self.now, event, &mut self.outbox);
            while let Some(effect) = self.outbox.pop() {
                match effect {
                    Effect::Reply { result, .. } => answer = Some(result),
                    Effect::Storage(op) => {
                        let (op, result) = (op.op, stored(op.action));
                        events.extend(result.map(|done| Event::Completion(Completion::Storage(done(op)))));
                    }
                    Effect::Catalog(op) => {
                        let ack = CatalogAck { op: op.op, result: Ok(()), sequence: 0 };
                        events.push_back(Event::Completion(Completion::Catalog(ack)));
                    }
                    Effect::Budget(request) => {
                        self.arbiter.step(request, &mut budget);
                        let replies =
                            budget.drain(..).map(|(_, reply)| Event::Completion(Completion::Budget(reply)));
                        events.extend(replies);
                    }
                    Effect::Transfer(_)
                    | Effect::Slab(_)
                    | Effect::Accepted { .. }
                    | Effect::Publish(_)
                    | Effect::Scan(_)
                    | Effect::Revoke(_) => {
                        anyhow::bail!("the shard moved a payload that nobody asked to move")
                    }
                }
            }
        }
        answer.ok_or_else(|| anyhow::anyhow!("the shard did not answer"))?.map_err(anyhow::Error::new)
    }

    /// Runs pairs for so long; returns pairs in a second.
    fn lease_for(&mut self, duration: Duration, latencies: &mut Latencies) -> anyhow::Result<f64> {
        let started = Instant::now();
        let mut batch_started = started;
        let mut pairs = 0u64;
        while batch_started - started < duration {
            self.now = clock::now();
            if self.shard.next_timer().is_some_and(|due| due <= self.now.monotonic) {
                self.shard.step(self.now, Event::Timer, &mut self.outbox);
                while self.outbox.pop().is_some() {}
            }
            for _ in 0..BATCH_PAIRS {
                let lease = self.acquire()?;
                self.release(lease)?;
            }
            let batch_ended = Instant::now();
            let batch_ns = (batch_ended - batch_started).as_nanos() as u64;
            latencies.record_ns(batch_ns / BATCH_PAIRS as u64, BATCH_PAIRS as u64);
            batch_started = batch_ended;
            pairs += BATCH_PAIRS as u64;
        }
        Ok(pairs as f64 / (batch_started - started).as_secs_f64())
    }

    fn acquire(&mut self) -> anyhow::Result<LeaseId> {
        let random = self.random.next_u64();
        let key = self.keys[(random % self.keys.len() as u64) as usize];
        let mut nonce = [0; 10];
        nonce[..8].copy_from_slice(&random.to_le_bytes());
        let acquire = Acquire {
            key,
            min_tier: None,
            policy: PromotionPolicy::Blocking,
            duration_ms: 0,
            expected_version: None,
            accepts_packed: true,
            accepts_slabs: false,
            nonce: LeaseNonce(nonce),
            owner: Peer::UNKNOWN,
        };
        match self.ask(Request::Acquire(acquire)) {
            Some(Ok(Reply::Leased(grant))) => Ok(grant.lease),
            other => anyhow::bail!("no lease was granted: {other:?}"),
        }
    }

    fn release(&mut self, lease: LeaseId) -> anyhow::Result<()> {
        match self.ask(Request::Release { lease, by: None }) {
            Some(Ok(Reply::Released)) => Ok(()),
            other => anyhow::bail!("a lease was not released: {other:?}"),
        }
    }

    fn ask(&mut self, request: Request) -> Option<ReplyResult> {
        self.shard.step(self.now, request_event(request), &mut self.outbox);
        match self.outbox.pop() {
            Some(Effect::Reply { result, .. }) => Some(result),
            _ => None,
        }
    }
}

fn request_event(request: Request) -> Event {
    Event::Request { reply_to: ReplyTo(0), deadline: None, request }
}

/// What a driver that never fails answers; nothing is dropped here.
fn stored(action: StorageAction) -> Option<fn(payload_types::OpId) -> StorageDone> {
    match action {
        StorageAction::Create => Some(|op| StorageDone::Created { op, result: Ok(()) }),
        StorageAction::Seal { .. } => Some(|op| StorageDone::Sealed { op, result: Ok(()) }),
        StorageAction::Sync => Some(|op| StorageDone::Synced { op, result: Ok(()) }),
        StorageAction::Verify { .. } => Some(|op| StorageDone::Verified { op, result: Ok(()) }),
        StorageAction::Drop | StorageAction::Stay => None,
    }
}

/// See the module.
pub fn run(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    context.require_own()?;
    let mut world = World::new()?;
    world.lease_for(context.slice(ROUNDS_SHORT), &mut Latencies::default())?;
    let (mut series, mut latencies) = (Series::default(), Latencies::default());
    for _ in 0..ROUNDS_SHORT {
        series.push(world.lease_for(context.slice(ROUNDS_SHORT), &mut latencies)?);
    }
    let note = format!("percentiles of batches of {BATCH_PAIRS} pairs, a pair each");
    findings.put("shard/lease", Figure::of(&series)?.with(&latencies, Unit::Nanoseconds).noted(note));
    Ok(())
}
