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

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread::Thread;
use std::time::Duration;

use payload_types::Monotonic;

use crate::clock;

/// One sleeper's bell. Any thread may ring it; exactly one thread, the first that [adopts](Doorbell::adopt) it,
/// may sleep on it.
#[derive(Default)]
pub struct Doorbell {
    /// The sleeper is about to sleep, or sleeps; whoever takes this flag owes it a wake.
    sleeping: AtomicBool,
    /// Set before `sleeping` is set for the first time.
    sleeper: OnceLock<Thread>,
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
        if self.sleeping.load(Ordering::Relaxed)
            && self.sleeping.swap(false, Ordering::AcqRel)
            && let Some(sleeper) = self.sleeper.get()
        {
            sleeper.unpark();
        }
    }

    /// Sleeps until somebody rings or `until` comes (`None`: for ever); returns at once when `has_work`. It may
    /// also return without reason, seldom.
    ///
    /// # Panics
    /// When the calling thread has not [adopted](Doorbell::adopt) the bell: the wake would go elsewhere.
    pub fn sleep(&self, until: Option<Monotonic>, has_work: impl FnOnce() -> bool) {
        assert!(self.is_own(), "only the thread that adopted a doorbell sleeps on it");
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if has_work() {
            // A sender may have taken the flag meanwhile; its unpark then makes one later park return early.
            self.sleeping.store(false, Ordering::Relaxed);
            return;
        }
        while self.sleeping.load(Ordering::Acquire) {
            match until {
                None => std::thread::park(),
                Some(until) => {
                    let left_ns = until.0.saturating_sub(clock::monotonic().0);
                    if left_ns == 0 {
                        self.sleeping.store(false, Ordering::Relaxed);
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
