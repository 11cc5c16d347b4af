//! The rings of the sessions that are attached to one shard: takes entries round robin, posts answers, wakes clients.
//!
//! Part of the pump, which decides when and how many, and lends the core. An entry is taken only when its answers have
//! room in the client's ring and the pump has a place to note who asked; otherwise it stays where it is, and others are
//! served. A session that is closing is polled no more; it is let go of when its last answer is out.
//!
//! Nothing here waits or makes a system call but one: waking the sleeping threads of a client, once a turn.

use std::sync::Arc;

use payload_local::entry::{Completion, Op, Outcome, Submission};
use payload_local::ring::ServerRings;
use payload_types::reply::ReplyResult;
use payload_types::request::Request;
use payload_types::{Descriptor, Monotonic, Now, SessionId, ShardIndex};

use super::asked::{Asker, answer_of, shown};
use crate::mailbox::stopping_error;
use crate::session::{NodePage, Session, SessionNote};

/// Entries of one session and turn: so many that a client which keeps its ring filled costs few turns (a turn's own cost
/// is that of about one lease), and so few that four such clients share a turn.
pub(super) const ENTRIES_PER_SESSION_MAX: usize = 16;

/// Entries that are none, in the life of a session and shard, before it is closed: a ring full. A client of another
/// version sends some; this many is garbage.
const MALFORMED_MAX: u32 = 256;

/// Who asked over a ring. Part of a reply slot: small.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ticket {
    slot: u16,
    op: Op,
    /// Completions that were reserved.
    owed: u8,
    tag: u32,
}

/// A request that was taken from a ring.
pub(super) struct Taken {
    pub request: Request,
    pub deadline: Monotonic,
    pub ticket: Ticket,
}

/// One session, as a shard polls it.
struct Attached {
    session: Arc<Session>,
    rings: ServerRings,
    /// Requests that the core has not answered.
    unanswered: u32,
    malformed: u32,
    /// Completions were posted since its client was looked after.
    is_answered: bool,
    /// Nothing more is taken: it broke the protocol, or is closing.
    is_mute: bool,
    is_closing: bool,
    /// Its process is gone, which the core hears when it has answered everything.
    is_gone: bool,
}

/// See the head of the file.
pub(super) struct Rings {
    shard: ShardIndex,
    asker: Asker,
    /// By the session's slot.
    attached: Vec<Option<Attached>>,
    /// The slots of those that are polled, in order.
    order: Vec<u16>,
    /// Where in `order` the next turn begins.
    next: usize,
    /// Slots whose clients are looked after at the end of the turn.
    answered: Vec<u16>,
    /// Closing ones whose last answer is out.
    settled: Vec<u16>,
    /// `Some` once there was a session.
    node: Option<Arc<NodePage>>,
}

/// What a note asks of the pump.
pub(super) enum Noted {
    /// Nothing.
    Attached,
    /// Have the core give back what the session holds.
    Close(u16, SessionId),
    /// Tell the core that the session's process is gone.
    Gone(SessionId),
}

impl Rings {
    pub(super) fn new(shard: ShardIndex, shard_count: u16) -> Self {
        Self {
            shard,
            asker: Asker::new(shard, shard_count),
            attached: Vec::new(),
            order: Vec::new(),
            next: 0,
            answered: Vec::new(),
            settled: Vec::new(),
            node: None,
        }
    }

    /// Sessions that are polled.
    pub(super) fn count(&self) -> usize {
        self.order.len()
    }

    /// Where this shard tells clients that it sleeps; `None` when it has none. Lent, because a count that all shards
    /// change is a line that all of them wait for.
    pub(super) fn lend_node(&mut self) -> Option<Arc<NodePage>> {
        if self.order.is_empty() { None } else { self.node.take() }
    }

    /// See [`Rings::lend_node`].
    pub(super) fn take_back(&mut self, node: Arc<NodePage>) {
        self.node = Some(node);
    }

    pub(super) fn note(&mut self, note: SessionNote) -> Noted {
        match note {
            SessionNote::Attach(session) => {
                self.attach(session);
                Noted::Attached
            }
            SessionNote::Close(id) => {
                let of_it = |attached: &Option<Attached>| {
                    attached.as_ref().is_some_and(|attached| attached.session.identity.id == id)
                };
                let at =
                    self.attached.iter().position(of_it).expect("closed once, and after it was attached");
                let slot = at as u16;
                self.order.retain(|polled| *polled != slot);
                let attached = self.session(slot);
                (attached.is_mute, attached.is_closing) = (true, true);
                Noted::Close(slot, id)
            }
            SessionNote::Gone(id) => {
                let closing = self.attached.iter_mut().flatten().find(|of| of.session.identity.id == id);
                match closing {
                    Some(closing) => {
                        closing.is_gone = true;
                        Noted::Attached
                    }
                    None => Noted::Gone(id),
                }
            }
        }
    }

    fn attach(&mut self, session: Arc<Session>) {
        let slot = session.identity.slot;
        let at = usize::from(slot);
        if self.attached.len() <= at {
            self.attached.resize_with(at + 1, || None);
        }
        self.node.get_or_insert_with(|| Arc::clone(session.node()));
        assert!(self.attached[at].is_none(), "a slot is taken again once every shard has let go of it");
        self.attached[at] = Some(Attached {
            session,
            rings: ServerRings::new(),
            unanswered: 0,
            malformed: 0,
            is_answered: false,
            is_mute: false,
            is_closing: false,
            is_gone: false,
        });
        self.order.push(slot);
    }

    fn session(&mut self, slot: u16) -> &mut Attached {
        self.attached[usize::from(slot)].as_mut().expect("attached until its last answer is out")
    }

    /// True when some ring has an entry that can be answered. A fault of a client's counts, too, so that it is found.
    pub(super) fn is_ready(&mut self) -> bool {
        let (shard, attached) = (self.shard, &mut self.attached);
        self.order.iter().any(|slot| {
            let Some(Attached { session, rings, is_mute: false, .. }) = &mut attached[usize::from(*slot)]
            else {
                return false;
            };
            rings.is_ready(&session.rings(shard)).unwrap_or(true)
        })
    }

    /// The session whose turn it is.
    pub(super) fn next_slot(&mut self) -> u16 {
        if self.next >= self.order.len() {
            self.next = 0;
        }
        self.next += 1;
        self.order[self.next - 1]
    }

    /// Takes the next entry of a session. `None`: there is none, or it cannot be answered now. `Some(None)`: it was
    /// answered here.
    pub(super) fn take(&mut self, slot: u16, now: Now) -> Option<Option<Taken>> {
        let shard = self.shard;
        let attached = self.session(slot);
        if attached.is_mute {
            return None;
        }
        let Attached { session, rings, .. } = attached;
        let contents = match rings.take(&session.rings(shard), Submission::completions_of) {
            Ok(contents) => contents?,
            Err(fault) => {
                attached.is_mute = true;
                session.report(fault.to_string());
                return None;
            }
        };
        let (owed, identity) = (Submission::completions_of(&contents) as u8, session.identity);
        let decoded = Submission::decode(&contents);
        let is_malformed = decoded.is_err();
        let (tag, op, asked) = match decoded {
            Ok((tag, submission)) => (tag, submission.op(), self.asker.request(submission, &identity, now)),
            Err(malformed) => (malformed.tag, malformed.op, Err(malformed.error)),
        };
        let ticket = Ticket { slot, op, owed, tag };
        match asked {
            Ok((request, deadline)) => {
                self.session(slot).unanswered += 1;
                Some(Some(Taken { request, deadline, ticket }))
            }
            Err(error) => {
                self.post(ticket, Err(error));
                if is_malformed {
                    self.count_malformed(slot);
                }
                Some(None)
            }
        }
    }

    fn count_malformed(&mut self, slot: u16) {
        let attached = self.session(slot);
        attached.malformed += 1;
        if attached.malformed >= MALFORMED_MAX {
            attached.is_mute = true;
            attached.session.report(format!(
                "{MALFORMED_MAX} entries of a ring were no submissions; the client must speak the protocol it said it does"
            ));
        }
    }

    /// Answers the next entry of a session UNAVAILABLE: the server is stopping. False when there is none.
    pub(super) fn refuse(&mut self, slot: u16) -> bool {
        let shard = self.shard;
        let attached = self.session(slot);
        let Attached { session, rings, is_mute: false, .. } = attached else { return false };
        let Ok(Some(contents)) = rings.take(&session.rings(shard), Submission::completions_of) else {
            return false;
        };
        let owed = Submission::completions_of(&contents) as u8;
        let (tag, op) = match Submission::decode(&contents) {
            Ok((tag, submission)) => (tag, submission.op()),
            Err(malformed) => (malformed.tag, malformed.op),
        };
        self.post(Ticket { slot, op, owed, tag }, Err(stopping_error()));
        true
    }

    /// The core's answer.
    pub(super) fn answer(&mut self, ticket: Ticket, result: ReplyResult) {
        self.post(ticket, result);
        let attached = self.session(ticket.slot);
        attached.unanswered -= 1;
        if attached.is_closing && attached.unanswered == 0 {
            self.settled.push(ticket.slot);
        }
    }

    /// A closing session whose last answer is out; to be let go of.
    #[inline]
    pub(super) fn next_settled(&mut self) -> Option<(u16, SessionId)> {
        let slot = self.settled.pop()?;
        Some((slot, self.session(slot).session.identity.id))
    }

    fn post(&mut self, ticket: Ticket, result: ReplyResult) {
        let Ticket { slot, op, owed, tag } = ticket;
        let shard = self.shard;
        let attached = self.session(slot);
        let Attached { session, rings, .. } = attached;
        let (outcome, refusal) = match result.and_then(answer_of) {
            Ok(outcome) => (outcome, None),
            Err(error) => (Outcome::Refused { kind: error.kind, has_text: true }, Some(error)),
        };
        // A Commit of what lies in segments and files is answered once, and so is one that fails early.
        (1..owed).for_each(|_| rings.forgo());
        let completion = Completion { op, tag, is_last: true, outcome };
        let sentence = refusal.as_ref().map(|error| error.message.as_str());
        rings.post(&session.rings(shard), &completion.encode(), sentence);
        self.note_answered(slot);
    }

    /// A Commit is ACCEPTED: says so where both completions were asked for.
    pub(super) fn accepted(&mut self, ticket: &mut Ticket, descriptor: &Descriptor) {
        if ticket.owed < 2 {
            return;
        }
        ticket.owed -= 1;
        let Ticket { slot, op, tag, .. } = *ticket;
        let outcome = Outcome::Payload(descriptor.id, shown(descriptor));
        let completion = Completion { op, tag, is_last: false, outcome };
        let shard = self.shard;
        let Attached { session, rings, .. } = self.session(slot);
        rings.post(&session.rings(shard), &completion.encode(), None);
        self.note_answered(slot);
    }

    /// A payload was deleted by force: every client looks again whether what it leases is there.
    pub(super) fn revoke(&mut self) {
        for slot in &self.order {
            if let Some(attached) = &self.attached[usize::from(*slot)] {
                attached.session.revoke();
            }
        }
    }

    fn note_answered(&mut self, slot: u16) {
        let attached = self.session(slot);
        if !attached.is_answered {
            attached.is_answered = true;
            self.answered.push(slot);
        }
    }

    /// True when the core owes a closing session nothing, so that it can be let go of.
    pub(super) fn is_settled(&self, slot: u16) -> bool {
        self.attached[usize::from(slot)].as_ref().is_some_and(|attached| attached.unanswered == 0)
    }

    /// Lets go of a session, whose memory its thread then unmaps. Returns it when its process is gone, too.
    pub(super) fn let_go(&mut self, slot: u16) -> Option<SessionId> {
        let attached = self.attached[usize::from(slot)].take().expect("let go of once");
        self.answered.retain(|answered| *answered != slot);
        let gone = attached.is_gone.then_some(attached.session.identity.id);
        attached.session.let_go();
        gone
    }

    /// Wakes the clients that were answered, if they sleep.
    pub(super) fn wake_answered(&mut self) {
        for slot in self.answered.drain(..) {
            let attached = self.attached[usize::from(slot)].as_mut().expect("taken off when it is let go of");
            attached.is_answered = false;
            attached.session.wake_sleepers();
        }
    }
}
