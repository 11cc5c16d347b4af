//! Cleaning up: what retention lets go, what deletions left, and lineage that nothing living is connected with.
//!
//! A sweep does a bounded share and says whether there is more. All progress is in the tables, so it is as durable as the
//! rest and a rolled-back sweep is simply done again.
//!
//! ```text
//!   dirty payload --any neighbour lives?--> yes: settled
//!                          | no
//!                          v
//!                        walk: expand payload by payload --a living one is met--> the walk ends, all in it are settled
//!                          | all expanded, nothing lives
//!                          v
//!                        remove their edges, payload by payload
//! ```
//! What is dead in the walk stays dead: edges are only added between living payloads.

use payload_types::record::{LineageEdge, RecordOutcome, StreamFloor};
use payload_types::{PayloadId, PayloadKey, WallMs};

use super::repeats::forgotten_at;
use super::streams::{first_in_age, floor, outdated_at};
use super::tables::{Garbage, Payloads, StreamRow, Tables, TablesMut};
use super::{distinct, strange};
use crate::error::StoreError;

/// Streams that one sweep trims.
const STREAMS_MAX: usize = 32;

/// Batches, groups and events that one sweep removes, and histories and deleted streams that it looks at, all together:
/// at up to 64 pages a batch, which have to be read to be freed, tens of milliseconds at worst and one normally. Appends
/// remove old batches, too, so that a busy stream does not depend on this.
const ITEMS_MAX: u64 = 128;

/// Payloads that one sweep expands or whose edges it removes.
const NODES_MAX: usize = 512;

/// Whether [`sweep`] would find something to do.
pub(crate) fn is_due<T: Tables>(tables: &mut T, at: WallMs) -> Result<bool, StoreError> {
    Ok(!tables.streams_due(at, 1)?.is_empty()
        || tables.notes_due(forgotten_at(at))?
        || tables.garbage_next()?.is_some()
        || tables.walk_next(false)?.is_some()
        || tables.walk_next(true)?.is_some()
        || tables.dirty_next()?.is_some())
}

pub(super) fn sweep<T: TablesMut>(tables: &mut T, at: WallMs) -> Result<RecordOutcome, StoreError> {
    let (mut removed, mut budget, mut floors) = (0, ITEMS_MAX, Vec::new());
    for stream in tables.streams_due(at, STREAMS_MAX)? {
        removed += trim(tables, stream, at, &mut budget, &mut floors)?;
    }
    budget -= tables.notes_remove(forgotten_at(at), budget)?;
    while budget > 0
        && let Some((garbage, id)) = tables.garbage_next()?
    {
        collect(tables, garbage, id, &mut budget)?;
    }
    for _ in 0..NODES_MAX {
        if !step(tables, &mut removed)? {
            break;
        }
    }
    Ok(RecordOutcome::Swept { removed, more: is_due(tables, at)?, floors })
}

/// Lets go what the stream does not keep any more; returns how many entries.
fn trim<T: TablesMut>(
    tables: &mut T,
    mut stream: StreamRow,
    at: WallMs,
    budget: &mut u64,
    floors: &mut Vec<StreamFloor>,
) -> Result<u64, StoreError> {
    let before = stream.first;
    stream.first = first_in_age(tables, &stream, at)?;
    *budget -= tables.batches_remove(stream.id, stream.first, *budget)?;
    stream.due_at = if *budget == 0 {
        // There may be more, now or with the next sweep.
        Some(WallMs::default())
    } else if let Some(age) = stream.limits.age_ms_max
        && stream.first < stream.next
    {
        let oldest =
            tables.batch_at(stream.id, stream.first)?.ok_or_else(|| strange("a batch is missing"))?;
        Some(outdated_at(oldest.appended_at, age))
    } else {
        None
    };
    tables.stream_set(&stream)?;
    if stream.limits.retains_payloads && stream.first > before {
        floors.push(floor(tables, &stream)?);
    }
    Ok(stream.first - before)
}

/// Removes as much of what is named no more as the budget allows.
fn collect<T: TablesMut>(
    tables: &mut T,
    garbage: Garbage,
    id: u64,
    budget: &mut u64,
) -> Result<(), StoreError> {
    match garbage {
        Garbage::Stream => {
            *budget -= tables.batches_remove(id, u64::MAX, *budget)?;
            *budget -= tables.groups_remove(id, *budget)?;
        }
        Garbage::History => *budget -= tables.events_remove(id, *budget)?,
    }
    // With nothing of the budget left there may be more of it.
    if *budget > 0 {
        tables.garbage_remove(garbage, id)?;
        *budget -= 1;
    }
    Ok(())
}

/// One step of the walk; false when there is nothing to do.
fn step<T: TablesMut>(tables: &mut T, removed: &mut u64) -> Result<bool, StoreError> {
    if let Some(node) = tables.walk_next(false)? {
        match neighbours(tables, node)? {
            Neighbours::Living => tables.walk_end()?,
            Neighbours::Dead(keys) => {
                tables.walk_add(&keys)?;
                tables.walk_expanded(node)?;
            }
        }
    } else if let Some(node) = tables.walk_next(true)? {
        *removed += tables.edges_remove(node)?;
        tables.dirty_remove(node)?;
        tables.walk_remove(node)?;
    } else if let Some(node) = tables.dirty_next()? {
        // It may have been stored anew.
        if is_living(tables, node)? || matches!(neighbours(tables, node)?, Neighbours::Living) {
            tables.dirty_remove(node)?;
        } else {
            tables.walk_add(&[node])?;
        }
    } else {
        return Ok(false);
    }
    Ok(true)
}

/// Who is connected with a payload.
enum Neighbours {
    /// Somebody living.
    Living,
    /// These, and none of them lives.
    Dead(Vec<PayloadKey>),
}

/// Neighbours of which it is asked together whether they live.
const ASKED_AT_ONCE: usize = 256;

fn neighbours<T: Tables>(tables: &mut T, node: PayloadKey) -> Result<Neighbours, StoreError> {
    let mut ids = Vec::new();
    for upstream in [true, false] {
        let far = |edge: &LineageEdge| if upstream { edge.parent } else { edge.child };
        tables.edges(Payloads { namespace: node.namespace, ids: &[node.id] }, upstream, &mut |edge| {
            ids.push(far(&edge));
            true
        })?;
    }
    // An edge to itself connects a payload with nothing.
    let ids: Vec<PayloadId> = distinct(ids.into_iter().filter(|id| *id != node.id));
    for some in ids.chunks(ASKED_AT_ONCE) {
        if tables.standings(Payloads { namespace: node.namespace, ids: some })?.iter().any(Option::is_some) {
            return Ok(Neighbours::Living);
        }
    }
    Ok(Neighbours::Dead(ids.into_iter().map(|id| PayloadKey { namespace: node.namespace, id }).collect()))
}

fn is_living<T: Tables>(tables: &mut T, node: PayloadKey) -> Result<bool, StoreError> {
    Ok(tables.standings(Payloads { namespace: node.namespace, ids: &[node.id] })?.iter().any(Option::is_some))
}
