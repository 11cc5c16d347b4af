//! `catalog/commit-postgres`: as `catalog/commit-sqlite`, on a PostgreSQL server that is started for it, against raw
//! UNNEST inserts into another database of the same server.

use payload_catalog::{PostgresConfig, PostgresStore};

use super::catalog::compare;
use crate::context::{Context, Skip};
use crate::floors::postgres::RawPostgres;
use crate::postgres_server::Postgres;
use crate::report::Findings;

/// See the module.
pub fn run(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    context.require_own()?;
    let server = Postgres::start().map_err(Skip)?;
    let store = PostgresStore::open(PostgresConfig {
        connection_uri: server.database(),
        pooled: false,
        node: "bench".to_owned(),
        disk_root: None,
        address: "127.0.0.1:0".to_owned(),
    })?;
    let mut raw = RawPostgres::create(&server.database())?;
    let names = ["catalog/postgres-batch", "catalog/commit-postgres"];
    compare(context, findings, names, Box::new(store), |duration, group_len, rows| {
        raw.insert_for(duration, group_len, || rows.next())
    })
}
