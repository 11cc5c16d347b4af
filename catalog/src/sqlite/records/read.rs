//! Reading records. Every statement goes by a key or an index (asserted with EXPLAIN QUERY PLAN in a test).

use payload_types::find::{FindOrder, IdSpan};
use payload_types::record::{
    LineageEdge, Metadata, MetadataEvent, MetadataEventKind, StreamLimits, StreamName,
};
use payload_types::{Health, NamespaceId, PayloadId, PayloadKey, PayloadState, WallMs};
use rusqlite::{Row, Rows, params};

use super::{Cells, SqliteTables, bound, strange};
use crate::error::StoreError;
use crate::records::tables::{Batch, Garbage, History, Standing, StreamRow, Tables, TermSpan};
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
const GARBAGE: &str = "SELECT kind, id FROM garbage ORDER BY kind, id LIMIT 1";
const DIRTY: &str = "SELECT namespace, payload FROM lineage_dirty ORDER BY namespace, payload LIMIT 1";
const WALK: &str = "SELECT namespace, payload FROM lineage_walk WHERE expanded = ?1 LIMIT 1";

/// Every statement of this file.
#[cfg(test)]
pub(in crate::sqlite) const ALL: [&str; 19] = [
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
        read: impl FnOnce(Cells<'_, '_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let mut statement = self.statement(sql)?;
        let mut rows = statement.query(values).map_err(|error| rolled_back(&error))?;
        next(&mut rows)?.map(|row| read(Cells::of(row))).transpose()
    }

    /// Gives every row to `each` until it returns false.
    fn all(
        &self,
        sql: &str,
        values: impl rusqlite::Params,
        mut each: impl FnMut(Cells<'_, '_>) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let mut statement = self.statement(sql)?;
        let mut rows = statement.query(values).map_err(|error| rolled_back(&error))?;
        while let Some(row) = next(&mut rows)? {
            if !each(Cells::of(row))? {
                break;
            }
        }
        Ok(())
    }

    fn streams_of(&self, sql: &str, values: impl rusqlite::Params) -> Result<Vec<StreamRow>, StoreError> {
        let mut found = Vec::new();
        self.all(sql, values, |cells| {
            found.push(stream(cells)?);
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
    fn standings(
        &mut self,
        namespace: NamespaceId,
        ids: &[PayloadId],
    ) -> Result<Vec<Option<Standing>>, StoreError> {
        let mut statement = self.statement(STANDING)?;
        let mut found = Vec::with_capacity(ids.len());
        for id in ids {
            let mut rows = statement
                .query(params![namespace.0, &id.as_bytes()[..]])
                .map_err(|error| rolled_back(&error))?;
            found.push(next(&mut rows)?.map(|row| standing(Cells::of(row))).transpose()?);
        }
        Ok(found)
    }

    fn history(&mut self, key: PayloadKey) -> Result<Option<History>, StoreError> {
        self.first(HISTORY, bound(&key), |mut cells| {
            let (id, events, current) = (cells.number()?, cells.number()?, cells.number()?);
            Ok(History { id, events, current, terms: terms_of(cells.bytes()?)? })
        })
    }

    fn events(
        &mut self,
        history: u64,
        after: u64,
        count_max: usize,
        each: &mut dyn FnMut(MetadataEvent) -> bool,
    ) -> Result<(), StoreError> {
        let count_max = bound_number(count_max as u64);
        self.all(EVENTS, params![history as i64, bound_number(after), count_max], |cells| {
            Ok(each(event(cells)?))
        })
    }

    fn term_payloads(
        &mut self,
        span: TermSpan,
        term: u64,
        count_max: usize,
    ) -> Result<Vec<PayloadId>, StoreError> {
        let TermSpan { namespace, span: IdSpan { low, high }, order } = span;
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
        namespace: NamespaceId,
        ids: &[PayloadId],
        with_data: bool,
        each: &mut dyn FnMut(PayloadId, Metadata) -> bool,
    ) -> Result<(), StoreError> {
        for id in ids {
            let values = params![namespace.0, &id.as_bytes()[..], with_data];
            let found = self.first(CURRENT, values, |mut cells| {
                Ok(Metadata { data: cells.bytes()?.to_vec(), schema: cells.text()? })
            })?;
            if let Some(metadata) = found
                && !each(*id, metadata)
            {
                break;
            }
        }
        Ok(())
    }

    fn edges(
        &mut self,
        namespace: NamespaceId,
        ids: &[PayloadId],
        upstream: bool,
        each: &mut dyn FnMut(LineageEdge) -> bool,
    ) -> Result<(), StoreError> {
        let mut statement = self.statement(if upstream { EDGES_UP } else { EDGES_DOWN })?;
        for id in ids {
            let mut rows = statement
                .query(params![namespace.0, &id.as_bytes()[..]])
                .map_err(|error| rolled_back(&error))?;
            while let Some(row) = next(&mut rows)? {
                if !each(edge(Cells::of(row))?) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn stream(&mut self, name: &StreamName) -> Result<Option<StreamRow>, StoreError> {
        self.first(STREAM, params![name.namespace.as_bytes(), name.name.as_bytes()], stream)
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
        self.first(BATCH_AT, params![stream as i64, bound_number(offset)], |mut cells| batch(&mut cells))
    }

    fn batches(
        &mut self,
        stream: u64,
        first: u64,
        each: &mut dyn FnMut(Batch, &[u8]) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        self.all(BATCHES, params![stream as i64, bound_number(first)], |mut cells| {
            let batch = batch(&mut cells)?;
            each(batch, cells.bytes()?)
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

    fn streams_due(&mut self, at: WallMs, count_max: usize) -> Result<Vec<StreamRow>, StoreError> {
        self.streams_of(STREAMS_DUE, params![bound_number(at.as_millis()), bound_number(count_max as u64)])
    }

    fn garbage_next(&mut self) -> Result<Option<(Garbage, u64)>, StoreError> {
        self.first(GARBAGE, [], |mut cells| {
            let kind = cells.number()?;
            let garbage = [Garbage::Stream, Garbage::History].into_iter().find(|known| *known as u64 == kind);
            Ok((garbage.ok_or_else(|| strange("garbage of an unknown kind"))?, cells.number()?))
        })
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

fn standing(mut cells: Cells<'_, '_>) -> Result<Standing, StoreError> {
    let state = i64::try_from(cells.number()?).ok().and_then(PayloadState::from_number);
    let expires_at = cells.optional()?.map(WallMs::from_millis);
    let health = cells.number()?;
    Ok(Standing {
        state: state.ok_or_else(|| strange("a payload has a state that has no meaning"))?,
        expires_at,
        health: [Health::Good, Health::Lost, Health::Damaged]
            .into_iter()
            .find(|known| *known as u64 == health)
            .ok_or_else(|| strange("a payload has a health that has no meaning"))?,
    })
}

fn event(mut cells: Cells<'_, '_>) -> Result<MetadataEvent, StoreError> {
    use MetadataEventKind::{Merged, Noted, Replaced};
    let (number, at, kind) = (cells.number()?, cells.time()?, cells.number()?);
    let kind = [Replaced, Merged, Noted].into_iter().find(|known| *known as u64 == kind);
    Ok(MetadataEvent {
        number,
        at,
        kind: kind.ok_or_else(|| strange("an event of an unknown kind"))?,
        metadata: Metadata { data: cells.bytes()?.to_vec(), schema: cells.text()? },
        source: cells.text()?,
        reason: cells.text()?,
        version: cells.text()?,
    })
}

fn edge(mut cells: Cells<'_, '_>) -> Result<LineageEdge, StoreError> {
    Ok(LineageEdge {
        child: cells.id()?,
        parent: cells.id()?,
        operation: cells.text()?,
        role: cells.text()?,
        parameters: cells.bytes()?.to_vec(),
    })
}

fn stream(mut cells: Cells<'_, '_>) -> Result<StreamRow, StoreError> {
    Ok(StreamRow {
        id: cells.number()?,
        name: StreamName { namespace: cells.text()?, name: cells.text()? },
        limits: StreamLimits {
            entries_max: cells.optional()?,
            age_ms_max: cells.optional()?,
            retains_payloads: cells.next()?,
        },
        first: cells.number()?,
        next: cells.number()?,
        last_at: cells.time()?,
        due_at: cells.optional()?.map(WallMs::from_millis),
    })
}

fn batch(cells: &mut Cells<'_, '_>) -> Result<Batch, StoreError> {
    Ok(Batch { first: cells.number()?, count: cells.number()?, appended_at: cells.time()? })
}
