//! Who waits for capacity, and must not: nobody waits for what is free, or for what somebody could leave to him.
//!
//! Watched at each step: while somebody waits on a tier, and what is free there and on its way out is less than he lacks,
//! nobody who could go stays the first of his shard for longer than the messages take that would tell him to; and nothing
//! counts as on its way out as long that itself waits for a tier in which nothing moves. (That somebody could go says
//! nothing: where many commit, there is the next one whenever one has gone.) So a waiter meets his deadline only when
//! nobody could have gone, however full the disk is. Looked at when the node is quiet and nobody speaks with the arbiter: what is
//! free, or fits where it would go, is not waited for.

use std::collections::BTreeMap;

use payload_shards::Candidate;
use payload_types::event::{Completion, Event};
use payload_types::{Monotonic, PayloadKey, Rank, Tier};

use super::agenda::Task;
use super::faults::MILLIS;
use super::oracle::{Breach, Rule, breach};
use super::world::World;

/// Longer than a recall of every shard, their answers, and the orders that follow: hops of at most 2 ms, and pumps that
/// sleep.
const MESSAGES_NS: u64 = 20 * MILLIS;

/// What should be over soon.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Idle {
    /// Somebody on this shard could go, and is not told to.
    Victim(usize),
    /// What waits itself counts as on its way out.
    Hope,
}

/// Who could go: another one in his place is no longer the same. The key is that of one who needs no room.
type First = Option<(Rank, Option<PayloadKey>)>;

/// Since when things are so that should be over soon. See the module.
#[derive(Debug, Default)]
pub(super) struct Watch {
    since: BTreeMap<(u8, Idle), (First, Monotonic)>,
    /// When the node was as it is now.
    seen: Monotonic,
}

impl World {
    /// Before a task is handled: as it left things until now.
    pub(super) fn watch_waiters(&mut self) -> Result<(), Breach> {
        let since = std::mem::replace(&mut self.books.watch.seen, self.now);
        for tier in Tier::ALL {
            let lack = self.lack(tier);
            let found = if lack > 0 { self.find_idle(tier) } else { BTreeMap::new() };
            let watched = &mut self.books.watch.since;
            watched.retain(|(of, idle), (first, _)| *of != tier as u8 || found.get(idle) == Some(first));
            for (idle, first) in found {
                let (_, begun) = *watched.entry((tier as u8, idle)).or_insert((first, since));
                if self.now.0 > begun.0 + MESSAGES_NS {
                    let lasted = (self.now.0 - begun.0) / MILLIS;
                    return breach(
                        Rule::Starved,
                        format!("{lack} bytes of {tier} are lacked, and for {lasted} ms {idle:?}: {first:?}"),
                    );
                }
            }
        }
        Ok(())
    }

    /// What those who wait on a tier lack, with what the arbiter has and was told to be on its way.
    pub(super) fn lack(&self, tier: Tier) -> u64 {
        let asked = self.asked(tier);
        let at_hand = self.arbiter.free(tier).0 + self.arbiter.pot(tier).0 + self.told_leaving(tier);
        asked.saturating_sub(at_hand)
    }

    fn find_idle(&self, tier: Tier) -> BTreeMap<Idle, First> {
        let shards = || self.cores.iter().map(|core| &core.shard);
        let victims = shards().enumerate().filter_map(|(index, shard)| {
            let free = shard.victim_without_room(tier).map(|victim| (victim.rank, Some(victim.key)));
            let first = free.or_else(|| Some((shard.supply(tier).head?, None)))?;
            Some((Idle::Victim(index), Some(first)))
        });
        let faster = |other: &Tier| other.is_faster_than(tier);
        let hopes = |from: Tier| shards().map(|shard| shard.hopes(from, tier)).sum::<u64>();
        let hoped: u64 = Tier::ALL.into_iter().filter(faster).map(hopes).sum();
        victims.chain((hoped > 0).then_some((Idle::Hope, None))).collect()
    }

    /// Quiet: nobody waits for what is free, or could be made free.
    pub(super) fn audit_waiters(&mut self) -> Result<(), Breach> {
        while self.somebody_speaks() {
            self.turn(Monotonic(u64::MAX))?;
        }
        for tier in Tier::ALL {
            let (free, pot) = (self.arbiter.free(tier).0, self.arbiter.pot(tier).0);
            let Some((least, waiting)) = self.least_asked(tier) else {
                let wanted = self.arbiter.wanted(tier).0;
                let capacity = self.plan.capacity[tier].unwrap_or_default().0;
                let low = capacity * u64::from(self.plan.watermarks.low) / 100;
                if wanted > self.granted[tier].saturating_sub(low) {
                    return breach(
                        Rule::Budget,
                        format!("{wanted} bytes of {tier} are wanted, and nobody waits"),
                    );
                }
                continue;
            };
            // More than the tier has may be charged after a start: what comes back serves that first.
            let over = self.granted[tier].saturating_sub(self.plan.capacity[tier].unwrap_or_default().0);
            let mut victims = self.cores.iter().flat_map(|core| core.shard.victims(tier));
            let victim = victims.find(|victim| self.lack(tier) > 0 && self.could_go(victim));
            drop(victims);
            let dead = (tier == Tier::Disk)
                .then(|| self.dead_and_not_freed((least + over).saturating_sub(free)))
                .flatten();
            let fits = least <= free || waiting == 1 && least <= free + pot;
            if fits || dead.is_some() || victim.is_some() {
                return breach(
                    Rule::Starved,
                    format!(
                        "{least} bytes of {tier} are waited for, {free} free, {pot} collected, {victim:?} {dead:?}"
                    ),
                );
            }
        }
        Ok(())
    }

    /// True while a message to or from the arbiter is on its way.
    fn somebody_speaks(&self) -> bool {
        self.agenda.tasks().any(|task| {
            matches!(
                task,
                Task::Arbiter(_) | Task::Deliver { event: Event::Completion(Completion::Budget(_)), .. }
            )
        }) || self.cores.iter().any(|core| !core.outbox.is_empty())
    }

    /// True when a victim needs no room, or there is room where it needs some.
    fn could_go(&self, victim: &Candidate) -> bool {
        victim.needs.is_none_or(|to| victim.bytes <= self.arbiter.free(to).0)
    }

    /// True while somebody waits for space.
    pub(super) fn anybody_waits(&self) -> bool {
        Tier::ALL.into_iter().any(|tier| self.least_asked(tier).is_some())
    }
}
