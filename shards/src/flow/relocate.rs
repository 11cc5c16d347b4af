//! Compaction: the disk store asks for a replica to be moved to another segment file, so that it can recycle the one it
//! lies in.
//!
//! ```text
//!   Relocate --> copied within the tier --> row stored --> published; the old one goes to limbo without a charge
//!           \-> Stay: it is gone, or something else works on its payload, or it is about to be removed
//! ```
//! An ordinary copy ([`super::copy`]) but for this: it charges nothing, is no use and no eviction, changes no state,
//! and no request joins it. Leases and pins do not hold it up; leases keep the old extent until they end. What is known
//! to be damaged is moved as it is (`TransferOp::salvage`) and stays marked: else it would keep a whole file, and all that
//! is dead in it, until somebody deletes it.

use payload_types::effect::{Effect, ReplicaRef, StorageAction, StorageOp};
use payload_types::{OpId, PayloadState};

use payload_ledger::SlotKey;

use crate::op::{self, Class, Copy, Kind, Op};
use crate::shard::{Shard, Step};

impl Shard {
    /// Follows the wish of the disk store, or says that it cannot be followed now.
    pub(crate) fn relocate(&mut self, step: &mut Step<'_>, replica: ReplicaRef) {
        if let Some(slot) = self.table.find_replica(replica).filter(|slot| self.may_relocate(*slot)) {
            return self.start_relocation(step, slot, replica);
        }
        let (shard, op) = (self.config.shard, OpId { index: u32::MAX, generation: 0 });
        step.out.push(Effect::Storage(StorageOp { shard, op, replica, action: StorageAction::Stay }));
    }

    fn may_relocate(&self, slot: SlotKey) -> bool {
        let payload = self.table.at(slot);
        // DURABLE is the one state of a committed payload with a file to which nothing is being done.
        payload.state == PayloadState::Durable
            && payload.op.is_none()
            && self.ops.has_room(Class::Upkeep)
            && self.limbo_has_room()
    }

    fn start_relocation(&mut self, step: &mut Step<'_>, slot: SlotKey, from: ReplicaRef) {
        let to = ReplicaRef { generation: self.mint_generation(), extent: None, ..from };
        let (step_first, keeps_source) = (op::Step::Driver, true);
        let copy = Copy { from, to, sync: true, evicts: false, step: step_first, keeps_source, alone: false };
        let op = self.ops.start(Op::new(slot, Class::Upkeep, Kind::Copy(copy)));
        self.table.update(slot, |payload| {
            payload.op = Some(op);
            payload.replicas[from.tier].as_mut().expect("it is current").users.copies += 1;
        });
        self.transfer(step, op);
    }
}
