//! A lane while one thread writes to it: the file that it has, and places there.
//!
//! ```text
//! hold -> [ the lane's mutex ] -> place: in the lane's file | one that is filled further | an empty one -> dropped
//! ```
//! Used by [`super::writer`]. What a panic leaves under way may still be written, so the file is given up then.

use std::io;
use std::sync::MutexGuard;

use payload_ledger::segments::table::Header;
use payload_ledger::segments::{Lane, Room, Spot};
use payload_types::ByteCount;

use super::Packed;
use super::file::LaneFile;
use super::writer::Way;

/// Numbers that are tried for a new file, if files that nobody named have them.
const NUMBERS_TRIED_MAX: usize = 64;

/// A lane that this thread holds.
pub(super) struct Held<'packed> {
    pub(super) packed: &'packed Packed,
    pub(super) lane: Lane,
    pub(super) file: MutexGuard<'packed, Option<LaneFile>>,
    /// Places that were taken and are not handed to the syncer yet.
    pub(super) taken: u32,
}

impl Held<'_> {
    /// Gives the lane's file up, with the places that were taken: what was under way may still be written there.
    pub(super) fn give_up(&mut self) {
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

impl Packed {
    /// A lane for this way: an idle one, or one that is waited for.
    pub(super) fn hold(&self, way: Way) -> Held<'_> {
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

    /// A place in the lane's file, or in another one that is opened for it.
    pub(super) fn place(&self, held: &mut Held<'_>, size: ByteCount) -> io::Result<Option<Spot>> {
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
}
