//! Rows of the catalog become payloads of shards: which of their bytes are still there is asked of the drivers.
//!
//! ```text
//! Store::load --row--> shard by hash of its id --verify each replica--> Shard::adopt -> Live | Lost | Expired
//! then: Drivers::reclaim removes what the intent logs name and no row vouched for
//! ```
//!
//! Runs before anything serves, on one thread: nobody else touches store, drivers or shards yet.

use payload_catalog::Store;
use payload_drivers::Drivers;
use payload_shards::{Adopted, Shard};
use payload_types::effect::ReplicaRef;
use payload_types::{Now, PayloadRow, PerTier};

/// Ids of lost payloads that are logged one by one; the rest are counted. A log of a million lines helps nobody.
const LOST_NAMED_MAX: u64 = 20;

/// What a boot found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Recovered {
    /// Payloads that are served again.
    pub live: u64,
    /// Payloads whose bytes did not survive: NOT_FOUND with the reason LOST.
    pub lost: u64,
    /// Payloads whose ttl passed meanwhile; they are being removed.
    pub expired: u64,
}

/// Gives every row of `store` to its shard.
///
/// # Errors
/// When the store cannot be read; the sentence is its own.
pub fn rows_adopt(
    store: &mut dyn Store,
    drivers: &Drivers,
    shards: &mut [Shard],
    now: Now,
) -> anyhow::Result<Recovered> {
    let shard_count = u16::try_from(shards.len()).expect("limits::SHARD_COUNT_MAX fits");
    let mut found = Recovered::default();
    store.load(&mut |row: PayloadRow| {
        let present = replicas_verify(drivers, &row);
        let id = row.key.id;
        let shard = &mut shards[usize::from(id.shard(shard_count).0)];
        match shard.adopt(now, row, present) {
            Adopted::Live => found.live += 1,
            Adopted::Expired => found.expired += 1,
            Adopted::Lost => {
                found.lost += 1;
                if found.lost <= LOST_NAMED_MAX {
                    tracing::warn!(%id, "payload is LOST: its bytes did not survive the restart");
                }
            }
        }
    })?;
    if found.lost > LOST_NAMED_MAX {
        tracing::warn!(
            lost = found.lost,
            named = LOST_NAMED_MAX,
            "more payloads are LOST than are named above"
        );
    }
    Ok(found)
}

/// Which of the row's replicas the drivers find, whole and of this boot.
fn replicas_verify(drivers: &Drivers, row: &PayloadRow) -> PerTier<bool> {
    let mut present = PerTier::default();
    for replica in &row.replicas {
        present[replica.tier] = drivers.verify(&ReplicaRef {
            tier: replica.tier,
            id: row.key.id,
            generation: replica.generation,
            size: row.size,
        });
    }
    present
}
