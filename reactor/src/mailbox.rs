//! Each shard's mailbox: bounded lanes on crossbeam queues, and a doorbell. The only way into a shard.
//!
//! | lane | from | to | when it is full |
//! |---|---|---|---|
//! | requests | front | the shard | the message is handed back to its sender |
//! | done | drivers, catalog writer | the shard | the sender waits; by the arithmetic below only for `Freed` notices |
//! | durable (one number) | the catalog writer | the shard | cannot be: a later number takes the place of the one before |
//! | budget replies | the arbiter on shard 0 | the shard | cannot be: every ask and recall has its place |
//! | sessions | the session thread | the shard | cannot be: three notes for each session there may be |
//! | tables | the session thread, and who makes tables for it | the shard | cannot be: one is in the making for each namespace |
//! | table ops (one lane) | all shards | the session thread | the sending pump keeps it, and asks again |
//! | slabs (one lane) | all shards | the session thread | the sending pump keeps it in its backlog |
//! | budget requests (one lane) | all shards | the arbiter on shard 0 | the sending pump keeps it in its backlog |
//!
//! The lanes are separate so that a flood of requests never holds back a completion, and so that shards, which
//! must not wait, never share a lane with drivers, which may.
//!
//! Life: `Running` -> `Closing` (requests are answered UNAVAILABLE, work in flight goes on) -> `Stopping` (pumps
//! leave). A mailbox whose pump has left is `closed`: what arrives later is answered or dropped by its sender.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use payload_types::effect::BudgetRequest;
use payload_types::event::{BudgetReply, Completion};
use payload_types::reply::ReplyResult;
use payload_types::request::Request;
use payload_types::slab::{SlabDone, SlabOp};
use payload_types::{ErrorKind, Monotonic, PayloadError, ShardIndex, limits};

use crate::doorbell::Doorbell;
use crate::session::{DirectShared, SESSION_LANE_LEN, SessionNote, TableMade, TableOp};
use crate::stall::{StallBoard, TurnStats};
use crate::sys::poll::Bell;

/// Budget replies under way to one shard: one for each of its asks, one recall a tier.
const BUDGET_REPLY_LANE_LEN: usize = limits::BUDGET_ASKS_PER_SHARD_MAX + limits::RECALLS_MAX;

/// Completions of drivers and catalog under way to one shard: the rest of the completion lane's arithmetic.
const DONE_LANE_LEN: usize = limits::COMPLETION_LANE_LEN - BUDGET_REPLY_LANE_LEN;

/// Tables under way to one shard: one a namespace, and there is one.
const TABLE_LANE_LEN: usize = 4;

/// Work on slabs that waits for the session thread, for each shard. More wait in the shard's own backlog.
const SLAB_LANE_PER_SHARD: usize = 64;

/// Budget requests under way, for each shard of the node. More wait in the shard's own backlog, which is bounded.
const BUDGET_LANE_PER_SHARD: usize = 64;

const _: () = assert!(
    DONE_LANE_LEN
        == limits::OPS_PER_SHARD_MAX
            + 2 * limits::DROPS_IN_FLIGHT_MAX
            + limits::RETIRED_NOTICES_MAX
            + limits::RELOCATIONS_MAX,
    "each operation at most one, each drop two (detached, freed), the late freed notices, and relocations"
);

/// A driver whose completion does not fit looks again after this.
const FULL_LANE_PAUSE: Duration = Duration::from_micros(200);

/// Takes the answer to a request. Called exactly once, on the shard's thread (while the server stops also on the
/// sender's): it hands the answer on and returns; it must neither wait nor panic.
pub type ReplySink = Box<dyn FnOnce(ReplyResult) + Send>;

/// A request on its way. Lane: requests.
pub struct Envelope {
    /// What is asked.
    pub request: Request,
    /// When the caller stops waiting.
    pub deadline: Option<Monotonic>,
    /// Who gets the answer.
    pub reply: ReplySink,
}

/// Where the reactor is in its life; see the head of the file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub(crate) enum Phase {
    Running = 0,
    Closing = 1,
    Stopping = 2,
}

/// One shard's lanes.
pub(crate) struct Mailbox {
    pub(crate) requests: ArrayQueue<Envelope>,
    pub(crate) done: ArrayQueue<Completion>,
    pub(crate) budget_replies: ArrayQueue<BudgetReply>,
    pub(crate) sessions: ArrayQueue<SessionNote>,
    /// Tables of direct leases that were made for this shard.
    pub(crate) tables: ArrayQueue<TableMade>,
    /// The newest `Completion::Durable`; it may overtake acknowledgements, which a shard does not mind.
    pub(crate) durable: AtomicU64,
    pub(crate) doorbell: CachePadded<Doorbell>,
    /// The pump has left.
    closed: AtomicBool,
    /// While closing: nothing of this shard is in flight.
    pub(crate) drained: AtomicBool,
    pub(crate) stalls: StallBoard,
    drops: DropCounts,
}

/// What was not delivered, since the start. Written where something is dropped, so by any thread.
#[derive(Default)]
struct DropCounts {
    requests_full: AtomicU64,
    requests_stopping: AtomicU64,
    completions_closed: AtomicU64,
    prefaults_full: AtomicU64,
}

/// What was not delivered to or by one shard, since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Drops {
    /// Requests handed back because the lane was full.
    pub requests_full: u64,
    /// Requests answered UNAVAILABLE because the server stops.
    pub requests_stopping: u64,
    /// Completions that came after the shard had left.
    pub completions_closed: u64,
    /// Advices to touch memory ahead, given up because the session thread had enough to do.
    pub prefaults_full: u64,
}

/// What waits in the lanes of one shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lanes {
    /// Requests of the front.
    pub requests: usize,
    /// Completions of drivers and catalog.
    pub completions: usize,
    /// Answers of the budget arbiter.
    pub budget_replies: usize,
    /// Notes of the session thread.
    pub sessions: usize,
    /// Tables of direct leases.
    pub tables: usize,
}

impl Mailbox {
    fn new() -> Self {
        Self {
            requests: ArrayQueue::new(limits::REQUEST_LANE_LEN),
            done: ArrayQueue::new(DONE_LANE_LEN),
            budget_replies: ArrayQueue::new(BUDGET_REPLY_LANE_LEN),
            sessions: ArrayQueue::new(SESSION_LANE_LEN),
            tables: ArrayQueue::new(TABLE_LANE_LEN),
            durable: AtomicU64::new(0),
            doorbell: CachePadded::new(Doorbell::default()),
            closed: AtomicBool::new(false),
            drained: AtomicBool::new(false),
            stalls: StallBoard::default(),
            drops: DropCounts::default(),
        }
    }

    /// The pump leaves (or never came): whatever waits, and whatever still arrives, is answered UNAVAILABLE.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        // Pairs with the fence of `Doorbell::ring` in `submit`: either this thread sees the message, or the sender
        // sees `closed` and answers it.
        fence(Ordering::SeqCst);
        self.refuse_requests();
        self.drop_notes();
    }

    /// From the session thread; never waits.
    ///
    /// # Panics
    /// When the lane is full: then a session was told of more than twice.
    pub(crate) fn tell(&self, note: SessionNote) {
        assert!(self.sessions.push(note).is_ok(), "a place for every note of every session");
        self.doorbell.ring();
        if self.closed.load(Ordering::Relaxed) {
            self.drop_notes();
        }
    }

    /// From whoever makes tables; never waits.
    ///
    /// # Panics
    /// When the lane is full: then a shard has asked for several of one namespace.
    pub(crate) fn hand_table(&self, made: TableMade) {
        assert!(self.tables.push(made).is_ok(), "a place for the table of each namespace");
        self.doorbell.ring();
    }

    /// The pump gave up an advice.
    pub(crate) fn prefault_dropped(&self) {
        self.drops.prefaults_full.fetch_add(1, Ordering::Relaxed);
    }

    /// Nobody polls rings any more; the session thread has what the notes lend.
    fn drop_notes(&self) {
        while self.sessions.pop().is_some() {}
    }

    /// Answers every request that waits; returns how many.
    pub(crate) fn refuse_requests(&self) -> usize {
        let mut refused = 0;
        while let Some(envelope) = self.requests.pop() {
            self.drops.requests_stopping.fetch_add(1, Ordering::Relaxed);
            (envelope.reply)(Err(stopping_error()));
            refused += 1;
        }
        refused
    }
}

/// What every client hears while the server stops.
pub(crate) fn stopping_error() -> PayloadError {
    PayloadError::new(
        ErrorKind::Unavailable,
        "the server is stopping and takes no requests; try again once it is back",
    )
}

/// What threads share.
pub(crate) struct Shared {
    pub(crate) boxes: Box<[Mailbox]>,
    pub(crate) budget_requests: ArrayQueue<BudgetRequest>,
    /// From shards to the session thread; see [`Shared::ask_slab`].
    pub(crate) slab_ops: ArrayQueue<SlabOp>,
    /// Wakes the session thread; `None` until slabs are served.
    pub(crate) slab_bell: OnceLock<Arc<Bell>>,
    /// Of direct leases.
    pub(crate) direct: DirectShared,
    phase: AtomicU8,
    /// Wakes the thread that logs stalls.
    pub(crate) stall_bell: Doorbell,
}

impl Shared {
    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Running,
            1 => Phase::Closing,
            _ => Phase::Stopping,
        }
    }

    /// Moves on and tells everybody.
    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
        self.boxes.iter().for_each(|mailbox| mailbox.doorbell.ring());
        self.stall_bell.ring();
    }

    /// From a pump to the arbiter; never waits.
    pub(crate) fn ask_arbiter(&self, request: BudgetRequest) -> Result<(), BudgetRequest> {
        self.budget_requests.push(request)?;
        self.boxes[0].doorbell.ring();
        Ok(())
    }

    /// From a pump to the session thread; never waits.
    ///
    /// # Errors
    /// The op, when the lane is full: the session thread waits for its keeper.
    pub(crate) fn ask_slab(&self, op: SlabOp) -> Result<(), SlabOp> {
        self.slab_ops.push(op)?;
        if let Some(bell) = self.slab_bell.get() {
            bell.ring();
        }
        Ok(())
    }

    /// From a pump to the session thread; never waits.
    ///
    /// # Errors
    /// The op, when the lane is full.
    pub(crate) fn ask_table(&self, op: TableOp) -> Result<(), TableOp> {
        self.direct.table_ops.push(op)?;
        if let Some(bell) = self.slab_bell.get() {
            bell.ring();
        }
        Ok(())
    }

    /// From the session thread to a pump; never waits. What names no op slot has no place of its own in the lane, and may
    /// take up no more than half of it.
    ///
    /// # Errors
    /// The answer, when it has to be offered again later.
    pub(crate) fn answer_slab(&self, shard: ShardIndex, done: SlabDone) -> Result<(), SlabDone> {
        let mailbox = &self.boxes[usize::from(shard.0)];
        if matches!(done, SlabDone::Returned { .. }) && mailbox.done.len() > DONE_LANE_LEN / 2 {
            return Err(done);
        }
        match mailbox.done.push(Completion::Slab(done)) {
            Ok(()) => {
                mailbox.doorbell.ring();
                Ok(())
            }
            Err(Completion::Slab(done)) => Err(done),
            Err(_) => unreachable!("a queue hands back what it was given"),
        }
    }

    /// From the arbiter to a pump; never waits.
    ///
    /// # Panics
    /// When the lane is full: then a shard has more asks or recalls open than its tables hold.
    pub(crate) fn answer_budget(&self, shard: ShardIndex, reply: BudgetReply) {
        let mailbox = &self.boxes[usize::from(shard.0)];
        mailbox.budget_replies.push(reply).expect("a place for every open ask and recall");
        mailbox.doorbell.ring();
    }
}

/// The mailboxes of all shards. They exist before the threads, so that drivers and the catalog writer can be given
/// their sinks first; what is sent meanwhile waits in its lane.
pub struct Mailboxes(pub(crate) Arc<Shared>);

impl Mailboxes {
    /// For this many shards: 0.6 MiB each.
    ///
    /// # Panics
    /// Unless 1 ..= `limits::SHARD_COUNT_MAX`.
    pub fn new(shard_count: u16) -> Self {
        assert!((1..=limits::SHARD_COUNT_MAX).contains(&shard_count), "{shard_count} shards");
        Self(Arc::new(Shared {
            boxes: (0..shard_count).map(|_| Mailbox::new()).collect(),
            budget_requests: ArrayQueue::new(BUDGET_LANE_PER_SHARD * usize::from(shard_count)),
            slab_ops: ArrayQueue::new(SLAB_LANE_PER_SHARD * usize::from(shard_count)),
            slab_bell: OnceLock::new(),
            direct: DirectShared::new(usize::from(shard_count)),
            phase: AtomicU8::new(Phase::Running as u8),
            stall_bell: Doorbell::default(),
        }))
    }

    /// A sender's end; as many as wanted.
    pub fn handle(&self) -> ReactorHandle {
        ReactorHandle(self.0.clone())
    }
}

/// A sender's end of all mailboxes.
#[derive(Clone)]
pub struct ReactorHandle(Arc<Shared>);

impl ReactorHandle {
    /// What all threads share.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    /// Sends a request. Once it returns `Ok`, the envelope's sink is called exactly once; while the server stops,
    /// at once and with UNAVAILABLE.
    ///
    /// # Errors
    /// The envelope itself when the shard's request lane is full: answer RESOURCE_EXHAUSTED, or try again.
    pub fn submit(&self, shard: ShardIndex, envelope: Envelope) -> Result<(), Envelope> {
        let Some(mailbox) = self.0.boxes.get(usize::from(shard.0)) else {
            let message = format!("shard {} does not exist; this node has {}", shard.0, self.0.boxes.len());
            (envelope.reply)(Err(PayloadError::new(ErrorKind::Internal, message)));
            return Ok(());
        };
        if self.0.phase() != Phase::Running {
            mailbox.drops.requests_stopping.fetch_add(1, Ordering::Relaxed);
            (envelope.reply)(Err(stopping_error()));
            return Ok(());
        }
        mailbox.requests.push(envelope).inspect_err(|_handed_back| {
            mailbox.drops.requests_full.fetch_add(1, Ordering::Relaxed);
        })?;
        mailbox.doorbell.ring();
        if mailbox.closed.load(Ordering::Relaxed) {
            mailbox.refuse_requests();
        }
        Ok(())
    }

    /// Reports finished work. Waits, in short sleeps, while the lane is full; that is only when a shard has more
    /// than `limits::RETIRED_NOTICES_MAX` unread `Freed` notices. Dropped when the shard has stopped.
    ///
    /// # Panics
    /// When called by the shard's own thread (from inside [`crate::Ports`]) with a full lane: it would wait for itself.
    pub fn complete(&self, shard: ShardIndex, completion: Completion) {
        let mailbox = &self.0.boxes[usize::from(shard.0)];
        if let Completion::Durable { sequence } = completion {
            mailbox.durable.fetch_max(sequence, Ordering::AcqRel);
            return mailbox.doorbell.ring();
        }
        let mut completion = completion;
        while !mailbox.closed.load(Ordering::Acquire) {
            match mailbox.done.push(completion) {
                Ok(()) => return mailbox.doorbell.ring(),
                Err(refused) => completion = refused,
            }
            assert!(!mailbox.doorbell.is_own(), "a port reports completions from threads of its own");
            mailbox.doorbell.ring();
            std::thread::sleep(FULL_LANE_PAUSE);
        }
        mailbox.drops.completions_closed.fetch_add(1, Ordering::Relaxed);
    }

    /// How many shards there are.
    pub fn shard_count(&self) -> u16 {
        u16::try_from(self.0.boxes.len()).expect("at most 256 shards")
    }

    /// Requests that wait in a shard's lane, for admission and metrics; 0 for a shard that does not exist.
    pub fn requests_waiting(&self, shard: ShardIndex) -> usize {
        self.0.boxes.get(usize::from(shard.0)).map_or(0, |mailbox| mailbox.requests.len())
    }

    /// What waits in a shard's lanes; nothing for a shard that does not exist.
    pub fn lanes(&self, shard: ShardIndex) -> Lanes {
        self.0.boxes.get(usize::from(shard.0)).map_or_else(Lanes::default, |mailbox| Lanes {
            requests: mailbox.requests.len(),
            completions: mailbox.done.len(),
            budget_replies: mailbox.budget_replies.len(),
            sessions: mailbox.sessions.len(),
            tables: mailbox.tables.len(),
        })
    }

    /// What a shard was not given, or gave up, since the start; nothing for a shard that does not exist.
    pub fn drops(&self, shard: ShardIndex) -> Drops {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.0.boxes.get(usize::from(shard.0)).map_or_else(Drops::default, |mailbox| Drops {
            requests_full: count(&mailbox.drops.requests_full),
            requests_stopping: count(&mailbox.drops.requests_stopping),
            completions_closed: count(&mailbox.drops.completions_closed),
            prefaults_full: count(&mailbox.drops.prefaults_full),
        })
    }

    /// What the stall detector saw, by shard.
    pub fn stalls(&self) -> Vec<TurnStats> {
        (0..).zip(&self.0.boxes).map(|(shard, mailbox)| mailbox.stalls.read(ShardIndex(shard))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use payload_types::event::StorageDone;
    use payload_types::{Generation, Tier};

    use super::*;

    fn envelope(answers: &mpsc::Sender<ReplyResult>) -> Envelope {
        let answers = answers.clone();
        let reply = Box::new(move |result| answers.send(result).expect("the test listens"));
        Envelope { request: Request::Stats, deadline: None, reply }
    }

    fn freed(number: u64) -> Completion {
        Completion::Storage(StorageDone::Freed { tier: Tier::Ram, generation: Generation(number) })
    }

    #[test]
    fn given_a_full_request_lane_when_sent_then_the_message_is_handed_back() {
        let mailboxes = Mailboxes::new(1);
        let handle = mailboxes.handle();
        let (answers, heard) = mpsc::channel();
        for _ in 0..limits::REQUEST_LANE_LEN {
            assert!(handle.submit(ShardIndex(0), envelope(&answers)).is_ok());
        }
        let refused = handle.submit(ShardIndex(0), envelope(&answers)).expect_err("handed back");
        assert_eq!(refused.request, Request::Stats);
        assert_eq!(handle.requests_waiting(ShardIndex(0)), limits::REQUEST_LANE_LEN);
        assert!(heard.try_recv().is_err(), "nobody was answered");
        // The completion lane is not affected.
        handle.complete(ShardIndex(0), freed(1));
        assert_eq!(mailboxes.0.boxes[0].done.pop(), Some(freed(1)));
    }

    #[test]
    fn given_a_closed_mailbox_when_messages_wait_or_arrive_then_each_is_answered_once() {
        let mailboxes = Mailboxes::new(1);
        let handle = mailboxes.handle();
        let (answers, heard) = mpsc::channel();
        assert!(handle.submit(ShardIndex(0), envelope(&answers)).is_ok());
        mailboxes.0.boxes[0].close();
        assert!(handle.submit(ShardIndex(0), envelope(&answers)).is_ok());
        mailboxes.0.enter(Phase::Closing);
        assert!(handle.submit(ShardIndex(0), envelope(&answers)).is_ok());
        drop(answers);
        let kinds: Vec<_> = heard.iter().map(|result| result.expect_err("refused").kind).collect();
        assert_eq!(kinds, [ErrorKind::Unavailable; 3]);
        handle.complete(ShardIndex(0), freed(1));
        assert!(mailboxes.0.boxes[0].done.is_empty(), "dropped: nobody reads it");
    }

    #[test]
    fn given_a_shard_that_does_not_exist_when_asked_then_the_caller_is_told() {
        let (answers, heard) = mpsc::channel();
        assert!(Mailboxes::new(2).handle().submit(ShardIndex(2), envelope(&answers)).is_ok());
        assert_eq!(heard.recv().expect("answered").expect_err("refused").kind, ErrorKind::Internal);
    }

    #[test]
    fn given_a_full_completion_lane_when_a_driver_reports_then_it_waits_and_nothing_is_lost() {
        const MORE: u64 = 100;
        let mailboxes = Mailboxes::new(1);
        let handle = mailboxes.handle();
        let driver = std::thread::spawn(move || {
            (0..DONE_LANE_LEN as u64 + MORE).for_each(|number| handle.complete(ShardIndex(0), freed(number)));
        });
        let mailbox = &mailboxes.0.boxes[0];
        while mailbox.done.len() < DONE_LANE_LEN {
            std::thread::yield_now();
        }
        for number in 0..DONE_LANE_LEN as u64 + MORE {
            let completion = loop {
                match mailbox.done.pop() {
                    Some(completion) => break completion,
                    None => std::thread::yield_now(),
                }
            };
            assert_eq!(completion, freed(number), "in order");
        }
        driver.join().expect("the driver was let go");
    }

    #[test]
    fn given_a_closing_pump_when_senders_race_it_then_every_request_is_answered_once() {
        for _ in 0..200 {
            let mailboxes = Mailboxes::new(1);
            let (answers, heard) = mpsc::channel();
            let (handle, sender_answers) = (mailboxes.handle(), answers.clone());
            let sender = std::thread::spawn(move || {
                (0..50).filter(|_| handle.submit(ShardIndex(0), envelope(&sender_answers)).is_ok()).count()
            });
            mailboxes.0.boxes[0].close();
            drop(answers);
            let sent = sender.join().expect("sent");
            assert_eq!(heard.iter().count(), sent);
        }
    }
}
