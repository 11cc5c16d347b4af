//! Eviction: the arbiter says how much shall leave a tier, this starts it, in the order of the lists of victims.
//!
//! ```text
//!   order --> victim, unless a scan finds that somebody reads directly what would go:
//!                     a slower replica is there -> the faster one is dropped, nothing is written
//!                     else copied down (state EVICTING), then dropped, unless somebody leased it meanwhile
//!                     else discarded (spill_target VOID), also from a slower tier under a copy in memory
//!   its destination is full or fails --> who would go there is left out, but for one that waits ([`crate::door`])
//!   refused for want of room --> it stays where it was, and stands where it stood
//!   failed --> it stays where it was, readable, and is passed over for a while: the next one is tried
//! ```

use payload_ledger::SlotKey;
use payload_types::event::EvictOrder;
use payload_types::{Now, PayloadKey, Tier};

use crate::evict::{Candidate, Exit};
use crate::flow::copy::Aim;
use crate::parked::Caller;
use crate::shard::{Shard, Step, Timer};

/// What an eviction that was started comes to.
pub(crate) enum Start {
    /// It is on its way out.
    Leaves,
    /// It waits for space on a full tier.
    Waits,
}

/// After a failed eviction a payload is passed over for `retry_backoff_ms`, doubling so often: 500 ms to 32 s.
const PAUSE_DOUBLINGS: u8 = 6;

impl Shard {
    /// Starts evictions from `tier` until enough is on its way out.
    pub(crate) fn evict(
        &mut self,
        step: &mut Step<'_>,
        tier: Tier,
        order: EvictOrder,
        work_left: &mut usize,
    ) {
        // A delete, say, that the arbiter had not heard of.
        let mut started = self.supply(tier).leaving.saturating_sub(order.leaving.0);
        while started < order.bytes.0 && *work_left > 0 && self.ops.may_evict() {
            let Some((rank, slot)) = self.table.victim(tier, |to| self.room_for_evictions(to)) else {
                return;
            };
            if order.bound.is_some_and(|bound| rank > bound) {
                return;
            }
            *work_left -= 1;
            let bytes = self.table.at(slot).size.in_pages().0;
            match self.start_eviction(step, slot, tier) {
                Some(Start::Leaves) => started += bytes,
                Some(Start::Waits) => {}
                None => self.pass_over(step.now, slot),
            }
            // The next victim is looked for in lists that are right.
            self.table.settle(step.now.monotonic);
        }
    }

    /// `None` when it cannot start.
    pub(crate) fn start_eviction(&mut self, step: &mut Step<'_>, slot: SlotKey, tier: Tier) -> Option<Start> {
        let exit = self.table.exit(slot, tier)?;
        // Somebody may read it who asked nobody: then it is no victim.
        if self.evicts_later(slot, tier, exit) {
            return Some(Start::Leaves);
        }
        match exit {
            Exit::Drop(slower) => {
                self.count_eviction(tier, exit);
                self.retire_faster(slot, slower);
                let payload = self.table.links(slot);
                payload.version = payload.version.next();
            }
            // Its copy in device memory goes; then it is the next victim here.
            Exit::Copy(_) if self.table.at(slot).tier().is_faster_than(tier) => {
                self.count_eviction(self.table.at(slot).tier(), Exit::Drop(tier));
                self.retire_faster(slot, tier);
                let payload = self.table.links(slot);
                payload.version = payload.version.next();
                return Some(Start::Waits);
            }
            Exit::Copy(to) => {
                let aim = Aim { to, sync: self.syncs(to), evicts: true };
                let op = self.start_copy(step, slot, aim, &Caller::default()).ok()?;
                if self.ops.is_stuck(op) {
                    return Some(Start::Waits);
                }
            }
            Exit::Discard => {
                self.start_removal(step, slot, None).ok()?;
                self.count_eviction(tier, Exit::Discard);
            }
        }
        Some(Start::Leaves)
    }

    /// Leaves a payload alone for a while whose eviction failed.
    pub(crate) fn pass_over(&mut self, now: Now, slot: SlotKey) {
        let failures = self.table.at(slot).eviction_failures;
        let pause = self.config.retry_backoff_ms.saturating_mul(1 << failures.min(PAUSE_DOUBLINGS));
        let due = now.monotonic.plus_millis(pause);
        if self.wheel.arm(due, Timer::Evict(slot)).is_some() {
            let payload = self.table.links(slot);
            payload.passed_over = true;
            payload.eviction_failures = failures.saturating_add(1);
        }
    }

    pub(crate) fn eviction_due(&mut self, slot: SlotKey) {
        if self.table.get(slot).is_some() {
            self.table.links(slot).passed_over = false;
        }
    }

    /// A copy failed on its destination: after some in a row nobody is evicted there for a while.
    pub(crate) fn destination_failed(&mut self, now: Now, to: Tier) {
        if let Some(factor) = self.doors[to].fails() {
            let due = now.monotonic.plus_millis(self.config.retry_backoff_ms.saturating_mul(factor));
            if self.wheel.arm(due, Timer::Door(to)).is_none() {
                self.doors[to].pause_ends();
            }
        }
    }

    /// Who may be evicted from `tier`, in order; also those who have to wait for room on a full destination.
    pub fn victims(&self, tier: Tier) -> impl Iterator<Item = Candidate> + '_ {
        self.table.victims(tier, |_| true).map(|(rank, slot)| self.table.candidate(rank, slot))
    }

    /// The first of them that needs no room anywhere, while an eviction can start. For the simulator.
    pub fn victim_without_room(&self, tier: Tier) -> Option<Candidate> {
        let (rank, slot) = self.table.victim(tier, |_| 0).filter(|_| self.ops.may_evict())?;
        Some(self.table.candidate(rank, slot))
    }

    /// Charged bytes on `tier` that wait for room on `to` and count as on their way out. For the simulator.
    pub fn hopes(&self, tier: Tier, to: Tier) -> u64 {
        self.ops.hopes(tier, to)
    }

    /// True while a payload is passed over. For the simulator.
    pub fn is_passed_over(&self, key: PayloadKey) -> bool {
        self.table.find(key).is_some_and(|slot| self.table.at(slot).passed_over)
    }

    /// True while a payload waits for room on a full tier. For the simulator.
    pub fn is_stuck(&self, key: PayloadKey) -> bool {
        let op = self.table.find(key).and_then(|slot| self.table.at(slot).op);
        op.is_some_and(|op| self.ops.is_stuck(op))
    }
}
