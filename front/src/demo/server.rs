//! The demo's server: the real binary, as a process of its own, with everything it keeps in one temporary directory.
//!
//! Its segments have a prefix of their own, so that whatever is left of them after a failure can be removed by name:
//! nobody else uses that prefix. Dropping a [`DemoServer`] kills the process and removes all traces.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use payload_types::ByteCount;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// How long the server may take until it serves, and until it has ended.
const START_WITHIN: Duration = Duration::from_secs(30);
/// See [`START_WITHIN`].
const STOP_WITHIN: Duration = Duration::from_secs(12);

/// How often the end of a killed server is looked for.
const KILL_LOOK: Duration = Duration::from_millis(2);

/// What the server prints before its address.
const ANNOUNCEMENT: &str = "payload-manager listening on ";

/// A running server.
pub struct DemoServer {
    child: Child,
    address: String,
    shm_prefix: String,
    directory: TempDir,
}

impl DemoServer {
    /// Starts it with this much RAM and disk, and waits until it serves.
    ///
    /// # Errors
    /// When it does not start; what it said is on standard error.
    pub async fn start(ram: ByteCount, disk: ByteCount) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("payload-manager-demo-")
            .tempdir()
            .context("no temporary directory can be made")?;
        let shm_prefix = format!("pm-demo-{}", std::process::id());
        let config = directory.path().join("demo.yaml");
        fs::write(&config, config_text(&shm_prefix, ram, disk))
            .context("the demo's configuration cannot be written")?;

        let program = std::env::current_exe().context("the demo cannot find its own program")?;
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            // What configures the user's own server must not reach this one.
            if name.as_encoded_bytes().starts_with(crate::config::ENV_PREFIX.as_bytes()) {
                command.env_remove(name);
            }
        }
        let mut child = command
            .arg("--config")
            .arg(&config)
            .arg("--data-dir")
            .arg(directory.path().join("data"))
            .arg("serve")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("the server process could not be started")?;
        let out = child.stdout.take().context("the server has no standard output")?;
        // Made before the wait, so that a server that fails to start is cleaned up behind, too.
        let mut server = Self { child, address: String::new(), shm_prefix, directory };
        let mut lines = BufReader::new(out).lines();
        let announced = tokio::time::timeout(START_WITHIN, lines.next_line()).await;
        let line =
            announced.context("the server did not start in time")?.context("the server cannot be heard")?;
        let line = line.context("the server ended before it served; its reason is above")?;
        line.strip_prefix(ANNOUNCEMENT)
            .context("the server said something else than its address")?
            .clone_into(&mut server.address);
        Ok(server)
    }

    /// `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// Where it keeps its files.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Asks it to end, as an operator does, and waits for it.
    ///
    /// # Errors
    /// When it does not exit with 0 in time.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        // SIGTERM by the shell's own `kill`: the standard library has none.
        let pid = self.pid().to_string();
        let asked = Command::new("sh").args(["-c", "kill -TERM \"$0\"", &pid]).status().await;
        anyhow::ensure!(asked.is_ok_and(|status| status.success()), "the server could not be asked to stop");
        let status = tokio::time::timeout(STOP_WITHIN, self.child.wait()).await;
        let status =
            status.context("the server did not stop in time")?.context("the server cannot be waited for")?;
        anyhow::ensure!(status.success(), "the server ended with {status}");
        Ok(())
    }
}

impl Drop for DemoServer {
    fn drop(&mut self) {
        // Already gone after `stop`. Segments outlive a killed server by design; these are nobody's but ours.
        drop(self.child.start_kill());
        let asked = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && asked.elapsed() < STOP_WITHIN {
            std::thread::sleep(KILL_LOOK);
        }
        let Ok(entries) = fs::read_dir("/dev/shm") else { return };
        // With the separator: the prefix of process 12 is the start of the one of process 123.
        let own = format!("{}-", self.shm_prefix);
        for entry in entries.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(own.as_bytes()) {
                drop(fs::remove_file(entry.path()));
            }
        }
    }
}

fn config_text(shm_prefix: &str, ram: ByteCount, disk: ByteCount) -> String {
    format!(
        "server:\n  bind_address: \"127.0.0.1:0\"\nlogging:\n  level: warn\nstorage:\n  ram:\n    capacity_bytes: {}\n    shm_prefix: {shm_prefix}\n  disk:\n    capacity_bytes: {}\n",
        ram.0, disk.0
    )
}
