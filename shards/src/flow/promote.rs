//! Promote and Prefetch.

use payload_types::reply::Reply;
use payload_types::request::{Request, Spill};
use payload_types::tier::SpillTarget;
use payload_types::{ErrorKind, PayloadError, PayloadKey, PromotionPolicy, SpillPolicy, Tier, Version};

use crate::direct::Readers;
use crate::flow::copy::Progress;
use crate::flow::direct::read_directly;
use crate::parked::Caller;
use crate::shard::{Answer, Shard, Step};

/// The parts of `Request::Promote`.
#[derive(Clone, Copy, Debug)]
pub struct Promote {
    /// Whose.
    pub key: PayloadKey,
    /// Where to.
    pub target: Tier,
    /// What a deadline means.
    pub policy: PromotionPolicy,
    /// Version fencing.
    pub expected_version: Option<Version>,
}

impl Promote {
    fn again(self) -> Request {
        let Self { key, target, policy, .. } = self;
        Request::Promote { key, target, policy, expected_version: None }
    }
}

impl Shard {
    pub(crate) fn promote(&mut self, step: &mut Step<'_>, caller: Caller, request: Promote) -> Answer {
        // A slower target drops what somebody may read directly, as a spill does.
        if let Ok(slot) = self.find_readable(step, request.key)
            && self.check_version(slot, request.expected_version).is_ok()
            && self.table.at(slot).tier().is_faster_than(request.target)
            && self.config.has(request.target)
        {
            match self.ask_readers(slot, &caller, || request.again()) {
                Err(answer) => return answer,
                Ok(Readers::Held(_)) => {
                    let (what, advice) = ("is leased", "wait until it is released");
                    let kind = ErrorKind::FailedPrecondition;
                    return Some(Err(read_directly(request.key, kind, what, advice)));
                }
                Ok(Readers::Nobody | Readers::Unknown) => {}
            }
        }
        match self.try_promote(step, &caller, request) {
            Ok(Progress::There) => {
                let slot = self.table.find(request.key).expect("just found");
                Some(Ok(Reply::Promoted(self.table.shown(slot, true))))
            }
            Ok(Progress::Waits(joined)) => {
                let slot = self.table.find(request.key).expect("just found");
                self.park(slot, joined, caller, request.again())
            }
            Err(error) => Some(Err(error)),
        }
    }

    fn try_promote(
        &mut self,
        step: &mut Step<'_>,
        caller: &Caller,
        request: Promote,
    ) -> Result<Progress, PayloadError> {
        let slot = self.find_readable(step, request.key)?;
        self.check_version(slot, request.expected_version)?;
        if !self.config.has(request.target) {
            return Err(self.unconfigured(request.target));
        }
        let present = self.table.at(slot).tier();
        if request.target.is_faster_than(present) {
            return self.move_up(step, slot, request.target, caller);
        }
        // A slower target is a blocking spill to it (behaviour.md, Promote).
        let spill = Spill {
            key: request.key,
            target: Some(SpillTarget::Tier(request.target)),
            policy: SpillPolicy::Blocking,
            wait_for_leases: false,
            fsync: false,
            expected_version: None,
        };
        self.move_down(step, slot, request.target, caller, &spill)
    }

    pub(crate) fn prefetch(&mut self, step: &mut Step<'_>, key: PayloadKey, target: Tier) -> Answer {
        let slot = match self.find_readable(step, key) {
            Ok(slot) => slot,
            Err(error) => return Some(Err(error)),
        };
        if let Err(error) = self.check_capacity(target, self.table.at(slot).size) {
            return Some(Err(error));
        }
        if target.is_faster_than(self.table.at(slot).tier()) {
            let policy = PromotionPolicy::Blocking;
            self.in_background(step, Request::Promote { key, target, policy, expected_version: None }, None);
        }
        Some(Ok(Reply::Prefetching))
    }
}
