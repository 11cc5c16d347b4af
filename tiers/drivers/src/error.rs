//! Why the drivers cannot be opened. Every sentence says what was asked, what is wrong, and what to do.

use std::io;
use std::path::{Path, PathBuf};

use crate::intent::LogError;

/// See the module's description.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// `shm_prefix` cannot be part of a file name.
    #[error(
        "shm_prefix `{prefix}` cannot be used; it needs 1 to {bytes_max} bytes without `/` and without a dot in front"
    )]
    Prefix {
        /// As configured.
        prefix: String,
        /// The longest allowed.
        bytes_max: usize,
    },
    /// Another server uses the disk root.
    #[error("disk root {} is in use by another payload-manager; stop it, or choose another root", root.display())]
    RootTaken {
        /// The root.
        root: PathBuf,
    },
    /// The disk root holds something else.
    #[error(
        "disk root {} is not empty and was not made by payload-manager (it has no payload-manager.root); it was left \
         untouched: choose an empty directory", root.display()
    )]
    RootForeign {
        /// The root.
        root: PathBuf,
    },
    /// The disk root was written by a later version.
    #[error(
        "disk root {} has format {format}, and this version knows formats up to {format_max}; it was left untouched: \
         use the version that wrote it, or a newer one", root.display()
    )]
    RootNewer {
        /// The root.
        root: PathBuf,
        /// What it has.
        format: u32,
        /// What this version knows.
        format_max: u32,
    },
    /// The marker is there and makes no sense.
    #[error("{} is damaged; nothing was changed: restore it from a backup, or choose another disk root", path.display())]
    MarkerDamaged {
        /// The marker.
        path: PathBuf,
    },
    /// Another server has this node's name.
    #[error(
        "node `{node}` is already served by another payload-manager (it holds {}); stop it, or choose another node \
         name or shm_prefix", path.display()
    )]
    NodeTaken {
        /// The node.
        node: String,
        /// The intent log.
        path: PathBuf,
    },
    /// The intent log is of a later version, or no log at all.
    #[error("intent log {} {problem}; nothing was changed: use the version that wrote it, or move it away (what it \
             names is then never cleaned up)", path.display())]
    Log {
        /// The intent log.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A segment file was written by a later version.
    #[error(
        "segment file {} has format {format}, which this version does not know; nothing was changed: use the version \
         that wrote it, or a newer one", path.display()
    )]
    SegmentNewer {
        /// The file.
        path: PathBuf,
        /// What it has.
        format: u32,
    },
    /// io_uring was demanded and is not permitted.
    #[error(
        "io_uring is not available ({source}); allow it (kernel.io_uring_disabled=0, and a seccomp profile that \
         permits it), or let the server use plain reads and writes"
    )]
    IoUring {
        /// What the kernel answered.
        source: io::Error,
    },
    /// A system call failed.
    #[error("{tried} {} failed: {source}; check that this user may write there", path.display())]
    Io {
        /// What was tried.
        tried: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
}

impl OpenError {
    pub(crate) fn io(tried: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { tried, path: path.into(), source }
    }

    pub(crate) fn of_log(error: LogError, path: &Path, node: &str) -> Self {
        let path = path.to_owned();
        match error {
            LogError::Taken => Self::NodeTaken { node: node.to_owned(), path },
            LogError::Newer(format) => Self::Log { path, problem: format!("has format {format}") },
            LogError::Foreign => Self::Log { path, problem: "is not one of ours".to_owned() },
            LogError::Io(source) => Self::io("opening the intent log", path, source),
        }
    }
}
