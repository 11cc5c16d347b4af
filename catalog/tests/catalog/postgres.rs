//! What only PostgreSQL has: nodes that share a database, fences, connections that end, proxies, privileges.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::bounded;
use payload_catalog::{AckSink, Change, PostgresConfig, PostgresStore, Store, StoreError, Writer};
use payload_types::event::{CatalogAck, Completion};
use payload_types::{ByteCount, Epoch, PayloadRow};

use crate::backends::{postgres_config, server};
use crate::postgres_server::{Postgres, name_of};
use crate::rows::{key, op, put, remove, row, varied};

/// Longer than any of this takes; reaching it fails the test.
const HANG: Duration = Duration::from_secs(60);

fn node(uri: &str, name: &str, root: &str) -> PostgresConfig {
    PostgresConfig { node: name.to_owned(), disk_root: Some(root.to_owned()), ..postgres_config(uri) }
}

fn open(config: PostgresConfig) -> PostgresStore {
    PostgresStore::open(config).expect("the database opens")
}

/// A store of node `name` that was started.
fn started(uri: &str, name: &str, root: &str) -> PostgresStore {
    let mut store = open(node(uri, name, root));
    store.begin_epoch(name).expect("registered");
    store.disk_root_bind(name, root).expect("bound");
    store
}

fn all(store: &mut PostgresStore) -> Vec<PayloadRow> {
    let mut rows = Vec::new();
    store.load(&mut |row| rows.push(row)).expect("rows load");
    rows
}

fn refusal(config: PostgresConfig) -> StoreError {
    PostgresStore::open(config).err().expect("it must not open")
}

#[test]
fn given_two_nodes_on_one_database_when_they_write_then_neither_touches_what_the_other_owns() {
    let uri = server().database();
    let (mut one, mut two) = (started(&uri, "one", "r1"), started(&uri, "two", "r2"));
    one.apply(&[put(row(1)), put(row(2))]).expect("stored");
    two.apply(&[put(row(3))]).expect("stored");
    let mut newer = row(1);
    (newer.epoch, newer.size) = (Epoch(1000), ByteCount(7));
    let taken = two.apply(&[put(newer), remove(2, 1000)]);
    assert!(matches!(&taken, Err(StoreError::Taken(taken)) if taken[0].key == key(1)), "{taken:?}");
    two.apply(&[remove(2, 1000)]).expect("nothing to remove");
    assert_eq!(all(&mut one), [row(1), row(2)]);
    assert_eq!(all(&mut two), [row(3)]);
    assert_eq!((one.count(), two.count()), (Ok(2), Ok(1)));
    assert_eq!(two.get(key(1)), Ok(None));
    assert_eq!((one.disk_roots(), two.disk_roots()), (Ok(vec!["r1".to_owned()]), Ok(vec!["r2".to_owned()])));
}

#[test]
fn given_a_running_node_when_another_server_takes_its_name_then_refused_until_the_first_one_has_stopped() {
    let uri = server().database();
    let first = started(&uri, "one", "r1");
    let mut second = open(node(&uri, "one", "r2"));
    let error = second.begin_epoch("one").expect_err("taken");
    assert!(
        matches!(&error, StoreError::Locked(text) if text.contains("`one`") && text.contains("127.0.0.1:1")),
        "{error}"
    );
    let mut other = started(&uri, "two", "r3");
    let error = other.disk_root_bind("two", "r1").expect_err("it is node one's");
    assert!(matches!(&error, StoreError::Locked(text) if text.contains("`one`")), "{error}");
    Box::new(first).close().expect("closes");
    assert_eq!(second.begin_epoch("one"), Ok(Epoch(3)));
}

#[test]
fn given_a_later_start_under_the_same_name_when_the_earlier_one_writes_then_refused_for_good() {
    let uri = server().database();
    let mut earlier = started(&uri, "one", "r1");
    earlier.apply(&[put(row(1))]).expect("stored");
    // As after a crash of the machine: who holds the root's lock may take the name at once.
    let mut later = started(&uri, "one", "r1");
    later.apply(&[put(row(2))]).expect("stored");
    for _ in 0..2 {
        let error = earlier.apply(&[put(row(3))]).expect_err("fenced");
        assert!(matches!(error, StoreError::Fenced(_)), "{error}");
        let two_rounds = [put(row(4)), remove(4, 1)];
        let error = earlier.apply(&two_rounds).expect_err("fenced");
        assert!(matches!(error, StoreError::Fenced(_)), "{error}");
    }
    assert_eq!(all(&mut later), [row(1), row(2)]);
}

#[test]
fn given_servers_that_start_together_when_they_open_an_empty_database_then_each_migration_runs_once() {
    let uri = server().database();
    std::thread::scope(|scope| {
        for number in 0..4 {
            let uri = &uri;
            scope.spawn(move || {
                let name = format!("n{number}");
                started(uri, &name, &name).apply(&[put(row(number))]).expect("stored");
            });
        }
    });
    let seen = server().sql(name_of(&uri), "SELECT count(*), max(number) FROM payload_manager.migration");
    let (count, last) = seen.as_deref().expect("rows").trim().split_once('|').expect("two columns");
    assert_eq!(count, last);
    let epochs = server()
        .sql(name_of(&uri), "SELECT string_agg(epoch::text, ',' ORDER BY epoch) FROM payload_manager.node");
    assert_eq!(epochs.expect("rows").trim(), "1,2,3,4");
}

#[test]
fn given_a_database_of_a_newer_program_when_opened_then_refused_and_left_alone() {
    let uri = server().database();
    drop(started(&uri, "one", "r1"));
    server().sql(name_of(&uri), "INSERT INTO payload_manager.migration VALUES (99)").expect("inserted");
    let error = refusal(node(&uri, "one", "r1"));
    assert!(
        matches!(&error, StoreError::NewerFormat(text) if text.contains("version 99") && text.contains("connection_uri")),
        "{error}"
    );
}

#[test]
fn given_what_cannot_work_when_opened_then_a_sentence_says_what_to_do() {
    let uri = server().database();
    let database = name_of(&uri);
    server().sql("postgres", "CREATE ROLE guest LOGIN; CREATE ROLE hasty LOGIN SUPERUSER;").expect("made");
    server().sql("postgres", "ALTER ROLE hasty SET synchronous_commit = off").expect("set");
    let of = |user: &str| uri.replace("postgres@", &format!("{user}@"));
    for (uri, words) in [
        ("postgresql://u:hunter2@h:port/d".to_owned(), "cannot be read"),
        (format!("{uri}?sslmode=require"), "TLS"),
        (uri.replace(database, "missing"), "missing"),
        (of("nobody"), "user"),
        (of("guest"), "privilege"),
        (of("hasty"), "synchronous_commit"),
    ] {
        let error = refusal(node(&uri, "one", "r1"));
        let StoreError::Refused(text) = &error else { panic!("{uri}: {error:?}") };
        assert!(text.contains(words) && text.contains("database.postgres.connection_uri"), "{uri}: {text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
    server().sql(database, "ALTER DATABASE postgres SET default_transaction_read_only = off").expect("set");
    server()
        .sql("postgres", &format!("ALTER DATABASE {database} SET default_transaction_read_only = on"))
        .expect("set");
    let error = refusal(node(&uri, "one", "r1"));
    assert!(matches!(&error, StoreError::ReadOnly(text) if text.contains("primary")), "{error}");
}

#[test]
fn given_no_server_when_opened_then_it_is_waited_for_and_then_given_up() {
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = nowhere.local_addr().expect("bound").port();
    drop(nowhere);
    let start = Instant::now();
    let error = refusal(node(&format!("postgresql://postgres@127.0.0.1:{port}/d"), "one", "r1"));
    assert!(matches!(&error, StoreError::Unavailable(text) if text.contains("cannot be reached")), "{error}");
    assert!(start.elapsed() > Duration::from_secs(5), "both may be started together");
}

/// Puts rows through a writer while `disturb` is called; at the end what is stored must be what was acknowledged.
fn disturbed(uri: &str, rows: u32, mut disturb: impl FnMut(u32)) -> (usize, usize) {
    let (sender, acks) = bounded(rows as usize);
    let sink: AckSink = Arc::new(move |_, completion| match completion {
        Completion::Catalog(ack) => sender.send(ack).expect("the test listens"),
        other => panic!("nothing is late here: {other:?}"),
    });
    let store = started(uri, "one", "r1");
    // Impatient: a group that fails is refused, so that refusals are seen, too.
    let writer = Writer::start_patient(Box::new(store), 64, sink, Duration::from_millis(100));
    for number in 0..rows {
        let mut next = op(number, put(varied(u64::from(number))));
        while let Err(back) = writer.submit(next) {
            next = back;
            std::thread::sleep(Duration::from_micros(200));
        }
        disturb(number);
    }
    let mut made = BTreeSet::new();
    let mut refused = 0;
    for _ in 0..rows {
        let CatalogAck { op, result, .. } = acks.recv_timeout(HANG).expect("every op is answered");
        match result {
            Ok(()) => assert!(made.insert(varied(u64::from(op.index)).key), "acknowledged twice"),
            Err(_) => refused += 1,
        }
    }
    drop(writer.shutdown());
    let found: BTreeSet<_> = all(&mut started(uri, "one", "r1")).iter().map(|row| row.key).collect();
    assert_eq!(found.difference(&made).count(), 0, "stored, though it was refused");
    assert_eq!(made.difference(&found).count(), 0, "acknowledged, and gone");
    (made.len(), refused)
}

#[test]
fn given_connections_ended_mid_load_when_all_is_answered_then_stored_is_what_was_acknowledged() {
    let server = Postgres::start().expect("a server of its own");
    let uri = server.database();
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE application_name = 'payload-manager' AND pid <> pg_backend_pid()";
    let mut ended = 0;
    let (made, refused) = disturbed(&uri, 6_000, |number| {
        if number % 100 == 99 {
            let count = server.sql(name_of(&uri), end).expect("ended");
            ended += count.trim().parse::<usize>().expect("a number");
        }
    });
    assert!(ended > 20, "{ended} connections were ended");
    assert!(made > 1_000, "{made} stored, {refused} refused");
}

#[test]
fn given_a_server_that_crashes_mid_load_when_it_is_back_then_stored_is_what_was_acknowledged() {
    let server = Postgres::start().expect("a server of its own");
    let uri = server.database();
    let (made, _refused) = disturbed(&uri, 12_000, |number| {
        if number % 3_000 == 1_500 {
            server.crash();
            server.start_again().expect("it starts");
        }
    });
    assert!(made > 1_000, "{made} stored");
}

#[test]
// Long because: one load runs through three outages.
fn given_a_server_that_hangs_or_crashes_mid_load_when_changes_wait_then_refused_and_what_is_in_doubt_settled()
{
    let server = Postgres::start().expect("a server of its own");
    let uri = server.database();
    let (sender, acks) = bounded(10_000);
    let sink: AckSink = Arc::new(move |_, completion| match completion {
        Completion::Catalog(ack) => sender.send(ack).expect("the test listens"),
        other => panic!("nothing is late here: {other:?}"),
    });
    let writer =
        Writer::start_patient(Box::new(started(&uri, "one", "r1")), 64, sink, Duration::from_millis(100));
    let mut answers = BTreeMap::new();
    let mut number = 0;
    let submit = |number: u32| {
        let mut next = op(number, put(varied(u64::from(number))));
        while let Err(back) = writer.submit(next) {
            next = back;
            std::thread::sleep(Duration::from_micros(200));
        }
    };
    for (hangs, crashes) in [(true, false), (false, true), (true, true)] {
        // Under load, so that a group is under way; then nobody answers until changes behind it were refused.
        for _ in 0..500 {
            submit(number);
            number += 1;
        }
        if hangs {
            server.freeze();
        } else {
            server.crash();
        }
        let mut refused = 0;
        while refused < 100 {
            submit(number);
            number += 1;
            while let Ok(CatalogAck { op, result, .. }) = acks.try_recv() {
                refused += usize::from(result.is_err());
                assert_eq!(answers.insert(op.index, result.is_ok()), None, "answered twice");
            }
        }
        if hangs {
            server.thaw();
        }
        if crashes {
            if hangs {
                server.crash();
            }
            server.start_again().expect("it starts");
        }
        // It goes on by itself: sooner or later a change is taken again.
        let mut made = false;
        while !made {
            submit(number);
            while !answers.contains_key(&number) {
                let CatalogAck { op, result, .. } = acks.recv_timeout(HANG).expect("every op is answered");
                made = result.is_ok();
                assert_eq!(answers.insert(op.index, made), None, "answered twice");
            }
            number += 1;
        }
    }
    while answers.len() < number as usize {
        let CatalogAck { op, result, .. } = acks.recv_timeout(HANG).expect("every op is answered");
        assert_eq!(answers.insert(op.index, result.is_ok()), None, "answered twice");
    }
    drop(writer.shutdown());
    let made = answers.iter().filter(|(_, made)| **made).map(|(index, _)| varied(u64::from(*index)).key);
    let made: BTreeSet<_> = made.collect();
    let found: BTreeSet<_> = all(&mut started(&uri, "one", "r1")).iter().map(|row| row.key).collect();
    assert_eq!(found.difference(&made).count(), 0, "stored, though it was refused");
    assert_eq!(made.difference(&found).count(), 0, "acknowledged, and gone");
}

#[test]
fn given_a_pooling_proxy_when_used_then_no_statement_has_a_name_and_nothing_is_set_for_the_session() {
    let server = Postgres::start().expect("a server of its own");
    let uri = server.database();
    server.sql("postgres", "ALTER SYSTEM SET log_statement = 'all'").expect("set");
    server.sql("postgres", "SELECT pg_reload_conf()").expect("reloaded");
    let use_it = |pooled: bool| -> String {
        let before = server.log().len();
        let mut store = open(PostgresConfig { pooled, ..node(&uri, "one", "r1") });
        store.begin_epoch("one").expect("registered");
        let batch: Vec<Change> = (0..10).map(|number| put(row(number))).collect();
        store.apply(&batch).expect("stored");
        store.apply(&[put(row(1)), remove(1, 1), put(row(1))]).expect("stored");
        assert_eq!(all(&mut store).len(), 10);
        Box::new(store).close().expect("closes");
        server.log()[before..].to_owned()
    };
    let is_named =
        |log: &str| log.contains("execute s") || log.contains("SET ") && log.contains("SET enable");
    let pooled = use_it(true);
    assert!(pooled.contains("execute <unnamed>") && !is_named(&pooled), "{pooled}");
    // The canary: without the setting both are there.
    assert!(is_named(&use_it(false)));
}
