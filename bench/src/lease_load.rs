//! AcquireReadLease as a client calls it: one connection, one call after another or many in flight.
//!
//! The same code drives our server, any other server of the contract, and the echo floors, so that what differs is
//! the server. Only Acquire is timed; the leases are released afterwards, untimed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use payload_client::{AllocateOptions, Client, ClientError};
use payload_types::{ByteCount, PayloadId};
use payload_wire::ids;
use payload_wire::pb::core::v1::LeaseId;
use payload_wire::pb::runtime::v1::{AcquireReadLeaseRequest, LeaseMode, ReleaseLeaseRequest};
use payload_wire::pb::services::v1::payload_data_service_client::PayloadDataServiceClient;
use prost::Message as _;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::histogram::Latencies;
use crate::noise::Noise;

/// Payloads that are leased in turn (DESIGN §10, grpc/acquire).
pub const PAYLOADS: usize = 1000;

/// Bytes of each: the call's cost does not depend on it.
const PAYLOAD_BYTES: u64 = 4096;

/// Leases held before they are released.
const LEASES_HELD: usize = 100;

/// Calls in flight while payloads are put and leases given back.
const IN_FLIGHT_UNTIMED: usize = 16;

type DataClient = PayloadDataServiceClient<Channel>;

/// One connection and what it leases.
pub struct LeaseLoad {
    client: DataClient,
    ids: Arc<[PayloadId]>,
    next: usize,
}

/// One round with many calls in flight.
pub struct Burst {
    /// Answers in a second.
    pub calls_per_s: f64,
    /// Of each call.
    pub latencies: Latencies,
}

impl LeaseLoad {
    /// Connects to a server that has these payloads.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn connect(address: &str, ids: Vec<PayloadId>) -> anyhow::Result<Self> {
        let client = DataClient::new(Client::connect_grpc(address).await?.channel());
        Ok(Self { client, ids: ids.into(), next: 0 })
    }

    /// Bytes of one request and of its answer, on the wire.
    ///
    /// # Errors
    /// When the call fails.
    pub async fn message_bytes(&mut self) -> anyhow::Result<(usize, usize)> {
        let request = request(self.ids[0]);
        let request_bytes = request.encoded_len();
        let answer = self.client.acquire_read_lease(request).await.context("AcquireReadLease")?.into_inner();
        let answer_bytes = answer.encoded_len();
        release_all(&self.client, answer.lease_id.into_iter().collect()).await?;
        Ok((request_bytes, answer_bytes))
    }

    /// One call after another for so long: their latencies.
    ///
    /// # Errors
    /// When a call fails.
    pub async fn one_by_one(&mut self, duration: Duration) -> anyhow::Result<Latencies> {
        let end = Instant::now() + duration;
        self.one_by_one_while(|| Instant::now() < end).await
    }

    /// One call after another while `goes_on` says so, looked at every [`LEASES_HELD`] calls: the latencies of those
    /// that began and ended meanwhile.
    ///
    /// # Errors
    /// When a call fails.
    pub async fn one_by_one_while(&mut self, goes_on: impl Fn() -> bool) -> anyhow::Result<Latencies> {
        let mut latencies = Latencies::default();
        while goes_on() {
            let mut leases = Vec::with_capacity(LEASES_HELD);
            for _ in 0..LEASES_HELD {
                let request = request(self.ids[self.next]);
                self.next = (self.next + 1) % self.ids.len();
                let started = Instant::now();
                let answer = self.client.acquire_read_lease(request).await.context("AcquireReadLease")?;
                latencies.record(started.elapsed());
                leases.push(answer.into_inner().lease_id);
            }
            for lease_id in leases {
                self.client.release_lease(ReleaseLeaseRequest { lease_id }).await.context("ReleaseLease")?;
            }
        }
        Ok(latencies)
    }

    /// `in_flight` calls at a time for so long.
    ///
    /// # Errors
    /// When a call fails.
    pub async fn burst(&mut self, in_flight: usize, duration: Duration) -> anyhow::Result<Burst> {
        let latencies = Arc::new(Mutex::new(Latencies::default()));
        let started = Instant::now();
        let end = started + duration;
        let mut callers = JoinSet::new();
        for caller in 0..in_flight {
            let (client, ids, latencies) =
                (self.client.clone(), Arc::clone(&self.ids), Arc::clone(&latencies));
            callers.spawn(call_until(client, ids, caller * PAYLOADS / in_flight, end, latencies));
        }
        let mut leases = Vec::new();
        while let Some(caller) = callers.join_next().await {
            leases.extend(caller.context("a caller of the bench panicked")??);
        }
        let seconds = started.elapsed().as_secs_f64();
        let calls_per_s = leases.len() as f64 / seconds;
        release_all(&self.client, leases).await?;
        let latencies = latencies.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Burst { calls_per_s, latencies })
    }
}

async fn call_until(
    mut client: DataClient,
    ids: Arc<[PayloadId]>,
    first: usize,
    end: Instant,
    latencies: Arc<Mutex<Latencies>>,
) -> anyhow::Result<Vec<LeaseId>> {
    let mut leases = Vec::new();
    let mut next = first % ids.len();
    while Instant::now() < end {
        let started = Instant::now();
        let answer = client.acquire_read_lease(request(ids[next])).await.context("AcquireReadLease")?;
        latencies.lock().unwrap_or_else(PoisonError::into_inner).record(started.elapsed());
        leases.extend(answer.into_inner().lease_id);
        next = (next + 1) % ids.len();
    }
    Ok(leases)
}

fn request(id: PayloadId) -> AcquireReadLeaseRequest {
    AcquireReadLeaseRequest {
        id: Some(ids::payload_id_to_pb(id)),
        mode: LeaseMode::Read.into(),
        ..AcquireReadLeaseRequest::default()
    }
}

async fn release_all(client: &DataClient, leases: Vec<LeaseId>) -> anyhow::Result<()> {
    let mut callers = JoinSet::new();
    let share = leases.len().div_ceil(IN_FLIGHT_UNTIMED).max(1);
    for leases in leases.chunks(share).map(<[LeaseId]>::to_vec) {
        let mut client = client.clone();
        callers.spawn(async move {
            for lease in leases {
                client.release_lease(ReleaseLeaseRequest { lease_id: Some(lease) }).await?;
            }
            Ok::<_, tonic::Status>(())
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller.context("a caller of the bench panicked")?.context("ReleaseLease")?;
    }
    Ok(())
}

/// Puts [`PAYLOADS`] small payloads into RAM and returns their ids.
///
/// # Errors
/// When the server refuses.
pub async fn put_payloads(address: &str) -> anyhow::Result<Vec<PayloadId>> {
    let client = Client::connect_grpc(address).await?;
    let mut ids = Vec::with_capacity(PAYLOADS);
    while ids.len() < PAYLOADS {
        let mut putters = JoinSet::new();
        for seed in ids.len()..PAYLOADS.min(ids.len() + IN_FLIGHT_UNTIMED) {
            let client = client.clone();
            putters.spawn(async move { put_one(&client, seed as u64).await });
        }
        while let Some(putter) = putters.join_next().await {
            ids.push(
                putter
                    .context("a putter of the bench panicked")?
                    .context("a payload for the leases cannot be put")?,
            );
        }
    }
    Ok(ids)
}

/// Allocates, writes in place and commits. A server on another host shows a location that cannot be opened here: then
/// the payload is committed as the server made it, which costs a lease no less.
async fn put_one(client: &Client, seed: u64) -> Result<PayloadId, ClientError> {
    let (size, options) = (ByteCount(PAYLOAD_BYTES), AllocateOptions::default());
    match client.put_bytes(Noise::new(seed), size, &options).await {
        Ok(descriptor) => Ok(descriptor.id),
        Err(ClientError::Mapping(_)) => {
            let id = client.allocate_payload(size, &options).await?.descriptor.id;
            client.commit_payload(id, None).await.map(|descriptor| descriptor.id)
        }
        Err(error) => Err(error),
    }
}
