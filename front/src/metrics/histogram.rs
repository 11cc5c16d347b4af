//! Counts durations by length, without a lock: a few atomic additions an observation.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The longest duration of each bucket but the last, in milliseconds: 1-2.5-5 from a tenth of a millisecond, where a call
/// without a wait lies, to ten seconds.
pub const BOUNDS_MS: [f64; 16] =
    [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0];

/// Durations that were observed since the start.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS_MS.len() + 1],
    sum_ns: AtomicU64,
}

impl Histogram {
    /// Counts one.
    pub fn observe(&self, duration: Duration) {
        let milliseconds = duration.as_secs_f64() * 1e3;
        let bucket = BOUNDS_MS.partition_point(|bound| *bound < milliseconds);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// What was observed, in milliseconds; `None`: nothing yet.
    pub fn read(&self) -> Option<Distribution> {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let sum = self.sum_ns.load(Ordering::Relaxed) as f64 / 1e6;
        let found = Distribution { bounds: BOUNDS_MS.to_vec(), counts, sum };
        (found.count() > 0).then_some(found)
    }
}

/// A histogram at one moment.
#[derive(Clone, PartialEq, Debug)]
pub struct Distribution {
    /// The end of each bucket but the last, growing.
    pub bounds: Vec<f64>,
    /// Observations in each bucket alone: one more than `bounds`.
    pub counts: Vec<u64>,
    /// All observations together, in the metric's unit.
    pub sum: f64,
}

impl Distribution {
    /// Observations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_durations_when_observed_then_each_is_in_the_first_bucket_that_holds_it() {
        let histogram = Histogram::default();
        assert_eq!(histogram.read(), None);
        for micros in [1, 100, 101, 2_500, 60_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let found = histogram.read().expect("observed");
        assert_eq!((found.counts[0], found.counts[1], found.counts[4]), (2, 1, 1));
        assert_eq!((found.counts[16], found.count()), (1, 5));
        assert!((found.sum - 60_002.702).abs() < 1e-6, "{}", found.sum);
    }
}
