//! Bounds on what the front takes in: requests in flight and open connections. One [`Gate`] each.
//!
//! A gate is a counter with a limit. Whoever enters holds a [`Permit`] and leaves by dropping it, so that a
//! cancelled request or a broken connection can never keep its place. A full gate is a value that the caller turns
//! into an answer: RESOURCE_EXHAUSTED for a request, a closed socket for a connection. Nobody waits here.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A counter with a limit, shared by its clones.
#[derive(Clone, Debug)]
pub struct Gate {
    inner: Arc<Counter>,
}

#[derive(Debug)]
struct Counter {
    limit: usize,
    taken: AtomicUsize,
}

impl Gate {
    /// A gate that lets `limit` in at a time.
    pub fn new(limit: usize) -> Self {
        Self { inner: Arc::new(Counter { limit, taken: AtomicUsize::new(0) }) }
    }

    /// Takes a place; `None` when all are taken.
    pub fn enter(&self) -> Option<Permit> {
        // Count first, look afterwards: two callers can never both take the last place.
        let before = self.inner.taken.fetch_add(1, Ordering::Relaxed);
        let permit = Permit { counter: Arc::clone(&self.inner) };
        (before < self.inner.limit).then_some(permit)
    }

    /// How many are inside now.
    pub fn taken(&self) -> usize {
        self.inner.taken.load(Ordering::Relaxed)
    }

    /// How many may be inside.
    pub fn limit(&self) -> usize {
        self.inner.limit
    }
}

/// A place inside a [`Gate`]; dropping it gives the place back.
#[derive(Debug)]
pub struct Permit {
    counter: Arc<Counter>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.counter.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_full_gate_when_one_leaves_then_one_may_enter() {
        let gate = Gate::new(2);
        let first = gate.enter().expect("two places");
        let _second = gate.enter().expect("two places");
        assert!(gate.enter().is_none());
        assert_eq!(gate.taken(), 2, "a refused caller takes no place");
        drop(first);
        assert!(gate.enter().is_some());
        assert_eq!(gate.taken(), 1, "the last permit was dropped at once");
    }

    #[test]
    fn given_a_gate_of_none_when_entered_then_refused() {
        assert!(Gate::new(0).enter().is_none());
    }
}
