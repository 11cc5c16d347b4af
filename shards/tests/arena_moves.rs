//! Out of slabs: leases of clients that cannot be shown one, spills, pressure, and the end of the server.

#[allow(dead_code, reason = "every test binary uses its own part")]
mod world;

use payload_types::effect::CatalogChange;
use payload_types::event::{Copied, DriverError, DriverErrorKind, TransferError};
use payload_types::reply::{ArenasSpilled, LeaseGrant, Reply};
use payload_types::request::{Acquire, Allocate, Request};
use payload_types::*;
use world::*;

/// So that slabs have 256 KiB, the smallest.
const RAM: u64 = 16 << 20;
const SIZE: u64 = 5000;

fn new_world() -> World {
    let mut config = config(1);
    config.capacity[Tier::Ram] = Some(ByteCount(RAM));
    config.capacity[Tier::Disk] = Some(ByteCount(4 * RAM));
    World::with(config)
}

fn peer(number: u32) -> Peer {
    Peer::native(1000 + number, 0, SessionId::new(number).expect("not 0"))
}

/// A committed payload in a slab of session 1.
fn arena_payload(world: &mut World, size: u64, change: impl Fn(&mut Allocate)) -> (PayloadKey, Block) {
    let key = world.new_key();
    let Request::Allocate(mut request) = allocation(key, Tier::Ram, size) else {
        unreachable!("an allocation")
    };
    (request.memory, request.owner) = (Memory::Arena, peer(1));
    change(&mut request);
    let answer = world.ask(Request::Allocate(request));
    let Ok(Reply::Allocated(Descriptor { location: Some(Location::Arena(block)), .. })) = answer else {
        panic!("not in a slab: {answer:?}")
    };
    world.ask(Request::Commit { key, checksum: None, batch: None }).expect("committed");
    (key, block)
}

/// What a client of the v1 contract asks for.
fn v1(key: PayloadKey) -> Request {
    Request::Acquire(Acquire { accepts_packed: false, accepts_slabs: false, ..acquisition(key, None) })
}

fn leased(world: &mut World, number: u64) -> LeaseGrant {
    match world.answer(number) {
        Some(Ok(Reply::Leased(grant))) => grant,
        other => panic!("not a lease: {other:?}"),
    }
}

fn check(world: &World) {
    world.shard.check_arenas().expect("the books add up");
    world.shard.check_accounting().expect("the sums are right");
}

#[test]
fn given_a_payload_in_a_slab_when_leased_over_grpc_then_a_segment_takes_the_blocks_place() {
    let mut world = new_world();
    let (key, block) = arena_payload(&mut world, SIZE, |_| {});
    let reader = world.lease(key);
    assert_eq!(reader.descriptor.location, Some(Location::Arena(block)));
    let [first, second] = [(); 2].map(|()| world.send(v1(key)));
    let op = world.transfers[0];
    assert_eq!((op.from.block, op.to.tier, op.to.block, op.alone), (Some(block), Tier::Ram, None, true));
    assert_eq!(world.transfers.len(), 1, "the second one joins");
    world.transfer_one(Ok(Checksum(7)));
    let CatalogChange::Put(row) = &world.catalog[0].change else { panic!("no row") };
    assert_eq!(row.replicas.len(), 1, "the row vouches for what outlives the server");
    assert_eq!((row.replicas[0].tier, row.replicas[0].generation), (Tier::Ram, op.to.generation));
    world.settle();
    for number in [first, second] {
        let grant = leased(&mut world, number);
        assert_eq!(grant.descriptor.location, Some(Location::Segment));
        assert_eq!(grant.descriptor.checksum, Some(Checksum(7)));
    }
    assert_eq!(world.shard.stats().arenas.limbo_blocks, 1, "the native reader has it still");
    assert_eq!(world.lease(key).descriptor.location, Some(Location::Segment), "also for sessions now");
    world.ask(Request::Release { lease: reader.lease, by: None }).expect("released");
    assert_eq!(world.shard.stats().arenas.limbo_blocks, 0);
    check(&world);
}

#[test]
fn given_a_copy_out_of_a_slab_that_fails_when_leased_over_grpc_then_the_reason_and_everything_as_it_was() {
    let mut world = new_world();
    let (key, block) = arena_payload(&mut world, SIZE, |_| {});
    let used = world.shard.usage(Tier::Ram).allocated;
    let number = world.send(v1(key));
    let full = DriverError { kind: DriverErrorKind::Full, message: "ENOSPC".to_owned() };
    world.transfer_one(Err(TransferError::Destination(full)));
    world.settle();
    let refused = world.answer(number).expect("answered").expect_err("no memory");
    assert_eq!(refused.kind, ErrorKind::ResourceExhausted);
    assert!(refused.message.contains("a lease over gRPC"), "{refused}");
    assert_eq!(world.shard.usage(Tier::Ram).allocated, used);
    assert_eq!(world.lease(key).descriptor.location, Some(Location::Arena(block)));
    check(&world);
}

#[test]
fn given_a_payload_in_a_slab_when_spilled_and_promoted_then_it_is_an_ordinary_one() {
    let mut world = new_world();
    let (key, block) = arena_payload(&mut world, SIZE, |_| {});
    let number = world.send(spill(key, DISK, false));
    let op = world.transfers[0];
    assert_eq!((op.from.block, op.to.tier), (Some(block), Tier::Disk));
    world.settle();
    assert!(matches!(world.answer(number), Some(Ok(Reply::Spilled(_)))));
    let shown = world.describe(key);
    assert_eq!((shown.state, shown.tier), (PayloadState::Durable, Tier::Disk));
    assert_eq!(world.shard.stats().arenas.payloads, 0);
    world.ask(promote(key, Tier::Ram)).expect("promoted");
    assert_eq!(world.describe(key).location, Some(Location::Segment));
    let (_, again) = arena_payload(&mut world, SIZE, |_| {});
    assert_eq!(again, block, "the block is free");
    check(&world);
}

#[test]
fn given_memory_full_of_slabs_when_somebody_needs_room_then_payloads_leave_until_whole_slabs_come_back() {
    let mut world = new_world();
    let mut keys = Vec::new();
    for _ in 0..200 {
        keys.push(arena_payload(&mut world, 100 << 10, |_| {}).0);
        world.pass(1);
    }
    let key = world.new_key();
    world.ask(allocation(key, Tier::Ram, RAM / 2)).expect("room was made");
    let on_disk = |world: &mut World, keys: &[PayloadKey]| {
        keys.iter().filter(|key| world.describe(**key).tier == Tier::Disk).count()
    };
    let gone = on_disk(&mut world, &keys);
    assert!((136..200).contains(&gone), "{gone} left, and two lie in a slab");
    assert_eq!(on_disk(&mut world, &keys[..gone]), gone, "the oldest ones first");
    check(&world);
}

#[test]
fn given_memory_that_is_short_when_leased_over_grpc_then_the_lease_is_of_a_copy_on_disk_unless_it_must_stay()
{
    for (stays, tier) in [(false, Tier::Disk), (true, Tier::Ram)] {
        let mut world = new_world();
        let (key, _) = arena_payload(&mut world, SIZE, |request| {
            request.policy.min_residency = stays.then_some(Tier::Ram);
        });
        world.lease(key);
        // Nothing of this can go, and somebody waits for more than there is.
        let free = RAM - world.shard.usage(Tier::Ram).allocated;
        let filler = world.pinned(Tier::Ram, free);
        let wanted = world.new_key();
        let until = world.in_ms(1000);
        let waits = world.send_until(allocation(wanted, Tier::Ram, free), until);
        world.settle();
        let until = world.in_ms(60_000);
        let number = world.send_until(v1(key), until);
        assert_eq!(world.transfers.len(), usize::from(!stays));
        world.settle();
        world.pass(1001);
        assert!(world.answer(waits).expect("answered").is_err());
        world.ask(Request::Delete { key: filler, force: false, expected_version: None }).expect("deleted");
        world.settle();
        assert_eq!(leased(&mut world, number).descriptor.tier, tier);
        check(&world);
    }
}

#[test]
fn given_payloads_in_slabs_when_the_server_stops_then_they_are_on_disk_and_nothing_new_comes_in() {
    let mut world = new_world();
    let keys: Vec<_> = (0..40).map(|_| arena_payload(&mut world, SIZE, |_| {}).0).collect();
    let until = world.in_ms(5000);
    let number = world.send_until(Request::SpillArenas, until);
    let mut answer = None;
    for _ in 0..1000 {
        world.settle();
        world.pass(2);
        answer = answer.or_else(|| world.answer(number));
    }
    let done = Reply::ArenasSpilled(ArenasSpilled { spilled: 40, lost: Vec::new(), lost_more: 0 });
    assert_eq!(answer, Some(Ok(done)));
    assert!(keys.iter().all(|key| world.describe(*key).tier == Tier::Disk));
    let key = world.new_key();
    let Request::Allocate(request) = allocation(key, Tier::Ram, SIZE) else { unreachable!("an allocation") };
    let request = Allocate { memory: Memory::Arena, owner: peer(1), ..request };
    assert_eq!(world.ask(Request::Allocate(request)).expect_err("stopping").kind, ErrorKind::Unavailable);
    check(&world);
}

#[test]
fn given_too_little_time_when_the_server_stops_then_what_was_used_last_is_saved_first_and_the_rest_is_named()
{
    let mut world = new_world();
    let mut keys = Vec::new();
    for _ in 0..3 {
        keys.push(arena_payload(&mut world, SIZE, |_| {}).0);
        world.pass(10);
    }
    let until = world.in_ms(100);
    let number = world.send_until(Request::SpillArenas, until);
    let latest = world.transfers[0].from.id;
    assert_eq!(latest, keys[2].id);
    world.transfer_to(Ok(Copied { checksum: Checksum(7), extent: None }));
    world.settle_rows();
    world.pass(101);
    match world.answer(number) {
        Some(Ok(Reply::ArenasSpilled(done))) => {
            assert_eq!((done.spilled, done.lost_more), (1, 0));
            assert_eq!(done.lost, [keys[1].id, keys[0].id]);
        }
        other => panic!("not told: {other:?}"),
    }
}
