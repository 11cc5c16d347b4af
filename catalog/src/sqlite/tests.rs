//! What only the inside of the store can arrange: a full database, a `COMMIT` in doubt, a checkpoint's effect.

use super::*;
use payload_types::{
    ByteCount, EvictionPolicy, Generation, Health, PayloadId, PayloadState, Pin, ReplicaRow, Tier, Version,
    WallMs,
};

pub(super) fn row(number: u64) -> PayloadRow {
    PayloadRow {
        key: PayloadKey {
            namespace: NamespaceId::DEFAULT,
            id: PayloadId::mint((1_763_000_000_000 << 12) + number, number),
        },
        size: ByteCount(4096),
        state: PayloadState::Active,
        version: Version(2),
        epoch: Epoch(1),
        created_at: WallMs::from_millis(1_763_000_000_000),
        expires_at: None,
        no_evict: false,
        policy: EvictionPolicy::default(),
        checksum: None,
        pin: Pin::None,
        health: Health::Good,
        replicas: vec![ReplicaRow {
            tier: Tier::Ram,
            generation: Generation(number),
            synced: false,
            sound: true,
            extent: None,
        }],
    }
}

fn batch(numbers: std::ops::Range<u64>) -> Vec<Change> {
    numbers.map(|number| CatalogChange::Put(Box::new(row(number))).into()).collect()
}

fn store() -> (tempfile::TempDir, SqliteStore) {
    store_with(Synchronous::Full)
}

fn store_with(synchronous: Synchronous) -> (tempfile::TempDir, SqliteStore) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = SqliteStore::open(&directory.path().join("catalog.db"), synchronous).expect("a new database");
    (directory, store)
}

fn removal(number: u64) -> [Change; 1] {
    [CatalogChange::Remove { key: row(number).key, epoch: Epoch(1) }.into()]
}

/// What `PRAGMA synchronous` says: 1 NORMAL, 2 FULL.
fn level(store: &SqliteStore) -> i64 {
    store.connection.pragma_query_value(None, "synchronous", |row| row.get(0)).expect("a setting")
}

#[test]
fn given_a_full_database_when_written_then_unavailable_nothing_is_lost_and_it_goes_on_once_there_is_room() {
    let (directory, mut store) = store();
    store.apply(&batch(0..100)).expect("room for 100 rows");
    let pages: i64 =
        store.connection.pragma_query_value(None, "page_count", |row| row.get(0)).expect("pages");
    let limit = |store: &SqliteStore, pages: i64| {
        store.connection.pragma_update(None, "max_page_count", pages).expect("a limit");
    };
    limit(&store, pages);
    let error = store.apply(&batch(100..2000)).expect_err("no room for 1,900 more");
    assert!(matches!(&error, StoreError::Unavailable(text) if text.contains("free space")), "{error}");
    assert_eq!(store.count(), Ok(100));
    limit(&store, 1 << 20);
    store.apply(&batch(100..2000)).expect("room again");
    drop(store);
    let mut store =
        SqliteStore::open(&directory.path().join("catalog.db"), Synchronous::Full).expect("reopens");
    assert_eq!(store.count(), Ok(2000));
}

#[test]
fn given_rows_in_the_log_when_checkpointed_then_nothing_is_left_to_do_and_the_file_has_them() {
    let (directory, mut store) = store();
    store.apply(&batch(0..1000)).expect("1,000 rows");
    assert!(store.log_bytes() >= 1000 * 64, "{} bytes", store.log_bytes());
    store.checkpoint().expect("nobody is in the way");
    assert_eq!(store.log_bytes(), 0);
    std::fs::remove_file(directory.path().join("catalog.db-wal")).expect("there is a log");
    std::mem::forget(store);
    let copy = directory.path().join("copy.db");
    std::fs::copy(directory.path().join("catalog.db"), &copy).expect("a copy");
    let mut store = SqliteStore::open(&copy, Synchronous::Full).expect("the copy opens");
    assert_eq!(store.count(), Ok(1000));
}

#[test]
fn given_a_commit_in_doubt_when_resolved_then_the_log_is_emptied_first() {
    let (directory, mut store) = store();
    store.apply(&batch(0..10)).expect("10 rows");
    store.in_doubt = true;
    assert_eq!(store.resolve(&batch(10..20)), Ok(None));
    assert!(!store.in_doubt);
    assert_eq!(std::fs::metadata(directory.path().join("catalog.db-wal")).expect("a log").len(), 0);
}

#[test]
fn given_a_reader_in_the_way_when_in_doubt_then_the_answer_waits_for_it() {
    let (directory, mut store) = store();
    store.apply(&batch(0..10)).expect("10 rows");
    store.connection.busy_timeout(std::time::Duration::ZERO).expect("a setting");
    let reader = Connection::open(directory.path().join("catalog.db")).expect("a second connection");
    reader.execute_batch("BEGIN; SELECT count(*) FROM payload;").expect("a read transaction");
    store.apply(&batch(10..20)).expect("readers do not block the writer");
    store.in_doubt = true;
    assert!(matches!(store.resolve(&batch(20..30)), Err(StoreError::Unavailable(_))));
    reader.execute_batch("COMMIT").expect("the reader ends");
    assert_eq!(store.resolve(&batch(20..30)), Ok(None));
    assert_eq!(store.get(row(13).key), Ok(Some(row(13))));
}

#[test]
fn given_another_program_that_holds_the_write_lock_when_written_then_unavailable_until_it_lets_go() {
    let (directory, mut store) = store();
    store.connection.busy_timeout(std::time::Duration::ZERO).expect("a setting");
    let other = Connection::open(directory.path().join("catalog.db")).expect("a second connection");
    other.execute_batch("BEGIN IMMEDIATE").expect("the write lock");
    let error = store.apply(&batch(0..1)).expect_err("somebody else writes");
    assert!(matches!(&error, StoreError::Unavailable(text) if text.contains("end that program")), "{error}");
    other.execute_batch("ROLLBACK").expect("it lets go");
    store.apply(&batch(0..1)).expect("free again");
}

#[test]
fn given_the_settings_when_asked_then_every_transaction_is_synced_to_a_log() {
    let (_directory, store) = store();
    let text = |pragma: &str| -> String {
        store.connection.pragma_query_value(None, pragma, |row| row.get(0)).expect("a setting")
    };
    let number = |pragma: &str| -> i64 {
        store.connection.pragma_query_value(None, pragma, |row| row.get(0)).expect("a setting")
    };
    assert_eq!(text("journal_mode"), "wal");
    assert_eq!(level(&store), 2, "FULL");
    assert_eq!(number("wal_autocheckpoint"), 0, "checkpoints are the writer's");
}

/// A copy of the database and of the log's first bytes, opened: what a loss of power may leave.
fn after_power_loss(directory: &std::path::Path, log_bytes: u64) -> (tempfile::TempDir, SqliteStore) {
    let copy = tempfile::tempdir().expect("a temporary directory");
    for name in ["catalog.db", "catalog.db-wal"] {
        std::fs::copy(directory.join(name), copy.path().join(name)).expect("a copy");
    }
    let log =
        std::fs::OpenOptions::new().write(true).open(copy.path().join("catalog.db-wal")).expect("a log");
    log.set_len(log_bytes).expect("cut");
    let store = SqliteStore::open(&copy.path().join("catalog.db"), Synchronous::Normal).expect("it opens");
    (copy, store)
}

#[test]
fn given_late_removals_when_power_is_lost_then_the_last_ones_are_undone_whole_and_nothing_else() {
    let (directory, mut store) = store_with(Synchronous::Normal);
    let log_bytes = || std::fs::metadata(directory.path().join("catalog.db-wal")).expect("a log").len();
    store.apply(&batch(0..10)).expect("10 rows");
    // How long the log was after each removal: at least the first of these is on stable storage.
    let mut lengths = vec![log_bytes()];
    for number in 0..10 {
        assert_eq!(store.apply_late(&removal(number)), Ok(false));
        lengths.push(log_bytes());
    }
    assert!(lengths.windows(2).all(|pair| pair[0] < pair[1]), "{lengths:?}");
    for (removed, length) in (0..).zip(&lengths) {
        // As long as it was, and torn within the removal that followed.
        for torn_bytes in [0, 1, 4000] {
            let (_copy, mut found) = after_power_loss(directory.path(), length + torn_bytes);
            let mut rows = Vec::new();
            found.load(&mut |row| rows.push(row)).expect("rows load");
            assert_eq!(rows, (removed..10).map(row).collect::<Vec<_>>(), "{removed} removals survived");
        }
    }
}

#[test]
fn given_late_removals_when_flushed_then_a_synced_frame_is_written_and_only_once() {
    let (_directory, mut store) = store_with(Synchronous::Normal);
    store.apply(&batch(0..10)).expect("10 rows");
    assert_eq!(level(&store), 2, "what makes a row is synced");
    let before = store.log_bytes();
    store.flush().expect("nothing is late");
    assert_eq!(store.log_bytes(), before);
    assert_eq!(store.apply_late(&removal(0)), Ok(false));
    assert_eq!(level(&store), 1, "NORMAL");
    let before = store.log_bytes();
    store.flush().expect("flushed");
    assert_eq!(level(&store), 2, "the flush is synced");
    assert_eq!(
        store.log_bytes(),
        before + store.page_bytes,
        "and it is a transaction, or nothing would be synced"
    );
    store.flush().expect("nothing is late");
    assert_eq!(store.log_bytes(), before + store.page_bytes);
    assert_eq!(store.count(), Ok(9));
}

#[test]
fn given_a_reader_in_the_way_when_flushed_then_it_does_not_matter() {
    let (directory, mut store) = store_with(Synchronous::Normal);
    store.apply(&batch(0..10)).expect("10 rows");
    let reader = Connection::open(directory.path().join("catalog.db")).expect("a second connection");
    reader.execute_batch("BEGIN; SELECT count(*) FROM payload;").expect("a read transaction");
    assert_eq!(store.apply_late(&removal(0)), Ok(false));
    store.flush().expect("a checkpoint could not have moved the removal");
    assert_eq!(store.apply_late(&[]), Ok(true));
}

#[test]
fn given_a_sync_that_may_have_failed_when_removals_are_late_then_only_an_emptied_log_makes_them_durable() {
    let (directory, mut store) = store_with(Synchronous::Normal);
    store.connection.busy_timeout(std::time::Duration::ZERO).expect("a setting");
    store.apply(&batch(0..10)).expect("10 rows");
    assert_eq!(store.apply_late(&removal(0)), Ok(false));
    store.suspect = true;
    let reader = Connection::open(directory.path().join("catalog.db")).expect("a second connection");
    reader.execute_batch("BEGIN; SELECT count(*) FROM payload;").expect("a read transaction");
    assert!(matches!(store.flush(), Err(StoreError::Unavailable(_))));
    assert!(
        matches!(store.apply(&batch(10..11)), Err(StoreError::Unavailable(_))),
        "it would claim too much"
    );
    assert_eq!(store.apply_late(&removal(1)), Ok(false), "removals go on");
    reader.execute_batch("COMMIT").expect("the reader ends");
    store.flush().expect("the log is emptied");
    assert_eq!(store.apply_late(&[]), Ok(true));
    assert_eq!(std::fs::metadata(directory.path().join("catalog.db-wal")).expect("a log").len(), 0);
    store.apply(&batch(10..11)).expect("as ever");
    assert_eq!(store.count(), Ok(9));
}
