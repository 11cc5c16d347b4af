//! Streams that retain payloads: how far each holds them, said with every change that moves it.

use payload_types::WallMs;
use payload_types::limits::STORED_INTEGER_MAX;
use payload_types::record::{
    MetadataMode, RecordAnswer, RecordChange, RecordOutcome, RecordQuery, StreamFloor, StreamLimits,
    StreamName,
};

use super::{Desk, add_edges, append, at, create, edge, id, item, stream, update};
use crate::backends::Backend;
use crate::rows::{put, row};

fn retaining(name: &str, entries_max: Option<u64>, age_ms_max: Option<u64>) -> RecordChange {
    let limits = StreamLimits { entries_max, age_ms_max, retains_payloads: true };
    RecordChange::StreamCreate { stream: stream(name), limits, at: at(0) }
}

fn held(name: &str, numbers: &[u64], now: WallMs) -> RecordChange {
    let items = numbers.iter().map(|number| item(*number)).collect();
    RecordChange::StreamAppend { stream: stream(name), items, held: true, at: now }
}

fn commit(name: &str, group: &str, offset: u64) -> RecordChange {
    RecordChange::StreamCommit { stream: stream(name), group: group.to_owned(), offset, at: at(1) }
}

/// The stream and its floor, as a change tells it.
fn floor_of(outcome: RecordOutcome) -> StreamFloor {
    match outcome {
        RecordOutcome::Floored(floor) | RecordOutcome::AppendedHeld { floor, .. } => floor,
        other => panic!("no floor: {other:?}"),
    }
}

fn floors<B: Backend>(
    desk: &mut Desk<B>,
    after: u64,
    streams_max: usize,
) -> (Vec<(StreamName, StreamFloor)>, bool) {
    match desk.ask(RecordQuery::Floors { after, streams_max }) {
        RecordAnswer::Floors(found, more) => (found, more),
        other => panic!("no floors: {other:?}"),
    }
}

pub fn given_a_stream_that_retains_when_groups_commit_then_the_one_furthest_behind_is_its_floor<
    B: Backend,
>() {
    let mut desk = Desk::<B>::new(3);
    let made = floor_of(desk.change(retaining("s", None, None)));
    assert_eq!(made.floor, 0);
    let RecordOutcome::AppendedHeld { first: 0, last: 3, floor } =
        desk.change(held("s", &[0, 1, 2, 1], at(0)))
    else {
        panic!("appended")
    };
    assert_eq!(floor, made, "without a group everything is held");
    for (group, offset, expected) in
        [("g", 4, 4), ("h", 2, 2), ("g", 3, 2), ("h", 4, 3), ("g", 0, 0), ("g", 4, 4)]
    {
        let floor = floor_of(desk.change(commit("s", group, offset)));
        assert_eq!((floor.stream, floor.floor), (made.stream, expected), "{group} at {offset}");
    }
    let mut desk = desk.again();
    let expected = vec![(stream("s"), StreamFloor { stream: made.stream, floor: 4 })];
    assert_eq!(floors(&mut desk, 0, 9), (expected, false));
    assert_eq!(desk.change(commit("s", "g", 5)), RecordOutcome::BeyondEnd { end: 4 });
}

pub fn given_a_stream_that_retains_when_appended_without_holds_then_nothing_is_stored<B: Backend>() {
    let mut desk = Desk::<B>::new(2);
    desk.change(retaining("s", None, None));
    desk.change(create("plain", None, None));
    assert_eq!(desk.change(append("s", vec![item(0)], at(0))), RecordOutcome::NotHeld);
    assert_eq!(desk.change(append("s", vec![item(99)], at(0))), RecordOutcome::NotHeld, "asked first of all");
    assert_eq!(desk.change(held("s", &[99], at(0))), RecordOutcome::NotFound(id(99)));
    assert!(matches!(
        desk.change(held("s", &[0], at(0))),
        RecordOutcome::AppendedHeld { first: 0, last: 0, .. }
    ));
    let outcome = desk.change(held("plain", &[0], at(0)));
    assert_eq!(outcome, RecordOutcome::Appended { first: 0, last: 0 }, "holds are no condition elsewhere");
    assert_eq!(desk.change(commit("plain", "g", 1)), RecordOutcome::Done);
}

pub fn given_retention_and_deletion_when_a_stream_retains_then_its_floor_follows<B: Backend>() {
    let mut desk = Desk::<B>::new(2);
    desk.change(retaining("few", Some(2), None));
    desk.change(retaining("young", None, Some(100)));
    let few = floor_of(desk.change(held("few", &[0, 1, 0], at(0))));
    assert_eq!(few.floor, 1);
    let young = floor_of(desk.change(held("young", &[0, 1], at(0))));
    desk.change(held("young", &[0], at(50)));
    assert_eq!(young.floor, 0);
    let swept = |outcome| match outcome {
        RecordOutcome::Swept { removed, floors, .. } => (removed, floors),
        other => panic!("{other:?}"),
    };
    let floor = |floor| StreamFloor { stream: young.stream, floor };
    assert_eq!(swept(desk.change(RecordChange::Sweep { at: at(120) })), (2, vec![floor(2)]));
    assert_eq!(swept(desk.change(RecordChange::Sweep { at: at(121) })), (0, Vec::new()));
    let delete = RecordChange::StreamDelete { stream: stream("few") };
    assert_eq!(floor_of(desk.change(delete.clone())), StreamFloor { floor: STORED_INTEGER_MAX, ..few });
    assert_eq!(desk.change(delete), RecordOutcome::Done);
    assert!(floor_of(desk.change(retaining("few", None, None))).stream > few.stream);
}

pub fn given_many_streams_that_retain_when_listed_then_each_comes_once_and_others_do_not<B: Backend>() {
    let mut desk = Desk::<B>::new(1);
    let mut made = Vec::new();
    for number in 0..7 {
        desk.change(create(&format!("plain {number}"), None, None));
        made.push(floor_of(desk.change(retaining(&format!("s {number}"), None, None))));
    }
    let (first, more) = floors(&mut desk, 0, 4);
    let (second, rest) = floors(&mut desk, first[3].1.stream, 4);
    assert!(more && !rest);
    assert_eq!(first.iter().chain(&second).map(|(_, floor)| *floor).collect::<Vec<_>>(), made);
    let RecordAnswer::Streams(streams, _) = desk.ask(RecordQuery::Streams { after: None, entries_max: 99 })
    else {
        panic!("streams")
    };
    let named = |name: &StreamName| name.name.starts_with('s');
    assert!(streams.iter().all(|info| info.limits.retains_payloads == named(&info.stream)));
}

pub fn given_a_payload_beyond_its_ttl_when_its_shard_vouches_for_it_then_records_may_refer_to_it<
    B: Backend,
>() {
    let mut desk = Desk::<B>::new(2);
    let mut overdue = row(7);
    overdue.expires_at = Some(at(3));
    desk.store.apply(&[put(overdue)]).expect("stored");
    desk.change(retaining("s", None, None));
    let gone = RecordOutcome::NotFound(id(7));
    let update = update(7, MetadataMode::Replace, b"m", "s");
    let lineage = add_edges(0, vec![edge(0, 7, "cut")]);
    assert_eq!(desk.change(update.clone()), gone);
    assert_eq!(desk.change(lineage.clone()), gone);
    let vouched = |change| RecordChange::Vouched(Box::new(change));
    assert!(matches!(desk.change(vouched(update)), RecordOutcome::Metadata(_)));
    assert_eq!(desk.change(vouched(lineage)), RecordOutcome::Done);
    assert!(matches!(desk.change(held("s", &[7], at(9))), RecordOutcome::AppendedHeld { .. }));
}

pub fn given_a_group_that_is_behind_when_removed_then_the_floor_is_that_of_the_others<B: Backend>() {
    let mut desk = Desk::<B>::new(1);
    let made = floor_of(desk.change(retaining("s", None, None)));
    desk.change(held("s", &[0, 0, 0], at(0)));
    for (group, offset) in [("gone", 1), ("g", 2), ("h", 3)] {
        desk.change(commit("s", group, offset));
    }
    let remove = |group: &str| RecordChange::GroupRemove { stream: stream("s"), group: group.to_owned() };
    for (group, floor) in [("gone", 2), ("h", 2), ("g", 0)] {
        assert_eq!(floor_of(desk.change(remove(group))), StreamFloor { floor, ..made }, "{group}");
    }
}

suite_of_records! {[
    given_a_stream_that_retains_when_groups_commit_then_the_one_furthest_behind_is_its_floor,
    given_a_stream_that_retains_when_appended_without_holds_then_nothing_is_stored,
    given_retention_and_deletion_when_a_stream_retains_then_its_floor_follows,
    given_many_streams_that_retain_when_listed_then_each_comes_once_and_others_do_not,
    given_a_group_that_is_behind_when_removed_then_the_floor_is_that_of_the_others,
    given_a_payload_beyond_its_ttl_when_its_shard_vouches_for_it_then_records_may_refer_to_it,
]}
