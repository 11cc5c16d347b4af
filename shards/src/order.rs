//! The payloads of one tier in the order of their keys, for listings: five bytes each, where a map from key to slot took
//! fifty.
//!
//! ```text
//! blocks:  least key -> [slot, slot, ...]   at most 64 slots, their keys ascending, none below the least key
//! ```
//! Only slots are kept; a slot's key is in its record, and callers lend a way to look there. Ids grow with time, so a
//! new payload nearly always goes to the end, which costs one look at a record; anywhere else it costs six.
//! Invariant: no block is empty, and every key of a block is below the next block's least key.

use std::collections::BTreeMap;
use std::ops::Bound;

use payload_types::PayloadKey;

/// Slots of a block: 256 bytes, moved in a few nanoseconds, and the map above has one entry for 64 payloads.
const BLOCK_LEN: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub struct Order {
    blocks: BTreeMap<PayloadKey, Vec<u32>>,
    len: usize,
}

impl Order {
    /// Slots held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds the slot of a key that is not there.
    pub fn insert(&mut self, key: PayloadKey, slot: u32, key_of: impl Fn(u32) -> PayloadKey) {
        self.len += 1;
        let is_last = self.blocks.last_key_value().is_none_or(|(least, _)| *least <= key);
        let Some((_, block)) = self.blocks.range_mut(..=key).next_back() else {
            // Below all that is there: a block that is not full takes it and has a lower bound from now on.
            let first = self.blocks.pop_first();
            let mut block = match first {
                Some((_, block)) if block.len() < BLOCK_LEN => block,
                other => {
                    self.blocks.extend(other);
                    Vec::new()
                }
            };
            block.insert(0, slot);
            self.blocks.insert(key, block);
            return;
        };
        let at = match block.last() {
            Some(last) if key_of(*last) < key => block.len(),
            _ => block.partition_point(|other| key_of(*other) < key),
        };
        if block.len() < BLOCK_LEN {
            block.insert(at, slot);
        } else if at == BLOCK_LEN && is_last {
            // At the very end blocks stay full: half of each would never be filled.
            self.blocks.insert(key, vec![slot]);
        } else {
            let mut upper = block.split_off(BLOCK_LEN / 2);
            match at.checked_sub(BLOCK_LEN / 2) {
                Some(at) => upper.insert(at, slot),
                None => block.insert(at, slot),
            }
            self.blocks.insert(if upper[0] == slot { key } else { key_of(upper[0]) }, upper);
        }
    }

    /// Takes the slot of a key out; false when it was not there.
    pub fn remove(&mut self, key: PayloadKey, slot: u32, key_of: impl Fn(u32) -> PayloadKey) -> bool {
        let Some((least, block)) = self.blocks.range_mut(..=key).next_back() else { return false };
        let at = block.partition_point(|other| key_of(*other) < key);
        if block.get(at) != Some(&slot) {
            return false;
        }
        block.remove(at);
        self.len -= 1;
        let least = *least;
        match block.len() {
            0 => drop(self.blocks.remove(&least)),
            // Many were removed: what is left moves to a neighbour that has room, so that blocks stay half full.
            length if length < BLOCK_LEN / 4 => self.merge(least, length),
            _ => {}
        }
        true
    }

    fn merge(&mut self, least: PayloadKey, length: usize) {
        let below = self.blocks.range(..least).next_back().map(|(key, block)| (*key, block.len()));
        if let Some((below, held)) = below
            && held + length <= BLOCK_LEN / 2
        {
            let block = self.blocks.remove(&least).expect("the caller found it");
            let below = self.blocks.get_mut(&below).expect("just found");
            below.extend(block);
            below.shrink_to(BLOCK_LEN);
        }
    }

    /// All slots, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.blocks.values().flatten().copied()
    }

    /// The slots whose keys are `below` the bound, the greatest first. Never looks at a record twice.
    pub fn descending(
        &self,
        below: Bound<PayloadKey>,
        key_of: impl Fn(u32) -> PayloadKey,
    ) -> impl Iterator<Item = u32> + '_ {
        let is_beyond = |slot: &u32| match below {
            Bound::Included(end) => key_of(*slot) > end,
            Bound::Excluded(end) => key_of(*slot) >= end,
            Bound::Unbounded => false,
        };
        let mut blocks =
            self.blocks.range((Bound::Unbounded, below)).rev().map(|(_, block)| block.as_slice());
        let first = blocks.next().unwrap_or_default();
        let first = &first[..first.partition_point(|slot| !is_beyond(slot))];
        std::iter::once(first).chain(blocks).flat_map(|block| block.iter().rev().copied())
    }

    /// The slots whose keys are `from` or greater, the least first.
    pub fn ascending(
        &self,
        from: PayloadKey,
        key_of: impl Fn(u32) -> PayloadKey,
    ) -> impl Iterator<Item = u32> + '_ {
        let first = self.blocks.range(..=from).next_back().map_or(&[][..], |(_, block)| block.as_slice());
        let first = &first[first.partition_point(|slot| key_of(*slot) < from)..];
        let behind = self.blocks.range((Bound::Excluded(from), Bound::Unbounded)).map(|(_, block)| block);
        std::iter::once(first).chain(behind.map(Vec::as_slice)).flatten().copied()
    }
}

#[cfg(test)]
mod tests {
    use payload_types::{NamespaceId, PayloadId};

    use super::*;

    fn key(number: u32) -> PayloadKey {
        let mut bytes = [0; 16];
        bytes[12..].copy_from_slice(&number.to_be_bytes());
        PayloadKey { namespace: NamespaceId(1), id: PayloadId::from_bytes(bytes) }
    }

    fn random(state: &mut u64) -> u32 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) as u32
    }

    #[test]
    fn given_random_changes_when_walked_then_it_is_what_a_sorted_set_would_be() {
        for seed in 0..20 {
            let mut state = seed;
            let (mut order, mut expected) = (Order::default(), std::collections::BTreeSet::new());
            for round in 0..4000 {
                let number = random(&mut state) % 2000;
                // The second half mostly removes, so that blocks shrink and go.
                if expected.contains(&number) && (round > 2000 || random(&mut state).is_multiple_of(2)) {
                    assert!(expected.remove(&number) && order.remove(key(number), number, key));
                } else if !expected.contains(&number)
                    && (round < 2000 || random(&mut state).is_multiple_of(8))
                {
                    expected.insert(number);
                    order.insert(key(number), number, key);
                }
                assert_eq!(order.len(), expected.len());
                if round % 50 == 0 {
                    assert!(order.iter().eq(expected.iter().copied()), "seed {seed} round {round}");
                    let end = random(&mut state) % 2100;
                    let walk = order.descending(Bound::Excluded(key(end)), key);
                    assert!(walk.eq(expected.range(..end).rev().copied()), "seed {seed} round {round}");
                    let walk = order.ascending(key(end), key);
                    assert!(walk.eq(expected.range(end..).copied()), "seed {seed} round {round}");
                    let walk = order.descending(Bound::Included(key(end)), key);
                    assert!(walk.eq(expected.range(..=end).rev().copied()), "seed {seed} round {round}");
                }
            }
            for number in expected {
                assert!(order.remove(key(number), number, key));
                assert!(!order.remove(key(number), number, key), "gone");
            }
            assert!(order.is_empty() && order.blocks.is_empty());
        }
    }

    #[test]
    fn given_keys_that_grow_when_inserted_then_blocks_are_full() {
        let mut order = Order::default();
        (0..10_000).for_each(|number| order.insert(key(number), number, key));
        assert_eq!(order.blocks.len(), 10_000usize.div_ceil(BLOCK_LEN));
    }
}
