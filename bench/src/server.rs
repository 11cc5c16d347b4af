//! The server under test: the real binary, as a process of its own.
//!
//! Found beside this program (target/release), else on PATH. Dropping a [`Server`] asks it to end, waits, kills it if
//! it must, and removes what it left.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use payload_types::ByteCount;

use crate::context::{Context, Skip};
use crate::scratch::Scratch;

/// How long the server may take until it serves, and until it has ended.
const START_WITHIN: Duration = Duration::from_secs(30);
/// See [`START_WITHIN`].
const STOP_WITHIN: Duration = Duration::from_secs(12);

/// The program's name.
const PROGRAM: &str = "payload-manager";

/// What it prints before its address.
const ANNOUNCEMENT: &str = "payload-manager listening on ";

/// The process id of the server that runs now, 0: none. Families run one after another, each with one server.
static RUNNING: AtomicU32 = AtomicU32::new(0);

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: String,
    /// Taken by [`stop`](Self::stop).
    scratch: Option<Scratch>,
}

impl Server {
    /// Starts one with these capacities, and waits until it serves.
    ///
    /// # Errors
    /// [`Skip`] when there is no such program; otherwise what the server said.
    pub fn start(context: &Context, ram: ByteCount, disk: ByteCount) -> anyhow::Result<Self> {
        Self::start_in(Scratch::new(context.directory(), ram, disk)?)
    }

    /// The address of the server that is asked for, or of one started as [`start`](Self::start) does.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn wanted(context: &Context, capacity: ByteCount) -> anyhow::Result<(Option<Self>, String)> {
        if let Some(target) = &context.target {
            return Ok((None, target.clone()));
        }
        let server = Self::start(context, capacity, capacity)?;
        let address = server.address().to_owned();
        Ok((Some(server), address))
    }

    /// Starts one on what an earlier one left in `scratch`, and waits until it serves.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_in(scratch: Scratch) -> anyhow::Result<Self> {
        let log = File::create(scratch.log()).context("the server's log cannot be made")?;
        let mut command = Command::new(program());
        // What configures the user's own server must not reach this one.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"PAYLOAD_MANAGER") {
                command.env_remove(name);
            }
        }
        let spawned = command
            .arg("--config")
            .arg(scratch.config())
            .arg("--data-dir")
            .arg(scratch.data_dir())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Skip(format!(
                    "{PROGRAM} is neither beside payload-bench nor on PATH; build it with `cargo build --release`"
                ))
                .into());
            }
            Err(error) => return Err(error).context("the server process could not be started"),
        };
        RUNNING.store(child.id(), Ordering::Relaxed);
        let first_line = lines(&mut child)?;
        // Made before the wait, so that a server that fails to start is cleaned up behind, too.
        let log = scratch.log();
        let mut server = Self { child, address: String::new(), scratch: Some(scratch) };
        let Ok(line) = first_line.recv_timeout(START_WITHIN) else {
            let said = std::fs::read_to_string(log).unwrap_or_default();
            anyhow::bail!(
                "the server did not serve within {} s; it said: {}",
                START_WITHIN.as_secs(),
                said.trim()
            );
        };
        let address = line.strip_prefix(ANNOUNCEMENT);
        address.context("the server said something else than its address")?.clone_into(&mut server.address);
        Ok(server)
    }

    /// `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Ends it as SIGTERM does, and gives back what it left.
    ///
    /// # Errors
    /// When it did not end in order within the time it has.
    pub fn stop(mut self) -> anyhow::Result<Scratch> {
        let status = self.end();
        anyhow::ensure!(status.is_some_and(|status| status.success()), "the server ended with {status:?}");
        self.scratch.take().context("a server has its files until it is stopped")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end, waits, kills it if it must. `None` when it was not there to be asked.
    fn end(&mut self) -> Option<ExitStatus> {
        RUNNING.store(0, Ordering::Relaxed);
        let asked = matches!(self.child.try_wait(), Ok(None)) && ask_to_end(self.pid());
        let end = Instant::now() + STOP_WITHIN;
        while asked && Instant::now() < end {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(10)),
                Ok(Some(_)) | Err(_) => break,
            }
        }
        // Fails harmlessly when it has ended.
        drop(self.child.kill());
        self.child.wait().ok()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// Asks the server that runs now, if any, to end: for when this process ends before its time.
pub fn running_ask_to_end() {
    let pid = RUNNING.swap(0, Ordering::Relaxed);
    if pid != 0 {
        ask_to_end(pid);
    }
}

/// SIGTERM by the shell's own `kill`: the standard library has none.
fn ask_to_end(pid: u32) -> bool {
    let asked = Command::new("sh").args(["-c", "kill -TERM \"$0\"", &pid.to_string()]).status();
    asked.is_ok_and(|status| status.success())
}

/// The server's program. Tests run from `target/release/deps`, one level below it.
fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let beside = own.ancestors().skip(1).take(2).map(|directory| directory.join(PROGRAM));
    beside.into_iter().find(|program| program.is_file()).unwrap_or_else(|| PROGRAM.into())
}

/// The child's first line of output; the rest is read and forgotten, so that it never blocks.
pub(crate) fn lines(child: &mut Child) -> anyhow::Result<mpsc::Receiver<String>> {
    let out = child.stdout.take().context("the process has no standard output")?;
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("bench-stdout".to_owned())
        .spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                // Only the first has a place and a reader.
                drop(sender.try_send(line));
            }
        })
        .context("no thread to read the process's output")?;
    Ok(receiver)
}
