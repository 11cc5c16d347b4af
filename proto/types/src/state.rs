//! The only state-transition table there is (DESIGN §4).

use std::fmt;

/// A payload's lifecycle state. `Committing` is internal: the contract shows it as ALLOCATED.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum PayloadState {
    /// Space is reserved; the producer writes.
    Allocated = 1,
    /// Commit was asked for and its catalog transaction is under way.
    Committing = 9,
    /// Committed; volatile replicas only.
    Active = 2,
    /// Committed; a slower replica is being written.
    Spilling = 3,
    /// A disk or object replica exists.
    Durable = 4,
    /// Being moved down under memory pressure.
    Evicting = 5,
    /// Delete was asked for and its catalog transaction is under way.
    Deleting = 6,
    /// The ttl passed; removed when the last lease ends.
    Expired = 7,
    /// Gone.
    Deleted = 8,
}

impl PayloadState {
    /// Every state, in the contract's order.
    pub const ALL: [Self; 9] = [
        Self::Allocated,
        Self::Active,
        Self::Spilling,
        Self::Durable,
        Self::Evicting,
        Self::Deleting,
        Self::Expired,
        Self::Deleted,
        Self::Committing,
    ];

    /// The states that may follow this one.
    pub const fn successors(self) -> &'static [Self] {
        use PayloadState::*;
        match self {
            Allocated => &[Committing, Durable, Deleting, Expired, Deleted],
            Committing => &[Allocated, Active, Durable],
            Active => &[Spilling, Evicting, Durable, Deleting, Expired],
            Spilling => &[Active, Durable, Deleting, Expired],
            Durable => &[Deleting, Expired],
            Evicting => &[Active, Durable, Deleting, Expired],
            // A delete whose transaction failed leaves the payload as it was.
            Deleting => &[Allocated, Active, Durable, Expired, Deleted],
            Expired => &[Deleting, Deleted],
            Deleted => &[],
        }
    }

    /// True when `next` may follow this state.
    pub fn may_become(self, next: Self) -> bool {
        self.successors().contains(&next)
    }

    /// True when leases may be granted.
    pub const fn is_readable(self) -> bool {
        matches!(self, Self::Active | Self::Spilling | Self::Durable | Self::Evicting)
    }

    /// True when Commit was acknowledged, or may have been.
    pub const fn is_committed(self) -> bool {
        !matches!(self, Self::Allocated | Self::Committing)
    }

    /// The state with this number in the contract and in the catalog.
    pub fn from_number(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|state| *state as i64 == number)
    }
}

impl fmt::Display for PayloadState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Allocated => "ALLOCATED",
            Self::Committing => "COMMITTING",
            Self::Active => "ACTIVE",
            Self::Spilling => "SPILLING",
            Self::Durable => "DURABLE",
            Self::Evicting => "EVICTING",
            Self::Deleting => "DELETING",
            Self::Expired => "EXPIRED",
            Self::Deleted => "DELETED",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_the_table_when_walked_then_every_state_is_reached_and_deleted_is_the_end() {
        let mut reached = vec![PayloadState::Allocated];
        let mut next = 0;
        while next < reached.len() {
            for state in reached[next].successors() {
                if !reached.contains(state) {
                    reached.push(*state);
                }
            }
            next += 1;
        }
        assert_eq!(reached.len(), PayloadState::ALL.len());
        assert!(PayloadState::Deleted.successors().is_empty());
    }

    #[test]
    fn given_a_durable_payload_when_promoted_or_spilled_then_its_state_stays() {
        assert!(
            !PayloadState::Durable.may_become(PayloadState::Active),
            "a durable replica is never dropped by a promote"
        );
    }
}
