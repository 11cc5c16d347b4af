//! What every store must do, whatever it is: one suite over a directory and an S3 server.

use std::collections::BTreeMap;
use std::sync::Arc;

use payload_drivers::object::{
    Archive, Compression, EntryKind, Finding, Journal, Judged, ObjectErrorKind, Parent, Policy, Upload,
};
use payload_types::{ByteCount, Checksum, Generation, WallMs};
use xxhash_rust::xxh3::xxh3_64;

use crate::bed::{
    PART, Stored, bytes, each_store, fetch, file_of, fresh_id, local, names, open, sidecar, store, upload_of,
    wait,
};

const ALL: [Compression; 3] = [Compression::None, Compression::Zstd, Compression::Lz4];

#[test]
fn given_payloads_of_any_size_when_stored_then_the_same_bytes_come_back_and_the_sidecar_says_what_they_are() {
    for compression in ALL {
        each_store(compression, |driver, journal, _| {
            for size in [1, 4097, PART, PART + 1, 2 * PART + 12_345] {
                let (id, payload) = (fresh_id(), bytes(size));
                let uploaded = store(driver, id, &payload).expect("stored");
                assert_eq!(uploaded.checksum, Checksum(xxh3_64(&payload)));
                assert_eq!(uploaded.uri, driver.uri(id));
                assert!(uploaded.stored.0 == size || compression != Compression::None);
                let found = fetch(driver, id, &Stored::of(&uploaded, payload.len())).expect("fetched");
                assert!(found == payload, "{size} bytes by {compression:?}");
                let told = sidecar(driver, id).expect("a sidecar");
                assert_eq!((told.id, told.size, told.checksum), (id, ByteCount(size), uploaded.checksum));
                assert_eq!((told.compression, &told.uri), (compression, &uploaded.uri));
                assert_eq!(wait(|done| driver.look(id, done)).expect("there").stored, uploaded.stored);
                assert_eq!(journal.find(id).map(|entry| entry.kind), Some(EntryKind::Upload));
                driver.settle(id).expect("settled");
                assert_eq!(journal.entries(), []);
            }
        });
    }
}

#[test]
fn given_compressible_bytes_when_stored_compressed_then_the_object_is_smaller() {
    for compression in [Compression::Zstd, Compression::Lz4] {
        each_store(compression, |driver, _, _| {
            let payload = vec![7; 3 * PART as usize];
            let uploaded = store(driver, fresh_id(), &payload).expect("stored");
            assert!(uploaded.stored.0 * 10 < payload.len() as u64, "{:?}", uploaded.stored);
        });
    }
}

#[test]
fn given_everything_that_is_known_of_a_payload_when_stored_then_its_sidecar_says_it_back() {
    each_store(Compression::Zstd, |driver, _, _| {
        let archive = Archive {
            created_at: Some(WallMs::from_millis(1_700_000_000_123)),
            archived_at: Some(WallMs::from_millis(1_800_000_000_000)),
            expires_at: Some(WallMs::from_millis(1_900_000_000_001)),
            version: u64::MAX,
            policy: Policy {
                priority: "EVICTION_PRIORITY_LOW".to_owned(),
                require_durable: true,
                spill_target: "TIER_OBJECT".to_owned(),
                min_residency_tier: String::new(),
            },
            dataset: "run \"7\"\u{e9}".to_owned(),
            producer: "camera".to_owned(),
            tags: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            lineage: vec![Parent {
                id: fresh_id(),
                operation: "resize".to_owned(),
                role: "input".to_owned(),
                parameters: vec![0, 255, 10],
            }],
        };
        let id = fresh_id();
        let upload = Upload { archive: archive.clone(), ..upload_of(id, &bytes(100)) };
        wait(|done| driver.upload(upload, done)).expect("stored");
        assert_eq!(sidecar(driver, id).expect("a sidecar").archive, archive);
    });
}

#[test]
fn given_an_object_that_nobody_here_made_when_its_name_is_wanted_then_it_is_left_alone() {
    for size in [100, PART + 1] {
        each_store(Compression::None, |driver, journal, rival| {
            let (id, theirs) = (fresh_id(), bytes(50));
            rival.replaces(id, &theirs);
            let refused = store(driver, id, &bytes(size)).expect_err("it exists");
            assert_eq!(refused.kind, ObjectErrorKind::Conflict, "{refused}");
            assert_eq!(rival.reads(id, 50).expect("still there"), theirs);
            assert_eq!(journal.entries(), [], "no sweep may touch it");
        });
    }
}

#[test]
fn given_bytes_that_are_not_what_they_must_be_when_stored_then_nothing_is_left() {
    for size in [100, 2 * PART + 1] {
        each_store(Compression::None, |driver, journal, _| {
            let id = fresh_id();
            let upload = Upload { expected: Some(Checksum(1)), ..upload_of(id, &bytes(size)) };
            let refused = wait(|done| driver.upload(upload, done)).expect_err("another checksum");
            assert_eq!(refused.kind, ObjectErrorKind::Source, "{refused}");
            let mut cut = file_of(&bytes(size));
            cut.size = ByteCount(size + 1);
            let upload = Upload { source: Arc::new(cut), ..upload_of(id, &bytes(size)) };
            let refused = wait(|done| driver.upload(upload, done)).expect_err("it is shorter");
            assert_eq!(refused.kind, ObjectErrorKind::Source, "{refused}");
            let missing = wait(|done| driver.look(id, done)).expect_err("nothing is there");
            assert_eq!(missing.kind, ObjectErrorKind::Missing);
            assert_eq!(journal.entries(), []);
        });
    }
}

#[test]
fn given_objects_changed_behind_our_back_when_fetched_then_it_is_found_and_never_served() {
    for compression in ALL {
        each_store(compression, |driver, _, rival| {
            let (id, payload) = (fresh_id(), bytes(PART + 77));
            let uploaded = store(driver, id, &payload).expect("stored");
            let stored = Stored::of(&uploaded, payload.len());
            let size = uploaded.stored.0;
            let mut other = bytes(size);
            other[3] ^= 0xFF;
            for (what, theirs) in [
                ("replaced", other),
                ("cut", bytes(size - 1)),
                ("grown", bytes(size + 1)),
                ("cut to its head", bytes(1)),
            ] {
                rival.replaces(id, &theirs);
                let error = fetch(driver, id, &stored).expect_err(what);
                assert!(
                    matches!(error.kind, ObjectErrorKind::Changed | ObjectErrorKind::Corrupt),
                    "{what}: {error:?}"
                );
                let known = Stored { etag: uploaded.etag.clone(), ..Stored::of(&uploaded, payload.len()) };
                let error = fetch(driver, id, &known).expect_err(what);
                assert!(
                    matches!(error.kind, ObjectErrorKind::Changed | ObjectErrorKind::Corrupt),
                    "{what}: {error:?}"
                );
            }
            rival.removes(id);
            assert_eq!(fetch(driver, id, &stored).expect_err("gone").kind, ObjectErrorKind::Missing);
        });
    }
}

#[test]
fn given_a_payload_when_removed_then_object_and_sidecar_are_gone_and_a_second_time_is_no_error() {
    each_store(Compression::None, |driver, journal, _| {
        let id = fresh_id();
        store(driver, id, &bytes(100)).expect("stored");
        for _ in 0..2 {
            wait(|done| driver.remove(id, done)).expect("removed");
        }
        assert_eq!(wait(|done| driver.look(id, done)).expect_err("gone").kind, ObjectErrorKind::Missing);
        assert_eq!(sidecar(driver, id).expect_err("gone").kind, ObjectErrorKind::Missing);
        assert_eq!(journal.entries(), []);
    });
}

#[test]
fn given_what_no_row_names_when_swept_then_it_goes_and_a_dry_run_only_tells() {
    each_store(Compression::None, |driver, journal, rival| {
        let [named, orphan, foreign, never] = [fresh_id(), fresh_id(), fresh_id(), fresh_id()];
        for id in [named, orphan] {
            store(driver, id, &bytes(100)).expect("stored");
        }
        rival.replaces(foreign, &bytes(10));
        let entry = journal.find(orphan).expect("an entry");
        journal.begin(payload_drivers::object::Entry { id: never, ..entry }).expect("kept");
        let expected = |finding: Finding| {
            move |swept: &payload_drivers::object::Swept| swept.finding == finding && swept.failed.is_none()
        };
        for is_dry in [true, false] {
            let swept =
                driver.sweep(is_dry, &|entry| match entry.id == named && entry.generation == Generation(1) {
                    true => Judged::Named,
                    false => Judged::Nobodys,
                });
            let of = |id| swept.iter().find(|one| one.id == id).expect("told");
            assert_eq!(swept.len(), 3);
            assert!(
                expected(Finding::Named)(of(named)) && expected(Finding::Orphan)(of(orphan)),
                "{swept:?}"
            );
            assert!(expected(Finding::Unfinished)(of(never)), "{swept:?}");
            let is_there = wait(|done| driver.look(orphan, done)).is_ok();
            assert_eq!(is_there, is_dry);
            assert_eq!(journal.entries().is_empty(), !is_dry);
        }
        wait(|done| driver.look(named, done)).expect("a row names it");
        assert_eq!(rival.reads(foreign, 10).expect("not ours"), bytes(10));
    });
}

#[test]
fn given_a_directory_when_an_upload_fails_then_no_draft_is_left() {
    let directory = tempfile::tempdir().expect("a directory");
    let (driver, _) = open(&local(directory.path()));
    let mut cut = file_of(&bytes(2 * PART));
    cut.size = ByteCount(3 * PART);
    let upload = Upload { source: Arc::new(cut), expected: None, ..upload_of(fresh_id(), &[]) };
    wait(|done| driver.upload(upload, done)).expect_err("it is shorter");
    assert_eq!(names(directory.path()), Vec::<std::path::PathBuf>::new());
}
