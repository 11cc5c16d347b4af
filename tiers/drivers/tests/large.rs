//! Segments of large pages: what clients see of them is what they see of any other, whichever the kernel grants.

mod common;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Place, Rig, committed, engines, eventually, replica, sample, twin};
use memmap2::{MmapMut, MmapOptions};
use payload_drivers::faults::{Answer, Call, Faults};
use payload_drivers::{Drivers, IoEngine, checksum};
use payload_types::Tier;
use payload_types::event::{DriverErrorKind, TransferError};

const LARGE: u64 = 2 << 20;

/// Around one large page, several, and what is left over.
const SIZES: [u64; 7] =
    [LARGE - 1, LARGE, LARGE + 1, 2 * LARGE - 4096, 2 * LARGE - 1, 9 << 20, (21 << 20) + 7];

fn place(io: IoEngine) -> Place {
    let mut place = Place::new();
    place.config.io = io;
    place
}

/// To the end of its last page, as who maps it sees it.
fn mapped(path: &Path, bytes: u64) -> MmapMut {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("opened");
    let length = bytes.next_multiple_of(4096) as usize;
    // SAFETY: the file is this test's; nobody truncates it while it is mapped.
    unsafe { MmapOptions::new().len(length).map_mut(&file) }.expect("mapped")
}

/// How much of a mapping of the file consists of large pages, in KiB.
fn large_kib(path: &Path) -> u64 {
    let bytes = fs::metadata(path).expect("there").len();
    let mut mapped = mapped(path, bytes);
    mapped[0] = 0; // so that it is mapped at all
    let start = format!("{:x}-", mapped.as_ptr() as usize);
    let smaps = fs::read_to_string("/proc/self/smaps").expect("read");
    let of_it = smaps.lines().skip_while(|line| !line.starts_with(&start));
    let found = of_it.map(|line| line.strip_prefix("ShmemPmdMapped:")).find_map(|rest| rest);
    let found = found.expect("every mapping has the line").trim().trim_end_matches(" kB");
    found.parse().expect("a number")
}

/// True when this kernel makes a large page of a file of ours.
fn is_granted(place: &Place) -> bool {
    let path = Path::new("/dev/shm").join(format!("{}-probe", place.config.shm_prefix));
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).expect("made");
    file.set_len(2 * LARGE).expect("sized");
    file.write_all_at(&[0; 2 * LARGE as usize], 0).expect("written");
    let mapped = mapped(&path, 2 * LARGE);
    let start = mapped.as_ptr() as usize;
    // SAFETY: the range is the mapping's, whose pages keep what they hold.
    let refused = unsafe {
        libc::madvise(start.next_multiple_of(LARGE as usize) as *mut _, LARGE as usize, libc::MADV_COLLAPSE)
    };
    // Only where the mapping and the file are aligned alike; the kernel sees to that where it has large pages.
    let granted = refused == 0 && start.is_multiple_of(LARGE as usize);
    drop(mapped);
    fs::remove_file(path).expect("removed");
    granted
}

#[test]
fn given_a_kernel_that_grants_large_pages_when_segments_are_made_and_promoted_to_then_they_have_them() {
    let place = place(IoEngine::Uring);
    let mut rig = Rig::start(&place);
    let disk = committed(&mut rig, Tier::Disk, &sample(5 << 20));
    // A refusal for want of memory is for a moment.
    eventually("a segment of large pages", || {
        let granted = is_granted(&place);
        let made = replica(Tier::Ram, 5 << 20);
        rig.create(made).expect("created");
        let ram = twin(disk, Tier::Ram);
        rig.copy(disk, ram, None).expect("promoted");
        let path = rig.path(ram);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("to be mapped");
        let found = [large_kib(&rig.path(made)), large_kib(&path)];
        assert_eq!(fs::metadata(&path).expect("there").blocks() * 512, 5 << 20, "no more than it is charged");
        rig.detach(made);
        rig.detach(ram);
        found.iter().all(|kib| *kib > 0) || !granted
    });
}

#[test]
fn given_sizes_around_large_pages_when_made_again_and_again_then_zeroed_to_the_end_and_charged_exactly() {
    let place = place(IoEngine::Plain);
    let mut rig = Rig::start(&place);
    for size in SIZES {
        for turn in 0..3 {
            let made = replica(Tier::Ram, size - turn); // of as many pages: the same file
            rig.create(made).expect("created");
            let path = rig.path(made);
            let metadata = fs::metadata(&path).expect("there");
            assert_eq!((metadata.len(), metadata.mode() & 0o777), (size - turn, 0o660));
            assert_eq!(metadata.blocks() * 512, (size - turn).next_multiple_of(4096));
            let mut mapped = mapped(&path, size - turn);
            assert!(mapped.iter().all(|byte| *byte == 0), "{size} bytes, turn {turn}");
            mapped.fill(7);
            drop(mapped);
            rig.detach(made);
            rig.wait_until_freed(made);
        }
    }
}

#[test]
fn given_sizes_around_large_pages_when_promoted_into_new_and_used_segments_then_every_byte_is_the_same() {
    for io in engines() {
        let place = place(io);
        let mut rig = Rig::start(&place);
        for size in SIZES {
            let bytes = sample(size as usize);
            let disk = committed(&mut rig, Tier::Disk, &bytes);
            for turn in 0..3 {
                let ram = twin(disk, Tier::Ram);
                assert_eq!(rig.copy(disk, ram, Some(checksum(&bytes))), Ok(checksum(&bytes)), "{size} bytes");
                let path = rig.path(ram);
                let metadata = fs::metadata(&path).expect("there");
                assert_eq!((metadata.len(), metadata.mode() & 0o777), (size, 0o440));
                assert_eq!(metadata.blocks() * 512, size.next_multiple_of(4096));
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("to be mapped");
                let mapped = mapped(&path, size);
                assert!(mapped[..size as usize] == bytes, "{size} bytes, turn {turn}");
                assert!(mapped[size as usize..].iter().all(|byte| *byte == 0), "what follows its end");
                drop(mapped);
                rig.detach(ram);
                rig.wait_until_freed(ram);
            }
        }
    }
}

#[test]
fn given_damage_anywhere_when_promoted_then_corrupt_or_truncated_and_the_segment_is_gone() {
    let place = place(IoEngine::Uring);
    let mut rig = Rig::start(&place);
    let bytes = sample(8 << 20);
    for at in [0, (1 << 20) + 5, (8 << 20) - 1] {
        let disk = committed(&mut rig, Tier::Disk, &bytes);
        let path = rig.path(disk);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).expect("writable");
        let file = OpenOptions::new().write(true).open(&path).expect("opened");
        file.write_all_at(&[bytes[at] ^ 1], at as u64).expect("written");
        let ram = twin(disk, Tier::Ram);
        let result = rig.copy(disk, ram, Some(checksum(&bytes)));
        let Err(TransferError::Source(error)) = result else { panic!("{result:?}") };
        assert_eq!(error.kind, DriverErrorKind::Corrupt, "{}", error.message);
        file.set_len(at as u64).expect("cut");
        let result = rig.copy(disk, twin(disk, Tier::Ram), Some(checksum(&bytes)));
        let Err(TransferError::Source(error)) = result else { panic!("{result:?}") };
        assert_eq!(error.kind, DriverErrorKind::Truncated, "{}", error.message);
        assert!(!rig.path(ram).exists() && place.segments().is_empty(), "{:?}", place.segments());
    }
}

#[test]
fn given_reads_that_fall_short_or_fail_when_promoted_then_resumed_or_a_source_error_and_the_engine_works_on()
{
    let place = place(IoEngine::Uring);
    let faults = Faults::new();
    let drivers = Drivers::open_faulty(place.config.clone(), faults.clone()).expect("opened");
    let mut rig = Rig::started(drivers);
    let bytes = sample((12 << 20) + 4097);
    let disk = committed(&mut rig, Tier::Disk, &bytes);
    for passing in [0, 5, 11, 12] {
        faults.fail_after(passing, Call::Read, Answer::Io);
        let result = rig.copy(disk, twin(disk, Tier::Ram), None);
        let Err(TransferError::Source(error)) = result else { panic!("{result:?}") };
        assert_eq!(error.kind, DriverErrorKind::Io, "{}", error.message);
        assert!(place.segments().is_empty(), "{:?}", place.segments());
        faults.end();
    }
    faults.shorten(300_000);
    let ram = twin(disk, Tier::Ram);
    assert_eq!(rig.copy(disk, ram, None), Ok(checksum(&bytes)), "short reads are resumed");
    assert!(fs::read(rig.path(ram)).expect("there") == bytes);
}

#[test]
fn given_somebody_who_cuts_a_segment_that_is_promoted_to_then_an_error_or_the_true_bytes_and_no_signal() {
    let place = place(IoEngine::Uring);
    let mut rig = Rig::start(&place);
    let bytes = sample(32 << 20);
    let disk = committed(&mut rig, Tier::Disk, &bytes);
    let (mut copies, mut cuts) = (0, 0);
    for round in 0..20 {
        let ram = twin(disk, Tier::Ram);
        let (is_over, is_cut) = (AtomicBool::new(false), AtomicBool::new(false));
        let result = std::thread::scope(|scope| {
            scope.spawn(|| {
                // Once, and at another moment in each round: what is published is not its to touch.
                while !is_over.load(Ordering::SeqCst) && !is_cut.load(Ordering::SeqCst) {
                    for name in place.segments().iter().filter(|name| name.contains("-draft-")) {
                        std::thread::sleep(std::time::Duration::from_millis(round));
                        let draft = OpenOptions::new().write(true).open(Path::new("/dev/shm").join(name));
                        let cut = draft.and_then(|file: File| file.set_len(4096 * round));
                        is_cut.store(cut.is_ok(), Ordering::SeqCst);
                    }
                }
            });
            let result = rig.copy(disk, ram, Some(checksum(&bytes)));
            is_over.store(true, Ordering::SeqCst);
            result
        });
        match result {
            Ok(_) => {
                copies += 1;
                assert!(is_cut.into_inner() || fs::read(rig.path(ram)).expect("there") == bytes);
            }
            Err(TransferError::Destination(_)) => cuts += 1,
            // Zeroes, where it was stretched again before they were read back.
            Err(TransferError::Source(error)) => {
                assert_eq!(error.kind, DriverErrorKind::Corrupt, "{}", error.message);
                cuts += 1;
            }
        }
        rig.detach(ram);
    }
    println!("{copies} copies, {cuts} cut");
}
