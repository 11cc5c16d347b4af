//! What only a server can: refuse, sign, honour If-None-Match.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use payload_drivers::object::{Access, ObjectConfig, ObjectErrorKind, S3Options};

use crate::bed::{PART, bytes, fresh, fresh_id, local, open, s3, store, upload_of, wait};
use crate::seaweed::{READER_KEY, READER_SECRET};

#[test]
fn given_the_s3_server_when_probed_then_it_honours_create_and_signs_and_has_our_clock() {
    let probed = open(&s3()).0.probe().expect("up");
    assert!(probed.honours_create && probed.signs && probed.clock_skew_ms.abs() < 60_000, "{probed:?}");
}

#[test]
fn given_wrong_settings_when_probed_then_one_sentence_names_the_key_to_change() {
    let right = s3();
    let wrong = |change: &dyn Fn(&mut S3Options)| {
        let mut config = ObjectConfig { attempts: 1, ..right.clone() };
        change(&mut config.s3);
        config
    };
    for (config, word) in [
        (ObjectConfig { root: "s3://nobucket/x".to_owned(), ..right.clone() }, "storage.object.root_path"),
        (wrong(&|s3| s3.access_key = Some("nobody".to_owned())), "s3.access_key"),
        (wrong(&|s3| s3.secret_key = Some("wrong".to_owned())), "s3.secret_key"),
        (wrong(&|s3| s3.endpoint = Some("127.0.0.1:1".to_owned())), "s3.endpoint_override"),
        (
            wrong(&|s3| {
                s3.access_key = Some(READER_KEY.to_owned());
                s3.secret_key = Some(READER_SECRET.to_owned());
            }),
            "s3.access_key",
        ),
    ] {
        let error = open(&config).0.probe().expect_err(word);
        assert!(error.message.contains(word), "{word}: {error}");
        assert!(!error.message.contains(crate::seaweed::SECRET_KEY), "{error}");
    }
}

#[test]
fn given_roots_that_make_no_sense_when_opened_then_the_sentence_says_so_before_anything_is_asked() {
    for (root, word) in [
        ("", "is empty"),
        ("s3://", "no bucket"),
        ("hdfs://x/y", "hdfs"),
        ("/proc/no/such", "cannot be used"),
    ] {
        let config = ObjectConfig { root: root.to_owned(), ..ObjectConfig::default() };
        let journal = std::sync::Arc::new(payload_drivers::object::MemoryJournal::default());
        let error = payload_drivers::object::ObjectDriver::open(config, journal).err().expect(root);
        assert_eq!(error.kind, ObjectErrorKind::Config);
        assert!(error.message.contains(word), "{error}");
    }
}

/// A request as any program can make it: no credentials but the URL's own.
fn plain(method: &str, url: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let (host, path) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).expect("a URL");
    let mut stream = TcpStream::connect(host).expect("up");
    let length = body.len();
    write!(
        stream,
        "{method} /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )
    .expect("sent");
    stream.write_all(body).expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("answered");
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
    let status = std::str::from_utf8(&answer[9..12]).expect("text").parse().expect("a status");
    (status, answer.split_off(head))
}

#[test]
fn given_signed_urls_when_used_without_credentials_then_one_reads_and_the_other_writes() {
    let (driver, _) = open(&s3());
    let (read, written) = (fresh_id(), fresh_id());
    store(&driver, read, &bytes(1000)).expect("stored");
    let url = driver.sign(read, Access::Read, Duration::from_secs(60)).expect("signed");
    assert_eq!(plain("GET", &url, &[]), (200, bytes(1000)));
    assert_ne!(plain("PUT", &url, b"x").0, 200, "it is for reading");
    let unsigned = url.split_once('?').expect("signed").0;
    assert_ne!(plain("GET", unsigned, &[]).0, 200, "the signature is what lets it in");
    let url = driver.sign(written, Access::Write, Duration::from_secs(60)).expect("signed");
    assert_eq!(plain("PUT", &url, &bytes(77)).0, 200);
    assert_eq!(wait(|done| driver.look(written, done)).expect("there").stored.0, 77);
    let directory = tempfile::tempdir().expect("a directory");
    let error =
        open(&local(directory.path())).0.sign(read, Access::Read, Duration::from_secs(1)).expect_err("no");
    assert_eq!(error.kind, ObjectErrorKind::Config);
}

#[test]
fn given_uris_when_shown_then_they_keep_the_configured_scheme() {
    let (config, id) = (s3(), fresh_id());
    assert_eq!(open(&config).0.uri(id), format!("{}/{id}.bin", config.root));
    let directory = std::env::temp_dir().join(fresh("pm-object"));
    let (driver, _) =
        open(&ObjectConfig { root: directory.display().to_string(), ..ObjectConfig::default() });
    assert_eq!(driver.uri(id), format!("file://{}/{id}.bin", directory.display()));
    std::fs::remove_dir(directory).expect("it was made");
}

#[test]
fn given_many_uploads_when_under_way_then_no_more_parts_are_in_memory_than_may_be() {
    let config = ObjectConfig { parts_in_flight: 3, objects_in_flight: 4, ..s3() };
    let (driver, _) = open(&config);
    let payload = bytes(3 * PART);
    let (sender, answers) = std::sync::mpsc::sync_channel(6);
    for _ in 0..6 {
        let sender = sender.clone();
        driver
            .upload(upload_of(fresh_id(), &payload), move |result| drop(sender.send(result)))
            .expect("taken");
    }
    for _ in 0..6 {
        answers.recv_timeout(Duration::from_secs(120)).expect("answered").expect("stored");
    }
    let health = driver.health();
    assert_eq!((health.parts_in_flight_max, health.parts_in_flight), (3, 0), "{health:?}");
    assert_eq!(health.stored_bytes_total, 6 * 3 * PART);
}
