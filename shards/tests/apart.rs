//! Leases of clients that may set lengths, on payloads that share a file: these get a file of their own first.

#[allow(dead_code, reason = "every test binary uses its own part")]
mod world;

use std::num::NonZeroU32;

use payload_types::effect::{CatalogChange, ReplicaRef, StorageAction, TransferOp};
use payload_types::event::{Completion, Copied, DriverError, DriverErrorKind, TransferError};
use payload_types::reply::{LeaseGrant, Reply, ReplyResult};
use payload_types::request::{Acquire, Request};
use payload_types::*;
use world::{CAPACITY, DISK, World, acquisition, promote, spill};

const SIZE: u64 = 5000;
const PAGES: u64 = 8192;

fn extent(file: u32, page: u32) -> Extent {
    Extent { file: NonZeroU32::new(file).expect("not 0"), page }
}

fn moved_to(extent: Extent) -> Result<Copied, TransferError> {
    Ok(Copied { checksum: Checksum(7), extent: Some(extent) })
}

fn broken(kind: DriverErrorKind) -> DriverError {
    DriverError { kind, message: "as the test wants it".into() }
}

/// A lease for a client that may set lengths.
fn v1(key: PayloadKey) -> Acquire {
    Acquire { accepts_packed: false, ..acquisition(key, None) }
}

fn leased(answer: Option<ReplyResult>) -> LeaseGrant {
    match answer {
        Some(Ok(Reply::Leased(grant))) => grant,
        other => panic!("expected a lease, got {other:?}"),
    }
}

fn disk(world: &World) -> u64 {
    world.shard.usage(Tier::Disk).allocated
}

fn dropped(world: &World) -> Vec<ReplicaRef> {
    world.storage.iter().filter(|op| op.action == StorageAction::Drop).map(|op| op.replica).collect()
}

/// A disk with no more than `free` bytes, and nothing on it that could be evicted.
fn filled(world: &mut World, free: u64) {
    let rest = CAPACITY - disk(world) - free;
    world.committed(Tier::Disk, rest);
}

#[test]
fn given_a_packed_payload_when_leased_by_who_may_set_lengths_then_it_has_a_file_of_its_own_first() {
    let mut world = World::new();
    let (key, old) = world.packed(extent(1, 2), SIZE);
    let before = world.describe(key);
    let first = world.send(Request::Acquire(v1(key)));
    let TransferOp { from, to, sync, alone, salvage, expected, .. } = world.transfers[0];
    assert_eq!((from, to.tier, to.size, to.extent), (old, Tier::Disk, old.size, None));
    assert_eq!((sync, alone, salvage, expected), (true, true, false, Some(Checksum(7))));
    assert_eq!(disk(&world), 2 * PAGES, "a copy like any other");
    let second = world.send(Request::Acquire(v1(key)));
    assert_eq!(world.transfers.len(), 1, "it joined");
    let reader = world.lease_now(key);
    assert_eq!(
        reader.descriptor.location,
        Some(Location::Packed(extent(1, 2))),
        "who reads in place waits for nobody"
    );

    world.transfer_one(Ok(Checksum(7)));
    let CatalogChange::Put(row) = &world.catalog[0].change else { panic!("a row is stored") };
    let shown: Vec<_> =
        row.replicas.iter().map(|row| (row.tier, row.generation, row.extent, row.synced)).collect();
    assert_eq!(shown, [(Tier::Disk, to.generation, None, true)]);
    assert!(world.answer(first).is_none(), "a start would find it packed");
    world.ack_one(Ok(()));
    for number in [first, second] {
        let LeaseGrant { descriptor, .. } = leased(world.answer(number));
        assert_eq!(descriptor.location, Some(Location::File(to.generation)));
        assert_eq!((descriptor.state, descriptor.tier), (PayloadState::Durable, Tier::Disk));
        assert!(descriptor.version > before.version);
    }
    assert!(dropped(&world).is_empty(), "its old place is leased");
    world.send(Request::Release { lease: reader.lease, by: None });
    assert_eq!(dropped(&world), [old]);
    assert_eq!(disk(&world), 2 * PAGES, "charged until its file is recycled");
    world.settle();
    assert_eq!(disk(&world), PAGES);
    let again = world.send(Request::Acquire(v1(key)));
    assert_eq!(
        leased(world.answer(again)).descriptor.location,
        Some(Location::File(to.generation)),
        "at once"
    );
    let moved = world.shard.stats().tiers[Tier::Disk].moved;
    assert_eq!((moved.spilled_bytes, moved.promoted_bytes), (SIZE, 0), "neither a spill nor a promotion");
    world.shard.check_accounting().expect("balanced");
}

#[test]
fn given_a_copy_in_memory_when_leased_then_that_is_shown_and_after_the_next_spill_it_is_copied_again() {
    let mut world = World::new();
    let (key, _) = world.packed(extent(1, 2), SIZE);
    world.ask(promote(key, Tier::Ram)).expect("promoted");
    let number = world.send(Request::Acquire(v1(key)));
    let grant = leased(world.answer(number));
    assert_eq!((grant.descriptor.tier, world.transfers.len()), (Tier::Ram, 0));
    world.ask(Request::Release { lease: grant.lease, by: None }).expect("released");
    world.ask(spill(key, DISK, false)).expect("spilled");
    for tier in [Some(Tier::Disk), Some(Tier::Object)] {
        let number = world.send(Request::Acquire(Acquire { min_tier: tier, ..v1(key) }));
        assert_eq!(world.transfers.len(), 1, "{tier:?}: still packed");
        world.transfer_one(Err(TransferError::Destination(broken(DriverErrorKind::Io))));
        let refused = world.answer(number).expect("answered").expect_err("no file of its own");
        assert_eq!(refused.kind, ErrorKind::Unavailable);
        assert!(refused.message.contains("accepts_packed"), "{refused}");
        assert_eq!(disk(&world), PAGES);
    }
    assert_eq!(world.describe(key).location, Some(Location::Packed(extent(1, 2))), "nothing has changed");
    world.shard.check_accounting().expect("balanced");
}

#[test]
fn given_a_full_disk_when_a_file_of_its_own_has_no_room_then_refused_with_the_breakdown_and_in_time() {
    for deadline in [None, Some(50)] {
        let mut world = World::new();
        let (key, _) = world.packed(extent(1, 2), SIZE);
        filled(&mut world, PAGES - 4096);
        let deadline_at = deadline.and_then(|deadline| world.in_ms(deadline));
        let number = world.send_until(Request::Acquire(v1(key)), deadline_at);
        world.pass(deadline.unwrap_or(limits::ALLOCATE_WAIT_MS_DEFAULT) - 1);
        assert!(world.answer(number).is_none(), "it waits for space");
        assert!(world.lease_now(key).descriptor.location.is_some(), "others go on");
        world.pass(1);
        let refused = world.answer(number).expect("in time").expect_err("no room");
        assert_eq!(refused.kind, ErrorKind::ResourceExhausted);
        assert!(
            refused.message.contains("accepts_packed") && refused.message.contains("leased"),
            "{refused}"
        );
        world.shard.check_accounting().expect("balanced");
    }
}

#[test]
fn given_a_full_disk_when_space_is_freed_then_the_lease_that_waits_for_it_is_granted() {
    let mut world = World::new();
    let (key, _) = world.packed(extent(1, 2), SIZE);
    let other = world.committed(Tier::Disk, SIZE);
    filled(&mut world, 0);
    let number = world.send(Request::Acquire(v1(key)));
    assert!(world.transfers.is_empty());
    world.ask(Request::Delete { key: other, force: false, expected_version: None }).expect("deleted");
    assert!(matches!(leased(world.answer(number)).descriptor.location, Some(Location::File(_))));
    world.shard.check_accounting().expect("balanced");
}

#[test]
fn given_a_best_effort_wish_for_memory_when_leased_then_that_is_shown_or_a_file_of_its_own() {
    for fits in [true, false] {
        let mut world = World::new();
        let (key, _) = world.packed(extent(1, 2), SIZE);
        if !fits {
            world.pinned(Tier::Ram, CAPACITY);
        }
        let (min_tier, policy) = (Some(Tier::Ram), PromotionPolicy::BestEffort);
        let number = world.send(Request::Acquire(Acquire { min_tier, policy, ..v1(key) }));
        assert!(world.answer(number).is_none(), "what is there cannot be shown");
        if fits {
            world.transfer_one(Ok(Checksum(7)));
            assert_eq!(leased(world.answer(number)).descriptor.tier, Tier::Ram);
            continue;
        }
        world.pass(500);
        assert!(world.transfers[0].alone, "the promotion found no room: {:?}", world.transfers);
        world.transfer_one(Ok(Checksum(7)));
        world.ack_one(Ok(()));
        assert!(matches!(leased(world.answer(number)).descriptor.location, Some(Location::File(_))));
        world.shard.check_accounting().expect("balanced");
    }
}

#[test]
fn given_a_relocation_under_way_when_leased_then_the_copy_is_made_from_where_it_went() {
    let mut world = World::new();
    let (key, old) = world.packed(extent(1, 2), SIZE);
    world.complete(Completion::Relocate(old));
    let number = world.send(Request::Acquire(v1(key)));
    world.transfer_to(moved_to(extent(2, 9)));
    world.ack_one(Ok(()));
    let TransferOp { from, alone, .. } = world.transfers[0];
    assert_eq!((from.extent, alone), (Some(extent(2, 9)), true));
    world.complete(Completion::Relocate(from));
    let refusal = world.storage.pop_back().expect("answered at once");
    assert_eq!((refusal.action, refusal.replica), (StorageAction::Stay, from), "one move at a time");
    world.settle();
    assert!(matches!(leased(world.answer(number)).descriptor.location, Some(Location::File(_))));
    assert_eq!(disk(&world), PAGES);
    world.shard.check_accounting().expect("balanced");
}

#[test]
fn given_a_delete_or_a_catalog_that_fails_when_the_file_of_its_own_is_made_then_nothing_of_it_is_left() {
    for deletes in [true, false] {
        let mut world = World::new();
        let (key, _) = world.packed(extent(1, 2), SIZE);
        let number = world.send(Request::Acquire(v1(key)));
        let made = world.transfers[0].to;
        if deletes {
            world.send(Request::Delete { key, force: false, expected_version: None });
            world.ack_one(Ok(()));
        }
        world.transfer_one(Ok(Checksum(7)));
        if !deletes {
            world.ack_one(Err("locked".into()));
        }
        let refused = world.answer(number).expect("answered").expect_err("no lease");
        assert_eq!(refused.kind, if deletes { ErrorKind::NotFound } else { ErrorKind::Unavailable });
        assert!(dropped(&world).contains(&made));
        world.settle();
        assert_eq!(disk(&world), if deletes { 0 } else { PAGES });
        world.shard.check_accounting().expect("balanced");
    }
}

#[test]
fn given_a_damaged_place_when_the_file_of_its_own_is_made_then_data_loss_and_no_lease_on_other_bytes() {
    let mut world = World::new();
    let (key, _) = world.packed(extent(1, 2), SIZE);
    let number = world.send(Request::Acquire(v1(key)));
    world.transfer_one(Err(TransferError::Source(broken(DriverErrorKind::Corrupt))));
    world.settle();
    let refused = world.answer(number).expect("answered").expect_err("no lease");
    assert_eq!(refused.kind, ErrorKind::DataLoss);
    assert_eq!(disk(&world), PAGES);
    world.shard.check_accounting().expect("balanced");
}

#[test]
fn given_an_expected_version_when_leased_then_it_is_the_one_before_the_copy_that_counts() {
    let mut world = World::new();
    let (key, _) = world.packed(extent(1, 2), SIZE);
    let present = world.describe(key).version;
    let stale = Acquire { expected_version: Some(Version(present.0 - 1)), ..v1(key) };
    let refused = world.ask(Request::Acquire(stale)).expect_err("another version");
    assert_eq!((refused.kind, world.transfers.len()), (ErrorKind::FailedPrecondition, 0));
    let right = Acquire { expected_version: Some(present), ..v1(key) };
    let Ok(Reply::Leased(grant)) = world.ask(Request::Acquire(right)) else { panic!("granted") };
    assert!(grant.descriptor.version > present);
}
