//! Full tiers, one situation at a time: who is evicted, what it costs, and who waits for it.

mod full_disk;

use crate::world::{CAPACITY, World, acquire, allocation, kind, promote};
use payload_types::event::{DriverError, DriverErrorKind, TransferError};
use payload_types::reply::Reply;
use payload_types::request::{Allocate, Request};
use payload_types::tier::SpillTarget;
use payload_types::*;

/// A tenth of a tier, so that nine of them reach its high watermark.
const TENTH: u64 = CAPACITY / 10 / 4096 * 4096;

fn committed(world: &mut World, policy: EvictionPolicy, size: u64) -> PayloadKey {
    let key = world.new_key();
    let (size, tier) = (ByteCount(size), Tier::Ram);
    let request = Allocate {
        key,
        size,
        tier,
        ttl_ms: None,
        no_evict: false,
        policy,
        memory: Memory::Segment,
        owner: Peer::UNKNOWN,
    };
    world.ask(Request::Allocate(request)).expect("allocated");
    world.ask(Request::Commit { key, checksum: None, batch: None }).expect("committed");
    world.pass(1);
    key
}

fn tier_of(world: &mut World, key: PayloadKey) -> Option<Tier> {
    match world.ask(Request::Resolve { key }) {
        Ok(Reply::Resolved(descriptor)) => Some(descriptor.tier),
        _ => None,
    }
}

fn priority(priority: EvictionPriority) -> EvictionPolicy {
    EvictionPolicy { priority, ..EvictionPolicy::default() }
}

#[test]
fn given_a_tier_that_passes_its_high_watermark_when_evicting_then_down_to_the_low_one_in_order() {
    let mut world = World::new();
    let high = committed(&mut world, priority(EvictionPriority::High), TENTH);
    let never = committed(&mut world, priority(EvictionPriority::Never), TENTH);
    let plain: Vec<_> = (0..6).map(|_| committed(&mut world, EvictionPolicy::default(), TENTH)).collect();
    let low = committed(&mut world, priority(EvictionPriority::Low), TENTH);
    let lease = world.lease(plain[0]);
    world.ask(Request::Release { lease: lease.lease, by: None }).expect("released");
    assert_eq!(world.shard.usage(Tier::Ram).allocated, 9 * TENTH, "at the watermark nothing happens");
    committed(&mut world, EvictionPolicy::default(), TENTH);
    let evicted: Vec<_> = [low, plain[0], plain[1], plain[2], high, never]
        .into_iter()
        .map(|key| tier_of(&mut world, key) == Some(Tier::Disk))
        .collect();
    assert_eq!(evicted, [true, false, true, false, false, false], "LOW, then the one leased longest ago");
    assert_eq!(world.shard.usage(Tier::Ram).allocated, 8 * TENTH);
}

#[test]
fn given_leased_and_pinned_payloads_when_somebody_waits_then_they_are_passed_over_and_block_nobody() {
    let mut world = World::new();
    let leased = committed(&mut world, EvictionPolicy::default(), 4 * TENTH);
    world.lease(leased);
    world.pinned(Tier::Ram, TENTH);
    let victim = committed(&mut world, EvictionPolicy::default(), TENTH);
    let key = world.new_key();
    world.ask(allocation(key, Tier::Ram, 4 * TENTH)).expect("the victim makes room");
    assert_eq!(
        (tier_of(&mut world, victim), tier_of(&mut world, leased)),
        (Some(Tier::Disk), Some(Tier::Ram))
    );
    let next = world.new_key();
    let number = world.send_until(allocation(next, Tier::Ram, 4 * TENTH), world.in_ms(50));
    world.pass(60);
    assert_eq!(kind(world.answer(number)), Some(ErrorKind::ResourceExhausted));
    assert_eq!(tier_of(&mut world, leased), Some(Tier::Ram));
}

#[test]
fn given_a_clean_replica_when_evicted_then_nothing_is_written() {
    let mut world = World::new();
    let key = world.committed(Tier::Disk, 4 * TENTH);
    world.ask(promote(key, Tier::Ram)).expect("promoted");
    let other = world.new_key();
    let number = world.send(allocation(other, Tier::Ram, 8 * TENTH));
    assert!(world.transfers.is_empty() && world.catalog.is_empty(), "dropped without a write");
    world.settle();
    assert!(matches!(world.answer(number), Some(Ok(Reply::Allocated(_)))));
    assert_eq!(tier_of(&mut world, key), Some(Tier::Disk));
}

#[test]
fn given_a_payload_that_is_not_worth_keeping_when_evicted_then_it_is_discarded() {
    let mut world = World::new();
    let void = EvictionPolicy { spill_target: Some(SpillTarget::Void), ..EvictionPolicy::default() };
    let key = committed(&mut world, void, 5 * TENTH);
    let other = world.new_key();
    world.ask(allocation(other, Tier::Ram, 8 * TENTH)).expect("room was made");
    assert!(world.transfers.is_empty());
    assert_eq!(tier_of(&mut world, key), None);
}

#[test]
fn given_an_eviction_under_way_when_leased_then_the_replica_stays_and_is_cheap_to_drop_later() {
    let mut world = World::new();
    let key = committed(&mut world, EvictionPolicy::default(), 5 * TENTH);
    let other = world.new_key();
    let number = world.send(allocation(other, Tier::Ram, 8 * TENTH));
    assert_eq!(world.transfers.len(), 1);
    let grant = world.lease_now(key);
    assert_eq!((grant.descriptor.tier, grant.descriptor.state), (Tier::Ram, PayloadState::Evicting));
    world.transfer_one(Ok(Checksum(7)));
    world.ack_one(Ok(()));
    assert!(world.storage.is_empty(), "it is leased");
    assert_eq!(world.describe(key).state, PayloadState::Durable);
    world.send(Request::Release { lease: grant.lease, by: None });
    world.settle();
    assert!(matches!(world.answer(number), Some(Ok(Reply::Allocated(_)))), "dropped at the release");
}

#[test]
fn given_a_disk_that_fails_when_evicting_then_the_payload_stays_readable_and_the_next_one_is_tried() {
    let mut world = World::new();
    let first = committed(&mut world, EvictionPolicy::default(), 4 * TENTH);
    let second = committed(&mut world, EvictionPolicy::default(), 4 * TENTH);
    let other = world.new_key();
    let number = world.send(allocation(other, Tier::Ram, 4 * TENTH));
    let error = DriverError { kind: DriverErrorKind::Io, message: "planned".to_owned() };
    world.transfer_one(Err(TransferError::Destination(error)));
    assert_eq!(world.transfers.len(), 1, "the next one");
    world.settle();
    assert!(matches!(world.answer(number), Some(Ok(Reply::Allocated(_)))));
    assert_eq!(
        (tier_of(&mut world, first), tier_of(&mut world, second)),
        (Some(Tier::Ram), Some(Tier::Disk))
    );
    assert_eq!(world.lease(first).descriptor.tier, Tier::Ram);
}

#[test]
fn given_a_promotion_into_a_full_tier_when_it_waits_then_others_make_room_for_it() {
    let mut world = World::new();
    let key = world.committed(Tier::Disk, 4 * TENTH);
    let old = committed(&mut world, EvictionPolicy::default(), 4 * TENTH);
    let newer = committed(&mut world, EvictionPolicy::default(), 4 * TENTH);
    let Ok(Reply::Leased(grant)) = world.ask(acquire(key, Some(Tier::Ram))) else { panic!("leased in RAM") };
    assert_eq!(grant.descriptor.tier, Tier::Ram);
    assert_eq!((tier_of(&mut world, old), tier_of(&mut world, newer)), (Some(Tier::Disk), Some(Tier::Ram)));
}

#[test]
fn given_a_payload_that_waits_for_space_when_deleted_then_its_ask_is_taken_back_at_once() {
    let mut world = World::new();
    world.pinned(Tier::Ram, 8 * TENTH);
    let key = world.committed(Tier::Disk, 4 * TENTH);
    let waiting = world.send(promote(key, Tier::Ram));
    assert!(world.answer(waiting).is_none());
    world.ask(Request::Delete { key, force: false, expected_version: None }).expect("deleted");
    assert_eq!(kind(world.answer(waiting)), Some(ErrorKind::NotFound));
    assert!(world.shard.is_quiet());
}

#[test]
fn given_as_many_waits_as_there_may_be_when_one_more_comes_then_refused_and_deletes_go_on() {
    let mut world = World::new();
    let key = world.pinned(Tier::Ram, CAPACITY);
    let waiting: Vec<u64> = (0..limits::WAITERS_PER_SHARD_MAX)
        .map(|_| {
            let key = world.new_key();
            world.send(allocation(key, Tier::Ram, 4096))
        })
        .collect();
    let one_more = world.new_key();
    let number = world.send(allocation(one_more, Tier::Ram, 4096));
    assert_eq!(kind(world.answer(number)), Some(ErrorKind::ResourceExhausted));
    world.ask(Request::Delete { key, force: false, expected_version: None }).expect("deleted");
    let served =
        waiting.into_iter().filter(|number| matches!(world.answer(*number), Some(Ok(_)))).count() as u64;
    assert_eq!(served, CAPACITY / 4096, "all there was went to those who waited, in order");
}

#[test]
fn given_an_evicted_payload_when_promoted_and_read_then_it_goes_again_before_others_of_higher_priority() {
    let mut world = World::new();
    let low = committed(&mut world, priority(EvictionPriority::Low), 2 * TENTH);
    let plain = committed(&mut world, EvictionPolicy::default(), 2 * TENTH);
    let hog = world.new_key();
    world.ask(allocation(hog, Tier::Ram, 7 * TENTH)).expect("LOW makes room");
    assert_eq!(tier_of(&mut world, low), Some(Tier::Disk));
    world.ask(Request::Delete { key: hog, force: false, expected_version: None }).expect("deleted");
    world.ask(promote(low, Tier::Ram)).expect("promoted");
    let lease = world.lease(low);
    world.ask(Request::Release { lease: lease.lease, by: None }).expect("released");
    let next = world.new_key();
    world.ask(allocation(next, Tier::Ram, 7 * TENTH)).expect("LOW makes room again");
    assert_eq!((tier_of(&mut world, low), tier_of(&mut world, plain)), (Some(Tier::Disk), Some(Tier::Ram)));
}
