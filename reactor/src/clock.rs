//! The server's only time source. Everything that waits uses [`monotonic`], everything that is shown [`now`].
//!
//! Both are vDSO reads: 26 ns each where measured (docs/decisions/2026-11-22-shard-sleep.md).

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use payload_types::{Monotonic, Now, WallMs};

/// Moment 0 of [`Monotonic`] in this process.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Nanoseconds since the first use in this process; never goes back.
pub fn monotonic() -> Monotonic {
    Monotonic(u64::try_from(START.elapsed().as_nanos()).expect("584 years of uptime"))
}

/// Both clocks. A wall clock before 1970 reads as 1970.
pub fn now() -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    Now { monotonic: monotonic(), wall: WallMs::from_millis(u64::try_from(wall).unwrap_or(u64::MAX)) }
}

/// A reading of the wall clock is good for so long: it is shown in milliseconds.
const WALL_NS_MAX: u64 = 1_000_000;

/// Both clocks, for who has read the monotonic one: reads the wall clock once a millisecond, which a busy shard's turns do
/// not notice otherwise than by their speed.
pub(crate) struct TurnTime {
    read: Now,
}

impl TurnTime {
    /// Both clocks, now.
    pub(crate) fn new() -> Self {
        Self { read: now() }
    }

    /// Both clocks at a moment that was just read, and is not before any other one.
    pub(crate) fn at(&mut self, monotonic: Monotonic) -> Now {
        if monotonic.0.saturating_sub(self.read.monotonic.0) >= WALL_NS_MAX {
            self.read = now();
        }
        Now { monotonic, wall: self.read.wall }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_two_readings_when_compared_then_time_has_not_gone_back() {
        let first = now();
        std::thread::sleep(std::time::Duration::from_millis(2));
        let second = now();
        assert!(second.monotonic.millis_since(first.monotonic) >= 2);
        let mut time = TurnTime::new();
        let late = time.at(monotonic());
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(time.at(monotonic()).wall.as_millis() >= late.wall.as_millis() + 19, "it is read again");
        assert!(first.wall > WallMs::from_millis(1_600_000_000_000), "{:?} is before 2020", first.wall);
    }
}
