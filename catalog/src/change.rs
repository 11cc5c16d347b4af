//! What a transaction is made of: changes of payload rows, and changes of records beside them.

use payload_types::WallMs;
use payload_types::effect::CatalogChange;
use payload_types::limits::{GENERATION_EPOCH_BITS, STORED_INTEGER_MAX};
use payload_types::record::{RecordChange, StreamLimits};
use payload_types::upload::UploadChange;
use payload_types::{PayloadRow, Pin, Tier};

use crate::error::StoreError;

/// One entry of a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// A payload row's. Idempotent: it may be made again.
    Row(CatalogChange),
    /// A record's. Made at most once, and answered with a `RecordOutcome`.
    Record(Box<RecordChange>),
}

impl From<CatalogChange> for Change {
    fn from(change: CatalogChange) -> Self {
        Self::Row(change)
    }
}

impl From<RecordChange> for Change {
    fn from(change: RecordChange) -> Self {
        Self::Record(Box::new(change))
    }
}

impl Change {
    /// True when `synchronous: normal` may acknowledge it before it survives a loss of power (DESIGN §7): a removal of a
    /// row, which leaves the payload as it was should it be lost. All else was promised to a client.
    pub fn may_be_late(&self) -> bool {
        match self {
            Self::Row(change) => change.may_be_late(),
            Self::Record(_) => false,
        }
    }

    /// How many of `batch` are records': as many outcomes as `Store::apply` returns.
    pub fn records(batch: &[Self]) -> usize {
        batch.iter().filter(|change| matches!(change, Self::Record(_))).count()
    }
}

/// The last start that generations have bits for (`Generation::new`): 2^20 - 1.
pub(crate) const EPOCH_MAX: u32 = (1 << GENERATION_EPOCH_BITS) - 1;

/// Generations are stored with one more bit, so they must stay below 2^62. They have 56.
const GENERATION_STORED_MAX: u64 = STORED_INTEGER_MAX >> 1;

/// Checks that every backend can store the change. Backends call it for each change before the first one is made,
/// the writer before it puts a change into a batch.
///
/// # Errors
/// [`StoreError::Unstorable`], naming the field.
pub fn storable(change: &Change) -> Result<(), StoreError> {
    match change {
        Change::Row(CatalogChange::Put(row)) => row_storable(row),
        Change::Row(CatalogChange::Remove { .. }) => Ok(()),
        Change::Record(change) => record_storable(change),
    }
}

fn row_storable(row: &PayloadRow) -> Result<(), StoreError> {
    let refuse = |what: String| Err(StoreError::Unstorable(format!("row {} {what}", row.key.id)));
    let pinned_until = match row.pin {
        Pin::Until(end) => end.as_millis(),
        Pin::None | Pin::Forever => 0,
    };
    for (field, value, max) in [
        ("size", row.size.0, STORED_INTEGER_MAX),
        ("version", row.version.0, STORED_INTEGER_MAX),
        ("created_at", row.created_at.as_millis(), STORED_INTEGER_MAX),
        ("expires_at", row.expires_at.map_or(0, WallMs::as_millis), STORED_INTEGER_MAX),
        // The largest number itself stands for `Pin::Forever`.
        ("pin", pinned_until, STORED_INTEGER_MAX - 1),
    ] {
        if value > max {
            return refuse(format!("has {field} {value}; the catalog stores at most {max}"));
        }
    }
    if let Some(replica) = row.replicas.iter().find(|replica| replica.generation.0 > GENERATION_STORED_MAX) {
        return refuse(format!("has generation {}; at most 2^62 - 1 can be stored", replica.generation.0));
    }
    if row.replicas.windows(2).any(|pair| pair[0].tier >= pair[1].tier) {
        return refuse("names its replicas out of order; one a tier, fastest first".to_owned());
    }
    if let Some(replica) =
        row.replicas.iter().find(|replica| replica.extent.is_some() && replica.tier != Tier::Disk)
    {
        return refuse(format!("has a replica on {} with an extent; only DISK is packed", replica.tier));
    }
    Ok(())
}

fn record_storable(change: &RecordChange) -> Result<(), StoreError> {
    use RecordChange::{
        GroupRemove, LineageAdd, MetadataNote, MetadataUpdate, Once, StreamAppend, StreamCommit,
        StreamCreate, StreamDelete, Sweep, Upload, Vouched,
    };
    if let Upload(change) = change {
        return upload_storable(change);
    }
    let StreamLimits { entries_max, age_ms_max, .. } = match change {
        StreamCreate { limits, .. } => *limits,
        _ => StreamLimits::default(),
    };
    let at = match change {
        MetadataUpdate { at, .. }
        | MetadataNote { at, .. }
        | LineageAdd { at, .. }
        | StreamCreate { at, .. }
        | StreamAppend { at, .. }
        | StreamCommit { at, .. }
        | Sweep { at } => at.as_millis(),
        StreamDelete { .. } | GroupRemove { .. } | Upload(_) => 0,
        // Its time is the change's own.
        Vouched(change) | Once { change, .. } => return record_storable(change),
    };
    for (field, value) in
        [("max_entries", entries_max.unwrap_or(0)), ("max_age", age_ms_max.unwrap_or(0)), ("the time", at)]
    {
        if value > STORED_INTEGER_MAX {
            return Err(StoreError::Unstorable(format!(
                "{field} is {value}; the catalog stores at most {STORED_INTEGER_MAX}"
            )));
        }
    }
    match change {
        LineageAdd { child, edges, .. } if edges.iter().any(|edge| edge.child != child.id) => {
            Err(StoreError::Unstorable(format!("an edge has another child than {}", child.id)))
        }
        StreamAppend { items, .. } if items.is_empty() => {
            Err(StoreError::Unstorable("an append has no items; it needs at least one".to_owned()))
        }
        _ => Ok(()),
    }
}

fn upload_storable(change: &UploadChange) -> Result<(), StoreError> {
    let UploadChange::Begin(entry) = change else { return Ok(()) };
    for (field, value) in
        [("size", entry.size.0), ("part size", entry.part_bytes), ("generation", entry.generation.0)]
    {
        if value > STORED_INTEGER_MAX {
            return Err(StoreError::Unstorable(format!(
                "the upload of {} has {field} {value}; the catalog stores at most {STORED_INTEGER_MAX}",
                entry.id
            )));
        }
    }
    Ok(())
}

/// Roughly how many bytes a change of records keeps in memory while it waits: what clients chose the length of, and
/// 64 bytes for each part.
pub(crate) fn weight(change: &RecordChange) -> u64 {
    /// A part's vectors, strings and fields.
    const PART_BYTES: usize = 64;
    let clients = match change {
        RecordChange::MetadataUpdate { metadata, actor, reason, .. } => {
            metadata.data.len() + metadata.schema.len() + actor.len() + reason.len()
        }
        RecordChange::MetadataNote { metadata, source, version, .. } => {
            metadata.data.len() + metadata.schema.len() + source.len() + version.len()
        }
        RecordChange::LineageAdd { edges, .. } => edges
            .iter()
            .map(|edge| 2 * PART_BYTES + edge.operation.len() + edge.role.len() + edge.parameters.len())
            .sum(),
        RecordChange::StreamAppend { items, .. } => items
            .iter()
            .map(|item| {
                let tags: usize =
                    item.tags.iter().map(|(key, value)| PART_BYTES + key.len() + value.len()).sum();
                PART_BYTES + tags
            })
            .sum(),
        RecordChange::Vouched(change) => return weight(change),
        RecordChange::Once { id, change, .. } => return weight(change) + (PART_BYTES + id.len()) as u64,
        RecordChange::Upload(change) => match change {
            UploadChange::Begin(entry) => {
                let upload = entry.upload.as_ref().map_or(0, String::len);
                upload + entry.parts.iter().map(|part| PART_BYTES + part.tag.len()).sum::<usize>()
            }
            UploadChange::Named { upload, .. } => upload.len(),
            UploadChange::Part { part, .. } => part.tag.len(),
            UploadChange::Settle { .. } => 0,
        },
        // Their names are at most 255 bytes each.
        RecordChange::StreamCreate { .. }
        | RecordChange::StreamDelete { .. }
        | RecordChange::StreamCommit { .. }
        | RecordChange::GroupRemove { .. }
        | RecordChange::Sweep { .. } => 2 * 255,
    };
    (clients + 4 * PART_BYTES) as u64
}
