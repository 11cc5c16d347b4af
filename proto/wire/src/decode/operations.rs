//! ListHolders, ExplainPayload and Scrub: our own questions about payloads.

use payload_types::{NamespaceId, PayloadError, PayloadKey, Tier};

use crate::pb::operations::v1 as pb;
use crate::{enums, ids};

/// Decodes ListHolders.
///
/// # Errors
/// `INVALID_ARGUMENT` for a malformed id.
pub fn holders(namespace: NamespaceId, request: &pb::ListHoldersRequest) -> Result<PayloadKey, PayloadError> {
    ids::payload_key(namespace, request.id.as_ref())
}

/// Decodes ExplainPayload.
///
/// # Errors
/// `INVALID_ARGUMENT` for a malformed id.
pub fn explain(
    namespace: NamespaceId,
    request: &pb::ExplainPayloadRequest,
) -> Result<PayloadKey, PayloadError> {
    ids::payload_key(namespace, request.id.as_ref())
}

/// What a scrub is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScrubParts {
    /// Only this payload; `None`: all.
    pub key: Option<PayloadKey>,
    /// Only this tier; `None`: all.
    pub tier: Option<Tier>,
    /// The pace; `None`: the server's default.
    pub bytes_per_second: Option<u64>,
}

/// Decodes Scrub.
///
/// # Errors
/// `INVALID_ARGUMENT` for a malformed id, or a tier outside the contract.
pub fn scrub(namespace: NamespaceId, request: &pb::ScrubRequest) -> Result<ScrubParts, PayloadError> {
    Ok(ScrubParts {
        key: request.id.as_ref().map(|id| ids::payload_key(namespace, Some(id))).transpose()?,
        tier: enums::tier_optional("tier", request.tier)?,
        bytes_per_second: (request.bytes_per_second > 0).then_some(request.bytes_per_second),
    })
}

#[cfg(test)]
mod tests {
    use payload_types::ErrorKind::InvalidArgument;

    use super::*;
    use crate::decode::testing::{NAMESPACE, id, key, refused};

    #[test]
    fn given_questions_about_a_payload_when_decoded_then_ids_must_have_16_bytes() {
        assert_eq!(holders(NAMESPACE, &pb::ListHoldersRequest { id: id(1) }), Ok(key(1)));
        assert_eq!(explain(NAMESPACE, &pb::ExplainPayloadRequest { id: id(2) }), Ok(key(2)));
        refused(holders(NAMESPACE, &pb::ListHoldersRequest { id: None }), InvalidArgument, "payload id");
        let short =
            pb::ExplainPayloadRequest { id: Some(crate::pb::core::v1::PayloadId { value: vec![1; 15] }) };
        refused(explain(NAMESPACE, &short), InvalidArgument, "16");
    }

    #[test]
    fn given_a_scrub_when_decoded_then_everything_may_be_left_out_and_nothing_may_be_wrong() {
        let all = ScrubParts { key: None, tier: None, bytes_per_second: None };
        assert_eq!(scrub(NAMESPACE, &pb::ScrubRequest::default()), Ok(all));
        let one = pb::ScrubRequest { id: id(1), tier: 3, bytes_per_second: 5 };
        let parts = ScrubParts { key: Some(key(1)), tier: Some(Tier::Disk), bytes_per_second: Some(5) };
        assert_eq!(scrub(NAMESPACE, &one), Ok(parts));
        refused(scrub(NAMESPACE, &pb::ScrubRequest { tier: 99, ..one }), InvalidArgument, "tier");
    }
}
