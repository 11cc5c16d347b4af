//! Ending in order: what SIGTERM and SIGINT do.
//!
//! ```text
//! signal -> health NOT_SERVING, stop accepting, GOAWAY to every connection
//!        -> calls in flight end (within a budget), those that still wait are answered UNAVAILABLE
//!        -> shards stop -> catalog writer flushes -> drivers drain -> exit 0
//! ```
//!
//! The whole way is bounded by [`Budget::exit`]: what was acknowledged is on its medium already, so cutting a slow
//! end short loses nothing that anybody was promised. A second signal ends the process at once, with 128 + its
//! number as a shell expects it.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long connections may take to send their last answers once nothing is in flight.
pub const FLUSH: Duration = Duration::from_millis(250);

/// How the time of a graceful stop (`shutdown.drain_timeout`, 10 s) is divided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget {
    /// For calls in flight, before they are answered UNAVAILABLE: 3 of 10.
    pub calls: Duration,
    /// For the work of shards that drivers and catalog still do: 4 of 10.
    pub shards: Duration,
    /// After this the process is gone in any case: 9 of 10, the rest is the system's.
    pub exit: Duration,
}

impl Budget {
    /// The parts of `drain_timeout_ms`.
    pub fn of(drain_timeout_ms: u64) -> Self {
        let tenths = |count: u64| Duration::from_millis(drain_timeout_ms.saturating_mul(count) / 10);
        Self { calls: tenths(3), shards: tenths(4), exit: tenths(9) }
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
        let budget = Budget::of(10_000);
        assert_eq!(budget.exit, Duration::from_secs(9));
        assert!(budget.calls + budget.shards + 2 * FLUSH < budget.exit);
    }
}
