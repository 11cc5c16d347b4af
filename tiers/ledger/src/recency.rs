//! Who was used longest ago: lists through the numbers of a slot table, kept beside it.
//!
//! The links of an entry take 16 bytes of their own and not a part of the entry's record, so that taking one out of
//! the middle touches its neighbours' links only: 10^4 entries' links lie in a core's second cache, their records do
//! not. Every operation costs O(1), except that coming back out of order walks at most `WALK_MAX` entries from
//! either end.

/// Lists there may be: of each of four tiers, three priorities and six ways out, and the one that stays empty.
const LISTS: usize = 4 * 3 * 6 + 1;
/// Entries of a chunk: growing never copies what is there.
const CHUNK_LEN: u32 = 4096;
const NONE: u32 = u32::MAX;

/// An entry that comes back with an old stamp looks for its place this far from either end.
const WALK_MAX: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Node {
    previous: u32,
    next: u32,
    stamp: u64,
}

/// Numbers no entry: free nodes have no neighbours.
const FREE: Node = Node { previous: NONE, next: NONE, stamp: 0 };

#[derive(Clone, Copy, Debug)]
struct Ends {
    first: u32,
    last: u32,
    weight: u64,
}

const EMPTY: Ends = Ends { first: NONE, last: NONE, weight: 0 };

/// See the module. An entry stands in one list at a time; the caller remembers in which.
#[derive(Debug)]
pub struct Recency {
    chunks: Vec<Box<[Node]>>,
    lists: [Ends; LISTS],
}

impl Default for Recency {
    fn default() -> Self {
        Self { chunks: Vec::new(), lists: [EMPTY; LISTS] }
    }
}

impl Recency {
    /// Makes room for the entry `index` and forgets what was known of an earlier one in that slot.
    pub fn reset(&mut self, index: u32) {
        while self.chunks.len() as u32 <= index / CHUNK_LEN {
            self.chunks.push(vec![FREE; CHUNK_LEN as usize].into_boxed_slice());
        }
        *self.node(index) = FREE;
    }

    #[inline]
    fn node(&mut self, index: u32) -> &mut Node {
        &mut self.chunks[(index / CHUNK_LEN) as usize][(index % CHUNK_LEN) as usize]
    }

    #[inline]
    fn get(&self, index: u32) -> &Node {
        &self.chunks[(index / CHUNK_LEN) as usize][(index % CHUNK_LEN) as usize]
    }

    /// When the entry was used last; 0: never.
    pub fn stamp(&self, index: u32) -> u64 {
        self.get(index).stamp
    }

    /// Notes when the entry was used. It must stand in no list.
    #[inline]
    pub fn set_stamp(&mut self, index: u32, stamp: u64) {
        self.node(index).stamp = stamp;
    }

    /// Puts an entry that was used just now at the end of `list`.
    #[inline]
    pub fn push_newest(&mut self, list: u8, index: u32, weight: u64, stamp: u64) {
        self.node(index).stamp = stamp;
        let last = self.lists[usize::from(list)].last;
        self.insert_after(list, index, weight, last);
    }

    /// Puts an entry into `list` where its stamp belongs, or near it.
    pub fn insert(&mut self, list: u8, index: u32, weight: u64) {
        let stamp = self.get(index).stamp;
        let Ends { first, last, .. } = self.lists[usize::from(list)];
        let mut at = last;
        for _ in 0..WALK_MAX {
            if at == NONE || self.get(at).stamp <= stamp {
                return self.insert_after(list, index, weight, at);
            }
            at = self.get(at).previous;
        }
        let mut before = NONE;
        let mut at = first;
        for _ in 0..WALK_MAX {
            if at == NONE || self.get(at).stamp > stamp {
                break;
            }
            before = at;
            at = self.get(at).next;
        }
        self.insert_after(list, index, weight, before);
    }

    /// Behind `before`; at the front when that is `NONE`.
    #[inline]
    fn insert_after(&mut self, list: u8, index: u32, weight: u64, before: u32) {
        let list = usize::from(list);
        let next = if before == NONE { self.lists[list].first } else { self.get(before).next };
        let node = self.node(index);
        (node.previous, node.next) = (before, next);
        if before == NONE {
            self.lists[list].first = index;
        } else {
            self.node(before).next = index;
        }
        if next == NONE {
            self.lists[list].last = index;
        } else {
            self.node(next).previous = index;
        }
        self.lists[list].weight += weight;
    }

    /// Takes an entry out of `list`, in which it stands. Its stamp stays.
    #[inline]
    pub fn remove(&mut self, list: u8, index: u32, weight: u64) {
        let Node { previous, next, .. } = *self.get(index);
        let ends = &mut self.lists[usize::from(list)];
        ends.weight -= weight;
        if previous == NONE {
            ends.first = next;
        }
        if next == NONE {
            ends.last = previous;
        }
        if previous != NONE {
            self.node(previous).next = next;
        }
        if next != NONE {
            self.node(next).previous = previous;
        }
    }

    /// The entry of `list` that was used longest ago.
    pub fn oldest(&self, list: u8) -> Option<u32> {
        Some(self.lists[usize::from(list)].first).filter(|first| *first != NONE)
    }

    /// The weight of all entries of `list`.
    pub fn weight(&self, list: u8) -> u64 {
        self.lists[usize::from(list)].weight
    }

    /// The entries of `list`, the one used longest ago first.
    pub fn iter(&self, list: u8) -> impl Iterator<Item = u32> + '_ {
        let next = |index: &u32| Some(self.get(*index).next).filter(|next| *next != NONE);
        std::iter::successors(self.oldest(list), next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lists(entries: u32) -> Recency {
        let mut recency = Recency::default();
        (0..entries).for_each(|index| recency.reset(index));
        recency
    }

    fn contents(recency: &Recency, list: u8) -> Vec<u32> {
        recency.iter(list).collect()
    }

    #[test]
    fn given_entries_when_used_again_then_the_one_used_longest_ago_is_first_and_weights_add_up() {
        let mut recency = lists(10_000);
        for index in [3, 9_999, 5] {
            recency.push_newest(1, index, 10, u64::from(index));
        }
        recency.remove(1, 3, 10);
        recency.push_newest(1, 3, 10, 20_000);
        assert_eq!((contents(&recency, 1), recency.weight(1)), (vec![9_999, 5, 3], 30));
        recency.remove(1, 5, 10);
        recency.remove(1, 9_999, 10);
        recency.remove(1, 3, 10);
        assert_eq!((recency.oldest(1), recency.weight(1)), (None, 0));
    }

    #[test]
    fn given_an_entry_that_was_away_when_it_comes_back_then_it_stands_where_its_stamp_belongs() {
        let mut recency = lists(400);
        (0..300).for_each(|index| recency.push_newest(0, index, 1, u64::from(index)));
        for index in [299, 0, 150, 2] {
            recency.remove(0, index, 1);
            recency.insert(0, index, 1);
        }
        let order = contents(&recency, 0);
        let place = |index| order.iter().position(|other| *other == index).expect("listed");
        assert_eq!((place(299), place(0), place(2)), (299, 0, 2), "found from either end");
        assert_eq!(place(150), 64, "too far from both ends: behind as many as were looked at");
    }
}
