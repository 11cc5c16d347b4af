//! AcquireReadLease, ReleaseLease, ResolveSnapshot, and the end of leases.
//!
//! A lease pins one replica. It is granted on what is there now, whatever else is being done to the payload; only a
//! caller that insists on a faster tier waits, and one that may not see what is there ([`super::apart`]).

use payload_ledger::list::Ends;
use payload_ledger::{SlotKey, TimerId};
use payload_types::reply::{LeaseGrant, Reply};
use payload_types::request::{Acquire, Request};
use payload_types::{
    Health, LeaseId, PayloadError, PayloadKey, PayloadState, PromotionPolicy, SessionId, WallMs, limits,
};

use crate::flow::commit::data_loss;
use crate::flow::copy::Progress;
use crate::lease::{LeaseTarget, Taken};
use crate::parked::Caller;
use crate::shard::{Answer, Shard, Step, Timer};

impl Shard {
    pub(crate) fn resolve(&mut self, step: &mut Step<'_>, key: PayloadKey) -> Answer {
        Some(self.find(step.now, key).map(|slot| {
            let payload = self.table.at(slot);
            Reply::Resolved(self.table.shown(slot, payload.is_committed()))
        }))
    }

    pub(crate) fn acquire(&mut self, step: &mut Step<'_>, mut caller: Caller, request: Acquire) -> Answer {
        match self.try_acquire(step, &mut caller, &request) {
            Ok((slot, Progress::There)) => Some(Ok(self.grant(step, slot, &request))),
            Ok((slot, Progress::Waits(joined))) => {
                // What is to be promoted in the background was told so: from here on any tier will do.
                let min_tier = request.min_tier.filter(|_| request.policy == PromotionPolicy::Blocking);
                let request = Request::Acquire(Acquire { min_tier, expected_version: None, ..request });
                self.park(slot, joined, caller, request)
            }
            Err(error) => Some(Err(error)),
        }
    }

    /// Finds out whether a lease can be granted now. If not, starts what makes it so: a promotion if the caller insists on
    /// one, or a file of its own for what the caller may not be shown.
    fn try_acquire(
        &mut self,
        step: &mut Step<'_>,
        caller: &mut Caller,
        request: &Acquire,
    ) -> Result<(SlotKey, Progress), PayloadError> {
        let slot = self.find_readable(step, request.key)?;
        self.check_version(slot, request.expected_version)?;
        if self.leases.is_full() {
            return Err(PayloadError::exhausted(format!(
                "{} leases are held on this shard already; release some, or try again later",
                limits::LEASES_PER_SHARD_MAX
            )));
        }
        self.sessions.check(request.owner, self.config.session_caps, self.table.at(slot).size.0)?;
        if let Some(wanted) = request.min_tier
            && wanted.is_faster_than(self.table.at(slot).tier())
        {
            self.check_capacity(wanted, self.table.at(slot).size)?;
            if request.policy == PromotionPolicy::Blocking {
                return self.move_up(step, slot, wanted, caller).map(|progress| (slot, progress));
            }
            let promote = Request::Promote {
                key: request.key,
                target: wanted,
                policy: PromotionPolicy::Blocking,
                expected_version: None,
            };
            self.in_background(step, promote, None);
        }
        let payload = self.table.at(slot);
        if payload.shows_block() && !request.accepts_slabs
            || payload.shows_packed() && !request.accepts_packed
        {
            let apart = self.move_apart(step, slot, request.accepts_packed, caller);
            return apart.map(|progress| (slot, progress));
        }
        Ok((slot, Progress::There))
    }

    /// The payload with this key, if it is committed and its bytes are good.
    pub(crate) fn find_readable(
        &mut self,
        step: &Step<'_>,
        key: PayloadKey,
    ) -> Result<SlotKey, PayloadError> {
        let slot = self.find(step.now, key)?;
        let payload = self.table.at(slot);
        if !payload.is_committed() {
            return Err(PayloadError::precondition(format!(
                "payload {} is ALLOCATED; commit it first",
                key.id
            )));
        }
        if payload.health == Health::Damaged {
            return Err(data_loss(
                key,
                "its bytes were found missing or altered, and no other replica is left; make it anew",
            ));
        }
        Ok(slot)
    }

    /// Grants a lease on the fastest replica.
    fn grant(&mut self, step: &mut Step<'_>, slot: SlotKey, request: &Acquire) -> Reply {
        let asked = if request.duration_ms == 0 { self.config.lease_ms_default } else { request.duration_ms };
        let duration = asked.min(self.config.lease_ms_max);
        let due = step.now.monotonic.plus_millis(duration);
        let payload = self.table.lease_added(slot);
        let tier = payload.tier();
        let replica = payload.replicas[tier].as_mut().expect("the fastest replica");
        replica.users.leases += 1;
        let target = LeaseTarget { payload: slot, tier, generation: replica.generation };
        let (wheel, session, size) = (&mut self.wheel, request.owner.session(), payload.size.0);
        let arm = |lease| match session {
            // It ends with its session.
            Some(_) => TimerId::NEVER,
            None => wheel.arm(due, Timer::Lease(lease)).expect("the wheel has room for every lease"),
        };
        let taken = Taken { nonce: request.nonce, owner: request.owner, acquired_at: step.now.wall };
        let lease = self.leases.grant(self.config.shard, &mut payload.leases, target, taken, arm);
        let descriptor = self.table.shown(slot, true);
        if let Some(session) = session {
            let key = self.leases.find(lease).expect("just granted");
            let place = self.sessions.leased(session, key, size);
            self.leases.set_place(key, place);
            return Reply::Leased(LeaseGrant { lease, descriptor, expires_at: WallMs::MAX });
        }
        let expires_at = step.now.wall.checked_plus(duration).unwrap_or(WallMs::MAX);
        Reply::Leased(LeaseGrant { lease, descriptor, expires_at })
    }

    pub(crate) fn release(&mut self, step: &mut Step<'_>, id: LeaseId, by: Option<SessionId>) {
        if id.shard() == self.config.shard
            && let Some(lease) = self.leases.find(id)
            // A session knows its own leases only; a client with an id may be anybody who was told of it.
            && (by.is_none() || self.leases.get(lease).is_some_and(|lease| lease.taken.owner.session() == by))
        {
            self.end_lease(step, lease);
        }
    }

    pub(crate) fn lease_due(&mut self, step: &mut Step<'_>, lease: SlotKey) {
        if self.leases.get(lease).is_some() {
            self.end_lease(step, lease);
        }
    }

    pub(crate) fn end_lease(&mut self, step: &mut Step<'_>, key: SlotKey) {
        let lease = self.leases.get(key).expect("the caller found it");
        let (slot, place) = (lease.payload, lease.place);
        if let Some(session) = lease.taken.owner.session()
            && let Some(moved) = self.sessions.lease_ended(session, place)
        {
            self.leases.set_place(moved, place);
        }
        let Some(payload) = self.table.lease_ended(slot, step.now.monotonic) else {
            let lease = self.leases.end(&mut Ends::default(), key);
            self.wheel.disarm(lease.timer);
            // Deleted by force: nothing counts it any more. Discarded by a spill: limbo does.
            if let Some(entry) = self.limbo.find(lease.generation) {
                self.limbo.lease_ended(entry);
            }
            return;
        };
        let was_oldest = payload.leases.starts_with(key);
        let lease = self.leases.end(&mut payload.leases, key);
        self.wheel.disarm(lease.timer);
        let over = payload.state == PayloadState::Expired && payload.lease_count == 0;
        let wanted = was_oldest && payload.parked.is_some();
        match payload.replicas[lease.tier].as_mut() {
            Some(replica) if replica.generation == lease.generation => replica.users.leases -= 1,
            _ => {
                let entry =
                    self.limbo.find(lease.generation).expect("a leased replica is current or in limbo");
                self.limbo.lease_ended(entry);
            }
        }
        if over {
            self.remove_expired(step, slot);
        } else if wanted {
            self.wake(slot);
        }
    }

    /// True when a lease is held that a spill with this fence has to wait for; every lease when it has none.
    pub(crate) fn is_leased(&self, slot: SlotKey, fence: Option<u64>) -> bool {
        let Some(oldest) = self.leases.first(self.table.at(slot).leases) else { return false };
        let oldest = self.leases.get(oldest).expect("linked leases exist").sequence;
        fence.is_none_or(|fence| oldest <= fence)
    }
}
