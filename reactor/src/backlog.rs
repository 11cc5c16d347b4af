//! Work that a port handed back because its queue was full, kept in order until it is accepted.
//!
//! Ports are sized so that this does not happen; when it does, nothing is lost, nobody spins (the pump tries again
//! after [`RETRY_AFTER_MS`]) and no new request is taken meanwhile, so that a backlog is bounded by the operations
//! that were in flight when it began.

use std::collections::VecDeque;

use payload_types::effect::BudgetRequest;
use payload_types::limits;

/// Pause before a refused op is offered again: long against the 50 µs of a small driver op, short against a request.
pub(crate) const RETRY_AFTER_MS: u64 = 1;

/// A driver op belongs to an operation, to a drop, or to a wish of the disk store.
pub(crate) const DRIVER_BACKLOG_MAX: usize =
    limits::OPS_PER_SHARD_MAX + limits::DROPS_IN_FLIGHT_MAX + limits::RELOCATIONS_MAX;

/// Each operation has at most one change under way.
pub(crate) const CATALOG_BACKLOG_MAX: usize = limits::OPS_PER_SHARD_MAX;

/// Work on slabs: what an operation waits for, and one return and one order to touch for each slab of some sessions at
/// once.
pub(crate) const SLAB_BACKLOG_MAX: usize = limits::OPS_PER_SHARD_MAX + 64 * limits::SLABS_PER_SESSION_MAX;

/// Open asks, each with the message that cancels it, one merged return a tier, one answer a recall.
pub(crate) const BUDGET_BACKLOG_MAX: usize = 2 * limits::BUDGET_ASKS_PER_SHARD_MAX + 4 + limits::RECALLS_MAX;

/// A FIFO in front of a port. Its memory is taken when it is first needed.
pub(crate) struct Backlog<T> {
    waiting: VecDeque<T>,
    len_max: usize,
}

impl<T> Backlog<T> {
    pub(crate) fn new(len_max: usize) -> Self {
        Self { waiting: VecDeque::new(), len_max }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Offers `op`, behind what already waits.
    pub(crate) fn send(&mut self, op: T, offer: impl FnOnce(T) -> Result<(), T>) {
        if !self.waiting.is_empty() {
            return self.keep(op);
        }
        if let Err(op) = offer(op) {
            self.keep(op);
        }
    }

    /// Offers what waits, in order, until one is refused.
    pub(crate) fn retry(&mut self, mut offer: impl FnMut(T) -> Result<(), T>) {
        while let Some(op) = self.waiting.pop_front() {
            if let Err(op) = offer(op) {
                self.waiting.push_front(op);
                return;
            }
        }
    }

    fn keep(&mut self, op: T) {
        assert!(self.waiting.len() < self.len_max, "a shard has no more work out than its tables hold");
        self.waiting.push_back(op);
    }
}

impl Backlog<BudgetRequest> {
    /// As [`Backlog::send`]; unasked returns of one tier become one while they wait, since nothing bounds their
    /// number. The later one takes the earlier one's bytes along, so that what a shard reports never gets older.
    pub(crate) fn send_budget(
        &mut self,
        request: BudgetRequest,
        offer: impl FnOnce(BudgetRequest) -> Result<(), BudgetRequest>,
    ) {
        let mut request = request;
        if let BudgetRequest::Return { tier, bytes: sum, recall: None, .. } = &mut request {
            let earlier = self.waiting.iter().position(|waiting| {
                matches!(waiting, BudgetRequest::Return { tier: its, recall: None, .. } if its == tier)
            });
            if let Some(BudgetRequest::Return { bytes, .. }) = earlier.and_then(|at| self.waiting.remove(at))
            {
                sum.0 += bytes.0;
            }
        }
        self.send(request, offer);
    }
}

#[cfg(test)]
mod tests {
    use payload_types::effect::{TierSupply, TierUsage};
    use payload_types::{ByteCount, OpId, ShardIndex, Tier};

    use super::*;

    #[test]
    fn given_a_port_that_refuses_when_it_accepts_again_then_order_is_kept_and_nothing_is_lost() {
        let mut backlog = Backlog::new(8);
        let mut accepted = Vec::new();
        backlog.send(1, |op| {
            accepted.push(op);
            Ok(())
        });
        backlog.send(2, Err);
        backlog.send(3, |_| panic!("3 must not overtake 2"));
        assert!(!backlog.is_empty());
        let mut room = 1;
        backlog.retry(|op| {
            if room == 0 {
                return Err(op);
            }
            room -= 1;
            accepted.push(op);
            Ok(())
        });
        backlog.retry(|op| {
            accepted.push(op);
            Ok(())
        });
        assert_eq!(accepted, [1, 2, 3]);
        assert!(backlog.is_empty());
    }

    #[test]
    fn given_many_unasked_returns_when_the_lane_is_full_then_they_become_one_a_tier() {
        let give = |tier, bytes, recall| BudgetRequest::Return {
            shard: ShardIndex(1),
            tier,
            bytes: ByteCount(bytes),
            recall,
            usage: TierUsage { allocated: bytes, ..TierUsage::default() },
            supply: TierSupply::default(),
        };
        let ask = BudgetRequest::Ask {
            shard: ShardIndex(1),
            op: OpId { index: 0, generation: 1 },
            tier: Tier::Ram,
            bytes: ByteCount(4096),
        };
        let mut backlog = Backlog::new(BUDGET_BACKLOG_MAX);
        for request in [
            give(Tier::Ram, 1, None),
            ask,
            give(Tier::Disk, 2, None),
            give(Tier::Ram, 3, None),
            give(Tier::Ram, 5, Some(9)),
        ] {
            backlog.send_budget(request, Err);
        }
        let mut sent = Vec::new();
        backlog.retry(|request| {
            sent.push(request);
            Ok(())
        });
        let BudgetRequest::Return { bytes, usage, .. } = sent[2] else { panic!("{:?}", sent[2]) };
        assert_eq!(
            (bytes.0, usage.allocated),
            (4, 3),
            "summed, with the latest usage, where the latest stood"
        );
        assert_eq!(sent[..2], [ask, give(Tier::Disk, 2, None)]);
        assert_eq!(sent[3..], [give(Tier::Ram, 5, Some(9))]);
    }
}
