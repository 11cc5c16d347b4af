//! RAM is waited for, and the disk below it is full or fails: who needs no room there goes at once.

use super::{TENTH, committed, tier_of};
use crate::world::{CAPACITY, World, acquire, allocation, kind, promote};
use payload_types::event::{DriverError, DriverErrorKind, TransferError};
use payload_types::reply::Reply;
use payload_types::request::Request;
use payload_types::tier::SpillTarget;
use payload_types::*;

fn void() -> EvictionPolicy {
    EvictionPolicy { spill_target: Some(SpillTarget::Void), ..EvictionPolicy::default() }
}

fn plain(world: &mut World, tenths: u64) -> PayloadKey {
    committed(world, EvictionPolicy::default(), tenths * TENTH)
}

/// Asks for so much RAM, without an end.
fn wait_for_ram(world: &mut World, tenths: u64) -> u64 {
    let key = world.new_key();
    world.send(allocation(key, Tier::Ram, tenths * TENTH))
}

fn delete(world: &mut World, key: PayloadKey) {
    world.ask(Request::Delete { key, force: false, expected_version: None }).expect("deleted");
}

/// Does all work but the copies.
fn settle_but_copies(world: &mut World) {
    while !(world.storage.is_empty() && world.catalog.is_empty() && world.freed_later.is_empty()) {
        if !world.storage.is_empty() {
            world.store_one();
        } else if !world.catalog.is_empty() {
            world.ack_one(Ok(()));
        } else {
            world.free_all();
        }
    }
}

#[test]
fn given_a_full_disk_when_somebody_waits_for_ram_then_what_needs_no_room_goes_before_all_that_do() {
    let mut world = World::new();
    world.pinned(Tier::Disk, CAPACITY);
    let kept: Vec<_> = (0..8).map(|_| plain(&mut world, 1)).collect();
    let discarded = committed(&mut world, void(), TENTH);
    let number = wait_for_ram(&mut world, 2);
    settle_but_copies(&mut world);
    assert!(matches!(world.answer(number), Some(Ok(Reply::Allocated(_)))), "not a millisecond passed");
    assert!(world.transfers.is_empty());
    assert_eq!(tier_of(&mut world, discarded), None);
    assert!(kept.iter().all(|key| tier_of(&mut world, *key) == Some(Tier::Ram)));
}

#[test]
fn given_a_full_disk_when_a_clean_replica_ranks_behind_others_then_it_is_dropped_at_once() {
    let mut world = World::new();
    let clean = world.committed(Tier::Disk, TENTH);
    world.pinned(Tier::Disk, 9 * TENTH);
    let _kept: Vec<_> = (0..8).map(|_| plain(&mut world, 1)).collect();
    world.ask(promote(clean, Tier::Ram)).expect("promoted");
    let number = wait_for_ram(&mut world, 2);
    settle_but_copies(&mut world);
    assert!(matches!(world.answer(number), Some(Ok(Reply::Allocated(_)))));
    assert_eq!(tier_of(&mut world, clean), Some(Tier::Disk));
}

#[test]
fn given_a_full_disk_when_room_returns_then_the_shard_says_so_and_who_needs_it_goes() {
    let mut world = World::new();
    let hog = world.pinned(Tier::Disk, CAPACITY);
    let kept: Vec<_> = (0..9).map(|_| plain(&mut world, 1)).collect();
    let number = wait_for_ram(&mut world, 2);
    settle_but_copies(&mut world);
    let supply = world.shard.supply(Tier::Ram);
    assert_eq!(
        (supply.evictable, supply.head, supply.leaving),
        (0, None, 0),
        "one of nine waits in the queue"
    );
    assert_eq!(world.shard.victims(Tier::Ram).count(), 8);
    delete(&mut world, hog);
    assert!(matches!(world.answer(number), Some(Ok(Reply::Allocated(_)))));
    assert_eq!(tier_of(&mut world, kept[0]), Some(Tier::Disk), "the first in rank");
    assert!(world.shard.supply(Tier::Ram).evictable >= 5 * TENTH);
}

#[test]
fn given_a_nearly_full_disk_when_the_first_victims_do_not_fit_then_the_one_that_fits_goes_at_once() {
    let mut world = World::new();
    world.pinned(Tier::Disk, CAPACITY - TENTH);
    let large = [plain(&mut world, 3), plain(&mut world, 3)];
    let small = plain(&mut world, 1);
    let number = wait_for_ram(&mut world, 4);
    world.settle();
    assert!(matches!(world.answer(number), Some(Ok(Reply::Allocated(_)))));
    assert_eq!(tier_of(&mut world, small), Some(Tier::Disk));
    assert!(large.iter().all(|key| tier_of(&mut world, *key) == Some(Tier::Ram)));
}

#[test]
fn given_a_full_disk_and_nobody_who_could_go_when_waiting_then_refused_and_room_is_still_heard_of() {
    let mut world = World::new();
    let hog = world.pinned(Tier::Disk, CAPACITY);
    let kept: Vec<_> = (0..9).map(|_| plain(&mut world, 1)).collect();
    let late = world.new_key();
    let refused = world.send_until(allocation(late, Tier::Ram, 2 * TENTH), world.in_ms(2_000));
    world.pass(2_100);
    assert_eq!(kind(world.answer(refused)), Some(ErrorKind::ResourceExhausted));
    let number = wait_for_ram(&mut world, 2);
    world.pass(2_000);
    assert!(world.answer(number).is_none() && world.transfers.is_empty());
    assert!(kept.iter().all(|key| world.lease_now(*key).descriptor.tier == Tier::Ram));
    world.pass(25_000);
    delete(&mut world, hog);
    assert!(matches!(world.answer(number), Some(Ok(Reply::Allocated(_)))));
}

#[test]
fn given_a_disk_that_only_fails_when_somebody_waits_for_ram_then_what_needs_no_room_goes_after_two_failures()
{
    let mut world = World::new();
    let kept: Vec<_> = (0..8).map(|_| plain(&mut world, 1)).collect();
    let discarded = committed(&mut world, void(), TENTH);
    let number = wait_for_ram(&mut world, 2);
    for _ in 0..2 {
        let error = DriverError { kind: DriverErrorKind::Full, message: "planned".to_owned() };
        world.transfer_one(Err(TransferError::Destination(error)));
    }
    assert!(world.transfers.is_empty(), "the disk is left alone");
    settle_but_copies(&mut world);
    assert!(matches!(world.answer(number), Some(Ok(Reply::Allocated(_)))));
    assert_eq!(tier_of(&mut world, discarded), None);
    let next = wait_for_ram(&mut world, 1);
    assert!(world.transfers.is_empty());
    world.pass(100);
    world.settle();
    assert!(matches!(world.answer(next), Some(Ok(Reply::Allocated(_)))), "after the pause it is tried again");
    assert!(kept.iter().any(|key| tier_of(&mut world, *key) == Some(Tier::Disk)));
}

#[test]
fn given_a_discardable_payload_with_a_copy_in_ram_when_disk_is_waited_for_then_it_is_discarded_and_others_stay()
 {
    let mut world = World::new();
    let stays = world.committed(Tier::Disk, 2 * TENTH);
    let goes = committed(&mut world, void(), 2 * TENTH);
    world.ask(crate::world::spill(goes, crate::world::DISK, false)).expect("spilled");
    for key in [stays, goes] {
        world.ask(promote(key, Tier::Ram)).expect("promoted");
    }
    world.pinned(Tier::Disk, 5 * TENTH);
    let key = world.new_key();
    world.ask(allocation(key, Tier::Disk, 2 * TENTH)).expect("room was made");
    assert_eq!((tier_of(&mut world, stays), tier_of(&mut world, goes)), (Some(Tier::Ram), None));
    assert_eq!(world.describe(stays).state, PayloadState::Durable);
}

#[test]
fn given_a_discardable_payload_whose_copy_in_ram_is_leased_when_disk_is_waited_for_then_it_stays() {
    let mut world = World::new();
    let held = committed(&mut world, void(), 2 * TENTH);
    world.ask(crate::world::spill(held, crate::world::DISK, false)).expect("spilled");
    world.ask(promote(held, Tier::Ram)).expect("promoted");
    let Ok(Reply::Leased(grant)) = world.ask(acquire(held, None)) else { panic!("leased") };
    world.pinned(Tier::Disk, 7 * TENTH);
    let key = world.new_key();
    let number = world.send(allocation(key, Tier::Disk, 2 * TENTH));
    settle_but_copies(&mut world);
    assert!(world.answer(number).is_none());
    world.ask(Request::Release { lease: grant.lease, by: None }).expect("released");
    settle_but_copies(&mut world);
    assert!(matches!(world.answer(number), Some(Ok(Reply::Allocated(_)))));
    assert_eq!(tier_of(&mut world, held), None);
}
