//! Boot recovery: every row of a store, handed to the shard that owns it now. Nothing stored depends on the number
//! of shards, so it may differ from the last start's.

use payload_types::{PayloadRow, ShardIndex};

use crate::error::StoreError;
use crate::store::Store;

/// Gives every row to `each` with its shard, in the order of keys, and returns how many there were. Holds one row in
/// memory at a time: the way to adopt 10^6 payloads without having them twice.
///
/// # Errors
/// As [`Store::load`].
///
/// # Panics
/// When `shard_count` is 0.
pub fn distribute(
    store: &mut dyn Store,
    shard_count: u16,
    each: &mut dyn FnMut(ShardIndex, PayloadRow),
) -> Result<u64, StoreError> {
    let mut count = 0;
    store.load(&mut |row| {
        count += 1;
        each(row.key.id.shard(shard_count), row);
    })?;
    Ok(count)
}

/// All rows, one list a shard, each in the order of keys.
///
/// # Errors
/// As [`Store::load`].
///
/// # Panics
/// When `shard_count` is 0.
pub fn partition(store: &mut dyn Store, shard_count: u16) -> Result<Vec<Vec<PayloadRow>>, StoreError> {
    let mut shards = vec![Vec::new(); usize::from(shard_count)];
    distribute(store, shard_count, &mut |shard, row| shards[usize::from(shard.0)].push(row))?;
    Ok(shards)
}
