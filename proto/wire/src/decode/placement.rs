//! Promote, Spill, Prefetch, Pin, Unpin: where a payload lies (behaviour.md, "Placement").

use payload_types::request::{Request, Spill};
use payload_types::{NamespaceId, PayloadError, Peer, limits};

use super::{fence, storable};
use crate::pb::runtime::v1 as pb;
use crate::{enums, ids};

/// Decodes Promote.
///
/// # Errors
/// `INVALID_ARGUMENT`: a malformed id, target VOID, an expected version beyond 2^63-1, a tier or policy outside the
/// contract. `FAILED_PRECONDITION`: target UNSPECIFIED.
pub fn promote(namespace: NamespaceId, request: pb::PromoteRequest) -> Result<Request, PayloadError> {
    Ok(Request::Promote {
        key: ids::payload_key(namespace, request.id.as_ref())?,
        target: enums::tier_required("target_tier", request.target_tier)?,
        policy: enums::promotion_policy("policy", request.policy)?,
        expected_version: fence(request.expected_version)?,
    })
}

/// Decodes Spill into one request for each id, in order; the same id may stand there twice. Target, policy and
/// fence apply to each.
///
/// # Errors
/// `INVALID_ARGUMENT` for the whole request: any malformed id, more than `limits::SPILL_IDS_MAX` of them, an
/// expected version beyond 2^63-1, a tier or policy outside the contract.
pub fn spill(namespace: NamespaceId, request: pb::SpillRequest) -> Result<Vec<Spill>, PayloadError> {
    if request.ids.len() > limits::SPILL_IDS_MAX {
        return Err(PayloadError::invalid(format!(
            "ids has {} entries; one Spill takes at most {}: send several",
            request.ids.len(),
            limits::SPILL_IDS_MAX
        )));
    }
    let target = enums::tier_or_void("target_tier", request.target_tier)?;
    let policy = enums::spill_policy("policy", request.policy)?;
    let expected_version = fence(request.expected_version)?;
    let one = |(index, id)| {
        let key = ids::payload_key(namespace, Some(id))
            .map_err(|error| PayloadError::new(error.kind, format!("ids[{index}]: {error}")))?;
        Ok(Spill {
            key,
            target,
            policy,
            wait_for_leases: request.wait_for_leases,
            fsync: request.fsync,
            expected_version,
        })
    };
    request.ids.iter().enumerate().map(one).collect()
}

/// Decodes Prefetch: a Promote that nobody waits for, with Promote's rules for the target.
///
/// # Errors
/// As [`promote`].
pub fn prefetch(namespace: NamespaceId, request: pb::PrefetchRequest) -> Result<Request, PayloadError> {
    Ok(Request::Prefetch {
        key: ids::payload_key(namespace, request.id.as_ref())?,
        target: enums::tier_required("target_tier", request.target_tier)?,
    })
}

/// Decodes Pin of the client `owner`: a duration of 0 is until Unpin.
///
/// # Errors
/// `INVALID_ARGUMENT` for a malformed id or a duration beyond 2^63-1.
pub fn pin(namespace: NamespaceId, request: pb::PinRequest, owner: Peer) -> Result<Request, PayloadError> {
    let key = ids::payload_key(namespace, request.id.as_ref())?;
    let duration_ms = storable("duration_ms", request.duration_ms)?;
    Ok(Request::Pin { key, duration_ms: (duration_ms > 0).then_some(duration_ms), owner })
}

/// Decodes Unpin.
///
/// # Errors
/// `INVALID_ARGUMENT` for a malformed id.
pub fn unpin(namespace: NamespaceId, request: pb::UnpinRequest) -> Result<Request, PayloadError> {
    Ok(Request::Unpin { key: ids::payload_key(namespace, request.id.as_ref())? })
}

#[cfg(test)]
mod tests {
    use payload_types::ErrorKind::{FailedPrecondition, InvalidArgument};
    use payload_types::tier::SpillTarget;
    use payload_types::{PromotionPolicy, SpillPolicy, Tier, Version};

    use super::*;
    use crate::decode::testing::{NAMESPACE, TOO_LARGE, id, key, refused};
    use crate::pb::core::v1 as core;

    #[test]
    fn given_a_promote_when_decoded_then_every_field_is_there() {
        let full = pb::PromoteRequest { id: id(1), target_tier: 2, policy: 1, expected_version: Some(4) };
        let expected = Request::Promote {
            key: key(1),
            target: Tier::Ram,
            policy: PromotionPolicy::BestEffort,
            expected_version: Some(Version(4)),
        };
        assert_eq!(promote(NAMESPACE, full), Ok(expected));
    }

    #[test]
    fn given_a_promote_out_of_range_when_decoded_then_each_has_its_kept_code() {
        let request = || pb::PromoteRequest { id: id(1), target_tier: 2, ..Default::default() };
        let cases = [
            (pb::PromoteRequest { id: None, ..request() }, InvalidArgument, "payload id"),
            (pb::PromoteRequest { target_tier: 0, ..request() }, FailedPrecondition, "TIER_UNSPECIFIED"),
            (pb::PromoteRequest { target_tier: 5, ..request() }, InvalidArgument, "TIER_VOID"),
            (pb::PromoteRequest { target_tier: 6, ..request() }, InvalidArgument, "target_tier is 6"),
            (pb::PromoteRequest { policy: -3, ..request() }, InvalidArgument, "policy is -3"),
            (
                pb::PromoteRequest { expected_version: Some(TOO_LARGE), ..request() },
                InvalidArgument,
                "expected_version",
            ),
        ];
        for (request, kind, word) in cases {
            refused(promote(NAMESPACE, request), kind, word);
        }
    }

    fn spill_of(ids: Vec<core::PayloadId>) -> pb::SpillRequest {
        pb::SpillRequest { ids, ..Default::default() }
    }

    fn id_of(byte: u8) -> core::PayloadId {
        id(byte).expect("a whole id")
    }

    #[test]
    fn given_a_spill_when_decoded_then_each_id_is_one_request_in_order_with_the_same_fence() {
        let full = pb::SpillRequest {
            policy: 1,
            wait_for_leases: true,
            fsync: true,
            target_tier: 3,
            expected_version: Some(8),
            ..spill_of(vec![id_of(2), id_of(1), id_of(2)])
        };
        let spills = spill(NAMESPACE, full).expect("valid");
        let expected = |byte| Spill {
            key: key(byte),
            target: Some(SpillTarget::Tier(Tier::Disk)),
            policy: SpillPolicy::BestEffort,
            wait_for_leases: true,
            fsync: true,
            expected_version: Some(Version(8)),
        };
        assert_eq!(spills, [expected(2), expected(1), expected(2)]);
    }

    #[test]
    fn given_spill_targets_when_decoded_then_unspecified_is_none_and_void_discards() {
        for (target_tier, target) in
            [(0, None), (5, Some(SpillTarget::Void)), (4, Some(SpillTarget::Tier(Tier::Object)))]
        {
            let request = pb::SpillRequest { target_tier, ..spill_of(vec![id_of(1)]) };
            let spills = spill(NAMESPACE, request).expect("valid");
            assert_eq!((spills[0].target, spills[0].policy), (target, SpillPolicy::Blocking));
        }
    }

    #[test]
    fn given_one_malformed_id_when_spilled_then_the_whole_request_is_invalid_and_names_it() {
        let short = core::PayloadId { value: vec![1; 15] };
        refused(spill(NAMESPACE, spill_of(vec![id_of(1), short])), InvalidArgument, "ids[1]");
    }

    #[test]
    fn given_too_many_ids_when_spilled_then_invalid_argument() {
        let most = spill(NAMESPACE, spill_of(vec![id_of(1); limits::SPILL_IDS_MAX])).expect("as many as fit");
        assert_eq!(most.len(), limits::SPILL_IDS_MAX);
        let over = spill_of(vec![id_of(1); limits::SPILL_IDS_MAX + 1]);
        refused(spill(NAMESPACE, over), InvalidArgument, "at most 1000");
        assert_eq!(spill(NAMESPACE, spill_of(Vec::new())), Ok(Vec::new()), "no ids, no results");
    }

    #[test]
    fn given_a_spill_out_of_range_when_decoded_then_invalid_argument_names_the_field() {
        let request = || spill_of(vec![id_of(1)]);
        let cases = [
            (pb::SpillRequest { target_tier: 6, ..request() }, "target_tier is 6"),
            (pb::SpillRequest { policy: 3, ..request() }, "policy is 3"),
            (pb::SpillRequest { expected_version: Some(TOO_LARGE), ..request() }, "expected_version"),
        ];
        for (request, word) in cases {
            refused(spill(NAMESPACE, request), InvalidArgument, word);
        }
    }

    #[test]
    fn given_a_prefetch_when_decoded_then_its_target_follows_the_rules_of_promote() {
        let request = |target_tier| pb::PrefetchRequest { id: id(1), target_tier };
        assert_eq!(prefetch(NAMESPACE, request(2)), Ok(Request::Prefetch { key: key(1), target: Tier::Ram }));
        refused(prefetch(NAMESPACE, request(0)), FailedPrecondition, "target_tier");
        refused(prefetch(NAMESPACE, request(5)), InvalidArgument, "target_tier");
        refused(prefetch(NAMESPACE, request(99)), InvalidArgument, "target_tier is 99");
        let nameless = pb::PrefetchRequest { id: None, target_tier: 2 };
        refused(prefetch(NAMESPACE, nameless), InvalidArgument, "payload id");
    }

    #[test]
    fn given_a_pin_when_decoded_then_0_is_until_unpin() {
        const OWNER: Peer = Peer::UNKNOWN;
        let request = |duration_ms| pb::PinRequest { id: id(1), duration_ms };
        assert_eq!(
            pin(NAMESPACE, request(0), OWNER),
            Ok(Request::Pin { key: key(1), duration_ms: None, owner: OWNER })
        );
        assert_eq!(
            pin(NAMESPACE, request(9), OWNER),
            Ok(Request::Pin { key: key(1), duration_ms: Some(9), owner: OWNER })
        );
        refused(pin(NAMESPACE, request(TOO_LARGE), OWNER), InvalidArgument, "duration_ms");
        let nameless = pb::PinRequest { id: None, duration_ms: 0 };
        refused(pin(NAMESPACE, nameless, OWNER), InvalidArgument, "payload id");
        assert_eq!(unpin(NAMESPACE, pb::UnpinRequest { id: id(1) }), Ok(Request::Unpin { key: key(1) }));
        refused(unpin(NAMESPACE, pb::UnpinRequest { id: None }), InvalidArgument, "payload id");
    }
}
