//! Brings a database's schema up to date. The numbered files are the only DDL there is; the table `migration` says
//! which of them a database has seen. All that are missing run in one transaction under an advisory lock of that
//! transaction, so that two servers that start together do not both run one, also through a pooling proxy.

use tokio_postgres::types::Type;

use super::link::{Session, Sql};
use crate::error::StoreError;
use crate::migrations::{Migration, migrations, pending};

pub(crate) const MIGRATIONS: &[Migration] = migrations! {
    "postgres":
    "0001_initial",
    "0002_records",
    "0003_nodes",
    "0004_holds",
    "0005_terms",
    "0006_calls",
    "0007_objects",
};

/// The one that is filled in by a program.
const TERMS: i32 = 5;

/// "payload" and a version of the locking rule: what starts and migrations of all nodes hold one after the other.
const LOCK: &str = "SELECT pg_advisory_xact_lock(8097874551267943169)";

static HAS_SCHEMA: Sql =
    Sql { text: "SELECT to_regclass('payload_manager.migration') IS NOT NULL", types: &[] };
static SEEN: Sql = Sql { text: "SELECT coalesce(max(number), 0) FROM payload_manager.migration", types: &[] };
static MADE: Sql =
    Sql { text: "INSERT INTO payload_manager.migration (number) VALUES ($1)", types: &[Type::INT4] };

/// Takes the lock that starts and migrations share, until the transaction ends.
pub(super) async fn lock(session: &mut Session) -> Result<(), StoreError> {
    session.run(LOCK).await
}

/// The migrations that the database has not seen.
pub(super) async fn missing(session: &mut Session) -> Result<&'static [Migration], StoreError> {
    let has_schema: bool = session.one(&HAS_SCHEMA, &[]).await?;
    let seen: i32 = if has_schema { session.one(&SEEN, &[]).await? } else { 0 };
    pending(MIGRATIONS, i64::from(seen))
}

/// Runs the migrations that the database has not seen.
pub(super) async fn migrate(session: &mut Session) -> Result<(), StoreError> {
    session.run("BEGIN").await?;
    lock(session).await?;
    let missing = missing(session).await?;
    let first = 1 + (MIGRATIONS.len() - missing.len()) as i32;
    for (number, (_, sql)) in (first..).zip(missing) {
        session.run(sql).await?;
        if number == TERMS {
            super::terms::fill(session).await?;
        }
        session.query(&MADE, &[&number]).await?;
    }
    session.commit().await
}
