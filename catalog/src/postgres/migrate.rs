//! Brings a database's schema up to date. The numbered files are the only DDL there is; the table `migration` says
//! which of them a database has seen. All that are missing run in one transaction under an advisory lock of that
//! transaction, so that two servers that start together do not both run one, also through a pooling proxy.

use tokio_postgres::types::Type;

use super::link::{Session, Sql};
use crate::error::StoreError;

const MIGRATIONS: [&str; 4] = [
    include_str!("../../migrations/postgres/0001_initial.sql"),
    include_str!("../../migrations/postgres/0002_records.sql"),
    include_str!("../../migrations/postgres/0003_nodes.sql"),
    include_str!("../../migrations/postgres/0004_holds.sql"),
];

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

/// Runs the migrations that the database has not seen.
pub(super) async fn migrate(session: &mut Session) -> Result<(), StoreError> {
    session.run("BEGIN").await?;
    lock(session).await?;
    let has_schema: bool = session.one(&HAS_SCHEMA, &[]).await?;
    let seen: i32 = if has_schema { session.one(&SEEN, &[]).await? } else { 0 };
    let known = MIGRATIONS.len() as i32;
    if seen > known {
        return Err(StoreError::NewerFormat(format!(
            "its schema has version {seen}, and this program knows versions up to {known}; run the newer program that wrote it, or restore a backup from before the upgrade"
        )));
    }
    for (number, sql) in (1_i32..).zip(MIGRATIONS).skip(seen as usize) {
        session.run(sql).await?;
        session.query(&MADE, &[&number]).await?;
    }
    session.commit().await
}
