//! One shard: what it owns and how an event finds its way.

use payload_ledger::{Account, SlotKey, Wheel};
use payload_types::effect::{Effect, StorageAction, StorageOp};
use payload_types::event::{BudgetReply, Completion, Event, StorageDone};
use payload_types::reply::MovedTotals;
use payload_types::request::Request;
use payload_types::{
    ByteCount, ErrorKind, Generation, Monotonic, Now, OpId, PayloadError, PayloadKey, PayloadState, PerTier,
    Tier, Version, limits,
};

use crate::arenas::Arenas;
use crate::config::ShardConfig;
use crate::direct::Direct;
use crate::door::Door;
use crate::flow::stop::Stop;
use crate::lease::Leases;
use crate::limbo::Limbo;
use crate::op::{Class, Ops};
use crate::outbox::Outbox;
use crate::parked::{Caller, ParkedRequests, Why};
use crate::sessions::{NodeBooks, Sessions};
use crate::table::Table;
use crate::usage::{Pressure, Refusal, TierLimits};

/// What a timer is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Timer {
    /// A payload's ttl or its allocation timeout.
    Payload(SlotKey),
    /// The end of a pin.
    Pin(SlotKey),
    /// The end of a lease.
    Lease(SlotKey),
    /// The deadline of a parked request, or the next attempt of a move in the background.
    Parked(SlotKey),
    /// The end of an operation's wait for space.
    Wait(SlotKey),
    /// A payload whose eviction failed may be tried again.
    Evict(SlotKey),
    /// A tier to which copies failed may be tried again.
    Door(Tier),
    /// A dropped replica was detached a while ago.
    Limbo(SlotKey),
    /// The slabs that are emptied are looked at again.
    Stop,
    /// Readers who ask nobody are looked for again.
    Direct,
}

/// What a step is told and where it writes.
pub(crate) struct Step<'a> {
    pub now: Now,
    pub out: &'a mut Outbox,
}

/// `None`: somebody else will answer.
pub(crate) type Answer = Option<payload_types::reply::ReplyResult>;

/// See the crate.
#[derive(Debug)]
pub struct Shard {
    pub(crate) config: ShardConfig,
    pub(crate) table: Table,
    pub(crate) leases: Leases,
    pub(crate) ops: Ops,
    pub(crate) parked: ParkedRequests,
    pub(crate) limbo: Limbo,
    pub(crate) wheel: Wheel<Timer>,
    pub(crate) accounts: PerTier<Account>,
    pub(crate) budget: PerTier<Pressure>,
    pub(crate) limits: PerTier<TierLimits>,
    pub(crate) sessions: Sessions,
    pub(crate) arenas: Arenas,
    pub(crate) direct: Direct,
    /// What is known of the room on the tiers to which payloads move down.
    pub(crate) doors: PerTier<Door>,
    /// False when the end of a step has nothing to say to the arbiter.
    pub(crate) budget_is_busy: bool,
    /// Nothing more comes into slabs and device memory; and what is left of emptying them.
    pub(crate) is_stopping: bool,
    pub(crate) stop: Option<Box<Stop>>,
    /// What was moved since start, for reports only.
    pub(crate) moved: PerTier<MovedTotals>,
    generations: u64,
}

/// Every payload may have three timers, every lease, parked request and operation one, and every replica in limbo and
/// every tier one; the stop, and direct leases.
const TIMERS_MAX: u32 = 3 * limits::PAYLOADS_PER_SHARD_MAX
    + limits::LEASES_PER_SHARD_MAX
    + (limits::REQUESTS_PER_SHARD_MAX + crate::parked::BACKGROUND_MAX + limits::OPS_PER_SHARD_MAX) as u32
    + crate::limbo::ENTRIES_MAX
    + Tier::ALL.len() as u32
    + 2;

impl Shard {
    /// An empty shard.
    pub fn new(config: ShardConfig) -> Self {
        assert!(config.shard.0 < config.shard_count, "a shard is one of those there are");
        Self {
            table: Table::new(config.capacity),
            arenas: Arenas::new(
                config.shard,
                config.shard_count,
                config.capacity[Tier::Ram].unwrap_or_default(),
            ),
            config,
            leases: Leases::default(),
            ops: Ops::default(),
            parked: ParkedRequests::default(),
            limbo: Limbo::default(),
            wheel: Wheel::new(TIMERS_MAX),
            accounts: PerTier::default(),
            budget: PerTier::default(),
            limits: PerTier::default(),
            sessions: Sessions::default(),
            direct: Direct::default(),
            doors: PerTier::default(),
            budget_is_busy: false,
            is_stopping: false,
            stop: None,
            moved: PerTier::default(),
            generations: 0,
        }
    }

    /// Counts what sessions hold together with the node's other shards.
    pub fn share_caps(&mut self, books: Box<dyn NodeBooks>) {
        self.sessions.share(books);
    }

    /// Handles one event. Bounded work; the outbox must have credit.
    ///
    /// # Panics
    /// On a completion that nothing waits for in a way that shows a defect, and without credit.
    pub fn step(&mut self, now: Now, event: Event, out: &mut Outbox) {
        assert!(out.has_credit(), "a step runs only when the outbox has room for its worst case");
        let mut step = Step { now, out };
        self.direct.now = now.monotonic;
        let mut work_left = limits::ITEMS_PER_TURN_MAX;
        match event {
            Event::Request { reply_to, deadline, request } => {
                let caller = Caller { reply_to: Some(reply_to), deadline, ..Caller::default() };
                match request {
                    // The commonest two by far have a way of their own, which is short enough to be inlined here.
                    Request::Release { lease, by } => {
                        self.release(&mut step, lease, by);
                        step.out.reply(reply_to, Ok(payload_types::reply::Reply::Released));
                    }
                    Request::Acquire(request) => {
                        if let Some(result) = self.acquire(&mut step, caller, request) {
                            step.out.reply(reply_to, result);
                        }
                    }
                    request => self.dispatch(&mut step, caller, request),
                }
            }
            Event::Completion(completion) => self.completion(&mut step, completion, &mut work_left),
            Event::SessionClosed { session } => {
                self.sessions.close(session);
                self.close_arena(&mut step, session);
            }
            Event::SessionGone { session } => self.arenas.gone(session),
            Event::ScanDone(done) => self.scan_done(&mut step, &done),
            Event::Sampled(sampled) => self.sampled(&step, &sampled),
            Event::Timer => self.timers(&mut step, &mut work_left),
        }
        if self.sessions.has_closed() {
            self.run_closed(&mut step, &mut work_left);
        }
        // Most steps, leases above all, leave nothing of this to do.
        if self.direct.is_busy {
            self.run_direct(&mut step, &mut work_left);
        }
        if self.parked.has_ready() {
            self.run_ready(&mut step, &mut work_left);
        }
        if self.table.holds_drain() {
            self.run_holds(&step, &mut work_left);
        }
        if self.table.is_touched() {
            self.table.settle(now.monotonic);
        }
        if self.budget_is_busy {
            self.run_budget(&mut step);
        }
        if self.limbo.has_drop() {
            self.run_drops(&mut step, &mut work_left);
        }
        if self.arenas.has_returns() {
            self.run_returns(&mut step, &mut work_left);
        }
        if self.table.is_touched() {
            self.table.settle(now.monotonic);
        }
        if self.table.has_changed_blocks() || self.direct.has_news() {
            self.show_changes(&step);
            self.end_direct(&mut step);
        }
    }

    /// When the next `Event::Timer` is wanted: at a timer's moment, or at once while bounded work is left over.
    pub fn next_timer(&self) -> Option<Monotonic> {
        if self.parked.has_ready()
            || self.limbo.has_drop()
            || self.arenas.has_returns()
            || self.table.holds_drain()
            || self.sessions.has_closed()
            || self.direct.has_left_over()
        {
            return Some(Monotonic(0));
        }
        self.wheel.next_due()
    }

    /// What the accounts hold: after adopting rows the arbiter is told so.
    pub fn budget_held(&self) -> PerTier<ByteCount> {
        PerTier(Tier::ALL.map(|tier| self.accounts[tier].granted()))
    }

    /// True when nothing is under way: no operation, no parked request, no drop that a driver was not told about.
    pub fn is_quiet(&self) -> bool {
        self.ops.is_empty()
            && self.parked.is_empty()
            && !self.limbo.has_drop()
            && !self.arenas.has_returns()
            && !self.table.holds_drain()
            && !self.sessions.has_closed()
            && self.direct.is_quiet()
    }

    /// Leases and uncommitted allocations of native sessions that are noted here.
    pub fn held_by_sessions(&self) -> usize {
        self.sessions.held()
    }

    /// What one native session holds here.
    pub fn held_by_session(&self, session: payload_types::SessionId) -> Option<crate::SessionHolding> {
        self.sessions.holding(session)
    }

    /// True when whatever is under way waits for capacity: nothing happens until some is freed.
    pub fn only_waits(&self) -> bool {
        self.ops.only_wait() && !self.parked.has_ready() && !self.limbo.has_drop()
    }

    /// The next replica generation.
    pub(crate) fn mint_generation(&mut self) -> Generation {
        self.generations += 1;
        let (shards, shard) = (u64::from(self.config.shard_count), u64::from(self.config.shard.0));
        Generation::new(self.config.epoch, self.generations * shards + shard)
    }

    /// Handles a request and answers it, unless something else will.
    #[inline(never)]
    pub(crate) fn dispatch(&mut self, step: &mut Step<'_>, caller: Caller, request: Request) {
        let reply_to = caller.reply_to;
        let answer = match request {
            Request::Allocate(request) => self.allocate(step, caller, request),
            Request::Commit { key, checksum, batch } => self.commit(step, caller, key, checksum, batch),
            Request::Delete { key, force, expected_version } => {
                self.delete(step, caller, key, force, expected_version)
            }
            Request::Abort { key, owner } => self.abort(step, caller, key, owner),
            Request::Resolve { key } => self.resolve(step, key),
            Request::Enrol { key } => self.enrol(step, caller, key),
            Request::Acquire(request) => self.acquire(step, caller, request),
            Request::Release { lease, by } => {
                self.release(step, lease, by);
                Some(Ok(payload_types::reply::Reply::Released))
            }
            Request::Promote { key, target, policy, expected_version } => self.promote(
                step,
                caller,
                crate::flow::promote::Promote { key, target, policy, expected_version },
            ),
            Request::Spill(request) => self.spill(step, caller, request),
            Request::Prefetch { key, target } => self.prefetch(step, key, target),
            Request::Pin { key, duration_ms, owner } => {
                self.pin(step, caller, key, Some((duration_ms, owner)))
            }
            Request::Unpin { key } => self.pin(step, caller, key, None),
            Request::Hold(hold) => self.hold(step, hold),
            Request::List(list) => Some(Ok(payload_types::reply::Reply::Page(self.table.page(&list)))),
            Request::Find(find) => Some(Ok(payload_types::reply::Reply::Found(self.table.find_part(&find)))),
            Request::Describe(asked) => {
                Some(Ok(payload_types::reply::Reply::Found(self.table.describe(&asked))))
            }
            Request::Scrub(request) => self.scrub(step, caller, request),
            Request::Stats => Some(Ok(payload_types::reply::Reply::Stats(Box::new(self.stats())))),
            Request::Holders { key, after } => Some(self.holders(step.now, key, after)),
            Request::Explain { key } => Some(self.explain(step.now, key)),
            Request::SpillArenas => self.spill_arenas(step, caller),
            Request::Outlook { tier, rank } => Some(Ok(self.outlook(tier, rank))),
        };
        if let (Some(result), Some(to)) = (answer, reply_to) {
            step.out.reply(to, result);
        }
    }

    fn completion(&mut self, step: &mut Step<'_>, completion: Completion, work_left: &mut usize) {
        match completion {
            Completion::Storage(StorageDone::Created { op, result }) => {
                self.allocate_created(step, op, result)
            }
            Completion::Storage(StorageDone::Sealed { op, result }) => self.commit_sealed(step, op, result),
            Completion::Storage(StorageDone::Synced { op, result }) => self.sync_done(step, op, result),
            Completion::Storage(StorageDone::Verified { op, result }) => self.verified(step, op, result),
            Completion::Storage(StorageDone::Detached { generation, .. }) => {
                if let Some((entry, payload)) = self.limbo.detached(generation) {
                    let soon_ms = self.limbo.get(entry).expect("just detached").freed_soon_ms();
                    let due = step.now.monotonic.plus_millis(soon_ms);
                    if self.wheel.arm(due, Timer::Limbo(entry)).is_none() {
                        self.limbo.overdue(entry);
                    }
                    if let Some(payload) = payload {
                        self.limbo_segment_gone(entry, payload);
                    }
                }
            }
            Completion::Storage(StorageDone::Freed { generation, .. }) => {
                if let Some(entry) = self.limbo.freed(generation).filter(|entry| entry.charged) {
                    self.release_charge(entry.replica.tier, entry.replica.size.in_pages());
                }
            }
            Completion::Slab(done) => self.slab_done(step, done),
            Completion::Transfer(done) => self.copy_done(step, done.op, done.result),
            Completion::Relocate(replica) => self.relocate(step, replica),
            Completion::Catalog(ack) => self.catalog_ack(step, ack),
            Completion::BatchRefused(op) => self.commit_put_back(step, op),
            Completion::Claimed { op, reason } => self.row_claimed(step, op, reason),
            Completion::Durable { sequence } => self.limbo.transactions_durable(sequence),
            Completion::Budget(BudgetReply::Granted { op, tier, bytes }) => {
                self.budget_granted(step, op, tier, bytes);
            }
            Completion::Budget(BudgetReply::Denied { op, tier, free, usage }) => {
                self.budget_denied(step, op, &Refusal { tier, free, others: usage });
            }
            Completion::Budget(BudgetReply::Recall { tier, recall, pressure, room, evict }) => {
                self.room_told(tier, room);
                self.budget_ordered(step, work_left, (tier, recall), pressure, evict);
            }
        }
    }

    fn timers(&mut self, step: &mut Step<'_>, work_left: &mut usize) {
        while let Some(timer) = self.wheel.pop_due(step.now.monotonic, work_left) {
            match timer {
                Timer::Payload(payload) => self.payload_due(step, payload),
                Timer::Pin(payload) => self.pin_due(step, payload),
                Timer::Lease(lease) => self.lease_due(step, lease),
                Timer::Parked(parked) => self.parked_due(step, parked),
                Timer::Wait(op) => self.cancel_wait(step.out, op),
                Timer::Evict(payload) => self.eviction_due(payload),
                Timer::Door(tier) => self.doors[tier].pause_ends(),
                Timer::Limbo(entry) => self.limbo.overdue(entry),
                Timer::Stop => self.look_at_stop(step, work_left),
                // The end of the step looks.
                Timer::Direct => self.direct.timer = None,
            }
        }
    }

    /// Handles ready requests again, as far as this step's work reaches.
    fn run_ready(&mut self, step: &mut Step<'_>, work_left: &mut usize) {
        while *work_left > 0
            && let Some(parked) = self.parked.pop_ready()
        {
            *work_left -= 1;
            if let Some(timer) = parked.timer {
                self.wheel.disarm(timer);
            }
            match parked.failure {
                Some(failure) => self.joined_work_failed(step, parked.caller, parked.request, failure),
                None if parked.caller.reply_to.is_none() => self.attempt(step, parked.caller, parked.request),
                None => self.dispatch(step, parked.caller, parked.request),
            }
        }
    }

    fn run_drops(&mut self, step: &mut Step<'_>, work_left: &mut usize) {
        while *work_left > 0
            && let Some(replica) = self.limbo.next_drop()
        {
            *work_left -= 1;
            if let Some(block) = replica.block {
                let next = self.limbo.block_dropped(replica.generation);
                self.block_freed(block, next);
                continue;
            }
            let (shard, op) = (self.config.shard, OpId { index: u32::MAX, generation: 0 });
            step.out.push(Effect::Storage(StorageOp { shard, op, replica, action: StorageAction::Drop }));
        }
    }

    /// The payload with this key, if a client may know of it.
    pub(crate) fn find(&self, now: Now, key: PayloadKey) -> Result<SlotKey, PayloadError> {
        let unknown = |reason: &str| {
            PayloadError::new(ErrorKind::NotFound, format!("payload {} is not known here: {reason}", key.id))
        };
        let Some(slot) = self.table.find(key).filter(|slot| !self.table.at(*slot).creating) else {
            return Err(unknown("it was never allocated, or it was deleted or has expired"));
        };
        let payload = self.table.at(slot);
        if payload.health == payload_types::Health::Lost {
            return Err(unknown(
                "LOST: its bytes were in memory and did not survive a restart; delete the id and make the payload anew",
            ));
        }
        match payload.state {
            PayloadState::Expired => Err(unknown("its ttl has passed")),
            PayloadState::Deleting | PayloadState::Deleted => Err(unknown("it was deleted")),
            _ if payload.is_expired_at(now.wall) => Err(unknown("its ttl has passed")),
            _ => Ok(slot),
        }
    }

    /// Version fencing.
    pub(crate) fn check_version(&self, slot: SlotKey, expected: Option<Version>) -> Result<(), PayloadError> {
        let payload = self.table.at(slot);
        match expected {
            Some(expected) if expected != payload.version => Err(PayloadError::precondition(format!(
                "payload {} is at version {}, and version {} was expected; resolve it again and decide anew",
                payload.key.id, payload.version.0, expected.0
            ))),
            _ => Ok(()),
        }
    }

    /// Lets a request wait for its payload: for the work `joined`, or for whatever happens next.
    pub(crate) fn park(
        &mut self,
        slot: SlotKey,
        joined: Option<SlotKey>,
        caller: Caller,
        request: Request,
    ) -> Answer {
        if !self.parked.has_room(caller.reply_to.is_none()) {
            return Some(Err(PayloadError::exhausted(format!(
                "{} requests wait for payloads of this shard already; try again later",
                limits::REQUESTS_PER_SHARD_MAX
            ))));
        }
        let deadline = caller.deadline.or(caller.lease_wait_end);
        let payload = self.table.links(slot);
        let why = joined.map_or(Why::Queues, Why::Joins);
        let key = self.parked.add(&mut payload.parked, slot, why, caller, request);
        if let Some(deadline) = deadline {
            let timer = self.wheel.arm(deadline, Timer::Parked(key));
            self.parked.get_mut(key).expect("just added").timer = timer;
        }
        None
    }

    /// Ends the payload's exclusive operation and wakes who waits for the payload.
    pub(crate) fn end_op(&mut self, op: SlotKey, failure: Option<&PayloadError>) {
        let ended = self.ops.end(op);
        if let Some(payload) = self.table.get(ended.payload) {
            if payload.op == Some(op) {
                self.table.links(ended.payload).op = None;
            }
            let payload = self.table.links(ended.payload);
            self.parked.wake(&mut payload.parked, Some((op, failure)));
        }
    }

    /// Wakes who waits for the payload, whatever for.
    pub(crate) fn wake(&mut self, slot: SlotKey) {
        if self.table.get(slot).is_some() {
            let payload = self.table.links(slot);
            self.parked.wake(&mut payload.parked, None);
        }
    }

    /// True when one more replica may be made: limbo can take all there are.
    pub(crate) fn limbo_has_room(&self) -> bool {
        self.limbo.has_room(self.table.len(), self.ops.len())
    }

    /// Refuses to make a replica while too many wait to be freed.
    pub(crate) fn check_limbo(&self) -> Result<(), PayloadError> {
        if self.limbo_has_room() {
            return Ok(());
        }
        Err(PayloadError::exhausted(
            "too many dropped replicas of this shard wait for their space to be freed; try again later, or run more shards",
        ))
    }

    /// Refuses a request for which no slot is left.
    pub(crate) fn check_slot(&self, class: Class) -> Result<(), PayloadError> {
        if self.ops.has_room(class) {
            return Ok(());
        }
        Err(PayloadError::exhausted(format!(
            "{} operations are under way on this shard already; try again later",
            if class == Class::Batch { limits::OPS_FOR_BATCHES } else { limits::OPS_FOR_REQUESTS }
        )))
    }
}
