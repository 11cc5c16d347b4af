//! What a client is told about a payload.

use crate::extent::Extent;
use crate::ids::{Generation, PayloadId, Version};
use crate::policy::EvictionPolicy;
use crate::slab::Block;
use crate::state::PayloadState;
use crate::tier::Tier;
use crate::time::WallMs;
use crate::units::{ByteCount, Checksum};

/// Where a replica lies, in the core's terms. The front turns it into names and paths: the core holds no strings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Location {
    /// A named shared-memory segment of its own, bytes at offset 0; its name follows from the payload id.
    Segment,
    /// A file of its own, bytes at offset 0; its path follows from the payload id and the replica's generation.
    File(Generation),
    /// A part of a segment file, shared with other payloads.
    Packed(Extent),
    /// A part of a native session's slab, which only native sessions of this node can map: it has no name.
    Arena(Block),
    /// An object of its own in the store; its URI follows from the payload id.
    Object,
    /// Device memory of this replica. The device and the handle that opens it are the driver's to tell, by payload id and
    /// this generation (`gpu::GpuPlace`).
    Gpu(Generation),
}

/// A payload as the contract's `PayloadDescriptor` shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Descriptor {
    /// Identity.
    pub id: PayloadId,
    /// Tier of the replica shown.
    pub tier: Tier,
    /// Lifecycle state; never `Committing` (shown as `Allocated`).
    pub state: PayloadState,
    /// Where the shown replica lies; `None` while it must not be read (ALLOCATED, asked by ResolveSnapshot).
    pub location: Option<Location>,
    /// Exactly what was allocated.
    pub size: ByteCount,
    /// Grows with every change of tier, location or state.
    pub version: Version,
    /// When it was allocated.
    pub created_at: WallMs,
    /// When its ttl passes.
    pub expires_at: Option<WallMs>,
    /// As given at Allocate.
    pub policy: EvictionPolicy,
    /// Known from the first copy on, or from Commit when the client gave it.
    pub checksum: Option<Checksum>,
}
