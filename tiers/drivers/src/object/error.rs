//! What can go wrong with an object store, and in which words it is said: what was tried, what was wrong, which key to change.
//!
//! Made where it happens, by [`ObjectError`]'s constructors; what the `object_store` crate answers is read by
//! [`ObjectError::of_store`] alone. No secret is ever part of a sentence: object_store names none, and URLs are those of objects.

use std::error::Error as _;
use std::io;

use object_store::client::{HttpError, HttpErrorKind};
use payload_types::event::{DriverError, DriverErrorKind};

/// How callers tell errors apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ObjectErrorKind {
    /// There is no such object.
    Missing,
    /// It is there, and is not what was stored: another size, or replaced between two reads.
    Changed,
    /// Its bytes do not have the checksum that they must have, or cannot be decompressed.
    Corrupt,
    /// An object of this name exists that this node's journal does not name.
    Conflict,
    /// The store has no room left.
    Full,
    /// The store asked for less: 503 SlowDown or 429. Worth another try.
    Throttled,
    /// The store cannot be reached, or answers 5xx. Worth another try.
    Unavailable,
    /// The store refuses credentials, region or clock: a person has to change something.
    Refused,
    /// The configuration makes no sense, or this kind of store cannot do it.
    Config,
    /// What was to be uploaded could not be read, or is not what it must be.
    Source,
    /// What was downloaded could not be written.
    Destination,
    /// As many operations are under way or waiting as may be.
    Busy,
    /// The driver is being shut down.
    Stopping,
}

/// See the module's description.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ObjectError {
    /// How callers tell it apart.
    pub kind: ObjectErrorKind,
    /// How a person reads it.
    pub message: String,
}

/// An answer that is an error, as the wire had it ([`super::wire`]): it travels through object_store as an error's source.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the store answered {status}{}{}", if code.is_empty() { "" } else { " " }, code)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The `<Code>` of S3's error body, if there is one.
    pub(crate) code: String,
    /// The `<Message>`, cut to a line.
    pub(crate) message: String,
}

impl ObjectError {
    pub(crate) fn new(kind: ObjectErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// Nobody answers any more.
    pub(crate) fn stopping() -> Self {
        super::gate::stopping()
    }

    /// A local read or write that failed.
    pub(crate) fn of_io(kind: ObjectErrorKind, tried: &str, error: &io::Error) -> Self {
        let kind = if is_full(error) { ObjectErrorKind::Full } else { kind };
        Self::new(kind, format!("{tried}: {error}"))
    }

    /// What object_store answered to `tried`.
    pub(crate) fn of_store(tried: &str, error: &object_store::Error) -> Self {
        let (kind, what) = read(error);
        Self::new(kind, format!("{tried}: {what}"))
    }

    /// True when the same call may succeed a moment later.
    pub(crate) fn is_worth_another_try(&self) -> bool {
        matches!(self.kind, ObjectErrorKind::Throttled | ObjectErrorKind::Unavailable)
    }
}

impl From<ObjectError> for DriverError {
    /// For the shards. `Unavailable` and `Throttled` are `Io` to them until their vocabulary knows more.
    fn from(error: ObjectError) -> Self {
        let kind = match error.kind {
            ObjectErrorKind::Missing => DriverErrorKind::Missing,
            ObjectErrorKind::Changed => DriverErrorKind::Truncated,
            ObjectErrorKind::Corrupt => DriverErrorKind::Corrupt,
            ObjectErrorKind::Full => DriverErrorKind::Full,
            ObjectErrorKind::Conflict
            | ObjectErrorKind::Throttled
            | ObjectErrorKind::Unavailable
            | ObjectErrorKind::Refused
            | ObjectErrorKind::Config
            | ObjectErrorKind::Source
            | ObjectErrorKind::Destination
            | ObjectErrorKind::Busy
            | ObjectErrorKind::Stopping => DriverErrorKind::Io,
        };
        Self { kind, message: error.message }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// The kind of an error of object_store, and the sentence for it.
fn read(error: &object_store::Error) -> (ObjectErrorKind, String) {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(answer) = cause.downcast_ref::<Answer>() {
            return read_answer(answer);
        }
        if let Some(error) = cause.downcast_ref::<io::Error>()
            && is_full(error)
        {
            return (ObjectErrorKind::Full, error.to_string());
        }
        if let Some(http) = cause.downcast_ref::<HttpError>()
            && http.source().is_some_and(|inner| inner.downcast_ref::<Answer>().is_none())
        {
            return read_connection(http);
        }
        source = cause.source();
    }
    // What these say in their bodies and no status tells.
    let text = error.to_string();
    if text.contains("NoSuchBucket") {
        return read_answer(&Answer { status: 404, code: "NoSuchBucket".into(), message: String::new() });
    }
    match error {
        object_store::Error::NotFound { .. } => (ObjectErrorKind::Missing, "there is no such object".into()),
        object_store::Error::AlreadyExists { .. } => (
            ObjectErrorKind::Conflict,
            "an object of this name exists, and nothing here says that it is ours".into(),
        ),
        object_store::Error::Precondition { .. } => {
            (ObjectErrorKind::Changed, "the object was replaced meanwhile".into())
        }
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            (ObjectErrorKind::Refused, format!("{text}; {}", CREDENTIALS))
        }
        object_store::Error::NotSupported { .. } | object_store::Error::NotImplemented { .. } => {
            (ObjectErrorKind::Config, text)
        }
        // A directory's store says so.
        _ if text.contains("Requested range was invalid") => {
            (ObjectErrorKind::Changed, "the object is shorter than it must be".into())
        }
        _ if text.contains("incorrectly configured region") => (ObjectErrorKind::Refused, REGION.into()),
        _ => (ObjectErrorKind::Unavailable, text),
    }
}

const CREDENTIALS: &str = "allow these credentials to read, write and delete there, or set \
     storage.object.filesystem_options.s3.access_key and .secret_key to ones that may";
const REGION: &str = "the bucket is in another region; set storage.object.filesystem_options.s3.region";

/// One sentence that names the key to change.
fn read_answer(answer: &Answer) -> (ObjectErrorKind, String) {
    use ObjectErrorKind::{Refused, Throttled, Unavailable};
    let said =
        if answer.message.is_empty() { answer.to_string() } else { format!("{answer} ({})", answer.message) };
    let sentence = |what: &str| format!("{said}: {what}");
    match (answer.status, answer.code.as_str()) {
        (_, "NoSuchBucket" | "InvalidBucketName") => (
            Refused,
            sentence("the bucket does not exist; create it, or name another in storage.object.root_path"),
        ),
        (_, "InvalidAccessKeyId") => (
            Refused,
            sentence("the store does not know this key; set storage.object.filesystem_options.s3.access_key"),
        ),
        (_, "SignatureDoesNotMatch") => (
            Refused,
            sentence(
                "the secret does not belong to the key; set storage.object.filesystem_options.s3.secret_key",
            ),
        ),
        (_, "ExpiredToken" | "TokenRefreshRequired" | "InvalidToken" | "ExpiredTokenException") => (
            Refused,
            sentence(
                "the credentials expired; renew AWS_SESSION_TOKEN and its keys, or set \
                      storage.object.filesystem_options.s3.access_key and .secret_key",
            ),
        ),
        (_, "RequestTimeTooSkewed" | "RequestExpired") => {
            (Refused, sentence("this machine's clock and the store's differ too much; set the clock (NTP)"))
        }
        (301 | 307, _)
        | (_, "AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException") => {
            (Refused, sentence(REGION))
        }
        (429, _) | (503, _) | (_, "SlowDown" | "TooManyRequests" | "ServerBusy") => {
            (Throttled, sentence("the store asks for fewer requests"))
        }
        (416, _) => (ObjectErrorKind::Changed, sentence("the object is shorter than it must be")),
        (507, _) => (ObjectErrorKind::Full, sentence("the store has no room left")),
        (401 | 403, _) => (Refused, sentence(CREDENTIALS)),
        (408, _) | (500..=599, _) => (Unavailable, said),
        _ => (
            ObjectErrorKind::Config,
            sentence(
                "the store does not take this request; is \
             storage.object.filesystem_options.s3.endpoint_override that of an S3 server?",
            ),
        ),
    }
}

fn read_connection(error: &HttpError) -> (ObjectErrorKind, String) {
    let mut said = String::new();
    let mut cause: Option<&dyn std::error::Error> = error.source();
    while let Some(inner) = cause {
        said = inner.to_string();
        cause = inner.source();
    }
    if said.contains("certificate") || said.contains("UnknownIssuer") {
        let what =
            "set storage.object.filesystem_options.s3.tls_ca_file_path to the authority that signed it";
        return (
            ObjectErrorKind::Refused,
            format!("the store's certificate is not trusted ({said}); {what}"),
        );
    }
    let what = match error.kind() {
        HttpErrorKind::Connect => {
            "the store cannot be reached; is storage.object.filesystem_options.s3.endpoint_override right, and is it up?"
        }
        HttpErrorKind::Timeout => "the store did not answer in time (.request_timeout)",
        _ => "the connection to the store broke",
    };
    (ObjectErrorKind::Unavailable, format!("{what} ({said})"))
}
