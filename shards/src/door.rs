//! Whether payloads may leave for a tier: what a shard knows of the room there.
//!
//! ```text
//!   open --the arbiter finds the tier full, or takes an ask back--> ajar: what fits the room it named goes through, and of
//!        the rest one at a time, which waits in the arbiter's queue with everybody else
//!   ajar --who waited is served, or the pressure there is over--> open
//!   any --copies to it fail, one after another--> shut --a pause--> ajar
//! ```
//! While a door is not open, who needs room behind it is left out of the choice of victims, and who needs none goes. No
//! news is lost by that: who waits in the arbiter's queue hears of room first of all.

/// After failures a tier is left alone for the pause of the configuration, doubled so often: 500 ms to 32 s.
const PAUSE_DOUBLINGS: u8 = 6;

/// See the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Door {
    /// `None`: open. Else so much is free there.
    room: Option<u64>,
    /// Copies that failed there since one did not.
    failures: u8,
    is_shut: bool,
}

impl Door {
    /// The largest payload that may go through now, in bytes; 0: none. `waits`: an eviction waits for room there.
    pub fn limit(&self, waits: bool) -> u64 {
        match self.room {
            _ if self.is_shut => 0,
            Some(room) if waits => room,
            _ => u64::MAX,
        }
    }

    /// The arbiter said what room there is: `None`: the tier is not full.
    pub fn told(&mut self, room: Option<u64>) {
        self.room = room;
    }

    /// Somebody who waited for room there was served.
    pub fn opens(&mut self) {
        self.room = None;
    }

    /// Somebody asks for room there; true when he asks for more than there is.
    pub fn takes(&mut self, bytes: u64) -> bool {
        let Some(room) = &mut self.room else { return false };
        match room.checked_sub(bytes) {
            Some(left) => *room = left,
            None => return true,
        }
        false
    }

    /// A copy arrived there.
    pub fn works(&mut self) {
        self.failures = 0;
    }

    /// A copy failed there. After the second one in a row the door is shut, for the pause times this factor; `None`: it
    /// stays as it is.
    pub fn fails(&mut self) -> Option<u64> {
        // The others that were under way say nothing new.
        if self.is_shut {
            return None;
        }
        self.failures = self.failures.saturating_add(1);
        let doublings = self.failures.checked_sub(2)?;
        self.is_shut = true;
        Some(1 << doublings.min(PAUSE_DOUBLINGS))
    }

    /// The pause is over: one is tried.
    pub fn pause_ends(&mut self) {
        self.is_shut = false;
        self.room = Some(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_full_tier_when_somebody_waits_there_then_only_what_fits_goes_on() {
        let mut door = Door::default();
        assert!(!door.takes(100) && door.limit(true) == u64::MAX, "open");
        door.told(Some(50));
        assert_eq!((door.limit(false), door.limit(true)), (u64::MAX, 50));
        assert!(door.takes(60) && !door.takes(30));
        assert_eq!(door.limit(true), 20);
        door.opens();
        assert_eq!(door.limit(true), u64::MAX);
    }

    #[test]
    fn given_a_tier_that_fails_when_tried_then_it_is_left_alone_longer_each_time_until_a_copy_arrives() {
        let mut door = Door::default();
        assert_eq!((door.fails(), door.limit(false)), (None, u64::MAX), "one may be the payload's fault");
        assert_eq!((door.fails(), door.fails(), door.limit(false)), (Some(1), None, 0));
        let pauses: Vec<_> = (0..8)
            .map(|_| {
                door.pause_ends();
                assert_eq!((door.limit(false), door.limit(true)), (u64::MAX, 0), "one at a time");
                door.fails()
            })
            .collect();
        assert_eq!(pauses, [2, 4, 8, 16, 32, 64, 64, 64].map(Some));
        door.pause_ends();
        door.works();
        assert_eq!(door.fails(), None);
    }
}
