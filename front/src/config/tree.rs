//! The tree that the rest of the server reads: resolved values in their own types. Plain data.
//!
//! Keys of tiers and exporters that are not built in this version are validated and shown, but have no field here:
//! the issue that builds one adds its fields.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use payload_catalog::Synchronous;
use payload_shards::{SessionCaps, Watermarks};
use payload_types::ByteCount;

use super::object::ObjectTierConfig;

/// Everything a node is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Who this node is.
    pub node: NodeConfig,
    /// Where it listens.
    pub server: ServerConfig,
    /// The threads that decode and answer.
    pub front: FrontConfig,
    /// The threads that own payloads.
    pub shards: ShardsConfig,
    /// What is refused or waited for.
    pub limits: LimitsConfig,
    /// How long leases and allocations last.
    pub leases: LeasesConfig,
    /// Native sessions of programs on this host.
    pub local: LocalConfig,
    /// How the server ends.
    pub shutdown: ShutdownConfig,
    /// Where the catalog is kept.
    pub database: DatabaseConfig,
    /// Where bytes are kept.
    pub storage: StorageConfig,
    /// The threads that block.
    pub spill_workers: SpillWorkersConfig,
    /// What is logged and how.
    pub logging: LoggingConfig,
    /// What is told to monitors.
    pub observability: ObservabilityConfig,
}

/// `local`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalConfig {
    /// Whether native sessions are served.
    pub enabled: bool,
    /// Where.
    pub socket_path: PathBuf,
    /// Permission bits of the socket.
    pub socket_mode: u32,
    /// Its group, by name or number; `None`: the server's own.
    pub socket_group: Option<String>,
    /// Users who may come in; empty: the server's own and root.
    pub allowed_uids: Vec<u32>,
    /// Groups whose members may come in, too.
    pub allowed_gids: Vec<u32>,
    /// Whether sessions may have memory that they write and others map once.
    pub arenas: bool,
    /// Sessions at a time.
    pub sessions_max: u16,
    /// What one of them may lease on one shard.
    pub session_caps: SessionCaps,
}

/// `observability`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObservabilityConfig {
    /// Where /metrics is served; `None`: nowhere.
    pub metrics_address: Option<BindAddress>,
    /// What is exported over OpenTelemetry; `None`: nothing.
    pub otlp: Option<OtlpConfig>,
}

/// `observability`, as far as OpenTelemetry goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OtlpConfig {
    /// Where to: with its scheme. May hold a password.
    pub endpoint: Secret,
    /// How.
    pub transport: OtlpTransport,
    /// `None`: no metrics.
    pub metrics: Option<OtlpMetricsConfig>,
    /// `None`: no traces.
    pub tracing: Option<TracingConfig>,
}

/// `observability.transport`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OtlpTransport {
    /// gRPC.
    Grpc,
    /// Protobuf over HTTP.
    Http,
}

/// `observability.metrics`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OtlpMetricsConfig {
    /// How often.
    pub interval_ms: u64,
    /// How long one export may take.
    pub timeout_ms: u64,
    /// Counts and latencies of calls.
    pub requests: bool,
    /// Latencies beside the counts.
    pub request_latencies: bool,
    /// Durations of moves.
    pub spills: bool,
    /// Bytes of each tier.
    pub occupancy: bool,
    /// Calls are told by RPC.
    pub route_labels: bool,
    /// Moves and bytes are told by tier.
    pub tier_labels: bool,
}

/// `observability.tracing`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TracingConfig {
    /// Which calls.
    pub hint: TraceHint,
    /// How spans are handed on.
    pub batch: BatchConfig,
    /// Spans within a call.
    pub stage_spans: bool,
    /// How much a span says.
    pub attributes: AttributeLevel,
    /// Slower calls are marked.
    pub latency_budget_ms: Option<u64>,
}

/// How what is exported waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchConfig {
    /// What may wait; more is dropped.
    pub queue_len: usize,
    /// What one export carries.
    pub batch_len: usize,
    /// How long it waits.
    pub delay_ms: u64,
    /// How long one export may take.
    pub timeout_ms: u64,
}

/// OpenTelemetry's own defaults.
impl Default for BatchConfig {
    fn default() -> Self {
        Self { queue_len: 2048, batch_len: 512, delay_ms: 5000, timeout_ms: 30_000 }
    }
}

/// `observability.tracing.trace_hint`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TraceHint {
    /// As the caller says; all without a caller's trace.
    #[default]
    Default,
    /// All.
    Always,
    /// None.
    Never,
}

/// `observability.tracing.attribute_level`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum AttributeLevel {
    /// The RPC and its status.
    Minimal,
    /// And which payload and shard.
    #[default]
    Standard,
    /// And what drivers and the catalog are asked for.
    Verbose,
}

/// `node`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeConfig {
    /// Names the node in the catalog and its intent logs; the same at every start.
    pub name: String,
    /// Where other hosts reach its gRPC; `None`: where it is served. Port 0: the one it is served on.
    pub address: Option<BindAddress>,
}

/// `server`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerConfig {
    /// Where gRPC is served.
    pub bind_address: BindAddress,
    /// Refuses to serve other hosts without TLS.
    pub require_tls: bool,
    /// `None`: no TLS.
    pub tls: Option<TlsConfig>,
    /// Who may call what; `None`: everybody everything.
    pub access_file: Option<PathBuf>,
}

/// `server.tls`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsConfig {
    /// The server's chain, in PEM.
    pub certificate: PathBuf,
    /// Its key, in PEM.
    pub private_key: PathBuf,
    /// The authorities of clients' certificates; `None`: none are asked for.
    pub client_ca: Option<PathBuf>,
    /// Clients may come without one all the same.
    pub is_client_optional: bool,
}

/// A `host:port`, not looked up yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BindAddress {
    /// A name or an address; IPv6 without brackets.
    pub host: String,
    /// 0: any free port.
    pub port: u16,
}

impl BindAddress {
    /// Looks the host up.
    ///
    /// # Errors
    /// When the name is unknown or its lookup fails.
    pub fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        (self.host.as_str(), self.port).to_socket_addrs().map(Iterator::collect)
    }

    /// True when only this host can connect.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for BindAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(formatter, "[{}]:{}", self.host, self.port),
            false => write!(formatter, "{}:{}", self.host, self.port),
        }
    }
}

/// `front`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FrontConfig {
    /// Cores that the gRPC thread may run on; `None`: any.
    pub cores: Option<Vec<usize>>,
}

/// `shards`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardsConfig {
    /// How many, from 1 to `limits::SHARD_COUNT_MAX`.
    pub count: u16,
    /// One core each, at least `count` of them; `None`: spread by topology.
    pub cores: Option<Vec<usize>>,
    /// Whether a shard without work polls for a moment before it sleeps.
    pub spin: Spin,
}

/// `shards.spin`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spin {
    /// Where there are cores to spare.
    Auto,
    /// Never.
    Off,
    /// Always; for benchmarks and machines that do nothing else.
    On,
}

/// `limits`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LimitsConfig {
    /// How long Allocate waits for space when the client set no deadline, in milliseconds.
    pub allocate_wait_ms: u64,
    /// Requests admitted at one time.
    pub requests_in_flight: usize,
    /// Connections open at one time.
    pub connections: usize,
    /// Calls open at one time on one connection.
    pub streams_per_connection: u32,
    /// Headers of one call.
    pub header_bytes: u32,
    /// How long a client may take to begin, in milliseconds.
    pub handshake_timeout_ms: u64,
    /// How long it may leave unread what is sent to it, in milliseconds.
    pub write_stall_ms: u64,
}

/// `leases`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeasesConfig {
    /// A lease that asks for no duration, in milliseconds.
    pub default_ms: u64,
    /// The longest one, in milliseconds.
    pub max_ms: u64,
    /// How long what a process had begun under a direct lease may go on after its death, or after the lease was taken away.
    pub dead_grace_ms: u64,
    /// An allocation that is never committed is reclaimed after this, in milliseconds.
    pub allocation_timeout_ms: u64,
}

/// `shutdown`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShutdownConfig {
    /// A graceful stop ends within this, in milliseconds, once slabs are saved.
    pub drain_timeout_ms: u64,
    /// For so long at most slabs are saved, in milliseconds.
    pub spill_budget_ms: u64,
}

/// `database`: exactly one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DatabaseConfig {
    /// A file.
    Sqlite {
        /// Absolute.
        path: PathBuf,
        /// What a removal waits for.
        synchronous: Synchronous,
    },
    /// A server, which nodes of different names may share.
    Postgres {
        /// Where, and with which password.
        connection_uri: Secret,
        /// How many connections may be open at a time.
        connections_max: usize,
        /// A proxy that pools by transaction stands in between.
        pooled: bool,
    },
    /// Forgotten when the server ends.
    Memory,
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("********")
    }
}

/// `storage`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StorageConfig {
    /// Shared memory.
    pub ram: RamConfig,
    /// Local files.
    pub disk: DiskConfig,
    /// The GPU tier's devices.
    pub gpu: Vec<GpuConfig>,
    /// Where eviction from it begins and ends.
    pub gpu_watermarks: Watermarks,
    /// The object store; `None`: there is no OBJECT tier.
    pub object: Option<ObjectTierConfig>,
}

/// `storage.ram`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RamConfig {
    /// What the tier may use, clamped to the limits of this machine.
    pub capacity: ByteCount,
    /// Where eviction begins and ends.
    pub watermarks: Watermarks,
    /// Whether slabs of native sessions are made of the machine's reserve of large pages, as far as it goes.
    pub use_hugepages: bool,
    /// Begins the names of its segments.
    pub shm_prefix: String,
    /// The permission bits of a committed segment.
    pub segment_mode: u32,
}

/// `storage.disk`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskConfig {
    /// Where its files lie; absolute.
    pub root_path: PathBuf,
    /// What the tier may take on the file system, segment files and all.
    pub capacity: ByteCount,
    /// Where eviction begins and ends.
    pub watermarks: Watermarks,
    /// Commit waits until the bytes are on stable storage.
    pub fsync: bool,
    /// The permission bits of a committed file.
    pub file_mode: u32,
    /// Payloads that the server writes share files.
    pub packs: bool,
    /// How fast compaction moves payloads, in bytes a second; 0: no limit.
    pub compaction_bytes_per_second: u64,
}

/// One of `storage.gpu.devices`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GpuConfig {
    /// CUDA's number of the device.
    pub device_id: u32,
    /// What the tier may use of it; `None`: nine tenths.
    pub capacity: Option<ByteCount>,
}

/// `spill_workers`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpillWorkersConfig {
    /// Threads for blocking work.
    pub threads: usize,
    /// The pause before a failed background move is tried again, in milliseconds.
    pub retry_backoff_ms: u64,
}

/// `logging`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoggingConfig {
    /// What is logged.
    pub level: LogLevel,
    /// How a line looks.
    pub format: LogFormat,
    /// Lines of traced calls say their ids.
    pub include_trace_context: bool,
}

/// `logging.level`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogLevel {
    /// Everything.
    Trace,
    /// What a developer wants to see.
    Debug,
    /// What an operator wants to see.
    Info,
    /// What should be looked at.
    Warn,
    /// What went wrong.
    Error,
    /// Nothing.
    Off,
}

/// `logging.format`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}
