//! The simulated disk's segment files: the shipped books decide who lies where, the shipped codec writes and reads
//! headers and tables, and this file pretends to be the disk below them.
//!
//! ```text
//!   place -> append (record, not synced) -> sync          a crash tears what is not synced at a random byte
//!   boot: header and table as bytes -> records -> books
//! ```
//! A record and its payload are written and synced when its copy ends; a crash finds others in the middle of that.
//! A recycled file keeps the bytes of its former life behind what was written since.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use payload_ledger::segments::table::{Header, RECORD_BYTES, Record, Root, pages_of};
use payload_ledger::segments::{Books, Buried, Found, Geometry, Lane, Room, Spot};
use payload_types::{ByteCount, Extent};

use super::faults::Rng;
use super::oracle::{Breach, Rule, breach};

const ROOT: Root = *b"simulated root 1";

/// One file's bytes, but for the data.
#[derive(Clone, Debug)]
struct Disk {
    header: Header,
    head: [u8; RECORD_BYTES],
    /// What a loss of power may bring back instead of `head`: the former life's header, or nothing.
    head_under: Option<[u8; RECORD_BYTES]>,
    table: Vec<u8>,
    /// So much of the table's start is on stable storage.
    synced: usize,
    /// What lay under the unsynced bytes that follow.
    under: Vec<u8>,
}

impl Disk {
    fn append(&mut self, slot: u32, record: &Record) {
        let bytes = self.header.record(slot, record);
        let (begin, end) = (slot as usize * RECORD_BYTES, (slot as usize + 1) * RECORD_BYTES);
        if self.table.len() < end {
            self.table.resize(end, 0);
        }
        assert_eq!(begin, self.synced + self.under.len(), "a table is written front to back");
        self.under.extend_from_slice(&self.table[begin..end]);
        self.table[begin..end].copy_from_slice(&bytes);
    }

    fn sync(&mut self) {
        self.synced += self.under.len();
        self.under.clear();
        self.head_under = None;
    }

    /// True when a record was cut within.
    fn tear(&mut self, rng: &mut Rng) -> bool {
        let cut = rng.below(self.under.len() as u64 + 1) as usize;
        let end = self.synced + self.under.len();
        self.table[self.synced + cut..end].copy_from_slice(&self.under[cut..]);
        self.under.truncate(cut);
        !cut.is_multiple_of(RECORD_BYTES)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Segments {
    books: Option<Books>,
    disks: BTreeMap<NonZeroU32, Disk>,
    /// The last crash tore a record.
    torn: bool,
    /// The disk held more at the last start than it may: its capacity was lowered.
    overfull: bool,
}

impl Segments {
    /// The books, where anything is packed.
    pub(super) fn books(&mut self) -> Option<&mut Books> {
        self.books.as_mut()
    }

    /// True while files are there that were made for another capacity.
    pub(super) fn has_other_sizes(&self) -> bool {
        let today = self.books.as_ref().map(|books| books.geometry().data_bytes());
        self.disks.values().any(|disk| Some(disk.header.data_bytes) != today)
    }

    /// The files there are.
    pub(super) fn numbers(&self) -> Vec<NonZeroU32> {
        self.disks.keys().copied().collect()
    }

    // ---- filling ----

    /// Takes a place; `None`: there is none in a segment file.
    pub(super) fn place(&mut self, lane: Lane, size: ByteCount) -> Option<Spot> {
        loop {
            match self.books.as_mut()?.reserve(lane, size) {
                Room::Here(spot) => return Some(spot),
                Room::Open => self.open(lane),
                Room::None => return None,
            }
        }
    }

    fn open(&mut self, lane: Lane) {
        self.remove_surplus(ByteCount::ZERO);
        let books = self.books.as_mut().expect("the caller asked them");
        let old = books.take_free();
        let number = books.number_next();
        let header = Header { number, data_bytes: books.geometry().data_bytes(), root: ROOT };
        let former = old.and_then(|old| self.disks.remove(&old));
        let (under, table) = former.map_or(([0; RECORD_BYTES], Vec::new()), |disk| (disk.head, disk.table));
        let head_under = Some(under);
        let disk = Disk { header, head: header.encode(), head_under, table, synced: 0, under: Vec::new() };
        self.disks.insert(number, disk);
        books.opened(lane, header, old);
    }

    /// Writes a payload's record. `synced`: it and all before it are on stable storage, and it counts.
    pub(super) fn write(&mut self, spot: Spot, record: &Record, synced: bool) {
        let disk = self.disks.get_mut(&spot.extent.file).expect("the books place in files that are there");
        disk.append(spot.slot, record);
        if synced {
            disk.sync();
            self.books.as_mut().expect("they placed it").written(spot.extent, record.size);
        }
    }

    /// A file of its own is made: free files make way for it.
    pub(super) fn own_added(&mut self, size: ByteCount) {
        self.remove_surplus(size);
        if let Some(books) = &mut self.books {
            books.own_added(size);
        }
    }

    pub(super) fn own_removed(&mut self, size: ByteCount) {
        if let Some(books) = &mut self.books {
            books.own_removed(size);
        }
    }

    fn remove_surplus(&mut self, size: ByteCount) {
        while let Some(number) = self.books.as_mut().and_then(|books| books.surplus(size)) {
            self.remove(number);
        }
    }

    // ---- recycling ----

    /// Nobody has the file open: who is told that he is free.
    pub(super) fn recycle(&mut self, number: NonZeroU32) -> Vec<Buried> {
        let books = self.books.as_mut().expect("they know the file");
        let (buried, remove) = books.recycled(number);
        if remove {
            self.remove(number);
        }
        buried
    }

    fn remove(&mut self, number: NonZeroU32) {
        self.disks.remove(&number);
        self.books.as_mut().expect("they know the file").removed(number);
    }

    // ---- crash and boot ----

    /// A crash tears what is not synced; a loss of power may undo a new header, too.
    pub(super) fn crash(&mut self, power_loss: bool, rng: &mut Rng) {
        let mut disks = std::mem::take(&mut self.disks);
        for disk in disks.values_mut() {
            self.torn |= disk.tear(rng);
            if let Some(under) = disk.head_under.filter(|_| power_loss && rng.chance(500)) {
                disk.head = under;
            }
        }
        self.books = None;
        // A file that lost its header has lost its name with it: both are new, or both are old.
        for disk in disks.into_values() {
            if let Ok(header) = Header::decode(&disk.head, &ROOT) {
                self.disks.insert(header.number, Disk { header, ..disk });
            }
        }
    }

    /// Boot: what each table says, in the order of files and slots. Hands back whether the crash tore one.
    pub(super) fn read(
        &mut self,
        geometry: Option<Geometry>,
    ) -> Result<(Vec<(NonZeroU32, Record)>, bool), Breach> {
        self.books = geometry.map(Books::new);
        let mut all = Vec::new();
        for (number, disk) in &mut self.disks {
            let header = disk.header;
            let records: Vec<Record> = header.records(&disk.table, 0, header.first_page()).collect();
            // What is synced is there, unless the file is what it was before its present life.
            let reverted = disk.head_under == Some(disk.head);
            if !reverted && records.len() * RECORD_BYTES < disk.synced {
                let (count, synced) = (records.len(), disk.synced);
                return breach(
                    Rule::Extent,
                    format!("file {number}: {count} records are read, {synced} bytes of them were synced"),
                );
            }
            (disk.synced, disk.head_under) = (records.len() * RECORD_BYTES, None);
            disk.under.clear();
            let next_page = records.last().map_or(header.first_page(), Record::end);
            if let Some(books) = &mut self.books {
                books.adopt(Found { header, slots: records.len() as u32, next_page });
            }
            all.extend(records.into_iter().map(|record| (*number, record)));
        }
        Ok((all, std::mem::take(&mut self.torn)))
    }

    /// Boot, at its end. `own`: what files of their own take.
    pub(super) fn begin(&mut self, own: u64, charged: u64) {
        let Some(books) = &mut self.books else { return };
        books.own_added(ByteCount(own));
        let geometry = books.geometry();
        self.overfull = books.physical() > geometry.capacity() || charged > geometry.usable().0;
    }

    /// The disk never holds more than its capacity, unless that was lowered.
    pub(super) fn audit(&mut self, own: u64, charged: u64) -> Result<(), Breach> {
        let Some(books) = &mut self.books else { return Ok(()) };
        let geometry = books.geometry();
        let files: u64 = self.disks.values().map(|disk| disk.header.file_bytes()).sum();
        let physical = own + files;
        if physical != books.physical().0 {
            return breach(
                Rule::Capacity,
                format!(
                    "{own} of own files and {files} of segment files, the books say {}",
                    books.physical()
                ),
            );
        }
        let fits = physical <= geometry.capacity().0;
        self.overfull &= !fits || charged > geometry.usable().0;
        if !fits && !self.overfull {
            return breach(
                Rule::Capacity,
                format!(
                    "{own} of own files and {files} of segment files on a disk of {}; {charged} are charged",
                    geometry.capacity()
                ),
            );
        }
        Ok(())
    }
}

/// True when two places share a page.
pub(super) fn overlap(one: (Extent, ByteCount), other: (Extent, ByteCount)) -> bool {
    let end = |(extent, size): (Extent, ByteCount)| extent.page + pages_of(size);
    one.0.file == other.0.file && one.0.page < end(other) && other.0.page < end(one)
}
