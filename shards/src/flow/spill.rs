//! Spill: validate, wait for the leases that were asked to be waited for, copy down, drop the faster replicas.

use payload_ledger::SlotKey;
use payload_types::reply::Reply;
use payload_types::request::{Request, Spill};
use payload_types::tier::SpillTarget;
use payload_types::{ErrorKind, PayloadError, SpillPolicy, Tier};

use crate::direct::Readers;
use crate::flow::copy::{Aim, Progress};
use crate::flow::direct::read_directly;
use crate::op::Removal;
use crate::parked::Caller;
use crate::shard::{Answer, Shard, Step};

/// What a spill amounts to for the payload as it is.
enum Plan {
    /// Nothing to do.
    Nothing,
    /// Move it down to a tier.
    Down(Tier),
    /// Discard it.
    Discard,
}

impl Shard {
    pub(crate) fn spill(&mut self, step: &mut Step<'_>, mut caller: Caller, request: Spill) -> Answer {
        let (slot, plan) = match self.plan_spill(step, &request) {
            Ok(planned) => planned,
            Err(error) => return Some(Err(error)),
        };
        if request.wait_for_leases {
            caller.lease_fence.get_or_insert(self.leases.sequence());
        }
        if let Plan::Nothing = plan {
            return Some(self.spilled(slot));
        }
        if let Err(error) = self.check_drop(step, slot, &plan, &request) {
            return Some(Err(error));
        }
        let again = Request::Spill(Spill { expected_version: None, ..request });
        let drops = !matches!(plan, Plan::Down(target) if target == self.table.at(slot).tier());
        let readers = match drops {
            true => self.ask_readers(slot, &caller, || again.clone()),
            false => Ok(Readers::Nobody),
        };
        match readers {
            Err(answer) => return answer,
            Ok(Readers::Held(_)) if request.wait_for_leases => {
                if caller.deadline.is_none() && caller.reply_to.is_some() {
                    let lease_wait_end = step.now.monotonic.plus_millis(self.config.lease_ms_max);
                    caller.lease_wait_end.get_or_insert(lease_wait_end);
                }
                self.wait_for_readers(slot, caller, again);
                return None;
            }
            Ok(Readers::Held(_)) => {
                let (what, advice) =
                    ("is leased", "wait until it is released, or spill with wait_for_leases");
                let kind = ErrorKind::FailedPrecondition;
                return Some(Err(read_directly(request.key, kind, what, advice)));
            }
            Ok(Readers::Nobody | Readers::Unknown) => {}
        }
        if request.policy == SpillPolicy::BestEffort {
            let answer = self.spilled(slot);
            let blocking = Spill { policy: SpillPolicy::Blocking, expected_version: None, ..request };
            self.in_background(step, Request::Spill(blocking), caller.lease_fence);
            return Some(answer);
        }
        let leased = request.wait_for_leases && self.is_leased(slot, caller.lease_fence);
        let progress = match plan {
            // A replica on the target already: only the faster ones go, but not under a lease.
            _ if leased => Ok(Progress::Waits(None)),
            Plan::Nothing => Ok(Progress::There),
            Plan::Down(target) => self.move_down(step, slot, target, &caller, &request),
            Plan::Discard if !self.may_remove(slot) => Ok(Progress::Waits(None)),
            Plan::Discard => return self.discard(step, slot, &caller),
        };
        match progress {
            Ok(Progress::There) => Some(self.spilled(slot)),
            Ok(Progress::Waits(joined)) => {
                let lease_wait_end = step.now.monotonic.plus_millis(self.config.lease_ms_max);
                caller.lease_wait_end = (leased && caller.deadline.is_none())
                    .then(|| caller.lease_wait_end.unwrap_or(lease_wait_end));
                self.park(slot, joined, caller, Request::Spill(Spill { expected_version: None, ..request }))
            }
            Err(error) => Some(Err(error)),
        }
    }

    fn spilled(&self, slot: SlotKey) -> payload_types::reply::ReplyResult {
        Ok(Reply::Spilled(Some(self.table.shown(slot, true))))
    }

    fn plan_spill(&mut self, step: &Step<'_>, request: &Spill) -> Result<(SlotKey, Plan), PayloadError> {
        let slot = self.find_readable(step, request.key)?;
        self.check_version(slot, request.expected_version)?;
        let payload = self.table.at(slot);
        let present = payload.tier();
        let target = match request.target {
            Some(target) => target,
            // Without a target: the payload's own, else DISK; there or below already is fine.
            None => match payload.policy.spill_target.unwrap_or(SpillTarget::Tier(Tier::Disk)) {
                SpillTarget::Tier(tier) if tier.is_faster_than(present) => return Ok((slot, Plan::Nothing)),
                target => target,
            },
        };
        let SpillTarget::Tier(target) = target else { return Ok((slot, Plan::Discard)) };
        if !self.config.has(target) {
            return Err(self.unconfigured(target));
        }
        if target == present
            && (!request.fsync
                || !target.is_durable()
                || payload.replicas[target].is_some_and(|replica| replica.synced))
        {
            return Ok((slot, Plan::Nothing));
        }
        Ok((slot, Plan::Down(target)))
    }

    /// Refuses a spill that the payload's policy, a pin or a lease forbids. Checked when it starts, and not again.
    fn check_drop(
        &self,
        step: &Step<'_>,
        slot: SlotKey,
        plan: &Plan,
        request: &Spill,
    ) -> Result<(), PayloadError> {
        let payload = self.table.at(slot);
        let id = payload.key.id;
        let target = match plan {
            Plan::Nothing => return Ok(()),
            Plan::Down(target) if *target == payload.tier() => return Ok(()),
            Plan::Down(target) => Some(*target),
            Plan::Discard => None,
        };
        if let Some(target) = target
            && target.is_faster_than(payload.tier())
        {
            return Err(PayloadError::precondition(format!(
                "payload {id} is on {} and {target} is faster; promote moves up, spill moves down",
                payload.tier()
            )));
        }
        if let Some(floor) = payload.policy.min_residency
            && target.is_none_or(|target| floor.is_faster_than(target))
        {
            let target = target.map_or("VOID".to_owned(), |tier| tier.to_string());
            return Err(PayloadError::precondition(format!(
                "payload {id} must stay on {floor} or faster (min_residency_tier), and {target} is below it"
            )));
        }
        if target.is_none() && payload.policy.require_durable {
            return Err(PayloadError::precondition(format!(
                "payload {id} has require_durable and cannot be discarded by a spill to VOID; delete it instead"
            )));
        }
        if target.is_none() {
            self.check_held(slot, "let its groups commit past it, or spill it to DISK")?;
        }
        if payload.pin.holds_at(step.now.wall) {
            return Err(PayloadError::precondition(format!(
                "payload {id} is pinned; unpin it, or wait until the pin ends"
            )));
        }
        if !request.wait_for_leases && payload.lease_count > 0 {
            return Err(PayloadError::precondition(format!(
                "payload {id} is leased ({} leases); release them, or spill with wait_for_leases",
                payload.lease_count
            )));
        }
        Ok(())
    }

    /// Sees to it that `target`, which is slower or the same, is the fastest tier with a replica.
    pub(crate) fn move_down(
        &mut self,
        step: &mut Step<'_>,
        slot: SlotKey,
        target: Tier,
        caller: &Caller,
        request: &Spill,
    ) -> Result<Progress, PayloadError> {
        let payload = self.table.at(slot);
        if payload.tier() == target && !request.fsync {
            return Ok(Progress::There);
        }
        self.check_drop(step, slot, &Plan::Down(target), request)?;
        let payload = self.table.at(slot);
        if let Some(op) = payload.op {
            return Ok(Progress::Waits(self.joins(step, op, target, caller)));
        }
        match payload.replicas[target] {
            // Found damaged, or its fdatasync failed: asking the same file again would prove nothing, so the bytes are
            // written anew from the faster replica.
            Some(replica) if !replica.is_trusted() && payload.tier() != target => {
                let aim = Aim { to: target, sync: request.fsync || self.syncs(target), evicts: false };
                self.start_copy(step, slot, aim, caller).map(|op| Progress::Waits(Some(op)))
            }
            Some(replica) if request.fsync && target.is_durable() && !replica.synced => {
                self.start_sync(step, slot, target, caller)
            }
            Some(_) => {
                if payload.tier() != target {
                    self.retire_faster(slot, target);
                    let payload = self.table.links(slot);
                    payload.version = payload.version.next();
                }
                Ok(Progress::There)
            }
            // From device memory: its name follows from the id alone (as in `move_up`).
            None if target == Tier::Ram && payload.limbo_segment.is_some() => {
                let segment = payload.limbo_segment.expect("just seen");
                if !self.revive_segment(step, slot, segment) {
                    return Ok(Progress::Waits(None));
                }
                self.retire_faster(slot, target);
                Ok(Progress::There)
            }
            None => {
                let sync = request.fsync || self.syncs(target);
                let aim = Aim { to: target, sync, evicts: false };
                self.start_copy(step, slot, aim, caller).map(|op| Progress::Waits(Some(op)))
            }
        }
    }

    fn discard(&mut self, step: &mut Step<'_>, slot: SlotKey, caller: &Caller) -> Answer {
        match caller.reply_to {
            Some(reply_to) => self.remove_for(step, slot, (reply_to, Removal::Void)),
            None => self.discard_unasked(step, slot),
        }
    }
}
