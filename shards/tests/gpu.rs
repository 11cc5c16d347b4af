//! Payloads in device memory: a tier like the others, but that it ends with the server, and that nobody can prove a client to
//! have let go of it.

#[allow(dead_code, reason = "every test binary uses its own part")]
mod world;

use payload_shards::{Adopted, Shard, ShardConfig, TierLimits};
use payload_types::effect::{CatalogChange, StorageAction};
use payload_types::event::{Completion, DriverError, DriverErrorKind, StorageDone, TransferError};
use payload_types::reply::{ArenasSpilled, Reply};
use payload_types::request::Request;
use payload_types::scrub::Scrub;
use payload_types::tier::SpillTarget;
use payload_types::*;
use world::*;

const GPU: SpillTarget = SpillTarget::Tier(Tier::Gpu);
const RAM: SpillTarget = SpillTarget::Tier(Tier::Ram);
const OBJECT: SpillTarget = SpillTarget::Tier(Tier::Object);
/// A quarter of each tier.
const SIZE: u64 = CAPACITY / 4;

fn with_devices(epoch: u32) -> ShardConfig {
    let mut config = config(epoch);
    config.capacity[Tier::Gpu] = Some(ByteCount(CAPACITY));
    config.capacity[Tier::Object] = Some(ByteCount(1 << 40));
    config
}

fn new_world() -> World {
    World::with(with_devices(1))
}

/// Every account equals what the replicas and limbo hold: nothing is left over once all is gone.
fn delete_all(world: &mut World, keys: &[PayloadKey]) {
    for key in keys {
        let gone = world.ask(Request::Delete { key: *key, force: true, expected_version: None });
        assert!(gone.is_ok(), "{gone:?}");
    }
    world.pass(130_000);
    world.settle();
    for tier in [Tier::Gpu, Tier::Ram, Tier::Disk] {
        assert_eq!(world.shard.usage(tier), Default::default(), "{tier}");
    }
}

fn lost() -> DriverError {
    DriverError { kind: DriverErrorKind::DeviceLost, message: "GPU 0 is lost".to_owned() }
}

fn last_row(world: &World) -> PayloadRow {
    match &world.catalog.back().expect("a row").change {
        CatalogChange::Put(row) => (**row).clone(),
        other => panic!("no row: {other:?}"),
    }
}

fn tiers(world: &mut World, key: PayloadKey) -> Vec<Tier> {
    match world.ask(Request::Explain { key }) {
        Ok(Reply::Explained(explained)) => explained.replicas.iter().map(|replica| replica.tier).collect(),
        other => panic!("not explained: {other:?}"),
    }
}

#[test]
fn given_a_device_when_allocated_committed_and_leased_then_its_generation_is_shown_and_its_row_vouches_for_no_bytes()
 {
    let mut world = new_world();
    let key = world.new_key();
    let Ok(Reply::Allocated(allocated)) = world.ask(allocation(key, Tier::Gpu, SIZE)) else {
        panic!("refused")
    };
    let Some(Location::Gpu(generation)) = allocated.location else { panic!("{allocated:?}") };
    let number = world.send(Request::Commit { key, checksum: None, batch: None });
    assert!(matches!(world.storage[0].action, StorageAction::Seal { sync: false }));
    assert_eq!(world.storage[0].replica.tier, Tier::Gpu);
    world.store_one();
    let row = last_row(&world);
    assert_eq!((row.state, row.replicas.len()), (PayloadState::Active, 0));
    world.settle();
    world.answer(number).expect("answered").expect("committed");
    let grant = world.lease(key);
    assert_eq!((grant.descriptor.tier, grant.descriptor.state), (Tier::Gpu, PayloadState::Active));
    assert_eq!(grant.descriptor.location, Some(Location::Gpu(generation)));
    let mut shard = Shard::new(with_devices(2));
    assert_eq!(shard.adopt(world.now, row, PerTier::default()), Adopted::Lost, "after a restart");
    delete_all(&mut world, &[key]);
}

#[test]
fn given_a_payload_on_a_device_when_spilled_then_it_is_where_it_was_asked_for_and_its_row_says_so() {
    let mut world = new_world();
    let key = world.committed(Tier::Gpu, SIZE);
    let number = world.send(spill(key, RAM, false));
    world.transfer_one(Ok(Checksum(7)));
    let row = last_row(&world);
    assert_eq!(row.replicas.iter().map(|replica| replica.tier).collect::<Vec<_>>(), [Tier::Ram]);
    world.settle();
    world.answer(number).expect("answered").expect("spilled");
    let shown = world.describe(key);
    assert_eq!((shown.tier, shown.state), (Tier::Ram, PayloadState::Active), "a segment is volatile");
    assert_eq!(world.shard.usage(Tier::Gpu).allocated, 0);
    world.ask(spill(key, DISK, false)).expect("spilled");
    assert_eq!(world.describe(key).state, PayloadState::Durable);
    assert!(world.ask(spill(key, GPU, false)).is_err(), "spill moves down");
    delete_all(&mut world, &[key]);
}

#[test]
fn given_a_lease_or_a_pin_on_a_device_when_spilled_then_refused() {
    let mut world = new_world();
    let leased = world.committed(Tier::Gpu, SIZE);
    let grant = world.lease(leased);
    let refused = world.ask(spill(leased, DISK, false)).expect_err("leased");
    assert_eq!(refused.kind, ErrorKind::FailedPrecondition);
    world.ask(Request::Release { lease: grant.lease, by: None }).expect("released");
    world.ask(spill(leased, DISK, false)).expect("spilled");
    let pinned = world.pinned(Tier::Gpu, SIZE);
    assert!(world.ask(spill(pinned, DISK, false)).expect_err("pinned").message.contains("pinned"));
    delete_all(&mut world, &[leased, pinned]);
}

#[test]
fn given_a_payload_on_disk_when_leased_with_min_tier_gpu_then_promoted_and_the_file_stays() {
    let mut world = new_world();
    let key = world.committed(Tier::Disk, SIZE);
    let number = world.send(acquire(key, Some(Tier::Gpu)));
    assert_eq!((world.transfers[0].from.tier, world.transfers[0].to.tier), (Tier::Disk, Tier::Gpu));
    world.settle();
    let Some(Ok(Reply::Leased(grant))) = world.answer(number) else { panic!("no lease") };
    assert!(matches!(grant.descriptor.location, Some(Location::Gpu(_))));
    assert_eq!(grant.descriptor.state, PayloadState::Durable);
    assert_eq!(tiers(&mut world, key), [Tier::Gpu, Tier::Disk]);
    world.ask(Request::Release { lease: grant.lease, by: None }).expect("released");
    let before = world.transfers.len();
    world.ask(spill(key, DISK, false)).expect("spilled");
    assert_eq!(world.transfers.len(), before, "the file was there: nothing is written");
    assert_eq!(tiers(&mut world, key), [Tier::Disk]);
    delete_all(&mut world, &[key]);
}

#[test]
fn given_a_device_and_an_object_store_when_moved_between_them_then_at_once_and_nothing_else_is_made() {
    let mut world = new_world();
    let key = world.committed(Tier::Gpu, SIZE);
    world.ask(spill(key, OBJECT, false)).expect("spilled");
    assert_eq!(tiers(&mut world, key), [Tier::Object]);
    assert_eq!(world.describe(key).state, PayloadState::Durable);
    world.ask(promote(key, Tier::Gpu)).expect("promoted");
    assert_eq!(tiers(&mut world, key), [Tier::Gpu, Tier::Object]);
    world.ask(spill(key, OBJECT, false)).expect("spilled");
    assert_eq!(tiers(&mut world, key), [Tier::Object]);
    delete_all(&mut world, &[key]);
}

#[test]
fn given_a_full_device_when_more_is_allocated_then_the_least_recently_leased_leaves_for_ram() {
    let mut world = new_world();
    let mut keys = Vec::new();
    let mut held = Vec::new();
    for _ in 0..4 {
        let key = world.committed(Tier::Gpu, SIZE);
        if keys.is_empty() {
            held.push(world.lease(key));
        }
        keys.push(key);
        world.pass(10);
    }
    let until = world.in_ms(1000);
    let key = world.new_key();
    let number = world.send_until(allocation(key, Tier::Gpu, SIZE), until);
    world.settle();
    world.answer(number).expect("answered").expect("allocated");
    keys.push(key);
    let where_now: Vec<Tier> = keys.iter().map(|key| world.describe(*key).tier).collect();
    assert_eq!(where_now[..2], [Tier::Gpu, Tier::Ram], "leased, then the oldest that is not");
    assert_eq!(where_now[4], Tier::Gpu);
    world.ask(Request::Release { lease: held[0].lease, by: None }).expect("released");
    delete_all(&mut world, &keys);
}

#[test]
fn given_copies_of_segments_on_a_device_when_ram_is_needed_then_both_leave() {
    let mut world = new_world();
    let mut keys = Vec::new();
    for _ in 0..4 {
        let key = world.committed(Tier::Ram, SIZE);
        world.ask(promote(key, Tier::Gpu)).expect("promoted");
        assert_eq!(tiers(&mut world, key), [Tier::Gpu, Tier::Ram]);
        keys.push(key);
    }
    let until = world.in_ms(1000);
    let key = world.new_key();
    let number = world.send_until(allocation(key, Tier::Ram, SIZE), until);
    world.settle();
    world.answer(number).expect("answered").expect("allocated");
    keys.push(key);
    assert!(world.shard.usage(Tier::Gpu).allocated < CAPACITY);
    assert!(world.shard.usage(Tier::Disk).allocated >= SIZE, "nothing was lost");
    delete_all(&mut world, &keys);
}

#[test]
fn given_a_lease_on_a_device_when_deleted_by_force_then_its_memory_waits_for_the_release() {
    let mut world = new_world();
    let key = world.committed(Tier::Gpu, SIZE);
    let grant = world.lease(key);
    let refused = world.ask(Request::Delete { key, force: false, expected_version: None });
    assert_eq!(refused.expect_err("leased").kind, ErrorKind::LeaseConflict);
    world.ask(Request::Delete { key, force: true, expected_version: None }).expect("deleted");
    assert_eq!(world.shard.usage(Tier::Gpu).limbo, SIZE, "somebody reads it");
    world.ask(Request::Release { lease: grant.lease, by: None }).expect("released");
    assert_eq!(world.shard.usage(Tier::Gpu), Default::default());
}

#[test]
fn given_a_dead_client_when_its_lease_ends_by_itself_then_its_memory_is_free() {
    let mut world = new_world();
    let key = world.committed(Tier::Gpu, SIZE);
    world.lease(key);
    world.allocate(Tier::Gpu, SIZE);
    world.ask(Request::Delete { key, force: true, expected_version: None }).expect("deleted");
    world.pass(20_001);
    world.settle();
    assert_eq!(world.shard.usage(Tier::Gpu).allocated, SIZE, "what is being written");
    world.pass(3_600_000);
    world.settle();
    assert_eq!(world.shard.usage(Tier::Gpu), Default::default(), "and that nobody committed");
}

#[test]
fn given_a_ttl_when_it_passes_then_device_memory_is_free() {
    let mut world = new_world();
    let key = world.new_key();
    let Request::Allocate(request) = allocation(key, Tier::Gpu, SIZE) else { unreachable!("an allocation") };
    world.ask(Request::Allocate(request::Allocate { ttl_ms: Some(1000), ..request })).expect("allocated");
    world.ask(Request::Commit { key, checksum: None, batch: None }).expect("committed");
    world.pass(1001);
    world.settle();
    assert_eq!(world.shard.usage(Tier::Gpu), Default::default());
    assert_eq!(world.ask(Request::Resolve { key }).expect_err("gone").kind, ErrorKind::NotFound);
}

#[test]
fn given_a_lost_device_when_asked_then_only_what_was_there_alone_is_damaged_and_other_tiers_go_on() {
    let mut world = new_world();
    let alone = world.committed(Tier::Gpu, SIZE);
    let twice = world.committed(Tier::Disk, SIZE);
    world.ask(promote(twice, Tier::Gpu)).expect("promoted");
    let number = world.send(spill(alone, DISK, false));
    world.transfer_one(Err(TransferError::Source(lost())));
    world.settle();
    assert_eq!(world.answer(number).expect("answered").expect_err("lost").kind, ErrorKind::DataLoss);
    let scrub = Scrub { key: twice, tier: Some(Tier::Gpu), bytes_per_second: 0, seen: Vec::new() };
    let number = world.send(Request::Scrub(scrub));
    let op = world.storage.pop_front().expect("looked at");
    world.complete(Completion::Storage(StorageDone::Verified { op: op.op, result: Err(lost()) }));
    world.settle();
    assert!(matches!(world.answer(number), Some(Ok(Reply::Scrubbed(_)))));
    assert_eq!(world.lease(twice).descriptor.tier, Tier::Disk, "its file serves it");
    let key = world.new_key();
    let number = world.send(allocation(key, Tier::Gpu, SIZE));
    let op = world.storage.pop_front().expect("to be made");
    world.complete(Completion::Storage(StorageDone::Created { op: op.op, result: Err(lost()) }));
    assert_eq!(world.answer(number).expect("answered").expect_err("lost").kind, ErrorKind::Unavailable);
    let other = world.committed(Tier::Ram, SIZE);
    delete_all(&mut world, &[alone, twice, other]);
}

#[test]
fn given_a_stop_when_it_has_time_then_devices_are_emptied_and_when_it_has_none_the_lost_are_named() {
    let mut world = new_world();
    let keys: Vec<_> = (0..3).map(|_| world.committed(Tier::Gpu, SIZE / 2)).collect();
    let kept = world.committed(Tier::Ram, SIZE);
    let uncommitted = world.allocate(Tier::Gpu, SIZE / 2);
    let until = world.in_ms(5000);
    let number = world.send_until(Request::SpillArenas, until);
    let mut answer = None;
    for _ in 0..100 {
        world.settle();
        world.pass(2);
        answer = answer.or_else(|| world.answer(number));
    }
    let done = Reply::ArenasSpilled(ArenasSpilled { spilled: 3, lost: Vec::new(), lost_more: 0 });
    assert_eq!(answer, Some(Ok(done)));
    assert!(keys.iter().all(|key| world.describe(*key).tier == Tier::Disk));
    assert_eq!(world.describe(kept).tier, Tier::Ram, "a segment outlives the server");
    let late = world.new_key();
    let refused = world.ask(allocation(late, Tier::Gpu, SIZE)).expect_err("stopping");
    assert_eq!(refused.kind, ErrorKind::Unavailable);
    let refused = world.ask(Request::Commit { key: uncommitted, checksum: None, batch: None });
    assert_eq!(refused.expect_err("stopping").kind, ErrorKind::Unavailable);

    let mut world = new_world();
    let key = world.committed(Tier::Gpu, SIZE);
    let until = world.in_ms(50);
    let number = world.send_until(Request::SpillArenas, until);
    world.pass(60);
    match world.answer(number) {
        Some(Ok(Reply::ArenasSpilled(done))) => assert_eq!(done.lost, [key.id]),
        other => panic!("not told: {other:?}"),
    }
}

#[test]
fn given_what_a_node_lacks_when_asked_for_gpu_then_the_refusal_says_which() {
    let mut world = new_world();
    let payload_max = Some(ByteCount(SIZE));
    world.shard.limit(Tier::Gpu, TierLimits { payload_max, absent: None });
    let key = world.new_key();
    let refused = world.ask(allocation(key, Tier::Gpu, SIZE + 1)).expect_err("too large");
    assert_eq!(refused.kind, ErrorKind::ResourceExhausted);
    assert!(refused.message.contains("largest of its devices"), "{}", refused.message);
    world.ask(allocation(key, Tier::Gpu, SIZE)).expect("fits");

    let mut world = World::new();
    let key = world.committed(Tier::Ram, SIZE);
    let refused = world.ask(promote(key, Tier::Gpu)).expect_err("no tier");
    assert!(refused.message.contains("GPU is not configured"), "{}", refused.message);
    let absent = Some("no GPU driver; install one".into());
    world.shard.limit(Tier::Gpu, TierLimits { payload_max: None, absent });
    for refused in [world.ask(promote(key, Tier::Gpu)), world.ask(acquire(key, Some(Tier::Gpu)))] {
        let refused = refused.expect_err("no tier");
        assert_eq!(refused.kind, ErrorKind::FailedPrecondition);
        assert!(refused.message.contains("GPU") && refused.message.contains("no GPU driver"), "{refused}");
    }
    let key = world.new_key();
    assert!(
        world.ask(allocation(key, Tier::Gpu, SIZE)).expect_err("no tier").message.contains("no GPU driver")
    );
}
