//! Work in the background, deadlines of parked requests, and second attempts.

use payload_ledger::SlotKey;
use payload_ledger::list::Ends;
use payload_types::reply::Reply;
use payload_types::request::Request;
use payload_types::{ErrorKind, PayloadError, PromotionPolicy};

use crate::parked::{Caller, Why};
use crate::shard::{Answer, Shard, Step, Timer};

/// A promotion in the background is given up after this many failures: from 500 ms doubling each time, 2 min in all.
const PROMOTION_ATTEMPTS_MAX: u32 = 9;
/// A spill is: a disk that was repaired within an hour (pauses of 32 s) finds what was promised to it.
const SPILL_ATTEMPTS_MAX: u32 = 128;
/// The pause doubles so often: from 500 ms to 32 s, about as long as a failing disk is left alone.
const PAUSE_DOUBLINGS: u32 = 6;

impl Shard {
    /// Does `request` without a caller, and again while it fails for want of room. When too many such are waiting it
    /// is left out: nobody was promised more.
    pub(crate) fn in_background(&mut self, step: &mut Step<'_>, request: Request, lease_fence: Option<u64>) {
        let caller = Caller { lease_fence, ..Caller::default() };
        self.attempt(step, caller, request);
    }

    /// Handles work in the background, and sees to its next attempt when it fails.
    pub(crate) fn attempt(&mut self, step: &mut Step<'_>, caller: Caller, request: Request) {
        let again = request.clone();
        let before = caller.clone();
        let answer = match request {
            Request::Promote { key, target, policy, expected_version } => self.promote(
                step,
                caller,
                crate::flow::promote::Promote { key, target, policy, expected_version },
            ),
            Request::Spill(spill) => self.spill(step, caller, spill),
            other => unreachable!("only moves run in the background, not {other:?}"),
        };
        if let Some(Err(error)) = answer {
            self.later(step, before, again, &error);
        }
    }

    /// Tries a move in the background again in a while, if that can help.
    fn later(&mut self, step: &mut Step<'_>, mut caller: Caller, request: Request, error: &PayloadError) {
        let may_pass = matches!(error.kind, ErrorKind::ResourceExhausted | ErrorKind::Unavailable);
        let (key, attempts_max) = match &request {
            Request::Promote { key, .. } => (*key, PROMOTION_ATTEMPTS_MAX),
            Request::Spill(spill) => (spill.key, SPILL_ATTEMPTS_MAX),
            _ => return,
        };
        let Some(slot) = self.table.find(key).filter(|_| may_pass && caller.attempts < attempts_max) else {
            return;
        };
        let wait = self.config.retry_backoff_ms.saturating_mul(1 << caller.attempts.min(PAUSE_DOUBLINGS));
        caller.attempts += 1;
        caller.joined = false;
        if !self.parked.has_room(true) {
            return;
        }
        let ends = &mut self.table.links(slot).retries;
        let parked = self.parked.add(ends, slot, Why::Retries, caller, request);
        let timer = self.wheel.arm(step.now.monotonic.plus_millis(wait), Timer::Parked(parked));
        self.parked.get_mut(parked).expect("just added").timer = timer;
    }

    /// What a request that joined failed work is told.
    pub(crate) fn joined_work_failed(
        &mut self,
        step: &mut Step<'_>,
        caller: Caller,
        request: Request,
        failure: PayloadError,
    ) {
        match caller.reply_to {
            Some(to) => step.out.reply(to, Err(failure)),
            None => self.later(step, caller, request, &failure),
        }
    }

    /// A parked request's time has come: its deadline, or its next attempt.
    pub(crate) fn parked_due(&mut self, step: &mut Step<'_>, key: SlotKey) {
        let Some(parked) = self.parked.get(key) else { return };
        let (slot, retry) = (parked.payload, parked.retry);
        let best_effort =
            matches!(parked.request, Request::Promote { policy: PromotionPolicy::BestEffort, .. });
        if let Some(op) = parked.joined.filter(|_| !best_effort && parked.caller.reply_to.is_some())
            && self.ends_with(step.now, op)
        {
            // Nobody waits for its space any longer than this caller, who is told what fills the tier.
            self.parked.get_mut(key).expect("just seen").timer = None;
            return self.cancel_wait(step.out, op);
        }
        if let Request::Allocate(waits) = &parked.request {
            let session = waits.owner.session().expect("only sessions wait for slabs");
            // One that is ready already stands in no session's list.
            let mut none = Ends::default();
            let ends = self.arenas.parked(session).unwrap_or(&mut none);
            let parked = self.parked.remove(ends, key);
            let late = "the session's memory was not there when the call's deadline passed; allow more time";
            let late = PayloadError::new(ErrorKind::DeadlineExceeded, late);
            let to = parked.caller.reply_to.expect("only clients allocate");
            return step.out.reply(to, Err(late));
        }
        let mut ends = match self.table.get(slot) {
            Some(payload) if retry => payload.retries,
            Some(payload) => payload.parked,
            None => Ends::default(),
        };
        let parked = self.parked.remove(&mut ends, key);
        if self.table.get(slot).is_some() {
            let payload = self.table.links(slot);
            if retry {
                payload.retries = ends;
            } else {
                payload.parked = ends;
            }
        }
        match parked.caller.reply_to {
            None => self.attempt(step, Caller { lease_wait_end: None, ..parked.caller }, parked.request),
            Some(to) => {
                let answer = self.too_late(&parked.request, slot);
                // A promotion that was best effort goes on, even if it is still waiting for space.
                if let Request::Promote { key, target, .. } = parked.request
                    && best_effort
                    && answer.is_ok()
                {
                    let policy = PromotionPolicy::Blocking;
                    let again = Request::Promote { key, target, policy, expected_version: None };
                    self.in_background(step, again, None);
                }
                step.out.reply(to, answer);
            }
        }
    }

    /// Tells who waited for something in vain that his time is up.
    pub(crate) fn give_up(&mut self, step: &mut Step<'_>, caller: Caller, request: &Request, slot: SlotKey) {
        if let Some(to) = caller.reply_to {
            step.out.reply(to, self.too_late(request, slot));
        }
    }

    /// The answer at a deadline: a promotion that was best effort goes on and is answered with the present tier.
    fn too_late(&self, request: &Request, slot: SlotKey) -> payload_types::reply::ReplyResult {
        if let Request::Promote { policy: PromotionPolicy::BestEffort, .. } = request
            && self.table.get(slot).is_some_and(|payload| payload.state.is_readable())
        {
            return Ok(Reply::Promoted(self.table.shown(slot, true)));
        }
        let what = match request {
            Request::Acquire(_) => "the lease was not granted",
            Request::Promote { .. } => "the promotion was not over",
            Request::Spill(_) => "the spill was not over",
            Request::Commit { .. } => "the commit was not stored",
            Request::Delete { .. } => "the payload was still busy and not deleted",
            _ => "the request was not done",
        };
        Err(PayloadError::new(
            ErrorKind::DeadlineExceeded,
            format!(
                "{what} when the call's deadline passed; what was begun goes on, so ask again or allow more time"
            ),
        ))
    }

    /// Discards a payload at its own spill's wish, with nobody waiting.
    pub(crate) fn discard_unasked(&mut self, step: &mut Step<'_>, slot: SlotKey) -> Answer {
        match self.start_removal(step, slot, None) {
            Ok(()) => None,
            Err(error) => Some(Err(error)),
        }
    }
}
