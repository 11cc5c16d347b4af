//! What a boot finds: which replicas are still there, and which ones nobody wants.
//!
//! ```text
//! verify    look at each name (no lock) -> note what is kept (one lock a batch)      any threads, batch by batch
//! reclaim   remove what nobody vouched for -> write the log anew if it says something else       once, afterwards
//! ```
//! Used before any thread of the drivers has started. A boot does this for 10^6 replicas, so a name is looked at
//! without being opened, relative to its tier's directory, and the tables are filled once.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use foldhash::fast::RandomState;
use payload_types::effect::ReplicaRef;
use payload_types::event::DriverErrorKind;
use payload_types::{Generation, PayloadId, Tier};

use super::FileStore;
use super::limbo::Limbo;
use crate::intent::{Live, Named};
use crate::naming::Names;
use crate::sys;

/// What the intent log named when it was opened, and what became of it.
pub(crate) struct Found {
    replicas: Live,
    /// True when the log does not name all of them.
    has_unnamed: bool,
    /// Of segments, the newest generation of each id: the owner of its public name.
    newest: HashMap<PayloadId, Generation, RandomState>,
}

/// What a look at a replica's name showed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    /// It is there at its full size.
    Whole,
    /// It is not.
    Absent,
    /// It could not be looked at: it is not served now, and not destroyed either.
    Unreadable,
}

/// Looks at the names of one tier.
pub(crate) struct Looker<'store> {
    store: &'store FileStore,
    /// `None` where it cannot be opened: every name is then opened to see why.
    base: Option<File>,
    name: String,
}

impl<'store> Looker<'store> {
    pub(crate) fn new(store: &'store FileStore) -> Self {
        let base = File::open::<&Path>(&store.names.base()).ok();
        Self { store, base, name: String::new() }
    }

    /// What is under the replica's public name.
    pub(crate) fn look(&mut self, replica: &ReplicaRef) -> Seen {
        if let Some(base) = &self.base {
            self.store.names.public_below_base(replica, &mut self.name);
            if let Ok(found) = sys::look(base, &mut self.name)
                && found.is_file
                && found.owner_may_read
                && found.user == self.store.user
                && found.bytes >= replica.size.0
            {
                return Seen::Whole;
            }
        }
        // Whatever else it is, opening it says so.
        match self.store.open(replica) {
            Ok(_) => Seen::Whole,
            Err(error) => {
                tracing::debug!(tier = %replica.tier, id = %replica.id, "a replica did not survive: {}", error.message);
                match error.kind {
                    DriverErrorKind::Io | DriverErrorKind::Full => Seen::Unreadable,
                    _ => Seen::Absent,
                }
            }
        }
    }
}

/// What `reclaim` did on one tier.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reclaimed {
    /// Replicas that are gone now: leftovers of a crash and what had been dropped before it.
    pub removed: u64,
    /// Their bytes.
    pub removed_bytes: u64,
    /// Replicas that somebody still has open or mapped, or that lie in segment files: nobody finds them any more, they
    /// are removed when they are let go or their file is recycled, and until then they take space.
    pub held: u64,
    /// Their bytes.
    pub held_bytes: u64,
}

impl Found {
    pub(crate) fn new(tier: Tier, replicas: Live) -> Self {
        let mut newest = HashMap::default();
        if tier == Tier::Ram {
            for &(id, generation) in replicas.keys() {
                let owner = newest.entry(id).or_insert(generation);
                *owner = generation.max(*owner);
            }
        }
        Self { replicas, has_unnamed: false, newest }
    }

    /// How many replicas there are: those that the log named, and those that rows vouched for.
    pub(crate) fn len(&self) -> usize {
        self.replicas.len()
    }

    /// A row vouches for the replica, and its name was looked at: whether it is there. It is kept if so.
    pub(crate) fn vouch(&mut self, store: &FileStore, replica: &ReplicaRef, seen: Seen) -> bool {
        let key = (replica.id, replica.generation);
        let named = self.replicas.get_mut(&key);
        // A segment that this boot's log does not name is of another boot, or the name is another generation's.
        let is_segment = matches!(store.names, Names::Segments { .. });
        if is_segment && (named.is_none() || self.newest.get(&key.0) != Some(&key.1)) {
            return false;
        }
        match named {
            _ if seen == Seen::Absent => {}
            Some(named) => named.keep = true,
            None => {
                self.replicas.insert(key, Named { size: replica.size, keep: true });
                self.has_unnamed = true;
            }
        }
        seen == Seen::Whole
    }

    /// Removes what nobody vouched for. Answers what was done, and the replicas in limbo that
    /// somebody holds.
    pub(crate) fn reclaim(mut self, store: &FileStore, tier: Tier) -> (Reclaimed, Vec<ReplicaRef>) {
        let mut tally = Reclaimed::default();
        let mut held = Vec::new();
        let left = |(&(id, generation), named): (&(PayloadId, Generation), &Named)| {
            (!named.keep).then_some(ReplicaRef {
                tier,
                id,
                generation,
                size: named.size,
                extent: None,
                block: None,
            })
        };
        let leftovers: Vec<ReplicaRef> = self.replicas.iter().filter_map(left).collect();
        for replica in leftovers {
            match self.remove(store, &replica) {
                Ok(Limbo::Freed) => {
                    self.replicas.remove(&(replica.id, replica.generation));
                    tally.removed += 1;
                    tally.removed_bytes += replica.size.0;
                    continue;
                }
                Ok(Limbo::Held) => held.push(replica),
                // Not looked at again before the next start: its public name may be another generation's by then.
                Err(error) => {
                    tracing::warn!(%tier, id = %replica.id, "a leftover could not be removed, and is kept: {error}")
                }
            }
            tally.held += 1;
            tally.held_bytes += replica.size.0;
        }
        if let Some(packed) = &store.packed {
            let mut books = packed.books();
            self.replicas.values().for_each(|named| books.own_added(named.size));
        }
        if let Some(pool) = &store.pool {
            // Nothing is kept yet.
            for named in self.replicas.values() {
                pool.add_live(named.size, |_| {});
            }
        }
        // A log that names just these, and nothing that is gone, is left as it is: 48 MB for 10^6 replicas.
        let is_current = !self.has_unnamed && store.log.records() == self.replicas.len() as u64;
        if !is_current && let Err(error) = store.log.rewrite(&self.replicas) {
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
