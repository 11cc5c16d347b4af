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

    /// Writes it (Release), and then a full fence.
    #[inline]
    fn store_and_fence(&self, value: u64) {
        self.store(value, Ordering::Release);
        Self::fence(Ordering::SeqCst);
    }
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

    /// On x86 an exchange is a store and a full fence in one instruction (Intel SDM 3A, 9.2.3.9: locked instructions have a total
    /// order, and loads and stores do not pass them), and takes half the time of MFENCE. Nowhere else: on ARM later loads may
    /// pass the store half of an exchange.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    fn store_and_fence(&self, value: u64) {
        self.swap(value, Ordering::SeqCst);
        // The compiler keeps the order, too.
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
    }
}
