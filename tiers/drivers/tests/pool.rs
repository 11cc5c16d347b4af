//! Segments that are used again: whose pages they were, nobody sees; what they take, the capacity bounds.

mod common;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::{Place, Rig, committed, eventually, read, replica, twin};
use payload_drivers::checksum;
use payload_types::effect::ReplicaRef;
use payload_types::{ByteCount, Tier};

const PAGE: u64 = 4096;

fn place(capacity_pages: u64) -> Place {
    let mut place = Place::new();
    place.config.ram_capacity = Some(ByteCount(capacity_pages * PAGE));
    place
}

fn drop_it(rig: &mut Rig, replica: ReplicaRef) {
    rig.detach(replica);
    rig.wait_until_freed(replica);
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).expect("there").ino()
}

/// All of its last page, as who maps it sees it.
fn mapped(path: &Path, bytes: u64) -> Vec<u8> {
    let file = File::open(path).expect("opened");
    let length = bytes.next_multiple_of(PAGE) as usize;
    // SAFETY: the file is this test's; nobody truncates it while it is mapped.
    unsafe { memmap2::MmapOptions::new().len(length).map(&file) }.expect("mapped").to_vec()
}

#[test]
fn given_a_dropped_segment_when_one_of_as_many_pages_is_made_then_it_is_the_same_file_zeroed_to_its_end() {
    let place = place(100);
    let mut rig = Rig::start(&place);
    let old = committed(&mut rig, Tier::Ram, &[7; 8192]);
    let its = inode(&rig.path(old));
    drop_it(&mut rig, old);
    let kept = place.segments();
    assert!(kept.len() == 1 && kept[0].contains("-limbo-"), "{kept:?}");
    let mode = fs::metadata(Path::new("/dev/shm").join(&kept[0])).expect("there").mode() & 0o777;
    assert_eq!(mode, 0o600, "nobody else may read what was dropped");

    let new = replica(Tier::Ram, 5000);
    rig.create(new).expect("created");
    let path = rig.path(new);
    assert_eq!((inode(&path), place.segments().len()), (its, 1));
    let made = fs::metadata(&path).expect("there");
    assert_eq!((made.len(), made.mode() & 0o777, made.blocks() * 512), (5000, 0o660, 8192));
    assert!(mapped(&path, 5000).iter().all(|byte| *byte == 0), "nothing is left of what was there");
    OpenOptions::new().write(true).open(&path).expect("no lease is in its producer's way");

    let other = replica(Tier::Ram, 9000);
    rig.create(other).expect("created");
    assert_ne!(inode(&rig.path(other)), its);
}

#[test]
fn given_a_dropped_segment_when_a_payload_is_promoted_then_its_bytes_and_nothing_else_are_in_that_file() {
    let place = place(100);
    let mut rig = Rig::start(&place);
    let bytes: Vec<u8> = (0..5000u32).map(|number| (number * 31) as u8).collect();
    let disk = committed(&mut rig, Tier::Disk, &bytes);
    let old = committed(&mut rig, Tier::Ram, &[7; 8192]);
    let its = inode(&rig.path(old));
    drop_it(&mut rig, old);
    let ram = twin(disk, Tier::Ram);
    rig.copy(disk, ram, Some(checksum(&bytes))).expect("promoted");
    assert_eq!(inode(&rig.path(ram)), its);
    let seen = mapped(&rig.path(ram), 5000);
    assert_eq!(seen[..5000], bytes);
    assert!(seen[5000..].iter().all(|byte| *byte == 0), "what follows its end in the last page");
    assert_eq!(place.segments().len(), 1);
}

#[test]
fn given_kept_segments_when_more_is_made_than_fits_beside_them_then_they_go_first() {
    let place = place(10);
    let mut rig = Rig::start(&place);
    let physical = || {
        let blocks =
            |name: &String| fs::metadata(Path::new("/dev/shm").join(name)).map_or(0, |it| it.blocks());
        place.segments().iter().map(blocks).sum::<u64>() * 512 / PAGE
    };
    let old = [(); 3].map(|()| committed(&mut rig, Tier::Ram, &[7; 3 * PAGE as usize]));
    old.into_iter().for_each(|each| drop_it(&mut rig, each));
    assert_eq!((physical(), place.segments().len()), (9, 3), "all of them are kept");
    let new = replica(Tier::Ram, 5 * PAGE);
    rig.create(new).expect("created");
    assert_eq!((physical(), place.segments().len()), (8, 2), "one may stay");
    let more = replica(Tier::Ram, 5 * PAGE);
    rig.create(more).expect("created");
    assert_eq!((physical(), place.segments().len()), (10, 2));
    drop_it(&mut rig, new);
    drop_it(&mut rig, more);
    let full = replica(Tier::Ram, 10 * PAGE);
    rig.create(full).expect("created");
    assert_eq!((physical(), place.segments().len()), (10, 1), "all of the tier can be used");
}

#[test]
fn given_a_reader_of_a_dropped_segment_when_others_are_made_then_they_get_other_files_until_he_lets_go() {
    let place = place(100);
    let mut rig = Rig::start(&place);
    let old = committed(&mut rig, Tier::Ram, &[7; 4096]);
    let reader = File::open(rig.path(old)).expect("opened");
    let its = reader.metadata().expect("open").ino();
    rig.detach(old);
    let other = replica(Tier::Ram, 4096);
    rig.create(other).expect("created");
    assert_ne!(inode(&rig.path(other)), its);
    assert!(!rig.is_freed(old), "somebody has it open");
    drop(reader);
    rig.wait_until_freed(old);
    let last = replica(Tier::Ram, 4096);
    rig.create(last).expect("created");
    assert_eq!(inode(&rig.path(last)), its);
}

#[test]
fn given_a_kept_segment_that_somebody_opened_or_linked_when_one_is_made_then_it_is_another_one() {
    let place = place(100);
    let mut rig = Rig::start(&place);
    let limbo = |place: &Place| Path::new("/dev/shm").join(&place.segments()[0]);
    let old = committed(&mut rig, Tier::Ram, &[7; 4096]);
    drop_it(&mut rig, old);
    // As one who had found the public name before it went, and comes to open it only now.
    let reader = File::open(limbo(&place)).expect("opened");
    let first = replica(Tier::Ram, 4096);
    rig.create(first).expect("created");
    assert_ne!(inode(&rig.path(first)), reader.metadata().expect("open").ino());
    let linked = Path::new("/dev/shm").join(format!("{}-second-name", place.config.shm_prefix));
    let first_path = rig.path(first);
    fs::hard_link(&first_path, &linked).expect("linked");
    drop_it(&mut rig, first);
    let second = replica(Tier::Ram, 4096);
    rig.create(second).expect("created");
    assert_ne!(inode(&rig.path(second)), inode(&linked));
    assert_eq!(place.segments().len(), 2, "{:?}: the second name, and the new segment", place.segments());
}

#[test]
fn given_segments_that_a_client_cut_stretched_or_hollowed_when_dropped_then_none_is_kept() {
    let place = place(100);
    let mut rig = Rig::start(&place);
    for (length, again) in [(100, 100), (20_000, 20_000), (0, 8192)] {
        let spoilt = replica(Tier::Ram, 8192);
        rig.create(spoilt).expect("created");
        let file = OpenOptions::new().write(true).open(rig.path(spoilt)).expect("its producer has it");
        file.set_len(length).and_then(|()| file.set_len(again)).expect("as long as he likes");
        drop(file);
        drop_it(&mut rig, spoilt);
        assert!(place.segments().is_empty(), "{length}, {again}: {:?}", place.segments());
    }
}

#[test]
fn given_kept_segments_when_nobody_wants_them_or_the_node_ends_then_they_are_gone() {
    let place = place(100);
    let mut rig = Rig::start(&place);
    let old = committed(&mut rig, Tier::Ram, &[7; 4096]);
    drop_it(&mut rig, old);
    assert_eq!(place.segments().len(), 1);
    eventually("it is given back to the system", || place.segments().is_empty());
    let last = committed(&mut rig, Tier::Ram, &[7; 4096]);
    drop_it(&mut rig, last);
    rig.drivers.shutdown();
    assert!(place.segments().is_empty(), "{:?}", place.segments());
}

#[test]
fn given_a_node_that_ended_without_notice_when_opened_again_then_what_was_kept_is_removed() {
    let place = place(100);
    let mut rig = Rig::start(&place);
    let (old, live) =
        (committed(&mut rig, Tier::Ram, &[7; 4096]), committed(&mut rig, Tier::Ram, &[8; 5000]));
    drop_it(&mut rig, old);
    // What a kill leaves: the log as it is now, and the files under their names.
    let log = fs::read_dir("/dev/shm")
        .expect("listed")
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.to_string_lossy().contains(&format!("{}-intent-", place.config.shm_prefix)));
    let log = log.expect("the intent log");
    let (said, kept) = (fs::read(&log).expect("read"), place.segments());
    rig.drivers.shutdown();
    fs::write(&log, said).expect("written");
    for name in kept.iter().filter(|name| name.contains("-limbo-")) {
        fs::write(Path::new("/dev/shm").join(name), [7; 4096]).expect("written");
    }
    let mut drivers = place.open();
    assert!(drivers.verify(&live));
    let tally = drivers.reclaim();
    assert_eq!((tally[Tier::Ram].removed, tally[Tier::Ram].held), (1, 0));
    let rig = Rig::started(drivers);
    assert_eq!(place.segments().len(), 1);
    assert_eq!(read(&rig, live), [8; 5000]);
}
