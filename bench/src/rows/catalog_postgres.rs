//! `catalog/commit-postgres`: as `catalog/commit-sqlite`, on a PostgreSQL server that is started for it, against raw
//! UNNEST inserts into another database of the same server.
//!
//! The server is made to have log segments to use again, as one has that runs for some checkpoints: each new one of 16 MiB
//! is filled with zeroes and synced by a commit, every 0.2 to 0.5 s at these rates, which takes as long as ten commits.

use payload_catalog::{PostgresConfig, PostgresStore};

use super::catalog::compare;
use crate::context::{Context, Skip};
use crate::floors::postgres::RawPostgres;
use crate::postgres_server::Postgres;
use crate::report::Findings;

/// A catalog in a database of its own.
pub(super) fn postgres_store(server: &Postgres) -> anyhow::Result<PostgresStore> {
    Ok(PostgresStore::open(PostgresConfig {
        connection_uri: server.database(),
        pooled: false,
        node: "bench".to_owned(),
        disk_root: None,
        address: "127.0.0.1:0".to_owned(),
    })?)
}

/// See the module.
pub fn run(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    context.require_own()?;
    let server = Postgres::start().map_err(Skip)?;
    segments_made(&server).map_err(anyhow::Error::msg)?;
    let store = postgres_store(&server)?;
    let mut raw = RawPostgres::create(&server.database())?;
    let names = ["catalog/postgres-batch", "catalog/commit-postgres"];
    compare(context, findings, names, Box::new(store), |duration, group_len, rows| {
        raw.insert_for(duration, group_len, || rows.next())
    })
}

/// Segments of the log that wait to be used again: 1 GiB, which is the server's `max_wal_size`.
const SEGMENTS: usize = 64;

/// Makes segments, and gives them back to the server at a checkpoint.
fn segments_made(server: &Postgres) -> Result<(), String> {
    server.sql("postgres", "ALTER SYSTEM SET min_wal_size = '1GB'")?;
    server.sql("postgres", "SELECT pg_reload_conf()")?;
    let switch = "SELECT pg_logical_emit_message(false, 'bench', ''); SELECT pg_switch_wal();";
    server.sql("postgres", &switch.repeat(SEGMENTS))?;
    server.sql("postgres", "CHECKPOINT").map(drop)
}
