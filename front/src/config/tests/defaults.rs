//! What holds when nothing, or little, is said; and how capacities meet the machine.

use std::path::{Path, PathBuf};

use payload_catalog::Synchronous;
use payload_reactor::preflight::Machine;
use payload_shards::Watermarks;
use payload_types::ByteCount;

use super::super::*;
use super::{GIB, load, load_on, machine, refusal};

#[test]
fn given_no_file_when_loaded_then_the_embedded_defaults() {
    let loaded = Config::load_on(&machine(), None, Path::new("/srv/d"), std::iter::empty()).expect("valid");
    let config = &loaded.config;
    assert_eq!(config.server.bind_address.to_string(), "127.0.0.1:50051");
    assert_eq!(
        config.database,
        DatabaseConfig::Sqlite { path: "/srv/d/catalog.db".into(), synchronous: Synchronous::Full }
    );
    assert_eq!(config.storage.ram.capacity, ByteCount(4 * GIB), "a quarter of memory");
    assert_eq!((config.storage.ram.shm_prefix.as_str(), config.storage.ram.segment_mode), ("pm", 0o440));
    assert_eq!(config.storage.ram.watermarks, Watermarks { low: 80, high: 90 });
    assert_eq!(config.storage.disk.watermarks, Watermarks { low: 80, high: 90 });
    assert_eq!(config.storage.disk.root_path, PathBuf::from("/srv/d/disk"));
    assert_eq!(config.storage.disk.capacity, ByteCount(50 * GIB), "half of what is free or held already");
    assert_eq!(config.storage.disk.file_mode, 0o440);
    assert_eq!(config.storage.disk.compaction_bytes_per_second, 64 << 20);
    assert!(config.storage.disk.packs);
    assert!(config.storage.disk.fsync && config.storage.gpu.is_empty());
    assert_eq!((config.leases.default_ms, config.leases.max_ms), (20_000, 120_000));
    assert_eq!(config.leases.allocation_timeout_ms, 3_600_000);
    assert_eq!((config.shards.count, config.shards.spin), (2, Spin::Auto));
    assert_eq!((config.limits.allocate_wait_ms, config.shutdown.drain_timeout_ms), (30_000, 10_000));
    assert_eq!(config.spill_workers.threads, 4);
    assert_eq!((config.logging.level, config.logging.format), (LogLevel::Info, LogFormat::Text));
    assert_eq!(config.local.socket_path, PathBuf::from("/srv/d/payload-manager.sock"));
    assert!(config.local.enabled && config.local.allowed_uids.is_empty());
    assert_eq!((config.local.socket_mode, config.local.sessions_max), (0o660, 256));
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
}

#[test]
fn given_empty_files_and_sections_when_loaded_then_the_same_as_none() {
    let none = Config::load_on(&machine(), None, Path::new("/srv/payload-data"), std::iter::empty());
    let none = none.expect("valid").config;
    for yaml in [
        "",
        "# nothing\n",
        "{}",
        "server:\nstorage:\n  ram:\n  gpu:\n    devices: []\n",
        "server: {bind_address: }",
    ] {
        assert_eq!(load(yaml).expect("valid").config, none, "{yaml}");
    }
}

#[test]
fn given_relative_paths_when_loaded_then_absolute_and_nothing_is_made() {
    let yaml = "database: {sqlite: {path: rel/c.db}}\nstorage: {disk: {root_path: rel/disk}}";
    let loaded = load(yaml).expect("valid");
    let here = std::env::current_dir().expect("there is one");
    assert_eq!(
        loaded.config.database,
        DatabaseConfig::Sqlite { path: here.join("rel/c.db"), synchronous: Synchronous::Full }
    );
    assert_eq!(loaded.config.storage.disk.root_path, here.join("rel/disk"));
    assert!(!here.join("rel").exists());
}

#[test]
fn given_a_loaded_configuration_when_prepared_then_its_directories_exist() {
    let directory = tempfile::tempdir().expect("writable");
    let loaded = Config::load_on(&machine(), None, &directory.path().join("a/b"), std::iter::empty());
    loaded.expect("valid").config.prepare().expect("writable");
    assert!(directory.path().join("a/b/disk").is_dir());
    let yaml = "storage: {disk: {root_path: /proc/nothing/here}}";
    let error = load(yaml).expect("valid").config.prepare().expect_err("/proc takes no directories");
    assert!(error.to_string().contains("storage.disk.root_path"), "{error}");
}

#[test]
fn given_ram_beyond_a_limit_when_loaded_then_clamped_with_a_warning_or_refused_if_strict() {
    let yaml = "storage: {ram: {capacity_bytes: 12GiB}}";
    let loaded = load(yaml).expect("clamped");
    assert_eq!(loaded.config.storage.ram.capacity, ByteCount(8 * GIB));
    assert!(loaded.warnings.iter().any(|warning| warning.contains("/dev/shm")), "{:?}", loaded.warnings);
    let limited = Machine { memory_limit: Some(ByteCount(2 * GIB)), ..machine() };
    let loaded = load_on(&limited, yaml, &[]).expect("clamped");
    assert_eq!(loaded.config.storage.ram.capacity, ByteCount(2 * GIB));
    assert!(
        loaded.warnings.iter().any(|warning| warning.contains("limit of memory")),
        "{:?}",
        loaded.warnings
    );
    assert_eq!(load_on(&limited, "", &[]).expect("valid").config.storage.ram.capacity, ByteCount(GIB / 2));
    let sentence = refusal("storage: {ram: {capacity_bytes: 12GiB, strict_capacity: true}}");
    assert!(sentence.contains("storage.ram.capacity_bytes") && sentence.contains("8 GiB"), "{sentence}");
}

#[test]
fn given_dockers_small_shm_when_loaded_without_a_file_then_clamped_with_a_warning() {
    let docker = Machine { shm: Some(ByteCount(64 << 20)), ..machine() };
    let loaded = load_on(&docker, "", &[]).expect("clamped");
    assert_eq!(loaded.config.storage.ram.capacity, ByteCount(64 << 20));
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
}

#[test]
fn given_a_machine_that_tells_nothing_when_loaded_then_the_missing_key_is_named() {
    let blind = Machine {
        memory: ByteCount(0),
        shm: None,
        disk_space: |_| Err(std::io::Error::from_raw_os_error(5)),
        ..machine()
    };
    let error = load_on(&blind, "", &[]).expect_err("no memory").to_string();
    assert!(error.contains("storage.ram.capacity_bytes"), "{error}");
    let error =
        load_on(&blind, "storage: {ram: {capacity_bytes: 1GiB}}", &[]).expect_err("no disk").to_string();
    assert!(error.contains("storage.disk.capacity_bytes"), "{error}");
    let yaml = "storage: {ram: {capacity_bytes: 1GiB}, disk: {capacity_bytes: 1GiB}}";
    assert!(load_on(&blind, yaml, &[]).is_ok());
}

#[test]
fn given_capacities_between_pages_when_loaded_then_whole_pages() {
    let yaml = "storage: {ram: {capacity_bytes: 8193}, disk: {capacity_bytes: 4097}}";
    let storage = load(yaml).expect("valid").config.storage;
    assert_eq!((storage.ram.capacity, storage.disk.capacity), (ByteCount(8192), ByteCount(4096)));
}

#[test]
fn given_shard_cores_when_loaded_then_they_set_the_count_unless_it_is_said() {
    let shards = |yaml: &str| load(yaml).expect("valid").config.shards;
    assert_eq!(shards("shards: {cores: [4, 5, 6]}").count, 3);
    assert_eq!(shards("shards: {cores: 4-6}").cores, Some(vec![4, 5, 6]));
    assert_eq!(shards("shards: {cores: 4-6, count: 2}").count, 2);
    let large = Machine { cores: 128, ..machine() };
    assert_eq!(load_on(&large, "", &[]).expect("valid").config.shards.count, 16);
    let small = Machine { cores: 2, ..machine() };
    assert_eq!(load_on(&small, "", &[]).expect("valid").config.shards.count, 1);
}

#[test]
fn given_an_address_for_other_hosts_when_loaded_then_it_parses_and_is_no_loopback() {
    let address = |text: &str| {
        let yaml = format!("server: {{bind_address: '{text}'}}");
        load(&yaml).expect("valid").config.server.bind_address
    };
    for (text, loopback) in [
        ("0.0.0.0:1", false),
        ("[::]:50051", false),
        ("[::1]:0", true),
        ("localhost:50051", true),
        ("127.0.0.2:50051", true),
        ("node-7.example:50051", false),
    ] {
        assert_eq!((address(text).to_string().as_str(), address(text).is_loopback()), (text, loopback));
    }
    assert_eq!(address("[::1]:0").resolve().expect("an address").len(), 1);
}
