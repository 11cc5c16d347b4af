//! `storage.object`: what becomes of each key, and how wrong ones are refused.

use payload_drivers::object::Compression;

use super::super::*;
use super::{load, refusal};

fn tier(yaml: &str) -> ObjectTierConfig {
    let text = format!("storage: {{object: {yaml}}}");
    load(&text)
        .unwrap_or_else(|error| panic!("{text}: {error}"))
        .config
        .storage
        .object
        .expect("a root is named")
}

#[test]
fn given_an_object_store_when_resolved_then_the_driver_is_told_all_of_it() {
    let told = tier(
        "{root_path: 's3://b/p', compression: COMPRESSION_LZ4_FRAME, filesystem_options: {s3: {\
         endpoint_override: 'host:9000', scheme: http, region: r, access_key: k, secret_key: s, connect_timeout: 2.5, \
         request_timeout: 7s, force_virtual_addressing: true, tls_ca_file_path: /ca.pem, sse_customer_key: c, \
         proxy_options: {host: p, port: 3128, username: 'u@', password: 'a b'}}}}",
    )
    .driver()
    .expect("nothing is read for it");
    assert_eq!((told.root.as_str(), told.compression), ("s3://b/p", Compression::Lz4));
    assert_eq!((told.s3.endpoint.as_deref(), told.s3.allow_http), (Some("host:9000"), true));
    assert_eq!((told.s3.region.as_deref(), told.s3.access_key.as_deref()), (Some("r"), Some("k")));
    assert_eq!((told.s3.secret_key.as_deref(), told.s3.sse_customer_key.as_deref()), (Some("s"), Some("c")));
    assert_eq!((told.connect_timeout.as_millis(), told.request_timeout.as_secs()), (2500, 7));
    assert!(told.s3.virtual_hosted && !told.s3.tls_unverified && !told.s3.anonymous);
    assert_eq!(told.s3.tls_ca_files, [std::path::PathBuf::from("/ca.pem")]);
    assert_eq!(told.s3.proxy_url.as_deref(), Some("http://u%40:a%20b@p:3128"));
}

#[test]
fn given_an_endpoint_with_plain_http_when_resolved_then_it_is_spoken_to_so() {
    let s3 =
        |options: &str| tier(&format!("{{root_path: 's3://b', filesystem_options: {{s3: {options}}}}}")).s3;
    assert!(s3("{endpoint_override: 'http://127.0.0.1:1'}").allow_http);
    assert!(!s3("{endpoint_override: 'https://127.0.0.1:1'}").allow_http);
    assert!(!s3("{}").allow_http, "plain http only where it is asked for");
    assert!(s3("{credentials_kind: anonymous, access_key: k, secret_key: s}").keys.is_none());
}

#[test]
fn given_a_plain_path_when_resolved_then_it_is_shown_as_a_file_url() {
    assert_eq!(tier("{root_path: /srv/objects}").root, "file:///srv/objects");
    assert!(tier("{root_path: objects}").root.starts_with("file:///"));
    let loaded = load("storage: {object: {root_path: /srv/objects}}").expect("valid");
    assert!(loaded.to_yaml().contains("root_path: file:///srv/objects"), "{}", loaded.to_yaml());
}

#[test]
fn given_a_directory_of_certificates_when_the_driver_is_told_then_its_files_are_named() {
    let directory = tempfile::tempdir().expect("writable");
    for name in ["b.pem", "a.crt", "README"] {
        std::fs::write(directory.path().join(name), "").expect("writable");
    }
    let at = |path: &str| {
        tier(&format!("{{root_path: 's3://b', filesystem_options: {{s3: {{tls_ca_dir_path: '{path}'}}}}}}"))
            .driver()
    };
    let path = directory.path().to_str().expect("text");
    let found = at(path).expect("readable").s3.tls_ca_files;
    assert_eq!(found, [directory.path().join("a.crt"), directory.path().join("b.pem")]);
    let refused = at("/no/such/directory").expect_err("it is not there").to_string();
    assert!(refused.contains("tls_ca_dir_path") && refused.contains("/no/such/directory"), "{refused}");
}

#[test]
fn given_keys_that_this_server_cannot_follow_when_loaded_then_each_is_refused_by_name_with_what_to_do() {
    for (option, words) in [
        ("role_arn: a", "web identity"),
        ("session_name: a", "remove this key"),
        ("external_id: hush-hush", "remove this key"),
        ("load_frequency: 900", "remove this key"),
        ("allow_bucket_creation: true", "make it with your store's own tools"),
        ("default_metadata: {a: b}", "sidecars"),
        ("access_key: k", "secret_key"),
        ("secret_key: k", "access_key"),
        ("credentials_kind: explicit", "access_key"),
        ("credentials_kind: role", "web identity"),
        ("proxy_options: {port: 1}", "`host`"),
        ("proxy_options: {host: a, hots: b}", "`hots`"),
        ("request_timeout: 0", "1ms"),
    ] {
        let sentence = refusal(&format!(
            "storage: {{object: {{root_path: 's3://b', filesystem_options: {{s3: {{{option}}}}}}}}}"
        ));
        assert!(sentence.contains("storage.object.filesystem_options.s3."), "{sentence}");
        assert!(sentence.contains(words) && !sentence.contains("hush-hush"), "{words}: {sentence}");
    }
    for yaml in ["{allow_bucket_creation: false}", "{default_metadata: {}}"] {
        assert!(
            load(&format!("storage: {{object: {{root_path: /o, filesystem_options: {{s3: {yaml}}}}}}}"))
                .is_ok()
        );
    }
}

#[test]
fn given_a_filesystem_that_the_root_is_none_of_when_loaded_then_refused() {
    for (yaml, fits) in [
        ("{root_path: 's3://b', filesystem: FILE_SYSTEM_S3}", true),
        ("{root_path: /o, filesystem: FILE_SYSTEM_LOCAL}", true),
        ("{root_path: 'abfss://c@a.dfs.core.windows.net', filesystem: FILE_SYSTEM_AZURE}", true),
        ("{root_path: /o, filesystem: FILE_SYSTEM_S3}", false),
        ("{root_path: 'gs://b', filesystem: FILE_SYSTEM_LOCAL}", false),
    ] {
        let loaded = load(&format!("storage: {{object: {yaml}}}"));
        assert_eq!(loaded.is_ok(), fits, "{yaml}: {loaded:?}");
    }
}

#[test]
fn given_a_section_without_a_root_when_loaded_then_there_is_no_tier_and_a_warning_says_so() {
    let loaded = load("storage: {object: {compression: COMPRESSION_ZSTD}}").expect("valid");
    assert_eq!(loaded.config.storage.object, None);
    assert!(loaded.warnings.iter().any(|warning| warning.contains("storage.object.root_path")));
}
