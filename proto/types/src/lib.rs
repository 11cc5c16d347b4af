//! The domain's vocabulary: ids, tiers, states, limits, errors and the messages that cross cores.
//!
//! Imports nothing of ours and does no I/O. Everything that two crates must agree on is defined here once:
//! what a client may ask ([`request`]), what a shard answers ([`reply`]), what a shard asks of the drivers, the
//! catalog and the budget arbiter ([`effect`]), and what they answer ([`event`]).
#![forbid(unsafe_code)]

pub mod batch;
pub mod descriptor;
pub mod direct;
pub mod disk;
pub mod effect;
pub mod error;
pub mod event;
pub mod extent;
pub mod find;
pub mod foreign;
pub mod gpu;
pub mod hold;
pub mod ids;
pub mod limits;
pub mod peer;
pub mod policy;
pub mod record;
pub mod reply;
pub mod report;
pub mod request;
pub mod row;
pub mod scrub;
pub mod session;
pub mod slab;
pub mod state;
pub mod tier;
pub mod time;
pub mod units;
pub mod upload;

pub use batch::{BatchId, BatchPart};
pub use descriptor::{Descriptor, Location};
pub use disk::{DiskFault, DiskHealth, DiskSegments, DiskState};
pub use error::{ErrorKind, PayloadError};
pub use extent::Extent;
pub use foreign::{Foreign, ForeignPage, OtherNode};
pub use gpu::{DeviceId, GpuArenaId, GpuConfig, GpuDevice, GpuPlace, IpcHandle};
pub use ids::{
    Epoch, Generation, LeaseId, LeaseNonce, NamespaceId, OpId, PayloadId, PayloadKey, ShardIndex, Version,
};
pub use peer::Peer;
pub use policy::{EvictionPolicy, EvictionPriority, Pin, PromotionPolicy, Rank, SpillPolicy};
pub use row::{Health, PayloadRow, ReplicaRow};
pub use session::SessionId;
pub use slab::{Block, Memory, SlabId};
pub use state::PayloadState;
pub use tier::{PerTier, Tier};
pub use time::{Monotonic, Now, WallMs};
pub use units::{ByteCount, Checksum};
