//! The one error type that reaches a client.

use std::fmt;

/// What went wrong, as a client must tell it apart. Mapped to a gRPC code in `wire`, exhaustively.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ErrorKind {
    /// The request can never be right.
    InvalidArgument,
    /// The payload is unknown, deleted, expired or lost.
    NotFound,
    /// The payload's state forbids it.
    FailedPrecondition,
    /// Somebody holds a lease (ABORTED; behaviour.md, Delete), or another payload of the same batch was refused.
    LeaseConflict,
    /// A tier, a table or a queue is full; the caller may try again.
    ResourceExhausted,
    /// The caller's deadline passed first.
    DeadlineExceeded,
    /// The catalog, or the server itself, cannot serve this now.
    Unavailable,
    /// The bytes are gone or not what was committed.
    DataLoss,
    /// The name is taken.
    AlreadyExists,
    /// Not built yet.
    Unimplemented,
    /// A defect of ours.
    Internal,
}

impl ErrorKind {
    /// Every kind. The order is part of the protocol of native sessions, which number kinds by it: add at the end.
    pub const ALL: [Self; 11] = [
        Self::InvalidArgument,
        Self::NotFound,
        Self::FailedPrecondition,
        Self::LeaseConflict,
        Self::ResourceExhausted,
        Self::DeadlineExceeded,
        Self::Unavailable,
        Self::DataLoss,
        Self::AlreadyExists,
        Self::Unimplemented,
        Self::Internal,
    ];
}

/// An error and its sentence: what was asked, what was wrong, what to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PayloadError {
    /// How a program tells it apart.
    pub kind: ErrorKind,
    /// How a person reads it.
    pub message: String,
}

impl PayloadError {
    /// An error of this kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// `INVALID_ARGUMENT`.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    /// `FAILED_PRECONDITION`.
    pub fn precondition(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::FailedPrecondition, message)
    }

    /// `RESOURCE_EXHAUSTED`.
    pub fn exhausted(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::ResourceExhausted, message)
    }
}

impl fmt::Display for PayloadError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for PayloadError {}
