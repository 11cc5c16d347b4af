//! Capacity under pressure: carries messages to the arbiter and its orders to shards, and keeps the oracle's own books
//! of who waits, what was granted, and what may be evicted.
//!
//! Checked at each message of the arbiter: granted + free + pot = capacity, nobody waits whom it does not know, and no
//! order asks for more than what waits or what is above the low watermark lacks. Checked at each order that reaches a
//! shard: who leaves was allowed to, left in the order of ranks but for those who have to wait for room elsewhere, and not
//! more than was ordered plus one payload. Who waits is looked at by `waits`.

use std::collections::{BTreeMap, BTreeSet};

use payload_shards::Candidate;
use payload_types::effect::BudgetRequest;
use payload_types::event::{BudgetReply, Completion, EvictOrder};
use payload_types::tier::SpillTarget;
use payload_types::{EvictionPriority, Monotonic, OpId, PayloadId, PayloadKey, PerTier, ShardIndex, Tier};

use super::canary::Canary;
use super::oracle::{Breach, Rule, breach};
use super::waits::Watch;
use super::world::{RECALL_OWN, World};

/// An ask that waits.
#[derive(Clone, Copy, Debug)]
struct Ask {
    bytes: u64,
    /// Evictions were ordered since.
    evicted: bool,
}

type AskName = (Tier, ShardIndex, OpId);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Books {
    asks: BTreeMap<(u8, u16, u32, u32), Ask>,
    /// What each shard said is on its way out.
    leaving: BTreeMap<(u8, u16), u64>,
    /// What the arbiter ordered, by the number of the order: a planted bug may change it on the way.
    ordered: BTreeMap<(u8, u64), u64>,
    /// Operations that were granted space after an eviction.
    after_eviction: BTreeSet<(u16, u32, u32)>,
    /// Payloads that are being copied down under pressure.
    pub(super) evicting: BTreeSet<PayloadId>,
    pub(super) watch: Watch,
}

fn name((tier, shard, op): AskName) -> (u8, u16, u32, u32) {
    (tier as u8, shard.0, op.index, op.generation)
}

/// Lists of at most so many are in exact order; in longer ones who comes back stands near his place (`ledger::recency`).
const WALK_MAX: usize = 64;

/// What a shard lists before an order reaches it.
#[derive(Debug)]
pub(super) struct Before {
    victims: Vec<Candidate>,
    /// No other work of the step blurs the picture.
    is_exact: bool,
}

impl World {
    /// A message reaches the arbiter.
    pub(super) fn arbiter_step(&mut self, mut request: BudgetRequest) -> Result<(), Breach> {
        self.trace.add(self.now, format_args!("arbiter <- {request:?}"));
        let (tier, asker) = match &mut request {
            BudgetRequest::Ask { shard, tier, op, bytes } => {
                let ask = Ask { bytes: bytes.0, evicted: false };
                self.books.asks.insert(name((*tier, *shard, *op)), ask);
                (*tier, *shard)
            }
            BudgetRequest::Cancel { shard, tier, .. } => (*tier, *shard),
            BudgetRequest::Return { shard, tier, bytes, recall, supply, .. } => {
                self.granted[*tier] -= bytes.0;
                *recall = recall.filter(|recall| *recall != RECALL_OWN);
                self.books.leaving.insert((*tier as u8, shard.0), supply.leaving);
                (*tier, *shard)
            }
        };
        let fresh = match request {
            BudgetRequest::Ask { shard, op, .. } => Some((shard, op)),
            _ => None,
        };
        let cancels = matches!(request, BudgetRequest::Cancel { .. });
        if let BudgetRequest::Cancel { shard, op, tier } = request
            && self.canary == Some(Canary::ForgottenCancel)
        {
            // The shard is answered, and the arbiter never hears of it.
            self.books.asks.remove(&name((tier, shard, op)));
            let usage = payload_types::effect::TierUsage::default();
            self.answer_budget(shard, BudgetReply::Denied { op, tier, free: self.arbiter.free(tier), usage });
            self.asks_open -= 1;
            return self.audit_books(tier);
        }
        let pot_before = self.arbiter.pot(tier).0;
        let mut replies = Vec::new();
        self.arbiter.step(request, &mut replies);
        if cancels && self.arbiter.pot(tier).0 < pot_before {
            self.oracle.coverage.hit("collector_cancelled");
        }
        for (shard, reply) in replies {
            self.trace.add(self.now, format_args!("arbiter -> shard {} {reply:?}", shard.0));
            self.asks_open -= u64::from(!matches!(reply, BudgetReply::Recall { .. }));
            match reply {
                BudgetReply::Granted { op, bytes, .. } => {
                    self.note_grant((tier, shard, op), bytes.0, fresh == Some((shard, op)))?;
                }
                BudgetReply::Denied { op, .. } => {
                    self.books.asks.remove(&name((tier, shard, op)));
                    self.note_refused_eviction(tier);
                    self.oracle.coverage.hit("budget_denied");
                }
                BudgetReply::Recall { recall, evict, .. } => {
                    if shard != asker {
                        self.oracle.coverage.hit("budget_recalled_from_another_shard");
                    }
                    if let Some(order) = evict {
                        self.note_order(tier, recall, order)?;
                    }
                }
            }
            let lost = matches!(reply, BudgetReply::Granted { .. }) && self.strikes(Canary::LostWake, 50);
            if !lost {
                self.answer_budget(shard, reply);
            }
        }
        self.tell_wanted();
        self.audit_books(tier)
    }

    fn answer_budget(&mut self, shard: ShardIndex, reply: BudgetReply) {
        let mut reply = reply;
        if let BudgetReply::Recall { evict: Some(order), .. } = &mut reply
            && self.canary == Some(Canary::OverEviction)
        {
            (order.bytes.0, order.bound) = (u64::MAX, None);
        }
        if let BudgetReply::Recall { tier, room, evict, .. } = &mut reply {
            match self.canary {
                Some(Canary::DeafToRoom) => *room = None,
                Some(Canary::FullStopsAll) if *tier == Tier::Ram && self.asked(Tier::Disk) > 0 => {
                    // Where nobody lacks anything it would be told again and again to evict, and harm nobody.
                    *evict = evict.filter(|_| self.lack(Tier::Ram) == 0);
                }
                _ => {}
            }
        }
        let delay = self.plan.hop_delay(&mut self.rng);
        let core = usize::from(shard.0);
        let at = self.budget_reply_arrival(core, delay);
        self.deliver_at(at, core, Completion::Budget(reply), None);
    }

    fn note_grant(&mut self, ask: AskName, bytes: u64, fresh: bool) -> Result<(), Breach> {
        let (tier, shard, op) = ask;
        let Some(waited) = self.books.asks.remove(&name(ask)) else {
            return breach(Rule::Budget, format!("{ask:?} was granted {bytes} bytes, and nobody asked"));
        };
        if waited.evicted {
            self.oracle.coverage.hit("waiter_served_by_an_eviction");
            self.books.after_eviction.insert((shard.0, op.index, op.generation));
        } else if !fresh {
            self.oracle.coverage.hit("waiter_served_by_a_free");
        }
        self.granted[tier] += bytes;
        let capacity = self.plan.capacity[tier].unwrap_or_default().0;
        if self.granted[tier] > capacity {
            return breach(
                Rule::Budget,
                format!("{} of {capacity} bytes of {tier} granted", self.granted[tier]),
            );
        }
        Ok(())
    }

    /// True when this operation was granted its space after an eviction. Asked once.
    pub(super) fn came_after_eviction(&mut self, shard: usize, op: OpId) -> bool {
        self.books.after_eviction.remove(&(shard as u16, op.index, op.generation))
    }

    /// The arbiter orders an eviction: not more than what is wanted and not yet on its way.
    fn note_order(&mut self, tier: Tier, recall: u64, order: EvictOrder) -> Result<(), Breach> {
        let asked = self.asked(tier);
        let at_hand = self.arbiter.free(tier).0 + self.arbiter.pot(tier).0;
        let capacity = self.plan.capacity[tier].unwrap_or_default().0;
        let low = capacity * u64::from(self.plan.watermarks.low) / 100;
        let wanted = asked.saturating_sub(at_hand).max(self.granted[tier].saturating_sub(low));
        let told = self.told_leaving(tier);
        if order.bytes.0 + told > wanted {
            return breach(
                Rule::Eviction,
                format!("{order:?} on {tier}: {wanted} bytes are wanted, {told} are on their way"),
            );
        }
        if order.bound.is_some() {
            self.oracle.coverage.hit("evict_merged_by_rank");
        }
        for ((of, ..), ask) in &mut self.books.asks {
            ask.evicted |= *of == tier as u8;
        }
        self.books.ordered.insert((tier as u8, recall), order.bytes.0);
        Ok(())
    }

    fn audit_books(&mut self, tier: Tier) -> Result<(), Breach> {
        let capacity = self.plan.capacity[tier].unwrap_or_default().0;
        let (free, pot) = (self.arbiter.free(tier).0, self.arbiter.pot(tier).0);
        let granted = self.granted[tier];
        // Adopted at boot beyond a capacity that was lowered: then nothing is free.
        if granted + free + pot != capacity && !(granted > capacity && free + pot == 0) {
            return breach(
                Rule::Budget,
                format!("{tier}: granted {granted}, free {free}, pot {pot}, capacity {capacity}"),
            );
        }
        let known = self.books.asks.keys().filter(|(of, ..)| *of == tier as u8).count();
        if self.arbiter.waiting(tier) != known {
            return breach(
                Rule::Budget,
                format!("{tier}: {} wait at the arbiter, {known} asked", self.arbiter.waiting(tier)),
            );
        }
        Ok(())
    }

    /// Who could be evicted from a shard, before an order reaches it.
    pub(super) fn before_order(&self, shard: usize, tier: Tier) -> Before {
        let shard = &self.cores[shard].shard;
        Before { victims: shard.victims(tier).collect(), is_exact: shard.next_timer() != Some(Monotonic(0)) }
    }

    /// An order was handled: who left, and might he?
    pub(super) fn after_order(
        &mut self,
        shard: usize,
        (tier, recall, order): (Tier, u64, EvictOrder),
        before: Option<Before>,
    ) -> Result<(), Breach> {
        let allowed = self.books.ordered.remove(&(tier as u8, recall)).unwrap_or(order.bytes.0);
        let Some(Before { victims, is_exact }) = before else { return Ok(()) };
        let is_sorted = victims.len() <= WALK_MAX;
        let after = &self.cores[shard].shard;
        let stay: BTreeSet<PayloadKey> = after.victims(tier).map(|victim| victim.key).collect();
        let (gone, stayed): (Vec<_>, Vec<_>) =
            victims.into_iter().partition(|victim| !stay.contains(&victim.key));
        // One that waits for room, or cannot go now, is taken out of the list, and the next one goes.
        let asked: Vec<PayloadKey> =
            gone.iter().map(|victim| victim.key).filter(|key| after.may_be_evicted(*key)).collect();
        let gone = gone.into_iter().filter(|victim| !after.is_passed_over(victim.key));
        let (waits, left): (Vec<_>, Vec<_>) = gone.partition(|victim| after.is_stuck(victim.key));
        let has_room =
            |victim: &&Candidate| victim.needs.is_none_or(|to| victim.bytes <= after.room_for_evictions(to));
        let first_stayed = stayed.iter().filter(has_room).map(|victim| victim.rank).min();
        let sum: u64 = left.iter().map(|victim| victim.bytes).sum();
        let last = left.last().map_or(0, |victim| victim.bytes);
        if is_exact && !left.is_empty() && sum - last >= allowed {
            return breach(
                Rule::Eviction,
                format!("{sum} bytes of {tier} leave, the last {last}, ordered {allowed}: {left:?}"),
            );
        }
        for key in waits.iter().map(|victim| victim.key).chain(asked) {
            self.judge_victim(tier, key)?;
        }
        for Candidate { rank, key, .. } in &left {
            let behind = first_stayed.is_some_and(|other| other < *rank);
            let bound =
                self.canary != Some(Canary::OverEviction) && order.bound.is_some_and(|bound| bound < *rank);
            if is_exact && (behind && is_sorted || bound) {
                return breach(
                    Rule::Eviction,
                    format!("{key:?} goes at {rank:?}, first other {first_stayed:?}, {order:?}"),
                );
            }
            self.judge_victim(tier, *key)?;
        }
        if !left.is_empty() {
            self.note_passed_over(tier);
        }
        Ok(())
    }

    /// May this payload leave this tier under pressure?
    fn judge_victim(&mut self, tier: Tier, key: PayloadKey) -> Result<(), Breach> {
        let now = self.clock();
        let leased = self.oracle.leases.values().any(|lease| lease.key == key && lease.is_live(now));
        // One that was found damaged saves nobody.
        let slower = |replica: &payload_types::ReplicaRow| replica.sound && tier.is_faster_than(replica.tier);
        let has_twin = self.catalog.rows.get(&key).is_some_and(|row| row.replicas.iter().any(slower));
        let Some(fact) = self.oracle.facts.get_mut(&key) else {
            return breach(Rule::Eviction, format!("{key:?} is evicted, and nobody knows it"));
        };
        let floor = fact.policy.min_residency.is_some_and(|floor| !tier.is_faster_than(floor));
        let never = fact.no_evict || fact.policy.priority == EvictionPriority::Never;
        if leased || fact.pinned || never || floor {
            return breach(
                Rule::Eviction,
                format!("evicted from {tier}: leased {leased}, pinned {}, {fact:?}", fact.pinned),
            );
        }
        if fact.policy.spill_target == Some(SpillTarget::Void) && !has_twin && !fact.held {
            fact.gone_maybe = true;
            self.oracle.coverage.hit("evict_discarded_void");
        } else if has_twin {
            self.oracle.coverage.hit("evict_dropped_clean_replica");
        } else {
            self.books.evicting.insert(key.id);
            self.oracle.coverage.hit("evict_to_disk");
        }
        Ok(())
    }

    /// An eviction that nobody copies was waiting for space on its destination.
    fn note_refused_eviction(&mut self, tier: Tier) {
        let waiting = self.books.evicting.iter().copied().find(|id| !self.copies_of(*id));
        if let Some(id) = waiting.filter(|_| tier == Tier::Disk) {
            self.books.evicting.remove(&id);
            self.oracle.coverage.hit("evict_to_a_full_disk");
        }
    }

    fn note_passed_over(&mut self, tier: Tier) {
        let now = self.clock();
        let leased = self.oracle.leases.values().any(|lease| lease.block.tier == tier && lease.is_live(now));
        let pinned = self.oracle.facts.values().any(|fact| fact.pinned && !fact.gone && fact.tier == tier);
        if leased {
            self.oracle.coverage.hit("evict_while_leased_elsewhere");
        }
        if pinned {
            self.oracle.coverage.hit("evict_while_pinned_elsewhere");
        }
        // A bug that does not look at leases takes such a replica's name away.
        if self.canary == Some(Canary::EvictsLeased) {
            let block = self.oracle.leases.values().find(|lease| lease.is_live(now)).map(|lease| lease.block);
            if let Some(block) = block.filter(|block| self.storage.blocks.contains_key(block)) {
                let shard = self.shard_of(block);
                self.storage.finish_detach(block, shard);
            }
        }
    }

    /// What is asked for on a tier and not granted yet.
    pub(super) fn asked(&self, tier: Tier) -> u64 {
        self.asks_on(tier).map(|ask| ask.bytes).sum()
    }

    /// The least of those asks, and how many there are.
    pub(super) fn least_asked(&self, tier: Tier) -> Option<(u64, usize)> {
        Some((self.asks_on(tier).map(|ask| ask.bytes).min()?, self.asks_on(tier).count()))
    }

    fn asks_on(&self, tier: Tier) -> impl Iterator<Item = &Ask> {
        self.books.asks.iter().filter(move |((of, ..), _)| *of == tier as u8).map(|(_, ask)| ask)
    }

    /// What shards said to be on its way out of a tier.
    pub(super) fn told_leaving(&self, tier: Tier) -> u64 {
        self.books.leaving.iter().filter(|((of, _), _)| *of == tier as u8).map(|(_, bytes)| bytes).sum()
    }

    /// The server died.
    pub(super) fn forget_books(&mut self) {
        self.books = Books::default();
        self.granted = PerTier::default();
    }
}
