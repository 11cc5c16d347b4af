//! Leases of payloads that are on OBJECT, for every service that grants some.
//!
//! ```text
//! grant of an object --readable--> stored plainly: as it is | else: released, and asked for once more, brought in to DISK
//! a deadline passed  --why------> the store fails and has the only replica: UNAVAILABLE, with what it said last
//! ```
//! Whether an object is gone is for the shard to find, which marks the payload: it is brought in like a compressed one.

use std::time::Duration;

use payload_types::reply::{LeaseGrant, Reply};
use payload_types::request::{Acquire, Request};
use payload_types::{
    ErrorKind, Location, PayloadError, PayloadId, PayloadKey, PayloadState, PromotionPolicy, Tier,
};

use super::ObjectTier;
use crate::deadline::Deadline;
use crate::services::router::{NAMESPACE, Router};

/// A shard says where a payload is in microseconds; a caller whose time is up is not kept waiting for one that does not.
const LOOK_PATIENCE: Duration = Duration::from_millis(20);

/// What becomes of a lease that was granted.
pub enum Readable {
    /// It stands: whoever has it can read the bytes.
    InPlace(Box<LeaseGrant>),
    /// It was ended, and this is to be asked instead.
    After(Box<Request>),
}

/// Looks whether a client can read what `ask` was granted, which it cannot when the bytes there are not the payload's.
///
/// # Errors
/// The store does not say how the object is stored: UNAVAILABLE, and the lease was ended.
pub async fn readable(
    router: &Router,
    grant: LeaseGrant,
    ask: Request,
    deadline: Option<Deadline>,
) -> Result<Readable, PayloadError> {
    let objects = router.objects.as_ref().filter(|_| grant.descriptor.location == Some(Location::Object));
    let (Some(objects), Request::Acquire(acquire)) = (objects, ask) else {
        return Ok(Readable::InPlace(Box::new(grant)));
    };
    let is_plain = objects.is_plain_by(grant.descriptor.id, deadline).await;
    if matches!(is_plain, Ok(true)) {
        return Ok(Readable::InPlace(Box::new(grant)));
    }
    router.ask(grant.lease.shard(), Request::Release { lease: grant.lease, by: None }, deadline).await?;
    is_plain?;
    let brought = Acquire { min_tier: Some(Tier::Disk), policy: PromotionPolicy::Blocking, ..acquire };
    Ok(Readable::After(Box::new(Request::Acquire(brought))))
}

/// What a client is told who did not get a lease in time: where the store fails and has the only replica, that.
pub async fn why(router: &Router, id: PayloadId, error: PayloadError) -> PayloadError {
    let Some(objects) = router.objects.as_ref().filter(|_| error.kind == ErrorKind::DeadlineExceeded) else {
        return error;
    };
    let Some(said) = objects.failing() else { return error };
    let ask = Request::Resolve { key: PayloadKey { namespace: NAMESPACE, id } };
    let found = tokio::time::timeout(LOOK_PATIENCE, router.ask_here(ask, None)).await;
    match found {
        Ok(Ok(Reply::Resolved(found)))
            if found.tier == Tier::Object && found.state != PayloadState::Allocated =>
        {
            unreachable(id, &said)
        }
        _ => error,
    }
}

fn unreachable(id: PayloadId, said: &str) -> PayloadError {
    let message = format!("payload {id} is on OBJECT only, and the store does not serve it now: {said}");
    PayloadError::new(ErrorKind::Unavailable, message)
}

impl ObjectTier {
    /// What the store said last, if it fails now.
    fn failing(&self) -> Option<String> {
        let error = self.driver.health().error;
        (!error.is_empty()).then_some(error)
    }

    /// As [`ObjectTier::is_plain`], for as long as the caller waits. False, too, when there is nothing: see the module.
    async fn is_plain_by(&self, id: PayloadId, deadline: Option<Deadline>) -> Result<bool, PayloadError> {
        let asked = self.is_plain(id);
        let Some(give_up) = deadline.and_then(|deadline| deadline.give_up) else { return asked.await };
        // Time is left to release the lease and to answer.
        let give_up = give_up.checked_sub(LOOK_PATIENCE).unwrap_or(give_up);
        tokio::time::timeout_at(give_up, asked).await.unwrap_or_else(|_late| {
            let said = self.failing();
            Err(unreachable(id, said.as_deref().unwrap_or("it has not answered in time")))
        })
    }
}
