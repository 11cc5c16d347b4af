//! How SQLite finds records, and what becomes of cells that nobody here wrote.

use std::collections::BTreeSet;

use payload_types::record::{
    Metadata, RecordAnswer, RecordChange, RecordOutcome, RecordQuery, StreamItem, StreamLimits, StreamName,
};
use payload_types::{NamespaceId, PayloadId, PayloadKey, PayloadRow, WallMs};
use rusqlite::Connection;

use super::{read, write};
use crate::sqlite::{SqliteStore, row};
use crate::store::Store;
use crate::{Change, StoreError, Synchronous};

fn store() -> (tempfile::TempDir, SqliteStore) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store =
        SqliteStore::open(&directory.path().join("catalog.db"), Synchronous::Full).expect("a new database");
    (directory, store)
}

/// The steps of a statement's plan, as SQLite words them.
fn plan(connection: &Connection, sql: &str) -> Vec<String> {
    let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect("it can be planned");
    for parameter in 1..=statement.parameter_count() {
        statement.raw_bind_parameter(parameter, 1).expect("bound");
    }
    let mut rows = statement.raw_query();
    let mut steps = Vec::new();
    while let Some(row) = rows.next().expect("a plan") {
        steps.push(row.get::<_, String>(3).expect("a step"));
    }
    steps
}

/// A step that looks at a whole table, or sorts what it found.
fn is_slow(step: &str) -> bool {
    // Rows in the order of a key, with LIMIT 1, are read one by one: `SCAN garbage` reads one.
    let first_only = ["SCAN garbage", "SCAN lineage_dirty"].contains(&step);
    // A namespace holds everything; to know no more is to look at everything.
    (step.starts_with("SCAN") && !first_only)
        || step.contains("TEMP B-TREE")
        || step.ends_with("(namespace=?)")
}

#[test]
fn given_every_statement_when_planned_then_it_goes_by_a_key_or_an_index() {
    let (_directory, store) = store();
    let connection = &store.connection;
    let mut seen = BTreeSet::new();
    let statements = read::ALL.iter().chain(&write::ALL).chain([&row::ONE, &row::REMOVE]);
    for sql in statements {
        assert!(seen.insert(*sql), "twice: {sql}");
        for step in plan(connection, sql) {
            assert!(!is_slow(&step), "{step}: {sql}");
        }
    }
    // Canaries: without a key, and in an order that no index has.
    for sql in [
        "SELECT next FROM stream_group WHERE at = ?1",
        "SELECT first FROM stream_batch WHERE stream = ?1 ORDER BY count",
        "SELECT parameters FROM lineage WHERE namespace = ?1 AND parent = ?2",
    ] {
        assert!(plan(connection, sql).iter().any(|step| is_slow(step)), "{sql}");
    }
}

const AT: WallMs = WallMs::from_millis(1_763_000_000_000);

fn payload(number: u8) -> PayloadKey {
    PayloadKey { namespace: NamespaceId::DEFAULT, id: PayloadId::from_bytes([number; 16]) }
}

fn name() -> StreamName {
    StreamName { namespace: String::new(), name: "s".to_owned() }
}

fn append(count: usize) -> Change {
    let item = StreamItem { payload: payload(1).id, event_time: None, duration_ns: 0, tags: Vec::new() };
    RecordChange::StreamAppend { stream: name(), items: vec![item; count], held: false, at: AT }.into()
}

/// A store with one payload and a stream of three entries.
fn streaming() -> (tempfile::TempDir, SqliteStore) {
    let (directory, mut store) = store();
    let row = PayloadRow { key: payload(1), ..super::super::tests::row(1) };
    let create = RecordChange::StreamCreate { stream: name(), limits: StreamLimits::default(), at: AT };
    let put = payload_types::effect::CatalogChange::Put(Box::new(row));
    let outcomes = store.apply(&[put.into(), create.into(), append(3)]).expect("applied");
    assert_eq!(outcomes, [RecordOutcome::Done, RecordOutcome::Appended { first: 0, last: 2 }]);
    (directory, store)
}

fn read_all() -> RecordQuery {
    RecordQuery::StreamRead {
        stream: name(),
        from: 0,
        to: u64::MAX,
        not_before: None,
        entries_max: 10,
        at: AT,
    }
}

#[test]
fn given_cells_that_were_tampered_with_when_read_then_corrupt_and_no_panic() {
    for damage in [
        "UPDATE stream_batch SET entries = substr(entries, 1, 20)",
        "UPDATE stream_batch SET entries = x''",
        "UPDATE stream_batch SET count = 2",
        "UPDATE stream_batch SET count = 0",
        "UPDATE stream_batch SET count = -1",
        "UPDATE stream_batch SET first = 1",
        "DELETE FROM stream_batch",
        "UPDATE stream SET next = 5",
        "UPDATE stream SET next = -5",
        "UPDATE stream SET age_ms_max = -1",
    ] {
        let (_directory, store) = streaming();
        let mut reader = store.reader().expect("a reader");
        let fine = reader.read(&read_all()).expect("nothing is wrong yet");
        assert!(matches!(fine, RecordAnswer::Entries(_, entries, false) if entries.len() == 3));
        store.connection.execute(damage, []).expect("tampered with");
        let found = reader.read(&read_all());
        assert!(matches!(found, Err(StoreError::Corrupt(_))), "{damage}: {found:?}");
    }
}

#[test]
fn given_a_batch_in_doubt_when_repeated_then_its_records_are_made_once() {
    let (_directory, mut store) = streaming();
    // As after a COMMIT that failed with an I/O error: the connection does not have it, the log's frames may.
    store.in_doubt = true;
    assert_eq!(store.apply(&[append(2)]), Ok(vec![RecordOutcome::Appended { first: 3, last: 4 }]));
    assert!(!store.in_doubt);
    store.in_doubt = true;
    assert_eq!(store.resolve(&[append(2)]), Ok(None), "it never happened");
    assert_eq!(store.apply(&[append(2)]), Ok(vec![RecordOutcome::Appended { first: 5, last: 6 }]));
}

#[test]
fn given_a_full_database_when_a_batch_of_rows_and_records_fails_then_nothing_of_it_is_there() {
    let (_directory, mut store) = streaming();
    let pages: i64 =
        store.connection.pragma_query_value(None, "page_count", |row| row.get(0)).expect("pages");
    store.connection.pragma_update(None, "max_page_count", pages).expect("a limit");
    let metadata = Metadata { data: vec![7; 100_000], schema: String::new() };
    let note = RecordChange::MetadataNote {
        key: payload(1),
        metadata,
        source: String::new(),
        version: String::new(),
        at: AT,
    };
    let batch = [append(2), note.into()];
    assert!(matches!(store.apply(&batch), Err(StoreError::Unavailable(_))));
    store.connection.pragma_update(None, "max_page_count", 1 << 20).expect("room");
    let expected = vec![RecordOutcome::Appended { first: 3, last: 4 }, RecordOutcome::Done];
    assert_eq!(store.apply(&batch), Ok(expected), "offset 3 was not used");
}

#[test]
fn given_a_reader_when_changes_are_committed_then_it_sees_them_and_holds_up_no_checkpoint() {
    let (_directory, mut store) = streaming();
    let mut reader = store.reader().expect("a reader");
    for round in 1..50 {
        store.apply(&[append(1)]).expect("applied");
        let RecordAnswer::Entries(info, ..) = reader.read(&read_all()).expect("answered") else {
            panic!("no entries")
        };
        assert_eq!(info.end, 3 + round);
        store.checkpoint().expect("checkpointed");
        assert_eq!(store.log_bytes(), 0);
    }
    let changed = reader.read(&RecordQuery::Stream(name()));
    assert!(matches!(changed, Ok(RecordAnswer::Stream(_))));
}
