//! What a removal waits for: a setting of the SQLite store, known also where that store is not built in.

/// What `apply_late` waits for. All that `apply` makes is on stable storage when it returns, with either.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Synchronous {
    /// That the log was synced to stable storage.
    #[default]
    Full,
    /// Nothing: `PRAGMA synchronous=NORMAL` for that transaction.
    Normal,
}

impl Synchronous {
    /// As SQLite calls it.
    #[cfg(feature = "sqlite")]
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Normal => "normal",
        }
    }
}
