//! Leases: who may read which replica until when. Each stands in its payload's list, oldest first.

use payload_ledger::list::{Ends, Linked, Links};
use payload_ledger::{SlotKey, Slots, TimerId, list};
use payload_types::{Generation, LeaseId, LeaseNonce, Peer, ShardIndex, Tier, WallMs, limits};

/// Leases that are looked at for the oldest one, in a turn that must stay below 100 µs: 4,096 at about 5 ns.
const LOOKED_AT_MAX: u32 = 4096;

/// One lease.
#[derive(Debug)]
pub struct Lease {
    /// Its payload; stale once that was deleted by force.
    pub payload: SlotKey,
    /// The replica's tier.
    pub tier: Tier,
    /// The replica.
    pub generation: Generation,
    /// Ends it; [`TimerId::NEVER`] for a native session's.
    pub timer: TimerId,
    /// Grows with every lease of the shard: older leases have smaller ones.
    pub sequence: u64,
    /// Who has it.
    pub taken: Taken,
    /// Its place in the list of its session; 0 without one.
    pub place: u32,
    links: Links,
}

/// Who took a lease, and when.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// The unguessable part of its id.
    pub nonce: LeaseNonce,
    /// By whom.
    pub owner: Peer,
    /// When.
    pub acquired_at: WallMs,
}

impl Lease {
    /// The next younger lease of the same payload.
    pub fn next(&self) -> Option<SlotKey> {
        self.links.next()
    }
}

impl Linked for Lease {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

/// All leases of a shard.
#[derive(Debug)]
pub struct Leases {
    slots: Slots<Lease>,
    sequence: u64,
}

impl Default for Leases {
    fn default() -> Self {
        Self { slots: Slots::new(limits::LEASES_PER_SHARD_MAX), sequence: 0 }
    }
}

/// What a lease is about; see [`Lease`].
#[derive(Clone, Copy, Debug)]
pub struct LeaseTarget {
    /// The payload.
    pub payload: SlotKey,
    /// The replica's tier.
    pub tier: Tier,
    /// The replica.
    pub generation: Generation,
}

impl Leases {
    /// Leases held.
    pub fn len(&self) -> u32 {
        self.slots.len()
    }

    /// True when none is held.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// True when no lease can be added.
    pub fn is_full(&self) -> bool {
        self.slots.is_full()
    }

    /// When the oldest lease was granted, of the first [`LOOKED_AT_MAX`] places of the table: a new lease takes the place
    /// that became free last, so that leases which stay are found at its beginning.
    pub fn oldest(&self) -> Option<WallMs> {
        let lease = |index| self.slots.get(self.slots.key_at(index)?);
        (0..LOOKED_AT_MAX).filter_map(lease).map(|lease| lease.taken.acquired_at).min()
    }

    /// The sequence number of the newest lease so far.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Adds a lease at the end of its payload's list; `arm` is given its slot and arms its timer.
    ///
    /// # Panics
    /// When the table is full, or the wheel, which is larger.
    pub fn grant(
        &mut self,
        shard: ShardIndex,
        ends: &mut Ends,
        target: LeaseTarget,
        taken: Taken,
        arm: impl FnOnce(SlotKey) -> TimerId,
    ) -> LeaseId {
        self.sequence += 1;
        let LeaseTarget { payload, tier, generation } = target;
        let placeholder = TimerId::NEVER;
        let lease = Lease {
            payload,
            tier,
            generation,
            timer: placeholder,
            sequence: self.sequence,
            taken,
            place: 0,
            links: Links::default(),
        };
        let key = self.slots.insert(lease).expect("the caller checked is_full");
        self.slots.get_mut(key).expect("just inserted").timer = arm(key);
        list::push_back(&mut self.slots, ends, key);
        LeaseId::new(shard, key.index, taken.nonce)
    }

    /// The lease with this id, if it is still held.
    pub fn find(&self, id: LeaseId) -> Option<SlotKey> {
        let key = self.slots.key_at(id.slot())?;
        (self.slots.get(key)?.taken.nonce == id.nonce()).then_some(key)
    }

    /// The oldest lease of a payload's list.
    pub fn first(&self, ends: Ends) -> Option<SlotKey> {
        ends.first(&self.slots)
    }

    /// Where a lease stands in the list of its session.
    ///
    /// # Panics
    /// When `key` is stale.
    pub fn set_place(&mut self, key: SlotKey, place: u32) {
        self.slots.get_mut(key).expect("sessions list leases that are held").place = place;
    }

    /// The lease in a slot.
    pub fn get(&self, key: SlotKey) -> Option<&Lease> {
        self.slots.get(key)
    }

    /// Takes a lease out of the table and of its payload's list. `ends` is that list, or an empty one when the
    /// payload is gone.
    ///
    /// # Panics
    /// When `key` is stale.
    pub fn end(&mut self, ends: &mut Ends, key: SlotKey) -> Lease {
        list::remove(&mut self.slots, ends, key)
    }
}
