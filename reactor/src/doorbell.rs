//! How one thread sleeps until another has put something into a queue for it, without a wake that gets lost and
//! without a system call while it is awake.
//!
//! ```text
//!   sender                          sleeper
//!   put the message in a queue      sleeping = true
//!   full fence                      full fence
//!   sleeping? then wake             any queue not empty? then do not sleep
//! ```
//! Of two threads that each write, fence and read what the other wrote, at least one sees the other's write. So
//! either the sender sees `sleeping` and wakes, or the sleeper sees the message: a wake is never lost. A sender
//! pays one fence and one load of a line that nobody writes while the sleeper is awake; the wake itself (a
//! FUTEX_WAKE inside [`Thread::unpark`]) is paid once per sleep, by whoever swaps the flag first.
//!
//! A shard with native sessions sleeps differently: on an epoll of the sessions' eventfds and one of its own, which
//! senders write instead of unparking. Its clients see in the node page that it sleeps, which the same fence covers.

use std::io;
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};
use std::thread::Thread;
use std::time::Duration;

use payload_local::wake;
use payload_types::Monotonic;

use crate::clock;
use crate::sys::poll::{Bell, Poll, Trigger};

/// Not asleep, nor about to be.
const AWAKE: u8 = 0;
/// Woken by unparking.
const PARKED: u8 = 1;
/// Woken by the bell among the descriptors that it waits for.
const POLLING: u8 = 2;

/// One sleeper's bell. Any thread may ring it; exactly one thread, the first that [adopts](Doorbell::adopt) it,
/// may sleep on it.
#[derive(Default)]
pub struct Doorbell {
    /// Not [`AWAKE`]: the sleeper is about to sleep, or sleeps; whoever resets it owes it a wake.
    sleep: AtomicU8,
    /// Set before `sleep` is set for the first time.
    sleeper: OnceLock<Thread>,
    /// Set before the first sleep among descriptors.
    watch: OnceLock<Watch>,
}

/// The descriptors among which a shard with sessions sleeps.
pub(crate) struct Watch {
    poll: Poll,
    bell: Bell,
}

impl Watch {
    fn new() -> io::Result<Self> {
        let watch = Self { poll: Poll::new()?, bell: Bell::new()? };
        watch.poll.add(watch.bell.as_fd(), 0, Trigger::Edge)?;
        Ok(watch)
    }

    /// Wakes the sleeper when a client rings this bell, until [`Watch::remove`]. From any thread.
    pub(crate) fn add(&self, bell: &Bell) -> io::Result<()> {
        self.poll.add(bell.as_fd(), 0, Trigger::Edge)
    }

    /// Undoes [`Watch::add`].
    pub(crate) fn remove(&self, bell: &Bell) {
        self.poll.remove(bell.as_fd());
    }
}

impl Doorbell {
    /// Makes the calling thread the sleeper.
    ///
    /// # Panics
    /// When another thread adopted it before.
    pub fn adopt(&self) {
        let owner = self.sleeper.get_or_init(std::thread::current).id();
        assert!(owner == std::thread::current().id(), "a doorbell has one sleeper");
    }

    /// True on the sleeper's own thread.
    pub fn is_own(&self) -> bool {
        self.sleeper.get().is_some_and(|owner| owner.id() == std::thread::current().id())
    }

    /// Called after something was put where the sleeper's `has_work` looks.
    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.sleep.load(Ordering::Relaxed) == AWAKE {
            return;
        }
        match self.sleep.swap(AWAKE, Ordering::AcqRel) {
            PARKED => {
                if let Some(sleeper) = self.sleeper.get() {
                    sleeper.unpark();
                }
            }
            POLLING => {
                if let Some(watch) = self.watch.get() {
                    watch.bell.ring();
                }
            }
            _ => {}
        }
    }

    /// What [`Doorbell::sleep_watching`] waits for; made at the first call.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub(crate) fn watch(&self) -> io::Result<&Watch> {
        if self.watch.get().is_none() {
            // Of two threads at the same time one makes it in vain.
            let _ = self.watch.set(Watch::new()?);
        }
        Ok(self.watch.get().expect("set above, or before"))
    }

    /// As [`Doorbell::sleep`], woken also by every bell that its [`Watch`] was told to add; `sleeping` is what clients
    /// look at before they ring theirs. Timers are late by up to a millisecond.
    ///
    /// # Panics
    /// When the calling thread has not adopted the bell, or nobody asked for the watch.
    pub(crate) fn sleep_watching(
        &self,
        until: Option<Monotonic>,
        sleeping: &AtomicU64,
        has_work: impl FnOnce() -> bool,
    ) {
        assert!(self.is_own(), "only the thread that adopted a doorbell sleeps on it");
        let watch = self.watch.get().expect("a shard has sessions only after its watch was made");
        self.sleep.store(POLLING, Ordering::Relaxed);
        // Its fence orders both words before the look at the work.
        wake::server_doze(sleeping);
        if !has_work() {
            let left_ns = until.map(|until| until.0.saturating_sub(clock::monotonic().0));
            let timeout_ms = left_ns.map(|left_ns| left_ns.div_ceil(1_000_000));
            // What rang does not matter: the next turn looks everywhere.
            let _ = watch.poll.wait(timeout_ms).count();
        }
        wake::server_rise(sleeping);
        self.sleep.store(AWAKE, Ordering::Relaxed);
    }

    /// Sleeps until somebody rings or `until` comes (`None`: for ever); returns at once when `has_work`. It may
    /// also return without reason, seldom.
    ///
    /// # Panics
    /// When the calling thread has not [adopted](Doorbell::adopt) the bell: the wake would go elsewhere.
    pub fn sleep(&self, until: Option<Monotonic>, has_work: impl FnOnce() -> bool) {
        assert!(self.is_own(), "only the thread that adopted a doorbell sleeps on it");
        self.sleep.store(PARKED, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if has_work() {
            // A sender may have taken the flag meanwhile; its unpark then makes one later park return early.
            self.sleep.store(AWAKE, Ordering::Relaxed);
            return;
        }
        while self.sleep.load(Ordering::Acquire) != AWAKE {
            match until {
                None => std::thread::park(),
                Some(until) => {
                    let left_ns = until.0.saturating_sub(clock::monotonic().0);
                    if left_ns == 0 {
                        self.sleep.store(AWAKE, Ordering::Relaxed);
                        return;
                    }
                    std::thread::park_timeout(Duration::from_nanos(left_ns));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use crossbeam::queue::ArrayQueue;

    use super::*;

    /// A lost wake shows as a sleep that lasts until this.
    const LOST: Duration = Duration::from_secs(20);

    #[test]
    fn given_senders_and_a_sleeper_in_step_when_they_race_then_no_wake_is_lost() {
        const MESSAGES: u64 = 20_000;
        let bells = Arc::new((Doorbell::default(), Doorbell::default()));
        let queues = Arc::new((ArrayQueue::new(4), ArrayQueue::new(4)));
        // Strict ping-pong: both sides are about to sleep nearly always, so each message races a sleep.
        let echo = {
            let (bells, queues) = (bells.clone(), queues.clone());
            std::thread::spawn(move || {
                bells.1.adopt();
                for _ in 0..MESSAGES {
                    let message: u64 = receive(&bells.1, &queues.1);
                    queues.0.push(message).expect("one message is under way");
                    bells.0.ring();
                }
            })
        };
        bells.0.adopt();
        for message in 0..MESSAGES {
            queues.1.push(message).expect("one message is under way");
            bells.1.ring();
            assert_eq!(receive(&bells.0, &queues.0), message);
        }
        echo.join().expect("the echo saw every message");
    }

    #[test]
    fn given_a_sleeper_among_descriptors_when_senders_and_clients_race_its_sleeps_then_no_wake_is_lost() {
        const MESSAGES: u64 = 20_000;
        let bell = Arc::new(Doorbell::default());
        let (node, client_bell) = (Arc::new(AtomicU64::new(0)), Arc::new(Bell::new().expect("eventfd")));
        bell.watch().expect("descriptors").add(&client_bell).expect("watched");
        let (queue, answers) = (Arc::new(ArrayQueue::new(4)), Arc::new(ArrayQueue::new(4)));
        let sleeper = {
            let (bell, node, queue, answers) = (bell.clone(), node.clone(), queue.clone(), answers.clone());
            std::thread::spawn(move || {
                bell.adopt();
                let lost_at = clock::monotonic().plus_millis(LOST.as_millis() as u64);
                for expected in 0..MESSAGES {
                    let message: u64 = loop {
                        if let Some(message) = queue.pop() {
                            break message;
                        }
                        assert!(clock::monotonic() < lost_at, "a wake was lost");
                        bell.sleep_watching(Some(lost_at), &node, || !queue.is_empty());
                    };
                    assert_eq!(message, expected);
                    answers.push(message).expect("one message is under way");
                }
            })
        };
        for message in 0..MESSAGES {
            queue.push(message).expect("one message is under way");
            // By turns as the front does and as a native client does.
            if message % 2 == 0 {
                bell.ring();
            } else if wake::must_ring(&*node) {
                client_bell.ring();
            }
            while answers.pop().is_none() {
                std::thread::yield_now();
            }
        }
        sleeper.join().expect("the sleeper saw every message");
        assert_eq!(node.load(Ordering::Relaxed), 0, "awake again");
    }

    #[test]
    fn given_many_senders_when_they_flood_one_sleeper_then_every_message_arrives() {
        const SENDERS: u64 = 4;
        const EACH: u64 = 20_000;
        let bell = Arc::new(Doorbell::default());
        let queue = Arc::new(ArrayQueue::new(64));
        let senders: Vec<_> = (0..SENDERS)
            .map(|_| {
                let (bell, queue) = (bell.clone(), queue.clone());
                std::thread::spawn(move || {
                    for message in 1..=EACH {
                        while queue.push(message).is_err() {
                            std::thread::yield_now();
                        }
                        bell.ring();
                        if message % 64 == 0 {
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        bell.adopt();
        let mut sum = 0;
        for _ in 0..SENDERS * EACH {
            sum += receive(&bell, &queue);
        }
        assert_eq!(sum, SENDERS * EACH * (EACH + 1) / 2);
        senders.into_iter().for_each(|sender| sender.join().expect("sent all"));
    }

    #[test]
    fn given_no_ring_when_the_moment_comes_then_the_sleeper_wakes_by_itself() {
        let bell = Doorbell::default();
        bell.adopt();
        let until = clock::monotonic().plus_millis(5);
        bell.sleep(Some(until), || false);
        assert!(clock::monotonic() >= until);
    }

    #[test]
    fn given_an_awake_thread_when_rung_then_its_next_sleep_still_waits() {
        let bell = Doorbell::default();
        bell.adopt();
        let looked = AtomicU64::new(0);
        bell.ring();
        let until = clock::monotonic().plus_millis(5);
        bell.sleep(Some(until), || looked.fetch_add(1, Ordering::Relaxed) > 0);
        assert_eq!(looked.into_inner(), 1);
        assert!(clock::monotonic() >= until);
    }

    #[test]
    #[should_panic(expected = "only the thread that adopted")]
    fn given_a_foreign_bell_when_slept_on_then_it_panics() {
        Doorbell::default().sleep(None, || true);
    }

    fn receive(bell: &Doorbell, queue: &ArrayQueue<u64>) -> u64 {
        let lost_at = clock::monotonic().plus_millis(LOST.as_millis() as u64);
        loop {
            if let Some(message) = queue.pop() {
                return message;
            }
            assert!(clock::monotonic() < lost_at, "a wake was lost");
            bell.sleep(Some(lost_at), || !queue.is_empty());
            assert!(clock::monotonic() < lost_at, "a wake was lost");
        }
    }
}
