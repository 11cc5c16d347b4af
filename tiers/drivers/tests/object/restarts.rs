//! What ends in the middle: our process, and the S3 server.

use std::sync::Arc;
use std::time::Duration;

use payload_drivers::object::{
    EntryKind, FileJournal, Finding, Journal, Judged, ObjectConfig, ObjectDriver, ObjectErrorKind,
};

use crate::bed::{PART, Stored, bytes, fetch, fresh_id, open, s3_at, server, store, upload_of, wait};
use crate::proxy::{Fault, Proxy};
use crate::seaweed::Seaweed;

/// A driver that died after two parts of a payload: the third never arrived.
fn died(
    proxy: &Proxy,
    config: &ObjectConfig,
    journal: &std::path::Path,
    bytes: &[u8],
) -> payload_types::PayloadId {
    let id = fresh_id();
    let journal = Arc::new(FileJournal::open(journal).expect("a journal"));
    let driver = ObjectDriver::open(config.clone(), journal.clone()).expect("a driver");
    proxy.breaks("partNumber=3", Fault::Stall(Duration::from_secs(600)), 1);
    driver.upload(upload_of(id, bytes), |_| ()).expect("taken");
    while journal.find(id).is_none_or(|entry| entry.parts.len() < 2) {
        std::thread::sleep(Duration::from_millis(5));
    }
    // Dropped in the middle, like a process that is killed: nothing is aborted.
    driver.close(Duration::ZERO);
    proxy.heal();
    id
}

#[test]
fn given_an_upload_that_a_crash_cut_off_when_begun_again_then_only_what_is_missing_is_sent() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("uploads");
    let (proxy, payload) = (Proxy::start(server().address()), bytes(2 * PART + 1000));
    let config = s3_at(proxy.endpoint());
    let id = died(&proxy, &config, &path, &payload);
    let journal = Arc::new(FileJournal::open(&path).expect("a journal"));
    assert_eq!(journal.find(id).expect("an entry").parts.len(), 2);
    let driver = ObjectDriver::open(config, journal.clone()).expect("a driver");
    let before = proxy.count("partNumber=");
    let uploaded = store(&driver, id, &payload).expect("stored");
    assert_eq!(proxy.count("partNumber=") - before, 1, "two parts were there");
    assert!(fetch(&driver, id, &Stored::of(&uploaded, payload.len())).expect("fetched") == payload);
    driver.settle(id).expect("settled");
    assert_eq!(FileJournal::open(&path).expect("a journal").entries(), []);
}

#[test]
fn given_an_upload_that_a_crash_cut_off_when_the_bytes_are_others_then_nothing_of_it_is_used() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("uploads");
    let (proxy, payload) = (Proxy::start(server().address()), bytes(2 * PART + 1000));
    let config = s3_at(proxy.endpoint());
    let id = died(&proxy, &config, &path, &payload);
    let driver =
        ObjectDriver::open(config, Arc::new(FileJournal::open(&path).expect("a journal"))).expect("a driver");
    let mut other = payload;
    other[0] ^= 1;
    let uploaded = store(&driver, id, &other).expect("stored");
    assert!(fetch(&driver, id, &Stored::of(&uploaded, other.len())).expect("fetched") == other);
}

#[test]
fn given_an_upload_that_a_crash_cut_off_when_swept_then_its_parts_are_gone_and_its_name_is_free() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("uploads");
    let (proxy, payload) = (Proxy::start(server().address()), bytes(2 * PART + 1000));
    let config = s3_at(proxy.endpoint());
    let id = died(&proxy, &config, &path, &payload);
    let journal = Arc::new(FileJournal::open(&path).expect("a journal"));
    let driver = ObjectDriver::open(config, journal.clone()).expect("a driver");
    let swept = driver.sweep(false, &|_| Judged::Nobodys);
    assert_eq!((swept.len(), swept[0].finding, swept[0].failed.clone()), (1, Finding::Unfinished, None));
    assert_eq!(proxy.count("DELETE"), 3, "the upload, the object, the sidecar: by name");
    assert_eq!(journal.entries(), []);
    store(&driver, id, &payload).expect("stored from the beginning");
}

#[test]
fn given_a_journal_in_a_file_when_opened_again_then_it_says_what_was_acknowledged_and_no_more() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("uploads");
    let (driver, memory) = open(&s3_at(server().endpoint()));
    let [kept, settled] = [fresh_id(), fresh_id()];
    for id in [kept, settled] {
        store(&driver, id, &bytes(10)).expect("stored");
    }
    let journal = FileJournal::open(&path).expect("a journal");
    for entry in memory.entries() {
        journal.begin(entry).expect("kept");
    }
    journal.named(kept, "upload").expect("kept");
    journal.settle(settled).expect("kept");
    let mut entry = journal.find(kept).expect("an entry");
    entry.kind = EntryKind::Removal;
    journal.begin(entry.clone()).expect("kept");
    drop(journal);
    let text = std::fs::read_to_string(&path).expect("a file");
    std::fs::write(&path, format!("{text}{{\"Settle\":\"cut of")).expect("a crash in a line");
    assert_eq!(FileJournal::open(&path).expect("a journal").entries(), [entry]);
    std::fs::write(&path, format!("nonsense\n{text}")).expect("damage");
    let damaged = FileJournal::open(&path).err().expect("refused");
    assert!(damaged.to_string().contains("damaged"), "{damaged}");
}

#[test]
fn given_an_s3_server_that_is_killed_during_an_upload_when_it_is_back_then_the_upload_ends_well() {
    let server = Seaweed::start().expect("an S3 server");
    server.bucket("test");
    let (driver, _) = open(&ObjectConfig { attempts: 60, ..s3_at(server.endpoint()) });
    let (early, late, payload) = (fresh_id(), fresh_id(), bytes(4 * PART));
    let uploaded = store(&driver, early, &payload).expect("stored");
    let (sender, answer) = std::sync::mpsc::sync_channel(1);
    server.crash();
    driver.upload(upload_of(late, &payload), move |result| drop(sender.send(result))).expect("taken");
    while driver.health().failures_total == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    server.start_again().expect("back");
    let again = answer.recv_timeout(Duration::from_secs(240)).expect("answered").expect("stored");
    for (id, uploaded) in [(early, uploaded), (late, again)] {
        assert!(fetch(&driver, id, &Stored::of(&uploaded, payload.len())).expect("fetched") == payload);
    }
}

#[test]
fn given_a_driver_that_is_closed_when_operations_wait_then_each_is_answered() {
    let proxy = Proxy::start(server().address());
    proxy.breaks("", Fault::Stall(Duration::from_secs(1)), 1);
    let config = ObjectConfig { objects_in_flight: 1, ..s3_at(proxy.endpoint()) };
    let (driver, _) = open(&config);
    let (sender, answers) = std::sync::mpsc::sync_channel(3);
    for _ in 0..3 {
        let sender = sender.clone();
        driver.look(fresh_id(), move |result| drop(sender.send(result))).expect("taken");
    }
    driver.close(Duration::from_secs(30));
    let mut kinds: Vec<ObjectErrorKind> = (0..3)
        .map(|_| {
            answers.recv_timeout(Duration::from_secs(1)).expect("answered").expect_err("none exists").kind
        })
        .collect();
    kinds.sort_by_key(|kind| *kind == ObjectErrorKind::Stopping);
    assert!(kinds[1..].iter().all(|kind| *kind == ObjectErrorKind::Stopping), "{kinds:?}");
    assert!(
        wait::<()>(|done| {
            done(Ok(()));
            Ok(())
        })
        .is_ok()
    );
}
