//! The GPU tier over a fake device (`gpu::fake`): every byte, every odd size, and every way a device can fail; and what every device
//! must do, real ones included ([`device`]).

#[path = "../common/mod.rs"]
mod common;
mod device;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use common::{Place, Rig, committed, engines, read, replica, sample, twin};
use payload_drivers::gpu::device::CHUNK_BYTES;
use payload_drivers::gpu::fake::{FakeFaults, FakePlatform, open_handle};
use payload_drivers::gpu::{Cuda, Gpu, GpuSharing};
use payload_drivers::object::{Archive, MemoryJournal, ObjectConfig, ObjectDriver};
use payload_drivers::{DriverOp, checksum};
use payload_types::effect::{ReplicaRef, StorageAction, StorageOp, TransferOp};
use payload_types::event::{Completion, DriverError, DriverErrorKind, StorageDone, TransferError};
use payload_types::{ByteCount, Checksum, DeviceId, GpuConfig, GpuDevice, GpuPlace, OpId, ShardIndex, Tier};

const MIB: u64 = 1 << 20;

/// A node with fake devices.
struct Node {
    place: Place,
    rig: Rig,
    gpu: Gpu,
    faults: Arc<FakeFaults>,
}

fn config(devices: &[(u32, u64)]) -> GpuConfig {
    let device =
        |&(device, bytes): &(u32, u64)| GpuDevice { device: DeviceId(device), capacity: ByteCount(bytes) };
    GpuConfig { devices: devices.iter().map(device).collect() }
}

impl Node {
    /// Two devices of 64 MiB, of which so much is given to payloads.
    fn of(place: Place, devices: &[(u32, u64)], sharing: GpuSharing) -> Self {
        let platform = FakePlatform::new(2, ByteCount(64 * MIB));
        let gpu = Gpu::open(&config(devices), sharing, &platform);
        let mut drivers = place.open();
        drivers.set_gpu(gpu.clone());
        Self { place, rig: Rig::started(drivers), gpu, faults: platform.faults }
    }

    fn with(devices: &[(u32, u64)]) -> Self {
        Self::of(Place::new(), devices, GpuSharing::Handles)
    }

    fn new() -> Self {
        Self::with(&[(0, 64 * MIB)])
    }

    fn look(&self, replica: ReplicaRef) -> GpuPlace {
        self.gpu.places().look(replica.id, replica.generation).expect("it is on a device")
    }

    /// As another process opens it.
    fn import(&self, replica: ReplicaRef) -> File {
        let shown = self.look(replica).sized_handle().expect("clients of the contract can open it");
        assert_eq!(shown[..8], replica.size.0.to_le_bytes(), "its size first");
        let file = open_handle(shown[8..].try_into().expect("64 bytes")).expect("opened");
        assert_eq!(
            file.metadata().expect("there").len(),
            replica.size.0,
            "an allocation of exactly its size"
        );
        file
    }

    fn bytes(&self, replica: ReplicaRef) -> Vec<u8> {
        let mut bytes = vec![0; replica.size.0 as usize];
        self.import(replica).read_exact_at(&mut bytes, 0).expect("read");
        bytes
    }

    /// A committed payload on a device.
    fn committed(&mut self, bytes: &[u8]) -> ReplicaRef {
        let made = replica(Tier::Gpu, bytes.len() as u64);
        self.rig.create(made).expect("created");
        self.import(made).write_all_at(bytes, 0).expect("written");
        self.rig.seal(made, false).expect("sealed");
        made
    }

    fn remove(&mut self, replica: ReplicaRef) {
        self.rig.detach(replica);
        self.rig.wait_until_freed(replica);
    }

    fn verify(&mut self, replica: ReplicaRef, expected: Option<Checksum>) -> Result<(), DriverError> {
        self.rig.submit(StorageAction::Verify { expected, bytes_per_second: 0 }, replica);
        match self.rig.next() {
            Completion::Storage(StorageDone::Verified { result, .. }) => result,
            other => panic!("{other:?}"),
        }
    }

    /// Nothing is allocated or charged.
    fn assert_empty(&self) {
        assert_eq!(self.faults.allocations.load(SeqCst), 0, "nothing is allocated");
        assert_eq!(self.gpu.places().count(), 0, "nothing is named");
        assert!(self.gpu.health().iter().all(|device| device.charged == ByteCount::ZERO));
    }
}

#[test]
fn given_sizes_around_pages_and_chunks_when_moved_between_tiers_then_every_byte_and_checksum_is_the_same() {
    for io in engines() {
        let mut place = Place::new();
        place.config.io = io;
        let mut node = Node::of(place, &[(0, 64 * MIB)], GpuSharing::Handles);
        let chunk = CHUNK_BYTES;
        for size in [1, 4095, 4096, 4097, chunk - 1, chunk, chunk + 1, 4 * chunk, 5 * chunk + 7] {
            let bytes = sample(size);
            let gpu = node.committed(&bytes);
            for tier in [Tier::Ram, Tier::Disk] {
                let slower = twin(gpu, tier);
                assert_eq!(node.rig.copy(gpu, slower, None), Ok(checksum(&bytes)), "{size} bytes to {tier}");
                assert!(read(&node.rig, slower) == bytes, "{size} bytes on {tier}");
                let back = twin(gpu, Tier::Gpu);
                assert_eq!(node.rig.copy(slower, back, Some(checksum(&bytes))), Ok(checksum(&bytes)));
                assert!(node.bytes(back) == bytes, "{size} bytes back from {tier}");
                node.remove(back);
                node.remove(slower);
            }
            assert!(node.bytes(gpu) == bytes, "a copy leaves its source alone");
            node.remove(gpu);
        }
        node.assert_empty();
        assert!(node.place.segments().is_empty() && node.place.files().is_empty());
    }
}

#[test]
fn given_memory_that_others_used_when_allocated_then_zeroes_only() {
    let mut node = Node::new();
    let made = replica(Tier::Gpu, 5 * MIB + 3);
    node.rig.create(made).expect("created");
    assert!(node.bytes(made).iter().all(|byte| *byte == 0));
    let place = node.look(made);
    assert_eq!((place.device, place.offset, place.arena), (DeviceId(0), 0, None));
    assert_eq!((place.allocation, place.generation), (made.size, made.generation));
}

#[test]
fn given_devices_when_payloads_are_placed_then_on_the_roomiest_and_a_full_tier_says_what_is_left() {
    let mut node = Node::with(&[(1, 2 * MIB), (0, 3 * MIB)]);
    assert_eq!((node.gpu.capacity(), node.gpu.payload_max()), (Some(ByteCount(5 * MIB)), ByteCount(3 * MIB)));
    let [first, second, third] = [2 * MIB, MIB + 1, MIB].map(|size| replica(Tier::Gpu, size));
    node.rig.create(first).expect("3 MiB are free");
    node.rig.create(second).expect("2 MiB are free");
    assert_eq!((node.look(first).device, node.look(second).device), (DeviceId(0), DeviceId(1)));
    assert_ne!(node.look(first).device_uuid, node.look(second).device_uuid);
    node.rig.create(third).expect("1 MiB is free");
    let fourth = replica(Tier::Gpu, MIB);
    let error = node.rig.create(fourth).expect_err("full");
    assert_eq!(error.kind, DriverErrorKind::Full);
    assert!(error.message.contains("GPU 1 has") && error.message.contains("GPU 0 has"), "{}", error.message);
    assert_eq!(node.gpu.places().look(fourth.id, fourth.generation), None);
    node.remove(first);
    node.rig.create(fourth).expect("there is room again");
    [second, third, fourth].into_iter().for_each(|made| node.remove(made));
    node.assert_empty();
}

#[test]
fn given_a_device_without_memory_or_handles_when_asked_then_typed_errors_and_nothing_is_left() {
    let mut node = Node::new();
    node.faults.out_of_memory.store(true, SeqCst);
    let made = replica(Tier::Gpu, 100);
    assert_eq!(node.rig.create(made).expect_err("no memory").kind, DriverErrorKind::Full);
    let ram = committed(&mut node.rig, Tier::Ram, &sample(5000));
    let promoted = twin(ram, Tier::Gpu);
    let Err(TransferError::Destination(error)) = node.rig.copy(ram, promoted, None) else {
        panic!("there is no memory")
    };
    assert_eq!(error.kind, DriverErrorKind::Full);
    node.faults.out_of_memory.store(false, SeqCst);
    node.faults.no_handles.store(true, SeqCst);
    assert_eq!(node.rig.create(made).expect_err("no handle").kind, DriverErrorKind::Io);
    node.assert_empty();
    node.faults.no_handles.store(false, SeqCst);
    node.rig.create(made).expect("all is well again");
}

#[test]
fn given_a_flipped_bit_when_copied_or_verified_then_corrupt_and_no_destination() {
    let mut node = Node::new();
    let bytes = sample(6_000_000);
    let sum = checksum(&bytes);
    let gpu = node.committed(&bytes);
    let ram = committed(&mut node.rig, Tier::Ram, &bytes);
    assert_eq!(node.verify(gpu, Some(sum)), Ok(()));
    assert_eq!(node.verify(gpu, None), Ok(()));
    node.import(gpu).write_all_at(&[bytes[5_999_999] ^ 1], 5_999_999).expect("the last byte");
    assert_eq!(node.verify(gpu, Some(sum)).expect_err("flipped").kind, DriverErrorKind::Corrupt);
    for tier in [Tier::Ram, Tier::Disk] {
        let to = twin(gpu, tier);
        let Err(TransferError::Source(error)) = node.rig.copy(gpu, to, Some(sum)) else { panic!("flipped") };
        assert_eq!(error.kind, DriverErrorKind::Corrupt);
        assert!(!node.rig.path(to).exists());
    }
    let to = twin(ram, Tier::Gpu);
    let result = node.rig.copy(ram, to, Some(Checksum(sum.0 ^ 1)));
    let Err(TransferError::Source(error)) = result else { panic!("{result:?}") };
    assert_eq!(error.kind, DriverErrorKind::Corrupt);
    assert_eq!(node.gpu.places().look(to.id, to.generation), None, "nobody is shown it");
    node.remove(gpu);
    node.assert_empty();
}

#[test]
fn given_a_replica_that_no_device_has_when_used_then_missing_and_a_drop_is_free() {
    let mut node = Node::new();
    let gone = replica(Tier::Gpu, 10);
    assert_eq!(node.rig.seal(gone, false).expect_err("gone").kind, DriverErrorKind::Missing);
    assert_eq!(node.verify(gone, None).expect_err("gone").kind, DriverErrorKind::Missing);
    let Err(TransferError::Source(error)) = node.rig.copy(gone, twin(gone, Tier::Ram), None) else {
        panic!("gone")
    };
    assert_eq!(error.kind, DriverErrorKind::Missing);
    node.remove(gone);
}

#[test]
fn given_a_device_that_is_lost_in_mid_copy_when_used_on_then_typed_errors_and_other_tiers_and_devices_go_on()
{
    let mut node = Node::with(&[(0, 64 * MIB)]);
    let bytes = sample(5 * CHUNK_BYTES);
    let gpu = node.committed(&bytes);
    let ram = committed(&mut node.rig, Tier::Ram, &bytes);
    node.faults.chunks_until_lost.store(6, SeqCst);
    // Up to the device: five chunks. Down: the first of five is the last.
    let back = twin(ram, Tier::Gpu);
    node.rig.copy(ram, back, None).expect("five chunks");
    let to = twin(gpu, Tier::Disk);
    let Err(TransferError::Source(error)) = node.rig.copy(gpu, to, None) else { panic!("lost") };
    assert_eq!(error.kind, DriverErrorKind::DeviceLost);
    assert!(!node.rig.path(to).exists() && node.place.files().is_empty());
    let Err(TransferError::Destination(error)) = node.rig.copy(ram, twin(ram, Tier::Gpu), None) else {
        panic!("lost")
    };
    assert_eq!(error.kind, DriverErrorKind::DeviceLost);
    let made = replica(Tier::Gpu, 10);
    assert_eq!(node.rig.create(made).expect_err("lost").kind, DriverErrorKind::DeviceLost);
    assert_eq!(node.rig.seal(gpu, false).expect_err("lost").kind, DriverErrorKind::DeviceLost);
    assert_eq!(node.verify(gpu, None).expect_err("lost").kind, DriverErrorKind::DeviceLost);
    assert!(node.gpu.health()[0].fault.is_some());
    let disk = twin(ram, Tier::Disk);
    assert_eq!(node.rig.copy(ram, disk, None), Ok(checksum(&bytes)), "other tiers go on");
    node.remove(gpu);
    node.remove(back);
    assert_eq!(node.gpu.health()[0].charged, ByteCount::ZERO, "what was on it is charged to nobody");
}

#[test]
fn given_a_device_that_is_lost_while_it_is_written_when_promoted_then_the_room_is_free_again() {
    let mut node = Node::new();
    let ram = committed(&mut node.rig, Tier::Ram, &sample(3 * CHUNK_BYTES));
    node.faults.chunks_until_lost.store(2, SeqCst);
    let Err(TransferError::Destination(error)) = node.rig.copy(ram, twin(ram, Tier::Gpu), None) else {
        panic!("lost")
    };
    assert_eq!(error.kind, DriverErrorKind::DeviceLost);
    assert_eq!(node.gpu.health()[0].charged, ByteCount::ZERO);
    assert_eq!(node.gpu.places().count(), 0);
}

#[test]
fn given_a_large_copy_by_several_threads_when_the_device_is_lost_then_nothing_is_left_of_it() {
    let bytes = sample(6 * CHUNK_BYTES + 11);
    for chunks in [1, 2, 6] {
        for is_down in [true, false] {
            let mut node = Node::new();
            let gpu = node.committed(&bytes);
            let ram = committed(&mut node.rig, Tier::Ram, &bytes);
            node.faults.chunks_until_lost.store(chunks, SeqCst);
            let (from, to) = if is_down { (gpu, twin(gpu, Tier::Ram)) } else { (ram, twin(ram, Tier::Gpu)) };
            let error = match node.rig.copy(from, to, None) {
                Err(TransferError::Source(error)) if is_down => error,
                Err(TransferError::Destination(error)) if !is_down => error,
                other => panic!("{other:?}"),
            };
            assert_eq!(error.kind, DriverErrorKind::DeviceLost);
            assert_eq!(node.place.segments().len(), 1, "the one that was there before");
            assert_eq!(node.gpu.places().look(to.id, to.generation), None);
            node.remove(gpu);
            assert_eq!(node.gpu.health()[0].charged, ByteCount::ZERO);
        }
    }
}

#[test]
fn given_work_under_way_when_the_drivers_end_then_all_of_it_is_answered_and_the_devices_are_empty() {
    let mut node = Node::new();
    let bytes = sample(2 * CHUNK_BYTES);
    let gpu = node.committed(&bytes);
    node.faults.chunk_us.store(20_000, SeqCst);
    let copies = 5;
    for number in 0..copies {
        let op = OpId { index: number, generation: 7 };
        let to = twin(gpu, if number % 2 == 0 { Tier::Ram } else { Tier::Disk });
        let shard = ShardIndex(0);
        let copy = TransferOp {
            shard,
            op,
            from: gpu,
            to,
            expected: None,
            sync: false,
            salvage: false,
            alone: false,
        };
        assert_eq!(node.rig.drivers.submit(DriverOp::Transfer(copy)), Ok(()));
    }
    let last = replica(Tier::Gpu, 9);
    let op = OpId { index: 99, generation: 7 };
    let create = StorageOp { shard: ShardIndex(0), op, replica: last, action: StorageAction::Create };
    assert_eq!(node.rig.drivers.submit(DriverOp::Storage(create)), Ok(()));
    let Node { rig: Rig { drivers, completions, .. }, faults, gpu, .. } = node;
    drivers.shutdown();
    let answers: Vec<Completion> = completions.try_iter().map(|(_, completion)| completion).collect();
    let copied = |answer: &&Completion| matches!(answer, Completion::Transfer(done) if done.result.as_ref().is_ok_and(|copied| copied.checksum == checksum(&bytes)));
    assert_eq!(answers.iter().filter(copied).count(), copies as usize, "{answers:?}");
    assert!(answers.contains(&Completion::Storage(StorageDone::Created { op, result: Ok(()) })));
    assert_eq!(faults.allocations.load(SeqCst), 0, "all device memory is free");
    assert_eq!(gpu.places().count(), 0);
}

#[test]
fn given_an_importer_that_is_killed_when_its_payload_is_dropped_then_it_is_freed_and_one_that_lives_keeps_his()
 {
    let mut node = Node::new();
    let bytes = sample(70_000);
    let gpu = node.committed(&bytes);
    let mine = node.import(gpu);
    let handle = node.look(gpu).handle.expect("a handle").0;
    let number = |at: usize| u32::from_le_bytes(handle[at..at + 4].try_into().expect("4 bytes"));
    let script = format!("exec 3<>/proc/{}/fd/{} && kill -9 $$", number(8), number(12));
    let status = Command::new("sh").args(["-c", &script]).status().expect("started");
    assert_eq!(status.signal(), Some(9), "it had the memory open when it was killed");
    node.remove(gpu);
    node.assert_empty();
    let mut found = vec![0; bytes.len()];
    mine.read_exact_at(&mut found, 0).expect("what is open stays");
    assert!(found == bytes);
}

#[test]
fn given_sharing_by_descriptors_when_allocated_then_no_handle_and_who_is_sent_one_can_write() {
    let mut node = Node::of(Place::new(), &[(0, 64 * MIB)], GpuSharing::Descriptors);
    let bytes = sample(CHUNK_BYTES + 1);
    let made = replica(Tier::Gpu, bytes.len() as u64);
    node.rig.create(made).expect("created");
    let place = node.look(made);
    assert_eq!((place.handle, place.sized_handle()), (None, None));
    let places = node.gpu.places();
    let descriptor = places.descriptor(made.id, made.generation).expect("it has one").expect("a descriptor");
    File::from(descriptor).write_all_at(&bytes, 0).expect("written");
    node.rig.seal(made, false).expect("sealed");
    assert_eq!(node.rig.copy(made, twin(made, Tier::Ram), None), Ok(checksum(&bytes)));
    node.remove(made);
    assert!(places.descriptor(made.id, made.generation).is_none());
    node.assert_empty();
}

#[test]
fn given_an_object_store_when_moved_to_and_from_a_device_then_every_byte_is_the_same_and_a_lost_device_leaves_nothing()
 {
    let directory = tempfile::tempdir().expect("a directory");
    let config = ObjectConfig {
        root: format!("file://{}", directory.path().display()),
        part_bytes: 5 * MIB,
        ..ObjectConfig::default()
    };
    let store = ObjectDriver::open(config, Arc::new(MemoryJournal::default())).expect("a store");
    let platform = FakePlatform::new(1, ByteCount(64 * MIB));
    let gpu = Gpu::open(&self::config(&[(0, 64 * MIB)]), GpuSharing::Handles, &platform);
    let place = Place::new();
    let mut drivers = place.open();
    drivers.set_gpu(gpu.clone());
    drivers.set_objects(Arc::new(store), Arc::new(|_| Archive::default()));
    let mut node = Node { place, rig: Rig::started(drivers), gpu, faults: platform.faults };
    for size in [1, 70_001, 13 * MIB as usize + 5] {
        let bytes = sample(size);
        let made = node.committed(&bytes);
        let stored = twin(made, Tier::Object);
        assert_eq!(node.rig.copy(made, stored, Some(checksum(&bytes))), Ok(checksum(&bytes)), "{size} bytes");
        node.remove(made);
        let back = twin(made, Tier::Gpu);
        assert_eq!(node.rig.copy(stored, back, Some(checksum(&bytes))), Ok(checksum(&bytes)), "{size} bytes");
        assert!(node.bytes(back) == bytes, "{size} bytes");
        let wrong = twin(made, Tier::Gpu);
        let result = node.rig.copy(stored, wrong, Some(Checksum(checksum(&bytes).0 ^ 1)));
        assert!(matches!(result, Err(TransferError::Source(_))), "{result:?}");
        assert_eq!(node.gpu.places().look(wrong.id, wrong.generation), None, "nobody is shown it");
        node.remove(back);
        node.assert_empty();
    }
    let lost = node.committed(&sample(13 * MIB as usize));
    node.faults.lost.store(true, SeqCst);
    let result = node.rig.copy(lost, twin(lost, Tier::Object), None);
    assert!(matches!(result, Err(TransferError::Source(_))), "{result:?}");
    node.remove(lost);
}

#[test]
fn given_devices_that_are_not_there_when_opened_then_the_others_are_used_and_without_any_there_is_no_tier() {
    let mut node = Node::with(&[(0, 200 * MIB), (0, MIB), (7, MIB)]);
    assert_eq!(node.gpu.capacity(), Some(ByteCount(64 * MIB)), "once, and no more than it has");
    let health = node.gpu.health();
    assert_eq!(health.len(), 2);
    assert_eq!((health[0].device, health[0].fault.as_deref()), (DeviceId(0), None));
    assert!(health[1].fault.as_ref().is_some_and(|fault| fault.contains("no device 7")), "{health:?}");
    node.committed(b"here");

    let platform = FakePlatform::new(0, ByteCount(MIB));
    let gpu = Gpu::open(&config(&[(0, MIB)]), GpuSharing::Handles, &platform);
    assert_eq!((gpu.capacity(), gpu.payload_max()), (None, ByteCount::ZERO));
    let mut drivers = Place::new().open();
    drivers.set_gpu(gpu);
    let error = Rig::started(drivers).create(replica(Tier::Gpu, 1)).expect_err("no tier");
    assert_eq!(error.kind, DriverErrorKind::Io);
    assert!(error.message.contains("tier GPU has no driver"), "{}", error.message);
}

#[test]
fn given_a_number_that_no_machine_has_when_cuda_is_opened_then_the_tier_is_unavailable_with_a_reason() {
    let gpu = Gpu::open(&config(&[(4_000_000, MIB)]), GpuSharing::Handles, &Cuda);
    assert_eq!(gpu.capacity(), None);
    let fault = gpu.health()[0].fault.clone().expect("a reason");
    assert!(fault.contains("GPU"), "{fault}");
}
