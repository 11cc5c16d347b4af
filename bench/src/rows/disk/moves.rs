//! Puts, spills, promotes and deletes on a server as a client asks for them, many in flight.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use payload_client::{AllocateOptions, Client, ClientError, SpillOptions};
use payload_types::tier::SpillTarget;
use payload_types::{ByteCount, ErrorKind, PayloadId, PromotionPolicy, SpillPolicy, Tier};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::context::Skip;
use crate::noise::Noise;

/// How long a put waits for the space of payloads that were just deleted: it is free once nobody has them mapped.
const SPACE_WITHIN: Duration = Duration::from_secs(10);

/// What is moved.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Payloads of a round.
    pub payloads: usize,
    /// Bytes of each.
    pub payload_bytes: ByteCount,
    /// Ids in one Spill or Promote (of these: as many calls one after another).
    pub ids_per_call: usize,
    /// Calls in flight.
    pub in_flight: usize,
}

impl Load {
    /// Bytes of a round.
    pub const fn bytes(&self) -> u64 {
        self.payloads as u64 * self.payload_bytes.0
    }
}

/// A connection, and the payloads of the round.
pub struct Moves {
    runtime: Runtime,
    client: Client,
    load: Load,
    ids: Vec<PayloadId>,
}

impl Moves {
    /// Connects.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn connect(address: &str, load: Load) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(Client::connect_grpc(address))?;
        Ok(Self { runtime, client, load, ids: Vec::new() })
    }

    /// Puts the round's payloads into RAM.
    ///
    /// # Errors
    /// [`Skip`] when the tier has no room for them; what the server says.
    pub fn put(&mut self, turn: usize) -> anyhow::Result<()> {
        let Load { payloads, payload_bytes, in_flight, .. } = self.load;
        let client = &self.client;
        let waiting: VecDeque<u64> = (0..payloads).map(|number| (turn * payloads + number) as u64).collect();
        let put = move |client, seed| async move { put_one(&client, seed, payload_bytes).await };
        self.ids = self.runtime.block_on(each(client, waiting, in_flight, put))?;
        Ok(())
    }

    /// Spills them to disk, to stable storage. Returns payload bytes in a second.
    ///
    /// # Errors
    /// What the server says.
    pub fn spill(&self) -> anyhow::Result<f64> {
        let options = SpillOptions {
            target: Some(SpillTarget::Tier(Tier::Disk)),
            policy: Some(SpillPolicy::Blocking),
            fsync: true,
            ..SpillOptions::default()
        };
        self.timed("Spill", move |client, ids| async move {
            for spilled in client.spill(&ids, &options).await? {
                spilled.result.map_err(anyhow::Error::msg)?;
            }
            Ok(())
        })
    }

    /// Promotes them back to RAM. Returns payload bytes in a second.
    ///
    /// # Errors
    /// What the server says.
    pub fn promote(&self) -> anyhow::Result<f64> {
        self.timed("Promote", |client, ids| async move {
            for id in ids {
                let descriptor = client.promote(id, Tier::Ram, Some(PromotionPolicy::Blocking), None).await?;
                anyhow::ensure!(descriptor.tier == Tier::Ram, "{id} was promoted to {}", descriptor.tier);
            }
            Ok(())
        })
    }

    /// Deletes them.
    ///
    /// # Errors
    /// What the server says.
    pub fn delete(&mut self) -> anyhow::Result<()> {
        let waiting = self.ids.drain(..).collect();
        let delete =
            |client: Client, id| async move { client.delete(id, false, None).await.context("Delete") };
        self.runtime.block_on(each(&self.client, waiting, self.load.in_flight, delete)).map(drop)
    }

    fn timed<C, F>(&self, what: &str, call: C) -> anyhow::Result<f64>
    where
        C: Fn(Client, Vec<PayloadId>) -> F + Copy + Send + 'static,
        F: Future<Output = anyhow::Result<()>> + Send,
    {
        let waiting = self.ids.chunks(self.load.ids_per_call).map(<[PayloadId]>::to_vec).collect();
        let started = Instant::now();
        let calls = each(&self.client, waiting, self.load.in_flight, call);
        self.runtime.block_on(calls).with_context(|| what.to_owned())?;
        Ok(self.load.bytes() as f64 / started.elapsed().as_secs_f64())
    }
}

/// Calls with every item, so many at a time. Returns the answers, as they came.
async fn each<I, T, C, F>(
    client: &Client,
    waiting: VecDeque<I>,
    in_flight: usize,
    call: C,
) -> anyhow::Result<Vec<T>>
where
    I: Send + 'static,
    T: Send + 'static,
    C: Fn(Client, I) -> F + Copy + Send + 'static,
    F: Future<Output = anyhow::Result<T>> + Send,
{
    let waiting = Arc::new(Mutex::new(waiting));
    let mut callers = JoinSet::new();
    for _ in 0..in_flight {
        let (client, waiting) = (client.clone(), Arc::clone(&waiting));
        callers.spawn(async move {
            let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let mut answers = Vec::new();
            while let Some(item) = next() {
                answers.push(call(client.clone(), item).await?);
            }
            anyhow::Ok(answers)
        });
    }
    let mut answers = Vec::new();
    while let Some(caller) = callers.join_next().await {
        answers.extend(caller.context("a caller of the bench panicked")??);
    }
    Ok(answers)
}

async fn put_one(client: &Client, seed: u64, size: ByteCount) -> anyhow::Result<PayloadId> {
    let end = Instant::now() + SPACE_WITHIN;
    loop {
        match client.put_bytes(Noise::new(seed), size, &AllocateOptions::default()).await {
            Ok(descriptor) => return Ok(descriptor.id),
            Err(error) if is_full(&error) && Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) if is_full(&error) => {
                return Err(Skip(format!("this machine's RAM tier is too small for the row: {error}")).into());
            }
            Err(error) => return Err(error).with_context(|| format!("a payload of {size} cannot be put")),
        }
    }
}

fn is_full(error: &ClientError) -> bool {
    error.kind() == Some(ErrorKind::ResourceExhausted)
}
