//! Memory of native sessions: allocations in slabs, what waits for one, and when it goes back.

#[allow(dead_code, reason = "every test binary uses its own part")]
mod world;

use payload_shards::{ShardConfig, Writer};
use payload_types::event::{Completion, DriverError, DriverErrorKind, Event};
use payload_types::reply::{ArenaStats, LeaseGrant, Reply};
use payload_types::request::{Acquire, Allocate, Request};
use payload_types::slab::{SlabAction, SlabDone};
use payload_types::*;
use world::*;

/// Slabs of 256 KiB, the smallest.
const RAM: u64 = 16 << 20;
const SLAB: u64 = 256 << 10;

fn new_world() -> World {
    let mut config = config(1);
    config.capacity[Tier::Ram] = Some(ByteCount(RAM));
    World::with(config)
}

fn session(number: u32) -> SessionId {
    SessionId::new(number).expect("not 0")
}

fn peer(number: u32) -> Peer {
    Peer::native(1000 + number, 0, session(number))
}

fn allocation_as(world: &mut World, number: u32, size: u64, memory: Memory) -> Request {
    let key = world.new_key();
    let Request::Allocate(request) = allocation(key, Tier::Ram, size) else { unreachable!("an allocation") };
    Request::Allocate(Allocate { owner: peer(number), memory, ..request })
}

fn allocated(world: &mut World, number: u32, size: u64, memory: Memory) -> (PayloadKey, Block) {
    let request = allocation_as(world, number, size, memory);
    let Request::Allocate(Allocate { key, .. }) = &request else { unreachable!("an allocation") };
    let key = *key;
    match world.ask(request) {
        Ok(Reply::Allocated(Descriptor { location: Some(Location::Arena(block)), .. })) => (key, block),
        other => panic!("not in a slab: {other:?}"),
    }
}

fn commit(world: &mut World, key: PayloadKey) {
    world.ask(Request::Commit { key, checksum: None, batch: None }).expect("committed");
}

fn lease_as(world: &mut World, number: u32, key: PayloadKey) -> LeaseGrant {
    let Request::Acquire(request) = acquire(key, None) else { unreachable!("an acquisition") };
    let number = world.send(Request::Acquire(Acquire { owner: peer(number), ..request }));
    match world.answer(number) {
        Some(Ok(Reply::Leased(grant))) => grant,
        other => panic!("not a lease: {other:?}"),
    }
}

fn delete(world: &mut World, key: PayloadKey, force: bool) {
    world.ask(Request::Delete { key, force, expected_version: None }).expect("deleted");
}

fn stats(world: &mut World) -> ArenaStats {
    world.shard.check_arenas().expect("the books add up");
    world.shard.check_accounting().expect("the sums are right");
    world.shard.stats().arenas
}

fn used(world: &World) -> u64 {
    world.shard.stats().tiers[Tier::Ram].usage.allocated
}

fn close(world: &mut World, number: u32) {
    world.step(Event::SessionClosed { session: session(number) });
    world.settle();
}

fn gone(world: &mut World, number: u32) {
    world.step(Event::SessionGone { session: session(number) });
    world.settle();
}

#[test]
fn given_a_session_when_it_allocates_then_a_slab_is_made_first_and_the_next_ones_are_answered_at_once() {
    let mut world = new_world();
    let request = allocation_as(&mut world, 1, 5000, Memory::Arena);
    let first = world.send(request);
    assert_eq!(world.answer(first), None, "it waits for the slab");
    let op = world.slabs[0];
    assert_eq!(op.action, SlabAction::Make { bytes: ByteCount(SLAB), isolated: false });
    assert_eq!((used(&world), op.session), (SLAB, session(1)), "charged before anything is made");
    world.settle();
    assert!(matches!(world.answer(first), Some(Ok(Reply::Allocated(_)))));
    let request = allocation_as(&mut world, 1, 100, Memory::Arena);
    let second = world.send(request);
    assert!(matches!(world.answer(second), Some(Ok(Reply::Allocated(_)))), "no effect is waited for");
    let stats = stats(&mut world);
    assert_eq!((stats.sessions, stats.slabs, stats.payloads, stats.payload_bytes), (1, 1, 2, 5100));
    assert_eq!((stats.charged_bytes, used(&world)), (SLAB, SLAB));
    let ram = world.shard.stats().tiers[Tier::Ram];
    assert_eq!((ram.current, ram.under_way(), ram.bytes), (SLAB, 0, 5100));
}

#[test]
fn given_requests_behind_a_slab_when_it_is_made_then_they_are_answered_in_order_and_more_slabs_follow() {
    let mut world = new_world();
    let mut numbers = Vec::new();
    for _ in 0..5 {
        let request = allocation_as(&mut world, 1, 100 << 10, Memory::Arena);
        numbers.push(world.send(request));
    }
    assert_eq!(world.slabs.len(), 1, "one slab at a time");
    world.settle();
    let blocks: Vec<_> = numbers
        .into_iter()
        .map(|number| match world.answer(number) {
            Some(Ok(Reply::Allocated(Descriptor { location: Some(Location::Arena(block)), .. }))) => block,
            other => panic!("not in a slab: {other:?}"),
        })
        .collect();
    assert!(blocks.is_sorted_by_key(|block| block.slab), "first come, first served: {blocks:?}");
    assert_eq!(stats(&mut world).slabs, 3, "two of 100 KiB fit one of 256");
}

#[test]
fn given_a_slab_that_cannot_be_made_when_others_wait_behind_it_then_all_are_told_and_nothing_is_charged() {
    let mut world = new_world();
    let numbers: Vec<_> = (0..3)
        .map(|_| {
            let request = allocation_as(&mut world, 1, 100, Memory::Arena);
            world.send(request)
        })
        .collect();
    let op = world.slabs.pop_front().expect("a slab is made").op;
    let error = DriverError { kind: DriverErrorKind::Full, message: "ENOMEM".to_owned() };
    world.complete(Completion::Slab(SlabDone::Made { op, result: Err(error) }));
    for number in numbers {
        let answer = world.answer(number).expect("answered").expect_err("refused");
        assert_eq!(answer.kind, ErrorKind::ResourceExhausted, "{answer}");
    }
    assert_eq!((used(&world), stats(&mut world).charged_bytes), (0, 0));
    allocated(&mut world, 1, 100, Memory::Arena);
}

#[test]
fn given_a_request_behind_a_slab_when_its_deadline_passes_then_it_is_told_and_the_slab_serves_the_next() {
    let mut world = new_world();
    let request = allocation_as(&mut world, 1, 100, Memory::Arena);
    let until = world.in_ms(50);
    let number = world.send_until(request, until);
    world.pass(60);
    let answer = world.answer(number).expect("answered").expect_err("too late");
    assert_eq!(answer.kind, ErrorKind::DeadlineExceeded, "{answer}");
    world.settle();
    let request = allocation_as(&mut world, 1, 100, Memory::Arena);
    let next = world.send(request);
    assert!(matches!(world.answer(next), Some(Ok(Reply::Allocated(_)))));
}

#[test]
fn given_an_arena_payload_when_committed_then_it_is_leasable_before_its_row_is_stored() {
    let mut world = new_world();
    let (key, block) = allocated(&mut world, 1, 5000, Memory::Arena);
    let number = world.send(Request::Commit { key, checksum: None, batch: None });
    assert_eq!((world.accepted.pop_front(), world.answer(number)), (Some(number), None));
    let grant = lease_as(&mut world, 2, key);
    assert_eq!(grant.descriptor.location, Some(Location::Arena(block)));
    assert_eq!(grant.descriptor.state, PayloadState::Active);
    let row = match &world.catalog[0].change {
        effect::CatalogChange::Put(row) => row.clone(),
        other => panic!("not a row: {other:?}"),
    };
    assert_eq!((row.state, row.version), (PayloadState::Active, grant.descriptor.version));
    assert!(row.replicas.is_empty(), "a slab does not outlive the server");
    world.settle();
    assert!(matches!(world.answer(number), Some(Ok(Reply::Committed(_)))));
    assert_eq!(world.describe(key).version, grant.descriptor.version);
}

#[test]
fn given_an_accepted_payload_when_its_row_is_refused_then_it_is_allocated_again_and_its_lease_keeps_its_block()
 {
    let mut world = new_world();
    let (key, block) = allocated(&mut world, 1, 5000, Memory::Arena);
    let number = world.send(Request::Commit { key, checksum: None, batch: None });
    let grant = lease_as(&mut world, 2, key);
    world.ack_one(Err("the disk is full".to_owned()));
    assert_eq!(world.answer(number).expect("answered").expect_err("not stored").kind, ErrorKind::Unavailable);
    assert_eq!(world.describe(key).state, PayloadState::Allocated);
    delete(&mut world, key, true);
    let (_, other) = allocated(&mut world, 1, 5000, Memory::Arena);
    assert_ne!(other, block, "somebody reads it");
    world.ask(Request::Release { lease: grant.lease, by: None }).expect("released");
    let (_, again) = allocated(&mut world, 1, 5000, Memory::Arena);
    assert_eq!(again, block, "nobody does any more");
    stats(&mut world);
}

#[test]
fn given_a_leased_block_when_deleted_by_force_then_it_is_reused_only_after_the_lease() {
    let mut world = new_world();
    let (key, block) = allocated(&mut world, 1, 5000, Memory::Arena);
    commit(&mut world, key);
    let grant = lease_as(&mut world, 2, key);
    delete(&mut world, key, true);
    assert_eq!(stats(&mut world).limbo_blocks, 1);
    assert!(world.storage.is_empty(), "no driver knows of it");
    let (_, other) = allocated(&mut world, 1, 5000, Memory::Arena);
    assert_ne!(other, block);
    world.ask(Request::Release { lease: grant.lease, by: Some(session(3)) }).expect("unknown to it");
    assert_eq!(stats(&mut world).limbo_blocks, 1, "another session's release ends nothing");
    world.ask(Request::Release { lease: grant.lease, by: Some(session(2)) }).expect("released");
    assert_eq!(stats(&mut world).limbo_blocks, 0);
}

#[test]
fn given_a_large_payload_when_allocated_then_it_has_memory_of_its_own_which_goes_back_with_it() {
    let mut world = new_world();
    let (key, block) = allocated(&mut world, 1, SLAB, Memory::Arena);
    assert_eq!(block.unit, 0);
    let seen = stats(&mut world);
    assert_eq!((seen.slabs, seen.own, used(&world)), (0, 1, SLAB));
    commit(&mut world, key);
    delete(&mut world, key, false);
    assert_eq!((stats(&mut world).own, used(&world)), (0, 0));
    assert!(world.slab_bytes.is_empty());
}

#[test]
fn given_sealed_memory_when_somebody_can_still_write_then_commit_is_refused_and_may_be_tried_again() {
    let mut world = new_world();
    let request = allocation_as(&mut world, 1, 100, Memory::Sealed);
    let Request::Allocate(Allocate { key, .. }) = request else { unreachable!("an allocation") };
    world.send(request);
    assert_eq!(world.slabs[0].action, SlabAction::Make { bytes: ByteCount(4096), isolated: true });
    world.settle();
    let number = world.send(Request::Commit { key, checksum: None, batch: None });
    let op = world.slabs.pop_front().expect("it is frozen first");
    assert_eq!((op.action, world.catalog.len(), world.accepted.len()), (SlabAction::Freeze, 0, 0));
    world.complete(Completion::Slab(SlabDone::StillWritable { op: op.op }));
    let refused = world.answer(number).expect("answered").expect_err("refused");
    assert_eq!(refused.kind, ErrorKind::FailedPrecondition, "{refused}");
    assert_eq!(world.describe(key).state, PayloadState::Allocated);
    commit(&mut world, key);
    lease_as(&mut world, 2, key);
    stats(&mut world);
}

#[test]
fn given_a_session_that_ends_when_its_process_lives_on_then_nothing_is_given_back_until_it_is_dead() {
    let mut world = new_world();
    let (kept, _) = allocated(&mut world, 1, 5000, Memory::Arena);
    commit(&mut world, kept);
    let (lost, _) = allocated(&mut world, 1, 200 << 10, Memory::Arena);
    let (own, _) = allocated(&mut world, 1, SLAB, Memory::Arena);
    close(&mut world, 1);
    for key in [lost, own] {
        let answer = world.ask(Request::Resolve { key }).expect_err("it was not committed");
        assert_eq!(answer.kind, ErrorKind::NotFound);
    }
    assert_eq!(world.describe(kept).state, PayloadState::Active);
    assert_eq!(world.slab_bytes.len(), 3, "one was made ahead; it could still write to all");
    let request = allocation_as(&mut world, 1, 100, Memory::Arena);
    assert_eq!(world.ask(request).expect_err("closed").kind, ErrorKind::Unavailable);
    delete(&mut world, kept, false);
    assert_eq!(world.slab_bytes.len(), 3);
    assert_eq!(world.shard.arena_writer(session(1)), Some(Writer::Closed));
    gone(&mut world, 1);
    assert!(world.slab_bytes.is_empty());
    assert_eq!((used(&world), world.shard.arena_writer(session(1))), (0, None));
    stats(&mut world);
}

#[test]
fn given_a_session_that_ends_while_its_slab_is_made_then_who_waits_is_told_and_the_slab_goes_back() {
    let mut world = new_world();
    let request = allocation_as(&mut world, 1, 100, Memory::Arena);
    let number = world.send(request);
    world.step(Event::SessionClosed { session: session(1) });
    let answer = world.answer(number).expect("answered").expect_err("closed");
    assert_eq!(answer.kind, ErrorKind::Unavailable, "{answer}");
    world.step(Event::SessionGone { session: session(1) });
    assert_eq!(used(&world), SLAB);
    world.settle();
    assert!(world.slab_bytes.is_empty());
    assert_eq!((used(&world), world.shard.arena_writer(session(1))), (0, None));
}

#[test]
fn given_empty_slabs_when_memory_is_short_then_they_go_back_and_the_waiting_one_is_served() {
    let mut world = new_world();
    let keys: Vec<_> = (0..63).map(|_| allocated(&mut world, 1, 120 << 10, Memory::Arena).0).collect();
    for key in keys {
        world.ask(Request::Abort { key, owner: peer(1) }).expect("aborted");
    }
    assert_eq!((stats(&mut world).slabs, used(&world)), (1, SLAB), "one is kept for the next payload");
    let key = world.new_key();
    world.ask(allocation(key, Tier::Ram, RAM)).expect("all of it");
    assert_eq!((stats(&mut world).slabs, used(&world)), (0, RAM));
}

#[test]
fn given_a_request_without_a_session_or_for_another_tier_when_it_wants_a_slab_then_it_is_refused() {
    let mut world = new_world();
    let key = world.new_key();
    let Request::Allocate(request) = allocation(key, Tier::Ram, 100) else { unreachable!("an allocation") };
    let nobody = Allocate { memory: Memory::Arena, ..request.clone() };
    let on_disk = Allocate { memory: Memory::Arena, tier: Tier::Disk, owner: peer(1), ..request };
    for request in [nobody, on_disk] {
        let refused = world.ask(Request::Allocate(request)).expect_err("refused");
        assert_eq!(refused.kind, ErrorKind::InvalidArgument);
    }
}

#[test]
fn given_as_many_memories_as_a_session_may_have_when_it_wants_one_more_then_it_is_refused() {
    let mut config: ShardConfig = config(1);
    config.capacity[Tier::Ram] = Some(ByteCount(RAM));
    let mut world = World::with(config);
    for _ in 0..limits::SLABS_PER_SESSION_MAX {
        allocated(&mut world, 1, 1, Memory::Sealed);
    }
    let request = allocation_as(&mut world, 1, 1, Memory::Sealed);
    assert_eq!(world.ask(request).expect_err("one too many").kind, ErrorKind::ResourceExhausted);
    allocated(&mut world, 2, 1, Memory::Sealed);
}
