//! Asks for many items at once, some at a time, and patiently.
//!
//! A batch's caller cannot know how full a shard's lane is, and its items are many. So at most [`ITEMS_AT_A_TIME_MAX`] of
//! one call are under way, and one for which a lane has no room waits a moment instead of being refused: a large batch gets
//! slower on a busy server, and never takes the lane from those who ask for one payload.

use std::future::Future;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use payload_reactor::clock;
use payload_types::reply::Reply;
use payload_types::request::Request;
use payload_types::{PayloadError, ShardIndex};

use crate::deadline::{Deadline, late};
use crate::services::router::{Posted, Router, lane_full};

/// Items of one call under way at a time: a sixteenth of a shard's request lane (1,024), and as many as one turn of a shard
/// handles.
pub const ITEMS_AT_A_TIME_MAX: usize = 64;

/// How soon a full lane is tried again: a shard empties its lane in less.
const FULL_PAUSE: Duration = Duration::from_millis(1);

/// Tries before the item is refused, where the call has no deadline: 5 s, as long as the catalog writer is patient.
const TRIES_MAX: usize = 5_000;

/// Does all of them, some at a time, and gives the results in their order.
pub async fn out<F: Future>(asked: Vec<F>) -> Vec<F::Output> {
    let mut results: Vec<Option<F::Output>> = Vec::new();
    results.resize_with(asked.len(), || None);
    let mut asked = asked.into_iter().enumerate();
    let mut under_way = FuturesUnordered::new();
    loop {
        for (index, ask) in asked.by_ref().take(ITEMS_AT_A_TIME_MAX - under_way.len()) {
            under_way.push(async move { (index, ask.await) });
        }
        let Some((index, result)) = under_way.next().await else { break };
        results[index] = Some(result);
    }
    results.into_iter().map(|result| result.expect("each of them was done once")).collect()
}

/// Puts a request into a shard's lane, as soon as that has room.
///
/// # Errors
/// RESOURCE_EXHAUSTED when it has none for long; DEADLINE_EXCEEDED when the call's deadline has passed: then nothing is begun.
pub async fn post(
    router: &Router,
    shard: ShardIndex,
    mut request: Request,
    deadline: Option<Deadline>,
) -> Result<Posted, PayloadError> {
    for _ in 0..TRIES_MAX {
        if deadline.is_some_and(|deadline| deadline.shard <= clock::monotonic()) {
            return Err(late());
        }
        match router.post(shard, request, deadline) {
            Ok(posted) => return Ok(posted),
            Err(refused) => request = refused,
        }
        tokio::time::sleep(FULL_PAUSE).await;
    }
    Err(lane_full())
}

/// As [`Router::ask`], patiently.
///
/// # Errors
/// As [`post`], and the shard's own.
pub async fn ask(
    router: &Router,
    shard: ShardIndex,
    request: Request,
    deadline: Option<Deadline>,
) -> Result<Reply, PayloadError> {
    let posted = post(router, shard, request, deadline).await?;
    router.hear(posted, deadline).await
}

/// As [`Router::ask_owner`], patiently.
///
/// # Errors
/// As [`ask`].
pub async fn ask_owner(
    router: &Router,
    request: Request,
    deadline: Option<Deadline>,
) -> Result<Reply, PayloadError> {
    let id = request.routing_id().expect("requests about one payload carry its id");
    match ask(router, id.shard(router.shard_count()), request, deadline).await {
        Err(error) => Err(router.elsewhere(id, error, deadline).await),
        answer => answer,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn given_more_items_than_at_a_time_when_asked_then_results_are_in_order_and_never_too_many_at_once()
    {
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (now, most) = (&now, &most);
        let ask = |item: usize| async move {
            most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            for _ in 0..item % 7 {
                tokio::task::yield_now().await;
            }
            now.fetch_sub(1, Ordering::Relaxed);
            item
        };
        let results = out((0..1000).map(ask).collect()).await;
        assert_eq!(results, (0..1000).collect::<Vec<_>>());
        assert_eq!(most.load(Ordering::Relaxed), ITEMS_AT_A_TIME_MAX);
    }
}
