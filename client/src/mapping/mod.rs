//! Puts a payload's bytes into this process: opens its segment or file and maps it.
//!
//! The only module of the client with `unsafe`, libc and memmap2; [`shared`], [`slab`] and [`socket`] are what native
//! sessions need of it. Used by `payload` and `native`; open to anybody who has a [`Location`] and a lease, or an allocation of his own,
//! that vouches for it.
//!
//! ```text
//! Location --open (no symbolic link, never created)--> file --fstat: regular, long enough--> mmap
//!                                                             '-- writable and sparse: fallocate
//! ```
//!
//! Invariants: nothing is mapped that `fstat` does not cover, whatever the server said. A range that was passed to
//! `prepare` is populated by the kernel, which answers with an error where a load or store would raise SIGBUS:
//! bytes that a hostile process cut off, or a disk that is full, become a sentence.
//! Limit: who maps a segment read-only sees writes of a producer that kept its mapping after Commit (DESIGN §5); a
//! checksum, where there is one, tells.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap, MmapMut, MmapOptions};
use payload_types::Tier;

use crate::descriptor::Location;
use crate::error::{ClientError, reason_of};

pub(crate) mod shared;
pub(crate) mod slab;
pub(crate) mod socket;

use slab::Block;

/// Where Linux keeps POSIX shared-memory objects.
const SHM_DIR: &str = "/dev/shm";

/// Bytes that are populated, copied and hashed at a time: they stay in a core's own cache between the three.
pub const CHUNK_BYTES: usize = 256 << 10;

/// A payload's bytes, mapped for reading.
#[derive(Debug)]
pub struct ReadMapping(Mapped<Mmap>);

/// A payload's bytes, mapped for writing.
#[derive(Debug)]
pub struct WriteMapping(Mapped<MmapMut>);

#[derive(Debug)]
enum Mapped<M> {
    /// A file or segment, mapped for this payload alone.
    File(M, PathBuf),
    /// A part of a slab, which stays mapped.
    Block(Block),
}

impl<M> Mapped<M> {
    fn prepare(
        &self,
        range: Range<usize>,
        advise: impl Fn(&M, Range<usize>) -> io::Result<()>,
    ) -> Result<(), ClientError> {
        match self {
            Self::File(map, path) => populated(advise(map, range), path),
            Self::Block(block) => populated(block.prepare(range), Path::new("a slab")),
        }
    }
}

impl ReadMapping {
    /// Maps what a lease pins. Must be called while the lease lives; afterwards the mapping itself keeps the bytes.
    ///
    /// # Errors
    /// [`ClientError::Mapping`] when the bytes cannot be reached from this process, or are fewer than stated.
    pub fn open(location: &Location) -> Result<Self, ClientError> {
        let target = Target::of(location, Path::new(SHM_DIR))?;
        let file = target.open(OpenOptions::new().read(true))?;
        // SAFETY: a committed payload is immutable (the server took write permission away at Commit), fstat covered
        // the range, and the lease keeps it from being truncated or reused while it is opened. A process with more
        // rights that still writes to it can change what is read, as with any shared mapping; it cannot make the
        // range invalid without `prepare` telling.
        let map = unsafe { MmapOptions::new().offset(target.offset).len(target.length).map(&file) };
        let map = map.map_err(|error| target.failed("map", &error))?;
        Ok(Self(Mapped::File(map, target.path)))
    }

    /// Keeps it out of processes that this one forks: they hold no lease.
    pub(crate) fn without_children(self) -> Self {
        if let Mapped::File(map, _) = &self.0 {
            // A kernel that does not know the advice is older than any that this library runs on.
            let _advised = map.advise(Advice::DontFork);
        }
        self
    }

    /// Of what a lease keeps in a slab.
    pub(crate) fn of(block: Block) -> Self {
        Self(Mapped::Block(block))
    }

    /// Makes sure that `range` can be loaded.
    ///
    /// # Errors
    /// [`ClientError::Mapping`] when its bytes are gone.
    pub fn prepare(&self, range: Range<usize>) -> Result<(), ClientError> {
        self.0.prepare(range, |map, range| map.advise_range(Advice::PopulateRead, range.start, range.len()))
    }
}

impl WriteMapping {
    /// Maps what an allocation of this process holds.
    ///
    /// # Errors
    /// [`ClientError::Mapping`] when the space cannot be reached from this process, or is smaller than stated.
    pub fn open(location: &Location) -> Result<Self, ClientError> {
        let target = Target::of(location, Path::new(SHM_DIR))?;
        let file = target.open(OpenOptions::new().read(true).write(true))?;
        target.reserve(&file)?;
        // SAFETY: the allocation is this caller's alone until Commit, fstat covered the range, and its space is
        // reserved. Nothing else of this process maps it.
        let map = unsafe { MmapOptions::new().offset(target.offset).len(target.length).map_mut(&file) };
        let map = map.map_err(|error| target.failed("map", &error))?;
        Ok(Self(Mapped::File(map, target.path)))
    }

    /// Keeps it out of processes that this one forks: the allocation is not theirs.
    pub(crate) fn without_children(self) -> Self {
        if let Mapped::File(map, _) = &self.0 {
            let _advised = map.advise(Advice::DontFork);
        }
        self
    }

    /// Of an allocation in a slab of this session.
    pub(crate) fn of(block: Block) -> Self {
        Self(Mapped::Block(block))
    }

    /// Makes sure that `range` can be stored to.
    ///
    /// # Errors
    /// [`ClientError::Mapping`] when its space is gone.
    pub fn prepare(&self, range: Range<usize>) -> Result<(), ClientError> {
        self.0.prepare(range, |map, range| map.advise_range(Advice::PopulateWrite, range.start, range.len()))
    }
}

impl Deref for ReadMapping {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Mapped::File(map, _) => map,
            Mapped::Block(block) => block.bytes(),
        }
    }
}

impl Deref for WriteMapping {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Mapped::File(map, _) => map,
            Mapped::Block(block) => block.bytes(),
        }
    }
}

impl DerefMut for WriteMapping {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Mapped::File(map, _) => map,
            Mapped::Block(block) => block.bytes_mut(),
        }
    }
}

/// A range of a file that is to be mapped.
struct Target {
    path: PathBuf,
    offset: u64,
    length: usize,
    end: u64,
}

impl Target {
    fn of(location: &Location, shm_dir: &Path) -> Result<Self, ClientError> {
        let (path, offset) = match location {
            Location::Segment { shm_name, .. } => {
                (shm_dir.join(payload_local::segment::file_name(shm_name)?), 0)
            }
            Location::File { path, offset, .. } if path.is_absolute() => (path.clone(), *offset),
            Location::File { path, .. } => {
                return Err(ClientError::Contract(format!(
                    "the disk path `{}` is not absolute",
                    path.display()
                )));
            }
            Location::Block { .. } => {
                return Err(ClientError::Mapping(
                    "the bytes lie in memory of a native session; lease them over one".to_owned(),
                ));
            }
            Location::Gpu { .. } => return Err(unreachable_tier(Tier::Gpu)),
            Location::Object { .. } => return Err(unreachable_tier(Tier::Object)),
        };
        let length = location.length().0;
        let end = offset.checked_add(length).filter(|_| length > 0);
        match (end, usize::try_from(length)) {
            (Some(end), Ok(length)) => Ok(Self { path, offset, length, end }),
            _ => Err(ClientError::Contract(format!("a location has offset {offset} and length {length}"))),
        }
    }

    /// Opens it and checks that it holds what the server says. O_NONBLOCK: were it a pipe, opening must not hang.
    fn open(&self, options: &mut OpenOptions) -> Result<File, ClientError> {
        let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
        let file =
            options.custom_flags(flags).open(&self.path).map_err(|error| self.failed("open", &error))?;
        let metadata = file.metadata().map_err(|error| self.failed("examine", &error))?;
        if !metadata.is_file() {
            return Err(ClientError::Mapping(format!("{} is not a regular file", self.path.display())));
        }
        if metadata.len() < self.end {
            return Err(ClientError::Mapping(format!(
                "{} has {} bytes, and {} are stated; somebody truncated it, so it is not used",
                self.path.display(),
                metadata.len(),
                self.end
            )));
        }
        Ok(file)
    }

    /// Makes a full disk an error now instead of a SIGBUS later. Costs nothing where the server has preallocated.
    fn reserve(&self, file: &File) -> Result<(), ClientError> {
        let metadata = file.metadata().map_err(|error| self.failed("examine", &error))?;
        if metadata.blocks().saturating_mul(512) >= self.end {
            return Ok(());
        }
        let range = libc::off_t::try_from(self.offset).ok().zip(libc::off_t::try_from(self.length).ok());
        let (offset, length) =
            range.ok_or_else(|| ClientError::Contract(format!("a location ends at byte {}", self.end)))?;
        // SAFETY: fallocate takes a descriptor, which `file` keeps open, and plain numbers; it touches no memory.
        let result = unsafe { libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, offset, length) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        // A file system without fallocate reserves nothing: `prepare` still finds out, chunk by chunk.
        if error.raw_os_error() == Some(libc::EOPNOTSUPP) {
            return Ok(());
        }
        Err(self.failed("reserve the space of", &error))
    }

    fn failed(&self, verb: &str, error: &io::Error) -> ClientError {
        let advice = match error.kind() {
            io::ErrorKind::NotFound => {
                "; payloads are read on the server's own machine, where its /dev/shm and disk are seen"
            }
            io::ErrorKind::PermissionDenied => "; run as the server's user or in its group",
            _ => "",
        };
        ClientError::Mapping(format!("cannot {verb} {}: {}{advice}", self.path.display(), reason_of(error)))
    }
}

fn unreachable_tier(tier: Tier) -> ClientError {
    ClientError::Mapping(format!(
        "the bytes lie on tier {tier}, which this program cannot map; ask for RAM or DISK, or promote the payload first"
    ))
}

/// Judges the answer of MADV_POPULATE_*: kernels before 5.14 do not know it, and then nothing is promised.
fn populated(result: io::Result<()>, path: &Path) -> Result<(), ClientError> {
    match result {
        Ok(()) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        Err(error) => Err(ClientError::Mapping(format!(
            "the bytes of {} cannot be touched ({}); somebody truncated it, or its file system is full",
            path.display(),
            reason_of(&error)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use payload_types::ByteCount;

    use super::*;

    fn file_location(path: PathBuf, offset: u64, length: u64) -> Location {
        Location::File { path, offset, length: ByteCount(length) }
    }

    fn refusal<T>(result: Result<T, ClientError>) -> String {
        match result {
            Ok(_) => panic!("must be refused"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn given_a_file_when_written_through_a_mapping_then_a_reader_at_any_offset_sees_it() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("bytes");
        File::create(&path).and_then(|file| file.set_len(10_000)).expect("made");
        let mut writer = WriteMapping::open(&file_location(path.clone(), 0, 10_000)).expect("mapped");
        writer.prepare(0..10_000).expect("populated");
        writer[5_001..5_004].copy_from_slice(b"abc");
        drop(writer);
        let reader = ReadMapping::open(&file_location(path, 5_001, 3)).expect("mapped");
        reader.prepare(0..3).expect("populated");
        assert_eq!(&*reader, b"abc");
    }

    #[test]
    fn given_a_segment_name_when_opened_then_it_is_found_below_the_directory_only() {
        let dir = tempfile::tempdir().expect("tempdir");
        let segment = |name: &str| Location::Segment {
            shm_name: name.to_owned(),
            slab_id: 0,
            block_index: 0,
            length: ByteCount(1),
        };
        let target = Target::of(&segment("/pm-1"), dir.path()).expect("plain name");
        assert_eq!(target.path, dir.path().join("pm-1"));
        assert!(Target::of(&segment("/../etc/passwd"), dir.path()).is_err());
    }

    #[test]
    fn given_a_file_shorter_than_stated_when_mapped_then_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("short");
        fs::write(&path, [1; 99]).expect("written");
        for (offset, length) in [(0, 100), (99, 1), (50, 50), (u64::MAX, 1), (0, 0)] {
            let location = file_location(path.clone(), offset, length);
            refusal(ReadMapping::open(&location));
            refusal(WriteMapping::open(&location));
        }
        let message = refusal(ReadMapping::open(&file_location(path.clone(), 50, 50)));
        assert!(message.contains("99 bytes, and 100"), "{message}");
        ReadMapping::open(&file_location(path, 0, 99)).expect("exactly long enough");
    }

    #[test]
    fn given_a_part_of_a_shared_file_when_mapped_then_its_bytes_alone_and_beyond_the_end_an_error() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("0000001a.seg");
        let bytes: Vec<u8> = (0..40_000_u32).map(|at| (at / 7) as u8).collect();
        fs::write(&path, &bytes).expect("written");
        for (offset, length) in [(0, 1), (4096, 4096), (8192, 10_001), (36_864, 3136)] {
            let reader = ReadMapping::open(&file_location(path.clone(), offset, length)).expect("mapped");
            let (from, length) = (offset as usize, length as usize);
            reader.prepare(0..length).expect("populated");
            assert_eq!(&*reader, &bytes[from..from + length]);
        }
        for (offset, length) in [(36_864, 3137), (40_960, 1), (1 << 62, 1), (0, 1 << 40)] {
            let sentence = refusal(ReadMapping::open(&file_location(path.clone(), offset, length)));
            assert!(sentence.contains("40000 bytes"), "{sentence}");
        }
        for (offset, length) in [(u64::MAX, 1), (1, u64::MAX), (4096, 0)] {
            let sentence = refusal(ReadMapping::open(&file_location(path.clone(), offset, length)));
            assert!(sentence.contains(&format!("offset {offset} and length {length}")), "{sentence}");
        }
    }

    #[test]
    fn given_a_mapping_whose_file_was_truncated_when_prepared_then_an_error_and_no_signal() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("cut");
        fs::write(&path, vec![1; 1 << 20]).expect("written");
        let reader = ReadMapping::open(&file_location(path.clone(), 0, 1 << 20)).expect("mapped");
        let writer = WriteMapping::open(&file_location(path.clone(), 0, 1 << 20)).expect("mapped");
        OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(4096)).expect("cut");
        reader.prepare(0..4096).expect("still there");
        assert!(refusal(reader.prepare(4096..8192)).contains("truncated"));
        assert!(refusal(writer.prepare(4096..8192)).contains("truncated"));
    }

    #[test]
    fn given_what_is_no_plain_file_when_mapped_then_refused_at_once() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("real");
        fs::write(&path, [1; 10]).expect("written");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("linked");
        refusal(ReadMapping::open(&file_location(link, 0, 10)));
        refusal(ReadMapping::open(&file_location(dir.path().to_owned(), 0, 10)));
        let absent = refusal(ReadMapping::open(&file_location(dir.path().join("absent"), 0, 10)));
        assert!(absent.contains("server's own machine"), "{absent}");
        let relative = refusal(ReadMapping::open(&file_location(PathBuf::from("real"), 0, 10)));
        assert!(relative.contains("not absolute"), "{relative}");
        let device = Location::Gpu { device_id: 0, ipc_handle: vec![], length: ByteCount(1), own: None };
        assert!(refusal(ReadMapping::open(&device)).contains("GPU"));
    }

    #[test]
    fn given_a_sparse_file_when_mapped_for_writing_then_its_space_is_reserved() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("sparse");
        File::create(&path).and_then(|file| file.set_len(1 << 20)).expect("made");
        WriteMapping::open(&file_location(path.clone(), 0, 1 << 20)).expect("mapped");
        let metadata = fs::metadata(&path).expect("stat");
        assert!(metadata.blocks() * 512 >= 1 << 20, "{} blocks", metadata.blocks());
        assert_eq!(metadata.len(), 1 << 20);
    }
}
