//! Copies: the one engine behind promote, spill, prefetch, leases that insist on a tier or on a file of its own, and
//! relocation.
//!
//! ```text
//!   budget --> driver copies and hashes --> row stored (durable target) --> new state published, old replicas retired
//! ```
//! A failed copy leaves everything as it was. Leases are granted on the source all the while.

use payload_ledger::SlotKey;
use payload_types::effect::{CatalogChange, Effect, ReplicaRef, TransferOp};
use payload_types::event::{Copied, DriverError, DriverErrorKind, TransferError};
use payload_types::{
    Checksum, ErrorKind, Health, Now, OpId, PayloadError, PayloadState, Pin, ReplicaRow, Tier,
};

use crate::flow::apart;
use crate::flow::commit::{data_loss, unavailable};
use crate::limbo::{Kept, Users};
use crate::op::{self, Class, Copy, Kind, Mark, Op, op_id, slot_key};
use crate::parked::Caller;
use crate::payload::Replica;
use crate::shard::{Shard, Step};

/// What a wish for another placement met.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Progress {
    /// It is so now.
    There,
    /// Something is under way; with a slot, exactly what was wished for.
    Waits(Option<SlotKey>),
}

/// What a copy shall make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Aim {
    /// A replica on this tier.
    pub to: Tier,
    /// On stable storage.
    pub sync: bool,
    /// Because of pressure.
    pub evicts: bool,
}

impl Shard {
    /// Sees to it that a replica on the faster tier `to` exists.
    pub(crate) fn move_up(
        &mut self,
        step: &mut Step<'_>,
        slot: SlotKey,
        to: Tier,
        caller: &Caller,
    ) -> Result<Progress, PayloadError> {
        let payload = self.table.at(slot);
        if payload.replicas[to].is_some() {
            return Ok(Progress::There);
        }
        if let Some(op) = payload.op {
            return Ok(Progress::Waits(self.joins(step, op, to, caller)));
        }
        if to == Tier::Ram
            && let Some(segment) = payload.limbo_segment
        {
            // A segment's name follows from the id alone: the old one comes back, or its name has to go first.
            return Ok(if self.revive_segment(step, slot, segment) {
                Progress::There
            } else {
                Progress::Waits(None)
            });
        }
        let sync = self.syncs(to);
        self.start_copy(step, slot, Aim { to, sync, evicts: false }, caller)
            .map(|op| Progress::Waits(Some(op)))
    }

    /// The operation, if it is a copy to `to`; it then waits for space as long as this caller does, too.
    pub(crate) fn joins(
        &mut self,
        step: &Step<'_>,
        op: SlotKey,
        to: Tier,
        caller: &Caller,
    ) -> Option<SlotKey> {
        let Op { kind, wait, .. } = self.ops.get(op)?;
        match kind {
            // One that was given up is over in a moment, and failed; whoever waits longer begins anew then. A relocation
            // leaves the payload where it is.
            Kind::Copy(copy)
                if copy.to.tier == to && !copy.is_relocation() && wait.is_none_or(|wait| !wait.cancelled) =>
            {
                self.prolong_wait(step.now.monotonic, op, caller);
                Some(op)
            }
            _ => None,
        }
    }

    pub(crate) fn revive_segment(&mut self, step: &Step<'_>, slot: SlotKey, segment: SlotKey) -> bool {
        let Some(entry) = self.limbo.revive(segment) else { return false };
        self.table.update(slot, |payload| {
            payload.limbo_segment = None;
            let users = Users { leases: entry.leases, copies: entry.copies };
            let replica = Replica::new(entry.replica.generation, entry.synced, step.now.wall);
            payload.replicas[Tier::Ram] = Some(Replica { users, ..replica });
            payload.version = payload.version.next();
        });
        true
    }

    /// Starts a copy of the fastest replica: to another tier, or into a file of its own.
    pub(crate) fn start_copy(
        &mut self,
        step: &mut Step<'_>,
        slot: SlotKey,
        Aim { to, sync, evicts }: Aim,
        caller: &Caller,
    ) -> Result<SlotKey, PayloadError> {
        let class = if caller.reply_to.is_some() { Class::Request } else { Class::Upkeep };
        let payload = self.table.at(slot);
        assert!(payload.op.is_none(), "one operation a payload");
        self.check_capacity(to, payload.size)?;
        if to == Tier::Ram && payload.limbo_segment.is_some() {
            let id = payload.key.id;
            let message = format!(
                "payload {id} had a segment that is not gone yet, which a new one has to wait for; try again"
            );
            return Err(PayloadError::new(ErrorKind::Unavailable, message));
        }
        self.check_slot(class)?;
        self.check_limbo()?;
        if class == Class::Request {
            self.check_wait(to, payload.size)?;
        }
        // What replaces a replica is as safe as that was, or may have been when an earlier run wrote it.
        let sync = sync || to.is_durable() && payload.replicas[to].is_some();
        let from = self.table.replica_ref(slot, payload.tier()).expect("the fastest replica");
        // An object has the payload's name: one that is written anew takes the former's place.
        let former = payload.replicas[to].filter(|_| to == Tier::Object).map(|replica| replica.generation);
        let generation = former.unwrap_or_else(|| self.mint_generation());
        let to = ReplicaRef { tier: to, generation, extent: None, block: None, ..from };
        let alone = from.tier == to.tier;
        let copy = Copy { from, to, sync, evicts, step: op::Step::Budget, keeps_source: false, alone };
        let op = self.ops.start(Op::new(slot, class, Kind::Copy(copy)));
        self.table.update(slot, |payload| {
            payload.op = Some(op);
            payload.replicas[from.tier].as_mut().expect("the fastest replica").users.copies += 1;
            if copy.is_spill() && payload.state == PayloadState::Active {
                payload.set_state(if evicts { PayloadState::Evicting } else { PayloadState::Spilling });
                payload.version = payload.version.next();
            }
        });
        let until = Self::move_wait_end(step.now.monotonic, caller);
        if self.charge_or_wait(step, op, to.tier, to.size.in_pages(), until) {
            self.transfer(step, op);
        }
        Ok(op)
    }

    /// A copy down that only writes a damaged replica anew leaves the faster ones where they are.
    pub(crate) fn keep_source(&mut self, op: SlotKey) {
        if let Some(Op { kind: Kind::Copy(copy), .. }) = self.ops.get_mut(op) {
            copy.keeps_source = true;
        }
    }

    /// Hands a copy, whose destination is charged, to the disk store.
    pub(crate) fn transfer(&mut self, step: &mut Step<'_>, op: SlotKey) {
        let Some(Op { payload, kind: Kind::Copy(copy), .. }) = self.ops.get_mut(op) else { return };
        copy.step = op::Step::Driver;
        let payload = self.table.at(*payload);
        let expected = payload.checksum();
        let Copy { from, to, sync, alone, .. } = *copy;
        // What is known to be damaged is moved as it is, and stays so.
        let is_unsound = payload.replicas[from.tier].is_some_and(|replica| replica.unsound);
        let salvage = copy.is_relocation() && (payload.health == Health::Damaged || is_unsound);
        step.out.push(Effect::Transfer(TransferOp {
            shard: self.config.shard,
            op: op_id(op),
            from,
            to,
            expected,
            sync,
            salvage,
            alone,
        }));
    }

    /// True when the payload is gone or on its way out: what is still made for it is dropped. A removal that fails
    /// leaves the copy to finish as if nothing had been.
    pub(crate) fn is_ending(&self, slot: SlotKey) -> bool {
        let state = self.table.get(slot).map(|payload| payload.state);
        state.is_none_or(|state| matches!(state, PayloadState::Deleting | PayloadState::Expired))
    }

    pub(crate) fn end_unwanted(&mut self, copy: Copy, op: SlotKey) {
        self.release_source(copy, op);
        self.end_op(op, None);
    }

    /// The source is not read any more.
    pub(crate) fn release_source(&mut self, copy: Copy, op: SlotKey) {
        let slot = self.ops.get(op).expect("the copy has not ended").payload;
        self.release_read(slot, copy.from);
    }

    /// A replica is not read any more; its payload may be gone meanwhile.
    pub(crate) fn release_read(&mut self, slot: SlotKey, from: ReplicaRef) {
        if self.table.get(slot).is_some()
            && let Some(replica) = self.table.links(slot).replicas[from.tier].as_mut()
            && replica.generation == from.generation
        {
            replica.users.copies -= 1;
            return;
        }
        let entry = self.limbo.find(from.generation).expect("a copied replica is current or in limbo");
        self.limbo.copy_ended(entry);
    }

    pub(crate) fn copy_done(&mut self, step: &mut Step<'_>, id: OpId, result: Result<Copied, TransferError>) {
        let op = slot_key(id);
        let Some(Op { payload, kind: Kind::Copy(copy), .. }) = self.ops.get(op) else { return };
        let (slot, mut copy) = (*payload, *copy);
        self.release_source(copy, op);
        if let Ok(Copied { extent, .. }) = result {
            assert!(extent.is_none() || !copy.alone, "the driver was told to give it a file of its own");
            copy.to.extent = extent;
            copy.sync |= extent.is_some();
            self.ops.get_mut(op).expect("the copy has not ended").kind = Kind::Copy(copy);
        }
        if result.is_err() {
            self.moved[copy.to.tier].transfers_failed += 1;
            if !copy.is_relocation() {
                self.release_charge(copy.to.tier, copy.to.size.in_pages());
            }
        }
        if self.is_ending(slot) {
            if result.is_ok() {
                self.drop_made(slot, copy);
            }
            self.end_op(op, None);
            return;
        }
        match result {
            Ok(Copied { checksum, .. }) => {
                self.doors[copy.to.tier].works();
                self.copy_arrived(step, op, copy, checksum);
            }
            Err(TransferError::Destination(error)) => {
                if copy.evicts {
                    self.destination_failed(step.now, copy.to.tier);
                }
                let refusal = destination_error(copy.to.tier, &error);
                self.copy_failed(step.now, op, &refusal);
            }
            Err(TransferError::Source(error)) => match error.kind {
                DriverErrorKind::Missing
                | DriverErrorKind::Truncated
                | DriverErrorKind::Corrupt
                | DriverErrorKind::DeviceLost => {
                    self.source_damaged(step, op, slot, copy.from.tier, &error);
                }
                // Not being able to read now says nothing about the bytes.
                DriverErrorKind::Full | DriverErrorKind::SyncFailed | DriverErrorKind::Io => {
                    let message =
                        format!("reading it from {} failed: {}; try again", copy.from.tier, error.message);
                    self.copy_failed(step.now, op, &PayloadError::new(ErrorKind::Unavailable, message));
                }
            },
        }
    }

    fn copy_arrived(&mut self, step: &mut Step<'_>, op: SlotKey, copy: Copy, checksum: Checksum) {
        let slot = self.ops.get(op).expect("the copy has not ended").payload;
        let epoch = self.config.epoch;
        let payload = self.table.links(slot);
        let learned = payload.checksum().is_none();
        let replaces_fleeting = copy.to.tier == Tier::Ram && payload.dies_with_server();
        payload.set_checksum(Some(checksum));
        let row = if copy.to.tier.is_durable() {
            // What is moved is as sound as it was, and so is what stands in for it.
            let is_moved = copy.is_relocation();
            let unsound = is_moved && payload.replicas[copy.to.tier].is_some_and(|replica| replica.unsound);
            let others = |row: &ReplicaRow| (row.tier.is_durable() || is_moved) && row.tier != copy.to.tier;
            let mut replicas: Vec<ReplicaRow> = payload.replica_rows().into_iter().filter(others).collect();
            replicas.push(ReplicaRow {
                tier: copy.to.tier,
                generation: copy.to.generation,
                synced: copy.sync,
                sound: !unsound,
                extent: copy.to.extent,
            });
            replicas.sort_by_key(|row| row.tier);
            payload.row(epoch, PayloadState::Durable, payload.version.next(), replicas)
        } else if learned || replaces_fleeting {
            let mut replicas = payload.replica_rows();
            // Of memory that outlives the server, in the place of memory that does not.
            if replaces_fleeting {
                let (tier, generation) = (copy.to.tier, copy.to.generation);
                replicas.push(ReplicaRow { tier, generation, synced: false, sound: true, extent: None });
                replicas.sort_by_key(|row| row.tier);
            }
            payload.row(epoch, payload.settled_state(), payload.version, replicas)
        } else {
            self.publish_copy(step, op, copy);
            return;
        };
        if let Some(Op { kind: Kind::Copy(copy), .. }) = self.ops.get_mut(op) {
            copy.step = op::Step::Catalog;
        }
        self.store(step, op_id(op), CatalogChange::Put(Box::new(row)));
    }

    pub(crate) fn copy_stored(&mut self, step: &mut Step<'_>, id: OpId, result: Result<(), String>) {
        let op = slot_key(id);
        let Some(Op { payload, kind: Kind::Copy(copy), .. }) = self.ops.get(op) else { return };
        let (slot, copy) = (*payload, *copy);
        match result {
            // A volatile replica needs no row; only the checksum that was learned on the way was not stored. But one in the
            // place of memory that goes with the server would be taken for one that outlives it.
            Err(reason)
                if copy.to.tier.is_durable()
                    || copy.to.tier == Tier::Ram && self.table.at(slot).dies_with_server() =>
            {
                self.drop_made(slot, copy);
                let key = self.table.at(slot).key;
                self.copy_failed(step.now, op, &unavailable(key, "moved", &reason));
            }
            Ok(()) | Err(_) => self.publish_copy(step, op, copy),
        }
    }

    /// True when a copy wrote an object anew: in the place of the one there was, under its name and generation.
    fn is_anew(&self, slot: SlotKey, copy: Copy) -> bool {
        let current = self.table.get(slot).and_then(|payload| payload.replicas[copy.to.tier]);
        current.is_some_and(|replica| replica.generation == copy.to.generation)
    }

    /// Drops what a copy made and nobody may use.
    fn drop_made(&mut self, slot: SlotKey, copy: Copy) {
        let payload = self.table.get(slot).map(|_| slot);
        // An object has the payload's name: a removal would take what the next attempt makes under it, too. The journal of
        // uploads names it, so that attempt writes it anew, or a sweep ends it.
        let is_named_alike = copy.to.tier == Tier::Object && payload.is_some();
        if is_named_alike || self.is_anew(slot, copy) {
            return self.release_charge(copy.to.tier, copy.to.size.in_pages());
        }
        let kept = Kept { synced: copy.sync, sound: false };
        let entry = self.limbo.insert(copy.to, payload, Users::default(), kept, !copy.is_relocation());
        if copy.to.tier == Tier::Ram && payload.is_some() {
            self.table.links(slot).limbo_segment = Some(entry);
        }
    }

    /// Shows the new replica; a spill retires the faster ones. An eviction does not where somebody leased or pinned the
    /// payload meanwhile: what it wrote then makes the next one cheap.
    fn publish_copy(&mut self, step: &Step<'_>, op: SlotKey, copy: Copy) {
        let slot = self.ops.get(op).expect("the copy has not ended").payload;
        let old = self.table.at(slot).replicas[copy.to.tier];
        let mut new = Replica::new(copy.to.generation, copy.sync, step.now.wall);
        if copy.is_relocation() {
            let old = old.expect("a replica stays while it is moved");
            assert_eq!(old.generation, copy.from.generation, "nothing else works on the payload meanwhile");
            // It has been on this tier for as long as the other one was, and is what that was.
            (new.made_s, new.unsound) = (old.made_s, old.unsound);
            self.retire_as(slot, copy.to.tier, false, false);
        } else if let Some(old) = old.filter(|_| self.is_anew(slot, copy)) {
            new.users = old.users;
            self.release_charge(copy.to.tier, copy.to.size.in_pages());
        } else {
            // One that could not be brought to stable storage is written anew, and one that shared a file has its own now:
            // both are replaced here.
            self.retire(slot, copy.to.tier, false);
        }
        self.table.update(slot, |payload| {
            payload.replicas[copy.to.tier] = Some(new);
            if copy.to.tier == Tier::Disk {
                payload.extent = copy.to.extent;
            }
            if copy.to.tier.is_durable() {
                payload.set_state(PayloadState::Durable);
            } else if matches!(payload.state, PayloadState::Spilling | PayloadState::Evicting) {
                payload.set_state(payload.settled_state());
            }
            payload.version = payload.version.next();
            if !copy.is_relocation() {
                payload.eviction_failures = 0;
            }
        });
        if copy.is_relocation() {
            return self.end_op(op, None);
        }
        if !copy.alone {
            self.count_copy(copy);
        }
        let payload = self.table.at(slot);
        let held = payload.lease_count > 0 || payload.pin != Pin::None;
        if !copy.is_spill() {
            self.table.used(slot, step.now.monotonic);
        } else if !(copy.keeps_source || copy.evicts && held) {
            if copy.evicts {
                self.count_eviction(copy.from.tier, crate::evict::Exit::Copy(copy.to.tier));
            }
            self.retire_faster(slot, copy.to.tier);
        }
        self.end_op(op, None);
    }

    /// Drops every replica faster than `tier`; the bytes stay until nobody uses them.
    pub(crate) fn retire_faster(&mut self, slot: SlotKey, tier: Tier) {
        for faster in Tier::ALL.into_iter().filter(|other| other.is_faster_than(tier)) {
            self.retire(slot, faster, true);
        }
    }

    /// Puts the replica that a tier has now in limbo, with its charge.
    pub(crate) fn retire(&mut self, slot: SlotKey, tier: Tier, sound: bool) {
        self.retire_as(slot, tier, sound, true);
    }

    fn retire_as(&mut self, slot: SlotKey, tier: Tier, sound: bool, charged: bool) {
        let Some(reference) = self.table.replica_ref(slot, tier) else { return };
        let retired = self.retire_block(&reference);
        let namespace = self.table.at(slot).key.namespace;
        let replica = self.table.update(slot, |payload| {
            if tier == Tier::Disk {
                payload.extent = None;
            }
            if tier == Tier::Ram {
                payload.in_arena = false;
            }
            payload.replicas[tier].take().expect("it has a reference")
        });
        let kept = Kept { synced: replica.synced, sound };
        if let Some(retired) = retired {
            self.table.set_block(slot, None);
            let users = self.direct.retire(slot, namespace, &reference, replica.users, false);
            return self.limbo.insert_block(reference, users, retired);
        }
        let entry = self.limbo.insert(reference, Some(slot), replica.users, kept, charged);
        if tier == Tier::Ram {
            self.table.links(slot).limbo_segment = Some(entry);
        }
    }

    /// The driver took a segment's name away: who waited for the name goes on.
    pub(crate) fn limbo_segment_gone(&mut self, entry: SlotKey, slot: SlotKey) {
        if self.table.get(slot).is_some_and(|payload| payload.limbo_segment == Some(entry)) {
            self.table.links(slot).limbo_segment = None;
            self.wake(slot);
        }
    }

    /// As below; if it was an eviction its payload is left alone for a while.
    pub(crate) fn copy_failed(&mut self, now: Now, op: SlotKey, error: &PayloadError) {
        if let Some(Op { payload, kind: Kind::Copy(copy), .. }) = self.ops.get(op)
            && copy.evicts
        {
            self.pass_over(now, *payload);
        }
        self.copy_undone(op, error);
    }

    /// Leaves everything as it was before the copy, and tells who joined it why.
    pub(crate) fn copy_undone(&mut self, op: SlotKey, error: &PayloadError) {
        let ended = self.ops.get(op).expect("the copy has not ended");
        let slot = ended.payload;
        let Kind::Copy(copy) = ended.kind else { unreachable!("only copies fail like this") };
        if matches!(self.table.at(slot).state, PayloadState::Spilling | PayloadState::Evicting) {
            self.table.update(slot, |payload| {
                payload.set_state(payload.settled_state());
                payload.version = payload.version.next();
            });
        }
        let error = if copy.alone { &apart::refused(copy.to.tier, error) } else { error };
        self.end_op(op, Some(error));
    }

    /// The bytes that a copy read are missing or altered. With another replica the requests try that; without one the
    /// payload is marked, and never served again.
    pub(crate) fn source_damaged(
        &mut self,
        step: &mut Step<'_>,
        op: SlotKey,
        slot: SlotKey,
        tier: Tier,
        error: &DriverError,
    ) {
        if self.sound_replica_beside(slot, tier).is_some() {
            if tier.is_durable() {
                // The row names it: it is dropped once another one has its place there.
                self.ops.becomes_mark(op, Mark::Rewrite(tier));
                return self.store_unsound(step, op, slot, tier);
            }
            self.retire(slot, tier, false);
            self.table.links(slot).version = self.table.at(slot).version.next();
            self.end_op(op, None);
            return;
        }
        let key = self.table.at(slot).key;
        let failure =
            data_loss(key, &format!("its bytes on {} are not what was committed: {}", tier, error.message));
        let epoch = self.config.epoch;
        let row = self.table.update(slot, |payload| {
            payload.health = Health::Damaged;
            payload.set_state(payload.settled_state());
            payload.version = payload.version.next();
            payload.row(epoch, payload.state, payload.version, payload.replica_rows())
        });
        self.ops.becomes_mark(op, Mark::Lost(failure));
        self.store(step, op_id(op), CatalogChange::Put(Box::new(row)));
    }
}

fn destination_error(tier: Tier, error: &DriverError) -> PayloadError {
    PayloadError::new(
        refusal_kind(error),
        format!("the copy to {tier} failed: {}; the payload is where it was", error.message),
    )
}

/// What a caller is told of storage that could not be made or written.
pub(crate) fn refusal_kind(error: &DriverError) -> ErrorKind {
    match error.kind {
        DriverErrorKind::Full => ErrorKind::ResourceExhausted,
        DriverErrorKind::Missing
        | DriverErrorKind::Truncated
        | DriverErrorKind::Corrupt
        | DriverErrorKind::SyncFailed
        | DriverErrorKind::DeviceLost
        | DriverErrorKind::Io => ErrorKind::Unavailable,
    }
}
