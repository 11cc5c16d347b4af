//! The upload journal: what changes say, and what rows do to it in their own transactions.

use payload_types::record::{RecordChange, RecordOutcome};
use payload_types::upload::{UploadChange, UploadEntry, UploadPart};
use payload_types::{ByteCount, Epoch, Generation, PayloadRow, ReplicaRow, Tier, Version};

use super::{Desk, id};
use crate::backends::Backend;
use crate::rows::{put, remove, row};

fn entry(number: u64) -> UploadEntry {
    UploadEntry {
        id: id(number),
        generation: Generation::new(Epoch(1), number),
        is_removal: false,
        size: ByteCount(64 << 20),
        part_bytes: 8 << 20,
        compression: 2,
        upload: None,
        parts: Vec::new(),
    }
}

fn part(index: u32) -> UploadPart {
    // Some hashes are negative in the catalog.
    UploadPart { index, tag: format!("\"etag-{index}\""), hash: u64::MAX - u64::from(index) }
}

fn upload(change: UploadChange) -> RecordChange {
    RecordChange::Upload(change)
}

/// Row `number`, with a replica on OBJECT only.
fn archived(number: u64, version: u64) -> PayloadRow {
    let replica = ReplicaRow { tier: Tier::Object, synced: true, ..row(number).replicas[0] };
    PayloadRow { version: Version(version), replicas: vec![replica], ..row(number) }
}

pub fn given_an_upload_when_it_goes_on_then_a_restart_finds_all_of_it<B: Backend>() {
    let mut desk = Desk::<B>::new(0);
    for change in [
        UploadChange::Begin(entry(2)),
        UploadChange::Begin(entry(1)),
        UploadChange::Named { id: id(1), upload: "u/1".to_owned() },
        UploadChange::Part { id: id(1), part: part(3) },
        UploadChange::Part { id: id(1), part: part(0) },
        UploadChange::Part { id: id(1), part: UploadPart { tag: "old".to_owned(), ..part(0) } },
        UploadChange::Part { id: id(1), part: part(0) },
    ] {
        assert_eq!(desk.change(upload(change)), RecordOutcome::Done);
    }
    let mut desk = desk.again();
    let full = UploadEntry { upload: Some("u/1".to_owned()), parts: vec![part(0), part(3)], ..entry(1) };
    assert_eq!(desk.store.uploads(), Ok(vec![full.clone(), entry(2)]));
    desk.change(upload(UploadChange::Begin(UploadEntry { parts: vec![part(7)], ..entry(1) })));
    let anew = UploadEntry { parts: vec![part(7)], ..entry(1) };
    assert_eq!(desk.store.uploads(), Ok(vec![anew, entry(2)]), "a new one takes the former's place");
    desk.change(upload(UploadChange::Settle { id: id(1) }));
    desk.change(upload(UploadChange::Settle { id: id(1) }));
    assert_eq!(desk.store.uploads(), Ok(vec![entry(2)]));
}

pub fn given_no_entry_when_an_upload_is_named_or_has_a_part_then_nothing_is_kept<B: Backend>() {
    let mut desk = Desk::<B>::new(0);
    desk.change(upload(UploadChange::Named { id: id(1), upload: "u".to_owned() }));
    desk.change(upload(UploadChange::Part { id: id(1), part: part(0) }));
    assert_eq!(desk.store.uploads(), Ok(Vec::new()));
    desk.change(upload(UploadChange::Begin(entry(1))));
    assert_eq!(desk.store.uploads(), Ok(vec![entry(1)]), "no part of another upload is in it");
}

pub fn given_a_row_that_names_the_object_when_put_then_its_entry_is_gone_and_no_other<B: Backend>() {
    let mut desk = Desk::<B>::new(3);
    for number in 0..3 {
        desk.change(upload(UploadChange::Begin(entry(number))));
        desk.change(upload(UploadChange::Part { id: id(number), part: part(0) }));
    }
    let full = |number| UploadEntry { parts: vec![part(0)], ..entry(number) };
    // Anew, replacing a row, and a row that is too old to be kept; and one that names no object.
    desk.store
        .apply(&[put(archived(5, 1)), put(archived(0, 3)), put(archived(1, 1)), put(row(2))])
        .expect("stored");
    assert_eq!(desk.store.uploads(), Ok(vec![full(1), full(2)]));
    desk.store.apply(&[put(archived(1, 9))]).expect("stored");
    assert_eq!(desk.again().store.uploads(), Ok(vec![full(2)]));
}

pub fn given_a_row_that_names_an_object_when_removed_then_an_entry_says_what_to_delete<B: Backend>() {
    let mut desk = Desk::<B>::new(2);
    desk.store.apply(&[put(archived(0, 3)), put(archived(4, 1))]).expect("stored");
    desk.store.apply(&[remove(0, 1), remove(1, 1), remove(4, 0)]).expect("removed");
    let mut desk = desk.again();
    let removal = UploadEntry {
        is_removal: true,
        generation: archived(0, 3).replicas[0].generation,
        size: row(0).size,
        part_bytes: 0,
        compression: 0,
        ..entry(0)
    };
    assert_eq!(desk.store.uploads(), Ok(vec![removal]), "neither of row 1 nor of row 4, which stays");
    desk.change(upload(UploadChange::Settle { id: id(0) }));
    assert_eq!(desk.store.uploads(), Ok(Vec::new()));
}

suite_of_records! {[
    given_an_upload_when_it_goes_on_then_a_restart_finds_all_of_it,
    given_no_entry_when_an_upload_is_named_or_has_a_part_then_nothing_is_kept,
    given_a_row_that_names_the_object_when_put_then_its_entry_is_gone_and_no_other,
    given_a_row_that_names_an_object_when_removed_then_an_entry_says_what_to_delete,
]}
