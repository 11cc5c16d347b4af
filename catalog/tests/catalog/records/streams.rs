//! Streams: appending, groups, retention.

use payload_types::record::{
    RecordAnswer, RecordChange, RecordOutcome, RecordQuery, StreamEntry, StreamGroup, StreamInfo,
    StreamLimits,
};
use payload_types::{Health, WallMs};

use super::{Desk, append, at, create, id, item, read, stream};
use crate::backends::Backend;
use crate::rows::{put, row};

const ALL: usize = 10_000;

fn info<B: Backend>(desk: &mut Desk<B>, name: &str) -> StreamInfo {
    match desk.ask(RecordQuery::Stream(stream(name))) {
        RecordAnswer::Stream(info) => info,
        other => panic!("no stream: {other:?}"),
    }
}

/// First offset that is kept, offsets that are read, and whether there are more.
fn offsets<B: Backend>(desk: &mut Desk<B>, query: RecordQuery) -> (u64, Vec<u64>, bool) {
    match desk.ask(query) {
        RecordAnswer::Entries(info, entries, more) => {
            (info.first, entries.iter().map(|entry| entry.offset).collect(), more)
        }
        other => panic!("no entries: {other:?}"),
    }
}

fn appended(first: u64, last: u64) -> RecordOutcome {
    RecordOutcome::Appended { first, last }
}

fn delete(name: &str) -> RecordChange {
    RecordChange::StreamDelete { stream: stream(name) }
}

fn commit(name: &str, group: &str, offset: u64) -> RecordChange {
    RecordChange::StreamCommit { stream: stream(name), group: group.to_owned(), offset, at: at(1) }
}

fn committed(name: &str, group: &str) -> RecordQuery {
    RecordQuery::Committed { stream: stream(name), group: group.to_owned() }
}

pub fn given_no_stream_when_changed_or_asked_then_stream_not_found_but_a_delete_is_fine<B: Backend>() {
    let mut desk = Desk::<B>::new(1);
    assert_eq!(desk.change(append("s", vec![item(0)], at(0))), RecordOutcome::StreamNotFound);
    assert_eq!(desk.change(commit("s", "g", 0)), RecordOutcome::StreamNotFound);
    assert_eq!(desk.change(delete("s")), RecordOutcome::Done);
    assert_eq!(desk.ask(RecordQuery::Stream(stream("s"))), RecordAnswer::StreamNotFound);
    assert_eq!(desk.ask(read("s", 0, 9, ALL, at(0))), RecordAnswer::StreamNotFound);
    assert_eq!(desk.ask(committed("s", "g")), RecordAnswer::StreamNotFound);
}

pub fn given_a_stream_when_made_deleted_and_made_anew_then_it_starts_over_with_a_greater_incarnation<
    B: Backend,
>() {
    let mut desk = Desk::<B>::new(1);
    assert_eq!(desk.change(create("s", Some(10), None)), RecordOutcome::Done);
    assert_eq!(desk.change(create("s", None, None)), RecordOutcome::StreamExists);
    assert_eq!(desk.change(create("s\0", None, None)), RecordOutcome::Done, "another name");
    let old = info(&mut desk, "s");
    let limits = StreamLimits { entries_max: Some(10), ..StreamLimits::default() };
    assert_eq!(old, StreamInfo { stream: stream("s"), limits, first: 0, end: 0, ..old.clone() });
    desk.change(append("s", vec![item(0); 5], at(0)));
    desk.change(append("s\0", vec![item(0); 5], at(0)));
    desk.change(commit("s", "g", 5));
    assert_eq!(desk.change(delete("s")), RecordOutcome::Done);
    assert_eq!(desk.ask(RecordQuery::Stream(stream("s"))), RecordAnswer::StreamNotFound);
    desk.change(create("s", None, None));
    let mut desk = desk.again();
    let new = info(&mut desk, "s");
    assert!(new.incarnation > old.incarnation);
    assert_eq!((new.first, new.end, new.limits), (0, 0, StreamLimits::default()));
    assert_eq!(desk.ask(committed("s", "g")), RecordAnswer::Committed(None));
    assert_eq!(desk.change(append("s", vec![item(0)], at(0))), appended(0, 0));
    desk.swept(at(0));
    assert_eq!(offsets(&mut desk, read("s", 0, 9, ALL, at(0))), (0, vec![0], false));
    assert_eq!(offsets(&mut desk, read("s\0", 0, 9, ALL, at(0))), (0, vec![0, 1, 2, 3, 4], false));
}

pub fn given_appends_when_made_then_offsets_are_contiguous_and_each_is_whole_or_not_at_all<B: Backend>() {
    let mut desk = Desk::<B>::new(5);
    desk.allocated(5);
    let (mut lost, mut expired) = (row(6), row(7));
    lost.health = Health::Lost;
    expired.expires_at = Some(at(3));
    desk.store.apply(&[put(lost), put(expired)]).expect("stored");
    desk.change(create("s", None, None));
    assert_eq!(desk.change(append("s", vec![item(0)], at(1))), appended(0, 0));
    for (bad, outcome) in [
        (99, RecordOutcome::NotFound(id(99))),
        (5, RecordOutcome::NotCommitted(id(5))),
        (6, RecordOutcome::Lost(id(6))),
        (7, RecordOutcome::NotFound(id(7))),
    ] {
        assert_eq!(desk.change(append("s", vec![item(1), item(bad), item(98)], at(3))), outcome);
    }
    assert_eq!(desk.change(append("s", vec![item(1), item(2), item(1), item(7)], at(2))), appended(1, 4));
    let batch = [
        append("s", vec![item(3)], at(3)),
        append("s", vec![item(99)], at(3)),
        append("s", vec![item(4); 2], at(4)),
    ];
    assert_eq!(
        desk.store.apply(&batch.map(Into::into)),
        Ok(vec![appended(5, 5), RecordOutcome::NotFound(id(99)), appended(6, 7)])
    );
    let mut desk = desk.again();
    let expected: Vec<StreamEntry> = [(0, 1), (1, 2), (2, 2), (1, 2), (7, 2), (3, 3), (4, 4), (4, 4)]
        .into_iter()
        .zip(0..)
        .map(|((number, time), offset)| StreamEntry { offset, appended_at: at(time), item: item(number) })
        .collect();
    let info = info(&mut desk, "s");
    assert_eq!(desk.ask(read("s", 0, u64::MAX, ALL, at(9))), RecordAnswer::Entries(info, expected, false));
}

pub fn given_a_clock_that_goes_back_when_appended_then_times_do_not<B: Backend>() {
    let mut desk = Desk::<B>::new(1);
    desk.change(create("s", None, None));
    for time in [5, 3, 9, 0] {
        desk.change(append("s", vec![item(0)], at(time)));
    }
    let RecordAnswer::Entries(_, entries, _) = desk.ask(read("s", 0, 9, ALL, at(9))) else {
        panic!("no entries")
    };
    let times: Vec<WallMs> = entries.iter().map(|entry| entry.appended_at).collect();
    assert_eq!(times, [at(5), at(5), at(9), at(9)]);
}

pub fn given_groups_when_they_commit_then_each_has_its_own_place_and_may_go_back<B: Backend>() {
    let mut desk = Desk::<B>::new(1);
    desk.change(create("s", None, None));
    desk.change(append("s", vec![item(0); 3], at(0)));
    assert_eq!(desk.ask(committed("s", "g")), RecordAnswer::Committed(None));
    for (group, offset) in [("g", 3), ("g\0", 1), ("G", 0), ("g", 2)] {
        assert_eq!(desk.change(commit("s", group, offset)), RecordOutcome::Done);
    }
    assert_eq!(desk.change(commit("s", "g", 4)), RecordOutcome::BeyondEnd { end: 3 });
    assert_eq!(desk.change(commit("s", "g", u64::MAX)), RecordOutcome::BeyondEnd { end: 3 });
    let mut desk = desk.again();
    for (group, offset) in [("g", Some(2)), ("g\0", Some(1)), ("G", Some(0)), ("other", None)] {
        assert_eq!(desk.ask(committed("s", group)), RecordAnswer::Committed(offset));
    }
}

pub fn given_a_limit_of_entries_when_appended_then_exactly_the_newest_are_kept<B: Backend>() {
    let mut desk = Desk::<B>::new(1);
    desk.change(create("s", Some(10), None));
    desk.change(append("s", vec![item(0); 7], at(0)));
    assert_eq!(info(&mut desk, "s").first, 0);
    desk.change(append("s", vec![item(0); 7], at(0)));
    assert_eq!(offsets(&mut desk, read("s", 0, 99, ALL, at(0))), (4, (4..14).collect(), false));
    assert_eq!(offsets(&mut desk, read("s", 6, 7, ALL, at(0))), (4, vec![6, 7], false));
    assert_eq!(offsets(&mut desk, read("s", 0, 3, ALL, at(0))), (4, vec![], false));
    assert_eq!(desk.change(append("s", vec![item(0); 100], at(0))), appended(14, 113));
    assert_eq!(offsets(&mut desk, read("s", 0, 999, ALL, at(0))), (104, (104..114).collect(), false));
    // Many small batches, then one that lets go of all of them: more than an append removes.
    for _ in 0..100 {
        desk.change(append("s", vec![item(0)], at(0)));
    }
    desk.change(create("none", Some(0), None));
    assert_eq!(desk.change(append("none", vec![item(0); 3], at(0))), appended(0, 2));
    assert_eq!(offsets(&mut desk, read("none", 0, 9, ALL, at(0))), (3, vec![], false));
    desk.swept(at(0));
    let mut desk = desk.again();
    assert_eq!(offsets(&mut desk, read("s", 0, 999, ALL, at(0))), (204, (204..214).collect(), false));
    assert_eq!(desk.change(append("none", vec![item(0)], at(0))), appended(3, 3));
}

pub fn given_a_limit_of_age_when_time_passes_then_what_is_older_is_not_shown_and_swept<B: Backend>() {
    let mut desk = Desk::<B>::new(1);
    desk.change(create("s", None, Some(100)));
    desk.change(create("ever", None, None));
    for time in (0..1000).step_by(10) {
        desk.change(append("s", vec![item(0); 3], at(time)));
        desk.change(append("ever", vec![item(0); 3], at(time)));
    }
    // 3 entries each 10 ms; those of 500 are exactly 100 old, and kept.
    assert_eq!(offsets(&mut desk, read("s", 0, 151, ALL, at(600))), (150, vec![150, 151], false));
    assert_eq!(offsets(&mut desk, read("s", 0, 153, ALL, at(601))), (153, vec![153], false));
    assert_eq!(info(&mut desk, "s").first, 0, "nobody has swept");
    assert_eq!(desk.store.sweep_is_due(at(100)), Ok(false));
    assert_eq!(desk.store.sweep_is_due(at(101)), Ok(true));
    assert_eq!(desk.swept(at(601)), 153);
    assert_eq!(info(&mut desk, "s").first, 153);
    let mut desk = desk.again();
    assert_eq!(desk.store.sweep_is_due(at(610)), Ok(false));
    assert_eq!(desk.store.sweep_is_due(at(611)), Ok(true));
    assert_eq!(desk.swept(at(5000)), 147);
    assert_eq!(offsets(&mut desk, read("s", 0, 999, ALL, at(5000))), (300, vec![], false));
    assert_eq!(desk.change(append("s", vec![item(0)], at(5000))), appended(300, 300));
    assert_eq!(desk.store.sweep_is_due(at(5100)), Ok(false));
    assert_eq!(desk.store.sweep_is_due(at(5101)), Ok(true), "a stream that was empty is due again");
    assert_eq!(offsets(&mut desk, read("ever", 0, 999, ALL, at(9000))).1.len(), 300);
}

pub fn given_a_large_stream_when_deleted_then_it_is_gone_at_once_and_sweeps_remove_it<B: Backend>() {
    let mut desk = Desk::<B>::new(1);
    desk.change(create("s", None, None));
    desk.change(create("other", None, None));
    let batch: Vec<_> = (0..3000).map(|_| append("s", vec![item(0)], at(0)).into()).collect();
    desk.store.apply(&batch).expect("applied");
    let groups: Vec<_> = (0..600).map(|group| commit("s", &group.to_string(), 1).into()).collect();
    desk.store.apply(&groups).expect("applied");
    desk.change(append("other", vec![item(0)], at(0)));
    desk.change(commit("other", "g", 1));
    desk.change(delete("s"));
    assert_eq!(desk.ask(RecordQuery::Stream(stream("s"))), RecordAnswer::StreamNotFound);
    match desk.change(RecordChange::Sweep { at: at(0) }) {
        RecordOutcome::Swept { more: true, .. } => {}
        other => panic!("a sweep of 3,000 batches met {other:?}"),
    }
    let mut desk = desk.again();
    desk.swept(at(0));
    assert_eq!(offsets(&mut desk, read("other", 0, 9, ALL, at(0))), (0, vec![0], false));
    assert_eq!(desk.ask(committed("other", "g")), RecordAnswer::Committed(Some(1)));
}

pub fn given_groups_when_one_is_removed_then_it_has_never_committed_and_the_others_stay<B: Backend>() {
    let mut desk = Desk::<B>::new(1);
    let remove = |group: &str| RecordChange::GroupRemove { stream: stream("s"), group: group.to_owned() };
    let groups = |after: &str, groups_max| RecordQuery::Groups {
        stream: stream("s"),
        after: after.to_owned(),
        groups_max,
    };
    assert_eq!(desk.change(remove("g")), RecordOutcome::StreamNotFound);
    assert_eq!(desk.ask(groups("", 9)), RecordAnswer::StreamNotFound);
    desk.change(create("s", None, None));
    desk.change(append("s", vec![item(0), item(0)], at(0)));
    let group = |name: &str, next| StreamGroup { name: name.to_owned(), next, at: at(1) };
    for (name, next) in [("h", 2), ("g\0", 1), ("g", 1), ("\u{e9}", 0)] {
        desk.change(commit("s", name, next));
    }
    assert_eq!(desk.change(remove("x")), RecordOutcome::GroupNotFound);
    assert_eq!(desk.ask(groups("", 2)), RecordAnswer::Groups(vec![group("g", 1), group("g\0", 1)], true));
    let rest = RecordAnswer::Groups(vec![group("h", 2), group("\u{e9}", 0)], false);
    assert_eq!(desk.ask(groups("g\0", 2)), rest);
    assert_eq!(desk.change(remove("g")), RecordOutcome::Done);
    assert_eq!(desk.change(remove("g")), RecordOutcome::GroupNotFound);
    let mut desk = desk.again();
    assert_eq!(desk.ask(committed("s", "g")), RecordAnswer::Committed(None));
    let left = vec![group("g\0", 1), group("h", 2), group("\u{e9}", 0)];
    assert_eq!(desk.ask(groups("", 9)), RecordAnswer::Groups(left, false));
}

suite_of_records! {[
    given_no_stream_when_changed_or_asked_then_stream_not_found_but_a_delete_is_fine,
    given_a_stream_when_made_deleted_and_made_anew_then_it_starts_over_with_a_greater_incarnation,
    given_appends_when_made_then_offsets_are_contiguous_and_each_is_whole_or_not_at_all,
    given_a_clock_that_goes_back_when_appended_then_times_do_not,
    given_groups_when_they_commit_then_each_has_its_own_place_and_may_go_back,
    given_a_limit_of_entries_when_appended_then_exactly_the_newest_are_kept,
    given_a_limit_of_age_when_time_passes_then_what_is_older_is_not_shown_and_swept,
    given_a_large_stream_when_deleted_then_it_is_gone_at_once_and_sweeps_remove_it,
    given_groups_when_one_is_removed_then_it_has_never_committed_and_the_others_stay,
]}
