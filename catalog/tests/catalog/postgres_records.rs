//! Records on PostgreSQL: several nodes at one stream, connections that end within a change, how far away it is.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use payload_catalog::{Change, MemoryStore, PostgresConfig, PostgresStore, Reader, Store, StoreError};
use payload_types::find::{FieldEquals, FindOrder, IdSpan, MetadataFilter, Scalar};
use payload_types::record::{
    LineageEdge, Metadata, MetadataMode, RecordAnswer, RecordChange, RecordOutcome, RecordQuery, StreamItem,
    StreamLimits, StreamName,
};
use payload_types::request::List;
use payload_types::{PayloadKey, WallMs};

use crate::backends::{postgres_config, server};
use crate::postgres_server::{Postgres, name_of};
use crate::rows::{key, put, remove, row};

const NOW: WallMs = WallMs::from_millis(1_763_000_000_000);

fn started(uri: &str, name: &str) -> PostgresStore {
    let config = PostgresConfig {
        node: name.to_owned(),
        disk_root: Some(format!("root of {name}")),
        ..postgres_config(uri)
    };
    let mut store = PostgresStore::open(config).expect("the database opens");
    store.begin_epoch(name).expect("registered");
    store
}

fn stream() -> StreamName {
    StreamName { namespace: "n\0s".to_owned(), name: "events".to_owned() }
}

fn created() -> Change {
    RecordChange::StreamCreate { stream: stream(), limits: StreamLimits::default(), at: NOW }.into()
}

/// `count` entries of payload `number`, told apart by `mark`.
fn append(number: u64, mark: u64, count: u64) -> Change {
    let item = |index| StreamItem {
        payload: key(number).id,
        event_time: None,
        duration_ns: mark * 1000 + index,
        tags: Vec::new(),
    };
    RecordChange::StreamAppend {
        stream: stream(),
        items: (0..count).map(item).collect(),
        held: false,
        at: NOW,
    }
    .into()
}

fn update(number: u64, text: &str) -> Change {
    RecordChange::MetadataUpdate {
        key: key(number),
        mode: MetadataMode::Merge,
        metadata: Metadata { data: text.as_bytes().to_vec(), schema: String::new() },
        actor: "a\0b".to_owned(),
        reason: String::new(),
        at: NOW,
    }
    .into()
}

/// The marks of all entries, in order.
fn entries(reader: &mut dyn Reader) -> Vec<u64> {
    let mut marks = Vec::new();
    loop {
        let query = RecordQuery::StreamRead {
            stream: stream(),
            from: marks.len() as u64,
            to: u64::MAX,
            not_before: None,
            entries_max: 1000,
            at: NOW,
        };
        let RecordAnswer::Entries(_, found, more) = reader.read(&query).expect("it answers") else {
            panic!("the stream is there")
        };
        for entry in found {
            assert_eq!(entry.offset, marks.len() as u64);
            marks.push(entry.item.duration_ns);
        }
        if !more {
            return marks;
        }
    }
}

/// Applies until the store says what became of it.
fn made(store: &mut PostgresStore, batch: &[Change]) -> Vec<RecordOutcome> {
    let start = Instant::now();
    loop {
        match store.apply(batch) {
            Ok(outcomes) => return outcomes,
            Err(error) if error.is_temporary() && start.elapsed() < Duration::from_secs(60) => {}
            Err(error) => panic!("{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn given_two_nodes_when_both_append_to_one_stream_then_offsets_are_contiguous_and_each_append_is_whole() {
    const APPENDS: u64 = 150;
    let uri = server().database();
    let mut first = started(&uri, "one");
    first.apply(&[put(row(1)), created()]).expect("made");
    let mut reader = first.reader().expect("a reader");
    let mut ranges = Vec::new();
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (name, offset) in [("two", 0), ("three", 10_000)] {
            let uri = &uri;
            threads.push(scope.spawn(move || {
                let mut store = started(uri, name);
                let mut ranges = Vec::new();
                for number in 0..APPENDS {
                    // The payload is node one's.
                    let outcomes = made(&mut store, &[append(1, offset + number, 3), update(1, "{\"a\":1}")]);
                    let RecordOutcome::Appended { first, last } = outcomes[0] else { panic!("{outcomes:?}") };
                    assert_eq!(last, first + 2);
                    ranges.push((first, offset + number));
                }
                ranges
            }));
        }
        for thread in threads {
            ranges.extend(thread.join().expect("no panic"));
        }
    });
    let marks = entries(reader.as_mut());
    assert_eq!(marks.len() as u64, 2 * 3 * APPENDS);
    for (first, mark) in ranges {
        let expected: Vec<u64> = (0..3).map(|index| mark * 1000 + index).collect();
        assert_eq!(marks[first as usize..first as usize + 3], expected);
    }
    let query = RecordQuery::MetadataEvents { key: key(1), after: 0, entries_max: 1000, at: NOW };
    let RecordAnswer::MetadataEvents(events, false) = reader.read(&query).expect("answered") else {
        panic!("all of them fit")
    };
    assert!(events.iter().map(|event| event.number).eq(1..=2 * APPENDS), "numbered without a gap");
}

#[test]
fn given_connections_that_end_within_appends_when_repeated_then_nothing_is_doubled_and_nothing_is_lost() {
    let server = Postgres::start().expect("a server of its own");
    let uri = server.database();
    let mut store = started(&uri, "one");
    store.apply(&[put(row(1)), created()]).expect("made");
    let (mut reader, over) = (store.reader().expect("a reader"), std::sync::atomic::AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                WHERE application_name = 'payload-manager' AND pid <> pg_backend_pid()";
            for round in 0.. {
                if over.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                if round == 20 {
                    server.crash();
                    server.start_again().expect("it starts");
                }
                server.sql(name_of(&uri), end).expect("ended");
                // Else a busy machine spends the day connecting.
                std::thread::sleep(Duration::from_millis(30));
            }
        });
        for mark in 0..600 {
            let outcomes = made(&mut store, &[append(1, mark, 2), put(row(2)), append(2, mark, 1)]);
            assert_eq!(
                outcomes,
                [
                    RecordOutcome::Appended { first: mark * 3, last: mark * 3 + 1 },
                    RecordOutcome::Appended { first: mark * 3 + 2, last: mark * 3 + 2 },
                ]
            );
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let expected: Vec<u64> = (0..600).flat_map(|mark| [mark * 1000, mark * 1000 + 1, mark * 1000]).collect();
    assert_eq!(entries(reader.as_mut()), expected);
}

#[test]
fn given_a_long_chain_when_walked_then_it_is_fetched_at_once_and_in_time() {
    const LENGTH: u64 = 10_000;
    let begun = Instant::now();
    let uri = server().database();
    let mut store = started(&uri, "one");
    for first in (0..=LENGTH).step_by(1000) {
        let batch: Vec<Change> =
            (first..(first + 1000).min(LENGTH + 1)).map(|number| put(row(number))).collect();
        store.apply(&batch).expect("stored");
    }
    let edge = |number: u64| {
        let edge = LineageEdge {
            child: key(number + 1).id,
            parent: key(number).id,
            operation: "o\0p".to_owned(),
            role: String::new(),
            parameters: vec![0, 1, 255],
        };
        Change::from(RecordChange::LineageAdd { child: key(number + 1), edges: vec![edge], at: NOW })
    };
    for first in (0..LENGTH).step_by(1000) {
        let outcomes = store.apply(&(first..first + 1000).map(edge).collect::<Vec<_>>()).expect("added");
        assert!(outcomes.iter().all(|outcome| *outcome == RecordOutcome::Done));
    }
    println!("prepared in {:?}", begun.elapsed());
    let mut reader = store.reader().expect("a reader");
    for (key, upstream) in [(key(LENGTH), true), (key(0), false)] {
        let mut best = Duration::MAX;
        for _ in 0..5 {
            let start = Instant::now();
            let query = RecordQuery::Lineage { key, upstream, depth_max: 0, at: NOW };
            let RecordAnswer::Lineage(edges) = reader.read(&query).expect("answered") else {
                panic!("it fits")
            };
            best = best.min(start.elapsed());
            assert_eq!(edges.len() as u64, LENGTH);
            let nodes = edges.iter().map(|edge| if upstream { edge.child } else { edge.parent });
            assert_eq!(nodes.collect::<BTreeSet<_>>().len() as u64, LENGTH);
        }
        println!("a chain of {LENGTH} edges: {best:?}");
    }
}

/// The answers to one walk from payload `number`, of this store and of the one in memory.
fn walked(stores: &mut [Box<dyn Reader>; 2], number: u64, upstream: bool) -> usize {
    let [one, other] = stores.each_mut().map(|reader| {
        let query = RecordQuery::Lineage { key: key(number), upstream, depth_max: 0, at: NOW };
        reader.read(&query).expect("answered")
    });
    assert_eq!(one, other, "{number} {upstream}");
    if let RecordAnswer::Lineage(edges) = one { edges.len() } else { 0 }
}

#[test]
fn given_graphs_of_many_paths_when_walked_then_the_answers_are_those_of_the_store_in_memory() {
    const LENGTH: u64 = 3_000;
    let edge = |child: u64, parent: u64, text: usize| {
        let edge = LineageEdge {
            child: key(child).id,
            parent: key(parent).id,
            operation: format!("{parent}"),
            role: String::new(),
            parameters: vec![7; text],
        };
        Change::from(RecordChange::LineageAdd { child: key(child), edges: vec![edge], at: NOW })
    };
    let mut changes: Vec<Change> = (0..=4 * LENGTH).map(|number| put(row(number))).collect();
    // A chain with few places where paths meet again, at its end.
    changes.extend((0..LENGTH).map(|number| edge(number + 1, number, 0)));
    changes.extend((2..5).map(|number| edge(number, number - 2, 0)));
    // A ladder: the number of paths doubles with each rung.
    changes.extend(
        (LENGTH + 3..2 * LENGTH).flat_map(|number| [1, 2].map(|back| edge(number, number - back, 0))),
    );
    // A cycle, one with long texts, and a chain with one long text.
    let cycle = 2 * LENGTH + 1;
    changes.extend([
        edge(cycle, cycle + 1, 0),
        edge(cycle + 1, cycle, 0),
        edge(cycle + 2, cycle + 2, 1 << 20),
    ]);
    let long = 3 * LENGTH;
    changes.extend(
        (0..900).map(|number| edge(long + number + 1, long + number, if number == 80 { 9_000 } else { 1 })),
    );
    // More than an answer takes.
    changes.extend((1_000..1_006).map(|number| edge(long + number + 1, long + number, 1 << 20)));
    let uri = server().database();
    let (mut postgres, mut memory) = (started(&uri, "one"), MemoryStore::new());
    for some in changes.chunks(2_000) {
        assert_eq!(postgres.apply(some), memory.apply(some));
    }
    let mut stores = [postgres.reader().expect("a reader"), memory.reader().expect("a reader")];
    assert_eq!(walked(&mut stores, LENGTH, true) as u64, LENGTH + 3);
    assert_eq!(walked(&mut stores, 0, false) as u64, LENGTH + 3);
    assert_eq!(walked(&mut stores, 2 * LENGTH - 1, true) as u64, 2 * (LENGTH - 3));
    assert_eq!(walked(&mut stores, LENGTH + 1, false) as u64, 2 * (LENGTH - 3) - 2);
    for upstream in [true, false] {
        assert_eq!(walked(&mut stores, cycle, upstream), 2);
        assert_eq!(walked(&mut stores, cycle + 2, upstream), 1);
    }
    assert_eq!(walked(&mut stores, long + 900, true), 900);
    assert_eq!(walked(&mut stores, long + 1_006, true), 0, "too large");
    assert_eq!(walked(&mut stores, long, false), 900);
}

#[test]
fn given_a_removed_payload_when_looked_for_then_its_metadata_went_with_it_and_the_chain_stays() {
    let uri = server().database();
    let mut store = started(&uri, "one");
    let edge = |child: u64, parent: u64| {
        let (child, parent) = (key(child), key(parent).id);
        let edge = LineageEdge {
            child: child.id,
            parent,
            operation: "o".repeat(60_000),
            role: String::new(),
            parameters: Vec::new(),
        };
        Change::from(RecordChange::LineageAdd { child, edges: vec![edge], at: NOW })
    };
    let mut batch: Vec<Change> = (1..=3).map(|number| put(row(number))).collect();
    batch.extend([edge(2, 1), edge(3, 2), update(2, "{}"), update(1, "x")]);
    // A history that is too long to go at once.
    batch.extend((0..100).map(|_| update(1, "y")));
    store.apply(&batch).expect("made");
    store.apply(&[remove(1, 1), remove(2, 1)]).expect("removed");
    let tables = |what: &str| {
        let found = server().sql(name_of(&uri), &format!("SELECT count(*) FROM payload_manager.{what}"));
        found.expect("a count").trim().parse::<u64>().expect("a number")
    };
    assert_eq!((tables("history"), tables("event"), tables("lineage")), (0, 101, 2));
    let sweep = |store: &mut PostgresStore| {
        while store.sweep_is_due(NOW) == Ok(true) {
            store.apply(&[RecordChange::Sweep { at: NOW }.into()]).expect("swept");
        }
    };
    sweep(&mut store);
    assert_eq!((tables("event"), tables("lineage")), (0, 2), "payload 3 lives");
    store.apply(&[remove(3, 1)]).expect("removed");
    sweep(&mut store);
    assert_eq!((tables("lineage"), tables("lineage_dirty"), tables("garbage")), (0, 0, 0));
}

/// Asks of other nodes, which have one row: those of node one are none of theirs, and not read.
fn others_asked(reader: &mut dyn Reader, mut other: PostgresStore, number: u64) {
    other.apply(&[put(row(number))]).expect("stored");
    let namespace = key(1).namespace;
    let list = List { namespace, tier: None, before: Some(key(9_000).id), page_size: 5 };
    let (span, tier) = (IdSpan { low: key(10).id, high: key(9_000).id }, None);
    let metadata = |schema: Option<&str>| MetadataFilter {
        schema: schema.map(str::to_owned),
        fields: vec![FieldEquals { path: vec!["a".to_owned()], value: Scalar::number("1") }],
        tags: Vec::new(),
    };
    for order in [FindOrder::NewestFirst, FindOrder::OldestFirst] {
        let found = reader.read(&RecordQuery::Find { namespace, span, order, filter: metadata(None) });
        assert!(matches!(found, Ok(RecordAnswer::Candidates(ids, Some(_))) if ids.len() == 256));
        let none = RecordQuery::Find { namespace, span, order, filter: metadata(Some("absent")) };
        assert_eq!(reader.read(&none), Ok(RecordAnswer::Candidates(vec![], None)));
        let theirs = reader.read(&RecordQuery::ForeignSpan { namespace, span, order, tier, at: NOW });
        assert!(matches!(theirs, Ok(RecordAnswer::ForeignPage(page)) if !page.rows.is_empty()));
    }
    for query in [
        RecordQuery::Foreign { namespace, ids: vec![key(number).id, key(8_000).id], at: NOW },
        RecordQuery::ForeignPage { list, at: NOW },
        RecordQuery::StreamEnds(vec![stream()]),
    ] {
        reader.read(&query).expect("answered");
    }
    let mut own = Vec::new();
    other.load(&mut |row| own.push(row.key)).expect("loaded");
    assert_eq!(own, [key(number)]);
    let mut theirs = other.reader().expect("a reader");
    let list = List { namespace, tier: None, before: None, page_size: 5 };
    let RecordAnswer::ForeignPage(page) =
        theirs.read(&RecordQuery::ForeignPage { list, at: NOW }).expect("answered")
    else {
        panic!("a page")
    };
    assert!(page.rows.len() == 5 && page.total > 3_000);
}

/// The lines of a log that tell of tables that were read whole.
fn searched(log: &str) -> Vec<String> {
    log.lines().filter(|line| line.contains("Seq Scan on")).map(str::to_owned).collect()
}

/// The plans in a log of the statements that hold these words.
fn plans_of<'log>(log: &'log str, words: &str) -> Vec<&'log str> {
    log.split("LOG:  duration:").filter(|entry| entry.contains("plan:") && entry.contains(words)).collect()
}

/// The most rows that a plan read and threw away: an index that leads to such is none.
fn thrown_away(log: &str) -> usize {
    let counts = log.lines().filter_map(|line| line.split_once("Rows Removed by Filter: "));
    counts.map(|(_, count)| count.trim().parse().expect("a number")).max().unwrap_or(0)
}

// Long because: one server with large tables serves every statement's plan; filling it takes most of the time.
#[test]
fn given_the_statements_when_planned_on_large_tables_then_rows_are_found_by_an_index() {
    let server = Postgres::start().expect("a server of its own");
    let uri = server.database();
    let mut store = started(&uri, "one");
    let rows: Vec<Change> = (0..4000).map(|number| put(row(number))).collect();
    store.apply(&rows).expect("stored");
    let described = |number: u64| update(number, &format!(r#"{{"a":{},"b":{number}}}"#, number % 3));
    store.apply(&(0..3000).map(described).collect::<Vec<_>>()).expect("stored");
    let settings = ["session_preload_libraries = 'auto_explain'", "auto_explain.log_min_duration = 0"];
    for setting in settings.into_iter().chain(["auto_explain.log_analyze = on"]) {
        let statement = format!("ALTER DATABASE {} SET {setting}", name_of(&uri));
        server.sql("postgres", &statement).expect("set");
    }
    // The canary: a search without an index is seen in the log.
    server
        .sql(name_of(&uri), "SELECT count(*) FROM payload_manager.payload WHERE size = 1")
        .expect("counted");
    assert!(searched(&server.log()).iter().any(|line| line.contains("payload")), "{}", server.log());
    assert_eq!(thrown_away(&server.log()), 4_000);
    let before = server.log().len();
    // New connections, prepared as ever, and pooled ones, which are planned each time.
    for pooled in [false, true] {
        let config = PostgresConfig {
            pooled,
            node: "one".to_owned(),
            disk_root: Some("root of one".to_owned()),
            ..postgres_config(&uri)
        };
        let mut store = PostgresStore::open(config).expect("opens");
        store.begin_epoch("one").expect("registered");
        let _made_once: Result<_, StoreError> = store.apply(&[created()]);
        let described = [update(2, "{}"), update(2, r#"{"a":7}"#)];
        store.apply(&described).expect("described");
        store.apply(&[append(1, 1, 3), remove(3, 9)]).expect("made");
        // A removal as it mostly is: one statement, with what belongs to the row.
        store.apply(&[remove(4, 9), remove(5, 9), put(row(6))]).expect("removed");
        store.get(key(7)).expect("read");
        let mut reader = store.reader().expect("a reader");
        assert!(!entries(reader.as_mut()).is_empty());
        let other = if pooled { "three" } else { "two" };
        others_asked(reader.as_mut(), started(&uri, other), 5_000 + u64::from(pooled));
        let asked: [PayloadKey; 1] = [key(2)];
        for key in asked {
            reader.read(&RecordQuery::Metadata { key, at: NOW }).expect("answered");
            reader
                .read(&RecordQuery::Lineage { key, upstream: true, depth_max: 0, at: NOW })
                .expect("answered");
        }
    }
    // Tables that are nearly empty are read whole where the planner is free to.
    let log = server.log();
    let is_large = |line: &String| {
        [" payload", " metadata_term", " term", " history", " event"].iter().any(|name| line.contains(name))
    };
    let large = searched(&log[before..]).into_iter().filter(is_large).collect::<Vec<_>>();
    assert_eq!(large, Vec::<String>::new());
    assert!(log[before..].contains("Index Scan Backward using payload_of_node"), "{}", &log[before..]);
    assert!(
        log[before..].contains("Index Only Scan Backward using metadata_term_pkey"),
        "{}",
        &log[before..]
    );
    let removals = plans_of(&log[before..], "DELETE FROM payload_manager.payload AS kept");
    assert!(removals.len() >= 4, "prepared and pooled ones, alone and with records: {}", removals.len());
    for plan in &removals {
        // The row by its key, whatever node's; then its history by the payload, its events and terms by their own keys.
        for step in [
            "Delete on payload kept",
            "Index Scan using payload_pkey on payload kept",
            "Index Scan using history_pkey on history",
            " event_pkey ",
            " metadata_term_pkey ",
        ] {
            assert!(plan.contains(step), "no `{step}` in {plan}");
        }
        assert!(!plan.contains("payload_of_node"), "{plan}");
    }
    assert!(!log[before..].contains("Bitmap Heap Scan on payload"), "{}", &log[before..]);
    assert!(thrown_away(&log[before..]) < 10, "rows of an index were thrown away: {}", &log[before..]);
}
