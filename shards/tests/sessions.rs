//! What native sessions hold, and what is left of it when they end.

#[allow(dead_code, reason = "every test binary uses its own part")]
mod world;

use payload_shards::{SessionCaps, ShardConfig};
use payload_types::event::Event;
use payload_types::reply::{LeaseGrant, Reply};
use payload_types::request::{Acquire, Allocate, Request};
use payload_types::*;
use world::*;

fn session(number: u32) -> SessionId {
    SessionId::new(number).expect("not 0")
}

fn peer(number: u32) -> Peer {
    Peer::native(1000 + number, 0, session(number))
}

fn lease_as(world: &mut World, key: PayloadKey, owner: Peer) -> Result<LeaseGrant, PayloadError> {
    let Request::Acquire(request) = acquire(key, None) else { unreachable!("an acquisition") };
    match world.ask(Request::Acquire(Acquire { owner, ..request }))? {
        Reply::Leased(grant) => Ok(grant),
        other => panic!("not a lease: {other:?}"),
    }
}

fn allocate_as(world: &mut World, owner: Peer, size: u64) -> PayloadKey {
    let key = world.new_key();
    let Request::Allocate(request) = allocation(key, Tier::Ram, size) else { unreachable!("an allocation") };
    world.ask(Request::Allocate(Allocate { owner, ..request })).expect("allocated");
    key
}

fn commit(world: &mut World, key: PayloadKey) {
    world.ask(Request::Commit { key, checksum: None, batch: None }).expect("committed");
}

fn close(world: &mut World, number: u32) {
    world.step(Event::SessionClosed { session: session(number) });
}

fn holds(world: &World) -> usize {
    world.shard.held_by_sessions()
}

fn state(world: &mut World, key: PayloadKey) -> Result<PayloadState, ErrorKind> {
    match world.ask(Request::Resolve { key }) {
        Ok(Reply::Resolved(descriptor)) => Ok(descriptor.state),
        Ok(other) => panic!("not a descriptor: {other:?}"),
        Err(error) => Err(error.kind),
    }
}

fn delete(world: &mut World, key: PayloadKey) -> Result<Reply, ErrorKind> {
    let request = Request::Delete { key, force: false, expected_version: None };
    world.ask(request).map_err(|error| error.kind)
}

#[test]
fn given_leases_of_a_session_when_time_passes_then_they_stay_until_it_ends() {
    let mut world = World::new();
    let key = world.committed(Tier::Ram, 100);
    let grant = lease_as(&mut world, key, peer(1)).expect("leased");
    assert_eq!(grant.expires_at, WallMs::MAX);
    let other = lease_as(&mut world, key, peer(2)).expect("leased");
    world.pass(10 * 24 * 3_600_000);
    assert_eq!(delete(&mut world, key), Err(ErrorKind::LeaseConflict));
    close(&mut world, 1);
    assert_eq!(delete(&mut world, key), Err(ErrorKind::LeaseConflict), "the other session's is untouched");
    assert_eq!(holds(&world), 1);
    world.ask(Request::Release { lease: other.lease, by: None }).expect("released");
    world.ask(Request::Release { lease: grant.lease, by: None }).expect("unknown by now, which is fine");
    assert_eq!(delete(&mut world, key), Ok(Reply::Deleted));
    assert_eq!(holds(&world), 0);
}

#[test]
fn given_more_than_one_step_may_do_when_a_session_ends_then_the_rest_follows_at_once() {
    let mut world = World::new();
    let keys: Vec<_> = (0..30).map(|_| world.committed(Tier::Ram, 10)).collect();
    for round in 0..600 {
        lease_as(&mut world, keys[round % keys.len()], peer(1)).expect("leased");
    }
    let kept = lease_as(&mut world, keys[0], peer(2)).expect("leased");
    close(&mut world, 1);
    assert_eq!(holds(&world), 1 + 600 - limits::ITEMS_PER_TURN_MAX);
    assert_eq!(world.shard.next_timer(), Some(Monotonic(0)), "the rest is due at once");
    world.settle();
    assert_eq!(holds(&world), 1);
    world.ask(Request::Release { lease: kept.lease, by: None }).expect("released");
    for key in keys {
        assert_eq!(delete(&mut world, key), Ok(Reply::Deleted));
    }
}

#[test]
fn given_leases_released_in_any_order_when_the_session_ends_then_only_what_was_left_is_ended() {
    let mut world = World::new();
    let key = world.committed(Tier::Ram, 10);
    let mut leases: Vec<_> =
        (0..50).map(|_| lease_as(&mut world, key, peer(1)).expect("leased").lease).collect();
    for step in 0..40 {
        let lease = leases.swap_remove((step * 7) % leases.len());
        world.ask(Request::Release { lease, by: None }).expect("released");
    }
    assert_eq!(holds(&world), 10);
    // Deleted by force: the leases are invalid, and still the session's.
    world.ask(Request::Delete { key, force: true, expected_version: None }).expect("deleted");
    world.ask(Request::Release { lease: leases[3], by: None }).expect("released");
    assert_eq!(holds(&world), 9);
    close(&mut world, 1);
    assert_eq!(holds(&world), 0);
}

#[test]
fn given_allocations_of_a_session_when_it_ends_then_those_not_committed_are_gone() {
    let mut world = World::new();
    let (kept, dropped) = (allocate_as(&mut world, peer(1), 10), allocate_as(&mut world, peer(1), 10));
    let others = allocate_as(&mut world, peer(2), 10);
    commit(&mut world, kept);
    close(&mut world, 1);
    world.settle();
    assert_eq!(state(&mut world, kept), Ok(PayloadState::Active));
    assert_eq!(state(&mut world, dropped), Err(ErrorKind::NotFound));
    assert_eq!(state(&mut world, others), Ok(PayloadState::Allocated));
    assert_eq!(holds(&world), 1);
}

#[test]
fn given_allocations_and_commits_under_way_when_the_session_ends_then_they_end_as_they_would_or_are_taken_back()
 {
    let mut world = World::new();
    // Its space is being made.
    let making = world.new_key();
    let Request::Allocate(request) = allocation(making, Tier::Ram, 10) else { unreachable!("an allocation") };
    let number = world.send(Request::Allocate(Allocate { owner: peer(1), ..request }));
    close(&mut world, 1);
    world.settle();
    assert!(world.answer(number).is_some(), "answered as usual");
    world.pass(100);
    world.settle();
    assert_eq!(state(&mut world, making), Err(ErrorKind::NotFound));
    // A commit under way is finished; one that fails is taken back.
    for fails in [false, true] {
        let key = allocate_as(&mut world, peer(3), 10);
        let number = world.send(Request::Commit { key, checksum: None, batch: None });
        close(&mut world, 3);
        while !world.storage.is_empty() {
            world.store_one();
        }
        if fails {
            world.ack_one(Err("the catalog is away".to_owned()));
        }
        world.settle();
        assert_eq!(world.answer(number).expect("answered").is_err(), fails);
        world.pass(2_000);
        world.settle();
        let expected = if fails { Err(ErrorKind::NotFound) } else { Ok(PayloadState::Active) };
        assert_eq!(state(&mut world, key), expected, "fails: {fails}");
    }
    assert!(world.shard.is_quiet());
}

#[test]
fn given_a_lease_granted_after_the_end_when_it_ends_again_then_nothing_is_left() {
    let mut world = World::new();
    let key = world.committed(Tier::Ram, 10);
    close(&mut world, 1);
    lease_as(&mut world, key, peer(1)).expect("it was asked for before");
    assert_eq!(holds(&world), 1);
    close(&mut world, 1);
    assert_eq!(holds(&world), 0);
    assert_eq!(delete(&mut world, key), Ok(Reply::Deleted));
}

#[test]
fn given_a_session_at_its_limits_when_it_asks_for_more_then_the_key_is_named_and_others_are_served() {
    let caps = SessionCaps { leases_max: 3, leased_bytes_max: 250 };
    let mut world = World::with(ShardConfig { session_caps: caps, ..config(1) });
    let (small, large) = (world.committed(Tier::Ram, 10), world.committed(Tier::Ram, 200));
    lease_as(&mut world, large, peer(1)).expect("leased");
    let error = lease_as(&mut world, large, peer(1)).expect_err("too many bytes");
    assert_eq!(error.kind, ErrorKind::ResourceExhausted);
    assert!(error.message.contains("local.session_leased_bytes_max"), "{error}");
    let held = lease_as(&mut world, small, peer(1)).expect("leased");
    lease_as(&mut world, small, peer(1)).expect("leased");
    let error = lease_as(&mut world, small, peer(1)).expect_err("too many");
    assert!(error.message.contains("local.session_leases_max"), "{error}");
    lease_as(&mut world, large, peer(2)).expect("another session");
    world.lease(large);
    world.ask(Request::Release { lease: held.lease, by: None }).expect("released");
    lease_as(&mut world, small, peer(1)).expect("one was released");
}

#[test]
fn given_allocations_when_aborted_then_only_by_their_session_and_before_the_commit() {
    let mut world = World::new();
    let key = allocate_as(&mut world, peer(1), 10);
    let abort = |world: &mut World, owner| world.ask(Request::Abort { key, owner });
    for stranger in [peer(2), Peer::UNKNOWN] {
        let error = abort(&mut world, stranger).expect_err("another's");
        assert_eq!(error.kind, ErrorKind::FailedPrecondition);
    }
    assert_eq!(abort(&mut world, peer(1)), Ok(Reply::Deleted));
    assert_eq!(state(&mut world, key), Err(ErrorKind::NotFound));
    let committed = allocate_as(&mut world, peer(1), 10);
    commit(&mut world, committed);
    let error = world.ask(Request::Abort { key: committed, owner: peer(1) }).expect_err("committed");
    assert!(error.kind == ErrorKind::FailedPrecondition && error.message.contains("committed"), "{error}");
}

#[test]
fn given_a_session_that_allocates_for_long_when_it_commits_then_what_is_noted_stays_small() {
    let mut world = World::new();
    for _ in 0..2_000 {
        let key = allocate_as(&mut world, peer(1), 10);
        commit(&mut world, key);
        delete(&mut world, key).expect("deleted");
    }
    assert!(holds(&world) < 10, "{} are noted", holds(&world));
}

#[test]
fn given_a_deletion_under_way_when_its_session_ends_and_the_catalog_refuses_then_the_allocation_goes_all_the_same()
 {
    let mut world = World::new();
    let key = allocate_as(&mut world, peer(1), 4096);
    // Somebody refers to it, so it has a row.
    world.ask(Request::Enrol { key }).expect("enrolled");
    let number = world.send(Request::Delete { key, force: false, expected_version: None });
    assert_eq!(world.catalog.len(), 1);
    close(&mut world, 1);
    world.ack_one(Err("database is locked".to_owned()));
    assert_eq!(kind(world.answer(number)), Some(ErrorKind::Unavailable));
    world.pass(2_000);
    world.settle();
    assert_eq!(state(&mut world, key), Err(ErrorKind::NotFound), "nobody will commit it");
    assert_eq!(holds(&world), 0);
}
