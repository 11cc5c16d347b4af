//! Brings a database's schema up to date. The numbered files are the only DDL there is; `user_version` says how many
//! of them a database has seen. Each runs in one transaction together with its number.

use rusqlite::{Connection, TransactionBehavior};

use super::errors::rolled_back;
use crate::error::StoreError;

const MIGRATIONS: [&str; 4] = [
    include_str!("../../migrations/sqlite/0001_initial.sql"),
    include_str!("../../migrations/sqlite/0002_extents.sql"),
    include_str!("../../migrations/sqlite/0003_records.sql"),
    include_str!("../../migrations/sqlite/0004_holds.sql"),
];

/// Where SQLite keeps the number of the last migration.
pub(super) const VERSION: &str = "user_version";

/// The number of the last migration that ran.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, VERSION, |row| row.get(0))
}

/// Runs the migrations that `connection` has not seen. One server at a time: the caller holds the lock.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let seen = version(connection).map_err(|error| rolled_back(&error))?;
    let known = MIGRATIONS.len() as i64;
    if seen > known {
        return Err(StoreError::NewerFormat(format!(
            "its schema has version {seen}, and this program knows versions up to {known}; run the newer program that wrote it, or restore a backup from before the upgrade"
        )));
    }
    for (number, sql) in (1..).zip(MIGRATIONS).skip(seen.max(0) as usize) {
        run(connection, number, sql).map_err(|error| rolled_back(&error))?;
    }
    Ok(())
}

fn run(connection: &mut Connection, number: i64, sql: &str) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(sql)?;
    transaction.pragma_update(None, VERSION, number)?;
    transaction.commit()
}
