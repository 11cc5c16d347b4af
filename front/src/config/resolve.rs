//! Makes the typed tree: defaults that depend on the machine, paths, and the relations between keys.
//!
//! What is decided here is written back into the settings, so that what is shown is what holds.

use std::path::{Path, PathBuf};

use payload_catalog::Synchronous;
use payload_reactor::preflight::Machine;
use payload_shards::{SessionCaps, Watermarks};
use payload_types::{ByteCount, limits};

use super::error::ConfigError;
use super::key::Standing;
use super::object;
use super::otlp;
use super::server;
use super::setting::{self, Setting};
use super::settings::{Settings, without_indices};
use super::table;
use super::tree::*;

/// The tree, and the warnings that go with it.
pub(super) fn config(
    settings: &mut Settings,
    machine: &Machine,
    data_dir: &Path,
) -> Result<(Config, Vec<String>), ConfigError> {
    let data_dir = absolute("--data-dir", data_dir)?;
    let mut warnings = Vec::new();
    let config = Config {
        node: NodeConfig {
            name: required_text(settings, "node.name"),
            address: optional_address(settings, "node.address"),
        },
        server: server::resolve(settings, &mut warnings)?,
        front: FrontConfig { cores: settings.cores("front.cores") },
        shards: shards(settings, machine)?,
        limits: LimitsConfig {
            allocate_wait_ms: settings.millis("limits.allocate_wait"),
            requests_in_flight: required_count(settings, "limits.requests_in_flight"),
            connections: required_count(settings, "limits.connections"),
            streams_per_connection: required_small(settings, "limits.streams_per_connection"),
            header_bytes: required_small(settings, "limits.header_bytes"),
            handshake_timeout_ms: server::patience(settings, "limits.handshake_timeout")?,
            write_stall_ms: server::patience(settings, "limits.write_stall")?,
        },
        leases: leases(settings)?,
        local: local(settings, &data_dir)?,
        shutdown: ShutdownConfig {
            drain_timeout_ms: settings.millis("shutdown.drain_timeout"),
            spill_budget_ms: settings.millis("shutdown.spill_budget"),
        },
        database: database(settings, &data_dir)?,
        storage: StorageConfig {
            ram: ram(settings, machine, &mut warnings)?,
            disk: disk(settings, machine, &data_dir, &mut warnings)?,
            gpu: gpu(settings)?,
            gpu_watermarks: watermarks(settings, "storage.gpu")?,
            object: object::resolve(settings, &mut warnings)?,
        },
        spill_workers: spill_workers(settings, machine),
        logging: logging(settings),
        observability: ObservabilityConfig {
            metrics_address: optional_address(settings, "observability.metrics_address"),
            otlp: otlp::resolve(settings)?,
        },
    };
    warnings.extend(ignored(settings));
    warnings.extend(not_built(settings));
    Ok((config, warnings))
}

fn optional_address(settings: &Settings, key: &str) -> Option<BindAddress> {
    settings.text(key).map(|text| setting::address(&text).expect("the table's kind has checked it"))
}

fn shards(settings: &mut Settings, machine: &Machine) -> Result<ShardsConfig, ConfigError> {
    let cores = settings.cores("shards.cores");
    let count_max = u64::from(limits::SHARD_COUNT_MAX);
    let count = settings.number("shards.count").unwrap_or_else(|| match &cores {
        Some(cores) => (cores.len() as u64).min(count_max),
        None => (machine.cores as u64 / 4).clamp(1, 16),
    });
    if let Some(cores) = &cores
        && (cores.len() as u64) < count
    {
        let reason = format!("it names {} cores for {count} shards; name one for each, or none", cores.len());
        return Err(ConfigError::refused("shards.cores", reason));
    }
    settings.set("shards.count", Setting::Number(count));
    let spin = match required_text(settings, "shards.spin").as_str() {
        "off" => Spin::Off,
        "on" => Spin::On,
        _ => Spin::Auto,
    };
    Ok(ShardsConfig { count: u16::try_from(count).expect("the table limits it"), cores, spin })
}

fn leases(settings: &Settings) -> Result<LeasesConfig, ConfigError> {
    let leases = LeasesConfig {
        default_ms: settings.millis("leases.default_lease"),
        max_ms: settings.millis("leases.max_lease"),
        dead_grace_ms: settings.millis("leases.dead_grace"),
        allocation_timeout_ms: settings.millis("leases.allocation_timeout"),
    };
    for (path, milliseconds) in [
        ("leases.default_lease", leases.default_ms),
        ("leases.max_lease", leases.max_ms),
        ("leases.dead_grace", leases.dead_grace_ms),
        ("leases.allocation_timeout", leases.allocation_timeout_ms),
    ] {
        if !(1..=limits::STORED_INTEGER_MAX).contains(&milliseconds) {
            return Err(ConfigError::refused(
                path,
                "it must be at least 1ms and fit 63 bits of milliseconds",
            ));
        }
    }
    if leases.default_ms > leases.max_ms {
        let reason = "it is longer than leases.max_lease; lower it, or raise that";
        return Err(ConfigError::refused("leases.default_lease", reason));
    }
    Ok(leases)
}

fn local(settings: &mut Settings, data_dir: &Path) -> Result<LocalConfig, ConfigError> {
    let sessions_max = required_count(settings, "local.sessions_max");
    let leases_max = required_count(settings, "local.session_leases_max");
    Ok(LocalConfig {
        enabled: settings.flag("local.enabled"),
        socket_path: path_or(settings, "local.socket_path", data_dir.join("payload-manager.sock"))?,
        socket_mode: mode(settings, "local.socket_mode"),
        socket_group: settings.text("local.socket_group"),
        allowed_uids: settings.ids("local.allowed_uids"),
        allowed_gids: settings.ids("local.allowed_gids"),
        arenas: settings.flag("local.arenas"),
        sessions_max: u16::try_from(sessions_max).expect("the table limits it"),
        session_caps: SessionCaps {
            leases_max: u32::try_from(leases_max).expect("the table limits it"),
            leased_bytes_max: settings.number("local.session_leased_bytes_max").unwrap_or(u64::MAX),
        },
    })
}

fn database(settings: &mut Settings, data_dir: &Path) -> Result<DatabaseConfig, ConfigError> {
    let kinds = ["database.sqlite", "database.postgres", "database.memory"];
    let chosen: Vec<_> =
        kinds.into_iter().filter(|path| settings.has_section(path) || is_present(settings, path)).collect();
    match chosen[..] {
        [] | ["database.sqlite"] => {
            if settings.given("database.sqlite.wal_mode") == Some(&Setting::Flag(false)) {
                let reason = "without the write-ahead log every commit would block all readers, and group commit \
                              could not be durable; remove it, or set it to true";
                return Err(ConfigError::refused("database.sqlite.wal_mode", reason));
            }
            let path = path_or(settings, "database.sqlite.path", data_dir.join("catalog.db"))?;
            settings.set("database.sqlite.wal_mode", Setting::Flag(true));
            let word = settings.text("database.sqlite.synchronous").unwrap_or_else(|| "full".to_owned());
            let synchronous = if word == "normal" { Synchronous::Normal } else { Synchronous::Full };
            settings.set("database.sqlite.synchronous", Setting::Text(word));
            Ok(DatabaseConfig::Sqlite { path, synchronous })
        }
        ["database.postgres"] => {
            let Some(uri) = settings.text("database.postgres.connection_uri") else {
                let reason = "it is not set; write it like `postgresql://user:password@host/database`";
                return Err(ConfigError::refused("database.postgres.connection_uri", reason));
            };
            let connections_max = settings.number("database.postgres.max_connections").unwrap_or(8);
            settings.set("database.postgres.max_connections", Setting::Number(connections_max));
            let pooled = settings.flag("database.postgres.pooled");
            settings.set("database.postgres.pooled", Setting::Flag(pooled));
            Ok(DatabaseConfig::Postgres {
                connection_uri: Secret(uri),
                connections_max: connections_max as usize,
                pooled,
            })
        }
        ["database.memory"] => Ok(DatabaseConfig::Memory),
        _ => {
            let reason = format!("{} are all set; keep one", chosen.join(" and "));
            Err(ConfigError::refused("database", reason))
        }
    }
}

/// True for `database.memory: {}`, and for a key below `path` that only the environment set.
pub(super) fn is_present(settings: &Settings, path: &str) -> bool {
    let is_below =
        |key: &str| key.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    settings.iter().any(|(key, _)| is_below(key))
}

fn ram(
    settings: &mut Settings,
    machine: &Machine,
    warnings: &mut Vec<String>,
) -> Result<RamConfig, ConfigError> {
    const PATH: &str = "storage.ram.capacity_bytes";
    let usable = machine.memory_usable();
    let given = settings.size(PATH);
    if given.is_none() && usable.0 == 0 {
        return Err(ConfigError::refused(
            PATH,
            "the size of memory cannot be read from /proc/meminfo; set it",
        ));
    }
    let wanted = given.unwrap_or(ByteCount(usable.0 / 4));
    // A machine that tells neither its memory nor a limit cannot be clamped to.
    let ceilings = [(Some(usable).filter(|usable| usable.0 > 0), "memory"), (machine.shm, "/dev/shm")];
    let ceiling = ceilings.into_iter().filter_map(|(size, name)| Some((size?, name))).min();
    let mut capacity = wanted;
    if let Some((ceiling, name)) = ceiling
        && wanted > ceiling
    {
        if settings.flag("storage.ram.strict_capacity") {
            let reason = format!("{wanted} is more than the {ceiling} of {name}, and strict_capacity is set");
            return Err(ConfigError::refused(PATH, reason));
        }
        let what = if given.is_some() { "configured" } else { "a quarter of memory" };
        warnings
            .push(format!("`{PATH}` is clamped from {wanted} ({what}) to {ceiling}, the limit of {name}"));
        capacity = ceiling;
    }
    capacity = whole_pages(PATH, capacity)?;
    settings.set(PATH, Setting::Number(capacity.0));
    Ok(RamConfig {
        capacity,
        watermarks: watermarks(settings, "storage.ram")?,
        use_hugepages: settings.flag("storage.ram.use_hugepages"),
        shm_prefix: required_text(settings, "storage.ram.shm_prefix"),
        segment_mode: mode(settings, "storage.ram.segment_mode"),
    })
}

/// Where eviction from the tier of this section begins and ends, in percent.
fn watermarks(settings: &Settings, section: &str) -> Result<Watermarks, ConfigError> {
    let (low_path, high_path) = (format!("{section}.low_watermark"), format!("{section}.high_watermark"));
    let percent = |path: &str| {
        let number = settings.number(path).expect("the table has a default");
        u8::try_from(number).expect("the table limits it")
    };
    let (low, high) = (percent(&low_path), percent(&high_path));
    if low >= high {
        let reason = format!(
            "it is {low} and {high_path} is {high}; eviction must end below where it begins: lower this, or raise that"
        );
        return Err(ConfigError::refused(&low_path, reason));
    }
    Ok(Watermarks { low, high })
}

fn mode(settings: &Settings, path: &str) -> u32 {
    setting::mode(&required_text(settings, path)).expect("the table's kind has checked it")
}

fn disk(
    settings: &mut Settings,
    machine: &Machine,
    data_dir: &Path,
    warnings: &mut Vec<String>,
) -> Result<DiskConfig, ConfigError> {
    const PATH: &str = "storage.disk.capacity_bytes";
    let root_path = path_or(settings, "storage.disk.root_path", data_dir.join("disk"))?;
    let capacity = match settings.size(PATH) {
        Some(capacity) => capacity,
        None => {
            let space = (machine.disk_space)(&root_path).map_err(|error| {
                let root = root_path.display();
                ConfigError::refused(
                    PATH,
                    format!("the free space of {root} cannot be asked for ({error}); set it"),
                )
            })?;
            ByteCount(space.free.0.saturating_add(space.held.0) / 2)
        }
    };
    let capacity = whole_pages(PATH, capacity)?;
    settings.set(PATH, Setting::Number(capacity.0));
    let fsync = settings.flag("storage.disk.fsync");
    if !fsync {
        warnings.push(
            "`storage.disk.fsync` is false: what Commit acknowledges on disk may be lost with power".into(),
        );
    }
    Ok(DiskConfig {
        root_path,
        capacity,
        watermarks: watermarks(settings, "storage.disk")?,
        fsync,
        file_mode: mode(settings, "storage.disk.file_mode"),
        packs: required_text(settings, "storage.disk.packing") != "off",
        compaction_bytes_per_second: settings
            .number("storage.disk.compaction_bytes_per_second")
            .expect("the table has a default"),
    })
}

/// Capacity is charged in whole pages, so what is left over could never be used.
fn whole_pages(path: &str, capacity: ByteCount) -> Result<ByteCount, ConfigError> {
    if capacity.0 < limits::PAGE_BYTES {
        let reason =
            format!("{capacity} holds no payload; it must be at least {}", ByteCount(limits::PAGE_BYTES));
        return Err(ConfigError::refused(path, reason));
    }
    if capacity.0 > limits::STORED_INTEGER_MAX {
        return Err(ConfigError::refused(path, format!("{capacity} is beyond 2^63 bytes")));
    }
    Ok(ByteCount(capacity.0 / limits::PAGE_BYTES * limits::PAGE_BYTES))
}

fn gpu(settings: &Settings) -> Result<Vec<GpuConfig>, ConfigError> {
    const LIST: &str = "storage.gpu.devices";
    let named = |path: &&String| path.starts_with(LIST);
    let highest = settings.iter().map(|(path, _)| path).filter(named).filter_map(|path| index_of(path)).max();
    let mut devices: Vec<GpuConfig> = Vec::new();
    for index in 0..highest.map_or(0, |highest| highest + 1) {
        let path = format!("{LIST}[{index}].device_id");
        let Some(device_id) = settings.number(&path) else {
            return Err(ConfigError::refused(
                &path,
                "it is not set; every device of the list needs its number",
            ));
        };
        let device_id = u32::try_from(device_id).expect("the table limits it");
        if devices.iter().any(|device| device.device_id == device_id) {
            return Err(ConfigError::refused(&path, format!("device {device_id} is in the list already")));
        }
        let capacity = settings.size(&format!("{LIST}[{index}].capacity_bytes"));
        devices.push(GpuConfig { device_id, capacity });
    }
    Ok(devices)
}

fn index_of(path: &str) -> Option<usize> {
    path.split_once('[')?.1.split_once(']')?.0.parse().ok()
}

fn spill_workers(settings: &mut Settings, machine: &Machine) -> SpillWorkersConfig {
    const PATH: &str = "spill_workers.threads";
    let threads = match settings.number(PATH) {
        None | Some(0) => (machine.cores as u64 / 2).clamp(2, 16),
        Some(threads) => threads,
    };
    settings.set(PATH, Setting::Number(threads));
    SpillWorkersConfig {
        threads: required_count(settings, PATH),
        retry_backoff_ms: settings.millis("spill_workers.retry_backoff"),
    }
}

fn logging(settings: &Settings) -> LoggingConfig {
    let level = match required_text(settings, "logging.level").as_str() {
        "trace" => LogLevel::Trace,
        "debug" => LogLevel::Debug,
        "warn" => LogLevel::Warn,
        "error" => LogLevel::Error,
        "off" => LogLevel::Off,
        _ => LogLevel::Info,
    };
    let format = match required_text(settings, "logging.format").as_str() {
        "json" => LogFormat::Json,
        _ => LogFormat::Text,
    };
    let include_trace_context = settings.flag("logging.include_trace_context");
    LoggingConfig { level, format, include_trace_context }
}

/// One sentence for each key that is set and has no effect.
fn ignored(settings: &Settings) -> Vec<String> {
    let sentence = |path: &String| match table::find(&without_indices(path))?.standing {
        Standing::Ignored(why) => Some(format!("`{path}` is ignored: {why}")),
        Standing::Used | Standing::Later | Standing::Refused(_) => None,
    };
    settings.iter().filter_map(|(path, _)| sentence(path)).collect()
}

/// One sentence for each part that is configured and not built yet.
fn not_built(settings: &Settings) -> Vec<String> {
    let mut sentences = Vec::new();
    let mut say = |configured: bool, part: &str, effect: &str| {
        if configured {
            sentences.push(format!("`{part}` is configured, but not built yet in this version: {effect}"));
        }
    };
    let logs = settings.flag("observability.logs_enabled");
    say(logs, "observability.logs_enabled", "the log goes to standard error only");
    sentences
}

/// The path that is set, made absolute, or `default`; written back.
fn path_or(settings: &mut Settings, path: &str, default: PathBuf) -> Result<PathBuf, ConfigError> {
    let chosen = match settings.text(path) {
        Some(text) if text == ":memory:" => {
            return Err(ConfigError::refused(
                path,
                "a catalog in memory is asked for with `database.memory: {}`",
            ));
        }
        Some(text) => absolute(path, Path::new(&text))?,
        None => default,
    };
    let Some(text) = chosen.to_str() else {
        let reason = format!("{} is not UTF-8, as descriptors need it to be", chosen.display());
        return Err(ConfigError::refused(path, reason));
    };
    settings.set(path, Setting::Text(text.to_owned()));
    Ok(chosen)
}

pub(super) fn absolute(path: &str, chosen: &Path) -> Result<PathBuf, ConfigError> {
    std::path::absolute(chosen).map_err(|error| {
        ConfigError::refused(path, format!("{} cannot be made absolute: {error}", chosen.display()))
    })
}

fn required_small(settings: &Settings, path: &str) -> u32 {
    u32::try_from(required_count(settings, path)).expect("the table limits it")
}

pub(super) fn required_text(settings: &Settings, path: &str) -> String {
    settings.text(path).expect("the table has a default for it")
}

fn required_count(settings: &Settings, path: &str) -> usize {
    let number = settings.number(path).expect("the table has a default for it, or it was set");
    usize::try_from(number).expect("the table limits it")
}
