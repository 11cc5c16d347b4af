//! Copies between RAM and disk, on both engines: every byte, every odd size, and every way a source can be spoilt.

mod common;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use common::{Place, Rig, committed, engines, sample, twin};
use payload_drivers::arena::{LargePages, Maker, MakerConfig, Slab};
use payload_drivers::checksum;
use payload_types::effect::ReplicaRef;
use payload_types::event::{DriverErrorKind, TransferError};
use payload_types::{Block, ByteCount, Checksum, SlabId, Tier};

fn rigs() -> Vec<(Place, Rig)> {
    let start = |io| {
        let mut place = Place::new();
        place.config.io = io;
        let rig = Rig::start(&place);
        assert_eq!(rig.drivers.io_engine(), io);
        (place, rig)
    };
    engines().into_iter().map(start).collect()
}

#[test]
fn given_sizes_around_pages_and_chunks_when_spilled_and_promoted_then_every_byte_and_checksum_is_the_same() {
    for (place, mut rig) in rigs() {
        for size in [1, 4095, 4096, 4097, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (9 << 20) + 7, 20 << 20] {
            let bytes = sample(size);
            let ram = committed(&mut rig, Tier::Ram, &bytes);
            let disk = twin(ram, Tier::Disk);
            let copied = rig.copy(ram, disk, None).expect("spilled");
            assert_eq!(copied, checksum(&bytes), "{size} bytes");
            let file = rig.path(disk);
            let metadata = fs::metadata(&file).expect("there");
            assert_eq!((metadata.len(), metadata.permissions().mode() & 0o7777), (size as u64, 0o440));
            assert!(fs::read(&file).expect("readable") == bytes, "{size} bytes");
            rig.detach(ram);
            let back = twin(ram, Tier::Ram);
            assert_eq!(rig.copy(disk, back, Some(copied)), Ok(copied));
            let segment = rig.path(back);
            assert_eq!(fs::metadata(&segment).expect("there").permissions().mode() & 0o7777, 0o440);
            assert!(fs::read(&segment).expect("readable") == bytes, "{size} bytes");
        }
        assert!(!place.segments().iter().any(|name| name.contains("draft")));
    }
}

#[test]
fn given_a_replica_with_a_flipped_bit_when_copied_then_corrupt_and_no_destination() {
    for (place, mut rig) in rigs() {
        let bytes = sample(3_000_000);
        for (from, to) in [(Tier::Ram, Tier::Disk), (Tier::Disk, Tier::Ram)] {
            let source = committed(&mut rig, from, &bytes);
            let path = rig.path(source);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).expect("writable");
            let file = OpenOptions::new().write(true).open(&path).expect("opened");
            file.write_all_at(&[bytes[2_999_999] ^ 1], 2_999_999).expect("the last byte");
            drop(file);
            let target = twin(source, to);
            let result = rig.copy(source, target, Some(checksum(&bytes)));
            let Err(TransferError::Source(error)) = result else { panic!("{result:?}") };
            assert_eq!(error.kind, DriverErrorKind::Corrupt, "{}", error.message);
            assert!(!rig.path(target).exists());
            rig.detach(source);
            rig.wait_until_freed(source);
        }
        assert!(place.segments().is_empty(), "{:?}", place.segments());
        assert!(place.files().is_empty(), "{:?}", place.files());
    }
}

#[test]
fn given_a_source_that_is_gone_or_cut_when_copied_then_the_error_is_the_sources_and_nothing_is_left() {
    for (place, mut rig) in rigs() {
        for (from, to) in [(Tier::Ram, Tier::Disk), (Tier::Disk, Tier::Ram)] {
            let bytes = sample(2_500_000);
            let [gone, cut] = [(); 2].map(|()| committed(&mut rig, from, &bytes));
            fs::remove_file(rig.path(gone)).expect("removed");
            fs::set_permissions(rig.path(cut), fs::Permissions::from_mode(0o660)).expect("writable");
            let file = OpenOptions::new().write(true).open(rig.path(cut)).expect("opened");
            file.set_len(2_000_001).expect("cut");
            for (source, kind) in [(gone, DriverErrorKind::Missing), (cut, DriverErrorKind::Truncated)] {
                let result = rig.copy(source, twin(source, to), None);
                let Err(TransferError::Source(error)) = result else { panic!("{result:?}") };
                assert_eq!(error.kind, kind, "{}", error.message);
                rig.detach(source);
            }
            rig.wait_until_freed(gone);
            drop(file);
            rig.wait_until_freed(cut);
        }
        assert!(place.segments().is_empty(), "{:?}", place.segments());
        assert!(place.files().is_empty(), "{:?}", place.files());
    }
}

#[test]
fn given_a_client_that_cuts_and_rewrites_its_segment_while_it_is_spilled_then_a_true_copy_or_a_source_error()
{
    for (_place, mut rig) in rigs() {
        let bytes = sample(8 << 20);
        let (mut copies, mut errors) = (0, 0);
        for round in 0..40 {
            let source = committed(&mut rig, Tier::Ram, &bytes);
            let path = rig.path(source);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o660))
                .expect("a producer kept its descriptor");
            let producer = OpenOptions::new().write(true).open(&path).expect("opened");
            let target = twin(source, Tier::Disk);
            let is_over = AtomicBool::new(false);
            let result = std::thread::scope(|scope| {
                scope.spawn(|| {
                    for turn in 0u64.. {
                        if is_over.load(Ordering::SeqCst) {
                            break;
                        }
                        producer
                            .write_all_at(&turn.to_le_bytes(), (turn * 997) % (8 << 20))
                            .expect("written");
                        if round % 2 == 1 {
                            producer.set_len(turn % (8 << 20)).expect("cut");
                            producer.set_len(8 << 20).expect("stretched");
                        }
                    }
                });
                let result = catch_unwind(AssertUnwindSafe(|| rig.copy(source, target, None)));
                is_over.store(true, Ordering::SeqCst);
                result
            });
            match result.expect("an answer") {
                Ok(copied) => {
                    let written = fs::read(rig.path(target)).expect("there");
                    assert_eq!(checksum(&written), copied, "the checksum is of the bytes that were written");
                    copies += 1;
                }
                Err(TransferError::Source(error)) => {
                    assert_eq!(error.kind, DriverErrorKind::Truncated);
                    assert!(!rig.path(target).exists());
                    errors += 1;
                }
                Err(other) => panic!("{other:?}"),
            }
            rig.detach(source);
        }
        assert!(
            copies >= 20,
            "a producer that only rewrites spoils no copy: {copies} copies, {errors} errors"
        );
    }
}

#[test]
fn given_no_room_at_the_destination_when_copied_then_full_and_the_source_is_as_good_as_before() {
    for (place, mut rig) in rigs() {
        for (from, to) in [(Tier::Ram, Tier::Disk), (Tier::Disk, Tier::Ram)] {
            let bytes = sample(100_000);
            let source = committed(&mut rig, from, &bytes);
            // Eight tebibytes, all but the first page a hole: more than any destination has.
            let vast = ReplicaRef { size: ByteCount(8 << 40), ..committed(&mut rig, from, &bytes) };
            fs::set_permissions(rig.path(vast), fs::Permissions::from_mode(0o660)).expect("writable");
            let file = OpenOptions::new().write(true).open(rig.path(vast)).expect("opened");
            file.set_len(vast.size.0).expect("stretched");
            let result = rig.copy(vast, twin(vast, to), None);
            let Err(TransferError::Destination(error)) = result else { panic!("{result:?}") };
            assert_eq!(error.kind, DriverErrorKind::Full, "{}", error.message);
            assert_eq!(rig.copy(source, twin(source, to), None), Ok(checksum(&bytes)));
        }
        assert!(!place.segments().iter().any(|name| name.contains("draft")));
    }
}

#[test]
fn given_a_tier_without_a_driver_when_copied_to_then_an_error_and_the_next_copy_works() {
    for (_place, mut rig) in rigs() {
        let source = committed(&mut rig, Tier::Ram, &sample(5000));
        let wrong = Some(Checksum(1));
        assert!(matches!(
            rig.copy(source, twin(source, Tier::Gpu), None),
            Err(TransferError::Destination(_))
        ));
        assert!(matches!(
            rig.copy(source, twin(source, Tier::Ram), None),
            Err(TransferError::Destination(_))
        ));
        assert!(matches!(rig.copy(source, twin(source, Tier::Disk), wrong), Err(TransferError::Source(_))));
        assert_eq!(rig.copy(source, twin(source, Tier::Disk), None), Ok(checksum(&sample(5000))));
        assert!(rig.path(source).exists());
    }
}

#[test]
fn given_an_op_that_makes_a_thread_panic_when_carried_out_then_it_is_answered_and_the_next_one_works() {
    for (place, mut rig) in rigs() {
        let source = committed(&mut rig, Tier::Ram, &sample(5000));
        let other_size = ReplicaRef { size: ByteCount(4000), ..twin(source, Tier::Disk) };
        for _ in 0..5 {
            let result = rig.copy(source, other_size, None);
            let Err(TransferError::Destination(error)) = result else { panic!("{result:?}") };
            assert_eq!(error.kind, DriverErrorKind::Io, "{}", error.message);
        }
        assert!(place.files().is_empty());
        assert_eq!(rig.copy(source, twin(source, Tier::Disk), None), Ok(checksum(&sample(5000))));
    }
}

/// A slab with these bytes at this unit, entered for copies; its writer keeps his mapping, as a client does.
fn slab_with(rig: &Rig, bytes: &[u8], unit: u32) -> (Slab, File, Block) {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    let block = Block { slab: SlabId::new(NUMBER.fetch_add(1, Ordering::Relaxed)).expect("not 0"), unit };
    let maker = Maker::new(MakerConfig { large_pages: LargePages::No });
    let draft = maker.slab(ByteCount(16 << 20), None).expect("memory");
    let writer = File::from(draft.writer().try_clone_to_owned().expect("a descriptor"));
    writer.write_all_at(bytes, block.offset_bytes()).expect("written before the seal");
    let slab = draft.seal().expect("sealed");
    rig.drivers.slabs().add(block.slab, &slab).expect("entered");
    (slab, writer, block)
}

#[test]
fn given_a_payload_in_a_slab_when_copied_to_a_segment_or_to_disk_then_its_own_bytes_and_no_others() {
    for (_place, mut rig) in rigs() {
        for (size, unit) in [(1, 0), (100, 3), (4097, 64), ((1 << 20) + 5, 128), ((5 << 20) + 1, 4096)] {
            let bytes = sample(size);
            let (_slab, _writer, block) = slab_with(&rig, &bytes, unit);
            let made = committed(&mut rig, Tier::Ram, &bytes);
            let source = ReplicaRef { block: Some(block), ..twin(made, Tier::Ram) };
            rig.detach(made);
            for tier in [Tier::Ram, Tier::Disk] {
                let target = twin(made, tier);
                assert_eq!(rig.copy(source, target, Some(checksum(&bytes))), Ok(checksum(&bytes)), "{size}");
                assert!(fs::read(rig.path(target)).expect("readable") == bytes, "{size} bytes on {tier}");
                rig.detach(target);
            }
            let wrong = rig.copy(source, twin(made, Tier::Ram), Some(Checksum(1)));
            let Err(TransferError::Source(error)) = wrong else { panic!("{wrong:?}") };
            assert_eq!(error.kind, DriverErrorKind::Corrupt, "{}", error.message);
            rig.drivers.slabs().remove(block.slab);
            let gone = rig.copy(source, twin(made, Tier::Disk), None);
            assert!(matches!(gone, Err(TransferError::Source(_))), "{gone:?}");
        }
    }
}
