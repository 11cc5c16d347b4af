//! `catalog/commit-postgres`: as `catalog/commit-sqlite`, on a PostgreSQL server that is started for it, against raw
//! UNNEST inserts into another database of the same server.

use payload_catalog::{PostgresConfig, PostgresStore};

use super::catalog::{Ours, Rows};
use crate::context::{Context, ROUNDS, Skip};
use crate::floors::postgres::RawPostgres;
use crate::histogram::{Latencies, Unit};
use crate::postgres_server::Postgres;
use crate::report::{Figure, Findings};
use crate::series::Series;

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
    let mut ours = Ours::start(Box::new(store))?;
    let mut raw = RawPostgres::create(&server.database())?;
    let mut raw_rows = Rows::new(ours.epoch());
    let (_, mut group_len) = ours.commit_for(context.slice(ROUNDS), &mut Latencies::default())?;
    raw.insert_for(context.slice(ROUNDS), group_len, || raw_rows.next())?;

    let (mut floor, mut commit, mut latencies) = (Series::default(), Series::default(), Latencies::default());
    for _ in 0..ROUNDS {
        floor.push(raw.insert_for(context.slice(ROUNDS), group_len, || raw_rows.next())?);
        let (rows_per_s, next_group_len) = ours.commit_for(context.slice(ROUNDS), &mut latencies)?;
        commit.push(rows_per_s);
        group_len = next_group_len;
    }
    ours.end()?;
    let note = format!("{group_len} rows a transaction");
    findings.put("catalog/postgres-batch", Figure::of(&floor)?.noted(note.clone()));
    findings.put(
        "catalog/commit-postgres",
        Figure::of(&commit)?.with(&latencies, Unit::Microseconds).noted(note),
    );
    Ok(())
}
