//! Whether and how long a shard looks for work before it sleeps.
//!
//! A wake costs 5 to 25 µs, so a shard that is asked again within that time gains by staying awake, if nobody else
//! needs the core. It is worth it when the last waits were short; therefore [`Spin`] keeps a running mean of them.
//! A server that nobody asks makes no turns, so it never spins.

use payload_types::Monotonic;

use crate::clock;
use crate::stall::TurnClock;

/// `shards.spin`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SpinPolicy {
    /// Sleep at once.
    Never,
    /// Spin while work comes often, if there are cores to spare: more than the shards and the front need.
    #[default]
    Adaptive,
    /// Spin after every turn, for at most 1 ms. For the bench rows "both awake".
    Always,
}

/// The longest adaptive spin: about what a sleep and a wake cost at worst where measured.
const SPIN_NS_MAX: u64 = 50_000;

/// The longest spin of [`SpinPolicy::Always`]; after it the server counts as idle.
const SPIN_ALWAYS_NS_MAX: u64 = 1_000_000;

/// Waits longer than this count as this: one quiet second must not outweigh a busy minute.
const WAIT_NS_MAX: u64 = 8 * SPIN_NS_MAX;

/// One shard's spinning.
pub(crate) struct Spin {
    spin_ns_max: u64,
    always: bool,
    /// Running mean, over about 8 waits, of the time from having no work to having some.
    wait_ns_mean: u64,
}

impl Spin {
    /// `cores_to_spare`: shards and front together need fewer cores than the process may use.
    pub(crate) fn new(policy: SpinPolicy, cores_to_spare: bool) -> Self {
        let spin_ns_max = match policy {
            SpinPolicy::Always => SPIN_ALWAYS_NS_MAX,
            SpinPolicy::Adaptive if cores_to_spare => SPIN_NS_MAX,
            SpinPolicy::Adaptive | SpinPolicy::Never => 0,
        };
        Self { spin_ns_max, always: policy == SpinPolicy::Always, wait_ns_mean: WAIT_NS_MAX }
    }

    /// True when spinning is likely to pay.
    fn pays(&self) -> bool {
        self.spin_ns_max > 0 && (self.always || self.wait_ns_mean <= SPIN_NS_MAX)
    }

    /// Spins from the moment `now` until `has_work` or `until`, within the bounds. When there is something to do, the clock as
    /// it was last read: some looks ago.
    pub(crate) fn spin(
        &self,
        until: Option<Monotonic>,
        mut now: Monotonic,
        turn_clock: &mut TurnClock,
        mut has_work: impl FnMut() -> bool,
    ) -> Option<Monotonic> {
        if !self.pays() {
            return None;
        }
        let end = Monotonic(now.0 + self.spin_ns_max);
        while now < end {
            for _ in 0..16 {
                if has_work() {
                    return Some(now);
                }
                std::hint::spin_loop();
            }
            if until.is_some_and(|until| until <= now) {
                return Some(now);
            }
            let later = clock::monotonic();
            turn_clock.spun(later.0 - now.0);
            now = later;
        }
        None
    }

    /// Learns how long the shard had nothing to do.
    pub(crate) fn waited(&mut self, wait_ns: u64) {
        self.wait_ns_mean = (self.wait_ns_mean * 7 + wait_ns.min(WAIT_NS_MAX)) / 8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_no_spare_core_when_adaptive_then_it_never_spins() {
        let mut spin = Spin::new(SpinPolicy::Adaptive, false);
        (0..100).for_each(|_| spin.waited(1));
        assert!(!spin.pays());
        assert!(!Spin::new(SpinPolicy::Never, true).pays());
    }

    #[test]
    fn given_short_waits_when_adaptive_then_it_spins_and_stops_when_they_get_long() {
        let mut spin = Spin::new(SpinPolicy::Adaptive, true);
        assert!(!spin.pays(), "nothing is known yet");
        (0..30).for_each(|_| spin.waited(5_000));
        assert!(spin.pays());
        (0..3).for_each(|_| spin.waited(1_000_000_000));
        assert!(!spin.pays());
    }

    #[test]
    fn given_no_work_when_spinning_always_then_it_ends_within_its_bound() {
        let spin = Spin::new(SpinPolicy::Always, false);
        let start = clock::monotonic();
        assert!(spin.spin(None, start, &mut TurnClock::default(), || false).is_none());
        assert!(clock::monotonic().0 - start.0 >= SPIN_ALWAYS_NS_MAX);
        let now = clock::monotonic();
        assert_eq!(spin.spin(None, now, &mut TurnClock::default(), || true), Some(now));
        assert!(spin.spin(Some(start), now, &mut TurnClock::default(), || false).is_some(), "a timer is due");
    }
}
