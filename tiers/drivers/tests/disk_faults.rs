//! A disk that fails: every call that writes, each made to fail in turn, by a decorator around the drivers and with a
//! clock that the test moves. What must hold: a typed error, the source as it was, nothing half made left behind,
//! nothing tried before its time, and recovery without anybody's help.

mod common;

use std::fs;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use common::{Place, Rig, engines, replica, sample, twin};
use payload_drivers::checksum;
use payload_drivers::faults::{Answer, Call, Faults};
use payload_types::effect::ReplicaRef;
use payload_types::event::{DriverErrorKind, TransferError};
use payload_types::{DiskFault, DiskHealth, DiskState, Tier};

const PAUSE: Duration = Duration::from_millis(500);

fn faulty(io: payload_drivers::IoEngine) -> (Place, Rig, Faults) {
    let mut place = Place::new();
    place.config.io = io;
    let faults = Faults::new();
    let drivers =
        payload_drivers::Drivers::open_faulty(place.config.clone(), faults.clone()).expect("opened");
    let rig = Rig::started(drivers);
    (place, rig, faults)
}

fn plain() -> (Place, Rig, Faults) {
    faulty(payload_drivers::IoEngine::Plain)
}

/// A replica that its producer has written.
fn written(rig: &mut Rig, tier: Tier, bytes: &[u8]) -> ReplicaRef {
    let replica = replica(tier, bytes.len() as u64);
    rig.create(replica).expect("created");
    let file = OpenOptions::new().write(true).open(rig.path(replica)).expect("opened");
    file.write_all_at(bytes, 0).expect("written");
    replica
}

fn committed(rig: &mut Rig, tier: Tier, bytes: &[u8]) -> ReplicaRef {
    let replica = written(rig, tier, bytes);
    rig.seal(replica, true).expect("sealed");
    replica
}

fn health(rig: &Rig) -> DiskHealth {
    rig.drivers.health().expect("a disk")
}

/// What a failure of each kind is called, and as what the driver reports it.
fn meaning(call: Call, answer: Answer) -> (DiskFault, DriverErrorKind) {
    match answer {
        Answer::NoSpace => (DiskFault::Full, DriverErrorKind::Full),
        Answer::ReadOnly => (DiskFault::ReadOnly, DriverErrorKind::Io),
        Answer::Io if matches!(call, Call::Sync | Call::SyncDirectory) => {
            (DiskFault::SyncFailed, DriverErrorKind::Io)
        }
        Answer::Io | Answer::Unsupported => (DiskFault::Io, DriverErrorKind::Io),
        Answer::NoMemory | Answer::NoDescriptor => unreachable!("what memory answers, not a disk"),
    }
}

#[test]
fn given_any_write_call_that_fails_when_spilled_then_typed_nothing_left_and_it_works_again_by_itself() {
    let cases = [
        (Call::Create, Answer::Io),
        (Call::Create, Answer::ReadOnly),
        (Call::Create, Answer::NoSpace),
        (Call::Reserve, Answer::NoSpace),
        (Call::Write, Answer::Io),
        (Call::Write, Answer::NoSpace),
        (Call::Sync, Answer::Io),
        (Call::Rename, Answer::Io),
        (Call::Rename, Answer::ReadOnly),
        (Call::SyncDirectory, Answer::Io),
    ];
    for (io, (call, answer)) in engines().into_iter().flat_map(|io| cases.map(|case| (io, case))) {
        let (place, mut rig, faults) = faulty(io);
        let bytes = sample(3_000_000);
        let ram = committed(&mut rig, Tier::Ram, &bytes);
        let first = twin(ram, Tier::Disk);
        rig.copy(ram, first, None).expect("the disk is sound");
        faults.available(1 << 40); // other programs' files come and go
        faults.fail(call, answer);
        let (fault, kind) = meaning(call, answer);
        let what = format!("{io:?} {call:?} {answer:?}");
        let Err(TransferError::Destination(error)) = rig.copy(ram, twin(ram, Tier::Disk), None) else {
            panic!("{what}: it fails at its destination")
        };
        assert_eq!(error.kind, kind, "{what}: {}", error.message);
        assert_eq!(health(&rig).state, DiskState::Failing(fault), "{what}");
        assert_eq!(fs::read(rig.path(ram)).expect("still there"), bytes, "{what}: the source is as it was");
        assert_eq!(place.files(), [rig.path(first)], "{what}: nothing half made");

        let calls = faults.made(Call::Create) + faults.made(Call::Write);
        let refused = rig.copy(ram, twin(ram, Tier::Disk), None);
        let Err(TransferError::Destination(error)) = refused else { panic!("{what}: {refused:?}") };
        assert_eq!(error.kind, kind, "{what}: {}", error.message);
        assert!(error.message.contains(fault.advice()), "{what}: {}", error.message);
        let calls_now = faults.made(Call::Create) + faults.made(Call::Write);
        assert_eq!(calls_now, calls, "{what}: nothing is tried before its time");
        assert_eq!(health(&rig).refused_total, 1);
        let back = twin(ram, Tier::Ram);
        rig.detach(ram);
        rig.copy(first, back, Some(checksum(&bytes))).expect("what the disk holds is read on");

        faults.end();
        faults.advance(PAUSE);
        let again = twin(back, Tier::Disk);
        rig.copy(back, again, Some(checksum(&bytes))).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert_eq!(fs::read(rig.path(again)).expect("there"), bytes, "{what}");
        let now = health(&rig);
        assert_eq!((now.state, now.attempts), (DiskState::Healthy, 0), "{what}");
        let mut left = place.files();
        left.sort();
        let mut expected = vec![rig.path(first), rig.path(again)];
        expected.sort();
        assert_eq!(left, expected, "{what}: no probe and no draft is left");
    }
}

#[test]
fn given_any_write_call_that_fails_when_allocated_on_disk_then_typed_and_nothing_left() {
    let cases = [
        (Call::Create, Answer::Io),
        (Call::Create, Answer::ReadOnly),
        (Call::Create, Answer::NoSpace),
        (Call::Reserve, Answer::NoSpace),
        (Call::Reserve, Answer::Io),
    ];
    for (call, answer) in cases {
        let (place, mut rig, faults) = plain();
        faults.available(1 << 40); // other programs' files come and go
        faults.fail(call, answer);
        let (fault, kind) = meaning(call, answer);
        let error = rig.create(replica(Tier::Disk, 10_000)).expect_err("it fails");
        assert_eq!(error.kind, kind, "{}", error.message);
        assert_eq!(health(&rig).state, DiskState::Failing(fault));
        assert!(place.files().is_empty(), "{:?}", place.files());
        rig.create(replica(Tier::Ram, 10_000)).expect("memory is no disk");
        faults.end();
        faults.available(1 << 40);
        assert_eq!(rig.create(replica(Tier::Disk, 10_000)).expect_err("too early").kind, kind);
        faults.advance(PAUSE);
        rig.create(replica(Tier::Disk, 10_000)).expect("it works again");
        assert_eq!(health(&rig).state, DiskState::Healthy);
    }
}

#[test]
fn given_a_failing_fdatasync_when_committed_then_that_file_is_lost_and_others_are_not_put_at_risk() {
    for call in [Call::Sync, Call::SyncDirectory] {
        let (_place, mut rig, faults) = plain();
        let [lost, spared] = [(); 2].map(|()| written(&mut rig, Tier::Disk, &sample(10_000)));
        faults.fail(call, Answer::Io);
        let error = rig.seal(lost, true).expect_err("fdatasync failed");
        assert_eq!(error.kind, DriverErrorKind::SyncFailed, "{}", error.message);
        assert_eq!(health(&rig).state, DiskState::Failing(DiskFault::SyncFailed));
        let made = faults.made(call);
        let error = rig.seal(spared, true).expect_err("refused");
        assert_eq!(error.kind, DriverErrorKind::Io, "it may be committed later: {}", error.message);
        faults.advance(PAUSE);
        let error = rig.seal(spared, true).expect_err("the probe failed");
        assert_eq!(error.kind, DriverErrorKind::Io, "the probe is a file of our own: {}", error.message);
        assert_eq!(faults.made(call), made + 1, "one probe, and no client's file");
        faults.end();
        faults.advance(2 * PAUSE);
        rig.seal(spared, true).expect("it works again");
        let error = rig.seal(lost, true).expect_err("never retried on the same file");
        assert_eq!(error.kind, DriverErrorKind::SyncFailed);
        assert_eq!(health(&rig).state, DiskState::Healthy, "a known loss is no new failure");
    }
}

#[test]
fn given_a_disk_that_goes_on_failing_when_tried_then_the_pause_doubles_up_to_half_a_minute() {
    let (place, mut rig, faults) = plain();
    let ram = committed(&mut rig, Tier::Ram, &sample(5000));
    faults.fail(Call::Sync, Answer::Io);
    rig.copy(ram, twin(ram, Tier::Disk), None).expect_err("it fails");
    let mut pauses = vec![health(&rig).retry_ms];
    for round in 1..9 {
        let synced = faults.made(Call::Sync);
        faults.advance(Duration::from_millis(pauses[round - 1] - 1));
        rig.copy(ram, twin(ram, Tier::Disk), None).expect_err("too early");
        assert_eq!(faults.made(Call::Sync), synced, "a millisecond too early");
        faults.advance(Duration::from_millis(1));
        rig.copy(ram, twin(ram, Tier::Disk), None).expect_err("it fails");
        rig.copy(ram, twin(ram, Tier::Disk), None).expect_err("too early again");
        assert_eq!(faults.made(Call::Sync), synced + 1, "one probe a pause, whoever asks");
        pauses.push(health(&rig).retry_ms);
    }
    assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
    assert_eq!(health(&rig).attempts, 9);
    assert!(place.files().is_empty());

    // The probe works again and writes do not: the pauses go on from where they were.
    faults.end();
    faults.fail(Call::Rename, Answer::Io);
    faults.advance(Duration::from_secs(30));
    rig.copy(ram, twin(ram, Tier::Disk), None).expect_err("the probe names nothing, a copy does");
    assert_eq!((health(&rig).attempts, health(&rig).retry_ms), (10, 30_000));
    faults.end();
    faults.advance(Duration::from_secs(30));
    rig.copy(ram, twin(ram, Tier::Disk), None).expect("it works again");
    faults.fail(Call::Sync, Answer::Io);
    rig.copy(ram, twin(ram, Tier::Disk), None).expect_err("it fails anew");
    assert_eq!(health(&rig).retry_ms, 500, "a write that worked ends the row");
}

#[test]
fn given_a_full_disk_when_small_files_come_then_they_fit_and_room_that_is_made_is_used_at_once() {
    let (_place, mut rig, faults) = plain();
    let large = committed(&mut rig, Tier::Ram, &sample(2_000_000));
    let small = committed(&mut rig, Tier::Ram, &sample(1000));
    faults.available(1_000_000);
    let full = rig.copy(large, twin(large, Tier::Disk), None);
    let Err(TransferError::Destination(error)) = full else { panic!("{full:?}") };
    assert_eq!(error.kind, DriverErrorKind::Full, "{}", error.message);
    rig.copy(small, twin(small, Tier::Disk), None).expect("it fits");
    assert_eq!(health(&rig).state, DiskState::Failing(DiskFault::Full), "what did not fit does not fit");
    let on_disk = written(&mut rig, Tier::Disk, b"written before");
    rig.seal(on_disk, true).expect("a commit needs no new room");
    rig.copy(large, twin(large, Tier::Disk), None).expect_err("nothing was freed");
    faults.available(3_000_000);
    rig.copy(large, twin(large, Tier::Disk), None).expect("room was made; no time need pass");
    assert_eq!(health(&rig).state, DiskState::Healthy);
}

#[test]
fn given_space_that_statvfs_promises_and_nobody_gets_when_spilled_then_smaller_and_smaller_files_are_refused()
{
    let (_place, mut rig, faults) = plain();
    let large = committed(&mut rig, Tier::Ram, &sample(2_000_000));
    let small = committed(&mut rig, Tier::Ram, &sample(1000));
    faults.available(1 << 40);
    faults.fail(Call::Reserve, Answer::NoSpace);
    for replica in [large, small, large] {
        let result = rig.copy(replica, twin(replica, Tier::Disk), None);
        let Err(TransferError::Destination(error)) = result else { panic!("{result:?}") };
        assert_eq!(error.kind, DriverErrorKind::Full, "{}", error.message);
    }
    let now = health(&rig);
    assert_eq!((now.failures_total, now.refused_total), (2, 1), "a quota refuses what no statvfs shows");
    faults.end();
    faults.advance(PAUSE);
    rig.copy(large, twin(large, Tier::Disk), None).expect("it is tried again in time");
}

#[test]
fn given_the_nth_write_of_a_large_copy_fails_when_spilled_then_no_draft_is_left_and_the_engine_works_on() {
    for io in engines() {
        let (place, mut rig, faults) = faulty(io);
        let bytes = sample(20 << 20);
        let ram = committed(&mut rig, Tier::Ram, &bytes);
        faults.fail_after(13, Call::Write, Answer::Io);
        rig.copy(ram, twin(ram, Tier::Disk), None).expect_err("the 14th MiB is not written");
        assert!(place.files().is_empty(), "{:?}", place.files());
        faults.end();
        faults.advance(PAUSE);
        faults.shorten(60_000);
        let disk = twin(ram, Tier::Disk);
        assert_eq!(rig.copy(ram, disk, None), Ok(checksum(&bytes)), "short writes are resumed");
        assert!(fs::read(rig.path(disk)).expect("there") == bytes);
        rig.detach(ram);
        assert_eq!(rig.copy(disk, twin(disk, Tier::Ram), None), Ok(checksum(&bytes)), "and short reads");
    }
}

#[test]
fn given_a_disk_that_cannot_be_read_when_promoted_then_a_source_error_and_the_next_try_reads_it() {
    for io in engines() {
        let (place, mut rig, faults) = faulty(io);
        let bytes = sample(3_000_000);
        let disk = committed(&mut rig, Tier::Disk, &bytes);
        faults.fail_after(1, Call::Read, Answer::Io);
        let result = rig.copy(disk, twin(disk, Tier::Ram), None);
        let Err(TransferError::Source(error)) = result else { panic!("{result:?}") };
        assert_eq!(error.kind, DriverErrorKind::Io, "says nothing about the bytes: {}", error.message);
        let now = health(&rig);
        assert_eq!((now.state, now.read_failures_total), (DiskState::Healthy, 1), "writes are not refused");
        assert!(place.segments().is_empty());
        faults.end();
        rig.copy(disk, twin(disk, Tier::Ram), Some(checksum(&bytes))).expect("read");
    }
}

#[test]
fn given_a_disk_that_takes_very_long_when_written_then_it_is_reported_slow_and_nothing_is_refused() {
    let (_place, mut rig, faults) = plain();
    let ram = committed(&mut rig, Tier::Ram, &sample(3_000_000));
    faults.slow(Call::Sync, Duration::from_secs(7));
    rig.copy(ram, twin(ram, Tier::Disk), None).expect("7 s are allowed for 2.9 MiB");
    assert_eq!(health(&rig).state, DiskState::Healthy);
    faults.slow(Call::Sync, Duration::from_secs(8));
    rig.copy(ram, twin(ram, Tier::Disk), None).expect("slow is not failing");
    let now = health(&rig);
    assert_eq!((now.state, now.slow_total), (DiskState::Slow, 1));
    assert!(now.error.contains('8') && now.since.is_some(), "{now:?}");
    faults.end();
    rig.copy(ram, twin(ram, Tier::Disk), None).expect("copied");
    assert_eq!(health(&rig).state, DiskState::Healthy);
}
