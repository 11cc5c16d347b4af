//! How an error of the client becomes one of `payload_manager`'s exceptions, which `_errors.py` defines.

use payload_client::ClientError;
use payload_types::ErrorKind;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

/// The exception that tells of `error`, with its sentence.
pub fn raised(py: Python<'_>, error: &ClientError) -> PyErr {
    exception(py, class_of(error), error.to_string())
}

/// An argument can never be right.
pub fn invalid(py: Python<'_>, sentence: impl Into<String>) -> PyErr {
    exception(py, "InvalidArgument", sentence.into())
}

/// The exception of `_errors.py` with this name.
pub fn exception(py: Python<'_>, class: &str, sentence: String) -> PyErr {
    static ERRORS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let module = ERRORS.get_or_try_init(py, || py.import("payload_manager._errors").map(Bound::unbind));
    let found =
        module.and_then(|module| module.bind(py).getattr(class)?.cast_into::<PyType>().map_err(PyErr::from));
    match found {
        Ok(class) => PyErr::from_type(class, (sentence,)),
        Err(error) => error,
    }
}

fn class_of(error: &ClientError) -> &'static str {
    match error {
        ClientError::Connect { .. } | ClientError::Refused { .. } => "ConnectionFailed",
        ClientError::Ended { .. } | ClientError::Interrupted { .. } => "ConnectionLost",
        // Only what a signal's handler raised ends a wait, and that is raised instead.
        ClientError::Cancelled => "InternalError",
        ClientError::Forked => "Forked",
        ClientError::Contract(_) => "ContractBroken",
        ClientError::Mapping(_) | ClientError::Io { .. } => "MappingFailed",
        ClientError::Checksum { .. } => "ChecksumMismatch",
        ClientError::Input(_) => "InvalidArgument",
        ClientError::Server { kind, .. } => match kind {
            ErrorKind::InvalidArgument => "InvalidArgument",
            ErrorKind::NotFound => "NotFound",
            ErrorKind::FailedPrecondition => "FailedPrecondition",
            ErrorKind::LeaseConflict => "LeaseConflict",
            ErrorKind::ResourceExhausted => "ResourceExhausted",
            ErrorKind::DeadlineExceeded => "DeadlineExceeded",
            ErrorKind::Unavailable => "Unavailable",
            ErrorKind::DataLoss => "DataLoss",
            ErrorKind::AlreadyExists => "AlreadyExists",
            ErrorKind::Unimplemented => "Unimplemented",
            ErrorKind::Internal => "InternalError",
        },
    }
}
