//! A place of its own for a payload that shares one, before a client leases it that may not be shown what it shares.
//!
//! Clients of the v1 contract open what a lease shows them read-write and set its length to the end of their payload. In
//! a segment file that would cut off whatever lies behind it, so only a lease that says `accepts_packed` shows one. A slab
//! has no name that anybody could open: only native sessions are shown one, everybody else gets a segment.
//!
//! ```text
//!   Acquire, packed --> charged copy DISK -> DISK (`TransferOp::alone`) --> row --> published, old place in limbo --> granted
//!   Acquire, slab   --> charged copy RAM -> RAM, likewise; where memory is short: an ordinary spill to DISK, and from there
//! ```
//! An ordinary copy ([`super::copy`]): leases go on meanwhile, later requests join it, and it waits for space until its
//! callers' deadlines. It is no promotion and no relocation. The payload keeps that file, or segment, for as long as it lies
//! on that tier; native sessions are shown the segment from then on, and keep the block while they lease it. A segment
//! outlives the server, so the row vouches for it.

use payload_ledger::SlotKey;
use payload_types::{PayloadError, Tier, limits};

use crate::flow::copy::{Aim, Progress};
use crate::parked::Caller;
use crate::shard::{Shard, Step};

impl Shard {
    /// Sees to it that a payload whose fastest replica lies in a slab, or is packed, has a place of its own; to a caller who
    /// `accepts_packed` one that is packed will do. A caller without a deadline waits for that as long as for an allocation:
    /// it asked for no move that could run to its end.
    pub(crate) fn move_apart(
        &mut self,
        step: &mut Step<'_>,
        slot: SlotKey,
        accepts_packed: bool,
        caller: &mut Caller,
    ) -> Result<Progress, PayloadError> {
        let wait_end = step.now.monotonic.plus_millis(limits::ALLOCATE_WAIT_MS_DEFAULT);
        caller.deadline.get_or_insert(wait_end);
        let payload = self.table.at(slot);
        let tier = payload.tier();
        if let Some(op) = payload.op {
            return Ok(Progress::Waits(self.joins(step, op, tier, caller)));
        }
        if tier == Tier::Ram && payload.limbo_segment.is_some() {
            // A segment that was made for it and came to nothing has its name still.
            return Ok(Progress::Waits(None));
        }
        let mut aim = Aim { to: tier, sync: tier.is_durable(), evicts: false };
        if tier == Tier::Ram && self.budget[Tier::Ram].on && self.may_go_to_disk(step, slot) {
            if self.table.at(slot).replicas[Tier::Disk].is_some_and(|replica| replica.is_trusted()) {
                self.retire_faster(slot, Tier::Disk);
                let payload = self.table.links(slot);
                payload.version = payload.version.next();
                return match payload.shows_packed() && !accepts_packed {
                    true => self.move_apart(step, slot, accepts_packed, caller),
                    false => Ok(Progress::There),
                };
            }
            aim = Aim { to: Tier::Disk, sync: self.syncs(Tier::Disk), evicts: false };
        }
        self.start_copy(step, slot, aim, caller).map(|op| Progress::Waits(Some(op)))
    }

    /// True when nothing forbids that a payload leaves memory for DISK unasked.
    fn may_go_to_disk(&self, step: &Step<'_>, slot: SlotKey) -> bool {
        let payload = self.table.at(slot);
        let floor = payload.policy.min_residency;
        !payload.pin.holds_at(step.now.wall)
            && floor.is_none_or(|floor| !floor.is_faster_than(Tier::Disk))
            && self.check_capacity(Tier::Disk, payload.size).is_ok()
    }
}

/// What a caller is told whose payload got no place of its own.
pub(crate) fn refused(tier: Tier, error: &PayloadError) -> PayloadError {
    let why = if tier == Tier::Ram {
        "the payload lies in memory of a native session, and a lease over gRPC is of a copy of it, which cannot be made now"
    } else {
        "a lease without `accepts_packed` is of a file of its own, which this payload cannot be given now"
    };
    PayloadError::new(error.kind, format!("{why}: {}", error.message))
}
