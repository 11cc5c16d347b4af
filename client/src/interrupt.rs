//! Ending a wait from the thread that waits: Ctrl-C in a language whose handlers of signals run between its own instructions.
//!
//! ```text
//! interruptible(check, call) --> every blocking wait of this thread looks at `check` each EVERY, and ends when it says so
//! ```
//!
//! Invariants: `check` is called by the waiting thread, without a lock of this library; whatever the call would have brought
//! is given back. A wait that is answered sooner never looks. Once `check` said so, all waits of that call end.

use std::cell::Cell;
use std::time::Duration;

use crate::error::ClientError;

/// How often a wait looks.
pub const EVERY: Duration = Duration::from_millis(100);

thread_local! {
    static CHECK: Cell<Option<fn() -> bool>> = const { Cell::new(None) };
}

/// Runs `call`; its waits on this thread end with [`ClientError::Cancelled`] soon after `check` returned true.
pub fn interruptible<T>(check: fn() -> bool, call: impl FnOnce() -> T) -> T {
    with(Some(check), call)
}

/// Runs what must not be ended half-way: giving something back.
pub(crate) fn uninterrupted<T>(call: impl FnOnce() -> T) -> T {
    with(None, call)
}

fn with<T>(check: Option<fn() -> bool>, call: impl FnOnce() -> T) -> T {
    struct Restore(Option<fn() -> bool>);
    impl Drop for Restore {
        fn drop(&mut self) {
            CHECK.set(self.0);
        }
    }
    let _restored_also_after_a_panic = Restore(CHECK.replace(check));
    call()
}

/// True when waits of this thread are to look.
pub(crate) fn is_watched() -> bool {
    CHECK.get().is_some()
}

/// Looks.
///
/// # Errors
/// [`ClientError::Cancelled`] when the wait is to end.
pub(crate) fn look() -> Result<(), ClientError> {
    match CHECK.get() {
        Some(check) if check() => {
            CHECK.set(Some(|| true));
            Err(ClientError::Cancelled)
        }
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn given_a_check_when_its_call_is_over_then_the_one_before_counts_again() {
        fn once() -> bool {
            static SAID: AtomicBool = AtomicBool::new(false);
            !SAID.swap(true, Ordering::Relaxed)
        }
        assert!(!is_watched() && look().is_ok());
        let inner = || {
            uninterrupted(|| assert!(!is_watched() && look().is_ok()));
            for _ in 0..2 {
                assert!(matches!(look(), Err(ClientError::Cancelled)), "it stays so");
            }
        };
        let outer = || {
            interruptible(once, inner);
            assert!(is_watched() && look().is_ok());
        };
        interruptible(|| false, outer);
        assert!(!is_watched());
    }
}
