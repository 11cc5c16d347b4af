//! Starting on segment files that an earlier run left: whole, torn, damaged, cut, missing, somebody else's, of a later
//! version, of another size, with rows and records that do not fit each other.
//!
//! What a killed server leaves is a copy of its root, made while it runs.

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use common::{Place, Rig, eventually, replica, sample, twin};
use payload_drivers::{Drivers, OpenError};
use payload_ledger::segments::table::{Header, RECORD_BYTES, Record};
use payload_types::effect::ReplicaRef;
use payload_types::event::{Completion, StorageDone};
use payload_types::{ByteCount, Extent, Generation, ShardIndex, Tier};

/// Segment files of 4 MiB, and of 8 MiB.
const CAPACITY: ByteCount = ByteCount(128 << 20);
const CAPACITY_LARGER: ByteCount = ByteCount(256 << 20);

/// Odd on purpose: 3 pages.
const SIZE: usize = 10_007;

fn place() -> Place {
    let mut place = Place::new();
    place.config.disk_capacity = Some(CAPACITY);
    place
}

/// What `kill -9` would leave of the place's disk; its memory is another one's.
fn snapshot(of: &Place) -> Place {
    let mut copy = Place::new();
    let mine = copy.config.clone();
    copy.config = payload_drivers::DriversConfig {
        disk_root: mine.disk_root,
        shm_prefix: mine.shm_prefix,
        node: mine.node,
        ..of.config.clone()
    };
    copy_tree(of.root(), copy.root());
    copy
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("listed").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).expect("copied");
        }
    }
}

/// So many packed payloads of [`SIZE`] bytes, all the same.
fn packed(rig: &mut Rig, count: usize) -> Vec<ReplicaRef> {
    let ram = replica(Tier::Ram, SIZE as u64);
    rig.create(ram).expect("created");
    fs::write(rig.path(ram), sample(SIZE)).expect("written");
    rig.seal(ram, false).expect("sealed");
    let targets: Vec<ReplicaRef> =
        (0..count).map(|_| ReplicaRef { tier: Tier::Disk, ..replica(Tier::Disk, SIZE as u64) }).collect();
    let copies: Vec<_> = targets.iter().map(|target| (ram, *target, None)).collect();
    let copied = rig.copy_all(&copies);
    let packed = targets.into_iter().zip(copied).map(|(target, copied)| {
        let extent = copied.expect("copied").extent;
        assert!(extent.is_some(), "{target:?} is packed");
        ReplicaRef { extent, ..target }
    });
    let mut packed: Vec<ReplicaRef> = packed.collect();
    packed.sort_by_key(|replica| replica.extent);
    rig.detach(ram);
    rig.wait_until_freed(ram);
    packed
}

/// A place with so many payloads in one file, as if its server had been killed.
fn left(count: usize) -> (Place, Vec<ReplicaRef>) {
    let place = place();
    let mut rig = Rig::start(&place);
    let replicas = packed(&mut rig, count);
    let copy = snapshot(&place);
    rig.drivers.shutdown();
    (copy, replicas)
}

fn path(place: &Place, file: std::num::NonZeroU32) -> PathBuf {
    place.root().join(format!("segments/{file:08x}.seg"))
}

fn names(place: &Place) -> Vec<String> {
    let entries = fs::read_dir(place.root().join("segments")).expect("listed").flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into()).collect();
    names.sort();
    names
}

fn file_of(replica: &ReplicaRef) -> std::num::NonZeroU32 {
    replica.extent.expect("packed").file
}

fn opened(path: &Path) -> File {
    fs::set_permissions(path, fs::Permissions::from_mode(0o640)).expect("writable");
    OpenOptions::new().read(true).write(true).open(path).expect("opened")
}

fn content(place: &Place, replica: &ReplicaRef) -> Vec<u8> {
    let mut bytes = vec![0; replica.size.0 as usize];
    let extent = replica.extent.expect("packed");
    let file = File::open(path(place, extent.file)).expect("there");
    file.read_exact_at(&mut bytes, extent.offset_bytes()).expect("read");
    bytes
}

fn there(drivers: &Drivers, replicas: &[ReplicaRef]) -> Vec<bool> {
    replicas.iter().map(|replica| drivers.verify(replica)).collect()
}

/// Drops them and waits until all are free.
fn drop_all(rig: &mut Rig, replicas: &[ReplicaRef]) {
    replicas.iter().for_each(|replica| rig.detach(*replica));
    replicas.iter().for_each(|replica| rig.wait_until_freed(*replica));
}

#[test]
fn given_rows_and_records_when_started_again_then_exactly_what_fits_is_there_and_the_file_is_filled_further()
{
    let (place, replicas) = left(10);
    let mut drivers = place.open();
    assert_eq!(drivers.named(Tier::Disk), 10);
    assert_eq!(there(&drivers, &replicas), [true; 10]);
    let [one, other] = [replicas[3], replicas[4]];
    let extent = one.extent.expect("packed");
    let strange = [
        ReplicaRef { id: other.id, ..one },
        ReplicaRef { generation: other.generation, ..one },
        ReplicaRef { size: ByteCount(SIZE as u64 + 1), ..one },
        ReplicaRef { size: ByteCount(SIZE as u64 - 1), ..one },
        ReplicaRef { extent: other.extent, ..one },
        ReplicaRef { extent: Some(Extent { page: extent.page + 1, ..extent }), ..one },
        ReplicaRef { extent: Some(Extent { file: extent.file.saturating_add(1), ..extent }), ..one },
        ReplicaRef { extent: Some(Extent { page: u32::MAX, ..extent }), ..one },
        ReplicaRef { extent: None, ..one },
    ];
    assert_eq!(there(&drivers, &strange), [false; 9]);
    let tally = drivers.reclaim();
    assert_eq!((tally[Tier::Disk].held, drivers.held().count(), drivers.named(Tier::Disk)), (0, 0, 0));
    let mut rig = Rig::started(drivers);
    let more = packed(&mut rig, 5);
    let all: Vec<ReplicaRef> = replicas.iter().chain(&more).copied().collect();
    assert!(
        all.iter().all(|replica| file_of(replica) == file_of(&all[0])),
        "starts leave no half-empty files"
    );
    let pages: BTreeSet<u32> = all.iter().map(|replica| replica.extent.expect("packed").page).collect();
    let pages: Vec<u32> = pages.into_iter().collect();
    assert!(pages.len() == 15 && pages.windows(2).all(|pair| pair[1] - pair[0] == 3), "{pages:?}");
    let again = snapshot(&place);
    assert_eq!(there(&again.open(), &all), [true; 15]);
    assert!(all.iter().all(|replica| content(&again, replica) == sample(SIZE)));
}

#[test]
fn given_records_that_no_row_names_when_started_again_then_they_are_held_and_freed_with_their_file() {
    let (mut place, replicas) = left(10);
    place.config.shard_count = 3;
    let mut drivers = place.open();
    assert_eq!(there(&drivers, &replicas[..5]), [true; 5]);
    let tally = drivers.reclaim();
    assert_eq!((tally[Tier::Disk].held, tally[Tier::Disk].held_bytes), (5, 5 * SIZE as u64));
    let held: BTreeSet<ReplicaRef> = drivers.held().collect();
    assert_eq!(held, replicas[5..].iter().copied().collect());
    assert_eq!(drivers.reclaim(), Default::default(), "a second reclaim does nothing");
    let mut rig = Rig::started(drivers);
    assert!(!rig.is_freed(replicas[9]), "others live in the file");
    for replica in &replicas[..5] {
        rig.detach(*replica);
    }
    let mut told = BTreeSet::new();
    while told.len() < 10 {
        match rig.completions.recv().expect("a completion") {
            (shard, Completion::Storage(StorageDone::Freed { generation, .. })) => {
                told.insert((shard, generation));
            }
            (_, Completion::Storage(_) | Completion::Relocate(_)) => {}
            (_, other) => panic!("{other:?}"),
        }
    }
    // What died in an earlier run is told to the shard that its id has now; what was dropped to who dropped it.
    let expected = replicas[5..].iter().map(|replica| (replica.id.shard(3), replica.generation));
    let expected = expected.chain(replicas[..5].iter().map(|replica| (ShardIndex(0), replica.generation)));
    assert_eq!(told, expected.collect());
    assert!(!path(&place, file_of(&replicas[0])).exists(), "the old path leads nowhere");
}

#[test]
fn given_a_table_torn_at_any_record_or_within_one_when_started_again_then_exactly_the_records_before_are_there()
 {
    let (place, replicas) = left(9);
    let table = path(&place, file_of(&replicas[0]));
    let whole = fs::read(&table).expect("read");
    for slot in 0..9 {
        for within in [0, 1, 20, 40, RECORD_BYTES - 8] {
            let cut = Header::record_offset(slot) as usize + within;
            let end = Header::record_offset(9) as usize;
            // A torn write leaves what was there before: nothing.
            opened(&table).write_all_at(&vec![0; end - cut], cut as u64).expect("torn");
            let drivers = place.open();
            let expected: Vec<bool> = (0..9).map(|number| number < slot).collect();
            assert_eq!(there(&drivers, &replicas), expected, "cut in slot {slot} at {within}");
            drop(drivers);
            opened(&table).write_all_at(&whole[cut..end], cut as u64).expect("restored");
        }
    }
    // What was cut is written over.
    let cut = Header::record_offset(6) as usize + 7;
    opened(&table).write_all_at(&[0xEE; 100], cut as u64).expect("torn");
    let mut drivers = place.open();
    assert_eq!(there(&drivers, &replicas[..6]), [true; 6]);
    let mut expected_dead: Vec<Generation> = drivers.held().map(|replica| replica.generation).collect();
    drivers.reclaim();
    expected_dead.extend(drivers.held().map(|replica| replica.generation));
    assert_eq!(
        expected_dead,
        [replicas[8].generation],
        "what is readable behind the damage and named by no row"
    );
}

#[test]
fn given_a_flipped_bit_anywhere_in_a_table_when_started_again_then_it_costs_one_record_and_nothing_is_added()
{
    let (place, replicas) = left(9);
    let table = path(&place, file_of(&replicas[0]));
    for slot in 0..9 {
        let at = Header::record_offset(slot) + u64::from(slot) * 7 + 1;
        let mut byte = [0];
        let file = opened(&table);
        file.read_exact_at(&mut byte, at).expect("read");
        file.write_all_at(&[byte[0] ^ 4], at).expect("flipped");
        drop(file);
        let drivers = place.open();
        let expected: Vec<bool> = (0..9).map(|number| number != slot).collect();
        assert_eq!(there(&drivers, &replicas), expected, "slot {slot}");
        drop(drivers);
        opened(&table).write_all_at(&byte, at).expect("restored");
    }
    let file = opened(&table);
    file.write_all_at(&[9], Header::record_offset(4) + 3).expect("flipped");
    drop(file);
    let mut drivers = place.open();
    assert_eq!(there(&drivers, &replicas).iter().filter(|there| **there).count(), 8);
    drivers.reclaim();
    let more = packed(&mut Rig::started(drivers), 1);
    assert_ne!(file_of(&more[0]), file_of(&replicas[0]), "a damaged file is not filled further");
}

#[test]
fn given_a_damaged_header_when_started_again_then_the_records_vouch_for_the_file_and_it_is_not_filled_further()
 {
    let (place, replicas) = left(4);
    let table = path(&place, file_of(&replicas[0]));
    for at in [0, 9, 13, 18, 30, 50, 63] {
        let mut byte = [0];
        let file = opened(&table);
        file.read_exact_at(&mut byte, at).expect("read");
        file.write_all_at(&[byte[0] ^ 0x80], at).expect("flipped");
        drop(file);
        assert_eq!(there(&place.open(), &replicas), [true; 4], "byte {at}");
        opened(&table).write_all_at(&byte, at).expect("restored");
    }
    opened(&table).write_all_at(&[0; 4096], 0).expect("a page of zeroes");
    let mut drivers = place.open();
    assert_eq!(there(&drivers, &replicas), [true; 4]);
    drivers.reclaim();
    let mut rig = Rig::started(drivers);
    let more = packed(&mut rig, 1);
    assert_ne!(file_of(&more[0]), file_of(&replicas[0]));
    drop_all(&mut rig, &replicas);
    assert!(!table.exists());
}

#[test]
fn given_a_cut_a_missing_and_a_strange_file_when_started_again_then_only_what_is_whole_is_there() {
    let (place, replicas) = left(6);
    let file = path(&place, file_of(&replicas[0]));
    // The fourth has its last byte yet, the fifth not.
    let end = replicas[3].extent.expect("packed").offset_bytes() + SIZE as u64;
    opened(&file).set_len(end).expect("cut");
    let mut drivers = place.open();
    assert_eq!(there(&drivers, &replicas), [true, true, true, true, false, false]);
    drivers.reclaim();
    let mut rig = Rig::started(drivers);
    let more = packed(&mut rig, 1);
    assert_ne!(file_of(&more[0]), file_of(&replicas[0]), "a cut file is not filled further");
    drop_all(&mut rig, &replicas[..4]);
    assert!(!file.exists());
    rig.drivers.shutdown();

    let (place, replicas) = left(3);
    fs::remove_file(path(&place, file_of(&replicas[0]))).expect("removed");
    let mut drivers = place.open();
    assert_eq!((there(&drivers, &replicas), drivers.named(Tier::Disk)), (vec![false; 3], 0));
    drivers.reclaim();
    let more = packed(&mut Rig::started(drivers), 1);
    assert!(file_of(&more[0]) > file_of(&replicas[0]), "its number is not given out again");

    // Of another root, of another number, and one that the log does not name.
    let (place, replicas) = left(3);
    let (other, _) = left(3);
    let (file, bystander) = (path(&place, file_of(&replicas[0])), place.root().join("segments/00000077.seg"));
    fs::copy(path(&other, file_of(&replicas[0])), &file).expect("copied");
    fs::write(&bystander, "whatever").expect("written");
    let mut drivers = place.open();
    assert_eq!(there(&drivers, &replicas), [false; 3]);
    assert!(file.exists(), "nothing is removed before rows were looked at");
    drivers.reclaim();
    assert!(!file.exists() && bystander.exists(), "{:?}", names(&place));
}

#[test]
fn given_a_file_of_a_later_version_when_started_again_then_it_is_refused_by_name_and_untouched() {
    let (place, replicas) = left(2);
    let file = path(&place, file_of(&replicas[0]));
    let mut header = [0; RECORD_BYTES];
    opened(&file).read_exact_at(&mut header, 0).expect("read");
    header[8] = 9;
    let seed = u64::from_le_bytes(header[24..32].try_into().expect("8 bytes"));
    let sum = xxhash_rust::xxh3::xxh3_64_with_seed(&header[..56], seed);
    header[56..].copy_from_slice(&sum.to_le_bytes());
    opened(&file).write_all_at(&header, 0).expect("written");
    let error = Drivers::open(place.config.clone()).map(drop).expect_err("refused");
    assert!(matches!(error, OpenError::SegmentNewer { format: 9, .. }), "{error}");
    assert!(error.to_string().contains("00000001.seg"), "{error}");
    assert!(file.exists());
}

#[test]
fn given_files_that_were_being_recycled_when_started_again_then_they_have_their_name_back_or_are_gone() {
    // Between the two proofs: nothing lives, and nobody knows yet whether somebody has it open.
    let (place, replicas) = left(3);
    let file = path(&place, file_of(&replicas[0]));
    let free = file.with_extension("free");
    fs::rename(&file, &free).expect("renamed");
    let reader = File::open(&free).expect("somebody opened it in time");
    let mut drivers = place.open();
    assert_eq!(drivers.named(Tier::Disk), 3);
    drivers.reclaim();
    assert!(file.exists() && !free.exists());
    let mut rig = Rig::started(drivers);
    eventually("it is looked at", || {
        rig.drivers.disk_watch().segments().is_some_and(|segments| segments.files_held == 1)
    });
    assert!(!rig.is_freed(replicas[0]));
    drop(reader);
    replicas.iter().for_each(|replica| rig.wait_until_freed(*replica));
    rig.drivers.shutdown();

    // Free: its header is empty, and what its table says is nobody's.
    let (place, replicas) = left(3);
    let file = path(&place, file_of(&replicas[0]));
    opened(&file).write_all_at(&[0; 4096], 0).expect("written");
    fs::rename(&file, file.with_extension("free")).expect("renamed");
    let mut drivers = place.open();
    assert_eq!(drivers.named(Tier::Disk), 0);
    drivers.reclaim();
    assert!(names(&place).is_empty(), "{:?}", names(&place));
}

#[test]
fn given_another_capacity_when_started_again_then_old_files_are_served_and_removed_and_never_filled() {
    for capacity in [Some(CAPACITY_LARGER), None] {
        let (mut place, replicas) = left(4);
        place.config.disk_capacity = capacity;
        let mut drivers = place.open();
        assert_eq!(there(&drivers, &replicas), [true; 4]);
        drivers.reclaim();
        let mut rig = Rig::started(drivers);
        let back = twin(replicas[1], Tier::Ram);
        rig.copy(replicas[1], back, Some(payload_drivers::checksum(&sample(SIZE)))).expect("served");
        let source = twin(back, Tier::Disk);
        let more = rig.copied(back, source, None).expect("copied").extent;
        assert_eq!(more.is_some(), capacity.is_some());
        assert!(more.is_none_or(|extent| extent.file != file_of(&replicas[0])));
        drop_all(&mut rig, &replicas);
        assert!(!path(&place, file_of(&replicas[0])).exists());
        assert_eq!(names(&place).len(), usize::from(capacity.is_some()), "{:?}", names(&place));
    }
}

#[test]
fn given_all_files_gone_at_a_stop_when_started_again_then_their_numbers_are_not_given_out_again() {
    let place = place();
    let mut numbers = BTreeSet::new();
    for _ in 0..3 {
        let mut drivers = place.open();
        drivers.reclaim();
        let mut rig = Rig::started(drivers);
        let replicas = packed(&mut rig, 2);
        assert!(numbers.insert(file_of(&replicas[0])), "{numbers:?}");
        rig.drivers.shutdown();
        // No lane has the file after a start, so it is recycled when nothing lives in it.
        let mut drivers = place.open();
        assert_eq!(there(&drivers, &replicas), [true; 2]);
        drivers.reclaim();
        let mut rig = Rig::started(drivers);
        drop_all(&mut rig, &replicas);
        rig.drivers.shutdown();
        let mut drivers = place.open();
        assert_eq!(drivers.named(Tier::Disk), 0);
        drivers.reclaim();
        assert!(names(&place).is_empty(), "{:?}", names(&place));
    }
}

/// The log that names files 1 to `count`, as the store writes it.
fn log_of(count: u32) -> Vec<u8> {
    let sealed = |mut bytes: [u8; 48]| {
        let sum = xxhash_rust::xxh3::xxh3_64(&bytes[..40]);
        bytes[40..].copy_from_slice(&sum.to_le_bytes());
        bytes
    };
    let mut header = [0; 48];
    header[..8].copy_from_slice(b"PMINTENT");
    (header[8], header[12]) = (1, Tier::Disk as u8);
    let mut log = sealed(header).to_vec();
    for number in 1..=count {
        let mut record = [0; 48];
        (record[0], record[1]) = (1, Tier::Disk as u8);
        record[20..24].copy_from_slice(&number.to_be_bytes());
        record[24..28].copy_from_slice(&number.to_le_bytes());
        log.extend_from_slice(&sealed(record));
    }
    log
}

#[test]
fn given_a_million_records_when_started_then_every_one_is_found_and_what_no_row_names_is_held() {
    const FILES: u32 = 16;
    let mut place = place();
    place.config.disk_capacity = Some(ByteCount(64 << 30));
    let root = place.open().root_id().expect("a root").to_owned();
    let root = u128::from_str_radix(&root, 16).expect("hexadecimal").to_be_bytes();
    let mut rows = Vec::new();
    for number in 1..=FILES {
        let number = std::num::NonZeroU32::new(number).expect("not 0");
        let header = Header { number, data_bytes: 256 << 20, root };
        let mut table = Vec::new();
        for slot in 0..header.slots() {
            let ReplicaRef { id, generation, .. } = replica(Tier::Disk, 1);
            let (size, checksum) = (ByteCount(4096), payload_types::Checksum(0));
            let page = header.first_page() + slot;
            table.extend_from_slice(&header.record(slot, &Record { id, generation, size, checksum, page }));
            let extent = Some(Extent { file: number, page });
            rows.push(ReplicaRef { tier: Tier::Disk, id, generation, size, extent, block: None });
        }
        let file = File::create(path(&place, number)).expect("made");
        file.set_len(header.file_bytes()).expect("sized");
        file.write_all_at(&header.encode(), 0).expect("written");
        file.write_all_at(&table, Header::record_offset(0)).expect("written");
    }
    fs::write(place.root().join("payload-manager.segments"), log_of(FILES)).expect("written");
    let start = std::time::Instant::now();
    let mut drivers = place.open();
    let read = start.elapsed();
    assert_eq!(drivers.named(Tier::Disk), rows.len());
    let mut verifier = drivers.verifier();
    let mut found = 0;
    // All but one in a thousand.
    for batch in rows.chunks(1024) {
        verifier.verify(&batch[1..], |_, is_there| found += usize::from(is_there));
    }
    let batches = rows.len().div_ceil(1024);
    assert_eq!(found, rows.len() - batches);
    drop(verifier);
    let verified = start.elapsed();
    let tally = drivers.reclaim();
    println!("{} records: read {read:?}, verified {verified:?}, all {:?}", rows.len(), start.elapsed());
    assert_eq!((tally[Tier::Disk].held as usize, drivers.held().count()), (batches, batches));
}
