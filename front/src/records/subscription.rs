//! One subscriber of a stream: a walk along its entries that waits at the end.
//!
//! ```text
//! poll --> buffer --empty--> read the next entries --none--> wait for a knock (hub), for the stop --> read again
//! ```
//!
//! The stream is pulled: nothing is read before what was read is sent, so `max_inflight` entries, and no more than fit into
//! one answer, are all that a slow subscriber makes the server hold. Where retention has passed it, it goes on with the
//! oldest that is kept. The stream that was found at the start is the one that is followed: one of the same name that was
//! made later is another.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use payload_reactor::clock;
use payload_types::limits::STORED_INTEGER_MAX;
use payload_types::record::{RecordAnswer, RecordQuery};
use payload_types::{ErrorKind, PayloadError};
use payload_wire::decode::SubscribeParts;
use payload_wire::encode;
use payload_wire::pb::runtime::v1 as pb;

use super::hub::Listener;
use super::{Records, disagreement, stream_absent};
use crate::deadline::Deadline;

/// Readers that have no room for another question are asked again after so long.
const FULL_PAUSE: Duration = Duration::from_millis(20);

/// See the module.
pub struct Subscription {
    records: Arc<Records>,
    listener: Listener,
    incarnation: u64,
    /// The next offset to read.
    next: u64,
    inflight_max: usize,
    buffer: VecDeque<pb::StreamEntry>,
    /// Nothing was left when it last read.
    is_at_end: bool,
}

impl Subscription {
    /// Starts to follow a stream.
    ///
    /// # Errors
    /// NOT_FOUND when there is none; RESOURCE_EXHAUSTED when too many are followed; those of [`Records::query`].
    pub async fn start(
        records: Arc<Records>,
        parts: SubscribeParts,
        deadline: Option<Deadline>,
    ) -> Result<Self, PayloadError> {
        let SubscribeParts { stream, start, inflight_max } = parts;
        // Before the first look at the stream: what comes after it is heard.
        let listener = records.hub().listen(&stream)?;
        if listener.is_stopping() {
            return Err(stopping());
        }
        let info = match records.query(RecordQuery::Stream(stream.clone()), deadline).await? {
            RecordAnswer::Stream(info) => info,
            RecordAnswer::StreamNotFound => return Err(stream_absent(&stream)),
            other => return Err(disagreement("Subscribe", &other)),
        };
        Ok(Self {
            records,
            listener,
            incarnation: info.incarnation,
            next: start.unwrap_or(info.end),
            inflight_max,
            buffer: VecDeque::new(),
            is_at_end: false,
        })
    }

    /// The next entry, once there is one.
    ///
    /// # Errors
    /// NOT_FOUND when the stream was deleted, UNAVAILABLE when the server stops; those of [`Records::query`].
    pub async fn next(&mut self) -> Result<pb::StreamEntry, PayloadError> {
        loop {
            if self.listener.is_stopping() {
                return Err(stopping());
            }
            if let Some(entry) = self.buffer.pop_front() {
                return Ok(entry);
            }
            if self.is_at_end {
                self.listener.wait().await;
            }
            self.read().await?;
        }
    }

    /// Reads what comes next into the buffer.
    async fn read(&mut self) -> Result<(), PayloadError> {
        self.listener.forget();
        let query = RecordQuery::StreamRead {
            stream: self.listener.stream().clone(),
            from: self.next,
            to: STORED_INTEGER_MAX,
            not_before: None,
            entries_max: self.inflight_max,
            at: clock::now().wall,
        };
        let (info, entries, more) = match self.records.query(query, None).await {
            Ok(RecordAnswer::Entries(info, entries, more)) => (info, entries, more),
            Ok(RecordAnswer::StreamNotFound) => return Err(self.deleted()),
            Ok(other) => return Err(disagreement("Subscribe", &other)),
            Err(error) if error.kind == ErrorKind::ResourceExhausted => {
                tokio::time::sleep(FULL_PAUSE).await;
                self.is_at_end = false;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if info.incarnation != self.incarnation {
            return Err(self.deleted());
        }
        let (shown, complete) = encode::stream_entries(self.listener.stream(), entries);
        if let Some(last) = shown.last() {
            self.next = last.offset + 1;
        }
        self.is_at_end = complete && !more;
        self.buffer.extend(shown);
        Ok(())
    }

    fn deleted(&self) -> PayloadError {
        let stream = self.listener.stream();
        PayloadError::new(
            ErrorKind::NotFound,
            format!(
                "stream `{}` in namespace `{}` was deleted; what was not delivered is gone with it",
                stream.name, stream.namespace
            ),
        )
    }
}

fn stopping() -> PayloadError {
    PayloadError::new(
        ErrorKind::Unavailable,
        "the server is stopping; subscribe again once it is back, from the offset behind the last entry that came",
    )
}
