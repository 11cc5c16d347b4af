//! Copies between a device and RAM or disk, and verifications: every byte passes through pinned staging, and is hashed there.
//!
//! ```text
//! spill     device --DMA, 3 chunks ahead--> staging --hash--> pwrite --> draft segment --> named
//!                                                      '----> io_uring writes (8 x 1 MiB) --> draft file --> named
//! promote   segment --pread--> staging --hash--> DMA --> device
//!           file --io_uring reads (8 x 1 MiB)--> staging --hash--> DMA --> device
//! ```
//! Run by a device's copying threads, one copy at a time on each; nowhere is there more of a payload in memory of the host than
//! the staging (16 MiB, and 9 MiB of the disk's). The hash is of the bytes that are written, or that the device is given; a copy
//! to a device is visible once it has been compared with what was expected.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use payload_types::effect::{ReplicaRef, TransferOp};
use payload_types::event::{DriverError, TransferError};
use payload_types::limits::{IO_BYTES_MAX, IO_DEPTH};
use payload_types::{ByteCount, Checksum, Tier};
use xxhash_rust::xxh3::Xxh3;

use super::device::{Allocation, CHUNK_BYTES, CHUNKS, DeviceError, Stream};
use crate::health::Work;
use crate::store::draft::Draft;
use crate::store::{FileStore, offset_of};
use crate::sys::staging::SLOTS;
use crate::transfer::engine::Direction;
use crate::transfer::pipeline::{ALIGNMENT, Pipeline};
use crate::transfer::{go_direct, read_ordered, unread, vouched};

/// What a copying thread works with.
pub(super) struct Tools<'thread> {
    pub(super) stream: &'thread mut dyn Stream,
    pub(super) pipeline: &'thread mut Pipeline,
}

/// From the device to RAM or disk: `moved` fills the draft, and answers with the hash of what it put there.
pub(super) fn spill(
    op: &TransferOp,
    to: &FileStore,
    moved: impl FnOnce(&Draft<'_>) -> Result<Checksum, TransferError>,
) -> Result<Checksum, TransferError> {
    assert_eq!(op.from.size, op.to.size, "a copy has the size of what it is a copy of");
    to.watched(Work::Space(op.to.size), TransferError::Destination, || {
        let draft = Draft::begin(to, op.to).map_err(TransferError::Destination)?;
        let checksum = vouched(op, moved(&draft)?).map_err(TransferError::Source)?;
        draft.publish(op.sync).map_err(TransferError::Destination)?;
        Ok(checksum)
    })
}

/// [`spill`]'s `moved`, by one thread.
pub(super) fn into_draft(
    op: &TransferOp,
    from: &Allocation,
    to: &FileStore,
    draft: &Draft<'_>,
    tools: &mut Tools<'_>,
) -> Result<Checksum, TransferError> {
    match op.to.tier {
        Tier::Disk => into_file(op, from, to, draft, tools),
        _ => into_segment(op, from, to, draft, tools),
    }
}

fn into_segment(
    op: &TransferOp,
    from: &Allocation,
    to: &FileStore,
    draft: &Draft<'_>,
    tools: &mut Tools<'_>,
) -> Result<Checksum, TransferError> {
    let mut hasher = Xxh3::new();
    read(tools.stream, from, 0, op.from.size, source_error, |offset, bytes| {
        hasher.update(bytes);
        draft.file.write_all_at(bytes, offset).map_err(|error| unwritten(op, to, &error))
    })?;
    Ok(Checksum(hasher.digest()))
}

fn into_file(
    op: &TransferOp,
    from: &Allocation,
    to: &FileStore,
    draft: &Draft<'_>,
    tools: &mut Tools<'_>,
) -> Result<Checksum, TransferError> {
    // Whole pages, so that even the last write is within what is reserved; `publish` cuts the padding off.
    let reserved = to.calls.reserve(&draft.file, op.to.size.in_pages().0);
    reserved.map_err(|error| unwritten(op, to, &error))?;
    go_direct(&draft.file);
    let mut hasher = Xxh3::new();
    let mut written = 0;
    let Tools { stream, pipeline } = tools;
    read(*stream, from, 0, op.from.size, source_error, |offset, bytes| {
        hasher.update(bytes);
        for (part, at) in bytes.chunks(IO_BYTES_MAX).zip((offset..).step_by(IO_BYTES_MAX)) {
            let slot = written % SLOTS;
            if written >= IO_DEPTH {
                let oldest = (written - IO_DEPTH) % SLOTS;
                pipeline.finish(oldest).map_err(|error| unwritten(op, to, &error))?;
            }
            let padded = part.len().next_multiple_of(ALIGNMENT);
            let buffer = pipeline.buffer(slot);
            buffer[..part.len()].copy_from_slice(part);
            buffer[part.len()..padded].fill(0);
            pipeline
                .start(slot, Direction::Write, &draft.file, at, padded)
                .map_err(|error| unwritten(op, to, &error))?;
            written += 1;
        }
        Ok(())
    })?;
    for index in written.saturating_sub(IO_DEPTH)..written {
        pipeline.finish(index % SLOTS).map_err(|error| unwritten(op, to, &error))?;
    }
    Ok(Checksum(hasher.digest()))
}

/// From RAM or disk to the device. What was written there means nothing after an error.
pub(super) fn promote(
    op: &TransferOp,
    from: &FileStore,
    to: &Allocation,
    tools: &mut Tools<'_>,
) -> Result<Checksum, TransferError> {
    assert_eq!(op.from.size, op.to.size, "a copy has the size of what it is a copy of");
    let source = from.open_source(op).map_err(TransferError::Source)?;
    let failed = |error: &io::Error| TransferError::Source(unread(&op.from, error));
    let Tools { stream, pipeline } = tools;
    let mut up = Upward { stream: *stream, to, size: op.from.size, at: 0, hasher: Xxh3::new() };
    let begin = offset_of(&op.from);
    if op.from.tier == Tier::Disk {
        let _reading = from.health.as_ref().map(|health| health.watch(op.from.size));
        go_direct(&source);
        let source = Arc::new(source);
        read_ordered(&source, begin, op.from.size, pipeline, failed, |_, bytes| {
            up.fill(bytes.len(), |room| {
                room.copy_from_slice(bytes);
                Ok(())
            })
        })?;
    } else {
        while up.at < op.from.size.0 {
            let (at, length) = (up.at, (op.from.size.0 - up.at).min(CHUNK_BYTES as u64) as usize);
            up.fill(length, |room| source.read_exact_at(room, begin + at).map_err(|error| failed(&error)))?;
        }
    }
    let found = Checksum(up.hasher.digest());
    drain(*stream).map_err(destination_error)?;
    vouched(op, found).map_err(TransferError::Source)
}

/// A copy to the device in the making.
struct Upward<'copy> {
    stream: &'copy mut dyn Stream,
    to: &'copy Allocation,
    size: ByteCount,
    /// Bytes that were taken so far.
    at: u64,
    hasher: Xxh3,
}

impl Upward<'_> {
    /// The next bytes, which `put` writes to where it is told: not beyond the end of a chunk. A chunk that is full, or the last,
    /// is on its way then.
    fn fill(
        &mut self,
        length: usize,
        put: impl FnOnce(&mut [u8]) -> Result<(), TransferError>,
    ) -> Result<(), TransferError> {
        let (chunk, used) =
            ((self.at / CHUNK_BYTES as u64) as usize % CHUNKS, (self.at % CHUNK_BYTES as u64) as usize);
        if used == 0 {
            self.stream.finish(chunk).map_err(destination_error)?;
        }
        let room = &mut self.stream.chunk(chunk)[used..][..length];
        put(room)?;
        self.hasher.update(room);
        self.at += length as u64;
        let filled = used + length;
        if filled == CHUNK_BYTES || self.at == self.size.0 {
            let offset = self.at - filled as u64;
            self.stream.start_write(chunk, self.to, offset, filled).map_err(destination_error)?;
        }
        Ok(())
    }
}

/// Reads all of a replica and compares it with its checksum; `pace` says whether to go on.
pub(super) fn verify(
    replica: &ReplicaRef,
    expected: Option<Checksum>,
    from: &Allocation,
    stream: &mut dyn Stream,
    mut pace: impl FnMut(u64) -> Result<(), DriverError>,
) -> Result<(), DriverError> {
    let Some(expected) = expected else { return Ok(()) };
    let mut hasher = Xxh3::new();
    read(stream, from, 0, replica.size, DriverError::from, |_, bytes| {
        hasher.update(bytes);
        pace(bytes.len() as u64)
    })?;
    let found = Checksum(hasher.digest());
    if found == expected {
        return Ok(());
    }
    let (id, tier) = (replica.id, replica.tier);
    let message = format!("{id} on {tier} has checksum {found}; it must be {expected}");
    Err(crate::fault::finding(payload_types::event::DriverErrorKind::Corrupt, message))
}

/// Hands the bytes from `begin` on in order, while the device is at the chunks behind.
pub(super) fn read<E>(
    stream: &mut dyn Stream,
    from: &Allocation,
    begin: u64,
    size: ByteCount,
    failed: impl Fn(DeviceError) -> E,
    mut take: impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let chunks = usize::try_from(size.0.div_ceil(CHUNK_BYTES as u64)).expect("2^15 chunks at most");
    let part = |index: usize| {
        let offset = (index * CHUNK_BYTES) as u64;
        (offset, (size.0 - offset).min(CHUNK_BYTES as u64) as usize)
    };
    let start = |stream: &mut dyn Stream, index: usize| {
        let (offset, length) = part(index);
        stream.start_read(index % CHUNKS, from, begin + offset, length)
    };
    for index in 0..chunks.min(CHUNKS) {
        start(stream, index).map_err(&failed)?;
    }
    for index in 0..chunks {
        let (offset, length) = part(index);
        stream.finish(index % CHUNKS).map_err(&failed)?;
        take(offset, &stream.chunk(index % CHUNKS)[..length])?;
        if index + CHUNKS < chunks {
            start(stream, index + CHUNKS).map_err(&failed)?;
        }
    }
    Ok(())
}

/// Puts bytes to `begin`; they are there when it returns.
pub(super) fn write(
    stream: &mut dyn Stream,
    to: &Allocation,
    begin: u64,
    bytes: &[u8],
) -> Result<(), DeviceError> {
    for (index, part) in bytes.chunks(CHUNK_BYTES).enumerate() {
        let chunk = index % CHUNKS;
        stream.finish(chunk)?;
        stream.chunk(chunk)[..part.len()].copy_from_slice(part);
        stream.start_write(chunk, to, begin + (index * CHUNK_BYTES) as u64, part.len())?;
    }
    drain(stream)
}

/// Waits until nothing is under way.
pub(super) fn drain(stream: &mut dyn Stream) -> Result<(), DeviceError> {
    (0..CHUNKS).try_for_each(|chunk| stream.finish(chunk))
}

fn source_error(error: DeviceError) -> TransferError {
    TransferError::Source(error.into())
}

fn destination_error(error: DeviceError) -> TransferError {
    TransferError::Destination(error.into())
}

fn unwritten(op: &TransferOp, to: &FileStore, error: &io::Error) -> TransferError {
    let tried = format!("writing {} to {}", op.to.id, op.to.tier);
    TransferError::Destination(to.failed(tried, error, op.to.size))
}
