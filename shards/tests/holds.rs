//! Holds: what streams keep is not expired, not discarded and not deleted without force, and everything else goes on.

#[allow(dead_code, reason = "every test binary uses its own part")]
mod world;

use payload_types::hold::{HOLD_ITEMS_MAX, HeldEntries, Hold, HoldingStream};
use payload_types::record::StreamName;
use payload_types::reply::Reply;
use payload_types::request::{Allocate, Request};
use payload_types::tier::SpillTarget;
use payload_types::*;
use world::{DISK, World, allocation, config, kind, spill};

const STREAM: u64 = 4;

fn stream() -> HoldingStream {
    let name = StreamName { namespace: "cam".to_owned(), name: "frames".to_owned() };
    HoldingStream { stream: STREAM, name }
}

fn tell(world: &mut World, hold: Hold) {
    assert_eq!(world.ask(Request::Hold(hold)), Ok(Reply::Held));
}

fn floor(world: &mut World, floor: u64) {
    tell(world, Hold::Floor { stream: STREAM, floor });
}

/// As an append of one payload at `offset` does it.
fn append(world: &mut World, key: PayloadKey, offset: u64) {
    tell(world, Hold::Take { token: offset + 1, payloads: vec![key] });
    let held = Some(HeldEntries { stream: stream(), entries: vec![(offset, key)] });
    tell(world, Hold::Settle { token: offset + 1, held });
}

fn delete(key: PayloadKey, force: bool) -> Request {
    Request::Delete { key, force, expected_version: None }
}

fn mortal(world: &mut World, ttl_ms: u64) -> PayloadKey {
    let key = world.new_key();
    let Request::Allocate(request) = allocation(key, Tier::Ram, 100) else { unreachable!("an allocation") };
    world.ask(Request::Allocate(Allocate { ttl_ms: Some(ttl_ms), ..request })).expect("allocated");
    world.ask(Request::Commit { key, checksum: None, batch: None }).expect("committed");
    key
}

fn is_there(world: &mut World, key: PayloadKey) -> bool {
    match world.ask(Request::Resolve { key }) {
        Ok(_) => true,
        Err(error) if error.kind == ErrorKind::NotFound => false,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn given_a_held_payload_when_deleted_then_the_stream_and_its_entry_are_named_and_force_deletes() {
    let mut world = World::new();
    let key = world.committed(Tier::Ram, 100);
    append(&mut world, key, 17);
    let before = world.describe(key);
    let error = world.ask(delete(key, false)).expect_err("held");
    assert_eq!(error.kind, ErrorKind::FailedPrecondition);
    for word in ["entry 17", "`frames`", "`cam`", "force"] {
        assert!(error.message.contains(word), "{error}");
    }
    assert_eq!(world.describe(key), before, "nothing has changed");
    let Ok(Reply::Holders(holders)) = world.ask(Request::Holders { key, after: None }) else {
        panic!("holders")
    };
    assert_eq!(holders.streams.len(), 1);
    assert_eq!(world.ask(delete(key, true)), Ok(Reply::Deleted));
    floor(&mut world, 18);
    world.shard.check_accounting().expect("nothing of it is left");
}

#[test]
fn given_a_held_payload_when_its_ttl_passes_then_it_is_served_until_the_floor_passes_its_newest_entry() {
    let mut world = World::new();
    let key = mortal(&mut world, 50);
    append(&mut world, key, 3);
    append(&mut world, key, 8);
    world.pass(10_000);
    world.settle();
    assert!(is_there(&mut world, key));
    let lease = world.lease(key);
    assert!(lease.descriptor.location.is_some());
    world.ask(Request::Release { lease: lease.lease, by: None }).expect("released");
    floor(&mut world, 8);
    assert!(is_there(&mut world, key), "entry 8 is not passed");
    floor(&mut world, 9);
    world.pass(100);
    world.settle();
    assert!(!is_there(&mut world, key));
    assert!(world.shard.is_quiet() && world.shard.check_accounting().is_ok());
}

#[test]
fn given_a_payload_whose_spill_target_is_void_when_held_then_no_spill_discards_it_and_disk_is_fine() {
    let mut world = World::new();
    let key = world.committed(Tier::Ram, 100);
    append(&mut world, key, 0);
    let error = world.ask(spill(key, SpillTarget::Void, true)).expect_err("held");
    assert!(error.kind == ErrorKind::FailedPrecondition && error.message.contains("entry 0"), "{error}");
    let number = world.send(spill(key, DISK, false));
    world.transfer_one(Ok(Checksum(1)));
    world.settle();
    assert!(matches!(world.answer(number), Some(Ok(Reply::Spilled(Some(_))))));
    floor(&mut world, 1);
    assert_eq!(world.ask(spill(key, SpillTarget::Void, true)), Ok(Reply::Spilled(None)));
}

#[test]
fn given_an_append_under_way_when_it_comes_to_nothing_then_what_it_held_expires_and_can_be_deleted() {
    let mut world = World::new();
    let (late, other) = (mortal(&mut world, 50), world.committed(Tier::Ram, 100));
    tell(&mut world, Hold::Take { token: 1, payloads: vec![late, other] });
    world.pass(1_000);
    world.settle();
    assert!(is_there(&mut world, late));
    let error = world.ask(delete(other, false)).expect_err("held");
    assert!(error.message.contains("append"), "{error}");
    tell(&mut world, Hold::Settle { token: 1, held: None });
    world.pass(100);
    world.settle();
    assert!(!is_there(&mut world, late));
    assert_eq!(world.ask(delete(other, false)), Ok(Reply::Deleted));
}

#[test]
fn given_a_commit_that_the_catalog_has_stored_when_appended_before_its_shard_hears_then_held() {
    let mut world = World::new();
    let key = world.allocate(Tier::Ram, 100);
    world.send(Request::Commit { key, checksum: None, batch: None });
    world.store_one();
    let deleted = world.send(delete(key, false));
    for hold in [
        Hold::Take { token: 1, payloads: vec![key] },
        Hold::Settle { token: 1, held: Some(HeldEntries { stream: stream(), entries: vec![(0, key)] }) },
    ] {
        let number = world.send(Request::Hold(hold));
        assert_eq!(world.answer(number), Some(Ok(Reply::Held)));
    }
    world.settle();
    assert_eq!(kind(world.answer(deleted)), Some(ErrorKind::FailedPrecondition), "it waited for the commit");
}

#[test]
fn given_payloads_of_which_one_is_gone_when_taken_then_none_is_held() {
    let mut world = World::new();
    let (here, gone) = (world.committed(Tier::Ram, 100), world.new_key());
    let take = Request::Hold(Hold::Take { token: 1, payloads: vec![here, gone] });
    assert_eq!(kind(Some(world.ask(take))), Some(ErrorKind::NotFound));
    assert_eq!(world.ask(delete(here, false)), Ok(Reply::Deleted));
    let removed = world.committed(Tier::Ram, 100);
    world.send(delete(removed, false));
    let take = Request::Hold(Hold::Take { token: 2, payloads: vec![removed] });
    assert_eq!(kind(Some(world.ask(take))), Some(ErrorKind::NotFound), "its removal is on its way");
}

#[test]
fn given_a_floor_that_goes_back_when_entries_are_held_again_then_what_is_left_of_them_is() {
    let mut world = World::new();
    let keys: Vec<PayloadKey> = (0..3).map(|_| world.committed(Tier::Ram, 100)).collect();
    (0..).zip(&keys).for_each(|(offset, key)| append(&mut world, *key, offset));
    floor(&mut world, 3);
    assert_eq!(world.ask(delete(keys[1], false)), Ok(Reply::Deleted));
    floor(&mut world, 1);
    let entries = (0..).zip(&keys).skip(1).map(|(offset, key)| (offset, *key)).collect();
    tell(&mut world, Hold::Again(HeldEntries { stream: stream(), entries }));
    assert_eq!(world.ask(delete(keys[0], false)), Ok(Reply::Deleted), "the group wants entry 1 next");
    assert_eq!(kind(Some(world.ask(delete(keys[2], false)))), Some(ErrorKind::FailedPrecondition));
}

#[test]
fn given_more_holds_than_a_step_lets_go_when_the_floor_passes_all_then_each_is_free_at_once() {
    let mut world = World::new();
    let tier = |number| if number % 2 == 0 { Tier::Ram } else { Tier::Disk };
    let keys: Vec<PayloadKey> =
        (0..HOLD_ITEMS_MAX + 40).map(|number| world.committed(tier(number), 1)).collect();
    let entries: Vec<(u64, PayloadKey)> = (0..).zip(keys.iter().copied()).collect();
    for some in entries.chunks(HOLD_ITEMS_MAX) {
        tell(&mut world, Hold::Again(HeldEntries { stream: stream(), entries: some.to_vec() }));
    }
    let last = *keys.last().expect("some");
    assert_eq!(kind(Some(world.ask(delete(last, false)))), Some(ErrorKind::FailedPrecondition));
    world.send(Request::Hold(Hold::Floor { stream: STREAM, floor: entries.len() as u64 }));
    assert_eq!(world.shard.next_timer(), Some(Monotonic(0)), "the rest follows at once");
    let number = world.send(delete(last, false));
    world.settle();
    assert_eq!(
        world.answer(number),
        Some(Ok(Reply::Deleted)),
        "what is passed holds nothing, taken out or not"
    );
    world.pass(1);
    world.settle();
    world.shard.check_accounting().expect("nothing of it is left");
    assert!(world.shard.is_quiet());
}

#[test]
fn given_rows_and_entries_at_boot_when_adopted_then_what_expired_meanwhile_is_served_and_lost_is_not_held() {
    let mut before = World::new();
    let (held, lost) = (mortal(&mut before, 50), mortal(&mut before, 50));
    let mut row = |key| {
        before.send(Request::Pin { key, duration_ms: None, owner: Peer::UNKNOWN });
        match before.catalog.pop_front().expect("a row").change {
            effect::CatalogChange::Put(row) => *row,
            other => panic!("{other:?}"),
        }
    };
    let rows = [row(held), row(lost)];
    let mut world = World::with(config(2));
    world.now.wall = world.now.wall.checked_plus(10_000).expect("a time");
    let mut present = PerTier::default();
    present[Tier::Ram] = true;
    let [first, second] = rows;
    world.shard.adopt(world.now, first, present);
    world.shard.adopt(world.now, second, PerTier::default());
    let entries = vec![(0, held), (1, lost)];
    world.shard.adopt_holds(world.now, &HeldEntries { stream: stream(), entries });
    world.pass(100);
    world.settle();
    assert!(is_there(&mut world, held) && !is_there(&mut world, lost));
    floor(&mut world, 2);
    world.pass(100);
    world.settle();
    assert!(!is_there(&mut world, held));
}
