//! Keys set by the environment.

use super::super::*;
use super::load_with;

#[test]
fn given_variables_when_loaded_then_they_override_the_file() {
    let variables = [
        ("PAYLOAD_MANAGER__STORAGE__RAM__CAPACITY_BYTES", "1GiB"),
        ("PAYLOAD_MANAGER__STORAGE__RAM__SEGMENT_MODE", "0666"),
        ("PAYLOAD_MANAGER__STORAGE__DISK__FSYNC", "true"),
        ("PAYLOAD_MANAGER__SHARDS__CORES", "[0, 3]"),
        ("PAYLOAD_MANAGER__FRONT__CORES", "1,2"),
        ("PAYLOAD_MANAGER__LIMITS__REQUESTS_IN_FLIGHT", "12"),
        ("PAYLOAD_MANAGER__LEASES__DEFAULT_LEASE", "500ms"),
        ("PAYLOAD_MANAGER__NODE__NAME", "12"),
        ("PAYLOAD_MANAGER__SERVER__BIND_ADDRESS", ""),
        ("PAYLOAD_MANAGER_LOG", "debug"),
        ("PATH", "/bin"),
    ];
    let yaml =
        "server: {bind_address: 'localhost:1'}\nstorage: {ram: {capacity_bytes: 2GiB}, disk: {fsync: false}}";
    let config = load_with(yaml, &variables).expect("valid").config;
    assert_eq!((config.storage.ram.capacity.0, config.storage.ram.segment_mode), (1 << 30, 0o666));
    assert!(config.storage.disk.fsync);
    assert_eq!((config.shards.cores, config.front.cores), (Some(vec![0, 3]), Some(vec![1, 2])));
    assert_eq!((config.limits.requests_in_flight, config.leases.default_ms), (12, 500));
    assert_eq!(config.node.name, "12", "text stays text");
    assert_eq!(config.server.bind_address.port, 1, "an empty variable is as good as none");
}

#[test]
fn given_list_indices_when_loaded_then_devices_are_set_one_by_one() {
    let variables = [
        ("PAYLOAD_MANAGER__STORAGE__GPU__DEVICES__0__CAPACITY_BYTES", "1GiB"),
        ("PAYLOAD_MANAGER__STORAGE__GPU__DEVICES__1__DEVICE_ID", "5"),
    ];
    let yaml = "storage: {gpu: {devices: [{device_id: 3, capacity_bytes: 2GiB}]}}";
    let gpu = load_with(yaml, &variables).expect("valid").config.storage.gpu;
    let devices: Vec<_> =
        gpu.iter().map(|device| (device.device_id, device.capacity.map(|size| size.0))).collect();
    assert_eq!(devices, [(3, Some(1 << 30)), (5, None)]);
    let gap = load_with("", &variables[1..]).expect_err("device 0 is missing").to_string();
    assert!(gap.contains("storage.gpu.devices[0].device_id"), "{gap}");
}

#[test]
fn given_whole_sections_and_map_entries_when_loaded_then_they_are_set() {
    let memory = [("PAYLOAD_MANAGER__DATABASE__MEMORY", "{}")];
    assert_eq!(load_with("", &memory).expect("valid").config.database, DatabaseConfig::Memory);
    let postgres = [("PAYLOAD_MANAGER__DATABASE__POSTGRES__CONNECTION_URI", "postgresql://h/d")];
    assert!(matches!(
        load_with("", &postgres).expect("valid").config.database,
        DatabaseConfig::Postgres { .. }
    ));
    let devices = [("PAYLOAD_MANAGER__STORAGE__GPU__DEVICES", "[{device_id: 0}, {device_id: 1}]")];
    assert_eq!(load_with("", &devices).expect("valid").config.storage.gpu.len(), 2);
    let entry = [("PAYLOAD_MANAGER__STORAGE__OBJECT__FILESYSTEM_OPTIONS__S3__PROXY_OPTIONS__PORT", "3128")];
    let yaml = "storage: {object: {root_path: /o, filesystem_options: {s3: {proxy_options: {host: b}}}}}";
    let shown = load_with(yaml, &entry).expect("valid").to_yaml();
    assert!(shown.contains("host: b") && shown.contains("port: '3128'"), "{shown}");
}

#[test]
fn given_wrong_variables_when_loaded_then_the_sentence_names_them() {
    for (name, text, words) in [
        ("PAYLOAD_MANAGER__STORAGE__RAM__CAPACITY", "1GiB", "storage.ram.capacity_bytes"),
        ("PAYLOAD_MANAGER__STORAGE__RAM__CAPACITY_BYTES", "lots", "a size"),
        ("PAYLOAD_MANAGER__STORAGE__DISK__FSYNC", "yes please", "true or false"),
        ("PAYLOAD_MANAGER__SHARDS__COUNT", "[", "while parsing"),
        ("PAYLOAD_MANAGER__", "x", "unknown key"),
        ("PAYLOAD_MANAGER__STORAGE__GPU__DEVICES__X__DEVICE_ID", "1", "unknown key"),
    ] {
        let error = load_with("", &[(name, text)]).expect_err(name).to_string();
        assert!(error.contains(name) && error.contains(words), "{error}");
    }
}

#[test]
fn given_this_machine_when_loaded_without_a_file_then_its_defaults_are_valid() {
    let loaded = Config::load(None, std::path::Path::new("d"), std::iter::empty()).expect("valid");
    assert!(loaded.config.storage.ram.capacity.0 > 0 && loaded.config.storage.disk.capacity.0 > 0);
}
