//! Holds: payloads that streams keep (`payload_types::hold`), beside the payload table, because few payloads have one.
//!
//! ```text
//!   by_stream   stream -> its name, floor, and (newest offset, slot) of each payload that it holds
//!   by_payload  (slot, stream) -> newest offset
//! ```
//! A payload is held by a stream while the newest entry that refers to it is not before the stream's floor; one hold a
//! stream and payload is therefore enough, however often it was appended. What a floor has passed holds nothing from that
//! moment on, and is taken out bit by bit. Appends that are under way hold under a token, a stream of its own.
//!
//! Owned by [`crate::table::Table`], which keeps `Payload::held` true while anything is left here. Invariant: both maps
//! hold the same (stream, slot, offset).

use std::collections::{BTreeMap, BTreeSet};

use payload_types::hold::HoldingStream;
use payload_types::limits::PAYLOADS_PER_SHARD_MAX;
use payload_types::report::{STREAM_HOLDS_SHOWN, StreamHold};

/// Holds of one shard from which on appends are refused: as many as payloads, at about 80 bytes each. A start takes over
/// whatever the streams need.
const HOLDS_MAX: usize = PAYLOADS_PER_SHARD_MAX as usize;

/// Whom a hold belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Holder {
    /// An append that is under way.
    Append(u64),
    /// A stream, by its incarnation.
    Stream(u64),
}

#[derive(Debug)]
struct Held {
    /// `None`: an append.
    name: Option<HoldingStream>,
    /// Entries before it hold nothing.
    floor: u64,
    payloads: BTreeSet<(u64, u32)>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    by_holder: BTreeMap<Holder, Held>,
    by_payload: BTreeMap<(u32, Holder), u64>,
    /// Holders that have something before their floor.
    draining: BTreeSet<Holder>,
}

impl Holds {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.by_payload.len()
    }

    /// True when `more` holds can be added.
    pub(crate) fn has_room(&self, more: usize) -> bool {
        self.by_payload.len() + more <= HOLDS_MAX
    }

    /// Notes that an entry at `offset` refers to the payload in `slot`.
    pub(crate) fn add(&mut self, holder: Holder, name: Option<&HoldingStream>, offset: u64, slot: u32) {
        let newest = self.by_payload.entry((slot, holder)).or_insert(offset);
        let held = self.by_holder.entry(holder).or_insert_with(|| Held {
            name: name.cloned(),
            floor: 0,
            payloads: BTreeSet::new(),
        });
        if *newest < offset {
            held.payloads.remove(&(*newest, slot));
            *newest = offset;
        }
        held.payloads.insert((*newest, slot));
        if *newest < held.floor {
            self.draining.insert(holder);
        }
    }

    /// Entries of `holder` before `floor` hold nothing any more; those behind it do again, if they are still here.
    pub(crate) fn set_floor(&mut self, holder: Holder, floor: u64) {
        let Some(held) = self.by_holder.get_mut(&holder) else { return };
        held.floor = floor;
        if held.payloads.first().is_some_and(|(offset, _)| *offset < floor) {
            self.draining.insert(holder);
        } else {
            self.draining.remove(&holder);
        }
    }

    /// True while something is left that a floor has passed.
    pub(crate) fn is_draining(&self) -> bool {
        !self.draining.is_empty()
    }

    /// Takes one hold out that a floor has passed: the payload, and whether nothing else is noted for it.
    pub(crate) fn drain(&mut self) -> Option<(u32, bool)> {
        let holder = *self.draining.first()?;
        let held = self.by_holder.get_mut(&holder).expect("what drains holds something");
        let (_, slot) = held.payloads.pop_first().expect("what drains holds something");
        if held.payloads.first().is_none_or(|(offset, _)| *offset >= held.floor) {
            self.draining.remove(&holder);
        }
        if held.payloads.is_empty() {
            self.by_holder.remove(&holder);
        }
        self.by_payload.remove(&(slot, holder));
        Some((slot, !self.is_noted(slot)))
    }

    /// The payload in `slot` is gone.
    pub(crate) fn forget(&mut self, slot: u32) {
        let all: Vec<(Holder, u64)> = self.of(slot).collect();
        for (holder, offset) in all {
            self.by_payload.remove(&(slot, holder));
            let held = self.by_holder.get_mut(&holder).expect("both maps hold the same");
            held.payloads.remove(&(offset, slot));
            if held.payloads.first().is_none_or(|(offset, _)| *offset >= held.floor) {
                self.draining.remove(&holder);
            }
            if held.payloads.is_empty() {
                self.by_holder.remove(&holder);
            }
        }
    }

    /// Who holds the payload in `slot`, at most [`STREAM_HOLDS_SHOWN`].
    pub(crate) fn holders(&self, slot: u32) -> Vec<StreamHold> {
        let shown = |(holder, offset)| {
            let name = self.by_holder.get(&holder)?.name.as_ref();
            Some(StreamHold { stream: name.map(|stream| stream.name.clone()), offset })
        };
        self.holding(slot).filter_map(shown).take(STREAM_HOLDS_SHOWN).collect()
    }

    /// True when something is noted of the payload in `slot`, also what a floor has passed.
    pub(crate) fn is_noted(&self, slot: u32) -> bool {
        self.of(slot).next().is_some()
    }

    fn holding(&self, slot: u32) -> impl Iterator<Item = (Holder, u64)> + '_ {
        self.of(slot)
            .filter(|(holder, offset)| self.by_holder.get(holder).is_some_and(|held| *offset >= held.floor))
    }

    fn of(&self, slot: u32) -> impl Iterator<Item = (Holder, u64)> + '_ {
        let range = (slot, Holder::Append(0))..=(slot, Holder::Stream(u64::MAX));
        self.by_payload.range(range).map(|((_, holder), offset)| (*holder, *offset))
    }

    /// Whether both maps hold the same, for the simulator and tests.
    pub(crate) fn check(&self) -> Result<(), String> {
        let listed: BTreeSet<(u32, Holder, u64)> = self
            .by_holder
            .iter()
            .flat_map(|(holder, held)| held.payloads.iter().map(|(offset, slot)| (*slot, *holder, *offset)))
            .collect();
        let noted: BTreeSet<(u32, Holder, u64)> =
            self.by_payload.iter().map(|((slot, holder), offset)| (*slot, *holder, *offset)).collect();
        if listed != noted {
            return Err(format!("holds by stream {listed:?}, by payload {noted:?}"));
        }
        let empty = self.by_holder.values().any(|held| held.payloads.is_empty());
        if empty { Err("a stream without holds is kept".to_owned()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use payload_types::record::StreamName;

    use super::*;

    const STREAM: Holder = Holder::Stream(7);

    fn named() -> HoldingStream {
        let name = StreamName { namespace: "n".to_owned(), name: "s".to_owned() };
        HoldingStream { stream: 7, name }
    }

    fn is_held(holds: &Holds, slot: u32) -> bool {
        !holds.holders(slot).is_empty()
    }

    fn drained(holds: &mut Holds) -> Vec<(u32, bool)> {
        std::iter::from_fn(|| holds.drain()).collect()
    }

    #[test]
    fn given_a_payload_appended_twice_when_the_floor_passes_the_first_entry_then_it_is_still_held() {
        let mut holds = Holds::default();
        holds.add(STREAM, Some(&named()), 5, 1);
        holds.add(STREAM, Some(&named()), 3, 1);
        holds.add(STREAM, Some(&named()), 4, 2);
        holds.set_floor(STREAM, 5);
        assert!(is_held(&holds, 1) && !is_held(&holds, 2), "at once, also before it is taken out");
        assert_eq!(drained(&mut holds), [(2, true)]);
        assert_eq!(holds.holders(1)[0].offset, 5);
        holds.set_floor(STREAM, 6);
        assert_eq!(drained(&mut holds), [(1, true)]);
        assert!(holds.by_holder.is_empty() && holds.by_payload.is_empty() && !holds.is_draining());
    }

    #[test]
    fn given_a_floor_that_goes_back_while_it_drains_when_asked_then_what_is_left_is_held_again() {
        let mut holds = Holds::default();
        (0..3).for_each(|number| holds.add(STREAM, Some(&named()), u64::from(number), number));
        holds.set_floor(STREAM, 3);
        assert_eq!(holds.drain(), Some((0, true)));
        holds.set_floor(STREAM, 1);
        assert!(is_held(&holds, 1) && is_held(&holds, 2) && !holds.is_draining());
        holds.check().expect("sound");
    }

    #[test]
    fn given_an_append_and_two_streams_when_each_lets_go_then_the_last_one_frees_the_payload() {
        let mut holds = Holds::default();
        let (append, other) = (Holder::Append(9), Holder::Stream(8));
        holds.add(append, None, 0, 1);
        holds.add(STREAM, Some(&named()), 0, 1);
        holds.add(other, Some(&named()), 2, 1);
        assert_eq!(holds.holders(1).iter().filter(|hold| hold.stream.is_none()).count(), 1);
        for (holder, floor, last) in [(append, 1, false), (STREAM, 1, false), (other, 3, true)] {
            holds.set_floor(holder, floor);
            assert_eq!(drained(&mut holds), [(1, last)]);
        }
        holds.add(STREAM, Some(&named()), 0, 1);
        holds.set_floor(STREAM, 1);
        holds.forget(1);
        assert!(!holds.is_draining() && holds.by_holder.is_empty(), "gone with the payload");
    }
}
