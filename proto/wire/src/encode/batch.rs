//! The answers of the batch RPCs and of lease sessions: each item's own answer, or its error with the gRPC code that the
//! RPC for one item has.

use payload_types::reply::LeaseGrant;
use payload_types::{Descriptor, PayloadError};

use super::{Locate, committed, leased};
use crate::pb::operations::v1 as pb;
use crate::pb::runtime::v1 as runtime;
use crate::status::code;

fn error(error: PayloadError) -> pb::BatchError {
    pb::BatchError { code: code(error.kind) as i32, message: error.message }
}

/// One result of BatchAllocate.
pub fn batch_allocated(
    result: Result<runtime::AllocatePayloadResponse, PayloadError>,
) -> pb::BatchAllocateResult {
    use pb::batch_allocate_result::Outcome;
    let outcome = match result {
        Ok(allocated) => Outcome::Allocated(allocated),
        Err(refused) => Outcome::Error(error(refused)),
    };
    pb::BatchAllocateResult { outcome: Some(outcome) }
}

/// One result of BatchCommit.
pub fn batch_committed(
    result: Result<Descriptor, PayloadError>,
    locate: &impl Locate,
) -> pb::BatchCommitResult {
    use pb::batch_commit_result::Outcome;
    let outcome = match result {
        Ok(payload) => Outcome::Committed(committed(&payload, locate)),
        Err(refused) => Outcome::Error(error(refused)),
    };
    pb::BatchCommitResult { outcome: Some(outcome) }
}

/// One result of BatchAcquire.
pub fn batch_acquired(
    result: Result<LeaseGrant, PayloadError>,
    locate: &impl Locate,
) -> pb::BatchAcquireResult {
    use pb::batch_acquire_result::Outcome;
    let outcome = match result {
        Ok(grant) => Outcome::Acquired(leased(&grant, locate)),
        Err(refused) => Outcome::Error(error(refused)),
    };
    pb::BatchAcquireResult { outcome: Some(outcome) }
}

/// One result of BatchRelease.
pub fn batch_released(result: Result<(), PayloadError>) -> pb::BatchReleaseResult {
    pb::BatchReleaseResult { error: result.err().map(error) }
}

/// The answer to one wish of a session: a lease, or `None` for a release.
pub fn lease_session(
    tag: u64,
    result: Result<Option<LeaseGrant>, PayloadError>,
    locate: &impl Locate,
) -> pb::LeaseSessionResponse {
    use pb::lease_session_response::Outcome;
    let outcome = match result {
        Ok(Some(grant)) => Outcome::Acquired(leased(&grant, locate)),
        Ok(None) => Outcome::Released(()),
        Err(refused) => Outcome::Error(error(refused)),
    };
    pb::LeaseSessionResponse { tag, outcome: Some(outcome) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_an_error_when_encoded_then_it_has_the_code_of_the_rpc_for_one_item() {
        let refused = batch_released(Err(PayloadError::exhausted("full"))).error.expect("an error");
        assert_eq!((refused.code, refused.message.as_str()), (8, "full"));
        assert_eq!(batch_released(Ok(())).error, None);
    }
}
