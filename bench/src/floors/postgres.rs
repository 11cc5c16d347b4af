//! `catalog/postgres-batch`: the catalog's table and rows, written by plain UNNEST inserts of a given number of rows.

use std::time::{Duration, Instant};

use payload_types::{PayloadRow, Tier};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Statement};
use uuid::Uuid;

/// The catalog's own schema: the same table, the same indexes.
const SCHEMA: &str = concat!(
    include_str!("../../../catalog/migrations/postgres/0001_initial.sql"),
    include_str!("../../../catalog/migrations/postgres/0003_nodes.sql")
);

/// What the rows of the bench do not differ in stands in the statement.
const INSERT: &str = "INSERT INTO payload_manager.payload (namespace, id, size, version, epoch, created_at, owner, state,
        no_evict, priority, require_durable, health, unsound, checksum, ram)
    SELECT 1, id, size, version, epoch, created_at, 1, state, 0, 0, 0, 0, 0, checksum, ram
    FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[],
        $8::bigint[]) AS new (id, size, version, epoch, created_at, state, checksum, ram)";

/// One database, written by one thread.
pub struct RawPostgres {
    runtime: tokio::runtime::Runtime,
    client: Client,
    insert: Statement,
}

impl RawPostgres {
    /// Connects and makes the tables.
    ///
    /// # Errors
    /// What PostgreSQL says.
    pub fn create(uri: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (client, insert) = runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(uri, NoTls).await?;
            // Its errors reach whoever waits for an answer.
            tokio::spawn(async move { drop(connection.await) });
            client.batch_execute(SCHEMA).await?;
            let insert = client.prepare(INSERT).await?;
            anyhow::Ok((client, insert))
        })?;
        Ok(Self { runtime, client, insert })
    }

    /// Inserts what `next_row` gives, `group_len` rows a transaction, for so long. Returns rows in a second.
    ///
    /// # Errors
    /// What PostgreSQL says.
    pub fn insert_for(
        &mut self,
        duration: Duration,
        group_len: usize,
        mut next_row: impl FnMut() -> PayloadRow,
    ) -> anyhow::Result<f64> {
        let started = Instant::now();
        let mut rows = 0usize;
        while started.elapsed() < duration {
            let group: Vec<PayloadRow> = (0..group_len).map(|_| next_row()).collect();
            let numbers = |of: fn(&PayloadRow) -> i64| group.iter().map(of).collect::<Vec<i64>>();
            let ids: Vec<Uuid> = group.iter().map(|row| Uuid::from_bytes(*row.key.id.as_bytes())).collect();
            let (size, version) = (numbers(|row| row.size.0 as i64), numbers(|row| row.version.0 as i64));
            let epoch = numbers(|row| i64::from(row.epoch.0));
            let created_at = numbers(|row| row.created_at.as_millis() as i64);
            let state = numbers(|row| row.state as i64);
            let checksum = numbers(|row| row.checksum.map_or(0, |checksum| checksum.0.cast_signed()));
            let ram = numbers(|row| {
                let ram = row.replicas.iter().find(|replica| replica.tier == Tier::Ram);
                ram.map_or(0, |replica| (replica.generation.0 << 1) as i64)
            });
            let parameters: [&(dyn ToSql + Sync); 8] =
                [&ids, &size, &version, &epoch, &created_at, &state, &checksum, &ram];
            self.runtime.block_on(self.client.execute(&self.insert, &parameters))?;
            rows += group_len;
        }
        Ok(rows as f64 / started.elapsed().as_secs_f64())
    }
}
