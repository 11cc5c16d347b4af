//! The system calls that make memories, behind one seam: [`System`] makes them, and [`Faulty`] makes them fail as a test
//! says. All of them block.

use std::fs::File;
use std::io;
use std::ops::Range;

use crate::faults::{Call, Faults};
use crate::sys;
use crate::sys::memory::{Mapping, Seals};

/// See the module's description.
pub(super) trait Kernel: Send + Sync {
    /// A new, empty file in memory.
    fn memfd(&self, is_huge: bool) -> io::Result<File>;

    /// Another description of it, which can only read.
    fn reopen_to_read(&self, file: &File) -> io::Result<File>;

    /// Reserves real pages for the first `bytes`, holes included.
    fn reserve(&self, file: &File, bytes: u64) -> io::Result<()>;

    /// Maps the first `bytes` to be written.
    fn map(&self, file: &File, bytes: u64) -> io::Result<Mapping>;

    /// Adds seals and looks that they are there.
    fn seal(&self, file: &File, seals: Seals) -> io::Result<()>;

    /// Makes large pages.
    fn collapse(&self, mapping: &Mapping, range: Range<u64>) -> io::Result<()>;

    /// Touches pages.
    fn populate(&self, mapping: &Mapping, range: Range<u64>) -> io::Result<()>;
}

/// The system itself.
pub(super) struct System;

impl Kernel for System {
    fn memfd(&self, is_huge: bool) -> io::Result<File> {
        sys::memory::memfd("payload-manager", is_huge)
    }

    fn reopen_to_read(&self, file: &File) -> io::Result<File> {
        sys::memory::reopen_to_read(file)
    }

    fn reserve(&self, file: &File, bytes: u64) -> io::Result<()> {
        sys::reserve(file, bytes)
    }

    fn map(&self, file: &File, bytes: u64) -> io::Result<Mapping> {
        Mapping::of(file, bytes)
    }

    fn seal(&self, file: &File, seals: Seals) -> io::Result<()> {
        sys::memory::seal(file, seals)?;
        if sys::memory::has_seals(file, seals)? {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(libc::EPERM))
        }
    }

    fn collapse(&self, mapping: &Mapping, range: Range<u64>) -> io::Result<()> {
        mapping.collapse(range)
    }

    fn populate(&self, mapping: &Mapping, range: Range<u64>) -> io::Result<()> {
        mapping.populate(range)
    }
}

/// The system, as the plan lets it.
pub(super) struct Faulty(pub(super) Faults);

impl Kernel for Faulty {
    fn memfd(&self, is_huge: bool) -> io::Result<File> {
        self.0.before(Call::Memfd)?;
        System.memfd(is_huge)
    }

    fn reopen_to_read(&self, file: &File) -> io::Result<File> {
        self.0.before(Call::Memfd)?;
        System.reopen_to_read(file)
    }

    fn reserve(&self, file: &File, bytes: u64) -> io::Result<()> {
        self.0.before(Call::Reserve)?;
        System.reserve(file, bytes)
    }

    fn map(&self, file: &File, bytes: u64) -> io::Result<Mapping> {
        self.0.before(Call::Map)?;
        System.map(file, bytes)
    }

    fn seal(&self, file: &File, seals: Seals) -> io::Result<()> {
        self.0.before(Call::Seal)?;
        System.seal(file, seals)
    }

    fn collapse(&self, mapping: &Mapping, range: Range<u64>) -> io::Result<()> {
        self.0.before(Call::Collapse)?;
        System.collapse(mapping, range)
    }

    fn populate(&self, mapping: &Mapping, range: Range<u64>) -> io::Result<()> {
        self.0.before(Call::Populate)?;
        System.populate(mapping, range)
    }
}
