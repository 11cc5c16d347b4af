//! What is known of a disk root: plain values, changed under [`super::Health`]'s lock. No clock and no call here.

use std::time::Duration;

use payload_types::{DiskFault, DiskHealth, DiskState, WallMs};

use super::Work;

/// Why and since when writes are refused.
pub(crate) struct Failing {
    pub(crate) fault: DiskFault,
    pub(crate) since: WallMs,
    pub(crate) next_try: Duration,
    pub(crate) error: String,
    /// `Full`: the smallest file that did not fit.
    pub(crate) bytes: u64,
    /// `Full`: what was free when it did not.
    pub(crate) free_then: u64,
}

impl Failing {
    /// Another write failed meanwhile.
    pub(crate) fn changed(&mut self, fault: DiskFault, error: String, bytes: u64, free: u64) {
        self.bytes = if self.fault == fault { self.bytes.min(bytes) } else { bytes };
        self.free_then = free;
        self.fault = fault;
        self.error = error;
    }
}

/// Whether an operation may begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// It may.
    Go,
    /// The root is to be tried first.
    Try,
    /// It may if more is free than there was.
    Full { free_then: u64 },
    /// Not now.
    Refuse,
}

/// An operation under way: when it began, and when it is too late.
struct UnderWay {
    ticket: u64,
    began: Duration,
    slow_at: Duration,
}

/// Counted since the start.
#[derive(Default)]
pub(crate) struct Totals {
    pub(crate) failures: u64,
    pub(crate) refused: u64,
    pub(crate) read_failures: u64,
    pub(crate) slow: u64,
}

/// See the module's description.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) failing: Option<Failing>,
    /// Failures in a row, of writes and probes.
    pub(crate) attempts: u32,
    pub(crate) totals: Totals,
    pub(crate) stopped: bool,
    /// One entry a driver thread at most.
    under_way: Vec<UnderWay>,
    tickets: u64,
    /// The last operation that ended took too long: when it began, and how long it took.
    slow: Option<(Duration, Duration)>,
}

impl State {
    pub(crate) fn judge(&self, work: Work, now: Duration) -> Verdict {
        let Some(failing) = &self.failing else { return Verdict::Go };
        if failing.fault == DiskFault::Full {
            match work {
                Work::Bytes(_) => return Verdict::Go,
                Work::Space(bytes) if bytes.0 < failing.bytes => return Verdict::Go,
                Work::Space(_) => {}
            }
        }
        if failing.next_try <= now {
            Verdict::Try
        } else if failing.fault == DiskFault::Full {
            Verdict::Full { free_then: failing.free_then }
        } else {
            Verdict::Refuse
        }
    }

    pub(crate) fn started(&mut self, now: Duration, slow_after: Duration) -> u64 {
        self.tickets += 1;
        self.under_way.push(UnderWay { ticket: self.tickets, began: now, slow_at: now + slow_after });
        self.tickets
    }

    pub(crate) fn ended(&mut self, ticket: u64, now: Duration) {
        let index = self.under_way.iter().position(|op| op.ticket == ticket).expect("an attempt ends once");
        let op = self.under_way.swap_remove(index);
        let was_slow = self.slow.take().is_some();
        if now > op.slow_at {
            self.totals.slow += 1;
            self.slow = Some((op.began, now - op.began));
            if !was_slow {
                tracing::warn!("the disk is slow: an operation took {:?}", now - op.began);
            }
        } else if was_slow {
            tracing::info!("the disk is as fast as it should be again");
        }
    }

    pub(crate) fn look(&self, now: Duration, wall: WallMs) -> DiskHealth {
        let totals = &self.totals;
        let health = DiskHealth {
            attempts: self.attempts,
            failures_total: totals.failures,
            refused_total: totals.refused,
            read_failures_total: totals.read_failures,
            slow_total: totals.slow,
            ..DiskHealth::default()
        };
        if let Some(failing) = &self.failing {
            return DiskHealth {
                state: DiskState::Failing(failing.fault),
                since: Some(failing.since),
                retry_ms: failing.next_try.saturating_sub(now).as_millis() as u64,
                error: failing.error.clone(),
                ..health
            };
        }
        let stuck = self.under_way.iter().filter(|op| now > op.slow_at).map(|op| op.began).min();
        let (began, error) = match (stuck, self.slow) {
            (Some(began), _) => (began, format!("an operation has been under way for {:?}", now - began)),
            (None, Some((began, took))) => (began, format!("the last operation took {took:?}")),
            (None, None) => return health,
        };
        let since = wall.as_millis().saturating_sub(now.saturating_sub(began).as_millis() as u64);
        DiskHealth { state: DiskState::Slow, since: Some(WallMs::from_millis(since)), error, ..health }
    }
}
