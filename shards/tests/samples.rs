//! Samples of direct leases: what readers who ask nobody use stays in memory.

#[allow(dead_code, reason = "every test binary uses its own part")]
mod world;

use payload_types::direct::{SAMPLED_MAX, Sampled};
use payload_types::event::Event;
use payload_types::request::Request;
use payload_types::*;
use world::*;

const TENTH: u64 = CAPACITY / 10 / 4096 * 4096;

fn sampled(world: &mut World, keys: &[PayloadKey]) {
    let ids = keys.iter().map(|key| key.id).collect();
    world.step(Event::Sampled(Sampled { namespace: NamespaceId::DEFAULT, ids }));
}

/// Eight payloads in RAM, the oldest first, each used a while after the one before it.
fn eight(world: &mut World) -> Vec<PayloadKey> {
    let one = |_| {
        let key = world.committed(Tier::Ram, TENTH);
        world.pass(1);
        key
    };
    (0..8).map(one).collect()
}

/// Fills half of RAM anew, so that as much has to leave.
fn press(world: &mut World) {
    let key = world.new_key();
    world.ask(allocation(key, Tier::Ram, 5 * TENTH)).expect("others make room");
}

fn in_ram(world: &mut World, keys: &[PayloadKey]) -> Vec<bool> {
    keys.iter().map(|key| world.describe(*key).tier == Tier::Ram).collect()
}

#[test]
fn given_hot_payloads_under_direct_leases_only_when_memory_is_short_then_they_stay_and_others_go() {
    let mut world = World::new();
    let keys = eight(&mut world);
    sampled(&mut world, &keys[..3]);
    press(&mut world);
    let stayed = in_ram(&mut world, &keys);
    assert!(stayed[..3].iter().all(|stayed| *stayed), "sampled, though the oldest: {stayed:?}");
    assert!(!stayed[3], "the oldest of the others: {stayed:?}");

    let mut world = World::new();
    let keys = eight(&mut world);
    press(&mut world);
    assert_eq!(in_ram(&mut world, &keys)[..3], [false; 3], "without samples they are the first to go");
}

#[test]
fn given_samples_of_what_is_not_there_when_heard_then_nothing_changes() {
    let mut world = World::new();
    let keys = eight(&mut world);
    let deleted = keys[7];
    world.ask(Request::Delete { key: deleted, force: false, expected_version: None }).expect("deleted");
    let on_disk = world.committed(Tier::Disk, TENTH);
    let allocated = world.allocate(Tier::Ram, 4096);
    let unknown = world.new_key();
    sampled(&mut world, &[deleted, on_disk, allocated, unknown]);
    let foreign = Sampled { namespace: NamespaceId(9), ids: vec![keys[0].id] };
    world.step(Event::Sampled(foreign));
    assert!(world.storage.is_empty() && world.catalog.is_empty() && world.shown.is_empty());
    press(&mut world);
    assert!(!in_ram(&mut world, &keys[..1])[0], "an id of another namespace kept nothing here");
}

#[test]
fn given_a_leased_or_pinned_payload_when_sampled_then_it_may_still_not_be_evicted_before_its_time() {
    let mut world = World::new();
    let keys = eight(&mut world);
    let lease = world.lease(keys[0]);
    world.ask(Request::Pin { key: keys[1], duration_ms: None, owner: Peer::UNKNOWN }).expect("pinned");
    sampled(&mut world, &keys[..2]);
    press(&mut world);
    assert_eq!(in_ram(&mut world, &keys[..2]), [true; 2]);
    world.ask(Request::Release { lease: lease.lease, by: None }).expect("released");
    world.ask(Request::Unpin { key: keys[1] }).expect("unpinned");
    let whole = world.new_key();
    world.ask(allocation(whole, Tier::Ram, 4 * TENTH)).expect("all may go now");
    assert_eq!(in_ram(&mut world, &keys[..2]), [false; 2], "the books still hold them as victims");
}

#[test]
fn given_more_samples_than_a_session_may_send_when_heard_then_the_rest_is_left_aside() {
    let mut world = World::new();
    let keys = eight(&mut world);
    let mut flood = vec![keys[7]; SAMPLED_MAX];
    flood.push(keys[0]);
    sampled(&mut world, &flood);
    press(&mut world);
    assert!(!in_ram(&mut world, &keys[..1])[0]);
}
