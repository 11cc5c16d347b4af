//! Answers what waits behind a store that does not answer.
//!
//! ```text
//!  [FIFO] --> worker: busy ---- apply, flush, sweep ... no answer ----------------> progress
//!     \------> watch:    looks ... looks ... patience is over: refuses what waits --|
//! ```
//!
//! The worker's thread is inside the store then, perhaps with a group in doubt, and stays there until the store says how
//! that ended. What is queued behind was not begun, so it can be refused at once; a store that is away for an hour holds
//! back one group, and everybody else hears in time. The lock orders both: once the worker has made progress nothing more
//! is taken from the queue here, so that a change is never refused after a later one was begun.
//!
//! Owned by [`super::Writer`]; the worker calls `busy`, `progress` and `idle`, and nobody else does.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;

use super::{AckSink, Message};

/// Nobody is refused before the store was silent for so long, however impatient the writer is: a sync of a busy disk
/// takes as long.
const SILENCE_MIN: Duration = Duration::from_secs(1);

/// Looks in the time that is waited: what waits is refused a quarter of it late at most. They cost an active or idle
/// server one short wake-up in 1.25 s.
const LOOKS: u32 = 4;

/// How often the queue is emptied while the store is silent: as long as a refusal waits.
const REFUSE_EVERY: Duration = Duration::from_millis(20);

/// What the two threads tell each other.
#[derive(Default)]
pub(super) struct Watch {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Since when the worker has been with the store; `None`: it waits for something to do.
    busy_since: Option<Instant>,
    /// The order to stop was taken from the queue here.
    stop_taken: bool,
    /// The worker has ended.
    ended: bool,
}

/// Ends the watch when dropped, also by a panic of the worker.
pub(super) struct Standing<'watch>(&'watch Watch);

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        self.0.state().ended = true;
        self.0.changed.notify_one();
    }
}

impl Watch {
    /// Starts the watch over `receiver`, which ends when what is returned is dropped.
    pub(super) fn start<'scope, 'env>(
        &'env self,
        scope: &'scope thread::Scope<'scope, 'env>,
        receiver: Receiver<Message>,
        sink: AckSink,
        patience: Duration,
    ) -> Standing<'env> {
        let stand = move || self.stand(&receiver, &sink, patience.max(SILENCE_MIN));
        thread::Builder::new()
            .name("catalog-watch".to_owned())
            .spawn_scoped(scope, stand)
            .expect("the system has room for one more thread at start");
        Standing(self)
    }

    /// The worker waits for something to do. True when it is to stop.
    pub(super) fn idle(&self) -> bool {
        let mut state = self.state();
        state.busy_since = None;
        state.stop_taken
    }

    /// The worker has something to do with the store.
    pub(super) fn busy(&self) {
        self.state().busy_since.get_or_insert_with(Instant::now);
    }

    /// The store has answered: what is queued now may be taken.
    pub(super) fn progress(&self) {
        self.state().busy_since = Some(Instant::now());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding this")
    }

    fn stand(&self, receiver: &Receiver<Message>, sink: &AckSink, silence: Duration) {
        let mut told = false;
        let mut state = self.state();
        while !state.ended {
            let silent_for = state.busy_since.map_or(Duration::ZERO, |since| since.elapsed());
            let is_silent = silent_for >= silence;
            if is_silent && !told {
                tracing::error!(
                    seconds = silent_for.as_secs(),
                    "the catalog's database does not answer; changes that wait for it are refused"
                );
            } else if told && !is_silent {
                tracing::info!("the catalog's database has answered");
            }
            told = is_silent;
            while is_silent && let Ok(message) = receiver.try_recv() {
                match message.refuse(sink) {
                    Refused::Change => {}
                    Refused::Stop => {
                        state.stop_taken = true;
                        break;
                    }
                }
            }
            let pause = if is_silent { REFUSE_EVERY } else { silence / LOOKS };
            let waited = self.changed.wait_timeout(state, pause);
            state = waited.expect("nobody panics while holding this").0;
        }
    }
}

/// What was taken from the queue and not begun.
pub(super) enum Refused {
    Change,
    Stop,
}
