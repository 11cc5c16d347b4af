//! AllocatePayload: charge, make the space, answer with its location.
//!
//! Nobody can know the id before the answer, so the payload is hidden until its space is there.

use payload_types::effect::{Effect, ReplicaRef, ReplyTo, StorageAction, StorageOp};
use payload_types::event::DriverError;
use payload_types::reply::Reply;
use payload_types::request::Allocate;
use payload_types::{
    ByteCount, ErrorKind, Memory, Monotonic, Now, OpId, PayloadError, PayloadState, Tier, limits,
};

use payload_ledger::SlotKey;

use crate::flow::copy::refusal_kind;
use crate::limbo::{Kept, Users};
use crate::op::{Class, Kind, Op, op_id, slot_key};
use crate::parked::Caller;
use crate::payload::{Payload, Replica, Terms};
use crate::shard::{Answer, Shard, Step, Timer};

/// An allocation on OBJECT is reclaimed no earlier than a day later.
const OBJECT_TIMEOUT_MS_MIN: u64 = 24 * 3600 * 1000;

impl Shard {
    pub(crate) fn allocate(&mut self, step: &mut Step<'_>, caller: Caller, request: Allocate) -> Answer {
        let is_in_slab = request.memory != Memory::Segment;
        if (is_in_slab || request.tier == Tier::Gpu)
            && let Err(error) = self.check_stop()
        {
            return Some(Err(error));
        }
        if is_in_slab {
            return self.allocate_in_slab(step, caller, request);
        }
        let reply_to = caller.reply_to.expect("only clients allocate");
        match self.start_allocation(step, reply_to, caller.deadline, &request) {
            Ok(()) => None,
            Err(error) => Some(Err(error)),
        }
    }

    fn start_allocation(
        &mut self,
        step: &mut Step<'_>,
        reply_to: ReplyTo,
        deadline: Option<Monotonic>,
        request: &Allocate,
    ) -> Result<(), PayloadError> {
        self.check_capacity(request.tier, request.size)?;
        self.check_slot(Class::Request)?;
        self.check_wait(request.tier, request.size)?;
        self.check_allocation(request)?;
        let slot = self.enter(request)?;
        let generation = self.mint_generation();
        let replica = ReplicaRef {
            tier: request.tier,
            id: request.key.id,
            generation,
            size: request.size,
            extent: None,
            block: None,
        };
        let kind = Kind::Allocate { reply_to, deadline, replica };
        let op = self.ops.start(Op::new(slot, Class::Request, kind));
        self.table.links(slot).op = Some(op);
        let until = deadline.unwrap_or(step.now.monotonic.plus_millis(limits::ALLOCATE_WAIT_MS_DEFAULT));
        if self.charge_or_wait(step, op, replica.tier, replica.size.in_pages(), Some(until)) {
            self.create(step, op_id(op), replica);
        }
        Ok(())
    }

    /// Refuses one payload more than there may be.
    pub(crate) fn check_allocation(&self, request: &Allocate) -> Result<(), PayloadError> {
        self.check_limbo()?;
        self.sessions.check_allocations(request.owner, self.config.shard_count)?;
        if self.table.is_full() {
            return Err(PayloadError::exhausted(
                "this shard holds as many payloads as it may; delete some, or run more shards",
            ));
        }
        Ok(())
    }

    /// Enters the payload, hidden until its space is there.
    pub(crate) fn enter(&mut self, request: &Allocate) -> Result<SlotKey, PayloadError> {
        let created_at = request.key.id.created_at();
        let expires_at = match request.ttl_ms {
            None => None,
            Some(ttl) => Some(created_at.checked_plus(ttl).ok_or_else(|| {
                PayloadError::invalid(format!(
                    "ttl_ms is {ttl}, which ends after the year 9999; use a shorter ttl, or 0 for none"
                ))
            })?),
        };
        let payload = Payload::new(Terms {
            key: request.key,
            size: request.size,
            created_at,
            expires_at,
            no_evict: request.no_evict,
            policy: request.policy,
        });
        let slot = self.table.insert(payload).expect("checked above");
        if let Some(session) = request.owner.session() {
            let table = &self.table;
            self.sessions.allocated(session, slot, |noted| {
                table.get(noted).is_none_or(|payload| payload.state.is_committed())
            });
        }
        Ok(slot)
    }

    /// Its space is charged: has it made.
    pub(crate) fn create(&mut self, step: &mut Step<'_>, op: OpId, replica: ReplicaRef) {
        if let Some(block) = replica.block {
            return self.create_own(step, op, replica, block.slab);
        }
        let shard = self.config.shard;
        step.out.push(Effect::Storage(StorageOp { shard, op, replica, action: StorageAction::Create }));
    }

    pub(crate) fn allocate_created(
        &mut self,
        step: &mut Step<'_>,
        op: OpId,
        result: Result<(), DriverError>,
    ) {
        let Some(Op { payload: slot, kind: Kind::Allocate { reply_to, deadline, replica }, .. }) =
            self.ops.get(slot_key(op))
        else {
            return;
        };
        let (slot, reply_to, deadline, replica) = (*slot, *reply_to, *deadline, *replica);
        if let Err(error) = result {
            self.release_charge(replica.tier, replica.size.in_pages());
            self.allocation_failed(step, op, creation_error(replica.tier, replica.size, &error));
            return;
        }
        if deadline.is_some_and(|deadline| deadline < step.now.monotonic) {
            let kept = Kept { synced: false, sound: false };
            self.limbo.insert(replica, None, Users::default(), kept, true);
            let late =
                "the space was ready only after the call's deadline, and was taken back; allow more time";
            self.allocation_failed(step, op, PayloadError::new(ErrorKind::DeadlineExceeded, late));
            return;
        }
        self.end_op(slot_key(op), None);
        self.show_allocated(step, slot, reply_to, replica);
    }

    /// The payload has its space: it can be known from here on.
    pub(crate) fn show_allocated(
        &mut self,
        step: &mut Step<'_>,
        slot: SlotKey,
        reply_to: ReplyTo,
        replica: ReplicaRef,
    ) {
        if replica.block.is_some() {
            self.table.set_block(slot, replica.block);
        }
        self.table.update(slot, |payload| {
            payload.creating = false;
            payload.in_arena = replica.block.is_some();
            payload.replicas[replica.tier] = Some(Replica::new(replica.generation, false, step.now.wall));
        });
        self.arm_payload_timer(step.now, slot);
        step.out.reply(reply_to, Ok(Reply::Allocated(self.table.shown(slot, true))));
    }

    /// Forgets the payload and tells its caller why.
    pub(crate) fn allocation_failed(&mut self, step: &mut Step<'_>, op: OpId, error: PayloadError) {
        let ended = self.ops.end(slot_key(op));
        self.table.remove(ended.payload);
        self.sessions.forget_orphan(ended.payload);
        if let Kind::Allocate { reply_to, .. } = ended.kind {
            step.out.reply(reply_to, Err(error));
        }
    }

    /// Arms the timer for the payload's expiry or the end of its allocation, whichever comes first.
    pub(crate) fn arm_payload_timer(&mut self, now: Now, slot: payload_ledger::SlotKey) {
        // Its session ended while its space was being made.
        let is_orphan = self.sessions.is_orphan(slot);
        let payload = self.table.links(slot);
        let allocation_end = (payload.state == PayloadState::Allocated)
            .then(|| {
                let timeout = match payload.fastest() {
                    // Its client uploads it by itself, from wherever it is.
                    Some(Tier::Object) => self.config.allocation_timeout_ms.max(OBJECT_TIMEOUT_MS_MIN),
                    _ => self.config.allocation_timeout_ms,
                };
                payload.created_at.checked_plus(timeout)
            })
            .flatten()
            .map(|end| if is_orphan { now.wall } else { end });
        let due = [payload.expires_at, allocation_end].into_iter().flatten().min();
        if let Some(timer) = payload.timer.take() {
            self.wheel.disarm(timer);
        }
        if let Some(due) = due {
            self.table.links(slot).timer = self.wheel.arm(now.monotonic_at(due), Timer::Payload(slot));
        }
    }
}

/// How a client is told that its space could not be made.
fn creation_error(tier: Tier, size: ByteCount, error: &DriverError) -> PayloadError {
    PayloadError::new(refusal_kind(error), format!("{size} on {tier} could not be made: {}", error.message))
}
