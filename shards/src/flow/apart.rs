//! A file of its own for a payload that shares one, before a client leases it that may set lengths.
//!
//! Clients of the v1 contract open what a lease shows them read-write and set its length to the end of their payload. In
//! a segment file that would cut off whatever lies behind it, so only a lease that says `accepts_packed` shows one.
//!
//! ```text
//!   Acquire, packed --> charged copy DISK -> DISK (`TransferOp::alone`) --> row --> published, old place in limbo --> granted
//! ```
//! An ordinary copy ([`super::copy`]): leases go on meanwhile, later requests join it, and it waits for space until its
//! callers' deadlines. It is no promotion and no relocation. The payload keeps that file for as long as it lies on DISK.

use payload_ledger::SlotKey;
use payload_types::{PayloadError, Tier, limits};

use crate::flow::copy::{Aim, Progress};
use crate::parked::Caller;
use crate::shard::{Shard, Step};

impl Shard {
    /// Sees to it that a payload whose fastest replica is packed has a file of its own. A caller without a deadline waits
    /// for that as long as for an allocation: it asked for no move that could run to its end.
    pub(crate) fn move_apart(
        &mut self,
        step: &mut Step<'_>,
        slot: SlotKey,
        caller: &mut Caller,
    ) -> Result<Progress, PayloadError> {
        let wait_end = step.now.monotonic.plus_millis(limits::ALLOCATE_WAIT_MS_DEFAULT);
        caller.deadline.get_or_insert(wait_end);
        if let Some(op) = self.table.at(slot).op {
            return Ok(Progress::Waits(self.joins(step, op, Tier::Disk, caller)));
        }
        let aim = Aim { to: Tier::Disk, sync: true, evicts: false };
        self.start_copy(step, slot, aim, caller).map(|op| Progress::Waits(Some(op)))
    }
}

/// What a caller is told whose payload got no file of its own.
pub(crate) fn refused(error: &PayloadError) -> PayloadError {
    let why =
        "a lease without `accepts_packed` is of a file of its own, which this payload cannot be given now";
    PayloadError::new(error.kind, format!("{why}: {}", error.message))
}
