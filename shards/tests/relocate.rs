//! Relocation: the disk store's wish to move a packed replica, and all that may come in its way. Packed replicas in limbo.

#[allow(dead_code, reason = "every test binary uses its own part")]
mod world;

use std::num::NonZeroU32;

use payload_types::effect::{CatalogChange, ReplicaRef, StorageAction, TransferOp};
use payload_types::event::{Completion, Copied, DriverError, DriverErrorKind, StorageDone, TransferError};
use payload_types::request::Request;
use payload_types::tier::SpillTarget;
use payload_types::*;
use world::{DISK, World, promote, spill};

const SIZE: u64 = 5000;
const PAGES: u64 = 8192;

fn extent(file: u32, page: u32) -> Extent {
    Extent { file: NonZeroU32::new(file).expect("not 0"), page }
}

fn copied(extent: Extent) -> Result<Copied, TransferError> {
    Ok(Copied { checksum: Checksum(7), extent: Some(extent) })
}

fn broken(kind: DriverErrorKind) -> DriverError {
    DriverError { kind, message: "as the test wants it".into() }
}

fn packed(world: &mut World, at: Extent) -> (PayloadKey, ReplicaRef) {
    world.packed(at, SIZE)
}

fn relocate(world: &mut World, replica: ReplicaRef) {
    world.complete(Completion::Relocate(replica));
}

/// True when the last wish was refused.
fn stays(world: &mut World, replica: ReplicaRef) -> bool {
    let before = world.storage.len();
    relocate(world, replica);
    let refused = world.storage.len() > before;
    if refused {
        let op = world.storage.pop_back().expect("just counted");
        assert_eq!((op.action, op.replica), (StorageAction::Stay, replica));
    }
    refused
}

fn disk(world: &World) -> u64 {
    world.shard.usage(Tier::Disk).allocated
}

fn dropped(world: &World) -> Vec<ReplicaRef> {
    world.storage.iter().filter(|op| op.action == StorageAction::Drop).map(|op| op.replica).collect()
}

#[test]
fn given_a_packed_replica_when_the_store_wants_it_moved_then_it_moves_without_a_charge_and_the_old_one_goes_free()
 {
    let mut world = World::new();
    let (key, old) = packed(&mut world, extent(1, 2));
    let before = world.describe(key);
    assert_eq!(before.location, Some(Location::Packed(extent(1, 2))));
    relocate(&mut world, old);
    let TransferOp { from, to, sync, expected, .. } = world.transfers[0];
    assert_eq!(from, old);
    assert_eq!((to.tier, to.size, to.extent, sync), (Tier::Disk, old.size, None, true));
    assert_ne!(to.generation, old.generation);
    assert_eq!(expected, Some(Checksum(7)));
    assert_eq!(disk(&world), PAGES, "the copy is not charged");
    world.transfer_to(copied(extent(2, 9)));
    let CatalogChange::Put(row) = &world.catalog[0].change else { panic!("a row is stored") };
    let shown: Vec<_> = row.replicas.iter().map(|row| (row.tier, row.generation, row.extent)).collect();
    assert_eq!(shown, [(Tier::Disk, to.generation, Some(extent(2, 9)))]);
    assert!(row.version > before.version);
    assert!(dropped(&world).is_empty(), "the old place is named until the row is durable");
    assert_eq!(world.lease_now(key).descriptor, before);
    world.ack_one(Ok(()));
    let after = world.describe(key);
    assert_eq!((after.state, after.tier), (PayloadState::Durable, Tier::Disk));
    assert_eq!(after.location, Some(Location::Packed(extent(2, 9))));
    assert!(after.version > before.version);
    assert_eq!(disk(&world), PAGES);
    world.shard.check_accounting().expect("balanced");
}

#[test]
fn given_a_lease_on_the_old_extent_when_relocated_then_it_is_kept_until_the_release_and_uncharged() {
    let mut world = World::new();
    let (key, old) = packed(&mut world, extent(1, 2));
    let grant = world.lease(key);
    relocate(&mut world, old);
    world.transfer_to(copied(extent(2, 9)));
    world.ack_one(Ok(()));
    assert!(dropped(&world).is_empty(), "leased");
    let newer = world.lease_now(key);
    assert_eq!(newer.descriptor.location, Some(Location::Packed(extent(2, 9))));
    let usage = world.shard.usage(Tier::Disk);
    assert_eq!((usage.allocated, usage.limbo), (PAGES, 0), "limbo holds nothing that is charged");
    world.send(Request::Release { lease: grant.lease, by: None });
    assert_eq!(dropped(&world), [old], "with its extent");
    world.settle();
    assert_eq!(disk(&world), PAGES, "what was freed had no charge");
    world.send(Request::Release { lease: newer.lease, by: None });
    world.ask(Request::Delete { key, force: false, expected_version: None }).expect("deleted");
    assert_eq!(disk(&world), 0);
    world.shard.check_accounting().expect("balanced");
}

#[test]
fn given_anything_in_the_way_when_asked_to_move_then_it_stays() {
    let mut world = World::new();
    let (key, old) = packed(&mut world, extent(1, 2));
    let other_generation = ReplicaRef { generation: Generation(old.generation.0 + 1), ..old };
    let other_extent = ReplicaRef { extent: Some(extent(1, 3)), ..old };
    let other_id = ReplicaRef { id: world.new_key().id, ..old };
    for wrong in [other_generation, other_extent, other_id, ReplicaRef { extent: None, ..old }] {
        assert!(stays(&mut world, wrong), "{wrong:?}");
    }
    world.send(promote(key, Tier::Ram));
    assert!(stays(&mut world, old), "a copy is under way");
    world.settle();
    assert!(!stays(&mut world, old), "a copy in memory is in nobody's way");
    assert!(stays(&mut world, old), "it is on its way already");
    world.transfer_to(Err(TransferError::Destination(broken(DriverErrorKind::Full))));
    world.ask(Request::Pin { key, duration_ms: None, owner: Peer::UNKNOWN }).expect("pinned");
    assert!(!stays(&mut world, old), "a pin is in nobody's way");
    world.transfer_to(Err(TransferError::Destination(broken(DriverErrorKind::Full))));
    world.send(Request::Delete { key, force: false, expected_version: None });
    assert!(stays(&mut world, old), "it is being deleted");
    world.settle();
    assert!(stays(&mut world, old), "it is gone");
    world.shard.check_accounting().expect("balanced");
}

#[test]
fn given_as_many_relocations_as_upkeep_has_slots_when_another_is_wanted_then_it_stays() {
    let mut config = world::config(1);
    config.capacity[Tier::Disk] = Some(ByteCount(1 << 24));
    let mut world = World::with(config);
    let pages = 0..=limits::OPS_FOR_UPKEEP as u32;
    let mut replicas: Vec<ReplicaRef> = pages.map(|page| packed(&mut world, extent(1, page * 2)).1).collect();
    let last = replicas.pop().expect("there are some");
    for replica in &replicas {
        assert!(!stays(&mut world, *replica));
    }
    assert!(stays(&mut world, last), "no slot is left");
    world.transfer_to(Err(TransferError::Destination(broken(DriverErrorKind::Full))));
    assert!(!stays(&mut world, last));
}

#[test]
fn given_a_relocation_that_fails_when_the_disk_or_the_catalog_refuses_it_then_nothing_has_changed() {
    let mut world = World::new();
    let (key, old) = packed(&mut world, extent(1, 2));
    let before = world.describe(key);
    relocate(&mut world, old);
    world.transfer_to(Err(TransferError::Destination(broken(DriverErrorKind::Io))));
    assert_eq!((world.describe(key), disk(&world)), (before.clone(), PAGES));
    relocate(&mut world, old);
    let made = world.transfers[0].to;
    world.transfer_to(copied(extent(2, 9)));
    world.ack_one(Err("locked".into()));
    assert_eq!(dropped(&world), [ReplicaRef { extent: Some(extent(2, 9)), ..made }]);
    assert_eq!(disk(&world), PAGES, "what was made has no charge");
    world.settle();
    assert_eq!((world.describe(key), disk(&world)), (before, PAGES));
    world.shard.check_accounting().expect("balanced");
}

#[test]
fn given_a_delete_during_a_relocation_when_it_arrives_then_what_was_made_goes_uncharged_and_the_rest_charged()
{
    for force in [false, true] {
        let mut world = World::new();
        let (key, old) = packed(&mut world, extent(1, 2));
        if force {
            world.lease(key);
        }
        relocate(&mut world, old);
        let made = world.transfers[0].to;
        let number = world.send(Request::Delete { key, force, expected_version: None });
        world.ack_one(Ok(()));
        assert!(world.answer(number).expect("not held up by the relocation").is_ok());
        assert!(dropped(&world).is_empty(), "it is being read");
        world.transfer_to(copied(extent(2, 9)));
        assert_eq!(dropped(&world), [old, ReplicaRef { extent: Some(extent(2, 9)), ..made }]);
        assert_eq!(disk(&world), PAGES, "one charge for the two");
        world.settle();
        assert_eq!(disk(&world), 0);
        world.shard.check_accounting().expect("balanced");
    }
}

#[test]
fn given_a_delete_that_fails_during_a_relocation_when_the_copy_ends_then_the_old_place_is_kept() {
    let mut world = World::new();
    let (key, old) = packed(&mut world, extent(1, 2));
    relocate(&mut world, old);
    world.send(Request::Delete { key, force: false, expected_version: None });
    world.transfer_to(copied(extent(2, 9)));
    world.ack_one(Err("locked".into()));
    world.settle();
    assert_eq!(world.describe(key).location, Some(Location::Packed(extent(1, 2))));
    assert_eq!(disk(&world), PAGES);
    world.shard.check_accounting().expect("balanced");
}

#[test]
fn given_a_relocation_when_promoted_or_spilled_then_the_request_waits_for_it_and_is_done_afterwards() {
    let mut world = World::new();
    let (key, old) = packed(&mut world, extent(1, 2));
    relocate(&mut world, old);
    let number = world.send(promote(key, Tier::Ram));
    assert_eq!(world.transfers.len(), 1, "not joined, not started");
    world.transfer_to(copied(extent(2, 9)));
    assert!(world.answer(number).is_none());
    world.ack_one(Ok(()));
    let again = world.transfers[0];
    assert_eq!((again.from.extent, again.to.tier), (Some(extent(2, 9)), Tier::Ram));
    world.settle();
    world.answer(number).expect("answered").expect("promoted");
    let moved = ReplicaRef { extent: Some(extent(2, 9)), ..again.from };
    relocate(&mut world, moved);
    let number = world.send(spill(key, DISK, false));
    assert!(world.answer(number).is_none());
    world.transfer_to(Err(TransferError::Source(broken(DriverErrorKind::Io))));
    world.settle();
    world.answer(number).expect("answered").expect("spilled all the same");
    assert_eq!(world.describe(key).location, Some(Location::Packed(extent(2, 9))));
}

#[test]
fn given_a_damaged_extent_with_a_sound_copy_in_memory_when_relocated_then_it_is_marked_and_written_anew() {
    let mut world = World::new();
    let (key, old) = packed(&mut world, extent(1, 2));
    world.ask(promote(key, Tier::Ram)).expect("promoted");
    relocate(&mut world, old);
    world.transfer_to(Err(TransferError::Source(broken(DriverErrorKind::Corrupt))));
    let CatalogChange::Put(row) = &world.catalog[0].change else { panic!("a row is stored") };
    let shown: Vec<_> = row.replicas.iter().map(|row| (row.tier, row.sound)).collect();
    assert_eq!(shown, [(Tier::Ram, true), (Tier::Disk, false)]);
    assert!(dropped(&world).is_empty(), "the row still names it");
    world.ack_one(Ok(()));
    assert_eq!((world.transfers[0].from.tier, world.transfers[0].to.tier), (Tier::Ram, Tier::Disk));
    assert_eq!(disk(&world), 2 * PAGES, "this one is charged: it is no relocation");
    world.transfer_to(copied(extent(3, 1)));
    world.settle();
    assert_eq!(disk(&world), PAGES);
    world.ask(spill(key, DISK, false)).expect("spilled");
    assert_eq!(world.describe(key).location, Some(Location::Packed(extent(3, 1))));
    world.shard.check_accounting().expect("balanced");
}

#[test]
fn given_a_payload_without_a_sound_replica_when_its_file_is_emptied_then_it_is_moved_as_it_is_and_never_served()
 {
    let mut world = World::new();
    let (key, old) = packed(&mut world, extent(1, 2));
    relocate(&mut world, old);
    assert!(!world.transfers[0].salvage, "nothing bad is known of it");
    world.transfer_to(Err(TransferError::Source(broken(DriverErrorKind::Corrupt))));
    world.settle();
    let lost = |world: &mut World| world.ask(world::acquire(key, None)).expect_err("never served").kind;
    assert_eq!(lost(&mut world), ErrorKind::DataLoss);
    relocate(&mut world, old);
    let TransferOp { to, salvage, expected, .. } = world.transfers[0];
    assert_eq!((salvage, expected), (true, Some(Checksum(7))), "without a claim, and it keeps its checksum");
    world.transfer_to(copied(extent(2, 9)));
    let CatalogChange::Put(row) = &world.catalog[0].change else { panic!("a row is stored") };
    let row = (**row).clone();
    assert_eq!((row.health, row.checksum), (Health::Damaged, Some(Checksum(7))));
    assert_eq!(row.replicas[0].extent, Some(extent(2, 9)));
    world.ack_one(Ok(()));
    assert_eq!(dropped(&world), [old], "its file can be used again");
    world.settle();
    assert_eq!((disk(&world), lost(&mut world)), (PAGES, ErrorKind::DataLoss));
    world.shard.check_accounting().expect("balanced");

    let mut next = World::with(world::config(2));
    next.shard.adopt(next.now, row, PerTier([false, false, true, false]));
    assert_eq!(lost(&mut next), ErrorKind::DataLoss, "after a start, too");
    relocate(&mut next, ReplicaRef { extent: Some(extent(2, 9)), ..to });
    assert!(next.transfers[0].salvage);
}

#[test]
fn given_a_damaged_extent_that_cannot_be_written_anew_when_its_file_is_emptied_then_memory_goes_on_standing_in()
 {
    let mut world = World::new();
    let (key, old) = packed(&mut world, extent(1, 2));
    world.ask(promote(key, Tier::Ram)).expect("promoted");
    relocate(&mut world, old);
    world.transfer_to(Err(TransferError::Source(broken(DriverErrorKind::Corrupt))));
    world.ack_one(Ok(()));
    world.transfer_to(Err(TransferError::Destination(broken(DriverErrorKind::Full))));
    relocate(&mut world, old);
    assert!(world.transfers[0].salvage);
    world.transfer_to(copied(extent(2, 9)));
    let CatalogChange::Put(row) = &world.catalog[0].change else { panic!("a row is stored") };
    let shown: Vec<_> = row.replicas.iter().map(|row| (row.tier, row.sound)).collect();
    assert_eq!((row.health, shown), (Health::Good, vec![(Tier::Ram, true), (Tier::Disk, false)]));
    world.settle();
    let number = world.send(spill(key, DISK, false));
    assert_eq!(world.transfers[0].from.tier, Tier::Ram, "it is no twin: a spill writes it anew");
    world.transfer_to(copied(extent(3, 1)));
    world.settle();
    world.answer(number).expect("answered").expect("spilled");
    assert_eq!(world.describe(key).location, Some(Location::Packed(extent(3, 1))));
    world.shard.check_accounting().expect("balanced");
}

#[test]
fn given_victims_when_the_first_is_relocated_then_their_order_is_the_same() {
    let mut world = World::new();
    world.pass(1000);
    let policy = EvictionPolicy { spill_target: Some(SpillTarget::Void), ..Default::default() };
    let mut replicas = Vec::new();
    for page in 0..3 {
        let key = world.new_key();
        let mut request = world::allocation(key, Tier::Ram, SIZE);
        if let Request::Allocate(request) = &mut request {
            request.policy = policy;
        }
        world.ask(request).expect("allocated");
        world.ask(Request::Commit { key, checksum: None, batch: None }).expect("committed");
        let number = world.send(spill(key, DISK, false));
        let to = world.transfers[0].to;
        world.transfer_to(copied(extent(1, page * 2)));
        world.settle();
        world.answer(number).expect("answered").expect("spilled");
        replicas.push(ReplicaRef { extent: Some(extent(1, page * 2)), ..to });
        world.pass(1000);
    }
    let order = |world: &World| world.shard.victims(Tier::Disk).map(|victim| victim.key).collect::<Vec<_>>();
    let before = order(&world);
    assert_eq!(before.len(), 3);
    relocate(&mut world, replicas[0]);
    assert_eq!(order(&world), before[1..], "a payload that is worked on is no victim");
    world.transfer_to(copied(extent(2, 0)));
    world.settle();
    assert_eq!(order(&world), before);
    assert_eq!(world.shard.stats().tiers[Tier::Disk].moved.evictions, 0);
}

#[test]
fn given_a_packed_replica_that_was_dropped_when_its_file_is_not_recycled_then_it_counts_as_leaving_for_seconds()
 {
    let mut world = World::new();
    let (key, _) = packed(&mut world, extent(1, 2));
    let own = world.committed(Tier::Disk, SIZE);
    for key in [key, own] {
        world.send(Request::Delete { key, force: false, expected_version: None });
        world.ack_one(Ok(()));
    }
    while !world.storage.is_empty() {
        world.store_one();
    }
    let leaving = |world: &World| world.shard.supply(Tier::Disk).leaving;
    assert_eq!(leaving(&world), 2 * PAGES);
    world.pass(1_000);
    assert_eq!(leaving(&world), PAGES, "somebody has the own file open");
    world.pass(5_000);
    assert_eq!(leaving(&world), 0);
    assert_eq!(disk(&world), 2 * PAGES, "charged all the while");
    world.free_all();
    assert_eq!(disk(&world), 0);
}

#[test]
fn given_dead_records_and_held_files_when_adopted_then_they_are_charged_until_freed() {
    let mut world = World::with(world::config(2));
    let dead = |generation: u64, extent: Option<Extent>| ReplicaRef {
        tier: Tier::Disk,
        id: PayloadId::mint(generation << 12, generation),
        generation: Generation(generation),
        size: ByteCount(SIZE),
        extent,
        block: None,
    };
    let packed: Vec<ReplicaRef> =
        (1..=20).map(|number| dead(number, Some(extent(1, number as u32)))).collect();
    let held = dead(99, None);
    for replica in packed.iter().chain([&held]) {
        world.shard.adopt_held(world.now, *replica);
    }
    assert_eq!(disk(&world), 21 * PAGES);
    assert_eq!(world.shard.budget_held()[Tier::Disk].0, 21 * PAGES, "the arbiter is told");
    assert_eq!(world.shard.supply(Tier::Disk).leaving, 20 * PAGES, "the held one is somebody's");
    world.pass(payload_shards::limbo::PACKED_FREED_SOON_MS + 10);
    assert_eq!(world.shard.supply(Tier::Disk).leaving, 0, "by now it is a reader who keeps their file");
    assert!(world.shard.is_quiet(), "no driver is told to drop what it reported itself");
    for replica in packed.iter().chain([&held]) {
        let (tier, generation) = (replica.tier, replica.generation);
        world.complete(Completion::Storage(StorageDone::Freed { tier, generation }));
    }
    assert_eq!(disk(&world), 0);
    world.shard.check_accounting().expect("balanced");
}

#[test]
fn given_a_row_with_an_extent_when_adopted_then_it_is_shown_there_and_can_be_moved() {
    let mut world = World::new();
    let key = world.committed(Tier::Ram, SIZE);
    world.send(spill(key, DISK, false));
    let to = world.transfers[0].to;
    world.transfer_to(copied(extent(4, 40)));
    let CatalogChange::Put(row) = &world.catalog[0].change else { panic!("a row is stored") };
    let mut next = World::with(world::config(2));
    next.shard.adopt(next.now, (**row).clone(), PerTier([false, false, true, false]));
    assert_eq!(next.describe(key).location, Some(Location::Packed(extent(4, 40))));
    relocate(&mut next, ReplicaRef { extent: Some(extent(4, 40)), ..to });
    assert_eq!(next.transfers.len(), 1);
}
