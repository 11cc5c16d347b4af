//! The last step before a node opens anything: what this version cannot do is refused, directories are made.

use std::fs;
use std::path::Path;

use super::error::ConfigError;
use super::tree::{Config, DatabaseConfig};

impl Config {
    /// Refuses what is valid but not built yet, without touching the system.
    ///
    /// # Errors
    /// The database is one that was not built in, or TLS is required for an address that other hosts can reach.
    pub fn check_supported(&self) -> Result<(), ConfigError> {
        let backend = match &self.database {
            DatabaseConfig::Sqlite { .. } if !cfg!(feature = "sqlite") => Some(("database.sqlite", "sqlite")),
            DatabaseConfig::Postgres { .. } if !cfg!(feature = "postgres") => {
                Some(("database.postgres", "postgres"))
            }
            _ => None,
        };
        if let Some((path, feature)) = backend {
            let reason = format!(
                "this server was built without it; build with the feature `{feature}`, or use another database"
            );
            return Err(ConfigError::refused(path, reason));
        }
        if self.server.require_tls && self.server.tls.is_none() && !self.server.bind_address.is_loopback() {
            let reason = format!(
                "TLS is required, and {} can be reached by other hosts without it; set server.tls.certificate and server.tls.private_key, or bind 127.0.0.1",
                self.server.bind_address
            );
            return Err(ConfigError::refused("server.require_tls", reason));
        }
        Ok(())
    }

    /// [`Config::check_supported`], then makes the directories of the catalog and the disk root.
    ///
    /// # Errors
    /// As there; a directory that cannot be made.
    pub fn prepare(&self) -> Result<(), ConfigError> {
        self.check_supported()?;
        if let DatabaseConfig::Sqlite { path, .. } = &self.database
            && let Some(parent) = path.parent()
        {
            make_directory("database.sqlite.path", parent)?;
        }
        make_directory("storage.disk.root_path", &self.storage.disk.root_path)
    }
}

fn make_directory(path: &str, directory: &Path) -> Result<(), ConfigError> {
    fs::create_dir_all(directory).map_err(|error| {
        let shown = directory.display();
        ConfigError::refused(path, format!("the directory {shown} cannot be made: {error}; choose another"))
    })
}
