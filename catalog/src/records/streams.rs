//! Streams: entries at contiguous offsets, packed into batches; groups and how far they have come.
//!
//! Retention moves `first`, which is all that readers see, and is exact for entries and exact for age, since a batch was
//! appended at one time. Batches wholly before `first` are removed bit by bit, by later appends and by sweeps.
//!
//! A stream that retains payloads tells with every change how far it holds them (`floor`); shards do the holding.

use payload_types::limits::{ANSWER_BYTES_MAX, STORED_INTEGER_MAX};
use payload_types::record::{
    RecordAnswer, RecordOutcome, StreamEntry, StreamFloor, StreamInfo, StreamItem, StreamLimits, StreamName,
    Timestamp,
};
use payload_types::{NamespaceId, WallMs};

use super::codec::{self, Packer};
use super::tables::{Batch, Garbage, StreamRow, Tables, TablesMut};
use super::{Needed, distinct, strange, unfit};
use crate::error::StoreError;

/// Packed entries of one batch: an append of more makes several. A reader unpacks a batch from its beginning, which for
/// 256 KiB is some 15,000 entries without tags, and well below a millisecond.
const BATCH_BYTES_MAX: usize = 256 << 10;

/// Old batches that one append removes at most: it adds a few, so that removing keeps up.
const BATCHES_TRIMMED_MAX: u64 = 16;

/// What of an entry's encoding is neither name nor tag: offset, id, times, duration, and each field's head.
const ENTRY_BYTES: usize = 96;
/// Of a tag: the heads of the pair, its key and its value.
const TAG_BYTES: usize = 16;

pub(super) fn create<T: TablesMut>(
    tables: &mut T,
    name: &StreamName,
    limits: StreamLimits,
    at: WallMs,
) -> Result<RecordOutcome, StoreError> {
    if tables.stream(name)?.is_some() {
        return Ok(RecordOutcome::StreamExists);
    }
    tables.stream_add(name, limits, at)?;
    match tables.stream(name)? {
        Some(stream) if limits.retains_payloads => Ok(RecordOutcome::Floored(floor(tables, &stream)?)),
        _ => Ok(RecordOutcome::Done),
    }
}

pub(super) fn delete<T: TablesMut>(tables: &mut T, name: &StreamName) -> Result<RecordOutcome, StoreError> {
    if let Some(stream) = tables.stream(name)? {
        tables.stream_remove(&stream)?;
        tables.garbage_add(Garbage::Stream, stream.id)?;
        if stream.limits.retains_payloads {
            return Ok(RecordOutcome::Floored(StreamFloor { stream: stream.id, floor: STORED_INTEGER_MAX }));
        }
    }
    Ok(RecordOutcome::Done)
}

/// How far the stream holds payloads. What is too old, and not swept yet, is held a little longer than it is shown.
pub(super) fn floor<T: Tables>(tables: &mut T, stream: &StreamRow) -> Result<StreamFloor, StoreError> {
    let passed = tables.groups_floor(stream.id)?.unwrap_or_default();
    Ok(StreamFloor { stream: stream.id, floor: stream.first.max(passed) })
}

pub(super) fn floors<T: Tables>(
    tables: &mut T,
    after: u64,
    streams_max: usize,
) -> Result<RecordAnswer, StoreError> {
    let mut found = tables.streams_retaining(after, streams_max.saturating_add(1))?;
    let more = found.len() > streams_max;
    found.truncate(streams_max);
    let floors = found.into_iter().map(|stream| {
        let floor = floor(tables, &stream)?;
        Ok((stream.name, floor))
    });
    Ok(RecordAnswer::Floors(floors.collect::<Result<_, StoreError>>()?, more))
}

pub(super) fn append<T: TablesMut>(
    tables: &mut T,
    name: &StreamName,
    items: &[StreamItem],
    held: bool,
    at: WallMs,
) -> Result<RecordOutcome, StoreError> {
    let Some(mut stream) = tables.stream(name)? else { return Ok(RecordOutcome::StreamNotFound) };
    if stream.limits.retains_payloads && !held {
        return Ok(RecordOutcome::NotHeld);
    }
    let ids = distinct(items.iter().map(|item| item.payload));
    // What is held has not expired.
    let judged_at = if held { WallMs::default() } else { at };
    if let Some(outcome) = unfit(tables, NamespaceId::DEFAULT, &ids, Needed::Committed, judged_at)? {
        return Ok(outcome);
    }
    let first = stream.next;
    // Entries of one stream are in the order of their times, also when the clock went back.
    stream.last_at = at.max(stream.last_at);
    stream.next = add_batches(tables, &stream, items)?;
    if stream.next > STORED_INTEGER_MAX {
        return Err(strange("a stream has 2^63 entries"));
    }
    if stream.due_at.is_none() {
        stream.due_at = stream.limits.age_ms_max.map(|age| outdated_at(stream.last_at, age));
    }
    if let Some(entries_max) = stream.limits.entries_max {
        stream.first = stream.first.max(stream.next.saturating_sub(entries_max));
    }
    if stream.first > 0
        && tables.batches_remove(stream.id, stream.first, BATCHES_TRIMMED_MAX)? == BATCHES_TRIMMED_MAX
    {
        // There may be more of them than appends remove.
        stream.due_at = Some(WallMs::default());
    }
    tables.stream_set(&stream)?;
    let last = stream.next - 1;
    if stream.limits.retains_payloads {
        return Ok(RecordOutcome::AppendedHeld { first, last, floor: floor(tables, &stream)? });
    }
    Ok(RecordOutcome::Appended { first, last })
}

/// Stores `items` behind the end of `stream`; returns the offset behind them.
fn add_batches<T: TablesMut>(
    tables: &mut T,
    stream: &StreamRow,
    items: &[StreamItem],
) -> Result<u64, StoreError> {
    let mut next = stream.next;
    let mut packer = Packer::new();
    let mut rest = items.iter().peekable();
    while let Some(item) = rest.next() {
        packer.add(item);
        if packer.bytes().len() >= BATCH_BYTES_MAX || rest.peek().is_none() {
            let batch = Batch { first: next, count: packer.count(), appended_at: stream.last_at };
            tables.batch_add(stream.id, batch, packer.bytes())?;
            next = batch.end();
            packer = Packer::new();
        }
    }
    Ok(next)
}

pub(super) fn commit<T: TablesMut>(
    tables: &mut T,
    name: &StreamName,
    group: &str,
    offset: u64,
    at: WallMs,
) -> Result<RecordOutcome, StoreError> {
    let Some(stream) = tables.stream(name)? else { return Ok(RecordOutcome::StreamNotFound) };
    if offset > stream.next {
        return Ok(RecordOutcome::BeyondEnd { end: stream.next });
    }
    tables.group_set(stream.id, group, offset, at)?;
    if stream.limits.retains_payloads {
        return Ok(RecordOutcome::Floored(floor(tables, &stream)?));
    }
    Ok(RecordOutcome::Done)
}

pub(super) fn group_remove<T: TablesMut>(
    tables: &mut T,
    name: &StreamName,
    group: &str,
) -> Result<RecordOutcome, StoreError> {
    let Some(stream) = tables.stream(name)? else { return Ok(RecordOutcome::StreamNotFound) };
    if tables.committed(stream.id, group)?.is_none() {
        return Ok(RecordOutcome::GroupNotFound);
    }
    tables.group_remove(stream.id, group)?;
    if stream.limits.retains_payloads {
        return Ok(RecordOutcome::Floored(floor(tables, &stream)?));
    }
    Ok(RecordOutcome::Done)
}

pub(super) fn groups<T: Tables>(
    tables: &mut T,
    name: &StreamName,
    after: &str,
    groups_max: usize,
) -> Result<RecordAnswer, StoreError> {
    let Some(stream) = tables.stream(name)? else { return Ok(RecordAnswer::StreamNotFound) };
    let mut found = tables.groups(stream.id, after, groups_max.saturating_add(1))?;
    let more = found.len() > groups_max;
    found.truncate(groups_max);
    Ok(RecordAnswer::Groups(found, more))
}

pub(super) fn committed<T: Tables>(
    tables: &mut T,
    name: &StreamName,
    group: &str,
) -> Result<RecordAnswer, StoreError> {
    let Some(stream) = tables.stream(name)? else { return Ok(RecordAnswer::StreamNotFound) };
    Ok(RecordAnswer::Committed(tables.committed(stream.id, group)?))
}

pub(super) fn one<T: Tables>(tables: &mut T, name: &StreamName) -> Result<RecordAnswer, StoreError> {
    let found = tables.stream(name)?;
    Ok(found.map_or(RecordAnswer::StreamNotFound, |stream| RecordAnswer::Stream(info(stream))))
}

pub(super) fn list<T: Tables>(
    tables: &mut T,
    after: Option<&StreamName>,
    entries_max: usize,
) -> Result<RecordAnswer, StoreError> {
    let mut found = tables.streams(after, entries_max.saturating_add(1))?;
    let more = found.len() > entries_max;
    found.truncate(entries_max);
    Ok(RecordAnswer::Streams(found.into_iter().map(info).collect(), more))
}

fn info(stream: StreamRow) -> StreamInfo {
    StreamInfo {
        stream: stream.name,
        limits: stream.limits,
        first: stream.first,
        end: stream.next,
        incarnation: stream.id,
    }
}

/// Which entries are asked for.
pub(super) struct Range {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) not_before: Option<Timestamp>,
    pub(super) entries_max: usize,
}

pub(super) fn read<T: Tables>(
    tables: &mut T,
    name: &StreamName,
    range: Range,
    at: WallMs,
) -> Result<RecordAnswer, StoreError> {
    let Some(mut stream) = tables.stream(name)? else { return Ok(RecordAnswer::StreamNotFound) };
    stream.first = first_in_age(tables, &stream, at)?;
    let mut from = range.from.max(stream.first);
    if let Some(not_before) = range.not_before {
        from = first_since(tables, &stream, from, millis_at(not_before))?;
    }
    let (mut entries, mut bytes, mut full) = (Vec::new(), 0, false);
    // The offset behind the last one that is asked for, and the one that comes next.
    let end = range.to.saturating_add(1).min(stream.next);
    let mut next = from;
    if from < end {
        let entry_bytes = ENTRY_BYTES + name.namespace.len() + name.name.len();
        let batch = tables.batch_at(stream.id, from)?.ok_or_else(|| strange("a batch is missing"))?;
        tables.batches(stream.id, batch.first, &mut |batch, packed| {
            if batch.first > next || batch.end() <= next {
                return Err(strange("a batch does not follow the one before"));
            }
            let mut offset = batch.first;
            codec::unpack(packed, batch.count, &mut |item| {
                if offset >= next {
                    bytes += weight(&item, entry_bytes);
                    full = offset >= end
                        || entries.len() >= range.entries_max
                        || (bytes > ANSWER_BYTES_MAX && !entries.is_empty());
                    if full {
                        return false;
                    }
                    entries.push(StreamEntry { offset, appended_at: batch.appended_at, item });
                    next = offset + 1;
                }
                offset += 1;
                true
            })?;
            Ok(!full && next < end)
        })?;
        if !full && next < end {
            return Err(strange("the last batches of a stream are missing"));
        }
    }
    Ok(RecordAnswer::Entries(info(stream), entries, next < end))
}

/// What an entry takes in an answer, at most.
fn weight(item: &StreamItem, entry_bytes: usize) -> usize {
    let tags = item.tags.iter().map(|(key, value)| TAG_BYTES + key.len() + value.len());
    entry_bytes + tags.sum::<usize>()
}

/// The moment in milliseconds from which on everything is at `timestamp` or later.
fn millis_at(timestamp: Timestamp) -> WallMs {
    let milliseconds =
        i128::from(timestamp.seconds) * 1000 + i128::from(timestamp.nanoseconds.div_ceil(1_000_000));
    WallMs::from_millis(milliseconds.clamp(0, i128::from(u64::MAX)) as u64)
}

/// When an entry that was appended at `appended_at` becomes older than `age_ms`.
pub(super) fn outdated_at(appended_at: WallMs, age_ms: u64) -> WallMs {
    let end = appended_at.as_millis().saturating_add(age_ms).saturating_add(1);
    WallMs::from_millis(end.min(STORED_INTEGER_MAX))
}

/// The oldest entry that the stream keeps at `at`; its end when there is none.
pub(super) fn first_in_age<T: Tables>(
    tables: &mut T,
    stream: &StreamRow,
    at: WallMs,
) -> Result<u64, StoreError> {
    let Some(age) = stream.limits.age_ms_max else { return Ok(stream.first) };
    first_since(tables, stream, stream.first, WallMs::from_millis(at.as_millis().saturating_sub(age)))
}

/// The first offset, `from` or later, of an entry that was appended at `since` or later; the end when there is none.
/// Times grow with offsets, so a few looks are enough.
fn first_since<T: Tables>(
    tables: &mut T,
    stream: &StreamRow,
    from: u64,
    since: WallMs,
) -> Result<u64, StoreError> {
    let (mut low, mut high) = (from, stream.next);
    // Nearly always the first look settles it.
    let mut probe = low;
    while low < high {
        let batch = tables
            .batch_at(stream.id, probe)?
            .filter(|batch| batch.end() > probe)
            .ok_or_else(|| strange("a batch is missing"))?;
        if batch.appended_at >= since {
            high = batch.first.max(low);
        } else {
            low = batch.end();
        }
        probe = low + high.saturating_sub(low) / 2;
    }
    Ok(low)
}
