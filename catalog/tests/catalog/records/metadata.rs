//! Metadata and its history.

use payload_types::limits::OPAQUE_BYTES_MAX;
use payload_types::record::{
    MetadataEvent, MetadataEventKind, MetadataMode, RecordAnswer, RecordChange, RecordOutcome, RecordQuery,
};
use payload_types::{Health, NamespaceId, PayloadKey, PayloadState, WallMs};

use super::{Desk, at, id, metadata, update};
use crate::backends::Backend;
use crate::rows::{key, put, remove, row};
use MetadataMode::{Merge, Replace};

fn note(number: u64, data: &[u8]) -> RecordChange {
    RecordChange::MetadataNote {
        key: key(number),
        metadata: metadata(data, "schema"),
        source: "source".to_owned(),
        version: "1\0".to_owned(),
        at: at(7),
    }
}

fn current(key: PayloadKey) -> RecordQuery {
    RecordQuery::Metadata { key, at: at(9) }
}

fn events(number: u64, after: u64, entries_max: usize) -> RecordQuery {
    RecordQuery::MetadataEvents { key: key(number), after, entries_max, at: at(9) }
}

fn numbers(answer: RecordAnswer) -> (Vec<u64>, bool) {
    let RecordAnswer::MetadataEvents(events, more) = answer else { panic!("no events: {answer:?}") };
    (events.iter().map(|event| event.number).collect(), more)
}

pub fn given_a_payload_that_is_unknown_expired_or_lost_when_changed_or_asked_then_said_so<B: Backend>() {
    let mut desk = Desk::<B>::new(0);
    let (mut expired, mut over, mut lost) = (row(1), row(2), row(3));
    expired.expires_at = Some(at(5));
    over.state = PayloadState::Expired;
    lost.health = Health::Lost;
    desk.store.apply(&[put(expired), put(over), put(lost)]).expect("stored");
    for number in 0..4 {
        let (outcome, answer) = match number {
            3 => (RecordOutcome::Lost(id(3)), RecordAnswer::Lost(id(3))),
            _ => (RecordOutcome::NotFound(id(number)), RecordAnswer::NotFound(id(number))),
        };
        assert_eq!(desk.change(update(number, Replace, b"x", "")), outcome);
        assert_eq!(desk.change(note(number, b"x")), outcome);
        assert_eq!(desk.ask(current(key(number))), answer);
        assert_eq!(desk.ask(events(number, 0, 10)), answer);
    }
    // Before its end an expiring payload is like any other.
    let mut early = update(1, Replace, b"x", "");
    if let RecordChange::MetadataUpdate { at: now, .. } = &mut early {
        *now = at(4);
    }
    assert_eq!(desk.change(early), RecordOutcome::Metadata(metadata(b"x", "")));
}

pub fn given_updates_and_notes_when_read_back_then_all_is_there_byte_for_byte<B: Backend>() {
    let mut desk = Desk::<B>::new(2);
    desk.allocated(2);
    assert_eq!(desk.ask(current(key(0))), RecordAnswer::Metadata(None));
    assert_eq!(numbers(desk.ask(events(0, 0, 10))), (vec![], false));
    assert_eq!(desk.change(note(0, b"first")), RecordOutcome::Done);
    assert_eq!(desk.ask(current(key(0))), RecordAnswer::Metadata(None), "a note sets nothing");
    let bytes: Vec<u8> = (0..=255).collect();
    let results = [
        (update(0, Replace, &bytes, "s\0ch\u{10FFFF}"), metadata(&bytes, "s\0ch\u{10FFFF}")),
        (
            update(0, Merge, br#"{"b":1.50,"a":null}"#, ""),
            metadata(br#"{"b":1.50,"a":null}"#, "s\0ch\u{10FFFF}"),
        ),
        (update(0, Merge, br#"{"a":2,"b":null}"#, "t"), metadata(br#"{"a":2}"#, "t")),
        (update(0, Merge, b"", ""), metadata(br#"{"a":2}"#, "t")),
        (update(0, Replace, b"", ""), metadata(b"", "")),
    ];
    for (change, result) in &results {
        assert_eq!(desk.change(change.clone()), RecordOutcome::Metadata(result.clone()));
        assert_eq!(desk.ask(current(key(0))), RecordAnswer::Metadata(Some((result.clone(), at(5)))));
    }
    assert_eq!(desk.change(note(0, b"last")), RecordOutcome::Done);
    assert_eq!(desk.ask(current(key(0))), RecordAnswer::Metadata(Some((metadata(b"", ""), at(5)))));
    assert_eq!(desk.ask(current(key(1))), RecordAnswer::Metadata(None), "others have none");
    assert_eq!(
        desk.change(update(2, Replace, b"y", "")),
        RecordOutcome::Metadata(metadata(b"y", "")),
        "ALLOCATED"
    );

    let mut desk = desk.again();
    let told = |number: u64, kind, metadata, at: WallMs, texts: [&str; 3]| {
        let [source, reason, version] = texts.map(str::to_owned);
        MetadataEvent { number, at, kind, metadata, source, reason, version }
    };
    let mut expected =
        vec![told(1, MetadataEventKind::Noted, metadata(b"first", "schema"), at(7), ["source", "", "1\0"])];
    for (number, (change, result)) in (2..).zip(results) {
        let replaced = matches!(change, RecordChange::MetadataUpdate { mode: Replace, .. });
        let kind = if replaced { MetadataEventKind::Replaced } else { MetadataEventKind::Merged };
        expected.push(told(number, kind, result, at(5), ["actor\0", "réason", ""]));
    }
    expected.push(told(
        7,
        MetadataEventKind::Noted,
        metadata(b"last", "schema"),
        at(7),
        ["source", "", "1\0"],
    ));
    assert_eq!(desk.ask(events(0, 0, 10)), RecordAnswer::MetadataEvents(expected, false));
}

pub fn given_a_long_history_when_read_in_pages_then_each_is_bounded_by_entries_and_by_bytes<B: Backend>() {
    let mut desk = Desk::<B>::new(2);
    for number in 0..10 {
        desk.change(note(0, &[number]));
        desk.change(note(1, &vec![number; OPAQUE_BYTES_MAX]));
    }
    assert_eq!(numbers(desk.ask(events(0, 0, 4))), (vec![1, 2, 3, 4], true));
    assert_eq!(numbers(desk.ask(events(0, 4, 6))), (vec![5, 6, 7, 8, 9, 10], false));
    assert_eq!(numbers(desk.ask(events(0, 10, 6))), (vec![], false));
    assert_eq!(numbers(desk.ask(events(0, u64::MAX, 6))), (vec![], false));
    // Three of 1 MiB fit into one message of 4 MiB less what is around them.
    assert_eq!(numbers(desk.ask(events(1, 0, 500))), (vec![1, 2, 3], true));
    assert_eq!(numbers(desk.ask(events(1, 8, 500))), (vec![9, 10], false));
}

pub fn given_a_merge_that_grows_too_long_when_made_then_refused_and_nothing_changes<B: Backend>() {
    let mut desk = Desk::<B>::new(1);
    let half = format!(r#"{{"a":"{}"}}"#, "x".repeat(OPAQUE_BYTES_MAX - 20));
    let patch = format!(r#"{{"b":"{}"}}"#, "y".repeat(30));
    let kept = RecordOutcome::Metadata(metadata(half.as_bytes(), ""));
    assert_eq!(desk.change(update(0, Replace, half.as_bytes(), "")), kept);
    let bytes = (half.len() + patch.len() - 1) as u64;
    assert_eq!(desk.change(update(0, Merge, patch.as_bytes(), "")), RecordOutcome::TooLarge { bytes });
    assert_eq!(numbers(desk.ask(events(0, 0, 10))), (vec![1], false));
    assert_eq!(desk.change(update(0, Merge, b"", "")), kept);
}

pub fn given_a_removed_payload_when_stored_anew_then_it_has_no_metadata_and_no_history<B: Backend>() {
    let mut desk = Desk::<B>::new(3);
    for _ in 0..3 {
        desk.change(update(0, Replace, b"old", ""));
    }
    // More than goes at once.
    let notes: Vec<_> = (0..1000).map(|_| note(1, b"old").into()).collect();
    assert_eq!(desk.store.apply(&notes), Ok(vec![RecordOutcome::Done; 1000]));
    desk.change(update(2, Replace, b"stays", ""));
    // An older epoch removes nothing, and takes nothing along.
    desk.store.apply(&[remove(2, 0)]).expect("spared");
    desk.remove([0, 1]);
    assert_eq!(desk.ask(current(key(1))), RecordAnswer::NotFound(id(1)));
    desk.store.apply(&[put(row(0)), put(row(1))]).expect("stored anew");
    for number in 0..2 {
        assert_eq!(desk.ask(current(key(number))), RecordAnswer::Metadata(None));
        assert_eq!(numbers(desk.ask(events(number, 0, 10))), (vec![], false));
        desk.change(note(number, b"new"));
    }
    assert_eq!(desk.store.sweep_is_due(at(9)), Ok(true), "1,000 events are left");
    desk.swept(at(9));
    let mut desk = desk.again();
    for number in 0..2 {
        assert_eq!(numbers(desk.ask(events(number, 0, 10))), (vec![1], false));
    }
    assert_eq!(desk.ask(current(key(2))), RecordAnswer::Metadata(Some((metadata(b"stays", ""), at(5)))));
}

pub fn given_rows_and_records_in_one_batch_when_applied_then_in_their_order<B: Backend>() {
    let mut desk = Desk::<B>::new(0);
    let batch = [
        update(0, Replace, b"1", "").into(),
        put(row(0)),
        update(0, Replace, b"2", "").into(),
        note(0, b"3").into(),
        remove(0, 1),
        note(0, b"4").into(),
        put(row(0)),
        update(0, Merge, b"5", "").into(),
    ];
    let expected = vec![
        RecordOutcome::NotFound(id(0)),
        RecordOutcome::Metadata(metadata(b"2", "")),
        RecordOutcome::Done,
        RecordOutcome::NotFound(id(0)),
        RecordOutcome::Metadata(metadata(b"5", "")),
    ];
    assert_eq!(desk.store.apply(&batch), Ok(expected));
    assert_eq!(numbers(desk.ask(events(0, 0, 10))), (vec![1], false));
}

pub fn given_one_id_in_two_namespaces_when_it_gets_metadata_then_the_other_has_none<B: Backend>() {
    let mut desk = Desk::<B>::new(1);
    let mut other = row(0);
    other.key.namespace = NamespaceId(7);
    desk.store.apply(&[put(other.clone())]).expect("stored");
    desk.change(update(0, Replace, b"x", ""));
    assert_eq!(desk.ask(current(other.key)), RecordAnswer::Metadata(None));
    desk.remove([0]);
    assert_eq!(desk.ask(current(other.key)), RecordAnswer::Metadata(None));
}

suite_of_records! {[
    given_a_payload_that_is_unknown_expired_or_lost_when_changed_or_asked_then_said_so,
    given_updates_and_notes_when_read_back_then_all_is_there_byte_for_byte,
    given_a_long_history_when_read_in_pages_then_each_is_bounded_by_entries_and_by_bytes,
    given_a_merge_that_grows_too_long_when_made_then_refused_and_nothing_changes,
    given_a_removed_payload_when_stored_anew_then_it_has_no_metadata_and_no_history,
    given_rows_and_records_in_one_batch_when_applied_then_in_their_order,
    given_one_id_in_two_namespaces_when_it_gets_metadata_then_the_other_has_none,
]}
