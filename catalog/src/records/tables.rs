//! What a backend must be able to do for records: small operations on its tables, each one statement or a few.
//!
//! The rules (what an append is, what a merge is, when an edge goes) are written once, in this folder, over these traits;
//! a backend implements them over one open transaction, so that all calls of one change, or of one query, see one state.
//! Numbers fit into signed 64 bits. Strings are any UTF-8, NULs included, kept and compared byte for byte.

use payload_types::find::{FindOrder, IdSpan};
use payload_types::record::{LineageEdge, Metadata, MetadataEvent, StreamGroup, StreamLimits, StreamName};
use payload_types::upload::{UploadEntry, UploadPart};
use payload_types::{Health, NamespaceId, PayloadId, PayloadKey, PayloadState, WallMs};

use crate::error::StoreError;

/// What of a payload's row decides whether records may refer to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Standing {
    pub(crate) state: PayloadState,
    pub(crate) expires_at: Option<WallMs>,
    pub(crate) health: Health,
}

/// The metadata of a payload: its events, of which one holds what is current.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct History {
    /// Names the events: never used again, also when the payload is stored anew.
    pub(crate) id: u64,
    /// How many there are; they are numbered from 1 on.
    pub(crate) events: u64,
    /// The event that holds what is current; 0: none was set.
    pub(crate) current: u64,
    /// The terms by which what is current is found (`terms`).
    pub(crate) terms: Vec<u64>,
}

/// Payloads of one namespace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Payloads<'ids> {
    pub(crate) namespace: NamespaceId,
    pub(crate) ids: &'ids [PayloadId],
}

impl Payloads<'_> {
    /// Them, one by one.
    pub(crate) fn keys(&self) -> impl Iterator<Item = PayloadKey> {
        self.ids.iter().map(|id| PayloadKey { namespace: self.namespace, id: *id })
    }
}

/// Takes what was found, until it returns false.
pub(crate) type Each<'a, T> = &'a mut dyn FnMut(T) -> bool;

/// A payload with its current metadata.
pub(crate) type Found = (PayloadId, Metadata);

/// Events of a history with a number greater than `after`, at most so many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct EventSpan {
    pub(crate) history: u64,
    pub(crate) after: u64,
    pub(crate) count_max: usize,
}

/// Where payloads with a term are looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TermSpan {
    pub(crate) namespace: NamespaceId,
    pub(crate) term: u64,
    pub(crate) span: IdSpan,
    pub(crate) order: FindOrder,
}

/// A stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct StreamRow {
    /// Names its batches and groups; a later stream of the same name has a greater one.
    pub(crate) id: u64,
    pub(crate) name: StreamName,
    pub(crate) limits: StreamLimits,
    /// The oldest entry that is kept; `next` when there is none. Batches before it may not be removed yet.
    pub(crate) first: u64,
    /// The offset of the next entry.
    pub(crate) next: u64,
    /// When the last entry was appended; 0: never. Later ones are not older.
    pub(crate) last_at: WallMs,
    /// When a sweep may find something to remove.
    pub(crate) due_at: Option<WallMs>,
}

/// Entries that were appended together, without the entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Batch {
    /// The offset of the first.
    pub(crate) first: u64,
    /// How many: at least one.
    pub(crate) count: u64,
    pub(crate) appended_at: WallMs,
}

impl Batch {
    /// The offset behind the last.
    pub(crate) fn end(&self) -> u64 {
        self.first.saturating_add(self.count)
    }
}

/// What a call made that a client may send again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Note {
    /// A hash of what was asked.
    pub(crate) request: u64,
    pub(crate) at: WallMs,
    /// The stream, or the history.
    pub(crate) about: u64,
    /// Offsets, or the number of the event.
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// What is named no more and is removed bit by bit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub(crate) enum Garbage {
    /// Batches and groups of a deleted stream.
    Stream = 1,
    /// Events of a removed payload.
    History = 2,
}

/// Reading.
pub(crate) trait Tables {
    /// Of each of them, in their order.
    fn standings(&mut self, of: Payloads<'_>) -> Result<Vec<Option<Standing>>, StoreError>;

    /// The metadata of a payload, if it ever had any.
    fn history(&mut self, key: PayloadKey) -> Result<Option<History>, StoreError>;

    /// Events of a history in order, until `each` returns false.
    fn events(&mut self, span: EventSpan, each: Each<'_, MetadataEvent>) -> Result<(), StoreError>;

    /// The payloads of a span with its term, in its order, at most so many.
    fn term_payloads(&mut self, span: TermSpan, count_max: usize) -> Result<Vec<PayloadId>, StoreError>;

    /// The current metadata of those that have any, in their order, until `each` returns false; without their
    /// data unless `with_data`.
    fn metadata_of(
        &mut self,
        of: Payloads<'_>,
        with_data: bool,
        each: Each<'_, Found>,
    ) -> Result<(), StoreError>;

    /// Edges of which the child (`upstream`) or the parent is one of them, in any order, until `each` returns false.
    fn edges(
        &mut self,
        of: Payloads<'_>,
        upstream: bool,
        each: Each<'_, LineageEdge>,
    ) -> Result<(), StoreError>;

    /// Word that `edges` will be asked step by step from `from` on, at most so many steps (0: all): a backend that is
    /// far away may fetch them at once.
    fn edges_ahead(&mut self, _from: PayloadKey, _upstream: bool, _depth_max: u32) -> Result<(), StoreError> {
        Ok(())
    }

    /// The stream of this name.
    fn stream(&mut self, name: &StreamName) -> Result<Option<StreamRow>, StoreError>;

    /// (id, next) of each stream, in their order. A backend that is far away asks once.
    fn stream_ends(&mut self, names: &[StreamName]) -> Result<Vec<Option<(u64, u64)>>, StoreError> {
        let end = |name| Ok(self.stream(name)?.map(|stream| (stream.id, stream.next)));
        names.iter().map(end).collect()
    }

    /// Streams in the order of (namespace, name), those behind `after`, at most so many.
    fn streams(&mut self, after: Option<&StreamName>, count_max: usize)
    -> Result<Vec<StreamRow>, StoreError>;

    /// The last batch that begins at `offset` or before.
    fn batch_at(&mut self, stream: u64, offset: u64) -> Result<Option<Batch>, StoreError>;

    /// Batches that begin at `first` or later, in order, with their entries as `codec` wrote them, until `each` returns
    /// false.
    #[allow(clippy::type_complexity, reason = "a name for it would say less")]
    fn batches(
        &mut self,
        stream: u64,
        first: u64,
        each: &mut dyn FnMut(Batch, &[u8]) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError>;

    /// The least offset that a group of this stream wants next, if there is a group.
    fn groups_floor(&mut self, stream: u64) -> Result<Option<u64>, StoreError>;

    /// Streams that retain payloads, in the order of their ids, those with a greater one than `after`, at most so many.
    fn streams_retaining(&mut self, after: u64, count_max: usize) -> Result<Vec<StreamRow>, StoreError>;

    /// How far a group has come.
    fn committed(&mut self, stream: u64, group: &str) -> Result<Option<u64>, StoreError>;

    /// Groups of a stream in the order of their names, those behind `after`, at most so many.
    fn groups(&mut self, stream: u64, after: &str, count_max: usize) -> Result<Vec<StreamGroup>, StoreError>;

    /// What a call made.
    fn note(&mut self, call: &str) -> Result<Option<Note>, StoreError>;

    /// Whether any note was made at `at` or before.
    fn notes_due(&mut self, at: WallMs) -> Result<bool, StoreError>;

    /// Streams with `due_at` <= `at`, earliest first, at most so many.
    fn streams_due(&mut self, at: WallMs, count_max: usize) -> Result<Vec<StreamRow>, StoreError>;

    /// Something of what is named no more.
    fn garbage_next(&mut self) -> Result<Option<(Garbage, u64)>, StoreError>;

    /// A removed payload that had edges, of which nobody has found out yet whether something living is connected.
    fn dirty_next(&mut self) -> Result<Option<PayloadKey>, StoreError>;

    /// A payload of the walk whose neighbours were not looked at (`expanded` false), or were.
    fn walk_next(&mut self, expanded: bool) -> Result<Option<PayloadKey>, StoreError>;
}

/// Writing.
pub(crate) trait TablesMut: Tables {
    /// Gives a payload that has none an empty history.
    fn history_add(&mut self, key: PayloadKey) -> Result<History, StoreError>;

    /// Stores `events`, `current` and `terms` of a payload's history.
    fn history_set(&mut self, key: PayloadKey, history: &History) -> Result<(), StoreError>;

    /// A payload is found by these terms, by which it was not.
    fn terms_add(&mut self, key: PayloadKey, terms: &[u64]) -> Result<(), StoreError>;

    /// A payload is not found by these terms any more.
    fn terms_remove(&mut self, key: PayloadKey, terms: &[u64]) -> Result<(), StoreError>;

    /// Takes a payload's history away; its events stay.
    fn history_remove(&mut self, key: PayloadKey) -> Result<(), StoreError>;

    /// Adds an event.
    fn event_add(&mut self, history: u64, event: &MetadataEvent) -> Result<(), StoreError>;

    /// Removes events of a history, at most so many; returns how many.
    fn events_remove(&mut self, history: u64, count_max: u64) -> Result<u64, StoreError>;

    /// Adds edges; one with the same child, parent, operation and role is replaced.
    fn edges_put(&mut self, namespace: NamespaceId, edges: &[LineageEdge]) -> Result<(), StoreError>;

    /// Removes all edges of which a payload is child or parent; returns how many.
    fn edges_remove(&mut self, key: PayloadKey) -> Result<u64, StoreError>;

    /// Adds an empty stream, of which there is none of this name.
    fn stream_add(&mut self, name: &StreamName, limits: StreamLimits, at: WallMs) -> Result<(), StoreError>;

    /// Stores `first`, `next`, `last_at` and `due_at`.
    fn stream_set(&mut self, stream: &StreamRow) -> Result<(), StoreError>;

    /// Removes a stream; its batches and groups stay.
    fn stream_remove(&mut self, stream: &StreamRow) -> Result<(), StoreError>;

    /// Adds a batch.
    fn batch_add(&mut self, stream: u64, batch: Batch, entries: &[u8]) -> Result<(), StoreError>;

    /// Removes the oldest batches that end at `below` or before, at most so many; returns how many.
    fn batches_remove(&mut self, stream: u64, below: u64, count_max: u64) -> Result<u64, StoreError>;

    /// Stores how far a group has come.
    fn group_set(&mut self, stream: u64, group: &str, next: u64, at: WallMs) -> Result<(), StoreError>;

    /// Removes a group.
    fn group_remove(&mut self, stream: u64, group: &str) -> Result<(), StoreError>;

    /// Notes what a call made, of which there is no note but one made at `forgotten_at` or before.
    fn note_set(&mut self, call: &str, note: Note, forgotten_at: WallMs) -> Result<(), StoreError>;

    /// Removes notes made at `at` or before, at most so many; returns how many.
    fn notes_remove(&mut self, at: WallMs, count_max: u64) -> Result<u64, StoreError>;

    /// Removes groups, at most so many; returns how many.
    fn groups_remove(&mut self, stream: u64, count_max: u64) -> Result<u64, StoreError>;

    /// Names something that is to be removed bit by bit.
    fn garbage_add(&mut self, garbage: Garbage, id: u64) -> Result<(), StoreError>;

    /// It is removed.
    fn garbage_remove(&mut self, garbage: Garbage, id: u64) -> Result<(), StoreError>;

    /// Notes a removed payload that has edges; once is enough.
    fn dirty_add(&mut self, key: PayloadKey) -> Result<(), StoreError>;

    /// It is settled, or there is none.
    fn dirty_remove(&mut self, key: PayloadKey) -> Result<(), StoreError>;

    /// Keeps an entry of the upload journal, without its parts; the payload has none.
    fn upload_add(&mut self, entry: &UploadEntry) -> Result<(), StoreError>;

    /// Names an upload, if there is an entry.
    fn upload_name(&mut self, id: PayloadId, upload: &str) -> Result<(), StoreError>;

    /// Adds or replaces a part, if there is an entry.
    fn upload_part(&mut self, id: PayloadId, part: &UploadPart) -> Result<(), StoreError>;

    /// Removes an entry with its parts, if there is one.
    fn upload_remove(&mut self, id: PayloadId) -> Result<(), StoreError>;

    /// Puts payloads into the walk, not expanded; those that are in it stay as they are.
    fn walk_add(&mut self, keys: &[PayloadKey]) -> Result<(), StoreError>;

    /// The neighbours of a payload of the walk are in it, too.
    fn walk_expanded(&mut self, key: PayloadKey) -> Result<(), StoreError>;

    /// Takes a payload out of the walk.
    fn walk_remove(&mut self, key: PayloadKey) -> Result<(), StoreError>;

    /// Ends the walk: it is empty, and nothing that was in it is dirty any more.
    fn walk_end(&mut self) -> Result<(), StoreError>;
}
