//! What is refused, and whether the sentence helps.

use super::super::setting::mask_password;
use super::super::*;
use super::{load, refusal};

fn nearest(yaml: &str) -> String {
    match load(yaml) {
        Err(ConfigError::UnknownKey { nearest, .. }) => nearest,
        other => panic!("{yaml}: {other:?}"),
    }
}

#[test]
fn given_unknown_keys_when_loaded_then_the_nearest_known_one_is_named_in_full() {
    for (yaml, wanted) in [
        ("server: {bind_adress: x}", "server.bind_address"),
        ("sever: {bind_address: x}", "server"),
        ("storage: {ram: {capacity: 1}}", "storage.ram.capacity_bytes"),
        ("storage: {rma: {capacity_bytes: 1}}", "storage.ram"),
        ("ram: {capacity_bytes: 1}", "storage.ram"),
        ("leases: {default_leese: 1s}", "leases.default_lease"),
        ("lease: {default_lease: 1s}", "leases"),
        ("bind_address: 'x:1'", "server.bind_address"),
        ("storage: {gpu: {devices: [{device: 0}]}}", "storage.gpu.devices[].device_id"),
        (
            "storage: {object: {filesystem_options: {s3: {secret: x}}}}",
            "storage.object.filesystem_options.s3.secret_key",
        ),
        ("observability: {otlp_endpiont: x}", "observability.otlp_endpoint"),
    ] {
        assert_eq!(nearest(yaml), wanted, "{yaml}");
    }
    let sentence = refusal("storage: {ram: {capacity: 1}}");
    assert!(sentence.contains("`storage.ram.capacity`"), "the wrong key in full: {sentence}");
}

#[test]
fn given_values_of_the_wrong_kind_when_loaded_then_key_and_expectation_are_named() {
    for (yaml, path, expected) in [
        ("storage: {ram: {capacity_bytes: lots}}", "storage.ram.capacity_bytes", "8GiB"),
        ("storage: {ram: {capacity_bytes: -1}}", "storage.ram.capacity_bytes", "size"),
        ("storage: {ram: {capacity_bytes: 1.5}}", "storage.ram.capacity_bytes", "size"),
        ("storage: {ram: {strict_capacity: 1}}", "storage.ram.strict_capacity", "true or false"),
        ("storage: {ram: {shm_prefix: a/b}}", "storage.ram.shm_prefix", "letters"),
        ("storage: {ram: {shm_prefix: ''}}", "storage.ram.shm_prefix", "letters"),
        ("storage: {ram: {segment_mode: 440}}", "storage.ram.segment_mode", "octal"),
        ("storage: {ram: {segment_mode: '0777'}}", "storage.ram.segment_mode", "0666"),
        ("storage: {ram: {segment_mode: '0040'}}", "storage.ram.segment_mode", "octal"),
        ("storage: [1]", "storage", "a section"),
        ("storage: {gpu: {devices: 3}}", "storage.gpu.devices", "a list"),
        ("storage: {gpu: {devices: [3]}}", "storage.gpu.devices[0]", "a section"),
        ("storage: {object: {root_path: 'hdfs://x'}}", "storage.object.root_path", "s3://"),
        ("storage: {object: {root_path: 's3://'}}", "storage.object.root_path", "s3://"),
        (
            "storage: {object: {compression: COMPRESSION_FOO}}",
            "storage.object.compression",
            "COMPRESSION_AUTO",
        ),
        ("leases: {default_lease: 20}", "leases.default_lease", "unit"),
        ("leases: {default_lease: soon}", "leases.default_lease", "unit"),
        ("shards: {count: 0}", "shards.count", "from 1 to 256"),
        ("shards: {count: 257}", "shards.count", "from 1 to 256"),
        ("shards: {cores: [1, 1]}", "shards.cores", "cores"),
        ("shards: {cores: 3-1}", "shards.cores", "cores"),
        ("shards: {spin: maybe}", "shards.spin", "auto, off, on"),
        ("storage: {disk: {packing: maybe}}", "storage.disk.packing", "auto, off"),
        ("server: {bind_address: '50051'}", "server.bind_address", "host:port"),
        ("server: {bind_address: 'x:70000'}", "server.bind_address", "host:port"),
        ("server: {bind_address: '::1:50051'}", "server.bind_address", "host:port"),
        ("server: {bind_address: '*:1'}", "server.bind_address", "host:port"),
        ("database: {memory: }", "database.memory", "{}"),
        ("database: {memory: true}", "database.memory", "{}"),
        ("logging: {level: loud}", "logging.level", "trace, debug"),
        (
            "observability: {transport: OTLP_TRANSPORT_PIGEON}",
            "observability.transport",
            "OTLP_TRANSPORT_GRPC",
        ),
        ("node: {name: 'a b'}", "node.name", "letters"),
    ] {
        let sentence = refusal(yaml);
        assert!(sentence.contains(&format!("`{path}` is ")), "{sentence}");
        assert!(sentence.contains(expected), "{expected}: {sentence}");
    }
}

#[test]
fn given_refused_values_when_loaded_then_the_reason_is_given() {
    for (yaml, words) in [
        ("database: {sqlite: {wal_mode: false}}", "write-ahead log"),
        ("database: {sqlite: {synchronous: 'off'}}", "full, normal"),
        ("database: {sqlite: {path: ':memory:'}}", "database.memory"),
        ("database: {sqlite: {path: a}, memory: {}}", "keep one"),
        ("database: {postgres: {}}", "connection_uri"),
        ("database: {postgres: {max_connections: 3}}", "connection_uri"),
        ("storage: {object: {filesystem: FILE_SYSTEM_HDFS}}", "HDFS is not supported"),
        ("storage: {object: {compression: COMPRESSION_GZIP}}", "COMPRESSION_ZSTD"),
        ("storage: {ram: {capacity_bytes: 0}}", "4 KiB"),
        ("storage: {disk: {capacity_bytes: 9223372036854775808}}", "2^63"),
        ("storage: {gpu: {devices: [{capacity_bytes: 1GiB}]}}", "needs its number"),
        ("storage: {gpu: {devices: [{device_id: 1}, {device_id: 1}]}}", "already"),
        ("storage: {ram: {low_watermark: 90}}", "storage.ram.high_watermark is 90"),
        ("storage: {disk: {high_watermark: 80}}", "must end below"),
        ("leases: {default_lease: 3m}", "leases.max_lease"),
        ("leases: {max_lease: 0s, default_lease: 0s}", "at least 1ms"),
        ("shards: {count: 3, cores: [0, 1]}", "2 cores for 3 shards"),
        ("observability: {tracing_enabled: true, otlp_endpoint: 'ftp://collector'}", "only http and https"),
        (
            "observability: {tracing_enabled: true, otlp_endpoint: 'https://collector:4317'}",
            "OTLP_TRANSPORT_HTTP",
        ),
        (
            "observability: {metrics_enabled: true, otlp_endpoint: 'me:secret@collector'}",
            "OTLP_TRANSPORT_HTTP",
        ),
    ] {
        let sentence = refusal(yaml);
        assert!(sentence.contains(words), "{words}: {sentence}");
    }
}

#[test]
fn given_words_in_other_forms_when_loaded_then_they_are_understood() {
    for yaml in [
        "storage: {object: {filesystem: FILE_SYSTEM_UNSPECIFIED, compression: COMPRESSION_UNSPECIFIED}}",
        "storage: {object: {compression: COMPRESSION_UNCOMPRESSED, root_path: 'file:///o'}}",
        "storage: {object: {root_path: 'abfss://c@a.dfs/x', filesystem_options: {s3: {credentials_kind: CREDENTIALS_KIND_WEB_IDENTITY}}}}",
        "observability: {transport: OTLP_TRANSPORT_UNSPECIFIED, tracing: {trace_hint: TRACE_HINT_UNSPECIFIED}}",
        "logging: {level: Critical}",
        "spill_workers: {threads: 0}",
    ] {
        assert!(load(yaml).is_ok(), "{yaml}: {:?}", load(yaml).err());
    }
}

#[test]
fn given_text_that_is_no_configuration_when_loaded_then_the_place_is_named() {
    assert!(
        refusal("server:\n  bind_address: 'x\n").contains("line"),
        "{}",
        refusal("server:\n  bind_address: 'x\n")
    );
    let twice = refusal("server:\n  bind_address: 'x:1'\n  bind_address: 'y:1'\n");
    assert!(twice.contains("duplicate entry") && twice.contains("line"), "{twice}");
    assert!(refusal("server:\n\tbind_address: x\n").contains("line 2"));
    assert!(refusal("- a\n- b\n").contains("not a mapping"));
    assert!(refusal("just text").contains("not a mapping"));
    assert!(refusal("server.bind_address: 'x:1'").contains("written with dots"));
    assert!(refusal("1: 2").contains("unknown key `1`"));
    assert!(refusal("a: 1\n---\nb: 2\n").contains("more than one document"));
    assert!(refusal("server: {bind_address: !tag x}").contains("tagged"));
}

#[test]
fn given_files_that_cannot_be_read_when_loaded_then_the_sentence_names_them() {
    for file in ["/no/such/file.yaml", "/proc", "/dev/null/x"] {
        let error = Config::load(Some(Path::new(file)), Path::new("d"), std::iter::empty()).expect_err(file);
        assert!(error.to_string().contains(file), "{error}");
    }
    let directory = tempfile::tempdir().expect("writable");
    let binary = directory.path().join("binary");
    std::fs::write(&binary, [0xFF, 0xFE, 0x00]).expect("writable");
    let error = Config::load(Some(&binary), Path::new("d"), std::iter::empty()).expect_err("not text");
    assert!(error.to_string().contains("binary"), "{error}");
    std::fs::write(&binary, vec![b'#'; 2 << 20]).expect("writable");
    let error = Config::load(Some(&binary), Path::new("d"), std::iter::empty()).expect_err("too long");
    assert!(error.to_string().contains("more than any configuration"), "{error}");
}

#[test]
fn given_a_secret_of_the_wrong_kind_when_refused_then_it_is_not_echoed() {
    let sentence = refusal("storage: {object: {filesystem_options: {s3: {secret_key: [hush]}}}}");
    assert!(!sentence.contains("hush"), "{sentence}");
}

#[test]
fn given_connection_strings_when_masked_then_passwords_are_gone_and_the_rest_is_readable() {
    for (text, shown) in [
        ("postgresql://u:p@h:5432/d", "postgresql://u:********@h:5432/d"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("postgresql://h/d", "postgresql://h/d"),
        ("postgresql://u:p@ss/w@h/d", "postgresql://u:********@h/d"),
        (
            "postgresql://h/d?user=u&password=p&sslmode=require",
            "postgresql://h/d?user=u&password=********&sslmode=require",
        ),
        ("host=h user=u password='p q'", "********"),
        ("host=h user=u", "host=h user=u"),
        ("collector:4317", "collector:4317"),
    ] {
        assert_eq!(mask_password(text), shown);
    }
}
