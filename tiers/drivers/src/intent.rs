//! The intent log: names what this server makes *before* it exists, so that a boot can remove what nobody vouches
//! for without ever sweeping a directory.
//!
//! ```text
//! header 48 B | record 48 B | record 48 B | ...        made {id, generation, size} ... gone {id, generation}
//! ```
//! Used by the store of one tier, from any of its threads. A `made` record is on stable storage before `made()`
//! returns where the log is durable (the disk's); concurrent callers share one fdatasync. `gone` records need no
//! sync: reclaiming what is already gone is harmless. (They are appended after the unlink, so a journaling
//! filesystem never keeps one whose unlink it lost.) Every record carries its own checksum: a torn tail or a
//! damaged record costs the names in it and nothing else. The file itself is locked while it is open.
//!
//! Limits: 96 bytes a replica's life. The file is rewritten without the dead ones at boot, and whenever it has grown
//! past `COMPACT_BYTES` and to twice what the last rewrite left. No table of it is kept in memory.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use payload_types::effect::ReplicaRef;
use payload_types::limits::PAGE_BYTES;
use payload_types::{ByteCount, Generation, PayloadId, Tier};
use xxhash_rust::xxh3::xxh3_64;

/// The log is left alone until it has this size: 21,845 records.
const COMPACT_BYTES: u64 = 1 << 20;

/// Header and records have one size, so that a damaged record never hides the next one.
const RECORD_BYTES: usize = 48;

const MAGIC: [u8; 8] = *b"PMINTENT";
const FORMAT: u32 = 1;
const MADE: u8 = 1;
const GONE: u8 = 2;

const _: () = assert!(RECORD_BYTES as u64 * 64 < PAGE_BYTES);

/// What a log says exists.
///
/// Ids come from this server's own log and catalog, so the quickest hash will do: boot handles 10^6 of them.
pub(crate) type Live = HashMap<(PayloadId, Generation), Named, RandomState>;

/// One replica of [`Live`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Named {
    pub(crate) size: ByteCount,
    /// Boot notes here what stays whatever happens: a row vouches for it, or it could not be looked at.
    pub(crate) keep: bool,
}

/// Why a log cannot be used.
#[derive(Debug)]
pub(crate) enum LogError {
    /// Another server has it open.
    Taken,
    /// Written by a later version of this program.
    Newer(u32),
    /// Not a log of ours.
    Foreign,
    /// The system said no.
    Io(io::Error),
}

impl From<io::Error> for LogError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// See the module's description.
pub(crate) struct IntentLog {
    path: PathBuf,
    tier: Tier,
    durable: bool,
    boot_id: [u8; 16],
    state: Mutex<State>,
    sync_ended: Condvar,
}

struct State {
    file: Arc<File>,
    /// Where the next record goes.
    end: u64,
    /// The size at which a rewrite is tried.
    compact_at: u64,
    /// Records appended since this log was opened, and how many of them are on stable storage.
    appended: u64,
    synced: u64,
    /// Somebody is in fdatasync.
    syncing: bool,
    /// An fdatasync failed: what the file holds is unknown, so it is written anew before it is used again.
    broken: bool,
}

impl IntentLog {
    /// Opens or makes the log, locks it, and reads what it says. With a `boot_id` (memory does not outlive a boot),
    /// a log of another boot says nothing.
    pub(crate) fn open(
        path: &Path,
        tier: Tier,
        durable: bool,
        boot_id: Option<[u8; 16]>,
    ) -> Result<(Self, Live), LogError> {
        let file = open_locked(path)?;
        let bytes = read_all(&file)?;
        let mut log = Self {
            path: path.to_owned(),
            tier,
            durable,
            boot_id: boot_id.unwrap_or_default(),
            state: Mutex::new(State {
                file: Arc::new(file),
                end: RECORD_BYTES as u64,
                compact_at: COMPACT_BYTES,
                appended: 0,
                synced: 0,
                syncing: false,
                broken: false,
            }),
            sync_ended: Condvar::new(),
        };
        let state = log.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let current = match bytes.first_chunk::<RECORD_BYTES>() {
            // New, or torn while its header was written: nothing was named in it yet.
            None | Some([0, 0, 0, 0, 0, 0, 0, 0, ..]) => false,
            Some(header) => match read_header(header) {
                Some((FORMAT, _, boot)) => boot == log.boot_id,
                Some((format, ..)) if durable => return Err(LogError::Newer(format)),
                None if durable => return Err(LogError::Foreign),
                _ => false,
            },
        };
        if !current {
            let file = Arc::clone(&state.file);
            file.set_len(0)?;
            file.write_all_at(&log.header(), 0)?;
            if durable {
                file.sync_all()?;
            }
            return Ok((log, Live::default()));
        }
        state.end = (bytes.len() - bytes.len() % RECORD_BYTES) as u64;
        let live = fold(&bytes[RECORD_BYTES..], tier);
        // As a rewrite would leave it: a boot that changes nothing rewrites nothing.
        state.compact_at = COMPACT_BYTES.max(2 * (live.len() as u64 + 1) * RECORD_BYTES as u64);
        Ok((log, live))
    }

    /// Names a replica that is about to be made.
    ///
    /// # Errors
    /// When the name could not be put down: the replica must not be made.
    pub(crate) fn made(&self, replica: &ReplicaRef) -> io::Result<()> {
        let mut state = self.lock();
        if state.broken {
            self.compact(&mut state)?;
        }
        self.append(&mut state, MADE, replica)?;
        let ticket = state.appended;
        if self.durable { self.wait_until_synced(state, ticket) } else { Ok(()) }
    }

    /// Says that a replica and its names exist no more. A failure costs a look at the next boot, so it is only
    /// written to the server's log.
    pub(crate) fn gone(&self, replica: &ReplicaRef) {
        let mut state = self.lock();
        let appended = self.append(&mut state, GONE, replica).and_then(|()| {
            if state.end >= state.compact_at && !state.syncing { self.compact(&mut state) } else { Ok(()) }
        });
        if let Err(error) = appended {
            state.compact_at = state.end * 2;
            tracing::warn!(tier = %self.tier, "the intent log could not be kept up: {error}");
        }
    }

    /// Writes the log anew with exactly `live` in it.
    pub(crate) fn rewrite(&self, live: &Live) -> io::Result<()> {
        self.replace(&mut self.lock(), live)
    }

    /// How many records the file has, of replicas that are gone included.
    pub(crate) fn records(&self) -> u64 {
        self.lock().end / RECORD_BYTES as u64 - 1
    }

    /// At shutdown: a log that names nothing leaves nothing behind.
    pub(crate) fn remove_if_empty(&self) {
        let state = self.lock();
        let live =
            read_all(&state.file).map(|bytes| fold(bytes.get(RECORD_BYTES..).unwrap_or(&[]), self.tier));
        if live.is_ok_and(|live| live.is_empty()) {
            let _ = fs::remove_file(&self.path);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, state: &mut State, kind: u8, replica: &ReplicaRef) -> io::Result<()> {
        assert_eq!(replica.tier, self.tier, "a log names the replicas of one tier");
        state.file.write_all_at(&record(kind, replica), state.end)?;
        state.end += RECORD_BYTES as u64;
        state.appended += 1;
        Ok(())
    }

    /// Group sync: whoever finds nobody syncing syncs for all who came before; the others wait for that.
    fn wait_until_synced<'log>(
        &'log self,
        mut state: MutexGuard<'log, State>,
        ticket: u64,
    ) -> io::Result<()> {
        while state.synced < ticket {
            if state.broken {
                return Err(io::Error::other("the intent log could not be synced"));
            }
            if state.syncing {
                state = self.sync_ended.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.syncing = true;
            let (file, target) = (Arc::clone(&state.file), state.appended);
            drop(state);
            let result = file.sync_data();
            state = self.lock();
            state.syncing = false;
            self.sync_ended.notify_all();
            match result {
                Ok(()) => state.synced = state.synced.max(target),
                Err(error) => {
                    state.broken = true;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn compact(&self, state: &mut State) -> io::Result<()> {
        let bytes = read_all(&state.file)?;
        self.replace(state, &fold(bytes.get(RECORD_BYTES..).unwrap_or(&[]), self.tier))
    }

    /// The new file is complete, locked and synced before it takes the old one's name.
    fn replace(&self, state: &mut State, live: &Live) -> io::Result<()> {
        let mut bytes = Vec::with_capacity((live.len() + 1) * RECORD_BYTES);
        bytes.extend_from_slice(&self.header());
        for (&(id, generation), &Named { size, .. }) in live {
            bytes.extend_from_slice(&record(
                MADE,
                &ReplicaRef { tier: self.tier, id, generation, size, extent: None, block: None },
            ));
        }
        let mut path = self.path.clone().into_os_string();
        path.push(".new");
        let path = PathBuf::from(path);
        let _ = fs::remove_file(&path);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        let written = file.write_all_at(&bytes, 0).and_then(|()| {
            file.try_lock()?;
            if self.durable {
                file.sync_all()?;
            }
            fs::rename(&path, &self.path)
        });
        if let Err(error) = written {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        state.file = Arc::new(file);
        state.end = bytes.len() as u64;
        state.compact_at = COMPACT_BYTES.max(2 * state.end);
        state.synced = state.appended;
        state.broken = false;
        if self.durable
            && let Some(directory) = self.path.parent()
        {
            crate::store::sync_directory(directory).inspect_err(|_| state.broken = true)?;
        }
        Ok(())
    }

    fn header(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12] = self.tier as u8;
        bytes[16..32].copy_from_slice(&self.boot_id);
        seal(bytes)
    }
}

/// Locks the file that has the name *now*: a rewrite by another server may take the name away between the two steps.
fn open_locked(path: &Path) -> Result<File, LogError> {
    for _ in 0..16 {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.custom_flags(libc::O_NOFOLLOW).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(LogError::Taken),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        let ours = file.metadata()?;
        if fs::symlink_metadata(path)
            .is_ok_and(|named| named.ino() == ours.ino() && named.dev() == ours.dev())
        {
            return Ok(file);
        }
    }
    Err(LogError::Taken)
}

fn read_all(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn seal(mut bytes: [u8; RECORD_BYTES]) -> [u8; RECORD_BYTES] {
    let checksum = xxh3_64(&bytes[..40]);
    bytes[40..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn is_intact(bytes: &[u8; RECORD_BYTES]) -> bool {
    seal(*bytes) == *bytes
}

fn record(kind: u8, replica: &ReplicaRef) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    bytes[0] = kind;
    bytes[1] = replica.tier as u8;
    bytes[8..24].copy_from_slice(replica.id.as_bytes());
    bytes[24..32].copy_from_slice(&replica.generation.0.to_le_bytes());
    bytes[32..40].copy_from_slice(&replica.size.0.to_le_bytes());
    seal(bytes)
}

/// Format, tier and boot id.
fn read_header(bytes: &[u8; RECORD_BYTES]) -> Option<(u32, u8, [u8; 16])> {
    (is_intact(bytes) && bytes[..8] == MAGIC).then(|| {
        let format = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        (format, bytes[12], bytes[16..32].try_into().expect("16 bytes"))
    })
}

fn fold(bytes: &[u8], tier: Tier) -> Live {
    let mut live = Live::with_capacity_and_hasher(bytes.len() / RECORD_BYTES, RandomState::default());
    let mut damaged = 0;
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
    for record in bytes.as_chunks::<RECORD_BYTES>().0 {
        let id = PayloadId::from_bytes(record[8..24].try_into().expect("16 bytes"));
        let key = (id, Generation(word(&record[24..32])));
        match record[0] {
            _ if !is_intact(record) || record[1] != tier as u8 => damaged += 1,
            MADE => drop(live.insert(key, Named { size: ByteCount(word(&record[32..40])), keep: false })),
            GONE => drop(live.remove(&key)),
            _ => damaged += 1,
        }
    }
    if damaged > 0 {
        tracing::warn!(%tier, "the intent log has {damaged} damaged records; what they name is not reclaimed");
    }
    live
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(tail: u64) -> ReplicaRef {
        let id = PayloadId::mint(1 << 50, tail);
        ReplicaRef {
            tier: Tier::Disk,
            id,
            generation: Generation(tail),
            size: ByteCount(4096),
            extent: None,
            block: None,
        }
    }

    fn open(path: &Path) -> (IntentLog, Live) {
        IntentLog::open(path, Tier::Disk, true, None).expect("the log opens")
    }

    fn names(live: &Live) -> Vec<u64> {
        let mut names: Vec<u64> = live.keys().map(|key| key.1.0).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn given_made_and_gone_records_when_reopened_then_what_lives_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        let (log, live) = open(&path);
        assert!(live.is_empty());
        for tail in 0..10 {
            log.made(&replica(tail)).expect("made");
        }
        for tail in 0..8 {
            log.gone(&replica(tail));
        }
        drop(log);
        let (log, live) = open(&path);
        assert_eq!(names(&live), [8, 9]);
        assert_eq!(live[&(replica(8).id, Generation(8))].size, ByteCount(4096));
        log.rewrite(&live).expect("rewritten");
        log.made(&replica(20)).expect("made after a rewrite");
        drop(log);
        assert_eq!(names(&open(&path).1), [8, 9, 20]);
    }

    #[test]
    fn given_a_torn_tail_and_a_damaged_record_when_reopened_then_the_others_are_named_and_appends_go_on() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        let (log, _) = open(&path);
        (0..4).for_each(|tail| log.made(&replica(tail)).expect("made"));
        drop(log);
        let file = OpenOptions::new().write(true).open(&path).expect("open");
        file.set_len(RECORD_BYTES as u64 * 5 - 7).expect("the last record is torn");
        file.write_all_at(b"x", RECORD_BYTES as u64 * 2 + 30).expect("the second record is damaged");
        let (log, live) = open(&path);
        assert_eq!(names(&live), [0, 2]);
        log.made(&replica(30)).expect("made");
        drop(log);
        assert_eq!(names(&open(&path).1), [0, 2, 30]);
    }

    #[test]
    fn given_a_log_of_another_boot_when_opened_then_it_names_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        let open = |boot| IntentLog::open(&path, Tier::Disk, false, Some([boot; 16])).expect("opens");
        open(1).0.made(&replica(1)).expect("made");
        assert_eq!(names(&open(1).1), [1]);
        assert!(open(2).1.is_empty());
        assert!(open(1).1.is_empty(), "the other boot's log was begun anew");
    }

    #[test]
    fn given_an_open_log_or_a_strange_file_when_opened_then_it_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        let (log, _) = open(&path);
        let again = IntentLog::open(&path, Tier::Disk, true, None);
        assert!(matches!(again, Err(LogError::Taken)));
        log.rewrite(&Live::default()).expect("rewritten");
        assert!(matches!(IntentLog::open(&path, Tier::Disk, true, None), Err(LogError::Taken)));
        drop(log);
        fs::write(&path, [0; RECORD_BYTES]).expect("a header that a power loss emptied");
        drop(open(&path));
        fs::write(&path, [7; 200]).expect("write");
        assert!(matches!(IntentLog::open(&path, Tier::Disk, true, None), Err(LogError::Foreign)));
    }

    #[test]
    fn given_much_churn_when_appended_then_the_log_stays_small_and_concurrent_callers_are_all_durable() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        let (log, _) = IntentLog::open(&path, Tier::Disk, false, Some([1; 16])).expect("opens");
        log.made(&replica(1_000_000)).expect("made");
        for tail in 0..40_000 {
            log.made(&replica(tail)).expect("made");
            log.gone(&replica(tail));
        }
        assert!(fs::metadata(&path).expect("there").len() <= COMPACT_BYTES);
        drop(log);
        let (_, live) = IntentLog::open(&path, Tier::Disk, false, Some([1; 16])).expect("opens");
        assert_eq!(names(&live), [1_000_000]);

        let path = directory.path().join("shared");
        let (log, _) = open(&path);
        std::thread::scope(|scope| {
            for part in 0..4 {
                let log = &log;
                scope.spawn(move || {
                    (0..50).for_each(|tail| log.made(&replica(part * 50 + tail)).expect("made"))
                });
            }
        });
        let state = log.lock();
        assert_eq!((state.appended, state.synced), (200, 200));
    }
}
