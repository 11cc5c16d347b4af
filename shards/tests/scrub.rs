//! Scrub: what is done about a replica that a driver finds bad, whatever else goes on.

#[allow(dead_code, reason = "every test binary uses its own part")]
mod world;

use payload_types::effect::{CatalogChange, StorageAction};
use payload_types::event::{Completion, DriverError, DriverErrorKind, StorageDone, TransferError};
use payload_types::reply::Reply;
use payload_types::request::Request;
use payload_types::scrub::{Scrub, ScrubOutcome, ScrubVerdict, ScrubbedReplica};
use payload_types::tier::SpillTarget;
use payload_types::*;
use world::{World, acquire, promote, spill};

fn scrub(key: PayloadKey) -> Request {
    Request::Scrub(Scrub { key, tier: None, bytes_per_second: 0, seen: Vec::new() })
}

fn broken(kind: DriverErrorKind) -> DriverError {
    DriverError { kind, message: "as the test wants it".into() }
}

/// Answers the verification that waits, and gives the tier it was of.
fn verify_one(world: &mut World, result: Result<(), DriverErrorKind>) -> Tier {
    let op = world.storage.pop_front().expect("a verification waits");
    assert!(matches!(op.action, StorageAction::Verify { .. }), "{op:?}");
    let result = result.map_err(broken);
    world.complete(Completion::Storage(StorageDone::Verified { op: op.op, result }));
    op.replica.tier
}

fn seen(world: &mut World, number: u64) -> Vec<ScrubbedReplica> {
    match world.answer(number) {
        Some(Ok(Reply::Scrubbed(seen))) => seen,
        other => panic!("expected what was seen, got {other:?}"),
    }
}

fn outcome(seen: &ScrubbedReplica) -> Option<ScrubOutcome> {
    match &seen.verdict {
        ScrubVerdict::Bad { outcome, .. } => Some(*outcome),
        _ => None,
    }
}

/// On RAM and DISK, with a known checksum.
fn twice(world: &mut World) -> PayloadKey {
    let key = world.committed(Tier::Disk, 100);
    world.ask(promote(key, Tier::Ram)).expect("promoted");
    key
}

#[test]
fn given_sound_replicas_when_scrubbed_then_all_are_verified_and_nothing_changes() {
    let mut world = World::new();
    let key = twice(&mut world);
    let before = world.describe(key);
    let number = world.send(scrub(key));
    assert_eq!(verify_one(&mut world, Ok(())), Tier::Ram);
    assert_eq!(verify_one(&mut world, Ok(())), Tier::Disk);
    let verdicts: Vec<ScrubVerdict> = seen(&mut world, number).into_iter().map(|seen| seen.verdict).collect();
    assert_eq!(verdicts, [ScrubVerdict::Sound, ScrubVerdict::Sound]);
    assert_eq!(world.describe(key), before);
    let raw = world.committed(Tier::Ram, 100);
    let Ok(Reply::Scrubbed(seen)) = world.ask(scrub(raw)) else { panic!("scrubbed") };
    assert_eq!(seen[0].verdict, ScrubVerdict::Unverifiable, "nobody knows what its bytes were");
}

#[test]
fn given_a_bad_copy_in_memory_when_scrubbed_then_it_is_dropped_and_the_file_serves() {
    let mut world = World::new();
    let key = twice(&mut world);
    let number = world.send(scrub(key));
    verify_one(&mut world, Err(DriverErrorKind::Corrupt));
    let at = world.storage.iter().position(|op| matches!(op.action, StorageAction::Verify { .. }));
    world.storage.swap(0, at.expect("the file is verified next"));
    assert_eq!(verify_one(&mut world, Ok(())), Tier::Disk);
    let found = seen(&mut world, number);
    assert_eq!(found.iter().map(outcome).collect::<Vec<_>>(), [Some(ScrubOutcome::OtherReplica), None]);
    world.settle();
    assert_eq!(world.lease(key).descriptor.tier, Tier::Disk);
    assert_eq!(world.shard.usage(Tier::Ram), Default::default(), "it is freed");
}

#[test]
fn given_a_bad_file_with_a_sound_copy_in_memory_when_scrubbed_then_it_is_written_anew_and_memory_keeps_it() {
    let mut world = World::new();
    let key = twice(&mut world);
    let number = world.send(scrub(key));
    verify_one(&mut world, Ok(()));
    verify_one(&mut world, Err(DriverErrorKind::Truncated));
    world.ack_one(Ok(()));
    assert_eq!(world.lease_now(key).descriptor.tier, Tier::Ram, "served all the while");
    assert_eq!(world.transfers[0].to.tier, Tier::Disk);
    world.settle();
    let found = seen(&mut world, number);
    assert_eq!(
        found.iter().map(outcome).collect::<Vec<_>>(),
        [None, Some(ScrubOutcome::OtherReplica), None],
        "and the new file is verified too"
    );
    let now = world.describe(key);
    assert_eq!((now.tier, now.state), (Tier::Ram, PayloadState::Durable));
}

#[test]
fn given_a_bad_file_that_cannot_be_written_anew_when_spilled_later_then_it_is_never_served_alone() {
    let mut world = World::new();
    let key = twice(&mut world);
    let number = world.send(scrub(key));
    verify_one(&mut world, Ok(()));
    verify_one(&mut world, Err(DriverErrorKind::Corrupt));
    world.ack_one(Ok(()));
    world.transfer_one(Err(TransferError::Destination(broken(DriverErrorKind::Io))));
    let found = seen(&mut world, number);
    assert_eq!(outcome(&found[1]), Some(ScrubOutcome::Unchanged));
    let number = world.send(spill(key, SpillTarget::Tier(Tier::Disk), false));
    assert_eq!(world.transfers.len(), 1, "a spill writes it anew instead of trusting it");
    world.settle();
    world.answer(number).expect("answered").expect("spilled");
    assert_eq!(world.lease(key).descriptor.tier, Tier::Disk);
}

/// The row that the catalog has been sent last.
fn last_row(world: &World) -> PayloadRow {
    match &world.catalog.back().expect("a row waits").change {
        CatalogChange::Put(row) => (**row).clone(),
        other => panic!("expected a row, got {other:?}"),
    }
}

#[test]
fn given_a_bad_file_with_a_sound_copy_in_memory_when_scrubbed_then_its_row_says_so_and_vouches_for_both() {
    let mut world = World::new();
    let key = twice(&mut world);
    let version = world.describe(key).version;
    world.send(scrub(key));
    verify_one(&mut world, Ok(()));
    verify_one(&mut world, Err(DriverErrorKind::Corrupt));
    assert!(world.transfers.is_empty(), "the row is stored before anything is written anew");
    let row = last_row(&world);
    assert_eq!((row.version, row.health, row.state), (version, Health::Good, PayloadState::Durable));
    let shown: Vec<(Tier, bool)> = row.replicas.iter().map(|replica| (replica.tier, replica.sound)).collect();
    assert_eq!(shown, [(Tier::Ram, true), (Tier::Disk, false)]);
    world.settle();
    let sound = world.ask(Request::Pin { key, duration_ms: None, owner: Peer::UNKNOWN });
    sound.expect("pinned");
    assert_eq!(world.lease(key).descriptor.tier, Tier::Ram);
}

#[test]
fn given_a_catalog_that_refuses_the_mark_when_scrubbed_then_the_file_is_written_anew_all_the_same() {
    let mut world = World::new();
    let key = twice(&mut world);
    let number = world.send(scrub(key));
    verify_one(&mut world, Ok(()));
    verify_one(&mut world, Err(DriverErrorKind::Corrupt));
    world.ack_one(Err("locked".into()));
    world.transfer_one(Ok(Checksum(7)));
    let row = last_row(&world);
    assert_eq!(row.replicas.len(), 1, "once the file is good again it alone is vouched for: {row:?}");
    assert!(row.replicas[0].sound && row.replicas[0].tier == Tier::Disk);
    world.settle();
    assert_eq!(outcome(&seen(&mut world, number)[1]), Some(ScrubOutcome::OtherReplica));
}

#[test]
fn given_no_room_to_write_a_bad_file_anew_when_scrubbed_then_it_is_answered_unchanged_and_the_row_is_marked()
{
    let mut world = World::new();
    let key = twice(&mut world);
    let full = world.pinned(Tier::Disk, world::CAPACITY - 4096);
    let number = world.send(scrub(key));
    verify_one(&mut world, Ok(()));
    verify_one(&mut world, Err(DriverErrorKind::Corrupt));
    assert!(!last_row(&world).replicas[1].sound);
    world.ack_one(Ok(()));
    world.pass(60_000);
    assert_eq!(outcome(&seen(&mut world, number)[1]), Some(ScrubOutcome::Unchanged));
    assert_eq!(world.lease(key).descriptor.tier, Tier::Ram);
    world.ask(Request::Delete { key: full, force: true, expected_version: None }).expect("deleted");
}

#[test]
fn given_a_row_with_a_bad_file_when_adopted_then_memory_serves_or_it_is_data_loss() {
    let mut world = World::new();
    let key = twice(&mut world);
    world.send(scrub(key));
    verify_one(&mut world, Ok(()));
    verify_one(&mut world, Err(DriverErrorKind::Corrupt));
    let row = last_row(&world);
    for ram in [true, false] {
        let mut next = World::with(world::config(2));
        let present = PerTier([false, ram, true, false]);
        assert_eq!(next.shard.adopt(next.now, row.clone(), present), payload_shards::Adopted::Live);
        let lease = next.ask(acquire(key, None));
        if ram {
            assert!(matches!(lease, Ok(Reply::Leased(grant)) if grant.descriptor.tier == Tier::Ram));
            assert_eq!(next.send(spill(key, SpillTarget::Tier(Tier::Disk), false)), 2);
            assert!(next.replies.contains_key(&2), "leased: refused");
        } else {
            assert_eq!(lease.expect_err("never served alone").kind, ErrorKind::DataLoss);
        }
    }
}

#[test]
fn given_the_last_replica_is_bad_when_scrubbed_then_data_loss_from_then_on_and_the_row_is_marked() {
    let mut world = World::new();
    let key = twice(&mut world);
    world.ask(spill(key, SpillTarget::Tier(Tier::Disk), false)).expect("on disk only");
    let number = world.send(scrub(key));
    verify_one(&mut world, Err(DriverErrorKind::Corrupt));
    assert!(world.answer(number).is_none(), "told when the mark is stored");
    let CatalogChange::Put(row) = &world.catalog[0].change else { panic!("a row is stored") };
    assert_eq!(row.health, Health::Damaged);
    world.settle();
    assert_eq!(outcome(&seen(&mut world, number)[0]), Some(ScrubOutcome::DataLoss));
    assert_eq!(world.ask(acquire(key, None)).expect_err("never served").kind, ErrorKind::DataLoss);
    let Ok(Reply::Scrubbed(again)) = world.ask(scrub(key)) else { panic!("scrubbed") };
    assert_eq!(outcome(&again[0]), Some(ScrubOutcome::DataLoss), "and found again without being read");
}

#[test]
fn given_both_replicas_are_bad_when_scrubbed_then_data_loss() {
    let mut world = World::new();
    let key = twice(&mut world);
    let number = world.send(scrub(key));
    verify_one(&mut world, Err(DriverErrorKind::Corrupt));
    let at = world.storage.iter().position(|op| matches!(op.action, StorageAction::Verify { .. }));
    world.storage.swap(0, at.expect("the file is verified next"));
    verify_one(&mut world, Err(DriverErrorKind::Missing));
    world.settle();
    let found = seen(&mut world, number);
    assert_eq!(outcome(&found[1]), Some(ScrubOutcome::DataLoss));
    assert_eq!(world.ask(acquire(key, None)).expect_err("never served").kind, ErrorKind::DataLoss);
}

#[test]
fn given_a_payload_that_is_deleted_or_moved_while_it_is_read_when_scrubbed_then_nothing_is_freed_early_or_marked()
 {
    let mut world = World::new();
    let (deleted, moved) = (twice(&mut world), twice(&mut world));
    let number = world.send(scrub(deleted));
    world.send(Request::Delete { key: deleted, force: false, expected_version: None });
    world.ack_one(Ok(()));
    let drops = |world: &World| world.storage.iter().filter(|op| op.action == StorageAction::Drop).count();
    assert_eq!(drops(&world), 1, "the file goes; the copy in memory is being read");
    verify_one(&mut world, Err(DriverErrorKind::Corrupt));
    assert_eq!(drops(&world), 2);
    assert_eq!(world.answer(number).expect("answered").expect_err("gone").kind, ErrorKind::NotFound);
    world.settle();

    let number = world.send(scrub(moved));
    world.send(spill(moved, SpillTarget::Tier(Tier::Disk), false));
    verify_one(&mut world, Err(DriverErrorKind::Corrupt));
    world.settle();
    let found = seen(&mut world, number);
    assert_eq!(found.len(), 1, "what was dropped meanwhile is of no interest: {found:?}");
    assert_eq!((found[0].tier, &found[0].verdict), (Tier::Disk, &ScrubVerdict::Sound));
}

#[test]
fn given_other_work_on_the_payload_when_a_replica_is_found_bad_then_the_scrub_waits_and_looks_again() {
    let mut world = World::new();
    let key = world.committed(Tier::Ram, 100);
    world.send(spill(key, SpillTarget::Tier(Tier::Disk), false));
    let number = world.send(scrub(key));
    verify_one(&mut world, Err(DriverErrorKind::Truncated));
    assert!(world.answer(number).is_none(), "the copy is not over");
    world.transfer_one(Err(TransferError::Source(broken(DriverErrorKind::Truncated))));
    world.settle();
    assert_eq!(outcome(&seen(&mut world, number)[0]), Some(ScrubOutcome::DataLoss));
}
