//! Doubly linked lists through the entries of a slot table: O(1) at both ends and in the middle, no memory of their own.

use crate::slots::{SlotKey, Slots};

/// An entry's neighbours.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Links {
    previous: Option<SlotKey>,
    next: Option<SlotKey>,
}

impl Links {
    /// The entry behind this one.
    pub fn next(&self) -> Option<SlotKey> {
        self.next
    }
}

/// Numbers no slot.
const NONE: u32 = u32::MAX;

/// First and last entry of a list. Slots without their generations: what stands in a list is in the table, and three
/// of these stand in every payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ends {
    first: u32,
    last: u32,
}

impl Default for Ends {
    fn default() -> Self {
        Self { first: NONE, last: NONE }
    }
}

impl Ends {
    /// True when an entry stands in the list.
    pub fn is_some(self) -> bool {
        self.first != NONE
    }

    /// The first entry, of the table whose list it is.
    pub fn first<T>(self, slots: &Slots<T>) -> Option<SlotKey> {
        slots.key_at(self.first)
    }

    /// True when the entry, which stands in the list, is its first.
    pub fn starts_with(self, key: SlotKey) -> bool {
        self.first == key.index
    }
}

/// An entry that can stand in one list at a time.
pub trait Linked {
    /// Its links.
    fn links(&mut self) -> &mut Links;
}

/// Adds an entry at the end.
///
/// # Panics
/// When `key` is stale.
pub fn push_back<T: Linked>(slots: &mut Slots<T>, ends: &mut Ends, key: SlotKey) {
    let last = slots.key_at(ends.last);
    *slots.get_mut(key).expect("the caller holds a live key").links() = Links { previous: last, next: None };
    match last.and_then(|last| slots.get_mut(last)) {
        Some(before) => before.links().next = Some(key),
        None => ends.first = key.index,
    }
    ends.last = key.index;
}

/// Takes an entry out of the list it stands in. `ends` is that list's; an entry whose list is gone gives an empty one.
///
/// # Panics
/// When `key` is stale.
pub fn unlink<T: Linked>(slots: &mut Slots<T>, ends: &mut Ends, key: SlotKey) {
    let links = std::mem::take(slots.get_mut(key).expect("the caller holds a live key").links());
    unlinked(slots, ends, key, links);
}

/// As [`unlink`], and takes it out of the table.
///
/// # Panics
/// When `key` is stale.
pub fn remove<T: Linked>(slots: &mut Slots<T>, ends: &mut Ends, key: SlotKey) -> T {
    let mut entry = slots.remove(key).expect("the caller holds a live key");
    unlinked(slots, ends, key, *entry.links());
    entry
}

/// What had these links stands between its neighbours no more.
fn unlinked<T: Linked>(slots: &mut Slots<T>, ends: &mut Ends, key: SlotKey, links: Links) {
    if let Some(before) = links.previous.and_then(|previous| slots.get_mut(previous)) {
        before.links().next = links.next;
    }
    if let Some(after) = links.next.and_then(|next| slots.get_mut(next)) {
        after.links().previous = links.previous;
    }
    let number = |key: Option<SlotKey>| key.map_or(NONE, |key| key.index);
    if ends.first == key.index {
        ends.first = number(links.next);
    }
    if ends.last == key.index {
        ends.last = number(links.previous);
    }
}

/// Moves all of `from` to the end of `to`.
pub fn append<T: Linked>(slots: &mut Slots<T>, to: &mut Ends, from: &mut Ends) {
    let moved = std::mem::take(from);
    let (Some(first), tail) = (moved.first(slots), slots.key_at(to.last)) else { return };
    match tail {
        None => *to = moved,
        Some(tail) => {
            slots.get_mut(tail).expect("linked entries exist").links().next = Some(first);
            slots.get_mut(first).expect("linked entries exist").links().previous = Some(tail);
            to.last = moved.last;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Entry(u32, Links);

    impl Linked for Entry {
        fn links(&mut self) -> &mut Links {
            &mut self.1
        }
    }

    fn contents(slots: &Slots<Entry>, ends: Ends) -> Vec<u32> {
        let mut next = ends.first(slots);
        let mut values = Vec::new();
        while let Some(key) = next {
            let entry = slots.get(key).expect("linked");
            values.push(entry.0);
            next = entry.1.next;
        }
        values
    }

    #[test]
    fn given_a_list_when_entries_leave_anywhere_then_the_rest_keeps_its_order() {
        let mut slots = Slots::new(10);
        let (mut ends, mut other) = (Ends::default(), Ends::default());
        let keys: Vec<_> =
            (0..5).map(|value| slots.insert(Entry(value, Links::default())).ok().expect("room")).collect();
        keys.iter().for_each(|key| push_back(&mut slots, &mut ends, *key));
        for (victim, rest) in [(2, vec![0, 1, 3, 4]), (0, vec![1, 3, 4]), (4, vec![1, 3])] {
            unlink(&mut slots, &mut ends, keys[victim]);
            assert_eq!(contents(&slots, ends), rest);
        }
        push_back(&mut slots, &mut other, keys[0]);
        append(&mut slots, &mut other, &mut ends);
        assert_eq!((contents(&slots, other), ends), (vec![0, 1, 3], Ends::default()));
        for key in [keys[0], keys[1], keys[3]] {
            unlink(&mut slots, &mut other, key);
        }
        assert_eq!(other, Ends::default());
    }
}
