//! Two clocks, as values. The core never reads a clock: every step is told what time it is.

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
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct WallMs(u64);

impl WallMs {
    /// The last millisecond that `google.protobuf.Timestamp` can express: 9999-12-31T23:59:59.999Z.
    pub const MAX: Self = Self(253_402_300_799_999);

    /// This many milliseconds after 1970.
    pub const fn from_millis(milliseconds: u64) -> Self {
        Self(milliseconds)
    }

    /// Milliseconds since 1970.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// This moment plus `milliseconds`; `None` past [`WallMs::MAX`].
    pub fn checked_plus(self, milliseconds: u64) -> Option<Self> {
        self.0.checked_add(milliseconds).map(Self).filter(|sum| *sum <= Self::MAX)
    }
}

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
