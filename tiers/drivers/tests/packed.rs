//! Copies into segment files, on both engines: every byte, every odd size, groups of which some sources are spoilt, one
//! fdatasync for many, and what has no place in a segment file.

mod common;

use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use common::{Place, Rig, committed, engines, read, replica, sample, twin};
use payload_drivers::faults::{Call, Faults};
use payload_drivers::{DriverOp, Drivers, IoEngine, checksum};
use payload_types::effect::{ReplicaRef, StorageAction, StorageOp, TransferOp};
use payload_types::event::{Completion, Copied, DriverErrorKind, TransferError};
use payload_types::{ByteCount, Checksum, OpId, ShardIndex, Tier};

/// Segment files of 8 MiB for payloads of 2 MiB at most, and one writer.
const CAPACITY: ByteCount = ByteCount(256 << 20);
const PAYLOAD_MAX: usize = 2 << 20;

fn place(io: IoEngine) -> Place {
    let mut place = Place::new();
    place.config.io = io;
    place.config.disk_capacity = Some(CAPACITY);
    place
}

fn rigs() -> Vec<(Place, Rig)> {
    let start = |io| {
        let place = place(io);
        let rig = Rig::start(&place);
        (place, rig)
    };
    engines().into_iter().map(start).collect()
}

/// A copy that is packed: with its extent.
fn packed(target: ReplicaRef, copied: Copied) -> ReplicaRef {
    assert!(copied.extent.is_some(), "{target:?} lies in a segment file");
    ReplicaRef { extent: copied.extent, ..target }
}

fn segment_files(place: &Place) -> usize {
    fs::read_dir(place.root().join("segments")).expect("listed").count()
}

#[test]
fn given_sizes_around_pages_and_chunks_when_packed_and_promoted_then_every_byte_and_checksum_is_the_same() {
    for (place, mut rig) in rigs() {
        let sizes = [1, 4095, 4096, 4097, 65_536, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, PAYLOAD_MAX];
        let samples: Vec<Vec<u8>> = sizes.iter().map(|size| sample(*size)).collect();
        let sources: Vec<ReplicaRef> =
            samples.iter().map(|bytes| committed(&mut rig, Tier::Ram, bytes)).collect();
        let targets: Vec<ReplicaRef> = sources.iter().map(|source| twin(*source, Tier::Disk)).collect();
        let copies: Vec<_> =
            sources.iter().zip(&targets).map(|(source, target)| (*source, *target, None)).collect();
        let results = rig.copy_all(&copies);
        let mut places = HashSet::new();
        for (((bytes, source), target), result) in samples.iter().zip(&sources).zip(&targets).zip(results) {
            let copied = result.expect("packed");
            let (size, disk) = (bytes.len(), packed(*target, copied));
            assert_eq!(copied.checksum, checksum(bytes), "{size} bytes");
            assert!(read(&rig, disk) == *bytes, "{size} bytes");
            let mode = fs::metadata(rig.path(disk)).expect("there").permissions().mode();
            assert_eq!(mode & 0o7777, 0o440);
            let pages = size.div_ceil(4096) as u32;
            let first = disk.extent.expect("packed").page;
            assert!((first..first + pages).all(|page| places.insert(page)), "no page is used twice");
            rig.detach(*source);
            let back = twin(*source, Tier::Ram);
            assert_eq!(rig.copy(disk, back, Some(copied.checksum)), Ok(copied.checksum));
            assert!(read(&rig, back) == *bytes, "{size} bytes");
        }
        assert_eq!(segment_files(&place), 1, "they share a file");
        assert!(place.files().is_empty(), "{:?}", place.files());
        let large = committed(&mut rig, Tier::Ram, &sample(PAYLOAD_MAX + 1));
        let alone = twin(large, Tier::Disk);
        assert_eq!(rig.copied(large, alone, None).expect("copied").extent, None, "larger ones have a file");
        assert_eq!(place.files(), [rig.path(alone)]);
    }
}

#[test]
fn given_payloads_that_move_to_another_segment_file_when_read_then_they_are_the_same_at_both_places() {
    for (_place, mut rig) in rigs() {
        for size in [1, 4097, (1 << 20) + 5, PAYLOAD_MAX - 1] {
            let bytes = sample(size);
            let ram = committed(&mut rig, Tier::Ram, &bytes);
            let target = twin(ram, Tier::Disk);
            let old = packed(target, rig.copied(ram, target, None).expect("packed"));
            let target = twin(old, Tier::Disk);
            let sum = Some(checksum(&bytes));
            let new = packed(target, rig.copied(old, target, sum).expect("moved"));
            let files = [old, new].map(|replica| replica.extent.expect("packed").file);
            assert_ne!(files[0], files[1], "compaction fills a file of its own");
            assert!(read(&rig, old) == bytes && read(&rig, new) == bytes, "{size} bytes");
            let wrong = rig.copied(old, twin(old, Tier::Disk), Some(Checksum(1)));
            let Err(TransferError::Source(error)) = wrong else { panic!("{wrong:?}") };
            assert_eq!(error.kind, DriverErrorKind::Corrupt);
        }
    }
}

/// Drivers whose answers wait until they are let go, so that a test knows what is in one group.
struct Gated {
    drivers: Drivers,
    completions: std::sync::mpsc::Receiver<Completion>,
    gate: std::sync::mpsc::Sender<()>,
    asked: u32,
}

impl Gated {
    fn start(mut drivers: Drivers) -> Self {
        let (sender, completions) = channel();
        let (gate, opened) = channel::<()>();
        let both = Mutex::new((sender, opened));
        drivers.start(Arc::new(move |_, completion| {
            let both = both.lock().expect("sound");
            let _ = both.0.send(completion.clone());
            if matches!(completion, Completion::Transfer(_)) {
                let _ = both.1.recv(); // nothing to wait for once the test is over
            }
        }));
        Self { drivers, completions, gate, asked: 0 }
    }

    fn copy(&mut self, from: ReplicaRef, to: ReplicaRef, expected: Option<Checksum>) {
        self.asked += 1;
        let op = OpId { index: self.asked, generation: 1 };
        let op = TransferOp {
            shard: ShardIndex(0),
            op,
            from,
            to,
            expected,
            sync: false,
            salvage: false,
            alone: false,
        };
        assert_eq!(self.drivers.submit(DriverOp::Transfer(op)), Ok(()));
    }

    /// Lets the transfer thread wait with an answer of its own, until [`go_on`](Self::go_on): what is asked for meanwhile
    /// is one group.
    fn hold(&mut self) {
        let large = self.segment(&sample(PAYLOAD_MAX + 1));
        self.copy(large, twin(large, Tier::Disk), None);
        assert_eq!(self.answered().1.expect("copied").extent, None, "it has a file of its own");
    }

    /// The next copy's answer: its number, from 1 on. The driver thread waits until [`go_on`](Self::go_on).
    fn answered(&self) -> (u32, Result<Copied, TransferError>) {
        loop {
            match self.completions.recv().expect("a completion") {
                Completion::Transfer(done) => return (done.op.index, done.result),
                Completion::Storage(_) | Completion::Relocate(_) => {}
                other => panic!("drivers do not send {other:?}"),
            }
        }
    }

    fn go_on(&self) {
        self.gate.send(()).expect("the sink waits");
    }

    /// A segment with these bytes, made behind the driver's back.
    fn segment(&self, bytes: &[u8]) -> ReplicaRef {
        let replica = replica(Tier::Ram, bytes.len() as u64);
        let op = OpId { index: 0, generation: 1 };
        let create = StorageOp { shard: ShardIndex(0), op, replica, action: StorageAction::Create };
        assert_eq!(self.drivers.submit(DriverOp::Storage(create)), Ok(()));
        let path = common::path_of(&self.drivers, replica);
        common::eventually("a segment", || {
            fs::metadata(&path).is_ok_and(|found| found.permissions().mode() & 0o777 == 0o660)
        });
        OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|file| file.write_all_at(bytes, 0))
            .expect("written");
        replica
    }
}

fn gated(io: IoEngine) -> (Place, Gated, Faults) {
    let mut place = place(io);
    place.config.transfer_threads = 1;
    let faults = Faults::new();
    let drivers = Drivers::open_faulty(place.config.clone(), faults.clone()).expect("opened");
    (place, Gated::start(drivers), faults)
}

#[test]
fn given_many_payloads_that_wait_when_packed_then_one_file_and_one_fdatasync_for_all_of_them() {
    for io in engines() {
        let (place, mut gated, faults) = gated(io);
        let bytes = sample(70_000);
        let first = gated.segment(&bytes);
        gated.copy(first, twin(first, Tier::Disk), None);
        gated.answered().1.expect("packed");
        gated.go_on();
        gated.hold();
        let (synced, written) = (faults.made(Call::Sync), faults.made(Call::Write));
        for _ in 0..64 {
            gated.copy(first, twin(first, Tier::Disk), Some(checksum(&bytes)));
        }
        gated.go_on();
        for _ in 0..64 {
            let (_, result) = gated.answered();
            assert_eq!(result.expect("packed").checksum, checksum(&bytes));
            gated.go_on();
        }
        assert_eq!(faults.made(Call::Sync) - synced, 1);
        // 64 x 18 pages are 4.5 MiB; and their records.
        assert_eq!(faults.made(Call::Write) - written, 6);
        assert_eq!(segment_files(&place), 1);
    }
}

#[test]
fn given_more_groups_than_one_turn_has_when_packed_then_every_payload_lies_in_a_segment_file() {
    for io in engines() {
        let mut place = place(io);
        place.config.shard_count = 4; // room for as many
        let mut rig = Rig::start(&place);
        let bytes = sample(100);
        let source = committed(&mut rig, Tier::Ram, &bytes);
        let copies: Vec<_> =
            (0..3000).map(|_| (source, twin(source, Tier::Disk), Some(checksum(&bytes)))).collect();
        let mut places = HashSet::new();
        for result in rig.copy_all(&copies) {
            let extent = result.expect("copied").extent.expect("packed");
            assert!(places.insert((extent.file, extent.page)), "no place is used twice");
        }
        assert!(place.files().is_empty(), "{:?}", place.files());
    }
}

#[test]
fn given_a_group_with_spoilt_sources_when_packed_then_each_costs_only_itself() {
    for io in engines() {
        let (place, mut gated, _faults) = gated(io);
        // Spoilt ones lie within a buffer, across buffers, and at the end.
        let sizes = [5000, 70_000, 1_900_000, 3, 1_500_000, 9000, 600_000, 800_000, 4096];
        let spoilt = [1, 2, 4, 8];
        let samples: Vec<Vec<u8>> = sizes.iter().map(|size| sample(*size)).collect();
        let sources: Vec<ReplicaRef> = samples.iter().map(|bytes| gated.segment(bytes)).collect();
        gated.hold();
        let path = |index: usize| common::path_of(&gated.drivers, sources[index]);
        fs::remove_file(path(1)).expect("removed");
        OpenOptions::new().write(true).open(path(8)).and_then(|file| file.set_len(7)).expect("cut");
        let targets: Vec<ReplicaRef> = sources.iter().map(|source| twin(*source, Tier::Disk)).collect();
        for (index, (source, target)) in sources.iter().zip(&targets).enumerate() {
            // Found wrong when all of its bytes are on their way.
            let wrong = [2, 4].contains(&index).then_some(Checksum(1));
            gated.copy(*source, *target, wrong.or(Some(checksum(&samples[index]))));
        }
        gated.go_on();
        let mut places = HashSet::new();
        for _ in 0..sizes.len() {
            let (number, result) = gated.answered();
            let index = number as usize - 2;
            match result {
                Ok(copied) => {
                    assert!(!spoilt.contains(&index), "{index}");
                    let replica = packed(targets[index], copied);
                    let extent = replica.extent.expect("packed");
                    let file = fs::File::open(common::path_of(&gated.drivers, replica)).expect("there");
                    let mut found = vec![0; sizes[index]];
                    file.read_exact_at(&mut found, extent.offset_bytes()).expect("read");
                    assert!(found == samples[index], "payload {index} of {} bytes", sizes[index]);
                    let pages = sizes[index].div_ceil(4096) as u32;
                    assert!((extent.page..extent.page + pages).all(|page| places.insert(page)));
                }
                Err(TransferError::Source(error)) => {
                    let kind = [DriverErrorKind::Missing, DriverErrorKind::Corrupt];
                    let expected = match index {
                        1 => kind[0],
                        2 | 4 => kind[1],
                        8 => DriverErrorKind::Truncated,
                        _ => panic!("{index}: {}", error.message),
                    };
                    assert_eq!(error.kind, expected, "{}", error.message);
                }
                Err(other) => panic!("{index}: {other:?}"),
            }
            gated.go_on();
        }
        let (least, most) = (places.iter().min().expect("some"), places.iter().max().expect("some"));
        assert_eq!(most - least + 1, places.len() as u32, "what failed left no gap");
        assert_eq!(segment_files(&place), 1);
    }
}

#[test]
fn given_an_operation_that_makes_the_driver_panic_when_packed_then_every_one_is_answered_and_the_next_works()
{
    let (_place, mut gated, _faults) = gated(IoEngine::Uring);
    let bytes = sample(300_000);
    let source = gated.segment(&bytes);
    gated.hold();
    gated.copy(source, twin(source, Tier::Disk), None);
    let mut wrong = twin(source, Tier::Disk);
    wrong.size = ByteCount(1);
    gated.copy(source, wrong, None);
    gated.copy(source, twin(source, Tier::Disk), None);
    gated.go_on();
    let mut answered = HashSet::new();
    for _ in 0..3 {
        let (number, result) = gated.answered();
        assert!(answered.insert(number), "one answer each");
        assert!(matches!(result, Err(TransferError::Destination(_))), "{result:?}");
        gated.go_on();
    }
    gated.copy(source, twin(source, Tier::Disk), Some(checksum(&bytes)));
    gated.answered().1.expect("the next one is packed");
    gated.go_on();
}

#[test]
fn given_a_flipped_bit_in_a_segment_file_when_promoted_or_verified_then_corrupt_and_never_delivered() {
    for (place, mut rig) in rigs() {
        let bytes = sample(100_000);
        let ram = committed(&mut rig, Tier::Ram, &bytes);
        let target = twin(ram, Tier::Disk);
        let disk = packed(target, rig.copied(ram, target, None).expect("packed"));
        rig.detach(ram);
        rig.wait_until_freed(ram);
        let path = rig.path(disk);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("writable");
        let at = disk.extent.expect("packed").offset_bytes() + 99_999;
        let file = OpenOptions::new().write(true).open(&path).expect("opened");
        file.write_all_at(&[bytes[99_999] ^ 1], at).expect("flipped");
        drop(file);
        let back = twin(disk, Tier::Ram);
        let result = rig.copy(disk, back, Some(checksum(&bytes)));
        let Err(TransferError::Source(error)) = result else { panic!("{result:?}") };
        assert_eq!(error.kind, DriverErrorKind::Corrupt, "{}", error.message);
        assert!(place.segments().is_empty(), "{:?}", place.segments());
    }
}

#[test]
fn given_a_packed_replica_when_dropped_then_its_name_is_free_at_once_and_a_sync_of_one_is_nothing_to_do() {
    for (_place, mut rig) in rigs() {
        let bytes = sample(10_000);
        let ram = committed(&mut rig, Tier::Ram, &bytes);
        let [first, second] = [(); 2].map(|()| {
            let target = twin(ram, Tier::Disk);
            packed(target, rig.copied(ram, target, None).expect("packed"))
        });
        rig.submit(StorageAction::Sync, first);
        match rig.next() {
            Completion::Storage(payload_types::event::StorageDone::Synced { result, .. }) => {
                assert_eq!(result, Ok(()));
            }
            other => panic!("{other:?}"),
        }
        rig.detach(first);
        assert!(read(&rig, second) == bytes, "the other one is as it was");
        assert!(!rig.is_freed(first), "its file has another one that lives");
    }
}

#[test]
fn given_no_room_for_another_segment_file_when_copied_then_it_gets_a_file_of_its_own() {
    for (place, mut rig) in rigs() {
        let bytes = sample(50_000);
        let ram = committed(&mut rig, Tier::Ram, &bytes);
        // All but 8 MiB are a file that a client writes: what is left is not enough for one more segment file.
        rig.create(replica(Tier::Disk, CAPACITY.0 - (8 << 20))).expect("created");
        let alone = twin(ram, Tier::Disk);
        let copied = rig.copied(ram, alone, Some(checksum(&bytes))).expect("copied");
        assert_eq!(copied.extent, None);
        assert!(read(&rig, alone) == bytes);
        assert_eq!(segment_files(&place), 0);
    }
}

#[test]
fn given_a_root_of_the_first_format_when_opened_then_it_is_upgraded_with_its_id_and_an_older_version_refuses_it()
 {
    let place = place(IoEngine::Plain);
    let id = place.open().root_id().expect("a root").to_owned();
    let marker = place.root().join("payload-manager.root");
    let text = fs::read_to_string(&marker).expect("there");
    assert!(text.contains("format: 2"), "{text}");
    fs::write(&marker, text.replace("format: 2", "format: 1")).expect("written");
    fs::remove_dir_all(place.root().join("segments")).expect("the first format has none");
    assert_eq!(place.open().root_id(), Some(id.as_str()));
    let again = fs::read_to_string(&marker).expect("there");
    assert_eq!(again, text);
    assert!(Path::new(&place.root().join("segments")).is_dir());
}
