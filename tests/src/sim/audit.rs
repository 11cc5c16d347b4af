//! Looks at the whole node: after every step at what must hold at every moment, at boot at what survived, and once
//! everything is quiet at what must be equal.

use std::collections::BTreeMap;

use payload_shards::Shard;
use payload_types::reply::{ShardStats, Summary};
use payload_types::{Health, PayloadKey, PayloadRow, PayloadState, Pin, ShardIndex, Tier};

use super::answers::DEADLINE_SLACK_NS;
use super::oracle::{Breach, Oracle, Rule, Scene, block_name, breach, key_of};
use super::storage::{Damage, Phase};

/// How late a shard may notice that a lease has ended: a tick, and a pump that slept.
const LEASE_SLACK_MS: u64 = 50;

/// What one shard answered to the oracle's own List and Stats.
#[derive(Clone, Debug, Default)]
pub(super) struct Look {
    pub(super) rows: Vec<(PayloadKey, Summary)>,
    pub(super) total: u64,
    pub(super) stats: ShardStats,
}

impl Oracle {
    /// After every step. `busy` says whether a driver or the catalog still works for a payload.
    pub(super) fn audit(
        &mut self,
        scene: Scene<'_>,
        busy: impl Fn(PayloadKey) -> bool,
    ) -> Result<(), Breach> {
        self.audit_leases(scene)?;
        self.audit_catalog(scene)?;
        self.audit_overdue(scene, busy)
    }

    /// Every live lease points at a named block with the bytes that were committed.
    fn audit_leases(&mut self, scene: Scene<'_>) -> Result<(), Breach> {
        let Self { leases, facts, coverage, .. } = self;
        leases.retain(|_, lease| {
            // The server may notice the end a little later.
            let known = scene.now.wall.as_millis() < lease.expires_at.as_millis() + LEASE_SLACK_MS;
            if !known && !lease.over {
                coverage.hit("lease_expired_by_itself");
            }
            known
        });
        for (id, lease) in leases.iter().filter(|(_, lease)| lease.is_live(scene.now)) {
            let fact = &facts[&lease.key];
            let Some(block) = scene.storage.blocks.get(&lease.block) else {
                return breach(
                    Rule::LiveLease,
                    format!("{id:?} points at {:?}, which is freed", lease.block),
                );
            };
            if block.phase != Phase::Ready {
                return breach(
                    Rule::LiveLease,
                    format!("{id:?} points at {:?}, which is dropped: {block:?}", lease.block),
                );
            }
            if block.content != fact.content && block.damage == Damage::None && !fact.damaged {
                return breach(Rule::LiveLease, format!("{id:?} points at other bytes: {block:?} {fact:?}"));
            }
            if fact.expires_at.is_some_and(|end| end <= scene.now.wall) {
                coverage.hit("expiry_under_lease");
            }
        }
        Ok(())
    }

    /// A crash at this moment would lose nothing that was acknowledged: the durable row of every committed payload
    /// names a replica that is there, has its bytes, and is not being dropped.
    fn audit_catalog(&self, scene: Scene<'_>) -> Result<(), Breach> {
        for fact in self.facts.values().filter(|fact| fact.committed && !fact.gone && !fact.lost) {
            if !fact.must_exist(scene.now, scene.plan) {
                continue;
            }
            let Some(row) = scene.catalog.rows.get(&fact.key) else {
                return breach(
                    Rule::CommitLost,
                    format!("the row of an acknowledged commit is gone: {fact:?}"),
                );
            };
            if fact.damaged || fact.wrong_checksum {
                continue;
            }
            // Its bytes lie in a slab, which nothing outlives.
            if fact.arena && row.replicas.is_empty() {
                continue;
            }
            if row.health != Health::Good {
                return breach(Rule::CommitLost, format!("given up, and nothing was damaged: {row:?}"));
            }
            let good = |replica: &&payload_types::ReplicaRow| {
                let block = scene.storage.blocks.get(&block_name(fact.key, replica.tier, replica.generation));
                block.is_some_and(|block| block.is_intact() && block.content == fact.content)
            };
            let Some(replica) = row.replicas.iter().find(good) else {
                return breach(Rule::CommitLost, format!("no replica of the durable row is there: {row:?}"));
            };
            if fact.power_safe
                && !row.replicas.iter().filter(good).any(|replica| {
                    scene.storage.blocks[&block_name(fact.key, replica.tier, replica.generation)].synced
                })
            {
                return breach(
                    Rule::CommitLost,
                    format!("promised to survive power loss, only {replica:?}: {row:?}"),
                );
            }
        }
        Ok(())
    }

    /// Nobody waits past a deadline, except for work on a payload that a driver or the catalog has begun.
    fn audit_overdue(&mut self, scene: Scene<'_>, busy: impl Fn(PayloadKey) -> bool) -> Result<(), Breach> {
        while let Some((deadline, to)) = self.overdue.first().copied() {
            if deadline.0 + DEADLINE_SLACK_NS >= scene.now.monotonic.0 {
                return Ok(());
            }
            let pending = self.pending.get_mut(&to).expect("overdue requests are pending");
            if pending.waits_for_work() && key_of(&pending.request).is_some_and(&busy) {
                self.overdue.remove(&(deadline, to));
                pending.deadline = Some(scene.now.monotonic);
                self.overdue.insert((scene.now.monotonic, to));
                continue;
            }
            return breach(Rule::Deadline, format!("not answered by its deadline: {pending:?}"));
        }
        Ok(())
    }

    /// Space that is used is charged, and charged to the shard that owns it.
    pub(super) fn audit_space(
        &self,
        shard: &Shard,
        index: ShardIndex,
        scene: Scene<'_>,
        exact: bool,
    ) -> Result<(), Breach> {
        for tier in Tier::ALL {
            let charged = shard.usage(tier).allocated;
            let granted = shard.budget_held()[tier].0;
            let real = scene.storage.bytes_held(index, scene.shard_count, tier, exact);
            if charged < real || granted < charged || (exact && charged != real) {
                return breach(
                    Rule::Accounting,
                    format!(
                        "{index:?} uses {real} bytes of {tier}, charges {charged}, was granted {granted}"
                    ),
                );
            }
        }
        Ok(())
    }

    /// Boot. What the storage kept and the durable rows decide everything that was in doubt.
    pub(super) fn boot(&mut self, scene: Scene<'_>, power_loss: bool) -> Result<(), Breach> {
        self.judge_return(scene)?;
        let Self { facts, coverage, .. } = self;
        for fact in facts.values_mut().filter(|fact| !fact.gone) {
            let must_exist = fact.committed && fact.must_exist(scene.now, scene.plan);
            let Some(row) = scene.catalog.rows.get(&fact.key) else {
                if must_exist {
                    return breach(Rule::CommitLost, format!("no row at boot: {fact:?}"));
                }
                fact.gone = true;
                continue;
            };
            if row.state == PayloadState::Allocated {
                if must_exist {
                    return breach(
                        Rule::CommitLost,
                        format!("committed, and no more than enrolled: {fact:?}"),
                    );
                }
                (fact.gone_maybe, fact.shown, fact.lost) = (false, None, true);
                coverage.hit("enrolled_and_lost_at_a_boot");
                continue;
            }
            if !fact.committed && !fact.commit_maybe {
                return breach(Rule::Row, format!("stored, and nobody committed it: {row:?}"));
            }
            (fact.committed, fact.gone_maybe, fact.shown) = (true, false, None);
            if fact.pinned && row.pin != Pin::Forever {
                return breach(Rule::CommitLost, format!("the pin was forgotten: {row:?}"));
            }
            let kept = |replica: &payload_types::ReplicaRow| {
                let block = scene.storage.blocks.get(&block_name(fact.key, replica.tier, replica.generation));
                block.is_some_and(|block| block.is_found_at_boot())
            };
            if row.replicas.iter().any(kept) && row.health != Health::Lost {
                continue;
            }
            let excused = fact.damaged
                || fact.lost
                || fact.arena && row.replicas.is_empty()
                || row.health != Health::Good
                || (power_loss && !fact.power_safe);
            if must_exist && !excused {
                return breach(Rule::CommitLost, format!("nothing survived: {fact:?} {row:?}"));
            }
            if power_loss && !fact.lost {
                coverage.hit("volatile_payload_lost_with_power");
            }
            fact.lost = true;
        }
        Ok(())
    }

    /// What one shard shows of itself against what must be there.
    pub(super) fn judge_look(
        &mut self,
        shard: ShardIndex,
        look: &Look,
        scene: Scene<'_>,
    ) -> Result<(), Breach> {
        if look.total != look.rows.len() as u64 {
            return breach(
                Rule::Listing,
                format!("{shard:?} counts {} and lists {}", look.total, look.rows.len()),
            );
        }
        let listed: BTreeMap<PayloadKey, &Summary> = look.rows.iter().map(|(key, row)| (*key, row)).collect();
        if listed.len() != look.rows.len() {
            return breach(Rule::Listing, format!("{shard:?} lists a payload twice: {look:?}"));
        }
        for (key, row) in &listed {
            let Some(fact) = self.facts.get(key) else {
                // It is shown from the moment on at which its Allocate is answered.
                let asked = self.pending.values().any(|pending| key_of(&pending.request) == Some(*key));
                let rule = if asked { Rule::Answers } else { Rule::Listing };
                return breach(rule, format!("{shard:?} lists what nobody allocated: {row:?}"));
            };
            if fact.gone {
                return breach(Rule::Listing, format!("{shard:?} lists what is gone: {row:?}"));
            }
            if (row.size, row.created_at, row.expires_at) != (fact.size, fact.created_at, fact.expires_at) {
                return breach(Rule::Listing, format!("not as allocated: {row:?}"));
            }
            let live =
                self.leases.values().filter(|lease| lease.key == *key && lease.is_live(scene.now)).count();
            if (row.leases as usize) < live {
                return breach(Rule::Listing, format!("{live} leases are live: {row:?}"));
            }
        }
        for fact in self.facts.values() {
            let here = fact.key.id.shard(scene.shard_count) == shard && !fact.damaged;
            if here && fact.must_exist(scene.now, scene.plan) && !listed.contains_key(&fact.key) {
                return breach(Rule::Listing, format!("{shard:?} does not list {fact:?}"));
            }
        }
        for tier in Tier::ALL {
            let stats = look.stats.tiers[tier];
            let rows = look.rows.iter().filter(|(_, row)| row.tier == tier).count() as u64;
            let least: u64 =
                look.rows.iter().filter(|(_, row)| row.tier == tier).map(|(_, row)| row.size.0).sum();
            if stats.payloads != rows || stats.bytes < least {
                return breach(
                    Rule::Accounting,
                    format!("{shard:?} {tier}: {stats:?}, listed {rows} with {least} bytes"),
                );
            }
        }
        Ok(())
    }

    /// Nothing is under way and nothing is leased: replicas shown, replicas there and replicas charged are the same.
    /// `waiting`: some operation waits for space that nobody can make, an eviction or a move without a deadline.
    // Long because: each sum is compared with its own recount.
    pub(super) fn judge_quiet(
        &mut self,
        looks: &[Look],
        waiting: bool,
        scene: Scene<'_>,
    ) -> Result<(), Breach> {
        // A blocking move without a deadline waits for space as long as there is none, and a scrub behind it;
        // `audit_waiters` looks at those.
        let moves = |pending: &super::oracle::Pending| {
            use payload_types::request::Request;
            matches!(
                pending.request,
                Request::Promote { .. } | Request::Spill(_) | Request::Acquire(_) | Request::Scrub(_)
            )
        };
        let waits = |pending: &super::oracle::Pending| moves(pending) && pending.deadline.is_none();
        if let Some((to, pending)) = self.pending.iter().find(|(_, pending)| !waits(pending)) {
            return breach(Rule::Answers, format!("request {to} was never answered: {pending:?}"));
        }
        if let Some((id, lease)) = self.leases.iter().find(|(_, lease)| lease.is_live(scene.now)) {
            return breach(Rule::Leak, format!("a lease outlived its end: {id:?} {lease:?}"));
        }
        for tier in Tier::ALL {
            let shown: u64 = looks.iter().map(|look| look.stats.tiers[tier].bytes).sum();
            // Nothing tells when a place in a slab is left.
            let in_slabs: u64 = looks.iter().map(|look| look.stats.arenas.payload_bytes).sum();
            let shown = if tier == Tier::Ram { shown - in_slabs } else { shown };
            let blocks = scene.storage.blocks.iter();
            let blocks = blocks.filter(|(name, block)| name.tier == tier && block.place.is_none());
            // What is dead in a segment file stays until it is worth to empty that; to the end only with what lives.
            let may_stay = |block: &super::storage::Block| {
                block.extent.is_some() && block.phase == Phase::Detached && !looks.is_empty()
            };
            let is_left =
                |(_, block): &(_, &super::storage::Block)| block.phase != Phase::Ready && !may_stay(block);
            if let Some((name, block)) = blocks.clone().find(is_left) {
                return breach(Rule::Leak, format!("{name:?} is still {block:?}"));
            }
            let there: u64 =
                blocks.filter(|(_, block)| block.phase == Phase::Ready).map(|(_, block)| block.size.0).sum();
            if shown != there {
                return breach(
                    Rule::Accounting,
                    format!("{tier} holds {there} bytes of replicas, Stats says {shown}"),
                );
            }
        }
        if let Some(slab) = scene.storage.slabs.any().filter(|_| looks.is_empty()) {
            return breach(Rule::Leak, format!("nobody needs it, and it was not given back: {slab}"));
        }
        for (key, row) in looks.iter().flat_map(|look| &look.rows) {
            let fact = &self.facts[key];
            if row.leases != 0 {
                return breach(Rule::Leak, format!("leases are left: {row:?}"));
            }
            if !fact.committed && !fact.commit_maybe {
                return breach(Rule::Leak, format!("an allocation outlived its timeout: {row:?} {fact:?}"));
            }
            let there = scene.storage.blocks.iter();
            let there = there.filter(|(name, block)| name.id == key.id && block.phase == Phase::Ready);
            let fastest = there.clone().map(|(name, _)| name.tier).min();
            let left_a_slab = there.into_iter().any(|(_, block)| block.place.is_some());
            if Some(row.tier) != fastest && !left_a_slab {
                return breach(
                    Rule::WrongAnswer,
                    format!("shown on {}, fastest is {fastest:?}: {row:?}", row.tier),
                );
            }
            let settled = matches!(row.state, PayloadState::Active | PayloadState::Durable);
            let moving = matches!(row.state, PayloadState::Spilling | PayloadState::Evicting);
            let waiting = waiting && moving;
            if !settled && !waiting {
                return breach(Rule::State, format!("{row:?} is not at rest"));
            }
        }
        Ok(())
    }

    /// A row on its way to the catalog: is it so?
    pub(super) fn judge_row(&mut self, row: &PayloadRow, scene: Scene<'_>) -> Result<(), Breach> {
        if row.state == PayloadState::Allocated {
            let vouches = !row.replicas.is_empty() || row.checksum.is_some();
            if vouches || scene.catalog.rows.get(&row.key).is_some_and(|old| old.state != row.state) {
                return breach(
                    Rule::Row,
                    format!("enrolled with more than its name, or after Commit: {row:?}"),
                );
            }
            return Ok(());
        }
        if !matches!(row.state, PayloadState::Active | PayloadState::Durable | PayloadState::Expired) {
            return breach(Rule::Row, format!("a state that is never stored: {row:?}"));
        }
        if let Some(old) = scene.catalog.rows.get(&row.key)
            && (old.epoch, old.version) > (row.epoch, row.version)
        {
            return breach(Rule::Version, format!("older than the stored one {old:?}: {row:?}"));
        }
        for replica in &row.replicas {
            let block = scene.storage.blocks.get(&block_name(row.key, replica.tier, replica.generation));
            let Some(block) = block.filter(|block| block.phase == Phase::Ready && block.sealed) else {
                return breach(Rule::Row, format!("vouches for what is not there: {row:?} {block:?}"));
            };
            if replica.extent != block.extent {
                return breach(Rule::Row, format!("names another place: {row:?} {block:?}"));
            }
            if block.salvaged && replica.sound && row.health == Health::Good {
                return breach(Rule::Row, format!("vouches for what was damaged: {row:?} {block:?}"));
            }
            if replica.synced && !block.synced {
                return breach(Rule::Row, format!("says synced, and it is not: {row:?} {block:?}"));
            }
        }
        let durable = row.replicas.iter().any(|replica| replica.tier.is_durable());
        let unsound = row.replicas.iter().any(|replica| !replica.sound);
        let volatile = row.replicas.iter().any(|replica| !replica.tier.is_durable());
        if unsound {
            self.coverage.hit("damaged_replica_marked_in_its_row");
        }
        if durable && volatile && !unsound {
            return breach(Rule::Row, format!("vouches for a volatile replica without need: {row:?}"));
        }
        if row.health == Health::Good
            && durable != (row.state == PayloadState::Durable)
            && row.state != PayloadState::Expired
        {
            return breach(Rule::Row, format!("state and replicas do not fit: {row:?}"));
        }
        Ok(())
    }
}

impl super::oracle::Pending {
    /// True for requests whose answer is the outcome of begun work, even after the deadline.
    pub(super) fn waits_for_work(&self) -> bool {
        use payload_types::request::Request;
        matches!(
            self.request,
            Request::Allocate(_)
                | Request::Commit { .. }
                | Request::Delete { .. }
                | Request::Abort { .. }
                | Request::Pin { .. }
                | Request::Unpin { .. }
                | Request::Enrol { .. }
                | Request::Spill(_)
                | Request::Scrub(_)
        )
    }
}
