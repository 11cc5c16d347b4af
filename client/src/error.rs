//! The library's one error type, and how a failed call becomes one.
//!
//! Every message is one sentence for a person: what was asked, what was wrong, what to do. Programs match on the
//! variant, and on the server's [`ErrorKind`] where it answered.

use std::error::Error;
use std::io;

use payload_types::{Checksum, ErrorKind, PayloadError, PayloadId};
use tonic::Status;

/// Why an operation of the client failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection could be made; nothing was sent.
    #[error(
        "no server answers at {address} ({reason}); start one with `payload-manager`, or name the address of a running one (payloadctl: --addr or PAYLOAD_MANAGER_ADDR)"
    )]
    Connect {
        /// `host:port`.
        address: String,
        /// What the system said.
        reason: String,
    },
    /// The server is there and lets this process not have a native session: another user or version, too many of them.
    #[error("the server at {address} refuses a native session: {reason}")]
    Refused {
        /// The socket's path.
        address: String,
        /// In the server's own words.
        reason: String,
    },
    /// The native session has ended, and with it what it held; mapped bytes stay readable.
    #[error(
        "the native session has ended ({reason}), and its leases with it; whether what was under way was done is unknown: connect again"
    )]
    Ended {
        /// Why.
        reason: String,
    },
    /// This process is a child of the one that connected.
    #[error(
        "this process was forked from the one that connected, which alone holds the session and its leases; connect in the child"
    )]
    Forked,
    /// The caller itself ended the wait ([`crate::interrupt`]): whether a write was done is unknown.
    #[error("the wait was ended by the caller; whether what was under way was done is unknown")]
    Cancelled,
    /// The connection broke during a call: whether a write was done is unknown.
    #[error(
        "the connection to {address} broke before the answer came ({reason}); whether it was done is unknown"
    )]
    Interrupted {
        /// `host:port`.
        address: String,
        /// What the system said.
        reason: String,
    },
    /// The server refused, in its own words.
    #[error("{message}")]
    Server {
        /// How a program tells it apart.
        kind: ErrorKind,
        /// How a person reads it.
        message: String,
    },
    /// The server's answer breaks the contract.
    #[error("the server's answer breaks the contract: {0}; check that it is a Payload Manager of version 1")]
    Contract(String),
    /// The payload's bytes cannot be reached from this process.
    #[error("{0}")]
    Mapping(String),
    /// Reading what is to be stored, or writing what was fetched, failed.
    #[error("{what}: {}", reason_of(reason))]
    Io {
        /// `cannot read the input`, `cannot write the output`.
        what: &'static str,
        /// What the system said. Part of the sentence, hence no `source`: a chain would say it twice.
        reason: io::Error,
    },
    /// The bytes are not the ones that were committed.
    #[error(
        "{id} has checksum {found}, and {expected} was committed; its bytes are damaged, do not use them"
    )]
    Checksum {
        /// Whose bytes; not in the sentence, which callers prefix with what they were asked for.
        id: PayloadId,
        /// As committed.
        expected: Checksum,
        /// As read.
        found: Checksum,
    },
    /// An argument can never be right.
    #[error("{0}")]
    Input(String),
}

impl ClientError {
    /// The server's kind, when it was the server that refused.
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Server { kind, .. } => Some(*kind),
            _ => None,
        }
    }

    /// True when the other end of a pipe was closed: nobody wants the rest of the output.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Io { reason, .. } if reason.kind() == io::ErrorKind::BrokenPipe)
    }

    /// What became of a call to `address`.
    ///
    /// A status that travelled in the server's answer has no source; one that the transport made up has.
    pub(crate) fn from_status(status: &Status, address: &str) -> Self {
        let Some(source) = status.source() else {
            let PayloadError { kind, message } = payload_wire::status::from_status(status);
            let message = if message.is_empty() { format!("the server answered {kind:?}") } else { message };
            return Self::Server { kind, message };
        };
        if chain(source).any(|error| error.is::<tonic::TimeoutExpired>()) {
            return Self::Server {
                kind: ErrorKind::DeadlineExceeded,
                message: "the deadline passed before the server answered; whether it was done is unknown"
                    .to_owned(),
            };
        }
        let reason = innermost(source);
        if chain(source).any(|error| error.is::<tonic::ConnectError>()) {
            return Self::Connect { address: address.to_owned(), reason };
        }
        Self::Interrupted { address: address.to_owned(), reason }
    }

    /// A connection to `address` could not be made.
    pub(crate) fn from_connect(error: &(dyn Error + 'static), address: &str) -> Self {
        Self::Connect { address: address.to_owned(), reason: innermost(error) }
    }
}

impl From<PayloadError> for ClientError {
    /// A rule of the shared vocabulary was broken before anything was sent.
    fn from(error: PayloadError) -> Self {
        Self::Input(error.message)
    }
}

/// What the system said, without its number.
pub(crate) fn reason_of(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// The sentence at the bottom of a chain of errors: the outer ones only say `transport error`.
pub(crate) fn innermost(error: &(dyn Error + 'static)) -> String {
    let io = chain(error).filter_map(|error| error.downcast_ref::<io::Error>()).last().map(reason_of);
    io.unwrap_or_else(|| chain(error).last().map(|error| error.to_string()).unwrap_or_default())
}

fn chain<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'e (dyn Error + 'static)| (*error).source())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_status_of_the_server_when_mapped_then_kind_and_words_are_kept() {
        let error = ClientError::from_status(&Status::aborted("it is leased"), "a:1");
        assert_eq!(
            (error.kind(), error.to_string()),
            (Some(ErrorKind::LeaseConflict), "it is leased".to_owned())
        );
        let silent = ClientError::from_status(&Status::new(tonic::Code::NotFound, ""), "a:1");
        assert!(silent.to_string().contains("NotFound"), "{silent}");
    }

    #[test]
    fn given_a_status_of_the_transport_when_mapped_then_it_is_no_answer_of_the_server() {
        let broken = Status::from_error(Box::new(io::Error::from_raw_os_error(104)));
        let error = ClientError::from_status(&broken, "a:1");
        assert!(matches!(error, ClientError::Interrupted { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("a:1") && !text.contains("os error"), "{text}");
        let late = Status::from_error(Box::new(tonic::TimeoutExpired(())));
        assert_eq!(ClientError::from_status(&late, "a:1").kind(), Some(ErrorKind::DeadlineExceeded));
    }
}
