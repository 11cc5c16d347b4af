//! One client process of the crash test: several tasks that put, move, read and delete until the server is gone.
//!
//! ```text
//! stdin:  allocated ... (payloads that are there), go        stdout: Fact lines, idle
//!         any line or the end: compare what is still mapped          checked
//! ```
//! Announces every call before it is sent and its answer after it came (`fact`). Some leases, some allocations and
//! their mappings are kept over the server's death: whatever the next server does, mapped bytes stay what they were.
//! Some set the length of what they lease, as clients of the v1 contract do, and say so when they ask.
//! What each task does is drawn from a seed; how tasks interleave, with each other and with the kill, is not.

use std::io::BufRead as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use payload_client::mapping::{ReadMapping, WriteMapping};
use payload_client::{
    AcquireOptions, AllocateOptions, BatchCommit, Client, ClientError, Descriptor, Location, SpillOptions,
};
use payload_types::tier::SpillTarget;
use payload_types::{ByteCount, Checksum, ErrorKind, PayloadId, PromotionPolicy, SpillPolicy, Tier};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use xxhash_rust::xxh3::xxh3_64;

use super::fact::{Allocated, Fact, Verb};
use super::now;
use crate::sys;
use crate::v1::content;

/// Tasks of a process.
const TASKS: u64 = 3;

/// Longer than any call takes while the server lives: what passes it is in doubt, and goes on.
const DEADLINE: Duration = Duration::from_secs(5);

/// With more than this, tasks delete rather than put: RAM and disk together have room for twice of it.
const LIVE_BYTES_AIM: u64 = 60 << 20;

/// With more payloads than this, too: each is read after every restart.
const LIVE_COUNT_AIM: usize = 200;

/// Mappings kept over the server's death, of at most `HELD_BYTES_MAX` each: they stay charged, so not too many.
const HELD_MAX: usize = 6;
const HELD_BYTES_MAX: u64 = 256 << 10;

/// The server is gone, or going: this client's work is done.
struct Over;

/// What the tasks of a process share.
#[derive(Default)]
struct Board {
    live: Vec<Allocated>,
    held: Vec<(Allocated, Held)>,
}

enum Held {
    Lease(ReadMapping),
    Allocation(WriteMapping),
}

type Shared = Arc<Mutex<Board>>;

fn say(fact: &Fact) {
    // Standard output is flushed at every line's end: it is in the pipe before the call is sent.
    println!("{fact}");
}

/// The process: returns when everything was said.
///
/// # Errors
/// When standard input cannot be read.
pub fn run(address: &str, seed: u64) -> anyhow::Result<()> {
    let shared = Shared::default();
    let mut lines = std::io::stdin().lock().lines();
    for line in lines.by_ref() {
        match line?.parse::<Fact>() {
            Ok(Fact::Allocated(allocated)) => board(&shared, |board| board.live.push(allocated)),
            _ => break,
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let Ok(client) = Client::connect_grpc(address).await else {
            // Killed before this client was born; were it not, the driver would take the silence for a refusal.
            return Ok(());
        };
        let client = client.with_deadline(DEADLINE);
        let tasks: Vec<_> = (0..TASKS)
            .map(|number| {
                let random = SmallRng::seed_from_u64(seed.wrapping_mul(TASKS).wrapping_add(number));
                tokio::spawn(Task { client: client.clone(), shared: Arc::clone(&shared), random }.run())
            })
            .collect();
        for task in tasks {
            task.await?;
        }
        anyhow::Ok(())
    })?;
    say(&Fact::Idle);
    let _released = lines.next();
    for (allocated, held) in &board(&shared, |board| std::mem::take(&mut board.held)) {
        let (bytes, what): (&[u8], _) = match held {
            Held::Lease(mapping) => (mapping, "leased"),
            Held::Allocation(mapping) => (mapping, "allocated"),
        };
        if *bytes != expected(allocated) {
            let id = allocated.id;
            say(&Fact::Broken(format!(
                "{id} was {what} and mapped when the server died, and its bytes changed"
            )));
        }
    }
    say(&Fact::Checked);
    Ok(())
}

fn board<T>(shared: &Shared, change: impl FnOnce(&mut Board) -> T) -> T {
    change(&mut shared.lock().expect("no task panicked"))
}

/// The bytes of a payload.
pub fn expected(allocated: &Allocated) -> Vec<u8> {
    content(allocated.seed, usize::try_from(allocated.size).expect("small"))
}

/// What clients of the v1 contract do to a file before they read it, which must harm nobody.
fn set_length(location: &Location) {
    if let Location::File { path, offset, length } = location {
        // Somebody may have deleted it by force, and only root may write what is committed.
        drop(sys::map_read_write(path, false, *offset, length.0));
    }
}

struct Task {
    client: Client,
    shared: Shared,
    random: SmallRng,
}

impl Task {
    async fn run(mut self) {
        while self.step().await.is_ok() {}
    }

    async fn step(&mut self) -> Result<(), Over> {
        let (count, bytes, picked) = board(&self.shared, |board| {
            let picked = board.live.len().checked_sub(1).map(|last| self.random.random_range(0..=last));
            let bytes: u64 = board.live.iter().map(|allocated| allocated.size).sum();
            (board.live.len(), bytes, picked.map(|at| board.live[at]))
        });
        let is_full = count > LIVE_COUNT_AIM || bytes > LIVE_BYTES_AIM;
        let put = if is_full { 5 } else { 40 };
        let Some(picked) = picked.filter(|_| !self.random.random_ratio(put, 100)) else {
            return if self.random.random_ratio(1, 6) { self.put_batch().await } else { self.put().await };
        };
        let delete = if is_full { 30 } else { 8 };
        match self.random.random_range(0..100 + delete) {
            0..30 => self.read(picked).await,
            30..55 => self.spill(picked).await,
            55..75 => self.promote(picked).await,
            75..80 => {
                let client = self.client.clone();
                self.call(Verb::Promote, picked, client.prefetch(picked.id, Tier::Ram)).await
            }
            80..90 => {
                let client = self.client.clone();
                self.call(Verb::Pin, picked, client.pin(picked.id, None)).await
            }
            90..100 => {
                let client = self.client.clone();
                self.call(Verb::Unpin, picked, client.unpin(picked.id)).await
            }
            _ => self.delete(picked).await,
        }
    }

    /// Announces a call, sends it, and says what came of it.
    async fn call<T>(
        &mut self,
        verb: Verb,
        of: Allocated,
        call: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<(), Over> {
        say(&Fact::Asked(verb, of.id));
        match call.await {
            Ok(_) => {
                say(&Fact::Did(verb, of.id));
                Ok(())
            }
            Err(error) => self.failed(verb, of, &error),
        }
    }

    /// What a failed call means.
    fn failed(&self, verb: Verb, of: Allocated, error: &ClientError) -> Result<(), Over> {
        let broken = || say(&Fact::Broken(format!("{verb:?} of {of:?}: {error:?}")));
        match error {
            ClientError::Connect { .. } | ClientError::Interrupted { .. } => return Err(Over),
            // Somebody deleted it between the lease and the opening of its file; the driver knows whether.
            ClientError::Mapping(_) => self.missing(of),
            ClientError::Server { kind, message } => match kind {
                ErrorKind::Unavailable => return Err(Over),
                ErrorKind::NotFound if message.contains("LOST") => broken(),
                ErrorKind::NotFound => {
                    say(&Fact::Refused(verb, of.id));
                    self.missing(of);
                }
                ErrorKind::FailedPrecondition | ErrorKind::LeaseConflict => say(&Fact::Refused(verb, of.id)),
                // In doubt: it may still happen.
                ErrorKind::ResourceExhausted | ErrorKind::DeadlineExceeded => {}
                _ => broken(),
            },
            _ => broken(),
        }
        Ok(())
    }

    fn missing(&self, of: Allocated) {
        say(&Fact::Missing(of.id));
        self.forget(of);
    }

    fn forget(&self, of: Allocated) {
        board(&self.shared, |board| board.live.retain(|other| other.id != of.id));
    }

    fn hold(&self, of: Allocated, held: Held) {
        board(&self.shared, |board| board.held.push((of, held)));
    }

    fn may_hold(&mut self, size: u64, percent: u32) -> bool {
        let held = board(&self.shared, |board| board.held.len());
        held < HELD_MAX && size <= HELD_BYTES_MAX && self.random.random_ratio(percent, 100)
    }

    /// Allocates, writes in place and commits; now and then stops half-way.
    async fn put(&mut self) -> Result<(), Over> {
        let tier = if self.random.random_bool(0.6) { Tier::Ram } else { Tier::Disk };
        let size = size(&mut self.random);
        let options = AllocateOptions {
            tier,
            ttl_ms: self.random.random_ratio(1, 8).then(|| self.random.random_range(50..3_000)),
            no_evict: self.random.random_ratio(1, 8),
            ..AllocateOptions::default()
        };
        let answer = self.client.allocate_payload(ByteCount(size), &options).await;
        let descriptor = match answer {
            Ok(allocation) => allocation.descriptor,
            Err(ClientError::Connect { .. } | ClientError::Interrupted { .. }) => return Err(Over),
            Err(ClientError::Server { kind: ErrorKind::Unavailable, .. }) => return Err(Over),
            // Nobody knows its id: a restart reclaims it, if it was made at all.
            Err(ClientError::Server {
                kind: ErrorKind::ResourceExhausted | ErrorKind::DeadlineExceeded,
                ..
            }) => return Ok(()),
            Err(error) => {
                say(&Fact::Broken(format!("Allocate of {size} bytes on {tier}: {error:?}")));
                return Ok(());
            }
        };
        let seed = self.random.random();
        let expires_at = descriptor.expires_at;
        let allocated = Allocated {
            id: descriptor.id,
            seed,
            size,
            tier,
            expires_at,
            is_kept: options.no_evict,
            is_expendable: false,
        };
        say(&Fact::Allocated(allocated));
        let Some(mut mapping) = self.mapped(allocated, &descriptor).await? else { return Ok(()) };
        let bytes = expected(&allocated);
        mapping.copy_from_slice(&bytes);
        if self.may_hold(size, 20) {
            self.hold(allocated, Held::Allocation(mapping));
            return Ok(());
        }
        // Some producers keep their mapping: then the server cannot read the bytes in place.
        let kept = self.random.random_ratio(1, 8).then_some(mapping);
        let checksum = self.random.random_bool(0.5).then(|| Checksum(xxh3_64(&bytes)));
        let client = self.client.clone();
        self.call(Verb::Commit, allocated, client.commit_payload(allocated.id, checksum)).await?;
        drop(kept);
        // An unanswered Commit may have happened: others use it, too.
        board(&self.shared, |board| board.live.push(allocated));
        Ok(())
    }

    /// As [`Task::put`] for a few, all of them or none.
    async fn put_batch(&mut self) -> Result<(), Over> {
        let items: Vec<(ByteCount, AllocateOptions)> = (0..self.random.random_range(2..=6))
            .map(|_| {
                let tier = if self.random.random_bool(0.6) { Tier::Ram } else { Tier::Disk };
                let size = self.random.random_range(1..=50_000);
                (ByteCount(size), AllocateOptions { tier, ..AllocateOptions::default() })
            })
            .collect();
        let results = match self.client.batch_allocate(&items).await {
            Ok(results) => results,
            Err(ClientError::Server {
                kind: ErrorKind::ResourceExhausted | ErrorKind::DeadlineExceeded,
                ..
            }) => return Ok(()),
            Err(ClientError::Connect { .. } | ClientError::Interrupted { .. }) => return Err(Over),
            Err(ClientError::Server { kind: ErrorKind::Unavailable, .. }) => return Err(Over),
            Err(error) => {
                say(&Fact::Broken(format!("BatchAllocate of {items:?}: {error:?}")));
                return Ok(());
            }
        };
        let mut batch = Vec::new();
        for (result, (size, options)) in results.into_iter().zip(&items) {
            // Refused for want of space, or the server stops.
            let Ok(allocation) = result else { continue };
            let allocated = Allocated {
                id: allocation.descriptor.id,
                seed: self.random.random(),
                size: size.0,
                tier: options.tier,
                expires_at: None,
                is_kept: false,
                is_expendable: false,
            };
            say(&Fact::Allocated(allocated));
            let Some(mut mapping) = self.mapped(allocated, &allocation.descriptor).await? else { continue };
            mapping.copy_from_slice(&expected(&allocated));
            batch.push(allocated);
        }
        let Some(first) = batch.first().copied() else { return Ok(()) };
        let checked = self.random.random_bool(0.5);
        let checksum = |allocated: &Allocated| checked.then(|| Checksum(xxh3_64(&expected(allocated))));
        let commits: Vec<_> = batch.iter().map(|allocated| (allocated.id, checksum(allocated))).collect();
        say(&Fact::Batch(batch.iter().map(|allocated| allocated.id).collect()));
        batch.iter().for_each(|allocated| say(&Fact::Asked(Verb::Commit, allocated.id)));
        match self.client.batch_commit(&commits).await {
            Ok(BatchCommit::Committed(_)) => {
                batch.iter().for_each(|allocated| say(&Fact::Did(Verb::Commit, allocated.id)));
            }
            Ok(BatchCommit::Refused(_)) => {
                batch.iter().for_each(|allocated| say(&Fact::Refused(Verb::Commit, allocated.id)));
                return Ok(());
            }
            Err(error) => self.failed(Verb::Commit, first, &error)?,
        }
        board(&self.shared, |board| board.live.extend(batch));
        Ok(())
    }

    /// Maps what was allocated; `None` when its ttl was quicker.
    async fn mapped(
        &self,
        allocated: Allocated,
        descriptor: &Descriptor,
    ) -> Result<Option<WriteMapping>, Over> {
        let location = descriptor.location.as_ref();
        let error = match location.map(WriteMapping::open) {
            Some(Ok(mapping)) => return Ok(Some(mapping)),
            Some(Err(error)) => error.to_string(),
            None => "it has no location".to_owned(),
        };
        // A server that is stopping, or dead, gives it back; one that lives does not.
        match self.client.resolve(allocated.id).await {
            Err(ClientError::Connect { .. } | ClientError::Interrupted { .. }) => Err(Over),
            Err(ClientError::Server { kind: ErrorKind::Unavailable, .. }) => Err(Over),
            _ if allocated.expires_at.is_some_and(|at| at <= now()) => Ok(None),
            answer => {
                say(&Fact::Broken(format!("{allocated:?} cannot be mapped: {error}; {answer:?}")));
                Ok(None)
            }
        }
    }

    /// Leases, compares in place, and releases or keeps.
    async fn read(&mut self, picked: Allocated) -> Result<(), Over> {
        let options = AcquireOptions {
            min_tier: self.random.random_ratio(1, 3).then_some(Tier::Ram),
            promotion_policy: self.random.random_bool(0.5).then_some(PromotionPolicy::BestEffort),
            lease_ms_min: self.random.random_range(0..10_000),
            expected_version: None,
            own_file: self.random.random_ratio(1, 3),
        };
        say(&Fact::Asked(Verb::Read, picked.id));
        let lease = match self.client.acquire_read_lease(picked.id, &options).await {
            Ok(lease) => lease,
            Err(error) => return self.failed(Verb::Read, picked, &error),
        };
        let Some(location) = &lease.descriptor.location else {
            say(&Fact::Broken(format!("a lease on {picked:?} has no location: {:?}", lease.descriptor)));
            return Ok(());
        };
        if options.own_file {
            set_length(location);
        }
        match ReadMapping::open(location) {
            Err(error) => self.failed(Verb::Read, picked, &error)?,
            Ok(mapping) if *mapping != *expected(&picked) => {
                let descriptor = &lease.descriptor;
                say(&Fact::Broken(format!("a lease on {picked:?} gave other bytes: {descriptor:?}")));
            }
            Ok(mapping) => {
                say(&Fact::Did(Verb::Read, picked.id));
                if self.may_hold(picked.size, 10) {
                    self.hold(picked, Held::Lease(mapping));
                    return Ok(());
                }
            }
        }
        let released = self.client.release_lease(lease.id).await;
        released.or_else(|error| self.failed(Verb::Read, picked, &error))
    }

    /// Spills one payload or a few, in every way there is.
    async fn spill(&mut self, picked: Allocated) -> Result<(), Over> {
        let mut batch = vec![picked];
        if self.random.random_ratio(1, 4) {
            let others = board(&self.shared, |board| board.live.iter().rev().take(3).copied().collect());
            let others: Vec<Allocated> = others;
            batch.extend(others.into_iter().filter(|other| other.id != picked.id));
        }
        let policies = [None, Some(SpillPolicy::Blocking), Some(SpillPolicy::BestEffort)];
        let options = SpillOptions {
            target: self.random.random_bool(0.7).then_some(SpillTarget::Tier(Tier::Disk)),
            policy: policies[self.random.random_range(0..policies.len())],
            wait_for_leases: self.random.random_bool(0.3),
            fsync: self.random.random_bool(0.4),
            expected_version: None,
        };
        let ids: Vec<PayloadId> = batch.iter().map(|allocated| allocated.id).collect();
        ids.iter().for_each(|id| say(&Fact::Asked(Verb::Spill, *id)));
        let results = match self.client.spill(&ids, &options).await {
            Ok(results) => results,
            Err(error) => return self.failed(Verb::Spill, picked, &error),
        };
        for spilled in results {
            match spilled.result {
                // Answered before it is done: nobody knows.
                Ok(_) if options.policy == Some(SpillPolicy::BestEffort) => {}
                Ok(_) => say(&Fact::Did(Verb::Spill, spilled.id)),
                // It may have been copied down, promoted and pinned by others before this one was looked at again:
                // a refusal does not say that it never became durable.
                Err(_) => {}
            }
        }
        Ok(())
    }

    async fn promote(&mut self, picked: Allocated) -> Result<(), Over> {
        let policy = self.random.random_bool(0.5).then_some(PromotionPolicy::BestEffort);
        let client = self.client.clone();
        self.call(Verb::Promote, picked, client.promote(picked.id, Tier::Ram, policy, None)).await
    }

    /// Deletes, by force or not, or spills to VOID.
    async fn delete(&mut self, picked: Allocated) -> Result<(), Over> {
        let client = self.client.clone();
        if self.random.random_ratio(3, 4) {
            let force = self.random.random_bool(0.5);
            self.call(Verb::Delete, picked, client.delete(picked.id, force, None)).await?;
        } else {
            let options = SpillOptions { target: Some(SpillTarget::Void), ..SpillOptions::default() };
            let discarded = async {
                let result = client.spill(&[picked.id], &options).await?.swap_remove(0).result;
                result.map_err(|message| {
                    let in_doubt = message.contains("deadline");
                    let kind =
                        if in_doubt { ErrorKind::DeadlineExceeded } else { ErrorKind::FailedPrecondition };
                    ClientError::Server { kind, message }
                })
            };
            self.call(Verb::Delete, picked, discarded).await?;
        }
        self.forget(picked);
        Ok(())
    }
}

/// From 1 byte to 8 MiB, seldom round.
fn size(random: &mut SmallRng) -> u64 {
    match random.random_range(0..100) {
        0..10 => random.random_range(1..=16),
        10..50 => random.random_range(1..=20_000),
        50..65 => (random.random_range(1..=8) << 12) + random.random_range(0..=2) - 1,
        65..93 => random.random_range(20_000..=1_000_000),
        93..99 => random.random_range(1_000_000..=3_000_000),
        _ => 8 << 20,
    }
}
