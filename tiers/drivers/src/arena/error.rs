//! What can go wrong with a memory, as whoever asked for it is told.

use std::io;

use payload_types::ByteCount;

/// See the module's description.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// The machine, its cgroup or this process's limits have no more memory.
    #[error(
        "no memory for {asked} of shared memory ({tried}: {source}); delete or spill payloads, lower \
         storage.ram.capacity_bytes, or raise the limits of the server's cgroup and address space"
    )]
    Full {
        /// How much was asked for.
        asked: ByteCount,
        /// What was tried.
        tried: &'static str,
        /// What the system answered.
        source: io::Error,
    },
    /// The process or the machine has no more descriptors.
    #[error(
        "no descriptor is left for {asked} of shared memory ({tried}: {source}); raise the server's limit of open files \
         (ulimit -n, LimitNOFILE=)"
    )]
    Descriptors {
        /// How much was asked for.
        asked: ByteCount,
        /// What was tried.
        tried: &'static str,
        /// What the system answered.
        source: io::Error,
    },
    /// A commit with `isolation: sealed` while the producer can still write.
    #[error(
        "the payload of {asked} cannot be sealed while it is mapped writable ({source}); unmap it, or end the I/O into \
         it, and commit again"
    )]
    StillWritable {
        /// How large it is.
        asked: ByteCount,
        /// What the system answered.
        source: io::Error,
    },
    /// Anything else: this system cannot do it.
    #[error(
        "{tried} failed for {asked} of shared memory: {source}; native sessions need Linux 5.14 with /proc mounted"
    )]
    Io {
        /// How much was asked for.
        asked: ByteCount,
        /// What was tried.
        tried: &'static str,
        /// What the system answered.
        source: io::Error,
    },
}

impl ArenaError {
    /// What was tried and what the system answered, without advice.
    pub(super) fn cause(&self) -> String {
        match self {
            Self::Full { tried, source, .. }
            | Self::Descriptors { tried, source, .. }
            | Self::Io { tried, source, .. } => {
                format!("{tried}: {source}")
            }
            Self::StillWritable { source, .. } => source.to_string(),
        }
    }

    pub(super) fn of(asked: ByteCount, tried: &'static str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ENOSPC | libc::ENOMEM | libc::EDQUOT | libc::EFBIG) => {
                Self::Full { asked, tried, source }
            }
            Some(libc::EMFILE | libc::ENFILE) => Self::Descriptors { asked, tried, source },
            _ => Self::Io { asked, tried, source },
        }
    }
}
