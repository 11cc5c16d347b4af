//! Rows to test with.

use payload_catalog::Change;
use payload_types::effect::{CatalogChange, CatalogOp};
use payload_types::policy::EvictionPriority;
use payload_types::tier::SpillTarget;
use payload_types::{
    ByteCount, Checksum, Epoch, EvictionPolicy, Extent, Generation, Health, NamespaceId, OpId, PayloadId,
    PayloadKey, PayloadRow, PayloadState, Pin, ReplicaRow, ShardIndex, Tier, Version, WallMs,
};

/// The key number `number`; greater numbers are later.
pub fn key(number: u64) -> PayloadKey {
    PayloadKey {
        namespace: NamespaceId::DEFAULT,
        id: PayloadId::mint((1_763_000_000_000 << 12) + number, number.wrapping_mul(0x9E37_79B9_7F4A_7C15)),
    }
}

/// A plain row, written in epoch 1 with version 2.
pub fn row(number: u64) -> PayloadRow {
    PayloadRow {
        key: key(number),
        size: ByteCount(1 << 20),
        state: PayloadState::Active,
        version: Version(2),
        epoch: Epoch(1),
        created_at: WallMs::from_millis(1_763_000_000_000 + number),
        expires_at: None,
        no_evict: false,
        policy: EvictionPolicy::default(),
        checksum: None,
        pin: Pin::None,
        health: Health::Good,
        replicas: vec![ReplicaRow {
            tier: Tier::Ram,
            generation: Generation::new(Epoch(1), number),
            synced: false,
            sound: true,
            extent: None,
        }],
    }
}

/// A row that differs from [`row`] in every field, drawn from `number`: over 60 of them every variant appears.
pub fn varied(number: u64) -> PayloadRow {
    let pick = |salt: u64, count: u64| (number.wrapping_mul(2 * salt + 1) >> 1) % count;
    let priorities = [
        EvictionPriority::Unspecified,
        EvictionPriority::Low,
        EvictionPriority::Normal,
        EvictionPriority::High,
        EvictionPriority::Never,
    ];
    let targets = [
        None,
        Some(SpillTarget::Void),
        Some(SpillTarget::Tier(Tier::Ram)),
        Some(SpillTarget::Tier(Tier::Disk)),
        Some(SpillTarget::Tier(Tier::Object)),
    ];
    let tiers = [None, Some(Tier::Gpu), Some(Tier::Ram), Some(Tier::Disk), Some(Tier::Object)];
    PayloadRow {
        key: key(number),
        size: ByteCount(number * 4097 + 1),
        state: PayloadState::ALL[number as usize % PayloadState::ALL.len()],
        version: Version(number + 3),
        epoch: Epoch(1 + number as u32 % 5),
        created_at: WallMs::from_millis(number),
        expires_at: (!number.is_multiple_of(3)).then(|| WallMs::from_millis(number * 7)),
        no_evict: number.is_multiple_of(2),
        policy: EvictionPolicy {
            priority: priorities[pick(1, 5) as usize],
            require_durable: number % 5 < 2,
            spill_target: targets[pick(2, 5) as usize],
            min_residency: tiers[pick(3, 5) as usize],
        },
        checksum: (!number.is_multiple_of(4)).then(|| Checksum(number.wrapping_mul(0xC2B2_AE3D_27D4_EB4F))),
        pin: [Pin::None, Pin::Forever, Pin::Until(WallMs::from_millis(number + 1))][number as usize % 3],
        health: [Health::Good, Health::Lost, Health::Damaged][pick(4, 3) as usize],
        // Every subset of the tiers, in order.
        replicas: Tier::ALL
            .into_iter()
            .filter(|tier| number >> (*tier as u64 - 1) & 1 == 1)
            .map(|tier| ReplicaRow {
                tier,
                generation: Generation::new(Epoch(9), number * 4 + tier as u64),
                synced: !number.is_multiple_of(3),
                sound: pick(4 + tier as u64, 7) > 0,
                // Every fourth lies in a file of its own, and some numbers are negative in the catalog.
                extent: (tier == Tier::Disk && pick(9, 4) > 0)
                    .then(|| Extent::from_bits(number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1 << 32))
                    .flatten(),
            })
            .collect(),
    }
}

/// The change that stores the row.
pub fn put(row: PayloadRow) -> Change {
    CatalogChange::Put(Box::new(row)).into()
}

/// The change that removes key `number` in `epoch`.
pub fn remove(number: u64, epoch: u32) -> Change {
    CatalogChange::Remove { key: key(number), epoch: Epoch(epoch) }.into()
}

/// An op of shard 3 in slot `slot`.
pub fn op(slot: u32, change: Change) -> CatalogOp {
    let Change::Row(change) = change else { panic!("ops change rows") };
    CatalogOp { shard: ShardIndex(3), op: OpId { index: slot, generation: 1 }, change, batch: None }
}
