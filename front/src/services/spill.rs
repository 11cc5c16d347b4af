//! Spill: one request, many ids, one result for each id in the order they were named.
//!
//! The ids of a batch may live on any shard. At most [`SPILLS_PER_REQUEST_MAX`] of them are asked at a time, so that
//! one caller with a thousand ids cannot fill a shard's lane. An id named twice is asked once and answered twice:
//! the second would otherwise see what the first had just done.

use std::collections::{HashMap, HashSet};

use futures_util::StreamExt;
use payload_types::PayloadId;
use payload_types::reply::Reply;
use payload_types::request::{Request as Ask, Spill};
use payload_wire::pb::runtime::v1 as pb;
use payload_wire::status::to_status;
use payload_wire::{decode, encode};
use tonic::Status;

use super::router::{NAMESPACE, Router, mismatch};
use crate::deadline::Deadline;

/// Spills of one request under way at a time: enough to keep the disk store busy (it works on a few transfers at
/// once), a thirty-second of a shard's request lane (1,024).
const SPILLS_PER_REQUEST_MAX: usize = 32;

/// Serves the RPC.
///
/// # Errors
/// Those of decoding; what goes wrong with one id is in that id's result.
pub async fn spill(
    router: &Router,
    request: pb::SpillRequest,
    deadline: Option<Deadline>,
) -> Result<pb::SpillResponse, Status> {
    let asked = decode::spill(NAMESPACE, request).map_err(to_status)?;
    let order: Vec<PayloadId> = asked.iter().map(|spill| spill.key.id).collect();
    let outcomes = outcomes_gather(router, asked, deadline).await;
    let results = order.iter().map(|id| outcomes[id].clone()).collect();
    Ok(pb::SpillResponse { results })
}

/// Asks for each different id once.
async fn outcomes_gather(
    router: &Router,
    mut asked: Vec<Spill>,
    deadline: Option<Deadline>,
) -> HashMap<PayloadId, pb::spill_response::Result> {
    let mut seen = HashSet::with_capacity(asked.len());
    asked.retain(|spill| seen.insert(spill.key.id));
    futures_util::stream::iter(asked)
        .map(|spill| async move {
            let id = spill.key.id;
            (id, spill_one(router, spill, deadline).await)
        })
        .buffer_unordered(SPILLS_PER_REQUEST_MAX)
        .collect()
        .await
}

async fn spill_one(router: &Router, spill: Spill, deadline: Option<Deadline>) -> pb::spill_response::Result {
    let id = spill.key.id;
    let outcome = match router.ask_owner(Ask::Spill(spill), deadline).await {
        Ok(Reply::Spilled(descriptor)) => Ok(descriptor),
        Ok(other) => Err(mismatch("Spill", &other)),
        Err(error) => Err(error),
    };
    encode::spill_result(id, &outcome, &router.locator)
}
