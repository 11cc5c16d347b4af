//! Segment files of which the system does not say what is in them, or whether anybody has them open: nothing is lost,
//! nothing is used again, what they take is charged, and all of it is good again when the system is.

mod common;

use std::fs;
use std::time::Duration;

use common::fake::FakeShard;
use common::{Place, Rig, committed, path_of, read, sample, twin};
use payload_drivers::Drivers;
use payload_drivers::faults::{Answer, Call, Faults};
use payload_ledger::segments::Geometry;
use payload_types::effect::ReplicaRef;
use payload_types::{ByteCount, PayloadId, Tier};

/// Segment files of 4 MiB, for payloads of 1 MiB at most.
const CAPACITY: ByteCount = ByteCount(128 << 20);
const MIB: usize = 1 << 20;

fn place() -> Place {
    let mut place = Place::new();
    place.config.disk_capacity = Some(CAPACITY);
    place.config.compaction_bytes_per_second = 0;
    place
}

fn pack(rig: &mut Rig, count: usize, bytes: &[u8]) -> Vec<ReplicaRef> {
    let ram = committed(rig, Tier::Ram, bytes);
    let copies: Vec<_> = (0..count).map(|_| (ram, twin(ram, Tier::Disk), None)).collect();
    let results = rig.copy_all(&copies);
    let packed = copies.iter().zip(results).map(|((_, to, _), copied)| {
        let extent = copied.expect("copied").extent;
        assert!(extent.is_some(), "packed");
        ReplicaRef { extent, ..*to }
    });
    packed.collect()
}

fn ids(shard: &FakeShard) -> Vec<PayloadId> {
    shard.payloads.keys().copied().collect()
}

#[test]
fn given_a_table_that_cannot_be_read_when_started_then_its_file_is_left_alone_and_charged_until_a_start_that_can()
 {
    // The header's read fails, or one further on in a table of more than 16 KiB.
    for (passing, count) in [(0, 10), (1, 300)] {
        let place = place();
        let bytes = sample(5_000);
        let mut rig = Rig::start(&place);
        let all = pack(&mut rig, count, &bytes);
        let number = all[0].extent.expect("packed").file;
        let path = rig.path(all[0]);
        rig.drivers.shutdown();
        let before = fs::read(&path).expect("there");

        let faults = Faults::new();
        faults.fail_after(passing, Call::ReadTable, Answer::Io);
        let mut drivers = Drivers::open_faulty(place.config.clone(), faults).expect("it starts all the same");
        assert!(!all.iter().any(|replica| drivers.verify(replica)), "nobody can say that they are there");
        drivers.reclaim();
        let charged: u64 = drivers.held().map(|held| held.size.in_pages().0).sum();
        assert_eq!(charged, Geometry::of_capacity(CAPACITY).expect("large enough").file_bytes(), "all of it");
        assert_eq!(drivers.health().expect("a disk").read_failures_total, 1);
        let mut rig = Rig::started(drivers);
        for replica in pack(&mut rig, 400, &bytes) {
            assert!(replica.extent.expect("packed").file > number, "neither it nor its number is used");
        }
        rig.drivers.shutdown();
        assert!(fs::read(&path).expect("there") == before, "not a byte was changed");

        let mut drivers = place.open();
        assert!(all.iter().all(|replica| drivers.verify(replica)), "nothing was lost");
        drivers.reclaim();
        assert_eq!(drivers.health().expect("a disk").read_failures_total, 0);
        let rig = Rig::started(drivers);
        all.iter().for_each(|replica| assert!(read(&rig, *replica) == bytes));
    }
}

#[test]
fn given_a_table_that_cannot_be_read_when_its_file_is_to_be_emptied_then_all_is_served_and_it_is_tried_again()
{
    let faults = Faults::new();
    let mut shard = FakeShard::start_faulty(place(), &faults, 1, &[MIB - 5]);
    faults.fail(Call::ReadTable, Answer::Io);
    while shard.put(0) {
        shard.pump(Duration::ZERO);
    }
    shard.until("all is copied", FakeShard::is_quiet);
    for id in ids(&shard).into_iter().step_by(2) {
        shard.delete(id);
    }
    let failures = |shard: &FakeShard| shard.drivers().health().expect("a disk").read_failures_total;
    shard.until("all were tried", |shard| failures(shard) + 2 >= shard.segments().files);
    shard.verify_all();
    assert_eq!((shard.segments().moved_total, shard.segments().recycled_total), (0, 0), "nothing is touched");
    faults.end();
    shard.until("they are emptied once they can be read", |shard| shard.segments().emptied_total > 3);
    shard.verify_all();
    shard.check_capacity();
}

#[test]
fn given_a_file_system_without_leases_when_files_die_then_they_are_removed_and_readers_keep_their_bytes() {
    let faults = Faults::new();
    faults.fail(Call::Lease, Answer::Unsupported);
    let mut shard = FakeShard::start_faulty(place(), &faults, 2, &[MIB - 5]);
    for _ in 0..8 {
        assert!(shard.put(0));
    }
    shard.until("all is copied", FakeShard::is_quiet);
    let readers: Vec<_> = ids(&shard).into_iter().map(|id| shard.open(id)).collect();
    let names: Vec<_> = shard.payloads.values().map(|live| path_of(shard.drivers(), live.replica)).collect();
    shard.readers.extend(readers);
    ids(&shard).into_iter().for_each(|id| shard.delete(id));
    // Whatever comes is written elsewhere: files are made anew, and none is kept for it.
    for _ in 0..60 {
        if let Some(id) = shard.any().filter(|_| shard.payloads.len() > 20) {
            shard.delete(id);
        }
        assert!(shard.put(0));
        shard.until("copied", FakeShard::is_quiet);
        shard.verify_all();
        shard.check_capacity();
    }
    shard.until("what died first is free", |shard| shard.segments().recycled_total >= 2);
    assert!(names.iter().any(|path| !path.exists()), "removed under its readers");
    let segments = shard.segments();
    assert_eq!((segments.files_free, segments.files_held), (0, 0), "{segments:?}");
    let directory = shard.place.root().join("segments");
    let mut left = fs::read_dir(directory).expect("listed").flatten().map(|entry| entry.path());
    assert!(left.all(|path| path.extension().is_some_and(|end| end == "seg")));
    shard.restart();
    shard.verify_all();
}
