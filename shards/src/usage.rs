//! Capacity: charging, giving back, and telling a refused caller what fills the tier.

use std::collections::VecDeque;

use payload_ledger::SlotKey;
use payload_types::effect::{BudgetRequest, Effect, TierUsage};
use payload_types::{ByteCount, OpId, PayloadError, Tier, limits};

use crate::op::{Kind, op_id, slot_key};
use crate::outbox::Outbox;
use crate::shard::{Shard, Step};

/// Spare grant that a shard keeps for its next allocations: a 1/64 of the tier, shared by all shards.
const SPARE_SHARE: u64 = 64;

/// What the arbiter said when it refused an ask.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refusal {
    /// The tier.
    pub tier: Tier,
    /// Not granted to anybody.
    pub free: ByteCount,
    /// What the other shards use.
    pub others: TierUsage,
}

/// Who waits for capacity of one tier. One ask at a time is under way: while it is, nothing is given back unasked, so
/// that its answer and the spare together are all there is.
#[derive(Debug, Default)]
pub(crate) struct BudgetQueue {
    /// The operation whose ask the arbiter has.
    pub asked: Option<SlotKey>,
    /// Those that ask next. Each has a slot of its own, so there are at most `limits::OPS_PER_SHARD_MAX`.
    waiting: VecDeque<SlotKey>,
    /// How many of them waited when it asked: a refusal is news to them too.
    covered: usize,
}

impl BudgetQueue {
    /// True when the next one can ask.
    pub fn is_ready(&self) -> bool {
        self.asked.is_none() && !self.waiting.is_empty()
    }
}

impl Shard {
    /// Charges `bytes` on `tier`, or has `op` wait for them; true when they are charged.
    pub(crate) fn charge_or_ask(&mut self, out: &mut Outbox, op: OpId, tier: Tier, bytes: ByteCount) -> bool {
        if self.accounts[tier].charge(bytes) {
            return true;
        }
        if self.budget[tier].asked.is_some() {
            self.budget[tier].waiting.push_back(slot_key(op));
            return false;
        }
        // What is spare here counts too, but asking for the difference could starve: the spare may be recalled before
        // the answer comes. So it goes back first, and the grant is whole.
        if self.accounts[tier].spare() > ByteCount::ZERO {
            self.give_back(out, tier, ByteCount::ZERO, None);
        }
        let queue = &mut self.budget[tier];
        queue.asked = Some(slot_key(op));
        queue.covered = queue.waiting.len();
        let shard = self.config.shard;
        out.push(Effect::Budget(BudgetRequest::Ask { shard, op, tier, bytes }));
        false
    }

    /// Lets those that wait for capacity go on, as far as this step's work reaches.
    pub(crate) fn run_budget(&mut self, step: &mut Step<'_>, work_left: &mut usize) {
        for tier in Tier::ALL {
            while *work_left > 0
                && self.budget[tier].is_ready()
                && let Some(op) = self.budget[tier].waiting.pop_front()
            {
                *work_left -= 1;
                self.budget_granted(step, op_id(op));
            }
        }
    }

    /// The arbiter refused `op`, and with it those that waited when it asked and would not fit either.
    pub(crate) fn budget_refused(&mut self, step: &mut Step<'_>, op: OpId, refusal: &Refusal) {
        let queue = &mut self.budget[refusal.tier];
        queue.asked = None;
        let covered = std::mem::take(&mut queue.covered).min(limits::ITEMS_PER_TURN_MAX);
        let behind: Vec<SlotKey> = queue.waiting.drain(..covered).collect();
        self.budget_denied(step, op, refusal);
        for op in behind.into_iter().rev() {
            let fits = self.ops.get(op).is_none_or(|op| match &op.kind {
                Kind::Allocate { replica, .. } => self.would_fit(refusal.tier, replica.size, refusal.free),
                Kind::Copy(copy) => self.would_fit(refusal.tier, copy.to.size, refusal.free),
                _ => true,
            });
            if fits {
                self.budget[refusal.tier].waiting.push_front(op);
            } else {
                self.budget_denied(step, op_id(op), refusal);
            }
        }
    }

    /// True when a refused ask is worth repeating: what is spare here by now and what the arbiter had left are enough
    /// together.
    pub(crate) fn would_fit(&self, tier: Tier, size: ByteCount, free: ByteCount) -> bool {
        self.accounts[tier].spare().0 + free.0 >= size.in_pages().0
    }

    /// Ends a charge, and gives the arbiter what is more than a spare.
    pub(crate) fn release_charge(&mut self, out: &mut Outbox, tier: Tier, bytes: ByteCount) {
        self.accounts[tier].release(bytes);
        if self.config.shard_count == 1 || self.budget[tier].asked.is_some() {
            return;
        }
        let capacity = self.config.capacity[tier].unwrap_or_default().0;
        let keep = ByteCount(capacity / SPARE_SHARE / u64::from(self.config.shard_count));
        if self.accounts[tier].spare().0 > 2 * keep.0 {
            self.give_back(out, tier, keep, None);
        }
    }

    /// Returns spare grant beyond `keep` to the arbiter, as the answer to `recall` if there is one.
    pub(crate) fn give_back(&mut self, out: &mut Outbox, tier: Tier, keep: ByteCount, recall: Option<u64>) {
        let bytes = self.accounts[tier].give_up(keep);
        let (shard, usage) = (self.config.shard, self.usage(tier));
        out.push(Effect::Budget(BudgetRequest::Return { shard, tier, bytes, recall, usage }));
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
        let Some(capacity) = self.config.capacity[tier] else { return Err(unconfigured(tier)) };
        if size.in_pages() > capacity {
            return Err(PayloadError::exhausted(format!(
                "{size} were asked for on {tier}, whose whole capacity is {capacity}; raise the tier's capacity_bytes or use another tier"
            )));
        }
        Ok(())
    }

    /// The refusal of a full tier, with its breakdown.
    pub(crate) fn tier_full(
        &self,
        tier: Tier,
        size: ByteCount,
        free: ByteCount,
        others: TierUsage,
    ) -> PayloadError {
        let usage = self.usage(tier).plus(others);
        let [allocated, leased, pinned, spilling, limbo] =
            [usage.allocated, usage.leased, usage.pinned, usage.spilling, usage.limbo].map(ByteCount);
        PayloadError::exhausted(format!(
            "{size} were asked for on {tier}, which is full: allocated {allocated} (leased {leased}, pinned {pinned}, spilling {spilling}, dropped but still open {limbo}), free {free}; delete or spill payloads, or try again later"
        ))
    }
}

/// The refusal of a tier that this node does not have.
pub(crate) fn unconfigured(tier: Tier) -> PayloadError {
    PayloadError::precondition(format!(
        "tier {tier} is not configured on this node; configure it or use another tier"
    ))
}
