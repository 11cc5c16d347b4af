//! The client's deadline, as gRPC sends it (`grpc-timeout`, relative), turned into two moments of ours.
//!
//! ```text
//! arrival ---------------- shard gives its answer --- handler gives up --- the client (and tonic) cut the call
//!         timeout - margin                         +margin/2            +margin/2
//! ```
//!
//! The answer to a deadline must still reach the client: a full tier owes a breakdown, a BEST_EFFORT promotion owes
//! the present descriptor (behaviour.md). An answer given at the very moment of the deadline loses that race, and
//! tonic's own layer would answer CANCELLED (`dispatch` sees to that it never does). So shards are given a deadline that is earlier by a small margin.

use std::time::Duration;

use payload_reactor::clock;
use payload_types::{ErrorKind, Monotonic, PayloadError};
use tonic::codegen::http::HeaderMap;
use tonic::metadata::MetadataMap;

/// The share of a timeout that is kept back for the answer's way, and the most it may be: an eighth of 200 ms is
/// 25 ms, and nobody needs more than 100 ms to receive an answer over loopback.
const MARGIN_SHARE: u32 = 8;
/// See [`MARGIN_SHARE`].
const MARGIN_MAX: Duration = Duration::from_millis(100);

/// Where gRPC carries it.
const HEADER: &str = "grpc-timeout";

/// gRPC allows eight digits (PROTOCOL-HTTP2, "TimeoutValue").
const TIMEOUT_DIGITS_MAX: usize = 8;

/// When the shard must have answered, and when the handler stops waiting for it.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    /// What the shard is told.
    pub shard: Monotonic,
    /// When the handler answers by itself; `None`: it waits for the shard, however long its work takes.
    pub give_up: Option<tokio::time::Instant>,
}

impl Deadline {
    /// The deadline that the request's metadata states; `None` where there is none, or none that can be read (tonic
    /// ignores those as well).
    pub fn of(metadata: &MetadataMap) -> Option<Self> {
        let text = metadata.get(HEADER)?.to_str().ok()?;
        timeout_parse(text).map(Self::after)
    }

    /// The deadline of a call that arrived now and may take `timeout`.
    pub fn after(timeout: Duration) -> Self {
        let margin = (timeout / MARGIN_SHARE).min(MARGIN_MAX);
        let shard_in = timeout - margin;
        let nanos = u64::try_from(shard_in.as_nanos()).unwrap_or(u64::MAX);
        Self {
            shard: Monotonic(clock::monotonic().0.saturating_add(nanos)),
            give_up: Some(tokio::time::Instant::now() + shard_in + margin / 2),
        }
    }

    /// How long the work of a call may go on: as long as the call, or, when it has a request id (`has_id`), as long as its
    /// shard takes; whoever calls again with that id gets its answer.
    pub fn of_work(self, has_id: bool) -> Self {
        let give_up = if has_id { None } else { self.give_up };
        Self { give_up, ..self }
    }

    /// A limit of the server's own on how long a shard lets a call wait, for a client that set none.
    pub fn of_server(wait_ms: u64) -> Self {
        Self { shard: clock::monotonic().plus_millis(wait_ms), give_up: None }
    }
}

/// How long a call may take, by its headers.
pub fn timeout_of(headers: &HeaderMap) -> Option<Duration> {
    timeout_parse(headers.get(HEADER)?.to_str().ok()?)
}

/// The answer to a call whose deadline has passed.
pub fn late() -> PayloadError {
    PayloadError::new(
        ErrorKind::DeadlineExceeded,
        "the deadline passed before the server had an answer; whether a change was made is not known: look, or call again with more time",
    )
}

/// Reads `TimeoutValue TimeoutUnit` of the gRPC protocol.
fn timeout_parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > TIMEOUT_DIGITS_MAX || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_timeouts_as_grpc_writes_them_when_parsed_then_their_length() {
        for (text, millis) in [("3H", 10_800_000), ("1M", 60_000), ("42S", 42_000), ("250m", 250)] {
            assert_eq!(timeout_parse(text), Some(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(timeout_parse("7000000n"), Some(Duration::from_millis(7)));
        assert_eq!(timeout_parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
    }

    #[test]
    fn given_nonsense_when_parsed_then_no_deadline() {
        for text in ["", "S", "82f", "123456789S", "oneH", "-1S", "+1S", "1é"] {
            assert_eq!(timeout_parse(text), None, "{text}");
        }
    }

    #[test]
    fn given_a_timeout_when_split_then_the_shard_answers_first_and_both_before_the_client_gives_up() {
        let before = clock::monotonic();
        let start = tokio::time::Instant::now();
        let deadline = Deadline::after(Duration::from_millis(800));
        assert!(deadline.shard.millis_since(before) >= 700);
        assert!(deadline.give_up.expect("a client's deadline") > start + Duration::from_millis(700));
        // The clocks were read a moment apart; a second of slack never hides a missing margin of a longer timeout.
        let long = Deadline::after(Duration::from_secs(3600));
        assert!(long.give_up.expect("a client's") < tokio::time::Instant::now() + Duration::from_secs(3600));
    }
}
