//! Latencies, and the percentiles that are printed of them.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// The longest latency that is told apart: a minute. Longer ones count as this.
const NANOSECONDS_MAX: u64 = 60_000_000_000;

/// Significant digits that are kept: an error below 0.1 %.
const DIGITS: u8 = 3;

/// What latencies are printed in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// Nanoseconds.
    Nanoseconds,
    /// Microseconds.
    Microseconds,
}

impl Unit {
    /// As printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nanoseconds => "ns",
            Self::Microseconds => "µs",
        }
    }

    fn of(self, nanoseconds: u64) -> f64 {
        match self {
            Self::Nanoseconds => nanoseconds as f64,
            Self::Microseconds => nanoseconds as f64 / 1e3,
        }
    }
}

/// Latencies of one thing.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, NANOSECONDS_MAX, DIGITS).expect("the bounds are in order"))
    }
}

impl Latencies {
    /// Adds one.
    pub fn record(&mut self, latency: Duration) {
        self.record_ns(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX), 1);
    }

    /// Adds `count` that took `nanoseconds` each.
    pub fn record_ns(&mut self, nanoseconds: u64, count: u64) {
        self.0.saturating_record_n(nanoseconds.clamp(1, NANOSECONDS_MAX), count);
    }

    /// Adds all of another's.
    pub fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("both have the same bounds");
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The median.
    pub fn p50(&self, unit: Unit) -> f64 {
        unit.of(self.0.value_at_quantile(0.5))
    }

    /// Those that are printed; `None` when there are no latencies.
    pub fn percentiles(&self, unit: Unit) -> Option<Percentiles> {
        let at = |quantile| unit.of(self.0.value_at_quantile(quantile));
        (self.count() > 0).then(|| Percentiles {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            percentiles_unit: unit.name(),
        })
    }
}

/// Percentiles of all rounds together.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Percentiles {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    /// A throughput's percentiles are those of its calls' latencies.
    pub percentiles_unit: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_latencies_when_summed_up_then_percentiles_are_within_a_thousandth() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.percentiles(Unit::Microseconds), None);
        (1..=1000u64).for_each(|step| latencies.record(Duration::from_micros(step)));
        let mut other = Latencies::default();
        other.record_ns(u64::MAX, 1);
        latencies.merge(&other);
        let found = latencies.percentiles(Unit::Microseconds).expect("there are some");
        assert!((found.p50 - 501.0).abs() < 1.0 && (found.p99 - 991.0).abs() < 1.5, "{found:?}");
        assert_eq!((latencies.count(), found.percentiles_unit), (1001, "µs"));
    }
}
