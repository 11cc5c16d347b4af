//! What the tier asks of a GPU: the seam between it and CUDA. [`super::cuda`] makes the real calls, [`super::fake`] plays a device
//! in host memory for tests.
//!
//! ```text
//! Platform::open(number) -> Device (shared by the device's own threads) -> Device::stream() -> Stream (one thread's)
//! ```
//! Every call may block, for as long as the device likes: they are made on the device's own threads only. A device that answered
//! [`DeviceFault::Lost`] answers nothing else any more; its memory is gone.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use payload_types::event::{DriverError, DriverErrorKind};
use payload_types::{ByteCount, DeviceId, IpcHandle};

/// What a [`Stream`] moves at a time: from 1 MiB on a copy between pinned memory and a device has its full speed, and fewer chunks
/// cost fewer waits.
pub const CHUNK_BYTES: usize = 4 << 20;

/// Chunks of a [`Stream`]: one that the processor works on, and three that the device may be behind with. 16 MiB a copying thread.
pub const CHUNKS: usize = 4;

/// How a call failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceFault {
    /// There is no room on the device, whoever has it.
    OutOfMemory,
    /// The device, or this process' use of it, is gone until the server is started anew.
    Lost,
    /// Anything else; it says nothing about other calls.
    Refused,
}

/// A call's error: what was tried, and what the driver answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceError {
    /// How the tier tells it apart.
    pub fault: DeviceFault,
    /// How a person reads it.
    pub message: String,
}

impl fmt::Display for DeviceError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for DeviceError {}

impl From<DeviceError> for DriverError {
    fn from(error: DeviceError) -> Self {
        let kind = match error.fault {
            DeviceFault::OutOfMemory => DriverErrorKind::Full,
            DeviceFault::Lost => DriverErrorKind::DeviceLost,
            DeviceFault::Refused => DriverErrorKind::Io,
        };
        Self { kind, message: error.message }
    }
}

/// What is known of a device from the start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceFacts {
    /// As its maker calls it.
    pub name: String,
    /// The same in every process and container.
    pub uuid: [u8; 16],
    /// All of its memory.
    pub total: ByteCount,
    /// Its allocations can be exported as POSIX file descriptors ([`Device::allocate_exportable`]).
    pub exports_descriptors: bool,
}

/// Memory of a device. Not freed when it is dropped: [`Device::free`] does that, on the right thread.
#[derive(PartialEq, Eq, Debug)]
pub struct Allocation {
    /// Where it begins, in this process' device addresses.
    pub(crate) address: u64,
    /// As was asked for; an exportable one may be longer.
    pub(crate) bytes: u64,
    /// The driver's own: 0 for a plain allocation.
    pub(crate) token: u64,
}

/// Where devices come from.
pub trait Platform: Send + Sync {
    /// Makes this device usable. No other is touched.
    ///
    /// # Errors
    /// In one sentence, why it cannot be used, and what to do.
    fn open(&self, device: DeviceId) -> Result<Arc<dyn Device>, DeviceError>;
}

/// One device. Calls from several threads at a time are fine.
pub trait Device: Send + Sync {
    /// What it is.
    fn facts(&self) -> &DeviceFacts;

    /// What nobody has of its memory, other processes included.
    ///
    /// # Errors
    /// As every call.
    fn free_bytes(&self) -> Result<ByteCount, DeviceError>;

    /// A plain allocation of exactly so many bytes: what a legacy IPC handle opens.
    ///
    /// # Errors
    /// `OutOfMemory`.
    fn allocate(&self, bytes: u64) -> Result<Allocation, DeviceError>;

    /// An allocation of at least so many bytes that [`descriptor`](Self::descriptor) can export, and no handle.
    ///
    /// # Errors
    /// `OutOfMemory`; `Refused` where the device has none such.
    fn allocate_exportable(&self, bytes: u64) -> Result<Allocation, DeviceError>;

    /// Gives an allocation back. Nothing of this process may use it.
    ///
    /// # Errors
    /// Its memory is then taken until the process ends.
    fn free(&self, allocation: &Allocation) -> Result<(), DeviceError>;

    /// The legacy IPC handle of a plain allocation.
    ///
    /// # Errors
    /// `Refused` where the system has no such handles (some virtual machines and container runtimes).
    fn handle(&self, allocation: &Allocation) -> Result<IpcHandle, DeviceError>;

    /// A descriptor of an exportable allocation, for SCM_RIGHTS.
    ///
    /// # Errors
    /// As every call.
    fn descriptor(&self, allocation: &Allocation) -> Result<OwnedFd, DeviceError>;

    /// Overwrites all of an allocation with zeroes, and waits until it is done.
    ///
    /// # Errors
    /// As every call.
    fn zero(&self, allocation: &Allocation) -> Result<(), DeviceError>;

    /// A stream with staging of its own.
    ///
    /// # Errors
    /// As every call; `Refused` where the system has no memory for the staging.
    fn stream(&self) -> Result<Box<dyn Stream>, DeviceError>;
}

/// Copies between a device and pinned staging: [`CHUNKS`] chunks of [`CHUNK_BYTES`]. Used by one thread. Copies are carried out in
/// the order in which they were started; dropping it waits for them.
pub trait Stream {
    /// A chunk's bytes.
    ///
    /// # Panics
    /// While a copy of the chunk is under way.
    fn chunk(&mut self, chunk: usize) -> &mut [u8];

    /// Starts copying from the device, `offset` bytes from the allocation's start, into the beginning of the chunk.
    ///
    /// # Errors
    /// As every call. After an error the stream is of no more use.
    ///
    /// # Panics
    /// When that is not within the allocation, or a copy of the chunk is under way.
    fn start_read(
        &mut self,
        chunk: usize,
        from: &Allocation,
        offset: u64,
        bytes: usize,
    ) -> Result<(), DeviceError>;

    /// Starts copying the beginning of the chunk to the device.
    ///
    /// # Errors
    /// As [`start_read`](Self::start_read).
    ///
    /// # Panics
    /// As [`start_read`](Self::start_read).
    fn start_write(
        &mut self,
        chunk: usize,
        to: &Allocation,
        offset: u64,
        bytes: usize,
    ) -> Result<(), DeviceError>;

    /// Waits until no copy of the chunk is under way.
    ///
    /// # Errors
    /// As [`start_read`](Self::start_read).
    fn finish(&mut self, chunk: usize) -> Result<(), DeviceError>;
}

/// What both kinds of copies assert.
///
/// # Panics
/// When the copy is not within the allocation or the chunk.
pub(crate) fn assert_within(allocation: &Allocation, offset: u64, bytes: usize) {
    assert!(bytes <= CHUNK_BYTES, "a copy fits its chunk");
    let end = offset.checked_add(bytes as u64).expect("an offset within an allocation");
    assert!(end <= allocation.bytes, "a copy lies within its allocation");
}
