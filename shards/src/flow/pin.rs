//! Pin and Unpin: stored with the payload, so that a pin survives a restart.

use payload_ledger::SlotKey;
use payload_types::effect::CatalogChange;
use payload_types::reply::Reply;
use payload_types::report::PinOwner;
use payload_types::request::Request;
use payload_types::{Now, PayloadError, PayloadKey, Peer, Pin};

use crate::flow::commit::unavailable;
use crate::op::{self, Class, Kind, Op, op_id};
use crate::parked::Caller;
use crate::shard::{Answer, Shard, Step, Timer};

impl Shard {
    /// Pin for `Some((duration, owner))`, where a duration of `None` is until Unpin; Unpin for `None`.
    pub(crate) fn pin(
        &mut self,
        step: &mut Step<'_>,
        caller: Caller,
        key: PayloadKey,
        wish: Option<(Option<u64>, Peer)>,
    ) -> Answer {
        let slot = match self.find(step.now, key) {
            Ok(slot) => slot,
            Err(error) => return Some(Err(error)),
        };
        let unpin = wish.is_none();
        let done = Some(Ok(if unpin { Reply::Unpinned } else { Reply::Pinned }));
        let prior = self.table.at(slot).pin;
        let wanted = Self::wanted_pin(step.now, wish.map(|(duration_ms, _)| duration_ms));
        let owner = wish.map(|(_, peer)| PinOwner { peer, pinned_at: step.now.wall });
        let new = if unpin { wanted } else { wanted.max(prior) };
        if new == prior && self.table.at(slot).pin_stored_by.is_none() {
            return done;
        }
        // A commit writes the pin with its row; the row of a payload that was enrolled before says nothing of it.
        if !self.table.at(slot).state.is_committed() && !self.is_storing(slot) {
            self.set_pin(step.now, slot, new, owner);
            return done;
        }
        if self.is_storing(slot) || self.table.at(slot).pin_stored_by.is_some() {
            let request = match wish {
                Some((duration_ms, owner)) => Request::Pin { key, duration_ms, owner },
                None => Request::Unpin { key },
            };
            return self.park(slot, None, caller, request);
        }
        if let Err(error) = self.check_slot(Class::Request) {
            return Some(Err(error));
        }
        let reply_to = caller.reply_to.expect("only clients pin");
        let prior_owner = self.table.pin_owner(slot);
        let kind = Kind::Pin { reply_to, prior, prior_owner, unpin };
        let op = self.ops.start(Op::new(slot, Class::Request, kind));
        self.set_pin(step.now, slot, new, owner);
        let epoch = self.config.epoch;
        let payload = self.table.links(slot);
        payload.pin_stored_by = Some(op);
        let row = payload.row(epoch, payload.settled_state(), payload.version, payload.replica_rows());
        self.store(step, op_id(op), CatalogChange::Put(Box::new(row)));
        None
    }

    /// What Pin asks for; an end past the year 9999 is no end.
    fn wanted_pin(now: Now, duration_ms: Option<Option<u64>>) -> Pin {
        match duration_ms {
            None => Pin::None,
            Some(None) => Pin::Forever,
            Some(Some(duration)) => now.wall.checked_plus(duration).map_or(Pin::Forever, Pin::Until),
        }
    }

    /// True while an exclusive operation's row is on its way to the catalog.
    fn is_storing(&self, slot: SlotKey) -> bool {
        let Some(op) = self.table.at(slot).op.and_then(|op| self.ops.get(op)) else { return false };
        match &op.kind {
            // A commit writes the pin with its row; until then the row it would be in does not exist.
            Kind::Commit { .. } | Kind::Remove { .. } | Kind::Mark(_) => true,
            Kind::Copy(copy) => copy.step == op::Step::Catalog,
            Kind::Allocate { .. }
            | Kind::MakeSlab { .. }
            | Kind::Sync { .. }
            | Kind::Verify(_)
            | Kind::Pin { .. }
            | Kind::Enrol { .. } => false,
        }
    }

    fn set_pin(&mut self, now: Now, slot: SlotKey, pin: Pin, owner: Option<PinOwner>) {
        self.table.update(slot, |payload| payload.pin = pin);
        self.table.set_pin_owner(slot, owner);
        self.arm_pin_timer(now, slot);
    }

    /// Arms the timer for the end of the payload's pin.
    pub(crate) fn arm_pin_timer(&mut self, now: Now, slot: SlotKey) {
        let payload = self.table.links(slot);
        let end = match payload.pin {
            Pin::Until(end) => Some(end),
            Pin::None | Pin::Forever => None,
        };
        if let Some(timer) = payload.pin_timer.take() {
            self.wheel.disarm(timer);
        }
        if let Some(end) = end {
            self.table.links(slot).pin_timer = self.wheel.arm(now.monotonic_at(end), Timer::Pin(slot));
        }
    }

    pub(crate) fn pin_due(&mut self, step: &mut Step<'_>, slot: SlotKey) {
        let Some(payload) = self.table.get(slot) else { return };
        let over = !payload.pin.holds_at(step.now.wall);
        self.table.links(slot).pin_timer = None;
        if over {
            // The row keeps the old end, which is past: nothing to store.
            self.set_pin(step.now, slot, Pin::None, None);
        } else {
            self.arm_pin_timer(step.now, slot);
        }
    }

    pub(crate) fn pin_stored(&mut self, step: &mut Step<'_>, op: SlotKey, result: Result<(), String>) {
        let ended = self.ops.get(op).expect("the caller found it");
        let slot = ended.payload;
        let Kind::Pin { reply_to, prior, prior_owner, unpin } = ended.kind else { return };
        let alive = self.table.get(slot).is_some();
        if alive {
            self.table.links(slot).pin_stored_by = None;
        }
        let answer = match result {
            Ok(()) if unpin => Ok(Reply::Unpinned),
            Ok(()) => Ok(Reply::Pinned),
            Err(reason) if alive => {
                self.set_pin(step.now, slot, prior, prior_owner);
                Err(unavailable(self.table.at(slot).key, if unpin { "unpinned" } else { "pinned" }, &reason))
            }
            Err(reason) => Err(PayloadError::new(payload_types::ErrorKind::Unavailable, reason)),
        };
        self.end_op(op, None);
        step.out.reply(reply_to, answer);
    }
}
