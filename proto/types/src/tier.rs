//! Where bytes may lie, fastest first.

use std::fmt;
use std::ops::{Index, IndexMut};

/// A tier that can hold bytes. `TIER_UNSPECIFIED` and `TIER_VOID` of the contract are no tiers of a replica:
/// requests carry them as `Option<Tier>` and [`SpillTarget`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Tier {
    /// Device memory.
    Gpu = 1,
    /// Shared memory.
    Ram = 2,
    /// Local files.
    Disk = 3,
    /// Object storage.
    Object = 4,
}

impl Tier {
    /// Every tier, fastest first.
    pub const ALL: [Self; 4] = [Self::Gpu, Self::Ram, Self::Disk, Self::Object];

    /// True when this tier is strictly faster than `other`.
    pub fn is_faster_than(self, other: Self) -> bool {
        self < other
    }

    /// True when a committed replica here makes the payload DURABLE.
    pub fn is_durable(self) -> bool {
        matches!(self, Self::Disk | Self::Object)
    }

    /// The tier with this number in the contract and in the catalog.
    pub fn from_number(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|tier| *tier as i64 == number)
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Gpu => "GPU",
            Self::Ram => "RAM",
            Self::Disk => "DISK",
            Self::Object => "OBJECT",
        })
    }
}

/// Where Spill moves a payload: to a tier, or nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SpillTarget {
    /// Keep the bytes on this tier.
    Tier(Tier),
    /// Discard the payload (`TIER_VOID`).
    Void,
}

/// One value for each tier.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PerTier<T>(pub [T; 4]);

impl<T> Index<Tier> for PerTier<T> {
    type Output = T;
    fn index(&self, tier: Tier) -> &T {
        &self.0[tier as usize - 1]
    }
}

impl<T> IndexMut<Tier> for PerTier<T> {
    fn index_mut(&mut self, tier: Tier) -> &mut T {
        &mut self.0[tier as usize - 1]
    }
}
