//! `catalog/sqlite-batch`: the catalog's table and rows, written by plain inserts in transactions of a given size.

use std::path::Path;
use std::time::{Duration, Instant};

use payload_types::tier::SpillTarget;
use payload_types::{PayloadRow, Pin, Tier, WallMs};
use rusqlite::{Connection, Statement, params};

/// The catalog's own schema: the same table, the same indexes.
const SCHEMA: [&str; 2] = [
    include_str!("../../../catalog/migrations/sqlite/0001_initial.sql"),
    include_str!("../../../catalog/migrations/sqlite/0002_extents.sql"),
];

/// The catalog checkpoints after 16 MiB of log (catalog/src/writer.rs): 4,096 pages of 4 KiB.
const CHECKPOINT_PAGES: i64 = 4096;

/// All columns, in the order of the table.
const INSERT: &str = "INSERT INTO payload VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)";

/// One database, written by one thread.
pub struct RawSqlite {
    connection: Connection,
}

impl RawSqlite {
    /// Makes the database, with the durability that the catalog has: WAL and `synchronous=FULL`.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn create(path: &Path) -> rusqlite::Result<Self> {
        let connection = Connection::open(path)?;
        SCHEMA.iter().try_for_each(|script| connection.execute_batch(script))?;
        connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
        connection.pragma_update(None, "synchronous", "full")?;
        connection.pragma_update_and_check(None, "wal_autocheckpoint", CHECKPOINT_PAGES, |_| Ok(()))?;
        Ok(Self { connection })
    }

    /// Inserts one row in a transaction of its own, and tells how long that took.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn insert_alone(&mut self, row: &PayloadRow) -> rusqlite::Result<Duration> {
        let started = Instant::now();
        let transaction = self.connection.transaction()?;
        {
            let mut insert = transaction.prepare_cached(INSERT)?;
            insert_one(&mut insert, row)?;
        }
        transaction.commit()?;
        Ok(started.elapsed())
    }

    /// Inserts what `next_row` gives, `group_len` rows a transaction, for so long. Returns rows in a second.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn insert_for(
        &mut self,
        duration: Duration,
        group_len: usize,
        mut next_row: impl FnMut() -> PayloadRow,
    ) -> rusqlite::Result<f64> {
        let started = Instant::now();
        let mut rows = 0usize;
        while started.elapsed() < duration {
            let transaction = self.connection.transaction()?;
            {
                let mut insert = transaction.prepare_cached(INSERT)?;
                for _ in 0..group_len {
                    insert_one(&mut insert, &next_row())?;
                }
            }
            transaction.commit()?;
            rows += group_len;
        }
        Ok(rows as f64 / started.elapsed().as_secs_f64())
    }
}

fn insert_one(insert: &mut Statement<'_>, row: &PayloadRow) -> rusqlite::Result<()> {
    let replica = |tier: Tier| {
        let found = row.replicas.iter().find(|replica| replica.tier == tier);
        found.map(|replica| (replica.generation.0 << 1) as i64 | i64::from(replica.synced))
    };
    let pinned_until = match row.pin {
        Pin::None => None,
        Pin::Until(end) => Some(end.as_millis() as i64),
        Pin::Forever => Some(i64::MAX),
    };
    let spill_target = row.policy.spill_target.map(|target| match target {
        SpillTarget::Tier(tier) => tier as i64,
        SpillTarget::Void => 5,
    });
    insert.execute(params![
        row.key.namespace.0,
        &row.key.id.as_bytes()[..],
        row.size.0 as i64,
        row.state as i64,
        row.version.0 as i64,
        row.epoch.0,
        row.created_at.as_millis() as i64,
        row.expires_at.map(WallMs::as_millis).map(u64::cast_signed),
        row.no_evict,
        row.policy.priority as i64,
        row.policy.require_durable,
        spill_target,
        row.policy.min_residency.map(|tier| tier as i64),
        row.checksum.map(|checksum| checksum.0.cast_signed()),
        pinned_until,
        row.health as i64,
        replica(Tier::Gpu),
        replica(Tier::Ram),
        replica(Tier::Disk),
        replica(Tier::Object),
        row.replicas.iter().find_map(|replica| replica.extent).map(|extent| extent.to_bits().cast_signed()),
        row.replicas
            .iter()
            .filter(|replica| !replica.sound)
            .map(|replica| 1 << replica.tier as i64)
            .sum::<i64>(),
    ])?;
    Ok(())
}
