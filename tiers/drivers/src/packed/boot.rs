//! What a boot finds in segment files: which records there are, and which of them rows vouch for.
//!
//! ```text
//! read     each file that the intent log names: header, then its table to the first thing that is no record
//!            not there, being made: forgotten   newer format: no start
//!            unreadable: left alone, charged whole, its rows wait for a start that can read it
//! vouch    a row's {id, generation, size, page} is compared with the record there     any threads, no lock
//! adopt    the books take every record over: vouched for, or dead; what was being made is removed
//!          once, afterwards; the tables are freed. Files that have room are filled further as the books see fit
//! ```
//! Reading costs what there are records, in pieces that grow: 16 KiB for a file with few, 1 MiB at last. Kept are 40
//! bytes a record until `adopt`. Nothing else of the directory is ever looked at, and nothing is changed before `adopt`.
//!
//! **Damage.** A table that ends in a torn record is cut there: nothing behind it was acknowledged. A bit that flipped
//! in the middle of one costs that record alone: behind something that is neither a record, nor empty, nor an earlier
//! life's, the rest of the table is read, too. A header that is no header is made anew from the file's name and size when
//! records vouch for it. A damaged or shortened file is served and emptied as any other, and never filled further.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::num::NonZeroU32;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use foldhash::fast::RandomState;
use payload_ledger::segments::table::{
    Header, HeaderError, RECORD_BYTES, Record, TABLE_OFFSET, is_intact, pages_of,
};
use payload_ledger::segments::{Buried, Found};
use payload_types::effect::ReplicaRef;
use payload_types::{ByteCount, Extent, Generation, PayloadId, ShardIndex, Tier};

use super::{Packed, name_in_log, number_in_log};
use crate::error::OpenError;
use crate::intent::{Live, Named};
use crate::store::boot::Seen;
use crate::sys;

/// Threads that read tables: a disk wants a few requests at a time, and a cold one many.
const READERS_MAX: usize = 4;

/// What is read of a file at first, and of its table at a time at most. The first read has the header page, too.
const PIECE_FIRST: usize = 16 << 10;
const PIECE_LAST: usize = 1 << 20;

const _: () = assert!(PIECE_FIRST > TABLE_OFFSET as usize && PIECE_LAST.is_multiple_of(RECORD_BYTES));

/// A record, and whether a row vouched for it.
struct Entry {
    id: PayloadId,
    generation: Generation,
    size: ByteCount,
    page: u32,
    vouched: AtomicBool,
}

const _: () = assert!(size_of::<Entry>() <= 48);

/// A file's records, in the order of their pages.
struct Table {
    header: Header,
    /// Slots of the table that are taken.
    slots: u32,
    /// True when it can be filled further.
    is_sound: bool,
    /// True when a crash left it under its private name, and whether anybody had it open is not known.
    is_private: bool,
    /// Bytes that the file has.
    length: u64,
    entries: Vec<Entry>,
}

/// What became of a named file.
enum Outcome {
    Table(Table),
    /// Not there, or being made: the log may forget it.
    Gone,
    /// Served by nobody until the next start, and not removed either.
    Unreadable {
        bytes: u64,
    },
}

/// See the module's description.
pub(crate) struct Tables {
    files: HashMap<NonZeroU32, Table, RandomState>,
    unreadable: HashMap<NonZeroU32, u64, RandomState>,
    /// Named files that are not there, or were being made.
    gone: Vec<NonZeroU32>,
    records: usize,
}

impl Tables {
    /// Reads the files that the intent log named when it was opened.
    ///
    /// # Errors
    /// When a file was written by a later version.
    pub(crate) fn read(packed: &Packed) -> Result<Self, OpenError> {
        let named = packed.live.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        let sizes: HashMap<NonZeroU32, u64, RandomState> = named
            .iter()
            .filter_map(|((id, generation), named)| Some((number_in_log(*id, *generation)?, named.size.0)))
            .collect();
        let numbers: Vec<NonZeroU32> = sizes.keys().copied().collect();
        let mut tables =
            Self { files: HashMap::default(), unreadable: HashMap::default(), gone: Vec::new(), records: 0 };
        for (number, outcome) in read_all(packed, &numbers)? {
            match outcome {
                Outcome::Table(table) => {
                    tables.records += table.entries.len();
                    tables.files.insert(number, table);
                }
                Outcome::Unreadable { bytes } => {
                    packed.health.read_failed();
                    // Of one that cannot even be opened, what the log says.
                    tables.unreadable.insert(number, if bytes > 0 { bytes } else { sizes[&number] });
                }
                Outcome::Gone => tables.gone.push(number),
            }
        }
        Ok(tables)
    }

    /// How many replicas the files have records of.
    pub(crate) fn len(&self) -> usize {
        self.records
    }

    /// A row vouches for a packed replica: whether its bytes are there. They are kept if so.
    pub(crate) fn vouch(&self, replica: &ReplicaRef, extent: Extent) -> Seen {
        let Some(table) = self.files.get(&extent.file) else {
            return if self.unreadable.contains_key(&extent.file) { Seen::Unreadable } else { Seen::Absent };
        };
        let Ok(index) = table.entries.binary_search_by_key(&extent.page, |entry| entry.page) else {
            return Seen::Absent;
        };
        let entry = &table.entries[index];
        let end = extent.offset_bytes() + replica.size.0;
        if (entry.id, entry.generation, entry.size) != (replica.id, replica.generation, replica.size)
            || end > table.length
        {
            return Seen::Absent;
        }
        entry.vouched.store(true, Ordering::Relaxed);
        Seen::Whole
    }

    /// The books take everything over. Answers what nobody vouched for, as replicas; `shard_of` is told when it is free.
    /// With them come the unused ends of files that were made for another capacity, free when their files are; and the
    /// files that could not be read, whole: they are not free before another start.
    pub(crate) fn adopt(
        self,
        packed: &Packed,
        shard_of: &dyn Fn(PayloadId) -> ShardIndex,
    ) -> Vec<ReplicaRef> {
        self.tidy(packed);
        let mut dead = Vec::new();
        let mut books = packed.books();
        for (number, table) in self.files {
            let Table { header, slots, is_sound, entries, .. } = table;
            let end = entries.last().map_or(header.first_page(), Entry::end);
            // Where there is no room, nothing is added.
            let next_page = if is_sound { end } else { header.end_page() };
            books.adopt(Found { header, slots, next_page });
            for entry in entries {
                let Entry { id, generation, size, page, vouched } = entry;
                let extent = Extent { file: number, page };
                if vouched.into_inner() {
                    books.vouched(extent, size);
                } else {
                    books.bury(extent, size, Buried { shard: shard_of(id), generation });
                    dead.push(ReplicaRef {
                        tier: Tier::Disk,
                        id,
                        generation,
                        size,
                        extent: Some(extent),
                        block: None,
                    });
                }
            }
            let end = name_in_log(number, 0);
            let told = Buried { shard: shard_of(end.id), generation: end.generation };
            if let Some(size) = books.bury_end(number, told) {
                let extent = Some(Extent { file: number, page: next_page });
                dead.push(ReplicaRef { size, extent, ..end });
            }
        }
        for (number, bytes) in self.unreadable {
            books.left_alone(number, ByteCount(bytes));
            dead.push(name_in_log(number, bytes));
        }
        for number in self.gone {
            books.left_alone(number, ByteCount(0));
        }
        dead
    }

    /// Removes what was being made, gives what was about to be free its name back, and writes the log anew.
    fn tidy(&self, packed: &Packed) {
        for number in &self.gone {
            for path in [packed.path(*number), packed.path_free(*number)] {
                remove(&path, packed.user);
            }
        }
        for (number, table) in self.files.iter().filter(|(_, table)| table.is_private) {
            let named = packed.calls.rename(&packed.path_free(*number), &packed.path(*number));
            if let Err(error) = named {
                tracing::warn!("segment file {number:08x} cannot be given its name back: {error}");
                debug_assert!(!table.entries.iter().any(|entry| entry.vouched.load(Ordering::Relaxed)));
            }
        }
        // The highest number stays named, whatever became of its file: no client's stale path may lead to a new one.
        let there = self.files.iter().map(|(number, table)| (*number, table.header.file_bytes()));
        let last = self.gone.iter().max().map(|number| (*number, 0));
        let names = there.chain(self.unreadable.iter().map(|(number, bytes)| (*number, *bytes))).chain(last);
        let live: Live = names
            .map(|(number, bytes)| {
                let ReplicaRef { id, generation, size, .. } = name_in_log(number, bytes);
                ((id, generation), Named { size, keep: true })
            })
            .collect();
        let is_current = self.gone.len() <= 1 && packed.log.records() == live.len() as u64;
        if !is_current && let Err(error) = packed.log.rewrite(&live) {
            tracing::warn!("the segment files' log could not be compacted, and is used as it is: {error}");
        }
    }
}

/// What lives or lived in a file, for compaction.
pub(super) fn replicas_of(packed: &Packed, header: Header) -> io::Result<Vec<ReplicaRef>> {
    let file = open(&packed.path(header.number))?;
    let mut buffer = Vec::new();
    packed.read_piece(&file, 0, PIECE_FIRST, &mut buffer)?;
    let reader = packed.read_table(&file, header, &mut buffer)?;
    let replica = |Entry { id, generation, size, page, .. }| {
        let extent = Some(Extent { file: header.number, page });
        ReplicaRef { tier: Tier::Disk, id, generation, size, extent, block: None }
    };
    Ok(reader.entries.into_iter().map(replica).collect())
}

fn read_all(packed: &Packed, numbers: &[NonZeroU32]) -> Result<Vec<(NonZeroU32, Outcome)>, OpenError> {
    let readers = thread::available_parallelism().map_or(1, usize::from).min(READERS_MAX).min(numbers.len());
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::with_capacity(numbers.len()));
    thread::scope(|scope| {
        let read = || {
            let mut buffer = Vec::new();
            while let Some(number) = numbers.get(next.fetch_add(1, Ordering::Relaxed)) {
                let outcome = read_one(packed, *number, &mut buffer);
                outcomes.lock().unwrap_or_else(PoisonError::into_inner).push((*number, outcome));
            }
        };
        for _ in 0..readers {
            scope.spawn(read);
        }
    });
    let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.into_iter().map(|(number, outcome)| Ok((number, outcome?))).collect()
}

/// Reads one file, under its public or its private name.
fn read_one(packed: &Packed, number: NonZeroU32, buffer: &mut Vec<u8>) -> Result<Outcome, OpenError> {
    let (public, private) = (packed.path(number), packed.path_free(number));
    let opened = match open(&public) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => open(&private).map(|file| (file, true)),
        other => other.map(|file| (file, false)),
    };
    let (file, is_private) = match opened {
        Ok(opened) => opened,
        Err(error) if is_absence(&error) => return Ok(Outcome::Gone),
        Err(error) => return Ok(unreadable(number, 0, &error)),
    };
    let (length, ours) = match file.metadata() {
        Ok(metadata) => (metadata.len(), metadata.is_file() && metadata.uid() == packed.user),
        Err(error) => return Ok(unreadable(number, 0, &error)),
    };
    // Somebody put it in the place of ours.
    if !ours {
        return Ok(Outcome::Gone);
    }
    match read_file(&file, packed, number, length, is_private, buffer) {
        Ok(Ok(Some(table))) => Ok(Outcome::Table(table)),
        Ok(Ok(None)) => Ok(Outcome::Gone),
        Ok(Err(format)) => {
            Err(OpenError::SegmentNewer { path: if is_private { private } else { public }, format })
        }
        Err(error) => Ok(unreadable(number, length, &error)),
    }
}

pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(sys::HANDLE_WITH_CARE).open(path)
}

/// A link in its place is nothing of ours (O_NOFOLLOW).
pub(super) fn is_absence(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ELOOP)
}

fn unreadable(number: NonZeroU32, bytes: u64, error: &io::Error) -> Outcome {
    tracing::error!(
        "segment file {number:08x} cannot be read ({error}): it is left alone and charged, and what lies in it is LOST \
         until a start that can read it; see `dmesg`, and start again once the disk is well"
    );
    Outcome::Unreadable { bytes }
}

/// Removes a file, if it is there and ours.
pub(super) fn remove(path: &Path, user: u32) {
    let ours = fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.uid() == user);
    if ours && let Err(error) = fs::remove_file(path) {
        tracing::warn!("a segment file cannot be removed: {error}");
    }
}

/// Header and table; `None` when there is no record of ours in it, and no header that says that there will be; an inner
/// error is the format of a later version.
fn read_file(
    file: &File,
    packed: &Packed,
    number: NonZeroU32,
    length: u64,
    is_private: bool,
    buffer: &mut Vec<u8>,
) -> io::Result<Result<Option<Table>, u32>> {
    packed.read_piece(file, 0, PIECE_FIRST, buffer)?;
    let decoded = buffer.first_chunk::<RECORD_BYTES>().map(|bytes| Header::decode(bytes, &packed.root));
    let (header, is_certain) = match decoded {
        Some(Ok(header)) if header.number == number => (header, true),
        Some(Err(HeaderError::Newer(format))) => return Ok(Err(format)),
        // What was free has lost its header on purpose.
        _ if is_private => return Ok(Ok(None)),
        _ => match Header::of_length(number, packed.root, length) {
            Some(header) => (header, false),
            None => return Ok(Ok(None)),
        },
    };
    let reader = packed.read_table(file, header, buffer)?;
    let Reader { slots, mut entries, is_damaged, .. } = reader;
    if !is_certain && entries.is_empty() {
        return Ok(Ok(None));
    }
    entries.shrink_to_fit();
    let is_sound = is_certain && !is_damaged && length >= header.file_bytes();
    if !is_sound {
        let records = entries.len();
        tracing::warn!(
            "segment file {number:08x} is damaged, {records} of its records are left: they are served, and it is not \
             filled further"
        );
    }
    Ok(Ok(Some(Table { header, slots, is_sound, is_private, length, entries })))
}

impl Packed {
    /// Reads a table to its end; `buffer` has the start of the file.
    fn read_table(&self, file: &File, header: Header, buffer: &mut Vec<u8>) -> io::Result<Reader> {
        let mut reader = Reader::new(header);
        let table_bytes = header.slots() as usize * RECORD_BYTES;
        // From here on the buffer holds the piece of the table that begins at `done`.
        buffer.drain(..buffer.len().min(TABLE_OFFSET as usize));
        let (mut done, mut piece) = (0, PIECE_FIRST);
        loop {
            buffer.truncate((buffer.len() - buffer.len() % RECORD_BYTES).min(table_bytes - done));
            done += buffer.len();
            if !reader.take(buffer) || buffer.is_empty() || done == table_bytes {
                break;
            }
            piece = (piece * 2).min(PIECE_LAST);
            self.read_piece(file, TABLE_OFFSET + done as u64, piece, buffer)?;
        }
        Ok(reader)
    }

    /// Reads up to so many bytes, fewer where the file ends.
    fn read_piece(&self, file: &File, offset: u64, bytes: usize, buffer: &mut Vec<u8>) -> io::Result<usize> {
        buffer.resize(bytes, 0);
        let mut done = 0;
        while done < bytes {
            match self.calls.read_table(file, &mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer.truncate(done);
        Ok(done)
    }
}

/// Reads a table piece by piece.
struct Reader {
    header: Header,
    entries: Vec<Entry>,
    /// Slots looked at.
    seen: u32,
    /// Slots up to the last record.
    slots: u32,
    /// Something was no record, and nothing that ends a table.
    is_behind_damage: bool,
    /// There were records behind it.
    is_damaged: bool,
}

impl Reader {
    fn new(header: Header) -> Self {
        Self { header, entries: Vec::new(), seen: 0, slots: 0, is_behind_damage: false, is_damaged: false }
    }

    /// Takes the records of the next piece. False when the table ends in it.
    fn take(&mut self, mut piece: &[u8]) -> bool {
        self.entries.reserve_exact(piece.len() / RECORD_BYTES);
        while !piece.is_empty() {
            let before = self.entries.len();
            let end = self.entries.last().map_or(self.header.first_page(), Entry::end);
            self.entries.extend(self.header.records(piece, self.seen, end).map(Entry::from));
            let found = self.entries.len() - before;
            self.seen += found as u32;
            if found > 0 {
                self.slots = self.seen;
                self.is_damaged |= self.is_behind_damage;
            }
            piece = &piece[found * RECORD_BYTES..];
            let Some((bytes, rest)) = piece.split_first_chunk::<RECORD_BYTES>() else { break };
            let is_end = *bytes == [0; RECORD_BYTES] || is_intact(bytes, &self.header.root);
            if is_end && !self.is_behind_damage {
                return false;
            }
            self.is_behind_damage = true;
            self.seen += 1;
            piece = rest;
        }
        true
    }
}

impl Entry {
    /// The page after its last one.
    fn end(&self) -> u32 {
        self.page + pages_of(self.size)
    }
}

impl From<Record> for Entry {
    fn from(record: Record) -> Self {
        let Record { id, generation, size, page, .. } = record;
        Self { id, generation, size, page, vouched: AtomicBool::new(false) }
    }
}
