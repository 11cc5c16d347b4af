//! ListHolders and ExplainPayload: our own questions about one payload.

use payload_types::{NamespaceId, PayloadError, PayloadKey};

use crate::ids;
use crate::pb::operations::v1 as pb;

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
}
