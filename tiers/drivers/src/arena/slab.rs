//! The states of a memory, as types: what may be done with it in which.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use payload_types::ByteCount;

use super::error::ArenaError;
use super::kernel::Kernel;
use super::making::{Granted, Made, Placement};
use crate::sys;
use crate::sys::memory::{Mapping, Seals};

/// A memory that its writer is about to map. Not sealed against writing, so no reader may have it.
pub struct Draft(Box<Made>);

impl Draft {
    pub(super) fn new(made: Made) -> Self {
        Self(Box::new(made))
    }

    /// The descriptor for the one writer. It must have been mapped by him before [`seal`](Self::seal): later nobody can
    /// map it to be written.
    pub fn writer(&self) -> BorrowedFd<'_> {
        self.0.writer.as_fd()
    }

    /// What it takes.
    pub fn bytes(&self) -> ByteCount {
        self.0.bytes
    }

    /// Which pages it has.
    pub fn granted(&self) -> &Granted {
        &self.0.granted
    }

    /// Where they are.
    pub fn placement(&self) -> &Placement {
        &self.0.placement
    }

    /// The writer says that he has mapped it (or is gone): sealed, once and for all. From now on only what is mapped can
    /// be written. If he punched holes before, their pages are reserved again.
    ///
    /// # Errors
    /// [`ArenaError`], and the memory: who mapped it has it still, so it is to be returned, not forgotten.
    pub fn seal(self) -> Result<Slab, (Self, ArenaError)> {
        let Made { kernel, bytes, writer, .. } = &*self.0;
        let sealed = match kernel.seal(writer, Seals::WRITERS) {
            Ok(()) => kernel.reserve(writer, bytes.0).map_err(|source| ("reserving its pages", source)),
            Err(source) => Err(("sealing it", source)),
        };
        if let Err((doing, source)) = sealed {
            let error = ArenaError::of(*bytes, doing, source);
            return Err((self, error));
        }
        let Made { kernel, bytes, own, mapping, granted, .. } = *self.0;
        Ok(Slab { kernel, bytes, own, mapping, granted })
    }

    pub(super) fn leave(self) -> Remains {
        Remains { own: self.0.own, bytes: self.0.bytes }
    }
}

impl std::fmt::Debug for Draft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Draft").field("bytes", &self.0.bytes).finish_non_exhaustive()
    }
}

/// A sealed memory: its writer writes through his mapping, readers may have it.
pub struct Slab {
    kernel: Arc<dyn Kernel>,
    bytes: ByteCount,
    own: File,
    mapping: Mapping,
    granted: Granted,
}

impl Slab {
    /// A descriptor for one reader: a description of its own that can only read. Opening it takes 2 us.
    ///
    /// # Errors
    /// [`ArenaError::Descriptors`].
    pub fn reader(&self) -> Result<OwnedFd, ArenaError> {
        reader(&*self.kernel, &self.own, self.bytes)
    }

    /// What it takes.
    pub fn bytes(&self) -> ByteCount {
        self.bytes
    }

    /// Which pages it has.
    pub fn granted(&self) -> &Granted {
        &self.granted
    }

    /// What the kernel says that it takes: always [`bytes`](Self::bytes).
    ///
    /// # Errors
    /// As fstat(2).
    pub fn bytes_in_kernel(&self) -> io::Result<ByteCount> {
        bytes_in_kernel(&self.own)
    }

    /// Touches pages of a range that lies within it. 450 ms a GiB, or nothing where it has been done.
    ///
    /// # Errors
    /// `EINVAL` before Linux 5.14: pages are then touched by who writes first.
    pub fn populate(&self, range: Range<u64>) -> io::Result<()> {
        self.kernel.populate(&self.mapping, range)
    }

    /// Zeroes a range that lies within it, which no block that anybody was told of may touch.
    pub fn zero(&self, range: Range<u64>) {
        self.mapping.zero(range);
    }

    /// To be read without a mapping.
    pub(super) fn own(&self) -> &File {
        &self.own
    }

    pub(super) fn leave(self) -> Remains {
        Remains { own: self.own, bytes: self.bytes }
    }
}

/// A payload's own memory with `isolation: sealed`, before its commit.
pub struct Isolated {
    kernel: Arc<dyn Kernel>,
    bytes: ByteCount,
    writer: File,
    own: File,
    granted: Granted,
}

impl Isolated {
    pub(super) fn new(made: Made) -> Self {
        // A mapping of the server's would forbid the seal.
        let Made { kernel, bytes, writer, own, granted, .. } = made;
        Self { kernel, bytes, writer, own, granted }
    }

    /// The descriptor for its producer.
    pub fn writer(&self) -> BorrowedFd<'_> {
        self.writer.as_fd()
    }

    /// What it takes.
    pub fn bytes(&self) -> ByteCount {
        self.bytes
    }

    /// Which pages it has.
    pub fn granted(&self) -> &Granted {
        &self.granted
    }

    /// The commit: from now on nobody can change a byte, whatever he has mapped or open.
    ///
    /// # Errors
    /// [`ArenaError::StillWritable`] while anybody has it mapped writable, or I/O into it is under way; it comes back as
    /// it was, to be tried again. Other errors likewise.
    pub fn freeze(self) -> Result<Frozen, (Self, ArenaError)> {
        match self.kernel.seal(&self.writer, Seals::WRITE) {
            Ok(()) => Ok(Frozen { kernel: self.kernel, bytes: self.bytes, own: self.own }),
            Err(source) if source.raw_os_error() == Some(libc::EBUSY) => {
                let asked = self.bytes;
                Err((self, ArenaError::StillWritable { asked, source }))
            }
            Err(source) => {
                let error = ArenaError::of(self.bytes, "sealing it", source);
                Err((self, error))
            }
        }
    }

    /// To be read without a mapping.
    pub(super) fn own(&self) -> &File {
        &self.own
    }

    pub(super) fn leave(self) -> Remains {
        Remains { own: self.own, bytes: self.bytes }
    }
}

/// A committed payload's own memory, which nobody can write.
pub struct Frozen {
    kernel: Arc<dyn Kernel>,
    bytes: ByteCount,
    own: File,
}

impl Frozen {
    /// A descriptor for one reader: a description of its own.
    ///
    /// # Errors
    /// [`ArenaError::Descriptors`].
    pub fn reader(&self) -> Result<OwnedFd, ArenaError> {
        reader(&*self.kernel, &self.own, self.bytes)
    }

    /// What it takes.
    pub fn bytes(&self) -> ByteCount {
        self.bytes
    }

    /// What the kernel says that it takes. Less than [`bytes`](Self::bytes) when its producer punched holes before the
    /// commit: they read as zeroes, and stay charged.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn bytes_in_kernel(&self) -> io::Result<ByteCount> {
        bytes_in_kernel(&self.own)
    }

    /// To be read without a mapping.
    pub(super) fn own(&self) -> &File {
        &self.own
    }

    pub(super) fn leave(self) -> Remains {
        Remains { own: self.own, bytes: self.bytes }
    }
}

/// A memory that the server has neither mapped nor open for anybody any more: clients may.
pub(super) struct Remains {
    own: File,
    pub(super) bytes: ByteCount,
}

impl Remains {
    /// True once nobody else has it open or mapped: closing it then gives its pages back.
    pub(super) fn are_nobodys(&self) -> io::Result<bool> {
        sys::nobody_else_has_it(&self.own)
    }
}

fn reader(kernel: &dyn Kernel, own: &File, bytes: ByteCount) -> Result<OwnedFd, ArenaError> {
    match kernel.reopen_to_read(own) {
        Ok(file) => Ok(file.into()),
        Err(source) => Err(ArenaError::of(bytes, "opening it for a reader", source)),
    }
}

fn bytes_in_kernel(file: &File) -> io::Result<ByteCount> {
    Ok(ByteCount(file.metadata()?.blocks() * 512))
}
