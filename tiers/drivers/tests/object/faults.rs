//! Connections that break, servers that say no: what may be repeated is, and what may not is told.

use std::time::Duration;

use payload_drivers::object::{ObjectConfig, ObjectErrorKind, ObjectState};
use payload_types::Checksum;
use xxhash_rust::xxh3::xxh3_64;

use crate::bed::{PART, Stored, bytes, fetch, fresh_id, open, s3_at, server, store, wait};
use crate::proxy::{Fault, Proxy};

fn proxied() -> (Proxy, ObjectConfig) {
    let proxy = Proxy::start(server().address());
    let config = ObjectConfig { request_timeout: Duration::from_secs(10), ..s3_at(proxy.endpoint()) };
    (proxy, config)
}

#[test]
fn given_connections_that_break_when_parts_are_stored_and_fetched_then_they_are_repeated_and_bytes_are_right()
{
    for fault in [
        Fault::Reset,
        Fault::Answer(500, "InternalError"),
        Fault::Answer(503, "SlowDown"),
        Fault::Truncate,
        Fault::Duplicate,
        Fault::LoseAnswer,
    ] {
        for (stores, size) in [("PUT", 1000), ("partNumber=2", 2 * PART + 9), ("POST", 2 * PART + 9)] {
            let (proxy, config) = proxied();
            let (driver, _) = open(&config);
            driver.probe().expect("up");
            let (id, payload) = (fresh_id(), bytes(size));
            // What is answered twice is answered: once is as often as it happens.
            let times = if matches!(fault, Fault::Duplicate) { 1 } else { 2 };
            proxy.breaks(stores, fault.clone(), times);
            let uploaded =
                store(&driver, id, &payload).unwrap_or_else(|error| panic!("{fault:?} {stores}: {error}"));
            proxy.heal();
            proxy.breaks(".bin", fault.clone(), times);
            let found = fetch(&driver, id, &Stored::of(&uploaded, payload.len()));
            let found = found.unwrap_or_else(|error| panic!("{fault:?} fetching: {error}"));
            assert!(found == payload, "{fault:?}");
            assert_eq!(proxy.left(), 0, "the faults happened");
        }
    }
}

#[test]
fn given_a_server_that_stalls_when_its_time_is_over_then_the_request_is_repeated() {
    let (proxy, config) = proxied();
    let (driver, _) = open(&ObjectConfig { request_timeout: Duration::from_secs(1), ..config });
    proxy.breaks("PUT", Fault::Stall(Duration::from_secs(20)), 1);
    let (id, payload) = (fresh_id(), bytes(1000));
    let uploaded = store(&driver, id, &payload).expect("stored");
    assert_eq!(uploaded.checksum, Checksum(xxh3_64(&payload)));
    assert!(driver.health().failures_total >= 1);
}

#[test]
fn given_bytes_that_change_on_the_wire_when_fetched_then_they_are_not_served() {
    let (proxy, config) = proxied();
    let (driver, _) = open(&config);
    let (id, payload) = (fresh_id(), bytes(PART + 5));
    let uploaded = store(&driver, id, &payload).expect("stored");
    proxy.breaks("GET", Fault::Flip, 1);
    let error = fetch(&driver, id, &Stored::of(&uploaded, payload.len())).expect_err("another byte");
    assert_eq!(error.kind, ObjectErrorKind::Corrupt, "{error}");
    fetch(&driver, id, &Stored::of(&uploaded, payload.len())).expect("the object itself is sound");
}

#[test]
fn given_a_store_that_throttles_when_it_goes_on_then_there_are_fewer_parts_and_the_state_says_so() {
    let (proxy, config) = proxied();
    let (driver, journal) = open(&ObjectConfig { attempts: 2, ..config });
    proxy.breaks("PUT", Fault::Answer(503, "SlowDown"), 100);
    let id = fresh_id();
    let error = store(&driver, id, &bytes(100)).expect_err("it throttles");
    assert_eq!(error.kind, ObjectErrorKind::Throttled, "{error}");
    let health = driver.health();
    // Halved, and one more for what was undone since.
    assert_eq!((health.state, health.parts_limit < 4), (ObjectState::Throttling, true), "{health:?}");
    assert!(health.throttled_total >= 2 && health.error.contains("fewer requests"), "{health:?}");
    proxy.heal();
    store(&driver, id, &bytes(100)).expect("it answers again");
    assert!(payload_drivers::object::Journal::find(&*journal, id).is_some());
}

#[test]
fn given_a_store_that_is_gone_when_asked_often_then_it_is_left_alone_and_answers_come_at_once() {
    let (proxy, config) = proxied();
    let (driver, _) = open(&ObjectConfig { attempts: 4, ..config });
    proxy.breaks("", Fault::Reset, 1000);
    let mut kinds = Vec::new();
    for _ in 0..10 {
        kinds.push(store(&driver, fresh_id(), &bytes(100)).expect_err("gone").kind);
    }
    assert!(kinds.iter().all(|kind| *kind == ObjectErrorKind::Unavailable), "{kinds:?}");
    let health = driver.health();
    assert_eq!(health.state, ObjectState::Unreachable, "{health:?}");
    assert!(health.refused_total > 0 && !health.error.is_empty(), "{health:?}");
    proxy.heal();
    let mut tries = 0;
    while store(&driver, fresh_id(), &bytes(100)).is_err() {
        tries += 1;
        assert!(tries < 1000, "it is tried again");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(driver.health().state, ObjectState::Good);
}

#[test]
fn given_a_store_that_refuses_when_probed_then_one_sentence_names_what_to_change() {
    for (status, code, word) in [
        (404, "NoSuchBucket", "storage.object.root_path"),
        (403, "InvalidAccessKeyId", "s3.access_key"),
        (403, "SignatureDoesNotMatch", "s3.secret_key"),
        (400, "ExpiredToken", "AWS_SESSION_TOKEN"),
        (400, "AuthorizationHeaderMalformed", "s3.region"),
        (301, "PermanentRedirect", "s3.region"),
        (403, "RequestTimeTooSkewed", "clock"),
        (403, "AccessDenied", "allow these credentials"),
    ] {
        let (proxy, config) = proxied();
        proxy.breaks("PUT", Fault::Answer(status, code), 1);
        let (driver, _) = open(&config);
        let error = driver.probe().expect_err(code);
        assert_eq!(error.kind, ObjectErrorKind::Refused, "{code}: {error}");
        assert!(error.message.contains(word), "{code}: {error}");
        assert!(!error.message.contains(crate::seaweed::SECRET_KEY), "{error}");
        assert_eq!(driver.health().state, ObjectState::Refused);
    }
}

#[test]
fn given_more_operations_than_may_wait_when_submitted_then_the_caller_gets_them_back() {
    let (proxy, config) = proxied();
    let config = ObjectConfig {
        objects_in_flight: 1,
        objects_waiting: 1,
        request_timeout: Duration::from_secs(2),
        attempts: 1,
        ..config
    };
    let (driver, _) = open(&config);
    proxy.breaks("", Fault::Stall(Duration::from_secs(20)), 2);
    let (sender, answers) = std::sync::mpsc::sync_channel(2);
    for _ in 0..2 {
        let sender = sender.clone();
        driver.look(fresh_id(), move |result| drop(sender.send(result))).expect("taken");
    }
    let refused = wait(|done| driver.look(fresh_id(), done)).expect_err("full");
    assert_eq!(refused.kind, ObjectErrorKind::Busy);
    for _ in 0..2 {
        answers.recv_timeout(Duration::from_secs(60)).expect("answered once").expect_err("stalled");
    }
}
