//! The rules for what is kept beside payload rows: metadata with its history, lineage, streams, and their cleaning up.
//!
//! ```text
//!   Change::Record --apply--> rules (this folder) --TablesMut--> one open transaction of a backend
//!   RecordQuery   --answer--> rules               --Tables-----> one snapshot of a backend
//! ```
//! Written once over the small operations of [`tables`], so that every backend answers alike. Called by backends only,
//! on the writer's thread for changes, on a reader's for queries. Holds no state and reads no clock. Work of one change is
//! bounded by what the change itself holds and by constants: what a deletion leaves is removed by sweeps.

#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(crate) mod cells;
mod codec;
mod find;
mod lineage;
mod merge;
mod metadata;
mod repeats;
mod streams;
mod sweep;
pub(crate) mod tables;
pub(crate) mod terms;

use std::collections::HashSet;

use payload_types::limits::STORED_INTEGER_MAX;
use payload_types::record::{RecordAnswer, RecordChange, RecordOutcome, RecordQuery};
use payload_types::upload::UploadChange;
use payload_types::{ForeignPage, Health, NamespaceId, PayloadId, PayloadKey, PayloadState, WallMs};

use crate::error::{RESTORE, StoreError};
use tables::{Payloads, Standing, Tables, TablesMut};

pub(crate) use sweep::is_due as sweep_is_due;

/// Makes one change. After an error the transaction must be rolled back.
pub(crate) fn apply<T: TablesMut>(
    tables: &mut T,
    change: &RecordChange,
) -> Result<RecordOutcome, StoreError> {
    make(tables, change, false)
}

fn make<T: TablesMut>(
    tables: &mut T,
    change: &RecordChange,
    vouched: bool,
) -> Result<RecordOutcome, StoreError> {
    use RecordChange::{
        GroupRemove, LineageAdd, MetadataNote, MetadataUpdate, Once, StreamAppend, StreamCommit,
        StreamCreate, StreamDelete, Sweep, Upload, Vouched,
    };
    let moment = |at: &WallMs| Moment { at: *at, judged_at: if vouched { WallMs::default() } else { *at } };
    match change {
        MetadataUpdate { key, mode, metadata, actor, reason, at } => {
            let update = metadata::Update { mode: *mode, metadata, actor, reason };
            metadata::update(tables, *key, moment(at), update)
        }
        MetadataNote { key, metadata, source, version, at } => {
            metadata::note(tables, *key, moment(at), metadata, source, version)
        }
        LineageAdd { child, edges, at } => lineage::add(tables, *child, edges, moment(at)),
        Vouched(change) => make(tables, change, true),
        Once { id, request, at, change } => {
            let call = repeats::Call { id, request: *request & STORED_INTEGER_MAX, at: *at };
            repeats::once(tables, call, change, |tables| make(tables, change, vouched))
        }
        StreamCreate { stream, limits, at } => streams::create(tables, stream, *limits, *at),
        StreamDelete { stream } => streams::delete(tables, stream),
        StreamAppend { stream, items, held, at } => streams::append(tables, stream, items, *held, *at),
        StreamCommit { stream, group, offset, at } => streams::commit(tables, stream, group, *offset, *at),
        GroupRemove { stream, group } => streams::group_remove(tables, stream, group),
        Upload(change) => upload(tables, change),
        Sweep { at } => sweep::sweep(tables, *at),
    }
}

fn upload<T: TablesMut>(tables: &mut T, change: &UploadChange) -> Result<RecordOutcome, StoreError> {
    match change {
        UploadChange::Begin(entry) => {
            tables.upload_remove(entry.id)?;
            tables.upload_add(entry)?;
            entry.parts.iter().try_for_each(|part| tables.upload_part(entry.id, part))?;
        }
        UploadChange::Named { id, upload } => tables.upload_name(*id, upload)?,
        UploadChange::Part { id, part } => tables.upload_part(*id, part)?,
        UploadChange::Settle { id } => tables.upload_remove(*id)?,
    }
    Ok(RecordOutcome::Done)
}

/// Answers one query.
pub(crate) fn answer<T: Tables>(tables: &mut T, query: &RecordQuery) -> Result<RecordAnswer, StoreError> {
    match query {
        RecordQuery::Metadata { key, at } => metadata::current(tables, *key, *at),
        RecordQuery::MetadataEvents { key, after, entries_max, at } => {
            metadata::events(tables, *key, *after, *entries_max, *at)
        }
        RecordQuery::Lineage { key, upstream, depth_max, at } => {
            lineage::walk(tables, *key, *upstream, *depth_max, *at)
        }
        RecordQuery::Stream(name) => streams::one(tables, name),
        RecordQuery::Streams { after, entries_max } => streams::list(tables, after.as_ref(), *entries_max),
        RecordQuery::StreamRead { stream, from, to, not_before, entries_max, at } => {
            let range =
                streams::Range { from: *from, to: *to, not_before: *not_before, entries_max: *entries_max };
            streams::read(tables, stream, range, *at)
        }
        RecordQuery::Floors { after, streams_max } => streams::floors(tables, *after, *streams_max),
        RecordQuery::Committed { stream, group } => streams::committed(tables, stream, group),
        RecordQuery::Groups { stream, after, groups_max } => {
            streams::groups(tables, stream, after, *groups_max)
        }
        RecordQuery::StreamEnds(names) => tables.stream_ends(names).map(RecordAnswer::StreamEnds),
        // Only a catalog that nodes share has rows of others; its reader answers these itself.
        RecordQuery::Foreign { .. } => Ok(RecordAnswer::Foreign(Vec::new())),
        RecordQuery::Find { namespace, span, order, filter } => {
            find::find(tables, *namespace, *span, *order, filter)
        }
        RecordQuery::ForeignSpan { .. } | RecordQuery::ForeignPage { .. } => {
            Ok(RecordAnswer::ForeignPage(ForeignPage::default()))
        }
    }
}

/// A payload's row was removed: what belongs to it goes, too. Backends call it in the same transaction, once for each row
/// that was there.
pub(crate) fn forget<T: TablesMut>(tables: &mut T, key: PayloadKey) -> Result<(), StoreError> {
    metadata::forget(tables, key)?;
    lineage::forget(tables, key)
}

/// When a change is made.
#[derive(Clone, Copy)]
struct Moment {
    at: WallMs,
    /// The time by which it is judged whether payloads have expired.
    judged_at: WallMs,
}

/// What a change or a query needs of a payload.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needed {
    /// That it is known.
    Known,
    /// That it is committed.
    Committed,
}

/// The first of `ids` that is not as needed, and how it is.
fn unfit<T: Tables>(
    tables: &mut T,
    namespace: NamespaceId,
    ids: &[PayloadId],
    needed: Needed,
    at: WallMs,
) -> Result<Option<RecordOutcome>, StoreError> {
    let standings = tables.standings(Payloads { namespace, ids })?;
    let judged = ids.iter().zip(standings).map(|(id, standing)| judge(*id, standing, needed, at));
    Ok(judged.into_iter().flatten().next())
}

fn judge(id: PayloadId, standing: Option<Standing>, needed: Needed, at: WallMs) -> Option<RecordOutcome> {
    let Some(Standing { state, expires_at, health }) = standing else {
        return Some(RecordOutcome::NotFound(id));
    };
    let gone = matches!(state, PayloadState::Deleting | PayloadState::Expired | PayloadState::Deleted);
    if gone || expires_at.is_some_and(|end| end <= at) {
        return Some(RecordOutcome::NotFound(id));
    }
    if health == Health::Lost {
        return Some(RecordOutcome::Lost(id));
    }
    let uncommitted = matches!(state, PayloadState::Allocated | PayloadState::Committing);
    (needed == Needed::Committed && uncommitted).then_some(RecordOutcome::NotCommitted(id))
}

/// As [`unfit`] for a query of one payload.
fn unfit_to_ask<T: Tables>(
    tables: &mut T,
    key: PayloadKey,
    at: WallMs,
) -> Result<Option<RecordAnswer>, StoreError> {
    let outcome = unfit(tables, key.namespace, &[key.id], Needed::Known, at)?;
    Ok(outcome.map(|outcome| match outcome {
        RecordOutcome::Lost(id) => RecordAnswer::Lost(id),
        _ => RecordAnswer::NotFound(key.id),
    }))
}

/// Each of `ids` once, in the order in which they come first.
fn distinct(ids: impl Iterator<Item = PayloadId>) -> Vec<PayloadId> {
    let mut seen = HashSet::new();
    ids.filter(|id| seen.insert(*id)).collect()
}

/// Something is stored that this program cannot have written.
fn strange(what: &str) -> StoreError {
    StoreError::Corrupt(format!("the catalog's records do not fit together: {what}; {RESTORE}"))
}
