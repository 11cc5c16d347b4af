//! Backups beside a store in use, and what a start would migrate.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use payload_catalog::{Backup, PostgresStore, SqliteStore, Store, StoreError, Synchronous};
use payload_types::PayloadRow;
use rusqlite::Connection;

use crate::backends::{postgres_config, server};
use crate::postgres_server::name_of;
use crate::rows::{put, row};

/// Rows of one transaction.
const GROUP: u64 = 10;

fn open(path: &Path) -> SqliteStore {
    SqliteStore::open(path, Synchronous::Full).expect("the database opens")
}

fn all(store: &mut dyn Store) -> Vec<PayloadRow> {
    let mut rows = Vec::new();
    store.load(&mut |row| rows.push(row)).expect("rows load");
    rows
}

fn apply(store: &mut dyn Store, group: u64) {
    let changes: Vec<_> = (group * GROUP..(group + 1) * GROUP).map(|number| put(row(number))).collect();
    store.apply(&changes).expect("stored");
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn given_a_store_that_is_written_when_backed_up_then_each_copy_is_the_store_of_one_moment() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("catalog.db");
    let copies = directory.path().join("copies");
    fs::create_dir(&copies).expect("a directory");
    let mut store = open(&path);
    let (groups, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                apply(&mut store, groups.load(Ordering::Relaxed));
                // As the writer does: a backup must not be in its way, nor it in the backup's.
                store.checkpoint().expect("nobody is waited for");
                groups.fetch_add(1, Ordering::Relaxed);
            }
        });
        while groups.load(Ordering::Relaxed) < 100 {
            std::thread::yield_now();
        }
        for number in 0..10 {
            let before = groups.load(Ordering::Relaxed);
            let copy = copies.join(format!("{number}.db"));
            let Backup { payloads, bytes } = SqliteStore::backup(&path, &copy).expect("backed up");
            assert_eq!(payloads % GROUP, 0, "half a transaction");
            assert!(payloads >= before * GROUP, "{payloads} of the {before} groups that were acknowledged");
            assert_eq!(fs::metadata(&copy).expect("a file").len(), bytes);
            let mut restored = open(&copy);
            assert_eq!(all(&mut restored), (0..payloads).map(row).collect::<Vec<_>>());
            apply(&mut restored, 1_000_000);
            Box::new(restored).close().expect("closes");
            fs::remove_file(copies.join(format!("{number}.db.lock"))).expect("the lock of the restored one");
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert_eq!(names(&copies), (0..10).map(|number| format!("{number}.db")).collect::<Vec<_>>());
    let groups = groups.load(Ordering::Relaxed);
    assert_eq!(store.count(), Ok(groups * GROUP), "the store went on as if nobody had read it");
}

#[test]
fn given_a_server_that_was_killed_when_its_database_is_backed_up_then_its_log_is_in_the_copy_and_stays() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (path, killed) = (directory.path().join("catalog.db"), directory.path().join("killed.db"));
    let mut store = open(&path);
    apply(&mut store, 0);
    for suffix in ["", "-wal"] {
        let of = |path: &Path| path.with_extension(format!("db{suffix}"));
        fs::copy(of(&path), of(&killed)).expect("copied as a kill leaves it");
    }
    let log = fs::read(killed.with_extension("db-wal")).expect("a log");
    assert!(log.len() > 1_000);
    let copy = directory.path().join("copy.db");
    assert_eq!(SqliteStore::backup(&killed, &copy).map(|backup| backup.payloads), Ok(GROUP));
    assert_eq!(fs::read(killed.with_extension("db-wal")).expect("a log"), log);
    assert_eq!(all(&mut open(&copy)), all(&mut open(&killed)));
}

#[test]
fn given_what_cannot_be_backed_up_when_asked_then_a_sentence_says_why_and_nothing_is_left() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| directory.path().join(name);
    let mut store = open(&at("catalog.db"));
    apply(&mut store, 0);
    fs::write(at("notes.txt"), "dear diary").expect("written");
    fs::write(at("stale.db-wal"), "of an earlier one").expect("written");
    fs::write(at("slow.db.partial"), "half").expect("written");
    let before = names(directory.path());
    for (from, to, named, words) in [
        ("catalog.db", "notes.txt", "notes.txt", "there already"),
        ("catalog.db", "catalog.db", "catalog.db", "there already"),
        ("catalog.db", "stale.db", "stale.db", "-wal"),
        ("catalog.db", "slow.db", "slow.db", "another backup is under way"),
        ("catalog.db", "no/directory.db", "no/directory.db", "cannot be made"),
        ("missing.db", "copy.db", "missing.db", "there is none"),
        ("notes.txt", "copy.db", "notes.txt", "not an SQLite database"),
    ] {
        let error = SqliteStore::backup(&at(from), &at(to)).expect_err("it cannot work").to_string();
        assert!(error.contains(words) && error.contains(named), "{from} -> {to}: {error}");
        assert_eq!(names(directory.path()), before, "{from} -> {to}");
    }
    assert_eq!(fs::read(at("notes.txt")).expect("bytes"), b"dear diary");
    assert_eq!(store.count(), Ok(GROUP));
}

#[test]
fn given_databases_of_all_ages_when_asked_what_is_pending_then_the_missing_migrations_are_named() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("catalog.db");
    let pending = || SqliteStore::migrations_pending(&path);
    let every = pending().expect("a database that is not there yet");
    assert_eq!(every.first(), Some(&"0001_initial"));
    assert!(!path.exists(), "asking makes nothing");
    let old = Connection::open(&path).expect("a new database");
    old.execute_batch(include_str!("../../migrations/sqlite/0001_initial.sql")).expect("schema 1");
    old.execute_batch("PRAGMA user_version = 1; PRAGMA journal_mode = wal;").expect("set");
    drop(old);
    assert_eq!(pending().as_deref(), Ok(&every[1..]));
    let store = open(&path);
    assert_eq!(pending(), Ok(Vec::new()), "also while it is in use");
    Box::new(store).close().expect("closes");
    let newer = Connection::open(&path).expect("a database");
    newer.pragma_update(None, "user_version", 999).expect("set");
    drop(newer);
    for error in [pending().map(drop), SqliteStore::backup(&path, &path.with_extension("copy")).map(drop)] {
        let error = error.expect_err("a newer program wrote it");
        assert!(
            matches!(&error, StoreError::NewerFormat(text) if text.contains("999") && text.contains("catalog.db")),
            "{error}"
        );
    }
}

#[test]
fn given_a_postgres_database_when_asked_what_is_pending_then_the_missing_migrations_are_named() {
    let uri = server().database();
    let pending = || PostgresStore::migrations_pending(&uri, false);
    let every = pending().expect("an empty database");
    assert_eq!(every.first(), Some(&"0001_initial"));
    assert_eq!(pending(), Ok(every.clone()), "asking makes nothing");
    let store = PostgresStore::open(postgres_config(&uri)).expect("it opens");
    Box::new(store).close().expect("closes");
    assert_eq!(pending(), Ok(Vec::new()));
    assert_eq!(PostgresStore::migrations_pending(&uri, true), Ok(Vec::new()), "behind a proxy, too");
    let last = format!("DELETE FROM payload_manager.migration WHERE number = {}", every.len());
    server().sql(name_of(&uri), &last).expect("deleted");
    assert_eq!(pending(), Ok(vec![every[every.len() - 1]]));
    server().sql(name_of(&uri), "INSERT INTO payload_manager.migration VALUES (99)").expect("inserted");
    let error = pending().expect_err("a newer program wrote it");
    assert!(matches!(&error, StoreError::NewerFormat(text) if text.contains("99")), "{error}");
}

#[test]
fn given_a_dump_of_a_postgres_catalog_when_restored_into_an_empty_database_then_a_server_starts_on_it() {
    let (uri, copy) = (server().database(), server().database());
    let mut store = PostgresStore::open(postgres_config(&uri)).expect("it opens");
    store.begin_epoch("a").expect("registered");
    store.disk_root_bind("a", "second").expect("bound");
    apply(&mut store, 0);
    // As docs/OPERATIONS.md says it, while the server runs.
    let dump = server().dump(name_of(&uri), &["--format=plain", "--schema=payload_manager"]).expect("dumped");
    apply(&mut store, 1);
    server().sql_file(name_of(&copy), &dump).expect("restored");
    let mut restored = PostgresStore::open(postgres_config(&copy)).expect("it opens");
    assert_eq!(restored.disk_roots(), Ok(vec!["second".to_owned()]));
    restored.begin_epoch("a").expect("registered");
    assert_eq!(all(&mut restored), (0..GROUP).map(row).collect::<Vec<_>>());
    apply(&mut restored, 2);
    assert_eq!(restored.count(), Ok(2 * GROUP));
}
