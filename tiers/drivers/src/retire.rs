//! A tier's retire thread: frees dropped replicas once nobody has them open or mapped. Segments that nobody has are freed
//! by the workers themselves (`FileStore::drop_at_once`), and never come here.
//!
//! ```text
//! worker: detached --lane--> [ due: probe -> freed | held: again in 1 ms, 2 ms, ... 4 s ] -> completion
//! ```
//! One thread, one descriptor, and that only while it probes. What it remembers of a replica is its name: 80 bytes.
//! Limit: every entry is a replica whose pages (at least one) are still charged to its tier, so there are at most
//! capacity / 4096 of them, and a tier that is full of them makes no more. Held ones cost one open, fcntl and close
//! every 4 s: 10,000 of them 10 ms a second.
//! `Freed` notices are given to the sink as they come: the completion lane takes them all (`RETIRED_NOTICES_MAX`).
//! At shutdown everything is probed once more; what is still held stays in the intent log for the next boot.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError};
use payload_types::ShardIndex;
use payload_types::effect::ReplicaRef;
use payload_types::event::{Completion, StorageDone};

use crate::CompletionSink;
use crate::store::limbo::Limbo;
use crate::stores::Stores;

/// The first look after one that found a holder.
const RETRY_FIRST: Duration = Duration::from_millis(1);

/// The longest pause between two looks.
const RETRY_LAST: Duration = Duration::from_secs(4);

/// Doublings from `RETRY_FIRST` to `RETRY_LAST`: 1 ms x 2^12 = 4.096 s.
const RETRY_DOUBLINGS: u32 = 12;

const _: () = assert!(RETRY_FIRST.as_millis() << RETRY_DOUBLINGS >= RETRY_LAST.as_millis());

/// A dropped replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Retired {
    /// Who is told.
    pub(crate) shard: ShardIndex,
    pub(crate) replica: ReplicaRef,
    /// Its public name is gone, and the shard knows.
    pub(crate) is_detached: bool,
}

/// The retire thread's own.
pub(crate) struct Retirement {
    stores: Arc<Stores>,
    sink: CompletionSink,
    /// By the moment of the next look; the number keeps equal moments apart. With it, how often it was held.
    waiting: BTreeMap<(Instant, u64), (Retired, u32)>,
    /// Numbers the entries; begins above those of the orphans.
    looks: u64,
}

impl Retirement {
    /// `orphans` are looked at first, when the thread runs.
    pub(crate) fn new(stores: Arc<Stores>, sink: CompletionSink, orphans: Vec<Retired>) -> Self {
        let now = Instant::now();
        let waiting = (0..).zip(orphans).map(|(number, orphan)| ((now, number), (orphan, 0))).collect();
        Self { stores, sink, waiting, looks: u64::MAX / 2 }
    }

    /// Runs until every sender of the lane is gone.
    pub(crate) fn run(mut self, lane: &Receiver<Retired>) {
        loop {
            let received = match self.waiting.first_key_value() {
                None => lane.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some((&(due, _), _)) => lane.recv_deadline(due),
            };
            match received {
                Ok(retired) => self.look(retired, 0),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let now = Instant::now();
            while let Some(entry) = self.waiting.first_entry()
                && entry.key().0 <= now
            {
                let (retired, refusals) = entry.remove();
                self.look(retired, refusals);
            }
        }
        for (retired, refusals) in std::mem::take(&mut self.waiting).into_values() {
            self.look(retired, refusals);
        }
        if !self.waiting.is_empty() {
            tracing::info!(
                held = self.waiting.len(),
                "dropped replicas that clients still map wait for the next start"
            );
        }
    }

    /// Frees it, or puts it back for later.
    fn look(&mut self, mut retired: Retired, refusals: u32) {
        let freed = catch_unwind(AssertUnwindSafe(|| self.try_free(&mut retired, refusals))).unwrap_or(false);
        if !freed {
            let pause = RETRY_FIRST.saturating_mul(1 << refusals.min(RETRY_DOUBLINGS)).min(RETRY_LAST);
            self.looks += 1;
            self.waiting.insert((Instant::now() + pause, self.looks), (retired, refusals + 1));
        }
    }

    fn try_free(&self, retired: &mut Retired, refusals: u32) -> bool {
        let replica = retired.replica;
        let (tier, generation) = (replica.tier, replica.generation);
        let store = self.stores.get(tier).expect("only what a store detached is retired");
        let freed = (|| {
            if !retired.is_detached {
                store.detach(&replica)?;
                retired.is_detached = true;
                self.tell(retired.shard, StorageDone::Detached { tier, generation });
            }
            store.try_free(&replica)
        })();
        match freed {
            Ok(Limbo::Freed) => {
                self.tell(retired.shard, StorageDone::Freed { tier, generation });
                true
            }
            Ok(Limbo::Held) => false,
            Err(error) => {
                // Once for each: on a read-only disk none of them can go.
                if refusals == 0 {
                    tracing::warn!(%tier, id = %replica.id, "dropping a replica failed and is tried again: {error}");
                }
                false
            }
        }
    }

    fn tell(&self, shard: ShardIndex, done: StorageDone) {
        (self.sink)(shard, Completion::Storage(done));
    }
}
