//! How much is under way to a store at once, and whether it is worth asking at all.
//!
//! ```text
//! part --acquire--> [permits: 1..=parts_in_flight, fewer when throttled] --answer--> succeeded | failed --> breaker
//! operation --admit--> refused at once while the store is left alone
//! ```
//! A permit stands for a part's memory and for its request, and lives as long as its buffer does: what is under way is never
//! more than `parts_in_flight` x `part_bytes`. The limit is halved when the store throttles, at most twice a second, and grows by
//! one for as many successes as it has permits (AIMD). After [`FAILURES_MAX`] failures in a row new operations are refused until a
//! pause is over, which doubles; then one is let through. Those under way wait for the pause and go on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{AcquireError, Semaphore};

use super::error::{ObjectError, ObjectErrorKind};

/// Failures in a row after which the store is left alone: more than one broken connection of each of a few parts.
const FAILURES_MAX: u32 = 8;
/// Between two cuts of the limit: answers of requests that were under way at the first say nothing new.
const CUT_PAUSE: Duration = Duration::from_millis(500);
/// How long the store counts as throttling after it last did.
const THROTTLED_FOR: Duration = Duration::from_secs(5);
/// A request that takes longer makes the store slow.
const SLOW_AFTER: Duration = Duration::from_secs(10);
/// The first pause of the breaker, and its longest.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// How a store does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ObjectState {
    /// Answers, and in time.
    #[default]
    Good,
    /// The last request took longer than ten seconds.
    Slow,
    /// It asked for fewer requests within the last five seconds.
    Throttling,
    /// It failed several times in a row: new operations are refused for a while.
    Unreachable,
    /// It refuses what is configured: `error` says which key to change. Operations are tried all the same.
    Refused,
}

/// What is reported of a store: counts are since the start.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ObjectHealth {
    /// How it does.
    pub state: ObjectState,
    /// Why, unless it is good; and what the last request failed with, until one succeeds.
    pub error: String,
    /// `Unreachable`: when the next operation is let through.
    pub retry_ms: u64,
    /// How many parts may be under way now.
    pub parts_limit: usize,
    /// How many are.
    pub parts_in_flight: usize,
    /// The most there ever were.
    pub parts_in_flight_max: usize,
    /// Requests on the wire.
    pub requests_total: u64,
    /// Attempts that failed, and were worth another.
    pub failures_total: u64,
    /// Of those: 503 and 429.
    pub throttled_total: u64,
    /// Operations refused because the store is left alone.
    pub refused_total: u64,
    /// Requests slower than ten seconds.
    pub slow_total: u64,
    /// Bytes of payloads that were stored, and fetched: as on the wire.
    pub stored_bytes_total: u64,
    /// See `stored_bytes_total`.
    pub fetched_bytes_total: u64,
    /// The store's clock less ours.
    pub clock_skew_ms: i64,
}

struct State {
    limit: usize,
    /// Permits to take away when they come back.
    owed: usize,
    in_flight: usize,
    /// Successes since the limit last changed.
    good: usize,
    cut_at: Option<Instant>,
    throttled_at: Option<Instant>,
    failures: u32,
    pause: Duration,
    closed_until: Option<Instant>,
    is_slow: bool,
    is_refused: bool,
    error: String,
    health: ObjectHealth,
    /// Buffers to be used again, while parts are under way.
    buffers: Vec<Vec<u8>>,
}

impl State {
    /// The store is up, whatever it said.
    fn answered(&mut self) {
        if self.closed_until.take().is_some() {
            tracing::info!("the object store answers again");
        }
        self.failures = 0;
        self.pause = PAUSE_MIN;
    }
}

/// See the module's description.
pub(crate) struct Gate {
    permits: Arc<Semaphore>,
    limit_max: usize,
    state: Mutex<State>,
}

/// Room for one part.
pub(crate) struct Permit {
    gate: Arc<Gate>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.in_flight -= 1;
        if state.in_flight == 0 {
            state.buffers.clear();
        }
        if state.owed > 0 {
            state.owed -= 1;
        } else {
            self.gate.permits.add_permits(1);
        }
    }
}

/// A part's memory, and its permit. Both go back when nobody has the bytes any more.
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    permit: Permit,
}

impl Buffer {
    /// Memory for a part: its length is `length`, its contents are whatever they were.
    pub(crate) fn of(permit: Permit, length: usize) -> Self {
        let mut bytes = permit.gate.lock().buffers.pop().unwrap_or_default();
        bytes.resize(length, 0);
        Self { bytes, permit }
    }

    pub(crate) fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// To be sent, without a copy.
    pub(crate) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut state = self.permit.gate.lock();
        if state.buffers.len() < self.permit.gate.limit_max {
            state.buffers.push(std::mem::take(&mut self.bytes));
        }
    }
}

impl Gate {
    pub(crate) fn new(parts_in_flight: usize) -> Arc<Self> {
        let limit = parts_in_flight.max(1);
        Arc::new(Self {
            permits: Arc::new(Semaphore::new(limit)),
            limit_max: limit,
            state: Mutex::new(State {
                limit,
                owed: 0,
                in_flight: 0,
                good: 0,
                cut_at: None,
                throttled_at: None,
                failures: 0,
                pause: PAUSE_MIN,
                closed_until: None,
                is_slow: false,
                is_refused: false,
                error: String::new(),
                health: ObjectHealth::default(),
                buffers: Vec::new(),
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room for one part. The order of those who wait is that of their asking.
    pub(crate) async fn acquire(self: &Arc<Self>) -> Result<Permit, ObjectError> {
        let permit = self.permits.acquire().await.map_err(|_: AcquireError| stopping())?;
        permit.forget();
        let mut state = self.lock();
        state.in_flight += 1;
        state.health.parts_in_flight_max = state.health.parts_in_flight_max.max(state.in_flight);
        drop(state);
        Ok(Permit { gate: Arc::clone(self) })
    }

    /// Nobody gets a permit any more.
    pub(crate) fn close(&self) {
        self.permits.close();
    }

    /// Whether an operation may begin.
    ///
    /// # Errors
    /// `Unavailable` while the store is left alone.
    pub(crate) fn admit(&self) -> Result<(), ObjectError> {
        let mut state = self.lock();
        let Some(until) = state.closed_until else { return Ok(()) };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // This one tries; the others wait for how it ends.
            state.closed_until = Some(Instant::now() + state.pause);
            return Ok(());
        }
        state.health.refused_total += 1;
        let message =
            format!("the object store is left alone for another {} ms: {}", left.as_millis(), state.error);
        Err(ObjectError::new(ObjectErrorKind::Unavailable, message))
    }

    /// How much longer the store is left alone.
    pub(crate) fn pause_left(&self) -> Duration {
        let until = self.lock().closed_until;
        until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }

    pub(crate) fn succeeded(&self, took: Duration) {
        let mut state = self.lock();
        state.answered();
        state.is_refused = false;
        state.is_slow = took > SLOW_AFTER;
        if state.is_slow {
            state.health.slow_total += 1;
            state.error = format!("the last request took {took:?}");
        }
        state.good += 1;
        if state.good >= state.limit && state.limit < self.limit_max {
            state.good = 0;
            state.limit += 1;
            if state.owed > 0 {
                state.owed -= 1;
            } else {
                self.permits.add_permits(1);
            }
        }
    }

    /// An attempt failed.
    pub(crate) fn failed(&self, error: &ObjectError) {
        let (mut state, now) = (self.lock(), Instant::now());
        match error.kind {
            ObjectErrorKind::Throttled => {
                state.health.failures_total += 1;
                state.health.throttled_total += 1;
                state.throttled_at = Some(now);
                state.error.clone_from(&error.message);
                if state.cut_at.is_none_or(|cut| now.duration_since(cut) >= CUT_PAUSE) {
                    state.cut_at = Some(now);
                    self.cut(&mut state);
                }
            }
            ObjectErrorKind::Unavailable => {
                state.health.failures_total += 1;
                state.error.clone_from(&error.message);
                state.failures = state.failures.saturating_add(1);
                let is_open = state.closed_until.is_some_and(|until| until > now);
                if state.failures >= FAILURES_MAX && !is_open {
                    if state.closed_until.is_none() {
                        tracing::warn!(
                            "the object store is left alone for {:?}: {}",
                            state.pause,
                            state.error
                        );
                    }
                    state.closed_until = Some(now + state.pause);
                    state.pause = (state.pause * 2).min(PAUSE_MAX);
                }
            }
            ObjectErrorKind::Refused | ObjectErrorKind::Config => {
                if !state.is_refused {
                    tracing::error!("the object store refuses: {}", error.message);
                }
                state.answered();
                state.is_refused = true;
                state.error.clone_from(&error.message);
            }
            // About one object, not about the store: it is up.
            ObjectErrorKind::Missing
            | ObjectErrorKind::Changed
            | ObjectErrorKind::Conflict
            | ObjectErrorKind::Full => state.answered(),
            ObjectErrorKind::Corrupt
            | ObjectErrorKind::Source
            | ObjectErrorKind::Destination
            | ObjectErrorKind::Busy
            | ObjectErrorKind::Stopping => {}
        }
    }

    fn cut(&self, state: &mut State) {
        let limit = (state.limit / 2).max(1);
        for _ in limit..state.limit {
            match self.permits.try_acquire() {
                Ok(permit) => permit.forget(),
                Err(_) => state.owed += 1,
            }
        }
        state.limit = limit;
        state.good = 0;
    }

    pub(crate) fn stored(&self, bytes: u64) {
        self.lock().health.stored_bytes_total += bytes;
    }

    pub(crate) fn fetched(&self, bytes: u64) {
        self.lock().health.fetched_bytes_total += bytes;
    }

    pub(crate) fn health(&self) -> ObjectHealth {
        let (state, now) = (self.lock(), Instant::now());
        let left = state.closed_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        let is_throttled = state.throttled_at.is_some_and(|at| now.duration_since(at) < THROTTLED_FOR);
        let told = if state.is_refused {
            ObjectState::Refused
        } else if state.closed_until.is_some() {
            ObjectState::Unreachable
        } else if is_throttled {
            ObjectState::Throttling
        } else if state.is_slow {
            ObjectState::Slow
        } else {
            ObjectState::Good
        };
        ObjectHealth {
            state: told,
            error: if told == ObjectState::Good && state.failures == 0 {
                String::new()
            } else {
                state.error.clone()
            },
            retry_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            parts_limit: state.limit,
            parts_in_flight: state.in_flight,
            ..state.health.clone()
        }
    }
}

pub(crate) fn stopping() -> ObjectError {
    ObjectError::new(ObjectErrorKind::Stopping, "the server is stopping; ask again when it runs")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
    }

    fn error(kind: ObjectErrorKind) -> ObjectError {
        ObjectError::new(kind, "as told")
    }

    #[test]
    fn given_a_throttled_store_when_it_recovers_then_the_limit_is_halved_and_grows_back() {
        let gate = Gate::new(8);
        gate.failed(&error(ObjectErrorKind::Throttled));
        gate.failed(&error(ObjectErrorKind::Throttled));
        assert_eq!(
            (gate.health().parts_limit, gate.health().state),
            (4, ObjectState::Throttling),
            "one cut, not two"
        );
        for _ in 0..4 + 5 + 6 + 7 {
            gate.succeeded(Duration::ZERO);
        }
        assert_eq!(gate.health().parts_limit, 8);
        let held: Vec<Permit> = runtime()
            .block_on(async { futures_util::future::join_all((0..8).map(|_| gate.acquire())).await })
            .into_iter()
            .map(|permit| permit.expect("open"))
            .collect();
        assert_eq!((held.len(), gate.permits.available_permits()), (8, 0));
    }

    #[test]
    fn given_permits_under_way_when_the_limit_is_cut_then_they_are_taken_away_as_they_come_back() {
        let gate = Gate::new(4);
        let held = runtime().block_on(async {
            [gate.acquire().await, gate.acquire().await, gate.acquire().await, gate.acquire().await]
        });
        gate.failed(&error(ObjectErrorKind::Throttled));
        drop(held);
        assert_eq!((gate.permits.available_permits(), gate.health().parts_in_flight), (2, 0));
    }

    #[test]
    fn given_failures_in_a_row_when_there_are_enough_then_operations_are_refused_until_one_succeeds() {
        let gate = Gate::new(4);
        for _ in 0..FAILURES_MAX {
            gate.admit().expect("let through");
            gate.failed(&error(ObjectErrorKind::Unavailable));
        }
        let refused = gate.admit().expect_err("left alone");
        assert_eq!(refused.kind, ObjectErrorKind::Unavailable);
        assert_eq!((gate.health().state, gate.health().refused_total), (ObjectState::Unreachable, 1));
        gate.succeeded(Duration::ZERO);
        gate.admit().expect("it answers again");
        assert_eq!(gate.health().state, ObjectState::Good);
    }

    #[test]
    fn given_a_store_that_was_left_alone_when_it_answers_no_then_it_is_up() {
        for kind in [ObjectErrorKind::Missing, ObjectErrorKind::Conflict, ObjectErrorKind::Refused] {
            let gate = Gate::new(4);
            for _ in 0..FAILURES_MAX {
                gate.failed(&error(ObjectErrorKind::Unavailable));
            }
            gate.admit().expect_err("left alone");
            gate.failed(&error(kind));
            gate.admit().expect("it answered");
        }
    }

    #[test]
    fn given_errors_about_one_object_when_counted_then_the_store_is_as_good_as_before() {
        let gate = Gate::new(4);
        for _ in 0..100 {
            gate.failed(&error(ObjectErrorKind::Missing));
            gate.failed(&error(ObjectErrorKind::Corrupt));
        }
        gate.admit().expect("let through");
        assert_eq!(gate.health(), ObjectHealth { parts_limit: 4, ..ObjectHealth::default() });
    }

    #[test]
    fn given_a_buffer_when_its_last_reader_lets_go_then_memory_and_permit_come_back() {
        let gate = Gate::new(2);
        let permit = runtime().block_on(gate.acquire()).expect("open");
        let bytes = Buffer::of(permit, 4096).into_bytes();
        let again = bytes.clone();
        drop(bytes);
        assert_eq!(gate.health().parts_in_flight, 1, "a retry may still need it");
        drop(again);
        assert_eq!((gate.health().parts_in_flight, gate.permits.available_permits()), (0, 2));
        assert!(gate.lock().buffers.is_empty(), "nothing is kept when nothing is under way");
    }
}
