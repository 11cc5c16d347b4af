//! Every key loads, is listed in the table, is shown, and loads again from what is shown.

use std::collections::BTreeSet;

use payload_catalog::Synchronous;
use payload_shards::Watermarks;

use super::super::key::{Default, Standing};
use super::super::settings::without_indices;
use super::super::table::KEYS;
use super::super::*;
use super::{load, load_with};

const EVERY_KEY: &str = include_str!("every_key.yaml");
const POSTGRES: &str =
    "database: {postgres: {connection_uri: 'postgresql://pm:db-secret@db/payloads', max_connections: 4}}";
const MEMORY: &str = "database: {memory: {}}";

/// What the fixture holds that must never be shown.
const SECRETS: [&str; 5] =
    ["AKIA-VISIBLE-NOWHERE", "s3-secret-value", "proxy-secret", "sse-secret", "db-secret"];

#[test]
fn given_a_file_with_every_key_when_loaded_then_each_is_taken() {
    let loaded = [EVERY_KEY, POSTGRES, MEMORY].map(|yaml| load(yaml).expect("every key is valid"));
    let seen: BTreeSet<String> = loaded
        .iter()
        .flat_map(|loaded| loaded.settings.iter())
        .map(|(path, _)| without_indices(path))
        .collect();
    let paths: BTreeSet<&str> = KEYS.iter().map(|key| key.path).collect();
    assert_eq!(paths.len(), KEYS.len(), "no path is listed twice");
    let taken = KEYS.iter().filter(|key| !matches!(key.standing, Standing::Refused(_)));
    let known: BTreeSet<String> = taken.map(|key| key.path.to_owned()).collect();
    assert_eq!(known.difference(&seen).collect::<Vec<_>>(), Vec::<&String>::new(), "the fixture lacks these");
}

#[test]
fn given_a_file_with_every_key_when_loaded_then_the_tree_holds_what_it_says() {
    let config = load(EVERY_KEY).expect("valid").config;
    assert_eq!(config.node.name, "node-7");
    assert_eq!(config.node.address.map(|address| address.to_string()).as_deref(), Some("host-7:50052"));
    assert!(config.server.require_tls && config.server.bind_address.port == 50052);
    let tls = config.server.tls.expect("configured");
    assert_eq!(tls.client_ca.as_deref(), Some(std::path::Path::new("/etc/pm/clients.pem")));
    assert!(tls.is_client_optional && config.server.access_file.is_some());
    let limits = &config.limits;
    assert_eq!((limits.streams_per_connection, limits.header_bytes), (20, 8192));
    assert_eq!((limits.handshake_timeout_ms, limits.write_stall_ms), (3000, 9000));
    assert_eq!((config.front.cores, config.shards.cores), (Some(vec![0]), Some(vec![1, 2])));
    assert_eq!(config.shards.spin, Spin::Off);
    assert_eq!(config.observability.metrics_address.map(|address| address.port), Some(9464));
    assert!(config.logging.include_trace_context);
    let otlp = config.observability.otlp.expect("asked for");
    assert_eq!((otlp.endpoint.0.as_str(), otlp.transport), ("http://collector:4317", OtlpTransport::Http));
    let metrics = otlp.metrics.expect("asked for");
    assert_eq!((metrics.interval_ms, metrics.timeout_ms, metrics.request_latencies), (1000, 500, false));
    let tracing = otlp.tracing.expect("asked for");
    assert_eq!((tracing.hint, tracing.attributes), (TraceHint::Always, AttributeLevel::Verbose));
    assert_eq!((tracing.batch.delay_ms, tracing.latency_budget_ms), (10, Some(10)));
    assert_eq!((config.limits.allocate_wait_ms, config.limits.requests_in_flight), (500, 100));
    assert_eq!((config.limits.connections, config.leases.allocation_timeout_ms), (50, 7_200_000));
    assert!(matches!(config.database, DatabaseConfig::Sqlite { synchronous: Synchronous::Normal, .. }));
    assert_eq!(config.storage.ram.capacity.0, 64 << 20);
    assert_eq!((config.storage.ram.shm_prefix.as_str(), config.storage.ram.segment_mode), ("pm-test", 0o660));
    assert_eq!((config.storage.disk.capacity.0, config.storage.disk.fsync), (1 << 30, false));
    assert_eq!(config.storage.disk.file_mode, 0o644);
    assert_eq!(config.storage.disk.compaction_bytes_per_second, 8 << 20);
    assert!(!config.storage.disk.packs);
    assert_eq!(config.storage.ram.watermarks, Watermarks { low: 60, high: 70 });
    assert_eq!(config.storage.disk.watermarks, Watermarks { low: 0, high: 95 });
    assert_eq!(config.storage.gpu[1].capacity.map(|size| size.0), Some(4 << 30));
    assert_eq!(config.local.socket_path, std::path::Path::new("/run/pm/native.sock"));
    assert_eq!((config.local.socket_mode, config.local.socket_group.as_deref()), (0o666, Some("pipelines")));
    assert_eq!((config.local.allowed_uids, config.local.allowed_gids), (vec![0, 1000], vec![4242]));
    assert!(!config.local.enabled && config.local.sessions_max == 8);
    assert!(!config.local.arenas && config.storage.ram.use_hugepages);
    let caps = config.local.session_caps;
    assert_eq!((caps.leases_max, caps.leased_bytes_max), (1000, 2 << 30));
    assert_eq!((config.spill_workers.threads, config.spill_workers.retry_backoff_ms), (3, 250));
    assert_eq!((config.logging.level, config.logging.format), (LogLevel::Warn, LogFormat::Json));
}

#[test]
fn given_keys_that_have_no_effect_when_loaded_then_one_warning_each() {
    let warnings = load(EVERY_KEY).expect("valid").warnings;
    let count = |words: &str| warnings.iter().filter(|warning| warning.contains(words)).count();
    for words in [
        "`logging.pattern` is ignored",
        "`stream.subscribe_poll_interval_ms` is ignored",
        "background_writes` is ignored",
        "tls_verify_certificates` is false",
        "`observability.logs_enabled` is configured, but not built yet",
        "`observability.tracing.queue_spans_enabled` is ignored",
        "`observability.tracing.record_spans_enabled` is ignored",
        "`storage.disk.fsync` is false",
    ] {
        assert_eq!(count(words), 1, "{words}: {warnings:#?}");
    }
    assert_eq!(count(""), 12, "{warnings:#?}");
    let unused = "observability: {metrics_enabled: false, tracing: {latency_budget_ms: 5}}";
    assert_eq!(load(unused).expect("valid").warnings, Vec::<String>::new());
}

#[test]
fn given_what_this_version_cannot_do_when_checked_then_refused_and_else_not() {
    let loaded = load(POSTGRES).expect("valid");
    assert_eq!(loaded.warnings, Vec::<String>::new());
    assert_eq!(loaded.config.check_supported(), Ok(()));
    let DatabaseConfig::Postgres { connections_max, pooled, .. } = loaded.config.database else {
        panic!("it was asked for")
    };
    assert_eq!((connections_max, pooled), (4, false));
    let open = load("server: {bind_address: '0.0.0.0:1', require_tls: true}").expect("valid").config;
    assert!(open.check_supported().is_err_and(|error| error.to_string().contains("TLS")));
    assert_eq!(load(MEMORY).expect("valid").config.check_supported(), Ok(()));
}

#[test]
fn given_any_configuration_when_shown_and_loaded_again_then_the_same() {
    for yaml in ["", EVERY_KEY, POSTGRES, MEMORY, "leases: {default_lease: 1500ms, max_lease: 1d}"] {
        let first = load(yaml).expect("valid");
        let second = load(&first.to_yaml()).unwrap_or_else(|error| panic!("{error} in\n{}", first.to_yaml()));
        assert_eq!(second.to_yaml(), first.to_yaml());
        let open = |mut config: Config| {
            if let DatabaseConfig::Postgres { connection_uri, .. } = &mut config.database {
                connection_uri.0.clear();
            }
            if let Some(object) = &mut config.storage.object {
                let s3 = &mut object.s3;
                (s3.keys, s3.proxy, s3.sse_customer_key) = (None, None, None);
            }
            config
        };
        assert_eq!(open(second.config), open(first.config));
    }
}

#[test]
fn given_secrets_when_shown_then_masked_and_nowhere_in_debug_output() {
    for yaml in [EVERY_KEY, POSTGRES] {
        let loaded = load(yaml).expect("valid");
        for secret in SECRETS {
            assert!(!loaded.to_yaml().contains(secret), "{secret}:\n{}", loaded.to_yaml());
            assert!(!format!("{:?}", loaded.config).contains(secret), "{secret}");
            assert!(!loaded.warnings.iter().any(|warning| warning.contains(secret)), "{secret}");
        }
    }
    assert!(load(EVERY_KEY).expect("valid").to_yaml().contains("host: proxy"), "what is no secret is shown");
    assert!(load(POSTGRES).expect("valid").to_yaml().contains("postgresql://pm:********@db/payloads"));
}

#[test]
fn given_the_effective_configuration_when_shown_then_defaults_and_decisions_are_in_it() {
    let shown = load("").expect("valid").to_yaml();
    for line in [
        "bind_address: 127.0.0.1:50051",
        "path: /srv/payload-data/catalog.db",
        "capacity_bytes: 4294967296",
        "default_lease: 20s",
        "count: 2",
        "threads: 4",
        "level: info",
    ] {
        assert!(shown.contains(line), "{line} in\n{shown}");
    }
    assert!(!shown.contains("object") && !shown.contains("postgres"), "only what holds is shown:\n{shown}");
}

#[test]
fn given_the_tables_defaults_when_read_then_each_is_valid_for_its_kind() {
    let mut count = 0;
    let loaded = load("").expect("valid");
    for key in KEYS.iter().filter(|key| matches!(key.default, Default::Value(_))) {
        assert!(loaded.settings.value(key.path).is_some(), "{}", key.path);
        count += 1;
    }
    assert!(count > 10, "{count}");
}

#[test]
fn given_any_key_when_named_by_its_variable_then_it_is_found() {
    for key in KEYS {
        let name = key.path.replace("[]", ".0").replace('.', "__").to_uppercase();
        let name = format!("{ENV_PREFIX}{name}");
        if let Err(ConfigError::UnknownKey { path, .. }) = load_with("", &[(&name, "[[]]")]) {
            panic!("{name} is unknown as {path}");
        }
    }
}
