//! The tables of records in memory: ordered maps, so that everything comes in the order in which a database has it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};

use payload_types::find::FindOrder;
use payload_types::record::{LineageEdge, Metadata, MetadataEvent, StreamGroup, StreamLimits, StreamName};
use payload_types::upload::{UploadEntry, UploadPart};
use payload_types::{ByteCount, Generation, NamespaceId, PayloadId, PayloadKey, WallMs};

use super::State;
use crate::error::StoreError;
use crate::records::tables::{
    Batch, Each, EventSpan, Found, Garbage, History, Note, Payloads, Standing, StreamRow, Tables, TablesMut,
    TermSpan,
};

/// Records and what cleaning them up has to do.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Records {
    histories: BTreeMap<PayloadKey, History>,
    histories_made: u64,
    events: BTreeMap<(u64, u64), MetadataEvent>,
    terms: BTreeSet<(NamespaceId, u64, PayloadId)>,
    /// By (namespace, child, parent, operation, role), with the parameters.
    edges: BTreeMap<(NamespaceId, PayloadId, PayloadId, String, String), Vec<u8>>,
    /// (namespace, parent, child, operation, role) of the same.
    edges_down: BTreeSet<(NamespaceId, PayloadId, PayloadId, String, String)>,
    streams: BTreeMap<StreamName, StreamRow>,
    streams_made: u64,
    batches: BTreeMap<(u64, u64), (Batch, Vec<u8>)>,
    groups: BTreeMap<(u64, String), (u64, WallMs)>,
    notes: BTreeMap<String, Note>,
    notes_by_time: BTreeSet<(WallMs, String)>,
    garbage: BTreeSet<(Garbage, u64)>,
    dirty: BTreeSet<PayloadKey>,
    /// Whether each was expanded.
    walk: BTreeMap<PayloadKey, bool>,
    uploads: BTreeMap<PayloadId, UploadEntry>,
}

impl Records {
    /// A row names the payload's object.
    pub(super) fn upload_named_by_row(&mut self, id: PayloadId) {
        if self.uploads.get(&id).is_some_and(|entry| !entry.is_removal) {
            self.uploads.remove(&id);
        }
    }

    /// The row that named the payload's object is gone.
    pub(super) fn upload_orphaned(&mut self, id: PayloadId, generation: Generation, size: ByteCount) {
        let entry = UploadEntry {
            id,
            generation,
            is_removal: true,
            size,
            part_bytes: 0,
            compression: 0,
            upload: None,
            parts: Vec::new(),
        };
        self.uploads.entry(id).or_insert(entry).is_removal = true;
    }

    /// All entries, by id.
    pub(super) fn uploads(&self) -> Vec<UploadEntry> {
        self.uploads.values().cloned().collect()
    }
}

impl Tables for State {
    fn standings(&mut self, of: Payloads<'_>) -> Result<Vec<Option<Standing>>, StoreError> {
        let standing = |key| {
            self.rows.get(&key).map(|row| Standing {
                state: row.state,
                expires_at: row.expires_at,
                health: row.health,
            })
        };
        Ok(of.keys().map(standing).collect())
    }

    fn history(&mut self, key: PayloadKey) -> Result<Option<History>, StoreError> {
        Ok(self.records.histories.get(&key).cloned())
    }

    fn events(&mut self, span: EventSpan, each: Each<'_, MetadataEvent>) -> Result<(), StoreError> {
        let EventSpan { history, after, count_max } = span;
        let range = (Excluded((history, after)), Excluded((history + 1, 0)));
        for (_, event) in self.records.events.range(range).take(count_max) {
            if !each(event.clone()) {
                break;
            }
        }
        Ok(())
    }

    fn term_payloads(&mut self, span: TermSpan, count_max: usize) -> Result<Vec<PayloadId>, StoreError> {
        let TermSpan { namespace, term, span, order } = span;
        // A range of a map may not end before it begins.
        if span.is_empty() {
            return Ok(Vec::new());
        }
        let found = self.records.terms.range((namespace, term, span.low)..=(namespace, term, span.high));
        let ids = found.map(|(_, _, id)| *id);
        Ok(match order {
            FindOrder::NewestFirst => ids.rev().take(count_max).collect(),
            FindOrder::OldestFirst => ids.take(count_max).collect(),
        })
    }

    fn metadata_of(
        &mut self,
        of: Payloads<'_>,
        with_data: bool,
        each: Each<'_, Found>,
    ) -> Result<(), StoreError> {
        for key in of.keys() {
            let history = self.records.histories.get(&key);
            let event = history.and_then(|found| self.records.events.get(&(found.id, found.current)));
            let Some(MetadataEvent { metadata, .. }) = event else { continue };
            let data = if with_data { metadata.data.clone() } else { Vec::new() };
            if !each((key.id, Metadata { data, schema: metadata.schema.clone() })) {
                break;
            }
        }
        Ok(())
    }

    fn edges(
        &mut self,
        of: Payloads<'_>,
        upstream: bool,
        each: Each<'_, LineageEdge>,
    ) -> Result<(), StoreError> {
        let Payloads { namespace, ids } = of;
        let lowest = PayloadId::from_bytes([0; 16]);
        for id in ids {
            let from = (namespace, *id, lowest, String::new(), String::new());
            if upstream {
                let found = self
                    .records
                    .edges
                    .range(from..)
                    .take_while(|(key, _)| key.1 == *id && key.0 == namespace);
                for ((_, child, parent, operation, role), parameters) in found {
                    if !each(edge(*child, *parent, operation, role, parameters)) {
                        return Ok(());
                    }
                }
            } else {
                let found = self
                    .records
                    .edges_down
                    .range(from..)
                    .take_while(|key| key.1 == *id && key.0 == namespace);
                for (_, parent, child, operation, role) in found {
                    let key = (namespace, *child, *parent, operation.clone(), role.clone());
                    if !each(edge(*child, *parent, operation, role, &self.records.edges[&key])) {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    fn stream(&mut self, name: &StreamName) -> Result<Option<StreamRow>, StoreError> {
        Ok(self.records.streams.get(name).cloned())
    }

    fn streams(
        &mut self,
        after: Option<&StreamName>,
        count_max: usize,
    ) -> Result<Vec<StreamRow>, StoreError> {
        let from = after.map_or(Unbounded, Excluded);
        let found = self.records.streams.range((from, Unbounded)).take(count_max);
        Ok(found.map(|(_, stream)| stream.clone()).collect())
    }

    fn batch_at(&mut self, stream: u64, offset: u64) -> Result<Option<Batch>, StoreError> {
        let found = self.records.batches.range((stream, 0)..=(stream, offset)).next_back();
        Ok(found.map(|(_, (batch, _))| *batch))
    }

    fn batches(
        &mut self,
        stream: u64,
        first: u64,
        each: &mut dyn FnMut(Batch, &[u8]) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        for (batch, entries) in
            self.records.batches.range((stream, first)..(stream + 1, 0)).map(|found| found.1)
        {
            if !each(*batch, entries)? {
                break;
            }
        }
        Ok(())
    }

    fn groups_floor(&mut self, stream: u64) -> Result<Option<u64>, StoreError> {
        let groups = self.records.groups.range((stream, String::new())..(stream + 1, String::new()));
        Ok(groups.map(|(_, (next, _))| *next).min())
    }

    fn streams_retaining(&mut self, after: u64, count_max: usize) -> Result<Vec<StreamRow>, StoreError> {
        let retains = |stream: &&StreamRow| stream.limits.retains_payloads && stream.id > after;
        let mut found: Vec<StreamRow> = self.records.streams.values().filter(retains).cloned().collect();
        found.sort_by_key(|stream| stream.id);
        found.truncate(count_max);
        Ok(found)
    }

    fn committed(&mut self, stream: u64, group: &str) -> Result<Option<u64>, StoreError> {
        Ok(self.records.groups.get(&(stream, group.to_owned())).map(|(next, _)| *next))
    }

    fn groups(&mut self, stream: u64, after: &str, count_max: usize) -> Result<Vec<StreamGroup>, StoreError> {
        let range = (Excluded((stream, after.to_owned())), Excluded((stream + 1, String::new())));
        let found = self.records.groups.range(range).take(count_max);
        let group = |((_, name), (next, at)): (&(u64, String), &(u64, WallMs))| StreamGroup {
            name: name.clone(),
            next: *next,
            at: *at,
        };
        Ok(found.map(group).collect())
    }

    fn note(&mut self, call: &str) -> Result<Option<Note>, StoreError> {
        Ok(self.records.notes.get(call).copied())
    }

    fn notes_due(&mut self, at: WallMs) -> Result<bool, StoreError> {
        Ok(self.records.notes_by_time.first().is_some_and(|(oldest, _)| *oldest <= at))
    }

    fn streams_due(&mut self, at: WallMs, count_max: usize) -> Result<Vec<StreamRow>, StoreError> {
        let due = |stream: &&StreamRow| stream.due_at.is_some_and(|due_at| due_at <= at);
        let mut found: Vec<StreamRow> = self.records.streams.values().filter(due).cloned().collect();
        found.sort_by_key(|stream| (stream.due_at, stream.id));
        found.truncate(count_max);
        Ok(found)
    }

    fn garbage_next(&mut self) -> Result<Option<(Garbage, u64)>, StoreError> {
        Ok(self.records.garbage.first().copied())
    }

    fn dirty_next(&mut self) -> Result<Option<PayloadKey>, StoreError> {
        Ok(self.records.dirty.first().copied())
    }

    fn walk_next(&mut self, expanded: bool) -> Result<Option<PayloadKey>, StoreError> {
        Ok(self.records.walk.iter().find(|(_, is)| **is == expanded).map(|(key, _)| *key))
    }
}

impl TablesMut for State {
    fn history_add(&mut self, key: PayloadKey) -> Result<History, StoreError> {
        self.records.histories_made += 1;
        let history = History { id: self.records.histories_made, events: 0, current: 0, terms: Vec::new() };
        self.records.histories.insert(key, history.clone());
        Ok(history)
    }

    fn history_set(&mut self, key: PayloadKey, history: &History) -> Result<(), StoreError> {
        self.records.histories.insert(key, history.clone());
        Ok(())
    }

    fn terms_add(&mut self, key: PayloadKey, terms: &[u64]) -> Result<(), StoreError> {
        self.records.terms.extend(terms.iter().map(|term| (key.namespace, *term, key.id)));
        Ok(())
    }

    fn terms_remove(&mut self, key: PayloadKey, terms: &[u64]) -> Result<(), StoreError> {
        for term in terms {
            self.records.terms.remove(&(key.namespace, *term, key.id));
        }
        Ok(())
    }

    fn history_remove(&mut self, key: PayloadKey) -> Result<(), StoreError> {
        self.records.histories.remove(&key);
        Ok(())
    }

    fn event_add(&mut self, history: u64, event: &MetadataEvent) -> Result<(), StoreError> {
        self.records.events.insert((history, event.number), event.clone());
        Ok(())
    }

    fn events_remove(&mut self, history: u64, count_max: u64) -> Result<u64, StoreError> {
        let range = (history, 0)..(history + 1, 0);
        Ok(remove_some(&mut self.records.events, range, count_max))
    }

    fn edges_put(&mut self, namespace: NamespaceId, edges: &[LineageEdge]) -> Result<(), StoreError> {
        for LineageEdge { child, parent, operation, role, parameters } in edges {
            let (operation, role) = (operation.clone(), role.clone());
            self.records.edges_down.insert((namespace, *parent, *child, operation.clone(), role.clone()));
            self.records.edges.insert((namespace, *child, *parent, operation, role), parameters.clone());
        }
        Ok(())
    }

    fn edges_remove(&mut self, key: PayloadKey) -> Result<u64, StoreError> {
        let mut found = Vec::new();
        for upstream in [true, false] {
            self.edges(Payloads { namespace: key.namespace, ids: &[key.id] }, upstream, &mut |edge| {
                found.push(edge);
                true
            })?;
        }
        let before = self.records.edges.len();
        for LineageEdge { child, parent, operation, role, .. } in found {
            self.records.edges_down.remove(&(key.namespace, parent, child, operation.clone(), role.clone()));
            self.records.edges.remove(&(key.namespace, child, parent, operation, role));
        }
        Ok((before - self.records.edges.len()) as u64)
    }

    fn stream_add(&mut self, name: &StreamName, limits: StreamLimits, _at: WallMs) -> Result<(), StoreError> {
        self.records.streams_made += 1;
        let stream = StreamRow {
            id: self.records.streams_made,
            name: name.clone(),
            limits,
            first: 0,
            next: 0,
            last_at: WallMs::default(),
            due_at: None,
        };
        self.records.streams.insert(name.clone(), stream);
        Ok(())
    }

    fn stream_set(&mut self, stream: &StreamRow) -> Result<(), StoreError> {
        self.records.streams.insert(stream.name.clone(), stream.clone());
        Ok(())
    }

    fn stream_remove(&mut self, stream: &StreamRow) -> Result<(), StoreError> {
        self.records.streams.remove(&stream.name);
        Ok(())
    }

    fn batch_add(&mut self, stream: u64, batch: Batch, entries: &[u8]) -> Result<(), StoreError> {
        self.records.batches.insert((stream, batch.first), (batch, entries.to_vec()));
        Ok(())
    }

    fn batches_remove(&mut self, stream: u64, below: u64, count_max: u64) -> Result<u64, StoreError> {
        let old = self.records.batches.range((stream, 0)..(stream, below));
        let ended = old.take_while(|(_, (batch, _))| batch.end() <= below).count() as u64;
        let range = (stream, 0)..(stream, below);
        Ok(remove_some(&mut self.records.batches, range, count_max.min(ended)))
    }

    fn group_set(&mut self, stream: u64, group: &str, next: u64, at: WallMs) -> Result<(), StoreError> {
        self.records.groups.insert((stream, group.to_owned()), (next, at));
        Ok(())
    }

    fn group_remove(&mut self, stream: u64, group: &str) -> Result<(), StoreError> {
        self.records.groups.remove(&(stream, group.to_owned()));
        Ok(())
    }

    fn note_set(&mut self, call: &str, note: Note, _forgotten_at: WallMs) -> Result<(), StoreError> {
        if let Some(old) = self.records.notes.insert(call.to_owned(), note) {
            self.records.notes_by_time.remove(&(old.at, call.to_owned()));
        }
        self.records.notes_by_time.insert((note.at, call.to_owned()));
        Ok(())
    }

    fn notes_remove(&mut self, at: WallMs, count_max: u64) -> Result<u64, StoreError> {
        let mut removed = 0;
        while removed < count_max
            && let Some(first) = self.records.notes_by_time.first().filter(|(then, _)| *then <= at).cloned()
        {
            self.records.notes.remove(&first.1);
            self.records.notes_by_time.remove(&first);
            removed += 1;
        }
        Ok(removed)
    }

    fn groups_remove(&mut self, stream: u64, count_max: u64) -> Result<u64, StoreError> {
        let range = (stream, String::new())..(stream + 1, String::new());
        Ok(remove_some(&mut self.records.groups, range, count_max))
    }

    fn garbage_add(&mut self, garbage: Garbage, id: u64) -> Result<(), StoreError> {
        self.records.garbage.insert((garbage, id));
        Ok(())
    }

    fn garbage_remove(&mut self, garbage: Garbage, id: u64) -> Result<(), StoreError> {
        self.records.garbage.remove(&(garbage, id));
        Ok(())
    }

    fn dirty_add(&mut self, key: PayloadKey) -> Result<(), StoreError> {
        self.records.dirty.insert(key);
        Ok(())
    }

    fn dirty_remove(&mut self, key: PayloadKey) -> Result<(), StoreError> {
        self.records.dirty.remove(&key);
        Ok(())
    }

    fn upload_add(&mut self, entry: &UploadEntry) -> Result<(), StoreError> {
        self.records.uploads.insert(entry.id, UploadEntry { parts: Vec::new(), ..entry.clone() });
        Ok(())
    }

    fn upload_name(&mut self, id: PayloadId, upload: &str) -> Result<(), StoreError> {
        if let Some(entry) = self.records.uploads.get_mut(&id) {
            entry.upload = Some(upload.to_owned());
        }
        Ok(())
    }

    fn upload_part(&mut self, id: PayloadId, part: &UploadPart) -> Result<(), StoreError> {
        if let Some(entry) = self.records.uploads.get_mut(&id) {
            match entry.parts.binary_search_by_key(&part.index, |part| part.index) {
                Ok(place) => entry.parts[place] = part.clone(),
                Err(place) => entry.parts.insert(place, part.clone()),
            }
        }
        Ok(())
    }

    fn upload_remove(&mut self, id: PayloadId) -> Result<(), StoreError> {
        self.records.uploads.remove(&id);
        Ok(())
    }

    fn walk_add(&mut self, keys: &[PayloadKey]) -> Result<(), StoreError> {
        for key in keys {
            self.records.walk.entry(*key).or_insert(false);
        }
        Ok(())
    }

    fn walk_expanded(&mut self, key: PayloadKey) -> Result<(), StoreError> {
        self.records.walk.insert(key, true);
        Ok(())
    }

    fn walk_remove(&mut self, key: PayloadKey) -> Result<(), StoreError> {
        self.records.walk.remove(&key);
        Ok(())
    }

    fn walk_end(&mut self) -> Result<(), StoreError> {
        for key in std::mem::take(&mut self.records.walk).into_keys() {
            self.records.dirty.remove(&key);
        }
        Ok(())
    }
}

fn edge(child: PayloadId, parent: PayloadId, operation: &str, role: &str, parameters: &[u8]) -> LineageEdge {
    let (operation, role) = (operation.to_owned(), role.to_owned());
    LineageEdge { child, parent, operation, role, parameters: parameters.to_vec() }
}

/// Removes the first entries of a range, at most so many; returns how many.
fn remove_some<K: Ord + Clone, V>(
    map: &mut BTreeMap<K, V>,
    range: std::ops::Range<K>,
    count_max: u64,
) -> u64 {
    let keys: Vec<K> = map.range(range).take(count_max as usize).map(|(key, _)| key.clone()).collect();
    for key in &keys {
        map.remove(key);
    }
    keys.len() as u64
}
