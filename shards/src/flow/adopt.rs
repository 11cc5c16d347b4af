//! Boot: a shard takes over the rows of its payloads before its first step.

use payload_types::effect::ReplicaRef;
use payload_types::{Health, Now, PayloadRow, PayloadState, PerTier, Tier};

use crate::limbo::Users;
use crate::payload::{Payload, Replica, Terms};
use crate::shard::{Shard, Timer};

/// What became of a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Adopted {
    /// At least one replica is there.
    Live,
    /// None is: it answers NOT_FOUND with the reason LOST until it is deleted or its ttl passes.
    Lost,
    /// Its ttl passed while nobody served it: it is removed soon.
    Expired,
}

impl Shard {
    /// Takes over what an earlier run left and no row names: what clients still hold, which has lost its name, and what
    /// lies in segment files that were not recycled yet. It is charged until a driver has freed it. There may be very
    /// many of the latter; what limbo has no room for is not charged, and freed unnoticed.
    pub fn adopt_held(&mut self, now: Now, replica: ReplicaRef) {
        if self.limbo_has_room() {
            self.accounts[replica.tier].adopt(replica.size.in_pages());
            let entry = self.limbo.adopt(replica);
            // In a segment file it is free soon, as after any drop, unless a reader keeps the file.
            let due = now.monotonic.plus_millis(crate::limbo::PACKED_FREED_SOON_MS);
            if replica.extent.is_some() && self.wheel.arm(due, Timer::Limbo(entry)).is_none() {
                self.limbo.overdue(entry);
            }
        }
    }

    /// Takes a row over. `present` tells which of the row's replicas the drivers found, at full size.
    ///
    /// # Panics
    /// When the row was adopted before, or there are more rows than a shard may hold.
    pub fn adopt(&mut self, now: Now, row: PayloadRow, present: PerTier<bool>) -> Adopted {
        let mut replicas: PerTier<Option<Replica>> = PerTier::default();
        let mut extent = None;
        for replica in row.replicas.iter().filter(|replica| present[replica.tier]) {
            replicas[replica.tier] = Some(Replica {
                generation: replica.generation,
                users: Users::default(),
                synced: replica.synced,
                // A failed fdatasync of an earlier run is forgotten by the kernel: a new one would prove nothing.
                sync_failed: !replica.synced && replica.tier == Tier::Disk,
                unsound: !replica.sound,
                made_s: 0,
            });
            extent = replica.extent.or(extent);
            self.accounts[replica.tier].adopt(row.size.in_pages());
        }
        let found = Tier::ALL.into_iter().any(|tier| replicas[tier].is_some());
        let terms = Terms {
            key: row.key,
            size: row.size,
            created_at: row.created_at,
            expires_at: row.expires_at,
            no_evict: row.no_evict,
            policy: row.policy,
        };
        let sound = replicas.0.iter().flatten().any(|replica| !replica.unsound);
        let mut payload = Payload::new(terms);
        payload.health = match row.health {
            _ if !found => Health::Lost,
            // What served in its place did not survive.
            Health::Good | Health::Lost if !sound => Health::Damaged,
            // Not found at an earlier start, which noted it: what it lies in could not be read then.
            Health::Lost => Health::Good,
            health => health,
        };
        payload.version = row.version.at_boot(row.epoch, self.config.epoch);
        payload.set_checksum(row.checksum);
        (payload.pin, payload.stored, payload.creating) = (row.pin, true, false);
        (payload.replicas, payload.extent) = (replicas, extent);
        payload.state = match row.state {
            // Nothing but the row is left: LOST until its timeout.
            PayloadState::Allocated => PayloadState::Allocated,
            _ => payload.settled_state(),
        };
        let expired = payload.is_expired_at(now.wall);
        let slot = self.table.insert(payload).expect("rows of one shard fit its table");
        self.arm_payload_timer(now, slot);
        self.arm_pin_timer(now, slot);
        self.table.settle(now.monotonic);
        match (expired, found) {
            (true, _) => Adopted::Expired,
            (false, true) => Adopted::Live,
            (false, false) => Adopted::Lost,
        }
    }
}
