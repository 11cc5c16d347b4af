//! Who may be evicted, and where to: pure questions about one payload.
//!
//! Only a payload's fastest replica is ever evicted; a slower one follows once it is the fastest.

use payload_types::tier::SpillTarget;
use payload_types::{ByteCount, EvictionPriority, Health, PayloadState, PerTier, Pin, Tier};

use crate::payload::Payload;

/// How a payload leaves its fastest tier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// A slower replica, on this tier, is there already: nothing is written.
    Drop(Tier),
    /// It is copied to this tier first.
    Copy(Tier),
    /// Its policy says that it is not worth keeping.
    Discard,
}

/// The list a payload stands in: one for each tier and priority, in the order in which they are evicted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Class(u8);

impl Class {
    /// It may not be evicted.
    pub const NONE: Self = Self(0);

    /// The classes of a tier, the one that goes first at the front, each with its priority.
    pub fn of_tier(tier: Tier) -> [(Self, EvictionPriority); 3] {
        let class = |priority| (Self::new(tier, priority), priority);
        [EvictionPriority::Low, EvictionPriority::Normal, EvictionPriority::High].map(class)
    }

    fn new(tier: Tier, priority: EvictionPriority) -> Self {
        let priority = match priority {
            EvictionPriority::Low => 1,
            EvictionPriority::Unspecified | EvictionPriority::Normal => 2,
            EvictionPriority::High => 3,
            EvictionPriority::Never => return Self::NONE,
        };
        Self((tier as u8 - 1) * 3 + priority)
    }

    /// Its number among the lists: 1 ..= 12.
    pub fn list(self) -> u8 {
        self.0
    }

    /// The class of a payload as it is, its leases left aside.
    pub fn of(payload: &Payload, capacity: &PerTier<Option<ByteCount>>) -> Self {
        let at_rest = !payload.creating
            && payload.op.is_none()
            && matches!(payload.state, PayloadState::Active | PayloadState::Durable);
        let free_to_go = payload.pin == Pin::None && payload.pin_stored_by.is_none() && !payload.no_evict;
        if !at_rest || !free_to_go || payload.passed_over {
            return Self::NONE;
        }
        match payload.fastest() {
            Some(tier) if exit(payload, tier, capacity).is_some() => Self::new(tier, payload.policy.priority),
            _ => Self::NONE,
        }
    }
}

/// Where a payload goes when it is evicted from its fastest tier; `None`: it stays.
pub fn exit(payload: &Payload, from: Tier, capacity: &PerTier<Option<ByteCount>>) -> Option<Exit> {
    let floor = payload.policy.min_residency;
    let permitted =
        |to: &Tier| from.is_faster_than(*to) && floor.is_none_or(|floor| !floor.is_faster_than(*to));
    let twins =
        || Tier::ALL.into_iter().filter(permitted).filter_map(|tier| Some((tier, payload.replicas[tier]?)));
    if let Some((twin, _)) = twins().find(|(_, twin)| twin.is_trusted()) {
        return Some(Exit::Drop(twin));
    }
    // One that is not trusted is written anew, also where the payload would be discarded if it had none.
    if let Some((twin, _)) = twins().next().filter(|_| payload.health == Health::Good) {
        return Some(Exit::Copy(twin));
    }
    let policy = &payload.policy;
    // What a stream keeps is not discarded: it moves on, and is discarded there once it may be.
    if policy.spill_target == Some(SpillTarget::Void) && !policy.require_durable && !payload.held {
        return floor.is_none().then_some(Exit::Discard);
    }
    if payload.health != Health::Good {
        return None;
    }
    let size = payload.size.in_pages();
    let holds = |to: &Tier| capacity[*to].is_some_and(|capacity| size <= capacity);
    let wanted = match policy.spill_target {
        Some(SpillTarget::Tier(tier)) => Some(tier),
        Some(SpillTarget::Void) | None => None,
    };
    let next: &[Tier] = match from {
        Tier::Gpu => &[Tier::Ram, Tier::Disk],
        Tier::Ram => &[Tier::Disk],
        Tier::Disk => &[Tier::Object],
        Tier::Object => &[],
    };
    let mut choices = wanted.into_iter().chain(next.iter().copied());
    choices.find(|to| permitted(to) && holds(to)).map(Exit::Copy)
}

#[cfg(test)]
mod tests {
    use payload_types::{EvictionPolicy, NamespaceId, PayloadId, PayloadKey, WallMs};

    use super::*;
    use crate::payload::{Replica, Terms};

    fn payload(policy: EvictionPolicy, tiers: &[Tier]) -> Payload {
        let key = PayloadKey { namespace: NamespaceId::DEFAULT, id: PayloadId::from_bytes([1; 16]) };
        let created_at = WallMs::from_millis(0);
        let size = ByteCount(5000);
        let mut payload =
            Payload::new(Terms { key, size, created_at, expires_at: None, no_evict: false, policy });
        payload.creating = false;
        for tier in tiers {
            payload.replicas[*tier] = Some(Replica::new(payload_types::Generation(7), true, created_at));
        }
        payload.state = payload.settled_state();
        payload
    }

    fn capacity(disk: u64) -> PerTier<Option<ByteCount>> {
        PerTier([None, Some(ByteCount(1 << 20)), Some(ByteCount(disk)), None])
    }

    #[test]
    fn given_policies_and_replicas_when_asked_for_the_way_out_then_as_the_contract_says() {
        let (ram, disk) = (Tier::Ram, Tier::Disk);
        let void = EvictionPolicy { spill_target: Some(SpillTarget::Void), ..Default::default() };
        let stay = EvictionPolicy { min_residency: Some(ram), ..Default::default() };
        let object =
            EvictionPolicy { spill_target: Some(SpillTarget::Tier(Tier::Object)), ..Default::default() };
        let plain = EvictionPolicy::default();
        for (policy, tiers, wanted) in [
            (plain, &[ram][..], Some(Exit::Copy(disk))),
            (plain, &[ram, disk], Some(Exit::Drop(disk))),
            (plain, &[disk], None),
            (void, &[ram], Some(Exit::Discard)),
            (void, &[disk], Some(Exit::Discard)),
            (void, &[ram, disk], Some(Exit::Drop(disk))),
            (stay, &[ram], None),
            (stay, &[ram, disk], None),
            (object, &[ram], Some(Exit::Copy(disk))),
        ] {
            let payload = payload(policy, tiers);
            assert_eq!(exit(&payload, payload.tier(), &capacity(1 << 20)), wanted, "{policy:?} {tiers:?}");
        }
        assert_eq!(exit(&payload(plain, &[ram]), ram, &capacity(4096)), None, "larger than the whole disk");
        let mut held = payload(void, &[ram]);
        held.held = true;
        assert_eq!(exit(&held, ram, &capacity(1 << 20)), Some(Exit::Copy(disk)), "a stream keeps it");
        let mut doubtful = payload(plain, &[ram, disk]);
        doubtful.replicas[disk].as_mut().expect("a twin").sync_failed = true;
        assert_eq!(exit(&doubtful, ram, &capacity(1 << 20)), Some(Exit::Copy(disk)), "written anew");
        doubtful.policy = void;
        assert_eq!(exit(&doubtful, ram, &capacity(1 << 20)), Some(Exit::Copy(disk)), "not discarded");
    }

    #[test]
    fn given_a_payload_when_something_holds_it_then_it_is_in_no_list() {
        let full = capacity(1 << 20);
        let free = payload(EvictionPolicy::default(), &[Tier::Ram]);
        assert_eq!(Class::of(&free, &full), Class::of_tier(Tier::Ram)[1].0);
        let changes: [fn(&mut Payload); 6] = [
            |payload| payload.pin = Pin::Forever,
            |payload| payload.no_evict = true,
            |payload| payload.policy.priority = EvictionPriority::Never,
            |payload| payload.passed_over = true,
            |payload| payload.state = PayloadState::Allocated,
            |payload| payload.op = Some(payload_ledger::SlotKey::NOWHERE),
        ];
        for change in changes {
            let mut held = payload(EvictionPolicy::default(), &[Tier::Ram]);
            change(&mut held);
            assert_eq!(Class::of(&held, &full), Class::NONE, "{held:?}");
        }
    }
}
