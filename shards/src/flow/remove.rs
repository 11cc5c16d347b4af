//! Delete, expiry, reclaim of what was never committed, and the discarding half of Spill to VOID.
//!
//! ```text
//!   row removed -> replicas to limbo -> dropped when no copy needs them -> freed when nobody has them open
//! ```
//! With `synchronous: normal` the removal may not be durable yet: then what lies on disk waits in limbo until it is.

use payload_ledger::SlotKey;
use payload_types::effect::{CatalogChange, ReplyTo};
use payload_types::request::Request;
use payload_types::{ErrorKind, Health, Now, PayloadError, PayloadKey, PayloadState, PerTier, Tier, Version};

use crate::direct::Readers;
use crate::flow::direct::read_directly;
use crate::limbo::{Kept, Users};
use crate::op::{self, Class, Kind, Op, Removal, op_id};
use crate::parked::Caller;
use crate::shard::{Answer, Shard, Step, Timer};

/// How soon a removal that met an operation in its last step looks again: a few catalog transactions.
pub(crate) const BUSY_RETRY_MS: u64 = 5;
/// How soon a removal that the catalog refused, or that found no slot, is tried again.
pub(crate) const CATALOG_RETRY_MS: u64 = 1000;

impl Shard {
    pub(crate) fn delete(
        &mut self,
        step: &mut Step<'_>,
        caller: Caller,
        key: PayloadKey,
        force: bool,
        expected_version: Option<Version>,
    ) -> Answer {
        let slot = match self.find_even_lost(step.now, key) {
            Ok(slot) => slot,
            Err(error) => return Some(Err(error)),
        };
        if let Err(error) = self.check_version(slot, expected_version) {
            return Some(Err(error));
        }
        let payload = self.table.at(slot);
        if payload.lease_count > 0 && !force {
            return Some(Err(PayloadError::new(
                ErrorKind::LeaseConflict,
                format!(
                    "payload {} cannot be deleted: {} leases are held; release them, or delete with force",
                    key.id, payload.lease_count
                ),
            )));
        }
        if !force
            && let Err(error) = self.check_held(slot, "let its groups commit past it, or delete with force")
        {
            return Some(Err(error));
        }
        if !force {
            let again = || Request::Delete { key, force, expected_version: None };
            match self.ask_readers(slot, &caller, again) {
                Err(answer) => return answer,
                Ok(Readers::Held(_)) => {
                    let advice = "wait until it is released, or delete with force";
                    let what = "cannot be deleted";
                    return Some(Err(read_directly(key, ErrorKind::LeaseConflict, what, advice)));
                }
                Ok(Readers::Nobody | Readers::Unknown) => {}
            }
        }
        if !self.may_remove(slot) {
            return self.park(slot, None, caller, Request::Delete { key, force, expected_version: None });
        }
        let reply_to = caller.reply_to.expect("only clients delete");
        self.remove_for(step, slot, (reply_to, Removal::Delete))
    }

    /// As `find`, but a LOST payload is found too: deleting its id is how its row goes away.
    fn find_even_lost(&self, now: Now, key: PayloadKey) -> Result<SlotKey, PayloadError> {
        let lost = self.table.find(key).filter(|slot| {
            let payload = self.table.at(*slot);
            let is_settled =
                payload.state == payload.settled_state() || payload.state == PayloadState::Allocated;
            payload.health == Health::Lost && is_settled
        });
        lost.map_or_else(|| self.find(now, key), Ok)
    }

    /// Removes a payload for a client, and answers it now or when the catalog has.
    pub(crate) fn remove_for(
        &mut self,
        step: &mut Step<'_>,
        slot: SlotKey,
        caller: (ReplyTo, Removal),
    ) -> Answer {
        let stored = self.table.at(slot).stored;
        match self.start_removal(step, slot, Some(caller)) {
            Err(error) => Some(Err(error)),
            Ok(()) if stored => None,
            Ok(()) => Some(Ok(payload_types::reply::Reply::Deleted)),
        }
    }

    /// True when nothing stands in the way of a removal that would not be over in a moment anyway.
    pub(crate) fn may_remove(&self, slot: SlotKey) -> bool {
        let payload = self.table.at(slot);
        if payload.state == PayloadState::Deleting {
            return false;
        }
        let Some(op) = payload.op.and_then(|op| self.ops.get(op)) else { return true };
        match &op.kind {
            Kind::Copy(copy) => matches!(copy.step, op::Step::Budget | op::Step::Driver),
            Kind::Allocate { .. }
            | Kind::MakeSlab { .. }
            | Kind::Commit { .. }
            | Kind::Sync { .. }
            | Kind::Mark(_)
            | Kind::Verify(_)
            | Kind::Remove { .. }
            | Kind::Pin { .. }
            | Kind::Enrol { .. } => false,
        }
    }

    /// Begins to remove a payload: at once when it has no row, else when the catalog has removed that.
    pub(crate) fn start_removal(
        &mut self,
        step: &mut Step<'_>,
        slot: SlotKey,
        caller: Option<(ReplyTo, Removal)>,
    ) -> Result<(), PayloadError> {
        if !self.table.at(slot).stored {
            self.finalize_removal(step, slot, true, 0);
            return Ok(());
        }
        let class = if caller.is_some() { Class::Request } else { Class::Upkeep };
        self.check_slot(class)?;
        let payload = self.table.at(slot);
        let prior = match payload.state {
            state @ (PayloadState::Expired | PayloadState::Allocated) => state,
            _ => payload.settled_state(),
        };
        let change = CatalogChange::Remove { key: payload.key, epoch: self.config.epoch };
        // A copy that is under way stays the payload's operation: should the removal fail, it goes on.
        let mut leaving = PerTier::default();
        // What somebody leases stays until the release, unless a forced delete ends the leases.
        if payload.lease_count == 0 || matches!(caller, Some((_, Removal::Delete))) {
            for tier in Tier::ALL.into_iter().filter(|tier| payload.replicas[*tier].is_some()) {
                leaving[tier] = payload.charged_on(tier);
            }
        }
        let kind = Kind::Remove { caller, prior, leaving };
        let op = self.ops.start(Op::new(slot, class, kind));
        self.table.update(slot, |payload| {
            payload.set_state(PayloadState::Deleting);
            payload.version = payload.version.next();
        });
        self.store(step, op_id(op), change);
        Ok(())
    }

    /// Takes a payload out whose row is gone, or never was. With `forced` the leases that are left are invalid from
    /// here on, and hold nothing back; drivers prove that its space is free before it is reused. `sequence` as in the
    /// catalog's acknowledgement; 0 without a row.
    pub(crate) fn finalize_removal(
        &mut self,
        step: &mut Step<'_>,
        slot: SlotKey,
        forced: bool,
        sequence: u64,
    ) {
        let block = self.table.block(slot);
        let mut payload = self.table.remove(slot);
        self.sessions.forget_orphan(slot);
        if let Some(op) = payload.op {
            self.cancel_wait(step.out, op);
        }
        payload.set_state(PayloadState::Deleted);
        for timer in [payload.timer, payload.pin_timer].into_iter().flatten() {
            self.wheel.disarm(timer);
        }
        for tier in Tier::ALL {
            if let (Some(replica), Some(reference)) =
                (payload.replicas[tier], payload.replica_ref(tier, block))
            {
                // No driver could prove that nobody reads a block or device memory any more: it waits for its leases.
                let is_provable = reference.block.is_none() && tier != Tier::Gpu;
                let leases = if forced && is_provable { 0 } else { replica.users.leases };
                let users = Users { leases, copies: replica.users.copies };
                let kept = Kept { synced: replica.synced, sound: false };
                let retired = self.retire_block(&reference);
                let users = self.direct.retire(slot, payload.key.namespace, &reference, users, forced);
                self.limbo.insert_after(reference, users, kept, sequence, retired);
            }
        }
        if let Some(segment) = payload.limbo_segment {
            self.limbo.forget_payload(segment, forced);
        }
        self.parked.wake(&mut payload.parked, None);
        self.parked.wake(&mut payload.retries, None);
    }

    /// The payload's timer fired: its ttl passed, or nobody committed it in time.
    pub(crate) fn payload_due(&mut self, step: &mut Step<'_>, slot: SlotKey) {
        let Some(payload) = self.table.get(slot) else { return };
        let state = payload.state;
        let is_orphan = self.sessions.is_orphan(slot);
        let abandoned = state == PayloadState::Allocated
            && (is_orphan
                || payload
                    .created_at
                    .checked_plus(self.config.allocation_timeout_ms)
                    .is_some_and(|end| end <= step.now.wall));
        let expired = payload.is_expired_at(step.now.wall);
        let held = payload.held && payload.expires_at.is_some_and(|end| end <= step.now.wall);
        self.table.links(slot).timer = None;
        if is_orphan && matches!(state, PayloadState::Committing | PayloadState::Deleting) {
            // It ends as a committed payload, or as the abandoned one it was, or it is gone.
            return self.look_again(step.now, slot, BUSY_RETRY_MS);
        }
        if is_orphan && state.is_committed() {
            self.sessions.forget_orphan(slot);
        }
        if !abandoned && held {
            // Its ttl has passed, and it is armed again when nothing holds it any more.
        } else if !abandoned && !expired {
            self.arm_payload_timer(step.now, slot);
        } else if !self.may_remove(slot) {
            self.look_again(step.now, slot, BUSY_RETRY_MS);
        } else if state == PayloadState::Allocated {
            if self.start_removal(step, slot, None).is_err() {
                self.look_again(step.now, slot, CATALOG_RETRY_MS);
            }
        } else {
            self.expire(step, slot);
        }
    }

    /// Ends a committed payload's life: no new leases from here on, removed when the last one ends.
    fn expire(&mut self, step: &mut Step<'_>, slot: SlotKey) {
        if self.table.at(slot).state != PayloadState::Expired {
            self.table.update(slot, |payload| {
                payload.set_state(PayloadState::Expired);
                payload.version = payload.version.next();
            });
            self.wake(slot);
        }
        if self.table.at(slot).lease_count == 0 {
            self.remove_expired(step, slot);
        }
    }

    /// Removes a payload that has expired and is leased no more.
    pub(crate) fn remove_expired(&mut self, step: &mut Step<'_>, slot: SlotKey) {
        if !self.may_remove(slot) {
            self.look_again(step.now, slot, BUSY_RETRY_MS);
        } else if self.expires_later(step.now.monotonic, slot) {
            // Somebody may read it who asked nobody.
        } else if self.start_removal(step, slot, None).is_err() {
            self.look_again(step.now, slot, CATALOG_RETRY_MS);
        }
    }

    /// Makes the payload's timer fire in a while, whatever it was set to.
    pub(crate) fn look_again(&mut self, now: Now, slot: SlotKey, milliseconds: u64) {
        let payload = self.table.links(slot);
        let is_new = matches!(payload.state, PayloadState::Allocated | PayloadState::Committing);
        let (expires, old) = (payload.expires_at.is_some() || is_new, payload.timer.take());
        if let Some(timer) = old {
            self.wheel.disarm(timer);
        }
        if expires {
            let due = now.monotonic.plus_millis(milliseconds);
            self.table.links(slot).timer = self.wheel.arm(due, Timer::Payload(slot));
        }
    }
}
