//! A column beside a slot table: a value for some slots, found by the slot's number.
//!
//! For what few entries have: memory is taken a chunk at a time where such entries are, and given back with a chunk's last
//! one. Finding one is two loads, however many there are.

const CHUNK_LEN: u32 = 64;

#[derive(Debug)]
struct Chunk<T> {
    len: u32,
    values: [Option<T>; CHUNK_LEN as usize],
}

/// See the module.
#[derive(Debug)]
pub struct Sparse<T> {
    chunks: Vec<Option<Box<Chunk<T>>>>,
    len: usize,
}

impl<T> Default for Sparse<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), len: 0 }
    }
}

impl<T: Copy> Sparse<T> {
    /// Values held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when none is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of slot `index`.
    #[inline]
    pub fn get(&self, index: u32) -> Option<T> {
        let chunk = self.chunks.get((index / CHUNK_LEN) as usize)?.as_ref()?;
        chunk.values[(index % CHUNK_LEN) as usize]
    }

    /// Gives slot `index` a value; returns the one it had.
    pub fn insert(&mut self, index: u32, value: T) -> Option<T> {
        let at = (index / CHUNK_LEN) as usize;
        if self.chunks.len() <= at {
            self.chunks.resize_with(at + 1, || None);
        }
        let new = || Box::new(Chunk { len: 0, values: [None; CHUNK_LEN as usize] });
        let chunk = self.chunks[at].get_or_insert_with(new);
        let before = chunk.values[(index % CHUNK_LEN) as usize].replace(value);
        if before.is_none() {
            chunk.len += 1;
            self.len += 1;
        }
        before
    }

    /// Takes the value of slot `index`.
    pub fn remove(&mut self, index: u32) -> Option<T> {
        let place = self.chunks.get_mut((index / CHUNK_LEN) as usize)?;
        let chunk = place.as_mut()?;
        let value = chunk.values[(index % CHUNK_LEN) as usize].take()?;
        chunk.len -= 1;
        self.len -= 1;
        if chunk.len == 0 {
            *place = None;
        }
        Some(value)
    }

    /// All values with their slots, in the order of the slots.
    pub fn iter(&self) -> impl Iterator<Item = (u32, T)> + '_ {
        let chunks = (0..).zip(&self.chunks);
        let chunks = chunks.filter_map(|(at, chunk)| Some((at * CHUNK_LEN, chunk.as_ref()?)));
        chunks.flat_map(|(first, chunk)| {
            (first..).zip(&chunk.values).filter_map(|(index, value)| Some((index, (*value)?)))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn given_many_changes_when_compared_with_an_ordered_map_then_both_say_the_same() {
        let (mut sparse, mut model) = (Sparse::default(), BTreeMap::new());
        let mut state = 7u64;
        for round in 0..20_000u64 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Two regions far apart.
            let index = (state >> 33) as u32 % 200 + if state >> 63 == 0 { 0 } else { 100_000 };
            if (state >> 40).is_multiple_of(3) {
                assert_eq!(sparse.remove(index), model.remove(&index));
            } else {
                assert_eq!(sparse.insert(index, round), model.insert(index, round));
            }
            assert_eq!(sparse.get(index), model.get(&index).copied());
            assert_eq!((sparse.len(), sparse.is_empty()), (model.len(), model.is_empty()));
        }
        assert!(sparse.iter().eq(model.iter().map(|(index, value)| (*index, *value))));
        assert_eq!(sparse.get(50_000), None, "between the regions");
        for index in model.into_keys() {
            assert!(sparse.remove(index).is_some());
        }
        assert!(sparse.chunks.iter().all(Option::is_none), "a chunk goes with its last value");
    }
}
