//! Segment files on a disk that fails: what was acknowledged stays, what was not is told so, the source is as it was,
//! a file whose fdatasync failed is never synced again, and a disk without room for a segment file is no failing disk.

mod common;

use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::num::NonZeroU32;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Place, Rig, committed, engines, read, sample, twin};
use payload_drivers::faults::{Answer, Call, Faults};
use payload_drivers::{Drivers, IoEngine, checksum};
use payload_types::effect::ReplicaRef;
use payload_types::event::{DriverErrorKind, TransferError};
use payload_types::{ByteCount, DiskFault, DiskState, Tier};

const PAUSE: Duration = Duration::from_millis(500);

/// Segment files of 8 MiB, and one writer.
fn faulty(io: IoEngine) -> (Place, Rig, Faults) {
    let mut place = Place::new();
    place.config.io = io;
    place.config.disk_capacity = Some(ByteCount(256 << 20));
    let faults = Faults::new();
    let drivers = Drivers::open_faulty(place.config.clone(), faults.clone()).expect("opened");
    (place, Rig::started(drivers), faults)
}

/// Packs it.
fn spill(rig: &mut Rig, ram: ReplicaRef) -> Result<ReplicaRef, TransferError> {
    let target = twin(ram, Tier::Disk);
    let copied = rig.copied(ram, target, None)?;
    assert!(copied.extent.is_some(), "{target:?} is packed");
    Ok(ReplicaRef { extent: copied.extent, ..target })
}

fn file_of(replica: ReplicaRef) -> NonZeroU32 {
    replica.extent.expect("packed").file
}

#[test]
fn given_any_write_call_that_fails_when_packed_then_typed_nothing_lost_and_it_works_again_by_itself() {
    let cases = [
        (0, Call::Write, Answer::Io, DiskFault::Io, DriverErrorKind::Io),
        (1, Call::Write, Answer::ReadOnly, DiskFault::ReadOnly, DriverErrorKind::Io),
        (2, Call::Write, Answer::Io, DiskFault::Io, DriverErrorKind::Io),
        (0, Call::Sync, Answer::Io, DiskFault::SyncFailed, DriverErrorKind::SyncFailed),
    ];
    for (io, (passing, call, answer, fault, kind)) in
        engines().into_iter().flat_map(|io| cases.map(|case| (io, case)))
    {
        let what = format!("{io:?} {call:?} {answer:?} after {passing}");
        let (_place, mut rig, faults) = faulty(io);
        let bytes = sample(1_500_000);
        let ram = committed(&mut rig, Tier::Ram, &bytes);
        let first = spill(&mut rig, ram).expect("the disk is sound");
        faults.fail_after(passing, call, answer);
        let error = match spill(&mut rig, ram) {
            Err(TransferError::Destination(error)) => error,
            other => panic!("{what}: {other:?}"),
        };
        assert_eq!(error.kind, kind, "{what}: {}", error.message);
        let now = rig.drivers.health().expect("a disk");
        assert_eq!(now.state, DiskState::Failing(fault), "{what}");
        assert_eq!(read(&rig, ram), bytes, "{what}: the source is as it was");
        let made = faults.made(Call::Write) + faults.made(Call::Sync);
        let Err(TransferError::Destination(_)) = spill(&mut rig, ram) else { panic!("{what}: refused") };
        assert_eq!(faults.made(Call::Write) + faults.made(Call::Sync), made, "{what}: it is left alone");
        assert_eq!(read(&rig, first), bytes, "{what}: what was acknowledged is there");

        faults.end();
        faults.advance(PAUSE);
        let again = spill(&mut rig, ram).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert!(read(&rig, again) == bytes, "{what}");
        assert!(read(&rig, first) == bytes, "{what}");
        assert_eq!(rig.drivers.health().expect("a disk").state, DiskState::Healthy, "{what}");
        let is_same_file = file_of(first) == file_of(again);
        assert_eq!(is_same_file, call != Call::Sync, "{what}: a file is never synced twice after a failure");
    }
}

#[test]
fn given_a_first_segment_file_that_cannot_be_begun_when_packed_then_typed_and_nothing_half_made_is_used() {
    for (call, answer) in [
        (Call::Create, Answer::Io),
        (Call::Create, Answer::ReadOnly),
        (Call::Reserve, Answer::Io),
        (Call::Write, Answer::Io),
    ] {
        let (place, mut rig, faults) = faulty(IoEngine::Plain);
        let bytes = sample(100_000);
        let ram = committed(&mut rig, Tier::Ram, &bytes);
        faults.fail(call, answer);
        let error = match spill(&mut rig, ram) {
            Err(TransferError::Destination(error)) => error,
            other => panic!("{call:?}: {other:?}"),
        };
        assert_eq!(error.kind, DriverErrorKind::Io, "{call:?}: {}", error.message);
        assert_ne!(rig.drivers.health().expect("a disk").state, DiskState::Healthy);
        let left = fs::read_dir(place.root().join("segments")).expect("listed").count();
        assert_eq!(left, 0, "{call:?}: nothing half made");
        faults.end();
        faults.advance(PAUSE);
        let disk = spill(&mut rig, ram).expect("it works again");
        assert!(read(&rig, disk) == bytes);
    }
}

#[test]
fn given_a_failing_sync_when_many_are_packed_then_all_of_them_are_told_and_the_file_goes_when_nothing_lives_in_it()
 {
    for (io, call) in
        engines().into_iter().flat_map(|io| [Call::Sync, Call::SyncDirectory].map(|call| (io, call)))
    {
        let (place, mut rig, faults) = faulty(io);
        let bytes = sample(50_000);
        let ram = committed(&mut rig, Tier::Ram, &bytes);
        faults.fail(call, Answer::Io);
        let copies = [(); 20].map(|()| (ram, twin(ram, Tier::Disk), None));
        for result in rig.copy_all(&copies) {
            let Err(TransferError::Destination(error)) = result else { panic!("{call:?}: {result:?}") };
            // What came after it failed is refused at once.
            let kinds = [DriverErrorKind::SyncFailed, DriverErrorKind::Io];
            assert!(kinds.contains(&error.kind), "{call:?}: {}", error.message);
        }
        let state = rig.drivers.health().expect("a disk").state;
        assert_eq!(state, DiskState::Failing(DiskFault::SyncFailed));
        faults.end();
        faults.advance(PAUSE);
        let disk = spill(&mut rig, ram).expect("it works again");
        assert!(read(&rig, disk) == bytes);
        let files = || {
            let names = fs::read_dir(place.root().join("segments")).expect("listed").flatten();
            names.map(|entry| entry.path()).collect::<Vec<_>>()
        };
        common::eventually("nothing but the sound file", || files() == [rig.path(disk)]);
    }
}

#[test]
fn given_groups_that_follow_each_other_when_any_write_or_sync_fails_then_what_was_acknowledged_is_there_at_places_of_its_own()
 {
    let cases =
        (0..16).map(|passing| (passing, Call::Write)).chain([0, 1].map(|passing| (passing, Call::Sync)));
    for (io, (passing, call)) in
        engines().into_iter().flat_map(|io| cases.clone().map(move |case| (io, case)))
    {
        let what = format!("{io:?} {call:?} after {passing}");
        let (place, mut rig, faults) = faulty(io);
        let bytes = sample(30_000);
        let ram = committed(&mut rig, Tier::Ram, &bytes);
        let copies: Vec<_> = (0..200).map(|_| (ram, twin(ram, Tier::Disk), Some(checksum(&bytes)))).collect();
        let mut acknowledged = Vec::new();
        for turn in 0..2 {
            if turn == 0 {
                faults.fail_after(passing, call, Answer::Io);
            } else {
                faults.end();
                faults.advance(PAUSE);
            }
            for ((_, target, _), result) in copies.iter().zip(rig.copy_all(&copies)) {
                match result {
                    Ok(copied) => acknowledged.push(ReplicaRef { extent: copied.extent, ..*target }),
                    Err(error) => assert!(turn == 0, "{what}: {error:?}"),
                }
            }
        }
        assert!(acknowledged.len() >= copies.len(), "{what}: the second turn is sound");
        let mut places = HashSet::new();
        for replica in &acknowledged {
            let extent = replica.extent.expect("packed");
            assert!((0..8).all(|page| places.insert((extent.file, extent.page + page))), "{what}");
            assert!(read(&rig, *replica) == bytes, "{what}");
        }
        drop(rig);
        let again = place.open();
        assert!(acknowledged.iter().all(|replica| again.verify(replica)), "{what}: its record is there");
    }
}

#[test]
fn given_too_little_room_for_a_segment_file_when_packed_then_it_gets_a_file_of_its_own_and_nothing_fails() {
    for io in engines() {
        let (place, mut rig, faults) = faulty(io);
        let bytes = sample(100_000);
        let ram = committed(&mut rig, Tier::Ram, &bytes);
        faults.available(1_000_000);
        let alone = twin(ram, Tier::Disk);
        let copied = rig.copied(ram, alone, Some(checksum(&bytes))).expect("copied");
        assert_eq!(copied.extent, None);
        assert_eq!(rig.drivers.health().expect("a disk").state, DiskState::Healthy);
        assert_eq!(place.files(), [rig.path(alone)]);
        faults.end();
        let disk = spill(&mut rig, ram).expect("there is room again");
        assert!(read(&rig, disk) == bytes);
    }
}

#[test]
fn given_a_damaged_replica_when_salvaged_then_what_can_be_read_moves_as_it_is_with_the_checksum_it_should_have()
 {
    for (io, is_alone) in engines().into_iter().flat_map(|io| [(io, false), (io, true)]) {
        let (_place, mut rig, faults) = faulty(io);
        let bytes = sample(1_500_000);
        let ram = committed(&mut rig, Tier::Ram, &bytes);
        let old = spill(&mut rig, ram).expect("packed");
        let begin = old.extent.expect("packed").offset_bytes();
        let path = rig.path(old);
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o640)).expect("ours");
        let file = OpenOptions::new().write(true).open(&path).expect("opened");
        file.write_all_at(&[bytes[70_000] ^ 1], begin + 70_000).expect("a bit turns");
        if is_alone {
            faults.available(4 << 20); // no room for another segment file
        }
        let sum = Some(checksum(&bytes));
        let refused = rig.copied(old, twin(old, Tier::Disk), sum);
        let Err(TransferError::Source(error)) = refused else { panic!("{refused:?}") };
        assert_eq!(error.kind, DriverErrorKind::Corrupt);
        let mut wanted = bytes.clone();
        wanted[70_000] ^= 1;
        let target = twin(old, Tier::Disk);
        let copied = rig.salvaged(old, target, sum).expect("moved");
        assert_eq!((Some(copied.checksum), copied.extent.is_none()), (sum, is_alone));
        assert!(read(&rig, ReplicaRef { extent: copied.extent, ..target }) == wanted, "as it is");

        // Somebody cuts the file off within the payload.
        file.set_len(begin + 1_000_000).expect("cut");
        let target = twin(old, Tier::Disk);
        let copied = rig.salvaged(old, target, sum).expect("moved");
        let whole_pages = 1_000_000 / 4096 * 4096;
        wanted[whole_pages..].fill(0);
        assert_eq!(Some(copied.checksum), sum);
        assert!(
            read(&rig, ReplicaRef { extent: copied.extent, ..target }) == wanted,
            "zeroes for what is gone"
        );
    }
}

#[test]
fn given_short_writes_and_reads_when_packed_and_promoted_then_every_byte_passes() {
    for io in engines() {
        let (_place, mut rig, faults) = faulty(io);
        faults.shorten(60_000);
        for size in [1, 70_000, 2 << 20] {
            let bytes = sample(size);
            let ram = committed(&mut rig, Tier::Ram, &bytes);
            let disk = spill(&mut rig, ram).expect("short writes are resumed");
            assert!(read(&rig, disk) == bytes, "{size} bytes");
            rig.detach(ram);
            let back = twin(disk, Tier::Ram);
            assert_eq!(rig.copy(disk, back, Some(checksum(&bytes))), Ok(checksum(&bytes)), "and short reads");
            rig.detach(back);
        }
    }
}

#[test]
fn given_a_client_that_cuts_and_rewrites_its_segment_while_it_is_packed_then_a_true_copy_or_a_source_error() {
    for io in engines() {
        let (_place, mut rig, _faults) = faulty(io);
        let bytes = sample(2 << 20);
        let (mut copies, mut errors) = (0, 0);
        for round in 0..40 {
            let source = committed(&mut rig, Tier::Ram, &bytes);
            let path = rig.path(source);
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o660)).expect("kept");
            let producer = OpenOptions::new().write(true).open(&path).expect("opened");
            let quiet = committed(&mut rig, Tier::Ram, &sample(round * 1000 + 1));
            let targets = [source, quiet].map(|source| twin(source, Tier::Disk));
            let is_over = AtomicBool::new(false);
            let results = std::thread::scope(|scope| {
                scope.spawn(|| {
                    for turn in 0u64.. {
                        if is_over.load(Ordering::SeqCst) {
                            break;
                        }
                        producer
                            .write_all_at(&turn.to_le_bytes(), (turn * 997) % (2 << 20))
                            .expect("written");
                        if round % 2 == 1 {
                            producer.set_len(turn % (2 << 20)).expect("cut");
                            producer.set_len(2 << 20).expect("stretched");
                        }
                    }
                });
                let results = rig.copy_all(&[(source, targets[0], None), (quiet, targets[1], None)]);
                is_over.store(true, Ordering::SeqCst);
                results
            });
            for ((target, result), is_quiet) in targets.into_iter().zip(results).zip([false, true]) {
                match result {
                    Ok(copied) => {
                        let disk = ReplicaRef { extent: copied.extent, ..target };
                        let found = checksum(&read(&rig, disk));
                        assert_eq!(found, copied.checksum, "of the bytes that were written");
                        copies += 1;
                        if disk.extent.is_some() {
                            rig.detach(disk);
                        }
                    }
                    Err(TransferError::Source(error)) if !is_quiet => {
                        assert_eq!(error.kind, DriverErrorKind::Truncated);
                        errors += 1;
                    }
                    Err(other) => panic!("{other:?}"),
                }
            }
            rig.detach(source);
            rig.detach(quiet);
        }
        assert!(copies >= 60, "a producer that only rewrites spoils no copy: {copies}, {errors} errors");
    }
}
