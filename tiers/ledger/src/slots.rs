//! A table of slots with stable keys. A slot's generation grows each time it is taken, so a key that outlived its
//! entry finds nothing instead of somebody else's entry.
//!
//! Grows by whole chunks: inserting among 10^7 entries costs what inserting among ten does, and never copies.

use std::num::NonZeroU32;

const CHUNK_LEN: u32 = 1024;
const NONE: u32 = u32::MAX;

/// Names one entry. Never zero, so that an `Option` of it takes no more room.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotKey {
    /// The slot.
    pub index: u32,
    /// How often the slot had been taken when this entry was put there.
    pub generation: NonZeroU32,
}

impl SlotKey {
    /// Names no entry: a table never has so many.
    pub const NOWHERE: Self = Self { index: NONE, generation: NonZeroU32::MIN };
}

#[derive(Debug)]
struct Slot<T> {
    generation: NonZeroU32,
    /// The next free slot while this one is free.
    free_next: u32,
    value: Option<T>,
}

/// As many as a power of two: a slot in its chunk is found without a check.
type Chunk<T> = Box<[Slot<T>; CHUNK_LEN as usize]>;

/// At most `limit` entries of one kind.
#[derive(Debug)]
pub struct Slots<T> {
    chunks: Vec<Chunk<T>>,
    free_head: u32,
    len: u32,
    limit: u32,
}

impl<T> Slots<T> {
    /// A table that never holds more than `limit` entries. Memory is taken as it fills.
    pub fn new(limit: u32) -> Self {
        assert!(limit < NONE, "slot numbers fit 32 bits");
        Self { chunks: Vec::new(), free_head: NONE, len: 0, limit }
    }

    /// Entries held.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// True when nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// True when the next insertion would be refused.
    pub fn is_full(&self) -> bool {
        self.len == self.limit
    }

    /// Puts `value` into a free slot; hands it back when the table is full.
    pub fn insert(&mut self, value: T) -> Result<SlotKey, T> {
        if self.is_full() {
            return Err(value);
        }
        if self.free_head == NONE {
            self.grow();
        }
        let index = self.free_head;
        let slot = &mut self.chunks[(index / CHUNK_LEN) as usize][(index % CHUNK_LEN) as usize];
        self.free_head = slot.free_next;
        slot.generation = slot.generation.checked_add(1).unwrap_or(NonZeroU32::MIN);
        slot.value = Some(value);
        self.len += 1;
        Ok(SlotKey { index, generation: slot.generation })
    }

    fn grow(&mut self) {
        let first = self.chunks.len() as u32 * CHUNK_LEN;
        let chunk: Box<[Slot<T>]> = (first..first + CHUNK_LEN)
            .map(|index| Slot {
                generation: NonZeroU32::MAX,
                free_next: if index + 1 < first + CHUNK_LEN { index + 1 } else { NONE },
                value: None,
            })
            .collect();
        self.chunks.push(chunk.try_into().unwrap_or_else(|_| unreachable!("a whole chunk")));
        self.free_head = first;
    }

    fn slot(&self, index: u32) -> Option<&Slot<T>> {
        Some(&self.chunks.get((index / CHUNK_LEN) as usize)?[(index % CHUNK_LEN) as usize])
    }

    fn slot_mut(&mut self, index: u32) -> Option<&mut Slot<T>> {
        Some(&mut self.chunks.get_mut((index / CHUNK_LEN) as usize)?[(index % CHUNK_LEN) as usize])
    }

    /// The entry, unless it was removed.
    pub fn get(&self, key: SlotKey) -> Option<&T> {
        self.slot(key.index).filter(|slot| slot.generation == key.generation)?.value.as_ref()
    }

    /// The entry, unless it was removed.
    pub fn get_mut(&mut self, key: SlotKey) -> Option<&mut T> {
        self.slot_mut(key.index).filter(|slot| slot.generation == key.generation)?.value.as_mut()
    }

    /// The key of the entry that is in slot `index` now.
    pub fn key_at(&self, index: u32) -> Option<SlotKey> {
        let slot = self.slot(index)?;
        slot.value.as_ref()?;
        Some(SlotKey { index, generation: slot.generation })
    }

    /// The entry that is in slot `index` now.
    pub fn value_at(&mut self, index: u32) -> Option<&mut T> {
        self.slot_mut(index)?.value.as_mut()
    }

    /// Takes the entry out; `None` when it is gone already.
    pub fn remove(&mut self, key: SlotKey) -> Option<T> {
        let free_head = self.free_head;
        let slot = self.slot_mut(key.index).filter(|slot| slot.generation == key.generation)?;
        let value = slot.value.take()?;
        slot.free_next = free_head;
        self.free_head = key.index;
        self.len -= 1;
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_removed_entry_when_its_slot_is_reused_then_the_old_key_finds_nothing() {
        let mut slots = Slots::new(10);
        let old = slots.insert("old").expect("room");
        assert_eq!(slots.remove(old), Some("old"));
        let new = slots.insert("new").expect("room");
        assert_eq!((new.index, slots.get(old), slots.get(new)), (old.index, None, Some(&"new")));
        assert_eq!(slots.remove(old), None);
        assert_eq!(slots.key_at(new.index), Some(new));
    }

    #[test]
    fn given_a_full_table_when_inserted_then_the_value_is_handed_back() {
        let mut slots = Slots::new(2);
        let first = slots.insert(1).expect("room");
        slots.insert(2).expect("room");
        assert_eq!(slots.insert(3), Err(3));
        slots.remove(first);
        assert!(slots.insert(3).is_ok() && slots.is_full());
    }

    #[test]
    fn given_many_chunks_when_filled_and_emptied_then_every_key_finds_its_own() {
        let mut slots = Slots::new(5000);
        let keys: Vec<_> = (0..5000).map(|value| slots.insert(value).expect("room")).collect();
        assert!(keys.iter().enumerate().all(|(value, key)| slots.get(*key) == Some(&(value as i32))));
        assert!(keys.iter().all(|key| slots.remove(*key).is_some()) && slots.is_empty());
    }
}
