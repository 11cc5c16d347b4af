//! The trait that every backend implements, and the rules that are the same on all of them.
//!
//! Invariants, held by one conformance suite (`tests/catalog/conformance.rs`):
//! - `apply` is one transaction: all of its changes or none, durable when it returns `Ok`.
//! - `apply_late` is one, too, and may be durable later: in order, so that a loss of power takes the last ones.
//! - A row is never replaced by one of an older (epoch, version), nor removed on behalf of an older epoch.
//! - Applying the same changes of rows again, in the same order, leaves the same rows. A record's change is made once.
//! - No change of a batch can fail another: what cannot be stored is found by [`storable`](crate::storable) before.
//! - Stores read no clock: every time comes with a change or a query.

use payload_types::effect::CatalogChange;
use payload_types::record::{RecordAnswer, RecordOutcome, RecordQuery};
use payload_types::upload::UploadEntry;
use payload_types::{Epoch, Health, NamespaceId, PayloadKey, PayloadRow, Version, WallMs};

use crate::change::Change;
pub(crate) use crate::change::EPOCH_MAX;
use crate::error::StoreError;

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
    /// before. Returns what each [`Change::Record`] met, in order: an empty vector, which allocates nothing, for rows alone.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when they may have been made: then the next call is `apply` (or `apply_late`) of the same
    /// batch again, or [`Store::resolve`]. After every other error none was. [`StoreError::Taken`] when rows of other nodes
    /// have ids that were to be put: the batch without these may be given next.
    fn apply(&mut self, batch: &[Change]) -> Result<Vec<RecordOutcome>, StoreError>;

    /// As [`Store::apply`] for changes that may be late ([`Change::may_be_late`]), but may return `Ok(false)` before the
    /// transaction is durable: it survives the process, and power once a later `apply`, `begin_epoch` or `flush` has
    /// succeeded.
    ///
    /// # Errors
    /// As [`Store::apply`].
    fn apply_late(&mut self, batch: &[Change]) -> Result<bool, StoreError> {
        self.apply(batch).map(|_none| true)
    }

    /// Whether the last `apply` or `apply_late`, which was of `batch` and ended in [`StoreError::Unknown`], took effect:
    /// `Some` with its outcomes, or `None` and it never will.
    ///
    /// # Errors
    /// What [`StoreError::is_temporary`]: it cannot be said now; ask again. [`StoreError::Corrupt`].
    fn resolve(&mut self, batch: &[Change]) -> Result<Option<Vec<RecordOutcome>>, StoreError>;

    /// Opens another way to ask about records, which may be used from another thread. It sees at least what was applied
    /// before each question.
    ///
    /// # Errors
    /// As opening the store.
    fn reader(&self) -> Result<Box<dyn Reader>, StoreError>;

    /// Whether a `RecordChange::Sweep` would find something to do at `at`.
    ///
    /// # Errors
    /// As [`Store::get`].
    fn sweep_is_due(&mut self, at: WallMs) -> Result<bool, StoreError>;

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

    /// The row with this key.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Corrupt`].
    fn get(&mut self, key: PayloadKey) -> Result<Option<PayloadRow>, StoreError>;

    /// Notes in the rows of these payloads, which are this node's, what a start found of their bytes; the rows are else as
    /// they were. Durable when it returns; a key without a row is passed over. One transaction: give a few thousand at a
    /// time.
    ///
    /// # Errors
    /// What [`StoreError::is_temporary`] may be repeated; see [`Store::apply`] for the rest.
    fn health_note(&mut self, keys: &[PayloadKey], health: Health) -> Result<(), StoreError> {
        let mut puts = Vec::with_capacity(keys.len());
        for key in keys {
            if let Some(row) = self.get(*key)? {
                puts.push(CatalogChange::Put(Box::new(PayloadRow { health, ..row })).into());
            }
        }
        self.apply(&puts).map(drop)
    }

    /// Entries of this node's upload journal, by id. Rows change it, too, each in its own transaction: a row that names an
    /// object on OBJECT settles the payload's upload, and one that is removed leaves an entry to delete its object.
    ///
    /// # Errors
    /// As [`Store::get`].
    fn uploads(&mut self) -> Result<Vec<UploadEntry>, StoreError>;

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

/// Answers questions about records, one at a time.
pub trait Reader: Send {
    /// The answer, as of one moment between question and answer.
    ///
    /// # Errors
    /// As [`Store::get`].
    fn read(&mut self, query: &RecordQuery) -> Result<RecordAnswer, StoreError>;
}

/// True when a row of `new` replaces one of `old`. Equal ones do: a pin changes a row without a new version.
pub fn supersedes(new: (Epoch, Version), old: (Epoch, Version)) -> bool {
    new >= old
}

/// The refusal of a start past [`EPOCH_MAX`].
pub(crate) fn epochs_exhausted(node: &str) -> StoreError {
    StoreError::Unstorable(format!(
        "node `{node}` cannot start: this catalog has counted {EPOCH_MAX} starts, the most there can be; spill or copy its payloads to a server with a new catalog"
    ))
}
