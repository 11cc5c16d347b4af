//! Finding payloads by their metadata.

use std::collections::BTreeMap;

use payload_types::find::{FieldEquals, FindOrder, IdSpan, MetadataFilter, Scalar};
use payload_types::limits::OPAQUE_BYTES_MAX;
use payload_types::record::{MetadataMode, RecordAnswer, RecordOutcome, RecordQuery};
use payload_types::{NamespaceId, PayloadId};

use super::{Desk, id, metadata, update};
use crate::backends::Backend;
use crate::rows::{put, row};
use FindOrder::{NewestFirst, OldestFirst};
use MetadataMode::{Merge, Replace};

pub fn field(path: &[&str], value: Scalar) -> FieldEquals {
    FieldEquals { path: path.iter().map(|member| (*member).to_owned()).collect(), value }
}

pub fn filter(schema: &str, fields: &[FieldEquals], tags: &[(&str, &str)]) -> MetadataFilter {
    let tags = tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let schema = (!schema.is_empty()).then(|| schema.to_owned());
    MetadataFilter { schema, fields: fields.to_vec(), tags }
}

fn text(text: &str) -> Scalar {
    Scalar::Text(text.to_owned())
}

pub fn query(filter: &MetadataFilter, span: IdSpan, order: FindOrder) -> RecordQuery {
    RecordQuery::Find { namespace: NamespaceId::DEFAULT, span, order, filter: filter.clone() }
}

/// All there are, and in how many parts they came.
fn parts<B: Backend>(
    desk: &mut Desk<B>,
    filter: &MetadataFilter,
    order: FindOrder,
) -> (Vec<PayloadId>, usize) {
    let (mut span, mut all) = (IdSpan::ALL, Vec::new());
    for count in 1.. {
        let RecordAnswer::Candidates(ids, reached) = desk.ask(query(filter, span, order)) else {
            panic!("candidates")
        };
        all.extend(ids);
        let Some(last) = reached else { return (all, count) };
        assert!(span.contains(last), "each part goes on");
        assert!(
            all.last().is_none_or(|id| !order.is_before(last, *id)),
            "nothing is behind what was looked at"
        );
        span = span.behind(order, last);
    }
    unreachable!("counted without end")
}

/// The numbers that are found, oldest first; the other order gives the same.
fn found<B: Backend>(desk: &mut Desk<B>, filter: &MetadataFilter, numbers: u64) -> Vec<u64> {
    let (oldest, _) = parts(desk, filter, OldestFirst);
    let (mut newest, _) = parts(desk, filter, NewestFirst);
    newest.reverse();
    assert_eq!(oldest, newest, "{filter:?}");
    let by_id: BTreeMap<PayloadId, u64> = (0..numbers).map(|number| (id(number), number)).collect();
    oldest.iter().map(|id| by_id[id]).collect()
}

pub fn given_metadata_of_many_kinds_when_looked_for_then_exactly_those_that_fit<B: Backend>() {
    let mut desk = Desk::<B>::new(8);
    desk.allocated(8);
    let documents: [(&[u8], &str); 9] = [
        (br#"{"a":1,"b":{"c":"x"},"tags":{"set":"train","n":1}}"#, "s"),
        (br#"{"a":1.0,"b":{"c":"y"},"tags":["set","t\u0000"]}"#, "s"),
        (br#"{"a":10e-1,"b.c":"x","":null}"#, "t"),
        (br#"{"a":"1","b":{"c":"x"}}"#, ""),
        (br#"{"a":true,"a2":[1],"b":null}"#, "S"),
        (br#"[{"a":1}]"#, "s"),
        (b"\0not json", "s\0"),
        (b"", ""),
        (br#"{"a":18446744073709551617}"#, "s"),
    ];
    for (number, (data, schema)) in (0..).zip(documents) {
        let met = desk.change(update(number, Replace, data, schema));
        assert_eq!(met, RecordOutcome::Metadata(metadata(data, schema)));
    }
    let mut desk = desk.again();
    let one = || field(&["a"], Scalar::number("1"));
    for (filter, expected) in [
        (filter("s", &[], &[]), &[0, 1, 5, 8][..]),
        (filter("s\0", &[], &[]), &[6]),
        (filter("absent", &[], &[]), &[]),
        (filter("", &[one()], &[]), &[0, 1, 2]),
        (filter("s", &[one()], &[]), &[0, 1]),
        (filter("", &[field(&["a"], text("1"))], &[]), &[3]),
        (filter("", &[field(&["a"], Scalar::Bool(true))], &[]), &[4]),
        (filter("", &[field(&["a"], Scalar::number("18446744073709551617.0"))], &[]), &[8]),
        (filter("", &[field(&["a"], Scalar::number("18446744073709551616"))], &[]), &[]),
        (filter("", &[field(&["b", "c"], text("x"))], &[]), &[0, 3]),
        (filter("", &[field(&["b.c"], text("x"))], &[]), &[2]),
        (filter("", &[field(&[""], Scalar::Null)], &[]), &[2]),
        (filter("", &[field(&["b"], Scalar::Null)], &[]), &[4]),
        (filter("", &[one(), field(&["b", "c"], text("y"))], &[]), &[1]),
        (filter("", &[one(), field(&["a"], text("1"))], &[]), &[]),
        (filter("", &[], &[("set", "train")]), &[0]),
        (filter("", &[], &[("set", "")]), &[1]),
        (filter("", &[], &[("t\0", "")]), &[1]),
        (filter("", &[], &[("n", "1")]), &[]),
        (filter("s", &[one()], &[("set", "train")]), &[0]),
        (filter("t", &[one()], &[("set", "train")]), &[]),
    ] {
        assert_eq!(found(&mut desk, &filter, 9), expected, "{filter:?}");
    }
    // Another namespace has none of it.
    let other = RecordQuery::Find {
        namespace: NamespaceId(7),
        span: IdSpan::ALL,
        order: NewestFirst,
        filter: filter("s", &[], &[]),
    };
    assert_eq!(desk.ask(other), RecordAnswer::Candidates(vec![], None));
}

pub fn given_metadata_that_change_when_looked_for_then_only_what_is_current_is_found<B: Backend>() {
    let mut desk = Desk::<B>::new(3);
    let is = |member: &str, value: &str| filter("", &[field(&[member], text(value))], &[]);
    desk.change(update(0, Replace, br#"{"a":"1","b":"2","tags":["k"]}"#, "s"));
    desk.change(update(1, Replace, br#"{"a":"1"}"#, "s"));
    desk.change(update(0, Merge, br#"{"a":"3","tags":null}"#, ""));
    assert_eq!(found(&mut desk, &is("a", "1"), 3), [1]);
    assert_eq!(found(&mut desk, &is("a", "3"), 3), [0]);
    assert_eq!(found(&mut desk, &is("b", "2"), 3), [0]);
    assert_eq!(found(&mut desk, &filter("", &[], &[("k", "")]), 3), [0; 0]);
    assert_eq!(found(&mut desk, &filter("s", &[], &[]), 3), [0, 1]);
    desk.change(update(0, Replace, b"[]", "t"));
    assert_eq!(found(&mut desk, &is("b", "2"), 3), [0; 0]);
    assert_eq!(found(&mut desk, &filter("s", &[], &[]), 3), [1]);
    // A removed payload takes its terms along; stored anew it has none.
    desk.remove([1]);
    assert_eq!(found(&mut desk, &filter("s", &[], &[]), 3), [0; 0]);
    desk.store.apply(&[put(row(1))]).expect("stored anew");
    assert_eq!(found(&mut desk, &is("a", "1"), 3), [0; 0]);
    let mut desk = desk.again();
    desk.change(update(1, Replace, br#"{"a":"1"}"#, "s"));
    assert_eq!(found(&mut desk, &filter("s", &[field(&["a"], text("1"))], &[]), 3), [1]);
}

pub fn given_documents_with_too_many_values_when_looked_for_then_each_value_is_found<B: Backend>() {
    let mut desk = Desk::<B>::new(4);
    let members = |count: usize| {
        let members: Vec<String> = (0..count).map(|number| format!("\"m{number}\":{number}")).collect();
        format!("{{{}}}", members.join(","))
    };
    for (number, count) in [(0, 10), (1, 64), (2, 65), (3, 5_000)] {
        desk.change(update(number, Replace, members(count).as_bytes(), "s"));
    }
    let is = |number: u64| {
        let value = Scalar::number(&number.to_string());
        filter("", &[field(&[&format!("m{number}")], value)], &[])
    };
    for (member, expected) in
        [(9, &[0, 1, 2, 3][..]), (63, &[1, 2, 3]), (64, &[2, 3]), (4_999, &[3]), (5_000, &[])]
    {
        assert_eq!(found(&mut desk, &is(member), 4), expected, "{member}");
    }
    // What is too much now was not before, and the other way round.
    desk.change(update(0, Replace, members(5_000).as_bytes(), "s"));
    desk.change(update(3, Replace, members(10).as_bytes(), "s"));
    assert_eq!(found(&mut desk, &is(4_999), 4), [0]);
    assert_eq!(found(&mut desk, &is(9), 4), [0, 1, 2, 3]);
}

pub fn given_more_than_one_part_looks_at_when_paged_then_each_is_found_once_and_in_order<B: Backend>() {
    const COUNT: u64 = 900;
    let mut desk = Desk::<B>::new(COUNT);
    let document =
        |number: u64| format!(r#"{{"all":true,"third":{},"tags":["t{}"]}}"#, number % 3, number % 100);
    let changes: Vec<_> =
        (0..COUNT).map(|number| update(number, Replace, document(number).as_bytes(), "s").into()).collect();
    desk.store.apply(&changes).expect("applied");
    let all = field(&["all"], Scalar::Bool(true));
    let third = field(&["third"], Scalar::number("1"));
    let wanted = |is: &dyn Fn(u64) -> bool| -> Vec<u64> { (0..COUNT).filter(|number| is(*number)).collect() };
    assert_eq!(found(&mut desk, &filter("s", &[], &[]), COUNT), wanted(&|_| true));
    let both = filter("s", &[all.clone(), third.clone()], &[]);
    assert_eq!(found(&mut desk, &both, COUNT), wanted(&|number| number % 3 == 1));
    // A rare tag leads: it is found in one part, however many have the rest.
    let rare = filter("s", &[all.clone(), third], &[("t7", "")]);
    assert_eq!(found(&mut desk, &rare, COUNT), wanted(&|number| number % 3 == 1 && number % 100 == 7));
    assert_eq!(parts(&mut desk, &rare, NewestFirst).1, 1);
    assert!(parts(&mut desk, &filter("", std::slice::from_ref(&all), &[]), NewestFirst).1 > 1);
    // A span, and what is in it alone.
    let span = IdSpan { low: id(100), high: id(110) };
    for order in [NewestFirst, OldestFirst] {
        let mut expected: Vec<PayloadId> = (100..=110).map(id).collect();
        if order == NewestFirst {
            expected.reverse();
        }
        let answer = desk.ask(query(&filter("", std::slice::from_ref(&all), &[]), span, order));
        assert_eq!(answer, RecordAnswer::Candidates(expected, None));
    }
    let empty = desk.ask(query(&filter("s", &[], &[]), IdSpan::NONE, NewestFirst));
    assert_eq!(empty, RecordAnswer::Candidates(vec![], None));
}

pub fn given_large_documents_when_looked_for_then_a_part_reads_a_bounded_share_of_them<B: Backend>() {
    let mut desk = Desk::<B>::new(12);
    for number in 0..12 {
        let document = format!(r#"{{"a":1,"b":"{}"}}"#, "x".repeat(OPAQUE_BYTES_MAX - 100));
        desk.change(update(number, Replace, document.as_bytes(), "s"));
    }
    let one = filter("", &[field(&["a"], Scalar::number("1"))], &[]);
    let (ids, count) = parts(&mut desk, &one, NewestFirst);
    assert_eq!(ids, (0..12).rev().map(id).collect::<Vec<_>>());
    assert!((3..=4).contains(&count), "4 MiB a part: {count}");
    // For the schema alone no document is read.
    assert_eq!(parts(&mut desk, &filter("s", &[], &[]), NewestFirst).1, 1);
}

suite_of_records! {[
    given_metadata_of_many_kinds_when_looked_for_then_exactly_those_that_fit,
    given_metadata_that_change_when_looked_for_then_only_what_is_current_is_found,
    given_documents_with_too_many_values_when_looked_for_then_each_value_is_found,
    given_more_than_one_part_looks_at_when_paged_then_each_is_found_once_and_in_order,
    given_large_documents_when_looked_for_then_a_part_reads_a_bounded_share_of_them,
]}
