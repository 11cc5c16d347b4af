//! What other nodes append to followed streams: a low-rate look into the catalog that they share.
//!
//! ```text
//! every LOOK_EVERY, while somebody follows: one query, the ends of all followed streams --> hub --knock--> subscribers
//! ```
//! A knock is a hint: the subscriber reads what is new. One query a look, whatever the number of streams and subscribers; none
//! while nobody follows. Rejected: NOTIFY, which takes a lock of the whole database at commit and does not pass a proxy that
//! pools by transaction. While the catalog is away nothing is lost: the first look afterwards finds what has changed.

use std::sync::Arc;
use std::time::Duration;

use payload_types::record::{RecordAnswer, RecordQuery};

use super::{Records, disagreement};

/// How long what another node appended may go unnoticed, at most, beside the query itself: five looks a second cost the
/// database less than a thousandth of a core.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Looks until the server stops.
pub async fn run(records: Arc<Records>) {
    let hub = Arc::clone(records.hub());
    while !hub.is_stopping() {
        tokio::time::sleep(LOOK_EVERY).await;
        let streams = hub.followed();
        if streams.is_empty() {
            continue;
        }
        match records.query(RecordQuery::StreamEnds(streams.clone()), None).await {
            Ok(RecordAnswer::StreamEnds(ends)) => {
                for (stream, end) in streams.iter().zip(ends) {
                    hub.looked(stream, end);
                }
            }
            // It logs itself.
            Ok(other) => drop(disagreement("the ends of streams", &other)),
            // The readers say so at their own level; subscribers go on with the next look.
            Err(error) => tracing::debug!(%error, "the ends of followed streams could not be looked up"),
        }
    }
}
