//! Every key there is, once. Validation, environment variables, `--check-config` and docs/OPERATIONS.md read this.

use payload_reactor::SESSIONS_MAX;
use payload_types::limits;

use super::key::Default::{Said, Value};
use super::key::Kind::{
    Address, Cores, Count, Duration, Flag, Ids, Map, Mode, Name, ObjectRoot, Path, Presence, Seconds, Size,
    Text, Word,
};
use super::key::{Key, Words};

/// Requests admitted at one time: as many as one shard keeps; beyond it a caller is told to try again.
const REQUESTS_IN_FLIGHT_DEFAULT: &str = "4096";
const _: () = assert!(limits::REQUESTS_PER_SHARD_MAX == 4096);
/// The most that may be configured: 2^20 requests of ~1 KiB are 1 GiB.
const REQUESTS_IN_FLIGHT_MAX: u64 = 1 << 20;
/// Connections may never need more descriptors than a process can have (fs.nr_open is 2^20 by default).
const CONNECTIONS_MAX: u64 = 1 << 20;
/// Calls of one connection: as many as one shard's request lane holds.
const STREAMS_DEFAULT: &str = "1024";
const _: () = assert!(limits::REQUEST_LANE_LEN == 1024);
/// More than the requests that may be in flight.
const STREAMS_MAX: u64 = 1 << 20;
/// A quarter of the largest message.
const HEADER_BYTES_MAX: u64 = 1 << 20;
/// Threads for blocking work: more than this wait for the same disk.
const THREADS_MAX: u64 = 256;
/// CUDA devices of one host; the largest hosts have 16.
const DEVICE_MAX: u64 = 1023;
/// Milliseconds of the intervals that existing observability keys carry: a day.
const MILLIS_MAX: u64 = 86_400_000;
/// Entries of an exporter's queue.
const QUEUE_MAX: u64 = 1 << 20;

const NOT_POLLED: &str = "delivery does not poll";
const ARROW_ONLY: &str = "it tunes another S3 client";

static SPIN: Words = words(&["auto", "off", "on"]);
static CLIENT_CERTIFICATES: Words = words(&["required", "optional"]);
static PACKING: Words = with_default(&["auto", "off"], &[("on", "auto")]);
static SYNCHRONOUS: Words = words(&["full", "normal"]);
static FORMAT: Words = words(&["text", "json"]);
static SCHEME: Words = words(&["https", "http"]);
static LEVEL: Words = Words {
    taken: &["trace", "debug", "info", "warn", "error", "off"],
    aliases: &[("warning", "warn"), ("err", "error"), ("critical", "error")],
    refused: &[],
};
static CREDENTIALS: Words = Words {
    taken: &["default", "anonymous", "explicit", "web_identity"],
    aliases: &[
        ("CREDENTIALS_KIND_UNSPECIFIED", ""),
        ("CREDENTIALS_KIND_DEFAULT", "default"),
        ("CREDENTIALS_KIND_ANONYMOUS", "anonymous"),
        ("CREDENTIALS_KIND_EXPLICIT", "explicit"),
        ("CREDENTIALS_KIND_WEB_IDENTITY", "web_identity"),
    ],
    refused: &[("role", NO_ROLES), ("CREDENTIALS_KIND_ROLE", NO_ROLES)],
};
static FILE_SYSTEM: Words = Words {
    taken: &[
        "FILE_SYSTEM_AUTO",
        "FILE_SYSTEM_LOCAL",
        "FILE_SYSTEM_S3",
        "FILE_SYSTEM_GCS",
        "FILE_SYSTEM_AZURE",
    ],
    aliases: &[("FILE_SYSTEM_UNSPECIFIED", "")],
    refused: &[("FILE_SYSTEM_HDFS", "HDFS is not supported; use S3, GCS, Azure or a local directory")],
};
const NO_COMPRESSION: &str = "objects are compressed with COMPRESSION_ZSTD or COMPRESSION_LZ4, or stored as they are \
     (COMPRESSION_UNCOMPRESSED); choose one of these";
const NO_ROLES: &str = "roles are assumed by web identity only, from AWS_ROLE_ARN and AWS_WEB_IDENTITY_TOKEN_FILE in the \
     server's environment; remove this key and set these, or give access_key and secret_key";
const NO_BUCKETS: &str =
    "buckets are never made by the server; make it with your store's own tools and remove this key";
const NO_METADATA: &str =
    "objects carry no metadata of their own, their sidecars do (`<id>.meta.json`); remove this key";
static COMPRESSION: Words = Words {
    taken: &["COMPRESSION_AUTO", "COMPRESSION_UNCOMPRESSED", "COMPRESSION_ZSTD", "COMPRESSION_LZ4"],
    aliases: &[
        ("COMPRESSION_UNSPECIFIED", ""),
        ("COMPRESSION_NONE", "COMPRESSION_UNCOMPRESSED"),
        ("COMPRESSION_LZ4_FRAME", "COMPRESSION_LZ4"),
    ],
    refused: &[
        ("COMPRESSION_LZ4_HADOOP", NO_COMPRESSION),
        ("COMPRESSION_GZIP", NO_COMPRESSION),
        ("COMPRESSION_SNAPPY", NO_COMPRESSION),
        ("COMPRESSION_BROTLI", NO_COMPRESSION),
        ("COMPRESSION_BZ2", NO_COMPRESSION),
        ("COMPRESSION_LZO", NO_COMPRESSION),
    ],
};
static TRANSPORT: Words =
    with_default(&["OTLP_TRANSPORT_GRPC", "OTLP_TRANSPORT_HTTP"], &[("OTLP_TRANSPORT_UNSPECIFIED", "")]);
static TRACE_HINT: Words = with_default(
    &["TRACE_HINT_DEFAULT", "TRACE_HINT_ALWAYS", "TRACE_HINT_NEVER"],
    &[("TRACE_HINT_UNSPECIFIED", "")],
);
static TRACE_PROCESSOR: Words = with_default(
    &["TRACE_PROCESSOR_SIMPLE", "TRACE_PROCESSOR_BATCH"],
    &[("TRACE_PROCESSOR_UNSPECIFIED", "")],
);
static LOG_PROCESSOR: Words =
    with_default(&["LOG_PROCESSOR_SIMPLE", "LOG_PROCESSOR_BATCH"], &[("LOG_PROCESSOR_UNSPECIFIED", "")]);
static ATTRIBUTES: Words = with_default(
    &["ATTRIBUTES_MINIMAL", "ATTRIBUTES_STANDARD", "ATTRIBUTES_VERBOSE"],
    &[("ATTRIBUTES_UNSPECIFIED", ""), ("ATTRIBUTE_LEVEL_UNSPECIFIED", "")],
);

const fn words(taken: &'static [&'static str]) -> Words {
    with_default(taken, &[])
}

const fn with_default(
    taken: &'static [&'static str],
    aliases: &'static [(&'static str, &'static str)],
) -> Words {
    Words { taken, aliases, refused: &[] }
}

/// The table, in the order in which it is shown.
#[rustfmt::skip]
pub(super) static KEYS: &[Key] = &[
    Key::new("node.name", Name, Value("node"), "names this node in the catalog and its intent logs; it must stay the same from start to start"),
    Key::new("node.address", Address, Said("server.bind_address, by this host's name where that is every address"), "where clients of other hosts reach this node's gRPC; nodes that share a PostgreSQL tell it for each other; port 0: the one served"),
    Key::new("server.bind_address", Address, Value("127.0.0.1:50051"), "where gRPC is served; port 0 takes any free one"),
    Key::new("server.require_tls", Flag, Value("false"), "refuse to start on an address other hosts can reach without TLS, instead of warning"),
    Key::new("server.tls.certificate", Path, Said("no TLS"), "the server's certificate and what it was signed with, in PEM; clients of gRPC must speak TLS then. SIGHUP reads it again"),
    Key::new("server.tls.private_key", Path, Said(""), "its private key, in PEM"),
    Key::new("server.tls.client_ca", Path, Said("clients' certificates are not asked for"), "certificates, in PEM, of the authorities that sign clients' certificates; clients must have one then"),
    Key::new("server.tls.client_certificates", Word(&CLIENT_CERTIFICATES), Value("required"), "optional: a client may come without one, for instance with a token"),
    Key::new("server.access_file", Path, Said("everybody may do everything"), "who may call what: callers with their role, by token or certificate (\"Access\" below). SIGHUP reads it again"),
    Key::new("front.cores", Cores, Said(""), "cores that the gRPC thread may run on"),
    Key::new("shards.count", Count(1, limits::SHARD_COUNT_MAX as u64), Said("one per listed core, else cores / 4, from 1 to 16"), "threads that own payloads; may change from start to start"),
    Key::new("shards.cores", Cores, Said("over NUMA nodes; free below four cores"), "one core for each shard"),
    Key::new("shards.spin", Word(&SPIN), Value("auto"), "poll for a moment before sleeping: auto does where there are cores to spare; never on an idle server"),
    Key::new("limits.allocate_wait", Duration, Value("30s"), "how long Allocate waits for space when the client set no deadline"),
    Key::new("limits.requests_in_flight", Count(1, REQUESTS_IN_FLIGHT_MAX), Value(REQUESTS_IN_FLIGHT_DEFAULT), "requests admitted at one time; more are answered RESOURCE_EXHAUSTED"),
    Key::new("limits.connections", Count(1, CONNECTIONS_MAX), Value("1024"), "connections open at one time; more are closed at once"),
    Key::new("limits.streams_per_connection", Count(1, STREAMS_MAX), Value(STREAMS_DEFAULT), "calls open at one time on one connection; a client waits with more"),
    Key::new("limits.header_bytes", Count(1024, HEADER_BYTES_MAX), Value("16384"), "headers of one call, names and values and 32 for each; a call with more is refused"),
    Key::new("limits.handshake_timeout", Duration, Value("10s"), "a connection that has not begun to speak HTTP/2 (and TLS, where it is served) is closed after this"),
    Key::new("limits.write_stall", Duration, Value("60s"), "a connection whose client reads nothing of what is sent to it is closed after this"),
    Key::new("leases.default_lease", Duration, Value("20s"), "a lease that asks for no duration"),
    Key::new("leases.max_lease", Duration, Value("120s"), "the longest lease; longer wishes are cut to it"),
    Key::new("leases.dead_grace", Duration, Value("1s"), "what a dead process had begun with a device may go on for so long: its direct leases hold until then, and what was taken from a living one is used again after it"),
    Key::new("leases.allocation_timeout", Duration, Value("1h"), "an allocation that is never committed is reclaimed after this"),
    Key::new("local.enabled", Flag, Value("true"), "serve native sessions: rings in shared memory for programs on this host; false: gRPC only"),
    Key::new("local.socket_path", Path, Said("payload-manager.sock in the data directory"), "the Unix socket where they begin; at most 107 bytes"),
    Key::new("local.socket_mode", Mode, Value("0660"), "permission bits of the socket"),
    Key::new("local.socket_group", Text, Said(""), "the socket's group, by name or number; unset: the server's own"),
    Key::new("local.allowed_uids", Ids, Said("the server's own user and root"), "users whose programs may open sessions, whatever the socket's permissions"),
    Key::new("local.allowed_gids", Ids, Said(""), "groups whose members may, too"),
    Key::new("local.arenas", Flag, Value("true"), "native sessions may have memory of their own (slabs) that they write without asking for each payload; false: segments only"),
    Key::new("local.sessions_max", Count(1, SESSIONS_MAX as u64), Value("256"), "sessions at one time; more are refused"),
    Key::new("local.session_leases_max", Count(1, limits::LEASES_PER_SHARD_MAX as u64), Value("65536"), "leases that one session may hold"),
    Key::new("local.session_leased_bytes_max", Size, Said("no limit"), "bytes that one session may lease, each lease counted"),
    Key::new("shutdown.drain_timeout", Duration, Value("10s"), "a graceful stop ends within this, once the memory of sessions is saved"),
    Key::new("shutdown.spill_budget", Duration, Value("5s"), "before that, what native sessions committed in their memory (slabs) is copied to DISK for so long at most; the rest is lost, and named in the log"),
    Key::new("database.sqlite.path", Path, Said("catalog.db in the data directory"), "the catalog's file"),
    Key::new("database.sqlite.synchronous", Word(&SYNCHRONOUS), Said("full"), "normal: deletes and expiries are answered before they are synced; a loss of power may undo those of the last moment"),
    Key::new("database.sqlite.wal_mode", Flag, Said("true"), "the write-ahead log is required; false is refused"),
    Key::new("database.postgres.connection_uri", Text, Said(""), "a PostgreSQL catalog, which servers of different node.name may share: `postgresql://user:password@host:5432/database`").with_password(),
    Key::new("database.postgres.max_connections", Count(1, 1000), Said("8"), "connections to it: one that writes, one for the heartbeat, the rest for reading, but at least one"),
    Key::new("database.postgres.pooled", Flag, Said("false"), "it is reached through a proxy that pools by transaction: no named statements, no settings of a session"),
    Key::new("database.memory", Presence, Said(""), "with `{}`: a catalog that is forgotten when the server ends, for tests"),
    Key::new("storage.ram.capacity_bytes", Size, Said("a quarter of memory, at most /dev/shm"), "what the RAM tier may use; clamped to the cgroup's and /dev/shm's limit with a warning"),
    Key::new("storage.ram.high_watermark", Count(1, 100), Value("90"), "eviction begins when more than so many percent of the tier are in use"),
    Key::new("storage.ram.low_watermark", Count(0, 99), Value("80"), "and ends when no more than so many are"),
    Key::new("storage.ram.strict_capacity", Flag, Value("false"), "refuse to start instead of clamping"),
    Key::new("storage.ram.use_hugepages", Flag, Value("false"), "slabs of native sessions from the machine's reserve of large pages (vm.nr_hugepages), as far as it goes; false: large pages are asked for without a reserve"),
    Key::new("storage.ram.shm_prefix", Name, Value("pm"), "begins the names of segments in /dev/shm"),
    Key::new("storage.ram.segment_mode", Mode, Value("0440"), "permission bits of a committed segment; wider ones admit readers of other users, or clients that open read-write"),
    Key::new("storage.disk.root_path", Path, Said("disk in the data directory"), "where the disk tier's files lie; one server's alone"),
    Key::new("storage.disk.capacity_bytes", Size, Said("half of what is free or held already"), "what the disk tier may take on the file system, all of it; from 128 MiB on small payloads share segment files"),
    Key::new("storage.disk.high_watermark", Count(1, 100), Value("90"), "eviction begins when more than so many percent of the tier are in use"),
    Key::new("storage.disk.low_watermark", Count(0, 99), Value("80"), "and ends when no more than so many are"),
    Key::new("storage.disk.fsync", Flag, Value("true"), "bytes are on stable storage before Commit and Spill answer"),
    Key::new("storage.disk.file_mode", Mode, Value("0440"), "permission bits of a committed file; wider ones as for segments"),
    Key::new("storage.disk.packing", Word(&PACKING), Value("auto"), "whether small payloads that the server writes to disk share files; auto: from 128 MiB of capacity on"),
    Key::new("storage.disk.compaction_bytes_per_second", Size, Value("64MiB"), "how fast payloads are moved out of segment files that hold little else by now; 0: as fast as the disk goes"),
    Key::new("storage.gpu.high_watermark", Count(1, 100), Value("90"), "as `storage.ram.high_watermark`"),
    Key::new("storage.gpu.low_watermark", Count(0, 99), Value("80"), "as `storage.ram.low_watermark`"),
    Key::new("storage.gpu.devices[].device_id", Count(0, DEVICE_MAX), Said(""), "CUDA's number of a device of the GPU tier; no other is touched. One that is absent is a warning, and the tier is unavailable without any"),
    Key::new("storage.gpu.devices[].capacity_bytes", Size, Said("nine tenths of the device"), "what the tier may use of it"),
    Key::new("storage.object.root_path", ObjectRoot, Said(""), "where objects lie; a plain path means file:///; unset: there is no OBJECT tier"),
    Key::new("storage.object.filesystem", Word(&FILE_SYSTEM), Said("FILE_SYSTEM_AUTO: by the root's scheme"), "which store it is"),
    Key::new("storage.object.compression", Word(&COMPRESSION), Said("COMPRESSION_AUTO: none"), "how objects are stored from now on; what is stored stays as it is and is read all the same. A compressed object is never leased where it lies, but brought in"),
    Key::new("storage.object.filesystem_options.s3.endpoint_override", Text, Said("AWS"), "host:port or URL of a compatible server"),
    Key::new("storage.object.filesystem_options.s3.scheme", Word(&SCHEME), Said("https"), "how it is spoken to; http also where endpoint_override says so"),
    Key::new("storage.object.filesystem_options.s3.region", Text, Said("from AWS_REGION"), "the bucket's region"),
    Key::new("storage.object.filesystem_options.s3.credentials_kind", Word(&CREDENTIALS), Said("default: the usual AWS environment"), "where credentials come from"),
    Key::new("storage.object.filesystem_options.s3.access_key", Text, Said(""), "for explicit credentials").secret(),
    Key::new("storage.object.filesystem_options.s3.secret_key", Text, Said(""), "for explicit credentials").secret(),
    Key::refused("storage.object.filesystem_options.s3.role_arn", Text, NO_ROLES),
    Key::refused("storage.object.filesystem_options.s3.session_name", Text, NO_ROLES),
    Key::refused("storage.object.filesystem_options.s3.external_id", Text, NO_ROLES).secret(),
    Key::refused("storage.object.filesystem_options.s3.load_frequency", Seconds, NO_ROLES),
    Key::new("storage.object.filesystem_options.s3.tls_verify_certificates", Flag, Said("true"), "check the server's certificate"),
    Key::new("storage.object.filesystem_options.s3.tls_ca_file_path", Path, Said("the system's"), "certificates to trust"),
    Key::new("storage.object.filesystem_options.s3.tls_ca_dir_path", Path, Said("the system's"), "a directory of certificates to trust"),
    Key::new("storage.object.filesystem_options.s3.connect_timeout", Seconds, Said("5s"), "how long connecting may take"),
    Key::new("storage.object.filesystem_options.s3.request_timeout", Seconds, Said("60s"), "how long a request may take; it moves at most a part of 8 MiB"),
    Key::new("storage.object.filesystem_options.s3.force_virtual_addressing", Flag, Said("false"), "put the bucket in the host name with an endpoint_override too"),
    Key::refused("storage.object.filesystem_options.s3.allow_bucket_creation", Flag, NO_BUCKETS),
    Key::new("storage.object.filesystem_options.s3.proxy_options", Map, Said(""), "scheme, host, port, username, password of a proxy").with_password(),
    Key::refused("storage.object.filesystem_options.s3.default_metadata", Map, NO_METADATA),
    Key::new("storage.object.filesystem_options.s3.sse_customer_key", Text, Said(""), "a customer's key for encryption at rest").secret(),
    Key::ignored("storage.object.filesystem_options.s3.background_writes", Flag, "", ARROW_ONLY),
    Key::ignored("storage.object.filesystem_options.s3.allow_delayed_open", Flag, "", ARROW_ONLY),
    Key::ignored("storage.object.filesystem_options.s3.smart_defaults", Text, "", ARROW_ONLY),
    Key::ignored("storage.object.filesystem_options.s3.check_directory_existence_before_creation", Flag, "", ARROW_ONLY),
    Key::ignored("storage.object.filesystem_options.s3.allow_bucket_deletion", Flag, "", "buckets are never deleted"),
    Key::new("spill_workers.threads", Count(0, THREADS_MAX), Said("cores / 2, from 2 to 16"), "threads for blocking work; 0: the default"),
    Key::new("spill_workers.retry_backoff", Duration, Value("500ms"), "the pause before a failed background move, or a failing disk, is tried again; it doubles each time"),
    Key::new("logging.level", Word(&LEVEL), Value("info"), "what is logged; PAYLOAD_MANAGER_LOG and RUST_LOG take precedence"),
    Key::new("logging.format", Word(&FORMAT), Value("text"), "one line of text, or one JSON object, for each event"),
    Key::ignored("logging.pattern", Text, "", "the formats are text and json (logging.format)"),
    Key::new("logging.include_trace_context", Flag, Value("false"), "lines that are written while a traced call is served end with its trace_id and span_id"),
    Key::new("observability.metrics_address", Address, Said(""), "where /metrics is served over plain HTTP, for Prometheus; unset: nowhere"),
    Key::new("observability.metrics_enabled", Flag, Value("false"), "export metrics over OpenTelemetry (OTLP); /metrics needs `observability.metrics_address` only"),
    Key::new("observability.tracing_enabled", Flag, Value("false"), "export traces"),
    Key::later("observability.logs_enabled", Flag, "false", "export logs"),
    Key::new("observability.otlp_endpoint", Text, Said("http://localhost:4317, over HTTP :4318"), "where OpenTelemetry is sent; without a scheme: http; https and a password over OTLP_TRANSPORT_HTTP only").with_password(),
    Key::new("observability.transport", Word(&TRANSPORT), Said("OTLP_TRANSPORT_GRPC"), "how it is sent; over HTTP to /v1/metrics and /v1/traces below the endpoint"),
    Key::new("observability.metrics.request_metrics_enabled", Flag, Value("true"), "counts and latencies of calls, exported"),
    Key::new("observability.metrics.spill_metrics_enabled", Flag, Value("true"), "durations of moves between tiers, exported"),
    Key::new("observability.metrics.tier_occupancy_metrics_enabled", Flag, Value("true"), "bytes of each tier, exported"),
    Key::new("observability.metrics.request_latency_histograms_enabled", Flag, Value("true"), "latencies beside the counts, exported"),
    Key::new("observability.metrics.route_labels_enabled", Flag, Value("true"), "calls are told by RPC; false: all together"),
    Key::new("observability.metrics.tier_labels_enabled", Flag, Value("true"), "bytes and moves are told by tier; false: all together"),
    Key::new("observability.metrics.min_collection_interval_ms", Count(0, MILLIS_MAX), Value("1000"), "the shortest collection interval, whatever the next key says"),
    Key::new("observability.metrics.collection_interval_ms", Count(0, MILLIS_MAX), Value("60000"), "how often metrics are collected"),
    Key::new("observability.metrics.export_timeout_ms", Count(0, MILLIS_MAX), Value("30000"), "how long an export may take"),
    Key::new("observability.tracing.trace_hint", Word(&TRACE_HINT), Said("TRACE_HINT_DEFAULT: as the caller's traceparent says; all without one"), "which calls are traced"),
    Key::new("observability.tracing.processor", Word(&TRACE_PROCESSOR), Said("TRACE_PROCESSOR_BATCH"), "TRACE_PROCESSOR_SIMPLE hands spans on within 10 ms, whatever batch.schedule_delay_ms says"),
    Key::new("observability.tracing.batch.max_queue_size", Count(0, QUEUE_MAX), Value("2048"), "spans that wait for export; more are dropped, and counted"),
    Key::new("observability.tracing.batch.max_export_batch_size", Count(0, QUEUE_MAX), Value("512"), "spans of one export"),
    Key::new("observability.tracing.batch.schedule_delay_ms", Count(0, MILLIS_MAX), Value("5000"), "how long spans wait for others"),
    Key::new("observability.tracing.batch.export_timeout_ms", Count(0, MILLIS_MAX), Value("30000"), "how long an export may take"),
    Key::new("observability.tracing.stage_spans_enabled", Flag, Value("true"), "spans for the shard, and what it waits for: catalog, copies, storage"),
    Key::ignored("observability.tracing.queue_spans_enabled", Flag, "", "the time in queues is part of the span of what was queued for"),
    Key::ignored("observability.tracing.record_spans_enabled", Flag, "", "metadata, lineage and streams have the span of their call"),
    Key::new("observability.tracing.attribute_level", Word(&ATTRIBUTES), Said("ATTRIBUTES_STANDARD"), "how much a span says: RPC and status; payload and shard, too; and what work failed with"),
    Key::new("observability.tracing.latency_budget_ms", Count(0, MILLIS_MAX), Said("none"), "calls that take longer are marked payload.latency_budget_exceeded"),
    Key::later("observability.logging.processor", Word(&LOG_PROCESSOR), "LOG_PROCESSOR_BATCH", "how log records are handed on"),
    Key::later("observability.logging.batch.max_queue_size", Count(0, QUEUE_MAX), "", "records that wait for export"),
    Key::later("observability.logging.batch.max_export_batch_size", Count(0, QUEUE_MAX), "", "records of one export"),
    Key::later("observability.logging.batch.schedule_delay_ms", Count(0, MILLIS_MAX), "", "how long records wait"),
    Key::later("observability.logging.batch.export_timeout_ms", Count(0, MILLIS_MAX), "", "how long an export may take"),
    Key::ignored("stream.subscribe_poll_interval_ms", Count(0, MILLIS_MAX), "", NOT_POLLED),
];

/// The key with this path, in which `[]` stands for indices.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// True when keys lie below `path`: `storage.gpu` is a section, `storage.gpu.devices` a list.
pub(super) fn has_below(path: &str, separator: &str) -> bool {
    KEYS.iter().any(|key| key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with(separator)))
}
