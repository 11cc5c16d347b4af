//! The trait that every backend implements, and the rules that are the same on all of them.
//!
//! Invariants, held by one conformance suite (`tests/catalog/conformance.rs`):
//! - `apply` is one transaction: all of its changes or none, durable when it returns `Ok`.
//! - `apply_late` is one, too, and may be durable later: in order, so that a loss of power takes the last ones.
//! - A row is never replaced by one of an older (epoch, version), nor removed on behalf of an older epoch.
//! - Applying the same changes again, in the same order, leaves the same rows.
//! - No change of a batch can fail another: what cannot be stored is found by [`storable`] before.

use payload_types::effect::CatalogChange;
use payload_types::limits::{GENERATION_EPOCH_BITS, STORED_INTEGER_MAX};
use payload_types::{Epoch, NamespaceId, PayloadKey, PayloadRow, Pin, Tier, Version, WallMs};

use crate::error::StoreError;

/// The last start that generations have bits for (`Generation::new`): 2^20 - 1.
pub(crate) const EPOCH_MAX: u32 = (1 << GENERATION_EPOCH_BITS) - 1;

/// Generations are stored with one more bit, so they must stay below 2^62. They have 56.
const GENERATION_STORED_MAX: u64 = STORED_INTEGER_MAX >> 1;

/// Where rows are kept. Synchronous: the writer's thread waits for the store, nobody else does.
pub trait Store: Send {
    /// Registers a start of `node` and returns its number: greater than that of every earlier start of any node,
    /// and one more when nobody else started in between. Durable when it returns, and so is all that earlier starts
    /// applied: what no row speaks of may be reused from here on.
    ///
    /// # Errors
    /// [`StoreError::Unstorable`] after 2^20 - 1 starts; [`StoreError::Unavailable`] and what opening can report.
    fn begin_epoch(&mut self, node: &str) -> Result<Epoch, StoreError>;

    /// The ids of the disk roots that rows of this catalog may speak of, one a node.
    ///
    /// # Errors
    /// As [`Store::get`].
    fn disk_roots(&mut self) -> Result<Vec<String>, StoreError>;

    /// Notes that `node`, whose start was registered, keeps its files on the disk root with this id. Durable when it
    /// returns.
    ///
    /// # Errors
    /// As [`Store::begin_epoch`].
    fn disk_root_bind(&mut self, node: &str, root_id: &str) -> Result<(), StoreError>;

    /// Makes all changes, in order, in one transaction; durable when it returns `Ok`, and so is all that was applied
    /// before.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when they may have been made; after every other error none was.
    fn apply(&mut self, batch: &[CatalogChange]) -> Result<(), StoreError>;

    /// As [`Store::apply`], but may return `Ok(false)` before the transaction is durable: it survives the process, and
    /// power once a later `apply`, `begin_epoch` or `flush` has succeeded.
    ///
    /// # Errors
    /// As [`Store::apply`].
    fn apply_late(&mut self, batch: &[CatalogChange]) -> Result<bool, StoreError> {
        self.apply(batch).map(|()| true)
    }

    /// Makes durable what [`Store::apply_late`] left.
    ///
    /// # Errors
    /// As [`Store::apply`]; what was applied stays applied.
    fn flush(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Gives every row to `each`, ordered by key. Rows are decoded one at a time.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] for a row that this program cannot have written; some rows were given by then.
    fn load(&mut self, each: &mut dyn FnMut(PayloadRow)) -> Result<(), StoreError>;

    /// The row with this key. After an `apply` that ended in [`StoreError::Unknown`] the answer is given only once
    /// that apply can no longer take effect.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when that cannot be said now; [`StoreError::Corrupt`].
    fn get(&mut self, key: PayloadKey) -> Result<Option<PayloadRow>, StoreError>;

    /// How many rows there are.
    ///
    /// # Errors
    /// As [`Store::get`].
    fn count(&mut self) -> Result<u64, StoreError>;

    /// The number of the namespace with this name; `default` exists from the first migration on.
    ///
    /// # Errors
    /// As [`Store::get`].
    fn namespace(&mut self, name: &str) -> Result<Option<NamespaceId>, StoreError>;

    /// Bytes written to a log that [`Store::checkpoint`] would move to their place; 0: nothing to do.
    fn log_bytes(&self) -> u64 {
        0
    }

    /// Moves what the log holds to its place, as far as nobody reads it. Costs time, changes no row.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; the log stays as it was.
    fn checkpoint(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Releases everything, the lock included.
    ///
    /// # Errors
    /// What was applied is durable all the same.
    fn close(self: Box<Self>) -> Result<(), StoreError>;
}

/// True when a row of `new` replaces one of `old`. Equal ones do: a pin changes a row without a new version.
pub fn supersedes(new: (Epoch, Version), old: (Epoch, Version)) -> bool {
    new >= old
}

/// Checks that every backend can store the change. Backends call it for each change before the first one is made,
/// the writer before it puts a change into a batch.
///
/// # Errors
/// [`StoreError::Unstorable`], naming the field.
pub fn storable(change: &CatalogChange) -> Result<(), StoreError> {
    let CatalogChange::Put(row) = change else { return Ok(()) };
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

/// The refusal of a start past [`EPOCH_MAX`].
pub(crate) fn epochs_exhausted(node: &str) -> StoreError {
    StoreError::Unstorable(format!(
        "node `{node}` cannot start: this catalog has counted {EPOCH_MAX} starts, the most there can be; spill or copy its payloads to a server with a new catalog"
    ))
}
