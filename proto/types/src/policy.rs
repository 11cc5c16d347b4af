//! What a client may say about a payload's placement and life.

use crate::error::PayloadError;
use crate::tier::{SpillTarget, Tier};
use crate::time::{Monotonic, WallMs};

/// Who is evicted first (`EvictionPriority` of the contract).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum EvictionPriority {
    /// Not said: as `Normal`.
    #[default]
    Unspecified = 0,
    /// Evicted first.
    Low = 1,
    /// Evicted after `Low`.
    Normal = 2,
    /// Evicted last.
    High = 3,
    /// Never evicted automatically, and never expires (behaviour.md, AllocatePayload).
    Never = 4,
}

/// Who goes first under pressure: by priority, then the least recently leased. The smallest goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Rank {
    /// `Low`, `Normal` or `High`.
    pub priority: EvictionPriority,
    /// When its last lease ended; when it arrived on its tier, if it was never leased there.
    pub used_at: Monotonic,
}

/// The contract's `EvictionPolicy`, validated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EvictionPolicy {
    /// Who goes first.
    pub priority: EvictionPriority,
    /// Never discarded: a spill to VOID is refused.
    pub require_durable: bool,
    /// Where a spill without a target goes.
    pub spill_target: Option<SpillTarget>,
    /// The slowest tier it may be moved to.
    pub min_residency: Option<Tier>,
}

impl EvictionPolicy {
    /// Checks that the policy can be obeyed.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for `require_durable` with `spill_target: VOID`, and for a spill target slower than the
    /// minimum residency tier.
    pub fn validate(&self) -> Result<(), PayloadError> {
        if self.require_durable && self.spill_target == Some(SpillTarget::Void) {
            return Err(PayloadError::invalid(
                "eviction_policy asks for require_durable and for spill_target VOID, which discards; drop one of them",
            ));
        }
        let Some(floor) = self.min_residency else { return Ok(()) };
        let below = match self.spill_target {
            None => false,
            Some(SpillTarget::Void) => true,
            Some(SpillTarget::Tier(target)) => floor.is_faster_than(target),
        };
        if below {
            let target = match self.spill_target {
                Some(SpillTarget::Tier(tier)) => tier.to_string(),
                _ => "VOID".to_owned(),
            };
            return Err(PayloadError::invalid(format!(
                "eviction_policy has min_residency_tier {floor} and spill_target {target}, which is slower; choose a spill_target no slower than {floor}"
            )));
        }
        Ok(())
    }
}

/// `PromotionPolicy` of the contract; UNSPECIFIED is BLOCKING (behaviour.md).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PromotionPolicy {
    /// Schedule it and go on with what is there.
    BestEffort,
    /// Answer when it is done.
    Blocking,
}

/// `SpillPolicy` of the contract; UNSPECIFIED is BLOCKING (behaviour.md).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SpillPolicy {
    /// Validate now, do it in the background.
    BestEffort,
    /// Answer when it is done.
    Blocking,
}

/// How long a payload is pinned.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Pin {
    /// Not pinned.
    #[default]
    None,
    /// Until this moment.
    Until(WallMs),
    /// Until Unpin.
    Forever,
}

impl Pin {
    /// True when the pin holds at `wall`.
    pub fn holds_at(self, wall: WallMs) -> bool {
        match self {
            Self::None => false,
            Self::Until(end) => wall < end,
            Self::Forever => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_contradictory_policies_when_validated_then_refused() {
        let void = Some(SpillTarget::Void);
        let disk = Some(SpillTarget::Tier(Tier::Disk));
        let ok = EvictionPolicy { spill_target: disk, min_residency: Some(Tier::Disk), ..Default::default() };
        assert!(ok.validate().is_ok());
        assert!(
            EvictionPolicy { require_durable: true, spill_target: void, ..Default::default() }
                .validate()
                .is_err()
        );
        assert!(
            EvictionPolicy { spill_target: disk, min_residency: Some(Tier::Ram), ..Default::default() }
                .validate()
                .is_err()
        );
        assert!(
            EvictionPolicy { spill_target: void, min_residency: Some(Tier::Ram), ..Default::default() }
                .validate()
                .is_err()
        );
    }

    #[test]
    fn given_two_pins_when_compared_then_the_longer_is_greater() {
        assert!(Pin::Forever > Pin::Until(WallMs::MAX) && Pin::Until(WallMs::from_millis(1)) > Pin::None);
    }
}
