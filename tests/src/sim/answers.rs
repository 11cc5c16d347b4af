//! Judges each reply at the moment it leaves: may it be given, is what it says so, and is what it promises durable?

use payload_types::effect::ReplyTo;
use payload_types::limits;
use payload_types::reply::{LeaseGrant, Reply, ReplyResult, ShardPage};
use payload_types::request::{Acquire, Request, Spill};
use payload_types::scrub::{ScrubOutcome, ScrubVerdict, ScrubbedReplica};
use payload_types::tier::SpillTarget;
use payload_types::{
    Descriptor, ErrorKind, Memory, PayloadError, PayloadKey, PayloadState, Pin, PromotionPolicy, SpillPolicy,
    Tier, Version, WallMs,
};

use super::faults::MILLIS;
use super::find::check_part;
use super::oracle::{
    Breach, LeaseFact, Oracle, Pending, Rule, Scene, block_name, breach, key_of, may_remove,
};
use super::storage::Damage;

/// How late an answer may be: timers are due up to a tick late, messages take a few milliseconds, and a pump may sleep.
pub(super) const DEADLINE_SLACK_NS: u64 = 50 * MILLIS;

/// How long the arbiter may need to learn what is free: a recall and its answer, and pumps that sleep.
const RECALL_SLACK_NS: u64 = 10 * MILLIS;

/// How long an allocation may wait on an overloaded node that could evict everything.
const OVERLOAD_WAIT_MS_MAX: u64 = 2_000;

/// How old a fault may be when a shard hears of it: a hop, and a pump that slept.
const FAULT_SLACK_NS: u64 = 5 * MILLIS;

/// An expected version that no payload ever has.
pub(super) const VERSION_NEVER: Version = Version(u64::MAX / 2);

impl Oracle {
    /// A reply leaves a shard. Hands back the request it answers.
    pub(super) fn answered(
        &mut self,
        to: ReplyTo,
        result: &ReplyResult,
        scene: Scene<'_>,
    ) -> Result<Pending, Breach> {
        let Some(pending) = self.pending.remove(&to.0) else {
            return breach(
                Rule::Answers,
                format!("{to:?} was answered, and nobody waits for it: {result:?}"),
            );
        };
        if let Some(deadline) = pending.deadline {
            self.overdue.remove(&(deadline, to.0));
            let late = scene.now.monotonic.0 > deadline.0 + DEADLINE_SLACK_NS;
            if late && !pending.waits_for_work() {
                return breach(Rule::Deadline, format!("answered late: {pending:?} {result:?}"));
            }
        }
        let waited = scene.now.monotonic.millis_since(pending.sent);
        if let Request::Allocate(_) = pending.request
            && scene.plan.overload
            && (result.is_err() || waited > OVERLOAD_WAIT_MS_MAX)
        {
            return breach(Rule::Starved, format!("after {waited} ms: {pending:?} {result:?}"));
        }
        self.settle_fact(&pending, result);
        let verdict = match result {
            Ok(reply) => self.granted(&pending, reply, scene),
            Err(error) => self.refused(&pending, error, scene),
        };
        verdict.map_err(|mut breach| {
            breach.detail = format!("{} [request {pending:?}]", breach.detail);
            breach
        })?;
        Ok(pending)
    }

    /// What an answer decides about a fact.
    fn settle_fact(&mut self, pending: &Pending, result: &ReplyResult) {
        let joined = self.pending.values().any(|other| {
            matches!((&other.request, &pending.request),
                (Request::Commit { key: a, .. }, Request::Commit { key: b, .. }) if a == b)
        });
        let Some(fact) = key_of(&pending.request).and_then(|key| self.facts.get_mut(&key)) else { return };
        let unsure = result.as_ref().err().is_some_and(|error| error.kind == ErrorKind::DeadlineExceeded);
        if may_remove(&pending.request, fact) {
            fact.gone_pending = fact.gone_pending.saturating_sub(1);
            let background =
                matches!(&pending.request, Request::Spill(spill) if spill.policy == SpillPolicy::BestEffort);
            match result {
                Ok(Reply::Deleted | Reply::Spilled(None)) => fact.gone = true,
                Ok(_) if background => fact.gone_maybe = true,
                _ => fact.gone_maybe |= unsure,
            }
        }
        if matches!(pending.request, Request::Commit { .. }) {
            fact.commits_pending = fact.commits_pending.saturating_sub(1);
            fact.commit_maybe |= unsure;
            if result.is_ok() {
                if !fact.committed && joined {
                    self.coverage.hit("commit_joined");
                }
                fact.committed = true;
            }
        }
    }

    /// A replica is found bad only where something was damaged or failed, and a payload without any is told so.
    fn scrubbed(&mut self, pending: &Pending, seen: &[ScrubbedReplica]) -> Result<(), Breach> {
        let fact = key_of(&pending.request).and_then(|key| self.facts.get(&key));
        let excused =
            fact.is_none_or(|fact| fact.damaged || fact.wrong_checksum) || self.failed_since(pending);
        for replica in seen {
            match &replica.verdict {
                ScrubVerdict::Sound => self.coverage.hit("scrubbed_sound"),
                ScrubVerdict::Unverifiable | ScrubVerdict::Unreadable { .. } => {}
                ScrubVerdict::Bad { outcome, .. } => {
                    self.coverage.hit("scrubbed_bad");
                    if *outcome == ScrubOutcome::OtherReplica {
                        self.coverage.hit("scrubbed_bad_and_repaired");
                    }
                    if !excused {
                        return breach(Rule::WrongAnswer, format!("nothing was damaged: {seen:?}"));
                    }
                }
            }
        }
        Ok(())
    }

    fn granted(&mut self, pending: &Pending, reply: &Reply, scene: Scene<'_>) -> Result<(), Breach> {
        let wrong = || breach(Rule::WrongAnswer, format!("{reply:?} does not answer this"));
        if pending.unknown && !matches!(pending.request, Request::Release { .. } | Request::Allocate(_)) {
            return breach(Rule::WrongAnswer, format!("granted on a payload that does not exist: {reply:?}"));
        }
        if pending.stale || fence_of(&pending.request) == Some(VERSION_NEVER) {
            return breach(Rule::WrongAnswer, format!("granted with a version it never had: {reply:?}"));
        }
        match (&pending.request, reply) {
            (Request::Allocate(request), Reply::Allocated(seen)) => {
                let expires_at = request.ttl_ms.and_then(|ttl| seen.created_at.checked_plus(ttl));
                let right =
                    (seen.id, seen.tier, seen.state, seen.size, seen.version, seen.policy, seen.expires_at)
                        == (
                            request.key.id,
                            request.tier,
                            PayloadState::Allocated,
                            request.size,
                            Version::FIRST,
                            request.policy,
                            expires_at,
                        );
                if !right || seen.location.is_none() || seen.created_at > scene.now.wall {
                    return breach(Rule::WrongAnswer, format!("not what was asked for: {seen:?}"));
                }
                self.born(request, seen);
                self.see(request.key, seen, scene)
            }
            (Request::Commit { key, checksum, .. }, Reply::Committed(seen)) => {
                self.committed(*key, checksum.is_some(), seen, scene)
            }
            (Request::Delete { key, force: false, .. }, Reply::Deleted)
                if self.cells.reads_since(*key, pending.sent, scene.now.monotonic).is_some() =>
            {
                breach(Rule::LiveLease, format!("deleted while somebody reads it directly: {key:?}"))
            }
            (Request::Delete { key, .. } | Request::Abort { key, .. }, Reply::Deleted) => {
                match scene.catalog.rows.get(key) {
                    Some(row) => breach(Rule::Acknowledgement, format!("Deleted, and stored: {row:?}")),
                    None => Ok(()),
                }
            }
            (Request::Resolve { key }, Reply::Resolved(seen)) => self.see(*key, seen, scene),
            (Request::Acquire(request), Reply::Leased(grant)) => self.leased(request, grant, scene),
            (Request::Release { .. }, Reply::Released) => Ok(()),
            (Request::Promote { key, target, policy, .. }, Reply::Promoted(seen)) => {
                self.see(*key, seen, scene)?;
                self.promoted(*key, *target, *policy, seen, scene)
            }
            (Request::Spill(request), Reply::Spilled(seen)) => {
                self.spilled(request, seen.as_ref(), pending, scene)
            }
            (Request::Prefetch { .. }, Reply::Prefetching) => Ok(()),
            (Request::Pin { key, duration_ms, .. }, Reply::Pinned) => self.pinned(*key, *duration_ms, scene),
            (Request::Unpin { .. }, Reply::Unpinned) => Ok(()),
            (Request::Enrol { key }, Reply::Enrolled) => self.enrolled(*key, scene),
            (Request::List(request), Reply::Page(page)) => check_page(request, page),
            (Request::Find(find), Reply::Found(part)) => check_part(find, part),
            (Request::Scrub(_), Reply::Scrubbed(seen)) => self.scrubbed(pending, seen),
            (Request::SpillArenas, Reply::ArenasSpilled(_)) => Ok(()),
            (Request::Stats, Reply::Stats(_)) | (Request::Hold(_), Reply::Held) => Ok(()),
            _ => wrong(),
        }
    }

    /// True when something failed and this request may have heard of it.
    fn failed_since(&self, pending: &Pending) -> bool {
        let last = self.catalog_fault_last.max(self.driver_fault_last);
        last.0 + FAULT_SLACK_NS > pending.sent.0
    }

    fn committed(
        &mut self,
        key: PayloadKey,
        with_checksum: bool,
        seen: &Descriptor,
        scene: Scene<'_>,
    ) -> Result<(), Breach> {
        self.see(key, seen, scene)?;
        if !scene.catalog.ever_stored.contains(&key) {
            return breach(Rule::Acknowledgement, "Committed, and no row was ever durable");
        }
        let fact = &self.facts[&key];
        let stored = scene.catalog.rows.get(&key).is_some_and(|row| row.state != PayloadState::Allocated);
        if !stored && fact.must_exist(scene.now, scene.plan) {
            return breach(Rule::Acknowledgement, "Committed, and there is no row");
        }
        let late = fact.expires_at.is_some_and(|end| end <= scene.now.wall);
        if late {
            self.coverage.hit("expiry_while_committing");
        }
        if !(seen.state.is_readable() || late || fact.gone_pending > 0 || fact.gone_maybe) {
            return breach(Rule::WrongAnswer, format!("Committed, and not readable: {seen:?}"));
        }
        if with_checksum && seen.checksum.is_none() && !fact.commit_plain {
            return breach(Rule::WrongAnswer, "the checksum given at Commit is not kept");
        }
        Ok(())
    }

    fn promoted(
        &mut self,
        key: PayloadKey,
        target: Tier,
        policy: PromotionPolicy,
        seen: &Descriptor,
        scene: Scene<'_>,
    ) -> Result<(), Breach> {
        if seen.tier != target && policy == PromotionPolicy::Blocking {
            return breach(Rule::WrongAnswer, format!("promoted elsewhere: {seen:?}"));
        }
        if seen.tier == target && target == Tier::Disk {
            self.coverage.hit("promote_as_spill");
            return durable_on(key, target, false, scene);
        }
        if seen.tier == target {
            self.coverage.hit("promote_added_replica");
        }
        Ok(())
    }

    /// A payload that is enrolled has a row: what refers to it finds one.
    fn enrolled(&mut self, key: PayloadKey, scene: Scene<'_>) -> Result<(), Breach> {
        let Some(fact) = self.facts.get(&key) else {
            return breach(Rule::WrongAnswer, "enrolled, and nobody allocated it");
        };
        match scene.catalog.rows.get(&key) {
            None if fact.must_exist(scene.now, scene.plan) => {
                breach(Rule::Acknowledgement, "Enrolled, and there is no row")
            }
            Some(row) if row.state == PayloadState::Allocated => {
                self.coverage.hit("enrolled_before_its_commit");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A pin that holds until Unpin is stored with the row before it is answered, and stays there.
    fn pinned(&mut self, key: PayloadKey, duration_ms: Option<u64>, scene: Scene<'_>) -> Result<(), Breach> {
        let unpins =
            |pending: &Pending| matches!(pending.request, Request::Unpin { key: other } if other == key);
        if duration_ms.is_some() || self.pending.values().any(unpins) {
            return Ok(()); // It ends by itself, or is being ended.
        }
        if let Some(fact) = self.facts.get_mut(&key) {
            fact.pinned = true;
        }
        match scene.catalog.rows.get(&key) {
            // Commit writes the pin with its row.
            Some(row) if row.pin != Pin::Forever && row.state != PayloadState::Allocated => {
                breach(Rule::Acknowledgement, format!("pinned, and not stored: {row:?}"))
            }
            _ => Ok(()),
        }
    }

    fn leased(&mut self, request: &Acquire, grant: &LeaseGrant, scene: Scene<'_>) -> Result<(), Breach> {
        let seen = &grant.descriptor;
        self.see(request.key, seen, scene)?;
        let fact = &self.facts[&request.key];
        if !seen.state.is_readable() {
            return breach(
                Rule::WrongAnswer,
                format!("a lease on a payload that must not be read: {grant:?}"),
            );
        }
        if fact.expires_at.is_some_and(|end| end.as_millis() + 10 < scene.now.wall.as_millis()) {
            if fact.held {
                self.coverage.hit("lease_of_a_held_payload_after_its_ttl");
            }
            if !fact.may_be_held {
                return breach(Rule::WrongAnswer, format!("a new lease after the ttl: {grant:?}"));
            }
        }
        let slower = request.min_tier.is_some_and(|floor| floor.is_faster_than(seen.tier));
        if slower && request.policy == PromotionPolicy::Blocking {
            return breach(Rule::WrongAnswer, format!("slower than min_tier: {grant:?}"));
        }
        if request.owner.session().is_some() {
            if grant.expires_at != WallMs::MAX {
                return breach(Rule::WrongAnswer, format!("a session's lease with an end: {grant:?}"));
            }
            return self.lease_begins(request, grant, slower, scene);
        }
        let asked = if request.duration_ms == 0 { scene.plan.lease_ms_default } else { request.duration_ms };
        let lasts = asked.min(scene.plan.lease_ms_max);
        let latest = scene.now.wall.as_millis() + lasts;
        if !(latest.saturating_sub(1000)..=latest).contains(&grant.expires_at.as_millis()) {
            return breach(
                Rule::WrongAnswer,
                format!("a lease of another length: {grant:?}, {lasts} ms asked"),
            );
        }
        self.lease_begins(request, grant, slower, scene)
    }

    /// From here on its holder relies on it.
    fn lease_begins(
        &mut self,
        request: &Acquire,
        grant: &LeaseGrant,
        slower: bool,
        scene: Scene<'_>,
    ) -> Result<(), Breach> {
        let seen = &grant.descriptor;
        let Some(location) = seen.location else {
            return breach(Rule::WrongAnswer, format!("a lease without a location: {grant:?}"));
        };
        let block = self.find(request.key, seen.tier, location, scene)?;
        let held = &scene.storage.blocks[&block];
        self.judge_shared(request, location, held)?;
        self.judge_mappable(request, location)?;
        let fact = &self.facts[&request.key];
        if held.content != fact.content && held.damage == Damage::None && !fact.damaged {
            return breach(Rule::CommitLost, format!("leased {block:?} has other bytes: {held:?}"));
        }
        if held.salvaged {
            return breach(Rule::WrongAnswer, format!("leased {block:?}, a copy of damaged bytes: {held:?}"));
        }
        // A forced delete that is on its way ends the leases that it finds when it begins.
        let doomed = self.pending.values().any(
            |pending| matches!(pending.request, Request::Delete { key, force: true, .. } if key == request.key),
        );
        let lease = LeaseFact { key: request.key, block, expires_at: grant.expires_at, over: doomed };
        if self.leases.insert(grant.lease, lease).is_some() {
            return breach(Rule::Answers, format!("lease id given twice: {grant:?}"));
        }
        if seen.tier == Tier::Disk {
            self.coverage.hit("lease_on_file");
        }
        // Not by this start, and not by one that only knows what the catalog says.
        let row = scene.catalog.rows.get(&request.key);
        let is_bad = |replica: &payload_types::ReplicaRow| {
            !replica.sound && (replica.tier, replica.generation) == (block.tier, block.generation)
        };
        if row.is_some_and(|row| row.replicas.iter().any(is_bad)) {
            return breach(
                Rule::WrongAnswer,
                format!("leased {block:?}, which its row calls damaged: {row:?}"),
            );
        }
        if self.came_back.contains(&request.key) {
            self.coverage.hit("served_after_power_loss_undid_its_removal");
        }
        if slower {
            self.coverage.hit("acquire_best_effort_on_slower_replica");
        }
        if seen.state == PayloadState::Evicting {
            self.coverage.hit("evict_raced_acquire");
        }
        if held.jobs > 0 {
            self.coverage.hit("lease_during_copy");
        }
        Ok(())
    }

    fn spilled(
        &mut self,
        request: &Spill,
        seen: Option<&Descriptor>,
        pending: &Pending,
        scene: Scene<'_>,
    ) -> Result<(), Breach> {
        let fact = &self.facts[&request.key];
        let target = request.target.or(fact.policy.spill_target).unwrap_or(SpillTarget::Tier(Tier::Disk));
        let Some(seen) = seen else {
            if target != SpillTarget::Void {
                return breach(Rule::WrongAnswer, "discarded, and nobody asked for that");
            }
            if fact.policy.require_durable || pending.pinned {
                return breach(Rule::CommitLost, "discarded in spite of require_durable, or of a pin");
            }
            if let Some(row) = scene.catalog.rows.get(&request.key) {
                return breach(Rule::Acknowledgement, format!("discarded, and stored: {row:?}"));
            }
            self.coverage.hit("spill_to_void");
            return Ok(());
        };
        self.see(request.key, seen, scene)?;
        if request.policy == SpillPolicy::BestEffort {
            self.coverage.hit("spill_best_effort");
            return Ok(());
        }
        let SpillTarget::Tier(target) = target else {
            return breach(Rule::WrongAnswer, format!("a spill to VOID left something: {seen:?}"));
        };
        if pending.leased && request.wait_for_leases {
            self.coverage.hit("spill_waited_for_lease");
        }
        // A default target faster than the present tier changes nothing, and is fine.
        if seen.tier != target && (request.target.is_some() || seen.tier.is_faster_than(target)) {
            return breach(Rule::WrongAnswer, format!("spilled to {target}, and shown elsewhere: {seen:?}"));
        }
        if seen.tier == Tier::Disk && target == Tier::Disk {
            durable_on(request.key, target, request.fsync, scene)?;
            let fact = self.facts.get_mut(&request.key).expect("seen just now");
            fact.power_safe |= request.fsync || scene.plan.disk_fsync;
        }
        Ok(())
    }

    // Long because: one arm a kind of refusal and request.
    fn refused(&mut self, pending: &Pending, error: &PayloadError, scene: Scene<'_>) -> Result<(), Breach> {
        let now = scene.now;
        let wrong = |why: &str| breach(Rule::WrongAnswer, format!("{why}: {error:?}"));
        let key = key_of(&pending.request);
        let fact = key.and_then(|key| self.facts.get(&key));
        let exists = fact.is_some_and(|fact| fact.must_exist(now, scene.plan)) && !pending.unknown;
        if error.message.is_empty() {
            return wrong("an error without a sentence");
        }
        match (error.kind, &pending.request) {
            (_, Request::Release { .. } | Request::List(_) | Request::Find(_) | Request::Stats) => {
                wrong("this is never refused")
            }
            (ErrorKind::Internal | ErrorKind::Unimplemented, _) => wrong("a defect of ours"),
            (ErrorKind::InvalidArgument, Request::Allocate(request)) if request.ttl_ms.is_some() => Ok(()),
            (ErrorKind::InvalidArgument, _) => wrong("the simulator asks nothing invalid"),
            (ErrorKind::AlreadyExists, Request::Allocate(_)) => Ok(()),
            (ErrorKind::AlreadyExists, _) => wrong("only Allocate makes something"),
            (ErrorKind::NotFound, Request::Allocate(_)) => wrong("Allocate finds nothing"),
            (ErrorKind::NotFound, _) if exists => {
                breach(Rule::CommitLost, format!("not found: {error:?} {fact:?}"))
            }
            (ErrorKind::NotFound, _) => {
                if fact.is_some_and(|fact| fact.lost && !fact.gone) && error.message.contains("LOST") {
                    self.coverage.hit("lost_answered");
                } else if fact
                    .is_some_and(|fact| fact.lost && fact.gone_pending == 0 && !fact.gone && !fact.gone_maybe)
                    && fact.is_some_and(|fact| !fact.is_over(now, scene.plan))
                {
                    return wrong("lost, and the answer does not say LOST");
                }
                Ok(())
            }
            (_, _) if pending.unknown => wrong("this payload does not exist"),
            (ErrorKind::LeaseConflict, Request::Delete { key, force: false, .. }) => {
                let directly = self.cells.may_be_read(*key, now.monotonic);
                self.coverage.hit(if directly {
                    "delete_refused_read_directly"
                } else {
                    "delete_refused_leased"
                });
                if directly || self.may_be_leased(*key) { Ok(()) } else { wrong("nobody leases it") }
            }
            (ErrorKind::LeaseConflict, Request::Commit { batch: Some(_), .. }) => Ok(()),
            (ErrorKind::LeaseConflict, _) => wrong("only an unforced Delete conflicts"),
            (ErrorKind::DeadlineExceeded, request) => {
                self.coverage.hit("deadline_while_waiting");
                let waited = now.monotonic.millis_since(pending.sent);
                let passed = pending.deadline.is_some_and(|deadline| deadline <= now.monotonic);
                let gave_up = match request {
                    Request::Spill(spill) => spill.wait_for_leases && waited >= scene.plan.lease_ms_max,
                    // For a file of its own, or a segment.
                    Request::Acquire(acquire) => {
                        let may_see_all = acquire.accepts_packed && acquire.accepts_slabs;
                        !may_see_all && waited >= limits::ALLOCATE_WAIT_MS_DEFAULT
                    }
                    _ => false,
                };
                if passed || gave_up { Ok(()) } else { wrong("its deadline has not passed") }
            }
            (ErrorKind::Unavailable, Request::Allocate(_) | Request::Commit { .. })
                if self.stopping && error.message.contains("the server is stopping") =>
            {
                self.coverage.hit("refused_while_the_server_stops");
                Ok(())
            }
            // Its session has closed, and nobody hears it.
            (ErrorKind::Unavailable, Request::Allocate(asked)) if asked.memory != Memory::Segment => Ok(()),
            (ErrorKind::FailedPrecondition, Request::Commit { .. })
                if error.message.contains("writable mapping") && fact.is_some_and(|fact| fact.arena) =>
            {
                Ok(())
            }
            (ErrorKind::Unavailable, _) => {
                self.coverage.hit("catalog_unavailable_answered");
                if self.failed_since(pending) { Ok(()) } else { wrong("nothing failed since it was asked") }
            }
            (ErrorKind::DataLoss, _) => {
                self.coverage.hit("data_loss_answered");
                let excused = fact.is_some_and(|fact| fact.damaged || fact.wrong_checksum);
                if excused || self.failed_since(pending) { Ok(()) } else { wrong("nothing was damaged") }
            }
            (ErrorKind::ResourceExhausted, request) => match request {
                Request::Allocate(request) => self.full(pending, request, error, scene),
                Request::Promote { .. }
                | Request::Prefetch { .. }
                | Request::Spill(_)
                | Request::Acquire(_) => Ok(()),
                _ if scene.plan.crowd => Ok(()),
                _ => wrong("this takes no space"),
            },
            (ErrorKind::FailedPrecondition, request) => {
                self.precondition(pending, request, error, scene, exists)
            }
        }
    }

    /// An allocation may be refused for want of space only when there was no space.
    fn full(
        &mut self,
        pending: &Pending,
        request: &payload_types::request::Allocate,
        error: &PayloadError,
        scene: Scene<'_>,
    ) -> Result<(), Breach> {
        let size = request.size;
        let waited = pending.sent.plus_millis(limits::ALLOCATE_WAIT_MS_DEFAULT);
        let until = pending.deadline.unwrap_or(waited);
        let crowded = self.pending.len() >= limits::WAITERS_PER_SHARD_MAX
            && error.message.contains("wait for space already");
        let fits = scene.plan.capacity[request.tier].is_some_and(|capacity| size.in_pages() <= capacity);
        if fits && scene.now.monotonic < until && !self.failed_since(pending) && !crowded {
            return breach(Rule::WrongAnswer, format!("refused before its deadline: {error:?}"));
        }
        if fits && scene.now.monotonic >= until {
            self.coverage.hit("waiter_timed_out");
        }
        // Spares of other shards are called in first: a few messages, which a short deadline does not wait for.
        if scene.now.monotonic.0 < pending.sent.0 + RECALL_SLACK_NS {
            return Ok(());
        }
        // A slab takes more than the payload that it is for.
        if request.memory != Memory::Segment {
            return Ok(());
        }
        match pending.free_min {
            Some(least) if least < u64::MAX && least >= size.in_pages().0 && !self.failed_since(pending) => {
                breach(Rule::WrongAnswer, format!("{least} bytes were free all the time: {error:?}"))
            }
            _ => Ok(()),
        }
    }

    /// FAILED_PRECONDITION where it would be a lie.
    // Long because: one arm a request.
    fn precondition(
        &mut self,
        pending: &Pending,
        request: &Request,
        error: &PayloadError,
        scene: Scene<'_>,
        exists: bool,
    ) -> Result<(), Breach> {
        let wrong = |why: &str| breach(Rule::WrongAnswer, format!("{why}: {error:?}"));
        if let Some(expected) = fence_of(request) {
            self.coverage.hit(if matches!(request, Request::Acquire(_)) {
                "acquire_fenced"
            } else {
                "version_fence_refused"
            });
            if expected == VERSION_NEVER {
                return Ok(());
            }
        }
        let has = |tier: Tier| scene.plan.capacity[tier].is_some();
        match request {
            Request::Delete { key, force: false, .. }
                if error.message.contains("is held by") && self.facts[key].may_be_held =>
            {
                self.coverage.hit("delete_refused_held");
                Ok(())
            }
            Request::Delete { expected_version: None, .. } => wrong("nothing forbids deleting"),
            Request::Abort { key, .. } => {
                let fact = &self.facts[key];
                let may_be_committed = fact.committed || fact.commit_maybe || fact.commits_pending > 0;
                if exists && !may_be_committed {
                    wrong("it is this session's, and not committed")
                } else {
                    Ok(())
                }
            }
            Request::Resolve { .. } | Request::Unpin { .. } => wrong("this is always allowed"),
            Request::Allocate(request) if has(request.tier) => wrong("the tier is configured"),
            Request::Commit { key, .. } => {
                let fact = &self.facts[key];
                if fact.committed || fact.commit_maybe {
                    self.coverage.hit("commit_repeated_refused");
                    return Ok(());
                }
                if fact.damaged || self.failed_since(pending) {
                    self.coverage.hit("commit_refused_truncated_or_missing");
                    return Ok(());
                }
                if exists && fact.commits_pending == 0 { wrong("it was not committed yet") } else { Ok(()) }
            }
            Request::Acquire(acquire) if exists && acquire.expected_version.is_none() => {
                let fact = &self.facts[&acquire.key];
                let served = acquire.min_tier.is_none_or(has);
                if fact.committed && served && !fact.damaged {
                    return wrong("it is committed and can be read");
                }
                Ok(())
            }
            Request::Spill(spill) => {
                if error.message.contains("pin") {
                    self.coverage.hit("pinned_spill_refused");
                }
                if pending.leased && !spill.wait_for_leases {
                    self.coverage.hit("spill_leased_refused");
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// The durable catalog names a replica on `tier`, and with `synced` says that it survives a loss of power.
fn durable_on(key: PayloadKey, tier: Tier, synced: bool, scene: Scene<'_>) -> Result<(), Breach> {
    let Some(row) = scene.catalog.rows.get(&key) else {
        return breach(Rule::Acknowledgement, "answered as moved, and there is no row");
    };
    let Some(replica) = row.replicas.iter().find(|replica| replica.tier == tier) else {
        return breach(Rule::Acknowledgement, format!("answered as moved to {tier}, and stored as {row:?}"));
    };
    let block = scene.storage.blocks.get(&block_name(key, tier, replica.generation));
    // The row may still say `synced: false`: that costs a second sync after a restart, and promises nothing wrong.
    if synced && !block.is_some_and(|block| block.synced || block.damage != Damage::None) {
        return breach(Rule::Acknowledgement, format!("answered as synced: {row:?} {block:?}"));
    }
    Ok(())
}

/// One shard's page: newest first, no row twice, not more than asked for, nothing at or above the cursor.
fn check_page(request: &payload_types::request::List, page: &ShardPage) -> Result<(), Breach> {
    let sorted = page.rows.windows(2).all(|pair| pair[0].id > pair[1].id);
    let below = page.rows.iter().all(|row| request.before.is_none_or(|before| row.id < before));
    let filtered = page.rows.iter().all(|row| request.tier.is_none_or(|tier| row.tier == tier));
    let bounded = page.rows.len() <= request.page_size.min(limits::LIST_PAGE_MAX);
    let counted = page.rows.len() as u64 <= page.total;
    if sorted && below && filtered && bounded && counted {
        return Ok(());
    }
    breach(Rule::Listing, format!("{request:?}: {page:?}"))
}

/// The version that a request expects.
pub(super) fn fence_of(request: &Request) -> Option<Version> {
    match request {
        Request::Acquire(request) => request.expected_version,
        Request::Spill(request) => request.expected_version,
        Request::Delete { expected_version, .. } | Request::Promote { expected_version, .. } => {
            *expected_version
        }
        _ => None,
    }
}
