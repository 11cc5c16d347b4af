//! Capacity: charging, waiting for it, giving back, and telling a refused caller what fills the tier.
//!
//! ```text
//!   charge fits the grant: go on
//!   else Ask --> Granted: go on    the caller's deadline --> Cancel --> Denied: refused with the breakdown
//! ```
//! Each operation has its own ask. While the arbiter says that a tier is under pressure nothing is kept to spare, and
//! the end of each step reports what became free, or what became a better victim than was said before.

use payload_ledger::SlotKey;
use payload_types::effect::{BudgetRequest, Effect, TierSupply, TierUsage};
use payload_types::event::EvictOrder;
use payload_types::{ByteCount, ErrorKind, Monotonic, Now, OpId, PayloadError, Rank, Tier, limits};

use crate::op::{Class, Kind, Op, Wait, op_id, slot_key};
use crate::outbox::Outbox;
use crate::parked::Caller;
use crate::shard::{Shard, Step, Timer};

/// Spare grant that a shard keeps for its next allocations: a 1/64 of the tier, shared by all shards.
const SPARE_SHARE: u64 = 64;

/// Moves that nobody waits for, evictions among them, wait this long for space on their destination: long enough for
/// a delete or an eviction there to make some, short enough that the next victim is tried soon when none can.
const BACKGROUND_WAIT_MS: u64 = 500;

/// One tier as the arbiter sees it.
#[derive(Debug, Default)]
pub(crate) struct Pressure {
    /// The arbiter wants everything back that is not needed.
    pub on: bool,
    /// Its order that the end of this step answers.
    answer: Option<u64>,
    /// What it was told last.
    told: TierSupply,
    /// Something was released since.
    released: bool,
}

/// What the arbiter says of a tier that an ask did not get.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refusal {
    /// The tier.
    pub tier: Tier,
    /// Not granted to anybody.
    pub free: ByteCount,
    /// What the other shards use.
    pub others: TierUsage,
}

/// What is known of a tier beside its capacity.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TierLimits {
    /// The largest payload that it takes, where that is less than all of it: one lies on one device.
    pub payload_max: Option<ByteCount>,
    /// Why it is not there, although it was configured: what was found, and what to do.
    pub absent: Option<Box<str>>,
}

impl Shard {
    /// Until when a move waits for space: to its caller's deadline, to the end when that has none, and a moment when
    /// nobody waits for it.
    pub(crate) fn move_wait_end(now: Monotonic, caller: &Caller) -> Option<Monotonic> {
        match caller.reply_to {
            Some(_) => caller.deadline,
            None => Some(now.plus_millis(BACKGROUND_WAIT_MS)),
        }
    }

    /// Charges `bytes` on `tier`, or has `op` wait for them; true when they are charged.
    pub(crate) fn charge_or_wait(
        &mut self,
        step: &mut Step<'_>,
        op: SlotKey,
        tier: Tier,
        bytes: ByteCount,
        until: Option<Monotonic>,
    ) -> bool {
        if self.accounts[tier].charge(bytes) {
            return true;
        }
        // What is spare here counts too, but asking for the difference could starve: the spare may be called in before
        // the answer comes. So it goes back first, and the grant is whole.
        if self.accounts[tier].spare() > ByteCount::ZERO {
            self.give_back(step.out, tier, ByteCount::ZERO, None);
        }
        let timer = until.and_then(|until| self.wheel.arm(until, Timer::Wait(op)));
        let stuck = self.doors[tier].takes(bytes.0) || Self::lasts(step.now.monotonic, until);
        let found_full = self.ops.found_full(tier);
        self.ops.begin_wait(op, Wait { tier, until, timer, stuck, found_full, cancelled: false });
        let shard = self.config.shard;
        step.out.push(Effect::Budget(BudgetRequest::Ask { shard, op: op_id(op), tier, bytes }));
        false
    }

    /// Somebody else waits for the same operation: it waits as long as the last of them.
    pub(crate) fn prolong_wait(&mut self, now: Monotonic, op: SlotKey, caller: &Caller) {
        let Some(wait) = self.ops.get(op).and_then(|op| op.wait) else { return };
        let until = wait.until.zip(Self::move_wait_end(now, caller)).map(|(old, new)| old.max(new));
        if until == wait.until {
            return;
        }
        if let Some(timer) = wait.timer {
            self.wheel.disarm(timer);
        }
        let timer = until.and_then(|until| self.wheel.arm(until, Timer::Wait(op)));
        let stuck = wait.stuck || Self::lasts(now, until);
        self.ops.prolong_wait(op, Wait { until, timer, stuck, ..wait });
    }

    fn lasts(now: Monotonic, until: Option<Monotonic>) -> bool {
        until.is_none_or(|until| until > now.plus_millis(BACKGROUND_WAIT_MS))
    }

    /// True when `op` waits for space, and now nobody wants it any more.
    pub(crate) fn ends_with(&self, now: Now, op: SlotKey) -> bool {
        let wait = self.ops.get(op).and_then(|op| op.wait);
        wait.is_some_and(|wait| wait.cancelled || wait.until.is_some_and(|until| until <= now.monotonic))
    }

    /// Nobody waits for `op`'s space any more.
    pub(crate) fn cancel_wait(&mut self, out: &mut Outbox, op: SlotKey) {
        let Some(Op { wait: Some(wait), .. }) = self.ops.get_mut(op) else { return };
        if !std::mem::replace(&mut wait.cancelled, true) {
            let (shard, tier) = (self.config.shard, wait.tier);
            out.push(Effect::Budget(BudgetRequest::Cancel { shard, op: op_id(op), tier }));
        }
    }

    /// The arbiter met an ask.
    pub(crate) fn budget_granted(&mut self, step: &mut Step<'_>, id: OpId, tier: Tier, bytes: ByteCount) {
        self.accounts[tier].grant(bytes);
        self.budget[tier].released = true;
        self.budget_is_busy = true;
        let op = slot_key(id);
        let Some(wait) = self.ops.end_wait(op) else { return };
        if let Some(timer) = wait.timer {
            self.wheel.disarm(timer);
        }
        let Some(Op { kind, payload, class, .. }) = self.ops.get(op) else { return };
        if matches!(kind, Kind::Copy(copy) if copy.evicts) && self.ops.is_stuck_wait(wait) {
            self.doors[tier].opens();
        }
        if wait.cancelled {
            let kind = match kind {
                Kind::Allocate { deadline: None, .. } => ErrorKind::ResourceExhausted,
                _ if *class == Class::Upkeep => ErrorKind::ResourceExhausted,
                _ => ErrorKind::DeadlineExceeded,
            };
            let late = "the space became free only after the deadline, and was given back; allow more time";
            return self.space_refused(step, op, &PayloadError::new(kind, format!("{tier}: {late}")));
        }
        match kind {
            Kind::Allocate { replica, .. } => {
                let replica = *replica;
                assert!(self.accounts[tier].charge(replica.size.in_pages()), "a grant covers its ask");
                self.create(step, id, replica);
            }
            Kind::MakeSlab { bytes, .. } => {
                assert!(self.accounts[tier].charge(*bytes), "a grant covers its ask");
                self.slab_charged(step, op);
            }
            Kind::Copy(copy) if self.is_ending(*payload) => self.end_unwanted(*copy, op),
            Kind::Copy(copy) => {
                assert!(self.accounts[tier].charge(copy.to.size.in_pages()), "a grant covers its ask");
                self.transfer(step, op);
            }
            Kind::Commit { .. }
            | Kind::Sync { .. }
            | Kind::Mark(_)
            | Kind::Verify(_)
            | Kind::Remove { .. }
            | Kind::Pin { .. }
            | Kind::Enrol { .. } => unreachable!("only allocations, slabs and copies ask for space"),
        }
    }

    /// The arbiter took an ask back that was cancelled.
    pub(crate) fn budget_denied(&mut self, step: &mut Step<'_>, id: OpId, refusal: &Refusal) {
        let op = slot_key(id);
        let Some(wait) = self.ops.end_wait(op) else { return };
        if let Some(timer) = wait.timer {
            self.wheel.disarm(timer);
        }
        let size = match self.ops.get(op).map(|op| &op.kind) {
            Some(Kind::Allocate { replica, .. }) => replica.size,
            Some(Kind::Copy(copy)) => copy.to.size,
            Some(Kind::MakeSlab { bytes, .. }) => *bytes,
            _ => return,
        };
        if matches!(self.ops.get(op), Some(Op { kind: Kind::Copy(copy), .. }) if copy.evicts) {
            self.room_told(refusal.tier, Some(refusal.free));
        }
        let error = self.tier_full(size, refusal);
        self.space_refused(step, op, &error);
    }

    fn space_refused(&mut self, step: &mut Step<'_>, op: SlotKey, error: &PayloadError) {
        let Some(Op { kind, payload, .. }) = self.ops.get(op) else { return };
        match kind {
            Kind::Copy(copy) if self.is_ending(*payload) => self.end_unwanted(*copy, op),
            Kind::Copy(copy) => {
                let copy = *copy;
                self.release_source(copy, op);
                self.copy_undone(op, error);
            }
            Kind::MakeSlab { .. } => self.slab_refused(op, error),
            Kind::Allocate { replica, .. } => {
                if let Some(block) = replica.block {
                    self.arenas.unmake(block.slab, false);
                }
                self.allocation_failed(step, op_id(op), error.clone());
            }
            Kind::Commit { .. }
            | Kind::Sync { .. }
            | Kind::Mark(_)
            | Kind::Verify(_)
            | Kind::Remove { .. }
            | Kind::Pin { .. }
            | Kind::Enrol { .. } => unreachable!("only allocations, slabs and copies ask for space"),
        }
    }

    /// An order of the arbiter; answered at the end of the step.
    pub(crate) fn budget_ordered(
        &mut self,
        step: &mut Step<'_>,
        work_left: &mut usize,
        (tier, recall): (Tier, u64),
        pressure: bool,
        evict: Option<EvictOrder>,
    ) {
        self.budget[tier].on = pressure;
        self.budget[tier].answer = Some(recall);
        self.budget_is_busy = true;
        if pressure && tier == Tier::Ram {
            self.arenas.trim_all();
        }
        if let Some(order) = evict {
            self.evict(step, tier, order, work_left);
        }
    }

    /// Ends a charge; the end of the step gives the arbiter what is more than a spare.
    pub(crate) fn release_charge(&mut self, tier: Tier, bytes: ByteCount) {
        self.accounts[tier].release(bytes);
        self.budget[tier].released = true;
        self.budget_is_busy = true;
    }

    /// The end of a step: answers the arbiter's orders and gives back what is not needed.
    pub(crate) fn run_budget(&mut self, step: &mut Step<'_>) {
        for tier in Tier::ALL {
            let Pressure { on, answer, released, .. } = self.budget[tier];
            if !(on || released) && answer.is_none() {
                continue;
            }
            self.close_doors();
            let spare = self.accounts[tier].spare();
            if let Some(recall) = answer {
                self.budget[tier].answer = None;
                let keep = if on { ByteCount::ZERO } else { spare };
                self.give_back(step.out, tier, keep, Some(recall));
            } else if on {
                if spare > ByteCount::ZERO || self.has_news(tier) {
                    self.give_back(step.out, tier, ByteCount::ZERO, None);
                }
            } else if released {
                let capacity = self.config.capacity[tier].unwrap_or_default().0;
                let share = capacity / SPARE_SHARE / u64::from(self.config.shard_count);
                let keep = ByteCount(share / limits::PAGE_BYTES * limits::PAGE_BYTES);
                // With one shard there is nobody to give it to.
                if self.config.shard_count > 1 && spare.0 > 2 * keep.0 {
                    self.give_back(step.out, tier, keep, None);
                }
            }
            self.budget[tier].released = false;
        }
        // Under pressure every step looks for news.
        self.budget_is_busy = Tier::ALL.into_iter().any(|tier| self.budget[tier].on);
    }

    /// The arbiter said what room a tier has to which payloads move down; `None`: it is not full. While it is, what waits
    /// for space there is not on its way out.
    pub(crate) fn room_told(&mut self, tier: Tier, room: Option<ByteCount>) {
        self.doors[tier].told(room.map(|room| room.0));
        if room.is_some() {
            self.ops.finds_full(tier);
            self.budget_is_busy = true;
        }
    }

    /// The largest payload that may be evicted to `to` now, in bytes; 0: none.
    pub fn room_for_evictions(&self, to: Tier) -> u64 {
        if self.ops.may_evict_by_copy() { self.doors[to].limit(self.ops.waits_to_evict_to(to)) } else { 0 }
    }

    /// Nobody who would leave for a nearly full tier fits there, as far as was looked: none is looked for again until there
    /// is news of it.
    fn close_doors(&mut self) {
        for to in Tier::ALL {
            let room = self.room_for_evictions(to);
            let mut faster = Tier::ALL.into_iter().filter(|from| from.is_faster_than(to));
            if (limits::PAGE_BYTES..u64::MAX).contains(&room)
                && !faster.any(|from| self.table.any_fits(from, to, room))
            {
                self.doors[to].told(Some(0));
            }
        }
    }

    /// True when `to` takes something. Less than a page is nothing.
    pub(crate) fn takes_evictions(&self, to: Tier) -> bool {
        self.room_for_evictions(to) >= limits::PAGE_BYTES
    }

    /// True when the arbiter would order other evictions than as far as it knows.
    fn has_news(&self, tier: Tier) -> bool {
        let told = self.budget[tier].told;
        let better = |head: Rank| told.head.is_none_or(|told| head < told);
        self.leaving(tier) != told.leaving || self.head(tier).is_some_and(better)
    }

    /// Returns spare grant beyond `keep` to the arbiter, as the answer to `recall` if there is one.
    fn give_back(&mut self, out: &mut Outbox, tier: Tier, keep: ByteCount, recall: Option<u64>) {
        let bytes = self.accounts[tier].give_up(keep);
        let (shard, usage, supply) = (self.config.shard, self.usage(tier), self.supply(tier));
        self.budget[tier].told = supply;
        out.push(Effect::Budget(BudgetRequest::Return { shard, tier, bytes, recall, usage, supply }));
    }

    /// What this shard could free of a tier.
    pub fn supply(&self, tier: Tier) -> TierSupply {
        let evictable = self.table.evictable(tier, |to| self.room_for_evictions(to));
        TierSupply { evictable, head: self.head(tier), leaving: self.leaving(tier) }
    }

    fn head(&self, tier: Tier) -> Option<Rank> {
        let victim = || self.table.victim(tier, |to| self.room_for_evictions(to));
        self.ops.may_evict().then(victim).flatten().map(|(rank, _)| rank)
    }

    fn leaving(&self, tier: Tier) -> u64 {
        self.ops.leaving(tier) + self.limbo.leaving(tier) + self.direct.leaving(tier)
    }

    /// What this shard uses of a tier.
    pub fn usage(&self, tier: Tier) -> TierUsage {
        let books = self.table.books(tier);
        TierUsage {
            allocated: self.accounts[tier].charged().0,
            leased: books.leased,
            pinned: books.pinned,
            spilling: self.ops.spilling(tier).0,
            limbo: self.limbo.bytes(tier),
        }
    }

    /// Refuses what could never fit.
    pub(crate) fn check_capacity(&self, tier: Tier, size: ByteCount) -> Result<(), PayloadError> {
        let Some(capacity) = self.config.capacity[tier] else { return Err(self.unconfigured(tier)) };
        if let Some(most) = self.limits[tier].payload_max.filter(|most| size.in_pages() > *most) {
            return Err(PayloadError::exhausted(format!(
                "{size} were asked for on {tier}, and the largest of its devices holds {most}; raise its capacity_bytes or use another tier"
            )));
        }
        if size.in_pages() > capacity {
            return Err(PayloadError::exhausted(format!(
                "{size} were asked for on {tier}, whose whole capacity is {capacity}; raise the tier's capacity_bytes or use another tier"
            )));
        }
        Ok(())
    }

    /// The refusal of a tier that this node does not have.
    pub(crate) fn unconfigured(&self, tier: Tier) -> PayloadError {
        PayloadError::precondition(match &self.limits[tier].absent {
            Some(why) => format!("tier {tier} is configured on this node and unavailable: {why}"),
            None => format!("tier {tier} is not configured on this node; configure it or use another tier"),
        })
    }

    /// What refusals on `tier` say beside its capacity. Told once, before the first step.
    pub fn limit(&mut self, tier: Tier, limits: TierLimits) {
        self.limits[tier] = limits;
    }

    /// Refuses what would have to wait for space when too many do so already.
    pub(crate) fn check_wait(&self, tier: Tier, size: ByteCount) -> Result<(), PayloadError> {
        if self.ops.may_wait() || self.accounts[tier].spare() >= size.in_pages() {
            return Ok(());
        }
        Err(PayloadError::exhausted(format!(
            "{size} on {tier} are not there now, and {} operations of this shard wait for space already; try again later",
            limits::WAITERS_PER_SHARD_MAX
        )))
    }

    /// The refusal of a full tier, with its breakdown.
    fn tier_full(&self, size: ByteCount, refusal: &Refusal) -> PayloadError {
        let Refusal { tier, free, others } = *refusal;
        let usage = self.usage(tier).plus(others);
        let [allocated, leased, pinned, spilling, limbo] =
            [usage.allocated, usage.leased, usage.pinned, usage.spilling, usage.limbo].map(ByteCount);
        PayloadError::exhausted(format!(
            "{size} were asked for on {tier}, which is full: allocated {allocated} (leased {leased}, pinned {pinned}, spilling {spilling}, dropped but still open {limbo}), free {free}; delete or spill payloads, or try again later"
        ))
    }
}
