//! PostgreSQL's errors as sentences. None of them names a host or a user: some reach clients. `open` puts the database
//! in front.

use std::io;

use tokio_postgres::Error;
use tokio_postgres::error::Severity;

use crate::error::{RESTORE, StoreError};

/// What tokio-postgres says of a server that refuses TLS.
const NO_TLS: &str = "server does not support TLS";

/// What a call was doing when it failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Doing {
    /// Anything but the below: no change of it can be in the database.
    Asking,
    /// The server had been asked to commit.
    Committing,
}

/// Translates an error.
pub(super) fn translate(error: &Error, doing: Doing) -> StoreError {
    if let Some(refusal) = distrust(error) {
        return refusal;
    }
    let Some(answer) = error.as_db_error() else {
        return broken(&source_of(error), doing);
    };
    let fatal = !matches!(answer.parsed_severity(), Some(Severity::Error));
    let (code, text) = (answer.code().code(), answer.message());
    let class = code.get(..2).unwrap_or_default();
    match class {
        // The transaction may have been committed: 40003 says so, and whoever ends a session may do it in between.
        _ if doing == Doing::Committing && (fatal || code == "40003" || class == "08") => {
            StoreError::Unknown(format!(
                "the catalog's database ended the connection during a commit ({code}: {text}); it is asked again"
            ))
        }
        "28" | "3D" => StoreError::Refused(format!(
            "the catalog's database does not let this server in ({code}: {text}); check user, password and database of database.postgres.connection_uri"
        )),
        _ if code == "42501" => StoreError::Refused(format!(
            "the user of database.postgres.connection_uri lacks a privilege ({code}: {text}); the user needs CREATE on the database, and must own the schema `payload_manager`"
        )),
        "25" => StoreError::ReadOnly(format!(
            "the catalog's database does not take writes ({code}: {text}); connect to the primary server"
        )),
        // Syntax, unknown names, values out of range, constraints: the schema is not the one that the migrations made.
        "22" | "23" | "42" => StoreError::Corrupt(format!(
            "the catalog's schema is not the one this program made ({code}: {text}); {RESTORE}"
        )),
        "53" => StoreError::Unavailable(format!(
            "the catalog's database is out of resources ({code}: {text}); give it more space or connections"
        )),
        _ => StoreError::Unavailable(format!("the catalog's database answered {code}: {text}")),
    }
}

/// The server's certificate, or that it has none, is not what was asked for.
fn distrust(error: &Error) -> Option<StoreError> {
    let source = std::error::Error::source(error)?;
    let inner = source.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    if let Some(rustls::Error::InvalidCertificate(why)) = inner.and_then(|inner| inner.downcast_ref()) {
        return Some(StoreError::Refused(format!(
            "the certificate of the catalog's database is not trusted ({why}); check the host, sslmode and sslrootcert of database.postgres.connection_uri"
        )));
    }
    (source.to_string() == NO_TLS).then(|| {
        StoreError::Refused(
            "the catalog's database does not speak TLS, and database.postgres.connection_uri asks for it (sslmode); turn `ssl` on there"
                .to_owned(),
        )
    })
}

/// The connection broke.
fn broken(why: &str, doing: Doing) -> StoreError {
    match doing {
        Doing::Asking => StoreError::Unavailable(format!(
            "the catalog's database cannot be reached ({why}); check that it runs"
        )),
        Doing::Committing => StoreError::Unknown(format!(
            "the connection to the catalog's database broke during a commit ({why}); it is asked again"
        )),
    }
}

/// No answer came in time.
pub(super) fn silent(seconds: u64, doing: Doing) -> StoreError {
    broken(&format!("no answer within {seconds} s"), doing)
}

/// The innermost reason: the outer ones only say that something failed.
fn source_of(error: &Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// A value that is not what the column's type promises.
pub(super) fn strange(error: &Error) -> StoreError {
    StoreError::Corrupt(format!("the catalog holds a value that is not as written ({error}); {RESTORE}"))
}
