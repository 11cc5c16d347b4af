//! The node's capacity, shared among its shards.
//!
//! Shards charge against what they were granted and ask for more when that is not enough. When the arbiter has not
//! enough left it recalls what the others can spare, and refuses only when that is not enough either. Asks of a tier
//! are served in the order they came.
//!
//! ```text
//!   Ask --> free is enough: Granted (with something to spare)
//!       --> else, once for each ask: Recall to all others --> their Returns --> Granted or Denied
//! ```
//! Invariant: granted + free = capacity, unless replicas adopted at boot exceed a capacity that was lowered.

use std::collections::VecDeque;

use payload_types::effect::{BudgetRequest, TierUsage};
use payload_types::event::BudgetReply;
use payload_types::{ByteCount, OpId, PerTier, ShardIndex, Tier, limits};

/// What one shard is given beyond its need at most: asking again costs two messages, keeping costs others a recall.
const BONUS_BYTES_MAX: u64 = 256 << 20;

#[derive(Debug)]
struct Ask {
    shard: ShardIndex,
    op: OpId,
    bytes: u64,
    recalled: bool,
}

#[derive(Debug, Default)]
struct Budget {
    free: u64,
    /// Adopted at boot beyond the capacity; what is returned pays this first.
    overdrawn: u64,
    asks: VecDeque<Ask>,
    recall: u64,
    answers_due: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Arbiter {
    budgets: PerTier<Budget>,
    usages: Vec<PerTier<TierUsage>>,
}

impl Arbiter {
    /// All capacity free.
    pub fn new(capacity: PerTier<Option<ByteCount>>, shard_count: u16) -> Self {
        let budget = |tier| Budget { free: capacity[tier].unwrap_or_default().0, ..Budget::default() };
        Self {
            budgets: PerTier(Tier::ALL.map(budget)),
            usages: vec![PerTier::default(); usize::from(shard_count)],
        }
    }

    /// At boot: `shard` holds `bytes` already.
    pub fn preload(&mut self, _shard: ShardIndex, tier: Tier, bytes: ByteCount) {
        let budget = &mut self.budgets[tier];
        budget.overdrawn += bytes.0.saturating_sub(budget.free);
        budget.free = budget.free.saturating_sub(bytes.0);
    }

    /// Granted to nobody.
    pub fn free(&self, tier: Tier) -> ByteCount {
        ByteCount(self.budgets[tier].free)
    }

    /// Handles one message; the answers are added to `out`: at most one a shard, and one for each ask that is over.
    pub fn step(&mut self, request: BudgetRequest, out: &mut Vec<(ShardIndex, BudgetReply)>) {
        match request {
            BudgetRequest::Ask { shard, op, tier, bytes } => {
                let asks = &mut self.budgets[tier].asks;
                let limit = limits::BUDGET_ASKS_PER_SHARD_MAX * self.usages.len();
                assert!(asks.len() < limit, "each ask belongs to an operation");
                asks.push_back(Ask { shard, op, bytes: bytes.0, recalled: false });
                self.serve(tier, out);
            }
            BudgetRequest::Return { shard, tier, bytes, recall, usage } => {
                self.usages[usize::from(shard.0)][tier] = usage;
                let budget = &mut self.budgets[tier];
                let repaid = bytes.0.min(budget.overdrawn);
                budget.overdrawn -= repaid;
                budget.free += bytes.0 - repaid;
                if recall == Some(budget.recall) && budget.answers_due > 0 {
                    budget.answers_due -= 1;
                }
                self.serve(tier, out);
            }
        }
    }

    /// Serves asks in order, as far as what is free and what was recalled allow.
    fn serve(&mut self, tier: Tier, out: &mut Vec<(ShardIndex, BudgetReply)>) {
        let shard_count = self.usages.len() as u64;
        let budget = &mut self.budgets[tier];
        while let Some(ask) = budget.asks.front_mut() {
            let (shard, op) = (ask.shard, ask.op);
            if ask.bytes <= budget.free {
                // With one shard there is nobody to keep anything for.
                let left = budget.free - ask.bytes;
                let bonus =
                    if shard_count == 1 { left } else { (left / (2 * shard_count)).min(BONUS_BYTES_MAX) };
                let bytes = ask.bytes + bonus / limits::PAGE_BYTES * limits::PAGE_BYTES;
                budget.free -= bytes;
                budget.asks.pop_front();
                out.push((shard, BudgetReply::Granted { op, tier, bytes: ByteCount(bytes) }));
            } else if budget.answers_due > 0 {
                return;
            } else if !ask.recalled && shard_count > 1 {
                ask.recalled = true;
                budget.recall += 1;
                budget.answers_due = shard_count as usize - 1;
                let recall = BudgetReply::Recall { tier, recall: budget.recall };
                let others = (0..shard_count as u16).map(ShardIndex).filter(|other| *other != shard);
                out.extend(others.map(|other| (other, recall)));
                return;
            } else {
                let free = ByteCount(budget.free);
                budget.asks.pop_front();
                let usage = (0..self.usages.len())
                    .filter(|other| *other != usize::from(shard.0))
                    .fold(TierUsage::default(), |sum, other| sum.plus(self.usages[other][tier]));
                out.push((shard, BudgetReply::Denied { op, tier, free, usage }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(shard: u16, bytes: u64) -> BudgetRequest {
        let op = OpId { index: u32::from(shard), generation: 1 };
        BudgetRequest::Ask { shard: ShardIndex(shard), op, tier: Tier::Ram, bytes: ByteCount(bytes) }
    }

    fn give(shard: u16, bytes: u64, recall: Option<u64>) -> BudgetRequest {
        let usage = TierUsage { allocated: 7, ..TierUsage::default() };
        BudgetRequest::Return {
            shard: ShardIndex(shard),
            tier: Tier::Ram,
            bytes: ByteCount(bytes),
            recall,
            usage,
        }
    }

    fn arbiter(capacity: u64, shards: u16) -> Arbiter {
        let mut capacities = PerTier::default();
        capacities[Tier::Ram] = Some(ByteCount(capacity));
        Arbiter::new(capacities, shards)
    }

    fn run(arbiter: &mut Arbiter, request: BudgetRequest) -> Vec<(u16, BudgetReply)> {
        let mut out = Vec::new();
        arbiter.step(request, &mut out);
        out.into_iter().map(|(shard, reply)| (shard.0, reply)).collect()
    }

    #[test]
    fn given_one_shard_when_it_asks_for_what_is_there_then_it_gets_all_and_then_nothing() {
        let mut arbiter = arbiter(1 << 20, 1);
        let granted = run(&mut arbiter, ask(0, 4096));
        assert!(matches!(granted[..], [(0, BudgetReply::Granted { bytes: ByteCount(1_048_576), .. })]));
        assert!(matches!(run(&mut arbiter, ask(0, 4096))[..], [(0, BudgetReply::Denied { .. })]));
    }

    #[test]
    fn given_a_spare_elsewhere_when_asked_then_it_is_recalled_before_anything_is_refused() {
        let mut arbiter = arbiter(16 * 4096, 3);
        run(&mut arbiter, ask(0, 8 * 4096));
        run(&mut arbiter, ask(1, 6 * 4096));
        let recall = run(&mut arbiter, ask(2, 4 * 4096));
        assert!(matches!(
            recall[..],
            [(0, BudgetReply::Recall { recall: 1, .. }), (1, BudgetReply::Recall { .. })]
        ));
        assert!(run(&mut arbiter, give(0, 0, Some(1))).is_empty(), "the other answer is still due");
        let answer = run(&mut arbiter, give(1, 4 * 4096, Some(1)));
        assert!(matches!(answer[..], [(2, BudgetReply::Granted { .. })]), "{answer:?}");
    }

    #[test]
    fn given_nothing_spare_when_asked_then_denied_with_the_use_of_the_others_and_the_next_ask_is_served() {
        let mut arbiter = arbiter(8 * 4096, 2);
        run(&mut arbiter, ask(0, 4 * 4096));
        assert_eq!(run(&mut arbiter, ask(1, 100 * 4096)).len(), 1);
        assert!(run(&mut arbiter, ask(1, 4096)).is_empty(), "waits behind the large one");
        let answers = run(&mut arbiter, give(0, 0, Some(1)));
        assert!(
            matches!(answers[0], (1, BudgetReply::Denied { usage: TierUsage { allocated: 7, .. }, .. })),
            "{answers:?}"
        );
        assert!(matches!(answers[1], (1, BudgetReply::Granted { .. })), "{answers:?}");
    }

    #[test]
    fn given_more_adopted_than_the_capacity_when_returned_then_the_overdraft_is_paid_first() {
        let mut arbiter = arbiter(4096, 1);
        arbiter.preload(ShardIndex(0), Tier::Ram, ByteCount(3 * 4096));
        run(&mut arbiter, give(0, 2 * 4096, None));
        assert_eq!(arbiter.free(Tier::Ram), ByteCount::ZERO);
        run(&mut arbiter, give(0, 4096, None));
        assert_eq!(arbiter.free(Tier::Ram), ByteCount(4096));
    }
}
