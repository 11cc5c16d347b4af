//! Opens a database file: looks at it without touching it, locks it, then lets SQLite at it.
//!
//! The header of a file of ours carries our application id from its first transaction on, which runs before the file
//! is switched to WAL mode; so a file whose first 100 bytes do not say that it is ours is not ours, and is left alone.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rusqlite::{Connection, MAIN_DB, OpenFlags};

use super::errors::rolled_back;
use super::records::{Kept, STATEMENTS_MAX};
use super::{SqliteStore, Synchronous, migrate, row};
use crate::error::{RESTORE, StoreError};

/// 3.51.3, as SQLite numbers it: the first version without the lost write of a checkpoint that races a commit.
const SQLITE_VERSION_MIN: i32 = 3_051_003;

/// The first bytes of every SQLite file, and where and how long its header is (sqlite.org/fileformat2.html).
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
const HEADER_BYTES: usize = 100;
const PAGE_SIZE_AT: usize = 16;
const APPLICATION_ID_AT: usize = 68;

/// "Payl"; set by migration 0001.
const APPLICATION_ID: u32 = 0x5061_796C;

/// How long a call waits for another program's lock before it reports BUSY. The writer repeats the call, so this only
/// has to outlast short readers.
pub(super) const BUSY_WAIT: Duration = Duration::from_millis(1000);

/// A log file that grew past this is cut back when it starts over: 4 x the writer's checkpoint threshold of 16 MiB.
const LOG_BYTES_KEPT: u64 = 64 << 20;

pub(super) fn open(path: &Path, synchronous: Synchronous) -> Result<SqliteStore, StoreError> {
    assert!(
        rusqlite::version_number() >= SQLITE_VERSION_MIN,
        "this program was built with SQLite {}, which can lose committed data; build it with 3.51.3 or newer",
        rusqlite::version()
    );
    let named = |error: StoreError| error.prefixed(&format!("catalog database {}", path.display()));
    let path = real_path(path).map_err(named)?;
    inspect(&path).map_err(named)?;
    let lock = lock(&path).map_err(named)?;
    connect(&path, synchronous, lock).map_err(named)
}

/// The path with links followed, so that two names of one file have one lock. Makes the directory.
fn real_path(path: &Path) -> Result<PathBuf, StoreError> {
    if let Ok(real) = fs::canonicalize(path) {
        return Ok(real);
    }
    let name = path.file_name().ok_or_else(|| StoreError::Foreign("the path names no file".to_owned()))?;
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent)
        .and_then(|()| fs::canonicalize(parent))
        .map(|directory| directory.join(name))
        .map_err(|error| refused("its directory cannot be made", &error))
}

/// Refuses what is not ours. Changes nothing.
pub(super) fn inspect(path: &Path) -> Result<(), StoreError> {
    let length = match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(refused("it cannot be looked at", &error)),
        Ok(found) if !found.is_file() => {
            return Err(StoreError::Foreign("it is no regular file; name a file".to_owned()));
        }
        Ok(found) if found.len() == 0 => return Ok(()),
        Ok(found) => found.len(),
    };
    let mut header = Vec::with_capacity(HEADER_BYTES);
    File::open(path)
        .and_then(|file| file.take(HEADER_BYTES as u64).read_to_end(&mut header))
        .map_err(|error| refused("it cannot be read", &error))?;
    if !header.starts_with(MAGIC) {
        return Err(StoreError::Foreign(format!(
            "it is not an SQLite database: another program's file, or its beginning was overwritten; name another file (`database.sqlite.path`), or if it was a catalog, {RESTORE}"
        )));
    }
    if header.len() < HEADER_BYTES {
        return Err(StoreError::Corrupt(format!("it ends after {length} bytes; {RESTORE}")));
    }
    if header[APPLICATION_ID_AT..APPLICATION_ID_AT + 4] != APPLICATION_ID.to_be_bytes() {
        return Err(StoreError::Foreign(
            "it is an SQLite database of another program, and was left as it is; name another file (`database.sqlite.path`)".to_owned(),
        ));
    }
    // SQLite takes what a cut-off last page lacks for zeros. (A page size of 1 means 65,536.) While there is a log,
    // the file may be in the middle of a checkpoint, which the log repeats.
    let page_bytes = match u16::from_be_bytes([header[PAGE_SIZE_AT], header[PAGE_SIZE_AT + 1]]) {
        1 => 65_536,
        bytes => u64::from(bytes),
    };
    if page_bytes == 0 || (length % page_bytes != 0 && !suffixed(path, "-wal").exists()) {
        return Err(StoreError::Corrupt(format!("it ends after {length} bytes, within a page; {RESTORE}")));
    }
    Ok(())
}

/// The path of a file beside the database.
pub(super) fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// The lock on `<database>.lock`, held until dropped.
pub(super) struct Lock(File);

impl Drop for Lock {
    /// Unlocks by name rather than by closing: a child process that is just being started has a copy of the descriptor
    /// until it runs its own program, and would keep the lock that long.
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "the catalog's lock could not be released; it ends with this process");
        }
    }
}

/// Takes the lock that keeps a second server out. The lock file stays: removing it would let two servers lock two
/// different files of that name.
fn lock(path: &Path) -> Result<Lock, StoreError> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(suffixed(path, ".lock"))
        .map_err(|error| refused("its lock file cannot be opened beside it", &error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let holder = match file.read_to_string(&mut holder) {
                Ok(length) if length > 0 => format!(" (process {})", holder.trim()),
                _ => String::new(),
            };
            return Err(StoreError::Locked(format!(
                "another server{holder} is using it; stop that one, or give this one a database of its own (`database.sqlite.path`)"
            )));
        }
        Err(TryLockError::Error(error)) => return Err(refused("it cannot be locked", &error)),
    }
    // For the message above only: who holds the lock does not depend on it.
    let told =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| write!(file, "{}", std::process::id()));
    if let Err(error) = told {
        tracing::warn!(%error, "the process number could not be written into the catalog's lock file");
    }
    Ok(Lock(file))
}

fn connect(path: &Path, synchronous: Synchronous, lock: Lock) -> Result<SqliteStore, StoreError> {
    // No SQLITE_OPEN_URI: a path is a path, also when it begins with `file:`.
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(|error| rolled_back(&error))?;
    if connection.is_readonly(MAIN_DB).map_err(|error| rolled_back(&error))? {
        return Err(StoreError::ReadOnly(
            "it cannot be written; give the server write permission on it and on its directory".to_owned(),
        ));
    }
    let log_pages = Arc::new(AtomicU64::new(0));
    let page_bytes = prepare(&mut connection, &log_pages).map_err(|error| rolled_back(&error))?;
    migrate::migrate(&mut connection)?;
    let mode: String = connection
        .pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))
        .map_err(|error| rolled_back(&error))?;
    if mode != "wal" {
        return Err(StoreError::Unavailable(format!(
            "SQLite cannot use a write-ahead log here and stays in mode `{mode}`; put the file on a local filesystem"
        )));
    }
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    let kept = Kept::of(&connection).map_err(|error| rolled_back(&error))?;
    // Prepared now, so that a schema which is not ours is found at start.
    for sql in [row::PUT, row::REMOVE, row::ALL, row::ONE] {
        connection.prepare_cached(sql).map_err(|error| rolled_back(&error))?;
    }
    Ok(SqliteStore {
        connection,
        log_pages,
        page_bytes,
        in_doubt: false,
        late_level: synchronous,
        level: Synchronous::Full,
        late: false,
        suspect: false,
        kept,
        path: path.to_owned(),
        _lock: lock,
    })
}

/// Sets up a connection and returns its page size in bytes.
fn prepare(connection: &mut Connection, log_pages: &Arc<AtomicU64>) -> rusqlite::Result<u64> {
    connection.busy_timeout(BUSY_WAIT)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "synchronous", Synchronous::Full.word())?;
    connection.pragma_update(None, "journal_size_limit", LOG_BYTES_KEPT as i64)?;
    // Takes the place of the automatic checkpoint.
    let log_pages = Arc::clone(log_pages);
    connection.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, pages: i32| {
        log_pages.store(pages.max(0) as u64, Ordering::Relaxed);
        Ok(())
    }))?;
    connection.pragma_query_value(None, "page_size", |row| row.get(0).map(u32::into))
}

fn refused(what: &str, error: &std::io::Error) -> StoreError {
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => StoreError::ReadOnly(format!(
            "{what} ({error}); give the server write permission on the file and on its directory"
        )),
        _ => StoreError::Unavailable(format!(
            "{what} ({error}); make room for it or name another file (`database.sqlite.path`)"
        )),
    }
}
