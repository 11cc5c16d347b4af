//! Reading records. Every statement goes by a key or an index (asserted with EXPLAIN QUERY PLAN in a test).

use payload_types::find::{FindOrder, IdSpan};
use payload_types::record::{LineageEdge, MetadataEvent, StreamGroup, StreamName};
use payload_types::{PayloadId, PayloadKey, WallMs};
use rusqlite::{Row, Rows, params};

use super::{RowCells, SqliteTables, bound, strange};
use crate::error::StoreError;
use crate::records::cells::Cells;
use crate::records::tables::{
    Batch, Each, EventSpan, Found, Garbage, History, Note, Payloads, Standing, StreamRow, Tables, TermSpan,
};
use crate::sqlite::errors::rolled_back;

const STANDING: &str = "SELECT state, expires_at, health FROM payload WHERE namespace = ?1 AND id = ?2";
const HISTORY: &str = "SELECT id, events, current, terms FROM history WHERE namespace = ?1 AND payload = ?2";
const EVENTS: &str = "SELECT number, at, kind, data, schema, source, reason, version FROM event
    WHERE history = ?1 AND number > ?2 ORDER BY number LIMIT ?3";
const TERM_NEWEST: &str = "SELECT payload FROM metadata_term
    WHERE namespace = ?1 AND term = ?2 AND payload BETWEEN ?3 AND ?4 ORDER BY payload DESC LIMIT ?5";
const TERM_OLDEST: &str = "SELECT payload FROM metadata_term
    WHERE namespace = ?1 AND term = ?2 AND payload BETWEEN ?3 AND ?4 ORDER BY payload LIMIT ?5";
const CURRENT: &str = "SELECT CASE WHEN ?3 THEN event.data ELSE x'' END, event.schema
    FROM history CROSS JOIN event ON event.history = history.id AND event.number = history.current
    WHERE history.namespace = ?1 AND history.payload = ?2";
const EDGES_UP: &str = "SELECT child, parent, operation, role, parameters FROM lineage
    WHERE namespace = ?1 AND child = ?2";
// Left alone, SQLite takes the primary key here, of which the namespace alone is known: all edges.
const EDGES_DOWN: &str = "SELECT child, parent, operation, role, parameters
    FROM lineage INDEXED BY lineage_down WHERE namespace = ?1 AND parent = ?2";
const STREAM: &str =
    "SELECT id, namespace, name, entries_max, age_ms_max, retains, first, next, last_at, due_at FROM stream
    WHERE namespace = ?1 AND name = ?2";
const STREAMS: &str =
    "SELECT id, namespace, name, entries_max, age_ms_max, retains, first, next, last_at, due_at FROM stream
    WHERE (namespace, name) > (?1, ?2) ORDER BY namespace, name LIMIT ?3";
const STREAMS_DUE: &str =
    "SELECT id, namespace, name, entries_max, age_ms_max, retains, first, next, last_at, due_at FROM stream
    WHERE due_at <= ?1 ORDER BY due_at, id LIMIT ?2";
const STREAMS_RETAINING: &str =
    "SELECT id, namespace, name, entries_max, age_ms_max, retains, first, next, last_at, due_at
    FROM stream INDEXED BY stream_retains WHERE retains = 1 AND id > ?1 ORDER BY id LIMIT ?2";
const BATCH_AT: &str = "SELECT first, count, appended_at FROM stream_batch
    WHERE stream = ?1 AND first <= ?2 ORDER BY first DESC LIMIT 1";
const BATCHES: &str = "SELECT first, count, appended_at, entries FROM stream_batch
    WHERE stream = ?1 AND first >= ?2 ORDER BY first";
// Left alone, SQLite takes the primary key, and looks at every group of the stream.
const GROUPS_FLOOR: &str = "SELECT next FROM stream_group INDEXED BY stream_group_next WHERE stream = ?1
    ORDER BY next LIMIT 1";
const COMMITTED: &str = "SELECT next FROM stream_group WHERE stream = ?1 AND name = ?2";
const GROUPS: &str = "SELECT name, next, at FROM stream_group WHERE stream = ?1 AND name > ?2
    ORDER BY name LIMIT ?3";
const NOTE: &str = "SELECT request, at, about, first, last FROM call_note WHERE call = ?1";
const NOTES_DUE: &str = "SELECT at FROM call_note WHERE at <= ?1 LIMIT 1";
const GARBAGE: &str = "SELECT kind, id FROM garbage ORDER BY kind, id LIMIT 1";
const DIRTY: &str = "SELECT namespace, payload FROM lineage_dirty ORDER BY namespace, payload LIMIT 1";
const WALK: &str = "SELECT namespace, payload FROM lineage_walk WHERE expanded = ?1 LIMIT 1";

/// Every statement of this file.
#[cfg(test)]
pub(in crate::sqlite) const ALL: [&str; 22] = [
    STANDING,
    HISTORY,
    EVENTS,
    TERM_NEWEST,
    TERM_OLDEST,
    CURRENT,
    EDGES_UP,
    EDGES_DOWN,
    STREAM,
    STREAMS,
    STREAMS_DUE,
    STREAMS_RETAINING,
    BATCH_AT,
    BATCHES,
    GROUPS_FLOOR,
    COMMITTED,
    GROUPS,
    NOTE,
    NOTES_DUE,
    GARBAGE,
    DIRTY,
    WALK,
];

/// The next row, if there is one.
fn next<'rows, 'statement>(
    rows: &'rows mut Rows<'statement>,
) -> Result<Option<&'rows Row<'statement>>, StoreError> {
    rows.next().map_err(|error| rolled_back(&error))
}

impl SqliteTables<'_> {
    /// What `read` makes of the first row, if there is one.
    fn first<T>(
        &self,
        sql: &str,
        values: impl rusqlite::Params,
        read: impl FnOnce(RowCells<'_, '_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let mut statement = self.statement(sql)?;
        let mut rows = statement.query(values).map_err(|error| rolled_back(&error))?;
        next(&mut rows)?.map(|row| read(RowCells::of(row))).transpose()
    }

    /// Gives every row to `each` until it returns false.
    fn all(
        &self,
        sql: &str,
        values: impl rusqlite::Params,
        mut each: impl FnMut(RowCells<'_, '_>) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let mut statement = self.statement(sql)?;
        let mut rows = statement.query(values).map_err(|error| rolled_back(&error))?;
        while let Some(row) = next(&mut rows)? {
            if !each(RowCells::of(row))? {
                break;
            }
        }
        Ok(())
    }

    fn streams_of(&self, sql: &str, values: impl rusqlite::Params) -> Result<Vec<StreamRow>, StoreError> {
        let mut found = Vec::new();
        self.all(sql, values, |mut cells| {
            found.push(cells.stream()?);
            Ok(true)
        })?;
        Ok(found)
    }
}

/// What all programs of this schema can store, as a bound number.
fn bound_number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Tables for SqliteTables<'_> {
    fn standings(&mut self, of: Payloads<'_>) -> Result<Vec<Option<Standing>>, StoreError> {
        let mut statement = self.statement(STANDING)?;
        let mut found = Vec::with_capacity(of.ids.len());
        for key in of.keys() {
            let mut rows = statement.query(bound(&key)).map_err(|error| rolled_back(&error))?;
            found.push(next(&mut rows)?.map(|row| RowCells::of(row).standing()).transpose()?);
        }
        Ok(found)
    }

    fn history(&mut self, key: PayloadKey) -> Result<Option<History>, StoreError> {
        self.first(HISTORY, bound(&key), |mut cells| {
            let (id, events, current) = (cells.number()?, cells.number()?, cells.number()?);
            Ok(History { id, events, current, terms: terms_of(cells.blob()?)? })
        })
    }

    fn events(&mut self, span: EventSpan, each: Each<'_, MetadataEvent>) -> Result<(), StoreError> {
        let EventSpan { history, after, count_max } = span;
        let values = params![history as i64, bound_number(after), bound_number(count_max as u64)];
        self.all(EVENTS, values, |mut cells| Ok(each(cells.event()?)))
    }

    fn term_payloads(&mut self, span: TermSpan, count_max: usize) -> Result<Vec<PayloadId>, StoreError> {
        let TermSpan { namespace, term, span: IdSpan { low, high }, order } = span;
        let (low, high) = (&low.as_bytes()[..], &high.as_bytes()[..]);
        let sql = match order {
            FindOrder::NewestFirst => TERM_NEWEST,
            FindOrder::OldestFirst => TERM_OLDEST,
        };
        let mut found = Vec::new();
        let count_max = bound_number(count_max as u64);
        self.all(sql, params![namespace.0, term.cast_signed(), low, high, count_max], |mut cells| {
            found.push(cells.id()?);
            Ok(true)
        })?;
        Ok(found)
    }

    fn metadata_of(
        &mut self,
        of: Payloads<'_>,
        with_data: bool,
        each: Each<'_, Found>,
    ) -> Result<(), StoreError> {
        for PayloadKey { namespace, id } in of.keys() {
            let values = params![namespace.0, &id.as_bytes()[..], with_data];
            let found = self.first(CURRENT, values, |mut cells| cells.metadata())?;
            if let Some(metadata) = found
                && !each((id, metadata))
            {
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
        let mut statement = self.statement(if upstream { EDGES_UP } else { EDGES_DOWN })?;
        for key in of.keys() {
            let mut rows = statement.query(bound(&key)).map_err(|error| rolled_back(&error))?;
            while let Some(row) = next(&mut rows)? {
                if !each(RowCells::of(row).edge()?) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn stream(&mut self, name: &StreamName) -> Result<Option<StreamRow>, StoreError> {
        self.first(STREAM, params![name.namespace.as_bytes(), name.name.as_bytes()], |mut cells| {
            cells.stream()
        })
    }

    fn streams(
        &mut self,
        after: Option<&StreamName>,
        count_max: usize,
    ) -> Result<Vec<StreamRow>, StoreError> {
        // No stream has an empty name, so all are behind that of an empty one in the first namespace.
        let (namespace, name) =
            after.map_or((&[][..], &[][..]), |after| (after.namespace.as_bytes(), after.name.as_bytes()));
        self.streams_of(STREAMS, params![namespace, name, bound_number(count_max as u64)])
    }

    fn batch_at(&mut self, stream: u64, offset: u64) -> Result<Option<Batch>, StoreError> {
        self.first(BATCH_AT, params![stream as i64, bound_number(offset)], |mut cells| cells.batch())
    }

    fn batches(
        &mut self,
        stream: u64,
        first: u64,
        each: &mut dyn FnMut(Batch, &[u8]) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        self.all(BATCHES, params![stream as i64, bound_number(first)], |mut cells| {
            let batch = cells.batch()?;
            each(batch, cells.blob()?)
        })
    }

    fn groups_floor(&mut self, stream: u64) -> Result<Option<u64>, StoreError> {
        self.first(GROUPS_FLOOR, [stream as i64], |mut cells| cells.number())
    }

    fn streams_retaining(&mut self, after: u64, count_max: usize) -> Result<Vec<StreamRow>, StoreError> {
        self.streams_of(STREAMS_RETAINING, params![bound_number(after), bound_number(count_max as u64)])
    }

    fn committed(&mut self, stream: u64, group: &str) -> Result<Option<u64>, StoreError> {
        self.first(COMMITTED, params![stream as i64, group.as_bytes()], |mut cells| cells.number())
    }

    fn groups(&mut self, stream: u64, after: &str, count_max: usize) -> Result<Vec<StreamGroup>, StoreError> {
        let mut found = Vec::new();
        let values = params![stream as i64, after.as_bytes(), bound_number(count_max as u64)];
        self.all(GROUPS, values, |mut cells| {
            found.push(cells.group()?);
            Ok(true)
        })?;
        Ok(found)
    }

    fn note(&mut self, call: &str) -> Result<Option<Note>, StoreError> {
        self.first(NOTE, [call.as_bytes()], |mut cells| cells.note())
    }

    fn notes_due(&mut self, at: WallMs) -> Result<bool, StoreError> {
        let found = self.first(NOTES_DUE, [bound_number(at.as_millis())], |mut cells| cells.time())?;
        Ok(found.is_some())
    }

    fn streams_due(&mut self, at: WallMs, count_max: usize) -> Result<Vec<StreamRow>, StoreError> {
        self.streams_of(STREAMS_DUE, params![bound_number(at.as_millis()), bound_number(count_max as u64)])
    }

    fn garbage_next(&mut self) -> Result<Option<(Garbage, u64)>, StoreError> {
        self.first(GARBAGE, [], |mut cells| cells.garbage())
    }

    fn dirty_next(&mut self) -> Result<Option<PayloadKey>, StoreError> {
        self.first(DIRTY, [], |mut cells| cells.key())
    }

    fn walk_next(&mut self, expanded: bool) -> Result<Option<PayloadKey>, StoreError> {
        self.first(WALK, [expanded], |mut cells| cells.key())
    }
}

/// Terms, as `terms_bytes` packs them.
fn terms_of(bytes: &[u8]) -> Result<Vec<u64>, StoreError> {
    let (terms, rest) = bytes.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(strange("terms of metadata are cut off"));
    }
    Ok(terms.iter().map(|term| u64::from_le_bytes(*term)).collect())
}
