//! Resolve, Acquire, Release: finding and leasing bytes (behaviour.md, "Reading").

use payload_types::request::{Acquire, Request};
use payload_types::{LeaseNonce, NamespaceId, PayloadError, Peer};

use super::{fence, storable};
use crate::pb::runtime::v1 as pb;
use crate::{enums, ids};

/// Decodes ResolveSnapshot.
///
/// # Errors
/// `INVALID_ARGUMENT` for a malformed id.
pub fn resolve(namespace: NamespaceId, request: pb::ResolveSnapshotRequest) -> Result<Request, PayloadError> {
    Ok(Request::Resolve { key: ids::payload_key(namespace, request.id.as_ref())? })
}

/// Decodes AcquireReadLease of the client `owner`. `nonce` is fresh randomness for the id of the lease. The duration is passed on as
/// asked: the shard clamps it to what is configured.
///
/// # Errors
/// `INVALID_ARGUMENT`: a malformed id, min_tier VOID, a duration or expected version beyond 2^63-1, a tier or
/// policy outside the contract. `FAILED_PRECONDITION`: any mode but UNSPECIFIED and READ.
pub fn acquire(
    namespace: NamespaceId,
    request: pb::AcquireReadLeaseRequest,
    nonce: LeaseNonce,
    owner: Peer,
) -> Result<Request, PayloadError> {
    let key = ids::payload_key(namespace, request.id.as_ref())?;
    let min_tier = enums::tier_optional("min_tier", request.min_tier)?;
    let policy = enums::promotion_policy("promotion_policy", request.promotion_policy)?;
    let duration_ms = storable("min_lease_duration_ms", request.min_lease_duration_ms)?;
    let expected_version = fence(request.expected_version)?;
    let accepts_packed = request.accepts_packed;
    // Clients rely on this code also for numbers that the contract does not list.
    match pb::LeaseMode::try_from(request.mode) {
        Ok(pb::LeaseMode::Unspecified | pb::LeaseMode::Read) => {}
        Err(_) => {
            return Err(PayloadError::precondition(format!(
                "mode is {}; payloads are immutable, so the only lease there is is LEASE_MODE_READ (1)",
                request.mode
            )));
        }
    }
    Ok(Request::Acquire(Acquire {
        key,
        min_tier,
        policy,
        duration_ms,
        expected_version,
        accepts_packed,
        accepts_slabs: false,
        nonce,
        owner,
    }))
}

/// Decodes ReleaseLease. An id that no shard ever granted is fine.
///
/// # Errors
/// `INVALID_ARGUMENT` for a malformed lease id.
pub fn release(request: pb::ReleaseLeaseRequest) -> Result<Request, PayloadError> {
    Ok(Request::Release { lease: ids::lease_id(request.lease_id.as_ref())?, by: None })
}

#[cfg(test)]
mod tests {
    use payload_types::ErrorKind::{FailedPrecondition, InvalidArgument};
    use payload_types::{LeaseId, PromotionPolicy, ShardIndex, Tier, Version};

    use super::*;
    use crate::decode::testing::{NAMESPACE, TOO_LARGE, id, key, refused};

    const NONCE: LeaseNonce = LeaseNonce([9; 10]);

    fn request() -> pb::AcquireReadLeaseRequest {
        pb::AcquireReadLeaseRequest { id: id(1), ..Default::default() }
    }

    #[test]
    fn given_a_bare_acquire_when_decoded_then_any_tier_will_do_and_it_blocks() {
        let expected = Acquire {
            key: key(1),
            min_tier: None,
            policy: PromotionPolicy::Blocking,
            duration_ms: 0,
            expected_version: None,
            accepts_packed: false,
            accepts_slabs: false,
            nonce: NONCE,
            owner: Peer::UNKNOWN,
        };
        assert_eq!(acquire(NAMESPACE, request(), NONCE, Peer::UNKNOWN), Ok(Request::Acquire(expected)));
    }

    #[test]
    fn given_a_full_acquire_when_decoded_then_every_field_is_there() {
        let full = pb::AcquireReadLeaseRequest {
            min_tier: 2,
            promotion_policy: 1,
            min_lease_duration_ms: 10_000_000,
            mode: 1,
            expected_version: Some(12),
            accepts_packed: true,
            ..request()
        };
        let expected = Acquire {
            key: key(1),
            min_tier: Some(Tier::Ram),
            policy: PromotionPolicy::BestEffort,
            duration_ms: 10_000_000,
            expected_version: Some(Version(12)),
            accepts_packed: true,
            accepts_slabs: false,
            nonce: NONCE,
            owner: Peer::UNKNOWN,
        };
        assert_eq!(acquire(NAMESPACE, full, NONCE, Peer::UNKNOWN), Ok(Request::Acquire(expected)));
    }

    #[test]
    fn given_a_mode_other_than_read_when_acquired_then_failed_precondition() {
        for mode in [2, -1, i32::MAX] {
            let request = pb::AcquireReadLeaseRequest { mode, ..request() };
            refused(acquire(NAMESPACE, request, NONCE, Peer::UNKNOWN), FailedPrecondition, "mode is");
        }
    }

    #[test]
    fn given_values_out_of_range_when_acquired_then_invalid_argument_names_the_field() {
        let cases = [
            (pb::AcquireReadLeaseRequest { id: None, ..request() }, "payload id"),
            (pb::AcquireReadLeaseRequest { min_tier: 5, ..request() }, "min_tier"),
            (pb::AcquireReadLeaseRequest { min_tier: 77, ..request() }, "min_tier is 77"),
            (pb::AcquireReadLeaseRequest { promotion_policy: 3, ..request() }, "promotion_policy is 3"),
            (
                pb::AcquireReadLeaseRequest { min_lease_duration_ms: TOO_LARGE, ..request() },
                "min_lease_duration_ms",
            ),
            (
                pb::AcquireReadLeaseRequest { expected_version: Some(u64::MAX), ..request() },
                "expected_version",
            ),
        ];
        for (request, word) in cases {
            refused(acquire(NAMESPACE, request, NONCE, Peer::UNKNOWN), InvalidArgument, word);
        }
    }

    #[test]
    fn given_resolve_and_release_when_decoded_then_ids_must_have_16_bytes() {
        let request = pb::ResolveSnapshotRequest { id: id(1) };
        assert_eq!(resolve(NAMESPACE, request), Ok(Request::Resolve { key: key(1) }));
        refused(resolve(NAMESPACE, pb::ResolveSnapshotRequest { id: None }), InvalidArgument, "payload id");

        let lease = LeaseId::new(ShardIndex(1), 2, NONCE);
        let request = pb::ReleaseLeaseRequest { lease_id: Some(ids::lease_id_to_pb(lease)) };
        assert_eq!(release(request), Ok(Request::Release { lease, by: None }));
        refused(release(pb::ReleaseLeaseRequest { lease_id: None }), InvalidArgument, "lease id");
    }
}
