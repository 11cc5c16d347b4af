//! Ids between the contract's messages and the domain's newtypes.
//!
//! Both are 16 bytes. A request that names its target by anything else is refused (behaviour.md, "Everywhere"),
//! and so is one that does not name it at all.

use payload_types::{LeaseId, NamespaceId, PayloadError, PayloadId, PayloadKey};

use crate::pb::core::v1 as core;

/// The payload that a request or a response names.
///
/// # Errors
/// `INVALID_ARGUMENT` when the id is unset or not exactly 16 bytes long.
pub fn payload_id(message: Option<&core::PayloadId>) -> Result<PayloadId, PayloadError> {
    PayloadId::from_slice(message.map_or(&[], |id| &id.value))
}

/// The payload that a request names, as a namespace's tables know it.
///
/// # Errors
/// As [`payload_id`].
pub fn payload_key(
    namespace: NamespaceId,
    message: Option<&core::PayloadId>,
) -> Result<PayloadKey, PayloadError> {
    payload_id(message).map(|id| PayloadKey { namespace, id })
}

/// The lease that a request or a response names.
///
/// # Errors
/// `INVALID_ARGUMENT` when the id is unset or not exactly 16 bytes long.
pub fn lease_id(message: Option<&core::LeaseId>) -> Result<LeaseId, PayloadError> {
    match message {
        Some(id) if !id.value.is_empty() => LeaseId::from_slice(&id.value),
        _ => Err(PayloadError::invalid(
            "lease id is not set; send the 16 bytes of the id that AcquireReadLease returned",
        )),
    }
}

/// A payload id as the contract writes it.
pub fn payload_id_to_pb(id: PayloadId) -> core::PayloadId {
    core::PayloadId { value: id.as_bytes().to_vec() }
}

/// A lease id as the contract writes it.
pub fn lease_id_to_pb(id: LeaseId) -> core::LeaseId {
    core::LeaseId { value: id.as_bytes().to_vec() }
}

#[cfg(test)]
mod tests {
    use payload_types::{ErrorKind, LeaseNonce, ShardIndex};

    use super::*;

    #[test]
    fn given_an_id_when_sent_and_received_then_it_is_the_same() {
        let id = PayloadId::mint(1 << 50, 99);
        assert_eq!(payload_id(Some(&payload_id_to_pb(id))), Ok(id));
        let lease = LeaseId::new(ShardIndex(1), 2, LeaseNonce([3; 10]));
        assert_eq!(lease_id(Some(&lease_id_to_pb(lease))), Ok(lease));
    }

    #[test]
    fn given_an_id_of_another_length_when_decoded_then_invalid_argument() {
        for len in [0, 1, 15, 17, 36] {
            let payload = payload_id(Some(&core::PayloadId { value: vec![7; len] }));
            assert_eq!(payload.expect_err("wrong length").kind, ErrorKind::InvalidArgument);
            let lease = lease_id(Some(&core::LeaseId { value: vec![7; len] }));
            assert_eq!(lease.expect_err("wrong length").kind, ErrorKind::InvalidArgument);
        }
    }

    #[test]
    fn given_no_id_when_decoded_then_invalid_argument_says_that_it_is_not_set() {
        assert!(payload_id(None).expect_err("unset").message.contains("not set"));
        assert!(lease_id(None).expect_err("unset").message.contains("not set"));
    }
}
