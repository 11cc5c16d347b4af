//! The end of native sessions: leases end, allocations that nobody committed go. And Abort, which a session asks for itself.

use payload_ledger::SlotKey;
use payload_types::request::Request;
use payload_types::{PayloadError, PayloadKey, PayloadState, Peer};

use crate::flow::remove::{BUSY_RETRY_MS, CATALOG_RETRY_MS};
use crate::op::Removal;
use crate::parked::Caller;
use crate::sessions::Piece;
use crate::shard::{Answer, Shard, Step};

impl Shard {
    /// Gives back what closed sessions hold, as far as this step's work reaches.
    pub(crate) fn run_closed(&mut self, step: &mut Step<'_>, work_left: &mut usize) {
        while *work_left > 0
            && let Some(piece) = self.sessions.next_piece()
        {
            *work_left -= 1;
            match piece {
                Piece::Lease(lease) => self.end_lease(step, lease),
                Piece::Allocation(payload) => self.reclaim(step, payload),
            }
        }
    }

    /// Removes what a session that has ended allocated, unless it was committed; in a while, when it is busy.
    fn reclaim(&mut self, step: &mut Step<'_>, slot: SlotKey) {
        // A removal that is under way may yet fail, and leave it as it was.
        let may_be_left = |state: PayloadState| !state.is_committed() || state == PayloadState::Deleting;
        let Some(payload) = self.table.get(slot).filter(|payload| may_be_left(payload.state)) else {
            return;
        };
        let is_idle = payload.state == PayloadState::Allocated && self.may_remove(slot);
        if is_idle && self.start_removal(step, slot, None).is_ok() {
            return;
        }
        if may_be_left(self.table.at(slot).state) {
            self.sessions.orphan(slot);
            self.look_again(step.now, slot, if is_idle { CATALOG_RETRY_MS } else { BUSY_RETRY_MS });
        }
    }

    pub(crate) fn abort(
        &mut self,
        step: &mut Step<'_>,
        caller: Caller,
        key: PayloadKey,
        owner: Peer,
    ) -> Answer {
        let slot = match self.find(step.now, key) {
            Ok(slot) => slot,
            Err(error) => return Some(Err(error)),
        };
        let state = self.table.at(slot).state;
        if state.is_committed() || !self.sessions.has_allocated(owner, slot) {
            return Some(Err(PayloadError::precondition(format!(
                "payload {} is no allocation of this session that could be aborted: it is {}; delete it instead",
                key.id,
                if state.is_committed() { "committed" } else { "another's" }
            ))));
        }
        if !self.may_remove(slot) {
            return self.park(slot, None, caller, Request::Abort { key, owner });
        }
        let reply_to = caller.reply_to.expect("only clients abort");
        self.remove_for(step, slot, (reply_to, Removal::Delete))
    }
}
