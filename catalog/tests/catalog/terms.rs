//! Metadata of programs that knew no terms: opening their database makes them findable.

use std::fmt::Write as _;

use payload_catalog::{PostgresStore, SqliteStore, Store, Synchronous};
use payload_types::find::{FindOrder, IdSpan, MetadataFilter};
use payload_types::record::{Metadata, MetadataMode, RecordAnswer, RecordChange, RecordQuery};
use payload_types::{NamespaceId, PayloadId, WallMs};
use rusqlite::Connection;

use crate::backends::{postgres_config, server};
use crate::postgres_server::name_of;
use crate::rows::{key, put, row};

/// More than are read at a time.
const COUNT: u64 = 40;

/// Of payload `number`; every fourth one has a history without any.
fn document(number: u64) -> Option<String> {
    (number % 4 != 3).then(|| format!(r#"{{"half":{},"tags":["t"]}}"#, number % 2))
}

/// Statements that store what [`document`] says, as programs of schema 4 did. `blob` writes bytes.
fn stored(prefix: &str, id: &str, blob: impl Fn(&[u8]) -> String) -> String {
    let mut script = String::new();
    for number in 0..COUNT {
        let payload = key(number).id;
        let payload = if prefix.is_empty() { blob(payload.as_bytes()) } else { format!("'{payload}'") };
        let (history, current) = (number + 1, if document(number).is_some() { 2 } else { 0 });
        writeln!(
            script,
            "INSERT INTO {prefix}history (id, namespace, payload, events, current) {id} VALUES ({history}, 1, {payload}, 3, {current});"
        )
        .expect("written");
        let current = document(number).unwrap_or_default();
        // The first is what was current once, the last a note.
        for (event, data) in [(1, r#"{"half":7}"#), (2, current.as_str()), (3, r#"{"half":8}"#)] {
            let (data, schema, empty) = (blob(data.as_bytes()), blob(b"s"), blob(b""));
            writeln!(
                script,
                "INSERT INTO {prefix}event VALUES ({history}, {event}, 5, 1, {data}, {schema}, {empty}, {empty}, {empty});"
            )
            .expect("written");
        }
    }
    script
}

fn found(store: &dyn Store, filter: MetadataFilter) -> Vec<PayloadId> {
    let query = RecordQuery::Find {
        namespace: NamespaceId::DEFAULT,
        span: IdSpan::ALL,
        order: FindOrder::OldestFirst,
        filter,
    };
    match store.reader().expect("a reader").read(&query).expect("answered") {
        RecordAnswer::Candidates(ids, None) => ids,
        other => panic!("{other:?}"),
    }
}

/// All that is stored is found, and terms of before go when the metadata change.
fn check(store: &mut dyn Store) {
    use payload_types::find::{FieldEquals, Scalar};
    let half = |value: &str| FieldEquals { path: vec!["half".to_owned()], value: Scalar::number(value) };
    let is = |value: &str| MetadataFilter { fields: vec![half(value)], ..MetadataFilter::default() };
    let wanted = |rest: u64| -> Vec<PayloadId> {
        let fits = |number: &u64| number % 2 == rest && document(*number).is_some();
        (0..COUNT).filter(fits).map(|number| key(number).id).collect()
    };
    assert_eq!(found(store, is("0")), wanted(0));
    assert_eq!(found(store, is("1.0")), wanted(1));
    assert_eq!((found(store, is("7")), found(store, is("8"))), (vec![], vec![]));
    let schema = MetadataFilter { schema: Some("s".to_owned()), ..MetadataFilter::default() };
    let tag = MetadataFilter { tags: vec![("t".to_owned(), String::new())], ..MetadataFilter::default() };
    assert_eq!(found(store, schema).len(), 30);
    assert_eq!(found(store, tag).len(), 30);

    let update = RecordChange::MetadataUpdate {
        key: key(0),
        mode: MetadataMode::Replace,
        metadata: Metadata { data: br#"{"half":7}"#.to_vec(), schema: String::new() },
        actor: String::new(),
        reason: String::new(),
        at: WallMs::from_millis(6),
    };
    store.apply(&[put(row(0)), update.into()]).expect("applied");
    assert_eq!(found(store, is("7")), [key(0).id]);
    assert_eq!(found(store, is("0")), wanted(0)[1..]);
}

#[test]
fn given_a_database_of_schema_4_with_metadata_when_opened_then_they_are_found() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("catalog.db");
    let old = Connection::open(&path).expect("a new database");
    for script in [
        include_str!("../../migrations/sqlite/0001_initial.sql"),
        include_str!("../../migrations/sqlite/0002_extents.sql"),
        include_str!("../../migrations/sqlite/0003_records.sql"),
        include_str!("../../migrations/sqlite/0004_holds.sql"),
        "PRAGMA user_version = 4; PRAGMA journal_mode = wal;",
    ] {
        old.execute_batch(script).expect("schema 4");
    }
    let hex = |bytes: &[u8]| bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    old.execute_batch(&stored("", "", |bytes| format!("x'{}'", hex(bytes)))).expect("filled");
    drop(old);
    check(&mut SqliteStore::open(&path, Synchronous::Full).expect("the database opens"));
    let rest = Connection::open(&path).expect("a database");
    let terms: i64 =
        rest.query_row("SELECT count(*) FROM metadata_term", [], |row| row.get(0)).expect("counted");
    // A field, a tag and a schema each; of the one that was replaced a field alone.
    assert_eq!(terms, 29 * 3 + 1);
}

#[test]
fn given_a_postgres_database_of_schema_4_with_metadata_when_opened_then_they_are_found() {
    let server = server();
    let uri = server.database();
    for script in [
        include_str!("../../migrations/postgres/0001_initial.sql"),
        include_str!("../../migrations/postgres/0002_records.sql"),
        include_str!("../../migrations/postgres/0003_nodes.sql"),
        include_str!("../../migrations/postgres/0004_holds.sql"),
        "INSERT INTO payload_manager.migration (number) VALUES (1), (2), (3), (4);",
    ] {
        server.sql_file(name_of(&uri), script).expect("schema 4");
    }
    let hex = |bytes: &[u8]| bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    let script =
        stored("payload_manager.", "OVERRIDING SYSTEM VALUE", |bytes| format!("'\\x{}'", hex(bytes)));
    server.sql_file(name_of(&uri), &script).expect("filled");
    let mut store = PostgresStore::open(postgres_config(&uri)).expect("the database opens");
    store.begin_epoch("a").expect("registered");
    check(&mut store);
}
