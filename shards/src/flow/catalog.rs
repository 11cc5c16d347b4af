//! What became of the rows that operations stored.

use payload_ledger::SlotKey;
use payload_types::OpId;
use payload_types::event::CatalogAck;
use payload_types::reply::Reply;

use crate::flow::commit::unavailable;
use crate::op::{Kind, Mark, Removal, slot_key};
use crate::shard::{Shard, Step};

impl Shard {
    /// The writer's acknowledgement for `op`.
    pub(crate) fn catalog_ack(&mut self, step: &mut Step<'_>, ack: CatalogAck) {
        let CatalogAck { op, result, sequence } = ack;
        let Some(waiting) = self.ops.get(slot_key(op)) else { return };
        let removes = matches!(waiting.kind, Kind::Remove { .. });
        assert!(sequence == 0 || removes, "only a removal is acknowledged before it is durable");
        match &waiting.kind {
            Kind::Commit { .. } => self.commit_stored(step, op, result),
            Kind::Copy(_) => self.copy_stored(step, op, result),
            Kind::Remove { .. } => self.remove_stored(step, slot_key(op), result, sequence),
            Kind::Pin { .. } => self.pin_stored(step, slot_key(op), result),
            Kind::Enrol { .. } => self.enrol_stored(step, slot_key(op), result),
            // Stored or not: the mark holds in memory, and damage is found again after a restart.
            Kind::Mark(Mark::Lost(failure)) => {
                let failure = failure.clone();
                self.end_op(slot_key(op), Some(&failure));
            }
            Kind::Mark(Mark::Rewrite(tier)) => {
                let tier = *tier;
                self.rewrite_unsound(step, slot_key(op), tier);
            }
            Kind::Allocate { .. } | Kind::MakeSlab { .. } | Kind::Sync { .. } | Kind::Verify(_) => {}
        }
    }

    /// Another node has a row of the id that `op` was to store the first row of.
    pub(crate) fn row_claimed(&mut self, step: &mut Step<'_>, op: OpId, reason: String) {
        match self.ops.get(slot_key(op)).map(|waiting| &waiting.kind) {
            Some(Kind::Commit { .. }) => self.commit_claimed(step, op, reason),
            // A later row of a payload is claimed only where somebody wrote into the database.
            Some(_) => self.catalog_ack(step, CatalogAck { op, result: Err(reason), sequence: 0 }),
            None => {}
        }
    }

    fn remove_stored(&mut self, step: &mut Step<'_>, op: SlotKey, result: Result<(), String>, sequence: u64) {
        let waiting = self.ops.get(op).expect("the caller found it");
        let slot = waiting.payload;
        let Kind::Remove { caller, prior, .. } = &waiting.kind else { return };
        let (caller, prior) = (*caller, *prior);
        match result {
            Ok(()) => {
                self.ops.end(op);
                // A spill to VOID waited for older leases only; newer ones still hold the bytes.
                let forced = matches!(caller, Some((_, Removal::Delete)));
                self.finalize_removal(step, slot, forced, sequence);
                if let Some((reply_to, removal)) = caller {
                    let reply = match removal {
                        Removal::Delete => Reply::Deleted,
                        Removal::Void => Reply::Spilled(None),
                    };
                    step.out.reply(reply_to, Ok(reply));
                }
            }
            Err(reason) => {
                let error = unavailable(self.table.at(slot).key, "deleted", &reason);
                self.table.update(slot, |payload| {
                    payload.set_state(prior);
                    payload.version = payload.version.next();
                });
                self.end_op(op, None);
                if prior.is_committed() {
                    self.sessions.forget_orphan(slot);
                }
                if caller.is_none() {
                    self.pass_over(step.now, slot);
                }
                self.look_again(step.now, slot, super::remove::CATALOG_RETRY_MS);
                if let Some((reply_to, _)) = caller {
                    step.out.reply(reply_to, Err(error));
                }
            }
        }
    }
}
