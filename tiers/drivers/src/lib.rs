//! What touches bytes: RAM segments, the disk store, the object store ([`object`]) and GPUs ([`gpu`]), on threads of their own.
//!
//! ```text
//! shard --Effect--> submit() --bounded lanes--> worker / transfer / retire threads --Completion--> sink --> shard
//! ```
//! Called by `front` (open, verify, reclaim, start, shutdown) and, through its ports, by the reactor (`submit`). No
//! call but `submit`, `disk_wanted`, `locate` and `Locator`'s may be made on a shard thread: the others block.
//!
//! Promises to the shards:
//! - every op that `submit` took is answered exactly once (a drop: `Detached`, then `Freed`, possibly much later),
//!   also after a panic and during shutdown; a drop whose replica clients still hold at shutdown is the exception: it
//!   stays in the intent log, and the next start frees it;
//! - no descriptor is kept per replica, so replicas are not limited by RLIMIT_NOFILE;
//! - nothing is removed that the intent logs do not name.
//!
//! - a disk root that fails is left alone for a while (`health`): writes are refused at once, all else goes on.
//!
//! Limits: the lanes hold `LANE_PER_SHARD` ops a shard, which is all a shard can have under way, so a full lane means a shard that broke its own limits. Staging is 9 MiB a transfer thread.
//! SIGIO is set to be ignored, unless the program handles it: breaking a file lease raises it.
#![deny(unsafe_code)]

pub mod arena;
mod calls;
mod disk;
mod error;
mod fault;
#[doc(hidden)]
pub mod faults;
mod footprint;
pub mod gpu;
mod health;
mod intent;
mod naming;
pub mod object;
pub mod objects;
mod packed;
mod retire;
mod segments;
mod store;
mod stores;
mod sys;
mod transfer;
mod verify;
mod workers;

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Sender, bounded};
use payload_types::effect::{ReplicaRef, StorageAction, StorageOp, TransferOp};
use payload_types::event::Completion;
use payload_types::limits::{DROPS_IN_FLIGHT_MAX, OPS_PER_SHARD_MAX, RELOCATIONS_MAX};
use payload_types::{ByteCount, Checksum, DiskHealth, DiskSegments, PerTier, ShardIndex, Tier};

pub use crate::error::OpenError;
pub use crate::naming::Locator;
pub use crate::store::boot::Reclaimed;
pub use crate::transfer::engine::IoEngine;
pub use crate::verify::Verifier;

use crate::calls::{Calls, System};
use crate::faults::{Faults, Faulty};
use crate::health::Health;
use crate::objects::{Lanes, Objects};
use crate::packed::Packed;
use crate::packed::boot::Tables;
use crate::packed::syncer::{self, GROUPS_WAITING_MAX};
use crate::packed::upkeep::Upkeep;
use crate::retire::{Retired, Retirement};
use crate::store::boot::Found;
use crate::stores::Stores;
use crate::transfer::scrub::Stop;

/// Ops of one shard that may wait in a lane: all it can have in flight.
pub const LANE_PER_SHARD: usize = OPS_PER_SHARD_MAX + DROPS_IN_FLIGHT_MAX + RELOCATIONS_MAX;

/// Takes completions to their shard. Called on driver threads; it must neither block nor panic.
pub type CompletionSink = Arc<dyn Fn(ShardIndex, Completion) + Send + Sync>;

/// Digits of the disk root's random id that tell one owner of segments from another: 48 bits.
const OWNER_DIGITS: usize = 12;

/// The pace of compaction when nothing else is configured: a twentieth of what the disks of FACTS.md write.
const COMPACTION_BYTES_PER_SECOND: u64 = 64 << 20;

/// What the drivers are told at start.
#[derive(Clone, Debug)]
pub struct DriversConfig {
    /// Segments are called `/<shm_prefix>-<uuid>`.
    pub shm_prefix: String,
    /// The mode of committed segments.
    pub segment_mode: u32,
    /// The directory of the disk tier, if there is one; made if missing, resolved to an absolute path.
    pub disk_root: Option<PathBuf>,
    /// The mode of committed files.
    pub file_mode: u32,
    /// Names this server among those that share /dev/shm.
    pub node: String,
    /// Threads of each tier for create, seal, sync and drop.
    pub worker_threads: usize,
    /// Threads for copies, each with a ring of its own.
    pub transfer_threads: usize,
    /// How many shards submit ops: sizes the lanes.
    pub shard_count: u16,
    /// How copies reach the disk.
    pub io: IoEngine,
    /// The pause after a disk root's first failure; it doubles with each further one.
    pub retry_backoff: Duration,
    /// What the RAM tier may hold. Segments that are free are then kept for a while, within it, and used again; `None`:
    /// they are removed at once.
    pub ram_capacity: Option<ByteCount>,
    /// What the disk tier may hold. From 128 MiB on, small replicas that the server writes share segment files; `None`:
    /// each has a file of its own.
    pub disk_capacity: Option<ByteCount>,
    /// How many bytes a second compaction may move; 0: as many as it can.
    pub compaction_bytes_per_second: u64,
    /// Whether there is an object store, which is given with [`Drivers::set_objects`]: rows may name objects there.
    pub has_objects: bool,
}

impl Default for DriversConfig {
    fn default() -> Self {
        Self {
            shm_prefix: "pm".to_owned(),
            segment_mode: 0o440,
            disk_root: None,
            file_mode: 0o440,
            node: "default".to_owned(),
            worker_threads: 2,
            transfer_threads: 2,
            shard_count: 1,
            io: IoEngine::Auto,
            retry_backoff: Duration::from_millis(500),
            ram_capacity: None,
            disk_capacity: None,
            compaction_bytes_per_second: COMPACTION_BYTES_PER_SECOND,
            has_objects: false,
        }
    }
}

/// One piece of work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DriverOp {
    /// Work on one replica.
    Storage(StorageOp),
    /// A copy between tiers.
    Transfer(TransferOp),
}

/// See the crate's description.
pub struct Drivers {
    config: DriversConfig,
    locator: Locator,
    stores: Arc<Stores>,
    root_id: Option<String>,
    /// What the intent logs named; taken by `reclaim`.
    found: Mutex<Option<PerTierFound>>,
    /// What segment files have; taken by `reclaim`.
    tables: Option<Tables>,
    /// Leftovers that clients of an earlier run still hold.
    orphans: Vec<Retired>,
    /// What lies in segment files and no row names, until the threads run.
    dead: Vec<ReplicaRef>,
    running: Option<Running>,
    objects: Option<Objects>,
    gpu: Option<gpu::Gpu>,
    calls: Arc<dyn Calls>,
    /// True where a test moves the clock: then only writers try a failing root again.
    clock_is_told: bool,
    /// Locks the disk root for as long as it is open.
    _root_lock: Option<File>,
}

struct PerTierFound {
    ram: Found,
    disk: Option<Found>,
}

struct Running {
    /// A lane and threads for each tier that has storage: a disk that hangs holds up nobody's memory.
    storage: PerTier<Option<Sender<StorageOp>>>,
    transfers: Sender<TransferOp>,
    scrub: Sender<StorageOp>,
    scrub_stop: Arc<Stop>,
    objects: Option<Lanes>,
    gpu: Option<gpu::lanes::Lanes>,
    threads: Vec<JoinHandle<()>>,
}

impl Drivers {
    /// Locks the disk root and the node's intent logs, checks the root's marker, reads the logs. Nothing else is
    /// changed yet.
    ///
    /// # Errors
    /// See [`OpenError`]: each says what is taken or wrong and what to do.
    pub fn open(config: DriversConfig) -> Result<Self, OpenError> {
        Self::open_with(config, Arc::new(System::new()), false)
    }

    /// As [`open`](Self::open), on a disk that fails as a test says, and with a clock that it moves.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    #[doc(hidden)]
    pub fn open_faulty(config: DriversConfig, faults: Faults) -> Result<Self, OpenError> {
        Self::open_with(config, Arc::new(Faulty { faults, system: System::new() }), true)
    }

    fn open_with(
        config: DriversConfig,
        calls: Arc<dyn Calls>,
        clock_is_told: bool,
    ) -> Result<Self, OpenError> {
        sys::ignore_lease_breaks();
        let io = match (config.io, sys::uring::probe()) {
            (IoEngine::Plain, _) => IoEngine::Plain,
            (_, Ok(())) => IoEngine::Uring,
            (IoEngine::Uring, Err(source)) => return Err(OpenError::IoUring { source }),
            (IoEngine::Auto, Err(error)) => {
                tracing::warn!(
                    "io_uring is not available ({error}); copies use plain reads and writes, which is slower: allow \
                     it with kernel.io_uring_disabled=0 and a seccomp profile that permits it"
                );
                IoEngine::Plain
            }
        };
        let disk = match &config.disk_root {
            Some(root) => Some(disk::open(root, &config, &calls)?),
            None => None,
        };
        // Segments belong to the data they were made beside: another data directory's are not ours to reclaim, even
        // when prefix and node are called the same.
        let owner = disk.as_ref().map_or_else(
            || config.node.clone(),
            |root| format!("{}-{}", config.node, &root.root_id[..root.root_id.len().min(OWNER_DIGITS)]),
        );
        let (ram, ram_live) =
            segments::open(&config.shm_prefix, &owner, config.segment_mode, config.ram_capacity)?;
        let (root_id, lock, disk, disk_live) = match disk {
            Some(root) => (Some(root.root_id), Some(root.lock), Some(root.store), Some(root.live)),
            None => (None, None, None, None),
        };
        let packed = disk.as_ref().and_then(|store| store.packed.as_ref());
        let tables = packed.map(Tables::read).transpose()?;
        let locator =
            Locator { segments: ram.names.clone(), files: disk.as_ref().map(|store| store.names.clone()) };
        Ok(Self {
            config: DriversConfig { io, ..config },
            locator,
            stores: Arc::new(Stores { ram, disk }),
            root_id,
            found: Mutex::new(Some(PerTierFound {
                ram: Found::new(Tier::Ram, ram_live),
                disk: disk_live.map(|live| Found::new(Tier::Disk, live)),
            })),
            tables,
            orphans: Vec::new(),
            dead: Vec::new(),
            running: None,
            objects: None,
            gpu: None,
            calls,
            clock_is_told,
            _root_lock: lock,
        })
    }

    /// Where whoever seals slabs enters them, so that payloads in them can be copied.
    pub fn slabs(&self) -> arena::Sources {
        self.stores.ram.slabs.clone()
    }

    /// Boot: whether a replica that a row vouches for is there, at its full size (a segment: made in this boot of the
    /// machine). It is kept if so, and also if it could not be looked at. To be called once per replica, before
    /// [`reclaim`](Self::reclaim).
    pub fn verify(&self, replica: &ReplicaRef) -> bool {
        let mut is_there = false;
        self.verifier().verify(&[*replica], |_, found| is_there = found);
        is_there
    }

    /// Boot: how many replicas the intent log of this tier names, and segment files have; 0 once
    /// [`reclaim`](Self::reclaim) was called.
    pub fn named(&self, tier: Tier) -> usize {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(found) = found.as_ref() else { return 0 };
        match tier {
            Tier::Ram => found.ram.len(),
            Tier::Disk => {
                found.disk.as_ref().map_or(0, Found::len) + self.tables.as_ref().map_or(0, Tables::len)
            }
            Tier::Gpu | Tier::Object => 0,
        }
    }

    /// Boot: removes what the intent logs name and nobody vouched for, and writes the logs anew. What clients still
    /// hold is removed when they let go, once the threads run. A second call does nothing.
    pub fn reclaim(&mut self) -> PerTier<Reclaimed> {
        let mut tally = PerTier::default();
        let found = self.found.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let Some(PerTierFound { ram, disk }) = found else { return tally };
        for (tier, found) in [(Tier::Ram, Some(ram)), (Tier::Disk, disk)] {
            let (Some(found), Ok(store)) = (found, self.stores.get(tier)) else { continue };
            let (reclaimed, held) = found.reclaim(store, tier);
            tally[tier] = reclaimed;
            self.orphans.extend(held.into_iter().map(|replica| Retired {
                shard: replica.id.shard(self.config.shard_count),
                replica,
                is_detached: true,
            }));
        }
        if let (Some(tables), Some(packed)) = (self.tables.take(), self.stores.packed()) {
            self.dead = tables.adopt(packed, &|id| id.shard(self.config.shard_count));
            tally[Tier::Disk].held += self.dead.len() as u64;
            tally[Tier::Disk].held_bytes += self.dead.iter().map(|replica| replica.size.0).sum::<u64>();
        }
        tally
    }

    /// Boot: what [`reclaim`](Self::reclaim) found that clients still hold, and what no row names in segment files that
    /// are yet to be recycled; files of these that could not be read, which are free at the next start at the earliest. It
    /// takes space until then; the shard of its id hears of that as of what it dropped itself
    /// ([`StorageDone::Freed`]), and is charged until then. To be asked before [`start`](Self::start).
    ///
    /// [`StorageDone::Freed`]: payload_types::event::StorageDone::Freed
    pub fn held(&self) -> impl Iterator<Item = ReplicaRef> {
        self.orphans.iter().map(|orphan| orphan.replica).chain(self.dead.iter().copied())
    }

    /// Boot: the store of the OBJECT tier, and who knows what its sidecars say. To be called before [`start`](Self::start).
    pub fn set_objects(&mut self, driver: Arc<object::ObjectDriver>, source: objects::ArchiveSource) {
        self.objects = Some(Objects { driver, source });
    }

    /// Boot: the devices of the GPU tier. To be called before [`start`](Self::start); without any device there is no tier.
    pub fn set_gpu(&mut self, gpu: gpu::Gpu) {
        self.gpu = gpu.capacity().is_some().then_some(gpu);
    }

    /// Spawns the threads; completions go to `sink`. To be called once.
    ///
    /// # Panics
    /// When called twice, or when the system refuses a thread.
    pub fn start(&mut self, sink: CompletionSink) {
        assert!(self.running.is_none(), "the drivers are started once");
        let lane_len = usize::from(self.config.shard_count.max(1)) * LANE_PER_SHARD;
        let (transfers, transfer_lane) = bounded(lane_len);
        let mut threads = Vec::new();
        let mut spawn = |name: String, body: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name).spawn(body);
            threads.push(thread.expect("the system has room for the driver threads"));
        };
        let mut storage = PerTier::default();
        for tier in self.stores.tiers() {
            let name = tier.to_string().to_lowercase();
            let (sender, lane) = bounded(lane_len);
            let (retire, retire_lane) = bounded(lane_len);
            storage[tier] = Some(sender);
            for index in 0..self.config.worker_threads.max(1) {
                let (stores, sink) = (Arc::clone(&self.stores), Arc::clone(&sink));
                let (lane, retire) = (lane.clone(), retire.clone());
                let body = move || workers::run_storage(&stores, &lane, &retire, &sink);
                spawn(format!("pm-{name}-{index}"), Box::new(body));
            }
            let orphans = self.orphans.extract_if(.., |orphan| orphan.replica.tier == tier).collect();
            let retirement = Retirement::new(Arc::clone(&self.stores), Arc::clone(&sink), orphans);
            spawn(format!("pm-{name}-retire"), Box::new(move || retirement.run(&retire_lane)));
        }
        if let Some(pool) = &self.stores.ram.pool {
            pool.open();
            let stores = Arc::clone(&self.stores);
            spawn("pm-ram-trim".to_owned(), Box::new(move || stores.ram.run_trim()));
        }
        let mut syncers = Vec::new();
        for index in 0..self.stores.packed().map_or(0, Packed::lane_count) {
            let (sender, lane) = bounded(GROUPS_WAITING_MAX);
            syncers.push(sender);
            let (stores, sink) = (Arc::clone(&self.stores), Arc::clone(&sink));
            spawn(format!("pm-sync-{index}"), Box::new(move || syncer::run(&stores, &lane, &sink)));
        }
        for index in 0..self.config.transfer_threads.max(1) {
            let syncers = syncers.clone();
            let (stores, sink) = (Arc::clone(&self.stores), Arc::clone(&sink));
            let (lane, io, calls) = (transfer_lane.clone(), self.config.io, Arc::clone(&self.calls));
            let body = move || workers::run_transfers(&stores, &lane, &|| calls.engine(io), &sink, &syncers);
            spawn(format!("pm-transfer-{index}"), Box::new(body));
        }
        let (scrub, scrub_lane) = bounded(lane_len);
        let scrub_stop = Arc::new(Stop::default());
        {
            let (stores, sink, stop) = (Arc::clone(&self.stores), Arc::clone(&sink), Arc::clone(&scrub_stop));
            let (io, calls) = (self.config.io, Arc::clone(&self.calls));
            let body = move || workers::run_scrub(&stores, &scrub_lane, &|| calls.engine(io), &stop, &sink);
            spawn("pm-scrub".to_owned(), Box::new(body));
        }
        self.dead = Vec::new();
        if self.stores.packed().is_some() {
            let upkeep =
                Upkeep::new(Arc::clone(&self.stores), self.config.shard_count.max(1), Arc::clone(&sink));
            spawn("pm-segments".to_owned(), Box::new(move || upkeep.run()));
        }
        if let Some(health) = self.health_of_disk().cloned().filter(|_| !self.clock_is_told) {
            spawn("pm-disk-probe".to_owned(), Box::new(move || health.run_probes()));
        }
        let gpu = self.start_gpu(&sink, &scrub_stop, lane_len);
        let remote = gpu.as_ref().map(gpu::lanes::Lanes::remote);
        let objects =
            self.objects.as_ref().map(|objects| Lanes::start(objects, &self.stores, &sink, remote, lane_len));
        self.running = Some(Running { storage, transfers, scrub, scrub_stop, objects, gpu, threads });
    }

    fn start_gpu(
        &self,
        sink: &CompletionSink,
        scrub_stop: &Arc<Stop>,
        lane_len: usize,
    ) -> Option<gpu::lanes::Lanes> {
        let (gpu, io, calls) = (self.gpu.as_ref()?, self.config.io, Arc::clone(&self.calls));
        let shared = gpu.shared(&self.stores, sink, Arc::new(move || calls.engine(io)));
        Some(gpu::lanes::Lanes::start(&shared, scrub_stop, lane_len))
    }

    /// Takes an op for the threads. Never blocks.
    ///
    /// # Errors
    /// The op itself, when its lane is full or the drivers were not started.
    #[expect(clippy::result_large_err, reason = "a refused op goes back to the shard's own slots, by value")]
    pub fn submit(&self, op: DriverOp) -> Result<(), DriverOp> {
        let Some(running) = &self.running else { return Err(op) };
        if let Some(objects) = running.objects.as_ref().filter(|_| Lanes::takes(&op)) {
            return if objects.submit(op) { Ok(()) } else { Err(op) };
        }
        if let Some(gpu) = running.gpu.as_ref().filter(|_| gpu::lanes::Lanes::takes(&op)) {
            return if gpu.submit(op) { Ok(()) } else { Err(op) };
        }
        let is_taken = match op {
            DriverOp::Storage(op) if matches!(op.action, StorageAction::Verify { .. }) => {
                running.scrub.try_send(op).is_ok()
            }
            // A row of an earlier configuration may name a tier without a driver: any lane has its answer.
            DriverOp::Storage(op) => {
                let lane = running.storage[op.replica.tier].as_ref().or(running.storage[Tier::Ram].as_ref());
                lane.is_some_and(|lane| lane.try_send(op).is_ok())
            }
            DriverOp::Transfer(op) => running.transfers.try_send(op).is_ok(),
        };
        if is_taken { Ok(()) } else { Err(op) }
    }

    /// From now on so much of the disk must become free before somebody who waits for it can be served; 0: nobody waits.
    /// Compaction goes to its pains for that. Never blocks.
    pub fn disk_wanted(&self, bytes: ByteCount) {
        if let Some(packed) = self.stores.packed() {
            packed.wanted(bytes);
        }
    }

    /// What ids are called: pure names.
    pub fn locate(&self) -> Locator {
        self.locator.clone()
    }

    /// The random id that the disk root was given when it was initialised.
    pub fn root_id(&self) -> Option<&str> {
        self.root_id.as_deref()
    }

    /// How copies reach the disk, `Auto` settled.
    pub fn io_engine(&self) -> IoEngine {
        self.config.io
    }

    /// How the disk root is doing; `None` on a node without one.
    pub fn health(&self) -> Option<DiskHealth> {
        self.disk_watch().look()
    }

    /// A way to see how the disk root is doing that outlives these drivers.
    pub fn disk_watch(&self) -> DiskWatch {
        DiskWatch { health: self.health_of_disk().cloned(), stores: Arc::downgrade(&self.stores) }
    }

    /// Ends verifications, those under way and those to come: with an `Io` error. For a shutdown that waits for all
    /// that is under way.
    pub fn stop_scrubs(&self) {
        if let Some(running) = &self.running {
            running.scrub_stop.stop();
        }
    }

    fn health_of_disk(&self) -> Option<&Arc<Health>> {
        self.stores.disk.as_ref()?.health.as_ref()
    }

    /// Carries out everything that was submitted, and joins the threads. Dropping does the same.
    pub fn shutdown(self) {}
}

/// Shows how the disk root is doing. Cheap to clone.
#[derive(Clone)]
pub struct DiskWatch {
    health: Option<Arc<Health>>,
    /// Weak: whoever watches must not keep the logs of a node that has ended locked.
    stores: Weak<Stores>,
}

impl DiskWatch {
    /// How it is now; `None` on a node without a disk tier. Takes a lock for a moment, and touches no file.
    pub fn look(&self) -> Option<DiskHealth> {
        self.health.as_ref().map(|health| health.look())
    }

    /// How its segment files are; `None` where there are none, and after the drivers' end. Takes a lock for tens of
    /// microseconds, and touches no file.
    pub fn segments(&self) -> Option<DiskSegments> {
        self.stores.upgrade()?.packed().map(Packed::look)
    }
}

impl Drop for Drivers {
    fn drop(&mut self) {
        if let Some(Running { storage, transfers, scrub, scrub_stop, objects, gpu, threads }) =
            self.running.take()
        {
            drop((storage, transfers, scrub));
            if let Some(objects) = objects {
                objects.end();
            }
            scrub_stop.stop();
            if let Some(gpu) = gpu {
                gpu.end();
            }
            if let Some(pool) = &self.stores.ram.pool {
                pool.stop();
            }
            if let Some(packed) = self.stores.packed() {
                packed.stop();
            }
            if let Some(health) = self.health_of_disk() {
                health.stop();
            }
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!("a driver thread ended by a panic");
                }
            }
        }
        for store in self.stores.all() {
            store.log.remove_if_empty();
            if let Some(packed) = &store.packed {
                packed.log.remove_if_empty();
            }
        }
    }
}

/// XXH3-64 (seed 0) of `bytes`, as every copy computes it.
pub fn checksum(bytes: &[u8]) -> Checksum {
    Checksum(xxhash_rust::xxh3::xxh3_64(bytes))
}
