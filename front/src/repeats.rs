//! `x-request-id`: a call that is made again with the same id gets the first one's answer, and nothing is done twice.
//!
//! ```text
//! call with an id --> known: its answer, or wait for it     unknown: a task does the work, and keeps the answer
//! ```
//!
//! The work runs in a task of its own: a client that gives up and calls again finds it going on, or done. Refusals are
//! forgotten, so that the next call tries again; answers are kept for [`KEPT`], the oldest given up first where there
//! are more than [`ANSWERS_MAX`] or [`BYTES_MAX`] of them. A restart forgets all that is kept here; what would do harm when
//! made twice, appends and changes of metadata, the catalog remembers, too ([`RequestId::wrap`]).

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use payload_types::limits::REPEATS_KEPT_MS;
use payload_types::record::RecordChange;
use payload_types::{ErrorKind, PayloadError, WallMs};
use prost::Message;
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use xxhash_rust::xxh3::xxh3_64;

use crate::deadline::{Deadline, late};

/// Where it stands in a request.
const HEADER: &str = "x-request-id";

/// How long an answer is kept (behaviour.md, "Everywhere").
const KEPT: Duration = Duration::from_millis(REPEATS_KEPT_MS);

/// Answers kept: 10 minutes at 100 calls a second. Each with its key takes about 400 bytes beside its own: 26 MiB.
const ANSWERS_MAX: usize = 65_536;

/// What they may weigh together, encoded: 64 of the largest metadata.
const BYTES_MAX: usize = 64 << 20;

/// An id is a UUID as a rule.
const ID_BYTES_MAX: usize = 128;

/// A method, and the id of a call of it.
type CallKey = (&'static str, Box<str>);

/// What a call is known by: its method, its id, and the hash of its request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestId {
    key: CallKey,
    request: u64,
}

impl RequestId {
    /// The id that the metadata of a call of `rpc` carry; `None`: none.
    ///
    /// # Errors
    /// INVALID_ARGUMENT when it is no text, or too long.
    pub fn of(
        rpc: &'static str,
        metadata: &MetadataMap,
        request: &impl Message,
    ) -> Result<Option<Self>, PayloadError> {
        let Some(value) = metadata.get(HEADER) else { return Ok(None) };
        match value.to_str() {
            Ok(id) if !id.is_empty() && id.len() <= ID_BYTES_MAX => {
                Ok(Some(Self { key: (rpc, id.into()), request: xxh3_64(&request.encode_to_vec()) }))
            }
            _ => Err(PayloadError::invalid(format!(
                "{HEADER} is not 1 to {ID_BYTES_MAX} printable ASCII characters; send a UUID"
            ))),
        }
    }
}

impl RequestId {
    /// `change`, made once however often it comes; as it is where the call has no id.
    pub fn wrap(id: Option<&Self>, change: RecordChange, at: WallMs) -> RecordChange {
        match id {
            None => change,
            Some(Self { key: (rpc, id), request }) => {
                let id = format!("{rpc} {id}");
                RecordChange::Once { id, request: *request, at, change: Box::new(change) }
            }
        }
    }
}

/// What a call came to.
type Answer = Result<Arc<dyn Any + Send + Sync>, PayloadError>;

/// Calls that were made with an id. Cheap to clone.
#[derive(Clone, Default)]
pub struct Repeats {
    known: Arc<Mutex<Known>>,
}

#[derive(Default)]
struct Known {
    calls: HashMap<CallKey, KnownCall>,
    /// Of the answers: when each was given, and its weight. Oldest first.
    answered: VecDeque<(Instant, CallKey, usize)>,
    bytes: usize,
}

struct KnownCall {
    request: u64,
    answer: watch::Receiver<Option<Answer>>,
}

impl Repeats {
    /// Does `work`, or gives what a call with the same id came to. Without an id it is just done.
    ///
    /// # Errors
    /// The work's own; DEADLINE_EXCEEDED when it takes longer than the caller waits: it goes on. INVALID_ARGUMENT when the
    /// id was used for another request.
    pub async fn once<T: Message + Clone + 'static>(
        &self,
        id: Option<RequestId>,
        deadline: Option<Deadline>,
        work: impl Future<Output = Result<T, PayloadError>> + Send + 'static,
    ) -> Result<T, PayloadError> {
        self.once_if(id, deadline, |_| true, work).await
    }

    /// As [`Repeats::once`]; an answer of which `kept` is false is given and forgotten, as refusals are.
    ///
    /// # Errors
    /// As [`Repeats::once`].
    pub async fn once_if<T: Message + Clone + 'static>(
        &self,
        id: Option<RequestId>,
        deadline: Option<Deadline>,
        kept: fn(&T) -> bool,
        work: impl Future<Output = Result<T, PayloadError>> + Send + 'static,
    ) -> Result<T, PayloadError> {
        let Some(id) = id else { return work.await };
        let mut answer = self.begin(id, kept, work)?;
        let wait = async {
            // The task that answers holds the sender until it has; it ends without a word only by a panic.
            let gone = |_| {
                PayloadError::new(ErrorKind::Internal, "the call ended without an answer; look what was done")
            };
            let answer = answer.wait_for(Option::is_some).await.map_err(gone)?;
            answer.clone().expect("waited for")
        };
        let answer = match deadline.and_then(|deadline| deadline.give_up) {
            None => wait.await,
            Some(give_up) => tokio::time::timeout_at(give_up, wait).await.map_err(|_late| late())?,
        }?;
        // One method's answers are of one type, and the method is part of the key.
        answer.downcast_ref::<T>().cloned().ok_or_else(|| {
            PayloadError::new(
                ErrorKind::Internal,
                "the answer of another method was kept; please report this",
            )
        })
    }

    /// The answer to come of the call with this id, which is begun if it was not.
    fn begin<T: Message + 'static>(
        &self,
        id: RequestId,
        kept: fn(&T) -> bool,
        work: impl Future<Output = Result<T, PayloadError>> + Send + 'static,
    ) -> Result<watch::Receiver<Option<Answer>>, PayloadError> {
        let mut known = self.known();
        known.forget_old(Instant::now());
        if let Some(call) = known.calls.get(&id.key) {
            if call.request != id.request {
                return Err(PayloadError::invalid(format!(
                    "{HEADER} `{}` was used for another {} before; take a new id for a new request",
                    id.key.1, id.key.0
                )));
            }
            return Ok(call.answer.clone());
        }
        let (sender, receiver) = watch::channel(None);
        known.calls.insert(id.key.clone(), KnownCall { request: id.request, answer: receiver.clone() });
        drop(known);
        let repeats = self.clone();
        tokio::spawn(async move {
            let mut begun = Begun { repeats, key: Some(id.key) };
            let result = work.await;
            begun.ended(result.as_ref().ok().filter(|answer| kept(answer)).map(Message::encoded_len));
            // Whoever waited may have given up.
            sender.send_replace(Some(result.map(|answer| Arc::new(answer) as Arc<dyn Any + Send + Sync>)));
        });
        Ok(receiver)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // What a panic would leave here is whole: each change is one call.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that is being worked on. Forgotten when it ends without an answer, also by a panic.
struct Begun {
    repeats: Repeats,
    key: Option<CallKey>,
}

impl Begun {
    /// It came to an answer of this length; `None`: to a refusal.
    fn ended(&mut self, bytes: Option<usize>) {
        let Some(key) = self.key.take() else { return };
        let mut known = self.repeats.known();
        match bytes {
            None => drop(known.calls.remove(&key)),
            Some(bytes) => {
                known.bytes += bytes;
                known.answered.push_back((Instant::now(), key, bytes));
            }
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.ended(None);
    }
}

impl Known {
    fn forget_old(&mut self, now: Instant) {
        while let Some((since, ..)) = self.answered.front() {
            let is_kept = now.saturating_duration_since(*since) < KEPT;
            if is_kept && self.answered.len() <= ANSWERS_MAX && self.bytes <= BYTES_MAX {
                return;
            }
            if let Some((_, key, bytes)) = self.answered.pop_front() {
                self.bytes -= bytes;
                self.calls.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use payload_wire::pb::runtime::v1::{AppendItem, AppendResponse};

    use super::*;

    fn id(text: &str, request: u64) -> Option<RequestId> {
        Some(RequestId { key: ("Append", text.into()), request })
    }

    /// Counts how often it was done; each time is another answer.
    fn count(done: &Arc<AtomicU64>) -> impl Future<Output = Result<AppendResponse, PayloadError>> + use<> {
        let done = Arc::clone(done);
        async move {
            let first_offset = done.fetch_add(1, Ordering::Relaxed);
            Ok(AppendResponse { first_offset, last_offset: 0 })
        }
    }

    #[tokio::test]
    async fn given_an_id_when_repeated_then_done_once_and_without_one_each_time() {
        let (repeats, done) = (Repeats::default(), Arc::default());
        let first = repeats.once(id("a", 1), None, count(&done)).await.expect("done");
        assert_eq!(repeats.once(id("a", 1), None, count(&done)).await, Ok(first));
        assert_ne!(repeats.once(id("b", 1), None, count(&done)).await, Ok(first));
        assert_ne!(repeats.once(None, None, count(&done)).await, Ok(first));
        assert_eq!(done.load(Ordering::Relaxed), 3);
        let other = repeats.once(id("a", 2), None, count(&done)).await.expect_err("another request");
        assert_eq!(other.kind, ErrorKind::InvalidArgument);
    }

    #[tokio::test]
    async fn given_a_caller_that_gives_up_when_it_calls_again_then_it_gets_what_went_on() {
        let (repeats, done) = (Repeats::default(), Arc::default());
        let (go, going) = tokio::sync::oneshot::channel::<()>();
        let counted = count(&done);
        let slow = async move {
            drop(going.await);
            counted.await
        };
        let soon = Some(Deadline::after(Duration::from_millis(5)));
        let late = repeats.once(id("a", 1), soon, slow).await.expect_err("too slow");
        assert_eq!(late.kind, ErrorKind::DeadlineExceeded);
        go.send(()).expect("it waits");
        let answer = repeats.once(id("a", 1), None, count(&done)).await.expect("done");
        assert_eq!((answer.first_offset, done.load(Ordering::Relaxed)), (0, 1));
    }

    #[tokio::test]
    async fn given_a_refusal_or_a_panic_when_repeated_then_tried_again() {
        let (repeats, done) = (Repeats::default(), Arc::default());
        let refuse = async { Err::<AppendResponse, _>(PayloadError::exhausted("full")) };
        repeats.once(id("a", 1), None, refuse).await.expect_err("refused");
        let panic = async { panic!("on purpose") };
        let died = repeats.once::<AppendResponse>(id("a", 1), None, panic).await.expect_err("died");
        assert_eq!(died.kind, ErrorKind::Internal);
        repeats.once(id("a", 1), None, count(&done)).await.expect("done");
        assert_eq!(done.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn given_an_answer_that_is_not_kept_when_repeated_then_tried_again() {
        let (repeats, done) = (Repeats::default(), Arc::default());
        let kept = |answer: &AppendResponse| answer.first_offset > 0;
        let first = repeats.once_if(id("a", 1), None, kept, count(&done)).await.expect("done");
        let second = repeats.once_if(id("a", 1), None, kept, count(&done)).await.expect("done again");
        let third = repeats.once_if(id("a", 1), None, kept, count(&done)).await.expect("kept");
        assert_eq!((first.first_offset, second.first_offset, third.first_offset), (0, 1, 1));
    }

    #[test]
    fn given_more_answers_than_are_kept_when_looked_at_then_the_oldest_are_forgotten() {
        let now = Instant::now();
        let mut known = Known::default();
        for number in 0..ANSWERS_MAX + 10 {
            let key: CallKey = ("Append", number.to_string().into());
            let (_, answer) = watch::channel(None);
            known.calls.insert(key.clone(), KnownCall { request: 0, answer });
            known.answered.push_back((now, key, 1));
            known.bytes += 1;
        }
        known.forget_old(now);
        assert_eq!((known.calls.len(), known.bytes), (ANSWERS_MAX, ANSWERS_MAX));
        assert!(!known.calls.contains_key(&("Append", "9".into())));
        known.answered.back_mut().expect("many").2 += BYTES_MAX;
        known.bytes += BYTES_MAX;
        known.forget_old(now);
        assert_eq!(known.calls.len(), 0, "one that is too large alone is not kept");
        known.answered.push_back((now, ("Append", "x".into()), 0));
        known.forget_old(now + KEPT);
        assert!(known.answered.is_empty());
    }

    #[test]
    fn given_a_request_with_tags_when_sent_in_another_order_then_it_is_the_same_request() {
        let encoded = |tag: &str| {
            let tags = [(tag.to_owned(), "value".to_owned())].into();
            AppendItem { tags, ..AppendItem::default() }.encode_to_vec()
        };
        let sent = |order: [&str; 3]| {
            let bytes = order.map(encoded).concat();
            let item = AppendItem::decode(bytes.as_slice()).expect("fields may come in any order");
            assert_eq!(item.tags.len(), 3);
            let mut metadata = MetadataMap::new();
            metadata.insert(HEADER, "0190a0b1".parse().expect("ASCII"));
            RequestId::of("Append", &metadata, &item).expect("an id")
        };
        assert_eq!(sent(["a", "b", "c"]), sent(["c", "a", "b"]));
    }

    #[test]
    fn given_ids_when_read_then_text_of_some_length() {
        let read = |value: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert(HEADER, value.parse().expect("ASCII"));
            RequestId::of("Append", &metadata, &AppendResponse::default())
        };
        assert!(read("0190a0b1").expect("an id").is_some());
        assert_eq!(RequestId::of("Append", &MetadataMap::new(), &AppendResponse::default()), Ok(None));
        assert_eq!(read("").expect_err("empty").kind, ErrorKind::InvalidArgument);
        assert!(read(Box::leak("x".repeat(129).into_boxed_str())).is_err());
    }
}
