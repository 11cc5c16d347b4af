//! Starting a node: everything between a configuration and a server that answers. And its end.
//!
//! ```text
//! address bound -> preflight, limits raised -> disk root locked -> catalog opened and locked -> epoch begun
//!   -> rows adopted by their shards -> what nobody vouched for reclaimed -> budgets preloaded
//!   -> drivers, writer, shards started -> native sessions -> gRPC
//! ```
//!
//! The order is what keeps a second server harmless: the address, the root's lock and the catalog's lock are taken
//! first and change nothing that the first server uses; the epoch, the first lasting change, comes after all three.
//! Every failure is one sentence that names what is taken or wrong and what to do.

pub mod address;
mod books;
pub mod recovery;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
#[cfg(feature = "sqlite")]
use payload_catalog::SqliteStore;
use payload_catalog::{MemoryStore, RECORDS_WAITING_MAX, Readers, Store, Writer, WriterHandle};
#[cfg(feature = "postgres")]
use payload_catalog::{PostgresConfig, PostgresStore};
use payload_drivers::arena::{LargePages, MakerConfig, Sources};
use payload_drivers::gpu::{Cuda, Gpu, GpuSharing, Platform};
use payload_drivers::{DiskWatch, Drivers, DriversConfig, Locator};
use payload_ledger::segments::Geometry;
use payload_local::hello;
use payload_reactor::preflight::{self, Status};
use payload_reactor::topology::{self, Plan, Wanted};
use payload_reactor::{
    Allowed, DirectLeases, Mailboxes, Reactor, ReactorConfig, ReactorHandle, SessionConfig, SessionList,
    SessionServer, SlabConfig, SlabCounts, SpinPolicy, clock,
};
use payload_shards::{Arbiter, Shard, ShardConfig, TierLimits, Watermarks};
use payload_types::{ByteCount, DeviceId, Epoch, GpuConfig, GpuDevice, PerTier, ShardIndex, Tier, limits};
use payload_wire::pb::operations::v1::{NativeEndpoint, NodeInfoResponse};

use crate::bootstrap::books::Books;
use crate::cluster::{Cluster, OwnNode};
use crate::config::{Config, DatabaseConfig, DiskConfig, Spin};
use crate::object::{self, CatalogJournal, ObjectTier, Source};
use crate::ports::NodePorts;
use crate::records::Records;
use crate::records::holds::Holds;
use crate::services::Router;
use crate::services::router::NAMESPACE;
use crate::shutdown::Budget;
use crate::telemetry::Telemetry;
use crate::telemetry::flights::Flights;

/// A running node: shards, drivers and catalog writer, without gRPC.
pub struct Node {
    reactor: Reactor,
    /// `None`: native sessions are not served (`local.enabled`).
    sessions: Option<SessionServer>,
    handle: ReactorHandle,
    ports: Arc<NodePorts>,
    locator: Locator,
    disk: DiskWatch,
    overhead: PerTier<u64>,
    writer: WriterHandle,
    readers: Readers,
    holds: Arc<Holds>,
    /// This node, where others may share its catalog.
    own: Option<OwnNode>,
    info: NodeInfoResponse,
    /// `None`: no object store is configured.
    objects: Option<Arc<ObjectTier>>,
    /// `None`: no GPU is configured.
    gpu: Option<Gpu>,
    flights: Arc<Flights>,
    telemetry: Arc<Telemetry>,
}

impl Node {
    /// Starts everything but gRPC, which will be served on `port`. Recovers what an earlier start left.
    ///
    /// # Errors
    /// One sentence: a root or catalog that another server holds, that is foreign or damaged, a limit of the system.
    pub fn start(config: &Config, plan: &Plan, port: u16) -> anyhow::Result<Self> {
        Self::start_on(config, plan, port, &Cuda)
    }

    /// As [`start`](Self::start), on these GPUs: tests have devices of their own.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    // Long because: one part is started after the other.
    pub fn start_on(
        config: &Config,
        plan: &Plan,
        port: u16,
        platform: &dyn Platform,
    ) -> anyhow::Result<Self> {
        let reactor = reactor_config(config, plan);
        let mut drivers = Drivers::open(drivers_config(config))?;
        let own = own_node(config, port);
        let mut store = store_open(config, &drivers, own.as_ref())?;
        let root_id = root_of_catalog(config, &drivers, store.as_mut())?;
        let epoch = store.begin_epoch(&config.node.name)?;
        store.disk_root_bind(&config.node.name, &root_id)?;

        let gpu = gpu_open(config, platform);
        if let Some(gpu) = &gpu {
            drivers.set_gpu(gpu.clone());
        }
        let capacity = capacity(config, gpu.as_ref());
        let mut shards = shards_new(config, epoch, capacity);
        if let Some(gpu) = &gpu {
            shards.iter_mut().for_each(|shard| shard.limit(Tier::Gpu, gpu_limits(gpu)));
        }
        let found = recovery::rows_adopt(store.as_mut(), &drivers, &mut shards, clock::now())?;
        let holds = Arc::new(Holds::new(recovery::holds_adopt(store.as_ref(), &mut shards, clock::now())?));
        let reclaimed = drivers.reclaim();
        let (mut held, mut held_bytes) = (0_u64, ByteCount(0));
        for replica in drivers.held() {
            (held, held_bytes.0) = (held + 1, held_bytes.0 + replica.size.in_pages().0);
            shards[usize::from(replica.id.shard(config.shards.count).0)].adopt_held(clock::now(), replica);
        }
        tracing::info!(
            epoch = epoch.0,
            live = found.live,
            lost = found.lost,
            expired = found.expired,
            segments_removed = reclaimed[Tier::Ram].removed,
            files_removed = reclaimed[Tier::Disk].removed,
            // Clients have them open, or they lie in segment files that hold living payloads, too.
            dead_and_charged = held,
            dead_and_charged_bytes = held_bytes.0,
            "catalog recovered"
        );

        let arbiter = arbiter_preloaded(config, capacity, &shards);
        let mailboxes = Mailboxes::new(config.shards.count);
        let handle = mailboxes.handle();
        let locator = drivers.locate();
        let disk = drivers.disk_watch();
        let slabs = drivers.slabs();
        let telemetry = Arc::new(Telemetry::new(config));
        let flights = Arc::new(Flights::new(config.shards.count, telemetry.tracer()));
        let (acks, acked) = (handle.clone(), Arc::clone(&flights));
        let readers = readers_start(&config.database, store.as_ref())?;
        let uploads = store.uploads()?;
        let writer = Writer::start(
            store,
            limits::CATALOG_LANE_PER_SHARD * usize::from(config.shards.count) + RECORDS_WAITING_MAX,
            Arc::new(move |shard, completion| {
                acked.ended(shard, &completion);
                acks.complete(shard, completion);
            }),
        );
        flights.watch_writer(writer.watch());
        let writer_handle = writer.handle();
        let swept = Arc::clone(&holds);
        writer_handle.hear_sweeps(Arc::new(move |outcome| swept.heard(None, outcome)));
        let source = Source { reactor: handle.clone(), readers: readers.handle() };
        let object_driver = match &config.storage.object {
            Some(tier) => {
                let journal = CatalogJournal::new(uploads, writer_handle.clone())?;
                Some(Arc::new(object::open(tier, journal)?))
            }
            None => None,
        };
        if let Some(driver) = &object_driver {
            let source = source.clone();
            drivers.set_objects(Arc::clone(driver), Arc::new(move |id| source.archive(id)));
        }
        let (completions, landed) = (handle.clone(), Arc::clone(&flights));
        drivers.start(Arc::new(move |shard, completion| {
            landed.ended(shard, &completion);
            completions.complete(shard, completion);
        }));
        let ports = Arc::new(NodePorts::new(drivers, writer, Arc::clone(&flights)));
        let reactor = Reactor::start(reactor, mailboxes, shards, arbiter, ports.clone())?;
        let objects = object_driver
            .zip(config.storage.object.as_ref())
            .map(|(driver, tier)| ObjectTier::start(driver, tier, source, epoch));
        let info = node_info(config, epoch);
        let sessions = match config.local.enabled {
            true => {
                let slabs = config.local.arenas.then(|| slab_config(config, slabs, plan));
                Some(SessionServer::start(session_config(config, epoch, &info, port), slabs, &handle)?)
            }
            false => None,
        };
        Ok(Self {
            reactor,
            sessions,
            handle,
            ports,
            locator,
            disk,
            overhead: overhead(config),
            writer: writer_handle,
            readers,
            holds,
            own,
            info,
            objects,
            gpu,
            flights,
            telemetry,
        })
    }

    /// What drivers and catalog do for the shards.
    pub fn flights(&self) -> Arc<Flights> {
        Arc::clone(&self.flights)
    }

    /// What is told to OpenTelemetry.
    pub fn telemetry(&self) -> Arc<Telemetry> {
        Arc::clone(&self.telemetry)
    }

    /// A way to the shards.
    pub fn handle(&self) -> ReactorHandle {
        self.handle.clone()
    }

    /// A way to metadata, lineage and streams; `router` knows the payloads that are not committed.
    pub fn records(&self, router: Arc<Router>) -> Records {
        Records::new(self.writer.clone(), self.readers.handle(), router, Arc::clone(&self.holds))
    }

    /// This node, where others may share its catalog.
    pub fn own(&self) -> Option<OwnNode> {
        self.own.clone()
    }

    /// A way to what other nodes have, where there may be others.
    pub fn cluster(&self) -> Option<Cluster> {
        self.own().map(|own| Cluster::new(self.readers.handle(), own))
    }

    /// The names of this node's replicas.
    pub fn locator(&self) -> Locator {
        self.locator.clone()
    }

    /// A way to see how the disk root is doing.
    pub fn disk(&self) -> DiskWatch {
        self.disk.clone()
    }

    /// The OBJECT tier, where a store is configured.
    pub fn objects(&self) -> Option<Arc<ObjectTier>> {
        self.objects.clone()
    }

    /// The devices of the GPU tier, absent ones included; `None`: none is configured.
    pub fn gpu(&self) -> Option<Gpu> {
        self.gpu.clone()
    }

    /// Who this node is, as clients are told.
    pub fn info(&self) -> NodeInfoResponse {
        self.info.clone()
    }

    /// The native sessions; `None`: they are not served.
    pub fn sessions(&self) -> Option<SessionList> {
        self.sessions.as_ref().map(SessionServer::list)
    }

    /// Counts of their memory; `None`: they are not served.
    pub fn slab_counts(&self) -> Option<Arc<SlabCounts>> {
        self.sessions.as_ref().map(SessionServer::slab_counts)
    }

    /// What native sessions lease without asking; `None`: they are not served.
    pub fn direct(&self) -> Option<DirectLeases> {
        self.sessions.as_ref().map(SessionServer::direct)
    }

    /// The beginning of the end: programs that come find no socket. Blocks for a moment.
    pub fn refuse_sessions(&mut self) {
        if let Some(sessions) = &mut self.sessions {
            sessions.refuse_new();
        }
    }

    /// What each tier keeps to itself of the capacity that is configured.
    pub fn overhead(&self) -> PerTier<u64> {
        self.overhead
    }

    /// Ends the node in order: shards answer what waits and let go, the writer flushes, the drivers drain.
    /// Blocks; what is still acknowledged meanwhile is durable.
    pub fn stop(self) {
        let Self { reactor, sessions, ports, readers, objects, .. } = self;
        if let Some(objects) = &objects {
            objects.stop();
        }
        // A scrub may have hours to go; everything else is over soon.
        ports.stop_scrubs();
        reactor.shutdown();
        // After the shards, which have answered over rings until now.
        if let Some(sessions) = sessions {
            sessions.shutdown();
        }
        match Arc::try_unwrap(ports) {
            Ok(ports) => ports.shutdown(),
            // A shard thread that did not end in time still holds them; leaving the process ends them all.
            Err(_held) => {
                tracing::warn!("a shard did not stop in time; drivers and catalog are left to the exit")
            }
        }
        readers.shutdown();
        // What is still under way there has an entry in the journal, and is swept by the next start.
        if let Some(tier) = objects.and_then(Arc::into_inner) {
            tier.close();
        }
    }
}

/// Threads that answer questions about metadata, lineage and streams: one more than one, so that a long walk along a
/// lineage holds up nobody. More would take cores from shards.
const READERS: usize = 2;

/// Questions that wait for them; of about 1 KiB each at most (names).
const QUERIES_WAITING_MAX: usize = 1024;

fn readers_start(database: &DatabaseConfig, store: &dyn Store) -> anyhow::Result<Readers> {
    let count = match database {
        // One connection writes, one says that the server runs.
        DatabaseConfig::Postgres { connections_max, .. } => {
            connections_max.saturating_sub(2).clamp(1, READERS)
        }
        DatabaseConfig::Sqlite { .. } | DatabaseConfig::Memory => READERS,
    };
    let readers = (0..count).map(|_| store.reader()).collect::<Result<Vec<_>, _>>()?;
    Ok(Readers::start(readers, QUERIES_WAITING_MAX))
}

/// Looks whether this machine can run a node. Warnings are logged; what keeps it from serving is an error.
///
/// # Errors
/// The first fault: what was found and what to change.
pub fn preflight(config: &Config) -> anyhow::Result<()> {
    let checks = preflight::run(&preflight::Input {
        ram_capacity: config.storage.ram.capacity,
        shm_prefix: config.storage.ram.shm_prefix.clone(),
        disk_root: config.storage.disk.root_path.clone(),
        disk_capacity: config.storage.disk.capacity,
        shard_count: config.shards.count,
        gpu_configured: !config.storage.gpu.is_empty(),
    });
    for check in checks {
        let fix = check.fix.unwrap_or_default();
        match check.status {
            Status::Ok => tracing::debug!(check = check.name, "{}", check.detail),
            Status::Warning => tracing::warn!(check = check.name, "{}; {fix}", check.detail),
            Status::Fault => anyhow::bail!("{}: {}; {fix}", check.name, check.detail),
        }
    }
    Ok(())
}

/// The id of the disk root, if its files are this catalog's. What no row vouches for is reclaimed at every start, so a
/// catalog beside a root that it does not know would destroy what another catalog knows.
fn root_of_catalog(config: &Config, drivers: &Drivers, store: &mut dyn Store) -> anyhow::Result<String> {
    let root_id = drivers.root_id().context("this version needs a disk root")?.to_owned();
    let known = store.disk_roots()?;
    let root = config.storage.disk.root_path.display();
    if known.contains(&root_id) {
        return Ok(root_id);
    }
    if !known.is_empty() {
        anyhow::bail!(
            "the catalog belongs to another disk root than {root}; name its root in storage.disk.root_path, or start with a new catalog on an empty root"
        );
    }
    let files = drivers.named(Tier::Disk);
    if files > 0 {
        anyhow::bail!(
            "the disk root {root} holds {files} files of another catalog, which this one does not know; name that catalog (database.sqlite.path, or database.postgres.connection_uri and node.name), restore it, or choose an empty storage.disk.root_path"
        );
    }
    Ok(root_id)
}

/// Names this start of this host, the same for every program on it.
const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";

fn node_info(config: &Config, epoch: Epoch) -> NodeInfoResponse {
    // Without it a client cannot know that it is on this host, and asks over gRPC.
    let boot_id = std::fs::read_to_string(BOOT_ID_FILE).unwrap_or_default();
    NodeInfoResponse {
        node_name: config.node.name.clone(),
        server_version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: boot_id.trim().to_owned(),
        boot_epoch: u64::from(epoch.0),
        shard_count: u32::from(config.shards.count),
        native: config.local.enabled.then(|| NativeEndpoint {
            socket_path: config.local.socket_path.display().to_string(),
            version_min: u32::from(hello::VERSION),
            version_max: u32::from(hello::VERSION),
            features: hello::FEATURE_ADDRESS
                | match config.local.arenas {
                    true => hello::FEATURE_ARENAS | hello::FEATURE_DIRECT,
                    false => 0,
                },
        }),
    }
}

fn session_config(config: &Config, epoch: Epoch, info: &NodeInfoResponse, port: u16) -> SessionConfig {
    let local = &config.local;
    SessionConfig {
        dead_grace_ms: config.leases.dead_grace_ms,
        socket_path: local.socket_path.clone(),
        socket_mode: local.socket_mode,
        socket_group: local.socket_group.clone(),
        allowed: Allowed { uids: local.allowed_uids.clone(), gids: local.allowed_gids.clone() },
        sessions_max: local.sessions_max,
        epoch,
        boot_id: info.boot_id.clone(),
        namespace: NAMESPACE,
        shm_prefix: config.storage.ram.shm_prefix.clone(),
        disk_root: config.storage.disk.root_path.display().to_string(),
        address: address::beside(&config.server.bind_address, port).to_string(),
    }
}

/// Memory of native sessions: each slab on the node of its shard's core.
fn slab_config(config: &Config, sources: Sources, plan: &Plan) -> SlabConfig {
    let large_pages = match config.storage.ram.use_hugepages {
        true => LargePages::Reserve,
        false => LargePages::Collapse,
    };
    SlabConfig { maker: MakerConfig { large_pages }, sources, nodes: plan.shard_nodes.clone() }
}

/// This node as others are told of it, where its catalog can be shared. It is served on `port`.
fn own_node(config: &Config, port: u16) -> Option<OwnNode> {
    let shared = matches!(config.database, DatabaseConfig::Postgres { .. });
    shared.then(|| OwnNode {
        name: config.node.name.clone(),
        address: address::told(&config.node, &config.server.bind_address, port).to_string(),
    })
}

/// Opens the catalog that is configured, for this node.
#[cfg_attr(not(feature = "postgres"), allow(unused_variables, reason = "only PostgreSQL asks who uses it"))]
fn store_open(config: &Config, drivers: &Drivers, own: Option<&OwnNode>) -> anyhow::Result<Box<dyn Store>> {
    match &config.database {
        #[cfg(feature = "sqlite")]
        DatabaseConfig::Sqlite { path, synchronous } => Ok(Box::new(SqliteStore::open(path, *synchronous)?)),
        #[cfg(feature = "postgres")]
        DatabaseConfig::Postgres { connection_uri, pooled, .. } => {
            let own = own.expect("a shared catalog");
            Ok(Box::new(PostgresStore::open(PostgresConfig {
                connection_uri: connection_uri.0.clone(),
                pooled: *pooled,
                node: own.name.clone(),
                disk_root: drivers.root_id().map(str::to_owned),
                address: own.address.clone(),
            })?))
        }
        DatabaseConfig::Memory => Ok(Box::new(MemoryStore::default())),
        #[allow(unreachable_patterns, reason = "reachable where a backend is not built in")]
        _ => anyhow::bail!(
            "this server was built without the configured database; see the features of its build"
        ),
    }
}

/// What payloads may use of each tier; `None` where this version has no tier.
fn capacity(config: &Config, gpu: Option<&Gpu>) -> PerTier<Option<ByteCount>> {
    let mut capacity = PerTier::default();
    let whole = |size: ByteCount| ByteCount(size.0 / limits::PAGE_BYTES * limits::PAGE_BYTES);
    capacity[Tier::Gpu] = gpu.and_then(Gpu::capacity).map(whole);
    capacity[Tier::Ram] = Some(config.storage.ram.capacity);
    // Tables and spares of segment files are on the disk, too, and all of it together stays within what is configured.
    let packed = disk_capacity_packed(config).and_then(Geometry::of_capacity);
    capacity[Tier::Disk] = Some(packed.map_or(config.storage.disk.capacity, Geometry::usable));
    capacity[Tier::Object] = config.storage.object.as_ref().map(|_| OBJECT_CAPACITY);
    capacity
}

/// Opens the devices that are configured; what is absent is a warning.
fn gpu_open(config: &Config, platform: &dyn Platform) -> Option<Gpu> {
    if config.storage.gpu.is_empty() {
        return None;
    }
    let device = |wanted: &crate::config::GpuConfig| GpuDevice {
        device: DeviceId(wanted.device_id),
        // All of it stands for what the driver finds fit.
        capacity: wanted.capacity.unwrap_or(ByteCount(u64::MAX)),
    };
    let devices = config.storage.gpu.iter().map(device).collect();
    Some(Gpu::open(&GpuConfig { devices }, GpuSharing::Handles, platform))
}

/// What refusals on GPU say: that a payload lies on one device, or why there is none.
fn gpu_limits(gpu: &Gpu) -> TierLimits {
    if gpu.capacity().is_some() {
        return TierLimits { payload_max: Some(gpu.payload_max()), absent: None };
    }
    let faults = gpu.health().into_iter().filter_map(|device| Some((device.device, device.fault?)));
    let mut said: Vec<String> = faults.map(|(device, fault)| format!("GPU {device}: {fault}")).collect();
    said.truncate(GPU_FAULTS_SAID_MAX);
    said.push("`payload-manager doctor` says what this machine lacks".to_owned());
    TierLimits { payload_max: None, absent: Some(said.join("; ").into()) }
}

/// Devices that one refusal names.
const GPU_FAULTS_SAID_MAX: usize = 4;

/// Nobody knows how much a store has room for; it says so when it is full. 1 EiB: sums of it stay within 63 bits.
const OBJECT_CAPACITY: ByteCount = ByteCount(1 << 60);

/// The disk's capacity, where payloads may share files.
fn disk_capacity_packed(config: &Config) -> Option<ByteCount> {
    let DiskConfig { capacity, packs, .. } = config.storage.disk;
    packs.then_some(capacity)
}

/// What is configured beyond [`capacity`].
fn overhead(config: &Config) -> PerTier<u64> {
    let capacity = capacity(config, None);
    let mut overhead = PerTier::default();
    overhead[Tier::Disk] = config.storage.disk.capacity.0 - capacity[Tier::Disk].map_or(0, |usable| usable.0);
    overhead
}

fn shards_new(config: &Config, epoch: Epoch, capacity: PerTier<Option<ByteCount>>) -> Vec<Shard> {
    let books = Books::default();
    let shard = |index| {
        let mut shard = Shard::new(ShardConfig {
            shard: ShardIndex(index),
            shard_count: config.shards.count,
            epoch,
            capacity,
            lease_ms_default: config.leases.default_ms,
            lease_ms_max: config.leases.max_ms,
            dead_grace_ms: config.leases.dead_grace_ms,
            allocation_timeout_ms: config.leases.allocation_timeout_ms,
            disk_fsync: config.storage.disk.fsync,
            retry_backoff_ms: config.spill_workers.retry_backoff_ms,
            session_caps: config.local.session_caps,
        });
        shard.share_caps(Box::new(books.clone()));
        shard
    };
    (0..config.shards.count).map(shard).collect()
}

/// The arbiter, knowing what the adopted payloads already use.
fn arbiter_preloaded(config: &Config, capacity: PerTier<Option<ByteCount>>, shards: &[Shard]) -> Arbiter {
    let count = u16::try_from(shards.len()).expect("limits::SHARD_COUNT_MAX fits");
    let mut watermarks = PerTier::<Watermarks>::default();
    watermarks[Tier::Ram] = config.storage.ram.watermarks;
    watermarks[Tier::Disk] = config.storage.disk.watermarks;
    watermarks[Tier::Gpu] = config.storage.gpu_watermarks;
    let mut arbiter = Arbiter::with_watermarks(capacity, watermarks, count);
    for (index, shard) in (0..count).zip(shards) {
        let held = shard.budget_held();
        for tier in Tier::ALL {
            if held[tier].0 > 0 {
                arbiter.preload(ShardIndex(index), tier, held[tier]);
            }
        }
    }
    arbiter
}

fn drivers_config(config: &Config) -> DriversConfig {
    DriversConfig {
        shm_prefix: config.storage.ram.shm_prefix.clone(),
        segment_mode: config.storage.ram.segment_mode,
        disk_root: Some(config.storage.disk.root_path.clone()),
        file_mode: config.storage.disk.file_mode,
        node: config.node.name.clone(),
        worker_threads: config.spill_workers.threads,
        transfer_threads: config.spill_workers.threads,
        shard_count: config.shards.count,
        retry_backoff: Duration::from_millis(config.spill_workers.retry_backoff_ms),
        ram_capacity: Some(config.storage.ram.capacity),
        disk_capacity: disk_capacity_packed(config),
        compaction_bytes_per_second: config.storage.disk.compaction_bytes_per_second,
        has_objects: config.storage.object.is_some(),
        ..DriversConfig::default()
    }
}

fn reactor_config(config: &Config, plan: &Plan) -> ReactorConfig {
    ReactorConfig {
        cores: plan.shard_cores.clone(),
        spin: match config.shards.spin {
            Spin::Auto => SpinPolicy::Adaptive,
            Spin::Off => SpinPolicy::Never,
            Spin::On => SpinPolicy::Always,
        },
        drain_timeout: Budget::of(config.shutdown.drain_timeout_ms, config.shutdown.spill_budget_ms).shards,
        ..ReactorConfig::default()
    }
}

/// Which cores shards and front run on.
///
/// # Errors
/// One sentence: a core that this process may not use, or as many cores as there are shards.
pub fn plan(config: &Config) -> anyhow::Result<Plan> {
    let machine = topology::Machine::detect().context("the cores this process may use cannot be read")?;
    let count = usize::from(config.shards.count);
    // More cores than shards may be named; the first ones are taken.
    let shard_cores = config.shards.cores.as_ref().map(|cores| cores[..count.min(cores.len())].to_vec());
    let wanted = Wanted {
        shard_count: Some(config.shards.count),
        shard_cores,
        front_cores: config.front.cores.clone(),
    };
    Ok(machine.plan(&wanted)?)
}
