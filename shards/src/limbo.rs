//! Replicas that were dropped and whose space is not free yet (DESIGN §4, "retire, never wait").
//!
//! ```text
//!   held (leases or copies need it) -> queued -> dropping (driver told) -> detached (name gone) -> freed (charge ends)
//!     |    ^------- revived, while no driver was told
//!     +--> waiting (the removal of its row is not durable yet) -> dropping
//! ```

use payload_ledger::list::{Ends, Linked, Links};
use payload_ledger::{SlotKey, Slots, list};
use payload_types::effect::ReplicaRef;
use payload_types::{Generation, PerTier, Tier, limits};

use crate::index::Index;

/// How far a drop has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Leases or copies still need it.
    Held,
    /// Nobody needs it, but a loss of power could bring its row back.
    Waiting,
    /// Nobody needs it; the driver is told when it has room.
    Queued,
    /// The driver is taking its name away.
    Dropping,
    /// Its name is gone; somebody may still have it mapped.
    Detached,
}

/// One dropped replica.
#[derive(Debug)]
pub struct Entry {
    /// What drivers call it.
    pub replica: ReplicaRef,
    /// Its payload, while that exists.
    pub payload: Option<SlotKey>,
    /// Leases that need it.
    pub leases: u32,
    /// Copies that read it.
    pub copies: u32,
    /// On stable storage.
    pub synced: bool,
    /// False when its bytes were found damaged: it never comes back.
    pub sound: bool,
    /// False when what a relocation made, or left, takes its place: the other one of the two has the charge.
    pub charged: bool,
    /// The name under which its block goes on; `None`: it lies in no slab.
    retired: Option<Generation>,
    /// The catalog transaction that must be durable before a driver is told; 0: there is none.
    free_after: u64,
    /// How far the drop has come.
    pub phase: Phase,
    /// It was detached a while ago and is not free yet: somebody outside has it open or mapped, for as long as they
    /// like.
    pub mapped: bool,
    links: Links,
}

impl Entry {
    /// Charged bytes.
    fn bytes(&self) -> u64 {
        if self.charged { self.replica.size.in_pages().0 } else { 0 }
    }

    /// Charged bytes that only wait for a driver.
    fn leaving(&self) -> u64 {
        if self.leases == 0 && !self.mapped { self.bytes() } else { 0 }
    }

    /// How long after it was detached it is free, unless somebody outside has it open or mapped.
    pub fn freed_soon_ms(&self) -> u64 {
        if self.replica.extent.is_some() { PACKED_FREED_SOON_MS } else { FREED_SOON_MS }
    }
}

impl Linked for Entry {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

/// All dropped replicas of a shard.
#[derive(Debug)]
pub struct Limbo {
    entries: Slots<Entry>,
    by_generation: Index,
    queue: Ends,
    /// Those in `Phase::Waiting`, as they came. Most come with ever later transactions; one that comes behind a later
    /// one, because somebody leased it, waits for that: one flush more.
    waiting: Ends,
    /// Catalog transactions up to this one are durable.
    durable: u64,
    dropping: usize,
    /// Charged bytes by tier.
    bytes: PerTier<u64>,
    /// Of those: what only waits for a driver.
    leaving: PerTier<u64>,
}

fn hash(generation: Generation) -> u64 {
    generation.0.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29).wrapping_mul(0xBF58_476D_1CE4_E5B9)
}

/// The most entries. Every replica that exists or is being made may end here, of a payload one on each tier: allocations
/// and copies begin only while all of them would find room ([`Limbo::has_room`]), so that nothing that drops a replica can
/// be refused. That leaves half as much for what is dropped and not free yet: with 4 KiB
/// payloads, which are the smallest that take space, 128 GiB of dead extents a shard that wait for compaction.
pub const ENTRIES_MAX: u32 = 6 * limits::PAYLOADS_PER_SHARD_MAX;

/// Replicas that one payload may leave here at once: one a tier.
const REPLICAS_MAX: u32 = Tier::ALL.len() as u32;

/// A detached replica that nobody has open or mapped is free within this; one that is not is somebody's.
pub const FREED_SOON_MS: u64 = 100;

/// The same for one that shares its file with others: the file is recycled as a whole, after compaction has moved what
/// still lives in it. 5 s are 320 MiB at the default pace: more than one file.
pub const PACKED_FREED_SOON_MS: u64 = 5_000;

impl Default for Limbo {
    fn default() -> Self {
        Self {
            entries: Slots::new(ENTRIES_MAX),
            by_generation: Index::new(),
            queue: Ends::default(),
            waiting: Ends::default(),
            durable: 0,
            dropping: 0,
            bytes: PerTier::default(),
            leaving: PerTier::default(),
        }
    }
}

impl Limbo {
    /// Charged bytes of a tier's entries.
    pub fn bytes(&self, tier: payload_types::Tier) -> u64 {
        self.bytes[tier]
    }

    /// Of those: what no lease holds and, as far as is known, nobody outside; it is free in a moment.
    pub fn leaving(&self, tier: payload_types::Tier) -> u64 {
        self.leaving[tier]
    }

    /// True when one more replica may come to exist: `payloads` and `copies`, those under way, would all find room.
    pub fn has_room(&self, payloads: u32, copies: u32) -> bool {
        self.entries.len() + REPLICAS_MAX * (payloads + 1) + copies < ENTRIES_MAX
    }

    /// Catalog transactions up to this one are durable.
    pub fn transactions_durable(&mut self, sequence: u64) {
        self.durable = self.durable.max(sequence);
    }

    /// Takes a dropped replica in whose row the catalog transaction `free_after` removed, as [`Limbo::insert`].
    pub fn insert_after(
        &mut self,
        replica: ReplicaRef,
        users: Users,
        kept: Kept,
        free_after: u64,
        retired: Option<Generation>,
    ) {
        if let Some(retired) = retired {
            return self.insert_block(replica, users, retired);
        }
        // What is in memory is lost with power anyway.
        let free_after = if replica.tier.is_durable() { free_after } else { 0 };
        self.add(replica, None, users, kept, true, free_after);
    }

    /// Takes in a replica whose block goes on under the name `retired`: its slab has the charge, and nobody can bring it
    /// back, nor tell a driver of it.
    pub fn insert_block(&mut self, replica: ReplicaRef, users: Users, retired: Generation) {
        let kept = Kept { synced: false, sound: false };
        let key = self.add(replica, None, users, kept, false, 0);
        self.entries.get_mut(key).expect("just made").retired = Some(retired);
    }

    /// Takes a dropped replica in, `charged` or not, that no row speaks of.
    pub fn insert(
        &mut self,
        replica: ReplicaRef,
        payload: Option<SlotKey>,
        users: Users,
        kept: Kept,
        charged: bool,
    ) -> SlotKey {
        self.add(replica, payload, users, kept, charged, 0)
    }

    fn add(
        &mut self,
        replica: ReplicaRef,
        payload: Option<SlotKey>,
        users: Users,
        kept: Kept,
        charged: bool,
        free_after: u64,
    ) -> SlotKey {
        let Users { leases, copies } = users;
        let entry = Entry {
            replica,
            payload,
            leases,
            copies,
            synced: kept.synced,
            sound: kept.sound,
            charged,
            retired: None,
            free_after,
            phase: Phase::Held,
            mapped: false,
            links: Links::default(),
        };
        self.leaving[replica.tier] += entry.leaving();
        self.bytes[replica.tier] += entry.bytes();
        let key = self.entries.insert(entry).expect("limbo has room for a replica of every payload");
        self.by_generation.insert(hash(replica.generation), key.index);
        self.queue_if_unused(key);
        key
    }

    /// Takes in what an earlier run of the server left, whose name is gone already. One with a file of its own is there
    /// because somebody has it open; one in a segment file waits for that to be recycled.
    pub fn adopt(&mut self, replica: ReplicaRef) -> SlotKey {
        let kept = Kept { synced: false, sound: false };
        let key = self.insert(replica, None, Users::default(), kept, true);
        list::unlink(&mut self.entries, &mut self.queue, key);
        self.entries.get_mut(key).expect("just made").phase = Phase::Detached;
        if replica.extent.is_none() {
            self.overdue(key);
        }
        key
    }

    fn queue_if_unused(&mut self, key: SlotKey) {
        let entry = self.entries.get_mut(key).expect("the caller holds a live key");
        if entry.leases == 0 && entry.copies == 0 && entry.phase == Phase::Held {
            let waits = entry.free_after > self.durable;
            entry.phase = if waits { Phase::Waiting } else { Phase::Queued };
            let ends = if waits { &mut self.waiting } else { &mut self.queue };
            list::push_back(&mut self.entries, ends, key);
        }
    }

    /// The entry of a generation.
    pub fn find(&self, generation: Generation) -> Option<SlotKey> {
        let is_it = |slot: u32| {
            let entry = self.entries.key_at(slot).and_then(|key| self.entries.get(key));
            entry.is_some_and(|entry| entry.replica.generation == generation)
        };
        self.entries.key_at(self.by_generation.find(hash(generation), is_it)?)
    }

    /// The entry.
    pub fn get(&self, key: SlotKey) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// A lease on it ended. Leases that a forced delete made invalid are not counted here any more.
    pub fn lease_ended(&mut self, key: SlotKey) {
        if let Some(entry) = self.entries.get_mut(key)
            && entry.leases > 0
        {
            entry.leases -= 1;
            self.leaving[entry.replica.tier] += entry.leaving();
            self.queue_if_unused(key);
        }
    }

    /// A copy that read it ended.
    pub fn copy_ended(&mut self, key: SlotKey) {
        let entry = self.entries.get_mut(key).expect("a copied replica stays until the copy ends");
        entry.copies -= 1;
        self.queue_if_unused(key);
    }

    /// The next replica a driver may be told to drop.
    pub fn next_drop(&mut self) -> Option<ReplicaRef> {
        if self.dropping == limits::DROPS_IN_FLIGHT_MAX {
            return None;
        }
        let first = match self.queue.first(&self.entries) {
            Some(first) => {
                list::unlink(&mut self.entries, &mut self.queue, first);
                first
            }
            None => {
                let first = self.durable_head()?;
                list::unlink(&mut self.entries, &mut self.waiting, first);
                first
            }
        };
        self.dropping += 1;
        let entry = self.entries.get_mut(first).expect("queued entries exist");
        entry.phase = Phase::Dropping;
        Some(entry.replica)
    }

    /// The replica that `next_drop` gave lies in a slab: it is gone at once. The name of its block.
    ///
    /// # Panics
    /// When `next_drop` did not just give it.
    pub fn block_dropped(&mut self, generation: Generation) -> Generation {
        let key = self.find(generation).expect("just given");
        self.dropping -= 1;
        self.take(key).retired.expect("only what lies in a slab is dropped so")
    }

    /// True when `next_drop` would give one.
    pub fn has_drop(&self) -> bool {
        self.dropping < limits::DROPS_IN_FLIGHT_MAX && (self.queue.is_some() || self.durable_head().is_some())
    }

    /// The first that waits for a transaction, if that is durable.
    fn durable_head(&self) -> Option<SlotKey> {
        let first = self.waiting.first(&self.entries)?;
        self.entries.get(first).filter(|entry| entry.free_after <= self.durable).map(|_| first)
    }

    /// The driver took the name away. Gives the entry and the payload, while it exists, that may wait for the name.
    pub fn detached(&mut self, generation: Generation) -> Option<(SlotKey, Option<SlotKey>)> {
        let key = self.find(generation)?;
        let entry = self.entries.get_mut(key).expect("just found");
        assert_eq!(entry.phase, Phase::Dropping, "only a replica that a driver was told to drop is detached");
        entry.phase = Phase::Detached;
        self.dropping -= 1;
        Some((key, entry.payload))
    }

    /// The entry was detached a while ago. If it is still there somebody has it mapped, and it counts as leaving no more.
    pub fn overdue(&mut self, key: SlotKey) {
        if let Some(entry) = self.entries.get_mut(key) {
            self.leaving[entry.replica.tier] -= entry.leaving();
            entry.mapped = true;
        }
    }

    /// Nobody has it open or mapped: its charge, if it has one, ends.
    pub fn freed(&mut self, generation: Generation) -> Option<Entry> {
        let key = self.find(generation)?;
        let phase = self.entries.get(key).expect("just found").phase;
        assert_eq!(phase, Phase::Detached, "a replica is detached before it is free");
        Some(self.take(key))
    }

    /// Takes a sound entry back that no driver was told about; `None` when it is too late.
    pub fn revive(&mut self, key: SlotKey) -> Option<Entry> {
        let entry = self.entries.get(key).filter(|entry| entry.sound)?;
        match entry.phase {
            Phase::Held => {}
            Phase::Waiting => list::unlink(&mut self.entries, &mut self.waiting, key),
            Phase::Queued => list::unlink(&mut self.entries, &mut self.queue, key),
            Phase::Dropping | Phase::Detached => return None,
        }
        Some(self.take(key))
    }

    fn take(&mut self, key: SlotKey) -> Entry {
        let entry = self.entries.remove(key).expect("the caller holds a live key");
        assert!(
            self.by_generation.remove(hash(entry.replica.generation), key.index),
            "every entry is indexed"
        );
        self.bytes[entry.replica.tier] -= entry.bytes();
        self.leaving[entry.replica.tier] -= entry.leaving();
        entry
    }

    /// The payload is gone; its entry goes on without it, and with `forced` without its leases.
    pub fn forget_payload(&mut self, key: SlotKey, forced: bool) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.payload = None;
            if forced {
                let before = entry.leaving();
                entry.leases = 0;
                self.leaving[entry.replica.tier] += entry.leaving() - before;
                self.queue_if_unused(key);
            }
        }
    }
}

/// What is remembered of a replica in case it comes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kept {
    /// On stable storage.
    pub synced: bool,
    /// Not found damaged.
    pub sound: bool,
}

/// Who needs a replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Users {
    /// Leases.
    pub leases: u32,
    /// Copies that read it.
    pub copies: u32,
}
