//! Writes a group of payloads into one segment file: one stream of bytes.
//!
//! ```text
//! sources --pread--> 1 MiB buffers, filled across payloads' borders --hash--> io_uring writes, 8 under way
//!         records --> a write of whole table pages beside the last of them --> [`super::syncer`]
//! ```
//! Run by transfer threads; each holds a lane while it writes. A place is taken when a payload's turn comes, so a source
//! that fails costs nothing but itself: the next payload is written over what was written of it. Records may reach the
//! disk before their bytes do: nothing is acknowledged before both have, and a record without a row is nobody's.
//! Whatever else fails, fails for the whole group.
//! What there is no place for is left in the group, for a file of its own.

use std::io;
use std::sync::MutexGuard;

use crossbeam::channel::Sender;
use payload_ledger::segments::table::{Header, Record, pages_of};
use payload_ledger::segments::{Lane, Room, Spot};
use payload_types::effect::TransferOp;
use payload_types::event::{Copied, DriverError, DriverErrorKind, TransferError};
use payload_types::limits::IO_BYTES_MAX;
use payload_types::{ByteCount, Tier};

use super::Packed;
use super::file::LaneFile;
use super::stream::{Failure, Source, Stream};
use super::syncer::Written;
use crate::fault::{fault, finding};
use crate::health::Work;
use crate::stores::Stores;
use crate::transfer::pipeline::Pipeline;
use crate::transfer::vouched;

/// Payloads of one group: their records are one page of the table.
pub(crate) const GROUP_OPS_MAX: usize = 64;

/// Bytes of one group: what a payload may have at most, and 50 ms of a disk that writes 1.3 GB/s (FACTS.md).
pub(crate) const GROUP_BYTES_MAX: u64 = 64 << 20;

/// Numbers that are tried for a new file, if files that nobody named have them.
const NUMBERS_TRIED_MAX: usize = 64;

/// The most table that a group writes: its records begin anywhere in a page.
const _: () = assert!((GROUP_OPS_MAX * 64).next_multiple_of(4096) + 4096 <= IO_BYTES_MAX);

/// Which lanes a copy goes through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// From a faster tier: any writer's.
    Spill,
    /// Compaction: the mover's.
    Move,
}

/// Copies that are written together.
pub(crate) struct Group<'sink> {
    /// `None`: answered.
    ops: Vec<Option<TransferOp>>,
    answer: &'sink dyn Fn(&TransferOp, Result<Copied, TransferError>),
    /// The lanes' syncers, in the order of [`Packed`]'s lanes.
    syncers: &'sink [Sender<Written>],
}

impl<'sink> Group<'sink> {
    pub(crate) fn new(
        ops: Vec<TransferOp>,
        answer: &'sink dyn Fn(&TransferOp, Result<Copied, TransferError>),
        syncers: &'sink [Sender<Written>],
    ) -> Self {
        Self { ops: ops.into_iter().map(Some).collect(), answer, syncers }
    }

    /// What was not answered.
    pub(crate) fn left(&mut self) -> impl Iterator<Item = TransferOp> {
        self.ops.iter_mut().filter_map(Option::take)
    }

    fn answer(&mut self, index: usize, result: Result<Copied, TransferError>) {
        let op = self.ops[index].take().expect("an operation is answered once");
        (self.answer)(&op, result);
    }
}

/// A lane that this thread holds.
struct Held<'packed> {
    packed: &'packed Packed,
    lane: Lane,
    file: MutexGuard<'packed, Option<LaneFile>>,
    /// Places that were taken and are not handed to the syncer yet.
    taken: u32,
}

impl Held<'_> {
    /// Gives the lane's file up, with the places that were taken: what was under way may still be written there.
    fn give_up(&mut self) {
        if let Some(file) = self.file.take() {
            self.packed.books().spoil(file.header.number, std::mem::take(&mut self.taken));
            self.packed.wake();
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.give_up();
        }
        // A sync that failed meanwhile closed it in the books.
        let number = self.packed.books().lane_file(self.lane).map(|(number, _)| number);
        self.file.take_if(|file| Some(file.header.number) != number);
    }
}

/// A payload whose bytes are on their way to the disk.
struct Placed {
    index: usize,
    spot: Spot,
    record: Record,
}

impl Packed {
    /// How a copy comes into a segment file; `None`: it does not.
    pub(crate) fn way(&self, op: &TransferOp) -> Option<Way> {
        let fits = self.takes_more && !op.alone && op.to.size <= self.payload_max && op.to.size.0 > 0;
        match (op.from.tier, op.to.tier) {
            (Tier::Ram, Tier::Disk) if fits => Some(Way::Spill),
            (Tier::Disk, Tier::Disk) if fits => Some(Way::Move),
            _ => None,
        }
    }

    /// Writes what has a place, and answers it; the rest stays in the group.
    pub(crate) fn write(&self, stores: &Stores, way: Way, group: &mut Group<'_>, pipeline: &mut Pipeline) {
        let mut held = self.hold(way);
        let mut first = 0;
        while first < group.ops.len() {
            let bytes = group.ops[first..].iter().flatten().map(|op| op.to.size.0).sum();
            match self.health.begin(Work::Bytes(ByteCount(bytes))) {
                // It has succeeded when it is on stable storage, which the syncer says.
                Ok(_attempt) => first = self.write_file(stores, &mut held, group, first, pipeline),
                Err(refusal) => {
                    for index in first..group.ops.len() {
                        if group.ops[index].is_some() {
                            group.answer(index, Err(TransferError::Destination(refusal.clone())));
                        }
                    }
                    return;
                }
            }
        }
    }

    fn hold(&self, way: Way) -> Held<'_> {
        let idle = |lane| Some(Held { packed: self, lane, file: self.lane_if_idle(lane)?, taken: 0 });
        let waited = |lane| Held { packed: self, lane, file: self.lane(lane), taken: 0 };
        match way {
            Way::Move => waited(Lane::Mover),
            Way::Spill => {
                let lanes = (0..self.writers()).map(Lane::Writer);
                lanes.clone().find_map(idle).unwrap_or_else(|| waited(Lane::Writer(self.turn())))
            }
        }
    }

    /// Writes payloads from `first` on, as many as one file has room for. The index of the next one.
    fn write_file(
        &self,
        stores: &Stores,
        held: &mut Held<'_>,
        group: &mut Group<'_>,
        first: usize,
        pipeline: &mut Pipeline,
    ) -> usize {
        let mut placed: Vec<Placed> = Vec::new();
        let mut stream: Option<Stream<'_>> = None;
        let mut pipeline = Some(pipeline);
        let mut index = first;
        while index < group.ops.len() {
            let Some(op) = group.ops[index] else {
                index += 1;
                continue;
            };
            if stream.as_ref().is_some_and(|stream| !self.goes_on(held.lane, stream, op.to.size)) {
                break;
            }
            match self.put(stores, held, &op, &mut stream, &mut pipeline) {
                Ok(Some((spot, record))) => placed.push(Placed { index, spot, record }),
                Ok(None) => {} // it gets a file of its own
                Err(TransferError::Source(error)) => group.answer(index, Err(TransferError::Source(error))),
                Err(TransferError::Destination(error)) => {
                    group.answer(index, Err(TransferError::Destination(error.clone())));
                    fail(held, group, &placed, stream, &error);
                    return index + 1;
                }
            }
            index += 1;
        }
        let Some(mut stream) = stream.filter(|_| !placed.is_empty()) else { return index };
        if let Err(error) = self.complete(held, &placed, &mut stream) {
            fail(held, group, &placed, Some(stream), &error);
            return index;
        }
        let ops = placed.iter().map(|Placed { index, spot, record }| {
            let op = group.ops[*index].take().expect("it was not answered yet");
            (op, Copied { checksum: record.checksum, extent: Some(spot.extent) })
        });
        held.taken = 0;
        let is_first = held.file.as_mut().is_some_and(|file| std::mem::take(&mut file.is_new));
        let Stream { header: Header { number, .. }, file, .. } = stream;
        let written = Written { number, file, is_first, ops: ops.collect() };
        group.syncers[self.lane_index(held.lane)].send(written).expect("the syncers outlive the writers");
        index
    }

    /// True when the stream's file has room for another payload. A sync that failed meanwhile has closed it.
    fn goes_on(&self, lane: Lane, stream: &Stream<'_>, size: ByteCount) -> bool {
        let number = self.books().lane_file(lane).map(|(number, _)| number);
        number == Some(stream.header.number) && stream.has_room(size)
    }

    /// One payload into the stream. `None`: there is no place for it.
    fn put<'pipeline>(
        &self,
        stores: &Stores,
        held: &mut Held<'_>,
        op: &TransferOp,
        stream: &mut Option<Stream<'pipeline>>,
        pipeline: &mut Option<&'pipeline mut Pipeline>,
    ) -> Result<Option<(Spot, Record)>, TransferError> {
        assert_eq!(op.from.size, op.to.size, "a copy has the size of what it is a copy of");
        let source = Source::open(stores, op).map_err(|error| self.unreadable(op, error))?;
        let spot = match stream {
            Some(stream) => match self.more(held.lane, stream, op.to.size) {
                Some(spot) => spot,
                None => return Ok(None),
            },
            None => {
                let unwritten = |error: io::Error| TransferError::Destination(self.unwritten(op, &error));
                match self.place(held, op.to.size).map_err(unwritten)? {
                    Some(spot) => spot,
                    None => return Ok(None),
                }
            }
        };
        held.taken += 1;
        let lane_file = held.file.as_ref().expect("a place is in an open file");
        assert_eq!(spot.extent.file, lane_file.header.number, "a lane is filled in the file that it has");
        let stream = stream.get_or_insert_with(|| {
            let pipeline = pipeline.take().expect("a stream is begun once");
            Stream::new(pipeline, lane_file, spot)
        });
        let copied = stream.put(&source, op);
        let checksum = copied.and_then(|checksum| vouched(op, checksum).map_err(Failure::Source));
        let unwritten = |error: io::Error| TransferError::Destination(self.unwritten(op, &error));
        match checksum {
            Ok(checksum) => {
                stream.next = Spot {
                    extent: payload_types::Extent {
                        page: spot.extent.page + pages_of(op.to.size),
                        ..spot.extent
                    },
                    slot: spot.slot + 1,
                };
                let (id, generation, size) = (op.to.id, op.to.generation, op.to.size);
                Ok(Some((spot, Record { id, generation, size, checksum, page: spot.extent.page })))
            }
            Err(Failure::Source(error)) => {
                stream.rewind(spot.extent.offset_bytes()).map_err(unwritten)?;
                self.books().give_back(spot);
                held.taken -= 1;
                Err(self.unreadable(op, error))
            }
            Err(Failure::Destination(error)) => Err(unwritten(error)),
        }
    }

    /// The place behind the stream's last one, if its file is still the lane's.
    fn more(&self, lane: Lane, stream: &Stream<'_>, size: ByteCount) -> Option<Spot> {
        let mut books = self.books();
        let number = books.lane_file(lane).map(|(number, _)| number);
        if number != Some(stream.header.number) || !stream.has_room(size) {
            return None;
        }
        match books.reserve(lane, size) {
            Room::Here(spot) => Some(spot),
            Room::Open | Room::None => None,
        }
    }

    /// A place in the lane's file, or in another one that is opened for it.
    fn place(&self, held: &mut Held<'_>, size: ByteCount) -> io::Result<Option<Spot>> {
        loop {
            let (room, header) = {
                let mut books = self.books();
                let room = books.reserve(held.lane, size);
                (room, books.lane_file(held.lane).and_then(|(number, _)| books.header(number)))
            };
            match (room, header) {
                (Room::Here(spot), Some(header)) => {
                    if held.file.as_ref().is_some_and(|file| file.header.number == header.number) {
                        return Ok(Some(spot));
                    }
                    *held.file = None;
                    self.wake(); // what was closed may have nothing that lives
                    match self.reopen(header, spot.slot) {
                        Ok(file) => {
                            *held.file = Some(file);
                            return Ok(Some(spot));
                        }
                        Err(error) => {
                            tracing::warn!(
                                file = header.number,
                                "a segment file cannot be filled further: {error}"
                            );
                            let mut books = self.books();
                            books.give_back(spot);
                            books.spoil(header.number, 0);
                        }
                    }
                }
                (Room::Open, _) => {
                    *held.file = None;
                    if !self.open(held)? {
                        return Ok(None);
                    }
                }
                (Room::Here(_) | Room::None, _) => {
                    self.wake();
                    return Ok(None);
                }
            }
        }
    }

    /// Opens an empty file for the lane. False: the file system has no room for one, which says nothing about smaller
    /// files.
    fn open(&self, held: &mut Held<'_>) -> io::Result<bool> {
        drop(self.remove_surplus(ByteCount::ZERO));
        for _ in 0..NUMBERS_TRIED_MAX {
            let (old, header) = {
                let mut books = self.books();
                let data_bytes = books.geometry().data_bytes();
                (books.take_free(), Header { number: books.number_next(), data_bytes, root: self.root })
            };
            let made = match old {
                Some(old) => self.take_over(old, header),
                None => self.make(header),
            };
            match made {
                Ok(file) => {
                    self.books().opened(held.lane, header, old);
                    *held.file = Some(file);
                    self.wake();
                    return Ok(true);
                }
                Err(error) => {
                    if let Some(old) = old {
                        tracing::warn!(file = old, "a free segment file cannot be used again: {error}");
                        self.books().removed(old);
                    } else if matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) {
                        return Ok(false);
                    } else if error.kind() != io::ErrorKind::AlreadyExists {
                        return Err(error);
                    }
                }
            }
        }
        Err(io::Error::other("no number is free for a new segment file"))
    }

    /// Waits until all bytes and records are with the disk.
    fn complete(
        &self,
        held: &mut Held<'_>,
        placed: &[Placed],
        stream: &mut Stream<'_>,
    ) -> Result<(), DriverError> {
        let file = held.file.as_mut().expect("a stream writes to an open file");
        let records: Vec<Record> = placed.iter().map(|placed| placed.record).collect();
        let mut pages = Vec::new();
        let offset = file.table_pages(stream.first.slot, &records, &mut pages);
        let written = stream.write(&pages, offset).and_then(|()| stream.wait());
        written.map_err(|error| {
            self.health.failed(&error, ByteCount(stream.bytes));
            fault("writing a segment file", &error)
        })?;
        file.table_written(&pages, stream.next.slot);
        Ok(())
    }

    fn unwritten(&self, op: &TransferOp, error: &io::Error) -> DriverError {
        self.health.failed(error, op.to.size);
        let failed = fault(format_args!("writing {} to disk", op.to.id), error);
        // A segment file that is not there is no missing replica.
        if failed.kind == DriverErrorKind::Missing {
            return finding(DriverErrorKind::Io, failed.message);
        }
        failed
    }

    fn unreadable(&self, op: &TransferOp, error: DriverError) -> TransferError {
        if op.from.tier == Tier::Disk && error.kind == DriverErrorKind::Io {
            self.health.read_failed();
        }
        TransferError::Source(error)
    }
}

/// What was placed and not acknowledged fails, and its places are given back once nothing is on its way to them.
fn fail(
    held: &mut Held<'_>,
    group: &mut Group<'_>,
    placed: &[Placed],
    stream: Option<Stream<'_>>,
    error: &DriverError,
) {
    if let Some(stream) = stream {
        let first = stream.first;
        match stream.pipeline.drain() {
            Ok(()) => {
                held.packed.books().give_back(first);
                held.taken = 0;
            }
            Err(_) => held.give_up(), // and the engine is replaced
        }
    }
    for placed in placed {
        group.answer(placed.index, Err(TransferError::Destination(error.clone())));
    }
}
