//! Brings a database's schema up to date. The numbered files are the only DDL there is; `user_version` says how many
//! of them a database has seen. Each runs in one transaction together with its number.

use rusqlite::{Connection, TransactionBehavior};

use super::errors::rolled_back;
use crate::error::StoreError;
use crate::migrations::{Migration, migrations, pending};

pub(crate) const MIGRATIONS: &[Migration] = migrations! {
    "sqlite":
    "0001_initial",
    "0002_extents",
    "0003_records",
    "0004_holds",
    "0005_terms",
    "0006_calls",
    "0007_objects",
};

/// The one that is filled in by a program.
const TERMS: i64 = 5;

/// Where SQLite keeps the number of the last migration.
pub(super) const VERSION: &str = "user_version";

/// The number of the last migration that ran.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, VERSION, |row| row.get(0))
}

/// Runs the migrations that `connection` has not seen. One server at a time: the caller holds the lock.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let seen = version(connection).map_err(|error| rolled_back(&error))?;
    let missing = pending(MIGRATIONS, seen)?;
    let first = 1 + (MIGRATIONS.len() - missing.len()) as i64;
    for (number, (_, sql)) in (first..).zip(missing) {
        run(connection, number, sql).map_err(|error| rolled_back(&error))?;
    }
    Ok(())
}

fn run(connection: &mut Connection, number: i64, sql: &str) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(sql)?;
    if number == TERMS {
        super::terms::fill(&transaction)?;
    }
    transaction.pragma_update(None, VERSION, number)?;
    transaction.commit()
}
