//! What looks at a database beside the server that uses it: backups, and what a start would migrate.
//!
//! ```text
//! <file> --one read transaction: all pages--> <copy>.partial --checked, synced--> <copy>, which was not there before
//! ```
//! A reader in WAL mode waits for nobody and nobody waits for it, so a backup runs beside a server under load; the
//! server's log grows by what is written meanwhile. All pages are copied in one step: in several, each commit of the server
//! would make SQLite begin anew. The copy gets its name when it is whole, so whatever has a backup's name is one.
//!
//! Takes no lock of ours, and checkpoints nothing: a server that was killed finds its log as it left it.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::backup::StepResult;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::errors::rolled_back;
use super::open::{BUSY_WAIT, inspect, suffixed};
use super::{migrate, reader};
use crate::error::{RESTORE, StoreError};
use crate::migrations::{names, pending};

/// How long a backup waits for another program's lock, which only a start or an end of a server takes.
const LOCKED_WAIT: Duration = Duration::from_secs(10);

/// The pause between tries.
const LOCKED_PAUSE: Duration = Duration::from_millis(20);

/// Who may read a backup: as the database, its owner.
const MODE: u32 = 0o600;

/// What a backup holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backup {
    /// Rows of payloads.
    pub payloads: u64,
    /// The file's length.
    pub bytes: u64,
}

/// The file that is being written, removed with what SQLite puts beside it unless it was given its name.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        for suffix in ["", "-journal", "-wal", "-shm"] {
            // What was never there or has been moved need not go.
            drop(fs::remove_file(suffixed(&self.0, suffix)));
        }
    }
}

/// See [`super::SqliteStore::backup`].
pub(super) fn backup(path: &Path, to: &Path) -> Result<Backup, StoreError> {
    let named = |error: StoreError| error.prefixed(&format!("catalog database {}", path.display()));
    let source = look(path).and_then(|found| found.ok_or_else(missing)).map_err(named)?;
    let seen = migrate::version(&source).map_err(|error| named(rolled_back(&error)))?;
    pending(migrate::MIGRATIONS, seen).map_err(named)?;
    copy(&source, to).map_err(|error| error.prefixed(&format!("backup {}", to.display())))
}

/// See [`super::SqliteStore::migrations_pending`].
pub(super) fn migrations_pending(path: &Path) -> Result<Vec<&'static str>, StoreError> {
    let missing = || {
        let Some(source) = look(path)? else { return Ok(names(migrate::MIGRATIONS)) };
        let seen = migrate::version(&source).map_err(|error| rolled_back(&error))?;
        pending(migrate::MIGRATIONS, seen).map(names)
    };
    missing().map_err(|error: StoreError| error.prefixed(&format!("catalog database {}", path.display())))
}

/// A connection that only reads; `None` where there is no database yet.
fn look(path: &Path) -> Result<Option<Connection>, StoreError> {
    inspect(path)?;
    match fs::metadata(path) {
        Ok(found) if found.len() > 0 => {}
        // An empty file is what a start makes a database of. `inspect` has told all other errors.
        Ok(_) | Err(_) => return Ok(None),
    }
    let connect = || {
        let connection = reader::connect(path)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        Ok(connection)
    };
    connect().map(Some).map_err(|error| rolled_back(&error))
}

fn missing() -> StoreError {
    StoreError::Unavailable("there is none yet; name it (`database.sqlite.path` or --data-dir)".to_owned())
}

fn copy(source: &Connection, to: &Path) -> Result<Backup, StoreError> {
    // A log that an earlier database of this name left would be taken for the copy's.
    if ["", "-wal", "-journal"].iter().any(|suffix| fs::symlink_metadata(suffixed(to, suffix)).is_ok()) {
        return Err(taken());
    }
    let partial = claim(suffixed(to, ".partial"))?;
    let payloads = write(source, &partial.0)?;
    let file = File::open(&partial.0).map_err(|error| failed("it cannot be read again", &error))?;
    file.sync_all().map_err(|error| failed("it could not be synced", &error))?;
    let bytes = file.metadata().map_err(|error| failed("it cannot be looked at", &error))?.len();
    // Unlike a rename, a second name is never given in place of a file that is there.
    fs::hard_link(&partial.0, to).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => taken(),
        _ => failed("it could not be given its name", &error),
    })?;
    drop(partial);
    let directory = to.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|error| failed("its directory could not be synced", &error))?;
    Ok(Backup { payloads, bytes })
}

/// Makes the file, which nobody else may read.
fn claim(path: PathBuf) -> Result<Partial, StoreError> {
    match OpenOptions::new().write(true).create_new(true).mode(MODE).open(&path) {
        Ok(_file) => Ok(Partial(path)),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(StoreError::Locked(format!(
            "{} is there: another backup is under way, or one was killed; remove it in that case",
            path.display()
        ))),
        Err(error) => Err(failed("it cannot be made", &error)),
    }
}

/// Copies all pages as they are at one moment, and looks at the copy. Returns its number of payloads.
fn write(source: &Connection, path: &Path) -> Result<u64, StoreError> {
    let copied = || -> rusqlite::Result<Result<u64, StoreError>> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut copy = Connection::open_with_flags(path, flags)?;
        copy.busy_timeout(BUSY_WAIT)?;
        // Should this be interrupted, nobody will roll it back: it has no name yet.
        copy.pragma_update_and_check(None, "journal_mode", "off", |_| Ok(()))?;
        copy.pragma_update(None, "synchronous", "off")?;
        let started = Instant::now();
        let backup = rusqlite::backup::Backup::new(source, &mut copy)?;
        while backup.step(-1)? != StepResult::Done {
            if started.elapsed() > LOCKED_WAIT {
                return Ok(Err(StoreError::Unavailable(
                    "another program keeps the catalog's database locked; end that program".to_owned(),
                )));
            }
            std::thread::sleep(LOCKED_PAUSE);
        }
        drop(backup);
        let said: String = copy.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if said != "ok" {
            return Ok(Err(StoreError::Corrupt(format!(
                "the catalog's database is corrupt ({said}), so it was not kept; {RESTORE}"
            ))));
        }
        let payloads: i64 = copy.query_row("SELECT count(*) FROM payload", [], |row| row.get(0))?;
        copy.close().map_err(|(_, error)| error)?;
        Ok(Ok(payloads.cast_unsigned()))
    };
    copied().unwrap_or_else(|error| Err(rolled_back(&error)))
}

fn taken() -> StoreError {
    StoreError::Foreign(
        "it is there already, or its -wal is, and was left as it was; name a new file".to_owned(),
    )
}

fn failed(what: &str, error: &std::io::Error) -> StoreError {
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            StoreError::ReadOnly(format!("{what} ({error}); name a file in a directory that may be written"))
        }
        _ => StoreError::Unavailable(format!(
            "{what} ({error}); name a file on a local file system with room for it"
        )),
    }
}
