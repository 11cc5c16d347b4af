//! A device in host memory, for tests on machines without a GPU. No configuration of the server reaches it: a test hands it to
//! [`super::Gpu::open`].
//!
//! An allocation is a memfd of exactly its size. Its handle names the process and the descriptor, so that another process of the
//! same user opens it through /proc ([`open_handle`]), for as long as this one lives: "device memory" crosses processes as it does
//! with CUDA. [`FakeFaults`] says what fails; it may be changed while the device is used.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use payload_types::gpu::IPC_HANDLE_BYTES;
use payload_types::{ByteCount, DeviceId, IpcHandle};

use super::device::{
    Allocation, CHUNK_BYTES, CHUNKS, Device, DeviceError, DeviceFacts, DeviceFault, Platform, Stream,
    assert_within,
};
use crate::sys;

/// How a fake's handles begin.
const MARK: [u8; 8] = *b"PMFAKE\0\x01";

/// What new memory holds: a real device's is not zeroed either.
const LEFTOVER: u8 = 0xA5;

/// What fails, and what was called. Shared by all devices of a [`FakePlatform`].
#[derive(Debug, Default)]
pub struct FakeFaults {
    /// Every call answers that the device is lost.
    pub lost: AtomicBool,
    /// Allocations answer that there is no memory, whatever is free.
    pub out_of_memory: AtomicBool,
    /// Handles cannot be had.
    pub no_handles: AtomicBool,
    /// So many chunks are copied before the device is lost; 0: as many as it takes.
    pub chunks_until_lost: AtomicU64,
    /// How long each chunk takes, in microseconds.
    pub chunk_us: AtomicU64,
    /// Chunks that were copied, either way.
    pub chunks_copied: AtomicU64,
    /// Allocations that are not free again.
    pub allocations: AtomicU64,
}

impl FakeFaults {
    fn check(&self) -> Result<(), DeviceError> {
        if !self.lost.load(Ordering::SeqCst) {
            return Ok(());
        }
        Err(DeviceError { fault: DeviceFault::Lost, message: "the fake device is lost".to_owned() })
    }

    fn chunk(&self) -> Result<(), DeviceError> {
        self.check()?;
        std::thread::sleep(Duration::from_micros(self.chunk_us.load(Ordering::SeqCst)));
        let countdown = self
            .chunks_until_lost
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |chunks| chunks.checked_sub(1));
        if countdown == Ok(1) {
            self.lost.store(true, Ordering::SeqCst);
        }
        self.check()?;
        self.chunks_copied.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// Devices 0 to `count` - 1.
#[derive(Clone, Debug)]
pub struct FakePlatform {
    /// How many.
    pub count: u32,
    /// What each of them has.
    pub total: ByteCount,
    /// What fails.
    pub faults: Arc<FakeFaults>,
}

impl FakePlatform {
    /// Some devices of this size.
    pub fn new(count: u32, total: ByteCount) -> Self {
        Self { count, total, faults: Arc::default() }
    }
}

impl Platform for FakePlatform {
    fn open(&self, device: DeviceId) -> Result<Arc<dyn Device>, DeviceError> {
        if device.0 >= self.count {
            return Err(refused(format!("there is no device {device}; {} are there", self.count)));
        }
        let facts = DeviceFacts {
            name: format!("fake GPU {device}"),
            uuid: std::array::from_fn(|index| index as u8 ^ device.0 as u8),
            total: self.total,
            exports_descriptors: true,
        };
        Ok(Arc::new(FakeDevice { facts, faults: Arc::clone(&self.faults), memory: Arc::default() }))
    }
}

/// Its memory, by "device address".
type Memory = Arc<Mutex<HashMap<u64, Arc<File>>>>;

struct FakeDevice {
    facts: DeviceFacts,
    faults: Arc<FakeFaults>,
    memory: Memory,
}

impl FakeDevice {
    fn make(&self, bytes: u64, token: u64) -> Result<Allocation, DeviceError> {
        self.faults.check()?;
        let full = |message: String| DeviceError { fault: DeviceFault::OutOfMemory, message };
        let free = self.free_bytes()?;
        if self.faults.out_of_memory.load(Ordering::SeqCst) || free.0 < bytes {
            return Err(full(format!("{bytes} bytes do not fit the fake device, which has {free} free")));
        }
        let file = sys::memory::memfd("pm-fake-gpu", false).map_err(|error| full(error.to_string()))?;
        file.set_len(bytes).map_err(|error| full(error.to_string()))?;
        let address = (file.as_raw_fd() as u64 + 1) << 40;
        let allocation = Allocation { address, bytes, token };
        fill(&file, bytes, LEFTOVER).map_err(|error| full(error.to_string()))?;
        lock(&self.memory).insert(address, Arc::new(file));
        self.faults.allocations.fetch_add(1, Ordering::SeqCst);
        Ok(allocation)
    }

    fn file(&self, allocation: &Allocation) -> Result<Arc<File>, DeviceError> {
        self.faults.check()?;
        Ok(find(&self.memory, allocation))
    }
}

impl Device for FakeDevice {
    fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    fn free_bytes(&self) -> Result<ByteCount, DeviceError> {
        self.faults.check()?;
        let files = lock(&self.memory);
        let used: u64 = files.values().map(|file| file.metadata().map_or(0, |metadata| metadata.len())).sum();
        Ok(ByteCount(self.facts.total.0.saturating_sub(used)))
    }

    fn allocate(&self, bytes: u64) -> Result<Allocation, DeviceError> {
        self.make(bytes, 0)
    }

    fn allocate_exportable(&self, bytes: u64) -> Result<Allocation, DeviceError> {
        self.make(bytes, 1)
    }

    fn free(&self, allocation: &Allocation) -> Result<(), DeviceError> {
        self.faults.check()?;
        lock(&self.memory).remove(&allocation.address).expect("what is freed was allocated");
        self.faults.allocations.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }

    fn handle(&self, allocation: &Allocation) -> Result<IpcHandle, DeviceError> {
        if self.faults.no_handles.load(Ordering::SeqCst) || allocation.token != 0 {
            return Err(refused("this memory has no handle".to_owned()));
        }
        let file = self.file(allocation)?;
        let mut handle = [0; IPC_HANDLE_BYTES];
        handle[..8].copy_from_slice(&MARK);
        handle[8..12].copy_from_slice(&std::process::id().to_le_bytes());
        handle[12..16].copy_from_slice(&file.as_raw_fd().to_le_bytes());
        Ok(IpcHandle(handle))
    }

    fn descriptor(&self, allocation: &Allocation) -> Result<OwnedFd, DeviceError> {
        if allocation.token == 0 {
            return Err(refused("a plain allocation has no descriptor".to_owned()));
        }
        let file = self.file(allocation)?;
        let own = file.try_clone().map_err(|error| refused(error.to_string()))?;
        Ok(own.into())
    }

    fn zero(&self, allocation: &Allocation) -> Result<(), DeviceError> {
        let file = self.file(allocation)?;
        fill(&file, allocation.bytes, 0).map_err(|error| refused(error.to_string()))
    }

    fn stream(&self) -> Result<Box<dyn Stream>, DeviceError> {
        self.faults.check()?;
        let chunks = std::array::from_fn(|_| vec![0; CHUNK_BYTES]);
        let (memory, faults) = (Arc::clone(&self.memory), Arc::clone(&self.faults));
        Ok(Box::new(FakeStream { memory, faults, chunks, under_way: [false; CHUNKS] }))
    }
}

/// Copies at once, and says so at `finish`.
struct FakeStream {
    memory: Memory,
    faults: Arc<FakeFaults>,
    chunks: [Vec<u8>; CHUNKS],
    under_way: [bool; CHUNKS],
}

impl FakeStream {
    fn begin(
        &mut self,
        chunk: usize,
        allocation: &Allocation,
        offset: u64,
        bytes: usize,
    ) -> Result<Arc<File>, DeviceError> {
        assert!(!self.under_way[chunk], "a chunk is finished before it is used again");
        assert_within(allocation, offset, bytes);
        self.faults.chunk()?;
        self.under_way[chunk] = true;
        Ok(find(&self.memory, allocation))
    }
}

impl Stream for FakeStream {
    fn chunk(&mut self, chunk: usize) -> &mut [u8] {
        assert!(!self.under_way[chunk], "a chunk is finished before it is looked at");
        &mut self.chunks[chunk]
    }

    fn start_read(
        &mut self,
        chunk: usize,
        from: &Allocation,
        offset: u64,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        let file = self.begin(chunk, from, offset, bytes)?;
        file.read_exact_at(&mut self.chunks[chunk][..bytes], offset)
            .map_err(|error| refused(error.to_string()))
    }

    fn start_write(
        &mut self,
        chunk: usize,
        to: &Allocation,
        offset: u64,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        let file = self.begin(chunk, to, offset, bytes)?;
        file.write_all_at(&self.chunks[chunk][..bytes], offset).map_err(|error| refused(error.to_string()))
    }

    fn finish(&mut self, chunk: usize) -> Result<(), DeviceError> {
        self.under_way[chunk] = false;
        self.faults.check()
    }
}

/// Opens the memory that a fake's handle names, also in another process of the same user: bytes at offset 0, as long as the
/// allocation.
///
/// # Errors
/// When it is no fake's handle, or the process that gave it has ended.
pub fn open_handle(handle: &[u8; IPC_HANDLE_BYTES]) -> io::Result<File> {
    if handle[..8] != MARK {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no handle of a fake device"));
    }
    let number = |at: usize| u32::from_le_bytes(handle[at..at + 4].try_into().expect("4 bytes"));
    let path = format!("/proc/{}/fd/{}", number(8), number(12));
    OpenOptions::new().read(true).write(true).open(path)
}

fn find(memory: &Memory, allocation: &Allocation) -> Arc<File> {
    Arc::clone(lock(memory).get(&allocation.address).expect("what is used was allocated and not freed"))
}

fn lock(memory: &Memory) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<File>>> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fill(file: &File, bytes: u64, with: u8) -> io::Result<()> {
    let block = vec![with; CHUNK_BYTES.min(bytes as usize)];
    let mut done = 0;
    while done < bytes {
        let length = (bytes - done).min(block.len() as u64);
        file.write_all_at(&block[..length as usize], done)?;
        done += length;
    }
    Ok(())
}

fn refused(message: String) -> DeviceError {
    DeviceError { fault: DeviceFault::Refused, message }
}
