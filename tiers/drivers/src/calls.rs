//! The system calls that make and keep files on a disk root, behind one seam: [`System`] makes them, and the
//! decorator of [`crate::faults`] makes them fail. Called by the store, its drafts and [`crate::health`], on driver
//! threads only: every call but `now` may block.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::store::sync_directory;
use crate::sys;
use crate::transfer::engine::{Engine, IoEngine};

/// While a replica is being made, only the server can open it.
const MODE_PRIVATE: u32 = 0o600;

/// See the module's description.
pub(crate) trait Calls: Send + Sync {
    /// A new file under a name that nothing has.
    fn create(&self, path: &Path) -> io::Result<File>;

    /// Reserves real space for the first `bytes` of the file.
    fn reserve(&self, file: &File, bytes: u64) -> io::Result<()>;

    /// Writes all of `bytes`; the transfer threads write through [`Calls::engine`].
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Reads at most so many bytes of a record table, fewer where the file ends.
    fn read_table(&self, file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// True when nobody else has a segment file open or mapped.
    fn nobody_else_has_it(&self, file: &File) -> io::Result<bool>;

    /// The file's bytes on stable storage.
    fn sync(&self, file: &File) -> io::Result<()>;

    /// A directory's names on stable storage.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;

    /// Gives a file its next name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Bytes that may still be written below `path`.
    fn available_bytes(&self, path: &Path) -> io::Result<u64>;

    /// The engine of a transfer thread.
    fn engine(&self, kind: IoEngine) -> io::Result<Box<dyn Engine>>;

    /// Time since some start, never going back.
    fn now(&self) -> Duration;
}

/// The system itself.
pub(crate) struct System(Instant);

impl System {
    pub(crate) fn new() -> Self {
        Self(Instant::now())
    }
}

impl Calls for System {
    fn create(&self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(MODE_PRIVATE).custom_flags(libc::O_NOFOLLOW);
        options.open(path)
    }

    fn reserve(&self, file: &File, bytes: u64) -> io::Result<()> {
        sys::reserve(file, bytes)
    }

    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    fn read_table(&self, file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        file.read_at(buffer, offset)
    }

    fn nobody_else_has_it(&self, file: &File) -> io::Result<bool> {
        sys::nobody_else_has_it(file)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        sync_directory(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn available_bytes(&self, path: &Path) -> io::Result<u64> {
        sys::available_bytes(path)
    }

    fn engine(&self, kind: IoEngine) -> io::Result<Box<dyn Engine>> {
        kind.build()
    }

    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}
