//! `synchronous: normal`: what lies on disk is dropped once the removal of its row is durable, whatever else happens.

#[allow(dead_code, reason = "every test binary uses its own part")]
mod world;

use payload_types::effect::StorageAction;
use payload_types::event::{CatalogAck, Completion};
use payload_types::reply::Reply;
use payload_types::request::Request;
use payload_types::*;
use world::{CAPACITY, DISK, World, allocation, promote, spill};

const PAGE: u64 = limits::PAGE_BYTES;

/// The replicas that the driver was told to drop and has not.
fn dropped(world: &World) -> Vec<Tier> {
    let drops = world.storage.iter().filter(|op| op.action == StorageAction::Drop);
    drops.map(|op| op.replica.tier).collect()
}

fn delete(key: PayloadKey, force: bool) -> Request {
    Request::Delete { key, force, expected_version: None }
}

/// Deletes a payload; the catalog acknowledges with this sequence.
fn removed(world: &mut World, key: PayloadKey, sequence: u64) {
    let number = world.send(delete(key, true));
    ack(world, sequence);
    assert_eq!(world.answer(number), Some(Ok(Reply::Deleted)), "the caller does not wait for the flush");
}

fn ack(world: &mut World, sequence: u64) {
    let op = world.catalog.pop_front().expect("a removal waits").op;
    world.complete(Completion::Catalog(CatalogAck { op, result: Ok(()), sequence }));
}

fn durable(world: &mut World, sequence: u64) {
    world.complete(Completion::Durable { sequence });
}

#[test]
fn given_a_late_removal_when_it_is_durable_then_the_file_is_dropped_and_not_before() {
    let mut world = World::new();
    let key = world.committed(Tier::Disk, PAGE);
    removed(&mut world, key, 7);
    world.pass(60_000);
    assert_eq!(dropped(&world), []);
    let usage = world.shard.usage(Tier::Disk);
    assert_eq!((usage.allocated, usage.limbo), (PAGE, PAGE), "charged until it is free");
    durable(&mut world, 6);
    assert_eq!(dropped(&world), []);
    durable(&mut world, 7);
    assert_eq!(dropped(&world), [Tier::Disk]);
    world.settle();
    assert_eq!(world.shard.usage(Tier::Disk).allocated, 0);
}

#[test]
fn given_a_durable_removal_when_acknowledged_then_nothing_waits() {
    let mut world = World::new();
    let (first, second) = (world.committed(Tier::Disk, PAGE), world.committed(Tier::Disk, PAGE));
    removed(&mut world, first, 0);
    assert_eq!(dropped(&world).len(), 1);
    // Word that it is durable may overtake the acknowledgement.
    durable(&mut world, 3);
    removed(&mut world, second, 3);
    assert_eq!(dropped(&world).len(), 2);
}

#[test]
fn given_a_late_removal_of_replicas_in_memory_and_on_disk_then_only_the_one_on_disk_waits() {
    let mut world = World::new();
    let key = world.committed(Tier::Ram, PAGE);
    world.ask(spill(key, DISK, false)).expect("spilled");
    world.ask(promote(key, Tier::Ram)).expect("promoted");
    removed(&mut world, key, 1);
    assert_eq!(dropped(&world), [Tier::Ram], "no segment survives a loss of power");
    world.settle();
    assert_eq!(world.shard.usage(Tier::Disk).limbo, PAGE);
    durable(&mut world, 1);
    assert_eq!(dropped(&world), [Tier::Disk]);
}

#[test]
fn given_a_late_removal_of_what_a_copy_reads_then_the_file_waits_for_both_whichever_ends_first() {
    for copy_ends_first in [true, false] {
        let mut world = World::new();
        let key = world.committed(Tier::Disk, PAGE);
        world.send(promote(key, Tier::Ram));
        assert_eq!(world.transfers.len(), 1);
        removed(&mut world, key, 4);
        assert_eq!(dropped(&world), []);
        if copy_ends_first {
            world.transfer_one(Ok(Checksum(7)));
            assert_eq!(dropped(&world), [Tier::Ram], "what the copy made, and no row ever named");
            durable(&mut world, 4);
        } else {
            durable(&mut world, 4);
            assert_eq!(dropped(&world), []);
            world.transfer_one(Ok(Checksum(7)));
        }
        let mut tiers = dropped(&world);
        tiers.sort_unstable();
        assert_eq!(tiers, [Tier::Ram, Tier::Disk]);
        world.settle();
        assert_eq!(world.shard.usage(Tier::Disk).allocated, 0);
    }
}

#[test]
fn given_many_late_removals_when_durable_then_each_turn_drops_a_bounded_number_and_all_go() {
    const COUNT: u64 = 256;
    let mut world = World::new();
    const { assert!(COUNT * PAGE <= CAPACITY, "they fit") };
    let keys: Vec<PayloadKey> = (0..COUNT).map(|_| world.committed(Tier::Disk, PAGE)).collect();
    for (sequence, key) in (1..).zip(keys) {
        removed(&mut world, key, sequence);
    }
    durable(&mut world, COUNT / 2);
    assert_eq!(dropped(&world).len() as u64, COUNT / 2);
    durable(&mut world, COUNT);
    world.settle();
    assert_eq!(world.shard.usage(Tier::Disk).allocated, 0);
    assert!(world.shard.is_quiet());
}

#[test]
fn given_a_full_tier_of_late_removals_when_space_is_asked_for_then_nothing_more_is_evicted_and_the_wait_ends()
{
    let mut world = World::new();
    let half = CAPACITY / 2;
    let (gone, stays) = (world.committed(Tier::Disk, half), world.committed(Tier::Disk, half));
    removed(&mut world, gone, 1);
    let key = world.new_key();
    let number = world.send(allocation(key, Tier::Disk, half));
    assert_eq!(world.answer(number), None, "it waits for space");
    assert!(
        world.transfers.is_empty() && world.catalog.is_empty(),
        "what waits for the flush counts as leaving"
    );
    durable(&mut world, 1);
    world.settle();
    world.answer(number).expect("answered").expect("allocated");
    world.describe(stays);
}
