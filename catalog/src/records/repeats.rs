//! Calls that clients may send again under one id: made once, also when the server was killed in between.
//!
//! What a call made is noted in the transaction that makes it: where (a stream, a history) and what (offsets, an event), 40
//! bytes and the id. A call that changed nothing is not noted, and is tried again. Notes older than
//! [`REPEATS_KEPT_MS`] count for nothing, and sweeps remove them.

use payload_types::WallMs;
use payload_types::limits::REPEATS_KEPT_MS;
use payload_types::record::{RecordChange, RecordOutcome};

use super::strange;
use super::streams::floor;
use super::tables::{EventSpan, Note, TablesMut};
use crate::error::StoreError;

/// A call as it comes.
#[derive(Clone, Copy)]
pub(super) struct Call<'change> {
    pub(super) id: &'change str,
    pub(super) request: u64,
    pub(super) at: WallMs,
}

/// Notes made then or before count no more.
pub(super) fn forgotten_at(now: WallMs) -> WallMs {
    WallMs::from_millis(now.as_millis().saturating_sub(REPEATS_KEPT_MS))
}

/// Does `work`, which makes `change`, unless the call did before.
pub(super) fn once<T: TablesMut>(
    tables: &mut T,
    call: Call<'_>,
    change: &RecordChange,
    work: impl FnOnce(&mut T) -> Result<RecordOutcome, StoreError>,
) -> Result<RecordOutcome, StoreError> {
    let known = tables.note(call.id)?.filter(|note| note.at > forgotten_at(call.at));
    if let Some(note) = known {
        return if note.request == call.request {
            again(tables, note, change.bare())
        } else {
            Ok(RecordOutcome::UsedBefore)
        };
    }
    let outcome = work(tables)?;
    let (about, first, last) = match (&outcome, change.bare()) {
        (
            RecordOutcome::Appended { first, last } | RecordOutcome::AppendedHeld { first, last, .. },
            RecordChange::StreamAppend { stream, .. },
        ) => (tables.stream(stream)?.map(|stream| stream.id), *first, *last),
        (
            RecordOutcome::Metadata(_) | RecordOutcome::Done,
            RecordChange::MetadataUpdate { key, .. } | RecordChange::MetadataNote { key, .. },
        ) => match tables.history(*key)? {
            Some(history) => (Some(history.id), history.events, history.events),
            None => (None, 0, 0),
        },
        // Nothing was made, or what may be made twice.
        _ => return Ok(outcome),
    };
    let about = about.ok_or_else(|| strange("what was just changed is missing"))?;
    let note = Note { request: call.request, at: call.at, about, first, last };
    tables.note_set(call.id, note, forgotten_at(call.at))?;
    Ok(outcome)
}

/// What the call met when it was made.
fn again<T: TablesMut>(
    tables: &mut T,
    note: Note,
    change: &RecordChange,
) -> Result<RecordOutcome, StoreError> {
    let Note { about, first, last, .. } = note;
    match change {
        RecordChange::StreamAppend { stream, .. } => match tables.stream(stream)? {
            Some(stream) if stream.id == about && stream.limits.retains_payloads => {
                Ok(RecordOutcome::AppendedHeld { first, last, floor: floor(tables, &stream)? })
            }
            _ => Ok(RecordOutcome::Appended { first, last }),
        },
        RecordChange::MetadataUpdate { key, .. } | RecordChange::MetadataNote { key, .. } => {
            let mut found = None;
            let span = EventSpan { history: about, after: first.saturating_sub(1), count_max: 1 };
            tables.events(span, &mut |event| {
                found = Some(event);
                false
            })?;
            // Removed meanwhile, with the payload.
            let Some(event) = found else { return Ok(RecordOutcome::NotFound(key.id)) };
            let is_update = matches!(change, RecordChange::MetadataUpdate { .. });
            let outcome =
                if is_update { RecordOutcome::Metadata(event.metadata) } else { RecordOutcome::Done };
            Ok(RecordOutcome::Before { at: event.at, outcome: Box::new(outcome) })
        }
        _ => Err(strange("a call was noted that is never noted")),
    }
}
