//! What is done with the catalog's database beside a server: `payload-manager backup` and `payload-manager migrate`.
//!
//! Called by main alone. A backup and `--check` change nothing, take no lock of the server's and may run beside it;
//! migrating takes the place of a server, as a start does.

use std::path::Path;

use anyhow::bail;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
use payload_catalog::Store as _;
#[cfg(feature = "sqlite")]
use payload_catalog::{Backup, SqliteStore};
#[cfg(feature = "postgres")]
use payload_catalog::{PostgresConfig, PostgresStore};

use crate::config::{Config, DatabaseConfig};

/// The exit code of `migrate --check` when a start would migrate: neither success nor the 1 of a failure.
pub const PENDING: u8 = 3;

/// What there is to say of a schema.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Schema {
    /// A start has nothing to migrate.
    pub is_current: bool,
    /// A sentence for the operator.
    pub said: String,
}

impl Schema {
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    fn of(pending: &[&str]) -> Self {
        let is_current = pending.is_empty();
        let said = match is_current {
            true => "the catalog's schema is up to date".to_owned(),
            false => format!("the next start, or `payload-manager migrate`, runs: {}", pending.join(", ")),
        };
        Self { is_current, said }
    }
}

/// Copies the catalog to a new file, and says what the copy holds.
///
/// # Errors
/// One sentence: the database or the copy that cannot be read or made; for what is no file, how to back that up.
#[cfg_attr(not(feature = "sqlite"), allow(unused_variables, reason = "only SQLite is a file"))]
pub fn backup(database: &DatabaseConfig, to: &Path) -> anyhow::Result<String> {
    match database {
        #[cfg(feature = "sqlite")]
        DatabaseConfig::Sqlite { path, .. } => {
            let Backup { payloads, bytes } = SqliteStore::backup(path, to)?;
            Ok(format!("{} holds the catalog with {payloads} payloads, {bytes} bytes", to.display()))
        }
        DatabaseConfig::Postgres { .. } => bail!(
            "the catalog is in PostgreSQL, which makes its own backups, also while servers run: pg_dump --format=custom --schema=payload_manager --file={} \"$URI\", where URI is what database.postgres.connection_uri says; pg_restore --dbname=\"$URI\" puts it into an empty database",
            to.display()
        ),
        DatabaseConfig::Memory => {
            bail!("the catalog is in memory (`database.memory`): there is nothing to back up")
        }
        #[allow(unreachable_patterns, reason = "reachable where a backend is not built in")]
        _ => bail!("this program was built without the configured database; see the features of its build"),
    }
}

/// Brings the schema up to date, or with `check` says what that would run.
///
/// # Errors
/// One sentence: a database that cannot be reached or read, is in use by a server (SQLite), or is a newer program's.
#[cfg_attr(
    not(any(feature = "sqlite", feature = "postgres")),
    allow(unused_variables, reason = "memory has no schema")
)]
pub fn migrate(config: &Config, check: bool) -> anyhow::Result<Schema> {
    match &config.database {
        #[cfg(feature = "sqlite")]
        DatabaseConfig::Sqlite { path, synchronous } => {
            let pending = SqliteStore::migrations_pending(path)?;
            if !check && !pending.is_empty() {
                Box::new(SqliteStore::open(path, *synchronous)?).close()?;
                return Ok(made(&pending));
            }
            Ok(Schema::of(&pending))
        }
        #[cfg(feature = "postgres")]
        DatabaseConfig::Postgres { connection_uri, pooled, .. } => {
            let pending = PostgresStore::migrations_pending(&connection_uri.0, *pooled)?;
            if !check && !pending.is_empty() {
                let store = PostgresStore::open(PostgresConfig {
                    connection_uri: connection_uri.0.clone(),
                    pooled: *pooled,
                    node: config.node.name.clone(),
                    disk_root: None,
                    address: String::new(),
                })?;
                Box::new(store).close()?;
                return Ok(made(&pending));
            }
            Ok(Schema::of(&pending))
        }
        DatabaseConfig::Memory => Ok(Schema {
            is_current: true,
            said: "the catalog is in memory (`database.memory`): it has no schema".to_owned(),
        }),
        #[allow(unreachable_patterns, reason = "reachable where a backend is not built in")]
        _ => bail!("this program was built without the configured database; see the features of its build"),
    }
}

/// Opens the catalog in a server's place, for a command that fills it.
///
/// # Errors
/// As [`migrate`]; a catalog in memory, which would be forgotten.
pub fn open_alone(config: &Config) -> anyhow::Result<Box<dyn payload_catalog::Store>> {
    match &config.database {
        #[cfg(feature = "sqlite")]
        DatabaseConfig::Sqlite { path, synchronous } => Ok(Box::new(SqliteStore::open(path, *synchronous)?)),
        #[cfg(feature = "postgres")]
        DatabaseConfig::Postgres { connection_uri, pooled, .. } => {
            Ok(Box::new(PostgresStore::open(PostgresConfig {
                connection_uri: connection_uri.0.clone(),
                pooled: *pooled,
                node: config.node.name.clone(),
                disk_root: None,
                address: String::new(),
            })?))
        }
        DatabaseConfig::Memory => {
            bail!(
                "the catalog is in memory (`database.memory`), where it would be forgotten; name a database"
            )
        }
        #[allow(unreachable_patterns, reason = "reachable where a backend is not built in")]
        _ => bail!("this program was built without the configured database; see the features of its build"),
    }
}

#[cfg(any(feature = "sqlite", feature = "postgres"))]
fn made(migrations: &[&str]) -> Schema {
    Schema {
        is_current: true,
        said: format!("the catalog's schema is up to date; ran {}", migrations.join(", ")),
    }
}
