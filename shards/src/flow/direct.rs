//! Direct leases: what readers are shown follows from the payload as it is at the end of each step; what drops a payload
//! asks first who reads it.

use payload_ledger::SlotKey;
use payload_ledger::limbo::Outcome;
use payload_types::direct::{Published, Revoke, SAMPLED_MAX, Sampled, ScanDone};
use payload_types::effect::Effect;
use payload_types::request::Request;
use payload_types::{ErrorKind, Health, Monotonic, PayloadError, PayloadKey, PayloadState, Tier};

use crate::direct::{Evict, Readers, Wish};
use crate::evict::{Class, Exit};
use crate::op::Kind;
use crate::parked::Caller;
use crate::payload::Payload;
use crate::shard::{Answer, Shard, Step, Timer};

impl Shard {
    /// Shows readers what has changed in this step.
    pub(crate) fn show_changes(&mut self, step: &Step<'_>) {
        while let Some(slot) = self.table.next_changed_block() {
            let Some(block) = self.table.get(slot).and_then(|_| self.table.block(slot)) else { continue };
            let payload = self.table.at(slot);
            let replica = payload.replicas[Tier::Ram].expect("a payload in a slab has a replica in RAM");
            let is_over = matches!(
                payload.state,
                PayloadState::Deleting | PayloadState::Deleted | PayloadState::Expired
            );
            let is_readable = payload.is_committed()
                && !is_over
                && payload.shows_block()
                && payload.health == Health::Good
                && !replica.unsound
                && !payload.is_expired_at(step.now.wall)
                && !self.is_leaving_its_slab(payload);
            let published = Published {
                id: payload.key.id,
                generation: replica.generation,
                block,
                size: payload.size,
                checksum: payload.checksum(),
                version: payload.version.0,
                expires_at: payload.expires_at.filter(|_| !payload.held),
            };
            self.direct.show(slot, payload.key.namespace, &published, is_readable);
        }
    }

    /// True while a copy is made that takes the place of the payload's block. A scan has found that nobody reads it; who
    /// comes meanwhile leases it over the ring, so that it counts for what is asked of the payload afterwards.
    fn is_leaving_its_slab(&self, payload: &Payload) -> bool {
        let op = payload.op.and_then(|op| self.ops.get(op));
        op.is_some_and(|op| match &op.kind {
            Kind::Copy(copy) => Tier::Ram.is_faster_than(copy.to.tier) && !copy.keeps_source,
            _ => false,
        })
    }

    /// Whether somebody reads the payload directly. Where that has to be found out the request waits for it: `Err` is what
    /// it is told now.
    pub(crate) fn ask_readers(
        &mut self,
        slot: SlotKey,
        caller: &Caller,
        request: impl FnOnce() -> Request,
    ) -> Result<Readers, Answer> {
        match self.direct.readers(slot) {
            Readers::Unknown => {
                self.wait_for_readers(slot, caller.clone(), request());
                Err(None)
            }
            known => Ok(known),
        }
    }

    /// Handles a request again when a scan has told who reads its payload directly.
    pub(crate) fn wait_for_readers(&mut self, slot: SlotKey, caller: Caller, request: Request) {
        self.direct.ask(slot, Wish::Request(Box::new((caller, request))));
        // Nobody new from the end of this step on.
        self.table.links(slot);
    }

    /// Evicts a payload once nobody reads directly what would go; until then it is no victim. False when it can go now.
    pub(crate) fn evicts_later(&mut self, slot: SlotKey, tier: Tier, exit: Exit) -> bool {
        let drops_block = match exit {
            Exit::Drop(to) | Exit::Copy(to) => Tier::Ram.is_faster_than(to),
            Exit::Discard => true,
        };
        if !drops_block || self.direct.readers(slot) != Readers::Unknown {
            return false;
        }
        let bytes = self.table.at(slot).size.in_pages().0;
        self.direct.ask(slot, Wish::Evict(Evict { tier, bytes }));
        self.table.links(slot).passed_over = true;
        true
    }

    /// Removes an expired payload once nobody reads it directly, or when somebody has for as long as a lease may last: the
    /// bytes wait for him then, and what he holds back counts for his session. False when it can go now.
    pub(crate) fn expires_later(&mut self, now: Monotonic, slot: SlotKey) -> bool {
        let longest = |since: Monotonic| since.plus_millis(self.config.lease_ms_max) <= now;
        match self.direct.readers(slot) {
            Readers::Nobody => return false,
            Readers::Held(_) if self.direct.asked_since(slot).is_some_and(longest) => return false,
            Readers::Held(_) | Readers::Unknown => {}
        }
        if !self.direct.may_expire(slot) {
            self.direct.ask(slot, Wish::Expire);
            self.table.links(slot);
        }
        true
    }

    /// True while a payload is evicted, or discarded, unless somebody is found to read it. For the simulator.
    pub fn may_be_evicted(&self, key: PayloadKey) -> bool {
        self.table.find(key).is_some_and(|slot| self.direct.may_be_evicted(slot))
    }

    /// The driver has looked at all cells.
    pub(crate) fn scan_done(&mut self, step: &mut Step<'_>, done: &ScanDone) {
        let outcomes = &mut self.direct.outcomes;
        let mut found = std::mem::take(outcomes);
        self.direct.limbo().finish(step.now.monotonic, done, |outcome| found.push_back(outcome));
        self.direct.outcomes = found;
        self.direct.is_busy = true;
        if done.held.is_empty() {
            return;
        }
        let longest = self.config.lease_ms_max.saturating_mul(1_000_000);
        let Some(since) = step.now.monotonic.0.checked_sub(longest).map(Monotonic) else { return };
        let quota = payload_types::ByteCount(self.config.session_caps.leased_bytes_max);
        for overdue in self.direct.limbo().overdue(since, |_| quota) {
            let until = step.now.monotonic.plus_millis(self.config.dead_grace_ms);
            step.out.push(Effect::Revoke(Revoke { generation: overdue.generation, of: None }));
            self.direct.limbo().revoke(overdue.generation, until);
        }
    }

    /// Readers have leased these directly of late: they are used now, as by a lease that ends. A sample costs its session
    /// nothing to forge, so it changes the order of victims and nothing else.
    pub(crate) fn sampled(&mut self, step: &Step<'_>, sampled: &Sampled) {
        for id in sampled.ids.iter().take(SAMPLED_MAX) {
            let key = PayloadKey { namespace: sampled.namespace, id: *id };
            let Some(slot) = self.table.find(key) else { continue };
            let payload = self.table.at(slot);
            // What was moved or deleted since it was sampled is nobody's any more to keep in memory.
            if payload.is_committed() && payload.replicas[Tier::Ram].is_some() {
                self.table.used(slot, step.now.monotonic);
            }
        }
    }

    /// Works off what scans have found, and begins the next one.
    pub(crate) fn run_direct(&mut self, step: &mut Step<'_>, work_left: &mut usize) {
        while *work_left > 0
            && let Some(outcome) = self.direct.outcomes.pop_front()
        {
            *work_left -= 1;
            self.found(step, outcome);
        }
        self.direct.look_again();
        while *work_left > 0
            && let Some((slot, wish)) = self.direct.next_told()
        {
            *work_left -= 1;
            match wish {
                Some(wish) => self.granted(step, slot, wish),
                // Shown again, unless it is gone by now.
                None => {
                    if self.table.get(slot).is_some() {
                        self.table.links(slot);
                    }
                }
            }
        }
        while *work_left > 0
            && let Some((slot, wish)) = self.direct.next_late()
        {
            *work_left -= 1;
            if let Wish::Request(wish) = wish {
                self.give_up(step, wish.0, &wish.1, slot);
            }
        }
        let mut over = Vec::new();
        self.direct.limbo().tick(step.now.monotonic, |outcome| over.push(outcome));
        self.direct.outcomes.extend(over);
    }

    /// The end of a step: what readers see changes first, then they are looked for.
    pub(crate) fn end_direct(&mut self, step: &mut Step<'_>) {
        step.out.publish(&mut self.direct.publications);
        if !self.direct.is_busy {
            return;
        }
        if let Some(scan) = self.direct.limbo().take_scan(step.now.monotonic) {
            step.out.push(Effect::Scan(scan));
        }
        let next = self.direct.next_at();
        if next.is_none() && !self.direct.has_left_over() {
            self.direct.is_busy = false;
        }
        let armed = self.direct.timer.map(|(at, _)| at);
        if let Some(next) = next.filter(|next| armed.is_none_or(|armed| *next < armed)) {
            if let Some((_, Some(timer))) = self.direct.timer {
                self.wheel.disarm(timer);
            }
            let timer = self.wheel.arm(next, Timer::Direct).expect("the wheel has room for this timer");
            self.direct.timer = Some((next, Some(timer)));
        }
    }

    fn found(&mut self, step: &mut Step<'_>, outcome: Outcome) {
        let (generation, readers) = match outcome {
            Outcome::Free { generation } | Outcome::Quarantined { generation } => {
                (generation, Readers::Nobody)
            }
            Outcome::Held { generation, by } => (generation, Readers::Held(by)),
        };
        if self.direct.tell(generation, readers) {
            return;
        }
        match readers {
            // Taken from under them: they hear so, and their block waits for them, as it does for leases over rings.
            Readers::Held(_) => step.out.push(Effect::Revoke(Revoke { generation, of: None })),
            Readers::Nobody | Readers::Unknown => {
                let entry = self.limbo.find(generation).expect("a retired block waits for its readers");
                self.limbo.copy_ended(entry);
            }
        }
    }

    /// Handles what asked, now that it is known who reads its payload.
    fn granted(&mut self, step: &mut Step<'_>, slot: SlotKey, wish: Wish) {
        match wish {
            Wish::Request(wish) => {
                let (caller, request) = *wish;
                match caller.reply_to {
                    Some(_) => self.dispatch(step, caller, request),
                    None => self.attempt(step, caller, request),
                }
            }
            Wish::Evict(Evict { tier, .. }) => self.evict_found(step, slot, tier),
            Wish::Expire => {
                let payload = self.table.get(slot);
                if payload.is_some_and(|it| it.state == PayloadState::Expired && it.lease_count == 0) {
                    self.remove_expired(step, slot);
                }
            }
        }
    }

    fn evict_found(&mut self, step: &mut Step<'_>, slot: SlotKey, tier: Tier) {
        if self.table.get(slot).is_none() {
            return;
        }
        self.table.links(slot).passed_over = false;
        if let Readers::Held(_) = self.direct.readers(slot) {
            self.table.used(slot, step.now.monotonic);
            return self.pass_over(step.now, slot);
        }
        // Pinned, leased or worked on meanwhile: then it is no victim, and where too many evictions go on, one later.
        self.table.settle(step.now.monotonic);
        let payload = self.table.at(slot);
        let is_victim = payload.class != Class::NONE && payload.lease_count == 0;
        if is_victim && self.ops.may_evict() && self.start_eviction(step, slot, tier).is_none() {
            self.pass_over(step.now, slot);
        }
    }
}

/// What is told who would drop what somebody reads.
pub(crate) fn read_directly(key: PayloadKey, kind: ErrorKind, what: &str, advice: &str) -> PayloadError {
    let message =
        format!("payload {} {what}: a session on this host holds a direct lease of it; {advice}", key.id);
    PayloadError::new(kind, message)
}
