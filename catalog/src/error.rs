//! Why a store could not do what it was asked. Every message is a sentence for an operator: what was wrong, what to
//! do. Only errors of opening name a file; those of running operations may travel to clients and name none.

use payload_types::PayloadKey;

/// A payload id that was to be stored here, and that a row of another node has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Taken {
    /// Whose row it is.
    pub key: PayloadKey,
    /// The other node's name.
    pub node: String,
    /// Where that node's gRPC is reached.
    pub address: String,
}

/// What went wrong, as the caller must tell it apart.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoreError {
    /// The change was definitely not made, and the same call may succeed later: busy, no space, a read error.
    #[error("{0}")]
    Unavailable(String),
    /// The change may have been made or not. Repeat it (changes are idempotent), or read back what is there.
    #[error("{0}")]
    Unknown(String),
    /// The change can never be stored: a number out of range. Nothing of its batch was stored.
    #[error("{0}")]
    Unstorable(String),
    /// The store's contents are not what this program wrote.
    #[error("{0}")]
    Corrupt(String),
    /// The file belongs to another program; it was left as it was.
    #[error("{0}")]
    Foreign(String),
    /// A newer version of this program wrote the schema; it was left as it was.
    #[error("{0}")]
    NewerFormat(String),
    /// The file or its directory cannot be written.
    #[error("{0}")]
    ReadOnly(String),
    /// Another server has the store open, or a server's name.
    #[error("{0}")]
    Locked(String),
    /// Another server has started under this one's name since: nothing of the batch was stored, nor will anything be.
    #[error("{0}")]
    Fenced(String),
    /// The database server does not let this one in: user, password, database, privileges.
    #[error("{0}")]
    Refused(String),
    /// Rows of other nodes have ids that were to be put, and stay as they are: nothing of the batch was stored. Never empty.
    #[error("payload ids are taken by other nodes: {0:?}")]
    Taken(Vec<Taken>),
}

impl StoreError {
    /// True when repeating the call may succeed.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Unknown(_))
    }

    /// The same error, its sentence begun with `prefix`.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(crate) fn prefixed(self, prefix: &str) -> Self {
        let join = |text: String| format!("{prefix}: {text}");
        match self {
            Self::Unavailable(text) => Self::Unavailable(join(text)),
            Self::Unknown(text) => Self::Unknown(join(text)),
            Self::Unstorable(text) => Self::Unstorable(join(text)),
            Self::Corrupt(text) => Self::Corrupt(join(text)),
            Self::Foreign(text) => Self::Foreign(join(text)),
            Self::NewerFormat(text) => Self::NewerFormat(join(text)),
            Self::ReadOnly(text) => Self::ReadOnly(join(text)),
            Self::Locked(text) => Self::Locked(join(text)),
            Self::Fenced(text) => Self::Fenced(join(text)),
            Self::Refused(text) => Self::Refused(join(text)),
            Self::Taken(taken) => Self::Taken(taken),
        }
    }
}

/// What to do about a corrupt database.
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(crate) const RESTORE: &str = "restore it from a backup, or move it away to start with an empty catalog, which gives up the payloads that only it names";
