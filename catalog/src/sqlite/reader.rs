//! A second connection, which only reads: one short transaction a question, so that checkpoints are not held up.
//!
//! In WAL mode it neither waits for the writer nor makes it wait, and sees every transaction that was committed before.

use std::path::Path;

use payload_types::record::{RecordAnswer, RecordQuery};
use rusqlite::{Connection, OpenFlags};

use super::errors::rolled_back;
use super::open::BUSY_WAIT;
use super::records::{STATEMENTS_MAX, SqliteTables};
use crate::error::StoreError;
use crate::records::answer;
use crate::store::Reader;

struct SqliteReader(Connection);

/// Opens a reader of the database at `path`, which a store has open.
pub(super) fn open(path: &Path) -> Result<Box<dyn Reader>, StoreError> {
    let connection = connect(path)
        .map_err(|error| rolled_back(&error).prefixed(&format!("catalog database {}", path.display())))?;
    Ok(Box::new(SqliteReader(connection)))
}

/// A connection that changes nothing.
pub(super) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    // Not READ_ONLY: a reader may have to restore the log's index after a crash of the writer's connection.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_WAIT)?;
    connection.pragma_update(None, "query_only", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    Ok(connection)
}

impl Reader for SqliteReader {
    fn read(&mut self, query: &RecordQuery) -> Result<RecordAnswer, StoreError> {
        // Dropped at the end, which ends it: there is nothing to commit.
        let snapshot = self.0.transaction().map_err(|error| rolled_back(&error))?;
        answer(&mut SqliteTables(&snapshot), query)
    }
}
