//! `grpc/batch-64` and its floor: leases in a second by batches of 64, and by single calls to the same server.
//!
//! One connection, one call at a time, both in turns. As in `grpc/acquire` only what acquires is timed, the leases are
//! released afterwards, untimed, and a round's figure is of its median call: leases of the call / p50.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use payload_client::Client;
use payload_types::{ByteCount, PayloadId, limits};
use payload_wire::ids;
use payload_wire::pb::core::v1::LeaseId;
use payload_wire::pb::operations::v1::batch_acquire_result::Outcome;
use payload_wire::pb::operations::v1::payload_batch_service_client::PayloadBatchServiceClient;
use payload_wire::pb::operations::v1::{BatchAcquireRequest, BatchReleaseRequest};
use payload_wire::pb::runtime::v1::{AcquireReadLeaseRequest, LeaseMode};
use tonic::transport::Channel;

use crate::context::{Context, ROUNDS_SHORT};
use crate::histogram::{Latencies, Unit};
use crate::lease_load::{LeaseLoad, put_payloads};
use crate::report::{Figure, Findings};
use crate::series::Series;
use crate::server::Server;

/// What the server of these rows needs: 1,000 payloads of a page, with room to spare.
const CAPACITY: ByteCount = ByteCount(256 << 20);

/// Leases of a batch.
const BATCH_LEN: usize = 64;

type BatchClient = PayloadBatchServiceClient<Channel>;

/// Batches for so long: how long each took.
async fn batches(
    client: &mut BatchClient,
    payloads: &[PayloadId],
    next: &mut usize,
    duration: Duration,
) -> anyhow::Result<Latencies> {
    let end = Instant::now() + duration;
    let mut latencies = Latencies::default();
    while Instant::now() < end {
        let items = (0..BATCH_LEN).map(|at| AcquireReadLeaseRequest {
            id: Some(ids::payload_id_to_pb(payloads[(*next + at) % payloads.len()])),
            mode: LeaseMode::Read.into(),
            ..AcquireReadLeaseRequest::default()
        });
        let request = BatchAcquireRequest { items: items.collect() };
        *next = (*next + BATCH_LEN) % payloads.len();
        let started = Instant::now();
        let answer = client.batch_acquire(request).await.context("BatchAcquire")?.into_inner();
        latencies.record(started.elapsed());
        let lease_ids: Vec<LeaseId> = answer
            .results
            .into_iter()
            .filter_map(|result| match result.outcome {
                Some(Outcome::Acquired(lease)) => lease.lease_id,
                Some(Outcome::Error(_)) | None => None,
            })
            .collect();
        ensure!(lease_ids.len() == BATCH_LEN, "{} of {BATCH_LEN} leases were granted", lease_ids.len());
        client.batch_release(BatchReleaseRequest { lease_ids }).await.context("BatchRelease")?;
    }
    Ok(latencies)
}

/// See the module.
pub fn run(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (_server, address) = Server::wanted(context, CAPACITY)?;
    let payloads = runtime.block_on(put_payloads(&address))?;
    let mut load = runtime.block_on(LeaseLoad::connect(&address, payloads.clone()))?;
    let channel = runtime.block_on(Client::connect_grpc(&address))?.channel();
    let mut client =
        PayloadBatchServiceClient::new(channel).max_decoding_message_size(limits::MESSAGE_BYTES_MAX);
    let mut sides = [(Series::default(), Latencies::default()), (Series::default(), Latencies::default())];
    let mut next = 0;
    // The first turn warms up what it calls.
    for turn in 0..=ROUNDS_SHORT {
        let slice = context.slice(ROUNDS_SHORT);
        let single = runtime.block_on(load.one_by_one(slice))?;
        let batch = runtime.block_on(batches(&mut client, &payloads, &mut next, slice))?;
        if turn > 0 {
            sides[0].0.push(1e6 / single.p50(Unit::Microseconds));
            sides[0].1.merge(&single);
            sides[1].0.push(BATCH_LEN as f64 * 1e6 / batch.p50(Unit::Microseconds));
            sides[1].1.merge(&batch);
        }
    }
    for (row, (series, latencies)) in ["grpc/acquire-rate", "grpc/batch-64"].into_iter().zip(&sides) {
        findings.put(row, Figure::of(series)?.with(latencies, Unit::Microseconds));
    }
    Ok(())
}
