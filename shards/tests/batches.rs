//! Parts of batches in one shard: sealed and stored as any commit, put back when another part was refused.

#[allow(dead_code, reason = "every test binary uses its own part")]
mod world;

use payload_types::event::Completion;
use payload_types::reply::Reply;
use payload_types::request::Request;
use payload_types::*;
use world::{World, config, kind};

const MARK: BatchPart = BatchPart { batch: BatchId(1), len: 2 };

fn part(key: PayloadKey) -> Request {
    Request::Commit { key, checksum: Some(Checksum(7)), batch: Some(MARK) }
}

fn plain(key: PayloadKey) -> Request {
    Request::Commit { key, checksum: None, batch: None }
}

/// The writer says that another part was refused.
fn put_back(world: &mut World) {
    let op = world.catalog.pop_front().expect("a row waits");
    assert_eq!(op.batch, Some(MARK));
    world.complete(Completion::BatchRefused(op.op));
}

#[test]
fn given_a_part_when_its_batch_is_stored_then_committed_and_until_then_not_answered() {
    let mut world = World::new();
    let key = world.allocate(Tier::Disk, 5000);
    let number = world.send(part(key));
    world.store_one();
    assert!(world.replies.is_empty() && !world.shard.is_quiet());
    assert_eq!(world.catalog.front().expect("its row").batch, Some(MARK));
    world.ack_one(Ok(()));
    assert!(matches!(world.answer(number), Some(Ok(Reply::Committed(_)))));
    assert_eq!(world.describe(key).state, PayloadState::Durable);
}

#[test]
fn given_a_part_when_another_is_refused_then_allocated_again_without_its_checksum_and_can_be_committed() {
    let mut world = World::new();
    let key = world.allocate(Tier::Ram, 5000);
    let before = world.describe(key);
    let number = world.send(part(key));
    world.store_one();
    put_back(&mut world);
    assert_eq!(kind(world.answer(number)), Some(ErrorKind::LeaseConflict));
    assert_eq!(world.describe(key), before, "as it was");
    world.ask(plain(key)).expect("committed alone");
    assert_eq!(world.describe(key).checksum, None);
}

#[test]
fn given_a_part_that_another_node_has_when_told_then_refused_with_the_reason_and_allocated_again() {
    let mut world = World::new();
    let key = world.allocate(Tier::Ram, 5000);
    let before = world.describe(key);
    for ask in [part(key), plain(key)] {
        let (number, joined) = (world.send(ask), world.send(plain(key)));
        world.store_one();
        let op = world.catalog.pop_front().expect("a row waits").op;
        world.complete(Completion::Claimed { op, reason: "node `two` has it".to_owned() });
        for number in [number, joined] {
            let Some(Err(error)) = world.answer(number) else { panic!("refused") };
            assert_eq!(error, PayloadError::precondition("node `two` has it"));
        }
        assert_eq!(world.describe(key), before, "as it was");
    }
    assert!(world.shard.is_quiet());
}

#[test]
fn given_a_plain_commit_that_joined_a_part_when_that_is_put_back_then_it_is_made_by_itself() {
    let mut world = World::new();
    let key = world.allocate(Tier::Ram, 5000);
    let (number, joined) = (world.send(part(key)), world.send(plain(key)));
    world.store_one();
    put_back(&mut world);
    assert_eq!(kind(world.answer(number)), Some(ErrorKind::LeaseConflict));
    assert!(world.answer(joined).is_none(), "begun anew");
    world.settle();
    assert!(matches!(world.answer(joined), Some(Ok(Reply::Committed(_)))));
}

#[test]
fn given_a_commit_under_way_when_a_part_comes_then_it_is_refused_at_once_and_never_waits() {
    let mut world = World::new();
    let key = world.allocate(Tier::Ram, 5000);
    for first in [part(key), plain(key)] {
        let first = world.send(first);
        let second = world.send(part(key));
        assert_eq!(kind(world.answer(second)), Some(ErrorKind::FailedPrecondition));
        world.store_one();
        assert!(world.answer(first).is_none());
        world.ack_one(Err("disk full".to_owned()));
        assert_eq!(kind(world.answer(first)), Some(ErrorKind::Unavailable));
    }
}

#[test]
fn given_a_part_that_waits_for_others_when_deleted_then_the_delete_waits_for_the_outcome() {
    for stored in [true, false] {
        let mut world = World::new();
        let key = world.allocate(Tier::Ram, 5000);
        let number = world.send(part(key));
        world.store_one();
        let delete = world.send(Request::Delete { key, force: true, expected_version: None });
        assert!(world.answer(delete).is_none());
        if stored {
            world.ack_one(Ok(()))
        } else {
            put_back(&mut world)
        }
        world.settle();
        assert_eq!(world.answer(number).expect("answered").is_ok(), stored);
        assert!(matches!(world.answer(delete), Some(Ok(Reply::Deleted))), "stored: {stored}");
    }
}

#[test]
fn given_a_full_batch_when_others_commit_then_their_slots_are_free_and_one_part_more_is_refused() {
    let mut config = config(1);
    config.capacity[Tier::Ram] = Some(ByteCount(2 * limits::OPS_FOR_BATCHES as u64 * limits::PAGE_BYTES));
    let mut world = World::with(config);
    let keys: Vec<PayloadKey> = (0..=limits::OPS_FOR_BATCHES).map(|_| world.allocate(Tier::Ram, 1)).collect();
    let other = world.allocate(Tier::Ram, 1);
    for key in &keys[..limits::OPS_FOR_BATCHES] {
        let number = world.send(part(*key));
        assert!(world.answer(number).is_none());
    }
    let more = world.send(part(keys[limits::OPS_FOR_BATCHES]));
    assert_eq!(kind(world.answer(more)), Some(ErrorKind::ResourceExhausted));
    while !world.storage.is_empty() {
        world.store_one();
    }
    assert_eq!(world.catalog.len(), limits::OPS_FOR_BATCHES);
    let plain = world.send(plain(other));
    world.store_one();
    let row = world.catalog.pop_back().expect("its row");
    world.complete(Completion::Catalog(event::CatalogAck { op: row.op, result: Ok(()), sequence: 0 }));
    assert!(matches!(world.answer(plain), Some(Ok(Reply::Committed(_)))), "while the batch waits");
    while !world.catalog.is_empty() {
        put_back(&mut world);
    }
    world.settle();
    assert!(world.shard.is_quiet());
}
