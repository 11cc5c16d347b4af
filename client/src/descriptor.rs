//! What the server tells about a payload, decoded and checked: nothing of an answer is used unseen.
//!
//! Used by every call of the library. Pure. Servers other than ours leave our own fields unset: then the size comes
//! from the location, and there is no checksum.

use std::path::PathBuf;

use payload_types::reply::Summary;
use payload_types::tier::SpillTarget;
use payload_types::{
    ByteCount, Checksum, EvictionPolicy, Generation, LeaseId, PayloadError, PayloadId, PayloadState, SlabId,
    Tier, Version, WallMs,
};
use payload_wire::pb::core::v1 as core;
use payload_wire::pb::runtime::v1 as runtime;
use payload_wire::{enums, ids};

use crate::error::ClientError;

/// Where a replica's bytes lie.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Location {
    /// A POSIX shared-memory object of its own, bytes at offset 0.
    Segment {
        /// With its slash, as `shm_open` takes it.
        shm_name: String,
        /// 0 for segments.
        slab_id: u32,
        /// 0 for segments.
        block_index: u64,
        /// The payload's size.
        length: ByteCount,
    },
    /// A part of a slab of native sessions; only a session can reach it.
    Block {
        /// Which slab.
        slab: SlabId,
        /// Where the bytes start.
        offset: u64,
        /// The payload's size.
        length: ByteCount,
    },
    /// A range of a file.
    File {
        /// Absolute.
        path: PathBuf,
        /// Where the bytes start.
        offset: u64,
        /// The payload's size.
        length: ByteCount,
    },
    /// Device memory.
    Gpu {
        /// CUDA's number in the server's process.
        device_id: u32,
        /// The allocation's size as a little-endian signed 64-bit integer, then what `cudaIpcOpenMemHandle` takes in another process
        /// than the server's; empty: it can only be had as a file descriptor.
        ipc_handle: Vec<u8>,
        /// The payload's size.
        length: ByteCount,
        /// What servers of this project add; `None`: it is another's, and the allocation is exactly this payload's.
        own: Option<OwnGpu>,
    },
    /// An object.
    Object {
        /// Full URI.
        uri: String,
        /// The payload's size.
        length: ByteCount,
    },
}

/// What servers of this project tell of device memory beside the contract's fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnGpu {
    /// Names these bytes of the payload.
    pub generation: Generation,
    /// The allocation that the payload shares with others; 0: it has one of its own.
    pub arena: u32,
    /// Where the payload begins in its allocation.
    pub offset: u64,
    /// The allocation's length.
    pub allocation: ByteCount,
    /// The device's own name, the same in every process.
    pub device_uuid: [u8; 16],
}

impl Location {
    /// The payload's size, as the location states it.
    pub fn length(&self) -> ByteCount {
        match self {
            Self::Segment { length, .. }
            | Self::Block { length, .. }
            | Self::File { length, .. }
            | Self::Gpu { length, .. }
            | Self::Object { length, .. } => *length,
        }
    }
}

/// A payload, as the contract's `PayloadDescriptor` shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Descriptor {
    /// Identity.
    pub id: PayloadId,
    /// Tier of the replica shown.
    pub tier: Tier,
    /// Lifecycle state.
    pub state: PayloadState,
    /// Grows with every change of tier, location or state.
    pub version: Version,
    /// Exactly what was allocated; 0 when the server shows neither size nor location.
    pub size: ByteCount,
    /// Where the shown replica lies; `None` while it must not be read.
    pub location: Option<Location>,
    /// When it was allocated.
    pub created_at: Option<WallMs>,
    /// When its ttl passes.
    pub expires_at: Option<WallMs>,
    /// As given at Allocate.
    pub policy: EvictionPolicy,
    /// XXH3-64 of the bytes, when the server knows it.
    pub checksum: Option<Checksum>,
    /// The node that holds it, where nodes share a catalog. That one leases it.
    pub node: Option<Node>,
}

/// One of the nodes that share a catalog.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// `node.name`.
    pub name: String,
    /// `host:port` of its gRPC.
    pub address: String,
}

/// A granted lease.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    /// For ReleaseLease.
    pub id: LeaseId,
    /// The replica that is pinned.
    pub descriptor: Descriptor,
    /// When the lease ends by itself, by the server's clock.
    pub expires_at: WallMs,
}

/// One page of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// Newest first.
    pub rows: Vec<Summary>,
    /// The node that holds each of them, where nodes share a catalog; else empty names.
    pub nodes: Vec<String>,
    /// Where the next page starts; `None` after the last.
    pub next_page_token: Option<String>,
    /// All payloads that match the filter.
    pub total_count: u64,
}

impl Descriptor {
    /// Decodes and checks.
    ///
    /// # Errors
    /// [`ClientError::Contract`] when it is absent, has no id, names an unknown tier, state or policy, or states two
    /// sizes.
    pub fn decode(message: Option<core::PayloadDescriptor>) -> Result<Self, ClientError> {
        let message = message.ok_or_else(|| broken("the descriptor is absent"))?;
        let id = decode_id(message.payload_id.as_ref())?;
        let tier = decode_tier(message.tier)?;
        let location = message.location.map(|location| decode_location(location, tier));
        let size = match (message.size_bytes, location.as_ref().map(Location::length)) {
            (0, length) => length.unwrap_or_default(),
            (size, Some(length)) if length.0 != size => {
                return Err(broken(&format!(
                    "the descriptor has size {size} and a location of {} bytes",
                    length.0
                )));
            }
            (size, _) => ByteCount(size),
        };
        Ok(Self {
            id,
            tier,
            state: decode_state(message.state)?,
            version: Version(message.version),
            size,
            location,
            created_at: decode_time(message.created_at)?,
            expires_at: decode_time(message.expires_at)?,
            policy: decode_policy(message.eviction_policy)?,
            checksum: message.checksum_xxh3_64.map(Checksum),
            node: Some(Node { name: message.node_id, address: message.node_address })
                .filter(|node| !node.name.is_empty()),
        })
    }
}

impl Lease {
    pub(crate) fn decode(message: runtime::AcquireReadLeaseResponse) -> Result<Self, ClientError> {
        Ok(Self {
            id: ids::lease_id(message.lease_id.as_ref()).map_err(broken_field)?,
            descriptor: Descriptor::decode(message.payload_descriptor)?,
            expires_at: decode_time(message.lease_expires_at)?
                .ok_or_else(|| broken("lease_expires_at is absent"))?,
        })
    }
}

impl Page {
    pub(crate) fn decode(message: runtime::ListPayloadsResponse) -> Result<Self, ClientError> {
        let nodes = message.payloads.iter().map(|payload| payload.node_id.clone()).collect();
        let rows = message.payloads.into_iter().map(decode_summary).collect::<Result<_, _>>()?;
        Ok(Self {
            rows,
            nodes,
            next_page_token: Some(message.next_page_token).filter(|token| !token.is_empty()),
            total_count: u64::try_from(message.total_count).unwrap_or_default(),
        })
    }
}

/// Where the bytes lie, for who is about to map them.
pub(crate) fn location_of(descriptor: &Descriptor) -> Result<&Location, ClientError> {
    descriptor.location.as_ref().ok_or_else(|| {
        ClientError::Mapping(format!(
            "tier {} gives no location that this program can map; ask for RAM or DISK",
            descriptor.tier
        ))
    })
}

/// A payload id of an answer, checked.
pub(crate) fn decode_id(message: Option<&core::PayloadId>) -> Result<PayloadId, ClientError> {
    ids::payload_id(message).map_err(broken_field)
}

/// `EvictionPolicy`, to be sent; unset when nothing was asked for.
pub(crate) fn encode_policy(policy: &EvictionPolicy) -> Option<core::EvictionPolicy> {
    (*policy != EvictionPolicy::default()).then(|| core::EvictionPolicy {
        priority: enums::eviction_priority_to_pb(policy.priority).into(),
        require_durable: policy.require_durable,
        spill_target: enums::spill_target_to_pb(policy.spill_target).into(),
        min_residency_tier: encode_tier(policy.min_residency),
    })
}

/// A tier's number; `None` is UNSPECIFIED.
pub(crate) fn encode_tier(tier: Option<Tier>) -> i32 {
    enums::spill_target_to_pb(tier.map(SpillTarget::Tier)).into()
}

pub(crate) fn broken(what: &str) -> ClientError {
    ClientError::Contract(what.to_owned())
}

fn broken_field(error: PayloadError) -> ClientError {
    ClientError::Contract(error.message)
}

fn decode_tier(number: i32) -> Result<Tier, ClientError> {
    enums::tier_required("tier", number).map_err(broken_field)
}

fn decode_state(number: i32) -> Result<PayloadState, ClientError> {
    PayloadState::from_number(number.into())
        .filter(|state| *state != PayloadState::Committing)
        .ok_or_else(|| broken(&format!("a payload has state number {number}")))
}

fn decode_location(location: core::payload_descriptor::Location, tier: Tier) -> Location {
    use core::payload_descriptor::Location as Wire;
    match location {
        Wire::Ram(ram) => Location::Segment {
            shm_name: ram.shm_name,
            slab_id: ram.slab_id,
            block_index: ram.block_index,
            length: ByteCount(ram.length_bytes),
        },
        // The contract has no location of its own for objects (behaviour.md, ResolveSnapshot).
        Wire::Disk(disk) if tier == Tier::Object => {
            Location::Object { uri: disk.path, length: ByteCount(disk.length_bytes) }
        }
        Wire::Disk(disk) => Location::File {
            path: disk.path.into(),
            offset: disk.offset_bytes,
            length: ByteCount(disk.length_bytes),
        },
        Wire::Gpu(gpu) => Location::Gpu {
            device_id: gpu.device_id,
            // Every start of ours names it.
            own: gpu.device_uuid.as_slice().try_into().ok().map(|device_uuid| OwnGpu {
                generation: Generation(gpu.generation),
                arena: gpu.arena_id,
                offset: gpu.offset_bytes,
                allocation: ByteCount(gpu.allocation_bytes),
                device_uuid,
            }),
            ipc_handle: gpu.ipc_handle,
            length: ByteCount(gpu.length_bytes),
        },
    }
}

/// A moment; `None` when it is not set.
pub(crate) fn decode_time(message: Option<prost_types::Timestamp>) -> Result<Option<WallMs>, ClientError> {
    let Some(time) = message else { return Ok(None) };
    let wrong = || broken(&format!("a time has {} seconds and {} nanoseconds", time.seconds, time.nanos));
    let seconds = u64::try_from(time.seconds).map_err(|_| wrong())?;
    let nanos = u64::try_from(time.nanos).ok().filter(|nanos| *nanos < 1_000_000_000).ok_or_else(wrong)?;
    let millis = seconds.checked_mul(1_000).and_then(|millis| millis.checked_add(nanos / 1_000_000));
    millis.map(WallMs::from_millis).filter(|time| *time <= WallMs::MAX).map(Some).ok_or_else(wrong)
}

fn decode_policy(message: Option<core::EvictionPolicy>) -> Result<EvictionPolicy, ClientError> {
    let Some(message) = message else { return Ok(EvictionPolicy::default()) };
    Ok(EvictionPolicy {
        priority: enums::eviction_priority("priority", message.priority).map_err(broken_field)?,
        require_durable: message.require_durable,
        spill_target: enums::tier_or_void("spill_target", message.spill_target).map_err(broken_field)?,
        min_residency: enums::tier_optional("min_residency_tier", message.min_residency_tier)
            .map_err(broken_field)?,
    })
}

pub(crate) fn decode_summary(message: runtime::PayloadSummary) -> Result<Summary, ClientError> {
    Ok(Summary {
        id: decode_id(message.id.as_ref())?,
        tier: decode_tier(message.tier)?,
        state: decode_state(message.state)?,
        size: ByteCount(message.size_bytes),
        created_at: WallMs::from_millis(message.created_at_ms),
        expires_at: Some(message.expires_at_ms).filter(|millis| *millis != 0).map(WallMs::from_millis),
        leases: message.active_leases,
    })
}

#[cfg(test)]
mod tests {
    use payload_types::EvictionPriority;

    use super::*;

    fn ram_descriptor() -> core::PayloadDescriptor {
        core::PayloadDescriptor {
            payload_id: Some(ids::payload_id_to_pb(PayloadId::from_bytes([7; 16]))),
            tier: Tier::Ram as i32,
            state: PayloadState::Active as i32,
            version: 3,
            location: Some(core::payload_descriptor::Location::Ram(core::RamLocation {
                shm_name: "/pm-x".to_owned(),
                length_bytes: 10,
                ..Default::default()
            })),
            ..Default::default()
        }
    }

    #[test]
    fn given_another_servers_descriptor_when_decoded_then_size_comes_from_the_location() {
        let descriptor = Descriptor::decode(Some(ram_descriptor())).expect("valid");
        assert_eq!(
            (descriptor.size, descriptor.checksum, descriptor.created_at),
            (ByteCount(10), None, None)
        );
    }

    #[test]
    fn given_answers_that_break_the_contract_when_decoded_then_refused() {
        let cases: [fn(&mut core::PayloadDescriptor); 7] = [
            |message| message.payload_id = None,
            |message| message.payload_id = Some(core::PayloadId { value: vec![0; 15] }),
            |message| message.tier = 0,
            |message| message.state = 9,
            |message| message.size_bytes = 11,
            |message| message.created_at = Some(prost_types::Timestamp { seconds: -1, nanos: 0 }),
            |message| {
                message.eviction_policy = Some(core::EvictionPolicy { priority: 77, ..Default::default() });
            },
        ];
        for (index, spoil) in cases.into_iter().enumerate() {
            let mut message = ram_descriptor();
            spoil(&mut message);
            let error = Descriptor::decode(Some(message)).expect_err("spoiled");
            assert!(matches!(error, ClientError::Contract(_)), "case {index}: {error:?}");
        }
        assert!(Descriptor::decode(None).is_err());
    }

    #[test]
    fn given_a_policy_when_sent_and_read_back_then_it_is_the_same() {
        let policy = EvictionPolicy {
            priority: EvictionPriority::High,
            require_durable: true,
            spill_target: Some(SpillTarget::Tier(Tier::Disk)),
            min_residency: Some(Tier::Object),
        };
        assert_eq!(decode_policy(encode_policy(&policy)).expect("own encoding"), policy);
        let void = EvictionPolicy { spill_target: Some(SpillTarget::Void), ..Default::default() };
        assert_eq!(decode_policy(encode_policy(&void)).expect("own encoding"), void);
        assert_eq!(encode_policy(&EvictionPolicy::default()), None);
    }
}
