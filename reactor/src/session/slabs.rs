//! Memory of native sessions, the session thread's part: who has which descriptor, and which clients are told what.
//!
//! ```text
//! shard --SlabOp--> [lane] --> Slabs --Job--> keeper (drivers::arena): makes, seals, zeroes, returns
//!                                ^  <-answer, bell-'
//!   Make: made -> SlabOffered + descriptor -> SlabMapped -> sealed -> Made           (no answer in a second: closed)
//!   SlabWanted -> SlabOpened + a description of its own, or SlabRefused
//!   Return: SlabClosed to all who have it -> proven to be nobody's -> Returned
//! ```
//! Nothing here waits: what may block is the keeper's, and a client that takes no messages is closed. A memory that was
//! offered and not mapped stays charged until nobody has it, even when its session is closed: only then does its Make
//! fail, so that a client which maps and says nothing gets no more than it is charged for.
//!
//! Limits: jobs wait here only while the keeper's lane is full, and then no more is taken from shards; slabs are bounded
//! by `limits::SLABS_PER_SESSION_MAX` a session and shard; of memories that clients hold on to, [`HELD_MAX`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use payload_drivers::arena::{
    ArenaError, Draft, Frozen, Isolated, Job, Keeper, Leaving, Maker, MakerConfig, Slab, Sources,
};
use payload_local::hello::ServerFrame;
use payload_types::event::{DriverError, DriverErrorKind};
use payload_types::slab::{SlabAction, SlabDone, SlabOp};
use payload_types::{ByteCount, Monotonic, OpId, SessionId, ShardIndex, SlabId};

use crate::mailbox::Shared;
use crate::sys::poll::Bell;

/// How long a writer may take to map what it is offered.
pub(super) const OFFER_MS: u64 = 1000;

/// Memories that were offered, not mapped in time, and are still somebody's: no slab is made beyond so many. Each holds an
/// op slot of its shard.
const HELD_MAX: usize = 64;

/// What could not be handed on is tried again after this.
const RETRY_MS: u64 = 2;

/// What slabs are made of, and who else reads them.
#[derive(Clone, Debug)]
pub struct SlabConfig {
    /// Their pages.
    pub maker: MakerConfig,
    /// Where copies look for them: `Drivers::slabs`.
    pub sources: Sources,
    /// The NUMA node of each shard; `None`, also for those that are missing: any.
    pub nodes: Vec<Option<u16>>,
}

/// Counts of slabs, kept current by the session thread.
#[derive(Debug, Default)]
pub struct SlabCounts {
    /// Slabs and payloads' own memories that exist, those on their way back included.
    pub slabs: AtomicU64,
    /// Their bytes.
    pub bytes: AtomicU64,
    /// Bytes made since the start.
    pub made_bytes: AtomicU64,
    /// Of those, in large pages.
    pub large_bytes: AtomicU64,
    /// Memories that did not get all the large pages that were asked for.
    pub large_refused: AtomicU64,
    /// Makes that failed.
    pub failed: AtomicU64,
    /// Descriptors that readers were given.
    pub opened: AtomicU64,
    /// Memories that were not mapped in time and are somebody's still.
    pub held: AtomicU64,
}

/// What a client is to be sent. Who cannot take it is closed.
pub(crate) struct Message {
    pub session: SessionId,
    pub frame: ServerFrame,
    pub descriptor: Option<OwnedFd>,
}

/// A memory that its writer is about to map.
enum Offer {
    Draft(Draft),
    Isolated(Isolated),
}

impl Offer {
    fn writer(&self) -> std::io::Result<OwnedFd> {
        match self {
            Self::Draft(draft) => draft.writer().try_clone_to_owned(),
            Self::Isolated(isolated) => isolated.writer().try_clone_to_owned(),
        }
    }

    fn leaving(self) -> Leaving {
        match self {
            Self::Draft(draft) => Leaving::Draft(draft),
            Self::Isolated(isolated) => Leaving::Isolated(isolated),
        }
    }
}

/// How far a memory has come.
enum State {
    /// The keeper has it.
    Busy,
    Offered(Offer, Monotonic),
    Open(Arc<Slab>),
    /// `isolation: sealed`, and being written.
    Written(Isolated),
    Frozen(Frozen),
}

struct Known {
    op: SlabOp,
    bytes: ByteCount,
    state: State,
    /// Who was given a description of it.
    readers: BTreeSet<SessionId>,
    /// Set when it never got to its shard: the end of its Make, once nobody has it.
    failure: Option<DriverError>,
}

/// What the keeper says, on its thread.
enum Answer {
    Made(SlabId, Result<Offer, ArenaError>),
    Sealed(SlabId, Result<Slab, (Draft, ArenaError)>),
    Frozen(SlabId, OpId, Result<Frozen, (Isolated, ArenaError)>),
    Zeroed(SlabId, OpId),
    Returned(SlabId),
}

/// Answers that were not looked at: no more than there are memories and ops, because each has one job at a time.
#[derive(Default)]
struct Answers(Mutex<VecDeque<Answer>>);

/// See the head of the file.
pub(super) struct Slabs {
    keeper: Keeper,
    config: SlabConfig,
    shared: Arc<Shared>,
    bell: Arc<Bell>,
    counts: Arc<SlabCounts>,
    answers: Arc<Answers>,
    known: BTreeMap<SlabId, Known>,
    /// Sessions that are open and may have slabs.
    open: BTreeSet<SessionId>,
    /// What the keeper's lane had no room for.
    unsent: VecDeque<Job>,
    /// What a shard's lane had no room for.
    late: VecDeque<(ShardIndex, SlabDone)>,
    messages: Vec<Message>,
    held: usize,
}

impl Slabs {
    /// Starts the keeper.
    pub(super) fn start(
        config: SlabConfig,
        shared: Arc<Shared>,
        bell: Arc<Bell>,
        counts: Arc<SlabCounts>,
    ) -> Self {
        let keeper = Keeper::start(Maker::new(config.maker));
        // Rung also for what waits already: the registry looks after every batch.
        let _ = shared.slab_bell.set(Arc::clone(&bell));
        Self {
            keeper,
            config,
            shared,
            bell,
            counts,
            answers: Arc::default(),
            known: BTreeMap::new(),
            open: BTreeSet::new(),
            unsent: VecDeque::new(),
            late: VecDeque::new(),
            messages: Vec::new(),
            held: 0,
        }
    }

    /// A session that may have slabs.
    pub(super) fn opened(&mut self, session: SessionId) {
        self.open.insert(session);
    }

    /// A session has ended. True when memory that its process can write to is left.
    pub(super) fn closed(&mut self, session: SessionId) -> bool {
        if !self.open.remove(&session) {
            return false;
        }
        let of_it = |known: &Known| known.op.session == session;
        let offered: Vec<SlabId> = self
            .known
            .iter()
            .filter(|(_, known)| of_it(known) && matches!(known.state, State::Offered(..)))
            .map(|(slab, _)| *slab)
            .collect();
        for slab in offered {
            self.fail(slab, "its session has ended".to_owned());
        }
        for known in self.known.values_mut() {
            known.readers.remove(&session);
        }
        self.known.values().any(of_it)
    }

    /// Sessions that did not map in time what they were offered.
    pub(super) fn silent(&self, now: Monotonic) -> Vec<(SessionId, String)> {
        let silent = self.known.iter().filter_map(|(slab, known)| match known.state {
            State::Offered(_, until) if until <= now => Some((
                known.op.session,
                format!("slab {slab} was offered, and not mapped within {OFFER_MS} ms; answer SlabMapped"),
            )),
            _ => None,
        });
        silent.collect()
    }

    /// When something is due that no descriptor tells.
    pub(super) fn next_look(&self, now: Monotonic) -> Option<Monotonic> {
        let offers = self.known.values().filter_map(|known| match known.state {
            State::Offered(_, until) => Some(until),
            _ => None,
        });
        let is_behind = !self.unsent.is_empty() || !self.late.is_empty();
        offers.chain(is_behind.then(|| now.plus_millis(RETRY_MS))).min()
    }

    /// Does what shards and keeper asked for; returns what clients are to be sent.
    pub(super) fn turn(&mut self, now: Monotonic) -> Vec<Message> {
        self.hand_on();
        loop {
            let answer = self.answers.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(answer) = answer else { break };
            self.answered(answer, now);
        }
        // Shards wait while the keeper does: each op becomes at most one job.
        while self.unsent.is_empty()
            && let Some(op) = self.shared.slab_ops.pop()
        {
            self.carry_out(op);
            self.hand_on();
        }
        self.hand_on();
        std::mem::take(&mut self.messages)
    }

    fn hand_on(&mut self) {
        while let Some(job) = self.unsent.pop_front() {
            if let Err(job) = self.keeper.submit(job) {
                self.unsent.push_front(job);
                break;
            }
        }
        for _ in 0..self.late.len() {
            let Some((shard, done)) = self.late.pop_front() else { break };
            if let Err(done) = self.shared.answer_slab(shard, done) {
                self.late.push_back((shard, done));
            }
        }
    }

    fn carry_out(&mut self, op: SlabOp) {
        let slab = op.slab;
        match op.action {
            SlabAction::Make { bytes, isolated } => self.make(op, bytes, isolated),
            SlabAction::Prefault { to } => {
                if let Some(Known { state: State::Open(open), .. }) = self.known.get(&slab) {
                    let job = Job::Prefault { slab: Arc::downgrade(open), to: to.0 };
                    self.unsent.push_back(job);
                }
            }
            SlabAction::Zero { offset, bytes } => {
                let Some(Known { state: State::Open(open), .. }) = self.known.get(&slab) else {
                    let result = Err(failed(format!("slab {slab} is not there to be zeroed")));
                    return self.tell(op.shard, SlabDone::Zeroed { op: op.op, result });
                };
                let (open, range) = (Arc::clone(open), offset..offset + bytes.0);
                let done = self.done(move |()| Answer::Zeroed(slab, op.op));
                self.unsent.push_back(Job::Zero { slab: open, range, done });
            }
            SlabAction::Freeze => self.freeze(op),
            SlabAction::Return => self.give_back(slab),
        }
    }

    fn make(&mut self, op: SlabOp, bytes: ByteCount, isolated: bool) {
        let refusal = if !self.open.contains(&op.session) {
            Some("its session has ended".to_owned())
        } else if self.held >= HELD_MAX {
            Some(format!(
                "{} memories that were offered and never answered are still mapped by clients; end those processes",
                self.held
            ))
        } else {
            None
        };
        if let Some(text) = refusal {
            self.counts.failed.fetch_add(1, Ordering::Relaxed);
            return self.tell(op.shard, SlabDone::Made { op: op.op, result: Err(failed(text)) });
        }
        let slab = op.slab;
        let known = Known { op, bytes, state: State::Busy, readers: BTreeSet::new(), failure: None };
        let before = self.known.insert(slab, known);
        assert!(before.is_none(), "a shard names each slab once");
        self.counts.slabs.fetch_add(1, Ordering::Relaxed);
        self.counts.bytes.fetch_add(bytes.0, Ordering::Relaxed);
        let node = self.config.nodes.get(usize::from(op.shard.0)).copied().flatten();
        let job = match isolated {
            false => {
                let done = self.done(move |made: Result<_, _>| Answer::Made(slab, made.map(Offer::Draft)));
                Job::Make { bytes, node, done }
            }
            true => {
                let done = self.done(move |made: Result<_, _>| Answer::Made(slab, made.map(Offer::Isolated)));
                Job::MakeIsolated { bytes, node, done }
            }
        };
        self.unsent.push_back(job);
    }

    fn freeze(&mut self, op: SlabOp) {
        let slab = op.slab;
        let known = self.known.get_mut(&slab);
        let written = known.and_then(|known| match std::mem::replace(&mut known.state, State::Busy) {
            State::Written(isolated) => Some(isolated),
            other => {
                known.state = other;
                None
            }
        });
        let Some(isolated) = written else {
            let result = Err(failed(format!("slab {slab} is not one that can be frozen")));
            return self.tell(op.shard, SlabDone::Frozen { op: op.op, result });
        };
        let done = self.done(move |frozen| Answer::Frozen(slab, op.op, frozen));
        self.unsent.push_back(Job::Freeze { isolated, done });
    }

    /// Takes a memory from everybody.
    fn give_back(&mut self, slab: SlabId) {
        let known = self.known.get_mut(&slab).expect("a shard gives back what was made for it, once");
        let memory = match std::mem::replace(&mut known.state, State::Busy) {
            State::Open(open) => Leaving::Slab(open),
            State::Offered(offer, _) => offer.leaving(),
            State::Written(isolated) => Leaving::Isolated(isolated),
            State::Frozen(frozen) => Leaving::Frozen(frozen),
            State::Busy => unreachable!("a shard gives back nothing that an operation of its own works on"),
        };
        self.config.sources.remove(slab);
        let writer = known.op.session;
        let readers = std::mem::take(&mut known.readers);
        for session in readers.into_iter().filter(|session| *session != writer).chain([writer]) {
            if self.open.contains(&session) {
                let frame = ServerFrame::SlabClosed { slab };
                self.messages.push(Message { session, frame, descriptor: None });
            }
        }
        let done = self.done(move |_bytes| Answer::Returned(slab));
        self.unsent.push_back(Job::Return { memory, done });
    }

    /// What was offered comes to nothing; its shard hears so when nobody has it any more.
    fn fail(&mut self, slab: SlabId, text: String) {
        if let Some(known) = self.known.get_mut(&slab) {
            known.failure = Some(failed(text));
            self.held += 1;
            self.counts.held.store(self.held as u64, Ordering::Relaxed);
            self.give_back(slab);
        }
    }

    /// A client says that it has mapped a slab.
    ///
    /// # Errors
    /// Why the session has to be closed.
    pub(super) fn mapped(&mut self, session: SessionId, slab: SlabId) -> Result<(), String> {
        let known = self.known.get_mut(&slab).filter(|known| known.op.session == session);
        let Some(known) = known.filter(|known| matches!(known.state, State::Offered(..))) else {
            return Err(format!("SlabMapped of slab {slab}, which this session was not offered"));
        };
        match std::mem::replace(&mut known.state, State::Busy) {
            State::Offered(Offer::Draft(draft), _) => {
                let done = self.done(move |sealed| Answer::Sealed(slab, sealed));
                self.unsent.push_back(Job::Seal { draft, done });
            }
            State::Offered(Offer::Isolated(isolated), _) => {
                let (shard, op) = (known.op.shard, known.op.op);
                let added = self.config.sources.add_isolated(slab, &isolated);
                known.state = State::Written(isolated);
                match added {
                    Ok(()) => self.tell(shard, SlabDone::Made { op, result: Ok(()) }),
                    Err(error) => self.fail(slab, no_descriptor(&error)),
                }
            }
            _ => unreachable!("looked at just now"),
        }
        Ok(())
    }

    /// A client wants to read a slab.
    pub(super) fn wanted(&mut self, session: SessionId, slab: SlabId) {
        let refused = |text: String| (ServerFrame::SlabRefused { slab, text }, None);
        let (frame, descriptor) = match self.known.get_mut(&slab) {
            None => refused(format!("there is no slab {slab}; acquire the payload again")),
            Some(known) => {
                let opened = match &known.state {
                    State::Open(open) => Some(open.reader()),
                    State::Frozen(frozen) => Some(frozen.reader()),
                    State::Busy | State::Offered(..) | State::Written(_) => None,
                };
                match opened {
                    Some(Ok(descriptor)) => {
                        known.readers.insert(session);
                        self.counts.opened.fetch_add(1, Ordering::Relaxed);
                        (ServerFrame::SlabOpened { slab, bytes: known.bytes }, Some(descriptor))
                    }
                    Some(Err(error)) => refused(error.to_string()),
                    None => refused(format!("slab {slab} is not sealed; acquire a committed payload first")),
                }
            }
        };
        self.messages.push(Message { session, frame, descriptor });
    }

    fn answered(&mut self, answer: Answer, now: Monotonic) {
        match answer {
            Answer::Made(slab, Ok(offer)) => self.offer(slab, offer, now),
            Answer::Made(slab, Err(error)) => self.forget(slab, &error),
            Answer::Sealed(slab, Err((draft, error))) => {
                // Its writer has mapped it already.
                let known = self.known.get_mut(&slab).expect("known until it is returned");
                known.state = State::Offered(Offer::Draft(draft), now);
                self.fail(slab, error.to_string());
            }
            Answer::Sealed(slab, Ok(sealed)) => {
                let known = self.known.get_mut(&slab).expect("known until it is returned");
                let (shard, op) = (known.op.shard, known.op.op);
                let added = self.config.sources.add(slab, &sealed);
                known.state = State::Open(Arc::new(sealed));
                match added {
                    Ok(()) => self.tell(shard, SlabDone::Made { op, result: Ok(()) }),
                    Err(error) => self.fail(slab, no_descriptor(&error)),
                }
            }
            Answer::Zeroed(slab, op) => {
                let shard = self.known[&slab].op.shard;
                self.tell(shard, SlabDone::Zeroed { op, result: Ok(()) });
            }
            Answer::Frozen(slab, op, frozen) => self.frozen(slab, op, frozen),
            Answer::Returned(slab) => {
                let known = self.known.remove(&slab).expect("known until it is returned");
                self.uncount(known.bytes);
                let done = match known.failure {
                    None => SlabDone::Returned { slab, bytes: known.bytes },
                    Some(failure) => {
                        self.held -= 1;
                        self.counts.held.store(self.held as u64, Ordering::Relaxed);
                        self.counts.failed.fetch_add(1, Ordering::Relaxed);
                        SlabDone::Made { op: known.op.op, result: Err(failure) }
                    }
                };
                self.tell(known.op.shard, done);
            }
        }
    }

    fn offer(&mut self, slab: SlabId, offer: Offer, now: Monotonic) {
        let known = self.known.get_mut(&slab).expect("known until it is returned");
        let granted = match &offer {
            Offer::Draft(draft) => draft.granted(),
            Offer::Isolated(isolated) => isolated.granted(),
        };
        self.counts.made_bytes.fetch_add(known.bytes.0, Ordering::Relaxed);
        self.counts.large_bytes.fetch_add(granted.large_bytes, Ordering::Relaxed);
        self.counts.large_refused.fetch_add(u64::from(granted.refused.is_some()), Ordering::Relaxed);
        let frame = ServerFrame::SlabOffered {
            slab,
            isolated: matches!(offer, Offer::Isolated(_)),
            large_pages: granted.large_bytes > 0,
            bytes: known.bytes,
        };
        let (session, writer) = (known.op.session, offer.writer());
        known.state = State::Offered(offer, now.plus_millis(OFFER_MS));
        match writer {
            _ if !self.open.contains(&session) => self.fail(slab, "its session has ended".to_owned()),
            Ok(writer) => self.messages.push(Message { session, frame, descriptor: Some(writer) }),
            Err(error) => self.fail(slab, no_descriptor(&error)),
        }
    }

    /// There is no memory of that name, and nobody has any of it.
    fn forget(&mut self, slab: SlabId, error: &ArenaError) {
        let known = self.known.remove(&slab).expect("known until it is returned");
        self.uncount(known.bytes);
        self.counts.failed.fetch_add(1, Ordering::Relaxed);
        let kind = match error {
            ArenaError::Full { .. } => DriverErrorKind::Full,
            ArenaError::Descriptors { .. } | ArenaError::StillWritable { .. } | ArenaError::Io { .. } => {
                DriverErrorKind::Io
            }
        };
        tracing::warn!(session = %known.op.session, %error, "a native session got no memory");
        let result = Err(DriverError { kind, message: error.to_string() });
        self.tell(known.op.shard, SlabDone::Made { op: known.op.op, result });
    }

    fn frozen(&mut self, slab: SlabId, op: OpId, result: Result<Frozen, (Isolated, ArenaError)>) {
        let known = self.known.get_mut(&slab).expect("known until it is returned");
        let done = match result {
            Ok(frozen) => {
                // The same descriptor that copies read by already.
                known.state = State::Frozen(frozen);
                SlabDone::Frozen { op, result: Ok(()) }
            }
            Err((isolated, error)) => {
                known.state = State::Written(isolated);
                match error {
                    ArenaError::StillWritable { .. } => SlabDone::StillWritable { op },
                    error => SlabDone::Frozen { op, result: Err(failed(error.to_string())) },
                }
            }
        };
        let shard = known.op.shard;
        self.tell(shard, done);
    }

    fn uncount(&self, bytes: ByteCount) {
        self.counts.slabs.fetch_sub(1, Ordering::Relaxed);
        self.counts.bytes.fetch_sub(bytes.0, Ordering::Relaxed);
    }

    fn tell(&mut self, shard: ShardIndex, done: SlabDone) {
        self.late.push_back((shard, done));
    }

    /// What the keeper calls: notes the answer, and wakes the session thread.
    fn done<T>(&self, answer: impl FnOnce(T) -> Answer + Send + 'static) -> Box<dyn FnOnce(T) + Send> {
        let (answers, bell) = (Arc::clone(&self.answers), Arc::clone(&self.bell));
        Box::new(move |outcome| {
            answers.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(answer(outcome));
            bell.ring();
        })
    }
}

fn failed(message: String) -> DriverError {
    DriverError { kind: DriverErrorKind::Io, message }
}

fn no_descriptor(error: &std::io::Error) -> String {
    format!(
        "no descriptor is left for memory of a native session ({error}); raise the server's limit of open files (ulimit -n, LimitNOFILE=)"
    )
}
