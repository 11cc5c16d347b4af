//! More bytes than memory and disk have, at full speed: a store that is always full must neither err nor lie.
//!
//! ```text
//! clients (threads): put { kept | pinned there | with a ttl | may be discarded | on disk } , read back, delete the
//!                    oldest kept ones so that what must stay always fits
//! driver:            kill -9 after every part of the puts -> start -> verify -> go on; at the end nothing is left
//! ```
//! What must stay is bounded (`KEPT_PERCENT`, `PINNED_PERCENT` of the tiers), so a user has done his part: from then
//! on every refusal is a broken promise, and so is every wait that ends with one. The ledger, the verification and the
//! watch over both capacities are the crash test's.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use payload_client::mapping::WriteMapping;
use payload_client::{AcquireOptions, AllocateOptions, Client, ClientError};
use payload_types::tier::SpillTarget;
use payload_types::{ByteCount, Checksum, ErrorKind, EvictionPolicy, PayloadId, Tier};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use xxhash_rust::xxh3::xxh3_64;

use super::fact::{Allocated, Fact, Verb};
use super::ledger::{Breach, Expected, Ledger, Rule};
use super::load::expected;
use super::watch::Peak;
use super::{Passed, Run, now, stop};

/// Clients at a time.
const CLIENTS: u64 = 4;

/// Of both tiers together: what is kept until it is deleted. The rest is room for what goes by itself.
const KEPT_PERCENT: u64 = 40;

/// Of RAM: what may not leave it.
const PINNED_PERCENT: u64 = 10;

/// The largest payload, as a part of RAM: every client may write one, and the tier is still far from full of them.
const LARGEST_PART: u64 = 16;

/// Payloads of which each client remembers enough to read them again.
const REMEMBERED: usize = 64;

/// What a run is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pressure {
    /// What memory and disk may hold.
    pub capacity: Peak,
    /// Bytes that are put in all.
    pub put_bytes: u64,
    /// How often the server is killed meanwhile.
    pub kills: u64,
}

/// What is kept, oldest first.
#[derive(Default)]
struct Kept {
    queue: VecDeque<(PayloadId, u64)>,
    bytes: u64,
}

impl Kept {
    /// The oldest ones, as many as are over `limit`.
    fn surplus(&mut self, limit: u64) -> Vec<PayloadId> {
        let mut over = Vec::new();
        while self.bytes > limit {
            let (id, size) = self.queue.pop_front().expect("bytes are those of the queue");
            self.bytes -= size;
            over.push(id);
        }
        over
    }

    fn push(&mut self, id: PayloadId, size: u64) {
        self.queue.push_back((id, size));
        self.bytes += size;
    }
}

/// What the clients share.
struct Shared {
    pressure: Pressure,
    ledger: Arc<Mutex<Ledger>>,
    put_bytes: AtomicU64,
    /// Clients stop here.
    put_bytes_aim: AtomicU64,
    kept: Mutex<Kept>,
    pinned: Mutex<Kept>,
    /// The server is about to be killed: broken connections are no news any more.
    is_over: AtomicBool,
}

/// Runs one seed on a run of its own.
///
/// # Errors
/// The first broken promise.
pub(super) async fn run(run: &mut Run, seed: u64, pressure: Pressure) -> Result<Passed, Breach> {
    let shared = Arc::new(Shared {
        pressure,
        ledger: Arc::clone(&run.ledger),
        put_bytes: AtomicU64::new(0),
        put_bytes_aim: AtomicU64::new(0),
        kept: Mutex::default(),
        pinned: Mutex::default(),
        is_over: AtomicBool::new(false),
    });
    for part in 0..=pressure.kills {
        let (server, client) = run.start().await?;
        let verified = run.verify(&client).await;
        run.hear(&server, verified)?;
        shared.recall();
        shared.is_over.store(false, Ordering::Relaxed);
        // Clients of a part that ends with a kill do not stop by themselves.
        let is_last = part == pressure.kills;
        let aim = if is_last { pressure.put_bytes } else { u64::MAX };
        shared.put_bytes_aim.store(aim, Ordering::Relaxed);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let seed = seed.wrapping_mul(1000).wrapping_add(part * CLIENTS + number);
                let (shared, address) = (Arc::clone(&shared), server.address.clone());
                std::thread::spawn(move || play(&shared, &address, seed))
            })
            .collect();
        let kill_at = pressure.put_bytes / (pressure.kills + 1) * (part + 1);
        while !is_last && shared.put_bytes.load(Ordering::Relaxed) < kill_at && !shared.is_broken() {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !is_last {
            run.count_compaction(&client).await?;
        }
        let mut server = Some(server);
        if let Some(server) = server.take_if(|_| !is_last) {
            run.count("killed");
            shared.is_over.store(true, Ordering::Relaxed);
            run.log = server.log();
            server.kill();
        }
        let is_sound = clients.into_iter().all(|client| client.join().is_ok());
        assert!(is_sound, "a client panicked; it said why");
        if let Some(server) = server {
            run.log = server.log();
            run.count_compaction(&client).await?;
            stop(server)?;
        }
        run.settle_round()?;
    }
    run.finish().await
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("nobody panicked")
    }

    fn note(&self, fact: Fact) {
        self.ledger().note(fact);
    }

    fn is_broken(&self) -> bool {
        self.ledger().is_broken()
    }

    /// After a restart: what stays until it is deleted is what the server was seen to have.
    fn recall(&self) {
        let (mut kept, mut pinned) = (Kept::default(), Kept::default());
        for Allocated { id, size, is_kept, is_expendable, expires_at, .. } in
            self.ledger().known().map(|known| known.allocated)
        {
            match (is_kept, is_expendable || expires_at.is_some()) {
                (true, _) => pinned.push(id, size),
                (false, false) => kept.push(id, size),
                (false, true) => {}
            }
        }
        *self.kept.lock().expect("nobody panicked") = kept;
        *self.pinned.lock().expect("nobody panicked") = pinned;
    }
}

/// The server was killed, as announced, or a promise was broken: this client stops.
struct Over;

fn play(shared: &Shared, address: &str, seed: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime needs only descriptors").block_on(async {
        let Ok(client) = Client::connect_grpc(address).await else { return };
        let random = SmallRng::seed_from_u64(seed);
        let mut player = Player { client, shared, random, remembered: VecDeque::new() };
        while shared.put_bytes.load(Ordering::Relaxed) < shared.put_bytes_aim.load(Ordering::Relaxed)
            && player.step().await.is_ok()
        {}
    });
}

struct Player<'run> {
    client: Client,
    shared: &'run Shared,
    random: SmallRng,
    remembered: VecDeque<Allocated>,
}

impl Player<'_> {
    async fn step(&mut self) -> Result<(), Over> {
        match self.remembered.len() {
            count @ 1.. if self.random.random_ratio(1, 4) => {
                let picked = self.remembered[self.random.random_range(0..count)];
                self.read(picked).await
            }
            _ => self.put().await,
        }
    }

    /// What a refused or broken call means: nothing, when the server was killed; else a broken promise.
    fn failed(&self, what: &str, error: &ClientError) -> Over {
        let is_cut = matches!(error, ClientError::Connect { .. } | ClientError::Interrupted { .. });
        if !(is_cut && self.shared.is_over.load(Ordering::Relaxed)) {
            self.shared.ledger().break_rule(Rule::Answers, format!("{what}: {error:?}"));
        }
        Over
    }

    async fn put(&mut self) -> Result<(), Over> {
        let Peak { memory, disk } = self.shared.pressure.capacity;
        let largest = memory / LARGEST_PART;
        // As many between 4 and 8 KiB as between 4 and 8 MiB, and seldom a round number.
        let magnitude = self.random.random_range(4096.0_f64.log2()..=(largest as f64).log2());
        let size = magnitude.exp2() as u64;
        let mut options = AllocateOptions::default();
        let mut stay = None;
        match self.random.random_range(0..100) {
            0..25 => stay = Some((&self.shared.kept, (memory + disk) / 100 * KEPT_PERCENT)),
            25..30 => {
                options.tier = Tier::Disk;
                stay = Some((&self.shared.kept, (memory + disk) / 100 * KEPT_PERCENT));
            }
            30..35 => {
                options.no_evict = true;
                stay = Some((&self.shared.pinned, memory / 100 * PINNED_PERCENT));
            }
            35..70 => options.ttl_ms = Some(self.random.random_range(100..2_000)),
            _ => {
                options.policy =
                    EvictionPolicy { spill_target: Some(SpillTarget::Void), ..Default::default() };
            }
        }
        if let Some((kept, limit)) = stay {
            let surplus = kept.lock().expect("nobody panicked").surplus(limit);
            for id in surplus {
                self.delete(id).await?;
            }
        }
        let Some(allocated) = self.store(size, &options).await? else { return Ok(()) };
        if let Some((kept, _)) = stay {
            kept.lock().expect("nobody panicked").push(allocated.id, size);
        }
        self.remembered.push_back(allocated);
        if self.remembered.len() > REMEMBERED {
            self.remembered.pop_front();
        }
        self.shared.put_bytes.fetch_add(size, Ordering::Relaxed);
        Ok(())
    }

    /// Allocates, writes in place, commits. `None`: it took longer than the payload lives.
    async fn store(&mut self, size: u64, options: &AllocateOptions) -> Result<Option<Allocated>, Over> {
        let asked = Instant::now();
        let allocation = self.client.allocate_payload(ByteCount(size), options).await;
        let waited = asked.elapsed();
        let descriptor = allocation
            .map_err(|error| {
                self.failed(&format!("Allocate of {size} bytes, {options:?}, after {waited:?}"), &error)
            })?
            .descriptor;
        let allocated = Allocated {
            id: descriptor.id,
            seed: self.random.random(),
            size,
            tier: options.tier,
            expires_at: descriptor.expires_at,
            is_kept: options.no_evict,
            is_expendable: options.policy.spill_target == Some(SpillTarget::Void),
        };
        self.shared.note(Fact::Allocated(allocated));
        let is_late = || allocated.expires_at.is_some_and(|at| at <= now());
        let location = descriptor.location.as_ref().expect("RAM and DISK have one");
        let bytes = expected(&allocated);
        match WriteMapping::open(location) {
            Ok(mut mapping) => mapping.copy_from_slice(&bytes),
            Err(_) if is_late() => return Ok(None),
            Err(error) => return Err(self.failed(&format!("mapping {allocated:?}"), &error)),
        }
        self.shared.note(Fact::Asked(Verb::Commit, allocated.id));
        let checksum = self.random.random_bool(0.5).then(|| Checksum(xxh3_64(&bytes)));
        match self.client.commit_payload(allocated.id, checksum).await {
            Ok(_) => self.shared.note(Fact::Did(Verb::Commit, allocated.id)),
            Err(error) if error.kind() == Some(ErrorKind::NotFound) && is_late() => return Ok(None),
            Err(error) => return Err(self.failed(&format!("Commit of {allocated:?}"), &error)),
        }
        Ok(Some(allocated))
    }

    async fn delete(&mut self, id: PayloadId) -> Result<(), Over> {
        self.shared.note(Fact::Asked(Verb::Delete, id));
        // By force: another client may be reading it.
        match self.client.delete(id, true, None).await {
            Ok(()) => self.shared.note(Fact::Did(Verb::Delete, id)),
            Err(error) => return Err(self.failed(&format!("Delete of {id}"), &error)),
        }
        Ok(())
    }

    /// Leases and compares. Missing are only those that were deleted, have expired, or may be discarded.
    async fn read(&mut self, picked: Allocated) -> Result<(), Over> {
        let lease = match self.client.acquire(picked.id, &AcquireOptions::default()).await {
            Ok(lease) => lease,
            Err(error)
                if matches!(error, ClientError::Mapping(_)) || error.kind() == Some(ErrorKind::NotFound) =>
            {
                self.remembered.retain(|other| other.id != picked.id);
                let ledger = self.shared.ledger();
                let expected = ledger.get(picked.id).map_or(Expected::Gone, |known| known.expected(now()));
                drop(ledger);
                return match expected {
                    Expected::Live => Err(self.failed(&format!("reading {picked:?}"), &error)),
                    _ => {
                        self.shared.ledger().count("discarded, expired or deleted");
                        Ok(())
                    }
                };
            }
            Err(error) => return Err(self.failed(&format!("reading {picked:?}"), &error)),
        };
        if *lease != *expected(&picked) {
            let detail = format!("a lease on {picked:?} gave other bytes: {:?}", lease.descriptor());
            self.shared.ledger().break_rule(Rule::Bytes, detail);
            return Err(Over);
        }
        let tier = lease.descriptor().tier;
        self.shared.ledger().count(&format!("read on {tier}"));
        lease.release().await.map_err(|error| self.failed("releasing a lease", &error))
    }
}
