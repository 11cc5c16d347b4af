//! Which streams retain payloads, and what the shards have to be told of them: the node's side of holds, pure, so that the
//! front and the simulator do the same.
//!
//! ```text
//!   append: take -> Hold::Take to shards -> the change, `held` -> heard -> Hold::Settle to shards -> settled
//!   any change of a floor: heard (in the catalog writer's order) -> errand -> Hold::Floor to every shard,
//!                          and Hold::Again for entries that a group went back to -> told
//! ```
//! The newest floor counts, so floors that move faster than shards can be told of fall together. An append that is settled
//! after its floor has passed it is told the floor again. To let go late is safe; nothing is let go early: a floor is heard
//! only once its change is durable, and a hold is there before its append is.
//!
//! Takes about 200 bytes and a name for each stream that retains payloads; there are at most [`STREAMS_MAX`].

use std::collections::{BTreeMap, VecDeque};

use payload_types::hold::{HOLD_ITEMS_MAX, HeldEntries, Hold, HoldingStream};
use payload_types::limits::STORED_INTEGER_MAX;
use payload_types::record::{RecordOutcome, StreamFloor, StreamItem, StreamName};
use payload_types::{NamespaceId, PayloadId, PayloadKey, ShardIndex};

/// Streams of one catalog that retain payloads: 65,536, about 30 MiB.
pub const STREAMS_MAX: usize = 1 << 16;

/// Payloads of one shard that an append is about to refer to.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Whose they are.
    pub shard: ShardIndex,
    token: u64,
    payloads: Vec<PayloadKey>,
}

impl Taken {
    /// What the shard is asked before the append.
    pub fn take(&self) -> Hold {
        Hold::Take { token: self.token, payloads: self.payloads.clone() }
    }

    /// What it is told when nothing was appended.
    pub fn let_go(&self) -> Hold {
        Hold::Settle { token: self.token, held: None }
    }

    /// What it is told when the append's items got offsets from `newest`: the last one of each payload.
    pub fn settle(&self, stream: &HoldingStream, newest: &BTreeMap<PayloadId, u64>) -> Hold {
        let offset = |key: &PayloadKey| Some((*newest.get(&key.id)?, *key));
        let entries = self.payloads.iter().filter_map(offset).collect();
        Hold::Settle { token: self.token, held: Some(HeldEntries { stream: stream.clone(), entries }) }
    }
}

/// The newest offset of each payload that was appended from `first` on.
pub fn newest_offsets(items: &[StreamItem], first: u64) -> BTreeMap<PayloadId, u64> {
    (first..).zip(items).map(|(offset, item)| (item.payload, offset)).collect()
}

/// Something to tell the shards.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Errand {
    /// Of which stream.
    pub stream: HoldingStream,
    /// `Hold::Floor` with this goes to every shard, first of all.
    pub floor: u64,
    /// Entries from `floor` up to this offset, without it, are held again after that: a group went back. No more than
    /// `floor`: nothing.
    pub again_to: u64,
    revision: u64,
}

#[derive(Debug)]
struct Known {
    stream: HoldingStream,
    floor: u64,
    /// What shards were told last.
    told: u64,
    /// Grows with whatever the shards have to be told.
    revision: u64,
    done: u64,
    is_queued: bool,
}

impl Known {
    fn new(stream: HoldingStream, floor: u64) -> Self {
        Self { stream, floor, told: floor, revision: 0, done: 0, is_queued: false }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Keeper {
    streams: BTreeMap<u64, Known>,
    names: BTreeMap<StreamName, u64>,
    queue: VecDeque<u64>,
    revision: u64,
    tokens: u64,
}

impl Keeper {
    /// True when a stream of this name retains payloads, as far as this node knows.
    pub fn retains(&self, name: &StreamName) -> bool {
        self.names.contains_key(name)
    }

    /// True when one more stream may retain payloads.
    pub fn has_room(&self) -> bool {
        self.streams.len() < STREAMS_MAX
    }

    /// How many streams are known to retain payloads.
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// True when none does.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Shares an append's payloads out among the shards, each once.
    pub fn take(&mut self, namespace: NamespaceId, items: &[StreamItem], shard_count: u16) -> Vec<Taken> {
        let mut by_shard: BTreeMap<ShardIndex, Vec<PayloadKey>> = BTreeMap::new();
        for id in newest_offsets(items, 0).into_keys() {
            by_shard.entry(id.shard(shard_count)).or_default().push(PayloadKey { namespace, id });
        }
        let mut taken = Vec::new();
        for (shard, payloads) in by_shard {
            for some in payloads.chunks(HOLD_ITEMS_MAX) {
                self.tokens += 1;
                taken.push(Taken { shard, token: self.tokens, payloads: some.to_vec() });
            }
        }
        taken
    }

    /// A stream that shards know already, from the start.
    pub fn adopt(&mut self, name: &StreamName, floor: StreamFloor) -> HoldingStream {
        self.know(name, floor).stream.clone()
    }

    /// What a durable change of the stream `name` met; in the order in which changes were made.
    pub fn heard(&mut self, name: Option<&StreamName>, outcome: &RecordOutcome) {
        match (outcome, name) {
            (RecordOutcome::AppendedHeld { floor, .. } | RecordOutcome::Floored(floor), Some(name))
                if floor.floor < STORED_INTEGER_MAX || self.streams.contains_key(&floor.stream) =>
            {
                self.know(name, *floor);
                self.moved(*floor);
            }
            (RecordOutcome::Swept { floors, .. }, _) => floors.iter().for_each(|floor| self.moved(*floor)),
            _ => {}
        }
    }

    /// The stream with this incarnation, while it is known.
    pub fn stream(&self, stream: u64) -> Option<HoldingStream> {
        self.streams.get(&stream).map(|known| known.stream.clone())
    }

    /// An append whose first entry is at `first` was settled with its shards. A floor that has passed it is told again.
    pub fn settled(&mut self, stream: &HoldingStream, first: u64) {
        let known = self.streams.entry(stream.stream).or_insert_with(|| {
            // Deleted, and shards were told so before they were told of the append.
            Known::new(stream.clone(), STORED_INTEGER_MAX)
        });
        if known.floor > first {
            self.enqueue(stream.stream);
        }
    }

    /// The next thing to tell the shards. One at a time: [`Keeper::told`] ends it.
    pub fn errand(&mut self) -> Option<Errand> {
        let stream = self.queue.pop_front()?;
        let known = self.streams.get_mut(&stream).expect("what is queued is known");
        known.is_queued = false;
        Some(Errand {
            stream: known.stream.clone(),
            floor: known.floor,
            again_to: known.told,
            revision: known.revision,
        })
    }

    /// The shards were told.
    pub fn told(&mut self, errand: &Errand) {
        let id = errand.stream.stream;
        let Some(known) = self.streams.get_mut(&id) else { return };
        (known.told, known.done) = (errand.floor, errand.revision);
        // A stream that is gone, and of which nothing more is to be told.
        if errand.floor == STORED_INTEGER_MAX && known.revision == known.done {
            self.streams.remove(&id);
        }
    }

    /// What [`Keeper::is_told`] takes to find out whether shards know all that was heard of a stream until now.
    pub fn revision(&self, stream: u64) -> u64 {
        self.streams.get(&stream).map_or(0, |known| known.revision)
    }

    /// True when the shards were told everything of a stream up to this revision.
    pub fn is_told(&self, stream: u64, revision: u64) -> bool {
        self.streams.get(&stream).is_none_or(|known| known.done >= revision)
    }

    /// Before a look at floors that other nodes may have moved.
    pub fn look(&self) -> u64 {
        self.revision
    }

    /// What a look found that began at `look`: the streams with incarnations behind `after`, all of them, or up to the last
    /// one when there are `more`. What this node has heard since the look began is newer.
    pub fn looked(&mut self, look: u64, after: u64, found: &[(StreamName, StreamFloor)], more: bool) {
        let last = if more { found.last().map_or(after, |(_, floor)| floor.stream) } else { u64::MAX };
        let old = |known: &Known| known.revision <= look;
        let floors: BTreeMap<u64, u64> = found.iter().map(|(_, floor)| (floor.stream, floor.floor)).collect();
        let moved: Vec<StreamFloor> = self
            .streams
            .range(after.saturating_add(1)..=last)
            .filter(|(_, known)| old(known))
            // What is not there was deleted by another node.
            .map(|(stream, _)| (*stream, floors.get(stream).copied().unwrap_or(STORED_INTEGER_MAX)))
            .map(|(stream, floor)| StreamFloor { stream, floor })
            .collect();
        moved.into_iter().for_each(|floor| self.moved(floor));
    }

    fn know(&mut self, name: &StreamName, floor: StreamFloor) -> &mut Known {
        if !self.streams.contains_key(&floor.stream) {
            self.names.insert(name.clone(), floor.stream);
        }
        self.streams.entry(floor.stream).or_insert_with(|| {
            Known::new(HoldingStream { stream: floor.stream, name: name.clone() }, floor.floor)
        })
    }

    fn moved(&mut self, floor: StreamFloor) {
        let Some(known) = self.streams.get_mut(&floor.stream) else { return };
        if known.floor == floor.floor {
            return;
        }
        known.floor = floor.floor;
        if floor.floor == STORED_INTEGER_MAX && self.names.get(&known.stream.name) == Some(&floor.stream) {
            self.names.remove(&known.stream.name);
        }
        self.enqueue(floor.stream);
    }

    fn enqueue(&mut self, stream: u64) {
        let Some(known) = self.streams.get_mut(&stream) else { return };
        self.revision += 1;
        known.revision = self.revision;
        if !std::mem::replace(&mut known.is_queued, true) {
            self.queue.push_back(stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> StreamName {
        StreamName { namespace: String::new(), name: name.to_owned() }
    }

    fn floored(stream: u64, floor: u64) -> RecordOutcome {
        RecordOutcome::Floored(StreamFloor { stream, floor })
    }

    fn told(keeper: &mut Keeper) -> Vec<(u64, u64, u64)> {
        let mut all = Vec::new();
        while let Some(errand) = keeper.errand() {
            all.push((errand.stream.stream, errand.floor, errand.again_to));
            keeper.told(&errand);
        }
        all
    }

    #[test]
    fn given_floors_that_move_faster_than_shards_are_told_when_asked_then_the_newest_counts() {
        let mut keeper = Keeper::default();
        keeper.heard(Some(&name("s")), &floored(3, 0));
        assert!(keeper.retains(&name("s")) && keeper.errand().is_none(), "shards hold nothing of it yet");
        for floor in [4, 9, 6] {
            keeper.heard(Some(&name("s")), &floored(3, floor));
        }
        let revision = keeper.revision(3);
        assert!(!keeper.is_told(3, revision));
        assert_eq!(told(&mut keeper), [(3, 6, 0)]);
        assert!(keeper.is_told(3, revision));
        keeper.heard(Some(&name("s")), &floored(3, 2));
        assert_eq!(told(&mut keeper), [(3, 2, 6)], "entries 2 to 5 are held again");
    }

    #[test]
    fn given_a_floor_that_moves_while_shards_are_told_when_that_ends_then_they_are_told_again() {
        let mut keeper = Keeper::default();
        keeper.heard(Some(&name("s")), &floored(3, 0));
        keeper.heard(Some(&name("s")), &floored(3, 5));
        let errand = keeper.errand().expect("one");
        keeper.heard(Some(&name("s")), &floored(3, 1));
        let revision = keeper.revision(3);
        keeper.told(&errand);
        assert!(!keeper.is_told(3, revision));
        assert_eq!(told(&mut keeper), [(3, 1, 5)]);
    }

    #[test]
    fn given_a_stream_that_is_deleted_and_made_anew_when_told_then_only_the_new_one_is_known() {
        let mut keeper = Keeper::default();
        keeper.heard(Some(&name("s")), &floored(3, 0));
        keeper.heard(Some(&name("s")), &floored(3, STORED_INTEGER_MAX));
        assert!(!keeper.retains(&name("s")));
        keeper.heard(Some(&name("s")), &floored(8, 0));
        assert_eq!(told(&mut keeper), [(3, STORED_INTEGER_MAX, 0)]);
        assert!(keeper.retains(&name("s")) && keeper.len() == 1 && keeper.stream(3).is_none());
    }

    #[test]
    fn given_an_append_that_settles_after_its_floor_when_settled_then_the_floor_is_told_again() {
        let mut keeper = Keeper::default();
        keeper.heard(Some(&name("s")), &floored(3, 0));
        keeper.heard(Some(&name("s")), &floored(3, 7));
        assert_eq!(told(&mut keeper), [(3, 7, 0)]);
        let stream = keeper.stream(3).expect("known");
        keeper.settled(&stream, 7);
        assert!(keeper.errand().is_none());
        keeper.settled(&stream, 6);
        assert_eq!(told(&mut keeper), [(3, 7, 7)]);
        keeper.heard(Some(&name("s")), &floored(3, STORED_INTEGER_MAX));
        assert_eq!(told(&mut keeper), [(3, STORED_INTEGER_MAX, 7)]);
        keeper.settled(&stream, 8);
        assert_eq!(
            told(&mut keeper),
            [(3, STORED_INTEGER_MAX, STORED_INTEGER_MAX)],
            "of a stream that is gone"
        );
        assert!(keeper.is_empty());
    }

    #[test]
    fn given_a_look_when_this_node_heard_something_newer_then_that_counts() {
        let mut keeper = Keeper::default();
        for stream in [3, 4, 5] {
            keeper.adopt(&name(&stream.to_string()), StreamFloor { stream, floor: 1 });
        }
        let look = keeper.look();
        keeper.heard(Some(&name("4")), &floored(4, 9));
        let found = |stream: u64, floor| (name(&stream.to_string()), StreamFloor { stream, floor });
        keeper.looked(look, 0, &[found(3, 2), found(4, 6)], true);
        assert_eq!(told(&mut keeper), [(4, 9, 1), (3, 2, 1)]);
        keeper.looked(keeper.look(), 4, &[], false);
        assert_eq!(told(&mut keeper), [(5, STORED_INTEGER_MAX, 1)], "deleted by another node");
        assert_eq!(keeper.len(), 2);
    }

    #[test]
    fn given_an_append_when_shared_out_then_each_payload_is_taken_once_and_settles_at_its_newest_offset() {
        let item = |number: u64| {
            let payload = PayloadId::mint(number, number);
            StreamItem { payload, event_time: None, duration_ns: 0, tags: Vec::new() }
        };
        let items: Vec<StreamItem> = (0..600).map(|number| item(number % 300)).collect();
        let mut keeper = Keeper::default();
        let taken = keeper.take(NamespaceId::DEFAULT, &items, 1);
        assert_eq!(taken.iter().map(|some| some.payloads.len()).collect::<Vec<_>>(), [256, 44]);
        let newest = newest_offsets(&items, 10);
        assert_eq!(newest[&items[0].payload], 310);
        let stream = keeper.adopt(&name("s"), StreamFloor { stream: 1, floor: 0 });
        let Hold::Settle { held: Some(held), .. } = taken[1].settle(&stream, &newest) else {
            panic!("settled")
        };
        assert!(held.entries.len() == 44 && held.entries.iter().all(|(offset, _)| *offset >= 310));
    }
}
