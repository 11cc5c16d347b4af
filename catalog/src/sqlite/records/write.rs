//! Writing records.

use payload_types::record::{LineageEdge, MetadataEvent, StreamLimits, StreamName};
use payload_types::upload::{UploadEntry, UploadPart};
use payload_types::{NamespaceId, PayloadId, PayloadKey, WallMs};
use rusqlite::params;

use super::{SqliteTables, bound};
use crate::error::StoreError;
use crate::records::tables::{Batch, Garbage, History, Note, StreamRow, TablesMut};
use crate::sqlite::errors::rolled_back;

const HISTORY_ADD: &str = "INSERT INTO history (namespace, payload, events, current) VALUES (?1, ?2, 0, 0)";
const HISTORY_SET: &str = "UPDATE history SET events = ?2, current = ?3, terms = ?4 WHERE id = ?1";
const TERM_ADD: &str =
    "INSERT INTO metadata_term (namespace, payload, term) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
const TERM_REMOVE: &str = "DELETE FROM metadata_term WHERE namespace = ?1 AND payload = ?2 AND term = ?3";
const HISTORY_REMOVE: &str = "DELETE FROM history WHERE namespace = ?1 AND payload = ?2";
const EVENT_ADD: &str = "INSERT INTO event (history, number, at, kind, data, schema, source, reason, version)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
const EVENTS_REMOVE: &str = "DELETE FROM event WHERE history = ?1 AND number IN
    (SELECT number FROM event WHERE history = ?1 ORDER BY number LIMIT ?2)";
const EDGE_PUT: &str = "INSERT INTO lineage (namespace, child, parent, operation, role, parameters)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6)
    ON CONFLICT (namespace, child, parent, operation, role) DO UPDATE SET parameters = excluded.parameters";
const EDGES_REMOVE_UP: &str = "DELETE FROM lineage WHERE namespace = ?1 AND child = ?2";
// As in reading: left alone, SQLite would look at all edges.
const EDGES_REMOVE_DOWN: &str =
    "DELETE FROM lineage INDEXED BY lineage_down WHERE namespace = ?1 AND parent = ?2";
const STREAM_ADD: &str = "INSERT INTO stream
    (namespace, name, entries_max, age_ms_max, retains, first, next, last_at, due_at, created_at)
    VALUES (?1, ?2, ?3, ?4, ?5, 0, 0, 0, NULL, ?6)";
const STREAM_SET: &str = "UPDATE stream SET first = ?2, next = ?3, last_at = ?4, due_at = ?5 WHERE id = ?1";
const STREAM_REMOVE: &str = "DELETE FROM stream WHERE id = ?1";
const BATCH_ADD: &str = "INSERT INTO stream_batch (stream, first, count, appended_at, entries)
    VALUES (?1, ?2, ?3, ?4, ?5)";
// Batches follow each other: of those that begin before, all but the last one end there, too.
const BATCHES_REMOVE: &str = "DELETE FROM stream_batch WHERE stream = ?1 AND first IN
    (SELECT first FROM stream_batch WHERE stream = ?1 AND first < ?2 AND first + count <= ?2
     ORDER BY first LIMIT ?3)";
const GROUP_SET: &str = "INSERT INTO stream_group (stream, name, next, at) VALUES (?1, ?2, ?3, ?4)
    ON CONFLICT (stream, name) DO UPDATE SET next = excluded.next, at = excluded.at";
const GROUPS_REMOVE: &str = "DELETE FROM stream_group WHERE stream = ?1 AND name IN
    (SELECT name FROM stream_group WHERE stream = ?1 ORDER BY name LIMIT ?2)";
const GROUP_REMOVE: &str = "DELETE FROM stream_group WHERE stream = ?1 AND name = ?2";
const NOTE_SET: &str =
    "INSERT INTO call_note (call, request, at, about, first, last) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
    ON CONFLICT (call) DO UPDATE SET request = excluded.request, at = excluded.at, about = excluded.about,
        first = excluded.first, last = excluded.last";
const NOTES_REMOVE: &str = "DELETE FROM call_note WHERE call IN
    (SELECT call FROM call_note WHERE at <= ?1 ORDER BY at LIMIT ?2)";
const UPLOAD_ADD: &str =
    "INSERT INTO object_upload (payload, removal, generation, size, part_bytes, compression, upload)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
const UPLOAD_NAME: &str = "UPDATE object_upload SET upload = ?2 WHERE payload = ?1";
const UPLOAD_PART: &str = "INSERT INTO object_part (payload, number, tag, hash)
    SELECT payload, ?2, ?3, ?4 FROM object_upload WHERE payload = ?1
    ON CONFLICT (payload, number) DO UPDATE SET tag = excluded.tag, hash = excluded.hash";
const UPLOAD_REMOVE: &str = "DELETE FROM object_upload WHERE payload = ?1";
const GARBAGE_ADD: &str = "INSERT INTO garbage (kind, id) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
const GARBAGE_REMOVE: &str = "DELETE FROM garbage WHERE kind = ?1 AND id = ?2";
const DIRTY_ADD: &str =
    "INSERT INTO lineage_dirty (namespace, payload) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
const DIRTY_REMOVE: &str = "DELETE FROM lineage_dirty WHERE namespace = ?1 AND payload = ?2";
const WALK_ADD: &str = "INSERT INTO lineage_walk (namespace, payload, expanded) VALUES (?1, ?2, 0)
    ON CONFLICT DO NOTHING";
const WALK_EXPANDED: &str = "UPDATE lineage_walk SET expanded = 1 WHERE namespace = ?1 AND payload = ?2";
const WALK_REMOVE: &str = "DELETE FROM lineage_walk WHERE namespace = ?1 AND payload = ?2";
// These two look at the whole walk, which is what they are for. A walk stays in one namespace.
const WALK_SETTLED: &str = "DELETE FROM lineage_dirty
    WHERE namespace = (SELECT namespace FROM lineage_walk LIMIT 1)
        AND payload IN (SELECT payload FROM lineage_walk)";
const WALK_CLEAR: &str = "DELETE FROM lineage_walk";

/// Every statement of this file that goes by a key.
#[cfg(test)]
pub(in crate::sqlite) const ALL: [&str; 30] = [
    HISTORY_ADD,
    HISTORY_SET,
    TERM_ADD,
    TERM_REMOVE,
    HISTORY_REMOVE,
    EVENT_ADD,
    EVENTS_REMOVE,
    EDGE_PUT,
    EDGES_REMOVE_UP,
    EDGES_REMOVE_DOWN,
    STREAM_ADD,
    STREAM_SET,
    STREAM_REMOVE,
    BATCH_ADD,
    BATCHES_REMOVE,
    GROUP_SET,
    GROUPS_REMOVE,
    GROUP_REMOVE,
    NOTE_SET,
    NOTES_REMOVE,
    UPLOAD_ADD,
    UPLOAD_NAME,
    UPLOAD_PART,
    UPLOAD_REMOVE,
    GARBAGE_ADD,
    GARBAGE_REMOVE,
    DIRTY_ADD,
    DIRTY_REMOVE,
    WALK_EXPANDED,
    WALK_REMOVE,
];

/// Terms as the column of a history has them.
pub(in crate::sqlite) fn terms_bytes(terms: &[u64]) -> Vec<u8> {
    terms.iter().flat_map(|term| term.to_le_bytes()).collect()
}

impl SqliteTables<'_> {
    fn run_for_terms(&self, sql: &str, key: PayloadKey, terms: &[u64]) -> Result<(), StoreError> {
        let mut statement = self.statement(sql)?;
        let (namespace, payload) = bound(&key);
        for term in terms {
            let values = params![namespace, payload, term.cast_signed()];
            statement.execute(values).map_err(|error| rolled_back(&error))?;
        }
        Ok(())
    }
}

impl TablesMut for SqliteTables<'_> {
    fn history_add(&mut self, key: PayloadKey) -> Result<History, StoreError> {
        self.run(HISTORY_ADD, bound(&key))?;
        Ok(History {
            id: self.0.last_insert_rowid().cast_unsigned(),
            events: 0,
            current: 0,
            terms: Vec::new(),
        })
    }

    fn history_set(&mut self, _key: PayloadKey, history: &History) -> Result<(), StoreError> {
        let History { id, events, current, terms } = history;
        let values = params![*id as i64, *events as i64, *current as i64, terms_bytes(terms)];
        self.run(HISTORY_SET, values).map(drop)
    }

    fn terms_add(&mut self, key: PayloadKey, terms: &[u64]) -> Result<(), StoreError> {
        self.run_for_terms(TERM_ADD, key, terms)
    }

    fn terms_remove(&mut self, key: PayloadKey, terms: &[u64]) -> Result<(), StoreError> {
        self.run_for_terms(TERM_REMOVE, key, terms)
    }

    fn history_remove(&mut self, key: PayloadKey) -> Result<(), StoreError> {
        self.run(HISTORY_REMOVE, bound(&key)).map(drop)
    }

    fn event_add(&mut self, history: u64, event: &MetadataEvent) -> Result<(), StoreError> {
        let values = params![
            history as i64,
            event.number as i64,
            event.at.as_millis() as i64,
            event.kind as u8,
            event.metadata.data,
            event.metadata.schema.as_bytes(),
            event.source.as_bytes(),
            event.reason.as_bytes(),
            event.version.as_bytes(),
        ];
        self.run(EVENT_ADD, values).map(drop)
    }

    fn events_remove(&mut self, history: u64, count_max: u64) -> Result<u64, StoreError> {
        self.run(EVENTS_REMOVE, [history as i64, count_max as i64])
    }

    fn edges_put(&mut self, namespace: NamespaceId, edges: &[LineageEdge]) -> Result<(), StoreError> {
        let mut statement = self.statement(EDGE_PUT)?;
        for LineageEdge { child, parent, operation, role, parameters } in edges {
            let (child, parent) = (&child.as_bytes()[..], &parent.as_bytes()[..]);
            let values =
                params![namespace.0, child, parent, operation.as_bytes(), role.as_bytes(), parameters];
            statement.execute(values).map_err(|error| rolled_back(&error))?;
        }
        Ok(())
    }

    fn edges_remove(&mut self, key: PayloadKey) -> Result<u64, StoreError> {
        Ok(self.run(EDGES_REMOVE_UP, bound(&key))? + self.run(EDGES_REMOVE_DOWN, bound(&key))?)
    }

    fn stream_add(&mut self, name: &StreamName, limits: StreamLimits, at: WallMs) -> Result<(), StoreError> {
        let values = params![
            name.namespace.as_bytes(),
            name.name.as_bytes(),
            limits.entries_max.map(u64::cast_signed),
            limits.age_ms_max.map(u64::cast_signed),
            limits.retains_payloads,
            at.as_millis() as i64,
        ];
        self.run(STREAM_ADD, values).map(drop)
    }

    fn stream_set(&mut self, stream: &StreamRow) -> Result<(), StoreError> {
        let values = params![
            stream.id as i64,
            stream.first as i64,
            stream.next as i64,
            stream.last_at.as_millis() as i64,
            stream.due_at.map(|at| at.as_millis() as i64),
        ];
        self.run(STREAM_SET, values).map(drop)
    }

    fn stream_remove(&mut self, stream: &StreamRow) -> Result<(), StoreError> {
        self.run(STREAM_REMOVE, [stream.id as i64]).map(drop)
    }

    fn batch_add(&mut self, stream: u64, batch: Batch, entries: &[u8]) -> Result<(), StoreError> {
        let (first, count) = (batch.first as i64, batch.count as i64);
        let values = params![stream as i64, first, count, batch.appended_at.as_millis() as i64, entries];
        self.run(BATCH_ADD, values).map(drop)
    }

    fn batches_remove(&mut self, stream: u64, below: u64, count_max: u64) -> Result<u64, StoreError> {
        let below = i64::try_from(below).unwrap_or(i64::MAX);
        self.run(BATCHES_REMOVE, [stream as i64, below, count_max as i64])
    }

    fn group_set(&mut self, stream: u64, group: &str, next: u64, at: WallMs) -> Result<(), StoreError> {
        let values = params![stream as i64, group.as_bytes(), next as i64, at.as_millis() as i64];
        self.run(GROUP_SET, values).map(drop)
    }

    fn group_remove(&mut self, stream: u64, group: &str) -> Result<(), StoreError> {
        self.run(GROUP_REMOVE, params![stream as i64, group.as_bytes()]).map(drop)
    }

    fn note_set(&mut self, call: &str, note: Note, _forgotten_at: WallMs) -> Result<(), StoreError> {
        let Note { request, at, about, first, last } = note;
        let at = at.as_millis() as i64;
        let values = params![call.as_bytes(), request as i64, at, about as i64, first as i64, last as i64];
        self.run(NOTE_SET, values).map(drop)
    }

    fn notes_remove(&mut self, at: WallMs, count_max: u64) -> Result<u64, StoreError> {
        self.run(NOTES_REMOVE, [at.as_millis() as i64, count_max as i64])
    }

    fn groups_remove(&mut self, stream: u64, count_max: u64) -> Result<u64, StoreError> {
        self.run(GROUPS_REMOVE, [stream as i64, count_max as i64])
    }

    fn upload_add(&mut self, entry: &UploadEntry) -> Result<(), StoreError> {
        let values = params![
            &entry.id.as_bytes()[..],
            entry.is_removal,
            entry.generation.0 as i64,
            entry.size.0 as i64,
            entry.part_bytes as i64,
            entry.compression,
            entry.upload,
        ];
        self.run(UPLOAD_ADD, values).map(drop)
    }

    fn upload_name(&mut self, id: PayloadId, upload: &str) -> Result<(), StoreError> {
        self.run(UPLOAD_NAME, params![&id.as_bytes()[..], upload]).map(drop)
    }

    fn upload_part(&mut self, id: PayloadId, part: &UploadPart) -> Result<(), StoreError> {
        let values = params![&id.as_bytes()[..], part.index, part.tag, part.hash.cast_signed()];
        self.run(UPLOAD_PART, values).map(drop)
    }

    fn upload_remove(&mut self, id: PayloadId) -> Result<(), StoreError> {
        self.run(UPLOAD_REMOVE, [&id.as_bytes()[..]]).map(drop)
    }

    fn garbage_add(&mut self, garbage: Garbage, id: u64) -> Result<(), StoreError> {
        self.run(GARBAGE_ADD, [garbage as i64, id as i64]).map(drop)
    }

    fn garbage_remove(&mut self, garbage: Garbage, id: u64) -> Result<(), StoreError> {
        self.run(GARBAGE_REMOVE, [garbage as i64, id as i64]).map(drop)
    }

    fn dirty_add(&mut self, key: PayloadKey) -> Result<(), StoreError> {
        self.run(DIRTY_ADD, bound(&key)).map(drop)
    }

    fn dirty_remove(&mut self, key: PayloadKey) -> Result<(), StoreError> {
        self.run(DIRTY_REMOVE, bound(&key)).map(drop)
    }

    fn walk_add(&mut self, keys: &[PayloadKey]) -> Result<(), StoreError> {
        let mut statement = self.statement(WALK_ADD)?;
        for key in keys {
            statement.execute(bound(key)).map_err(|error| rolled_back(&error))?;
        }
        Ok(())
    }

    fn walk_expanded(&mut self, key: PayloadKey) -> Result<(), StoreError> {
        self.run(WALK_EXPANDED, bound(&key)).map(drop)
    }

    fn walk_remove(&mut self, key: PayloadKey) -> Result<(), StoreError> {
        self.run(WALK_REMOVE, bound(&key)).map(drop)
    }

    fn walk_end(&mut self) -> Result<(), StoreError> {
        self.run(WALK_SETTLED, [])?;
        self.run(WALK_CLEAR, []).map(drop)
    }
}
