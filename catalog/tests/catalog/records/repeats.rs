//! Calls that come again under one id: made once, also after a restart.

use payload_types::WallMs;
use payload_types::limits::REPEATS_KEPT_MS;
use payload_types::record::{
    MetadataMode, RecordAnswer, RecordChange, RecordOutcome, RecordQuery, StreamLimits,
};

use super::{Desk, append, at, create, item, metadata, read, stream, update};
use crate::backends::Backend;
use crate::rows::key;

fn once(id: &str, request: u64, change: RecordChange, now: WallMs) -> RecordChange {
    RecordChange::Once { id: id.to_owned(), request, at: now, change: Box::new(change) }
}

fn events<B: Backend>(desk: &mut Desk<B>, number: u64) -> usize {
    let query = RecordQuery::MetadataEvents { key: key(number), after: 0, entries_max: 99, at: at(0) };
    match desk.ask(query) {
        RecordAnswer::MetadataEvents(events, _) => events.len(),
        other => panic!("no events: {other:?}"),
    }
}

fn end<B: Backend>(desk: &mut Desk<B>, name: &str) -> u64 {
    match desk.ask(read(name, 0, 99, 99, at(0))) {
        RecordAnswer::Entries(info, ..) => info.end,
        other => panic!("no entries: {other:?}"),
    }
}

pub fn given_an_append_with_an_id_when_it_comes_again_after_a_restart_then_its_offsets_and_nothing_more<
    B: Backend,
>() {
    let mut desk = Desk::<B>::new(2);
    desk.change(create("s", None, None));
    desk.change(append("s", vec![item(0)], at(0)));
    let call = |request| once("Append a", request, append("s", vec![item(0), item(1)], at(7)), at(7));
    let made = RecordOutcome::Appended { first: 1, last: 2 };
    assert_eq!(desk.change(call(u64::MAX)), made);
    assert_eq!(desk.change(call(u64::MAX)), made);
    let mut desk = desk.again();
    assert_eq!(desk.change(call(u64::MAX)), made);
    assert_eq!(desk.change(call(3)), RecordOutcome::UsedBefore);
    assert_eq!(end(&mut desk, "s"), 3);
    let other = once("Append b", 3, append("s", vec![item(0)], at(7)), at(7));
    assert_eq!(desk.change(other), RecordOutcome::Appended { first: 3, last: 3 });
    desk.change(RecordChange::StreamDelete { stream: stream("s") });
    assert_eq!(desk.change(call(u64::MAX)), made, "what was said then");
}

pub fn given_an_append_that_was_refused_when_it_comes_again_then_it_is_tried_again<B: Backend>() {
    let mut desk = Desk::<B>::new(1);
    let call = once("Append a", 1, append("s", vec![item(0)], at(7)), at(7));
    assert_eq!(desk.change(call.clone()), RecordOutcome::StreamNotFound);
    desk.change(create("s", None, None));
    assert_eq!(desk.change(call), RecordOutcome::Appended { first: 0, last: 0 });
}

pub fn given_a_stream_that_retains_when_an_append_comes_again_then_its_floor_is_todays<B: Backend>() {
    let mut desk = Desk::<B>::new(1);
    let limits = StreamLimits { retains_payloads: true, ..StreamLimits::default() };
    desk.change(RecordChange::StreamCreate { stream: stream("s"), limits, at: at(0) });
    let items = vec![item(0)];
    let append = RecordChange::StreamAppend { stream: stream("s"), items, held: true, at: at(0) };
    let call = once("Append a", 1, append, at(0));
    let RecordOutcome::AppendedHeld { first: 0, last: 0, mut floor } = desk.change(call.clone()) else {
        panic!("appended")
    };
    desk.change(RecordChange::StreamCommit { stream: stream("s"), group: "g".into(), offset: 1, at: at(0) });
    floor.floor = 1;
    assert_eq!(desk.change(call), RecordOutcome::AppendedHeld { first: 0, last: 0, floor });
}

pub fn given_changes_of_metadata_with_ids_when_they_come_again_then_what_was_made_then<B: Backend>() {
    let mut desk = Desk::<B>::new(2);
    let merge = update(0, MetadataMode::Merge, b"{\"a\":1}", "s");
    let note = RecordChange::MetadataNote {
        key: key(1),
        metadata: metadata(b"note", ""),
        source: "s".into(),
        version: "v".into(),
        at: at(4),
    };
    let (merge, note) = (once("Update a", 1, merge, at(5)), once("Note a", 1, note, at(4)));
    let RecordOutcome::Metadata(merged) = desk.change(merge.clone()) else { panic!("merged") };
    assert_eq!(desk.change(note.clone()), RecordOutcome::Done);
    desk.change(update(0, MetadataMode::Replace, b"{}", "t"));
    let mut desk = desk.again();
    let RecordOutcome::Before { at: then, outcome } = desk.change(merge) else { panic!("made before") };
    assert_eq!(*outcome, RecordOutcome::Metadata(merged));
    let vouched = RecordChange::Vouched(Box::new(note.clone()));
    for again in [note, vouched] {
        let expected = RecordOutcome::Before { at: at(4), outcome: Box::new(RecordOutcome::Done) };
        assert_eq!(desk.change(again), expected);
    }
    assert!(then < at(1000));
    assert_eq!((events(&mut desk, 0), events(&mut desk, 1)), (2, 1));
}

pub fn given_a_call_that_is_ten_minutes_old_when_it_comes_again_then_it_is_made_again_and_sweeps_forget_it<
    B: Backend,
>() {
    let mut desk = Desk::<B>::new(1);
    desk.change(create("s", None, None));
    let call = |id: &str, now| once(id, 1, append("s", vec![item(0)], now), now);
    for number in 0..300_u64 {
        desk.change(call(&format!("Append {number}"), at(number)));
    }
    assert_eq!(desk.store.sweep_is_due(at(REPEATS_KEPT_MS - 1)), Ok(false));
    let late = at(REPEATS_KEPT_MS);
    assert_eq!(desk.change(call("Append 0", late)), RecordOutcome::Appended { first: 300, last: 300 });
    assert_eq!(desk.change(call("Append 1", late)), RecordOutcome::Appended { first: 1, last: 1 });
    assert_eq!(desk.store.sweep_is_due(late), Ok(false), "0 is new again");
    desk.swept(at(REPEATS_KEPT_MS + 298));
    let last = call("Append 299", at(REPEATS_KEPT_MS + 298));
    assert_eq!(desk.change(last), RecordOutcome::Appended { first: 299, last: 299 }, "still known");
    desk.swept(at(3 * REPEATS_KEPT_MS));
    assert_eq!(desk.store.sweep_is_due(at(9 * REPEATS_KEPT_MS)), Ok(false), "nothing is left");
}

suite_of_records! {[
    given_an_append_with_an_id_when_it_comes_again_after_a_restart_then_its_offsets_and_nothing_more,
    given_an_append_that_was_refused_when_it_comes_again_then_it_is_tried_again,
    given_a_stream_that_retains_when_an_append_comes_again_then_its_floor_is_todays,
    given_changes_of_metadata_with_ids_when_they_come_again_then_what_was_made_then,
    given_a_call_that_is_ten_minutes_old_when_it_comes_again_then_it_is_made_again_and_sweeps_forget_it,
]}
