//! The pump: carries events into one shard core and its effects out. Never waits and reads no clock; who runs it
//! (`run.rs`, or a test) decides when the next turn is.
//!
//! ```text
//!   one turn: what ports refused before -> tables of direct leases -> completions -> arbiter (shard 0) -> sessions that come and go
//!             -> requests of rings and lane -> one timer step -> wakes of clients
//!   after each step the outbox is emptied, so that the next step always has credit for its worst case
//! ```
//! Bounds of a turn: `COMPLETIONS_PER_TURN_MAX` completions, `ITEMS_PER_TURN_MAX` budget requests, of the requests that
//! wait when their part begins `REQUESTS_PER_TURN_MAX`, one timer step. Completions come first and are never counted
//! against requests, so a flood of requests cannot hold them back; nor can completions starve requests, since both have
//! their share of each turn. Of the requests, rings and the lane have half each when both have as many.

mod asked;
mod direct;
mod rings;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam::queue::ArrayQueue;
use payload_types::effect::{
    BudgetRequest, CatalogOp, Effect, ReplyTo, StorageAction, StorageOp, TransferOp,
};
use payload_types::event::{BudgetReply, Completion, Event, StorageDone};
use payload_types::request::Request;
use payload_types::slab::{SlabAction, SlabDone, SlabOp};
use payload_types::{ByteCount, Monotonic, Now, ShardIndex, limits};

use crate::backlog::{
    BUDGET_BACKLOG_MAX, Backlog, CATALOG_BACKLOG_MAX, DRIVER_BACKLOG_MAX, RETRY_AFTER_MS, SLAB_BACKLOG_MAX,
};
use crate::doorbell::Doorbell;
use crate::mailbox::{Mailbox, Phase, Shared, stopping_error};
use crate::pump::direct::Direct;
use crate::pump::rings::{ENTRIES_PER_SESSION_MAX, Noted, Rings, Taken};
use crate::replies::{ReplySlots, Sink};
use crate::stall::Handled;

pub(crate) use rings::Ticket;

/// Where a shard's work goes. Called on shard threads: an implementation puts the op into a bounded queue and
/// returns. It reports completions from threads of its own, never from inside a call.
pub trait Ports: Send + Sync {
    /// Work on one replica's storage.
    ///
    /// # Errors
    /// The op itself when its queue is full; it is offered again, before any later one.
    fn storage(&self, op: StorageOp) -> Result<(), StorageOp>;

    /// Copy a replica to another tier.
    ///
    /// # Errors
    /// The op itself when its queue is full; it is offered again, before any later one.
    fn transfer(&self, op: TransferOp) -> Result<(), TransferOp>;

    /// Change the catalog; the order of one shard's changes is kept.
    ///
    /// # Errors
    /// The op itself when its queue is full; it is offered again, before any later one.
    fn catalog(&self, op: CatalogOp) -> Result<(), CatalogOp>;

    /// From now on so much of DISK must become free before somebody who waits for it can be served; 0: nobody does. Said
    /// when it changes, by shard 0; only the newest counts.
    fn disk_wanted(&self, bytes: ByteCount);
}

/// What the pump drives: a shard with its outbox. A trait so that the pump's tests bring a core of their own.
pub(crate) trait Core {
    /// Handles one event.
    fn step(&mut self, now: Now, event: Event);
    /// The oldest effect that is not carried out yet.
    fn pop(&mut self) -> Option<Effect>;
    /// Room in the outbox for the worst case of a step.
    fn has_credit(&self) -> bool;
    /// When `Event::Timer` is due; [`LEFT_OVER`] while a bounded step left work over.
    fn next_timer(&self) -> Option<Monotonic>;
}

/// Completions of one turn: as many as requests, since either may answer a caller, and waking the front (1 to 2 µs) is
/// what costs most in a turn.
const COMPLETIONS_PER_TURN_MAX: usize = limits::REQUESTS_PER_TURN_MAX;

/// How often a turn looks into each ring at most: who sleeps is woken at its end.
const PASSES_MAX: usize = 4;

/// Requests of the lane that rings leave room for in a turn, when so many wait.
const LANE_SHARE: usize = limits::REQUESTS_PER_TURN_MAX / 2;

/// Sessions that come or go in one turn: each that goes may give back `limits::ITEMS_PER_TURN_MAX` things.
const NOTES_PER_TURN_MAX: usize = 4;

/// The timer of a shard whose last step reached its bound: long past, hence due at once.
const LEFT_OVER: Monotonic = Monotonic(0);

/// The node-wide budget arbiter, as the pump of shard 0 sees it: a request in, replies to any shards out.
pub(crate) type ArbiterStep = Box<dyn FnMut(BudgetRequest, &mut Vec<(ShardIndex, BudgetReply)>) + Send>;

/// What to do after a turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NextWake {
    /// There is more to do.
    Now,
    /// Sleep until then, or until rung.
    At(Monotonic),
    /// Sleep until rung.
    Idle,
    /// The reactor stops: [`Pump::close`] and leave.
    Stop,
}

/// See the head of the file.
pub(crate) struct Pump<C> {
    core: C,
    shard: ShardIndex,
    shared: Arc<Shared>,
    ports: Arc<dyn Ports>,
    /// On shard 0 only.
    arbiter: Option<ArbiterStep>,
    arbiter_replies: Vec<(ShardIndex, BudgetReply)>,
    slots: ReplySlots,
    rings: Rings,
    direct: Direct,
    storage: Backlog<StorageOp>,
    transfer: Backlog<TransferOp>,
    catalog: Backlog<CatalogOp>,
    budget: Backlog<BudgetRequest>,
    slabs: Backlog<SlabOp>,
    /// Forced deletes that are not answered: no more than there are reply slots.
    forced: BTreeSet<ReplyTo>,
    /// Ops that drivers and the catalog have and did not answer. `Freed` is not waited for, nor is the arbiter: an ask
    /// waits until somebody frees space, and nobody does while the server stops.
    in_flight: usize,
    /// What the core was told of `Mailbox::durable`.
    durable_told: u64,
    /// The phase as the last turn saw it.
    phase: Phase,
    handled: Handled,
}

impl<C: Core> Pump<C> {
    pub(crate) fn new(
        core: C,
        shard: ShardIndex,
        shared: Arc<Shared>,
        ports: Arc<dyn Ports>,
        arbiter: Option<ArbiterStep>,
    ) -> Self {
        assert_eq!(arbiter.is_some(), shard == ShardIndex(0), "shard 0 hosts the arbiter");
        let shard_count = u16::try_from(shared.boxes.len()).expect("limits::SHARD_COUNT_MAX fits");
        let direct = Direct::new(shard, Arc::clone(&shared));
        Self {
            core,
            shard,
            shared,
            ports,
            arbiter,
            arbiter_replies: Vec::new(),
            slots: ReplySlots::new(),
            rings: Rings::new(shard, shard_count),
            direct,
            storage: Backlog::new(DRIVER_BACKLOG_MAX),
            transfer: Backlog::new(DRIVER_BACKLOG_MAX),
            catalog: Backlog::new(CATALOG_BACKLOG_MAX),
            budget: Backlog::new(BUDGET_BACKLOG_MAX),
            slabs: Backlog::new(SLAB_BACKLOG_MAX),
            forced: BTreeSet::new(),
            in_flight: 0,
            durable_told: 0,
            phase: Phase::Running,
            handled: Handled::default(),
        }
    }

    /// One turn.
    pub(crate) fn turn(&mut self, now: Now) -> NextWake {
        self.handled = Handled::default();
        self.phase = self.shared.phase();
        if self.phase == Phase::Stopping {
            return NextWake::Stop;
        }
        self.retry_backlogs();
        self.serve_direct(now);
        self.take_completions(now);
        self.host_arbiter();
        self.take_notes(now);
        self.take_requests(now);
        self.fire_timer(now);
        self.rings.wake_answered();
        if self.phase == Phase::Closing {
            self.mailbox().drained.store(self.is_drained(), Ordering::Release);
        }
        self.next_wake(now)
    }

    /// What the last turn handled.
    pub(crate) fn handled(&self) -> Handled {
        self.handled
    }

    /// True when a turn would find something. Also the recheck before a sleep.
    pub(crate) fn has_work(&mut self) -> bool {
        let mailbox = self.mailbox();
        !mailbox.done.is_empty()
            || mailbox.durable.load(Ordering::Acquire) != self.durable_told
            || !mailbox.budget_replies.is_empty()
            || (!mailbox.requests.is_empty() && self.takes_requests())
            || !mailbox.sessions.is_empty()
            || self.direct.has_work()
            || (self.arbiter.is_some() && !self.shared.budget_requests.is_empty())
            || self.shared.phase() != self.phase
            || (self.takes_requests() && self.rings.is_ready())
    }

    /// Sleeps on this shard's doorbell until it is rung, by a sender or by a client that this shard has a session with,
    /// or until then; returns at once when there is work.
    pub(crate) fn sleep(&mut self, doorbell: &Doorbell, until: Option<Monotonic>) {
        match self.rings.lend_node() {
            None => doorbell.sleep(until, || self.has_work()),
            Some(node) => {
                doorbell.sleep_watching(until, node.sleeping(self.shard), || self.has_work());
                self.rings.take_back(node);
            }
        }
    }

    /// What all threads share.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Which shard this is.
    pub(crate) fn shard(&self) -> ShardIndex {
        self.shard
    }

    /// The end: whoever still waits is answered UNAVAILABLE, and the mailbox refuses what comes later.
    pub(crate) fn close(mut self) -> Unfinished {
        let unfinished = Unfinished { requests: self.slots.unanswered(), ops: self.in_flight };
        for ticket in self.slots.answer_all(&stopping_error()) {
            self.rings.answer(ticket, Err(stopping_error()));
        }
        self.rings.wake_answered();
        self.direct.close();
        self.mailbox().close();
        unfinished
    }

    pub(crate) fn mailbox(&self) -> &Mailbox {
        &self.shared.boxes[usize::from(self.shard.0)]
    }

    fn takes_requests(&self) -> bool {
        self.phase == Phase::Closing || (self.slots.has_free() && !self.has_backlog())
    }

    /// While closing only what a bounded step left over is done; timers would start new work for ever.
    fn may_fire(&self, at: Monotonic) -> bool {
        self.phase == Phase::Running || at == LEFT_OVER
    }

    fn has_backlog(&self) -> bool {
        !(self.storage.is_empty()
            && self.transfer.is_empty()
            && self.catalog.is_empty()
            && self.budget.is_empty()
            && self.slabs.is_empty())
    }

    /// While closing: nothing is under way for this shard, in either direction.
    fn is_drained(&self) -> bool {
        let mailbox = self.mailbox();
        self.in_flight == 0
            && !self.has_backlog()
            && self.core.next_timer() != Some(LEFT_OVER)
            && self.direct.is_drained()
            && mailbox.done.is_empty()
            && mailbox.budget_replies.is_empty()
    }

    fn next_wake(&mut self, now: Now) -> NextWake {
        if self.has_work() {
            return NextWake::Now;
        }
        let timer = self.core.next_timer().filter(|at| self.may_fire(*at));
        let retry = self.has_backlog().then(|| now.monotonic.plus_millis(RETRY_AFTER_MS));
        match timer.into_iter().chain(retry).min() {
            None => NextWake::Idle,
            Some(at) if at <= now.monotonic => NextWake::Now,
            Some(at) => NextWake::At(at),
        }
    }

    fn retry_backlogs(&mut self) {
        self.storage.retry(|op| self.ports.storage(op));
        self.transfer.retry(|op| self.ports.transfer(op));
        self.catalog.retry(|op| self.ports.catalog(op));
        self.budget.retry(|request| self.shared.ask_arbiter(request));
        self.slabs.retry(|op| self.shared.ask_slab(op));
    }

    /// Tables that come and grow; what a scan found; what readers have read, before somebody decides what to evict.
    fn serve_direct(&mut self, now: Now) {
        self.direct.turn(now);
        if let Some(done) = self.direct.next_done() {
            self.step(now, Event::ScanDone(done));
        }
        for sampled in self.direct.samples(now) {
            self.step(now, Event::Sampled(sampled));
        }
    }

    fn take_completions(&mut self, now: Now) {
        let sequence = self.mailbox().durable.load(Ordering::Acquire);
        if sequence != self.durable_told {
            self.durable_told = sequence;
            self.handled.completions += 1;
            self.step(now, Event::Completion(Completion::Durable { sequence }));
        }
        for _ in 0..COMPLETIONS_PER_TURN_MAX {
            // Budget replies first: they are few, and a waiter holds an operation's slot.
            let reply = take_from(&self.mailbox().budget_replies).map(Completion::Budget);
            let Some(completion) = reply.or_else(|| take_from(&self.mailbox().done)) else { return };
            self.in_flight = self.in_flight.saturating_sub(usize::from(ends_an_op(&completion)));
            self.handled.completions += 1;
            self.step(now, Event::Completion(completion));
        }
    }

    fn host_arbiter(&mut self) {
        let Some(mut arbiter) = self.arbiter.take() else { return };
        for _ in 0..limits::ITEMS_PER_TURN_MAX {
            let Some(request) = take_from(&self.shared.budget_requests) else { break };
            self.handled.budget_requests += 1;
            arbiter(request, &mut self.arbiter_replies);
            for (shard, reply) in self.arbiter_replies.drain(..) {
                self.shared.answer_budget(shard, reply);
            }
        }
        self.arbiter = Some(arbiter);
    }

    fn take_requests(&mut self, now: Now) {
        if self.phase == Phase::Closing {
            self.mailbox().refuse_requests();
            self.refuse_rings();
            return;
        }
        // Counted beforehand: a caller that asks again as soon as it is answered must not prolong the turn.
        let waiting = self.mailbox().requests.len();
        let of_rings = self.poll_rings(now, limits::REQUESTS_PER_TURN_MAX - waiting.min(LANE_SHARE));
        for _ in 0..waiting.min(limits::REQUESTS_PER_TURN_MAX - of_rings) {
            if !self.takes_requests() {
                return;
            }
            let Some(envelope) = self.mailbox().requests.pop() else { return };
            let reply_to = self.slots.hold(Sink::Call(envelope.reply));
            self.handled.requests += 1;
            self.ask(now, reply_to, envelope.deadline, envelope.request);
        }
    }

    /// Takes at most `most` entries of rings; returns how many it took. Looks again while there are some: a client that was
    /// answered asks again at once, which then costs no turn of its own.
    fn poll_rings(&mut self, now: Now, most: usize) -> usize {
        let mut taken = 0;
        for _ in 0..PASSES_MAX {
            let before = taken;
            taken += self.pass_over_rings(now, most - taken);
            if taken == before || taken == most {
                break;
            }
        }
        taken
    }

    /// Looks into the rings of each session once; takes at most `most` entries, and returns how many.
    fn pass_over_rings(&mut self, now: Now, most: usize) -> usize {
        let mut taken = 0;
        for _ in 0..self.rings.count() {
            if taken == most {
                break;
            }
            let slot = self.rings.next_slot();
            for _ in 0..ENTRIES_PER_SESSION_MAX.min(most - taken) {
                if !self.takes_requests() {
                    return taken;
                }
                let Some(entry) = self.rings.take(slot, now) else { break };
                taken += 1;
                self.handled.requests += 1;
                if let Some(Taken { request, deadline, ticket }) = entry {
                    let reply_to = self.slots.hold(Sink::Ring(ticket));
                    self.ask(now, reply_to, Some(deadline), request);
                }
            }
        }
        taken
    }

    /// While closing: answers what rings ask.
    fn refuse_rings(&mut self) {
        let mut refused = 0;
        for _ in 0..self.rings.count() {
            let slot = self.rings.next_slot();
            while refused < limits::REQUESTS_PER_TURN_MAX && self.rings.refuse(slot) {
                refused += 1;
            }
        }
    }

    /// Sessions that come and go.
    fn take_notes(&mut self, now: Now) {
        for _ in 0..NOTES_PER_TURN_MAX {
            let Some(note) = take_from(&self.mailbox().sessions) else { return };
            match self.rings.note(note) {
                Noted::Attached => {}
                Noted::Gone(session) => self.step(now, Event::SessionGone { session }),
                Noted::Close(slot, session) => {
                    // What it holds already. What is still under way for it may be granted yet: then once more.
                    self.step(now, Event::SessionClosed { session });
                    if self.rings.is_settled(slot) {
                        self.let_go(now, slot);
                    }
                }
            }
        }
    }

    fn fire_timer(&mut self, now: Now) {
        if self.core.next_timer().is_some_and(|at| at <= now.monotonic && self.may_fire(at)) {
            self.handled.timers += 1;
            self.step(now, Event::Timer);
        }
    }

    fn step(&mut self, now: Now, event: Event) {
        self.step_once(now, event);
        while let Some((slot, session)) = self.rings.next_settled() {
            // What was granted to it after it had closed.
            self.step_once(now, Event::SessionClosed { session });
            self.let_go(now, slot);
        }
    }

    fn let_go(&mut self, now: Now, slot: u16) {
        if let Some(session) = self.rings.let_go(slot) {
            self.step_once(now, Event::SessionGone { session });
        }
    }

    /// Calls a request into the core.
    fn ask(&mut self, now: Now, reply_to: ReplyTo, deadline: Option<Monotonic>, request: Request) {
        if matches!(request, Request::Delete { force: true, .. }) && self.rings.count() > 0 {
            self.forced.insert(reply_to);
        }
        self.step(now, Event::Request { reply_to, deadline, request });
    }

    fn step_once(&mut self, now: Now, event: Event) {
        assert!(self.core.has_credit(), "an empty outbox has room for one step");
        self.core.step(now, event);
        while let Some(effect) = self.core.pop() {
            self.carry_out(effect);
        }
    }

    fn ask_slab(&mut self, op: SlabOp) {
        match op.action {
            SlabAction::Make { .. } | SlabAction::Zero { .. } | SlabAction::Freeze => self.in_flight += 1,
            // Returned possibly much later, or never answered.
            SlabAction::Return => {}
            // An advice: dropped rather than kept when the session thread has enough to do.
            SlabAction::Prefault { .. } => {
                if !self.slabs.is_empty() || self.shared.ask_slab(op).is_err() {
                    self.mailbox().prefault_dropped();
                }
                return;
            }
        }
        self.slabs.send(op, |op| self.shared.ask_slab(op));
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Reply { to, result } => {
                // Before the answer: who has it must not find a lease of that payload valid.
                if self.forced.remove(&to) {
                    self.rings.revoke();
                }
                match self.slots.take(to) {
                    Sink::Call(reply) => reply(result),
                    Sink::Ring(ticket) => self.rings.answer(ticket, result),
                }
            }
            Effect::Storage(op) => {
                // The disk store waits for it, and nobody here for an answer.
                self.in_flight += usize::from(op.action != StorageAction::Stay);
                self.storage.send(op, |op| self.ports.storage(op));
            }
            Effect::Transfer(op) => {
                self.in_flight += 1;
                self.transfer.send(op, |op| self.ports.transfer(op));
            }
            Effect::Catalog(op) => {
                self.in_flight += 1;
                self.catalog.send(op, |op| self.ports.catalog(op));
            }
            Effect::Accepted { to, descriptor } => {
                if let Some(ticket) = self.slots.ring_of(to) {
                    self.rings.accepted(ticket, &descriptor);
                }
            }
            Effect::Slab(op) => self.ask_slab(op),
            Effect::Publish(change) => self.direct.publish(change),
            Effect::Scan(scan) => self.direct.scan(&scan),
            Effect::Revoke(revoke) => self.direct.revoke(revoke),
            Effect::Budget(request) => {
                self.budget.send_budget(request, |request| self.shared.ask_arbiter(request));
            }
        }
    }
}

/// What a pump left behind at its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Unfinished {
    /// Requests that were answered UNAVAILABLE though the shard had taken them.
    pub requests: usize,
    /// Ops whose completion will find nobody; boot recovery deals with them as after a crash.
    pub ops: usize,
}

/// The oldest entry of a lane. Looked at first: taking from an empty one fences, which waits for what was just written to
/// clients to get there.
#[inline]
fn take_from<T>(lane: &ArrayQueue<T>) -> Option<T> {
    if lane.is_empty() { None } else { lane.pop() }
}

/// Whether this is what one op of [`Pump::in_flight`] waited for.
fn ends_an_op(completion: &Completion) -> bool {
    match completion {
        Completion::Storage(StorageDone::Freed { .. })
        | Completion::Budget(_)
        | Completion::Relocate(_)
        | Completion::Durable { .. } => false,
        Completion::Slab(done) => !matches!(done, SlabDone::Returned { .. }),
        Completion::Storage(_)
        | Completion::Transfer(_)
        | Completion::Catalog(_)
        | Completion::BatchRefused(_)
        | Completion::Claimed { .. } => true,
    }
}

#[cfg(test)]
mod tests;
