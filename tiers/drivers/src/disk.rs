//! The disk tier: files and segment files below a root that belongs to one server (DESIGN §6).
//!
//! ```text
//! <root>/payload-manager.root      marker: format version and the root's own random id
//! <root>/payload-manager.intent    intent log
//! <root>/payload-manager.segments  intent log of the segment files
//! <root>/payloads/<xx>/            files of one replica each; names in `naming`
//! <root>/segments/                 segment files (`packed`)
//! ```
//! Order at start: the directory is locked (flock on the directory itself, so nothing need be made for it), then the
//! marker is checked, and only then is anything changed. An empty directory is initialised; one with other things in
//! it and no marker is refused untouched, as is one that a later version wrote. Format 1 had no segment files; such a
//! root is given them, and an earlier version refuses it from then on.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use payload_ledger::segments::{Geometry, table};
use payload_types::{ByteCount, Tier};

use crate::DriversConfig;
use crate::calls::Calls;
use crate::error::OpenError;
use crate::health::{Health, PROBE_NAME};
use crate::intent::{IntentLog, Live};
use crate::naming::{Names, PAYLOADS, SEGMENTS};
use crate::packed::{Packed, Parts};
use crate::store::{FileStore, sync_directory};

const MARKER: &str = "payload-manager.root";
/// What the marker is called before it is complete.
const MARKER_DRAFT: &str = "payload-manager.root.new";
const INTENT: &str = "payload-manager.intent";
const INTENT_SEGMENTS: &str = "payload-manager.segments";
const MARKER_TITLE: &str = "Payload Manager disk root";

/// The layout described above.
const FORMAT: u32 = 2;

/// The smallest disk that has segment files.
const CAPACITY_MIN: ByteCount = ByteCount(128 << 20);

const RANDOM: &str = "/dev/urandom";

/// What no segment file has, whatever the configured mode: nobody may write what others share. Clients that write, or set
/// lengths, are leased files of their own.
const MODE_WRITE: u32 = 0o222;

/// A marker is three short lines; what is longer is not ours.
const MARKER_BYTES_MAX: u64 = 4096;

/// An opened root.
pub(crate) struct DiskRoot {
    pub(crate) store: FileStore,
    pub(crate) live: Live,
    /// The root's own id, 32 hexadecimal digits.
    pub(crate) root_id: String,
    /// Holding it open holds the lock.
    pub(crate) lock: File,
}

/// Locks the root, checks or writes its marker, opens its intent log.
pub(crate) fn open(
    path: &Path,
    config: &DriversConfig,
    calls: &Arc<dyn Calls>,
) -> Result<DiskRoot, OpenError> {
    fs::create_dir_all(path).map_err(|source| OpenError::io("making the disk root", path, source))?;
    let root =
        fs::canonicalize(path).map_err(|source| OpenError::io("resolving the disk root", path, source))?;
    let lock = lock(&root)?;
    let root_id = match read_marker(&root)? {
        Some(Marker { format: FORMAT, root_id }) => root_id,
        Some(Marker { root_id, .. }) => mark(&root, root_id)?,
        None => mark(&root, random_id().map_err(|source| OpenError::io("reading", RANDOM, source))?)?,
    };
    let payloads = root.join(PAYLOADS);
    for directory in [&payloads, &root.join(SEGMENTS)] {
        match fs::create_dir(directory) {
            Ok(()) => sync_directory(&root),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
        .map_err(|source| OpenError::io("making", directory, source))?;
    }
    let _ = fs::remove_file(payloads.join(PROBE_NAME)); // what a crash left of a probe
    let open_log = |name| {
        let path = root.join(name);
        let opened = IntentLog::open(&path, Tier::Disk, true, None);
        opened.map_err(|error| OpenError::of_log(error, &path, &config.node))
    };
    let (log, live) = open_log(INTENT)?;
    let (segments_log, segments) = open_log(INTENT_SEGMENTS)?;
    sync_directory(&root).map_err(|source| OpenError::io("syncing", &root, source))?;
    let health = Arc::new(Health::new(payloads, Arc::clone(calls), config.retry_backoff));
    let names = Names::Files { root: root.as_path().into() };
    let geometry = config.disk_capacity.and_then(Geometry::of_capacity);
    let takes_more = geometry.is_some();
    // A disk that became too small for segment files still serves and empties those that it has.
    let served = || Geometry::of_capacity(CAPACITY_MIN).filter(|_| !segments.is_empty());
    let packed = match geometry.or_else(served) {
        None => {
            segments_log.remove_if_empty();
            None
        }
        Some(geometry) => Some(Packed::new(Parts {
            names: names.clone(),
            root: seal_of(&root_id).ok_or_else(|| OpenError::MarkerDamaged { path: root.join(MARKER) })?,
            mode_sealed: config.file_mode & !MODE_WRITE,
            calls: Arc::clone(calls),
            health: Arc::clone(&health),
            log: segments_log,
            live: segments,
            geometry,
            takes_more,
            compaction_bytes_per_second: config.compaction_bytes_per_second,
        })),
    };
    Ok(DiskRoot {
        store: FileStore::new(names, log, config.file_mode, Arc::clone(calls), Some(health), packed),
        live,
        root_id,
        lock,
    })
}

fn lock(root: &Path) -> Result<File, OpenError> {
    let directory =
        File::open(root).map_err(|source| OpenError::io("opening the disk root", root, source))?;
    match directory.try_lock() {
        Ok(()) => Ok(directory),
        Err(TryLockError::WouldBlock) => Err(OpenError::RootTaken { root: root.to_owned() }),
        Err(TryLockError::Error(source)) => Err(OpenError::io("locking the disk root", root, source)),
    }
}

/// The root's id as what segment files are sealed with.
fn seal_of(root_id: &str) -> Option<table::Root> {
    let number = u128::from_str_radix(root_id, 16).ok().filter(|_| root_id.len() == 32)?;
    Some(number.to_be_bytes())
}

/// What a root's marker says.
struct Marker {
    format: u32,
    root_id: String,
}

/// The root's marker; `None` when the root is empty.
fn read_marker(root: &Path) -> Result<Option<Marker>, OpenError> {
    let path = root.join(MARKER);
    let mut text = String::new();
    let read = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .and_then(|file| file.take(MARKER_BYTES_MAX).read_to_string(&mut text));
    match read {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return if is_empty(root)? {
                Ok(None)
            } else {
                Err(OpenError::RootForeign { root: root.to_owned() })
            };
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {} // not text: the lines below are missing
        Err(source) => return Err(OpenError::io("reading", path, source)),
    }
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let damaged = || OpenError::MarkerDamaged { path: path.clone() };
    if text.lines().next() != Some(MARKER_TITLE) {
        return Err(damaged());
    }
    let format = field("format:").and_then(|text| text.parse::<u32>().ok()).ok_or_else(damaged)?;
    if format > FORMAT {
        return Err(OpenError::RootNewer { root: root.to_owned(), format, format_max: FORMAT });
    }
    field("root_id:").map(|id| Some(Marker { format, root_id: id.to_owned() })).ok_or_else(damaged)
}

/// A new filesystem's `lost+found` and a marker that a crash left unfinished are nobody's data.
fn is_empty(root: &Path) -> Result<bool, OpenError> {
    let failed = |source| OpenError::io("listing the disk root", root, source);
    for entry in fs::read_dir(root).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if name != "lost+found" && name != MARKER_DRAFT {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A new root's id.
fn random_id() -> io::Result<String> {
    let mut random = [0; 16];
    File::open(RANDOM)?.read_exact(&mut random)?;
    Ok(random.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string never fails");
        text
    }))
}

/// Writes the marker: of a new root, or of one that an earlier version made.
fn mark(root: &Path, root_id: String) -> Result<String, OpenError> {
    let draft = root.join(MARKER_DRAFT);
    let write = || -> io::Result<()> {
        let mut file = File::create(&draft)?;
        writeln!(file, "{MARKER_TITLE}\nformat: {FORMAT}\nroot_id: {root_id}")?;
        file.sync_all()?;
        fs::rename(&draft, root.join(MARKER))?;
        sync_directory(root)
    };
    write().map_err(|source| OpenError::io("marking the disk root", PathBuf::from(root), source))?;
    Ok(root_id)
}
