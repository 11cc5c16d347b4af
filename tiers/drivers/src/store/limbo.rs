//! Dropping a replica without waiting for anybody: its name goes at once, its space when nobody uses it.
//!
//! The public name becomes a limbo name (the id may get a new replica now), and the file is unlinked, or kept for the
//! next replica ([`super::pool`]), when a write lease proves that nobody has it open or mapped. Until then it costs its
//! space, which stays charged, and no descriptor. The intent log names it all the while.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use payload_types::effect::ReplicaRef;

use super::FileStore;
use crate::naming::Names;
use crate::sys;

/// What is known of a dropped replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Limbo {
    /// Nobody has it open or mapped: it is gone.
    Freed,
    /// Somebody has.
    Held,
}

/// The inability to prove that files are unused is worth one line, not one per file.
static UNPROVABLE_REPORTED: AtomicBool = AtomicBool::new(false);

impl FileStore {
    /// Takes the replica's public name away. Harmless to repeat.
    ///
    /// # Errors
    /// When the name is still there; to be tried again.
    pub(crate) fn detach(&self, replica: &ReplicaRef) -> io::Result<()> {
        self.unsafe_files().remove(&(replica.id, replica.generation));
        let public = self.names.public(replica);
        match fs::symlink_metadata(&public) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(metadata) if self.is_ours(&metadata) => fs::rename(&public, self.names.limbo(replica)),
            // A client removed ours and put its own there: not for us to remove.
            Ok(_) => Ok(()),
        }
    }

    /// Takes a segment's public name away and frees it at once, if nobody has it open or mapped: what
    /// [`detach`](Self::detach) and [`try_free`](Self::try_free) do in two steps, by two threads, with half of the calls.
    /// `Held`: it is for them, whatever was done of it.
    pub(crate) fn drop_at_once(&self, replica: &ReplicaRef) -> io::Result<Limbo> {
        let Names::Segments { .. } = self.names else { return Ok(Limbo::Held) };
        let (public, limbo) = (self.names.public(replica), self.names.limbo(replica));
        let file = OpenOptions::new().read(true).custom_flags(sys::HANDLE_WITH_CARE).open(&public)?;
        let metadata = file.metadata()?;
        if !self.is_ours(&metadata) || !sys::nobody_else_has_it(&file)? {
            return Ok(Limbo::Held);
        }
        fs::rename(&public, &limbo)?;
        // Whoever found the public name before it went waits for the end of our lease.
        if !sys::nobody_else_waits_for_it(&file) {
            return Ok(Limbo::Held);
        }
        self.keep_or_remove(replica, file, &metadata, &limbo)?;
        Ok(Limbo::Freed)
    }

    /// Frees a detached replica, if nobody has it open or mapped. One descriptor, while it looks.
    ///
    /// # Errors
    /// When nothing could be found out; to be tried again.
    pub(crate) fn try_free(&self, replica: &ReplicaRef) -> io::Result<Limbo> {
        let limbo = self.names.limbo(replica);
        let mut options = OpenOptions::new();
        let file = match options.read(true).custom_flags(sys::HANDLE_WITH_CARE).open(&limbo) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.forget(replica);
                return Ok(Limbo::Freed);
            }
            Err(error) => return Err(error),
        };
        match sys::nobody_else_has_it(&file) {
            Ok(true) => {
                let metadata = file.metadata()?;
                self.keep_or_remove(replica, file, &metadata, &limbo)?;
            }
            Ok(false) => return Ok(Limbo::Held),
            Err(error) => {
                // Unlinking frees nothing under a reader's hands, it only makes the accounts optimistic.
                if !UNPROVABLE_REPORTED.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        tier = %replica.tier,
                        "this filesystem cannot prove that a file is unused ({error}); space that clients still map \
                         is counted as free"
                    );
                }
                fs::remove_file(&limbo)?;
                self.forget(replica);
            }
        }
        Ok(Limbo::Freed)
    }
}
