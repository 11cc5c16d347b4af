//! Ending in order: what SIGTERM and SIGINT do.
//!
//! ```text
//! signal -> health NOT_SERVING, stop accepting, GOAWAY to every connection
//!        -> calls in flight end (within a budget), those that still wait are answered UNAVAILABLE
//!        -> what lies in slabs goes to DISK (within `shutdown.spill_budget`; what could not is logged, and LOST)
//!        -> shards stop -> catalog writer flushes -> drivers drain -> exit 0
//! ```
//!
//! The whole way is bounded by [`Budget::exit`] and [`Budget::spill`]: all else that was acknowledged is on its medium already, so cutting a slow
//! end short loses nothing that anybody was promised. A second signal ends the process at once, with 128 + its
//! number as a shell expects it.

use std::io;
use std::time::Duration;

use payload_types::reply::Reply;
use payload_types::request::Request;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::deadline::Deadline;
use crate::services::Router;

/// How long connections may take to send their last answers once nothing is in flight.
pub const FLUSH: Duration = Duration::from_millis(250);

/// How the time of a graceful stop (`shutdown.drain_timeout`, 10 s) is divided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget {
    /// For calls in flight, before they are answered UNAVAILABLE: 3 of 10.
    pub calls: Duration,
    /// For what lies in slabs, beside all others: `shutdown.spill_budget`.
    pub spill: Duration,
    /// For the work of shards that drivers and catalog still do: 4 of 10.
    pub shards: Duration,
    /// After this and `spill` the process is gone in any case: 9 of 10, the rest is the system's.
    pub exit: Duration,
}

impl Budget {
    /// The parts of `drain_timeout_ms`, and what slabs are given.
    pub fn of(drain_timeout_ms: u64, spill_budget_ms: u64) -> Self {
        let tenths = |count: u64| Duration::from_millis(drain_timeout_ms.saturating_mul(count) / 10);
        let spill = Duration::from_millis(spill_budget_ms);
        Self { calls: tenths(3), spill, shards: tenths(4), exit: tenths(9) }
    }
}

/// Has every shard copy to DISK what lies in slabs and nowhere else, and logs what will be lost.
pub async fn slabs_save(router: &Router, within: Duration) {
    let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
    // Shards answer at their deadline; one that does not is left to the watchdog's patience, less this.
    let answers = tokio::time::timeout(
        within + FLUSH,
        router.ask_all(&Request::SpillArenas, Some(Deadline::of_server(within_ms))),
    );
    let replies = match answers.await {
        Ok(Ok(replies)) => replies,
        Ok(Err(error)) => {
            return tracing::error!(%error, "payloads in memory of sessions were not saved, and are LOST after the start");
        }
        Err(_late) => {
            return tracing::error!(
                within_ms,
                "a shard did not say which payloads in memory of sessions it saved; look for LOST ones after the start"
            );
        }
    };
    for reply in replies {
        let Reply::ArenasSpilled(done) = reply else { continue };
        if done.spilled > 0 {
            tracing::info!(payloads = done.spilled, "saved from memory of sessions to DISK");
        }
        for payload in &done.lost {
            tracing::warn!(%payload, "lies in memory of a session and could not be saved within shutdown.spill_budget: LOST after the start");
        }
        if done.lost_more > 0 {
            tracing::warn!(payloads = done.lost_more, "more of them, not named");
        }
    }
}

/// The two signals that end the server.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes both signals over from the default action.
    ///
    /// # Errors
    /// When the system refuses the handlers.
    pub fn install() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next of them.
    pub async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
        }
    }

    /// Ends the process at the next signal. Never returns.
    pub async fn exit_at_next(mut self) {
        let kind = self.next().await;
        tracing::warn!("second signal: leaving at once; what was in flight is abandoned");
        std::process::exit(128 + kind.as_raw_value());
    }
}

/// Ends the process if its orderly end takes longer than `within`. A thread of its own, because the front's may be
/// the one that hangs.
pub fn watchdog_start(within: Duration) {
    let watch = move || {
        std::thread::sleep(within);
        tracing::warn!(
            within_ms = within.as_millis(),
            "stopping takes too long; leaving now. Acknowledged work is safe, copies under way start anew"
        );
        std::process::exit(0);
    };
    if let Err(error) = std::thread::Builder::new().name("pm-watchdog".to_owned()).spawn(watch) {
        tracing::warn!(%error, "no thread for the shutdown watchdog; stopping without one");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_drain_timeout_when_divided_then_all_parts_fit_into_it() {
        let budget = Budget::of(10_000, 5000);
        assert_eq!(budget.exit, Duration::from_secs(9));
        assert!(budget.calls + budget.shards + 2 * FLUSH < budget.exit);
    }
}
