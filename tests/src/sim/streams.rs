//! Streams that retain payloads: what their entries refer to must stay until every group has passed it.
//!
//! The front's part is simulated here, with the shipped `payload_shards::Keeper`: holds before the append, the append
//! through the catalog's FIFO, its end told to the shards, and floors whenever they move. The catalog is the shipped store,
//! so that what a stream holds is read from it: the entries from its floor on.
//!
//! A payload is *promised* from the transaction on that stored an entry of it, or from the moment on at which its shard
//! says that a stream went back to it, until no floor is before it; a start promises whatever the catalog holds. While it
//! is promised, its row is there. Not counted are payloads whose bytes a loss of power took, and those that somebody deletes
//! with force. Once every stream has let go, no shard may hold anything.

use std::collections::{BTreeMap, BTreeSet};

use payload_shards::Keeper;
use payload_shards::keeper::{Errand, Taken, newest_offsets};
use payload_types::hold::{HeldEntries, Hold};
use payload_types::record::{
    RecordAnswer, RecordChange, RecordOutcome, RecordQuery, StreamItem, StreamLimits, StreamName,
};
use payload_types::reply::{Reply, ReplyResult};
use payload_types::request::Request;
use payload_types::{Monotonic, PayloadId, PayloadKey, PayloadState, WallMs};

use super::agenda::Task;
use super::canary::Canary;
use super::catalog::Ticket;
use super::faults::MILLIS;
use super::oracle::{Breach, Rule, breach};
use super::world::{Core, NAMESPACES, World};

/// Streams at a time.
const STREAMS_MAX: usize = 3;

/// Entries of one append, at most.
const ITEMS_MAX: u64 = 4;

/// Appends after which the server dies within a few milliseconds, where servers die.
const CRASH_PERMILLE: u64 = 40;

/// An append under way.
#[derive(Debug)]
struct Append {
    stream: StreamName,
    items: Vec<StreamItem>,
    taken: Vec<Taken>,
    /// Answers of shards that are not there yet.
    waiting: BTreeSet<u64>,
    refused: bool,
    /// Of the entries that it got, once it is stored: the stream's number and the first offset.
    settles: Option<(payload_types::hold::HoldingStream, u64)>,
    is_ending: bool,
}

/// What shards are being told.
#[derive(Debug)]
struct Telling {
    errand: Errand,
    waiting: BTreeSet<u64>,
    /// The floors were told, and entries are held again.
    again: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Streams {
    keeper: Keeper,
    made: u64,
    names: Vec<StreamName>,
    appends_last: u64,
    appends: BTreeMap<u64, Append>,
    telling: Option<Telling>,
    /// By stream: what one lets go while another one goes back to it was not held throughout.
    promised: BTreeSet<(u64, PayloadKey)>,
}

fn key(id: PayloadId) -> PayloadKey {
    PayloadKey { namespace: NAMESPACES[0], id }
}

impl World {
    // ---- clients ----

    /// Clients may think of a stream.
    pub(super) fn stream_tick(&mut self) {
        // Draws only where there are streams, so that other seeds' runs stay what they are.
        let permille = self.plan.stream_permille;
        if permille == 0 || !self.rng.chance(permille) {
            return;
        }
        let at = self.clock().wall;
        if self.streams.names.len() < STREAMS_MAX && self.rng.chance(300) || self.streams.names.is_empty() {
            self.streams.made += 1;
            let stream = StreamName { namespace: "sim".to_owned(), name: self.streams.made.to_string() };
            let limits = StreamLimits {
                entries_max: self.rng.pick(&[None, None, Some(3), Some(20)]),
                age_ms_max: self.rng.pick(&[None, None, Some(50), Some(5_000)]),
                retains_payloads: true,
            };
            self.streams.names.push(stream.clone());
            return self.submit_record(RecordChange::StreamCreate { stream, limits, at }, 0);
        }
        let nth = self.rng.below(self.streams.names.len() as u64) as usize;
        let stream = self.streams.names[nth].clone();
        match self.rng.below(100) {
            0..=54 => self.append(stream),
            55..=79 => {
                let end = self.stream_end(&stream);
                // Now and then a group goes back.
                let offset = match self.rng.below(10) {
                    0..=3 => end,
                    4..=7 => end - self.rng.between(0, end.min(4)),
                    _ => self.rng.between(0, end),
                };
                let group = self.rng.pick(&["g", "g", "h"]).to_owned();
                self.submit_record(RecordChange::StreamCommit { stream, group, offset, at }, 0);
            }
            80..=89 => {
                let promised: BTreeSet<PayloadKey> =
                    self.streams.promised.iter().map(|(_, key)| *key).collect();
                let promised: Vec<PayloadKey> = promised.into_iter().collect();
                if !promised.is_empty() {
                    let key = self.rng.pick(&promised);
                    self.ask(Request::Delete { key, force: false, expected_version: None });
                }
            }
            90..=96 => self.submit_record(RecordChange::Sweep { at }, 0),
            _ => {
                self.streams.names.retain(|name| *name != stream);
                self.submit_record(RecordChange::StreamDelete { stream }, 0);
            }
        }
    }

    fn stream_end(&mut self, stream: &StreamName) -> u64 {
        match self.catalog.ask(&RecordQuery::Stream(stream.clone())) {
            RecordAnswer::Stream(info) => info.end,
            _ => 0,
        }
    }

    /// A client appends payloads, mostly such as can be.
    fn append(&mut self, stream: StreamName) {
        let doomed = self.rng.chance(100);
        let keys: Vec<PayloadKey> = self
            .oracle
            .facts
            .values()
            .filter(|fact| fact.key.namespace == NAMESPACES[0])
            .filter(|fact| doomed || fact.committed && !fact.gone && !fact.lost)
            .map(|fact| fact.key)
            .collect();
        if keys.is_empty() {
            return;
        }
        let items: Vec<StreamItem> = (0..self.rng.between(1, ITEMS_MAX))
            .map(|_| self.rng.pick(&keys).id)
            .map(|payload| StreamItem { payload, event_time: None, duration_ns: 0, tags: Vec::new() })
            .collect();
        for item in &items {
            if let Some(fact) = self.oracle.facts.get_mut(&key(item.payload)) {
                fact.may_be_held = true;
            }
        }
        if self.plan.crash_per_10k > 0 && self.rng.chance(CRASH_PERMILLE) {
            let at = self.now.0 + self.rng.between(0, 5 * MILLIS);
            self.agenda.add(Monotonic(at), Task::Crash);
        }
        let shard_count = self.shard_count();
        let mut taken = self.streams.keeper.take(NAMESPACES[0], &items, shard_count);
        if self.strikes(Canary::AppendsUnheld, 1000) {
            taken.clear();
        }
        self.streams.appends_last += 1;
        let id = self.streams.appends_last;
        let asks: Vec<_> = taken.iter().map(|some| (usize::from(some.shard.0), some.take())).collect();
        let waiting = asks.into_iter().map(|(shard, hold)| self.send(shard, Request::Hold(hold))).collect();
        let append =
            Append { stream, items, taken, waiting, refused: false, settles: None, is_ending: false };
        self.streams.appends.insert(id, append);
        self.append_goes_on(id);
    }

    // ---- the front ----

    /// A shard has answered something about holds.
    pub(super) fn hold_answered(&mut self, to: u64, result: &ReplyResult) -> Result<(), Breach> {
        let found = self.streams.appends.iter_mut().find(|(_, append)| append.waiting.contains(&to));
        if let Some((id, append)) = found {
            let id = *id;
            append.waiting.remove(&to);
            append.refused |= result.is_err();
            if result.is_err() {
                self.oracle.coverage.hit("append_found_a_payload_gone");
            }
            self.append_goes_on(id);
        }
        if let Some(telling) = self.streams.telling.as_mut()
            && telling.waiting.remove(&to)
            && telling.waiting.is_empty()
        {
            return self.errand_goes_on();
        }
        Ok(())
    }

    /// All answers of one of its steps may be there.
    fn append_goes_on(&mut self, id: u64) {
        let Some(append) = self.streams.appends.get(&id).filter(|append| append.waiting.is_empty()) else {
            return;
        };
        if append.is_ending {
            let append = self.streams.appends.remove(&id).expect("just seen");
            if let Some((stream, first)) = append.settles {
                let queued = self.streams.keeper.revision(stream.stream);
                self.streams.keeper.settled(&stream, first);
                if self.streams.keeper.revision(stream.stream) != queued {
                    self.oracle.coverage.hit("append_settled_behind_its_floor");
                }
                self.errand_begins();
            }
        } else if append.refused {
            self.append_ends(id, None);
        } else {
            let (stream, items) = (append.stream.clone(), append.items.clone());
            let change = RecordChange::StreamAppend { stream, items, held: true, at: self.clock().wall };
            self.submit_record(change, id);
        }
    }

    /// The front hears what became of the change.
    pub(super) fn append_stored(&mut self, id: u64, outcome: Option<&RecordOutcome>) {
        let stored = match outcome {
            Some(RecordOutcome::AppendedHeld { first, floor, .. }) => {
                self.streams.keeper.stream(floor.stream).map(|stream| (stream, *first))
            }
            _ => None,
        };
        self.append_ends(id, stored);
    }

    fn append_ends(&mut self, id: u64, settles: Option<(payload_types::hold::HoldingStream, u64)>) {
        let Some(append) = self.streams.appends.get_mut(&id) else { return };
        (append.is_ending, append.settles) = (true, settles);
        let newest = append.settles.as_ref().map(|(_, first)| newest_offsets(&append.items, *first));
        let end = |some: &Taken| match (&append.settles, &newest) {
            (Some((stream, _)), Some(newest)) => some.settle(stream, newest),
            _ => some.let_go(),
        };
        let ends: Vec<_> = append.taken.iter().map(|some| (usize::from(some.shard.0), end(some))).collect();
        let waiting = ends.into_iter().map(|(shard, hold)| self.send(shard, Request::Hold(hold))).collect();
        self.streams.appends.get_mut(&id).expect("just seen").waiting = waiting;
        self.append_goes_on(id);
    }

    /// Tells the shards the next thing, unless they are being told something.
    fn errand_begins(&mut self) {
        if self.streams.telling.is_some() || !self.is_up() {
            return;
        }
        let Some(errand) = self.streams.keeper.errand() else { return };
        let (stream, mut floor) = (errand.stream.stream, errand.floor);
        if self.canary == Some(Canary::FloorsAhead) {
            floor = floor.saturating_add(2);
        }
        let mut waiting = BTreeSet::new();
        for shard in 0..usize::from(self.shard_count()) {
            // Still told, so that somebody answers: of a stream that nobody knows.
            let stream = if self.strikes(Canary::LostFloor, 300) { u64::MAX } else { stream };
            waiting.insert(self.send(shard, Request::Hold(Hold::Floor { stream, floor })));
        }
        self.streams.telling = Some(Telling { errand, waiting, again: false });
    }

    fn errand_goes_on(&mut self) -> Result<(), Breach> {
        let Some(mut telling) = self.streams.telling.take() else { return Ok(()) };
        let Errand { stream, floor, again_to, .. } = telling.errand.clone();
        if !telling.again && floor < again_to {
            self.oracle.coverage.hit("group_went_back");
            telling.again = true;
            let mut by_shard = vec![Vec::new(); usize::from(self.shard_count())];
            for (offset, key) in self.entries(&stream.name, stream.stream, floor) {
                if offset < again_to {
                    by_shard[usize::from(key.id.shard(self.shard_count()).0)].push((offset, key));
                }
            }
            for (shard, entries) in by_shard.into_iter().enumerate() {
                let held = HeldEntries { stream: stream.clone(), entries };
                telling.waiting.insert(self.send(shard, Request::Hold(Hold::Again(held))));
            }
            self.streams.telling = Some(telling);
            return Ok(());
        }
        self.streams.keeper.told(&telling.errand);
        if telling.again {
            self.promise_what_is_held_again(&stream.name, stream.stream)?;
        }
        self.errand_begins();
        Ok(())
    }

    // ---- the catalog ----

    pub(super) fn submit_record(&mut self, change: RecordChange, append: u64) {
        let stream = match &change {
            RecordChange::StreamCreate { stream, .. }
            | RecordChange::StreamDelete { stream }
            | RecordChange::StreamAppend { stream, .. }
            | RecordChange::StreamCommit { stream, .. } => Some(stream.clone()),
            _ => None,
        };
        self.catalog.push_record(Ticket { append, stream }, change);
        self.catalog_wake();
    }

    /// A transaction ended, well or not: the front hears of its records, and what is promised is counted anew.
    pub(super) fn records_end(
        &mut self,
        outcomes: Vec<(Ticket, Option<RecordOutcome>)>,
    ) -> Result<(), Breach> {
        let mut appended = Vec::new();
        for (Ticket { append, stream }, outcome) in outcomes {
            self.trace.add(self.now, format_args!("catalog: append {append} of {stream:?} met {outcome:?}"));
            if let Some(outcome) = &outcome {
                self.streams.keeper.heard(stream.as_ref(), outcome);
            }
            if append > 0 {
                if let Some(RecordOutcome::AppendedHeld { floor, .. }) = &outcome
                    && let Some(under_way) = self.streams.appends.get(&append)
                {
                    appended.extend(under_way.items.iter().map(|item| (floor.stream, key(item.payload))));
                }
                let at = Monotonic(self.now.0 + self.plan.hop_delay(&mut self.rng));
                self.agenda.add(at, Task::AppendStored(append, outcome.map(Box::new)));
            }
        }
        self.errand_begins();
        self.audit_promises(&appended)
    }

    // ---- the oracle ----

    /// Entries of a stream from `from` on, as the catalog has them.
    fn entries(&mut self, name: &StreamName, incarnation: u64, from: u64) -> Vec<(u64, PayloadKey)> {
        let query = RecordQuery::StreamRead {
            stream: name.clone(),
            from,
            to: u64::MAX,
            not_before: None,
            entries_max: usize::MAX,
            at: WallMs::default(),
        };
        match self.catalog.ask(&query) {
            RecordAnswer::Entries(info, entries, _) if info.incarnation == incarnation => {
                entries.iter().map(|entry| (entry.offset, key(entry.item.payload))).collect()
            }
            _ => Vec::new(),
        }
    }

    /// What each stream holds, as the catalog has it.
    fn stored_holds(&mut self) -> BTreeSet<(u64, PayloadKey)> {
        let mut held = BTreeSet::new();
        let query = RecordQuery::Floors { after: 0, streams_max: usize::MAX };
        let RecordAnswer::Floors(found, _) = self.catalog.ask(&query) else { return held };
        for (name, floor) in found {
            let entries = self.entries(&name, floor.stream, floor.floor);
            held.extend(entries.into_iter().map(|(_, key)| (floor.stream, key)));
        }
        held
    }

    /// After a transaction: what is promised has its row.
    pub(super) fn audit_promises(&mut self, appended: &[(u64, PayloadKey)]) -> Result<(), Breach> {
        if self.plan.stream_permille == 0 {
            return Ok(());
        }
        let held = self.stored_holds();
        let facts = &mut self.oracle.facts;
        self.streams.promised.extend(appended);
        for (_, key) in &self.streams.promised {
            if let Some(fact) = facts.get_mut(key) {
                fact.held = false;
            }
        }
        self.streams.promised.retain(|(stream, key)| {
            let fact = facts.get_mut(key).filter(|fact| !fact.forced && !fact.lost);
            let kept = fact.filter(|_| held.contains(&(*stream, *key)));
            kept.map(|fact| fact.held = true).is_some()
        });
        let is_there = |key: &PayloadKey| {
            self.catalog.rows.get(key).is_some_and(|row| row.state != PayloadState::Allocated)
        };
        match self.streams.promised.iter().find(|(_, key)| !is_there(key)) {
            Some((stream, key)) => breach(
                Rule::Held,
                format!("stream {stream} keeps it, and its row is gone: {:?}", self.oracle.facts.get(key)),
            ),
            None => Ok(()),
        }
    }

    /// A group went back: what the shards say that they hold now, they promise.
    fn promise_what_is_held_again(&mut self, name: &StreamName, incarnation: u64) -> Result<(), Breach> {
        let held = self.stored_holds();
        for (_, key) in self.entries(name, incarnation, 0) {
            let promise = (incarnation, key);
            if !held.contains(&promise) || self.streams.promised.contains(&promise) {
                continue;
            }
            let shard = usize::from(key.id.shard(self.shard_count()).0);
            // One that is being deleted is on its way out: should that fail, it is held, and nobody was promised anything.
            if self.ask_now(shard, Request::Resolve { key })?.is_err() {
                continue;
            }
            let answer = self.ask_now(shard, Request::Holders { key, after: None })?;
            let fact = self.oracle.facts.get_mut(&key).filter(|fact| !fact.forced && !fact.lost);
            if let (Ok(Reply::Holders(holders)), Some(fact)) = (answer, fact)
                && !holders.streams.is_empty()
                && self.catalog.rows.contains_key(&key)
            {
                fact.held = true;
                self.streams.promised.insert(promise);
                self.oracle.coverage.hit("held_again");
            }
        }
        Ok(())
    }

    /// A forced delete is on its way: nothing is promised of its payload.
    pub(super) fn note_forced(&mut self, request: &Request) {
        if let Request::Delete { key, force: true, .. } = request
            && let Some(fact) = self.oracle.facts.get_mut(key)
        {
            (fact.forced, fact.held) = (true, false);
            self.streams.promised.retain(|(_, promised)| promised != key);
        }
    }

    // ---- life ----

    /// The server died: holds and what was under way are gone with it, and what was promised is still there.
    pub(super) fn forget_streams(&mut self) -> Result<(), Breach> {
        if self.streams.appends.values().any(|append| append.waiting.is_empty() && !append.is_ending) {
            self.oracle.coverage.hit("crash_with_an_append_in_the_catalog");
        }
        self.streams.appends.clear();
        self.streams.telling = None;
        self.streams.keeper = Keeper::default();
        self.audit_promises(&[])
    }

    /// A start: shards, which have their rows, hold what the catalog says.
    pub(super) fn adopt_holds(&mut self, cores: &mut [Core]) {
        let now = self.clock();
        let query = RecordQuery::Floors { after: 0, streams_max: usize::MAX };
        let RecordAnswer::Floors(found, _) = self.catalog.ask(&query) else { return };
        for (name, floor) in found {
            let stream = self.streams.keeper.adopt(&name, floor);
            let mut by_shard = vec![Vec::new(); cores.len()];
            for (offset, key) in self.entries(&name, floor.stream, floor.floor) {
                by_shard[usize::from(key.id.shard(cores.len() as u16).0)].push((offset, key));
            }
            for (core, entries) in cores.iter_mut().zip(by_shard) {
                if !entries.is_empty() {
                    self.oracle.coverage.hit("held_again_at_boot");
                }
                core.shard.adopt_holds(now, &HeldEntries { stream: stream.clone(), entries });
            }
        }
    }

    /// After a start, once it is known what survived: all that is held and there is promised.
    pub(super) fn promise_at_boot(&mut self) -> Result<(), Breach> {
        if self.plan.stream_permille == 0 {
            return Ok(());
        }
        self.audit_promises(&[])?;
        for (stream, key) in self.stored_holds() {
            let Some(fact) = self.oracle.facts.get_mut(&key) else { continue };
            let is_there =
                self.catalog.rows.get(&key).is_some_and(|row| row.state != PayloadState::Allocated);
            // A new life: a forced delete that was not answered may not have happened.
            fact.forced = false;
            if is_there && !fact.lost && !fact.gone {
                fact.held = true;
                self.streams.promised.insert((stream, key));
            }
        }
        Ok(())
    }

    /// At the end: every stream goes, or its groups pass all of it.
    pub(super) fn streams_let_go(&mut self) {
        let at = self.clock().wall;
        // As the catalog has them: a deletion may have failed.
        let query = RecordQuery::Floors { after: 0, streams_max: usize::MAX };
        let RecordAnswer::Floors(streams, _) = self.catalog.ask(&query) else { return };
        for (stream, _) in streams {
            if self.rng.chance(500) {
                self.submit_record(RecordChange::StreamDelete { stream }, 0);
                continue;
            }
            let offset = self.stream_end(&stream);
            for group in ["g", "h"] {
                let (stream, group) = (stream.clone(), group.to_owned());
                self.submit_record(RecordChange::StreamCommit { stream, group, offset, at }, 0);
            }
        }
    }

    /// After that: nothing is held any more.
    pub(super) fn audit_let_go(&mut self) -> Result<(), Breach> {
        let held: Vec<usize> = self.cores.iter().map(|core| core.shard.holds()).collect();
        if held.iter().any(|count| *count > 0) || !self.streams.promised.is_empty() {
            return breach(
                Rule::Leak,
                format!("every stream has let go, and shards hold {held:?}: {:?}", self.streams),
            );
        }
        for fact in self.oracle.facts.values_mut() {
            fact.may_be_held = false;
        }
        Ok(())
    }
}
