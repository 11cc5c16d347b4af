//! What other nodes append to followed streams, and how far they let streams hold payloads: a low-rate look into the
//! catalog that they share.
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

use super::{Records, disagreement, holds};

/// How long what another node appended may go unnoticed, at most, beside the query itself: five looks a second cost the
/// database less than a thousandth of a core.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Each fifth look asks for floors, too: payloads may stay a second longer.
const LOOKS_A_FLOOR: u32 = 5;

/// Looks until the server stops.
pub async fn run(records: Arc<Records>) {
    let hub = Arc::clone(records.hub());
    let mut looks = 0_u32;
    while !hub.is_stopping() {
        tokio::time::sleep(LOOK_EVERY).await;
        looks += 1;
        if looks.is_multiple_of(LOOKS_A_FLOOR) {
            holds::look(&records).await;
        }
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
