//! The operations that the rules are written over, as statements.

use std::collections::HashMap;

use payload_types::find::{FindOrder, IdSpan};
use payload_types::record::{LineageEdge, Metadata, MetadataEvent, StreamGroup, StreamLimits, StreamName};
use payload_types::upload::{UploadEntry, UploadPart};
use payload_types::{NamespaceId, PayloadId, PayloadKey, WallMs};
use tokio_postgres::Row;
use uuid::Uuid;

use super::super::link::{Value, cell};
use super::super::row::uuid;
use super::{Records, RowCells, number, overtaken, payload, positive, sql, strange};
use crate::error::StoreError;
use crate::records::cells::Cells;
use crate::records::tables::{
    Batch, Each, EventSpan, Found, Garbage, History, Note, Payloads, Standing, StreamRow, Tables, TablesMut,
    TermSpan,
};

/// Rows of one answer where each may be long: 16 batches of 256 KiB, 16 events of 1 MiB.
const LONG_ROWS: usize = 16;

/// Lineage is fetched ahead for walks of more steps than this; shorter ones ask step by step.
const STEPS_ASKED: u32 = 16;

pub(super) fn namespace_of(namespace: NamespaceId) -> i64 {
    i64::from(namespace.0)
}

fn uuids(ids: &[PayloadId]) -> Vec<Uuid> {
    ids.iter().map(|id| uuid(*id)).collect()
}

/// Terms as the database has them.
fn signed(terms: &[u64]) -> Vec<i64> {
    terms.iter().copied().map(u64::cast_signed).collect()
}

fn history(row: &Row) -> Result<History, StoreError> {
    let terms: Vec<i64> = cell(row, 3)?;
    let terms = terms.into_iter().map(i64::cast_unsigned).collect();
    Ok(History { id: positive(row, 0)?, events: positive(row, 1)?, current: positive(row, 2)?, terms })
}

impl Tables for Records<'_> {
    fn standings(&mut self, of: Payloads<'_>) -> Result<Vec<Option<Standing>>, StoreError> {
        let (namespace, asked) = (namespace_of(of.namespace), uuids(of.ids));
        let rows = match self.writer {
            Some(node) => self.query(&sql::STANDINGS_LOCKED, &[&namespace, &asked, &node])?,
            None => self.query(&sql::STANDINGS, &[&namespace, &asked])?,
        };
        let read = |row| {
            let mut cells = RowCells::of(row);
            Ok((cells.id()?, cells.standing()?))
        };
        let found: HashMap<PayloadId, Standing> = rows.iter().map(read).collect::<Result<_, StoreError>>()?;
        Ok(of.ids.iter().map(|id| found.get(id).copied()).collect())
    }

    fn history(&mut self, key: PayloadKey) -> Result<Option<History>, StoreError> {
        let statement = if self.writer.is_some() { &sql::HISTORY_LOCKED } else { &sql::HISTORY };
        let rows = self.query(statement, &[&namespace_of(key.namespace), &uuid(key.id)])?;
        rows.first().map(history).transpose()
    }

    fn events(&mut self, span: EventSpan, each: Each<'_, MetadataEvent>) -> Result<(), StoreError> {
        let EventSpan { history, mut after, count_max: mut left } = span;
        while left > 0 {
            let some = left.min(LONG_ROWS);
            let rows = self.query(&sql::EVENTS, &[&number(history), &number(after), &(some as i64)])?;
            for row in &rows {
                let event = RowCells::of(row).event()?;
                after = event.number;
                if !each(event) {
                    return Ok(());
                }
            }
            if rows.len() < some {
                return Ok(());
            }
            left -= some;
        }
        Ok(())
    }

    fn term_payloads(&mut self, span: TermSpan, count_max: usize) -> Result<Vec<PayloadId>, StoreError> {
        let TermSpan { namespace, term, span: IdSpan { low, high }, order } = span;
        let statement = match order {
            FindOrder::NewestFirst => &sql::TERM_NEWEST,
            FindOrder::OldestFirst => &sql::TERM_OLDEST,
        };
        let (namespace, term) = (namespace_of(namespace), term.cast_signed());
        let values: [Value<'_>; 5] = [&namespace, &term, &uuid(low), &uuid(high), &number(count_max as u64)];
        self.query(statement, &values)?.iter().map(|row| payload(row, 0)).collect()
    }

    fn metadata_of(
        &mut self,
        of: Payloads<'_>,
        with_data: bool,
        each: Each<'_, Found>,
    ) -> Result<(), StoreError> {
        for some in of.ids.chunks(LONG_ROWS) {
            let rows = self.query(&sql::CURRENT, &[&namespace_of(of.namespace), &uuids(some), &with_data])?;
            let read = |row| {
                let mut cells = RowCells::of(row);
                Ok((cells.id()?, cells.metadata()?))
            };
            let mut found: HashMap<PayloadId, Metadata> =
                rows.iter().map(read).collect::<Result<_, StoreError>>()?;
            for id in some {
                if let Some(metadata) = found.remove(id)
                    && !each((*id, metadata))
                {
                    return Ok(());
                }
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
        if let Some(ahead) = &mut self.ahead {
            let mut found = ids.iter().filter_map(|id| ahead.remove(id)).flatten();
            // `all` stops at the first false.
            found.all(each);
            return Ok(());
        }
        let statement = if upstream { &sql::EDGES_UP } else { &sql::EDGES_DOWN };
        self.link.each_row(statement, &[&namespace_of(namespace), &uuids(ids)], &mut |row| {
            Ok(each(RowCells::of(row).edge()?))
        })
    }

    fn edges_ahead(&mut self, from: PayloadKey, upstream: bool, depth_max: u32) -> Result<(), StoreError> {
        if (1..=STEPS_ASKED).contains(&depth_max) {
            return Ok(());
        }
        self.ahead = self.edges_all(from, upstream)?;
        Ok(())
    }

    fn stream(&mut self, name: &StreamName) -> Result<Option<StreamRow>, StoreError> {
        let statement = if self.writer.is_some() { &sql::STREAM_LOCKED } else { &sql::STREAM };
        let rows = self.query(statement, &[&name.namespace.as_bytes(), &name.name.as_bytes()])?;
        rows.first().map(|row| RowCells::of(row).stream()).transpose()
    }

    fn stream_ends(&mut self, names: &[StreamName]) -> Result<Vec<Option<(u64, u64)>>, StoreError> {
        let namespaces: Vec<&[u8]> = names.iter().map(|name| name.namespace.as_bytes()).collect();
        let texts: Vec<&[u8]> = names.iter().map(|name| name.name.as_bytes()).collect();
        let mut ends = vec![None; names.len()];
        for row in self.query(&sql::STREAM_ENDS, &[&namespaces, &texts])? {
            let place = positive(&row, 0)? as usize - 1;
            ends[place] = Some((positive(&row, 1)?, positive(&row, 2)?));
        }
        Ok(ends)
    }

    fn streams(
        &mut self,
        after: Option<&StreamName>,
        count_max: usize,
    ) -> Result<Vec<StreamRow>, StoreError> {
        // A name has at least one byte, so everything is behind two empty ones.
        let (namespace, name) =
            after.map_or((&b""[..], &b""[..]), |after| (after.namespace.as_bytes(), after.name.as_bytes()));
        let rows = self.query(&sql::STREAMS, &[&namespace, &name, &number(count_max as u64)])?;
        rows.iter().map(|row| RowCells::of(row).stream()).collect()
    }

    fn batch_at(&mut self, stream: u64, offset: u64) -> Result<Option<Batch>, StoreError> {
        let rows = self.query(&sql::BATCH_AT, &[&number(stream), &number(offset)])?;
        rows.first().map(|row| RowCells::of(row).batch()).transpose()
    }

    fn batches(
        &mut self,
        stream: u64,
        first: u64,
        each: &mut dyn FnMut(Batch, &[u8]) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let mut from = first;
        loop {
            let rows = self.query(&sql::BATCHES, &[&number(stream), &number(from), &(LONG_ROWS as i64)])?;
            for row in &rows {
                let batch = RowCells::of(row).batch()?;
                let entries: &[u8] = row.try_get(3).map_err(|_| strange("a batch without entries"))?;
                from = batch.end();
                if !each(batch, entries)? {
                    return Ok(());
                }
            }
            if rows.len() < LONG_ROWS {
                return Ok(());
            }
        }
    }

    fn groups_floor(&mut self, stream: u64) -> Result<Option<u64>, StoreError> {
        let rows = self.query(&sql::GROUPS_FLOOR, &[&number(stream)])?;
        rows.first().map(|row| positive(row, 0)).transpose()
    }

    fn streams_retaining(&mut self, after: u64, count_max: usize) -> Result<Vec<StreamRow>, StoreError> {
        let rows = self.query(&sql::STREAMS_RETAINING, &[&number(after), &number(count_max as u64)])?;
        rows.iter().map(|row| RowCells::of(row).stream()).collect()
    }

    fn committed(&mut self, stream: u64, group: &str) -> Result<Option<u64>, StoreError> {
        let rows = self.query(&sql::COMMITTED, &[&number(stream), &group.as_bytes()])?;
        rows.first().map(|row| positive(row, 0)).transpose()
    }

    fn groups(&mut self, stream: u64, after: &str, count_max: usize) -> Result<Vec<StreamGroup>, StoreError> {
        let values: [Value<'_>; 3] = [&number(stream), &after.as_bytes(), &number(count_max as u64)];
        self.query(&sql::GROUPS, &values)?.iter().map(|row| RowCells::of(row).group()).collect()
    }

    fn note(&mut self, call: &str) -> Result<Option<Note>, StoreError> {
        let rows = self.query(&sql::NOTE, &[&call.as_bytes()])?;
        rows.first().map(|row| RowCells::of(row).note()).transpose()
    }

    fn notes_due(&mut self, at: WallMs) -> Result<bool, StoreError> {
        Ok(!self.query(&sql::NOTES_DUE, &[&number(at.as_millis())])?.is_empty())
    }

    fn streams_due(&mut self, at: WallMs, count_max: usize) -> Result<Vec<StreamRow>, StoreError> {
        let statement = if self.writer.is_some() { &sql::STREAMS_DUE_LOCKED } else { &sql::STREAMS_DUE };
        let rows = self.query(statement, &[&number(at.as_millis()), &number(count_max as u64)])?;
        rows.iter().map(|row| RowCells::of(row).stream()).collect()
    }

    fn garbage_next(&mut self) -> Result<Option<(Garbage, u64)>, StoreError> {
        let rows = self.query(&sql::GARBAGE_NEXT, &[])?;
        rows.first().map(|row| RowCells::of(row).garbage()).transpose()
    }

    fn dirty_next(&mut self) -> Result<Option<PayloadKey>, StoreError> {
        self.query(&sql::DIRTY_NEXT, &[])?.first().map(|row| RowCells::of(row).key()).transpose()
    }

    fn walk_next(&mut self, expanded: bool) -> Result<Option<PayloadKey>, StoreError> {
        self.query(&sql::WALK_NEXT, &[&expanded])?.first().map(|row| RowCells::of(row).key()).transpose()
    }
}

impl TablesMut for Records<'_> {
    fn history_add(&mut self, key: PayloadKey) -> Result<History, StoreError> {
        let rows = self.query(&sql::HISTORY_ADD, &[&namespace_of(key.namespace), &uuid(key.id)])?;
        let row = rows.first().ok_or_else(overtaken)?;
        Ok(History { id: positive(row, 0)?, events: 0, current: 0, terms: Vec::new() })
    }

    fn history_set(&mut self, key: PayloadKey, history: &History) -> Result<(), StoreError> {
        let (events, current) = (number(history.events), number(history.current));
        let terms = signed(&history.terms);
        let values: [Value<'_>; 5] = [&namespace_of(key.namespace), &uuid(key.id), &events, &current, &terms];
        self.execute(&sql::HISTORY_SET, &values).map(|_one| ())
    }

    fn terms_add(&mut self, key: PayloadKey, terms: &[u64]) -> Result<(), StoreError> {
        let values: [Value<'_>; 3] = [&namespace_of(key.namespace), &uuid(key.id), &signed(terms)];
        self.execute(&sql::TERMS_ADD, &values).map(|_count| ())
    }

    fn terms_remove(&mut self, key: PayloadKey, terms: &[u64]) -> Result<(), StoreError> {
        let values: [Value<'_>; 3] = [&namespace_of(key.namespace), &uuid(key.id), &signed(terms)];
        self.execute(&sql::TERMS_REMOVE, &values).map(|_count| ())
    }

    fn history_remove(&mut self, key: PayloadKey) -> Result<(), StoreError> {
        self.execute(&sql::HISTORY_REMOVE, &[&namespace_of(key.namespace), &uuid(key.id)]).map(|_one| ())
    }

    fn event_add(&mut self, history: u64, event: &MetadataEvent) -> Result<(), StoreError> {
        let MetadataEvent { number: event_number, at, kind, metadata, source, reason, version } = event;
        let values: [Value<'_>; 9] = [
            &number(history),
            &number(*event_number),
            &number(at.as_millis()),
            &(*kind as i64),
            &metadata.data,
            &metadata.schema.as_bytes(),
            &source.as_bytes(),
            &reason.as_bytes(),
            &version.as_bytes(),
        ];
        self.execute(&sql::EVENT_ADD, &values).map(|_one| ())
    }

    fn events_remove(&mut self, history: u64, count_max: u64) -> Result<u64, StoreError> {
        self.execute(&sql::EVENTS_REMOVE, &[&number(history), &number(count_max)])
    }

    fn edges_put(&mut self, namespace: NamespaceId, edges: &[LineageEdge]) -> Result<(), StoreError> {
        // One statement cannot put two edges of one key: the last one counts.
        let mut last: HashMap<_, &LineageEdge> = HashMap::new();
        for edge in edges {
            last.insert((edge.child, edge.parent, &edge.operation, &edge.role), edge);
        }
        let mut edges: Vec<&LineageEdge> = last.into_values().collect();
        edges.sort();
        let children: Vec<Uuid> = edges.iter().map(|edge| uuid(edge.child)).collect();
        let parents: Vec<Uuid> = edges.iter().map(|edge| uuid(edge.parent)).collect();
        let operations: Vec<&[u8]> = edges.iter().map(|edge| edge.operation.as_bytes()).collect();
        let roles: Vec<&[u8]> = edges.iter().map(|edge| edge.role.as_bytes()).collect();
        let parameters: Vec<&[u8]> = edges.iter().map(|edge| &edge.parameters[..]).collect();
        let values: [Value<'_>; 6] =
            [&namespace_of(namespace), &children, &parents, &operations, &roles, &parameters];
        self.execute(&sql::EDGES_PUT, &values).map(|_count| ())
    }

    fn edges_remove(&mut self, key: PayloadKey) -> Result<u64, StoreError> {
        let rows = self.query(&sql::EDGES_REMOVE, &[&namespace_of(key.namespace), &uuid(key.id)])?;
        rows.first().map_or(Ok(0), |row| positive(row, 0))
    }

    fn stream_add(&mut self, name: &StreamName, limits: StreamLimits, at: WallMs) -> Result<(), StoreError> {
        let (entries_max, age_ms_max) = (limits.entries_max.map(number), limits.age_ms_max.map(number));
        let values: [Value<'_>; 6] = [
            &name.namespace.as_bytes(),
            &name.name.as_bytes(),
            &entries_max,
            &age_ms_max,
            &limits.retains_payloads,
            &number(at.as_millis()),
        ];
        let rows = self.query(&sql::STREAM_ADD, &values)?;
        rows.first().map(|_id| ()).ok_or_else(overtaken)
    }

    fn stream_set(&mut self, stream: &StreamRow) -> Result<(), StoreError> {
        let due_at = stream.due_at.map(|due_at| number(due_at.as_millis()));
        let values: [Value<'_>; 6] = [
            &stream.name.namespace.as_bytes(),
            &stream.name.name.as_bytes(),
            &number(stream.first),
            &number(stream.next),
            &number(stream.last_at.as_millis()),
            &due_at,
        ];
        self.execute(&sql::STREAM_SET, &values).map(|_one| ())
    }

    fn stream_remove(&mut self, stream: &StreamRow) -> Result<(), StoreError> {
        let StreamName { namespace, name } = &stream.name;
        self.execute(&sql::STREAM_REMOVE, &[&namespace.as_bytes(), &name.as_bytes()]).map(|_one| ())
    }

    fn batch_add(&mut self, stream: u64, batch: Batch, entries: &[u8]) -> Result<(), StoreError> {
        let values: [Value<'_>; 5] = [
            &number(stream),
            &number(batch.first),
            &number(batch.count),
            &number(batch.appended_at.as_millis()),
            &entries,
        ];
        self.execute(&sql::BATCH_ADD, &values).map(|_one| ())
    }

    fn batches_remove(&mut self, stream: u64, below: u64, count_max: u64) -> Result<u64, StoreError> {
        self.execute(&sql::BATCHES_REMOVE, &[&number(stream), &number(below), &number(count_max)])
    }

    fn group_set(&mut self, stream: u64, group: &str, next: u64, at: WallMs) -> Result<(), StoreError> {
        let values: [Value<'_>; 4] =
            [&number(stream), &group.as_bytes(), &number(next), &number(at.as_millis())];
        self.execute(&sql::GROUP_SET, &values).map(|_one| ())
    }

    fn group_remove(&mut self, stream: u64, group: &str) -> Result<(), StoreError> {
        self.execute(&sql::GROUP_REMOVE, &[&number(stream), &group.as_bytes()]).map(|_one| ())
    }

    fn note_set(&mut self, call: &str, note: Note, forgotten_at: WallMs) -> Result<(), StoreError> {
        let Note { request, at, about, first, last } = note;
        let values: [Value<'_>; 7] = [
            &call.as_bytes(),
            &number(request),
            &number(at.as_millis()),
            &number(about),
            &number(first),
            &number(last),
            &number(forgotten_at.as_millis()),
        ];
        self.query(&sql::NOTE_SET, &values)?.first().map(|_at| ()).ok_or_else(overtaken)
    }

    fn notes_remove(&mut self, at: WallMs, count_max: u64) -> Result<u64, StoreError> {
        self.execute(&sql::NOTES_REMOVE, &[&number(at.as_millis()), &number(count_max)])
    }

    fn groups_remove(&mut self, stream: u64, count_max: u64) -> Result<u64, StoreError> {
        self.execute(&sql::GROUPS_REMOVE, &[&number(stream), &number(count_max)])
    }

    fn upload_add(&mut self, entry: &UploadEntry) -> Result<(), StoreError> {
        let writer = self.writer;
        let values: [Value<'_>; 8] = [
            &writer,
            &uuid(entry.id),
            &entry.is_removal,
            &number(entry.generation.0),
            &number(entry.size.0),
            &number(entry.part_bytes),
            &i64::from(entry.compression),
            &entry.upload,
        ];
        self.execute(&sql::UPLOAD_ADD, &values).map(|_one| ())
    }

    fn upload_name(&mut self, id: PayloadId, upload: &str) -> Result<(), StoreError> {
        let writer = self.writer;
        self.execute(&sql::UPLOAD_NAME, &[&writer, &uuid(id), &upload]).map(|_one| ())
    }

    fn upload_part(&mut self, id: PayloadId, part: &UploadPart) -> Result<(), StoreError> {
        let writer = self.writer;
        let UploadPart { index, tag, hash } = part;
        let values: [Value<'_>; 5] = [&writer, &uuid(id), &i64::from(*index), tag, &hash.cast_signed()];
        self.execute(&sql::UPLOAD_PART, &values).map(|_one| ())
    }

    fn upload_remove(&mut self, id: PayloadId) -> Result<(), StoreError> {
        let writer = self.writer;
        self.execute(&sql::UPLOAD_REMOVE, &[&writer, &uuid(id)]).map(|_one| ())
    }

    fn garbage_add(&mut self, garbage: Garbage, id: u64) -> Result<(), StoreError> {
        self.execute(&sql::GARBAGE_ADD, &[&(garbage as i64), &number(id)]).map(|_one| ())
    }

    fn garbage_remove(&mut self, garbage: Garbage, id: u64) -> Result<(), StoreError> {
        self.execute(&sql::GARBAGE_REMOVE, &[&(garbage as i64), &number(id)]).map(|_one| ())
    }

    fn dirty_add(&mut self, key: PayloadKey) -> Result<(), StoreError> {
        self.execute(&sql::DIRTY_ADD, &[&namespace_of(key.namespace), &uuid(key.id)]).map(|_one| ())
    }

    fn dirty_remove(&mut self, key: PayloadKey) -> Result<(), StoreError> {
        self.execute(&sql::DIRTY_REMOVE, &[&namespace_of(key.namespace), &uuid(key.id)]).map(|_one| ())
    }

    fn walk_add(&mut self, keys: &[PayloadKey]) -> Result<(), StoreError> {
        let namespaces: Vec<i64> = keys.iter().map(|key| namespace_of(key.namespace)).collect();
        let ids: Vec<Uuid> = keys.iter().map(|key| uuid(key.id)).collect();
        self.execute(&sql::WALK_ADD, &[&namespaces, &ids]).map(|_count| ())
    }

    fn walk_expanded(&mut self, key: PayloadKey) -> Result<(), StoreError> {
        self.execute(&sql::WALK_EXPANDED, &[&namespace_of(key.namespace), &uuid(key.id)]).map(|_one| ())
    }

    fn walk_remove(&mut self, key: PayloadKey) -> Result<(), StoreError> {
        self.execute(&sql::WALK_REMOVE, &[&namespace_of(key.namespace), &uuid(key.id)]).map(|_one| ())
    }

    fn walk_end(&mut self) -> Result<(), StoreError> {
        self.execute(&sql::WALK_END, &[]).map(|_count| ())
    }
}
