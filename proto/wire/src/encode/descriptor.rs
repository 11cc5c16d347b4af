//! Descriptors, and the responses that carry one.

use payload_types::reply::LeaseGrant;
use payload_types::{Descriptor, EvictionPolicy, Foreign, GpuPlace, Location, PayloadError, PayloadId};

use super::{Locate, timestamp};
use crate::pb::core::v1 as core;
use crate::pb::core::v1::payload_descriptor::Location as PbLocation;
use crate::pb::runtime::v1 as pb;
use crate::{enums, ids};

/// A payload as the contract shows it. The eviction policy is always there, whatever was given at Allocate.
pub fn descriptor(payload: &Descriptor, locate: &impl Locate) -> core::PayloadDescriptor {
    let (name, address) = locate.node().unwrap_or_default();
    core::PayloadDescriptor {
        location: payload.location.and_then(|location| place(payload, location, locate)),
        node_id: name.to_owned(),
        node_address: address.to_owned(),
        ..placeless(payload)
    }
}

/// A payload of another node, as its row describes it.
pub fn foreign(payload: &Foreign) -> core::PayloadDescriptor {
    core::PayloadDescriptor {
        node_id: payload.node.name.clone(),
        node_address: payload.node.address.clone(),
        ..placeless(&payload.descriptor)
    }
}

/// The answer to ResolveSnapshot for a payload of another node.
pub fn resolved_foreign(payload: &Foreign) -> pb::ResolveSnapshotResponse {
    pb::ResolveSnapshotResponse { payload_descriptor: Some(foreign(payload)) }
}

fn placeless(payload: &Descriptor) -> core::PayloadDescriptor {
    core::PayloadDescriptor {
        payload_id: Some(ids::payload_id_to_pb(payload.id)),
        tier: enums::tier_to_pb(payload.tier).into(),
        state: enums::state_to_pb(payload.state).into(),
        version: payload.version.0,
        created_at: Some(timestamp(payload.created_at)),
        expires_at: payload.expires_at.map(timestamp),
        eviction_policy: Some(eviction_policy(payload.policy)),
        checksum_xxh3_64: payload.checksum.map(|checksum| checksum.0),
        size_bytes: payload.size.0,
        location: None,
        node_id: String::new(),
        node_address: String::new(),
    }
}

/// Where the shown replica lies: in a segment or file of its own from offset 0 on, or in a part of a segment file.
fn place(payload: &Descriptor, location: Location, locate: &impl Locate) -> Option<PbLocation> {
    Some(match location {
        // It has no name that a client without a session could open: a lease of such a one copies it first.
        Location::Arena(_) => return None,
        Location::Gpu(generation) => PbLocation::Gpu(gpu(&locate.gpu(payload.id, generation)?)),
        Location::Segment => PbLocation::Ram(core::RamLocation {
            shm_name: locate.shm_name(payload.id),
            slab_id: 0,
            block_index: 0,
            length_bytes: payload.size.0,
        }),
        Location::File(generation) => PbLocation::Disk(core::DiskLocation {
            path: locate.disk_path(payload.id, generation),
            offset_bytes: 0,
            length_bytes: payload.size.0,
        }),
        Location::Object => PbLocation::Disk(core::DiskLocation {
            path: locate.object_uri(payload.id),
            offset_bytes: 0,
            length_bytes: payload.size.0,
        }),
        Location::Packed(extent) => PbLocation::Disk(core::DiskLocation {
            path: locate.segment_path(extent.file),
            offset_bytes: extent.offset_bytes(),
            length_bytes: payload.size.0,
        }),
    })
}

/// Device memory. Where its allocation cannot be opened by a handle, that is empty: sessions are sent a descriptor.
fn gpu(place: &GpuPlace) -> core::GpuLocation {
    core::GpuLocation {
        device_id: place.device.0,
        ipc_handle: place.sized_handle().map(Vec::from).unwrap_or_default(),
        length_bytes: place.size.0,
        generation: place.generation.0,
        arena_id: place.arena.map_or(0, |arena| arena.0),
        offset_bytes: place.offset,
        allocation_bytes: place.allocation.0,
        device_uuid: place.device_uuid.to_vec(),
    }
}

fn eviction_policy(policy: EvictionPolicy) -> core::EvictionPolicy {
    core::EvictionPolicy {
        priority: enums::eviction_priority_to_pb(policy.priority).into(),
        require_durable: policy.require_durable,
        spill_target: enums::spill_target_to_pb(policy.spill_target).into(),
        min_residency_tier: policy.min_residency.map_or(core::Tier::Unspecified, enums::tier_to_pb).into(),
    }
}

/// The answer to AllocatePayload: where the bytes are written in place, or where they are to be uploaded.
pub fn allocated(payload: &Descriptor, locate: &impl Locate) -> pb::AllocatePayloadResponse {
    if payload.location == Some(Location::Object) {
        let placeless = Descriptor { location: None, ..payload.clone() };
        return pb::AllocatePayloadResponse {
            payload_descriptor: Some(descriptor(&placeless, locate)),
            object_upload_path: locate.object_uri(payload.id),
            ..Default::default()
        };
    }
    pb::AllocatePayloadResponse {
        payload_descriptor: Some(descriptor(payload, locate)),
        ..Default::default()
    }
}

/// The answer to CommitPayload.
pub fn committed(payload: &Descriptor, locate: &impl Locate) -> pb::CommitPayloadResponse {
    pb::CommitPayloadResponse { payload_descriptor: Some(descriptor(payload, locate)) }
}

/// The answer to ResolveSnapshot.
pub fn resolved(payload: &Descriptor, locate: &impl Locate) -> pb::ResolveSnapshotResponse {
    pb::ResolveSnapshotResponse { payload_descriptor: Some(descriptor(payload, locate)) }
}

/// The answer to Promote.
pub fn promoted(payload: &Descriptor, locate: &impl Locate) -> pb::PromoteResponse {
    pb::PromoteResponse { payload_descriptor: Some(descriptor(payload, locate)) }
}

/// The answer to AcquireReadLease.
pub fn leased(grant: &LeaseGrant, locate: &impl Locate) -> pb::AcquireReadLeaseResponse {
    pb::AcquireReadLeaseResponse {
        payload_descriptor: Some(descriptor(&grant.descriptor, locate)),
        lease_id: Some(ids::lease_id_to_pb(grant.lease)),
        lease_expires_at: Some(timestamp(grant.expires_at)),
        object_url: String::new(),
    }
}

/// One result of Spill: the payload where it is now, nothing when it was discarded, or why it did not move.
pub fn spill_result(
    id: PayloadId,
    outcome: &Result<Option<Descriptor>, PayloadError>,
    locate: &impl Locate,
) -> pb::spill_response::Result {
    let id = Some(ids::payload_id_to_pb(id));
    match outcome {
        Ok(payload) => pb::spill_response::Result {
            id,
            ok: true,
            error_message: String::new(),
            payload_descriptor: payload.as_ref().map(|payload| descriptor(payload, locate)),
        },
        Err(error) => pb::spill_response::Result {
            id,
            ok: false,
            error_message: error.to_string(),
            payload_descriptor: None,
        },
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use payload_types::tier::SpillTarget;
    use payload_types::{
        ByteCount, Checksum, DeviceId, EvictionPriority, Extent, Generation, IpcHandle, LeaseId, LeaseNonce,
        OtherNode, PayloadState, ShardIndex, Tier, Version, WallMs,
    };

    use super::*;

    /// Where a test's payloads are.
    pub(crate) struct Names;

    impl Locate for Names {
        fn shm_name(&self, id: PayloadId) -> String {
            format!("/pm-{id}")
        }
        fn disk_path(&self, id: PayloadId, generation: Generation) -> String {
            format!("/data/{id}.{}", generation.0)
        }
        fn segment_path(&self, file: std::num::NonZeroU32) -> String {
            format!("/data/{file}.seg")
        }
    }

    fn payload() -> Descriptor {
        Descriptor {
            id: PayloadId::from_bytes([1; 16]),
            tier: Tier::Ram,
            state: PayloadState::Active,
            location: Some(Location::Segment),
            size: ByteCount(640),
            version: Version(2),
            created_at: WallMs::from_millis(1_500),
            expires_at: Some(WallMs::from_millis(2_000)),
            policy: EvictionPolicy::default(),
            checksum: Some(Checksum(7)),
        }
    }

    const ID_TEXT: &str = "01010101-0101-0101-0101-010101010101";

    #[test]
    fn given_a_segment_when_shown_then_it_is_the_whole_of_a_named_object() {
        let shown = descriptor(&payload(), &Names);
        let expected = core::PayloadDescriptor {
            payload_id: Some(core::PayloadId { value: vec![1; 16] }),
            tier: core::Tier::Ram.into(),
            state: core::PayloadState::Active.into(),
            version: 2,
            created_at: Some(prost_types::Timestamp { seconds: 1, nanos: 500_000_000 }),
            expires_at: Some(prost_types::Timestamp { seconds: 2, nanos: 0 }),
            eviction_policy: Some(core::EvictionPolicy::default()),
            checksum_xxh3_64: Some(7),
            size_bytes: 640,
            location: Some(PbLocation::Ram(core::RamLocation {
                shm_name: format!("/pm-{ID_TEXT}"),
                slab_id: 0,
                block_index: 0,
                length_bytes: 640,
            })),
            node_id: String::new(),
            node_address: String::new(),
        };
        assert_eq!(shown, expected);
    }

    #[test]
    fn given_nodes_that_share_a_catalog_when_shown_then_each_descriptor_names_its_own() {
        struct Shared;
        impl Locate for Shared {
            fn shm_name(&self, id: PayloadId) -> String {
                Names.shm_name(id)
            }
            fn disk_path(&self, id: PayloadId, generation: Generation) -> String {
                Names.disk_path(id, generation)
            }
            fn segment_path(&self, file: std::num::NonZeroU32) -> String {
                Names.segment_path(file)
            }
            fn node(&self) -> Option<(&str, &str)> {
                Some(("one", "h1:1"))
            }
        }
        let own = descriptor(&payload(), &Shared);
        assert_eq!((own.node_id.as_str(), own.node_address.as_str()), ("one", "h1:1"));
        assert!(own.location.is_some());
        let node = OtherNode { name: "two".to_owned(), address: "h2:2".to_owned(), silent_ms: None };
        let theirs = foreign(&Foreign { descriptor: payload(), is_lost: false, node: Arc::new(node) });
        assert_eq!((theirs.node_id.as_str(), theirs.node_address.as_str()), ("two", "h2:2"));
        assert_eq!(theirs.location, None, "its bytes are not this node's to show");
        assert_eq!((theirs.payload_id, theirs.version, theirs.size_bytes), (own.payload_id, 2, 640));
    }

    #[test]
    fn given_a_file_when_shown_then_its_path_follows_from_the_generation() {
        let on_disk =
            Descriptor { tier: Tier::Disk, location: Some(Location::File(Generation(9))), ..payload() };
        let expected =
            core::DiskLocation { path: format!("/data/{ID_TEXT}.9"), offset_bytes: 0, length_bytes: 640 };
        assert_eq!(descriptor(&on_disk, &Names).location, Some(PbLocation::Disk(expected)));
    }

    #[test]
    fn given_a_part_of_a_segment_file_when_shown_then_its_offset_is_at_a_page_and_its_length_is_the_payloads()
    {
        let extent = Extent::from_bits(7 << 32 | 65_600).expect("an extent");
        let packed = Descriptor { tier: Tier::Disk, location: Some(Location::Packed(extent)), ..payload() };
        let expected = core::DiskLocation {
            path: "/data/7.seg".to_owned(),
            offset_bytes: 65_600 * 4096,
            length_bytes: 640,
        };
        assert_eq!(descriptor(&packed, &Names).location, Some(PbLocation::Disk(expected)));
    }

    #[test]
    fn given_device_memory_when_shown_then_its_handle_has_72_bytes_and_what_is_gone_has_no_location() {
        struct Devices;
        impl Locate for Devices {
            fn shm_name(&self, id: PayloadId) -> String {
                Names.shm_name(id)
            }
            fn disk_path(&self, id: PayloadId, generation: Generation) -> String {
                Names.disk_path(id, generation)
            }
            fn segment_path(&self, file: std::num::NonZeroU32) -> String {
                Names.segment_path(file)
            }
            fn gpu(&self, id: PayloadId, generation: Generation) -> Option<GpuPlace> {
                assert_eq!((id, generation), (payload().id, Generation(9)));
                Some(GpuPlace {
                    device: DeviceId(3),
                    device_uuid: [5; 16],
                    generation,
                    size: ByteCount(640),
                    arena: None,
                    offset: 0,
                    allocation: ByteCount(640),
                    handle: Some(IpcHandle([8; 64])),
                })
            }
        }
        let there = Descriptor { tier: Tier::Gpu, location: Some(Location::Gpu(Generation(9))), ..payload() };
        let ipc_handle = [&640_i64.to_le_bytes()[..], &[8; 64]].concat();
        let expected = core::GpuLocation {
            device_id: 3,
            ipc_handle,
            length_bytes: 640,
            generation: 9,
            arena_id: 0,
            offset_bytes: 0,
            allocation_bytes: 640,
            device_uuid: vec![5; 16],
        };
        assert_eq!(descriptor(&there, &Devices).location, Some(PbLocation::Gpu(expected)));
        assert_eq!(descriptor(&there, &Names).location, None);
    }

    #[test]
    fn given_a_payload_being_committed_when_shown_then_it_is_allocated_and_what_is_unknown_is_absent() {
        let early = Descriptor {
            state: PayloadState::Committing,
            location: None,
            expires_at: None,
            checksum: None,
            ..payload()
        };
        let shown = descriptor(&early, &Names);
        assert_eq!(shown.state(), core::PayloadState::Allocated);
        assert_eq!((shown.location, shown.expires_at, shown.checksum_xxh3_64), (None, None, None));
        assert_eq!(shown.size_bytes, 640, "the size is known without a location");
    }

    #[test]
    fn given_a_policy_when_shown_then_it_is_as_given() {
        let policy = EvictionPolicy {
            priority: EvictionPriority::Never,
            require_durable: true,
            spill_target: Some(SpillTarget::Tier(Tier::Object)),
            min_residency: Some(Tier::Object),
        };
        let shown =
            descriptor(&Descriptor { policy, ..payload() }, &Names).eviction_policy.expect("always there");
        assert_eq!(shown.priority(), core::EvictionPriority::Never);
        assert!(shown.require_durable);
        assert_eq!(
            (shown.spill_target(), shown.min_residency_tier()),
            (core::Tier::Object, core::Tier::Object)
        );
        let discarding = EvictionPolicy { spill_target: Some(SpillTarget::Void), ..Default::default() };
        assert_eq!(eviction_policy(discarding).spill_target(), core::Tier::Void);
    }

    #[test]
    fn given_replies_when_encoded_then_each_carries_the_same_descriptor() {
        let shown = Some(descriptor(&payload(), &Names));
        let allocation = allocated(&payload(), &Names);
        assert_eq!(
            (allocation.payload_descriptor, allocation.object_upload_path),
            (shown.clone(), String::new())
        );
        assert_eq!(committed(&payload(), &Names).payload_descriptor, shown);
        assert_eq!(resolved(&payload(), &Names).payload_descriptor, shown);
        assert_eq!(promoted(&payload(), &Names).payload_descriptor, shown);
        let lease = LeaseId::new(ShardIndex(3), 4, LeaseNonce([5; 10]));
        let grant = LeaseGrant { lease, descriptor: payload(), expires_at: WallMs::from_millis(9_000) };
        let response = leased(&grant, &Names);
        assert_eq!(response.payload_descriptor, shown);
        assert_eq!(response.lease_id, Some(ids::lease_id_to_pb(lease)));
        assert_eq!(response.lease_expires_at, Some(prost_types::Timestamp { seconds: 9, nanos: 0 }));
    }

    #[test]
    fn given_outcomes_of_a_spill_when_encoded_then_moved_discarded_and_refused_differ() {
        let id = payload().id;
        let moved = spill_result(id, &Ok(Some(payload())), &Names);
        assert!(moved.ok && moved.payload_descriptor.is_some() && moved.error_message.is_empty());
        let discarded = spill_result(id, &Ok(None), &Names);
        assert!(discarded.ok && discarded.payload_descriptor.is_none());
        let refused = spill_result(id, &Err(PayloadError::precondition("it is pinned; unpin it")), &Names);
        assert!(!refused.ok && refused.payload_descriptor.is_none());
        assert_eq!(refused.error_message, "it is pinned; unpin it");
        assert_eq!(refused.id, Some(ids::payload_id_to_pb(id)));
    }
}
