//! The tables of records in SQLite: each small operation is one prepared statement.
//!
//! Over a connection in whatever transaction its owner opened: the writer's, or a reader's snapshot.

mod read;
mod uploads;
mod write;

pub(super) use uploads::uploads;
pub(super) use write::terms_bytes;

use payload_types::{PayloadId, PayloadKey};
use rusqlite::{CachedStatement, Connection};

use super::errors::rolled_back;
use crate::error::{RESTORE, StoreError};
use crate::records::cells::Cells;

/// See the module.
pub(super) struct SqliteTables<'connection>(pub(super) &'connection Connection);

/// Statements that are kept prepared on a connection: all there are for rows and records, and some room.
pub(super) const STATEMENTS_MAX: usize = 64;

/// Whether there is anything that belongs to payloads: most catalogs have no metadata and no lineage, and looking for it
/// would make removals slower.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    /// True when there may be some: also after a change that came to nothing.
    pub(super) any: bool,
}

impl Kept {
    /// What a database holds when it is opened.
    pub(super) fn of(connection: &Connection) -> rusqlite::Result<Self> {
        let any = "SELECT EXISTS (SELECT 1 FROM history) OR EXISTS (SELECT 1 FROM lineage)";
        Ok(Self { any: connection.query_row(any, [], |row| row.get(0))? })
    }
}

impl<'connection> SqliteTables<'connection> {
    fn statement(&self, sql: &str) -> Result<CachedStatement<'connection>, StoreError> {
        self.0.prepare_cached(sql).map_err(|error| rolled_back(&error))
    }

    /// Runs a statement; returns how many rows it changed.
    fn run(&self, sql: &str, values: impl rusqlite::Params) -> Result<u64, StoreError> {
        let changed = self.statement(sql)?.execute(values).map_err(|error| rolled_back(&error))?;
        Ok(changed as u64)
    }
}

/// A payload's namespace and id, as they are bound.
fn bound(key: &PayloadKey) -> (u32, &[u8]) {
    (key.namespace.0, &key.id.as_bytes()[..])
}

/// The next cells of a row.
struct RowCells<'row, 'statement> {
    row: &'row rusqlite::Row<'statement>,
    column: usize,
}

impl<'row, 'statement> RowCells<'row, 'statement> {
    fn of(row: &'row rusqlite::Row<'statement>) -> Self {
        Self { row, column: 0 }
    }

    fn next<T: rusqlite::types::FromSql>(&mut self) -> Result<T, StoreError> {
        let cell = self.row.get(self.column).map_err(|error| rolled_back(&error))?;
        self.column += 1;
        Ok(cell)
    }

    fn blob(&mut self) -> Result<&'row [u8], StoreError> {
        let cell = self.row.get_ref(self.column).map_err(|error| rolled_back(&error))?;
        self.column += 1;
        cell.as_blob().map_err(|_| strange("a cell is no BLOB"))
    }
}

impl Cells for RowCells<'_, '_> {
    fn optional(&mut self) -> Result<Option<u64>, StoreError> {
        let found = self.next::<Option<i64>>()?;
        found.map(|number| u64::try_from(number).map_err(|_| strange("a number is negative"))).transpose()
    }

    fn flag(&mut self) -> Result<bool, StoreError> {
        self.next()
    }

    fn bytes(&mut self) -> Result<Vec<u8>, StoreError> {
        self.blob().map(<[u8]>::to_vec)
    }

    fn id(&mut self) -> Result<PayloadId, StoreError> {
        let bytes = self.blob()?.try_into().map_err(|_| strange("a payload id has not 16 bytes"))?;
        Ok(PayloadId::from_bytes(bytes))
    }
}

fn strange(what: &str) -> StoreError {
    StoreError::Corrupt(format!("the catalog's records are not as written: {what}; {RESTORE}"))
}

#[cfg(test)]
mod tests;
