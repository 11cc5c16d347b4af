//! Device memory: how it is configured, and what a process needs to open a payload there.
//!
//! A shard knows a replica on GPU by its generation alone ([`Location::Gpu`]), as it knows one in a file. Which device it is on,
//! and the handle that opens it, are the driver's: it enters them when `StorageOp` or `TransferOp` made the replica, and takes them
//! out when it was dropped. Whoever shows a descriptor looks them up by (payload, generation): a [`GpuPlace`].
//!
//! [`Location::Gpu`]: crate::Location::Gpu

use std::fmt;

use crate::ids::Generation;
use crate::units::ByteCount;

/// A CUDA IPC memory handle, as `cuIpcGetMemHandle` gives it.
pub const IPC_HANDLE_BYTES: usize = 64;

/// The contract's `GpuLocation.ipc_handle`: the allocation's size as a little-endian signed 64-bit integer, then the handle.
pub const SIZED_HANDLE_BYTES: usize = 8 + IPC_HANDLE_BYTES;

/// A device, by its number in the CUDA order of this process: `storage.gpu.devices[].device_id`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DeviceId(pub u32);

impl fmt::Display for DeviceId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// One device of the configuration. Devices that it does not name are never touched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GpuDevice {
    /// Which.
    pub device: DeviceId,
    /// How much of it payloads may take, charged before anything is allocated.
    pub capacity: ByteCount,
}

/// `storage.gpu`. Empty: the node has no tier GPU.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GpuConfig {
    /// Each device once.
    pub devices: Vec<GpuDevice>,
}

/// A legacy CUDA IPC handle. It opens in processes of the same PID namespace only.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct IpcHandle(pub [u8; IPC_HANDLE_BYTES]);

impl fmt::Debug for IpcHandle {
    /// Not its bytes: who has them can open the memory.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("IpcHandle(..)")
    }
}

/// An arena of device memory: a large allocation that holds many payloads. Never 0, never used again in one start of a server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GpuArenaId(pub u32);

/// Where a replica on GPU lies, and what opens it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GpuPlace {
    /// The device, by this server's number.
    pub device: DeviceId,
    /// The device's own name, which is the same in every process; numbers may differ.
    pub device_uuid: [u8; 16],
    /// The replica's generation.
    pub generation: Generation,
    /// The payload's bytes.
    pub size: ByteCount,
    /// The arena that it shares with others; `None`: it has an allocation of its own, of exactly `size`.
    pub arena: Option<GpuArenaId>,
    /// Where it begins in its allocation, in bytes; 0 without an arena.
    pub offset: u64,
    /// The length of the allocation that a handle or descriptor opens.
    pub allocation: ByteCount,
    /// Opens its allocation; `None`: it can only be had as a POSIX file descriptor.
    pub handle: Option<IpcHandle>,
}

impl GpuPlace {
    /// What `GpuLocation.ipc_handle` shows: for an allocation of the payload's own, whose base and size clients take for the
    /// payload's. `None`: only native sessions can open it.
    pub fn sized_handle(&self) -> Option<[u8; SIZED_HANDLE_BYTES]> {
        let handle = self.handle.filter(|_| self.arena.is_none())?;
        let size = i64::try_from(self.size.0).expect("a payload's size is below limits::PAYLOAD_BYTES_MAX");
        let mut bytes = [0; SIZED_HANDLE_BYTES];
        bytes[..8].copy_from_slice(&size.to_le_bytes());
        bytes[8..].copy_from_slice(&handle.0);
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> GpuPlace {
        GpuPlace {
            device: DeviceId(1),
            device_uuid: [7; 16],
            generation: Generation(9),
            size: ByteCount(0x0102_0304),
            arena: None,
            offset: 0,
            allocation: ByteCount(0x0102_0304),
            handle: Some(IpcHandle(std::array::from_fn(|index| index as u8 + 100))),
        }
    }

    #[test]
    fn given_an_allocation_of_its_own_when_shown_then_72_bytes_of_size_and_handle() {
        let shown = place().sized_handle().expect("it has a handle");
        assert_eq!(shown.len(), 72);
        assert_eq!(shown[..8], [4, 3, 2, 1, 0, 0, 0, 0]);
        assert_eq!((shown[8], shown[71]), (100, 163));
        assert_eq!(i64::from_le_bytes(shown[..8].try_into().expect("8 bytes")), 0x0102_0304);
    }

    #[test]
    fn given_an_arena_or_no_handle_when_shown_to_clients_of_the_contract_then_nothing() {
        let shared = GpuPlace { arena: Some(GpuArenaId(1)), ..place() };
        assert_eq!(shared.sized_handle(), None);
        assert_eq!(GpuPlace { handle: None, ..place() }.sized_handle(), None);
        assert_eq!(format!("{:?}", place().handle), "Some(IpcHandle(..))");
    }
}
