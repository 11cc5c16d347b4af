//! Databases of earlier programs: opening one brings its schema up to date, and its rows are what they were.

use std::path::Path;

use payload_catalog::{PostgresStore, SqliteStore, Store, Synchronous};
use payload_types::policy::EvictionPriority;
use payload_types::record::{Metadata, RecordChange, RecordOutcome};
use payload_types::tier::SpillTarget;
use payload_types::{
    ByteCount, Checksum, Epoch, EvictionPolicy, Generation, Health, NamespaceId, PayloadId, PayloadKey,
    PayloadRow, PayloadState, Pin, ReplicaRow, Tier, Version, WallMs,
};
use rusqlite::Connection;

use crate::backends::{postgres_config, server};
use crate::postgres_server::name_of;
use crate::rows::{put, row, varied};

/// The whole of schema 1, as its programs made it.
const SCHEMA_1: &str = include_str!("../../migrations/sqlite/0001_initial.sql");

/// A row as a program of schema 1 wrote it, number by number.
const ROW_1: &str = "INSERT INTO payload VALUES (1, x'0199f0a1b2c3700080000000000000aa', 4097, 4, 9, 3,
    1763000000000, 1763000009000, 1, 3, 1, 5, 2, -2, 9223372036854775807, 0, NULL, 14, 23, NULL)";

/// The same row, as this program knows it.
fn row_1() -> PayloadRow {
    let replica = |tier, generation, synced| ReplicaRow {
        tier,
        generation: Generation(generation),
        synced,
        sound: true,
        extent: None,
    };
    PayloadRow {
        key: PayloadKey {
            namespace: NamespaceId::DEFAULT,
            id: PayloadId::from_bytes(0x0199_F0A1_B2C3_7000_8000_0000_0000_00AA_u128.to_be_bytes()),
        },
        size: ByteCount(4097),
        state: PayloadState::Durable,
        version: Version(9),
        epoch: Epoch(3),
        created_at: WallMs::from_millis(1_763_000_000_000),
        expires_at: Some(WallMs::from_millis(1_763_000_009_000)),
        no_evict: true,
        policy: EvictionPolicy {
            priority: EvictionPriority::High,
            require_durable: true,
            spill_target: Some(SpillTarget::Void),
            min_residency: Some(Tier::Ram),
        },
        checksum: Some(Checksum(u64::MAX - 1)),
        pin: Pin::Forever,
        health: Health::Good,
        replicas: vec![replica(Tier::Ram, 7, false), replica(Tier::Disk, 11, true)],
    }
}

/// A row that schema 1 has columns for.
fn plain(number: u64) -> PayloadRow {
    let mut row = varied(number);
    for replica in &mut row.replicas {
        (replica.sound, replica.extent) = (true, None);
    }
    row
}

fn open(path: &Path) -> SqliteStore {
    SqliteStore::open(path, Synchronous::Full).expect("the database opens")
}

fn all(store: &mut SqliteStore) -> Vec<PayloadRow> {
    let mut rows = Vec::new();
    store.load(&mut |row| rows.push(row)).expect("rows load");
    rows
}

/// A closed database of schema 1 with [`row_1`] and `rows`, whose columns are copied from one of ours.
fn schema_1(path: &Path, rows: &[PayloadRow]) {
    let ours = path.with_extension("ours");
    let mut store = open(&ours);
    store.apply(&rows.iter().cloned().map(put).collect::<Vec<_>>()).expect("stored");
    Box::new(store).close().expect("closes");

    let old = Connection::open(path).expect("a new database");
    old.execute_batch(SCHEMA_1).expect("schema 1");
    let columns: String = old
        .query_row("SELECT group_concat(name, ', ') FROM pragma_table_info('payload')", [], |row| row.get(0))
        .expect("the columns of schema 1");
    old.execute_batch(&format!(
        "PRAGMA user_version = 1; PRAGMA journal_mode = wal; {ROW_1}; ATTACH '{}' AS ours;
         INSERT INTO payload ({columns}) SELECT {columns} FROM ours.payload;
         INSERT INTO node VALUES ('node', 6, 'root');",
        ours.display()
    ))
    .expect("filled");
}

#[test]
fn given_a_database_of_schema_1_when_opened_then_its_rows_are_unchanged_and_it_takes_packed_ones() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("catalog.db");
    let mut expected: Vec<PayloadRow> = (0..400).map(plain).collect();
    schema_1(&path, &expected);
    expected.push(row_1());
    expected.sort_by_key(|row| row.key);

    let mut store = open(&path);
    assert_eq!(all(&mut store), expected);
    assert_eq!(store.get(row_1().key), Ok(Some(row_1())));
    assert_eq!(store.disk_roots(), Ok(vec!["root".to_owned()]));
    assert_eq!(store.begin_epoch("node"), Ok(Epoch(7)));

    // A row of the old kind is replaced by one of the new kind, and both kinds stand side by side after a restart.
    let packed =
        (400..800).map(varied).find(|row| row.replicas.iter().any(|replica| replica.extent.is_some()));
    let mut packed = packed.expect("some of them are packed");
    packed.key = row_1().key;
    packed.epoch = Epoch(9);
    store.apply(&[put(packed.clone()), put(row(1000))]).expect("stored");
    Box::new(store).close().expect("closes");
    expected.retain(|row| row.key != packed.key);
    expected.push(packed);
    expected.push(row(1000));
    expected.sort_by_key(|row| row.key);
    assert_eq!(all(&mut open(&path)), expected);
}

#[test]
fn given_a_migration_that_cannot_be_finished_when_opened_then_the_database_stays_as_it_was() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("catalog.db");
    schema_1(&path, &[]);
    // The second of the two columns is there already: the first one must not stay.
    let old = Connection::open(&path).expect("a database");
    old.execute_batch("ALTER TABLE payload ADD COLUMN unsound TEXT").expect("tampered with");
    drop(old);
    SqliteStore::open(&path, Synchronous::Full).err().expect("the column cannot be added twice");
    let old = Connection::open(&path).expect("a database");
    let version: i64 = old.pragma_query_value(None, "user_version", |row| row.get(0)).expect("a version");
    assert_eq!(version, 1);
    assert!(old.prepare("SELECT extent FROM payload").is_err(), "half a migration was kept");
}

#[test]
fn given_a_database_of_schema_2_when_opened_then_its_rows_are_unchanged_and_it_takes_records() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("catalog.db");
    let ours = path.with_extension("ours");
    let rows: Vec<PayloadRow> = (0..400).map(varied).collect();
    let mut store = open(&ours);
    store.apply(&rows.iter().cloned().map(put).collect::<Vec<_>>()).expect("stored");
    Box::new(store).close().expect("closes");
    let old = Connection::open(&path).expect("a new database");
    old.execute_batch(SCHEMA_1).expect("schema 1");
    old.execute_batch(include_str!("../../migrations/sqlite/0002_extents.sql")).expect("schema 2");
    old.execute_batch(&format!(
        "PRAGMA user_version = 2; PRAGMA journal_mode = wal; ATTACH '{}' AS ours;
         INSERT INTO payload SELECT namespace, id, size, state, version, epoch, created_at, expires_at, no_evict, priority,
            require_durable, spill_target, min_residency, checksum, pinned_until, health, gpu, ram, disk, object, extent,
            unsound FROM ours.payload;",
        ours.display()
    ))
    .expect("filled");
    drop(old);

    let mut store = open(&path);
    assert_eq!(all(&mut store), rows);
    store.apply(&[put(row(1000))]).expect("stored");
    let note = RecordChange::MetadataNote {
        key: row(1000).key,
        metadata: Metadata::default(),
        source: String::new(),
        version: String::new(),
        at: WallMs::default(),
    };
    assert_eq!(store.apply(&[note.into()]), Ok(vec![RecordOutcome::Done]));
}

/// What the migrations of a backend say, in order.
fn files(backend: &str) -> Vec<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(backend);
    let entries = std::fs::read_dir(directory).expect("a directory");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read_to_string(path).expect("text")).collect()
}

#[test]
fn given_a_database_of_any_earlier_schema_when_opened_then_it_is_like_a_new_one_and_keeps_its_rows() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let schema = |path: &Path| -> Vec<(String, Option<String>)> {
        let database = Connection::open(path).expect("a database");
        let mut statement =
            database.prepare("SELECT name, sql FROM sqlite_master ORDER BY name").expect("prepared");
        let found = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).and_then(Iterator::collect);
        found.expect("a schema")
    };
    let new = directory.path().join("new.db");
    Box::new(open(&new)).close().expect("closes");
    let migrations = files("sqlite");
    assert!(migrations.len() >= 3);
    for seen in 1..migrations.len() {
        let path = directory.path().join(format!("{seen}.db"));
        let old = Connection::open(&path).expect("a new database");
        for sql in &migrations[..seen] {
            old.execute_batch(sql).expect("an earlier schema");
        }
        let mut row_1_sql = ROW_1.replace(
            "INSERT INTO payload VALUES",
            "INSERT INTO payload (namespace, id, size,
            state, version, epoch, created_at, expires_at, no_evict, priority, require_durable, spill_target,
            min_residency, checksum, pinned_until, health, gpu, ram, disk, object) VALUES",
        );
        if seen > 1 {
            row_1_sql =
                row_1_sql.replace("disk, object)", "disk, object, unsound)").replace(", NULL)", ", NULL, 0)");
        }
        old.execute_batch(&format!("{row_1_sql}; PRAGMA user_version = {seen}; PRAGMA journal_mode = wal"))
            .expect("a row of then");
        drop(old);
        assert_eq!(
            SqliteStore::migrations_pending(&path).map(|names| names.len()),
            Ok(migrations.len() - seen)
        );
        let mut store = open(&path);
        assert_eq!(all(&mut store), [row_1()], "schema {seen}");
        Box::new(store).close().expect("closes");
        assert_eq!(schema(&path), schema(&new), "schema {seen}");
    }
}

#[test]
fn given_a_postgres_database_of_any_earlier_schema_when_opened_then_it_is_like_a_new_one() {
    let schema = |uri: &str| {
        server()
            .sql(
                name_of(uri),
                "SELECT table_name, column_name, data_type, column_default, is_nullable FROM information_schema.columns
                    WHERE table_schema = 'payload_manager' ORDER BY 1, 2;
                SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'payload_manager' ORDER BY 1",
            )
            .expect("a schema")
    };
    let new = server().database();
    let opened = |uri: &str| PostgresStore::open(postgres_config(uri)).expect("it opens");
    Box::new(opened(&new)).close().expect("closes");
    let migrations = files("postgres");
    assert!(migrations.len() >= 2 && schema(&new).contains("payload_pkey"));
    for seen in 1..migrations.len() {
        let uri = server().database();
        for (number, sql) in (1..).zip(&migrations[..seen]) {
            let made = format!("{sql}; INSERT INTO payload_manager.migration (number) VALUES ({number})");
            server().sql(name_of(&uri), &made).expect("an earlier schema");
        }
        let pending = PostgresStore::migrations_pending(&uri, false);
        assert_eq!(pending.map(|names| names.len()), Ok(migrations.len() - seen));
        let mut store = opened(&uri);
        store.begin_epoch("a").expect("registered");
        store.apply(&[put(row(1))]).expect("stored");
        assert_eq!(store.count(), Ok(1));
        Box::new(store).close().expect("closes");
        assert_eq!(schema(&uri), schema(&new), "schema {seen}");
    }
}
