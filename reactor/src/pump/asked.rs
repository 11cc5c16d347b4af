//! What an entry of a ring asks of the core, and what a completion says of its answer.
//!
//! Ids are minted here, because a shard mints for itself: tails of a UUIDv7 are drawn until one hashes to it. The
//! randomness of ids and lease nonces is a ChaCha of this shard's own, seeded by the system once.

use payload_local::entry::{Outcome, Shown, Submission};
use payload_types::reply::Reply;
use payload_types::request::{Acquire, Allocate, Request, Spill};
use payload_types::{
    Descriptor, ErrorKind, EvictionPriority, LeaseNonce, Memory, Monotonic, Now, PayloadError, PayloadId,
    PayloadKey, ShardIndex,
};
use rand::Rng;
use rand::rngs::StdRng;

use crate::session::Identity;

/// How long a client waits that does not say.
const DEADLINE_MS_DEFAULT: u64 = 30_000;

/// The longest wait: a session that ends is there until its last request is answered.
const DEADLINE_MS_MAX: u64 = 3_600_000;

/// Bits of a tick below the millisecond ([`PayloadId::mint`]).
const FRACTION_BITS: u32 = 12;

/// Turns submissions into requests to one shard.
pub(super) struct Asker {
    shard: ShardIndex,
    shard_count: u16,
    random: StdRng,
    /// Of the last id that was minted.
    ticks_last: u64,
}

impl Asker {
    pub(super) fn new(shard: ShardIndex, shard_count: u16) -> Self {
        Self { shard, shard_count, random: rand::make_rng(), ticks_last: 0 }
    }
}

impl Asker {
    /// The request, and when it must be answered.
    ///
    /// # Errors
    /// What only this node knows to be wrong: another shard's payload, an expiry past the end of time.
    // Long because: one arm an operation.
    pub(super) fn request(
        &mut self,
        submission: Submission,
        asker: &Identity,
        now: Now,
    ) -> Result<(Request, Monotonic), PayloadError> {
        let deadline_ms = deadline_of(&submission);
        let deadline = now.monotonic.plus_millis(deadline_ms);
        let own = |id| self.own(asker, id);
        let request = match submission {
            Submission::Acquire { id, min_tier, policy, accepts_packed, expected_version, .. } => {
                Request::Acquire(Acquire {
                    key: own(id)?,
                    min_tier,
                    policy,
                    // A session's leases have no end of their own.
                    duration_ms: 0,
                    expected_version,
                    accepts_packed,
                    accepts_slabs: asker.arenas,
                    nonce: self.nonce(),
                    owner: asker.peer,
                })
            }
            Submission::Release { lease } => match lease.shard() {
                shard if shard == self.shard => Request::Release { lease, by: asker.peer.session() },
                shard => return Err(self.elsewhere("lease", shard)),
            },
            Submission::Resolve { id } => Request::Resolve { key: own(id)? },
            Submission::Delete { id, force, expected_version } => {
                Request::Delete { key: own(id)?, force, expected_version }
            }
            Submission::Promote { id, target, policy, expected_version, .. } => {
                Request::Promote { key: own(id)?, target, policy, expected_version }
            }
            Submission::Spill { id, target, policy, wait_for_leases, fsync, expected_version, .. } => {
                Request::Spill(Spill {
                    key: own(id)?,
                    target,
                    policy,
                    wait_for_leases,
                    fsync,
                    expected_version,
                })
            }
            Submission::Allocate { size, tier, ttl_ms, no_evict, policy, memory, .. } => {
                if memory != Memory::Segment && !asker.arenas {
                    return Err(PayloadError::invalid(
                        "ARENA or SEALED is set, and this session has no feature ARENAS; say it in Hello, or allocate a segment",
                    ));
                }
                let expires = ttl_ms > 0 && !no_evict && policy.priority != EvictionPriority::Never;
                if expires && now.wall.checked_plus(ttl_ms).is_none() {
                    return Err(PayloadError::invalid(format!(
                        "the ttl is {ttl_ms} ms, which ends after the year 9999; send a shorter one, or 0 for no expiry"
                    )));
                }
                Request::Allocate(Allocate {
                    key: PayloadKey { namespace: asker.namespace, id: self.mint(now) },
                    size,
                    tier,
                    ttl_ms: expires.then_some(ttl_ms),
                    no_evict,
                    policy,
                    memory,
                    owner: asker.peer,
                })
            }
            Submission::Commit { id, checksum, .. } => {
                Request::Commit { key: own(id)?, checksum, batch: None }
            }
            Submission::Abort { id } => Request::Abort { key: own(id)?, owner: asker.peer },
        };
        Ok((request, deadline))
    }

    /// The payload, if this shard has it.
    fn own(&self, asker: &Identity, id: PayloadId) -> Result<PayloadKey, PayloadError> {
        match id.shard(self.shard_count) {
            shard if shard == self.shard => Ok(PayloadKey { namespace: asker.namespace, id }),
            shard => Err(self.elsewhere("payload", shard)),
        }
    }

    fn elsewhere(&self, what: &str, shard: ShardIndex) -> PayloadError {
        PayloadError::invalid(format!(
            "this {what} belongs to shard {}, and was asked for on the ring of shard {}; use the ring that its id names",
            shard.0, self.shard.0
        ))
    }

    fn nonce(&mut self) -> LeaseNonce {
        let mut bytes = [0; 10];
        self.random.fill_bytes(&mut bytes);
        LeaseNonce(bytes)
    }

    /// A new id of this shard. As many draws as there are shards on average, at some 5 ns each.
    fn mint(&mut self, now: Now) -> PayloadId {
        let clock_ticks = now.wall.as_millis() << FRACTION_BITS;
        self.ticks_last = clock_ticks.max(self.ticks_last + 1);
        loop {
            let id = PayloadId::mint(self.ticks_last, self.random.next_u64());
            if id.shard(self.shard_count) == self.shard {
                return id;
            }
        }
    }
}

fn deadline_of(submission: &Submission) -> u64 {
    let said = match submission {
        Submission::Acquire { deadline_ms, .. }
        | Submission::Promote { deadline_ms, .. }
        | Submission::Spill { deadline_ms, .. }
        | Submission::Allocate { deadline_ms, .. } => *deadline_ms,
        Submission::Release { .. }
        | Submission::Resolve { .. }
        | Submission::Delete { .. }
        | Submission::Commit { .. }
        | Submission::Abort { .. } => 0,
    };
    match said {
        0 => DEADLINE_MS_DEFAULT,
        said => said.min(DEADLINE_MS_MAX),
    }
}

/// What a completion says of the core's answer.
///
/// # Errors
/// For an answer to what no ring can ask.
pub(super) fn answer_of(reply: Reply) -> Result<Outcome, PayloadError> {
    match reply {
        Reply::Leased(grant) => Ok(Outcome::Leased(grant.lease, shown(&grant.descriptor))),
        Reply::Allocated(descriptor)
        | Reply::Committed(descriptor)
        | Reply::Resolved(descriptor)
        | Reply::Promoted(descriptor)
        | Reply::Spilled(Some(descriptor)) => Ok(Outcome::Payload(descriptor.id, shown(&descriptor))),
        Reply::Spilled(None) | Reply::Released | Reply::Deleted => Ok(Outcome::Done),
        other => {
            let message =
                format!("a ring's request was answered with {other:?}; this is a defect, report it");
            Err(PayloadError::new(ErrorKind::Internal, message))
        }
    }
}

/// A payload as rings show it.
pub(super) fn shown(descriptor: &Descriptor) -> Shown {
    let Descriptor { tier, state, location, size, version, .. } = *descriptor;
    Shown { tier, state, location, size, version }
}
