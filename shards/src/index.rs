//! From a 64-bit hash to a slot number, without a long pause when it grows.
//!
//! One large hash table doubles by moving all it holds: tens of milliseconds at 10^6 entries. This one is 512 small
//! tables chosen by the upper bits of the hash; each doubles on its own, at most some thousand entries at a time.

use hashbrown::HashTable;

/// 512 headers stay in a core's first cache, and at 10^7 entries one table doubles in about 0.2 ms.
const TABLES: usize = 512;
const TABLE_SHIFT: u32 = 64 - TABLES.trailing_zeros();

/// A map whose keys live with its values: the caller supplies hash and equality.
#[derive(Debug)]
pub struct Index {
    tables: Vec<HashTable<(u32, u32)>>,
    len: usize,
}

impl Default for Index {
    fn default() -> Self {
        Self::new()
    }
}

impl Index {
    /// An empty index.
    pub fn new() -> Self {
        Self { tables: (0..TABLES).map(|_| HashTable::new()).collect(), len: 0 }
    }

    /// Entries held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The slot with this hash for which `is_it` says yes.
    pub fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        // Half of the hash is kept beside the slot, so that a miss rarely touches the record.
        let tag = hash as u32;
        self.table(hash)
            .find(spread(tag), |(slot, other)| *other == tag && is_it(*slot))
            .map(|(slot, _)| *slot)
    }

    /// Adds a slot. The caller has checked that its key is not there.
    pub fn insert(&mut self, hash: u64, slot: u32) {
        // Only the lower half is stored, so growth rehashes with it. The upper bits that chose the table are the same
        // for all its entries; hashbrown takes its tag from the top bits, so the lower half is spread over all 64.
        self.table_mut(hash).insert_unique(spread(hash as u32), (slot, hash as u32), |(_, tag)| spread(*tag));
        self.len += 1;
    }

    /// Removes a slot; false when it was not there.
    pub fn remove(&mut self, hash: u64, slot: u32) -> bool {
        let found = self.table_mut(hash).find_entry(spread(hash as u32), |(other, _)| *other == slot);
        let Ok(entry) = found else { return false };
        entry.remove();
        self.len -= 1;
        true
    }

    fn table(&self, hash: u64) -> &HashTable<(u32, u32)> {
        &self.tables[(hash >> TABLE_SHIFT) as usize]
    }

    fn table_mut(&mut self, hash: u64) -> &mut HashTable<(u32, u32)> {
        &mut self.tables[(hash >> TABLE_SHIFT) as usize]
    }
}

/// Spreads 32 well-mixed bits over 64 (Fibonacci hashing; Knuth, TAOCP 6.4).
fn spread(tag: u32) -> u64 {
    u64::from(tag).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_many_entries_when_looked_up_then_each_finds_itself_and_removed_ones_nothing() {
        let hash = |key: u64| key.wrapping_mul(0xD6E8_FEB8_6659_FD93) ^ (key << 40);
        let mut index = Index::new();
        for key in 0..100_000u64 {
            index.insert(hash(key), key as u32);
        }
        assert!(
            (0..100_000u64).all(|key| index.find(hash(key), |slot| slot == key as u32) == Some(key as u32))
        );
        assert!((0..50_000u64).all(|key| index.remove(hash(key), key as u32)));
        assert!(!index.remove(hash(1), 1));
        assert!((0..50_000u64).all(|key| index.find(hash(key), |slot| slot == key as u32).is_none()));
        assert_eq!(index.len(), 50_000);
    }
}
