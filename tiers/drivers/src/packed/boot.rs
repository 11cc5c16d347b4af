//! What a boot finds in segment files: which records there are, and which of them rows vouch for.
//!
//! ```text
//! read     each file that the intent log names: header, then its table to the first thing that is no record
//!            not there: forgotten   being made: removed   unreadable: left alone   newer format: no start
//! look     a row's {id, generation, size, page} is compared with the record there     any threads, no lock
//! adopt    the books take every record over: vouched for, or dead      once, afterwards; the tables are freed
//! ```
//! Reading costs what there are records, in pieces that grow: 16 KiB for a file with few, 1 MiB at last. Kept are 40
//! bytes a record until `adopt`. Nothing else of the directory is ever looked at.
//!
//! **Damage.** A table that ends in a torn record is cut there: nothing behind it was acknowledged. A bit that flipped
//! in the middle of one costs that record alone: behind something that is neither a record, nor empty, nor an earlier
//! life's, the rest of the table is read, too. A header that is no header is made anew from the file's name and size when
//! records vouch for it. A damaged or shortened file is served and emptied as any other, and never filled further.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::num::NonZeroU32;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use foldhash::fast::RandomState;
use payload_ledger::segments::table::{
    Header, HeaderError, RECORD_BYTES, Record, Root, TABLE_OFFSET, is_intact, pages_of,
};
use payload_ledger::segments::{Books, Buried, Found};
use payload_types::effect::ReplicaRef;
use payload_types::{ByteCount, Extent, Generation, PayloadId, ShardIndex, Tier};

use crate::error::OpenError;
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
    records: usize,
}

/// Where a root's segment files are.
pub(crate) struct Place<'root> {
    /// The root's id.
    pub(crate) root: Root,
    /// Who owns what we make.
    pub(crate) user: u32,
    /// A file's public and its private name.
    pub(crate) public: &'root (dyn Fn(NonZeroU32) -> PathBuf + Sync),
    /// What it is called while it is free.
    pub(crate) private: &'root (dyn Fn(NonZeroU32) -> PathBuf + Sync),
}

impl Tables {
    /// Reads the files with these numbers, and tells which of them the log may forget.
    ///
    /// # Errors
    /// When a file was written by a later version; nothing was removed then.
    pub(crate) fn read(
        place: &Place<'_>,
        numbers: &[NonZeroU32],
    ) -> Result<(Self, Vec<NonZeroU32>), OpenError> {
        let mut tables =
            Self { files: HashMap::default(), unreadable: HashMap::default(), records: 0 };
        let mut gone = Vec::new();
        for (number, outcome) in read_all(place, numbers)? {
            match outcome {
                Outcome::Table(table) => {
                    tables.records += table.entries.len();
                    tables.files.insert(number, table);
                }
                Outcome::Unreadable { bytes } => drop(tables.unreadable.insert(number, bytes)),
                Outcome::Gone => {
                    for path in [(place.public)(number), (place.private)(number)] {
                        remove(&path, place.user);
                    }
                    gone.push(number);
                }
            }
        }
        Ok((tables, gone))
    }

    /// How many replicas the files have records of.
    pub(crate) fn len(&self) -> usize {
        self.records
    }

    /// Files that could not be read.
    pub(crate) fn unreadable_count(&self) -> usize {
        self.unreadable.len()
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

    /// The books take everything over: `shard_of` is told when what nobody vouched for is free. Answers those, as
    /// replicas.
    pub(crate) fn adopt(
        self,
        books: &mut Books,
        shard_of: &dyn Fn(PayloadId) -> ShardIndex,
    ) -> Vec<ReplicaRef> {
        let mut dead = Vec::new();
        for (number, table) in self.files {
            let Table { header, slots, is_sound, entries, .. } = table;
            let end = entries.last().map_or(header.first_page(), Entry::end);
            let next_page = if is_sound { end } else { header.end_page() };
            books.adopt(Found { header, slots, next_page });
            for entry in entries {
                let Entry { id, generation, size, page, vouched } = entry;
                let extent = Extent { file: number, page };
                if vouched.into_inner() {
                    books.vouched(extent, size);
                } else {
                    books.bury(extent, size, Buried { shard: shard_of(id), generation });
                    dead.push(ReplicaRef { tier: Tier::Disk, id, generation, size, extent: Some(extent) });
                }
            }
        }
        for (number, bytes) in self.unreadable {
            books.left_alone(number, ByteCount(bytes));
        }
        dead
    }
}

fn read_all(
    place: &Place<'_>,
    numbers: &[NonZeroU32],
) -> Result<Vec<(NonZeroU32, Outcome)>, OpenError> {
    let readers = thread::available_parallelism().map_or(1, usize::from).min(READERS_MAX).min(numbers.len());
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::with_capacity(numbers.len()));
    thread::scope(|scope| {
        let read = || {
            let mut buffer = Vec::new();
            while let Some(number) = numbers.get(next.fetch_add(1, Ordering::Relaxed)) {
                let outcome = read_one(place, *number, &mut buffer);
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
fn read_one(place: &Place<'_>, number: NonZeroU32, buffer: &mut Vec<u8>) -> Result<Outcome, OpenError> {
    let (public, private) = ((place.public)(number), (place.private)(number));
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
        Ok(metadata) => (metadata.len(), metadata.is_file() && metadata.uid() == place.user),
        Err(error) => return Ok(unreadable(number, 0, &error)),
    };
    // Somebody put it in the place of ours.
    if !ours {
        return Ok(Outcome::Gone);
    }
    match read_file(&file, place, number, length, is_private, buffer) {
        Ok(Ok(Some(table))) => {
            // It was to be free, and whether anybody had it open is not known: that is found out anew.
            if is_private && let Err(error) = fs::rename(&private, &public) {
                return Ok(unreadable(number, length, &error));
            }
            Ok(Outcome::Table(table))
        }
        Ok(Ok(None)) => Ok(Outcome::Gone),
        Ok(Err(format)) => {
            Err(OpenError::SegmentNewer { path: if is_private { private } else { public }, format })
        }
        Err(error) => Ok(unreadable(number, length, &error)),
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(sys::HANDLE_WITH_CARE).open(path)
}

/// A link in its place is nothing of ours (O_NOFOLLOW).
fn is_absence(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ELOOP)
}

fn unreadable(number: NonZeroU32, bytes: u64, error: &io::Error) -> Outcome {
    tracing::error!(
        "segment file {number:08x} cannot be read ({error}): it is left alone, and what lies in it is not served until \
         a start that can read it"
    );
    Outcome::Unreadable { bytes }
}

/// Removes a file that was being made; nobody can know it.
fn remove(path: &Path, user: u32) {
    let ours = fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.uid() == user);
    if ours && let Err(error) = fs::remove_file(path) {
        tracing::warn!("a segment file that was being made cannot be removed: {error}");
    }
}

/// Header and table; `None` when there is no record of ours in it, and no header that says that there will be; an inner
/// error is the format of a later version.
fn read_file(
    file: &File,
    place: &Place<'_>,
    number: NonZeroU32,
    length: u64,
    is_private: bool,
    buffer: &mut Vec<u8>,
) -> io::Result<Result<Option<Table>, u32>> {
    read_piece(file, 0, PIECE_FIRST, buffer)?;
    let decoded = buffer.first_chunk::<RECORD_BYTES>().map(|bytes| Header::decode(bytes, &place.root));
    let (header, is_certain) = match decoded {
        Some(Ok(header)) if header.number == number => (header, true),
        Some(Err(HeaderError::Newer(format))) => return Ok(Err(format)),
        // What was free has lost its header on purpose.
        _ if is_private => return Ok(Ok(None)),
        _ => match Header::of_length(number, place.root, length) {
            Some(header) => (header, false),
            None => return Ok(Ok(None)),
        },
    };
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
        read_piece(file, TABLE_OFFSET + done as u64, piece, buffer)?;
    }
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
    Ok(Ok(Some(Table { header, slots, is_sound, length, entries })))
}

/// Reads up to so many bytes, fewer where the file ends.
fn read_piece(file: &File, offset: u64, bytes: usize, buffer: &mut Vec<u8>) -> io::Result<usize> {
    buffer.resize(bytes, 0);
    let mut done = 0;
    while done < bytes {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(done);
    Ok(done)
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
