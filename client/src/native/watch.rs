//! The async flavour: calls that are futures, and the one thread a session that looks for their completions.
//!
//! ```text
//! call_async --publish--> ring        future: polled, takes what is there, else leaves its waker in the lane
//!                                     watcher: while calls are pending, sleeps on the session's futex as a blocking caller
//!                                              does, takes what comes, wakes whose it is
//! ```
//!
//! The server wakes by futex alone (DESIGN §8), which no event loop can wait for; hence a thread. It starts with the first
//! async call, sleeps on a condition variable while none is pending, and then holds nothing of the session, so that
//! dropping the last user ends it.

use std::collections::{BTreeSet, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use payload_local::layout::RING_ENTRIES;
use payload_local::{Op, Outcome, Submission};

use crate::error::ClientError;
use crate::native::lane::Answer;
use crate::native::session::{Call, Session};

/// How often a full ring is tried again: 256 calls of one shard are unanswered then.
const ROOM_AGAIN: Duration = Duration::from_millis(1);

/// Wakes the watcher when calls are pending.
#[derive(Debug, Default)]
pub(super) struct Watch {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    pending: usize,
    is_started: bool,
    is_over: bool,
}

/// A call whose answer a task waits for. Dropping it undoes what it brings.
#[derive(Debug)]
pub struct Pending(Call<Arc<Session>>);

impl Session {
    /// Asks, and waits for the answer without blocking the thread.
    ///
    /// # Errors
    /// As [`Session::call`].
    pub async fn call_async(self: &Arc<Self>, submission: &Submission) -> Answer {
        self.begin(submission).await?.await
    }

    /// [`Session::call_many`] of a task.
    ///
    /// # Errors
    /// As [`Session::call_many`].
    pub async fn call_many_async(
        self: &Arc<Self>,
        submissions: &[Submission],
    ) -> Result<Vec<Answer>, ClientError> {
        let mut answers = Vec::with_capacity(submissions.len());
        let mut waiting = VecDeque::with_capacity(submissions.len().min(RING_ENTRIES));
        let mut unrung = BTreeSet::new();
        for submission in submissions {
            // As in `call_many`: nobody waits for room while answers of his own are untaken.
            let published = loop {
                if let Some(published) = self.publish_unrung(submission, true)? {
                    break published;
                }
                unrung.iter().for_each(|shard| self.ring(*shard));
                unrung.clear();
                match waiting.pop_front() {
                    Some(oldest) => answers.push(oldest.await),
                    None => tokio::time::sleep(ROOM_AGAIN).await,
                }
            };
            unrung.insert(published.0);
            waiting.push_back(self.pending(published, submission.op())?);
        }
        unrung.iter().for_each(|shard| self.ring(*shard));
        for call in waiting {
            answers.push(call.await);
        }
        Ok(answers)
    }

    /// Asks, and returns what to wait for.
    ///
    /// # Errors
    /// As [`Session::submit`].
    pub(crate) async fn begin(self: &Arc<Self>, submission: &Submission) -> Result<Pending, ClientError> {
        loop {
            match self.publish_now(submission, true)? {
                Some(published) => return self.pending(published, submission.op()),
                None => tokio::time::sleep(ROOM_AGAIN).await,
            }
        }
    }

    fn pending(self: &Arc<Self>, published: (u16, u32), op: Op) -> Result<Pending, ClientError> {
        let call = Call::of(Arc::clone(self), published, op);
        self.watch().begin(self)?;
        Ok(Pending(call))
    }
}

impl Pending {
    /// [`Call::wait_accepted`] of a task.
    ///
    /// # Errors
    /// As [`Call::wait_accepted`].
    pub(crate) async fn accepted(&self) -> Result<Option<Outcome>, ClientError> {
        poll_fn(|context| self.0.poll_accepted(context.waker())).await
    }
}

impl Future for Pending {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        self.0.poll_answer(context.waker())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // The call itself is undone after this, if nobody took its answer.
        let session = self.0.session();
        if session.watch().end() {
            session.poke();
        }
    }
}

impl Watch {
    /// One more call is pending.
    fn begin(&self, session: &Arc<Session>) -> Result<(), ClientError> {
        let mut state = self.lock();
        if !state.is_started {
            let (weak, watch) = (Arc::downgrade(session), Arc::clone(session.watch()));
            std::thread::Builder::new()
                .name("payload-native".to_owned())
                .spawn(move || watch.run(&weak))
                .map_err(|reason| ClientError::Io { what: "cannot start a thread", reason })?;
            state.is_started = true;
        }
        state.pending += 1;
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// One less. True when it was the last.
    fn end(&self) -> bool {
        let mut state = self.lock();
        state.pending = state.pending.saturating_sub(1);
        state.pending == 0
    }

    /// The session is gone.
    pub(super) fn stop(&self) {
        self.lock().is_over = true;
        self.changed.notify_one();
    }

    fn run(&self, session: &Weak<Session>) {
        loop {
            let mut state = self.lock();
            while state.pending == 0 && !state.is_over {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            drop(state);
            // Upgraded for one sleep at a time; the futures that wait hold it longer.
            let Some(session) = session.upgrade() else { return };
            session.sleep_once();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that is done under it panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
