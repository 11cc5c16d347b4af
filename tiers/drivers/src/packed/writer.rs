//! Writes groups of payloads into the file of a lane: one stream of bytes.
//!
//! ```text
//! sources --pread--> 1 MiB buffers, filled across payloads' borders --hash--> io_uring writes, 8 under way
//!         records --> a write of whole table pages behind the last of them
//! group 1:  put, put, put, records | on its way ............. written --> [`super::syncer`]
//! group 2:                         | put, put, (group 1 is written) put, records | on its way ...
//! ```
//! Run by transfer threads; each holds a lane while it writes. While the disk works on what is left of a group, the next
//! one is put into the same file behind it, so that neither waits for the other; its records wait until those of the one
//! before are written, because they may share a page. A place is taken when a payload's turn comes, so a source
//! that fails costs nothing but itself: the next payload is written over what was written of it. Records may reach the
//! disk before their bytes do: nothing is acknowledged before both have, and a record without a row is nobody's.
//! Whatever else fails, fails for the whole group, and for the one before if that is still on its way.
//! What there is no place for is left in the group, for a file of its own.

use std::io;
use std::sync::Arc;

use crossbeam::channel::Sender;
use payload_ledger::segments::table::{Record, pages_of};
use payload_ledger::segments::{Room, Spot};
use payload_types::effect::TransferOp;
use payload_types::event::{Copied, DriverError, DriverErrorKind, TransferError};
use payload_types::limits::IO_BYTES_MAX;
use payload_types::{ByteCount, Tier};

use super::Packed;
use super::held::Held;
use super::stream::{Failure, Source, Stream};
use super::syncer::Written;
use crate::fault::{fault, finding};
use crate::health::Work;
use crate::stores::Stores;
use crate::transfer::pipeline::Pipeline;
use crate::transfer::vouched;

/// Payloads of one group: their records are one page of the table.
pub(crate) const GROUP_OPS_MAX: usize = 64;

/// Bytes of one group, unless a single payload has more: 12 ms of a disk that writes 1.3 GB/s (FACTS.md). With larger ones
/// one thread takes what two could work on.
pub(crate) const GROUP_BYTES_MAX: u64 = 16 << 20;

/// Groups that one thread writes before it lets go of its lane: 100 bytes for each of 1,024 copies.
const GROUPS_MAX: usize = 16;

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

/// Copies that are written together, and those that were written behind them.
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

    /// An operation that was not answered yet fails.
    fn refuse(&mut self, index: usize, error: &DriverError) {
        if self.ops[index].is_some() {
            self.answer(index, Err(TransferError::Destination(error.clone())));
        }
    }

    fn answer(&mut self, index: usize, result: Result<Copied, TransferError>) {
        let op = self.ops[index].take().expect("an operation is answered once");
        (self.answer)(&op, result);
    }
}

/// A payload in the stream.
struct Placed {
    index: usize,
    spot: Spot,
    record: Record,
}

/// Payloads that share their fate, in one file.
struct Run {
    /// The first place that was taken for them.
    first: Spot,
    placed: Vec<Placed>,
    bytes: u64,
}

/// A run of which every byte and record is on its way to the disk.
struct Begun {
    run: Run,
    /// Chunks of the stream that it is in: it is written when so many are.
    chunks: usize,
    /// The table's pages as they are being written.
    pages: Vec<u8>,
    /// The record's place behind it.
    next_slot: u32,
}

/// What one thread is writing.
struct Writing<'thread, 'sink> {
    packed: &'thread Packed,
    stores: &'thread Stores,
    held: Held<'thread>,
    group: &'thread mut Group<'sink>,
    stream: Stream<'thread>,
    /// What is put into the stream.
    run: Option<Run>,
    /// What was put into it before.
    begun: Option<Begun>,
    /// No other group is to follow: something has no place, or the engine is of no more use.
    is_last: bool,
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

    /// Writes what has a place, and answers it; the rest stays in the group. So does it with what has come meanwhile, as
    /// `more` says, until that is nothing, or somebody waits for a lane.
    pub(crate) fn write(
        &self,
        stores: &Stores,
        way: Way,
        group: &mut Group<'_>,
        more: &mut dyn FnMut() -> Option<Vec<TransferOp>>,
        pipeline: &mut Pipeline,
    ) {
        let (held, stream) = (self.hold(way), Stream::new(pipeline));
        let mut writing =
            Writing { packed: self, stores, held, group, stream, run: None, begun: None, is_last: false };
        let mut first = 0;
        for number in 1.. {
            while first < writing.group.ops.len() {
                first = writing.write_file(first);
            }
            if number == GROUPS_MAX || writing.is_last || self.is_lane_wanted() {
                break;
            }
            let Some(ops) = more() else { break };
            writing.group.ops.extend(ops.into_iter().map(Some));
        }
        writing.end_file();
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

    fn unwritten_group(&self, error: &io::Error, bytes: u64) -> DriverError {
        self.health.failed(error, ByteCount(bytes));
        fault("writing a segment file", error)
    }

    fn unreadable(&self, op: &TransferOp, error: DriverError) -> TransferError {
        if op.from.tier == Tier::Disk && error.kind == DriverErrorKind::Io {
            self.health.read_failed();
        }
        TransferError::Source(error)
    }
}

impl Writing<'_, '_> {
    /// Writes payloads from `first` on, as many as one file has room for. The index of the next one.
    fn write_file(&mut self, first: usize) -> usize {
        let bytes = self.group.ops[first..].iter().flatten().map(|op| op.to.size.0).sum();
        // It has succeeded when it is on stable storage, which the syncer says.
        if let Err(refusal) = self.packed.health.begin(Work::Bytes(ByteCount(bytes))) {
            for index in first..self.group.ops.len() {
                self.group.refuse(index, &refusal);
            }
            return self.group.ops.len();
        }
        for index in first..self.group.ops.len() {
            let Some(op) = self.group.ops[index] else { continue };
            if self.stream.target().is_some() && !self.goes_on(op.to.size) {
                self.end_file();
                return index;
            }
            match self.put(index, &op) {
                Ok(()) => {}
                Err(TransferError::Source(error)) => {
                    self.group.answer(index, Err(TransferError::Source(error)))
                }
                Err(TransferError::Destination(error)) => {
                    self.group.refuse(index, &error);
                    self.fail(&error);
                    return index + 1;
                }
            }
        }
        if let Err(error) = self.begin() {
            self.fail(&error);
        }
        self.group.ops.len()
    }

    /// True when the stream's file has room for another payload. A sync that failed meanwhile has closed it.
    fn goes_on(&self, size: ByteCount) -> bool {
        let number = self.packed.books().lane_file(self.held.lane).map(|(number, _)| number);
        self.stream.target().is_some_and(|to| number == Some(to.header.number) && to.has_room(size))
    }

    /// One payload into the stream, if there is a place for it.
    fn put(&mut self, index: usize, op: &TransferOp) -> Result<(), TransferError> {
        assert_eq!(op.from.size, op.to.size, "a copy has the size of what it is a copy of");
        let packed = self.packed;
        let unwritten = |error: io::Error| TransferError::Destination(packed.unwritten(op, &error));
        let source = Source::open(self.stores, op).map_err(|error| packed.unreadable(op, error))?;
        let place = match self.stream.target() {
            Some(_) => self.next_place(op.to.size),
            None => packed.place(&mut self.held, op.to.size).map_err(unwritten)?,
        };
        let Some(spot) = place else {
            self.is_last = true;
            return Ok(());
        };
        self.held.taken += 1;
        let file = self.held.file.as_ref().expect("a place is in an open file");
        assert_eq!(spot.extent.file, file.header.number, "a lane is filled in the file that it has");
        self.stream.aim(file, spot);
        self.run.get_or_insert(Run { first: spot, placed: Vec::new(), bytes: 0 });
        let Self { stream, begun, group, held, .. } = self;
        let copied = stream.put(&source, op, &mut |chunks| {
            if let Some(begun) = begun.take_if(|begun| begun.chunks <= chunks) {
                hand_over(begun, group, held);
            }
        });
        match copied.and_then(|checksum| vouched(op, checksum).map_err(Failure::Source)) {
            Ok(checksum) => {
                let (id, generation, size) = (op.to.id, op.to.generation, op.to.size);
                let record = Record { id, generation, size, checksum, page: spot.extent.page };
                let run = self.run.as_mut().expect("it was begun above");
                run.placed.push(Placed { index, spot, record });
                run.bytes += size.0;
                self.stream.passed(pages_of(size));
                Ok(())
            }
            Err(Failure::Source(error)) => {
                self.stream.rewind(spot.extent.offset_bytes()).map_err(unwritten)?;
                packed.books().give_back(spot);
                self.held.taken -= 1;
                Err(packed.unreadable(op, error))
            }
            Err(Failure::Destination(error)) => Err(unwritten(error)),
        }
    }

    /// The place behind the stream's last one, if its file is still the lane's.
    fn next_place(&self, size: ByteCount) -> Option<Spot> {
        if !self.goes_on(size) {
            return None;
        }
        match self.packed.books().reserve(self.held.lane, size) {
            Room::Here(spot) => Some(spot),
            Room::Open | Room::None => None,
        }
    }

    /// Starts writing what is left of the run, and its records behind those of the one before.
    fn begin(&mut self) -> Result<(), DriverError> {
        let Some(bytes) = self.run.as_ref().filter(|run| !run.placed.is_empty()).map(|run| run.bytes) else {
            self.run = None;
            return Ok(());
        };
        self.stream.flush().map_err(|error| self.packed.unwritten_group(&error, bytes))?;
        self.settle()?; // they may have records in the same page
        let run = self.run.take().expect("looked at above");
        let file = self.held.file.as_ref().expect("a stream writes to an open file");
        let records: Vec<Record> = run.placed.iter().map(|placed| placed.record).collect();
        let mut pages = Vec::new();
        let offset = file.table_pages(run.first.slot, &records, &mut pages);
        let next_slot = run.first.slot + records.len() as u32;
        let chunks = self.stream.chunks() + 1;
        let begun = self.begun.insert(Begun { run, chunks, pages, next_slot });
        let written = self.stream.write(&begun.pages, offset);
        written.map_err(|error| self.packed.unwritten_group(&error, bytes))
    }

    /// Waits until what was begun is with the disk, and hands it over.
    fn settle(&mut self) -> Result<(), DriverError> {
        let Some(Begun { run, chunks, .. }) = &self.begun else { return Ok(()) };
        let written = self.stream.wait(*chunks);
        written.map_err(|error| self.packed.unwritten_group(&error, run.bytes))?;
        let begun = self.begun.take().expect("looked at above");
        hand_over(begun, self.group, &mut self.held);
        Ok(())
    }

    /// Everything that was put into the file is with the disk, or has failed. What follows may go to another file.
    fn end_file(&mut self) {
        if let Err(error) = self.begin().and_then(|()| self.settle()) {
            self.fail(&error);
        }
        self.stream.leave();
    }

    /// What was placed and not handed over fails, and its places are given back once nothing is on its way to them.
    fn fail(&mut self, error: &DriverError) {
        let runs = [self.begun.take().map(|begun| begun.run), self.run.take()];
        let mut runs = runs.into_iter().flatten().peekable();
        match (self.stream.abandon(), runs.peek()) {
            (Ok(()), Some(Run { first, .. })) => {
                self.packed.books().give_back(*first);
                self.held.taken = 0;
            }
            (Ok(()), None) => {}
            (Err(_), _) => {
                self.held.give_up(); // and the engine is replaced
                self.is_last = true;
                (0..self.group.ops.len()).for_each(|index| self.group.refuse(index, error));
            }
        }
        runs.flat_map(|run| run.placed).for_each(|placed| self.group.refuse(placed.index, error));
    }
}

/// A run is with the disk: its lane's syncer goes on with it.
fn hand_over(Begun { run, pages, next_slot, .. }: Begun, group: &mut Group<'_>, held: &mut Held<'_>) {
    let ops = run.placed.iter().map(|Placed { index, spot, record }| {
        let op = group.ops[*index].take().expect("it was not answered yet");
        (op, Copied { checksum: record.checksum, extent: Some(spot.extent) })
    });
    let ops: Vec<_> = ops.collect();
    held.taken -= ops.len() as u32;
    let lane_file = held.file.as_mut().expect("a stream writes to an open file");
    lane_file.table_written(&pages, next_slot);
    let (number, file) = (lane_file.header.number, Arc::clone(&lane_file.file));
    let is_first = std::mem::take(&mut lane_file.is_new);
    let syncer = &group.syncers[held.packed.lane_index(held.lane)];
    syncer.send(Written { number, file, is_first, ops }).expect("the syncers outlive the writers");
}
