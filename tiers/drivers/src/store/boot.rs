//! What a boot finds: which replicas are still there, and which ones nobody wants.
//!
//! Used by one thread before any other has started. `verify` is called for every replica that a row vouches for,
//! then `reclaim` once; the table is gone after that.

use std::collections::HashMap;
use std::fs;
use std::io;

use payload_types::effect::ReplicaRef;
use payload_types::event::DriverErrorKind;
use payload_types::{ByteCount, Generation, PayloadId, Tier};

use super::FileStore;
use super::limbo::Limbo;
use crate::intent::Live;
use crate::naming::Names;

/// What the intent log named when it was opened.
pub(crate) struct Found {
    replicas: HashMap<(PayloadId, Generation), Named>,
    /// The newest generation of each id: the owner of a segment's public name.
    newest: HashMap<PayloadId, Generation>,
}

struct Named {
    size: ByteCount,
    /// Stays whatever happens: a row vouches for it, or it could not be looked at.
    keep: bool,
}

/// What `reclaim` did on one tier.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reclaimed {
    /// Replicas that are gone now: leftovers of a crash and what had been dropped before it.
    pub removed: u64,
    /// Their bytes.
    pub removed_bytes: u64,
    /// Replicas that somebody still has open or mapped. They have lost their names, they are removed when they are
    /// let go, and until then they take space that no shard is charged for.
    pub held: u64,
    /// Their bytes.
    pub held_bytes: u64,
}

impl Found {
    pub(crate) fn new(live: Live) -> Self {
        let mut newest = HashMap::with_capacity(live.len());
        for &(id, generation) in live.keys() {
            let owner = newest.entry(id).or_insert(generation);
            *owner = generation.max(*owner);
        }
        let replicas = live.into_iter().map(|(key, size)| (key, Named { size, keep: false })).collect();
        Self { replicas, newest }
    }

    /// How many replicas the log named.
    pub(crate) fn len(&self) -> usize {
        self.replicas.len()
    }

    /// Whether the replica is there at its full size. It is kept if so.
    pub(crate) fn verify(&mut self, store: &FileStore, replica: &ReplicaRef) -> bool {
        let key = (replica.id, replica.generation);
        // A segment that this boot's log does not name is of another boot, or the name is another generation's.
        let is_segment = matches!(store.names, Names::Segments { .. });
        if is_segment && (!self.replicas.contains_key(&key) || self.newest.get(&key.0) != Some(&key.1)) {
            return false;
        }
        let found = store.open(replica);
        let keep = match &found {
            Ok(_) => true,
            // Unreadable is not absent: it is not served now, and not destroyed either.
            Err(error) => matches!(error.kind, DriverErrorKind::Io | DriverErrorKind::Full),
        };
        if let Err(error) = &found {
            tracing::debug!(tier = %replica.tier, id = %replica.id, "a replica did not survive: {}", error.message);
        }
        if keep {
            self.replicas.insert(key, Named { size: replica.size, keep: true });
        }
        found.is_ok()
    }

    /// Removes what nobody vouched for. Answers what was done, and the replicas in limbo that
    /// somebody holds.
    pub(crate) fn reclaim(self, store: &FileStore, tier: Tier) -> (Reclaimed, Vec<ReplicaRef>) {
        let mut tally = Reclaimed::default();
        let mut held = Vec::new();
        let mut live = Live::new();
        for (&(id, generation), named) in &self.replicas {
            let replica = ReplicaRef { tier, id, generation, size: named.size };
            if named.keep {
                live.insert((id, generation), named.size);
                continue;
            }
            match self.remove(store, &replica) {
                Ok(Limbo::Freed) => {
                    tally.removed += 1;
                    tally.removed_bytes += named.size.0;
                    continue;
                }
                Ok(Limbo::Held) => held.push(replica),
                // Not looked at again before the next start: its public name may be another generation's by then.
                Err(error) => {
                    tracing::warn!(%tier, %id, "a leftover could not be removed, and is kept: {error}")
                }
            }
            tally.held += 1;
            tally.held_bytes += named.size.0;
            live.insert((id, generation), named.size);
        }
        if let Err(error) = store.log.rewrite(&live) {
            tracing::warn!(%tier, "the intent log could not be compacted, and is used as it is: {error}");
        }
        (tally, held)
    }

    /// Every name that is the replica's own. A segment's public name is that of its id's newest generation.
    fn remove(&self, store: &FileStore, replica: &ReplicaRef) -> io::Result<Limbo> {
        match fs::remove_file(store.names.draft(replica)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if matches!(store.names, Names::Files { .. }) || self.newest[&replica.id] == replica.generation {
            store.detach(replica)?;
        }
        store.try_free(replica)
    }
}
