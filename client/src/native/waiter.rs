//! How long a thread looks for its answer before it sleeps: while that has paid lately, and only where there is another
//! core for the server to answer on.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The longest spin: what a sleeping server takes to wake up and answer (FACTS: 8.7 to 10 us), twice.
const SPIN_MAX: Duration = Duration::from_micros(20);

/// The shortest one, so that a server that became fast is noticed.
const SPIN_MIN: Duration = Duration::from_micros(2);

/// Looks between two looks at the clock.
const LOOKS: u32 = 32;

/// Spins for a bounded, adaptive while.
#[derive(Debug)]
pub(super) struct Spin {
    /// Nanoseconds; 0 where nobody spins.
    budget_ns: AtomicU32,
}

impl Spin {
    pub(super) fn new() -> Self {
        let has_cores = std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1);
        let budget_ns = if has_cores { SPIN_MAX.as_nanos() as u32 } else { 0 };
        Self { budget_ns: AtomicU32::new(budget_ns) }
    }

    /// Spins until `found`, or until it has been long enough: then false.
    pub(super) fn until(&self, found: impl Fn() -> bool) -> bool {
        let budget_ns = self.budget_ns.load(Ordering::Relaxed);
        if budget_ns == 0 {
            return false;
        }
        let start = Instant::now();
        loop {
            for _ in 0..LOOKS {
                if found() {
                    self.budget_ns.store(SPIN_MAX.as_nanos() as u32, Ordering::Relaxed);
                    return true;
                }
                std::hint::spin_loop();
            }
            if start.elapsed().as_nanos() >= u128::from(budget_ns) {
                let less = (budget_ns / 2).max(SPIN_MIN.as_nanos() as u32);
                self.budget_ns.store(less, Ordering::Relaxed);
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_nothing_to_find_when_spun_then_it_ends_and_the_next_is_shorter_down_to_the_shortest() {
        let spin = Spin { budget_ns: AtomicU32::new(SPIN_MAX.as_nanos() as u32) };
        let budget = || spin.budget_ns.load(Ordering::Relaxed);
        assert!(!spin.until(|| false));
        assert_eq!(budget(), 10_000);
        assert!((0..10).all(|_| !spin.until(|| false)));
        assert_eq!(budget(), 2_000);
        assert!(spin.until(|| true));
        assert_eq!(budget(), 20_000);
        let single_core = Spin { budget_ns: AtomicU32::new(0) };
        assert!(!single_core.until(|| true));
    }
}
