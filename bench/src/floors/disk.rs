//! `disk/write...` and `disk/read`: raw O_DIRECT io_uring over preallocated files, block by block, many in flight.
//!
//! ```text
//! for each group of blocks: N x (SQE -> CQE), and after its last block one fdatasync, while the next group is written
//! ```
//! One thread, one ring. The files are written once before anything is timed, so that what is timed overwrites space
//! that exists: this is what the disk can do, without a filesystem finding room.
//! Invariants: buffers and files outlive what is in flight, because every transfer drains the ring before it returns,
//! also after an error; if the ring cannot be drained, the process must not go on, and aborts.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use io_uring::{IoUring, opcode, squeue, types};
use memmap2::{Advice, MmapMut};
use payload_types::limits::{IO_BYTES_MAX, PAGE_BYTES};

use crate::context::Skip;
use crate::noise::Noise;

/// `user_data` of a sync; a block's is `slot | group << 32`.
const SYNC: u64 = u64::MAX;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}

/// What is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// How many files.
    pub files: usize,
    /// Of each; whole groups.
    pub file_bytes: u64,
    /// Of one read or write.
    pub block_bytes: usize,
    /// Blocks of one group: they share an fdatasync.
    pub blocks_per_sync: usize,
}

/// Files and the ring they are read and written with.
pub struct RawFiles {
    ring: IoUring,
    depth: usize,
    buffers: MmapMut,
    is_registered: bool,
    files: Vec<File>,
    shape: Shape,
    blocks_written: u64,
}

impl RawFiles {
    /// Makes the files in `directory` and writes them once. `depth` blocks are kept in flight.
    ///
    /// # Errors
    /// [`Skip`] where io_uring or O_DIRECT is refused, or there is no room.
    pub fn create(directory: &Path, shape: Shape, depth: usize) -> anyhow::Result<Self> {
        let Shape { file_bytes, block_bytes, .. } = shape;
        assert!(
            block_bytes.is_multiple_of(PAGE_BYTES as usize) && block_bytes <= IO_BYTES_MAX,
            "whole pages"
        );
        assert!(file_bytes.is_multiple_of((block_bytes * shape.blocks_per_sync) as u64), "whole groups");
        // A sync may be in flight beside each block.
        let ring = IoUring::new(2 * depth as u32).map_err(|error| {
            Skip(format!(
                "io_uring is refused ({error}); allow it with kernel.io_uring_disabled=0 and seccomp"
            ))
        })?;
        let mut buffers =
            MmapMut::map_anon(depth * block_bytes).context("no memory for the floor's buffers")?;
        // Each block is then one piece of memory to the disk and not 256. Where huge pages are refused, it is slower.
        drop(buffers.advise(Advice::HugePage));
        Noise::new(1).fill(&mut buffers);
        std::fs::create_dir(directory).context("the floor's directory cannot be made")?;
        let files = (0..shape.files)
            .map(|number| open(directory, number, file_bytes))
            .collect::<anyhow::Result<_>>()?;
        let mut raw = Self { ring, depth, buffers, is_registered: false, files, shape, blocks_written: 0 };
        raw.register();
        raw.write().context("the floor's files cannot be written")?;
        Ok(raw)
    }

    /// Writes every file anew, with one fdatasync a group. Returns bytes in a second.
    ///
    /// # Errors
    /// What the disk says.
    pub fn write(&mut self) -> io::Result<f64> {
        self.timed(Direction::Write)
    }

    /// Reads every file. Returns bytes in a second.
    ///
    /// # Errors
    /// What the disk says.
    pub fn read(&mut self) -> io::Result<f64> {
        self.timed(Direction::Read)
    }

    fn timed(&mut self, direction: Direction) -> io::Result<f64> {
        let started = Instant::now();
        self.transfer(direction)?;
        Ok((self.shape.file_bytes * self.files.len() as u64) as f64 / started.elapsed().as_secs_f64())
    }

    /// Registered buffers save the kernel a look-up of their pages for each block. RLIMIT_MEMLOCK may refuse them.
    fn register(&mut self) {
        let buffers: Vec<libc::iovec> = self
            .buffers
            .chunks_exact_mut(self.shape.block_bytes)
            .map(|block| libc::iovec { iov_base: block.as_mut_ptr().cast(), iov_len: block.len() })
            .collect();
        // SAFETY: the buffers are never moved, and outlive what is in flight (see the head of the file).
        self.is_registered = unsafe { self.ring.submitter().register_buffers(&buffers) }.is_ok();
    }

    fn transfer(&mut self, direction: Direction) -> io::Result<()> {
        let mut in_flight = 0;
        let outcome = self.run(direction, &mut in_flight);
        // After an error the kernel may still use buffers and files.
        while in_flight > 0 {
            match self.ring.submit_and_wait(1) {
                Ok(_) => in_flight -= self.ring.completion().count(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => std::process::abort(),
            }
        }
        outcome
    }

    fn run(&mut self, direction: Direction, in_flight: &mut usize) -> io::Result<()> {
        let blocks_per_file = self.shape.file_bytes / self.shape.block_bytes as u64;
        let blocks = blocks_per_file * self.files.len() as u64;
        let blocks_per_sync = self.shape.blocks_per_sync as u64;
        let mut blocks_left = vec![blocks_per_sync; (blocks / blocks_per_sync) as usize];
        let mut free: Vec<usize> = (0..self.depth).collect();
        let mut next = 0;
        loop {
            while next < blocks
                && let Some(slot) = free.pop()
            {
                let entry = self.block(direction, slot, next);
                self.push(&entry, in_flight);
                next += 1;
            }
            if *in_flight == 0 {
                return Ok(());
            }
            match self.ring.submit_and_wait(1) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => drop(other?),
            }
            while let Some((user_data, result)) = self.reap() {
                *in_flight -= 1;
                if result < 0 {
                    return Err(io::Error::from_raw_os_error(-result));
                }
                if user_data == SYNC {
                    continue;
                }
                if result as usize != self.shape.block_bytes {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the disk moved less than a block",
                    ));
                }
                free.push((user_data & u64::from(u32::MAX)) as usize);
                let group = (user_data >> 32) as usize;
                blocks_left[group] -= 1;
                if blocks_left[group] == 0 && direction == Direction::Write {
                    let file = (group as u64 * blocks_per_sync / blocks_per_file) as usize;
                    let sync = opcode::Fsync::new(types::Fd(self.files[file].as_raw_fd()))
                        .flags(types::FsyncFlags::DATASYNC)
                        .build()
                        .user_data(SYNC);
                    self.push(&sync, in_flight);
                }
            }
        }
    }

    fn reap(&mut self) -> Option<(u64, i32)> {
        self.ring.completion().next().map(|done| (done.user_data(), done.result()))
    }

    fn block(&mut self, direction: Direction, slot: usize, number: u64) -> squeue::Entry {
        let Shape { file_bytes, block_bytes, blocks_per_sync, .. } = self.shape;
        let blocks_per_file = file_bytes / block_bytes as u64;
        let (file, block) = (number / blocks_per_file, number % blocks_per_file);
        let fd = types::Fd(self.files[file as usize].as_raw_fd());
        let buffer = &mut self.buffers[slot * block_bytes..][..block_bytes];
        if direction == Direction::Write {
            // No two pages are ever the same: nothing below can write one of them only once.
            self.blocks_written += 1;
            for (number, page) in (0u64..).zip(buffer.chunks_exact_mut(PAGE_BYTES as usize)) {
                page[..8].copy_from_slice(&(self.blocks_written << 16 | number).to_le_bytes());
            }
        }
        let (pointer, length, offset) = (buffer.as_mut_ptr(), block_bytes as u32, block * block_bytes as u64);
        let entry = match (direction, self.is_registered) {
            (Direction::Read, true) => {
                opcode::ReadFixed::new(fd, pointer, length, slot as u16).offset(offset).build()
            }
            (Direction::Read, false) => opcode::Read::new(fd, pointer, length).offset(offset).build(),
            (Direction::Write, true) => {
                opcode::WriteFixed::new(fd, pointer, length, slot as u16).offset(offset).build()
            }
            (Direction::Write, false) => opcode::Write::new(fd, pointer, length).offset(offset).build(),
        };
        entry.user_data(slot as u64 | (number / blocks_per_sync as u64) << 32)
    }

    fn push(&mut self, entry: &squeue::Entry, in_flight: &mut usize) {
        // SAFETY: the entry points into the buffers and at an open file; both stay as they are until its completion was
        // reaped (see the head of the file).
        unsafe { self.ring.submission().push(entry) }
            .expect("the ring has an entry for everything in flight");
        *in_flight += 1;
    }
}

fn open(directory: &Path, number: usize, bytes: u64) -> anyhow::Result<File> {
    let path = directory.join(format!("{number}.raw"));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .map_err(|error| {
            Skip(format!("the filesystem of {} refuses O_DIRECT: {error}", directory.display()))
        })?;
    // SAFETY: the descriptor is open; the call touches no memory of ours.
    let refused = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, bytes as libc::off_t) };
    if refused != 0 {
        let error = io::Error::from_raw_os_error(refused);
        return Err(Skip(format!("no room for the floor's files in {}: {error}", directory.display())).into());
    }
    Ok(file)
}
