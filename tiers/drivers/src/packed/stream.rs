//! Bytes into segment files: from many sources in turn, one stream of 1 MiB writes.
//!
//! ```text
//! source --pread--> the chunk that is being filled --full--> io_uring write     `IO_DEPTH` of them under way
//! ```
//! Used by [`super::writer`]. Payloads begin on page boundaries and lie back to back, so a chunk may
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

/// Where a stream goes.
pub(super) struct Target {
    file: Arc<File>,
    pub(super) header: Header,
    /// Where the next payload goes.
    next: Spot,
}

impl Target {
    pub(super) fn has_room(&self, size: ByteCount) -> bool {
        let end = self.next.extent.page.saturating_add(pages_of(size));
        end <= self.header.end_page() && self.next.slot < self.header.slots()
    }
}

/// One stream of bytes into a file, front to back, a MiB at a time; then into another one.
pub(super) struct Stream<'pipeline> {
    pipeline: &'pipeline mut Pipeline,
    target: Option<Target>,
    /// The chunk that is being filled, counted from the first; where it goes, and how much of it is full.
    chunk: usize,
    offset: u64,
    filled: usize,
    /// So many chunks are written.
    written: usize,
}

impl<'pipeline> Stream<'pipeline> {
    pub(super) fn new(pipeline: &'pipeline mut Pipeline) -> Self {
        Self { pipeline, target: None, chunk: 0, offset: 0, filled: 0, written: 0 }
    }

    /// Where it goes, once it was aimed.
    pub(super) fn target(&self) -> Option<&Target> {
        self.target.as_ref()
    }

    /// The next payload goes there: behind the last one, or to a file that it was not aimed at yet.
    pub(super) fn aim(&mut self, to: &LaneFile, next: Spot) {
        let (file, header) = (&to.file, to.header);
        self.target.get_or_insert_with(|| Target { file: Arc::clone(file), header, next });
        if self.filled == 0 {
            self.offset = next.extent.offset_bytes(); // records may have been written since
        }
    }

    /// A payload of so many pages is in.
    pub(super) fn passed(&mut self, pages: u32) {
        let next = &mut self.target.as_mut().expect("it was put somewhere").next;
        next.extent.page += pages;
        next.slot += 1;
    }

    /// Nothing more goes to that file.
    pub(super) fn leave(&mut self) {
        self.target = None;
    }

    /// Chunks that were begun.
    pub(super) fn chunks(&self) -> usize {
        self.chunk
    }

    /// Puts a payload behind what is there, padded with zeroes to whole pages. `written` is told how many chunks are, each
    /// time that one is full.
    pub(super) fn put(
        &mut self,
        source: &Source,
        op: &TransferOp,
        written: &mut dyn FnMut(usize),
    ) -> Result<Checksum, Failure> {
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
                written(self.reap().map_err(Failure::Destination)?);
            }
        }
        Ok(Checksum(hasher.digest()))
    }

    /// Starts writing the chunk. Its slot was waited for when the one before it was started.
    fn submit(&mut self) -> io::Result<()> {
        self.wait((self.chunk + 1).saturating_sub(IO_DEPTH))?;
        let slot = self.chunk % SLOTS;
        let file = &self.target.as_ref().expect("it was aimed before").file;
        self.pipeline.start(slot, Direction::Write, file, self.offset, self.filled)?;
        self.offset += self.filled as u64;
        self.chunk += 1;
        self.filled = 0;
        Ok(())
    }

    /// How many chunks are written, without waiting.
    fn reap(&mut self) -> io::Result<usize> {
        self.pipeline.reap_ready()?;
        while self.written < self.chunk && self.pipeline.is_finished(self.written % SLOTS) {
            self.wait(self.written + 1)?;
        }
        Ok(self.written)
    }

    /// What follows goes to `offset` on: behind the last payload that is whole.
    pub(super) fn rewind(&mut self, offset: u64) -> io::Result<()> {
        if offset < self.offset {
            // Else the old bytes could be written over the new ones.
            self.wait(self.chunk)?;
            self.offset = offset;
        }
        self.filled = (offset - self.offset) as usize;
        Ok(())
    }

    /// Starts writing what is there.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.filled > 0 { self.submit() } else { Ok(()) }
    }

    /// Starts writing whole pages elsewhere in the file, after a [`flush`](Self::flush).
    pub(super) fn write(&mut self, pages: &[u8], offset: u64) -> io::Result<()> {
        self.pipeline.buffer(self.chunk % SLOTS)[..pages.len()].copy_from_slice(pages);
        (self.offset, self.filled) = (offset, pages.len());
        self.submit()
    }

    /// Waits until so many chunks are written.
    pub(super) fn wait(&mut self, chunks: usize) -> io::Result<()> {
        while self.written < chunks {
            self.pipeline.finish(self.written % SLOTS)?;
            self.written += 1;
        }
        Ok(())
    }

    /// Waits until nothing is under way, whatever came of it. An error means that the pipeline is of no more use.
    pub(super) fn abandon(&mut self) -> io::Result<()> {
        (self.target, self.filled, self.written) = (None, 0, self.chunk);
        self.pipeline.drain()
    }
}
