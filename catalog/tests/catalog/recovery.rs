//! Boot recovery.

use payload_catalog::{MemoryStore, Store, distribute, partition};

use crate::rows::{put, row};

#[test]
fn given_rows_when_recovered_with_any_shard_count_then_each_is_in_the_shard_that_its_id_routes_to() {
    let mut store = MemoryStore::new();
    store.apply(&(0..2_000).map(|number| put(row(number))).collect::<Vec<_>>()).expect("stored");
    for shard_count in [1, 2, 7, 256] {
        let shards = partition(&mut store, shard_count).expect("recovered");
        assert_eq!(shards.len(), usize::from(shard_count));
        assert_eq!(shards.iter().map(Vec::len).sum::<usize>(), 2_000);
        for (index, rows) in (0..).zip(&shards) {
            assert!(rows.iter().all(|row| row.key.id.shard(shard_count).0 == index));
            assert!(rows.is_sorted_by_key(|row| row.key));
        }
        let mut given = 0;
        let counted = distribute(&mut store, shard_count, &mut |shard, row| {
            assert_eq!(row.key.id.shard(shard_count), shard);
            given += 1;
        });
        assert_eq!((counted, given), (Ok(2_000), 2_000));
    }
}
