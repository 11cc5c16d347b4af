//! Reading streams: ranges, pages, times, names.

use payload_types::limits::STREAM_READ_MAX;
use payload_types::record::{
    RecordAnswer, RecordOutcome, RecordQuery, StreamEntry, StreamItem, StreamName, Timestamp,
};

use super::{Desk, append, at, create, id, item, read, stream};
use crate::backends::Backend;

fn entries<B: Backend>(desk: &mut Desk<B>, query: RecordQuery) -> (Vec<StreamEntry>, bool) {
    match desk.ask(query) {
        RecordAnswer::Entries(_, entries, more) => (entries, more),
        other => panic!("no entries: {other:?}"),
    }
}

fn offsets<B: Backend>(desk: &mut Desk<B>, query: RecordQuery) -> (Vec<u64>, bool) {
    let (entries, more) = entries(desk, query);
    (entries.iter().map(|entry| entry.offset).collect(), more)
}

pub fn given_ranges_of_every_kind_when_read_then_what_lies_in_them<B: Backend>() {
    let mut desk = Desk::<B>::new(1);
    desk.change(create("s", None, None));
    assert_eq!(offsets(&mut desk, read("s", 0, u64::MAX, 9, at(0))), (vec![], false));
    for count in [1, 4, 2, 3] {
        desk.change(append("s", vec![item(0); count], at(0)));
    }
    for (from, to, max, expected, more) in [
        (0, u64::MAX, 99, 0..10, false),
        (0, 9, 10, 0..10, false),
        (0, 9, 9, 0..9, true),
        (2, 6, 2, 2..4, true),
        (2, 6, 5, 2..7, false),
        (4, 4, 5, 4..5, false),
        (5, 4, 5, 0..0, false),
        (9, 9, 1, 9..10, false),
        (10, 20, 5, 0..0, false),
        (u64::MAX, u64::MAX, 5, 0..0, false),
    ] {
        assert_eq!(
            offsets(&mut desk, read("s", from, to, max, at(0))),
            (expected.collect(), more),
            "{from} {to} {max}"
        );
    }
}

pub fn given_a_time_when_read_then_entries_appended_then_or_later<B: Backend>() {
    let mut desk = Desk::<B>::new(1);
    desk.change(create("s", None, None));
    for time in 0..200 {
        desk.change(append("s", vec![item(0); 2], at(time)));
    }
    let begin = at(0).as_millis();
    let since = |milliseconds: u64, nanoseconds: u32| Timestamp {
        seconds: ((begin + milliseconds) / 1000) as i64,
        nanoseconds: ((begin + milliseconds) % 1000) as u32 * 1_000_000 + nanoseconds,
    };
    for (not_before, from, first) in [
        (Timestamp { seconds: i64::MIN, nanoseconds: 0 }, 0, Some(0)),
        (since(0, 0), 0, Some(0)),
        (since(77, 0), 0, Some(154)),
        (since(77, 1), 0, Some(156)),
        (since(77, 0), 200, Some(200)),
        (since(199, 0), 0, Some(398)),
        (since(199, 1), 0, None),
        (Timestamp { seconds: i64::MAX, nanoseconds: 999_999_999 }, 0, None),
    ] {
        let query = RecordQuery::StreamRead {
            stream: stream("s"),
            from,
            to: u64::MAX,
            not_before: Some(not_before),
            entries_max: 1,
            at: at(500),
        };
        assert_eq!(offsets(&mut desk, query).0, Vec::from_iter(first), "{not_before:?}");
    }
}

pub fn given_entries_with_all_that_they_can_have_when_read_then_they_are_as_appended<B: Backend>() {
    let mut desk = Desk::<B>::new(1);
    desk.change(create("s", None, None));
    let tag = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let items = vec![
        StreamItem {
            payload: id(0),
            event_time: Some(Timestamp { seconds: -62_135_596_800, nanoseconds: 999_999_999 }),
            duration_ns: u64::MAX,
            tags: vec![tag("", ""), tag("\0", "a\0b"), tag("é", &"v".repeat(60_000))],
        },
        item(0),
    ];
    desk.change(append("s", items.clone(), at(3)));
    let mut desk = desk.again();
    let expected: Vec<StreamEntry> =
        (0..).zip(items).map(|(offset, item)| StreamEntry { offset, appended_at: at(3), item }).collect();
    assert_eq!(entries(&mut desk, read("s", 0, 9, 9, at(3))), (expected, false));
}

pub fn given_an_append_of_100_000_when_read_in_pages_then_each_entry_once_in_order<B: Backend>() {
    let mut desk = Desk::<B>::new(10);
    desk.change(create("s", None, None));
    desk.change(append("s", vec![item(0)], at(0)));
    let items = (0..100_000).map(|number| StreamItem { duration_ns: number, ..item(number % 10) }).collect();
    assert_eq!(desk.change(append("s", items, at(0))), RecordOutcome::Appended { first: 1, last: 100_000 });
    let mut next = 1;
    loop {
        let (page, more) = entries(&mut desk, read("s", next, u64::MAX, STREAM_READ_MAX, at(0)));
        assert!(page.len() <= STREAM_READ_MAX);
        for entry in &page {
            assert_eq!((entry.offset, entry.item.duration_ns), (next, next - 1));
            next += 1;
        }
        if !more {
            break;
        }
    }
    assert_eq!(next, 100_001);
}

pub fn given_entries_that_weigh_much_when_read_then_pages_end_before_a_message_is_full<B: Backend>() {
    let mut desk = Desk::<B>::new(1);
    desk.change(create("s", None, None));
    let tags = |length: usize| vec![("key".to_owned(), "v".repeat(length))];
    for _ in 0..10 {
        let heavy = StreamItem { tags: tags(1_000_000), ..item(0) };
        desk.change(append("s", vec![heavy], at(0)));
    }
    assert_eq!(offsets(&mut desk, read("s", 0, 99, 99, at(0))), (vec![0, 1, 2, 3], true));
    assert_eq!(offsets(&mut desk, read("s", 8, 99, 99, at(0))), (vec![8, 9], false));
    assert_eq!(offsets(&mut desk, read("s", 0, 3, 99, at(0))), (vec![0, 1, 2, 3], false));
    // One that alone is more than a message would be given all the same: the server never takes such.
    desk.change(append("s", vec![StreamItem { tags: tags(5_000_000), ..item(0) }, item(0)], at(0)));
    assert_eq!(offsets(&mut desk, read("s", 10, 99, 99, at(0))), (vec![10], true));
}

pub fn given_many_streams_when_listed_then_by_namespace_and_name_in_pages<B: Backend>() {
    let mut desk = Desk::<B>::new(0);
    let mut names: Vec<StreamName> = ["", "a", "a\0", "b", "é"]
        .into_iter()
        .flat_map(|namespace| ["x", "X", "x\0", "longer", "\u{FFFF}"].map(|name| (namespace, name)))
        .map(|(namespace, name)| StreamName { namespace: namespace.to_owned(), name: name.to_owned() })
        .collect();
    for name in names.iter().rev() {
        let mut change = create("", Some(7), None);
        if let payload_types::record::RecordChange::StreamCreate { stream, .. } = &mut change {
            *stream = name.clone();
        }
        assert_eq!(desk.change(change), RecordOutcome::Done);
    }
    names.sort();
    let mut found = Vec::new();
    loop {
        let query = RecordQuery::Streams { after: found.last().cloned(), entries_max: 7 };
        let RecordAnswer::Streams(page, more) = desk.ask(query) else { panic!("no streams") };
        assert!(page.len() == 7 || !more);
        found.extend(page.into_iter().map(|info| info.stream));
        if !more {
            break;
        }
    }
    assert_eq!(found, names);
}

suite_of_records! {[
    given_ranges_of_every_kind_when_read_then_what_lies_in_them,
    given_a_time_when_read_then_entries_appended_then_or_later,
    given_entries_with_all_that_they_can_have_when_read_then_they_are_as_appended,
    given_an_append_of_100_000_when_read_in_pages_then_each_entry_once_in_order,
    given_entries_that_weigh_much_when_read_then_pages_end_before_a_message_is_full,
    given_many_streams_when_listed_then_by_namespace_and_name_in_pages,
]}
