//! Errors on the wire: our kinds as gRPC codes, and back.
//!
//! Both matches are exhaustive: a new kind does not compile until somebody decides which code it has. The message
//! travels unchanged, so the `LOST` of a lost payload's NOT_FOUND reaches the client.

use payload_types::{ErrorKind, PayloadError};
use tonic::{Code, Status};

/// What the server answers for this error.
pub fn to_status(error: PayloadError) -> Status {
    Status::new(code(error.kind), error.message)
}

/// The gRPC code of this kind of error (behaviour.md).
pub const fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::FailedPrecondition => Code::FailedPrecondition,
        ErrorKind::LeaseConflict => Code::Aborted,
        ErrorKind::ResourceExhausted => Code::ResourceExhausted,
        ErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::DataLoss => Code::DataLoss,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::Unimplemented => Code::Unimplemented,
        ErrorKind::Internal => Code::Internal,
    }
}

/// What a client was told, as our error.
///
/// Codes that this server never sends (a proxy or the transport made them) become the nearest kind, and the
/// message says which code it was. CANCELLED is what tonic reports when the caller's own timeout ended the call.
pub fn from_status(status: &Status) -> PayloadError {
    let (kind, foreign) = match status.code() {
        Code::InvalidArgument => (ErrorKind::InvalidArgument, false),
        Code::NotFound => (ErrorKind::NotFound, false),
        Code::FailedPrecondition => (ErrorKind::FailedPrecondition, false),
        Code::Aborted => (ErrorKind::LeaseConflict, false),
        Code::ResourceExhausted => (ErrorKind::ResourceExhausted, false),
        Code::DeadlineExceeded => (ErrorKind::DeadlineExceeded, false),
        Code::Unavailable => (ErrorKind::Unavailable, false),
        Code::DataLoss => (ErrorKind::DataLoss, false),
        Code::AlreadyExists => (ErrorKind::AlreadyExists, false),
        Code::Unimplemented => (ErrorKind::Unimplemented, false),
        Code::Internal => (ErrorKind::Internal, false),
        Code::OutOfRange => (ErrorKind::InvalidArgument, true),
        Code::PermissionDenied | Code::Unauthenticated => (ErrorKind::FailedPrecondition, true),
        Code::Cancelled => (ErrorKind::DeadlineExceeded, true),
        Code::Unknown | Code::Ok => (ErrorKind::Internal, true),
    };
    let message = status.message();
    if foreign {
        PayloadError::new(kind, format!("{:?}: {message}", status.code()))
    } else {
        PayloadError::new(kind, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_every_kind_of_error_when_sent_and_received_then_it_is_the_same() {
        for kind in ErrorKind::ALL {
            let error = PayloadError::new(kind, "what was asked, what was wrong, what to do");
            assert_eq!(from_status(&to_status(error.clone())), error);
        }
    }

    #[test]
    fn given_a_lease_conflict_when_sent_then_clients_see_aborted() {
        let status = to_status(PayloadError::new(ErrorKind::LeaseConflict, "leased"));
        assert_eq!(status.code(), Code::Aborted);
    }

    #[test]
    fn given_a_lost_payload_when_sent_then_the_reason_stays_in_the_message() {
        let status = to_status(PayloadError::new(ErrorKind::NotFound, "payload 01 is LOST: not re-adopted"));
        assert_eq!((status.code(), status.message()), (Code::NotFound, "payload 01 is LOST: not re-adopted"));
    }

    #[test]
    fn given_a_code_that_we_never_send_when_received_then_the_message_names_it() {
        for (code, kind) in [
            (Code::Cancelled, ErrorKind::DeadlineExceeded),
            (Code::PermissionDenied, ErrorKind::FailedPrecondition),
            (Code::Unauthenticated, ErrorKind::FailedPrecondition),
            (Code::OutOfRange, ErrorKind::InvalidArgument),
            (Code::Unknown, ErrorKind::Internal),
        ] {
            let error = from_status(&Status::new(code, "from a proxy"));
            assert_eq!(error, PayloadError::new(kind, format!("{code:?}: from a proxy")));
        }
    }
}
