//! The configuration: what a node is told, from a YAML file and the environment, as one typed tree.
//!
//! Owns: the table of every key (`table`), reading and validating (`read`), defaults and the machine's limits
//! (`resolve`), and writing it back (`render`: `--check-config` and the table in docs/OPERATIONS.md). Callers:
//! main, bootstrap and doctor; everybody else is handed the part it needs.
//! Invariants: loading changes nothing on the system; an accepted key is listed in the table and has its kind; the
//! effective configuration, written out, loads again to the same tree (secrets excepted: they are masked).
//!
//! ```text
//!   FILE ──┐
//!          ├─> read (table: path, kind) ──> settings ──> resolve (machine) ──> Config
//!   env ───┘                                    └──────> render ──> effective YAML
//! ```

mod error;
mod key;
mod object;
mod otlp;
mod prepare;
mod read;
mod render;
mod resolve;
mod server;
mod setting;
mod settings;
mod table;
mod tree;

#[cfg(test)]
mod tests;

use std::path::Path;

use payload_reactor::preflight::Machine;

pub use error::ConfigError;
pub use object::{ObjectTierConfig, S3Config};
pub use render::{OPERATIONS_BEGIN, OPERATIONS_END, keys_as_markdown};
pub use tree::*;

use settings::Settings;

/// The environment variables that set a key begin with this.
pub const ENV_PREFIX: &str = "PAYLOAD_MANAGER__";

/// A configuration and what its owner should know about it.
#[derive(Debug)]
pub struct Loaded {
    /// The tree.
    pub config: Config,
    /// Sentences: keys that are ignored, capacities that were clamped, tiers that are not built yet.
    pub warnings: Vec<String>,
    settings: Settings,
}

impl Loaded {
    /// The effective configuration as YAML, secrets masked: every key that has a value, in the table's order.
    pub fn to_yaml(&self) -> String {
        render::effective(&self.settings)
    }
}

impl Config {
    /// Loads `file` (none: the embedded defaults), then what `env` overrides, for this machine. `data_dir` is where
    /// the default catalog and disk root lie. Nothing is created; see [`Config::prepare`].
    ///
    /// # Errors
    /// A file that cannot be read, text that is not YAML, an unknown key, a value of the wrong kind, a refused one.
    pub fn load(
        file: Option<&Path>,
        data_dir: &Path,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Loaded, ConfigError> {
        Self::load_on(&Machine::probe(), file, data_dir, env)
    }

    /// [`Config::load`] for a machine with these facts.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_on(
        machine: &Machine,
        file: Option<&Path>,
        data_dir: &Path,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Loaded, ConfigError> {
        let mut settings = Settings::default();
        if let Some(file) = file {
            read::file(&mut settings, file)?;
        }
        read::environment(&mut settings, env)?;
        let (config, warnings) = resolve::config(&mut settings, machine, data_dir)?;
        Ok(Loaded { config, warnings, settings })
    }
}
