//! Direct leases: what readers are shown who ask nobody, what is refused while they read, and when a block is used again.

#[allow(dead_code, reason = "every test binary uses its own part")]
mod world;

use payload_shards::{SessionCaps, ShardConfig};
use payload_types::direct::{Revoke, Sampled};
use payload_types::event::Event;
use payload_types::reply::{ArenaStats, Reply};
use payload_types::request::{Allocate, Request};
use payload_types::tier::SpillTarget;
use payload_types::*;
use world::*;

/// Slabs of 256 KiB, the smallest: four of them.
const RAM: u64 = 1 << 20;
const QUARTER: u64 = 60 << 10;

fn new_world() -> World {
    World::with(small())
}

fn small() -> ShardConfig {
    let mut config = config(1);
    config.capacity[Tier::Ram] = Some(ByteCount(RAM));
    config
}

fn session(number: u32) -> SessionId {
    SessionId::new(number).expect("not 0")
}

fn allocated_with(world: &mut World, size: u64, change: impl FnOnce(&mut Allocate)) -> PayloadKey {
    let key = world.new_key();
    let Request::Allocate(request) = allocation(key, Tier::Ram, size) else { unreachable!("an allocation") };
    let owner = Peer::native(1001, 0, session(1));
    let mut request = Allocate { owner, memory: Memory::Arena, ..request };
    change(&mut request);
    match world.ask(Request::Allocate(request)) {
        Ok(Reply::Allocated(Descriptor { location: Some(Location::Arena(_)), .. })) => key,
        other => panic!("not in a slab: {other:?}"),
    }
}

/// Asks for memory in a slab, and does what can be done for that without a copy.
fn press(world: &mut World) {
    assert!(stats(world).payloads < 20, "memory is never short");
    let key = world.new_key();
    let Request::Allocate(request) = allocation(key, Tier::Ram, QUARTER) else {
        unreachable!("an allocation")
    };
    let owner = Peer::native(1001, 0, session(1));
    let number = world.send(Request::Allocate(Allocate { owner, memory: Memory::Arena, ..request }));
    while !world.slabs.is_empty() {
        world.slab_one();
    }
    world.settle_rows();
    if world.answer(number).is_some() {
        world.send(Request::Commit { key, checksum: None, batch: None });
        world.settle_rows();
    }
}

fn commit(world: &mut World, key: PayloadKey) {
    world.ask(Request::Commit { key, checksum: None, batch: None }).expect("committed");
}

fn committed(world: &mut World, size: u64) -> PayloadKey {
    let key = allocated_with(world, size, |_| {});
    commit(world, key);
    key
}

fn pass(world: &mut World, milliseconds: u64) {
    world.pass(milliseconds);
    world.settle();
}

fn claim(world: &mut World, key: PayloadKey) -> Generation {
    world.claim(key, session(2)).expect("shown, and readable")
}

fn delete(key: PayloadKey, force: bool) -> Request {
    Request::Delete { key, force, expected_version: None }
}

fn stats(world: &World) -> ArenaStats {
    world.shard.check_arenas().expect("the books add up");
    world.shard.check_accounting().expect("the sums are right");
    world.shard.stats().arenas
}

fn to_disk(key: PayloadKey, wait_for_leases: bool) -> Request {
    spill(key, SpillTarget::Tier(Tier::Disk), wait_for_leases)
}

#[test]
fn given_a_payload_in_a_slab_when_it_lives_then_readers_see_what_clients_are_told_and_nothing_before_or_after()
 {
    let mut world = new_world();
    let key = allocated_with(&mut world, 1000, |_| {});
    assert_eq!(world.shown.get(&key.id), None, "not committed yet");
    let number = world.send(Request::Commit { key, checksum: Some(Checksum(9)), batch: None });
    assert_eq!(world.accepted.len(), 1);
    let (shown, is_readable) = world.shown[&key.id];
    assert!(is_readable, "who hears of ACCEPTED can lease it");
    assert_eq!((shown.size, shown.checksum), (ByteCount(1000), Some(Checksum(9))));
    world.settle();
    assert!(world.answer(number).expect("stored").is_ok());
    let told = world.describe(key);
    let (shown, _) = world.shown[&key.id];
    assert_eq!(Some(Location::Arena(shown.block)), told.location);
    assert_eq!((shown.version, shown.expires_at), (told.version.0, None));
    let segment = world.committed(Tier::Ram, 1000);
    assert!(!world.shown.contains_key(&segment.id), "a segment has a name of its own");
    assert_eq!(stats(&world).shown, 1);
    world.ask(delete(key, false)).expect("nobody reads it");
    assert!(world.shown.is_empty());
    let after = stats(&world);
    assert_eq!((after.shown, after.payloads, after.limbo_blocks), (0, 0, 0));
}

#[test]
fn given_a_direct_reader_when_deleted_then_lease_conflict_and_it_is_shown_again_until_it_is_released() {
    let mut world = new_world();
    let key = committed(&mut world, 1000);
    let before = world.describe(key);
    let held = claim(&mut world, key);
    world.scans_wait = true;
    let number = world.send(delete(key, false));
    assert_eq!(world.answer(number), None, "a scan has to tell");
    assert_eq!(world.claim(key, session(3)), None, "nobody new meanwhile");
    let second = world.send(delete(key, false));
    world.scans_wait = false;
    world.answer_scan();
    world.settle();
    assert_eq!(kind(world.answer(number)), Some(ErrorKind::LeaseConflict));
    assert_eq!(kind(world.answer(second)), Some(ErrorKind::LeaseConflict));
    assert!(world.shown[&key.id].1, "shown again");
    assert_eq!(world.describe(key), before);
    world.unclaim(held);
    world.ask(delete(key, false)).expect("nobody reads it any more");
}

#[test]
fn given_a_direct_reader_when_deleted_by_force_then_it_is_told_and_its_block_waits_for_it() {
    let mut world = new_world();
    let key = committed(&mut world, 200 << 10);
    let held = claim(&mut world, key);
    world.ask(delete(key, true)).expect("by force");
    assert_eq!(world.revoked, [Revoke { generation: held, of: None }]);
    assert!(world.shown.is_empty());
    pass(&mut world, 120_000);
    assert_eq!((stats(&world).limbo_blocks, stats(&world).direct_limbo_bytes), (1, 200 << 10));
    world.unclaim(held);
    pass(&mut world, 1000);
    assert_eq!((stats(&world).limbo_blocks, stats(&world).direct_limbo_bytes), (0, 0));
    assert_eq!(world.revoked.len(), 1, "told once");
}

#[test]
fn given_a_direct_reader_when_spilled_then_refused_and_who_waits_for_leases_gets_it_after_the_release() {
    let mut world = new_world();
    let key = committed(&mut world, 1000);
    let held = claim(&mut world, key);
    assert_eq!(
        world.ask(to_disk(key, false)).map_err(|error| error.kind),
        Err(ErrorKind::FailedPrecondition)
    );
    let deadline = world.in_ms(200);
    let late = world.send_until(to_disk(key, true), deadline);
    pass(&mut world, 100);
    assert_eq!(world.answer(late), None);
    assert_eq!(world.claim(key, session(3)), None, "newer leases go by the ring, and are not waited for");
    let grant = world.lease(key);
    pass(&mut world, 200);
    assert_eq!(kind(world.answer(late)), Some(ErrorKind::DeadlineExceeded));
    assert!(world.shown[&key.id].1, "shown again");
    let waits = world.send(to_disk(key, true));
    world.ask(Request::Release { lease: grant.lease, by: None }).expect("released");
    pass(&mut world, 50);
    assert_eq!(world.answer(waits), None);
    world.unclaim(held);
    pass(&mut world, 200);
    assert!(matches!(
        world.answer(waits),
        Some(Ok(Reply::Spilled(Some(Descriptor { tier: Tier::Disk, .. }))))
    ));
    assert!(world.shown.is_empty(), "it lies in no slab");
}

#[test]
fn given_a_reader_that_comes_while_a_spill_copies_when_it_arrives_then_he_was_leased_over_the_ring_and_counts()
 {
    let mut world = new_world();
    let key = committed(&mut world, 1000);
    let number = world.send(to_disk(key, false));
    assert_eq!(world.transfers.len(), 1, "nobody read it");
    assert_eq!(world.claim(key, session(2)), None, "its block goes");
    let held = world.lease_now(key);
    world.settle();
    assert!(matches!(world.answer(number), Some(Ok(Reply::Spilled(Some(_))))));
    assert_eq!(stats(&world).limbo_blocks, 1, "his bytes stay");
    let refused = world.ask(delete(key, false)).map_err(|error| error.kind);
    assert_eq!(refused, Err(ErrorKind::LeaseConflict));
    world.ask(Request::Release { lease: held.lease, by: None }).expect("released");
    pass(&mut world, 1000);
    assert_eq!(stats(&world).limbo_blocks, 0);
    world.ask(delete(key, false)).expect("nobody reads it any more");
}

#[test]
fn given_a_spill_that_fails_when_it_copied_then_its_payload_is_shown_again() {
    let mut world = new_world();
    let key = committed(&mut world, 1000);
    let number = world.send(to_disk(key, false));
    let full = event::DriverError { kind: event::DriverErrorKind::Full, message: "full".to_owned() };
    world.transfer_one(Err(event::TransferError::Destination(full)));
    world.settle();
    assert_eq!(kind(world.answer(number)), Some(ErrorKind::ResourceExhausted));
    claim(&mut world, key);
}

#[test]
fn given_a_slower_promotion_under_a_direct_reader_when_asked_then_refused() {
    let mut world = new_world();
    let key = committed(&mut world, 1000);
    claim(&mut world, key);
    let refused = world.ask(promote(key, Tier::Disk)).map_err(|error| error.kind);
    assert_eq!(refused, Err(ErrorKind::FailedPrecondition));
}

#[test]
fn given_a_ttl_when_it_passes_under_a_direct_reader_then_nobody_new_reads_it_and_it_goes_when_he_is_done() {
    let mut world = new_world();
    let key = allocated_with(&mut world, 1000, |request| request.ttl_ms = Some(1000));
    commit(&mut world, key);
    let told = world.describe(key);
    assert_eq!(world.shown[&key.id].0.expires_at, told.expires_at);
    let held = claim(&mut world, key);
    pass(&mut world, 2000);
    assert_eq!(world.claim(key, session(3)), None);
    assert_eq!(world.ask(Request::Resolve { key }).map_err(|error| error.kind), Err(ErrorKind::NotFound));
    assert_eq!((stats(&world).payloads, stats(&world).limbo_blocks), (1, 0), "as under any lease");
    world.unclaim(held);
    pass(&mut world, 100);
    assert_eq!((stats(&world).payloads, stats(&world).limbo_blocks), (0, 0));
    assert!(world.shown.is_empty() && world.shard.is_quiet());
}

#[test]
fn given_an_expired_payload_when_read_directly_for_longer_than_a_lease_lasts_then_its_bytes_alone_wait() {
    let mut world = new_world();
    let key = allocated_with(&mut world, 1000, |request| request.ttl_ms = Some(1000));
    commit(&mut world, key);
    let held = claim(&mut world, key);
    pass(&mut world, 110_000);
    assert_eq!((stats(&world).payloads, stats(&world).limbo_blocks), (1, 0));
    pass(&mut world, 12_000);
    assert_eq!((stats(&world).payloads, stats(&world).limbo_blocks), (0, 1), "his session is charged for it");
    world.unclaim(held);
    pass(&mut world, 1000);
    assert_eq!(stats(&world).limbo_blocks, 0);
}

#[test]
fn given_a_session_that_pins_for_ever_when_it_is_over_its_quota_then_it_loses_its_leases_and_the_block_is_free()
 {
    let caps = SessionCaps { leased_bytes_max: 100 << 10, ..SessionCaps::default() };
    let mut world = World::with(ShardConfig { session_caps: caps, ..small() });
    let keys = [0; 3].map(|_| committed(&mut world, QUARTER));
    let held = keys.map(|key| claim(&mut world, key));
    for key in keys {
        world.ask(delete(key, true)).expect("by force");
    }
    world.revoked.clear();
    pass(&mut world, 100_000);
    assert_eq!(stats(&world).limbo_blocks, 3, "each as long as a lease may last");
    pass(&mut world, 40_000);
    let revoked: Vec<_> = world.revoked.iter().map(|revoke| revoke.generation).collect();
    assert_eq!(revoked, held[..2], "the oldest, until it is within its quota");
    assert_eq!((stats(&world).limbo_blocks, stats(&world).direct_limbo_bytes), (1, QUARTER));
}

#[test]
fn given_a_payload_that_may_be_discarded_when_memory_is_short_then_not_under_a_direct_reader() {
    let mut world = new_world();
    let policy = EvictionPolicy { spill_target: Some(SpillTarget::Void), ..EvictionPolicy::default() };
    let keys = [0; 12].map(|_| {
        let key = allocated_with(&mut world, QUARTER, |request| request.policy = policy);
        commit(&mut world, key);
        key
    });
    let held = claim(&mut world, keys[0]);
    for _ in 0..8 {
        let key = allocated_with(&mut world, QUARTER, |request| request.policy = policy);
        commit(&mut world, key);
        pass(&mut world, 1);
    }
    let kept = |world: &mut World, key| world.ask(Request::Resolve { key }).is_ok();
    assert!(kept(&mut world, keys[0]), "somebody reads it");
    assert!(keys[1..].iter().filter(|key| !kept(&mut world, **key)).count() > 0, "others went");
    world.unclaim(held);
}

#[test]
fn given_a_direct_reader_when_memory_is_short_then_others_are_moved_and_his_payload_is_not_deleted_either() {
    let mut world = new_world();
    let keys = [0; 12].map(|_| committed(&mut world, QUARTER));
    let held = claim(&mut world, keys[0]);
    for _ in 0..8 {
        committed(&mut world, QUARTER);
        pass(&mut world, 1);
    }
    let tier = |world: &mut World, key| world.describe(key).tier;
    assert_eq!(tier(&mut world, keys[0]), Tier::Ram, "passed over");
    assert!(keys[1..].iter().any(|key| tier(&mut world, *key) == Tier::Disk), "it blocks nobody");
    assert!(world.shown[&keys[0].id].1, "shown again");
    let refused = world.ask(delete(keys[0], false)).map_err(|error| error.kind);
    assert_eq!(refused, Err(ErrorKind::LeaseConflict));
    world.unclaim(held);
    pass(&mut world, 1000);
    for _ in 0..8 {
        committed(&mut world, QUARTER);
        pass(&mut world, 1000);
    }
    assert_eq!(tier(&mut world, keys[0]), Tier::Disk, "once nobody reads it");
}

#[test]
fn given_a_copy_on_disk_when_memory_is_short_then_the_block_is_not_dropped_under_a_direct_reader() {
    let mut world = new_world();
    for _ in 0..8 {
        committed(&mut world, QUARTER);
    }
    while world.transfers.is_empty() {
        press(&mut world);
    }
    let transfer = world.transfers[0];
    let key = PayloadKey { id: transfer.from.id, ..world.new_key() };
    assert_eq!(world.claim(key, session(2)), None, "its block is to go");
    // Somebody who leases it meanwhile keeps it, and what was written stays as well.
    let lease = world.lease_now(key).lease;
    world.settle();
    assert_eq!(world.describe(key).tier, Tier::Ram);
    world.ask(Request::Release { lease, by: None }).expect("released");
    let held = claim(&mut world, key);
    for _ in 0..16 {
        committed(&mut world, QUARTER);
        pass(&mut world, 200);
    }
    assert_eq!(world.describe(key).tier, Tier::Ram, "passed over");
    world.unclaim(held);
}

#[test]
fn given_a_victim_that_is_pinned_while_it_is_looked_for_when_nobody_reads_it_then_it_stays() {
    let mut world = new_world();
    let keys = [0; 8].map(|_| committed(&mut world, QUARTER));
    world.scans_wait = true;
    while !keys.iter().any(|key| world.shard.may_be_evicted(*key)) {
        press(&mut world);
    }
    let asked: Vec<_> = keys.into_iter().filter(|key| world.shard.may_be_evicted(*key)).collect();
    for key in &asked {
        let number = world.send(Request::Pin { key: *key, duration_ms: None, owner: Peer::UNKNOWN });
        world.settle_rows();
        assert!(world.answer(number).expect("answered").is_ok());
    }
    world.scans_wait = false;
    world.answer_scan();
    world.settle();
    for key in asked {
        assert_eq!(world.describe(key).tier, Tier::Ram);
        assert!(world.shown[&key.id].1, "shown again");
    }
}

#[test]
fn given_payloads_that_only_direct_readers_use_when_memory_is_short_then_the_sampled_ones_stay() {
    let mut world = new_world();
    let keys = [0; 12].map(|_| committed(&mut world, QUARTER));
    for round in 0..30 {
        let ids = keys[..3].iter().map(|key| key.id).collect();
        pass(&mut world, 10);
        world.step(Event::Sampled(Sampled { namespace: keys[0].namespace, ids }));
        if round % 3 == 0 {
            committed(&mut world, QUARTER);
        }
    }
    let tier = |world: &mut World, key| world.describe(key).tier;
    assert_eq!([0, 1, 2].map(|at| tier(&mut world, keys[at])), [Tier::Ram; 3], "they are in use");
    assert!(keys[3..].iter().any(|key| tier(&mut world, *key) == Tier::Disk));
}

#[test]
fn given_a_server_that_stops_when_its_slabs_are_emptied_then_nothing_is_shown_and_readers_are_waited_for() {
    let mut world = new_world();
    let key = committed(&mut world, 1000);
    let held = claim(&mut world, key);
    let deadline = world.in_ms(1000);
    let number = world.send_until(Request::SpillArenas, deadline);
    assert!(world.is_closed);
    world.settle();
    pass(&mut world, 100);
    let Some(Ok(Reply::ArenasSpilled(done))) = world.answer(number) else { panic!("not answered") };
    assert_eq!((done.spilled, done.lost.len()), (1, 0));
    assert_eq!(world.claim(key, session(3)), None);
    world.unclaim(held);
}
