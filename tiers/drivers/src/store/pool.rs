//! Segments that nobody uses any more, kept with their pages for the next ones: the kernel takes 0.2 to 0.35 ms of a
//! core to allocate the small pages of a MiB of shared memory, and 0.16 ms to free them (docs/BENCH.md).
//!
//! ```text
//! dropped, and proven that nobody has it open -> kept under its limbo name, 0600, its charge over
//!     -> a replica of as many pages is made: proven again, renamed, zeroed or written over
//!     -> room is needed, or nobody wanted it for `KEPT_FOR`: removed
//! ```
//! Owned by the store of the RAM tier; used by its worker, transfer and retire threads, and by one that trims it. The intent log names what is kept
//! until it is renamed or removed, so a boot finds it as it finds any other dropped replica.
//! Invariant: what is kept and what is charged never take more than the tier's capacity together. What is charged alone
//! does not (the arbiter sees to that), so removing what is kept always makes room; it is removed before anything is made
//! in its place, under this lock.
//! Limits: `KEPT_MAX` files, 130 bytes each; the tier's capacity.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use payload_types::ByteCount;
use payload_types::effect::ReplicaRef;

use super::FileStore;
use super::large::Refusal;
use crate::sys;

/// What nobody used again for so long is given back to the system: longer than the pauses between the steps of a
/// pipeline, and short for whoever waits for memory.
const KEPT_FOR: Duration = Duration::from_secs(3);

/// While it is kept, only the server can open it.
const MODE_KEPT: u32 = 0o600;

/// The most files: 8.5 MiB of this table.
const KEPT_MAX: usize = 1 << 16;

/// See the module's description.
pub(crate) struct Pool {
    capacity_bytes: u64,
    pub(super) large_refused: Refusal,
    kept: Mutex<Kept>,
    /// Something is kept, or it is time to end.
    came: Condvar,
    /// The thread that trims has removed a file.
    went: Condvar,
}

#[derive(Default)]
struct Kept {
    /// Whole pages of all files that are charged, or about to be made.
    live_bytes: u64,
    /// The same of what is kept, and of what is just being removed by the thread that trims.
    kept_bytes: u64,
    /// By the order in which they came.
    by_age: BTreeMap<u64, (ReplicaRef, Instant)>,
    /// Bytes in whole pages, and the number in `by_age`.
    by_bytes: BTreeSet<(u64, u64)>,
    number_next: u64,
    is_trimming: bool,
    /// The thread that trims runs. Before it does, a boot removes what it finds.
    is_open: bool,
}

impl Kept {
    /// Its bytes still count.
    fn take_out(&mut self, number: u64) -> ReplicaRef {
        let (replica, _) = self.by_age.remove(&number).expect("the caller found it there");
        let is_known = self.by_bytes.remove(&(replica.size.in_pages().0, number));
        assert!(is_known, "both maps have the same files");
        replica
    }

    fn take(&mut self, number: u64) -> ReplicaRef {
        let replica = self.take_out(number);
        self.kept_bytes -= replica.size.in_pages().0;
        replica
    }

    fn oldest(&self) -> Option<(u64, Instant)> {
        self.by_age.first_key_value().map(|(&number, &(_, since))| (number, since))
    }
}

impl Pool {
    pub(crate) fn new(capacity: ByteCount) -> Self {
        Self {
            capacity_bytes: capacity.0,
            large_refused: Refusal::default(),
            kept: Mutex::default(),
            came: Condvar::new(),
            went: Condvar::new(),
        }
    }

    /// A file is about to be made for a charged replica, or a boot found one. The kept file to make it of, if there is
    /// one: of exactly as many pages, and of these the last one that came, which may still be in the caches. What does
    /// not fit beside it goes through `remove`.
    pub(crate) fn add_live(&self, size: ByteCount, remove: impl Fn(&ReplicaRef)) -> Option<ReplicaRef> {
        let bytes = size.in_pages().0;
        let mut kept = self.lock();
        let found = kept.by_bytes.range((bytes, 0)..=(bytes, u64::MAX)).next_back().copied();
        let taken = found.map(|(_, number)| kept.take(number));
        kept.live_bytes += bytes;
        while kept.live_bytes + kept.kept_bytes > self.capacity_bytes {
            match kept.oldest() {
                Some((number, _)) => remove(&kept.take(number)),
                None if kept.is_trimming => {
                    kept = self.went.wait(kept).unwrap_or_else(PoisonError::into_inner);
                }
                None => break, // a client has written more than it was given, or the capacity is smaller than it was
            }
        }
        taken
    }

    /// A charged file is gone.
    pub(crate) fn remove_live(&self, size: ByteCount) {
        let mut kept = self.lock();
        kept.live_bytes = kept.live_bytes.saturating_sub(size.in_pages().0);
    }

    /// Keeps a file whose charge is over. False: there is no place for it.
    fn keep(&self, replica: ReplicaRef) -> bool {
        let mut kept = self.lock();
        if kept.by_age.len() >= KEPT_MAX || !kept.is_open {
            return false;
        }
        let bytes = replica.size.in_pages().0;
        kept.live_bytes = kept.live_bytes.saturating_sub(bytes);
        kept.kept_bytes += bytes;
        let number = kept.number_next;
        kept.number_next += 1;
        kept.by_age.insert(number, (replica, Instant::now()));
        kept.by_bytes.insert((bytes, number));
        if kept.by_age.len() == 1 {
            self.came.notify_one();
        }
        true
    }

    /// Removes the oldest files until `size` more are free on the file system, or none is left.
    pub(crate) fn shrink(&self, size: ByteCount, remove: impl Fn(&ReplicaRef)) {
        let mut kept = self.lock();
        let target_bytes = kept.kept_bytes.saturating_sub(size.in_pages().0);
        while kept.kept_bytes > target_bytes
            && let Some((number, _)) = kept.oldest()
        {
            remove(&kept.take(number));
        }
    }

    /// The thread that trims: removes what nobody wanted for long, until [`stop`](Self::stop), and then all.
    pub(crate) fn run(&self, remove: impl Fn(&ReplicaRef)) {
        let mut kept = self.lock();
        loop {
            let Some((number, since)) = kept.oldest() else {
                if !kept.is_open {
                    return;
                }
                kept = self.came.wait(kept).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = KEPT_FOR.saturating_sub(since.elapsed());
            if !left.is_zero() && kept.is_open {
                kept = self.came.wait_timeout(kept, left).unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            let replica = kept.take_out(number);
            kept.is_trimming = true;
            drop(kept); // freeing 1 GiB takes 160 ms, and others want to make files meanwhile
            remove(&replica);
            kept = self.lock();
            kept.is_trimming = false;
            kept.kept_bytes -= replica.size.in_pages().0;
            self.went.notify_all();
        }
    }

    /// From now on files are kept: [`run`](Self::run) is about to.
    pub(crate) fn open(&self) {
        self.lock().is_open = true;
    }

    /// Ends [`run`](Self::run). Nothing is kept any more.
    pub(crate) fn stop(&self) {
        self.lock().is_open = false;
        self.came.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FileStore {
    /// Keeps a dropped file that has its limbo name, and that nobody else has open, or removes it.
    pub(super) fn keep_or_remove(
        &self,
        replica: &ReplicaRef,
        file: File,
        metadata: &Metadata,
        limbo: &Path,
    ) -> io::Result<()> {
        if let Some(pool) = &self.pool
            && self.is_to_be_kept(replica, metadata)
        {
            file.set_permissions(Permissions::from_mode(MODE_KEPT))?;
            drop(file); // and with it the lease
            if pool.keep(*replica) {
                return Ok(());
            }
            fs::remove_file(limbo)?;
        } else {
            fs::remove_file(limbo)?;
            drop(file); // the last one: now the space is free
        }
        self.forget(replica);
        Ok(())
    }

    /// A whole file, which a client has neither cut, stretched nor given a second name.
    fn is_to_be_kept(&self, replica: &ReplicaRef, metadata: &Metadata) -> bool {
        let bytes = replica.size.in_pages().0;
        self.is_ours(metadata)
            && metadata.nlink() == 1
            && (replica.size.0..=bytes).contains(&metadata.len())
            && metadata.blocks() * 512 == bytes
    }

    /// Makes the file of `old`, which was kept, that of `replica`, under the name `path`: whole pages, of whatever they
    /// held. `None`: it cannot be used, and is gone.
    pub(super) fn recycle(&self, old: &ReplicaRef, replica: &ReplicaRef, path: &Path) -> Option<File> {
        let limbo = self.names.limbo(old);
        let recycled = (|| {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).custom_flags(sys::HANDLE_WITH_CARE).open(&limbo)?;
            // Whoever found its public name before that went, and opened it since, is found here.
            if !self.is_to_be_kept(old, &file.metadata()?) || !sys::nobody_else_has_it(&file)? {
                return Err(io::Error::other("somebody has it open, or changed it"));
            }
            self.log.made(replica)?;
            let renamed = fs::rename(&limbo, path).and_then(|()| {
                sys::end_lease(&file)?;
                file.set_len(replica.size.in_pages().0)
            });
            renamed.inspect_err(|_| {
                let _ = fs::remove_file(path);
                self.log.gone(replica);
            })?;
            Ok(file)
        })();
        match recycled {
            Ok(file) => {
                self.log.gone(old);
                Some(file)
            }
            Err(error) => {
                tracing::debug!("a kept segment cannot be used again: {error}");
                self.remove_kept(old);
                None
            }
        }
    }

    /// Removes a file that was kept.
    pub(crate) fn remove_kept(&self, replica: &ReplicaRef) {
        match fs::remove_file(self.names.limbo(replica)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // The log still names it, so the next boot removes it.
                tracing::warn!(tier = %replica.tier, id = %replica.id, "removing a kept segment: {error}");
            }
            _ => self.log.gone(replica),
        }
    }

    /// Removes what is kept for too long, until the drivers end.
    pub(crate) fn run_trim(&self) {
        if let Some(pool) = &self.pool {
            pool.run(|replica| self.remove_kept(replica));
        }
    }
}
