//! A session's half of one shard's rings, and who waits for which completion. Under a mutex of its own.
//!
//! Whoever looks for completions takes all that are there and hands each to its call; so a thread that spins serves those
//! that sleep. A call that nobody waits for any more is undone when it turns out to hold something: a lease is released, an
//! allocation given back. That needs the room which its own completion has just made.

use std::sync::atomic::AtomicU64;
use std::task::Waker;

use payload_local::layout::{RING_ENTRIES, ShardView};
use payload_local::ring::{ClientRings, Contents};
use payload_local::{Completion, Op, Outcome, Submission, text};
use payload_types::ErrorKind;

use crate::error::ClientError;

/// What became of a call.
pub(super) type Answer = Result<Outcome, ClientError>;

/// Calls of one shard at a time: each is owed one completion at least.
const CALLS_MAX: usize = RING_ENTRIES;

/// Bits of a tag that say which call; those above count how often its place was taken.
const SLOT_BITS: u32 = 16;

const SLOT_MASK: u32 = (1 << SLOT_BITS) - 1;

const _: () = assert!(CALLS_MAX <= 1 << SLOT_BITS);

/// See the module.
#[derive(Debug)]
pub(super) struct Lane {
    rings: ClientRings,
    calls: Vec<Call>,
    free: Vec<u16>,
}

#[derive(Debug)]
struct Call {
    uses: u16,
    /// Completions that are still to come, at most.
    owed: u8,
    state: State,
    /// What stage 1 of a Commit said, until who waits takes it.
    accepted: Option<Outcome>,
}

#[derive(Debug)]
enum State {
    Free,
    /// Somebody waits, and a task says how it is woken.
    Waiting(Option<Waker>),
    /// Until who waits takes it.
    Answered(Answer),
    /// Nobody waits.
    Unattended,
}

impl Call {
    /// Stage 1 came: whoever waits for it looks.
    fn accept(&mut self, outcome: Outcome) {
        if let State::Waiting(waker) = &mut self.state {
            self.accepted = Some(outcome);
            if let Some(waker) = waker.take() {
                waker.wake();
            }
        }
    }
}

impl Lane {
    pub(super) fn new() -> Self {
        let calls =
            (0..CALLS_MAX).map(|_| Call { uses: 0, owed: 0, state: State::Free, accepted: None }).collect();
        // The lowest place is taken first: few calls at a time touch few lines.
        Self { rings: ClientRings::new(), calls, free: (0..CALLS_MAX as u16).rev().collect() }
    }

    /// The position of the next completion: for who spins without the lock.
    pub(super) fn taken(&self) -> u64 {
        self.rings.taken()
    }

    /// True when one more submission has room, whatever it is.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty() && self.rings.owed() + 2 <= RING_ENTRIES as u64
    }

    /// Publishes a submission and returns its tag; `None` when there is no room.
    pub(super) fn submit(
        &mut self,
        view: &ShardView<'_, AtomicU64>,
        submission: &Submission,
        is_attended: bool,
    ) -> Option<u32> {
        let slot = *self.free.last()?;
        let call = &mut self.calls[usize::from(slot)];
        let tag = u32::from(call.uses.wrapping_add(1)) << SLOT_BITS | u32::from(slot);
        if !self.rings.submit(view, &submission.encode(tag), submission.completions()) {
            return None;
        }
        call.uses = call.uses.wrapping_add(1);
        call.owed = submission.completions() as u8;
        call.accepted = None;
        call.state = if is_attended { State::Waiting(None) } else { State::Unattended };
        self.free.pop();
        Some(tag)
    }

    /// Takes every completion that is there. True when something was submitted because of it.
    pub(super) fn drain(&mut self, view: &ShardView<'_, AtomicU64>) -> bool {
        let mut has_submitted = false;
        while let Some((position, contents)) = self.take(view) {
            if let Some(undo) = self.settle(view, position, &contents) {
                // There is room: the completion that was just taken made it.
                has_submitted |= self.submit(view, &undo, false).is_some();
            }
        }
        has_submitted
    }

    /// Takes one completion. A last one settles what its call is owed still: the server may skip stage 1 of a Commit.
    fn take(&mut self, view: &ShardView<'_, AtomicU64>) -> Option<(u64, Contents)> {
        let calls = &mut self.calls;
        self.rings.take(view, |contents| {
            let Some(call) = calls.get_mut((Completion::tag_of(contents) & SLOT_MASK) as usize) else {
                return 1;
            };
            let settled = if Completion::is_last_of(contents) { call.owed } else { call.owed.min(1) };
            call.owed -= settled;
            settled.into()
        })
    }

    /// Hands a completion to its call. Returns what undoes it, if nobody wants what it brings.
    fn settle(
        &mut self,
        view: &ShardView<'_, AtomicU64>,
        position: u64,
        contents: &Contents,
    ) -> Option<Submission> {
        let slot = self.slot_of(Completion::tag_of(contents))?;
        let answer = match Completion::decode(contents) {
            Ok(completion) if completion.is_last => answer_of(view, position, completion),
            Ok(completion) => {
                self.calls[slot].accept(completion.outcome);
                return None;
            }
            Err(_) => {
                Err(ClientError::Contract("a completion of a native session makes no sense".to_owned()))
            }
        };
        let call = &mut self.calls[slot];
        match std::mem::replace(&mut call.state, State::Free) {
            State::Waiting(waker) => {
                call.state = State::Answered(answer);
                if let Some(waker) = waker {
                    waker.wake();
                }
                None
            }
            State::Unattended => {
                self.free.push(slot as u16);
                undo(Op::from_number(contents[0] as u8)?, answer.ok()?)
            }
            kept @ (State::Answered(_) | State::Free) => {
                call.state = kept;
                None
            }
        }
    }

    /// The answer of a call, once: its place is free again.
    pub(super) fn take_answer(&mut self, tag: u32) -> Option<Answer> {
        let slot = self.slot_of(tag)?;
        let call = &mut self.calls[slot];
        if !matches!(call.state, State::Answered(_)) {
            return None;
        }
        let State::Answered(answer) = std::mem::replace(&mut call.state, State::Free) else {
            unreachable!("looked at above");
        };
        self.free.push(slot as u16);
        Some(answer)
    }

    /// What stage 1 of a Commit said, once: `Some(None)` when its answer is there and stage 1 is not, or was taken.
    pub(super) fn take_accepted(&mut self, tag: u32) -> Option<Option<Outcome>> {
        let slot = self.slot_of(tag)?;
        let call = &mut self.calls[slot];
        match call.accepted.take() {
            Some(outcome) => Some(Some(outcome)),
            None => matches!(call.state, State::Answered(_)).then_some(None),
        }
    }

    /// Has `waker` woken when the call is answered.
    pub(super) fn wake_when_answered(&mut self, tag: u32, waker: &Waker) {
        if let Some(slot) = self.slot_of(tag)
            && let State::Waiting(kept) = &mut self.calls[slot].state
        {
            match kept {
                Some(kept) if kept.will_wake(waker) => {}
                kept => *kept = Some(waker.clone()),
            }
        }
    }

    /// Nobody waits for this call any more. Returns what undoes it, if it was answered meanwhile.
    pub(super) fn abandon(&mut self, tag: u32, op: Op) -> Option<Submission> {
        match self.take_answer(tag) {
            Some(answer) => undo(op, answer.ok()?),
            None => {
                let slot = self.slot_of(tag)?;
                self.calls[slot].state = State::Unattended;
                None
            }
        }
    }

    /// Wakes every task that waits: the session has ended.
    pub(super) fn wake_all(&mut self) {
        for call in &mut self.calls {
            if let State::Waiting(waker) = &mut call.state
                && let Some(waker) = waker.take()
            {
                waker.wake();
            }
        }
    }

    /// The place that a tag names, if the tag is of its present use.
    fn slot_of(&self, tag: u32) -> Option<usize> {
        let slot = (tag & SLOT_MASK) as usize;
        let call = self.calls.get(slot)?;
        (u32::from(call.uses) == tag >> SLOT_BITS && !matches!(call.state, State::Free)).then_some(slot)
    }
}

fn answer_of(view: &ShardView<'_, AtomicU64>, position: u64, completion: Completion) -> Answer {
    match completion.outcome {
        Outcome::Refused { kind, has_text } => {
            let sentence = if has_text { text::read(view.texts, position) } else { None };
            Err(ClientError::Server {
                kind,
                message: sentence.unwrap_or_else(|| in_general(kind).to_owned()),
            })
        }
        outcome => Ok(outcome),
    }
}

/// What undoes a call that nobody waits for.
fn undo(op: Op, outcome: Outcome) -> Option<Submission> {
    match (op, outcome) {
        (_, Outcome::Leased(lease, _)) => Some(Submission::Release { lease }),
        (Op::Allocate, Outcome::Payload(id, _)) => Some(Submission::Abort { id }),
        _ => None,
    }
}

/// The sentence of an error whose own was written over before it was read.
fn in_general(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidArgument => {
            "the request can never be right; its sentence was lost among many errors"
        }
        ErrorKind::NotFound => "the payload is unknown, deleted, expired or lost",
        ErrorKind::FailedPrecondition => "the payload's state, or its version, forbids it",
        ErrorKind::LeaseConflict => "somebody holds a lease of the payload; wait for it, or use force",
        ErrorKind::ResourceExhausted => "a tier, a table or a queue of the server is full; try again later",
        ErrorKind::DeadlineExceeded => "the deadline passed first",
        ErrorKind::Unavailable => "the server cannot serve this now; try again later",
        ErrorKind::DataLoss => "the bytes are gone, or not what was committed",
        ErrorKind::AlreadyExists => "it exists already",
        ErrorKind::Unimplemented => "the server cannot do this yet",
        ErrorKind::Internal => "the server failed; its log says why",
    }
}
