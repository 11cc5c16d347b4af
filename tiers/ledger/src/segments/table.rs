//! Header and record table of a segment file, as bytes.
//!
//! ```text
//! header, 64 bytes   magic 8 | format 4 | number 4 | data bytes 8 | root 16 | zero 16 | xxh3 8
//! record, 64 bytes   id 16 | generation 8 | size 8 | checksum 8 | page 4 | slot 4 | file 4 | zero 4 | xxh3 8
//! ```
//! Little-endian. A record holds its file's number and its own place in the table, and its hash is seeded with the root:
//! what an earlier life of the file, another root or a torn write left is no record. A table is read until the first
//! thing that is none: whatever follows was never acknowledged, because a record is on stable storage before its row.

use std::num::NonZeroU32;

use payload_types::limits::PAGE_BYTES;
use payload_types::{ByteCount, Checksum, Generation, PayloadId};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::geometry::head_bytes;

/// Bytes of a record, and of the header.
pub const RECORD_BYTES: usize = 64;

/// Where the table begins.
pub const TABLE_OFFSET: u64 = PAGE_BYTES;

const MAGIC: [u8; 8] = *b"PMSEGMNT";
const FORMAT: u32 = 1;
/// No file has as much data: its pages would not be numbered by 32 bits.
const DATA_BYTES_MAX: u64 = 1 << 40;
const HASHED: usize = RECORD_BYTES - 8;

/// Names the disk root that a file belongs to: the 16 bytes of its id.
pub type Root = [u8; 16];

/// What the start of a segment file says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The file's number; also its name.
    pub number: NonZeroU32,
    /// Bytes of payloads, from [`Header::data_offset`] on.
    pub data_bytes: u64,
    /// The disk root it belongs to.
    pub root: Root,
}

/// Why a header cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderError {
    /// Not one of ours, of another root, or torn.
    Foreign,
    /// Written by a later version.
    Newer(u32),
}

/// One payload in a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// Whose bytes.
    pub id: PayloadId,
    /// Which replica.
    pub generation: Generation,
    /// Exactly what was allocated.
    pub size: ByteCount,
    /// Of the bytes written.
    pub checksum: Checksum,
    /// Where they begin, in pages from the file's start.
    pub page: u32,
}

impl Record {
    /// The page after its last one.
    pub fn end(&self) -> u32 {
        self.page.saturating_add(pages_of(self.size))
    }
}

/// Pages that a payload takes.
pub fn pages_of(size: ByteCount) -> u32 {
    u32::try_from(size.0.div_ceil(PAGE_BYTES)).unwrap_or(u32::MAX)
}

impl Header {
    /// The header of a whole file of this root: its length tells how much data it has. For one whose header is damaged.
    pub fn of_length(number: NonZeroU32, root: Root, bytes: u64) -> Option<Self> {
        // One page of header, a page of table for each 64 of data.
        let pages = (bytes / PAGE_BYTES).saturating_sub(1);
        let data_bytes = pages * 64 / 65 * PAGE_BYTES;
        let header = Self { number, data_bytes, root };
        (data_bytes > 0 && data_bytes < DATA_BYTES_MAX && header.file_bytes() == bytes).then_some(header)
    }

    /// Where the data begins.
    pub fn data_offset(&self) -> u64 {
        head_bytes(self.data_bytes)
    }

    /// The first page of data.
    pub fn first_page(&self) -> u32 {
        (self.data_offset() / PAGE_BYTES) as u32
    }

    /// The page after the last one.
    pub fn end_page(&self) -> u32 {
        ((self.data_offset() + self.data_bytes) / PAGE_BYTES) as u32
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> u64 {
        self.data_offset() + self.data_bytes
    }

    /// Records that the table has room for.
    pub fn slots(&self) -> u32 {
        (self.data_bytes / PAGE_BYTES) as u32
    }

    /// Where a record stands in the file.
    pub fn record_offset(slot: u32) -> u64 {
        TABLE_OFFSET + u64::from(slot) * RECORD_BYTES as u64
    }

    /// As bytes.
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.number.get().to_le_bytes());
        bytes[16..24].copy_from_slice(&self.data_bytes.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.root);
        seal(bytes, &self.root)
    }

    /// Reads the start of a file of this root.
    ///
    /// # Errors
    /// When it is no header of this root, or of a version that is not known here.
    pub fn decode(bytes: &[u8; RECORD_BYTES], root: &Root) -> Result<Self, HeaderError> {
        if seal(*bytes, root) != *bytes || bytes[..8] != MAGIC || bytes[24..40] != *root {
            return Err(HeaderError::Foreign);
        }
        let format = word(bytes, 8);
        if format != FORMAT {
            return Err(HeaderError::Newer(format));
        }
        let data_bytes = long(bytes, 16);
        let is_whole = data_bytes.is_multiple_of(PAGE_BYTES) && data_bytes > 0 && data_bytes < DATA_BYTES_MAX;
        match NonZeroU32::new(word(bytes, 12)) {
            Some(number) if is_whole => Ok(Self { number, data_bytes, root: *root }),
            _ => Err(HeaderError::Foreign),
        }
    }

    /// A record as bytes, for this place in the table.
    pub fn record(&self, slot: u32, record: &Record) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..16].copy_from_slice(record.id.as_bytes());
        bytes[16..24].copy_from_slice(&record.generation.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&record.size.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&record.checksum.0.to_le_bytes());
        bytes[40..44].copy_from_slice(&record.page.to_le_bytes());
        bytes[44..48].copy_from_slice(&slot.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.number.get().to_le_bytes());
        seal(bytes, &self.root)
    }

    /// The table's records up to the first thing that is none. `bytes` begins at [`TABLE_OFFSET`] and may be a part of
    /// the table: what is needed is read piece by piece, `first` being the slot that it begins with and `from` the page
    /// after the record before it ([`Header::first_page`] at the table's start).
    pub fn records<'table>(
        &self,
        bytes: &'table [u8],
        first: u32,
        from: u32,
    ) -> impl Iterator<Item = Record> + use<'table> {
        let header = *self;
        let mut next = from;
        (first..header.slots()).zip(bytes.as_chunks::<RECORD_BYTES>().0).map_while(move |(slot, bytes)| {
            let record = header.read(slot, bytes)?;
            // Front to back, and within the file; anything else is damage that the hash did not show.
            (record.page >= next && record.size.0 > 0 && record.end() <= header.end_page()).then(|| {
                next = record.end();
                record
            })
        })
    }

    fn read(&self, slot: u32, bytes: &[u8; RECORD_BYTES]) -> Option<Record> {
        let is_whole = seal(*bytes, &self.root) == *bytes;
        if !is_whole || word(bytes, 44) != slot || word(bytes, 48) != self.number.get() {
            return None;
        }
        Some(Record {
            id: PayloadId::from_bytes(bytes[..16].try_into().expect("16 bytes")),
            generation: Generation(long(bytes, 16)),
            size: ByteCount(long(bytes, 24)),
            checksum: Checksum(long(bytes, 32)),
            page: word(bytes, 40),
        })
    }
}

/// True for what was written as a header or record of this root, whatever file and place it was meant for.
pub fn is_intact(bytes: &[u8; RECORD_BYTES], root: &Root) -> bool {
    seal(*bytes, root) == *bytes
}

fn seal(mut bytes: [u8; RECORD_BYTES], root: &Root) -> [u8; RECORD_BYTES] {
    let seed = u64::from_le_bytes(root[..8].try_into().expect("8 bytes"));
    let hash = xxh3_64_with_seed(&bytes[..HASHED], seed);
    bytes[HASHED..].copy_from_slice(&hash.to_le_bytes());
    bytes
}

fn word(bytes: &[u8; RECORD_BYTES], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn long(bytes: &[u8; RECORD_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header { number: NonZeroU32::new(7).expect("not 0"), data_bytes: 4 << 20, root: [9; 16] }
    }

    /// Payloads of 1, 2, 3 ... pages, one behind the other.
    fn records(count: u32) -> Vec<Record> {
        let mut page = header().first_page();
        (1..=count)
            .map(|number| {
                let size = ByteCount(u64::from(number) * PAGE_BYTES - 5);
                let id = PayloadId::mint(1 << 50, u64::from(number));
                let (generation, checksum) = (Generation(u64::from(number)), Checksum(!u64::from(number)));
                let record = Record { id, generation, size, checksum, page };
                page = record.end();
                record
            })
            .collect()
    }

    fn table(records: &[Record]) -> Vec<u8> {
        (0..).zip(records).flat_map(|(slot, record)| header().record(slot, record)).collect()
    }

    fn read(bytes: &[u8]) -> Vec<Record> {
        header().records(bytes, 0, header().first_page()).collect()
    }

    #[test]
    fn given_a_header_when_read_then_it_is_the_same_and_any_flipped_bit_makes_it_foreign() {
        let bytes = header().encode();
        assert_eq!(Header::decode(&bytes, &[9; 16]), Ok(header()));
        assert_eq!(Header::decode(&bytes, &[8; 16]), Err(HeaderError::Foreign), "another root's");
        assert_eq!(Header::decode(&[0; RECORD_BYTES], &[9; 16]), Err(HeaderError::Foreign));
        for bit in 0..RECORD_BYTES * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&damaged, &[9; 16]), Err(HeaderError::Foreign), "bit {bit}");
        }
        let mut newer = bytes;
        newer[8] = 2;
        assert_eq!(Header::decode(&seal(newer, &[9; 16]), &[9; 16]), Err(HeaderError::Newer(2)));
    }

    #[test]
    fn given_only_a_files_length_when_its_header_is_made_anew_then_it_is_the_same() {
        for data_bytes in [4096, 64 * 4096, 65 * 4096, 4 << 20, 9 << 20, 256 << 20] {
            let header = Header { data_bytes, ..header() };
            assert_eq!(Header::of_length(header.number, [9; 16], header.file_bytes()), Some(header));
            assert_eq!(Header::of_length(header.number, [9; 16], header.file_bytes() - 1), None);
        }
        assert_eq!(Header::of_length(header().number, [9; 16], 4096), None);
        assert_eq!(Header::of_length(header().number, [9; 16], 0), None);
    }

    #[test]
    fn given_a_table_when_read_whole_or_in_pieces_then_every_record_is_there() {
        let records = records(20);
        let bytes = table(&records);
        assert_eq!(read(&bytes), records);
        let (first, second) = bytes.split_at(7 * RECORD_BYTES);
        assert_eq!(read(first), records[..7]);
        let rest: Vec<Record> = header().records(second, 7, records[6].end()).collect();
        assert_eq!(rest, records[7..]);
    }

    #[test]
    fn given_a_table_torn_at_any_byte_when_read_then_exactly_the_whole_records_before_it_are_there() {
        let records = records(6);
        let bytes = table(&records);
        for cut in 0..bytes.len() {
            let mut torn = bytes.clone();
            torn[cut..].fill(0);
            let whole = cut / RECORD_BYTES;
            assert!(read(&torn).len() <= records.len());
            // A record may end in zeroes of its own; then the cut took nothing.
            let expected = if torn == bytes { records.len() } else { whole };
            assert!(read(&torn)[..expected] == records[..expected], "cut at {cut}");
            assert!(read(&torn).len() <= whole + 1, "cut at {cut}");
        }
    }

    #[test]
    fn given_records_of_an_earlier_life_when_read_under_the_new_number_then_there_are_none() {
        let bytes = table(&records(3));
        let again = Header { number: NonZeroU32::new(8).expect("not 0"), ..header() };
        assert_eq!(again.records(&bytes, 0, again.first_page()).count(), 0);
        let moved: Vec<u8> = bytes[RECORD_BYTES..].to_vec();
        assert_eq!(read(&moved), [], "a record stands at its own place only");
    }

    #[test]
    fn given_records_that_overlap_or_leave_the_file_when_read_then_the_table_ends_there() {
        let mut records = records(3);
        records[2].page = records[1].page;
        assert_eq!(read(&table(&records)), records[..2]);
        records[2].page = header().end_page() - 1;
        assert_eq!(read(&table(&records)), records[..2]);
        records[2].page = u32::MAX;
        assert_eq!(read(&table(&records)), records[..2]);
        records[2] = Record { page: records[1].end(), size: ByteCount(0), ..records[2] };
        assert_eq!(read(&table(&records)), records[..2]);
    }
}
