//! Reads a replica again and compares it with its checksum. No destination, and no client sees what was read.
//!
//! ```text
//! file or segment --reads--> staging --hash--> as expected?        pace: so many bytes a second, over all replicas
//! ```
//! Run by one thread with an engine of its own, so a scrub takes at most one stream's share of the disk from copies.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use payload_types::effect::ReplicaRef;
use payload_types::event::{DriverError, DriverErrorKind};
use payload_types::limits::PAGE_BYTES;
use payload_types::{Checksum, Tier};
use xxhash_rust::xxh3::Xxh3;

use super::pipeline::Pipeline;
use super::{chunk_count, chunk_length, chunk_offset, go_direct, read_ordered, unread};
use crate::fault::finding;
use crate::store::{FileStore, offset_of};

/// How far ahead of its pace a scrub may run: small replicas are read in bursts of this long.
const AHEAD: Duration = Duration::from_millis(50);

/// What a replica counts for at least: finding a file costs more than a page.
const BYTES_MIN: u64 = 4 * PAGE_BYTES;

/// Ends a wait of the scrub thread, at shutdown.
#[derive(Default)]
pub(crate) struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    pub(crate) fn stop(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits so long. False: it is time to end.
    fn wait(&self, time: Duration) -> bool {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(stopped, time, |stopped| !*stopped);
        !*waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Keeps the scrub thread to its pace, replica after replica.
pub(crate) struct Pace<'stop> {
    stop: &'stop Stop,
    /// When what was read so far should have been read.
    due: Instant,
}

impl<'stop> Pace<'stop> {
    pub(crate) fn new(stop: &'stop Stop) -> Self {
        Self { stop, due: Instant::now() }
    }

    /// So many bytes were read: waits until it is time for more. False: it is time to end.
    pub(crate) fn keep(&mut self, bytes: u64, bytes_per_second: u64) -> bool {
        let now = Instant::now();
        if bytes_per_second > 0 {
            // Time in which nothing was verified is not caught up.
            self.due = self.due.max(now) + Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64);
        }
        let early = self.due.saturating_duration_since(now);
        self.stop.wait(if early > AHEAD { early } else { Duration::ZERO })
    }
}

/// Verifies one replica.
///
/// # Errors
/// `Missing`, `Truncated`, `Corrupt`: its bytes are not what was committed; `Io`: it could not be read to its end.
pub(crate) fn verify(
    replica: &ReplicaRef,
    expected: Option<Checksum>,
    bytes_per_second: u64,
    store: &FileStore,
    pipeline: &mut Pipeline,
    pace: &mut Pace<'_>,
) -> Result<(), DriverError> {
    let (source, _) = store.open(replica)?;
    let mut paced = |bytes: u64| {
        let goes_on = pace.keep(bytes, bytes_per_second);
        goes_on.then_some(()).ok_or_else(|| finding(DriverErrorKind::Io, "the server is stopping"))
    };
    let Some(expected) = expected else { return paced(BYTES_MIN) };
    let mut hasher = Xxh3::new();
    let mut take = |bytes: &[u8]| {
        hasher.update(bytes);
        paced((bytes.len() as u64).max(BYTES_MIN))
    };
    let failed = |error: &io::Error| unread(replica, error);
    if replica.tier == Tier::Ram {
        for index in 0..chunk_count(replica.size) {
            let buffer = &mut pipeline.buffer(0)[..chunk_length(replica.size, index)];
            let offset = offset_of(replica) + chunk_offset(index);
            source.read_exact_at(buffer, offset).map_err(|error| failed(&error))?;
            take(buffer)?;
        }
    } else {
        let _reading = store.health.as_ref().map(|health| health.watch(replica.size));
        let begin = offset_of(replica);
        go_direct(&source);
        let source = Arc::new(source);
        read_ordered(&source, begin, replica.size, pipeline, failed, |_, bytes| take(bytes)).inspect_err(
            |error| {
                if let Some(health) = &store.health
                    && error.kind == DriverErrorKind::Io
                {
                    health.read_failed();
                }
            },
        )?;
    }
    let found = Checksum(hasher.digest());
    if found == expected {
        return Ok(());
    }
    let (id, tier) = (replica.id, replica.tier);
    let message = format!("{id} on {tier} has checksum {found}; it must be {expected}");
    Err(finding(DriverErrorKind::Corrupt, message))
}
