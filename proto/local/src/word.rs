//! [`Word`]: what the protocols need of a 64-bit atomic, so that the model checker's atomics run the shipped code.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// A 64-bit atomic. The orderings are those of the standard library.
pub trait Word {
    /// Reads it.
    fn load(&self, ordering: Ordering) -> u64;

    /// Writes it.
    fn store(&self, value: u64, ordering: Ordering);

    /// Adds, wrapping, and returns what was there before.
    fn fetch_add(&self, value: u64, ordering: Ordering) -> u64;

    /// Orders this thread's accesses.
    fn fence(ordering: Ordering);
}

impl Word for AtomicU64 {
    #[inline]
    fn load(&self, ordering: Ordering) -> u64 {
        AtomicU64::load(self, ordering)
    }

    #[inline]
    fn store(&self, value: u64, ordering: Ordering) {
        AtomicU64::store(self, value, ordering);
    }

    #[inline]
    fn fetch_add(&self, value: u64, ordering: Ordering) -> u64 {
        AtomicU64::fetch_add(self, value, ordering)
    }

    #[inline]
    fn fence(ordering: Ordering) {
        fence(ordering);
    }
}
