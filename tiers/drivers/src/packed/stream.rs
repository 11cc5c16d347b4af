//! Bytes into a segment file: from many sources in turn, one stream of 1 MiB writes.
//!
//! ```text
//! source --pread--> the chunk that is being filled --full--> io_uring write     `IO_DEPTH` of them under way
//! ```
//! Used by [`super::writer`], one stream a group. Payloads begin on page boundaries and lie back to back, so a chunk may
//! hold the end of one, many whole ones, and the beginning of another; padding is zeroes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use payload_ledger::segments::Spot;
use payload_ledger::segments::table::{Header, pages_of};
use payload_types::effect::TransferOp;
use payload_types::event::DriverError;
use payload_types::limits::{IO_BYTES_MAX, IO_DEPTH};
use payload_types::{ByteCount, Checksum};
use xxhash_rust::xxh3::Xxh3;

use super::file::LaneFile;
use crate::store::offset_of;
use crate::stores::Stores;
use crate::sys::staging::SLOTS;
use crate::transfer::engine::Direction;
use crate::transfer::pipeline::{ALIGNMENT, Pipeline};
use crate::transfer::{go_direct, salvage, unread};

/// Where a payload comes from.
pub(super) struct Source {
    file: File,
    offset: u64,
    /// Whole pages are read, past the page cache.
    is_direct: bool,
    /// It is damaged, and what can be read of it is enough.
    is_salvage: bool,
}

impl Source {
    pub(super) fn open(stores: &Stores, op: &TransferOp) -> Result<Self, DriverError> {
        let file = stores.get(op.from.tier)?.open_source(op)?;
        let is_direct = op.from.extent.is_some();
        if is_direct {
            go_direct(&file);
        }
        Ok(Self { file, offset: offset_of(&op.from), is_direct, is_salvage: op.salvage })
    }

    /// Fills `buffer`, of which the first `length` bytes are the payload's.
    fn read(&self, buffer: &mut [u8], length: usize, done: u64) -> io::Result<()> {
        let wanted = if self.is_direct { buffer.len() } else { length };
        let (buffer, offset) = (&mut buffer[..wanted], self.offset + done);
        if self.is_salvage {
            salvage(&self.file, buffer, offset);
            return Ok(());
        }
        self.file.read_exact_at(buffer, offset)
    }
}

/// Why a payload did not come in.
pub(super) enum Failure {
    Source(DriverError),
    Destination(io::Error),
}

/// One stream of bytes into a file, front to back, a MiB at a time.
pub(super) struct Stream<'pipeline> {
    pub(super) pipeline: &'pipeline mut Pipeline,
    pub(super) file: Arc<File>,
    pub(super) header: Header,
    /// Where it began.
    pub(super) first: Spot,
    /// Where the next payload goes.
    pub(super) next: Spot,
    /// The chunk that is being filled, counted from the first; where it goes, and how much of it is full.
    chunk: usize,
    offset: u64,
    filled: usize,
    /// Bytes that were put in.
    pub(super) bytes: u64,
}

impl<'pipeline> Stream<'pipeline> {
    pub(super) fn new(pipeline: &'pipeline mut Pipeline, file: &LaneFile, first: Spot) -> Self {
        Self {
            pipeline,
            file: Arc::clone(&file.file),
            header: file.header,
            first,
            next: first,
            chunk: 0,
            offset: first.extent.offset_bytes(),
            filled: 0,
            bytes: 0,
        }
    }

    pub(super) fn has_room(&self, size: ByteCount) -> bool {
        let end = self.next.extent.page.saturating_add(pages_of(size));
        end <= self.header.end_page() && self.next.slot < self.header.slots()
    }

    /// Puts a payload behind what is there, padded with zeroes to whole pages.
    pub(super) fn put(&mut self, source: &Source, op: &TransferOp) -> Result<Checksum, Failure> {
        let size = op.to.size.0;
        let mut hasher = Xxh3::new();
        let mut done = 0;
        while done < size {
            let length = (size - done).min((IO_BYTES_MAX - self.filled) as u64) as usize;
            let padded = length.next_multiple_of(ALIGNMENT);
            let buffer = &mut self.pipeline.buffer(self.chunk % SLOTS)[self.filled..][..padded];
            let read = source.read(buffer, length, done);
            read.map_err(|error| Failure::Source(unread(&op.from, &error)))?;
            hasher.update(&buffer[..length]);
            buffer[length..].fill(0);
            self.filled += padded;
            done += length as u64;
            if self.filled == IO_BYTES_MAX {
                self.submit().map_err(Failure::Destination)?;
            }
        }
        self.bytes += size;
        Ok(Checksum(hasher.digest()))
    }

    /// Starts writing the chunk. Its slot was waited for when the one before it was started.
    fn submit(&mut self) -> io::Result<()> {
        if self.chunk >= IO_DEPTH {
            self.pipeline.finish((self.chunk - IO_DEPTH) % SLOTS)?;
        }
        let slot = self.chunk % SLOTS;
        self.pipeline.start(slot, Direction::Write, &self.file, self.offset, self.filled)?;
        self.offset += self.filled as u64;
        self.chunk += 1;
        self.filled = 0;
        Ok(())
    }

    /// What follows goes to `offset` on: behind the last payload that is whole.
    pub(super) fn rewind(&mut self, offset: u64) -> io::Result<()> {
        if offset < self.offset {
            // Else the old bytes could be written over the new ones.
            self.wait()?;
            self.offset = offset;
        }
        self.filled = (offset - self.offset) as usize;
        Ok(())
    }

    /// Writes whole pages elsewhere in the file, behind all payloads.
    pub(super) fn write(&mut self, pages: &[u8], offset: u64) -> io::Result<()> {
        if self.filled > 0 {
            self.submit()?;
        }
        self.pipeline.buffer(self.chunk % SLOTS)[..pages.len()].copy_from_slice(pages);
        (self.offset, self.filled) = (offset, pages.len());
        self.submit()
    }

    /// Waits until everything that was started is written.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        (0..SLOTS).try_for_each(|slot| self.pipeline.finish(slot).map(drop))
    }
}
