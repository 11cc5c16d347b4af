//! Enrol: the row of a payload that is not committed, and what becomes of it.

#[allow(dead_code, reason = "every test binary uses its own part")]
mod world;

use payload_shards::Adopted;
use payload_types::effect::CatalogChange;
use payload_types::reply::Reply;
use payload_types::request::Request;
use payload_types::*;
use world::{World, config, kind};

/// The row that is on its way to the catalog.
fn row(world: &World) -> PayloadRow {
    match &world.catalog.front().expect("a change waits").change {
        CatalogChange::Put(row) => (**row).clone(),
        CatalogChange::Remove { key, .. } => panic!("{key:?} is to be removed"),
    }
}

fn is_removal(world: &World) -> bool {
    matches!(world.catalog.front().map(|op| &op.change), Some(CatalogChange::Remove { .. }))
}

fn enrolled(world: &mut World) -> PayloadKey {
    let key = world.allocate(Tier::Ram, 100);
    assert_eq!(world.ask(Request::Enrol { key }), Ok(Reply::Enrolled));
    key
}

#[test]
fn given_an_allocation_when_enrolled_then_its_row_names_no_replica_and_the_next_one_costs_nothing() {
    let mut world = World::new();
    let key = world.allocate(Tier::Ram, 100);
    let (first, second) = (world.send(Request::Enrol { key }), world.send(Request::Enrol { key }));
    let stored = row(&world);
    assert_eq!((stored.key, stored.state, stored.replicas.len()), (key, PayloadState::Allocated, 0));
    assert_eq!(world.catalog.len(), 1, "the second waits for the first");
    world.ack_one(Ok(()));
    world.settle();
    assert_eq!(world.answer(first), Some(Ok(Reply::Enrolled)));
    assert_eq!(world.answer(second), Some(Ok(Reply::Enrolled)));
    world.send(Request::Pin { key, duration_ms: None, owner: Peer::UNKNOWN });
    assert!(world.catalog.is_empty(), "Commit stores the pin");
    let number = world.send(Request::Commit { key, checksum: None, batch: None });
    world.store_one();
    let committed = row(&world);
    assert_eq!((committed.state, committed.pin), (PayloadState::Active, Pin::Forever));
    assert!(committed.version > stored.version && committed.replicas.len() == 1);
    world.settle();
    assert!(matches!(world.answer(number), Some(Ok(Reply::Committed(_)))));
    let asked = world.send(Request::Enrol { key });
    assert!(world.catalog.is_empty(), "a committed payload has its row");
    assert_eq!(world.answer(asked), Some(Ok(Reply::Enrolled)));
}

#[test]
fn given_an_enrolled_allocation_when_deleted_or_left_alone_then_its_row_goes_too() {
    let mut world = World::new();
    let (deleted, abandoned) = (enrolled(&mut world), enrolled(&mut world));
    let number = world.send(Request::Delete { key: deleted, force: false, expected_version: None });
    assert!(is_removal(&world));
    world.ack_one(Err("the disk is full".to_owned()));
    assert_eq!(kind(world.answer(number)), Some(ErrorKind::Unavailable));
    assert_eq!(world.describe(deleted).state, PayloadState::Allocated, "as it was");
    let delete = Request::Delete { key: deleted, force: false, expected_version: None };
    assert_eq!(world.ask(delete), Ok(Reply::Deleted));
    world.pass(config(1).allocation_timeout_ms + 10);
    world.settle();
    assert_eq!(kind(Some(world.ask(Request::Resolve { key: abandoned }))), Some(ErrorKind::NotFound));
    assert!(world.catalog.is_empty() && world.shard.is_quiet());
}

#[test]
fn given_a_catalog_that_refuses_when_enrolled_then_unavailable_and_the_next_one_tries_again() {
    let mut world = World::new();
    let key = world.allocate(Tier::Ram, 100);
    let number = world.send(Request::Enrol { key });
    world.ack_one(Err("the disk is full".to_owned()));
    assert_eq!(kind(world.answer(number)), Some(ErrorKind::Unavailable));
    assert_eq!(world.ask(Request::Enrol { key }), Ok(Reply::Enrolled));
    let unknown = world.new_key();
    assert_eq!(kind(Some(world.ask(Request::Enrol { key: unknown }))), Some(ErrorKind::NotFound));
}

#[test]
fn given_an_enrolled_row_at_boot_when_adopted_then_lost_until_its_timeout() {
    let mut before = World::new();
    let key = before.allocate(Tier::Ram, 100);
    before.send(Request::Enrol { key });
    let stored = row(&before);
    let mut world = World::with(config(2));
    let adopted = world.shard.adopt(world.now, stored, PerTier::default());
    assert_eq!(adopted, Adopted::Lost);
    let answer = world.ask(Request::Resolve { key }).expect_err("its bytes are gone");
    assert!(answer.kind == ErrorKind::NotFound && answer.message.contains("LOST"), "{answer}");
    let commit = Request::Commit { key, checksum: None, batch: None };
    assert_eq!(kind(Some(world.ask(commit))), Some(ErrorKind::NotFound));
    world.pass(config(2).allocation_timeout_ms + 10);
    world.settle();
    let answer = world.ask(Request::Resolve { key }).expect_err("its row is gone, too");
    assert!(!answer.message.contains("LOST"), "{answer}");
}
