//! Clients that may not be shown where a payload lies, and the places of its own that it gets before such a client leases
//! it: a file, for those who may set the length of what they are shown, where it is packed, and a segment, for those who
//! cannot map slabs. What must never be shown, what such a copy may look like, and which situations were met.

use payload_types::effect::TransferOp;
use payload_types::request::{Acquire, Request};
use payload_types::{Location, PayloadId, Peer, PromotionPolicy, Tier};

use super::canary::Canary;
use super::faults::MICROS;
use super::oracle::{Breach, Oracle, Rule, breach};
use super::storage::Block;
use super::world::{Job, World};

/// True for a copy within a tier to a place of the payload's own.
fn is_apart(job: &Job) -> bool {
    matches!(job, Job::Transfer(op) if op.alone)
}

/// True for a request whose client may not be shown a place on this tier that a payload shares with others.
fn wants_own(request: &Request, tier: Tier) -> bool {
    match request {
        Request::Acquire(Acquire { accepts_slabs, .. }) if tier == Tier::Ram => !accepts_slabs,
        Request::Acquire(Acquire { accepts_packed, .. }) => !accepts_packed,
        _ => false,
    }
}

impl World {
    /// A planted bug: nobody looks at what a client said.
    pub(super) fn spoil_request(&self, request: &mut Request) {
        if let Request::Acquire(acquire) = request {
            acquire.accepts_packed |= self.canary == Some(Canary::PackedForAll);
        }
    }

    /// Now and then readers come for something that is packed, one or a few at a time: some may set lengths.
    pub(super) fn lease_something_packed(&mut self) {
        if !self.rng.chance(100) {
            return;
        }
        // What has a copy in memory is shown there.
        let packed = self.storage.blocks.iter().filter(|(name, block)| {
            block.extent.is_some() && block.is_intact() && self.storage.named_segment(name.id).is_none()
        });
        let packed: Vec<PayloadId> = packed.map(|(name, _)| name.id).collect();
        if packed.is_empty() {
            return;
        }
        let id = self.rng.pick(&packed);
        let Some(key) = self.fact_of(id).map(|fact| fact.key) else { return };
        for _ in 0..self.rng.between(1, 3) {
            let request = Acquire {
                key,
                min_tier: self.rng.pick(&[None, None, Some(Tier::Ram)]),
                policy: PromotionPolicy::BestEffort,
                duration_ms: self.rng.pick(&[0, 5, 100]),
                expected_version: None,
                accepts_packed: self.rng.chance(600),
                accepts_slabs: false,
                nonce: self.nonce(),
                owner: Peer::UNKNOWN,
            };
            self.ask(Request::Acquire(request));
        }
        if self.rng.chance(100) {
            self.ask(Request::Delete { key, force: false, expected_version: None });
        }
    }

    /// True while a file of its own is being made for this payload.
    pub(super) fn gets_own_file(&self, id: PayloadId) -> bool {
        self.jobs.values().any(|job| is_apart(job) && matches!(job, Job::Transfer(op) if op.to.id == id))
    }

    /// Such a copy is handed out: it must make sense, and be wanted.
    pub(super) fn apart_begins(&mut self, op: &TransferOp) -> Result<(), Breach> {
        let makes_sense = match (op.from.tier, op.to.tier) {
            (Tier::Disk, Tier::Disk) => op.from.extent.is_some() && op.sync,
            (Tier::Ram, Tier::Ram) => op.from.block.is_some() && op.to.block.is_none() && !op.sync,
            _ => false,
        };
        if !makes_sense || op.salvage {
            return breach(Rule::DropInUse, format!("a copy that makes no sense: {op:?}"));
        }
        let wanted =
            |request: &Request| wants_own(request, op.to.tier) && request.routing_id() == Some(op.from.id);
        // Who wanted it may have given up while it waited for space; then the shard does not begin.
        if self.canary.is_none() && !self.oracle.pending.values().any(|pending| wanted(&pending.request)) {
            return breach(Rule::Answers, format!("nobody wants a place of its own for this: {op:?}"));
        }
        self.crash_soon(80, 200 * MICROS);
        Ok(())
    }

    /// Such a copy has ended well.
    pub(super) fn apart_ended(&mut self, op: &TransferOp) {
        let waiting = self.oracle.pending.values().filter(|pending| {
            wants_own(&pending.request, op.to.tier) && pending.request.routing_id() == Some(op.to.id)
        });
        let joined = waiting.count() > 1;
        if op.to.tier == Tier::Ram {
            self.oracle.coverage.hit("segment_of_its_own");
        } else if joined {
            self.oracle.coverage.hit("file_of_its_own_joined");
        }
    }

    /// The server dies.
    pub(super) fn note_apart_at_crash(&mut self) {
        if self.jobs.values().any(is_apart) {
            self.oracle.coverage.hit("file_of_its_own_in_flight_at_crash");
        }
    }
}

impl Oracle {
    /// A lease is granted at `location`, on `held`.
    pub(super) fn judge_shared(
        &mut self,
        request: &Acquire,
        location: Location,
        held: &Block,
    ) -> Result<(), Breach> {
        if request.accepts_packed {
            return Ok(());
        }
        if let Location::Packed(extent) = location {
            let detail = format!("shown to a client that may set lengths: {extent:?} {request:?}");
            return breach(Rule::SharedFile, detail);
        }
        if held.alone && location != Location::Segment {
            self.coverage.hit("lease_got_a_file_of_its_own");
        }
        Ok(())
    }
}
