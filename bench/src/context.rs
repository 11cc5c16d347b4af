//! What every family is told: how long, where, against what.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use tempfile::TempDir;

/// Rounds of the rows that run for a time. Odd, so that the median is one of them. Each is long enough (0.7 s with
/// `--quick`) to hold what happens once in a while, like a checkpoint.
pub const ROUNDS: usize = 9;

/// Rounds where nothing happens once in a while: short ones (0.13 s, a thousand calls) in quick turns. A scheduler
/// that places two threads well or badly does so for tenths of a second, and must do it to all sides alike. With 9
/// rounds the ratio of grpc/acquire to its floor went from 0.85 to 1.4 from run to run on a busy machine.
pub const ROUNDS_SHORT: usize = 45;

/// See the module.
#[derive(Debug)]
pub struct Context {
    /// For each measured thing, all rounds together.
    pub seconds: f64,
    /// Less data where a row is a volume and not a time.
    pub quick: bool,
    /// `host:port` of a server that is not ours.
    pub target: Option<String>,
    /// What this process may use.
    pub cores: usize,
    wanted: BTreeSet<&'static str>,
    directory: TempDir,
}

/// A reason outside this program for not measuring a row: no defect, the exit code stays 0.
#[derive(Debug)]
pub struct Skip(pub String);

impl std::fmt::Display for Skip {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

impl Context {
    /// Makes the scratch directory below `data_dir`; it is removed when the context is dropped.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(
        seconds: f64,
        quick: bool,
        data_dir: &Path,
        target: Option<String>,
        wanted: BTreeSet<&'static str>,
    ) -> anyhow::Result<Self> {
        let directory =
            tempfile::Builder::new().prefix("payload-bench-").tempdir_in(data_dir).with_context(|| {
                format!("no directory can be made in {}; name another with --data-dir", data_dir.display())
            })?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self { seconds, quick, target, cores, wanted, directory })
    }

    /// True when the row, or one that it is the floor of, was asked for.
    pub fn wants(&self, row: &str) -> bool {
        self.wanted.contains(row)
    }

    /// How long one of so many rounds lasts.
    pub fn slice(&self, rounds: usize) -> Duration {
        Duration::from_secs_f64(self.seconds / rounds as f64)
    }

    /// Where files may be put.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Only the gRPC rows can be measured on a server that is not ours.
    ///
    /// # Errors
    /// [`Skip`], with `--target`.
    pub fn require_own(&self) -> anyhow::Result<()> {
        match &self.target {
            Some(target) => {
                Err(Skip(format!("only gRPC rows can be measured on a server of its own ({target})")).into())
            }
            None => Ok(()),
        }
    }
}
