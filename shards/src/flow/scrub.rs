//! Scrub: the replicas of a payload are read again, one after another, and compared with its checksum.
//!
//! ```text
//!   next replica not seen --> driver reads and hashes --> sound: the next one
//!        ^                                                bad, another is sound: dropped, or written anew
//!        └──────── the request, with what it has seen <── bad, none left: the payload is marked (DATA_LOSS)
//!
//!   bad file, sound copy in memory: mark the replica in the catalog --> write it anew --> the request looks again
//! ```
//! A verification is no exclusive operation: it holds its replica as a copy does, so that it is not freed meanwhile,
//! and everything else goes on. What is found bad is acted upon when nothing else works on the payload; until then
//! the request waits, and looks again.

use payload_ledger::SlotKey;
use payload_types::effect::{CatalogChange, Effect, ReplicaRef, StorageAction, StorageOp};
use payload_types::event::{DriverError, DriverErrorKind};
use payload_types::reply::Reply;
use payload_types::request::Request;
use payload_types::scrub::{Scrub, ScrubFault, ScrubOutcome, ScrubVerdict, ScrubbedReplica};
use payload_types::{Checksum, Health, OpId, Tier};

use crate::flow::commit::data_loss;
use crate::flow::copy::Aim;
use crate::op::{Class, Kind, Mark, Op, op_id, slot_key};
use crate::parked::Caller;
use crate::shard::{Answer, Shard, Step};

/// A verification under way.
#[derive(Debug)]
pub struct Verify {
    caller: Caller,
    request: Scrub,
    replica: ReplicaRef,
    expected: Option<Checksum>,
}

impl Shard {
    pub(crate) fn scrub(&mut self, step: &mut Step<'_>, caller: Caller, mut request: Scrub) -> Answer {
        let slot = match self.find(step.now, request.key) {
            Ok(slot) => slot,
            Err(error) => return Some(Err(error)),
        };
        self.note_repairs(slot, &mut request);
        let payload = self.table.at(slot);
        let marked = payload.health == Health::Damaged;
        // What lies in a slab has no storage that could be damaged unseen, and no driver reads it.
        let in_slab = |tier: Tier| tier == Tier::Ram && payload.in_arena;
        let wanted = |tier: &Tier| request.tier.is_none_or(|only| only == *tier) && !in_slab(*tier);
        let is_new = |replica: &ReplicaRef| {
            let seen =
                |seen: &ScrubbedReplica| (seen.tier, seen.generation) == (replica.tier, replica.generation);
            payload.state.is_committed() && !request.seen.iter().any(seen)
        };
        let replicas =
            Tier::ALL.into_iter().filter(wanted).filter_map(|tier| payload.replica_ref(tier, None));
        let Some(replica) = replicas.into_iter().find(is_new) else {
            return Some(Ok(Reply::Scrubbed(request.seen)));
        };
        if marked {
            let message = "it was found damaged before, and the payload is marked".to_owned();
            request.seen.push(bad(replica, ScrubFault::Corrupt, ScrubOutcome::DataLoss, message));
            return self.scrub(step, caller, request);
        }
        if let Err(error) = self.check_slot(Class::Request) {
            return Some(Err(error));
        }
        let expected = payload.checksum();
        let action = StorageAction::Verify { expected, bytes_per_second: request.bytes_per_second };
        let kind = Kind::Verify(Box::new(Verify { caller, request, replica, expected }));
        let op = self.ops.start(Op::new(slot, Class::Request, kind));
        self.table.update(slot, |payload| {
            payload.replicas[replica.tier].as_mut().expect("just found").users.copies += 1;
        });
        let shard = self.config.shard;
        step.out.push(Effect::Storage(StorageOp { shard, op: op_id(op), replica, action }));
        None
    }

    /// What was written anew since it was found bad is as good as another replica.
    fn note_repairs(&self, slot: SlotKey, request: &mut Scrub) {
        let payload = self.table.at(slot);
        for seen in &mut request.seen {
            let is_gone =
                payload.replicas[seen.tier].is_none_or(|replica| replica.generation != seen.generation);
            if let ScrubVerdict::Bad { outcome, .. } = &mut seen.verdict
                && *outcome == ScrubOutcome::Unchanged
                && is_gone
            {
                *outcome = ScrubOutcome::OtherReplica;
            }
        }
    }

    pub(crate) fn verified(&mut self, step: &mut Step<'_>, id: OpId, result: Result<(), DriverError>) {
        let op = slot_key(id);
        let Some(Op { kind: Kind::Verify(_), .. }) = self.ops.get(op) else { return };
        let Op { payload: slot, kind: Kind::Verify(verify), .. } = self.ops.end(op) else { return };
        let Verify { caller, mut request, replica, expected } = *verify;
        self.release_read(slot, replica);
        let is_current =
            self.table.get(slot).and_then(|payload| payload.replica_ref(replica.tier, None)) == Some(replica);
        let verdict = match result {
            Ok(()) if expected.is_some() => ScrubVerdict::Sound,
            Ok(()) => ScrubVerdict::Unverifiable,
            Err(error) => match error.kind {
                DriverErrorKind::Missing
                | DriverErrorKind::Truncated
                | DriverErrorKind::Corrupt
                | DriverErrorKind::DeviceLost
                    if is_current =>
                {
                    self.scrub_found_bad(step, slot, (caller, request), replica, &error);
                    return;
                }
                _ => ScrubVerdict::Unreadable { message: error.message },
            },
        };
        // One that was dropped meanwhile is of no interest; its successor is.
        if is_current {
            let ReplicaRef { tier, generation, size, .. } = replica;
            request.seen.push(ScrubbedReplica { tier, generation, size, verdict });
        }
        self.dispatch(step, caller, Request::Scrub(request));
    }

    /// What a replica that is not what was committed means, once nothing else works on its payload.
    fn scrub_found_bad(
        &mut self,
        step: &mut Step<'_>,
        slot: SlotKey,
        (caller, mut request): (Caller, Scrub),
        replica: ReplicaRef,
        error: &DriverError,
    ) {
        let tier = replica.tier;
        // A removal under way is no operation of the payload, and is waited for as well.
        if self.table.at(slot).op.is_some() || self.is_ending(slot) {
            return self.scrub_waits(step, slot, caller, request);
        }
        let fault = match error.kind {
            DriverErrorKind::Missing | DriverErrorKind::DeviceLost => ScrubFault::Missing,
            DriverErrorKind::Truncated => ScrubFault::Truncated,
            _ => ScrubFault::Corrupt,
        };
        let mut found = |outcome| request.seen.push(bad(replica, fault, outcome, error.message.clone()));
        if self.sound_replica_beside(slot, tier).is_none() {
            found(ScrubOutcome::DataLoss);
            let kind = Kind::Mark(Mark::Lost(data_loss(request.key, &error.message)));
            let op = self.ops.start(Op::new(slot, Class::Request, kind));
            self.table.update(slot, |payload| payload.op = Some(op));
            self.source_damaged(step, op, slot, tier, error);
            return self.scrub_waits(step, slot, caller, request);
        }
        if !tier.is_durable() {
            found(ScrubOutcome::OtherReplica);
            self.retire(slot, tier, false);
            self.table.update(slot, |payload| payload.version = payload.version.next());
            return self.dispatch(step, caller, Request::Scrub(request));
        }
        found(ScrubOutcome::Unchanged);
        let op = self.ops.start(Op::new(slot, Class::Request, Kind::Mark(Mark::Rewrite(tier))));
        self.table.update(slot, |payload| payload.op = Some(op));
        self.store_unsound(step, op, slot, tier);
        self.scrub_waits(step, slot, caller, request);
    }

    /// Remembers, here and in the catalog, that the durable replica on `tier` is damaged, which another one serves for.
    /// The operation, a mark, then writes it anew. The mark is stored first: whatever becomes of the copy, no restart
    /// trusts the replica again.
    pub(crate) fn store_unsound(&mut self, step: &mut Step<'_>, op: SlotKey, slot: SlotKey, tier: Tier) {
        let epoch = self.config.epoch;
        let row = self.table.update(slot, |payload| {
            payload.replicas[tier].as_mut().expect("it is current").unsound = true;
            payload.row(epoch, payload.settled_state(), payload.version, payload.replica_rows())
        });
        self.store(step, op_id(op), CatalogChange::Put(Box::new(row)));
    }

    /// The catalog has the mark, or refused it: then it holds in memory, and the damage is found again after a restart.
    /// Who waits for the payload waits for the copy, too.
    pub(crate) fn rewrite_unsound(&mut self, step: &mut Step<'_>, mark: SlotKey, tier: Tier) {
        let slot = self.ops.end(mark).payload;
        self.table.links(slot).op = None;
        let aim = Aim { to: tier, sync: self.syncs(tier), evicts: false };
        // As work in the background, which waits for space a moment only.
        match self.start_copy(step, slot, aim, &Caller::default()) {
            Ok(op) => self.keep_source(op),
            // Reported as it is; the next spill or scrub tries again.
            Err(_) => self.wake(slot),
        }
    }

    /// Until what is being done to the payload is over.
    fn scrub_waits(&mut self, step: &mut Step<'_>, slot: SlotKey, caller: Caller, request: Scrub) {
        let reply_to = caller.reply_to;
        if let (Some(Err(refusal)), Some(to)) =
            (self.park(slot, None, caller, Request::Scrub(request)), reply_to)
        {
            step.out.reply(to, Err(refusal));
        }
    }

    /// A replica on another tier that nothing bad is known of.
    pub(crate) fn sound_replica_beside(&self, slot: SlotKey, tier: Tier) -> Option<Tier> {
        let payload = self.table.at(slot);
        let is_sound = |other: &Tier| payload.replicas[*other].is_some_and(|replica| !replica.unsound);
        Tier::ALL.into_iter().find(|other| *other != tier && is_sound(other))
    }
}

fn bad(replica: ReplicaRef, fault: ScrubFault, outcome: ScrubOutcome, message: String) -> ScrubbedReplica {
    let ReplicaRef { tier, generation, size, .. } = replica;
    ScrubbedReplica { tier, generation, size, verdict: ScrubVerdict::Bad { fault, outcome, message } }
}
