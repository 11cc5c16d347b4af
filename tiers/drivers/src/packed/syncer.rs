//! Puts written groups on stable storage and answers them: one thread a lane, so that the lane's next group is written
//! meanwhile.
//!
//! ```text
//! writer --group, written--> [ lane's queue ] --all that wait for one file--> one fdatasync --> books --> answers
//!                                                                 a new file's directory, too
//! ```
//! A file whose fdatasync failed is spoilt: whatever else waits for it fails untried, and it is never synced again.
//! Takes no lane: a writer may wait for this thread, and this thread never for a writer.

use std::fs::File;
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crossbeam::channel::Receiver;
use payload_types::ByteCount;
use payload_types::effect::TransferOp;
use payload_types::event::{Copied, DriverError, DriverErrorKind, TransferError};

use super::Packed;
use crate::CompletionSink;
use crate::fault::finding;
use crate::stores::Stores;
use crate::workers::{answer, panicked};

/// Groups that may wait for one lane's fdatasync; a writer that has another one waits. 4 x 64 MiB are half a second of
/// a disk that does 0.5 GB/s.
pub(crate) const GROUPS_WAITING_MAX: usize = 4;

/// A group whose bytes and records are with the disk.
pub(crate) struct Written {
    pub(crate) number: NonZeroU32,
    /// Open as long as its places are pending.
    pub(crate) file: Arc<File>,
    /// It is the file's first: the file's name is put on stable storage with it.
    pub(crate) is_first: bool,
    pub(crate) ops: Vec<(TransferOp, Copied)>,
}

/// Runs until every writer is gone, and its queue is empty.
pub(crate) fn run(stores: &Stores, lane: &Receiver<Written>, sink: &CompletionSink) {
    let packed = stores.packed().expect("only it has lanes");
    for first in lane {
        // What came meanwhile shares the sync, if it went to the same file; mostly it did.
        let mut batch = vec![first];
        batch.extend(lane.try_iter().take(GROUPS_WAITING_MAX));
        for groups in batch.chunk_by(|one, other| one.number == other.number) {
            let synced = catch_unwind(AssertUnwindSafe(|| packed.sync(groups)))
                .unwrap_or_else(|panic| Err(panicked(&*panic)));
            for (op, copied) in groups.iter().flat_map(|group| &group.ops) {
                let result = synced.clone().map(|()| *copied).map_err(TransferError::Destination);
                answer(stores, sink, op, result);
            }
        }
    }
}

impl Packed {
    /// Puts groups in one file on stable storage.
    fn sync(&self, groups: &[Written]) -> Result<(), DriverError> {
        let Written { number, ref file, .. } = groups[0];
        let ops = || groups.iter().flat_map(|group| &group.ops);
        let is_new = groups.iter().any(|group| group.is_first);
        let places = ops().count();
        let places = u32::try_from(places).expect("a few groups");
        let attempt = self.health.watch(ByteCount(ops().map(|(op, _)| op.to.size.0).sum()));
        let is_lost = self.books().is_spoilt(number);
        let directory = || if is_new { self.calls.sync_directory(&self.directory()) } else { Ok(()) };
        let synced = if is_lost { Ok(()) } else { self.calls.sync(file).and_then(|()| directory()) };
        if let Err(error) = &synced {
            self.health.sync_failed(error);
        }
        let mut books = self.books();
        let message = match synced {
            // It may have become so meanwhile, by another lane that filled it further.
            _ if books.is_spoilt(number) => "an earlier fdatasync of the segment file failed".to_owned(),
            Ok(()) => {
                for (op, copied) in ops() {
                    books.written(copied.extent.expect("it was packed"), op.to.size);
                }
                drop(books);
                attempt.succeeded();
                return Ok(());
            }
            Err(error) => format!("syncing a segment file: {error}"),
        };
        books.spoil(number, places);
        drop(books);
        self.forget_closed();
        self.wake();
        Err(finding(DriverErrorKind::SyncFailed, message))
    }
}
