//! Database files that are not what they should be: each is refused with a sentence that says what to do, and what is
//! not ours stays as it was.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use payload_catalog::{SqliteStore, Store, StoreError, Synchronous};
use rusqlite::Connection;
use tempfile::TempDir;

use crate::child;
use crate::rows::{put, row};

fn open(path: &Path) -> Result<SqliteStore, StoreError> {
    SqliteStore::open(path, Synchronous::Full)
}

fn refusal(path: &Path) -> StoreError {
    match open(path) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => {
            assert!(error.to_string().contains(&*path.to_string_lossy()), "the file is not named: {error}");
            error
        }
    }
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// A closed database with rows 0 .. `count`.
fn filled(path: &Path, count: u64) {
    let mut store = open(path).expect("a new database");
    store.apply(&(0..count).map(|number| put(row(number))).collect::<Vec<_>>()).expect("stored");
    Box::new(store).close().expect("closes");
}

/// What a server does with its database when it starts.
fn boot(path: &Path) -> Result<(), StoreError> {
    let mut store = open(path)?;
    store.begin_epoch("node")?;
    store.namespace("default")?;
    store.load(&mut |_| {})
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn given_a_database_of_another_program_when_opened_then_refused_and_untouched() {
    let directory = directory();
    let path = directory.path().join("foreign.db");
    let foreign = Connection::open(&path).expect("a database");
    foreign
        .execute_batch("PRAGMA journal_mode = wal; CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1);")
        .expect("filled");
    drop(foreign);
    let before = fs::read(&path).expect("bytes");
    let error = refusal(&path);
    assert!(matches!(&error, StoreError::Foreign(text) if text.contains("database.sqlite.path")), "{error}");
    assert_eq!(fs::read(&path).expect("bytes"), before);
    assert_eq!(names(directory.path()), ["foreign.db"]);
}

#[test]
fn given_a_file_that_is_no_database_when_opened_then_refused_and_untouched() {
    let directory = directory();
    let path = directory.path().join("notes.txt");
    fs::write(&path, "dear diary").expect("written");
    let error = refusal(&path);
    assert!(
        matches!(&error, StoreError::Foreign(text) if text.contains("not an SQLite database")),
        "{error}"
    );
    assert_eq!(fs::read(&path).expect("bytes"), b"dear diary");
    assert_eq!(names(directory.path()), ["notes.txt"]);
    assert!(matches!(refusal(directory.path()), StoreError::Foreign(_)), "a directory is no file");
}

#[test]
fn given_an_empty_file_or_no_directory_when_opened_then_a_database_is_made() {
    let directory = directory();
    let empty = directory.path().join("empty.db");
    fs::write(&empty, "").expect("written");
    filled(&empty, 3);
    let deep = directory.path().join("not/yet/there.db");
    filled(&deep, 3);
    // A path is a path, also when it looks like a URI.
    let odd = directory.path().join("file:odd.db?mode=memory");
    filled(&odd, 3);
    for path in [empty, deep, odd] {
        assert_eq!(open(&path).expect("reopens").count(), Ok(3));
    }
}

#[test]
fn given_a_database_cut_short_anywhere_when_booted_then_corrupt_is_said() {
    let directory = directory();
    let whole = directory.path().join("whole.db");
    filled(&whole, 20_000);
    let bytes = fs::read(&whole).expect("bytes");
    for kept in [30, 90, 4096, 5000, bytes.len() / 2, bytes.len() - 4096, bytes.len() - 1] {
        let path = directory.path().join(format!("cut-{kept}.db"));
        fs::write(&path, &bytes[..kept]).expect("written");
        let error = boot(&path).err().unwrap_or_else(|| panic!("{kept} bytes were taken for whole"));
        assert!(
            matches!(&error, StoreError::Corrupt(text) if text.contains("restore it from a backup")),
            "{kept}: {error}"
        );
    }
}

#[test]
fn given_a_database_with_a_page_overwritten_when_booted_then_corrupt_is_said() {
    let directory = directory();
    let whole = directory.path().join("whole.db");
    filled(&whole, 20_000);
    let pages = fs::metadata(&whole).expect("a file").len() / 4096;
    assert!(pages > 100, "{pages} pages");
    for (page, junk) in [(1, 0xFF), (pages / 2, 0xFF), (pages / 2, 0), (pages - 1, 0xA5)] {
        let path = directory.path().join(format!("page-{page}-{junk}.db"));
        fs::copy(&whole, &path).expect("a copy");
        let mut file = OpenOptions::new().write(true).open(&path).expect("a file");
        file.seek(SeekFrom::Start(page * 4096)).expect("a page");
        file.write_all(&[junk; 4096]).expect("overwritten");
        let error = boot(&path).err().unwrap_or_else(|| panic!("page {page} of {junk:#x} was not noticed"));
        assert!(matches!(error, StoreError::Corrupt(_)), "page {page}, {junk:#x}: {error}");
    }
}

#[test]
fn given_a_value_or_a_schema_that_we_did_not_write_when_booted_then_corrupt_is_said() {
    let directory = directory();
    for (number, sql) in (0..).zip([
        "UPDATE payload SET state = 77",
        "UPDATE payload SET version = -1",
        "UPDATE payload SET id = x'00'",
        // No file has the number 0; a row without a replica on DISK has nothing that could be packed.
        "UPDATE payload SET disk = 2, extent = 4294967295",
        "UPDATE payload SET extent = 4294967296",
        // The row's replica is on RAM, which is 4.
        "UPDATE payload SET unsound = 8",
        "UPDATE payload SET unsound = -1",
        "DROP TABLE payload",
        "ALTER TABLE payload RENAME COLUMN size TO length",
    ]) {
        let path = directory.path().join(format!("{number}.db"));
        filled(&path, 1);
        Connection::open(&path).and_then(|other| other.execute_batch(sql)).expect("tampered with");
        let error = boot(&path).expect_err("it is not as written");
        assert!(matches!(error, StoreError::Corrupt(_)), "{sql}: {error}");
    }
}

#[test]
fn given_a_schema_of_a_newer_program_when_opened_then_refused_with_both_versions() {
    let directory = directory();
    let path = directory.path().join("newer.db");
    filled(&path, 1);
    let connect = || Connection::open(&path).expect("a database");
    let ours: i64 =
        connect().pragma_query_value(None, "user_version", |row| row.get(0)).expect("a schema version");
    let set =
        |version: i64| connect().pragma_update(None, "user_version", version).expect("a schema version set");
    set(999);
    let error = refusal(&path);
    assert!(
        matches!(&error, StoreError::NewerFormat(text) if text.contains("999") && text.contains(&ours.to_string())),
        "{error}"
    );
    set(ours);
    assert_eq!(open(&path).expect("it was left as it is").count(), Ok(1));
}

#[test]
fn given_a_database_in_use_when_opened_again_then_refused_under_every_name_until_it_is_closed() {
    let directory = directory();
    let path = directory.path().join("catalog.db");
    let store = open(&path).expect("a new database");
    let alias = directory.path().join("alias.db");
    symlink(&path, &alias).expect("a link");
    for path in [&path, &alias] {
        let error = refusal(path);
        let process = format!("process {}", std::process::id());
        assert!(matches!(&error, StoreError::Locked(text) if text.contains(&process)), "{error}");
    }
    Box::new(store).close().expect("closes");
    open(&alias).expect("free again");
}

const READ_ONLY: &str =
    "files::given_a_file_or_directory_that_cannot_be_written_when_opened_then_read_only_is_said";

#[test]
fn given_a_file_or_directory_that_cannot_be_written_when_opened_then_read_only_is_said() {
    if let Some(directory) = child::directory() {
        for path in ["read-only.db", "unlocked/read-only.db", "missing.db", "no/directory.db"] {
            let error = refusal(&directory.join(path));
            assert!(
                matches!(&error, StoreError::ReadOnly(text) if text.contains("write permission")),
                "{error}"
            );
        }
        return;
    }
    let directory = directory();
    let path = directory.path();
    filled(&path.join("read-only.db"), 1);
    fs::remove_file(path.join("read-only.db.lock")).expect("there was a lock file");
    // Where only the database itself cannot be written.
    let unlocked = path.join("unlocked");
    fs::create_dir(&unlocked).expect("a directory");
    fs::copy(path.join("read-only.db"), unlocked.join("read-only.db")).expect("a copy");
    let mode =
        |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).expect("permissions");
    mode(&unlocked, 0o777);
    mode(&unlocked.join("read-only.db"), 0o444);
    mode(&path.join("read-only.db"), 0o444);
    let mut child = child::command(child::anybodys_program(), READ_ONLY, path);
    mode(path, 0o555);
    if fs::metadata("/proc/self").expect("a process").uid() == 0 {
        // Permissions do not hold root back: `nobody` it is.
        child.uid(65534).gid(65534);
    }
    let output = child.output().expect("the child runs");
    mode(path, 0o755);
    assert!(
        output.status.success() && String::from_utf8_lossy(&output.stdout).contains("1 passed"),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

const FILE_LIMIT: &str = "files::given_a_disk_that_takes_no_more_when_written_then_a_temporary_error_and_nothing_acknowledged_is_lost";

#[test]
fn given_a_disk_that_takes_no_more_when_written_then_a_temporary_error_and_nothing_acknowledged_is_lost() {
    if let Some(directory) = child::directory() {
        let mut store = open(&directory.join("catalog.db")).expect("a new database");
        for number in 0.. {
            match store.apply(&[put(row(number))]) {
                Ok(_none) => println!("stored {number}"),
                Err(error) => {
                    assert!(error.is_temporary(), "{error}");
                    // Once this answers, the row can no longer come back.
                    assert_eq!(store.resolve(&[put(row(number))]), Ok(None));
                    println!("ended");
                    std::process::exit(0);
                }
            }
        }
    }
    let directory = directory();
    let child = child::command(&child::program(), FILE_LIMIT, directory.path());
    // No file may grow past 1,000 x 512 bytes; without the signal, writes just fail.
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 1000; exec \"$0\" \"$@\""])
        .arg(child.get_program())
        .args(child.get_args())
        .envs(child.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .output()
        .expect("the child runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("ended"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let stored = text.lines().filter(|line| line.contains("stored ")).count() as u64;
    assert!(stored > 10, "{stored} rows were stored");
    let mut store = open(&directory.path().join("catalog.db")).expect("reopens");
    let mut found = Vec::new();
    store.load(&mut |row| found.push(row)).expect("rows load");
    assert_eq!(found, (0..stored).map(row).collect::<Vec<_>>());
}
