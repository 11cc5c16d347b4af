//! Situations of behaviour.md, one at a time, with every step of the world under the test's control.

mod pressure;
#[allow(dead_code, reason = "every test binary uses its own part")]
mod world;

use payload_shards::{Adopted, Shard, ShardConfig};
use payload_types::effect::{CatalogChange, StorageAction};
use payload_types::event::{Completion, DriverError, DriverErrorKind, StorageDone, TransferError};
use payload_types::reply::Reply;
use payload_types::request::{List, Request, Spill};
use payload_types::tier::SpillTarget;
use payload_types::*;
use world::{CAPACITY, DISK, World, acquire, allocation, config, kind, promote, spill};

fn broken(kind: DriverErrorKind) -> DriverError {
    DriverError { kind, message: "planned".to_owned() }
}

#[test]
fn given_an_allocation_when_committed_then_active_and_its_version_grew() {
    let mut world = World::new();
    let key = world.allocate(Tier::Ram, 5000);
    let allocated = world.describe(key);
    assert_eq!(
        (allocated.state, allocated.version, allocated.location),
        (PayloadState::Allocated, Version(1), None)
    );
    assert_eq!(kind(Some(world.ask(acquire(key, None)))), Some(ErrorKind::FailedPrecondition));
    world.ask(Request::Commit { key, checksum: Some(Checksum(9)), batch: None }).expect("committed");
    let active = world.describe(key);
    assert_eq!((active.state, active.location), (PayloadState::Active, Some(Location::Segment)));
    assert!(active.version > allocated.version && active.checksum == Some(Checksum(9)));
    let again = world.ask(Request::Commit { key, checksum: None, batch: None });
    assert_eq!(kind(Some(again)), Some(ErrorKind::FailedPrecondition));
}

#[test]
fn given_a_commit_under_way_when_repeated_then_it_joins_and_neither_is_answered_before_the_catalog() {
    let mut world = World::new();
    let key = world.allocate(Tier::Ram, 100);
    let first = world.send(Request::Commit { key, checksum: None, batch: None });
    let second = world.send(Request::Commit { key, checksum: None, batch: None });
    world.store_one();
    assert!(world.replies.is_empty(), "sealed is not committed");
    world.ack_one(Ok(()));
    world.settle();
    for number in [first, second] {
        assert!(matches!(world.answer(number), Some(Ok(Reply::Committed(_)))));
    }
}

#[test]
fn given_a_refusing_catalog_when_committed_then_unavailable_still_allocated_and_a_retry_works() {
    let mut world = World::new();
    let key = world.allocate(Tier::Ram, 100);
    let number = world.send(Request::Commit { key, checksum: None, batch: None });
    world.store_one();
    world.ack_one(Err("disk full".to_owned()));
    assert_eq!(kind(world.answer(number)), Some(ErrorKind::Unavailable));
    assert_eq!(world.describe(key).state, PayloadState::Allocated);
    world.ask(Request::Commit { key, checksum: None, batch: None }).expect("the second attempt is stored");
}

#[test]
fn given_a_truncated_segment_when_committed_then_failed_precondition_and_still_allocated() {
    let mut world = World::new();
    let key = world.allocate(Tier::Ram, 100);
    let number = world.send(Request::Commit { key, checksum: None, batch: None });
    let op = world.storage.pop_front().expect("seal").op;
    world.complete(Completion::Storage(StorageDone::Sealed {
        op,
        result: Err(broken(DriverErrorKind::Truncated)),
    }));
    assert_eq!(kind(world.answer(number)), Some(ErrorKind::FailedPrecondition));
    assert_eq!(world.describe(key).state, PayloadState::Allocated);
}

#[test]
fn given_a_failed_fdatasync_when_committed_then_data_loss_also_the_next_time() {
    let mut world = World::new();
    let key = world.allocate(Tier::Disk, 100);
    let number = world.send(Request::Commit { key, checksum: None, batch: None });
    let op = world.storage.pop_front().expect("seal");
    assert_eq!(op.action, StorageAction::Seal { sync: true });
    let result = Err(broken(DriverErrorKind::SyncFailed));
    world.complete(Completion::Storage(StorageDone::Sealed { op: op.op, result }));
    assert_eq!(kind(world.answer(number)), Some(ErrorKind::DataLoss));
    assert_eq!(
        kind(Some(world.ask(Request::Commit { key, checksum: None, batch: None }))),
        Some(ErrorKind::DataLoss)
    );
}

#[test]
fn given_a_full_tier_when_allocated_then_it_waits_and_is_told_the_breakdown_and_a_delete_makes_room() {
    let mut world = World::new();
    let too_large = world.new_key();
    let refused =
        world.ask(allocation(too_large, Tier::Ram, CAPACITY + 1)).expect_err("larger than the tier");
    assert_eq!(refused.kind, ErrorKind::ResourceExhausted);
    let first = world.pinned(Tier::Ram, CAPACITY - 4096);
    let second = world.new_key();
    let number = world.send_until(allocation(second, Tier::Ram, 4097), world.in_ms(50));
    world.pass(49);
    assert!(world.answer(number).is_none(), "it waits for its deadline");
    world.pass(2);
    let full = world.answer(number).expect("answered").expect_err("two pages do not fit");
    assert_eq!(full.kind, ErrorKind::ResourceExhausted);
    assert!(
        ["allocated", "leased", "pinned", "spilling", "free"].iter().all(|word| full.message.contains(word)),
        "{full}"
    );
    world.ask(Request::Delete { key: first, force: false, expected_version: None }).expect("deleted");
    world.ask(allocation(second, Tier::Ram, CAPACITY)).expect("all of it is free again");
}

#[test]
fn given_two_allocations_that_need_a_grant_when_granted_then_each_has_its_own() {
    let mut world = World::new();
    world.budget_waits = true;
    let keys = [world.new_key(), world.new_key()];
    let numbers = keys.map(|key| world.send(allocation(key, Tier::Ram, 4096)));
    assert_eq!(world.budget.len(), 2, "each operation has its own ask");
    world.answer_budget();
    world.settle();
    for number in numbers {
        assert!(matches!(world.answer(number), Some(Ok(Reply::Allocated(_)))));
    }
}

#[test]
fn given_a_segment_that_somebody_maps_when_deleted_then_it_stays_charged_until_freed() {
    let mut world = World::new();
    let key = world.pinned(Tier::Ram, CAPACITY);
    let number = world.send(Request::Delete { key, force: false, expected_version: None });
    world.ack_one(Ok(()));
    assert!(matches!(world.answer(number), Some(Ok(Reply::Deleted))));
    world.store_one();
    assert_eq!(world.shard.usage(Tier::Ram).limbo, CAPACITY);
    let next = world.new_key();
    let waiting = world.send(allocation(next, Tier::Ram, 4096));
    assert!(world.storage.is_empty(), "nothing is free yet");
    world.free_all();
    world.settle();
    assert!(
        matches!(world.answer(waiting), Some(Ok(Reply::Allocated(_)))),
        "woken by the space that was freed"
    );
    assert_eq!(world.shard.usage(Tier::Ram).allocated, 4096);
}

#[test]
fn given_a_leased_payload_when_deleted_then_lease_conflict_and_force_wins() {
    let mut world = World::new();
    let key = world.committed(Tier::Ram, 100);
    let grant = world.lease(key);
    let refused = world.ask(Request::Delete { key, force: false, expected_version: None });
    assert_eq!(kind(Some(refused)), Some(ErrorKind::LeaseConflict));
    world.ask(Request::Delete { key, force: true, expected_version: None }).expect("forced");
    assert_eq!(kind(Some(world.ask(acquire(key, None)))), Some(ErrorKind::NotFound));
    for _ in 0..2 {
        assert_eq!(world.ask(Request::Release { lease: grant.lease, by: None }), Ok(Reply::Released));
    }
    assert_eq!(
        kind(Some(world.ask(Request::Delete { key, force: true, expected_version: None }))),
        Some(ErrorKind::NotFound)
    );
}

#[test]
fn given_a_lease_when_its_time_passes_then_it_ends_and_the_longest_is_clamped() {
    let mut world = World::new();
    let key = world.committed(Tier::Ram, 100);
    let grant = world.lease(key);
    assert_eq!(grant.expires_at.as_millis() - world.now.wall.as_millis(), 20_000);
    world.pass(20_001);
    world.ask(Request::Delete { key, force: false, expected_version: None }).expect("no lease is left");
}

#[test]
fn given_a_spill_under_way_when_leased_then_granted_on_ram_and_ram_is_dropped_only_after_the_release() {
    let mut world = World::new();
    let key = world.committed(Tier::Ram, 5000);
    let number = world.send(spill(key, DISK, false));
    let grant = world.lease_now(key);
    assert_eq!((grant.descriptor.tier, grant.descriptor.state), (Tier::Ram, PayloadState::Spilling));
    world.transfer_one(Ok(Checksum(1)));
    world.ack_one(Ok(()));
    let Some(Ok(Reply::Spilled(Some(descriptor)))) = world.answer(number) else { panic!("spilled") };
    assert_eq!((descriptor.tier, descriptor.state), (Tier::Disk, PayloadState::Durable));
    assert!(world.storage.is_empty(), "the leased segment is not dropped");
    world.ask(Request::Release { lease: grant.lease, by: None }).expect("released");
    assert_eq!(world.shard.usage(Tier::Ram), Default::default());
}

#[test]
fn given_a_leased_payload_when_spilled_then_refused_or_waits_and_newer_leases_do_not_starve_it() {
    let mut world = World::new();
    let key = world.committed(Tier::Ram, 100);
    let old = world.lease(key);
    assert_eq!(kind(Some(world.ask(spill(key, DISK, false)))), Some(ErrorKind::FailedPrecondition));
    let waiting = world.send(spill(key, DISK, true));
    let newer = world.lease_now(key);
    assert!(world.transfers.is_empty());
    world.send(Request::Release { lease: old.lease, by: None });
    assert_eq!(world.transfers.len(), 1, "the newer lease holds nothing up");
    world.settle();
    assert!(matches!(world.answer(waiting), Some(Ok(Reply::Spilled(Some(_))))));
    assert_eq!(world.shard.usage(Tier::Ram).limbo, 4096, "the newer lease keeps the segment");
    world.send(Request::Release { lease: newer.lease, by: None });
    world.settle();
    assert_eq!(world.shard.usage(Tier::Ram).limbo, 0);
}

#[test]
fn given_a_spill_that_waits_when_its_deadline_passes_then_deadline_exceeded() {
    let mut world = World::new();
    let key = world.committed(Tier::Ram, 100);
    world.lease(key);
    let number = world.send_until(spill(key, DISK, true), Some(world.now.monotonic.plus_millis(50)));
    world.pass(49);
    assert!(world.answer(number).is_none());
    world.pass(2);
    assert_eq!(kind(world.answer(number)), Some(ErrorKind::DeadlineExceeded));
}

#[test]
fn given_a_pin_when_spilled_then_refused_until_it_ends_and_delete_is_not_blocked() {
    let mut world = World::new();
    let key = world.committed(Tier::Ram, 100);
    world.ask(Request::Pin { key, duration_ms: Some(1000), owner: Peer::UNKNOWN }).expect("pinned");
    world
        .ask(Request::Pin { key, duration_ms: Some(10), owner: Peer::UNKNOWN })
        .expect("the longer one wins");
    assert_eq!(world.shard.usage(Tier::Ram).pinned, 4096);
    world.pass(500);
    assert_eq!(kind(Some(world.ask(spill(key, DISK, false)))), Some(ErrorKind::FailedPrecondition));
    world.pass(501);
    world.ask(spill(key, DISK, false)).expect("the pin is over");
    world.ask(Request::Pin { key, duration_ms: None, owner: Peer::UNKNOWN }).expect("pinned");
    world
        .ask(Request::Delete { key, force: false, expected_version: None })
        .expect("a pin does not block it");
}

#[test]
fn given_a_durable_payload_when_promoted_then_both_replicas_stay_and_the_way_down_costs_no_copy() {
    let mut world = World::new();
    let key = world.committed(Tier::Disk, 100);
    let Ok(Reply::Promoted(up)) = world.ask(promote(key, Tier::Ram)) else { panic!("promoted") };
    assert_eq!((up.tier, up.state), (Tier::Ram, PayloadState::Durable));
    let down = world.send(spill(key, DISK, false));
    assert!(world.transfers.is_empty() && world.catalog.is_empty());
    let Some(Ok(Reply::Spilled(Some(there)))) = world.answer(down) else { panic!("spilled") };
    assert!(there.tier == Tier::Disk && there.version > up.version);
}

#[test]
fn given_a_segment_in_limbo_when_promoted_then_it_comes_back_unless_its_driver_was_told() {
    let mut world = World::new();
    let key = world.committed(Tier::Ram, 100);
    let number = world.send(spill(key, DISK, false));
    let grant = world.lease_now(key);
    world.transfer_one(Ok(Checksum(1)));
    world.ack_one(Ok(()));
    world.answer(number).expect("answered").expect("spilled");
    let revived = world.send(promote(key, Tier::Ram));
    let Some(Ok(Reply::Promoted(up))) = world.answer(revived) else { panic!("revived at once") };
    assert!(up.tier == Tier::Ram && world.transfers.is_empty());
    world.send(Request::Release { lease: grant.lease, by: None });

    let down = world.send(spill(key, DISK, false));
    assert!(matches!(world.answer(down), Some(Ok(Reply::Spilled(_)))));
    assert_eq!(world.storage.front().map(|op| op.action), Some(StorageAction::Drop));
    let waiting = world.send(promote(key, Tier::Ram));
    assert!(world.transfers.is_empty(), "the old segment still has the name");
    world.store_one();
    assert_eq!(world.transfers.len(), 1, "the name is free");
    world.settle();
    assert!(matches!(world.answer(waiting), Some(Ok(Reply::Promoted(_)))));
}

#[test]
fn given_a_segment_and_a_file_in_limbo_when_the_file_is_detached_then_the_segment_still_has_its_name() {
    let mut world = World::new();
    let key = world.committed(Tier::Ram, 100);
    world.send(spill(key, DISK, false));
    world.transfer_one(Ok(Checksum(1)));
    world.ack_one(Err("disk full".to_owned()));
    let file = world.storage.pop_front().expect("the file that nobody may use is dropped");
    let again = world.send(spill(key, DISK, false));
    world.transfer_one(Ok(Checksum(1)));
    world.ack_one(Ok(()));
    assert!(matches!(world.answer(again), Some(Ok(Reply::Spilled(_)))));
    world.send(promote(key, Tier::Ram));
    let (tier, generation) = (Tier::Disk, file.replica.generation);
    world.complete(Completion::Storage(StorageDone::Detached { tier, generation }));
    assert!(world.transfers.is_empty(), "the segment was not detached");
    world.store_one();
    assert_eq!(world.transfers.len(), 1);
}

#[test]
fn given_a_copy_under_way_when_deleted_then_answered_at_once_and_what_the_copy_made_is_dropped() {
    let mut world = World::new();
    let key = world.committed(Tier::Ram, 100);
    let spilling = world.send(spill(key, DISK, false));
    let deleting = world.send(Request::Delete { key, force: false, expected_version: None });
    world.ack_one(Ok(()));
    assert!(matches!(world.answer(deleting), Some(Ok(Reply::Deleted))));
    assert_eq!(kind(world.answer(spilling)), Some(ErrorKind::NotFound));
    assert!(world.storage.is_empty(), "the copy still reads the segment");
    world.settle();
    for tier in [Tier::Ram, Tier::Disk] {
        assert_eq!(world.shard.usage(tier), Default::default());
    }
}

#[test]
fn given_a_copy_under_way_when_a_delete_fails_then_the_copy_goes_on() {
    let mut world = World::new();
    let key = world.committed(Tier::Ram, 100);
    let spilling = world.send(spill(key, DISK, false));
    let deleting = world.send(Request::Delete { key, force: false, expected_version: None });
    world.ack_one(Err("disk full".to_owned()));
    assert_eq!(kind(world.answer(deleting)), Some(ErrorKind::Unavailable));
    world.settle();
    assert!(matches!(world.answer(spilling), Some(Ok(Reply::Spilled(Some(_))))));
    assert_eq!(world.describe(key).tier, Tier::Disk);
}

#[test]
fn given_a_newer_lease_when_discarded_by_a_waiting_spill_then_its_bytes_stay_until_the_release() {
    let mut world = World::new();
    let key = world.committed(Tier::Ram, 100);
    let old = world.lease(key);
    let waiting = world.send(spill(key, SpillTarget::Void, true));
    let newer = world.lease_now(key);
    world.send(Request::Release { lease: old.lease, by: None });
    world.settle();
    assert_eq!(world.answer(waiting), Some(Ok(Reply::Spilled(None))));
    assert_eq!(world.shard.usage(Tier::Ram).limbo, 4096);
    world.ask(Request::Release { lease: newer.lease, by: None }).expect("released");
    assert_eq!(world.shard.usage(Tier::Ram).limbo, 0);
}

#[test]
fn given_a_full_disk_when_spilled_then_exhausted_and_the_payload_stays_readable() {
    let mut world = World::new();
    let key = world.committed(Tier::Ram, 100);
    let number = world.send(spill(key, DISK, false));
    world.transfer_one(Err(TransferError::Destination(broken(DriverErrorKind::Full))));
    assert_eq!(kind(world.answer(number)), Some(ErrorKind::ResourceExhausted));
    assert_eq!(world.describe(key).state, PayloadState::Active);
    assert_eq!(world.lease(key).descriptor.tier, Tier::Ram);
    assert_eq!(world.shard.usage(Tier::Disk), Default::default());
}

#[test]
fn given_a_failed_fdatasync_of_the_file_when_spilled_then_memory_goes_only_after_a_new_file() {
    let mut world = World::with(ShardConfig { disk_fsync: false, ..config(1) });
    let key = world.committed(Tier::Disk, 5000);
    world.ask(promote(key, Tier::Ram)).expect("in memory, too");
    let spill = |fsync| {
        let target = Some(SpillTarget::Tier(Tier::Disk));
        let policy = SpillPolicy::Blocking;
        Request::Spill(Spill { key, target, policy, wait_for_leases: false, fsync, expected_version: None })
    };
    let number = world.send(spill(true));
    let op = world.storage.pop_front().expect("the file is synced");
    assert_eq!(op.action, StorageAction::Sync);
    let result = Err(broken(DriverErrorKind::SyncFailed));
    world.complete(Completion::Storage(StorageDone::Synced { op: op.op, result }));
    world.settle();
    world.answer(number).expect("answered").expect_err("not on stable storage");
    assert_eq!(world.describe(key).tier, Tier::Ram);
    let number = world.send(spill(false));
    assert_eq!(
        world.transfers.len(),
        1,
        "what the file holds is unknown, also to a spill that asks for no sync"
    );
    world.settle();
    world.answer(number).expect("answered").expect("spilled");
    assert_eq!(world.describe(key).tier, Tier::Disk);
}

#[test]
fn given_altered_bytes_when_copied_then_data_loss_and_the_row_is_marked() {
    let mut world = World::new();
    let key = world.committed(Tier::Disk, 100);
    let number = world.send(acquire(key, Some(Tier::Ram)));
    world.transfer_one(Err(TransferError::Source(broken(DriverErrorKind::Corrupt))));
    let CatalogChange::Put(row) = &world.catalog[0].change else { panic!("a row is stored") };
    assert_eq!(row.health, Health::Damaged);
    world.settle();
    assert_eq!(kind(world.answer(number)), Some(ErrorKind::DataLoss));
    assert_eq!(kind(Some(world.ask(acquire(key, None)))), Some(ErrorKind::DataLoss));
    world.ask(Request::Delete { key, force: false, expected_version: None }).expect("it can be deleted");
}

#[test]
fn given_a_ttl_when_it_passes_under_a_lease_then_expired_and_removed_at_the_release() {
    let mut world = World::new();
    let key = world.new_key();
    let Request::Allocate(mut request) = allocation(key, Tier::Ram, 100) else { unreachable!() };
    request.ttl_ms = Some(1000);
    world.ask(Request::Allocate(request)).expect("allocated");
    world.ask(Request::Commit { key, checksum: None, batch: None }).expect("committed");
    let grant = world.lease(key);
    world.pass(1001);
    assert_eq!(kind(Some(world.ask(acquire(key, None)))), Some(ErrorKind::NotFound));
    let Ok(Reply::Page(page)) = world.ask(Request::List(all())) else { panic!("a page") };
    assert_eq!(page.rows[0].state, PayloadState::Expired);
    world.ask(Request::Release { lease: grant.lease, by: None }).expect("released");
    let Ok(Reply::Page(page)) = world.ask(Request::List(all())) else { panic!("a page") };
    assert_eq!((page.total, world.shard.usage(Tier::Ram)), (0, Default::default()));
}

#[test]
fn given_an_allocation_that_nobody_commits_when_its_time_passes_then_it_is_reclaimed() {
    let mut world = World::new();
    world.allocate(Tier::Ram, 100);
    world.pass(3_600_001);
    world.settle();
    assert_eq!(world.shard.usage(Tier::Ram), Default::default());
}

#[test]
fn given_a_version_that_moved_on_when_fenced_then_failed_precondition_naming_both() {
    let mut world = World::new();
    let key = world.committed(Tier::Ram, 100);
    let refused = world.ask(Request::Delete { key, force: false, expected_version: Some(Version(77)) });
    let message = refused.expect_err("fenced").message;
    assert!(message.contains("77") && message.contains('2'), "{message}");
}

#[test]
fn given_spill_targets_when_asked_then_each_answers_as_the_contract_says() {
    let mut world = World::new();
    let key = world.committed(Tier::Ram, 100);
    for target in [Tier::Gpu, Tier::Object] {
        let refused = world.ask(spill(key, SpillTarget::Tier(target), false));
        assert_eq!(kind(Some(refused)), Some(ErrorKind::FailedPrecondition), "{target}");
    }
    assert!(world.ask(spill(key, SpillTarget::Tier(Tier::Ram), false)).is_ok(), "already there");
    world.ask(spill(key, DISK, false)).expect("spilled");
    let up = world.ask(spill(key, SpillTarget::Tier(Tier::Ram), false));
    assert_eq!(kind(Some(up)), Some(ErrorKind::FailedPrecondition), "faster");
    assert_eq!(world.ask(spill(key, SpillTarget::Void, false)), Ok(Reply::Spilled(None)));
    assert_eq!(kind(Some(world.ask(Request::Resolve { key }))), Some(ErrorKind::NotFound));
}

/// Objects have their payloads' names: to remove one that is nobody's is to remove the one that is made next.
#[test]
fn given_an_object_whose_row_was_not_stored_when_spilled_again_then_nothing_removes_what_is_made_then() {
    let mut config = config(1);
    config.capacity[Tier::Object] = Some(ByteCount(1 << 40));
    let mut world = World::with(config);
    let key = world.committed(Tier::Disk, 100);
    let to_object = || spill(key, SpillTarget::Tier(Tier::Object), false);
    let first = world.send(to_object());
    world.transfer_one(Ok(Checksum(7)));
    world.ack_one(Err("the database is locked".to_owned()));
    assert_eq!(kind(world.answer(first)), Some(ErrorKind::Unavailable));
    let second = world.send(to_object());
    world.transfer_one(Ok(Checksum(7)));
    world.ack_one(Ok(()));
    assert!(matches!(world.answer(second), Some(Ok(Reply::Spilled(Some(_))))));
    let objects = world.storage.iter().filter(|op| op.replica.tier == Tier::Object);
    assert_eq!(objects.count(), 0, "{:?}", world.storage);
    assert_eq!(world.shard.usage(Tier::Object).allocated, 4096, "charged once");
    world.settle();
    assert!(world.ask(Request::Delete { key, force: false, expected_version: None }).is_ok());
    assert_eq!(world.shard.usage(Tier::Object).allocated, 0);
}

#[test]
fn given_rows_when_adopted_then_live_lost_or_expired_and_versions_are_past_what_they_were() {
    let mut world = World::new();
    let key = world.new_key();
    let number = world.send(allocation(key, Tier::Ram, 100));
    world.store_one();
    world.answer(number).expect("answered").expect("allocated");
    world.send(Request::Commit { key, checksum: None, batch: None });
    world.store_one();
    let CatalogChange::Put(row) = world.catalog[0].change.clone() else { panic!("a row") };
    let mut present = PerTier([true; 4]);
    let mut shard = Shard::new(config(2));
    assert_eq!(shard.adopt(world.now, (*row).clone(), present), Adopted::Live);
    assert_eq!(shard.budget_held()[Tier::Ram], ByteCount(4096));
    present = PerTier([false; 4]);
    let mut world = World::with(config(3));
    assert_eq!(world.shard.adopt(world.now, *row, present), Adopted::Lost);
    let lost = world.ask(Request::Resolve { key }).expect_err("lost");
    assert!(lost.kind == ErrorKind::NotFound && lost.message.contains("LOST"));
    world.ask(Request::Delete { key, force: false, expected_version: None }).expect("its row goes away");
    assert!(!world.ask(Request::Resolve { key }).expect_err("gone").message.contains("LOST"));
}

#[test]
fn given_many_payloads_when_listed_by_pages_then_newest_first_no_row_twice_and_the_total_exact() {
    let mut world = World::new();
    let mut keys: Vec<_> =
        (0..20).map(|n| world.committed(if n % 2 == 0 { Tier::Ram } else { Tier::Disk }, 10)).collect();
    keys.reverse();
    let (mut seen, mut before) = (Vec::new(), None);
    loop {
        let list = List { page_size: 7, before, ..all() };
        let Ok(Reply::Page(page)) = world.ask(Request::List(list)) else { panic!("a page") };
        assert_eq!(page.total, 20);
        let Some(last) = page.rows.last() else { break };
        before = Some(last.id);
        seen.extend(page.rows.iter().map(|row| row.id));
    }
    assert_eq!(seen, keys.iter().map(|key| key.id).collect::<Vec<_>>());
    let Ok(Reply::Page(disk)) = world.ask(Request::List(List { tier: Some(Tier::Disk), ..all() })) else {
        panic!("a page")
    };
    assert_eq!((disk.total, disk.rows.len()), (10, 10));
}

fn all() -> List {
    List { namespace: NamespaceId::DEFAULT, tier: None, before: None, page_size: 500 }
}
