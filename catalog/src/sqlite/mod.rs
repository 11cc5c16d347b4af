//! The catalog in one SQLite file: WAL mode, one connection that reads, writes and checkpoints, `synchronous=FULL`
//! but for transactions that may be late.
//!
//! Invariants: SQLite >= 3.51.3 (older ones can lose data when a checkpoint races a write); one server a file, held
//! by a lock on `<file>.lock`; automatic checkpoints are off, the writer's thread asks for them (`log_bytes`).
//! A `COMMIT` that fails with an I/O error leaves frames in the log that a crash could still bring back. Such a store
//! is *in doubt* until an `apply` succeeds (it overwrites those frames) or the log was emptied, which
//! `resolve` does before it answers.
//!
//! A late transaction (`apply_late` with [`Synchronous::Normal`]) is in the log, and not synced. The next one that is
//! not late syncs the log's whole file, all earlier frames included; `flush` is such a one, which changes nothing. No
//! checkpoint is relied on: one that finds no frame to move syncs nothing, and another program's reader can keep it so.

mod backup;
mod errors;
mod migrate;
mod open;
mod reader;
mod records;
mod row;
mod terms;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use payload_types::effect::CatalogChange;
use payload_types::record::RecordOutcome;
use payload_types::upload::UploadEntry;
use payload_types::{Epoch, Health, NamespaceId, PayloadKey, PayloadRow, WallMs};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use crate::change::{Change, EPOCH_MAX, storable};
use crate::error::StoreError;
use crate::store::{Reader, Store, epochs_exhausted};
use crate::synchronous::Synchronous;
pub use backup::Backup;
use errors::{committing, rolled_back};
#[cfg(test)]
pub(crate) use migrate::MIGRATIONS;
use records::{Kept, SqliteTables};

/// See the module. The fields drop in this order: the lock outlives the connection.
pub struct SqliteStore {
    connection: Connection,
    /// Pages in the log that are not known to be in the file; set by SQLite's hook at each commit.
    log_pages: Arc<AtomicU64>,
    page_bytes: u64,
    in_doubt: bool,
    /// How `apply_late` commits.
    late_level: Synchronous,
    /// What the connection is set to.
    level: Synchronous,
    /// Late transactions that are not known to be durable.
    late: bool,
    /// A call failed meanwhile that may have synced: a second sync would not write what the first one could not
    /// (FACTS.md), so only moving the whole log into the database makes them durable.
    suspect: bool,
    /// What a removal of a row may have to take along.
    kept: Kept,
    /// The database, for readers.
    path: PathBuf,
    _lock: open::Lock,
}

impl SqliteStore {
    /// Opens the database at `path`, or makes it, its directory included, and brings its schema up to date.
    ///
    /// # Errors
    /// Every kind but [`StoreError::Unknown`], naming the file and what to do. A file of another program or of a
    /// newer schema is left as it was.
    ///
    /// # Panics
    /// When the program was built with an SQLite that can lose data.
    pub fn open(path: &Path, synchronous: Synchronous) -> Result<Self, StoreError> {
        open::open(path, synchronous)
    }

    /// Copies the database at `path` as it is at one moment to a new file, also while a server uses it; the copy is on
    /// stable storage when this returns. Changes nothing else.
    ///
    /// # Errors
    /// Every kind but [`StoreError::Unknown`], naming the file at fault. `to` is left as it was, or not there.
    pub fn backup(path: &Path, to: &Path) -> Result<Backup, StoreError> {
        backup::backup(path, to)
    }

    /// The names of the migrations that a start would run on the database at `path`; all of them where there is none.
    /// Changes nothing.
    ///
    /// # Errors
    /// As [`SqliteStore::open`], but for what only a writer needs.
    pub fn migrations_pending(path: &Path) -> Result<Vec<&'static str>, StoreError> {
        backup::migrations_pending(path)
    }

    /// Commits `batch` with or without a sync.
    fn write(&mut self, batch: &[Change], level: Synchronous) -> Result<Vec<RecordOutcome>, StoreError> {
        self.set_level(level)?;
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|error| rolled_back(&error))?;
        // Dropping an unfinished transaction rolls it back.
        let outcomes = write_all(&transaction, batch, &mut self.kept)?;
        transaction.commit().map_err(|error| committing(&error))?;
        Ok(outcomes)
    }

    /// As [`Self::write`], and keeps account of what is in doubt.
    fn commit(&mut self, batch: &[Change], level: Synchronous) -> Result<Vec<RecordOutcome>, StoreError> {
        batch.iter().try_for_each(storable)?;
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let result = self.write(batch, level);
        match &result {
            Ok(_) => self.in_doubt = false,
            Err(StoreError::Unknown(_)) => {
                self.in_doubt = true;
                self.suspect = self.late;
            }
            Err(_) => {}
        }
        result
    }

    fn set_level(&mut self, level: Synchronous) -> Result<(), StoreError> {
        if self.level != level {
            self.connection
                .pragma_update(None, "synchronous", level.word())
                .map_err(|error| rolled_back(&error))?;
            self.level = level;
        }
        Ok(())
    }

    /// Makes sure that no transaction of which `COMMIT` failed can come back after a crash.
    fn settle(&mut self) -> Result<(), StoreError> {
        if self.in_doubt { self.empty_log() } else { Ok(()) }
    }

    /// Moves the whole log into the database.
    fn empty_log(&mut self) -> Result<(), StoreError> {
        let (busy, ..) = self.run_checkpoint("PRAGMA wal_checkpoint(TRUNCATE)")?;
        if busy {
            return Err(StoreError::Unavailable(
                "the catalog's log cannot be emptied while another program reads the database; end that program"
                    .to_owned(),
            ));
        }
        (self.in_doubt, self.late, self.suspect) = (false, false, false);
        Ok(())
    }

    /// Runs a checkpoint: whether somebody was in its way, the pages in the log, those of them moved.
    fn run_checkpoint(&mut self, pragma: &str) -> Result<(bool, i64, i64), StoreError> {
        let result = self.connection.query_row(pragma, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
        let (busy, log, moved): (bool, i64, i64) = result.map_err(|error| {
            self.suspect = self.late;
            rolled_back(&error)
        })?;
        self.log_pages.store((log - moved).max(0) as u64, Ordering::Relaxed);
        Ok((busy, log, moved))
    }
}

fn write_all(
    transaction: &Transaction<'_>,
    batch: &[Change],
    kept: &mut Kept,
) -> Result<Vec<RecordOutcome>, StoreError> {
    let prepared = |sql: &str| transaction.prepare_cached(sql).map_err(|error| rolled_back(&error));
    let (mut put, mut remove) = (prepared(row::PUT)?, prepared(row::REMOVE)?);
    let mut tables = SqliteTables(transaction);
    let mut outcomes = Vec::with_capacity(Change::records(batch));
    for change in batch {
        match change {
            Change::Row(CatalogChange::Put(row)) => {
                row::put(&mut put, row).map_err(|error| rolled_back(&error))?;
            }
            Change::Row(CatalogChange::Remove { key, epoch }) => {
                let removed = remove
                    .execute(params![key.namespace.0, &key.id.as_bytes()[..], epoch.0])
                    .map_err(|error| rolled_back(&error))?;
                if removed > 0 && kept.any {
                    crate::records::forget(&mut tables, *key)?;
                }
            }
            Change::Record(change) => {
                kept.any = true;
                outcomes.push(crate::records::apply(&mut tables, change)?);
            }
        }
    }
    Ok(outcomes)
}

impl Store for SqliteStore {
    fn begin_epoch(&mut self, node: &str) -> Result<Epoch, StoreError> {
        self.flush()?;
        self.set_level(Synchronous::Full)?;
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|error| rolled_back(&error))?;
        let epoch: u32 = transaction
            .query_row(
                "INSERT INTO node (name, epoch) SELECT ?1, 1 + coalesce(max(epoch), 0) FROM node WHERE true
                 ON CONFLICT (name) DO UPDATE SET epoch = excluded.epoch RETURNING epoch",
                [node],
                |row| row.get(0),
            )
            .map_err(|error| rolled_back(&error))?;
        if epoch > EPOCH_MAX {
            return Err(epochs_exhausted(node));
        }
        transaction.commit().map_err(|error| committing(&error))?;
        Ok(Epoch(epoch))
    }

    fn disk_roots(&mut self) -> Result<Vec<String>, StoreError> {
        let mut statement = self
            .connection
            .prepare("SELECT disk_root FROM node WHERE disk_root IS NOT NULL ORDER BY name")
            .map_err(|error| rolled_back(&error))?;
        let roots = statement.query_map([], |row| row.get(0)).and_then(Iterator::collect);
        roots.map_err(|error| rolled_back(&error))
    }

    fn disk_root_bind(&mut self, node: &str, root_id: &str) -> Result<(), StoreError> {
        self.set_level(Synchronous::Full)?;
        let update = "UPDATE node SET disk_root = ?2 WHERE name = ?1";
        self.connection.execute(update, [node, root_id]).map_err(|error| committing(&error))?;
        Ok(())
    }

    fn apply(&mut self, batch: &[Change]) -> Result<Vec<RecordOutcome>, StoreError> {
        if self.suspect || batch.is_empty() {
            self.flush()?;
        }
        let outcomes = self.commit(batch, Synchronous::Full)?;
        self.late = false;
        Ok(outcomes)
    }

    fn apply_late(&mut self, batch: &[Change]) -> Result<bool, StoreError> {
        if self.late_level == Synchronous::Full {
            return self.apply(batch).map(|_none| true);
        }
        self.commit(batch, self.late_level)?;
        self.late |= !batch.is_empty();
        Ok(!self.late)
    }

    /// This connection never sees a transaction of which `COMMIT` failed; once it cannot come back, it never happened.
    fn resolve(&mut self, _batch: &[Change]) -> Result<Option<Vec<RecordOutcome>>, StoreError> {
        self.settle()?;
        Ok(None)
    }

    fn reader(&self) -> Result<Box<dyn Reader>, StoreError> {
        reader::open(&self.path)
    }

    fn sweep_is_due(&mut self, at: WallMs) -> Result<bool, StoreError> {
        crate::records::sweep_is_due(&mut SqliteTables(&self.connection), at)
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        if self.suspect {
            return self.empty_log();
        }
        if self.late {
            self.set_level(Synchronous::Full)?;
            // A transaction that changes nothing writes no frame, and syncs nothing. This one writes a page as it is.
            let version = migrate::version(&self.connection).map_err(|error| rolled_back(&error))?;
            self.connection.pragma_update(None, migrate::VERSION, version).map_err(|error| {
                self.suspect = true;
                committing(&error)
            })?;
            self.late = false;
        }
        Ok(())
    }

    fn load(&mut self, each: &mut dyn FnMut(PayloadRow)) -> Result<(), StoreError> {
        let mut statement = self.connection.prepare_cached(row::ALL).map_err(|error| rolled_back(&error))?;
        let mut rows = statement.query([]).map_err(|error| rolled_back(&error))?;
        while let Some(found) = rows.next().map_err(|error| rolled_back(&error))? {
            each(row::read(found)?);
        }
        Ok(())
    }

    fn get(&mut self, key: PayloadKey) -> Result<Option<PayloadRow>, StoreError> {
        let mut statement = self.connection.prepare_cached(row::ONE).map_err(|error| rolled_back(&error))?;
        let mut rows = statement
            .query(params![key.namespace.0, &key.id.as_bytes()[..]])
            .map_err(|error| rolled_back(&error))?;
        rows.next().map_err(|error| rolled_back(&error))?.map(row::read).transpose()
    }

    fn health_note(&mut self, keys: &[PayloadKey], health: Health) -> Result<(), StoreError> {
        self.flush()?;
        self.set_level(Synchronous::Full)?;
        let mut noted = || -> rusqlite::Result<()> {
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut update = transaction.prepare_cached(row::HEALTH)?;
            for key in keys {
                update.execute(params![health as i64, key.namespace.0, &key.id.as_bytes()[..]])?;
            }
            drop(update);
            transaction.commit()
        };
        noted().map_err(|error| committing(&error))
    }

    fn uploads(&mut self) -> Result<Vec<UploadEntry>, StoreError> {
        records::uploads(&self.connection)
    }

    fn count(&mut self) -> Result<u64, StoreError> {
        self.connection
            .query_row("SELECT count(*) FROM payload", [], |row| row.get::<_, i64>(0).map(i64::cast_unsigned))
            .map_err(|error| rolled_back(&error))
    }

    fn namespace(&mut self, name: &str) -> Result<Option<NamespaceId>, StoreError> {
        self.connection
            .query_row("SELECT id FROM namespace WHERE name = ?1", [name], |row| row.get(0))
            .optional()
            .map(|found| found.map(NamespaceId))
            .map_err(|error| rolled_back(&error))
    }

    fn log_bytes(&self) -> u64 {
        self.log_pages.load(Ordering::Relaxed) * self.page_bytes
    }

    fn checkpoint(&mut self) -> Result<(), StoreError> {
        self.run_checkpoint("PRAGMA wal_checkpoint(PASSIVE)").map(|_| ())
    }

    fn close(self: Box<Self>) -> Result<(), StoreError> {
        let Self { connection, _lock: lock, .. } = *self;
        let closed = connection.close().map_err(|(_, error)| rolled_back(&error));
        drop(lock);
        closed
    }
}

#[cfg(test)]
mod tests;
