//! What operators ask: the accounting of a shard, the holders of a payload, and why it is where it is.
//!
//! Changes nothing but the counters of `moved`. Each answer is bounded: the accounting is kept as running sums, a part
//! of the holders is at most `limits::ITEMS_PER_TURN_MAX` leases, an explanation looks at one payload.

use payload_ledger::SlotKey;
use payload_types::reply::{Reply, ReplyResult, ShardStats};
use payload_types::report::{
    Explanation, Holders, Kept, LeaseHold, Outlook, PinHold, Pressure, ReplicaReport, VICTIMS_SHOWN, Victim,
    Work,
};
use payload_types::tier::SpillTarget;
use payload_types::{
    EvictionPriority, Health, LeaseId, Monotonic, Now, PayloadKey, PayloadState, PerTier, Pin, Rank, Tier,
    WallMs, limits,
};

use crate::evict::{self, Exit, Way};
use crate::lease::Lease;
use crate::op::{Copy, Kind};
use crate::payload::Payload;
use crate::shard::Shard;
use crate::table::TierBooks;

impl Shard {
    /// This shard's part of Stats: exact at the end of the last step.
    pub fn stats(&self) -> ShardStats {
        let mut stats = self.table.stats();
        for tier in Tier::ALL {
            let part = &mut stats.tiers[tier];
            part.capacity = self.config.capacity[tier].map(|capacity| capacity.0);
            part.reserved = self.accounts[tier].spare().0;
            part.usage = self.usage(tier);
            part.peak = self.accounts[tier].peak().0;
            part.moved = self.moved[tier];
        }
        stats.leases = u64::from(self.leases.len());
        stats.lease_oldest_at = self.leases.oldest();
        stats.leases_granted = self.leases.sequence();
        stats.operations = u64::from(self.ops.len());
        stats.parked = u64::from(self.parked.len());
        stats.arenas = self.arena_stats();
        stats.tiers[Tier::Ram].current += stats.arenas.charged_bytes;
        stats
    }

    /// Counts a copy that has arrived.
    pub(crate) fn count_copy(&mut self, copy: Copy) {
        let moved = &mut self.moved[copy.to.tier];
        let total = if copy.is_spill() { &mut moved.spilled_bytes } else { &mut moved.promoted_bytes };
        *total += copy.to.size.0;
    }

    /// Counts a replica that pressure takes from `tier`.
    pub(crate) fn count_eviction(&mut self, tier: Tier, exit: Exit) {
        let moved = &mut self.moved[tier];
        moved.evictions += 1;
        match exit {
            Exit::Drop(_) => moved.evictions_twin += 1,
            Exit::Discard => moved.evictions_void += 1,
            Exit::Copy(_) => {}
        }
    }

    /// Who goes next from `tier`, and how many before `rank`.
    pub(crate) fn outlook(&self, tier: Tier, rank: Option<Rank>) -> Reply {
        // Who would go to a tier that is full, or fails, does not go next.
        let victims = || self.table.victims(tier, |to| self.takes_evictions(to));
        let victim = |(rank, slot)| {
            let payload = self.table.at(slot);
            Victim { id: payload.key.id, size: payload.size, rank }
        };
        let counted = |rank: Rank| {
            let looked_at = victims().take(limits::ITEMS_PER_TURN_MAX);
            let before = looked_at.take_while(|(other, _)| *other < rank).count();
            (before < limits::ITEMS_PER_TURN_MAX).then_some(before as u32)
        };
        Reply::Outlook(Outlook {
            victims: victims().take(VICTIMS_SHOWN).map(victim).collect(),
            before: rank.and_then(counted),
            under_pressure: self.budget[tier].on,
        })
    }

    /// How many holds of streams and appends there are, for the simulator and tests.
    pub fn holds(&self) -> usize {
        self.table.holds_len()
    }

    /// Compares the running sums with what they are sums of, one payload at a time. For the simulator and tests: as
    /// long as the table.
    ///
    /// # Errors
    /// The first figure that is wrong, and by how much.
    pub fn check_accounting(&self) -> Result<(), String> {
        self.table.check_holds()?;
        let mut counted: PerTier<TierBooks> = PerTier::default();
        for payload in self.table.iter() {
            for tier in Tier::ALL.into_iter().filter(|tier| payload.replicas[*tier].is_some()) {
                let pages = payload.charged_on(tier);
                let books = &mut counted[tier];
                books.logical += payload.size.0;
                books.charged += pages;
                books.leased += if payload.lease_count > 0 { pages } else { 0 };
                books.pinned += if payload.pin == Pin::None { 0 } else { pages };
                books.uncommitted += if payload.state.is_committed() { 0 } else { pages };
            }
        }
        for tier in Tier::ALL {
            let (kept, counted) = (self.table.books(tier), counted[tier]);
            if kept != counted {
                return Err(format!("{tier}: the books say {kept:?}, the replicas are {counted:?}"));
            }
            let (allocated, limbo) = (self.accounts[tier].charged().0, self.limbo.bytes(tier));
            let slabs = if tier == Tier::Ram { self.arena_charged().0 } else { 0 };
            let under_way = allocated.checked_sub(kept.charged + limbo + slabs);
            if under_way.is_none() {
                return Err(format!(
                    "{tier}: {allocated} are charged for {} of replicas, {slabs} of slabs and {limbo} in limbo",
                    kept.charged
                ));
            }
            if self.ops.is_empty() && under_way != Some(0) {
                return Err(format!("{tier}: {under_way:?} are charged for nothing that is under way"));
            }
            if self.accounts[tier].peak() < self.accounts[tier].charged() {
                return Err(format!("{tier}: the peak is below what is charged"));
            }
        }
        Ok(())
    }

    /// One part of a payload's holders: leases after `after`, or from the oldest.
    pub(crate) fn holders(&self, now: Now, key: PayloadKey, after: Option<LeaseId>) -> ReplyResult {
        let slot = self.find(now, key)?;
        let payload = self.table.at(slot);
        let last = after.and_then(|id| self.leases.find(id));
        let last = last.and_then(|key| self.leases.get(key)).filter(|lease| lease.payload == slot);
        let mut next = last.map_or_else(|| self.leases.first(payload.leases), Lease::next);
        let mut leases = Vec::new();
        while let Some(key) = next
            && leases.len() < limits::ITEMS_PER_TURN_MAX
        {
            let lease = self.leases.get(key).expect("linked leases exist");
            leases.push(self.lease_hold(now, payload, key, lease));
            next = lease.next();
        }
        let pin = payload
            .pin
            .holds_at(now.wall)
            .then(|| PinHold { owner: self.table.pin_owner(slot), pin: payload.pin });
        Ok(Reply::Holders(Holders {
            leases,
            more: next.is_some(),
            lease_count: payload.lease_count,
            pin,
            streams: self.table.holders(slot),
            size: payload.size,
            replicas: Tier::ALL.into_iter().filter(|tier| payload.replicas[*tier].is_some()).count() as u32,
        }))
    }

    fn lease_hold(&self, now: Now, payload: &Payload, key: SlotKey, lease: &Lease) -> LeaseHold {
        let current = payload.replicas[lease.tier];
        LeaseHold {
            lease: LeaseId::new(self.config.shard, key.index, lease.taken.nonce),
            owner: lease.taken.owner,
            tier: lease.tier,
            acquired_at: lease.taken.acquired_at,
            expires_at: match lease.taken.owner.session() {
                Some(_) => WallMs::MAX,
                None => wall_at(now, self.wheel.due(lease.timer).unwrap_or(now.monotonic)),
            },
            limbo: current.is_none_or(|replica| replica.generation != lease.generation),
        }
    }

    /// Why a payload is where it is.
    pub(crate) fn explain(&self, now: Now, key: PayloadKey) -> ReplyResult {
        let slot = self.find(now, key)?;
        let payload = self.table.at(slot);
        let work = self.work_on(payload);
        let report = |tier: Tier| {
            let replica = payload.replicas[tier]?;
            let since = (replica.made_s > 0).then(|| WallMs::from_millis(u64::from(replica.made_s) * 1000));
            Some(ReplicaReport {
                tier,
                location: payload.location(tier, self.table.block(slot))?,
                since,
                leases: replica.users.leases,
                copies: replica.users.copies,
                synced: replica.synced,
                pressure: self.pressure_on(now, payload, tier, work),
            })
        };
        Ok(Reply::Explained(Box::new(Explanation {
            descriptor: self.table.shown(slot, payload.is_committed()),
            leases: payload.lease_count,
            pin: if payload.pin.holds_at(now.wall) { payload.pin } else { Pin::None },
            streams: self.table.holders(slot),
            no_evict: payload.no_evict,
            spill_target: payload.policy.spill_target.unwrap_or(SpillTarget::Tier(Tier::Disk)),
            work,
            requests_wait: payload.parked.is_some(),
            used_at: self.table.used_at(slot),
            rank: self.table.rank(slot),
            replicas: Tier::ALL.into_iter().filter_map(report).collect(),
        })))
    }

    fn work_on(&self, payload: &Payload) -> Option<Work> {
        let op = payload.op.or(payload.pin_stored_by).and_then(|op| self.ops.get(op))?;
        Some(match &op.kind {
            Kind::Allocate { .. } | Kind::MakeSlab { .. } | Kind::Commit { .. } => Work::Committing,
            Kind::Copy(copy) => Work::Copying { from: copy.from.tier, to: copy.to.tier },
            Kind::Sync { replica } => Work::Syncing(replica.tier),
            Kind::Mark(_) | Kind::Verify(_) => Work::Marking,
            Kind::Remove { .. } => Work::Removing,
            Kind::Pin { .. } => Work::Pinning,
            Kind::Enrol { .. } => Work::Enrolling,
        })
    }

    /// What pressure on `tier` would do to the payload's replica there.
    fn pressure_on(&self, now: Now, payload: &Payload, tier: Tier, work: Option<Work>) -> Pressure {
        let mut kept = Vec::new();
        let mut keep = |when: bool, why: Kept| {
            if when {
                kept.push(why);
            }
        };
        keep(!payload.is_committed(), Kept::Uncommitted);
        keep(matches!(payload.state, PayloadState::Deleting | PayloadState::Expired), Kept::Ending);
        keep(payload.health == Health::Damaged, Kept::Damaged);
        keep(payload.lease_count > 0, Kept::Leased(payload.lease_count));
        keep(payload.pin.holds_at(now.wall), Kept::Pinned(payload.pin));
        keep(payload.no_evict, Kept::NoEvict);
        keep(payload.policy.priority == EvictionPriority::Never, Kept::PriorityNever);
        if let Some(work) = work {
            keep(true, Kept::Busy(work));
        }
        keep(payload.passed_over, Kept::PassedOver);
        let faster = payload.fastest().filter(|fastest| fastest.is_faster_than(tier));
        let way = |faster| evict::way(payload, faster, &self.config.capacity);
        if let Some(faster) = faster.filter(|faster| way(*faster) != Some(Way::Twin(tier))) {
            keep(true, Kept::Behind(faster));
        }
        let exit = evict::exit(payload, tier, &self.config.capacity);
        if exit.is_none() {
            let floor = payload.policy.min_residency.filter(|floor| !tier.is_faster_than(*floor));
            keep(true, floor.map_or(Kept::Nowhere, Kept::MinResidency));
        }
        match exit {
            Some(exit) if kept.is_empty() => match exit {
                Exit::Drop(twin) => Pressure::Drop { twin },
                Exit::Copy(to) => Pressure::Move { to },
                Exit::Discard => Pressure::Discard,
            },
            _ => Pressure::Stays(kept),
        }
    }
}

/// The wall clock's time at `moment`.
fn wall_at(now: Now, moment: Monotonic) -> WallMs {
    now.wall.checked_plus(moment.millis_since(now.monotonic)).unwrap_or(WallMs::MAX)
}
