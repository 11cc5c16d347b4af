//! SpillArenas: what lies in slabs or device memory, and nowhere that outlives the server, is copied to DISK before it ends, as
//! far as the time allows.
//!
//! ```text
//!   asked: from here on nothing new comes into slabs and devices
//!     every LOOK_MS: who is safe by now leaves the list, who can be copied is, most recently used first
//!   the list is empty, or the deadline passed --> answered: how many were saved, and who will be lost
//! ```
//! Most recently used first: when the time is short, what somebody just worked with is what he will miss.

use payload_ledger::SlotKey;
use payload_types::reply::{ArenasSpilled, Reply};
use payload_types::{ErrorKind, Health, Monotonic, PayloadError, Tier, limits};

use crate::flow::copy::Aim;
use crate::parked::Caller;
use crate::shard::{Answer, Shard, Step, Timer};

/// How often the list is walked. A walk is bounded by a step's work, and goes on where the last one ended.
const LOOK_MS: u64 = 2;

/// Who asked, and what is left to do.
#[derive(Debug)]
pub struct Stop {
    caller: Caller,
    until: Monotonic,
    /// The next one last.
    left: Vec<SlotKey>,
    /// Looked at in this walk, and to be looked at again.
    seen: Vec<SlotKey>,
    spilled: u64,
}

impl Shard {
    /// Refuses what would come into a slab or a device now that they are emptied.
    pub(crate) fn check_stop(&self) -> Result<(), PayloadError> {
        match self.is_stopping {
            false => Ok(()),
            true => Err(PayloadError::new(
                ErrorKind::Unavailable,
                "the server is stopping and takes nothing more into memory that ends with it; connect again once it is back",
            )),
        }
    }

    pub(crate) fn spill_arenas(&mut self, step: &mut Step<'_>, caller: Caller) -> Answer {
        self.is_stopping = true;
        let namespaces = self.table.blocks().map(|(_, payload)| payload.key.namespace).collect();
        self.direct.close(namespaces);
        let in_memory = self.table.block_slots().chain(self.table.slots_shown_on(Tier::Gpu));
        let mut left: Vec<SlotKey> = in_memory.collect();
        // One in a slab with a copy on a device is in both.
        left.sort_by_key(|slot| (self.table.used_at(*slot), slot.index));
        left.dedup();
        let until = caller.deadline.unwrap_or(step.now.monotonic);
        let stop = Stop { caller, until, left, seen: Vec::new(), spilled: 0 };
        if self.stop.is_some() {
            return Some(Err(PayloadError::precondition(
                "the slabs and devices of this shard are being emptied already",
            )));
        }
        self.stop = Some(Box::new(stop));
        self.look_at_stop(step, &mut { limits::ITEMS_PER_TURN_MAX });
        None
    }

    /// A walk through the list, as far as this step's work reaches.
    pub(crate) fn look_at_stop(&mut self, step: &mut Step<'_>, work_left: &mut usize) {
        let Some(mut stop) = self.stop.take() else { return };
        let is_late = stop.until <= step.now.monotonic;
        while *work_left > 0
            && let Some(slot) = stop.left.pop()
        {
            *work_left -= 1;
            match self.save(step, slot, is_late) {
                Some(saved) => stop.spilled += u64::from(saved),
                None => stop.seen.push(slot),
            }
        }
        if stop.left.is_empty() {
            stop.seen.reverse();
            std::mem::swap(&mut stop.left, &mut stop.seen);
            if stop.left.is_empty() || is_late {
                return self.end_stop(step, *stop);
            }
        }
        let due = step.now.monotonic.plus_millis(LOOK_MS);
        match self.wheel.arm(due, Timer::Stop) {
            Some(_) => self.stop = Some(stop),
            None => self.end_stop(step, *stop),
        }
    }

    /// Begins to save one; true when it is safe by now, false when there is nothing to save, `None`: to be looked at again.
    fn save(&mut self, step: &mut Step<'_>, slot: SlotKey, is_late: bool) -> Option<bool> {
        let Some(payload) = self.table.get(slot) else { return Some(false) };
        if payload.is_durable() {
            return Some(true);
        }
        // Nothing is copied of what is on its way out; where its removal fails, it is looked at again.
        if self.is_ending(slot) {
            return None;
        }
        // It goes with the server, as nobody was told that it would not; or it has a segment, which outlives it.
        // What is damaged is lost already.
        if !payload.dies_with_server() || payload.health != Health::Good {
            return (payload.op.is_none()).then_some(false);
        }
        if payload.op.is_none() && !is_late && self.config.has(Tier::Disk) {
            let aim = Aim { to: Tier::Disk, sync: self.syncs(Tier::Disk), evicts: false };
            // Full tables and tiers may have room at the next look.
            drop(self.start_copy(step, slot, aim, &Caller::default()));
        }
        None
    }

    fn end_stop(&mut self, step: &mut Step<'_>, stop: Stop) {
        let lost = stop.left.iter().rev().chain(&stop.seen).filter_map(|slot| {
            let payload = self.table.get(*slot)?;
            (payload.dies_with_server() && !self.is_ending(*slot)).then_some(payload.key.id)
        });
        let mut all: Vec<_> = lost.collect();
        let lost_more = all.len().saturating_sub(limits::ITEMS_PER_TURN_MAX) as u64;
        all.truncate(limits::ITEMS_PER_TURN_MAX);
        let done = ArenasSpilled { spilled: stop.spilled, lost: all, lost_more };
        let to = stop.caller.reply_to.expect("only the front asks for it");
        step.out.reply(to, Ok(Reply::ArenasSpilled(done)));
    }
}
