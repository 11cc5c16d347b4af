//! Who may call what: TLS on the socket, callers and their roles, the namespace a call is in, and the audit's lines.
//!
//! ```text
//! socket --tls--> names of the client's certificate --.
//! `authorization: Bearer TOKEN` ----------------------+--> book (who, role, namespace) --rules (RPC -> role)--> service
//! `x-payload-namespace` ------------------------------'
//! ```
//! Without a file of callers (`server.access_file`) everybody may do everything, as existing clients of the contract
//! expect of a loopback address. Native sessions do not come this way: their socket's permissions and the peer's user
//! decide (`local.*`). Every call is judged when it begins; a stream that was opened goes on when its caller is removed.
//!
//! Invariants: an RPC that no rule names needs the highest role; no answer tells of other callers or namespaces; a token
//! is never kept or logged, its hash never shown.

pub mod audit;
mod book;
mod namespace;
pub mod reload;
mod rules;
pub mod tls;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use tonic::Status;
use tonic::codegen::http::{Extensions, HeaderMap};

use crate::config::ServerConfig;
use crate::incoming::Link;
use book::Book;
use tls::Tls;

/// The header of a token.
const AUTHORIZATION: &str = "authorization";

/// What a caller may do; each role may do what those before it may.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Lease, read, list, follow.
    Reader,
    /// And make, change, move and delete payloads and streams.
    Producer,
    /// And see who holds what, verify bytes, delete by force.
    Operator,
    /// Everything.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reader => "reader",
            Self::Producer => "producer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
}

/// Somebody who calls.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Caller {
    /// As the file of callers names them; no secret.
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// Where: the only namespace they may name.
    pub namespace: String,
}

impl Caller {
    /// Refuses what needs a higher role.
    ///
    /// # Errors
    /// PERMISSION_DENIED, naming the role that is missing.
    fn needs(&self, role: Role, what: &str) -> Result<(), Status> {
        match self.role >= role {
            true => Ok(()),
            false => Err(Status::permission_denied(format!(
                "{what} needs the role {role}, and `{}` has the role {}; ask an administrator of this server for it",
                self.name, self.role
            ))),
        }
    }
}

/// Refuses a call that needs a higher role than its caller has. For what depends on the request's contents; what the RPC
/// alone decides is in the rules.
///
/// # Errors
/// PERMISSION_DENIED, naming the role that is missing.
pub fn needs<T>(request: &tonic::Request<T>, role: Role, what: &str) -> Result<(), Status> {
    match request.extensions().get::<Arc<Caller>>() {
        Some(caller) => caller.needs(role, what),
        None => Ok(()),
    }
}

/// Decides about calls. Shared by its clones; what it knows may be read anew while it serves.
#[derive(Clone, Debug)]
pub struct Access {
    /// `None`: everybody may do everything.
    guard: Option<Arc<Guard>>,
}

#[derive(Debug)]
struct Guard {
    file: PathBuf,
    has_client_ca: bool,
    book: RwLock<Arc<Book>>,
}

impl Access {
    /// Decides by the file of callers that is configured.
    ///
    /// # Errors
    /// One sentence: the file cannot be read, or what is wrong in it.
    pub fn load(server: &ServerConfig) -> anyhow::Result<Self> {
        let Some(file) = server.access_file.clone() else { return Ok(Self { guard: None }) };
        let has_client_ca = server.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        let book = Book::read(&file, has_client_ca)?;
        audit::loaded::<anyhow::Error>("file of callers", &file, &Ok(()));
        let book = RwLock::new(Arc::new(book));
        Ok(Self { guard: Some(Arc::new(Guard { file, has_client_ca, book })) })
    }

    /// Reads the file of callers again. What is wrong in it changes nothing.
    ///
    /// # Errors
    /// As [`Access::load`].
    pub fn reload(&self) -> anyhow::Result<()> {
        let Some(guard) = &self.guard else { return Ok(()) };
        let read = Book::read(&guard.file, guard.has_client_ca);
        audit::loaded("file of callers", &guard.file, &read.as_ref().map(drop));
        *guard.book.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(read?);
        Ok(())
    }

    /// Judges a call of one of our services, or of reflection. Its caller is told to the handler.
    ///
    /// # Errors
    /// UNAUTHENTICATED when nobody is known by what it carries, PERMISSION_DENIED when its caller may not, NOT_FOUND when
    /// it names a namespace that does not exist.
    pub fn judge(&self, path: &str, headers: &HeaderMap, extensions: &mut Extensions) -> Result<(), Status> {
        let wanted = namespace::named(headers)?;
        let Some(guard) = &self.guard else { return namespace::exists(wanted) };
        let book = Arc::clone(&guard.book.read().unwrap_or_else(PoisonError::into_inner));
        let caller = match headers.get(AUTHORIZATION) {
            Some(value) => book.by_token(value.as_bytes()).ok_or_else(|| {
                Status::unauthenticated(
                    "the token is not one that this server knows, or the header is not `authorization: Bearer TOKEN`; check it, or ask for a new one",
                )
            })?,
            None => {
                let link = extensions.get::<Link>();
                let names = link.map_or(&[][..], Link::certificate_names);
                book.by_certificate(names).ok_or_else(|| nobody(names))?
            }
        };
        let (rpc, role) = rules::needed(path);
        caller.needs(role, rpc)?;
        if let Some(wanted) = wanted
            && wanted != caller.namespace
        {
            return Err(Status::permission_denied(format!(
                "`{}` may use the namespace `{}` only; leave {} out, or name that one",
                caller.name,
                caller.namespace,
                namespace::HEADER
            )));
        }
        extensions.insert(caller);
        Ok(())
    }
}

fn nobody(names: &[String]) -> Status {
    Status::unauthenticated(match names {
        [] => "this server wants to know who calls; send `authorization: Bearer TOKEN` (payloadctl: PAYLOAD_MANAGER_TOKEN or --token-file), or a client certificate over TLS".to_owned(),
        names => format!(
            "the client's certificate is for {}, and this server knows no caller by that name; ask an administrator to add it, or send a token",
            names.join(", ")
        ),
    })
}

/// What guards the socket and the calls on it.
#[derive(Clone, Debug)]
pub struct Guards {
    /// `None`: no TLS.
    pub tls: Option<Tls>,
    /// Who may call what.
    pub access: Access,
}

impl Guards {
    /// Reads certificates and callers.
    ///
    /// # Errors
    /// One sentence: which file, what is wrong with it, and what to do.
    pub fn load(server: &ServerConfig) -> anyhow::Result<Self> {
        let tls = server.tls.as_ref().map(Tls::load).transpose()?;
        Ok(Self { tls, access: Access::load(server)? })
    }
}
