//! Enrol: stores the row of a payload that is not committed, so that metadata and lineage can refer to it.
//!
//! Such a row says ALLOCATED and names no replica: it vouches for nothing. Commit replaces it, a removal takes it away, and
//! at a boot it is all that is left of the allocation, which is LOST then until its timeout.

use payload_ledger::SlotKey;
use payload_types::effect::CatalogChange;
use payload_types::reply::Reply;
use payload_types::request::Request;
use payload_types::{PayloadKey, PayloadState, Tier};

use crate::flow::commit::unavailable;
use crate::op::{Class, Kind, Op, op_id};
use crate::parked::Caller;
use crate::shard::{Answer, Shard, Step};

impl Shard {
    /// Answers once the payload has a row.
    pub(crate) fn enrol(&mut self, step: &mut Step<'_>, caller: Caller, key: PayloadKey) -> Answer {
        let slot = match self.find(step.now, key) {
            Ok(slot) => slot,
            Err(error) => return Some(Err(error)),
        };
        let payload = self.table.at(slot);
        if payload.pin_stored_by.is_some() || payload.state == PayloadState::Committing {
            return self.park(slot, None, caller, Request::Enrol { key });
        }
        if payload.stored {
            return Some(Ok(Reply::Enrolled));
        }
        if let Err(error) = self.check_slot(Class::Request) {
            return Some(Err(error));
        }
        let reply_to = caller.reply_to.expect("only clients enrol");
        let op = self.ops.start(Op::new(slot, Class::Request, Kind::Enrol { reply_to }));
        let epoch = self.config.epoch;
        let payload = self.table.links(slot);
        payload.pin_stored_by = Some(op);
        // From here on a removal goes through the catalog: it comes after the row in the writer's queue.
        payload.stored = true;
        // What is being written here does not outlive the server; an object is uploaded past it.
        let replicas = match payload.fastest() {
            Some(Tier::Object) => payload.replica_rows(),
            _ => Vec::new(),
        };
        let row = payload.row(epoch, PayloadState::Allocated, payload.version, replicas);
        self.store(step, op_id(op), CatalogChange::Put(Box::new(row)));
        None
    }

    pub(crate) fn enrol_stored(&mut self, step: &mut Step<'_>, op: SlotKey, result: Result<(), String>) {
        let ended = self.ops.get(op).expect("the caller found it");
        let Kind::Enrol { reply_to } = ended.kind else { return };
        let slot = ended.payload;
        // Whatever removed it is behind this row in the writer's queue, and has not been heard of.
        let payload = self.table.links(slot);
        payload.pin_stored_by = None;
        let answer = match result {
            Ok(()) => Ok(Reply::Enrolled),
            Err(reason) => {
                payload.stored = false;
                Err(unavailable(payload.key, "noted in the catalog", &reason))
            }
        };
        self.end_op(op, None);
        step.out.reply(reply_to, answer);
    }
}
