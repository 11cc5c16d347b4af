//! The audit's lines: who deleted what and which configuration was read, one line each, with how it went.
//!
//! They go to the log under the target `payload_manager::audit` at level info, so that they can be filtered apart:
//! `RUST_LOG=warn,payload_manager::audit=info`. Deletions over native sessions and by expiry are not among them.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use payload_types::Peer;
use tonic::{Request, Status};

use super::Caller;
use crate::incoming::peer_of;

/// The target of every line.
pub const TARGET: &str = "payload_manager::audit";

/// Who asks for what is to be told.
pub struct Asked {
    caller: Option<Arc<Caller>>,
    peer: Peer,
}

impl Asked {
    /// Whoever sent `request`.
    pub fn by<T>(request: &Request<T>) -> Self {
        Self { caller: request.extensions().get::<Arc<Caller>>().cloned(), peer: peer_of(request) }
    }

    /// Tells what they asked for and how it went; hands the answer on.
    ///
    /// # Errors
    /// The answer's own.
    pub fn told<T>(self, action: &str, what: impl Display, answer: Result<T, Status>) -> Result<T, Status> {
        let who = self.caller.as_ref().map_or("anybody", |caller| caller.name.as_str());
        let peer = self.peer.address().map(|address| address.to_string()).unwrap_or_default();
        match &answer {
            Ok(_) => tracing::info!(target: TARGET, who, peer, action, %what, outcome = "done", "audit"),
            Err(status) => {
                let outcome = status.code();
                tracing::info!(target: TARGET, who, peer, action, %what, ?outcome, "audit");
            }
        }
        answer
    }
}

/// A file of the configuration was read, or could not be.
pub fn loaded<E: Display>(what: &str, file: &Path, outcome: &Result<(), E>) {
    let file = file.display();
    match outcome {
        Ok(()) => {
            tracing::info!(target: TARGET, who = "server", action = "load", what, %file, outcome = "done", "audit")
        }
        Err(error) => {
            tracing::warn!(target: TARGET, who = "server", action = "load", what, %file, outcome = %error, "audit");
        }
    }
}
