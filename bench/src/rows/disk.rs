//! `disk/spill-64MiB` and `disk/promote-64MiB`, against raw io_uring on the same filesystem.
//!
//! ```text
//! a round:  raw write | put into RAM (untimed), Spill x N | raw read | Promote x N | delete (untimed)
//! ```
//! The server is asked as a client asks: Spill(BLOCKING, fsync) and Promote(BLOCKING) over gRPC, a few in flight, one
//! payload a call. A payload is spilled once in its life, so each round has new ones.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use payload_client::{AllocateOptions, Client, ClientError, SpillOptions};
use payload_types::limits::IO_DEPTH;
use payload_types::tier::SpillTarget;
use payload_types::{ByteCount, ErrorKind, PayloadId, PromotionPolicy, SpillPolicy, Tier};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::context::{Context, Skip};
use crate::floors::disk::RawFiles;
use crate::noise::Noise;
use crate::report::{Figure, Findings};
use crate::series::Series;
use crate::server::Server;

/// One payload, one file of the floor.
const PAYLOAD_BYTES: u64 = 64 << 20;

/// Calls in flight: enough that the server's transfer threads never wait for the next one.
const IN_FLIGHT: usize = 4;

/// How long a put waits for the space of payloads that were just deleted: it is free once nobody has them mapped.
const SPACE_WITHIN: Duration = Duration::from_secs(10);

struct Volume {
    payloads: usize,
    rounds: usize,
}

/// See the module.
pub fn run(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    context.require_own()?;
    let volume =
        if context.quick { Volume { payloads: 8, rounds: 3 } } else { Volume { payloads: 16, rounds: 5 } };
    let directory = context.directory().join("raw");
    let mut raw = match RawFiles::create(&directory, volume.payloads, PAYLOAD_BYTES, IO_DEPTH) {
        Ok(raw) => Some(raw),
        Err(error) => {
            findings.absent("disk/write", &error);
            findings.absent("disk/read", &error);
            None
        }
    };
    let mut ours = None;
    if context.wants("disk/spill-64MiB") || context.wants("disk/promote-64MiB") {
        match Ours::start(context, volume.payloads) {
            Ok(started) => ours = Some(started),
            Err(error) => {
                findings.absent("disk/spill-64MiB", &error);
                findings.absent("disk/promote-64MiB", &error);
            }
        }
    }
    let mut rows: [(&'static str, Series); 4] =
        ["disk/write", "disk/spill-64MiB", "disk/read", "disk/promote-64MiB"]
            .map(|row| (row, Series::default()));
    // The first turn warms up.
    for turn in 0..=volume.rounds {
        let mut keep = |row: usize, bytes_per_s: f64| {
            if turn > 0 {
                rows[row].1.push(bytes_per_s / 1e6);
            }
        };
        if let Some(raw) = &mut raw {
            keep(0, raw.write().context("raw writes")?);
        }
        if let Some(ours) = &mut ours {
            ours.put(turn)?;
            keep(1, ours.spill()?);
        }
        if let Some(raw) = &mut raw {
            keep(2, raw.read().context("raw reads")?);
        }
        if let Some(ours) = &mut ours {
            keep(3, ours.promote()?);
            ours.delete()?;
        }
    }
    let note = format!("{} x 64 MiB a round", volume.payloads);
    for (row, series) in &rows {
        if series.rounds() > 0 {
            findings.put(row, Figure::of(series)?.noted(note.clone()));
        }
    }
    Ok(())
}

struct Ours {
    runtime: Runtime,
    client: Client,
    payloads: usize,
    ids: Vec<PayloadId>,
    _server: Server,
}

impl Ours {
    fn start(context: &Context, payloads: usize) -> anyhow::Result<Self> {
        // Two rounds' worth: what was deleted is charged until it is proven free.
        let round = payloads as u64 * PAYLOAD_BYTES;
        let server = Server::start(context, ByteCount(2 * round + (64 << 20)), ByteCount(3 * round))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(Client::connect(server.address()))?;
        Ok(Self { runtime, client, payloads, ids: Vec::new(), _server: server })
    }

    fn put(&mut self, turn: usize) -> anyhow::Result<()> {
        for number in 0..self.payloads {
            let seed = (turn * self.payloads + number) as u64;
            self.ids.push(self.runtime.block_on(put_one(&self.client, seed))?);
        }
        Ok(())
    }

    fn spill(&self) -> anyhow::Result<f64> {
        let options = SpillOptions {
            target: Some(SpillTarget::Tier(Tier::Disk)),
            policy: Some(SpillPolicy::Blocking),
            fsync: true,
            ..SpillOptions::default()
        };
        self.timed("Spill", move |client, id| async move {
            let spilled = client.spill(&[id], &options).await?;
            let one = spilled.into_iter().next().context("Spill gave no result")?;
            one.result.map(drop).map_err(anyhow::Error::msg)
        })
    }

    fn promote(&self) -> anyhow::Result<f64> {
        self.timed("Promote", |client, id| async move {
            let descriptor = client.promote(id, Tier::Ram, Some(PromotionPolicy::Blocking), None).await?;
            anyhow::ensure!(descriptor.tier == Tier::Ram, "{id} was promoted to {}", descriptor.tier);
            Ok(())
        })
    }

    fn delete(&mut self) -> anyhow::Result<()> {
        for id in self.ids.drain(..) {
            self.runtime.block_on(self.client.delete(id, false, None)).context("Delete")?;
        }
        Ok(())
    }

    /// Calls `each` for every payload, a few at a time. Returns payload bytes in a second.
    fn timed<C, F>(&self, what: &str, call: C) -> anyhow::Result<f64>
    where
        C: Fn(Client, PayloadId) -> F + Copy + Send + 'static,
        F: Future<Output = anyhow::Result<()>> + Send,
    {
        let waiting = Arc::new(Mutex::new(VecDeque::from(self.ids.clone())));
        let started = Instant::now();
        self.runtime.block_on(async {
            let mut callers = JoinSet::new();
            for _ in 0..IN_FLIGHT {
                let (client, waiting) = (self.client.clone(), Arc::clone(&waiting));
                callers.spawn(async move {
                    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    while let Some(id) = next() {
                        call(client.clone(), id).await?;
                    }
                    anyhow::Ok(())
                });
            }
            while let Some(caller) = callers.join_next().await {
                caller.context("a caller of the bench panicked")?.with_context(|| what.to_owned())?;
            }
            anyhow::Ok(())
        })?;
        Ok((self.ids.len() as u64 * PAYLOAD_BYTES) as f64 / started.elapsed().as_secs_f64())
    }
}

async fn put_one(client: &Client, seed: u64) -> anyhow::Result<PayloadId> {
    let end = Instant::now() + SPACE_WITHIN;
    loop {
        let size = ByteCount(PAYLOAD_BYTES);
        match client.put_bytes(Noise::new(seed), size, &AllocateOptions::default()).await {
            Ok(descriptor) => return Ok(descriptor.id),
            Err(error) if is_full(&error) && Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) if is_full(&error) => {
                return Err(Skip(format!("this machine's RAM tier is too small for the row: {error}")).into());
            }
            Err(error) => return Err(error).context("a payload of 64 MiB cannot be put"),
        }
    }
}

fn is_full(error: &ClientError) -> bool {
    error.kind() == Some(ErrorKind::ResourceExhausted)
}
