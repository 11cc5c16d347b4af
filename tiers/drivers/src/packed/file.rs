//! Segment files: made, taken over from a recycled one, opened to be filled further.
//!
//! ```text
//! made        intent log -> new file 0600 -> space reserved -> header -> file_mode
//! recycled    <old>.free, nobody has it open -> intent log -> <new>.seg -> header -> file_mode
//! ```
//! Called by the transfer threads while they hold the lane's mutex. Header and name reach stable storage with the file's
//! first group, before that is acknowledged ([`super::syncer`]): without them nobody would find it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::num::NonZeroU32;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use payload_ledger::segments::table::{Header, RECORD_BYTES, Record};
use payload_types::limits::PAGE_BYTES;

use super::{Packed, name_in_log};
use crate::sys;
use crate::transfer::go_direct;

/// While it is opened for writing, its owner may; nobody who may read it is kept out.
const MODE_OWNER: u32 = 0o600;

const PAGE: usize = PAGE_BYTES as usize;

/// Records in a page of the table.
const RECORDS_PER_PAGE: usize = PAGE / RECORD_BYTES;

/// A lane's file, open for writing, past the page cache where the filesystem can.
pub(crate) struct LaneFile {
    pub(crate) header: Header,
    /// Shared with the engine that writes it.
    pub(crate) file: Arc<File>,
    /// Nothing in it was handed to the syncer yet, which then puts its name on stable storage, too.
    pub(super) is_new: bool,
    /// The table's page that the next record belongs to, as it was written last: pages are written whole.
    page: Box<[u8; PAGE]>,
}

impl LaneFile {
    /// The table's whole pages from that of `slot` on with `records` in them, and where they go. `into` takes as many
    /// bytes as that is.
    pub(crate) fn table_pages(&self, slot: u32, records: &[Record], into: &mut Vec<u8>) -> u64 {
        let at = slot as usize % RECORDS_PER_PAGE * RECORD_BYTES;
        into.clear();
        into.extend_from_slice(&self.page[..at]);
        for (slot, record) in (slot..).zip(records) {
            into.extend_from_slice(&self.header.record(slot, record));
        }
        into.resize(into.len().next_multiple_of(PAGE), 0);
        Header::record_offset(slot) - at as u64
    }

    /// `pages` (of [`table_pages`](Self::table_pages)) were written, and `next` is the next record's place.
    pub(crate) fn table_written(&mut self, pages: &[u8], next: u32) {
        if (next as usize).is_multiple_of(RECORDS_PER_PAGE) {
            self.page.fill(0);
        } else if let Some(last) = pages.last_chunk::<PAGE>() {
            *self.page = *last;
        }
    }
}

impl Packed {
    /// A new file. `NoSpace` among the errors is no failure of the root: what is missing is room for a whole file.
    pub(super) fn make(&self, header: Header) -> io::Result<LaneFile> {
        let bytes = header.file_bytes();
        // Asked first, so that a file that cannot fit never fills the filesystem, if only for a moment.
        if self.calls.available_bytes(&self.directory())? < bytes {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let path = self.path(header.number);
        self.log.made(&name_in_log(header.number, bytes))?;
        let file = self.calls.create(&path).inspect_err(|_| self.gone(header.number, bytes))?;
        let begun = self.calls.reserve(&file, bytes).and_then(|()| self.begin(file, header));
        begun.inspect_err(|_| self.unmake(&path, header))
    }

    /// The free file `old`, under the number of `header`. Whatever fails, `old` is gone then.
    pub(super) fn take_over(&self, old: NonZeroU32, header: Header) -> io::Result<LaneFile> {
        let (bytes, free, path) = (header.file_bytes(), self.path_free(old), self.path(header.number));
        let taken = (|| {
            let file = OpenOptions::new().read(true).custom_flags(sys::HANDLE_WITH_CARE).open(&free)?;
            let metadata = file.metadata()?;
            let is_ours = metadata.is_file() && metadata.uid() == self.user && metadata.len() == bytes;
            if !is_ours || matches!(sys::nobody_else_has_it(&file), Ok(false)) {
                return Err(io::Error::other("a free segment file is not the server's alone"));
            }
            drop(file); // and with it the lease
            self.log.made(&name_in_log(header.number, bytes))?;
            self.calls.rename(&free, &path).inspect_err(|_| self.gone(header.number, bytes))?;
            self.gone(old, bytes);
            self.open_to_write(&path).and_then(|file| self.begin(file, header))
        })();
        taken.inspect_err(|_| {
            self.unmake(&free, Header { number: old, ..header });
            self.unmake(&path, header);
        })
    }

    /// Header and mode.
    fn begin(&self, file: File, header: Header) -> io::Result<LaneFile> {
        let mut page = [0; PAGE];
        page[..RECORD_BYTES].copy_from_slice(&header.encode());
        self.calls.write(&file, &page, 0)?;
        file.set_permissions(Permissions::from_mode(self.mode_sealed))?;
        go_direct(&file);
        Ok(LaneFile { header, file: Arc::new(file), is_new: true, page: Box::new([0; PAGE]) })
    }

    /// A file that has payloads, to be filled from `slot` on.
    pub(super) fn reopen(&self, header: Header, slot: u32) -> io::Result<LaneFile> {
        let path = self.path(header.number);
        fs::set_permissions(&path, Permissions::from_mode(self.mode_sealed | MODE_OWNER))?;
        let file = self.open_to_write(&path);
        fs::set_permissions(&path, Permissions::from_mode(self.mode_sealed))?;
        let file = file?;
        let mut page = Box::new([0; PAGE]);
        let at = slot as usize % RECORDS_PER_PAGE * RECORD_BYTES;
        file.read_exact_at(&mut page[..at], Header::record_offset(slot) - at as u64)?;
        go_direct(&file);
        Ok(LaneFile { header, file: Arc::new(file), is_new: false, page })
    }

    fn open_to_write(&self, path: &Path) -> io::Result<File> {
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(sys::HANDLE_WITH_CARE).open(path)?;
        let metadata = file.metadata()?;
        if metadata.is_file() && metadata.uid() == self.user {
            return Ok(file);
        }
        Err(io::Error::other("something that is not the server's file has the name of a segment file"))
    }

    /// Removes a free file that is not wanted any more, and tells the books.
    pub(crate) fn remove_free(&self, number: NonZeroU32) {
        let header = self.books().header(number).expect("a free file is in the books");
        self.unmake(&self.path_free(number), header);
        self.books().removed(number);
    }

    fn unmake(&self, path: &Path, header: Header) {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // The log still names it, so the next boot removes it.
                tracing::warn!(number = header.number, "removing an unfinished segment file: {error}");
            }
            _ => self.forget(header.number, header.file_bytes()),
        }
    }

    /// As [`gone`](Self::gone), but for the number that was given out last: a start must not give it out again, to a
    /// client's stale path.
    pub(super) fn forget(&self, number: NonZeroU32, file_bytes: u64) {
        if self.books().number_last() != Some(number) {
            self.gone(number, file_bytes);
        }
    }

    /// A file and its names exist no more.
    pub(super) fn gone(&self, number: NonZeroU32, file_bytes: u64) {
        self.log.gone(&name_in_log(number, file_bytes));
    }
}
