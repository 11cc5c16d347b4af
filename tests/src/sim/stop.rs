//! Graceful stops of servers whose sessions have slabs, the front's part of them.
//!
//! ```text
//!   stop: SpillArenas to every shard, with one deadline --> all have answered --> the process ends, whatever is under way
//! ```
//! Sessions are not asked to be quiet meanwhile: their requests come as ever. When a shard answers, what was acknowledged
//! and lies in a slab alone is named as lost; all else is in the durable catalog with a replica that outlives the
//! process, which is looked at after each step from then on, and at the next boot. A crash may come first.

use std::collections::{BTreeMap, BTreeSet};

use payload_types::effect::ReplyTo;
use payload_types::event::Event;
use payload_types::reply::ArenasSpilled;
use payload_types::request::Request;
use payload_types::{Monotonic, PayloadId, PayloadKey, Tier};

use super::agenda::Task;
use super::canary::Canary;
use super::faults::{MILLIS, SECONDS};
use super::oracle::{Breach, Pending, Rule, breach};
use super::world::World;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Stop {
    /// Shards that have not answered, by the number of the request.
    waiting: BTreeMap<u64, usize>,
    /// What lay in slabs when it began, and is on DISK by now.
    saved: BTreeSet<PayloadKey>,
}

impl World {
    /// True while the server stops.
    pub(super) fn is_stopping(&self) -> bool {
        self.stop.is_some()
    }

    /// The server is told to stop.
    pub(super) fn stop_begins(&mut self) {
        if self.is_stopping() {
            return;
        }
        self.oracle.coverage.hit("stopped_gracefully");
        let within = self.rng.pick(&[0, 2 * MILLIS, 50 * MILLIS, 5 * SECONDS]);
        let deadline = Some(Monotonic(self.now.0 + within));
        let mut stop = Stop::default();
        for shard in 0..usize::from(self.shard_count()) {
            let to = self.client.request_number();
            let request = Request::SpillArenas;
            let pending = Pending {
                request: request.clone(),
                sent: self.now,
                deadline,
                unknown: false,
                stale: false,
                free_min: None,
                pinned: false,
                leased: false,
            };
            self.oracle.sent(ReplyTo(to), pending);
            stop.waiting.insert(to, shard);
            let at = Monotonic(self.now.0 + self.plan.hop_delay(&mut self.rng));
            let event = Event::Request { reply_to: ReplyTo(to), deadline, request };
            self.agenda.add(at, Task::Deliver { shard, event, work: None });
        }
        (self.oracle.stopping, self.stop) = (true, Some(stop));
    }

    /// A planted bug: nobody hears who will be lost.
    pub(super) fn spoil_stop(&mut self, done: &mut ArenasSpilled) {
        if self.canary == Some(Canary::LostUnnamed) {
            (done.lost, done.lost_more) = (Vec::new(), 0);
        }
    }

    /// A shard has saved what it could.
    pub(super) fn stop_answered(&mut self, to: ReplyTo, done: &ArenasSpilled) -> Result<(), Breach> {
        let Some(mut stop) = self.stop.take() else { return Ok(()) };
        if let Some(shard) = stop.waiting.remove(&to.0) {
            let named: BTreeSet<PayloadId> = done.lost.iter().copied().collect();
            self.judge_saved(shard, &named, done.lost_more > 0, &mut stop)?;
        }
        if stop.waiting.is_empty() {
            let at = Monotonic(self.now.0 + self.rng.between(0, 50) * MILLIS);
            self.agenda.add(at, Task::Crash);
        }
        self.stop = Some(stop);
        Ok(())
    }

    /// What a shard has acknowledged outlives the process, or was named.
    fn judge_saved(
        &mut self,
        shard: usize,
        named: &BTreeSet<PayloadId>,
        more: bool,
        stop: &mut Stop,
    ) -> Result<(), Breach> {
        let (now, shard_count) = (self.clock(), self.shard_count());
        let mut lost = 0;
        for fact in self.oracle.facts.values() {
            let here = usize::from(fact.key.id.shard(shard_count).0) == shard;
            // What never was what its producer said it is cannot be saved: the copy finds it damaged, and its row tells so.
            let is_sound = !fact.damaged && !fact.wrong_checksum;
            let counts = fact.arena && fact.committed && is_sound && fact.must_exist(now, &self.plan);
            let Some(row) = self.catalog.rows.get(&fact.key).filter(|_| here && counts) else { continue };
            if row.replicas.iter().any(|replica| replica.tier == Tier::Disk) {
                stop.saved.insert(fact.key);
            }
            if named.contains(&fact.key.id) {
                lost += 1;
            } else if row.replicas.is_empty() && !more {
                let detail = format!("neither saved nor named when the server stopped: {fact:?} {row:?}");
                return breach(Rule::CommitLost, detail);
            }
        }
        if lost > 0 {
            self.oracle.coverage.hit("stop_named_who_will_be_lost");
        }
        Ok(())
    }

    /// The process has ended: what it had saved is counted, the next boot looks for it.
    pub(super) fn stop_ends(&mut self) {
        self.oracle.stopping = false;
        let Some(stop) = self.stop.take().filter(|stop| stop.waiting.is_empty()) else { return };
        if !stop.saved.is_empty() {
            self.oracle.coverage.hit("saved_from_slabs_by_a_stop");
        }
    }
}
