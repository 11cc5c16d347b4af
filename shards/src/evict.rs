//! Who may be evicted, and where to: pure questions about one payload.
//!
//! A payload's fastest replica is evicted, and a slower one once it is the fastest. But for a payload that would be
//! discarded from its slower tier: when that tier needs room it is discarded with all it has, so that a copy of it in
//! memory keeps nothing on disk that somebody waits for. And when RAM needs room, a copy in device memory goes before what it
//! is a copy of, which can leave then.

use payload_types::tier::SpillTarget;
use payload_types::{
    ByteCount, EvictionPriority, Health, PayloadKey, PayloadState, PerTier, Pin, Rank, Tier,
};

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

/// What the eviction of a payload's fastest replica takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Nothing: it is dropped, or the payload discarded.
    Free,
    /// Room on this tier, to which it is copied.
    To(Tier),
    /// Nothing, and the replica on this slower tier would then be discarded; or may leave, under a copy in device memory.
    Twin(Tier),
}

impl Way {
    fn number(self) -> u8 {
        match self {
            Self::Free => 0,
            Self::To(tier) => tier as u8 - 1,
            Self::Twin(tier) => tier as u8 + 2,
        }
    }
}

/// The list a payload stands in: one for each tier, priority and way out, in the order in which they are evicted. Those
/// that need room somewhere stand apart by where, so that a full tier keeps nobody waiting who needs none there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Class(u8);

const WAYS: u8 = 6;
const PRIORITIES: u8 = 3;

/// The priorities of what may be evicted, the one that goes first at the front.
pub const IN_ORDER: [EvictionPriority; PRIORITIES as usize] =
    [EvictionPriority::Low, EvictionPriority::Normal, EvictionPriority::High];

impl Class {
    /// It may not be evicted.
    pub const NONE: Self = Self(0);

    /// The lists of a tier and priority: its own, and those of faster tiers whose payloads would be discarded from here.
    /// Where there is no such list it is [`Class::NONE`], which is empty.
    pub fn of_tier(tier: Tier, priority: EvictionPriority) -> [Self; 8] {
        let own = |way| Self::new(tier, priority, way);
        let behind = |faster: Tier| {
            let is_twin = faster.is_faster_than(tier) && tier != Tier::Object;
            if is_twin { Self::new(faster, priority, Way::Twin(tier)) } else { Self::NONE }
        };
        [
            own(Way::Free),
            own(Way::To(Tier::Ram)),
            own(Way::To(Tier::Disk)),
            own(Way::To(Tier::Object)),
            own(Way::Twin(Tier::Ram)),
            own(Way::Twin(Tier::Disk)),
            behind(Tier::Gpu),
            behind(Tier::Ram),
        ]
    }

    fn new(tier: Tier, priority: EvictionPriority, way: Way) -> Self {
        let priority = match priority {
            EvictionPriority::Low => 0,
            EvictionPriority::Unspecified | EvictionPriority::Normal => 1,
            EvictionPriority::High => 2,
            EvictionPriority::Never => return Self::NONE,
        };
        Self(1 + ((tier as u8 - 1) * PRIORITIES + priority) * WAYS + way.number())
    }

    /// Its number among the lists: 1 ..= 72; 0: none.
    pub fn list(self) -> u8 {
        self.0
    }

    /// The tier on which its payloads need room to be evicted.
    pub fn needs(self) -> Option<Tier> {
        let way = self.0.checked_sub(1)? % WAYS;
        Tier::ALL.into_iter().skip(1).find(|tier| Way::To(*tier).number() == way)
    }

    /// The priority of its payloads.
    pub fn priority(self) -> Option<EvictionPriority> {
        Some(IN_ORDER[usize::from(self.0.checked_sub(1)? / WAYS % PRIORITIES)])
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
        let way = payload.fastest().and_then(|tier| Some((tier, way(payload, tier, capacity)?)));
        way.map_or(Self::NONE, |(tier, way)| Self::new(tier, payload.policy.priority, way))
    }
}

/// Who may be evicted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Its place.
    pub rank: Rank,
    /// Who.
    pub key: PayloadKey,
    /// What that would free.
    pub bytes: u64,
    /// The tier on which it needs as much room.
    pub needs: Option<Tier>,
}

/// What the eviction from its fastest tier takes; `None`: it stays.
pub fn way(payload: &Payload, fastest: Tier, capacity: &PerTier<Option<ByteCount>>) -> Option<Way> {
    Some(match exit(payload, fastest, capacity)? {
        Exit::Copy(to) => Way::To(to),
        Exit::Drop(twin) if twin != Tier::Object && exit(payload, twin, capacity) == Some(Exit::Discard) => {
            Way::Twin(twin)
        }
        // Both are volatile, and a program may promote more than memory holds.
        Exit::Drop(Tier::Ram) if exit(payload, Tier::Ram, capacity).is_some() => Way::Twin(Tier::Ram),
        Exit::Drop(_) | Exit::Discard => Way::Free,
    })
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
        let class = Class::of(&free, &full);
        assert_eq!(class, Class::of_tier(Tier::Ram, EvictionPriority::Normal)[2]);
        assert_eq!((class.needs(), class.priority()), (Some(Tier::Disk), Some(EvictionPriority::Normal)));
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

    #[test]
    fn given_all_there_is_when_listed_then_each_class_has_a_number_of_its_own_and_says_what_it_needs() {
        let mut numbers = std::collections::BTreeSet::new();
        for tier in Tier::ALL {
            for priority in IN_ORDER {
                let own = &Class::of_tier(tier, priority)[..6];
                numbers.extend(own.iter().map(|class| class.list()));
                assert!(own.iter().all(|class| class.priority() == Some(priority)));
                let needs: Vec<_> = own.iter().map(|class| class.needs()).collect();
                let [ram, disk, object] = [Tier::Ram, Tier::Disk, Tier::Object].map(Some);
                assert_eq!(needs, [None, ram, disk, object, None, None]);
            }
        }
        assert!(numbers.iter().copied().eq(1..=72));
    }

    #[test]
    fn given_a_copy_in_memory_of_what_would_be_discarded_when_listed_then_both_tiers_find_it() {
        let void = EvictionPolicy { spill_target: Some(SpillTarget::Void), ..Default::default() };
        let full = capacity(1 << 20);
        let both = Class::of(&payload(void, &[Tier::Ram, Tier::Disk]), &full);
        for tier in [Tier::Ram, Tier::Disk] {
            assert!(Class::of_tier(tier, EvictionPriority::Normal).contains(&both), "{tier}");
        }
        let kept = Class::of(&payload(EvictionPolicy::default(), &[Tier::Ram, Tier::Disk]), &full);
        assert!(!Class::of_tier(Tier::Disk, EvictionPriority::Normal).contains(&kept));
    }
}
