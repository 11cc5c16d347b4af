//! Why a configuration is refused. Each message names the key and says what to write instead.

use std::path::PathBuf;

/// One reason; the first that is met.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is missing or not readable.
    #[error("{} cannot be read: {reason}; give a readable YAML file", file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Not YAML, a key written twice, or not a mapping.
    #[error("{place}: {reason}")]
    Syntax {
        /// The file or the environment variable.
        place: String,
        /// What is wrong, with line and column where they are known.
        reason: String,
    },
    /// A key that the table does not have.
    #[error("{place}: unknown key `{path}`; the nearest known key is `{nearest}`")]
    UnknownKey {
        /// The file or the environment variable.
        place: String,
        /// The key, in full.
        path: String,
        /// What was probably meant, in full.
        nearest: String,
    },
    /// A value of another kind, or outside what the key takes.
    #[error("{place}: `{path}` is {found}; it takes {expected}")]
    WrongValue {
        /// The file or the environment variable.
        place: String,
        /// The key, in full.
        path: String,
        /// What was written.
        found: String,
        /// What would have been right.
        expected: String,
    },
    /// A value that is understood and refused.
    #[error("`{path}`: {reason}")]
    Refused {
        /// The key, in full.
        path: String,
        /// Why, and what to do.
        reason: String,
    },
}

impl ConfigError {
    /// [`ConfigError::Refused`].
    pub(super) fn refused(path: &str, reason: impl Into<String>) -> Self {
        Self::Refused { path: path.to_owned(), reason: reason.into() }
    }
}
