//! Copies between RAM and disk: every byte is hashed in private staging.
//!
//! ```text
//! spill     segment --pread--> staging --hash--> io_uring writes (8 x 1 MiB) --> draft file  --> named
//! promote   file --io_uring reads (8 x 1 MiB)--> staging --hash--> pwrite --> draft segment --> named
//!           or, where it has large pages:   --> draft segment --pread--> staging --hash--> named
//! apart     slab, at an offset, as a file is read; in memory there is no such thing as O_DIRECT
//! ```
//! What goes into a segment file is written by [`crate::packed::writer`]; this reads it from there, and makes files of
//! one replica. Run by transfer threads, one copy at a time on each. While the disk works on eight chunks the processor works on
//! the ninth, in order. The hash is of the very bytes that are submitted: a client that changes or truncates its
//! segment meanwhile gets a copy that is what its checksum says, or a `Source` error, and never a signal for us.
//!
//! A segment is read by pread even where a lease (F_RDLCK) would prove that nobody can write it. Both were measured,
//! 64 MiB into a fresh file, fdatasync included, best of 30 interleaved rounds on two shared cores: the disk alone
//! 2.0-2.5 GB/s; through registered staging 1.9-2.3 GB/s at 250-310 us of CPU a MiB; in place, populated, with
//! unregistered pages 1.7-2.0 GB/s at 225-250 us. In place saves a fifth of the CPU and is slower, and a lease broken
//! by force (`fs.lease-break-time`) would leave us loading from memory that a client may truncate: a SIGBUS.

pub(crate) mod engine;
pub(crate) mod pipeline;
pub(crate) mod scrub;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;

use payload_types::effect::{ReplicaRef, TransferOp};
use payload_types::event::{DriverError, DriverErrorKind, TransferError};
use payload_types::limits::{IO_BYTES_MAX, IO_DEPTH};
use payload_types::{ByteCount, Checksum, Tier};
use xxhash_rust::xxh3::Xxh3;

use self::engine::Direction;
use self::pipeline::{ALIGNMENT, Pipeline};
use crate::fault::{fault, finding};
use crate::health::Work;
use crate::store::draft::Draft;
use crate::store::{FileStore, offset_of};
use crate::sys;
use crate::sys::large::Window;
use crate::sys::staging::SLOTS;

/// Carries out one copy. The destination has its name afterwards, or is gone without a trace.
pub(crate) fn run(
    op: &TransferOp,
    from: &FileStore,
    to: &FileStore,
    pipeline: &mut Pipeline,
) -> Result<Checksum, TransferError> {
    assert_eq!(op.from.size, op.to.size, "a copy has the size of what it is a copy of");
    to.watched(Work::Space(op.to.size), TransferError::Destination, || {
        let _reading = from.health.as_ref().map(|health| health.watch(op.from.size));
        copy(op, from, to, pipeline).inspect_err(|error| {
            if let (TransferError::Source(error), Some(health)) = (error, &from.health)
                && error.kind == DriverErrorKind::Io
            {
                health.read_failed();
            }
        })
    })
}

fn copy(
    op: &TransferOp,
    from: &FileStore,
    to: &FileStore,
    pipeline: &mut Pipeline,
) -> Result<Checksum, TransferError> {
    let source = from.open_source(op).map_err(TransferError::Source)?;
    let draft = Draft::begin(to, op.to).map_err(TransferError::Destination)?;
    let copied = match (op.from.tier, op.to.tier) {
        (Tier::Ram, Tier::Disk) => spill(op, &source, to, &draft, pipeline),
        (Tier::Disk, Tier::Ram | Tier::Disk) => read(op, source, to, &draft, pipeline),
        // A segment has its copy's name.
        (Tier::Ram, Tier::Ram) if op.from.block.is_some() => read(op, source, to, &draft, pipeline),
        (from, to) => {
            let message = format!("no driver copies from {from} to {to}");
            Err(TransferError::Destination(finding(DriverErrorKind::Io, message)))
        }
    };
    let checksum = vouched(op, copied?).map_err(TransferError::Source)?;
    draft.publish(op.sync).map_err(TransferError::Destination)?;
    Ok(checksum)
}

fn spill(
    op: &TransferOp,
    source: &File,
    to: &FileStore,
    draft: &Draft<'_>,
    pipeline: &mut Pipeline,
) -> Result<Checksum, TransferError> {
    let unwritten = |error: &io::Error| {
        TransferError::Destination(to.failed(format!("writing {} to disk", op.to.id), error, op.to.size))
    };
    // Whole pages, so that even the last write is within what is reserved; `publish` cuts the padding off.
    let reserved = to.calls.reserve(&draft.file, op.to.size.in_pages().0);
    reserved.map_err(|error| unwritten(&error))?;
    go_direct(&draft.file);
    let mut hasher = Xxh3::new();
    let begin = offset_of(&op.from);
    let chunks = chunk_count(op.from.size);
    for index in 0..chunks {
        let (slot, offset) = (index % SLOTS, chunk_offset(index));
        let length = chunk_length(op.from.size, index);
        let padded = length.next_multiple_of(ALIGNMENT);
        let buffer = pipeline.buffer(slot);
        source
            .read_exact_at(&mut buffer[..length], begin + offset)
            .map_err(|error| TransferError::Source(unread(&op.from, &error)))?;
        hasher.update(&buffer[..length]);
        buffer[length..padded].fill(0);
        if index >= IO_DEPTH {
            pipeline.finish((index - IO_DEPTH) % SLOTS).map_err(|error| unwritten(&error))?;
        }
        pipeline
            .start(slot, Direction::Write, &draft.file, offset, padded)
            .map_err(|error| unwritten(&error))?;
    }
    for index in chunks.saturating_sub(IO_DEPTH)..chunks {
        pipeline.finish(index % SLOTS).map_err(|error| unwritten(&error))?;
    }
    Ok(Checksum(hasher.digest()))
}

/// From disk: into memory, or into a file of its own what compaction found no other place for. From a slab: into a segment.
fn read(
    op: &TransferOp,
    source: File,
    to: &FileStore,
    draft: &Draft<'_>,
    pipeline: &mut Pipeline,
) -> Result<Checksum, TransferError> {
    let mut hasher = Xxh3::new();
    let begin = offset_of(&op.from);
    let put = |offset, bytes: &[u8]| {
        draft.file.write_all_at(bytes, offset).map_err(|error| {
            let tried = format!("writing {} to {}", op.to.id, op.to.tier);
            TransferError::Destination(to.failed(tried, &error, op.to.size))
        })
    };
    if op.salvage {
        for index in 0..chunk_count(op.from.size) {
            let buffer = &mut pipeline.buffer(0)[..chunk_length(op.from.size, index)];
            salvage(&source, buffer, begin + chunk_offset(index));
            hasher.update(buffer);
            put(chunk_offset(index), buffer)?;
        }
        return Ok(Checksum(hasher.digest()));
    }
    if op.from.tier == Tier::Disk {
        go_direct(&source);
    }
    let source = Arc::new(source);
    let window = if pipeline.takes_windows() { to.in_large_pages(&draft.file, op.to.size) } else { None };
    let in_place = match window {
        Some(window) => read_in_place(op, &source, window, &draft.file, pipeline, &mut hasher)?,
        None => ByteCount::ZERO,
    };
    let left = ByteCount(op.from.size.0 - in_place.0);
    let failed = |error: &io::Error| TransferError::Source(unread(&op.from, error));
    read_ordered(&source, begin + in_place.0, left, pipeline, failed, |offset, bytes| {
        hasher.update(bytes);
        put(in_place.0 + offset, bytes)
    })?;
    Ok(Checksum(hasher.digest()))
}

/// Reads whole chunks into a new segment's own pages, and hashes what it has then: never by a load from the window, which
/// whoever cut the file would turn into a SIGBUS. How much was read.
fn read_in_place(
    op: &TransferOp,
    source: &Arc<File>,
    window: Window,
    segment: &File,
    pipeline: &mut Pipeline,
    hasher: &mut Xxh3,
) -> Result<ByteCount, TransferError> {
    let (window, begin) = (Rc::new(window), offset_of(&op.from));
    let chunks = window.bytes().min(op.from.size.0 as usize) / IO_BYTES_MAX;
    let failed = |error: &io::Error| TransferError::Source(unread(&op.from, error));
    let start = |pipeline: &mut Pipeline, index: usize| {
        let at = chunk_offset(index);
        let into = (&window, at as usize);
        pipeline
            .start_into(into, index % SLOTS, source, begin + at, IO_BYTES_MAX)
            .map_err(|error| failed(&error))
    };
    in_order(chunks, pipeline, start, |pipeline, index, read| {
        whole(read, IO_BYTES_MAX).map_err(|error| failed(&error))?;
        let buffer = pipeline.buffer(index % SLOTS);
        segment.read_exact_at(buffer, chunk_offset(index)).map_err(|error| {
            let tried = format!("reading {} back on {}", op.to.id, op.to.tier);
            TransferError::Destination(fault(tried, &error))
        })?;
        hasher.update(buffer);
        Ok(())
    })?;
    Ok(ByteCount(chunk_offset(chunks)))
}

/// Reads a file from `begin` on, and hands the chunks on in order.
pub(crate) fn read_ordered<E>(
    source: &Arc<File>,
    begin: u64,
    size: ByteCount,
    pipeline: &mut Pipeline,
    failed: impl Fn(&io::Error) -> E,
    mut take: impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let start = |pipeline: &mut Pipeline, index: usize| {
        let (slot, length) = (index % SLOTS, chunk_length(size, index));
        pipeline
            .start(slot, Direction::Read, source, begin + chunk_offset(index), length)
            .map_err(|error| failed(&error))
    };
    in_order(chunk_count(size), pipeline, start, |pipeline, index, read| {
        let length = chunk_length(size, index);
        whole(read, length).map_err(|error| failed(&error))?;
        take(chunk_offset(index), &pipeline.buffer(index % SLOTS)[..length])
    })
}

/// Keeps `IO_DEPTH` chunks under way, and hands on what came of them in order; chunk `index` has slot `index % SLOTS`.
fn in_order<E>(
    chunks: usize,
    pipeline: &mut Pipeline,
    start: impl Fn(&mut Pipeline, usize) -> Result<(), E>,
    mut take: impl FnMut(&mut Pipeline, usize, io::Result<usize>) -> Result<(), E>,
) -> Result<(), E> {
    for index in 0..chunks.min(IO_DEPTH) {
        start(pipeline, index)?;
    }
    for index in 0..chunks {
        let read = pipeline.finish(index % SLOTS);
        if read.is_ok() && index + IO_DEPTH < chunks {
            start(pipeline, index + IO_DEPTH)?;
        }
        take(pipeline, index, read)?;
    }
    Ok(())
}

/// What was read must be all that was asked for.
fn whole(read: io::Result<usize>, length: usize) -> io::Result<()> {
    if read? < length { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

/// Where the filesystem cannot, the page cache does it: slower, and just as right.
pub(crate) fn go_direct(file: &File) {
    if let Err(error) = sys::set_direct(file) {
        tracing::debug!("no direct I/O on this filesystem: {error}");
    }
}

/// The checksum of a copy whose source had this one. What is salvaged has the one that it should have, so that nobody
/// takes it for sound.
///
/// # Errors
/// `Corrupt` when the source's bytes are not what was committed.
pub(crate) fn vouched(op: &TransferOp, found: Checksum) -> Result<Checksum, DriverError> {
    match op.expected {
        Some(expected) if expected != found && !op.salvage => {
            let (id, tier) = (op.from.id, op.from.tier);
            let message = format!("{id} on {tier} has checksum {found}; it must be {expected}");
            Err(finding(DriverErrorKind::Corrupt, message))
        }
        expected => Ok(expected.unwrap_or(found)),
    }
}

/// Reads what can be read of a damaged source, a page at a time, with zeroes for the rest.
pub(crate) fn salvage(source: &File, buffer: &mut [u8], offset: u64) {
    if source.read_exact_at(buffer, offset).is_ok() {
        return;
    }
    for (page, number) in buffer.chunks_mut(ALIGNMENT).zip(0..) {
        if source.read_exact_at(page, offset + number * ALIGNMENT as u64).is_err() {
            page.fill(0);
        }
    }
}

/// A source that ends early was cut by somebody; anything else is the system's error.
pub(crate) fn unread(replica: &ReplicaRef, error: &io::Error) -> DriverError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        let message = format!("{} on {} became shorter than {}", replica.id, replica.tier, replica.size);
        return finding(DriverErrorKind::Truncated, message);
    }
    fault(format_args!("reading {} on {}", replica.id, replica.tier), error)
}

fn chunk_count(size: ByteCount) -> usize {
    usize::try_from(size.0.div_ceil(IO_BYTES_MAX as u64)).expect("a payload has at most 2^17 chunks of 1 MiB")
}

fn chunk_offset(index: usize) -> u64 {
    (index * IO_BYTES_MAX) as u64
}

/// All chunks are full but the last.
fn chunk_length(size: ByteCount, index: usize) -> usize {
    (size.0 - chunk_offset(index)).min(IO_BYTES_MAX as u64) as usize
}
