//! The truth about every payload, kept outside the server: what it acknowledged, and what it was asked and did not
//! answer.
//!
//! ```text
//! facts of the workers --note--> Known per payload --expected, tiers--> what a restarted server may show
//!                                        ^--------- settle: what it did show, which is the truth from then on
//! ```
//! Payloads are shared by all workers and facts of different workers come in any order, so everything kept of a
//! payload only grows: how many calls are unanswered, and whether one was ever done. What was asked and not answered
//! may have happened or not, and both are legal; what was answered is not open to debate. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use payload_types::{PayloadId, PayloadState, Tier, WallMs};

use super::fact::{Allocated, Fact, Verb};

/// Which promise was broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// The server comes up again, and ends when it is asked to.
    Starts,
    /// What was acknowledged is there.
    Kept,
    /// Bytes are the ones that were committed.
    Bytes,
    /// A batch is committed whole, or not at all.
    Batch,
    /// What was deleted, or never committed, stays away.
    StaysGone,
    /// Size, tier and state are possible after what was asked.
    Placed,
    /// A pin that was acknowledged holds.
    Pinned,
    /// Listing and Stats show what is there.
    Books,
    /// Nothing lies in memory or on disk that no payload accounts for.
    Leak,
    /// Memory and disk never pass their capacity.
    Capacity,
    /// While the server runs every call gets an answer that the contract has for it.
    Answers,
}

/// A broken promise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Breach {
    /// Which.
    pub rule: Rule,
    /// What was seen.
    pub detail: String,
}

impl Breach {
    /// A broken promise.
    pub fn new(rule: Rule, detail: impl Into<String>) -> Self {
        Self { rule, detail: detail.into() }
    }
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.detail)
    }
}

/// Calls of one kind on one payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Calls {
    open: u32,
    done: bool,
}

impl Calls {
    const DONE: Self = Self { open: 0, done: true };

    fn possible(self) -> bool {
        self.done || self.open > 0
    }
}

/// What must be true of a payload after a restart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expected {
    /// It is there, with its bytes.
    Live,
    /// It is not.
    Gone,
    /// Its ttl has passed: it goes, if it has not gone.
    Leaving,
    /// Either, and if it is there then with its bytes.
    Either,
}

/// What is known of one payload.
#[derive(Clone, Debug)]
pub struct Known {
    /// What it is.
    pub allocated: Allocated,
    commit: Calls,
    delete: Calls,
    spill: Calls,
    pin: Calls,
    unpin: Calls,
    /// It was pinned already when it was seen in RAM after a restart: before a pin it may have been evicted.
    is_held_in_ram: bool,
}

impl Known {
    fn new(allocated: Allocated) -> Self {
        let none = Calls::default();
        let is_held_in_ram = false;
        Self { allocated, commit: none, delete: none, spill: none, pin: none, unpin: none, is_held_in_ram }
    }

    fn calls(&mut self, verb: Verb) -> Option<&mut Calls> {
        match verb {
            Verb::Commit => Some(&mut self.commit),
            Verb::Delete => Some(&mut self.delete),
            Verb::Spill => Some(&mut self.spill),
            Verb::Pin => Some(&mut self.pin),
            Verb::Unpin => Some(&mut self.unpin),
            Verb::Promote | Verb::Read => None,
        }
    }

    /// What a server started after all that may show at `now`.
    pub fn expected(&self, now: WallMs) -> Expected {
        if self.delete.done || !self.commit.possible() {
            return Expected::Gone;
        }
        if self.allocated.expires_at.is_some_and(|at| at <= now) {
            return Expected::Leaving;
        }
        match self.commit.done && !self.delete.possible() && !self.allocated.is_expendable {
            true => Expected::Live,
            false => Expected::Either,
        }
    }

    /// Where it may lie after a restart. What became durable stays so; a RAM twin of it does not survive. What may be
    /// evicted may have been, whether or not there was pressure.
    pub fn may_lie_on(&self, tier: Tier) -> bool {
        let is_held = self.is_held_in_ram && !self.unpin.possible();
        match tier {
            Tier::Disk if self.allocated.tier == Tier::Ram => {
                !is_held && (self.spill.possible() || !self.allocated.is_kept)
            }
            Tier::Disk => true,
            Tier::Ram => self.allocated.tier == Tier::Ram && !self.spill.done,
            _ => false,
        }
    }

    /// Whether it is there says whether it was committed: nothing else can have taken it away.
    pub fn tells_of_its_commit(&self) -> bool {
        let Allocated { expires_at, is_expendable, .. } = self.allocated;
        !self.delete.possible() && expires_at.is_none() && !is_expendable
    }

    /// Its commit was asked for, and never answered.
    pub fn is_commit_unclear(&self) -> bool {
        self.commit.possible() && !self.commit.done
    }

    /// A pin was acknowledged and nobody asked for its end.
    pub fn is_pinned(&self) -> bool {
        self.pin.done && !self.unpin.possible()
    }

    /// Nobody can say whether it is pinned.
    pub fn is_pin_unclear(&self) -> bool {
        self.pin.possible() && !self.is_pinned()
    }
}

/// True when a readable payload on `tier` may be in `state`.
pub fn is_state_legal(tier: Tier, state: PayloadState) -> bool {
    match tier {
        Tier::Disk => state == PayloadState::Durable,
        _ => matches!(state, PayloadState::Active | PayloadState::Spilling | PayloadState::Evicting),
    }
}

/// How often something was seen.
pub type Tally = BTreeMap<String, u64>;

/// All payloads that are not known to be gone.
#[derive(Debug, Default)]
pub struct Ledger {
    known: BTreeMap<PayloadId, Known>,
    gone: BTreeSet<PayloadId>,
    missing: BTreeSet<PayloadId>,
    /// Those of the round.
    batches: Vec<Vec<PayloadId>>,
    broken: Vec<Breach>,
    tally: Tally,
}

impl Ledger {
    /// Takes a line of a worker.
    pub fn note(&mut self, fact: Fact) {
        match fact {
            Fact::Allocated(allocated) => {
                self.count("allocated");
                let before = self.known.insert(allocated.id, Known::new(allocated));
                if before.is_some() || self.gone.contains(&allocated.id) {
                    self.break_rule(Rule::Answers, format!("{} was minted twice", allocated.id));
                }
            }
            Fact::Batch(ids) => {
                self.count("batch");
                self.batches.push(ids);
            }
            Fact::Asked(verb, id) => self.call(verb, id, |calls| calls.open += 1),
            Fact::Did(verb, id) => {
                self.count(&format!("{verb:?}").to_lowercase());
                self.call(verb, id, |calls| *calls = Calls { open: calls.open - 1, done: true });
            }
            Fact::Refused(verb, id) => self.call(verb, id, |calls| calls.open -= 1),
            Fact::Missing(id) => drop(self.missing.insert(id)),
            Fact::Broken(what) => self.break_rule(Rule::Answers, what),
            Fact::Idle | Fact::Checked => {}
        }
    }

    /// The batches that were asked for since the last call.
    pub fn batches_take(&mut self) -> Vec<Vec<PayloadId>> {
        std::mem::take(&mut self.batches)
    }

    /// Counts something that the summary shows.
    pub fn count(&mut self, name: &str) {
        self.count_times(name, 1);
    }

    /// Counts something that was seen so often.
    pub fn count_times(&mut self, name: &str, times: u64) {
        if times > 0 {
            *self.tally.entry(name.to_owned()).or_default() += times;
        }
    }

    /// How often everything was seen.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Remembers a broken promise.
    pub fn break_rule(&mut self, rule: Rule, detail: String) {
        self.broken.push(Breach::new(rule, detail));
    }

    /// A promise was broken that nobody has judged yet.
    pub fn is_broken(&self) -> bool {
        !self.broken.is_empty()
    }

    fn call(&mut self, verb: Verb, id: PayloadId, change: impl FnOnce(&mut Calls)) {
        if let Some(calls) = self.known.get_mut(&id).and_then(|known| known.calls(verb)) {
            change(calls);
        }
    }

    /// Judges what the workers saw of the round that ended, now that all their facts are here.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn judge(&mut self, now: WallMs) -> Result<(), Breach> {
        for id in std::mem::take(&mut self.missing) {
            let Some(known) = self.known.get(&id) else { continue };
            if known.expected(now) == Expected::Live {
                let detail = format!("{id} was not found, and nobody asked for its end: {known:?}");
                return Err(Breach::new(Rule::Kept, detail));
            }
        }
        match self.broken.is_empty() {
            true => Ok(()),
            false => Err(self.broken.swap_remove(0)),
        }
    }

    /// Calls that were sent and not answered, by kind: counted once the server is dead.
    pub fn count_open(&mut self) {
        for known in self.known.values() {
            let calls = [
                ("commit", known.commit),
                ("delete", known.delete),
                ("spill", known.spill),
                ("pin", known.pin),
                ("unpin", known.unpin),
            ];
            for (verb, calls) in calls {
                if calls.open > 0 && !calls.done {
                    *self.tally.entry(format!("{verb} unanswered")).or_default() += 1;
                }
            }
        }
    }

    /// The payloads that a restarted server is asked about.
    pub fn known(&self) -> impl Iterator<Item = &Known> {
        self.known.values()
    }

    /// One of them.
    pub fn get(&self, id: PayloadId) -> Option<&Known> {
        self.known.get(&id)
    }

    /// The newest `count` payloads of those that went: none of them may come back.
    pub fn graves(&self, count: usize) -> Vec<PayloadId> {
        self.gone.iter().rev().take(count).copied().collect()
    }

    /// What a restarted server was seen to have: it is committed, on this tier, and nothing asked before can still
    /// happen. Whether it is pinned must have been made clear.
    pub fn settle_live(&mut self, id: PayloadId, tier: Tier) {
        let known = self.known.get_mut(&id).expect("settled are known ones");
        known.commit = Calls::DONE;
        known.delete = Calls::default();
        known.spill = if tier == Tier::Disk { Calls::DONE } else { Calls::default() };
        if !known.is_pinned() {
            (known.pin, known.unpin) = Default::default();
        }
        known.is_held_in_ram = known.is_pinned() && tier == Tier::Ram;
    }

    /// What a restarted server was seen not to have.
    pub fn settle_gone(&mut self, id: PayloadId) {
        self.known.remove(&id);
        self.gone.insert(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: WallMs = WallMs::from_millis(1000);

    fn ledger(facts: &[Fact]) -> (Ledger, PayloadId) {
        let id = PayloadId::mint(1, 2);
        let allocated = Allocated {
            id,
            seed: 0,
            size: 1,
            tier: Tier::Ram,
            expires_at: None,
            is_kept: false,
            is_expendable: false,
        };
        let mut ledger = Ledger::default();
        ledger.note(Fact::Allocated(allocated));
        facts.iter().for_each(|fact| ledger.note(fact.clone()));
        (ledger, id)
    }

    fn expected(verbs: &[fn(PayloadId) -> Fact]) -> Expected {
        let id = PayloadId::mint(1, 2);
        let facts: Vec<Fact> = verbs.iter().map(|fact| fact(id)).collect();
        ledger(&facts).0.get(id).expect("known").expected(NOW)
    }

    #[test]
    fn given_answered_and_unanswered_calls_when_restarted_then_only_the_latter_are_open_to_debate() {
        let asked_commit = |id| Fact::Asked(Verb::Commit, id);
        let did_commit = |id| Fact::Did(Verb::Commit, id);
        let asked_delete = |id| Fact::Asked(Verb::Delete, id);
        let did_delete = |id| Fact::Did(Verb::Delete, id);
        let refused_delete = |id| Fact::Refused(Verb::Delete, id);
        assert_eq!(expected(&[]), Expected::Gone);
        assert_eq!(expected(&[asked_commit]), Expected::Either);
        assert_eq!(expected(&[asked_commit, did_commit]), Expected::Live);
        assert_eq!(expected(&[asked_commit, did_commit, asked_delete]), Expected::Either);
        assert_eq!(expected(&[asked_commit, did_commit, asked_delete, refused_delete]), Expected::Live);
        assert_eq!(expected(&[asked_commit, did_commit, asked_delete, did_delete]), Expected::Gone);
    }

    #[test]
    fn given_a_pinned_payload_when_restarted_then_it_may_lie_only_where_it_was_pinned() {
        let id = PayloadId::mint(1, 2);
        let commit = [Fact::Asked(Verb::Commit, id), Fact::Did(Verb::Commit, id)];
        let pin = [Fact::Asked(Verb::Pin, id), Fact::Did(Verb::Pin, id)];
        let (mut kept, _) = ledger(&[commit.as_slice(), &pin].concat());
        let known = kept.get(id).expect("known");
        assert!(known.is_pinned() && known.may_lie_on(Tier::Ram));
        assert!(known.may_lie_on(Tier::Disk), "it may have been evicted before it was pinned");
        kept.settle_live(id, Tier::Ram);
        kept.note(Fact::Asked(Verb::Spill, id));
        assert!(!kept.get(id).expect("known").may_lie_on(Tier::Disk), "the pin is older than the spill");
        kept.note(Fact::Asked(Verb::Unpin, id));
        assert!(kept.get(id).expect("known").is_pin_unclear());
        kept.note(Fact::Did(Verb::Spill, id));
        let known = kept.get(id).expect("known");
        assert!(known.may_lie_on(Tier::Disk) && !known.may_lie_on(Tier::Ram), "durable stays durable");
    }

    #[test]
    fn given_something_missing_when_nobody_asked_for_its_end_then_judged_a_loss() {
        let id = PayloadId::mint(1, 2);
        let facts = [Fact::Asked(Verb::Commit, id), Fact::Did(Verb::Commit, id), Fact::Missing(id)];
        let (mut lost, _) = ledger(&facts);
        assert_eq!(lost.judge(NOW).expect_err("lost").rule, Rule::Kept);
        let (mut deleted, _) = ledger(&[facts.as_slice(), &[Fact::Asked(Verb::Delete, id)]].concat());
        assert_eq!(deleted.judge(NOW), Ok(()));
    }
}
