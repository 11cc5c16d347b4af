//! [`Books`]: what shards have taken of the caps of native sessions, all of the node together.
//!
//! Shared by the shards, each with a clone; asked once for a piece of a cap, not for each lease (`shards::sessions`), so that
//! a lock is enough. Nothing is done under it but a look at a map. Limit: the sessions that hold leases, two numbers each.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use payload_shards::{Capped, NodeBooks};
use payload_types::SessionId;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Books(Arc<Mutex<BTreeMap<SessionId, [u64; 2]>>>);

impl Books {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<SessionId, [u64; 2]>> {
        // Each change of it is whole whenever the lock is free.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NodeBooks for Books {
    fn take(&mut self, session: SessionId, what: Capped, amount: u64, max: u64) -> Result<(), u64> {
        let mut sessions = self.lock();
        let taken = sessions.get(&session).map_or(0, |taken| taken[what as usize]);
        if taken.saturating_add(amount) > max {
            return Err(taken);
        }
        sessions.entry(session).or_default()[what as usize] += amount;
        Ok(())
    }

    fn give(&mut self, session: SessionId, what: Capped, amount: u64) {
        let mut sessions = self.lock();
        let Some(taken) = sessions.get_mut(&session) else { return };
        taken[what as usize] = taken[what as usize].saturating_sub(amount);
        if *taken == [0; 2] {
            sessions.remove(&session);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_shards_that_take_of_one_cap_when_it_is_used_up_then_refused_until_one_gives_back() {
        let (mut one, session) = (Books::default(), SessionId::new(7).expect("not 0"));
        let mut other = one.clone();
        assert_eq!(one.take(session, Capped::Leases, 3, 5), Ok(()));
        assert_eq!(other.take(session, Capped::Leases, 3, 5), Err(3));
        assert_eq!(other.take(session, Capped::Leases, 2, 5), Ok(()));
        assert_eq!(one.take(session, Capped::Leases, 1, 5), Err(5));
        assert_eq!(one.take(session, Capped::LeasedBytes, u64::MAX, u64::MAX), Ok(()), "another cap");
        one.give(session, Capped::LeasedBytes, u64::MAX);
        let stranger = SessionId::new(8).expect("not 0");
        assert_eq!(one.take(stranger, Capped::Leases, 5, 5), Ok(()), "another session");
        one.give(session, Capped::Leases, 3);
        assert_eq!(other.take(session, Capped::Leases, 1, 5), Ok(()));
        other.give(session, Capped::Leases, 3);
        other.give(stranger, Capped::Leases, 5);
        assert!(one.lock().is_empty(), "nothing is kept of who holds nothing");
    }
}
