//! A server on a real PostgreSQL: what it keeps over kills of itself and of the database, and who may share it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use payload_tests::postgres::{Postgres, name_of};
use payload_tests::server::{Place, eventually};
use payload_tests::v1::{DISK, RAM, V1, content, id, listing, refused};
use payload_wire::pb::core::v1::PayloadId;
use tonic::Code;

const SIZE: usize = 4096;

/// Whoever waits behind a database that hangs hears within 5 s and a little; who is not answered by then was given to it.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(15);

fn database() -> (Postgres, String) {
    let server = Postgres::start().expect("a PostgreSQL server starts; tests/run installs one");
    let uri = server.database();
    (server, uri)
}

fn place(uri: &str, node: &str) -> Place {
    Place::new().with("DATABASE__POSTGRES__CONNECTION_URI", uri).with("NODE__NAME", node)
}

#[tokio::test]
async fn given_a_server_on_postgres_when_killed_or_stopped_then_a_new_one_has_all_that_was_committed() {
    for pooled in ["false", "true"] {
        let (_postgres, uri) = database();
        let place = place(&uri, &format!("node-{pooled}")).with("DATABASE__POSTGRES__POOLED", pooled);
        let mut kept = BTreeMap::new();
        for round in 0..3 {
            // No wait after a kill: whoever holds the disk root has the name.
            let server = place.start();
            let v1 = V1::connect(&server).await;
            for (key, seed) in &kept {
                let payload = PayloadId { value: Vec::clone(key) };
                assert_eq!(v1.bytes(&payload).await.1, content(*seed, SIZE));
            }
            assert_eq!(v1.list(listing(0, 50)).await.expect("listed").total_count, kept.len() as i32);
            for (number, tier) in [(0, RAM), (1, DISK), (2, RAM)] {
                let seed = round * 10 + number;
                let descriptor = v1.put(tier, &content(seed, SIZE)).await;
                kept.insert(id(&descriptor).value, seed);
            }
            let gone = v1.put(DISK, &content(99, SIZE)).await;
            v1.delete(&id(&gone), false).await.expect("deleted");
            if round == 1 { server.stop() } else { server.kill() }
        }
    }
}

#[tokio::test]
async fn given_a_database_that_crashes_mid_load_when_it_is_back_then_commits_go_on_and_leases_never_stopped()
{
    let (postgres, uri) = database();
    let place = place(&uri, "one");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let read = id(&v1.put(RAM, &content(1, SIZE)).await);
    let (over, committed) = (AtomicBool::new(false), AtomicUsize::new(0));
    let load = async {
        let mut made = Vec::new();
        let mut refusals = 0;
        while !over.load(Ordering::Relaxed) {
            let descriptor = v1.allocated(RAM, SIZE as u64).await;
            v1.map(&descriptor).copy_from_slice(&content(2, SIZE));
            match v1.commit(&id(&descriptor)).await {
                Ok(_) => {
                    made.push(id(&descriptor));
                    committed.fetch_add(1, Ordering::Relaxed);
                }
                Err(status) => {
                    assert_eq!(status.code(), Code::Unavailable, "{status}");
                    refusals += 1;
                }
            }
        }
        (made, refusals)
    };
    let disturb = async {
        for _ in 0..3 {
            let before = committed.load(Ordering::Relaxed);
            postgres.crash();
            // While the database is away, reading goes on.
            for _ in 0..50 {
                assert_eq!(v1.bytes(&read).await.1, content(1, SIZE));
            }
            postgres.start_again().expect("it starts");
            eventually("commits go on", async || {
                (committed.load(Ordering::Relaxed) > before + 20).then_some(())
            })
            .await;
        }
        over.store(true, Ordering::Relaxed);
    };
    let ((made, _refusals), ()) = tokio::join!(load, disturb);
    assert!(made.len() > 60, "{} were made", made.len());
    server.kill();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    for payload in &made {
        assert_eq!(v1.bytes(payload).await.1, content(2, SIZE));
    }
}

#[tokio::test]
async fn given_a_database_that_stays_away_when_committed_then_unavailable_and_the_server_stops_in_order() {
    let (postgres, uri) = database();
    let place = place(&uri, "one");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let kept = id(&v1.put(DISK, &content(1, SIZE)).await);
    postgres.stop();
    let descriptor = v1.allocated(DISK, SIZE as u64).await;
    v1.map(&descriptor).copy_from_slice(&content(2, SIZE));
    refused(v1.commit(&id(&descriptor)).await, Code::Unavailable, &["catalog"]);
    assert_eq!(v1.bytes(&kept).await.1, content(1, SIZE));
    server.stop();
    let said = place.start_refused();
    assert!(said.contains("cannot be reached") && said.contains("connection_uri"), "{said}");
    postgres.start_again().expect("it starts");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    assert_eq!(v1.bytes(&kept).await.1, content(1, SIZE));
}

#[tokio::test]
async fn given_two_servers_on_one_database_when_named_apart_then_each_keeps_its_own_and_else_the_second_is_refused()
 {
    let (postgres, uri) = database();
    let (first_place, second_place) = (place(&uri, "one"), place(&uri, "two"));
    let (first, second) = (first_place.start(), second_place.start());
    let (one, two) = (V1::connect(&first).await, V1::connect(&second).await);
    let (mine, theirs) = (one.put(DISK, &content(1, SIZE)).await, two.put(DISK, &content(2, SIZE)).await);
    let said = place(&uri, "one").start_refused();
    assert!(said.contains("`one` is taken") && said.contains(&first.address), "{said}");
    second.kill();
    let second = second_place.start();
    let two = V1::connect(&second).await;
    assert_eq!(two.bytes(&id(&theirs)).await.1, content(2, SIZE));
    assert_eq!(one.bytes(&id(&mine)).await.1, content(1, SIZE));
    let owners = postgres.sql(name_of(&uri), "SELECT count(DISTINCT owner) FROM payload_manager.payload");
    assert_eq!(owners.expect("counted").trim(), "2");
    first.stop();
    second.stop();
    // In order: the name is free at once, and its own root is asked for.
    let said = place(&uri, "one").start_refused();
    assert!(said.contains("another disk root"), "{said}");
}

#[test]
fn given_a_database_that_does_not_let_it_in_when_started_then_a_sentence_says_so_and_no_password() {
    let (_postgres, uri) = database();
    let uri = uri.replace("postgres@", "guest:hunter2@");
    let said = place(&uri, "one").start_refused();
    assert!(said.contains("database.postgres.connection_uri") && said.contains("guest"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}

#[tokio::test]
async fn given_a_database_that_hangs_when_used_then_leases_go_on_and_only_what_it_was_given_waits() {
    let (postgres, uri) = database();
    let place = place(&uri, "one");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let read = id(&v1.put(RAM, &content(1, SIZE)).await);
    postgres.freeze();
    // What the database was given is answered once it has said what became of it; that is the first commit, and whatever met it
    // in its group. What comes behind is not begun, and hears so.
    let (mut given, mut second) = (Vec::new(), None);
    while second.is_none() {
        let payload = id(&v1.allocated(RAM, SIZE as u64).await);
        let (v1, key) = (&v1, payload.clone());
        let mut commit = Box::pin(async move { v1.commit(&key).await });
        match tokio::time::timeout(PATIENCE, &mut commit).await {
            Err(_) => given.push(commit),
            Ok(answer) => {
                refused(answer, Code::Unavailable, &["catalog"]);
                second = Some(payload);
            }
        }
        assert!(given.len() < 4, "a group in doubt holds back who comes behind it");
    }
    assert_eq!(v1.bytes(&read).await.1, content(1, SIZE), "leases go on");
    let second = second.expect("one was refused");
    postgres.thaw();
    for commit in given {
        commit.await.expect("it was made");
    }
    eventually("commits go on by themselves", async || v1.commit(&second).await.ok()).await;
}
