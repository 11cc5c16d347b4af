//! Two clocks, as values. The core never reads a clock: every step is told what time it is.

use std::fmt;
use std::num::NonZeroU64;

use crate::error::PayloadError;
use crate::units::parse_scaled;

/// Reads a duration as people write it (`20s`, `0.5s`, `500ms`, `10m`, `1h`, `7d`) in milliseconds.
///
/// # Errors
/// `INVALID_ARGUMENT` when there is no number or no unit: `20` alone could mean anything.
pub fn parse_millis(text: &str) -> Result<u64, PayloadError> {
    let scale = |unit: &str| match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" | "min" => Some(60_000),
        "h" => Some(3_600_000),
        "d" => Some(86_400_000),
        _ => None,
    };
    parse_scaled(text, scale).ok_or_else(|| {
        PayloadError::invalid(format!(
            "`{text}` is not a duration; write a number and its unit, like `500ms`, `20s`, `10m` or `1h`"
        ))
    })
}

/// Writes milliseconds in the largest unit that needs no fraction, so that [`parse_millis`] reads the same back.
pub fn format_millis(milliseconds: u64) -> String {
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    match units.into_iter().find(|(unit, _)| milliseconds > 0 && milliseconds.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", milliseconds / unit),
        None if milliseconds == 0 => "0s".into(),
        None => format!("{milliseconds}ms"),
    }
}

/// Nanoseconds of a clock that never goes back, since an arbitrary start. For timers, leases and deadlines.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Monotonic(pub u64);

impl Monotonic {
    /// This moment plus `milliseconds`, saturating.
    pub fn plus_millis(self, milliseconds: u64) -> Self {
        Self(self.0.saturating_add(milliseconds.saturating_mul(1_000_000)))
    }

    /// Milliseconds from `earlier` to this moment; 0 when `earlier` is later.
    pub fn millis_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0) / 1_000_000
    }
}

/// Milliseconds since 1970-01-01T00:00:00Z. What clients see and the catalog stores.
///
/// Kept as one more, which is never 0: an `Option` of it takes no more room, and one stands in every payload.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallMs(NonZeroU64);

impl WallMs {
    /// The last millisecond that `google.protobuf.Timestamp` can express: 9999-12-31T23:59:59.999Z.
    pub const MAX: Self = Self::from_millis(253_402_300_799_999);

    /// This many milliseconds after 1970; the last of all numbers counts as the one before it.
    pub const fn from_millis(milliseconds: u64) -> Self {
        match NonZeroU64::new(milliseconds.saturating_add(1)) {
            Some(kept) => Self(kept),
            None => unreachable!(),
        }
    }

    /// Milliseconds since 1970.
    pub const fn as_millis(self) -> u64 {
        self.0.get() - 1
    }

    /// This moment plus `milliseconds`; `None` past [`WallMs::MAX`].
    pub fn checked_plus(self, milliseconds: u64) -> Option<Self> {
        self.as_millis().checked_add(milliseconds).map(Self::from_millis).filter(|sum| *sum <= Self::MAX)
    }
}

impl Default for WallMs {
    fn default() -> Self {
        Self::from_millis(0)
    }
}

impl fmt::Debug for WallMs {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "WallMs({})", self.as_millis())
    }
}

const _: () = assert!(size_of::<Option<WallMs>>() == 8);

/// What a step is told about time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// For everything that waits.
    pub monotonic: Monotonic,
    /// For everything that is shown or stored.
    pub wall: WallMs,
}

impl Now {
    /// The monotonic moment at which the wall clock should show `wall`, if neither clock jumps.
    pub fn monotonic_at(self, wall: WallMs) -> Monotonic {
        self.monotonic.plus_millis(wall.as_millis().saturating_sub(self.wall.as_millis()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_durations_as_people_write_them_when_read_then_milliseconds() {
        for (text, milliseconds) in
            [("20s", 20_000), ("0.5s", 500), ("500ms", 500), ("10m", 600_000), ("1h", 3_600_000), ("0s", 0)]
        {
            assert_eq!(parse_millis(text), Ok(milliseconds), "{text}");
        }
        for text in ["", "20", "s", "-1s", "1 fortnight"] {
            assert!(parse_millis(text).is_err(), "{text}");
        }
    }

    #[test]
    fn given_moments_when_kept_then_they_are_shown_and_ordered_as_given() {
        for milliseconds in [0, 1, 1_795_000_000_000, u64::MAX - 1] {
            assert_eq!(WallMs::from_millis(milliseconds).as_millis(), milliseconds);
        }
        assert!(WallMs::default() < WallMs::from_millis(1) && WallMs::from_millis(u64::MAX) > WallMs::MAX);
        assert_eq!(format!("{:?}", WallMs::from_millis(7)), "WallMs(7)");
        assert_eq!((WallMs::MAX.checked_plus(0), WallMs::MAX.checked_plus(1)), (Some(WallMs::MAX), None));
    }

    #[test]
    fn given_any_milliseconds_when_written_and_read_then_the_same() {
        for milliseconds in [0, 1, 999, 1_000, 1_500, 20_000, 120_000, 3_600_000, 86_400_000, 86_400_001] {
            assert_eq!(parse_millis(&format_millis(milliseconds)), Ok(milliseconds));
        }
    }
}
