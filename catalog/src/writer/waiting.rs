//! How much of changes of records may wait for the writer: shards are bounded by their slot tables, clients by this.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Changes of records that wait at most: eight times what one gRPC connection has in flight (128). In the queue they
/// take no place from shards, when it is longer by this.
pub const RECORDS_WAITING_MAX: usize = 1024;

/// What they may weigh together: 16 of the largest messages (4 MiB), or 1,024 of 64 KiB.
pub const RECORD_BYTES_WAITING_MAX: u64 = 64 << 20;

/// What waits, counted when it is queued.
#[derive(Default)]
pub(super) struct Waiting {
    count: AtomicU64,
    bytes: AtomicU64,
}

/// A place among what waits; dropping it frees the place.
pub(super) struct Share {
    waiting: Arc<Waiting>,
    pub(super) bytes: u64,
}

impl Waiting {
    /// A place for a change of `bytes`; `None` when too much waits.
    pub(super) fn enter(waiting: &Arc<Self>, bytes: u64) -> Option<Share> {
        let share = Share { waiting: Arc::clone(waiting), bytes };
        let count = waiting.count.fetch_add(1, Ordering::Relaxed);
        let before = waiting.bytes.fetch_add(bytes, Ordering::Relaxed);
        (count < RECORDS_WAITING_MAX as u64 && before + bytes <= RECORD_BYTES_WAITING_MAX).then_some(share)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.waiting.count.fetch_sub(1, Ordering::Relaxed);
        self.waiting.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_what_waits_when_it_is_too_much_then_refused_until_some_of_it_is_done() {
        let waiting = Arc::new(Waiting::default());
        let mut places: Vec<Share> = (0..RECORDS_WAITING_MAX)
            .map(|_| Waiting::enter(&waiting, 1).expect("room for so many"))
            .collect();
        assert!(Waiting::enter(&waiting, 1).is_none());
        places.pop();
        places.push(Waiting::enter(&waiting, 1).expect("room again"));
        places.clear();
        let most = Waiting::enter(&waiting, RECORD_BYTES_WAITING_MAX).expect("nothing else waits");
        assert!(Waiting::enter(&waiting, 1).is_none());
        drop(most);
        assert!(Waiting::enter(&waiting, RECORD_BYTES_WAITING_MAX + 1).is_none(), "it never fits");
        assert!(Waiting::enter(&waiting, 1).is_some());
    }
}
