//! Metadata: a history of events for each payload, of which one holds what is current.

use payload_types::limits::{ANSWER_BYTES_MAX, OPAQUE_BYTES_MAX};
use payload_types::record::{
    Metadata, MetadataEvent, MetadataEventKind, MetadataMode, RecordAnswer, RecordOutcome,
};
use payload_types::{PayloadKey, WallMs};

use super::tables::{EventSpan, Garbage, History, Tables, TablesMut};
use super::{Moment, Needed, merge, strange, terms, unfit, unfit_to_ask};
use crate::error::StoreError;

/// Events that are removed together with their payload; of a longer history sweeps remove the events.
const EVENTS_REMOVED_AT_ONCE: u64 = 64;

/// What of an event's encoding is neither text nor data: numbers, times, the payload's id, and each field's head.
const EVENT_BYTES: usize = 96;

/// An update but for whose it is and when.
pub(super) struct Update<'change> {
    pub(super) mode: MetadataMode,
    pub(super) metadata: &'change Metadata,
    pub(super) actor: &'change str,
    pub(super) reason: &'change str,
}

pub(super) fn update<T: TablesMut>(
    tables: &mut T,
    key: PayloadKey,
    moment: Moment,
    update: Update<'_>,
) -> Result<RecordOutcome, StoreError> {
    let Moment { at, judged_at } = moment;
    if let Some(outcome) = unfit(tables, key.namespace, &[key.id], Needed::Known, judged_at)? {
        return Ok(outcome);
    }
    let history = tables.history(key)?;
    let (kind, metadata) = match (update.mode, &history) {
        (MetadataMode::Replace, _) => (MetadataEventKind::Replaced, update.metadata.clone()),
        (MetadataMode::Merge, found) => {
            let old = match found {
                Some(history) => current_event(tables, history)?.map(|event| event.metadata),
                None => None,
            };
            (MetadataEventKind::Merged, merge::merged(&old.unwrap_or_default(), update.metadata))
        }
    };
    if metadata.data.len() > OPAQUE_BYTES_MAX {
        return Ok(RecordOutcome::TooLarge { bytes: metadata.data.len() as u64 });
    }
    let mut history = match history {
        Some(history) => history,
        None => tables.history_add(key)?,
    };
    history.events += 1;
    history.current = history.events;
    let terms = terms::of(&metadata);
    let (gone, new) = (without(&history.terms, &terms), without(&terms, &history.terms));
    history.terms = terms;
    let event = MetadataEvent {
        number: history.events,
        at,
        kind,
        metadata,
        source: update.actor.to_owned(),
        reason: update.reason.to_owned(),
        version: String::new(),
    };
    tables.event_add(history.id, &event)?;
    tables.history_set(key, &history)?;
    if !gone.is_empty() {
        tables.terms_remove(key, &gone)?;
    }
    if !new.is_empty() {
        tables.terms_add(key, &new)?;
    }
    Ok(RecordOutcome::Metadata(event.metadata))
}

pub(super) fn note<T: TablesMut>(
    tables: &mut T,
    key: PayloadKey,
    moment: Moment,
    metadata: &Metadata,
    source: &str,
    version: &str,
) -> Result<RecordOutcome, StoreError> {
    let Moment { at, judged_at } = moment;
    if let Some(outcome) = unfit(tables, key.namespace, &[key.id], Needed::Known, judged_at)? {
        return Ok(outcome);
    }
    let mut history = match tables.history(key)? {
        Some(history) => history,
        None => tables.history_add(key)?,
    };
    history.events += 1;
    let event = MetadataEvent {
        number: history.events,
        at,
        kind: MetadataEventKind::Noted,
        metadata: metadata.clone(),
        source: source.to_owned(),
        reason: String::new(),
        version: version.to_owned(),
    };
    tables.event_add(history.id, &event)?;
    tables.history_set(key, &history)?;
    Ok(RecordOutcome::Done)
}

pub(super) fn current<T: Tables>(
    tables: &mut T,
    key: PayloadKey,
    at: WallMs,
) -> Result<RecordAnswer, StoreError> {
    if let Some(answer) = unfit_to_ask(tables, key, at)? {
        return Ok(answer);
    }
    let Some(history) = tables.history(key)? else { return Ok(RecordAnswer::Metadata(None)) };
    let event = current_event(tables, &history)?;
    Ok(RecordAnswer::Metadata(event.map(|event| (event.metadata, event.at))))
}

pub(super) fn events<T: Tables>(
    tables: &mut T,
    key: PayloadKey,
    after: u64,
    entries_max: usize,
    at: WallMs,
) -> Result<RecordAnswer, StoreError> {
    if let Some(answer) = unfit_to_ask(tables, key, at)? {
        return Ok(answer);
    }
    let (mut events, mut more, mut bytes) = (Vec::new(), false, 0);
    if let Some(history) = tables.history(key)? {
        let count_max = entries_max.saturating_add(1);
        tables.events(EventSpan { history: history.id, after, count_max }, &mut |event| {
            bytes += weight(&event);
            more = events.len() >= entries_max || (bytes > ANSWER_BYTES_MAX && !events.is_empty());
            if !more {
                events.push(event);
            }
            !more
        })?;
    }
    Ok(RecordAnswer::MetadataEvents(events, more))
}

/// Those of `terms` that are not among `others`.
fn without(terms: &[u64], others: &[u64]) -> Vec<u64> {
    terms.iter().copied().filter(|term| !others.contains(term)).collect()
}

/// What an event takes in an answer, at most.
fn weight(event: &MetadataEvent) -> usize {
    let Metadata { data, schema } = &event.metadata;
    EVENT_BYTES + data.len() + schema.len() + event.source.len() + event.reason.len() + event.version.len()
}

fn current_event<T: Tables>(tables: &mut T, history: &History) -> Result<Option<MetadataEvent>, StoreError> {
    let Some(before) = history.current.checked_sub(1) else { return Ok(None) };
    let mut found = None;
    tables.events(EventSpan { history: history.id, after: before, count_max: 1 }, &mut |event| {
        found = Some(event);
        false
    })?;
    match found {
        Some(event) if event.number == history.current => Ok(Some(event)),
        _ => Err(strange("the event that holds a payload's metadata is missing")),
    }
}

pub(super) fn forget<T: TablesMut>(tables: &mut T, key: PayloadKey) -> Result<(), StoreError> {
    let Some(history) = tables.history(key)? else { return Ok(()) };
    tables.history_remove(key)?;
    tables.terms_remove(key, &history.terms)?;
    if history.events <= EVENTS_REMOVED_AT_ONCE {
        tables.events_remove(history.id, EVENTS_REMOVED_AT_ONCE)?;
        return Ok(());
    }
    tables.garbage_add(Garbage::History, history.id)
}
