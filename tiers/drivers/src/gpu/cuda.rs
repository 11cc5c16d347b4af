//! Real devices, by CUDA's driver API. The library is looked for when a device is first opened, so that one binary runs with and
//! without it. Nothing of NVIDIA's is needed to build.
//!
//! A device is used through its primary context, which is what other libraries in this process would use, and which each call
//! makes the thread's current one. Nothing but what the configuration names is opened: `cuInit` alone looks at all.
//! An allocation that was shown is freed while its importers may still have it mapped, if they kept it beyond their lease: the
//! driver keeps the memory for them then, and gives it to nobody else; CUDA does not promise that, so the shard waits for leases.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::panic::catch_unwind;
use std::sync::Arc;

use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdevice_attribute, CUevent, CUipcMemHandle, CUmemAccess_flags,
    CUmemAccessDesc, CUmemAllocationGranularity_flags, CUmemAllocationHandleType, CUmemAllocationProp,
    CUmemAllocationProp_st__bindgen_ty_1 as AllocationFlags, CUmemAllocationType, CUmemLocation,
    CUmemLocationType, CUresult, CUstream, CUuuid,
};
use memmap2::{Advice, MmapMut};
use payload_types::gpu::IPC_HANDLE_BYTES;
use payload_types::{ByteCount, DeviceId, IpcHandle};

use super::device::{
    Allocation, CHUNK_BYTES, CHUNKS, Device, DeviceError, DeviceFacts, DeviceFault, Platform, Stream,
    assert_within,
};

/// `CU_STREAM_NON_BLOCKING`: it never waits for the legacy default stream.
const STREAM_NON_BLOCKING: u32 = 1;

/// `CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING`: who waits for it sleeps.
const EVENT_FLAGS: u32 = 1 | 2;

/// `CU_MEMHOSTREGISTER_PORTABLE`: pinned for every context.
const REGISTER_PORTABLE: u32 = 1;

/// What a device's name has room for.
const NAME_BYTES: usize = 256;

/// The devices of this machine.
pub struct Cuda;

impl Platform for Cuda {
    fn open(&self, device: DeviceId) -> Result<Arc<dyn Device>, DeviceError> {
        // The bindings panic where the library lacks a function: a driver older than CUDA 11.
        let opened = catch_unwind(|| open(device));
        let too_old =
            || Err(refused("the GPU driver lacks functions of CUDA 11; install a newer one".into()));
        Ok(Arc::new(opened.unwrap_or_else(|_| too_old())?))
    }
}

fn open(device: DeviceId) -> Result<CudaDevice, DeviceError> {
    // SAFETY: libcuda's initialisers are what every CUDA program runs at start; they have no requirement.
    if !unsafe { sys::is_culib_present() } {
        let message = "no GPU driver: libcuda.so.1 cannot be loaded; install the NVIDIA driver (in a container: --gpus all)";
        return Err(refused(message.into()));
    }
    // SAFETY: it takes nothing but flags, of which there are none.
    said("starting the GPU driver", unsafe { sys::cuInit(0) })?;
    let mut count: c_int = 0;
    // SAFETY: `count` is writable and outlives the call.
    said("counting GPUs", unsafe { sys::cuDeviceGetCount(&raw mut count) })?;
    let ordinal = c_int::try_from(device.0).unwrap_or(c_int::MAX);
    if ordinal >= count {
        return Err(refused(format!(
            "there is no GPU {device}: {count} are visible to this process; change storage.gpu.devices or CUDA_VISIBLE_DEVICES"
        )));
    }
    let mut handle: CUdevice = 0;
    // SAFETY: as above.
    said("opening the GPU", unsafe { sys::cuDeviceGet(&raw mut handle, ordinal) })?;
    let facts = facts(handle)?;
    let mut context: CUcontext = std::ptr::null_mut();
    // SAFETY: as above; the context lives until `CudaDevice` is dropped.
    said("starting work on the GPU", unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut context, handle) })?;
    Ok(CudaDevice { device: handle, context, facts })
}

fn facts(device: CUdevice) -> Result<DeviceFacts, DeviceError> {
    let mut name = [0 as c_char; NAME_BYTES];
    // SAFETY: the buffer is as long as is said, and outlives the call, which ends what it writes with a NUL.
    let named = unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), NAME_BYTES as c_int, device) };
    said("naming the GPU", named)?;
    let name: Vec<u8> = name.iter().map(|byte| *byte as u8).collect();
    let name = CStr::from_bytes_until_nul(&name).map(|name| name.to_string_lossy().into_owned());
    let mut uuid = CUuuid { bytes: [0; 16] };
    // SAFETY: `uuid` is writable and outlives the call.
    said("naming the GPU", unsafe { sys::cuDeviceGetUuid_v2(&raw mut uuid, device) })?;
    let mut total = 0;
    // SAFETY: as above.
    said("measuring the GPU", unsafe { sys::cuDeviceTotalMem_v2(&raw mut total, device) })?;
    let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED;
    let mut exports: c_int = 0;
    // SAFETY: as above.
    let asked = unsafe { sys::cuDeviceGetAttribute(&raw mut exports, attribute, device) };
    Ok(DeviceFacts {
        name: name.unwrap_or_default(),
        uuid: uuid.bytes.map(|byte| byte as u8),
        total: ByteCount(total as u64),
        exports_descriptors: asked == CUresult::CUDA_SUCCESS && exports == 1,
    })
}

struct CudaDevice {
    device: CUdevice,
    context: CUcontext,
    facts: DeviceFacts,
}

// SAFETY: a context may be used by any number of threads at a time (CUDA's programming guide, "Multithreading").
unsafe impl Send for CudaDevice {}
// SAFETY: as above.
unsafe impl Sync for CudaDevice {}

impl CudaDevice {
    /// Makes the device the calling thread's.
    fn enter(&self) -> Result<(), DeviceError> {
        // SAFETY: the context is retained while `self` lives.
        said("choosing the GPU", unsafe { sys::cuCtxSetCurrent(self.context) })
    }

    fn properties(&self) -> CUmemAllocationProp {
        CUmemAllocationProp {
            type_: CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
            requestedHandleTypes: CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
            location: self.location(),
            win32HandleMetaData: std::ptr::null_mut(),
            allocFlags: AllocationFlags {
                compressionType: 0,
                gpuDirectRDMACapable: 0,
                usage: 0,
                reserved: [0; 4],
            },
        }
    }

    fn location(&self) -> CUmemLocation {
        CUmemLocation { type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: self.device }
    }

    /// Gives exportable memory a device address.
    fn map(&self, token: u64, bytes: usize) -> Result<u64, DeviceError> {
        let mut address = 0;
        // SAFETY: `address` is writable; a range of the driver's choice is nobody's.
        said("reserving addresses on the GPU", unsafe {
            sys::cuMemAddressReserve(&raw mut address, bytes, 0, 0, 0)
        })?;
        // SAFETY: the range was just reserved, and the allocation is that long.
        let mapped = said("mapping GPU memory", unsafe { sys::cuMemMap(address, bytes, 0, token, 0) });
        let access = CUmemAccessDesc {
            location: self.location(),
            flags: CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        let usable = mapped.and_then(|()| {
            // SAFETY: the range was just mapped; the description outlives the call.
            said("mapping GPU memory", unsafe { sys::cuMemSetAccess(address, bytes, &raw const access, 1) })
        });
        if let Err(error) = usable {
            // SAFETY: nobody knows the range; what was not mapped is refused, which does no harm.
            unsafe {
                let _ = sys::cuMemUnmap(address, bytes);
                let _ = sys::cuMemAddressFree(address, bytes);
            }
            return Err(error);
        }
        Ok(address)
    }
}

impl Device for CudaDevice {
    fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    fn free_bytes(&self) -> Result<ByteCount, DeviceError> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both are writable and outlive the call.
        said("measuring the GPU", unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) })?;
        Ok(ByteCount(free as u64))
    }

    fn allocate(&self, bytes: u64) -> Result<Allocation, DeviceError> {
        self.enter()?;
        let mut address = 0;
        // SAFETY: `address` is writable and outlives the call.
        let made = unsafe { sys::cuMemAlloc_v2(&raw mut address, bytes as usize) };
        said(format_args!("allocating {bytes} bytes on the GPU"), made)?;
        Ok(Allocation { address, bytes, token: 0 })
    }

    fn allocate_exportable(&self, bytes: u64) -> Result<Allocation, DeviceError> {
        if !self.facts.exports_descriptors {
            return Err(refused("this GPU's memory cannot be exported as a file descriptor".into()));
        }
        self.enter()?;
        let properties = self.properties();
        let minimum = CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
        let mut unit = 0;
        // SAFETY: `unit` is writable, `properties` is complete, and both outlive the call.
        let asked =
            unsafe { sys::cuMemGetAllocationGranularity(&raw mut unit, &raw const properties, minimum) };
        said("asking how the GPU allocates", asked)?;
        let length = (bytes as usize).next_multiple_of(unit.max(1));
        let mut token = 0;
        // SAFETY: as above.
        let made = unsafe { sys::cuMemCreate(&raw mut token, length, &raw const properties, 0) };
        said(format_args!("allocating {length} bytes on the GPU"), made)?;
        match self.map(token, length) {
            Ok(address) => Ok(Allocation { address, bytes: length as u64, token }),
            Err(error) => {
                // SAFETY: the allocation was just made, and is mapped nowhere.
                let _ = unsafe { sys::cuMemRelease(token) };
                Err(error)
            }
        }
    }

    fn free(&self, allocation: &Allocation) -> Result<(), DeviceError> {
        self.enter()?;
        let tried = format_args!("freeing {} bytes on the GPU", allocation.bytes).to_string();
        let (address, length) = (allocation.address, allocation.bytes as usize);
        if allocation.token == 0 {
            // SAFETY: it is an allocation of ours that is freed once, and no copy of it is under way.
            return said(tried, unsafe { sys::cuMemFree_v2(address) });
        }
        // SAFETY: as above; the range was mapped by `map`, in one piece.
        said(&tried, unsafe { sys::cuMemUnmap(address, length) })?;
        // SAFETY: as above, and nothing is mapped there any more.
        said(&tried, unsafe { sys::cuMemAddressFree(address, length) })?;
        // SAFETY: our one reference of it; importers have their own.
        said(&tried, unsafe { sys::cuMemRelease(allocation.token) })
    }

    fn handle(&self, allocation: &Allocation) -> Result<IpcHandle, DeviceError> {
        if allocation.token != 0 {
            return Err(refused("memory with a file descriptor has no IPC handle".into()));
        }
        self.enter()?;
        let mut handle = CUipcMemHandle { reserved: [0; IPC_HANDLE_BYTES] };
        // SAFETY: `handle` is writable and outlives the call; the address is an allocation of ours.
        let made = unsafe { sys::cuIpcGetMemHandle(&raw mut handle, allocation.address) };
        said("making an IPC handle of GPU memory", made)?;
        Ok(IpcHandle(handle.reserved.map(|byte| byte as u8)))
    }

    fn descriptor(&self, allocation: &Allocation) -> Result<OwnedFd, DeviceError> {
        if allocation.token == 0 {
            return Err(refused("a plain GPU allocation has no file descriptor".into()));
        }
        self.enter()?;
        let mut descriptor: RawFd = -1;
        let kind = CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
        let to = (&raw mut descriptor).cast::<c_void>();
        // SAFETY: for this kind of handle the driver writes one integer, a descriptor; it is writable and outlives the call.
        let made = unsafe { sys::cuMemExportToShareableHandle(to, allocation.token, kind, 0) };
        said("exporting GPU memory", made)?;
        // SAFETY: the driver just made it for us.
        Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
    }

    fn zero(&self, allocation: &Allocation) -> Result<(), DeviceError> {
        self.enter()?;
        let stream = OwnStream::new()?;
        let (address, length) = (allocation.address, allocation.bytes as usize);
        // SAFETY: the range is an allocation of ours.
        said("zeroing GPU memory", unsafe { sys::cuMemsetD8Async(address, 0, length, stream.0) })?;
        stream.synchronize()
    }

    fn stream(&self) -> Result<Box<dyn Stream>, DeviceError> {
        self.enter()?;
        Ok(Box::new(CudaStream::new()?))
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        // SAFETY: the tier's threads have ended, and with them every use of the context.
        let released = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
        if let Err(error) = said("leaving the GPU", released) {
            tracing::debug!("{error}");
        }
    }
}

/// A stream of the calling thread's device.
struct OwnStream(CUstream);

impl OwnStream {
    fn new() -> Result<Self, DeviceError> {
        let mut stream: CUstream = std::ptr::null_mut();
        // SAFETY: `stream` is writable and outlives the call.
        said("making a GPU stream", unsafe { sys::cuStreamCreate(&raw mut stream, STREAM_NON_BLOCKING) })?;
        Ok(Self(stream))
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        // SAFETY: the stream is ours while `self` lives.
        said("waiting for the GPU", unsafe { sys::cuStreamSynchronize(self.0) })
    }
}

impl Drop for OwnStream {
    fn drop(&mut self) {
        // SAFETY: ours, and not used any more; the driver frees it when its work is done.
        let _ = unsafe { sys::cuStreamDestroy_v2(self.0) };
    }
}

/// Copies on one stream, with an event for each chunk.
struct CudaStream {
    stream: OwnStream,
    events: [CUevent; CHUNKS],
    under_way: [bool; CHUNKS],
    staging: ManuallyDrop<MmapMut>,
    is_pinned: bool,
}

impl CudaStream {
    fn new() -> Result<Self, DeviceError> {
        let staging = MmapMut::map_anon(CHUNKS * CHUNK_BYTES)
            .map_err(|error| refused(format!("no memory for staging: {error}")))?;
        let _ = staging.advise(Advice::HugePage); // speed only
        let stream = OwnStream::new()?;
        let mut this = Self {
            stream,
            events: [std::ptr::null_mut(); CHUNKS],
            under_way: [false; CHUNKS],
            staging: ManuallyDrop::new(staging),
            is_pinned: false,
        };
        for event in &mut this.events {
            // SAFETY: `event` is writable and outlives the call.
            said("making a GPU event", unsafe { sys::cuEventCreate(&raw mut *event, EVENT_FLAGS) })?;
        }
        let start = this.staging.as_mut_ptr().cast::<c_void>();
        // SAFETY: the mapping lives until it is unregistered in `drop`, or is leaked.
        let pinned = unsafe { sys::cuMemHostRegister_v2(start, CHUNKS * CHUNK_BYTES, REGISTER_PORTABLE) };
        match said("pinning staging memory", pinned) {
            Ok(()) => this.is_pinned = true,
            // Copies are right without it, and slower.
            Err(error) => tracing::warn!("{error}; copies to and from the GPU are slower"),
        }
        Ok(this)
    }

    fn started(&mut self, chunk: usize) -> Result<(), DeviceError> {
        // SAFETY: event and stream are ours while `self` lives.
        said("marking a GPU copy", unsafe { sys::cuEventRecord(self.events[chunk], self.stream.0) })
    }

    fn place(&mut self, chunk: usize) -> *mut c_void {
        assert!(!self.under_way[chunk], "a chunk is finished before it is used again");
        self.under_way[chunk] = true;
        self.staging[chunk * CHUNK_BYTES..][..CHUNK_BYTES].as_mut_ptr().cast()
    }
}

impl Stream for CudaStream {
    fn chunk(&mut self, chunk: usize) -> &mut [u8] {
        assert!(!self.under_way[chunk], "a chunk is finished before it is looked at");
        &mut self.staging[chunk * CHUNK_BYTES..][..CHUNK_BYTES]
    }

    fn start_read(
        &mut self,
        chunk: usize,
        from: &Allocation,
        offset: u64,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        assert_within(from, offset, bytes);
        let (to, from, stream) = (self.place(chunk), from.address + offset, self.stream.0);
        // SAFETY: nobody looks at the chunk until `finish`, and it is freed only when nothing is under way; the device's range
        // is within an allocation that is kept until its copy has ended.
        said("copying from the GPU", unsafe { sys::cuMemcpyDtoHAsync_v2(to, from, bytes, stream) })?;
        self.started(chunk)
    }

    fn start_write(
        &mut self,
        chunk: usize,
        to: &Allocation,
        offset: u64,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        assert_within(to, offset, bytes);
        let (from, to, stream) = (self.place(chunk), to.address + offset, self.stream.0);
        // SAFETY: as above.
        said("copying to the GPU", unsafe { sys::cuMemcpyHtoDAsync_v2(to, from, bytes, stream) })?;
        self.started(chunk)
    }

    fn finish(&mut self, chunk: usize) -> Result<(), DeviceError> {
        if self.under_way[chunk] {
            // SAFETY: the event is ours while `self` lives.
            said("copying between GPU and memory", unsafe { sys::cuEventSynchronize(self.events[chunk]) })?;
            self.under_way[chunk] = false;
        }
        Ok(())
    }
}

impl Drop for CudaStream {
    fn drop(&mut self) {
        if let Err(error) = self.stream.synchronize() {
            // The device may still write to the staging: it is never freed.
            tracing::warn!("{error}; its staging memory is left alone");
            return;
        }
        for event in self.events {
            if !event.is_null() {
                // SAFETY: ours, and nothing waits for it.
                let _ = unsafe { sys::cuEventDestroy_v2(event) };
            }
        }
        if self.is_pinned {
            // SAFETY: it was registered with this address, and nothing is under way.
            let _ = unsafe { sys::cuMemHostUnregister(self.staging.as_mut_ptr().cast()) };
        }
        // SAFETY: dropped once, here, and the device is done with it.
        unsafe { ManuallyDrop::drop(&mut self.staging) };
    }
}

/// What the driver answered to what was tried.
fn said(tried: impl std::fmt::Display, result: CUresult) -> Result<(), DeviceError> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let fault = fault_of(result);
    let advice = advice(result).map(|advice| format!("; {advice}")).unwrap_or_default();
    Err(DeviceError { fault, message: format!("{tried} failed: {result:?}{advice}") })
}

/// Errors after which CUDA promises nothing about the context are the loss of the device to this process.
fn fault_of(result: CUresult) -> DeviceFault {
    match result {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => DeviceFault::OutOfMemory,
        CUresult::CUDA_ERROR_DEINITIALIZED
        | CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED
        | CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE
        | CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
        | CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE
        | CUresult::CUDA_ERROR_CONTAINED
        | CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
        | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
        | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
        | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUresult::CUDA_ERROR_LAUNCH_FAILED
        | CUresult::CUDA_ERROR_MPS_CLIENT_TERMINATED
        | CUresult::CUDA_ERROR_EXTERNAL_DEVICE => DeviceFault::Lost,
        _ => DeviceFault::Refused,
    }
}

fn advice(result: CUresult) -> Option<&'static str> {
    match result {
        CUresult::CUDA_ERROR_NO_DEVICE => Some(
            "no device is visible to this process: check CUDA_VISIBLE_DEVICES, and --gpus of its container",
        ),
        CUresult::CUDA_ERROR_STUB_LIBRARY => {
            Some("the libcuda.so that was found is a stub for linking: take it off LD_LIBRARY_PATH")
        }
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            Some("the driver's library and its kernel module differ: restart the machine after an update")
        }
        CUresult::CUDA_ERROR_SYSTEM_NOT_READY => {
            Some("the machine's fabric is not up: is nvidia-fabricmanager running?")
        }
        CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE => {
            Some("another process has the device for itself (compute mode EXCLUSIVE_PROCESS)")
        }
        CUresult::CUDA_ERROR_NOT_PERMITTED | CUresult::CUDA_ERROR_OPERATING_SYSTEM => {
            Some("the system does not permit it: check the rights to /dev/nvidia*, and the device cgroup")
        }
        _ => None,
    }
}

fn refused(message: String) -> DeviceError {
    DeviceError { fault: DeviceFault::Refused, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_results_of_the_driver_when_told_then_full_lost_and_refused_are_told_apart() {
        assert_eq!(said("x", CUresult::CUDA_SUCCESS), Ok(()));
        let kind = |result| said("trying", result).expect_err("a failure").fault;
        assert_eq!(kind(CUresult::CUDA_ERROR_OUT_OF_MEMORY), DeviceFault::OutOfMemory);
        assert_eq!(kind(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS), DeviceFault::Lost);
        assert_eq!(kind(CUresult::CUDA_ERROR_ECC_UNCORRECTABLE), DeviceFault::Lost);
        assert_eq!(kind(CUresult::CUDA_ERROR_INVALID_VALUE), DeviceFault::Refused);
        let message =
            said("starting the GPU driver", CUresult::CUDA_ERROR_NO_DEVICE).expect_err("no device").message;
        assert!(message.contains("starting the GPU driver failed: CUDA_ERROR_NO_DEVICE"), "{message}");
        assert!(message.contains("CUDA_VISIBLE_DEVICES"), "{message}");
    }

    #[test]
    fn given_a_machine_where_the_device_cannot_be_had_when_opened_then_a_sentence_and_no_panic() {
        // On a machine with a GPU a number that none has.
        let error = Cuda.open(DeviceId(4_000_000_000)).err().expect("nobody has so many");
        assert_eq!(error.fault, DeviceFault::Refused);
        assert!(!error.message.is_empty());
    }
}
