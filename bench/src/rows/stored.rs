//! What a catalog holds for a payload that is at rest on disk: the rows that `boot/1e6` and `memory/payload` make.

use payload_types::{
    ByteCount, Checksum, Epoch, EvictionPolicy, Generation, Health, NamespaceId, PayloadId, PayloadKey,
    PayloadRow, PayloadState, Pin, ReplicaRow, Tier, Version, WallMs, limits,
};

/// Bytes of each payload: a page.
pub const PAYLOAD_BYTES: u64 = limits::PAGE_BYTES;

/// The row of payload `number`: DURABLE, one synced replica made in `epoch`.
pub fn row(
    id: PayloadId,
    number: u64,
    epoch: Epoch,
    created_at: WallMs,
    expires_at: Option<WallMs>,
) -> PayloadRow {
    PayloadRow {
        key: PayloadKey { namespace: NamespaceId::DEFAULT, id },
        size: ByteCount(PAYLOAD_BYTES),
        state: PayloadState::Durable,
        version: Version(3),
        epoch,
        created_at,
        expires_at,
        no_evict: false,
        policy: EvictionPolicy::default(),
        checksum: Some(Checksum(number)),
        pin: Pin::None,
        health: Health::Good,
        replicas: vec![ReplicaRow {
            tier: Tier::Disk,
            generation: Generation::new(epoch, number + 1),
            synced: true,
            sound: true,
            extent: None,
        }],
    }
}
