//! Replicas as files of their own: what segments and disk files have in common. A disk's store has a [`Packed`] for those
//! that share files; here they are only opened.
//!
//! ```text
//! create:  intent log -> new file 0600 -> space reserved -> 0660          seal:  check -> read-only -> [sync]
//! draft:   intent log -> private name -> bytes -> read-only -> [sync] -> public name -> [directory sync]
//! drop:    public name -> limbo name ("detached") ... nobody has it open or mapped ("freed") -> unlink, or kept: [`pool`]
//! ```
//! Called by worker, transfer and retire threads; every call blocks. The shard orders the calls for one replica, so
//! there is no lock here but the intent log's. Nothing is kept per replica: no descriptor, no table.
//! Invariants: nothing is made that the intent log does not name; nothing is removed that it did not name; a file
//! that failed an fdatasync is never trusted to a second one.

pub(crate) mod boot;
pub(crate) mod draft;
pub(crate) mod large;
pub(crate) mod limbo;
pub(crate) mod pool;

use std::collections::HashSet;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use payload_types::effect::{ReplicaRef, TransferOp};
use payload_types::event::{DriverError, DriverErrorKind};
use payload_types::{Block, ByteCount, Extent, Generation, PayloadId};

use crate::arena::Sources;
use crate::calls::Calls;
use crate::fault::{fault, finding};
use crate::health::{Health, Work};
use crate::intent::IntentLog;
use crate::naming::Names;
use crate::packed::Packed;
use crate::store::pool::Pool;
use crate::sys;

/// From Create to Seal: its producer writes it.
const MODE_WRITABLE: u32 = 0o660;

/// What new segments are zeroed with: small enough to stay in a core's first cache.
static ZEROES: [u8; 16 << 10] = [0; 16 << 10];

/// See the module's description. One per tier.
pub(crate) struct FileStore {
    pub(crate) names: Names,
    pub(crate) log: IntentLog,
    /// The mode from Commit on.
    pub(crate) mode_sealed: u32,
    /// Who owns what we make.
    user: u32,
    /// Files whose fdatasync failed: the kernel may have dropped the bytes and would call a second one a success.
    /// One entry per failing file until it is dropped; a disk that fails more than a few is no disk.
    unsafe_files: Mutex<HashSet<(PayloadId, Generation)>>,
    pub(crate) calls: Arc<dyn Calls>,
    /// A disk's; memory has none.
    pub(crate) health: Option<Arc<Health>>,
    /// A disk's segment files, where it has any.
    pub(crate) packed: Option<Packed>,
    /// Of memory: what is kept to be used again.
    pub(crate) pool: Option<Pool>,
    /// Of memory: what lies in no segment.
    pub(crate) slabs: Sources,
}

impl FileStore {
    pub(crate) fn new(
        names: Names,
        log: IntentLog,
        mode_sealed: u32,
        calls: Arc<dyn Calls>,
        health: Option<Arc<Health>>,
        packed: Option<Packed>,
    ) -> Self {
        let unsafe_files = Mutex::new(HashSet::new());
        let user = sys::effective_user();
        let slabs = Sources::default();
        Self { names, log, mode_sealed, user, unsafe_files, calls, health, packed, pool: None, slabs }
    }

    /// Does `work`, unless the root is being left alone, and tells its health how it ended.
    pub(crate) fn watched<T, E>(
        &self,
        work: Work,
        refused: impl FnOnce(DriverError) -> E,
        does: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let Some(health) = &self.health else { return does() };
        let attempt = health.begin(work).map_err(refused)?;
        let result = does();
        if result.is_ok() {
            attempt.succeeded();
        }
        result
    }

    /// What a failed write is reported as. The root's health is told, unless it is a file that somebody removed.
    pub(crate) fn failed(&self, tried: String, error: &io::Error, bytes: ByteCount) -> DriverError {
        let fault = fault(&tried, error);
        if let Some(health) = &self.health
            && fault.kind != DriverErrorKind::Missing
        {
            health.failed(error, bytes);
        }
        fault
    }

    /// Makes a replica at full size, zeroed, for its producer to write.
    pub(crate) fn create(&self, replica: &ReplicaRef) -> Result<(), DriverError> {
        self.watched(Work::Space(replica.size), |error| error, || self.create_now(replica))
    }

    fn create_now(&self, replica: &ReplicaRef) -> Result<(), DriverError> {
        let path = self.names.public(replica);
        let file = self.make(replica, &path)?;
        let ready = self
            .make_large(&file, replica.size)
            .and_then(|zeroed| self.reserve(&file, replica.size).map(|()| zeroed))
            .and_then(|zeroed| self.warm(&file, zeroed..replica.size.0))
            .and_then(|()| self.clear_tail(&file, replica.size))
            .and_then(|()| file.set_permissions(Permissions::from_mode(MODE_WRITABLE)));
        ready.map_err(|error| {
            self.unmake(replica, &path);
            self.failed(format!("reserving {} on {}", replica.size, replica.tier), &error, replica.size)
        })
    }

    /// All pages. One that was used before has them; asking for them again costs 0.05 ms a MiB.
    fn reserve(&self, file: &File, size: ByteCount) -> io::Result<()> {
        let has_pages = |metadata: Metadata| metadata.blocks() * 512 >= size.in_pages().0;
        if self.pool.is_some() && file.metadata().is_ok_and(has_pages) {
            return Ok(());
        }
        self.calls.reserve(file, size.0)
    }

    /// Zeroes pages of a segment, so that its producer's first touch costs no zeroing (DESIGN §5). tmpfs leaves
    /// that to the first touch of what fallocate reserved; writing needs no mapping, so nothing has to be unmapped.
    fn warm(&self, file: &File, bytes: Range<u64>) -> io::Result<()> {
        if let Names::Files { .. } = self.names {
            return Ok(());
        }
        let mut done = bytes.start;
        while done < bytes.end {
            let next = (bytes.end - done).min(ZEROES.len() as u64);
            file.write_all_at(&ZEROES[..next as usize], done)?;
            done += next;
        }
        Ok(())
    }

    /// Of a file that was used before, also what follows the replica's last byte in its last page: a mapping shows it.
    fn clear_tail(&self, file: &File, size: ByteCount) -> io::Result<()> {
        if self.pool.is_some() && size != size.in_pages() { file.set_len(size.0) } else { Ok(()) }
    }

    /// A file that the intent log names, and that only the server can open: a new and empty one, or one that was used
    /// before, which has its pages and whatever was in them.
    fn make(&self, replica: &ReplicaRef, path: &Path) -> Result<File, DriverError> {
        let remove = |old: &ReplicaRef| self.remove_kept(old);
        let kept = self.pool.as_ref().and_then(|pool| pool.add_live(replica.size, remove));
        let recycled = kept.and_then(|old| self.recycle(&old, replica, path));
        let made = recycled.map_or_else(|| self.make_new(replica, path), Ok);
        if let (Err(_), Some(pool)) = (&made, &self.pool) {
            pool.remove_live(replica.size);
        }
        made
    }

    fn make_new(&self, replica: &ReplicaRef, path: &Path) -> Result<File, DriverError> {
        let tried = || format!("making {} of {} on {}", replica.size, replica.id, replica.tier);
        let failed = |error: io::Error| {
            let fault = self.failed(tried(), &error, replica.size);
            // A directory that is not there is no missing replica.
            if fault.kind == DriverErrorKind::Missing {
                if let Some(health) = &self.health {
                    health.failed(&error, replica.size);
                }
                finding(DriverErrorKind::Io, fault.message)
            } else {
                fault
            }
        };
        let directory = self.make_directory(replica).map_err(failed)?;
        // Asked first, so that a replica that cannot fit never fills the filesystem, if only for a moment.
        let mut free = self.calls.available_bytes(&directory).map_err(failed)?;
        if let Some(pool) = &self.pool
            && replica.size.0 > free
        {
            pool.shrink(ByteCount(replica.size.0 - free), |old| self.remove_kept(old));
            free = self.calls.available_bytes(&directory).map_err(failed)?;
        }
        if replica.size.0 > free {
            failed(io::Error::from_raw_os_error(libc::ENOSPC));
            let message = format!("{}: only {} are free there", tried(), ByteCount(free));
            return Err(finding(DriverErrorKind::Full, message));
        }
        if let Some(packed) = &self.packed {
            packed.own_added(replica.size);
        }
        let made = self
            .log
            .made(replica)
            .and_then(|()| self.calls.create(path).inspect_err(|_| self.log.gone(replica)));
        made.map_err(|error| {
            if let Some(packed) = &self.packed {
                packed.books().own_removed(replica.size);
            }
            failed(error)
        })
    }

    /// Undoes `make`.
    fn unmake(&self, replica: &ReplicaRef, path: &Path) {
        match fs::remove_file(path) {
            Ok(()) => self.forget(replica),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.forget(replica),
            // The log still names it, so the next boot removes it.
            Err(error) => {
                tracing::warn!(tier = %replica.tier, id = %replica.id, "removing a failed replica: {error}")
            }
        }
    }

    /// A replica's file and its names exist no more.
    fn forget(&self, replica: &ReplicaRef) {
        if let Some(packed) = &self.packed {
            packed.books().own_removed(replica.size);
        }
        if let Some(pool) = &self.pool {
            pool.remove_live(replica.size);
        }
        self.log.gone(replica);
    }

    /// The directory a replica is in; a file's is made when it is the first there.
    fn make_directory(&self, replica: &ReplicaRef) -> io::Result<std::path::PathBuf> {
        let directory = self.names.directory(replica.id);
        if let Names::Files { .. } = self.names {
            match fs::create_dir(&directory) {
                Ok(()) => {
                    let parent = directory.parent().expect("below the root");
                    fs::set_permissions(&directory, Permissions::from_mode(0o755))
                        .and_then(|()| self.calls.sync_directory(parent))
                        // Else the next one would find it and take its name for durable.
                        .inspect_err(|_| drop(fs::remove_dir(&directory)))?;
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Ok(directory)
    }

    /// Commit: the replica exists and has its full size, and from now on it is read-only.
    ///
    /// One that its producer made longer is cut back to its size: the bytes behind are charged to nobody. One that
    /// he cut and stretched again has holes; in memory they are filled here, so that a reader's first touch cannot
    /// fail.
    pub(crate) fn seal(&self, replica: &ReplicaRef, sync: bool) -> Result<(), DriverError> {
        self.watched(Work::Bytes(replica.size), |error| error, || self.seal_now(replica, sync))
    }

    fn seal_now(&self, replica: &ReplicaRef, sync: bool) -> Result<(), DriverError> {
        let (file, metadata) = self.open(replica)?;
        let tried = |what: &str| format!("{what} {} on {}", replica.id, replica.tier);
        let has_holes =
            matches!(self.names, Names::Segments { .. }) && metadata.blocks() * 512 < metadata.len();
        if metadata.len() > replica.size.0 || has_holes {
            let mut options = OpenOptions::new();
            options.write(true).custom_flags(sys::HANDLE_WITH_CARE);
            let mended = options.open(self.names.public(replica)).and_then(|file| {
                file.set_len(replica.size.0)?;
                if has_holes { sys::reserve(&file, replica.size.0) } else { Ok(()) }
            });
            mended.map_err(|error| self.failed(tried("restoring the size of"), &error, replica.size))?;
        }
        file.set_permissions(Permissions::from_mode(self.mode_sealed))
            .map_err(|error| self.failed(tried("making read-only"), &error, replica.size))?;
        if sync { self.sync_file(replica, &file) } else { Ok(()) }
    }

    /// Data and directory on stable storage. Memory has none: nothing to do. What is packed was there before anybody
    /// knew of it.
    pub(crate) fn sync(&self, replica: &ReplicaRef) -> Result<(), DriverError> {
        if replica.extent.is_some() {
            return Ok(());
        }
        let sync = || self.open(replica).and_then(|(file, _)| self.sync_file(replica, &file));
        self.watched(Work::Bytes(replica.size), |error| error, sync)
    }

    fn sync_file(&self, replica: &ReplicaRef, file: &File) -> Result<(), DriverError> {
        if let Names::Segments { .. } = self.names {
            return Ok(());
        }
        let key = (replica.id, replica.generation);
        if self.unsafe_files().contains(&key) {
            let message =
                format!("an earlier fdatasync of {} failed; its bytes cannot be trusted", replica.id);
            return Err(finding(DriverErrorKind::SyncFailed, message));
        }
        let failed = |what: &str, error: io::Error| {
            self.unsafe_files().insert(key);
            if let Some(health) = &self.health {
                health.sync_failed(&error);
            }
            finding(
                DriverErrorKind::SyncFailed,
                format!("syncing {what} {} to {}: {error}", replica.id, replica.tier),
            )
        };
        self.calls.sync(file).map_err(|error| failed("the bytes of", error))?;
        let directory = self.names.directory(replica.id);
        self.calls.sync_directory(&directory).map_err(|error| failed("the directory of", error))
    }

    fn unsafe_files(&self) -> std::sync::MutexGuard<'_, HashSet<(PayloadId, Generation)>> {
        self.unsafe_files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the file that a replica is in, for reading: it begins at [`offset_of`].
    ///
    /// # Errors
    /// `Missing` when there is no regular file of ours, `Truncated` when it ends before the replica does.
    pub(crate) fn open(&self, replica: &ReplicaRef) -> Result<(File, Metadata), DriverError> {
        let (file, metadata) = self.open_cut(replica)?;
        if metadata.len() < offset_of(replica) + replica.size.0 {
            let (id, tier) = (replica.id, replica.tier);
            let found = ByteCount(metadata.len().saturating_sub(offset_of(replica)));
            let message = format!("{id} on {tier} has {found}; {} were allocated", replica.size);
            return Err(finding(DriverErrorKind::Truncated, message));
        }
        Ok((file, metadata))
    }

    /// What a copy reads: a whole file, or for a salvage whatever is left of it.
    pub(crate) fn open_source(&self, op: &TransferOp) -> Result<File, DriverError> {
        let opened = if op.salvage { self.open_cut(&op.from) } else { self.open(&op.from) };
        opened.map(|(file, _)| file)
    }

    /// As [`open`](Self::open), wherever the file ends.
    fn open_cut(&self, replica: &ReplicaRef) -> Result<(File, Metadata), DriverError> {
        let (id, tier) = (replica.id, replica.tier);
        if let Some(block) = replica.block {
            let opened = self.slabs.open(block.slab).and_then(|file| {
                let metadata = file.metadata()?;
                Ok((file, metadata))
            });
            return opened.map_err(|error| fault(format_args!("opening the slab of {id} on {tier}"), &error));
        }
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(sys::HANDLE_WITH_CARE);
        let path = match replica.extent {
            None => self.names.public(replica),
            Some(extent) => self.names.segment(extent.file),
        };
        let opened = options.open(path).and_then(|file| {
            let metadata = file.metadata()?;
            Ok((file, metadata))
        });
        match opened {
            Ok((_, metadata)) if !self.is_ours(&metadata) => {
                let message =
                    format!("{id} on {tier} was replaced by something that is not the server's file");
                Err(finding(DriverErrorKind::Missing, message))
            }
            Ok(opened) => Ok(opened),
            // A symlink in its place (O_NOFOLLOW).
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => Err(finding(
                DriverErrorKind::Missing,
                format!("{id} on {tier} was replaced by a symbolic link"),
            )),
            Err(error) => Err(fault(format_args!("opening {id} on {tier}"), &error)),
        }
    }

    /// A regular file that this server's user owns.
    fn is_ours(&self, metadata: &Metadata) -> bool {
        metadata.is_file() && metadata.uid() == self.user
    }
}

/// Where a replica begins in its file.
pub(crate) fn offset_of(replica: &ReplicaRef) -> u64 {
    replica.extent.map_or(0, Extent::offset_bytes) + replica.block.map_or(0, Block::offset_bytes)
}

/// Puts a directory's names on stable storage.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use payload_types::Tier;

    use super::*;

    #[test]
    fn given_a_file_whose_sync_failed_when_synced_again_then_it_is_refused() {
        let root = tempfile::tempdir().expect("a directory");
        let (log, _) = IntentLog::open(&root.path().join("log"), Tier::Disk, true, None).expect("a log");
        fs::create_dir(root.path().join(crate::naming::PAYLOADS)).expect("made");
        let names = Names::Files { root: root.path().into() };
        let store = FileStore::new(names, log, 0o440, Arc::new(crate::calls::System::new()), None, None);
        let id = PayloadId::mint(1 << 50, 1);
        let replica = ReplicaRef {
            tier: Tier::Disk,
            id,
            generation: Generation(1),
            size: ByteCount(10),
            extent: None,
            block: None,
        };
        store.create(&replica).expect("created");
        store.seal(&replica, true).expect("sealed");
        store.unsafe_files().insert((id, Generation(1)));
        assert_eq!(store.seal(&replica, true).expect_err("refused").kind, DriverErrorKind::SyncFailed);
        assert_eq!(store.sync(&replica).expect_err("refused").kind, DriverErrorKind::SyncFailed);
        store.seal(&replica, false).expect("nothing was promised");
    }
}
