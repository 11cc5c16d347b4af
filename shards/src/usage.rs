//! Capacity: charging, giving back, and telling a refused caller what fills the tier.

use payload_types::effect::{BudgetRequest, Effect, TierUsage};
use payload_types::{ByteCount, OpId, PayloadError, Tier};

use crate::outbox::Outbox;
use crate::shard::Shard;

/// Spare grant that a shard keeps for its next allocations: a 1/64 of the tier, shared by all shards.
const SPARE_SHARE: u64 = 64;

impl Shard {
    /// Charges `bytes` on `tier`, or asks the arbiter for them on behalf of `op`; true when they are charged.
    pub(crate) fn charge_or_ask(&mut self, out: &mut Outbox, op: OpId, tier: Tier, bytes: ByteCount) -> bool {
        if self.accounts[tier].charge(bytes) {
            return true;
        }
        // What is spare here counts too, but asking for the difference could starve: the spare may be recalled before
        // the answer comes. So it goes back first, and the grant is whole.
        if self.accounts[tier].spare() > ByteCount::ZERO {
            self.give_back(out, tier, ByteCount::ZERO, None);
        }
        let shard = self.config.shard;
        out.push(Effect::Budget(BudgetRequest::Ask { shard, op, tier, bytes }));
        false
    }

    /// True when a refused ask is worth repeating: what another ask of this shard brought meanwhile, and what the
    /// arbiter had left, are enough together.
    pub(crate) fn would_fit(&self, tier: Tier, size: ByteCount, free: ByteCount) -> bool {
        self.accounts[tier].spare().0 + free.0 >= size.in_pages().0
    }

    /// Ends a charge, and gives the arbiter what is more than a spare.
    pub(crate) fn release_charge(&mut self, out: &mut Outbox, tier: Tier, bytes: ByteCount) {
        self.accounts[tier].release(bytes);
        if self.config.shard_count == 1 {
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
