//! SQLite's errors as sentences. None of them names a file: some reach clients. `open` puts the file in front.

use rusqlite::{Error, ErrorCode, ffi};

use crate::error::{RESTORE, StoreError};

/// An error of anything but `COMMIT`: the transaction, if there was one, is rolled back.
pub(super) fn rolled_back(error: &Error) -> StoreError {
    let Error::SqliteFailure(failure, _) = error else {
        return StoreError::Corrupt(format!(
            "the catalog's schema or a value is not as written ({error}); {RESTORE}"
        ));
    };
    let answer = ffi::code_to_str(failure.extended_code);
    match failure.code {
        ErrorCode::DiskFull => StoreError::Unavailable(format!(
            "no space is left for the catalog database ({answer}); free space on its filesystem"
        )),
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => StoreError::Unavailable(format!(
            "another program holds a lock on the catalog database ({answer}); end that program"
        )),
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => {
            StoreError::Corrupt(format!("the catalog database is corrupt ({answer}); {RESTORE}"))
        }
        ErrorCode::ReadOnly => StoreError::ReadOnly(format!(
            "the catalog database cannot be written ({answer}); give the server write permission on it and on its directory"
        )),
        ErrorCode::ConstraintViolation | ErrorCode::Unknown => StoreError::Corrupt(format!(
            "the catalog's schema is not the one this program made ({error}); {RESTORE}"
        )),
        _ => StoreError::Unavailable(format!(
            "the catalog database answered: {answer} ({}); check its disk and the system log",
            failure.extended_code
        )),
    }
}

/// An error of `COMMIT`. After an I/O error the log may hold the whole transaction, though this connection does not
/// see it: a crash now could bring it back.
pub(super) fn committing(error: &Error) -> StoreError {
    match (error.sqlite_error_code(), rolled_back(error)) {
        (Some(ErrorCode::SystemIoFailure), StoreError::Unavailable(text)) => StoreError::Unknown(text),
        (_, other) => other,
    }
}
