//! The demo's worker: a process of its own that leases payloads and reads them where they lie.
//!
//! ```text
//! demo --stdin: one line a task--> worker --gRPC--> lease --mmap--> hash --release--> stdout: one line an answer
//! ```
//!
//! It gets ids and checksums, never bytes. A line is `ID CHECKSUM TIER`; an answer is `ok NANOS` or `bad REASON`.
//! It ends when its standard input does, so it cannot outlive the demo.

use std::io::{BufRead as _, Write as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use payload_client::{AcquireOptions, Client};
use payload_types::{Checksum, PayloadId, Tier};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// The hidden first argument that makes the binary a worker.
pub const ARGUMENT: &str = "demo-worker";

/// The worker as the demo sees it.
pub struct Worker {
    child: Child,
    tasks: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    /// Starts the process; it connects to `address`.
    ///
    /// # Errors
    /// When the system refuses a process.
    pub fn start(address: &str) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("the demo cannot find its own program")?;
        let mut child = Command::new(program)
            .args([ARGUMENT, address])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("the worker process could not be started")?;
        let tasks = child.stdin.take().context("the worker has no standard input")?;
        let answers = child.stdout.take().context("the worker has no standard output")?;
        Ok(Self { child, tasks, answers: BufReader::new(answers).lines() })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// Has it lease `id` on `tier`, read all bytes in place and compare their hash. Returns how long lease, mapping,
    /// reading and release took.
    ///
    /// # Errors
    /// What it found wrong.
    pub async fn verify(
        &mut self,
        id: PayloadId,
        checksum: Checksum,
        tier: Tier,
    ) -> anyhow::Result<Duration> {
        self.tasks
            .write_all(format!("{id} {checksum} {tier}\n").as_bytes())
            .await
            .context("the worker is gone")?;
        let answer = self.answers.next_line().await.context("the worker cannot be heard")?;
        let answer = answer.context("the worker ended before it answered")?;
        match answer.split_once(' ') {
            Some(("ok", nanos)) => {
                Ok(Duration::from_nanos(nanos.parse().context("the worker talks nonsense")?))
            }
            Some(("bad", reason)) => anyhow::bail!("the worker, process {}: {reason}", self.pid()),
            _ => anyhow::bail!("the worker talks nonsense: {answer}"),
        }
    }

    /// Lets it end.
    pub async fn stop(mut self) {
        drop(self.tasks);
        drop(self.child.wait().await);
    }
}

/// The worker itself: what `payload-manager demo-worker ADDRESS` runs.
///
/// # Errors
/// When it cannot start or the demo no longer listens.
pub fn run(address: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = runtime.block_on(Client::connect_grpc(address))?;
    for line in std::io::stdin().lock().lines() {
        let answer = match runtime.block_on(lease_and_hash(&client, &line?)) {
            Ok(took) => format!("ok {}", took.as_nanos()),
            Err(error) => format!("bad {}", format!("{error:#}").replace('\n', " ")),
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

async fn lease_and_hash(client: &Client, task: &str) -> anyhow::Result<Duration> {
    let mut words = task.split(' ');
    let mut word = || words.next().with_context(|| format!("`{task}` is not a task"));
    let id: PayloadId = word()?.parse()?;
    let expected = u64::from_str_radix(word()?, 16).map(Checksum)?;
    let tier = word()?.to_owned();
    let start = Instant::now();
    let (found, on) = client
        .read_leased(id, &AcquireOptions::default(), |lease| (lease.verify(), lease.descriptor().tier))
        .await?;
    let took = start.elapsed();
    let found = found?;
    anyhow::ensure!(found == expected, "{id} has checksum {found} on {on}, and {expected} was put");
    anyhow::ensure!(on.to_string() == tier, "{id} was expected on {tier} and lies on {on}");
    Ok(took)
}
