//! The stall detector: every turn of a shard over 100 µs of CPU time is recorded, with what it handled.
//!
//! Wall time is measured for each turn (one vDSO read, 26 ns). CPU time decides, because a shard that was preempted
//! did not stall anybody by itself; but reading a thread's CPU clock is a system call (0.54 µs where measured), so
//! it is not read for each turn. CPU time cannot exceed wall time, hence only a turn of more than 100 µs of wall
//! time needs it: the difference to a *baseline* that is renewed before each sleep, where nobody waits for it, and
//! after each 50 µs of work since. What is recorded is thus an upper bound, by at most 50 µs and one wake too high,
//! and no stall is missed. Cost: at most 0.54 µs in 50 µs.
//!
//! A shard never writes a log line itself, since that is a file call: it leaves its record on the [`StallBoard`]
//! and rings a thread of its own, `pm-stalls`, that writes at most one line a second for each shard and otherwise sleeps.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use payload_types::{Monotonic, ShardIndex};

use crate::clock;
use crate::mailbox::{Phase, Shared};
use crate::sys;

/// A turn of more than this is recorded.
const STALL_NS: u64 = 100_000;

/// A turn of more than this breaks a promise (issue 2: none over 1 ms on the CPU).
const STALL_LONG_NS: u64 = 1_000_000;

/// Work since the baseline after which it is renewed.
const BASELINE_NS_MAX: u64 = 50_000;

/// Of each shard the longest are kept.
const LONGEST_LEN: usize = 10;

/// Turns are counted by their length in powers of two: up to 2^10 ns (1 µs), 2^11 ns ... 2^24 ns (17 ms), and beyond.
pub const TURN_BUCKETS: usize = 16;

/// The first of them ends at 2 to the power of this, in nanoseconds.
const TURN_BUCKET_FIRST: u32 = 10;

/// The longest turn of a bucket, in nanoseconds; `None` for the last, which has no end.
pub fn turn_bucket_ns(bucket: usize) -> Option<u64> {
    (bucket + 1 < TURN_BUCKETS).then(|| 1 << (TURN_BUCKET_FIRST as usize + bucket))
}

/// The bucket of a turn of this length.
fn turn_bucket(wall_ns: u64) -> usize {
    // 2^n itself belongs below: a bucket is named by the longest turn in it.
    let bits = u64::BITS - wall_ns.saturating_sub(1).leading_zeros();
    (bits.saturating_sub(TURN_BUCKET_FIRST) as usize).min(TURN_BUCKETS - 1)
}

/// Pause between two log lines.
const LOG_PAUSE_MS: u64 = 1_000;

/// What one turn handled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Handled {
    /// Completions of drivers and catalog, and budget replies.
    pub completions: u32,
    /// Requests of the budget arbiter; on shard 0 only.
    pub budget_requests: u32,
    /// Requests.
    pub requests: u32,
    /// Timer steps.
    pub timers: u32,
}

impl Handled {
    /// Steps and arbitrations together.
    pub fn total(&self) -> u32 {
        self.completions + self.budget_requests + self.requests + self.timers
    }
}

/// One long turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Turn {
    /// Time on the CPU, in ns; an upper bound, see the head of the file.
    pub on_cpu_ns: u64,
    /// Time by the clock, in ns; more than `on_cpu_ns` when the thread was preempted.
    pub wall_ns: u64,
    /// When it began.
    pub started: Monotonic,
    /// What it did.
    pub handled: Handled,
}

/// The turns of one shard since the start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TurnStats {
    /// Whose.
    pub shard: ShardIndex,
    /// All turns.
    pub turns: u64,
    /// Those with more than 100 µs on the CPU.
    pub over_100us: u64,
    /// Those with more than 1 ms on the CPU.
    pub over_1ms: u64,
    /// Those that took more than 100 µs by the clock, preempted or not.
    pub wall_over_100us: u64,
    /// Those that took more than 1 ms by the clock.
    pub wall_over_1ms: u64,
    /// All turns by their length by the clock; see [`turn_bucket_ns`].
    pub by_length: [u64; TURN_BUCKETS],
    /// Their lengths together, in ns.
    pub wall_ns: u64,
    /// The ten with the most CPU time, longest first.
    pub longest: Vec<Turn>,
}

/// One shard's record. Written by its pump only, read by anybody.
#[derive(Default)]
pub(crate) struct StallBoard {
    by_length: [AtomicU64; TURN_BUCKETS],
    wall_ns: AtomicU64,
    over_100us: AtomicU64,
    over_1ms: AtomicU64,
    wall_over_100us: AtomicU64,
    wall_over_1ms: AtomicU64,
    /// The pump only tries the lock: while somebody reads, a record is counted and not kept.
    longest: Mutex<Vec<Turn>>,
}

impl StallBoard {
    pub(crate) fn read(&self, shard: ShardIndex) -> TurnStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let by_length = std::array::from_fn(|bucket| load(&self.by_length[bucket]));
        TurnStats {
            shard,
            turns: by_length.iter().sum(),
            over_100us: load(&self.over_100us),
            over_1ms: load(&self.over_1ms),
            wall_over_100us: load(&self.wall_over_100us),
            wall_over_1ms: load(&self.wall_over_1ms),
            by_length,
            wall_ns: load(&self.wall_ns),
            longest: self.longest.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Keeps one long turn; true when it is a stall, not a preemption.
    fn keep(&self, turn: Turn) -> bool {
        count_if(&self.wall_over_100us, turn.wall_ns > STALL_NS);
        count_if(&self.wall_over_1ms, turn.wall_ns > STALL_LONG_NS);
        count_if(&self.over_100us, turn.on_cpu_ns > STALL_NS);
        count_if(&self.over_1ms, turn.on_cpu_ns > STALL_LONG_NS);
        if let Ok(mut longest) = self.longest.try_lock() {
            let place = longest.partition_point(|kept| kept.on_cpu_ns >= turn.on_cpu_ns);
            longest.insert(place, turn);
            longest.truncate(LONGEST_LEN);
        }
        turn.on_cpu_ns > STALL_NS
    }
}

fn count_if(counter: &AtomicU64, condition: bool) {
    add(counter, u64::from(condition));
}

/// One writer, so no read-modify-write.
fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Ordering::Relaxed) + more, Ordering::Relaxed);
}

/// Measures the turns of the calling thread.
#[derive(Default)]
pub(crate) struct TurnClock {
    baseline_cpu_ns: u64,
    /// Work since the baseline, by the clock.
    worked_ns: u64,
}

impl TurnClock {
    /// Renews the baseline: at the start and before each sleep.
    pub(crate) fn rebase(&mut self) {
        self.baseline_cpu_ns = sys::thread_cpu_ns();
        self.worked_ns = 0;
    }

    /// Spinning is work, too, as far as the CPU clock is concerned.
    pub(crate) fn spun(&mut self, spun_ns: u64) {
        self.worked_ns += spun_ns;
        if self.worked_ns > BASELINE_NS_MAX {
            self.rebase();
        }
    }

    /// Records a turn that has just ended; true when somebody should log it.
    pub(crate) fn turn_done(
        &mut self,
        board: &StallBoard,
        (started, ended): (Monotonic, Monotonic),
        handled: Handled,
    ) -> bool {
        let wall_ns = ended.0 - started.0;
        add(&board.by_length[turn_bucket(wall_ns)], 1);
        add(&board.wall_ns, wall_ns);
        if wall_ns <= STALL_NS {
            self.spun(wall_ns);
            return false;
        }
        let baseline_cpu_ns = self.baseline_cpu_ns;
        self.rebase();
        let on_cpu_ns = wall_ns.min(self.baseline_cpu_ns - baseline_cpu_ns);
        board.keep(Turn { on_cpu_ns, wall_ns, started, handled })
    }
}

/// The body of `pm-stalls`: logs new stalls, sleeps otherwise, ends with the reactor.
pub(crate) fn log_until_stopped(shared: &Shared) {
    let stopped = || shared.phase() == Phase::Stopping;
    let count = || -> Vec<u64> {
        shared.boxes.iter().map(|mailbox| mailbox.stalls.over_100us.load(Ordering::Relaxed)).collect()
    };
    shared.stall_bell.adopt();
    let mut logged = vec![0; shared.boxes.len()];
    while !stopped() {
        shared.stall_bell.sleep(None, || stopped() || count() != logged);
        let counts = count();
        for (shard, mailbox) in (0..).zip(&shared.boxes) {
            let new = counts[usize::from(shard)] - logged[usize::from(shard)];
            if new > 0 {
                log(new, &mailbox.stalls.read(ShardIndex(shard)));
            }
        }
        logged = counts;
        let pause_end = clock::monotonic().plus_millis(LOG_PAUSE_MS);
        while !stopped() && clock::monotonic() < pause_end {
            shared.stall_bell.sleep(Some(pause_end), stopped);
        }
    }
}

fn log(new: u64, stats: &TurnStats) {
    let Some(Turn { on_cpu_ns, wall_ns, handled, .. }) = stats.longest.first() else { return };
    let (shard, over_1ms) = (stats.shard.0, stats.over_1ms);
    let (on_cpu_us, wall_us) = (on_cpu_ns / 1000, wall_ns / 1000);
    // Over 1 ms somebody should act; over 100 µs somebody who looks should see.
    if over_1ms > 0 {
        tracing::warn!(
            shard,
            new,
            over_1ms,
            on_cpu_us,
            wall_us,
            ?handled,
            "turns over 100 µs; the longest since the start"
        );
    } else {
        tracing::debug!(
            shard,
            new,
            on_cpu_us,
            wall_us,
            ?handled,
            "turns over 100 µs; the longest since the start"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tracing::span;

    use super::*;
    use crate::mailbox::Mailboxes;

    /// Counts warnings.
    struct Warnings(Arc<AtomicU64>);

    impl tracing::Subscriber for Warnings {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            *metadata.level() == tracing::Level::WARN
        }
        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }
        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn event(&self, _: &tracing::Event<'_>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    #[test]
    fn given_stalls_in_a_burst_when_logged_then_there_is_a_line_and_not_one_for_each() {
        let shared = Mailboxes::new(2).0;
        let warnings = Arc::new(AtomicU64::new(0));
        let (logging, subscriber) = (shared.clone(), Warnings(warnings.clone()));
        let logger = std::thread::spawn(move || {
            tracing::subscriber::with_default(subscriber, || log_until_stopped(&logging));
        });
        let long = Turn {
            on_cpu_ns: 3_000_000,
            wall_ns: 3_000_000,
            started: Monotonic(0),
            handled: Handled::default(),
        };
        // About 300 ms: well below the pause, and many lines if each stall had one.
        for _ in 0..300 {
            shared.boxes[1].stalls.keep(long);
            shared.stall_bell.ring();
            std::thread::sleep(Duration::from_millis(1));
        }
        shared.enter(Phase::Stopping);
        logger.join().expect("it ends with the reactor, without waiting out its pause");
        let lines = warnings.load(Ordering::SeqCst);
        assert!((1..30).contains(&lines), "{lines} lines for 300 stalls");
    }

    fn burn(duration: Duration) {
        let start = sys::thread_cpu_ns();
        while sys::thread_cpu_ns() - start < duration.as_nanos() as u64 {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn given_a_turn_that_works_long_when_done_then_it_is_a_stall_and_one_that_sleeps_is_not() {
        let (board, mut turns) = (StallBoard::default(), TurnClock::default());
        turns.rebase();
        let started = clock::monotonic();
        burn(Duration::from_millis(2));
        let handled = Handled { requests: 3, ..Handled::default() };
        assert!(turns.turn_done(&board, (started, clock::monotonic()), handled));
        let started = clock::monotonic();
        std::thread::sleep(Duration::from_millis(20));
        turns.turn_done(&board, (started, clock::monotonic()), Handled::default());
        let stats = board.read(ShardIndex(0));
        assert_eq!((stats.turns, stats.over_1ms, stats.wall_over_1ms), (2, 1, 2));
        assert!(stats.wall_ns > 22_000_000, "{stats:?}");
        assert_eq!(stats.longest[0].handled, handled);
        assert!(stats.longest[1].on_cpu_ns < stats.longest[1].wall_ns / 2, "{:?}", stats.longest[1]);
    }

    #[test]
    fn given_turns_of_any_length_when_counted_then_each_is_in_the_first_bucket_that_holds_it() {
        for (wall_ns, bucket) in
            [(0, 0), (1, 0), (1024, 0), (1025, 1), (2048, 1), (100_000, 7), (1 << 24, 14)]
        {
            assert_eq!(turn_bucket(wall_ns), bucket, "{wall_ns}");
            assert!(turn_bucket_ns(bucket).is_some_and(|end| wall_ns <= end));
        }
        assert_eq!((turn_bucket((1 << 24) + 1), turn_bucket(u64::MAX)), (15, 15));
        assert_eq!(turn_bucket_ns(TURN_BUCKETS - 1), None);
    }

    #[test]
    fn given_many_long_turns_when_kept_then_the_ten_longest_stay() {
        let board = StallBoard::default();
        for step in 0..30u64 {
            let on_cpu_ns = 200_000 + (step * 7 % 30) * 1000;
            let turn =
                Turn { on_cpu_ns, wall_ns: on_cpu_ns, started: Monotonic(0), handled: Handled::default() };
            assert!(board.keep(turn));
        }
        let kept: Vec<u64> = board.read(ShardIndex(0)).longest.iter().map(|turn| turn.on_cpu_ns).collect();
        assert_eq!(kept, (20..30).rev().map(|step| 200_000 + step * 1000).collect::<Vec<_>>());
    }
}
