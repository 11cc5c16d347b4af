//! What every device must do, whoever plays it: the fake always, and a real one where `PM_TEST_GPU` gives its number (`tests/gpu/run`
//! does). With `PM_TEST_GPU_FIGURES` the copies are timed, too.

use std::env;
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::time::Instant;

use payload_drivers::checksum;
use payload_drivers::gpu::device::{CHUNK_BYTES, CHUNKS, Device, DeviceFault};
use payload_drivers::gpu::fake::FakePlatform;
use payload_drivers::gpu::{Cuda, Gpu, GpuSharing, Platform};
use payload_types::{ByteCount, DeviceId, Tier};

use crate::common::{Place, Rig, committed, read, replica, sample, twin};
use crate::{MIB, config};

/// What the tier may take of a real device: enough for the figures.
const CAPACITY: u64 = 1 << 30;

fn platforms() -> Vec<(Box<dyn Platform>, u32)> {
    let mut all: Vec<(Box<dyn Platform>, u32)> =
        vec![(Box::new(FakePlatform::new(1, ByteCount(256 * MIB))), 0)];
    if let Some(number) = real() {
        all.push((Box::new(Cuda), number));
    }
    all
}

fn real() -> Option<u32> {
    let number = env::var("PM_TEST_GPU").ok()?;
    Some(number.parse().expect("PM_TEST_GPU is the number of a device"))
}

#[test]
fn given_a_device_when_memory_is_written_and_read_by_streams_then_the_same_bytes_and_zeroes_where_it_was_zeroed()
 {
    for (platform, number) in platforms() {
        let device = platform.open(DeviceId(number)).expect("it is there");
        assert!(!device.facts().name.is_empty() && device.facts().total > ByteCount::ZERO);
        assert_ne!(device.facts().uuid, [0; 16]);
        let mut stream = device.stream().expect("a stream");
        for size in [1, 4096, CHUNK_BYTES, CHUNKS * CHUNK_BYTES + 3] {
            let bytes = sample(size);
            let allocation = device.allocate(size as u64).expect("there is room");
            device.zero(&allocation).expect("zeroed");
            let read_all = |stream: &mut dyn payload_drivers::gpu::device::Stream| {
                let mut found = Vec::new();
                for (index, part) in bytes.chunks(CHUNK_BYTES).enumerate() {
                    let offset = (index * CHUNK_BYTES) as u64;
                    stream.start_read(index % CHUNKS, &allocation, offset, part.len()).expect("started");
                    stream.finish(index % CHUNKS).expect("read");
                    found.extend_from_slice(&stream.chunk(index % CHUNKS)[..part.len()]);
                }
                found
            };
            assert!(read_all(&mut *stream).iter().all(|byte| *byte == 0), "{size} bytes");
            for (index, part) in bytes.chunks(CHUNK_BYTES).enumerate() {
                let chunk = index % CHUNKS;
                stream.finish(chunk).expect("the chunk is free");
                stream.chunk(chunk)[..part.len()].copy_from_slice(part);
                let offset = (index * CHUNK_BYTES) as u64;
                stream.start_write(chunk, &allocation, offset, part.len()).expect("started");
            }
            (0..CHUNKS).for_each(|chunk| stream.finish(chunk).expect("written"));
            assert!(read_all(&mut *stream) == bytes, "{size} bytes");
            device.free(&allocation).expect("freed");
        }
    }
}

#[test]
fn given_a_device_when_memory_is_shared_then_handles_and_descriptors_differ_and_each_kind_has_its_own() {
    for (platform, number) in platforms() {
        let device = platform.open(DeviceId(number)).expect("it is there");
        let [one, other] = [2 * MIB, 4 * MIB].map(|bytes| device.allocate(bytes).expect("there is room"));
        let handles = [&one, &other].map(|allocation| device.handle(allocation).expect("a handle"));
        assert_ne!(handles[0], handles[1]);
        assert_eq!(device.descriptor(&one).expect_err("it is plain").fault, DeviceFault::Refused);
        if device.facts().exports_descriptors {
            let shared = device.allocate_exportable(MIB).expect("there is room");
            let descriptor = device.descriptor(&shared).expect("a descriptor");
            assert!(descriptor.as_raw_fd() >= 0);
            assert_eq!(device.handle(&shared).expect_err("it has none").fault, DeviceFault::Refused);
            device.zero(&shared).expect("it is memory as any other");
            device.free(&shared).expect("freed");
        }
        [one, other].iter().for_each(|allocation| device.free(allocation).expect("freed"));
    }
}

#[test]
fn given_more_than_a_device_has_when_allocated_then_out_of_memory_and_the_device_goes_on() {
    for (platform, number) in platforms() {
        let device = platform.open(DeviceId(number)).expect("it is there");
        let error = device.allocate(2 * device.facts().total.0).expect_err("too much");
        assert_eq!(error.fault, DeviceFault::OutOfMemory, "{error}");
        let free = device.free_bytes().expect("measured");
        let allocation = device.allocate(8 * MIB).expect("there is room");
        assert!(device.free_bytes().expect("measured") < free);
        device.free(&allocation).expect("freed");
    }
}

#[test]
fn given_a_tier_on_each_platform_when_payloads_move_then_every_byte_is_the_same() {
    for sharing in [GpuSharing::Handles, GpuSharing::Descriptors] {
        for (platform, number) in platforms() {
            let gpu = Gpu::open(&config(&[(number, CAPACITY)]), sharing, &*platform);
            assert!(gpu.capacity().is_some(), "{:?}", gpu.health());
            let place = Place::new();
            let mut drivers = place.open();
            drivers.set_gpu(gpu.clone());
            let mut rig = Rig::started(drivers);
            for size in [1, 70_001, 5 * CHUNK_BYTES + 9] {
                let empty = replica(Tier::Gpu, size as u64);
                rig.create(empty).expect("created");
                let zeroes = twin(empty, Tier::Ram);
                assert_eq!(rig.copy(empty, zeroes, None), Ok(checksum(&vec![0; size])), "{size} bytes");
                let bytes = sample(size);
                let ram = committed(&mut rig, Tier::Ram, &bytes);
                let up = twin(ram, Tier::Gpu);
                assert_eq!(rig.copy(ram, up, Some(checksum(&bytes))), Ok(checksum(&bytes)), "{size} bytes");
                let disk = twin(ram, Tier::Disk);
                assert_eq!(rig.copy(up, disk, Some(checksum(&bytes))), Ok(checksum(&bytes)), "{size} bytes");
                assert!(read(&rig, disk) == bytes, "{size} bytes");
                for made in [empty, zeroes, ram, up, disk] {
                    rig.detach(made);
                    rig.wait_until_freed(made);
                }
            }
            assert_eq!(gpu.places().count(), 0);
        }
    }
}

/// Gigabytes a second of `work`, which moves so many bytes: the best of three.
fn bandwidth(bytes: u64, mut work: impl FnMut()) -> f64 {
    let mut best = 0f64;
    for _ in 0..3 {
        let start = Instant::now();
        work();
        best = best.max(bytes as f64 / start.elapsed().as_secs_f64() / 1e9);
    }
    best
}

/// What the link gives: chunk after chunk, all under way, nobody looks at the bytes.
fn link(device: &dyn Device, bytes: u64) -> (f64, f64) {
    let allocation = device.allocate(bytes).expect("there is room");
    let mut stream = device.stream().expect("a stream");
    let chunks = (bytes as usize).div_ceil(CHUNK_BYTES);
    let length = |index: usize| (bytes as usize - index * CHUNK_BYTES).min(CHUNK_BYTES);
    let down = bandwidth(bytes, || {
        for index in 0..chunks {
            stream.finish(index % CHUNKS).expect("read");
            let offset = (index * CHUNK_BYTES) as u64;
            stream.start_read(index % CHUNKS, &allocation, offset, length(index)).expect("started");
        }
        (0..CHUNKS).for_each(|chunk| stream.finish(chunk).expect("read"));
    });
    let up = bandwidth(bytes, || {
        for index in 0..chunks {
            stream.finish(index % CHUNKS).expect("written");
            let offset = (index * CHUNK_BYTES) as u64;
            stream.start_write(index % CHUNKS, &allocation, offset, length(index)).expect("started");
        }
        (0..CHUNKS).for_each(|chunk| stream.finish(chunk).expect("written"));
    });
    device.free(&allocation).expect("freed");
    (down, up)
}

#[test]
fn given_a_real_device_and_the_wish_when_copies_are_timed_then_the_figures_are_printed() {
    let (Some(number), Ok(path)) = (real(), env::var("PM_TEST_GPU_FIGURES")) else { return };
    let mut lines = String::new();
    for size in [16 * MIB, 64 * MIB, 256 * MIB] {
        let device = Cuda.open(DeviceId(number)).expect("it is there");
        let (down, up) = link(&*device, size);
        let gpu = Gpu::open(&config(&[(number, CAPACITY)]), GpuSharing::Handles, &Cuda);
        let place = Place::new();
        let mut drivers = place.open();
        drivers.set_gpu(gpu);
        let mut rig = Rig::started(drivers);
        let made = replica(Tier::Gpu, size);
        rig.create(made).expect("created");
        for tier in [Tier::Ram, Tier::Disk] {
            let mut copies = Vec::new();
            let spill = bandwidth(size, || {
                let to = twin(made, tier);
                rig.copy(made, to, None).expect("spilled");
                copies.push(to);
            });
            let from = copies[0];
            let mut ups = Vec::new();
            let promote = bandwidth(size, || {
                let to = twin(made, Tier::Gpu);
                rig.copy(from, to, None).expect("promoted");
                ups.push(to);
            });
            let mib = size / MIB;
            lines += &format!(
                "{mib} MiB {tier}: spill {spill:.1} GB/s, {:.2}x of {down:.1}; promote {promote:.1} GB/s, {:.2}x of {up:.1}\n",
                spill / down,
                promote / up
            );
            for copy in copies.into_iter().chain(ups) {
                rig.detach(copy);
                rig.wait_until_freed(copy);
            }
        }
    }
    fs::File::create(path).and_then(|mut file| file.write_all(lines.as_bytes())).expect("written");
    println!("{lines}");
}
