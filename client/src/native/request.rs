//! What callers ask for as submissions, and what outcomes say as what callers get: shared by the async and the blocking
//! flavour, which differ in how they wait only.

use std::time::Duration;

use payload_local::{Outcome, Submission};
use payload_types::{ByteCount, LeaseId, Memory, PayloadId, PromotionPolicy, SpillPolicy, Tier, Version};

use crate::client::{AcquireOptions, AllocateOptions, SpillOptions, Spilled};
use crate::descriptor::Descriptor;
use crate::error::ClientError;
use crate::native::Session;

/// For the server, in milliseconds; 0 is its default.
pub(crate) fn deadline_ms(deadline: Option<Duration>) -> u64 {
    deadline.map_or(0, |deadline| (deadline.as_millis() as u64).max(1))
}

/// Where the caller leaves it open, RAM is taken from an arena: that asks the system for nothing.
pub(crate) fn allocate(
    session: &Session,
    size: ByteCount,
    options: &AllocateOptions,
    deadline: Option<Duration>,
) -> Submission {
    Submission::Allocate {
        size,
        tier: options.tier,
        ttl_ms: options.ttl_ms.unwrap_or_default(),
        no_evict: options.no_evict,
        policy: options.policy,
        memory: match options.memory {
            Some(memory) => memory,
            None if options.tier == Tier::Ram && session.has_arenas() => Memory::Arena,
            None => Memory::Segment,
        },
        deadline_ms: deadline_ms(deadline),
    }
}

pub(crate) fn acquire(id: PayloadId, options: &AcquireOptions, deadline: Option<Duration>) -> Submission {
    Submission::Acquire {
        id,
        min_tier: options.min_tier,
        policy: options.promotion_policy.unwrap_or(PromotionPolicy::Blocking),
        accepts_packed: !options.own_file,
        expected_version: options.expected_version,
        deadline_ms: deadline_ms(deadline),
    }
}

/// Of those of `ids` that were not leased directly.
pub(crate) fn acquire_rest<T>(
    ids: &[PayloadId],
    direct: &[Option<T>],
    options: &AcquireOptions,
    deadline: Option<Duration>,
) -> Vec<Submission> {
    let rest = ids.iter().zip(direct).filter(|(_, direct)| direct.is_none());
    rest.map(|(id, _)| acquire(*id, options, deadline)).collect()
}

pub(crate) fn promote(
    id: PayloadId,
    target: Tier,
    policy: Option<PromotionPolicy>,
    expected_version: Option<Version>,
    deadline: Option<Duration>,
) -> Submission {
    let policy = policy.unwrap_or(PromotionPolicy::Blocking);
    Submission::Promote { id, target, policy, expected_version, deadline_ms: deadline_ms(deadline) }
}

pub(crate) fn spill(id: PayloadId, options: &SpillOptions, deadline: Option<Duration>) -> Submission {
    Submission::Spill {
        id,
        target: options.target,
        policy: options.policy.unwrap_or(SpillPolicy::Blocking),
        wait_for_leases: options.wait_for_leases,
        fsync: options.fsync,
        expected_version: options.expected_version,
        deadline_ms: deadline_ms(deadline),
    }
}

impl Session {
    /// Of an Allocate.
    pub(crate) fn allocated(
        &self,
        outcome: Outcome,
        options: &AllocateOptions,
    ) -> Result<Descriptor, ClientError> {
        Ok(Descriptor { policy: options.policy, ..self.shown(outcome)? })
    }

    /// Of an Acquire.
    pub(crate) fn leased(
        &self,
        outcome: Outcome,
        id: PayloadId,
    ) -> Result<(LeaseId, Descriptor), ClientError> {
        match outcome {
            Outcome::Leased(lease, shown) => Ok((lease, self.descriptor(id, &shown))),
            other => Err(surprise(&other)),
        }
    }

    /// Of what describes a payload.
    pub(crate) fn shown(&self, outcome: Outcome) -> Result<Descriptor, ClientError> {
        match outcome {
            Outcome::Payload(id, shown) => Ok(self.descriptor(id, &shown)),
            other => Err(surprise(&other)),
        }
    }

    /// Of the Spill of each of `ids`.
    pub(crate) fn spilled(
        &self,
        ids: &[PayloadId],
        answers: Vec<Result<Outcome, ClientError>>,
    ) -> Result<Vec<Spilled>, ClientError> {
        let spilled = |(id, answer): (&PayloadId, Result<Outcome, ClientError>)| {
            let result = match answer {
                Ok(Outcome::Done) => Ok(None),
                Ok(outcome) => Ok(Some(self.shown(outcome)?)),
                Err(ClientError::Server { message, .. }) => Err(message),
                Err(error) => return Err(error),
            };
            Ok(Spilled { id: *id, result })
        };
        ids.iter().zip(answers).map(spilled).collect()
    }
}

fn surprise(outcome: &Outcome) -> ClientError {
    ClientError::Contract(format!("a completion of another operation came: {outcome:?}"))
}
