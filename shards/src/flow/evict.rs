//! Eviction: the arbiter says how much shall leave a tier, this starts it, in the order of the lists of victims.
//!
//! ```text
//!   order --> victim: a slower replica is there -> the faster one is dropped, nothing is written
//!                     else copied down (state EVICTING), then dropped, unless somebody leased it meanwhile
//!                     else discarded (spill_target VOID)
//!   failed --> it stays where it was, readable, and is passed over for a while: the next one is tried
//! ```

use payload_ledger::SlotKey;
use payload_types::event::EvictOrder;
use payload_types::{Now, PayloadKey, Rank, Tier};

use crate::evict::Exit;
use crate::flow::copy::Aim;
use crate::parked::Caller;
use crate::shard::{Shard, Step, Timer};

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
            let Some((rank, slot)) = self.table.victim(tier) else { return };
            if order.bound.is_some_and(|bound| rank > bound) {
                return;
            }
            *work_left -= 1;
            let bytes = self.table.at(slot).size.in_pages().0;
            if self.start_eviction(step, slot) {
                started += bytes;
            } else {
                self.pass_over(step.now, slot);
            }
            // The next victim is looked for in lists that are right.
            self.table.settle(step.now.monotonic);
        }
    }

    /// False when it cannot start.
    fn start_eviction(&mut self, step: &mut Step<'_>, slot: SlotKey) -> bool {
        match self.table.exit(slot) {
            None => false,
            Some(Exit::Drop(slower)) => {
                self.count_eviction(self.table.at(slot).tier());
                self.retire_faster(slot, slower);
                let payload = self.table.links(slot);
                payload.version = payload.version.next();
                true
            }
            Some(Exit::Copy(to)) => {
                let aim = Aim { to, sync: self.syncs(to), evicts: true };
                self.start_copy(step, slot, aim, &Caller::default()).is_ok()
            }
            Some(Exit::Discard) => {
                let from = self.table.at(slot).tier();
                let starts = self.start_removal(step, slot, None).is_ok();
                if starts {
                    self.count_eviction(from);
                }
                starts
            }
        }
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

    /// Who is evicted from `tier` first, in order, and the bytes that would free.
    pub fn victims(&self, tier: Tier) -> impl Iterator<Item = (Rank, PayloadKey, u64)> + '_ {
        self.table.victims(tier).map(|(rank, slot)| {
            let payload = self.table.at(slot);
            (rank, payload.key, payload.size.in_pages().0)
        })
    }
}
