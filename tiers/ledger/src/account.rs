//! A shard's share of one tier: what the budget arbiter granted, and what of it is charged.

use payload_types::ByteCount;

/// Capacity in whole pages. Invariant: `charged <= granted`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Account {
    granted: u64,
    charged: u64,
    /// The most that was charged at a time.
    peak: u64,
}

impl Account {
    /// Charges `bytes`; false when the grant does not cover it, and nothing changes.
    #[must_use]
    pub fn charge(&mut self, bytes: ByteCount) -> bool {
        if self.spare() < bytes {
            return false;
        }
        self.charged += bytes.0;
        self.peak = self.peak.max(self.charged);
        true
    }

    /// Takes a charge back.
    ///
    /// # Panics
    /// When more is taken back than was charged: the books would be wrong from here on.
    pub fn release(&mut self, bytes: ByteCount) {
        assert!(bytes.0 <= self.charged, "released {} of {} charged", bytes.0, self.charged);
        self.charged -= bytes.0;
    }

    /// The arbiter granted `bytes` more.
    pub fn grant(&mut self, bytes: ByteCount) {
        self.granted += bytes.0;
    }

    /// Gives up the spare grant beyond `keep`, and says how much that was.
    pub fn give_up(&mut self, keep: ByteCount) -> ByteCount {
        let bytes = self.spare().0.saturating_sub(keep.0);
        self.granted -= bytes;
        ByteCount(bytes)
    }

    /// Charges what is already there at boot, whatever the capacity is now.
    pub fn adopt(&mut self, bytes: ByteCount) {
        self.granted += bytes.0;
        self.charged += bytes.0;
        self.peak = self.peak.max(self.charged);
    }

    /// Granted and not charged.
    pub fn spare(&self) -> ByteCount {
        ByteCount(self.granted - self.charged)
    }

    /// Charged.
    pub fn charged(&self) -> ByteCount {
        ByteCount(self.charged)
    }

    /// The most that was charged at a time.
    pub fn peak(&self) -> ByteCount {
        ByteCount(self.peak)
    }

    /// Granted.
    pub fn granted(&self) -> ByteCount {
        ByteCount(self.granted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_grant_when_charged_released_and_given_up_then_the_books_balance() {
        let mut account = Account::default();
        assert!(!account.charge(ByteCount(1)));
        account.grant(ByteCount(100));
        assert!(account.charge(ByteCount(60)) && !account.charge(ByteCount(41)));
        assert_eq!(account.give_up(ByteCount(10)), ByteCount(30));
        account.release(ByteCount(60));
        assert_eq!((account.spare(), account.charged()), (ByteCount(70), ByteCount::ZERO));
        assert_eq!(account.peak(), ByteCount(60), "what was charged once stays the peak");
        assert_eq!(account.give_up(ByteCount::ZERO), ByteCount(70));
    }

    #[test]
    #[should_panic(expected = "released 2 of 1 charged")]
    fn given_a_charge_when_released_twice_then_it_panics() {
        let mut account = Account::default();
        account.adopt(ByteCount(1));
        account.release(ByteCount(2));
    }
}
