//! What this node put, or is about to put, into an object store and no row of the catalog vouches for yet.
//!
//! ```text
//! begin (durable) --> multipart id --> parts ... --> stored --> catalog row --> settle        crash --> resume | sweep
//! ```
//! An entry is there before its object is, and goes when a row names the object, or the object is gone. So the sweep never has to
//! list a bucket that others may share: what no entry names is not ours to delete. One entry a payload: its shard moves it once at a
//! time. Calls may block.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use payload_types::{Generation, PayloadId};
use serde::{Deserialize, Serialize};

use super::codec::Compression;

/// A part that the store has.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PartDone {
    /// What completes the upload: the part's ETag.
    pub content_id: String,
    /// XXH3-64 of its bytes as stored.
    pub hash: u64,
}

/// What is to become of an entry's object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum EntryKind {
    /// It is being stored, or was stored and no row names it yet.
    Upload,
    /// Its row is gone, and it is to be deleted.
    Removal,
}

/// See the module's description.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Whose object.
    pub id: PayloadId,
    /// Which replica.
    pub generation: Generation,
    /// What is to become of it.
    pub kind: EntryKind,
    /// The payload's size.
    pub size: u64,
    /// How it was cut.
    pub part_bytes: u64,
    /// How it was compressed.
    pub compression: Compression,
    /// The store's name for the upload in parts, once it has one.
    pub upload: Option<String>,
    /// Parts that it has.
    pub parts: BTreeMap<u32, PartDone>,
}

impl Entry {
    /// True when what was begun as this entry can be gone on with as `other`.
    pub(crate) fn goes_on_as(&self, other: &Self) -> bool {
        self.kind == EntryKind::Upload
            && (self.generation, self.size, self.part_bytes, self.compression)
                == (other.generation, other.size, other.part_bytes, other.compression)
    }
}

/// Keeps entries: the catalog, a file, or memory. An error means that nothing may be put into the store.
pub trait Journal: Send + Sync {
    /// Keeps an entry, in place of the payload's former one. It survives a loss of power before this returns.
    ///
    /// # Errors
    /// Why it could not be kept.
    fn begin(&self, entry: Entry) -> io::Result<()>;
    /// The upload has a name. It survives the end of this process before this returns.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    fn named(&self, id: PayloadId, upload: &str) -> io::Result<()>;
    /// The store has a part. Losing this costs one part's upload.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    fn part(&self, id: PayloadId, index: u32, done: &PartDone) -> io::Result<()>;
    /// A row names the object, or it is gone.
    ///
    /// # Errors
    /// As [`begin`](Self::begin); the entry may then come back after a restart.
    fn settle(&self, id: PayloadId) -> io::Result<()>;
    /// The payload's entry.
    fn find(&self, id: PayloadId) -> Option<Entry>;
    /// All entries, by id.
    fn entries(&self) -> Vec<Entry>;
}

/// Entries that end with the process: for tests, and for stores that are thrown away.
#[derive(Default)]
pub struct MemoryJournal(Mutex<HashMap<PayloadId, Entry>>);

impl MemoryJournal {
    fn with<T>(&self, does: impl FnOnce(&mut HashMap<PayloadId, Entry>) -> T) -> T {
        does(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, id: PayloadId, does: impl FnOnce(&mut Entry)) {
        self.with(|entries| {
            if let Some(entry) = entries.get_mut(&id) {
                does(entry);
            }
        });
    }
}

impl Journal for MemoryJournal {
    fn begin(&self, entry: Entry) -> io::Result<()> {
        self.with(|entries| entries.insert(entry.id, entry));
        Ok(())
    }

    fn named(&self, id: PayloadId, upload: &str) -> io::Result<()> {
        self.change(id, |entry| entry.upload = Some(upload.to_owned()));
        Ok(())
    }

    fn part(&self, id: PayloadId, index: u32, done: &PartDone) -> io::Result<()> {
        self.change(id, |entry| drop(entry.parts.insert(index, done.clone())));
        Ok(())
    }

    fn settle(&self, id: PayloadId) -> io::Result<()> {
        self.with(|entries| entries.remove(&id));
        Ok(())
    }

    fn find(&self, id: PayloadId) -> Option<Entry> {
        self.with(|entries| entries.get(&id).cloned())
    }

    fn entries(&self) -> Vec<Entry> {
        let mut all: Vec<Entry> = self.with(|entries| entries.values().cloned().collect());
        all.sort_by_key(|entry| entry.id);
        all
    }
}

/// One line of the file.
#[derive(Serialize, Deserialize)]
enum Line {
    Begin {
        id: String,
        generation: u64,
        kind: EntryKind,
        size: u64,
        part_bytes: u64,
        compression: Compression,
        upload: Option<String>,
        parts: BTreeMap<u32, PartDone>,
    },
    Named(String, String),
    Part(String, u32, PartDone),
    Settle(String),
}

impl Line {
    fn of(entry: &Entry) -> Self {
        Self::Begin {
            id: entry.id.to_string(),
            generation: entry.generation.0,
            kind: entry.kind,
            size: entry.size,
            part_bytes: entry.part_bytes,
            compression: entry.compression,
            upload: entry.upload.clone(),
            parts: entry.parts.clone(),
        }
    }

    /// Does to `entries` what the line says.
    fn apply(self, entries: &MemoryJournal) -> Option<()> {
        match self {
            Self::Begin { id, generation, kind, size, part_bytes, compression, upload, parts } => {
                let (id, generation) = (id.parse().ok()?, Generation(generation));
                entries
                    .begin(Entry { id, generation, kind, size, part_bytes, compression, upload, parts })
                    .ok()
            }
            Self::Named(id, upload) => entries.named(id.parse().ok()?, &upload).ok(),
            Self::Part(id, index, done) => entries.part(id.parse().ok()?, index, &done).ok(),
            Self::Settle(id) => entries.settle(id.parse().ok()?).ok(),
        }
    }
}

/// Entries in a file of lines: appended to, and written anew at each start. A line that a crash cut off was never acknowledged.
pub struct FileJournal {
    entries: MemoryJournal,
    path: PathBuf,
    /// The file, and how many lines it has.
    file: Mutex<(File, usize)>,
}

/// Lines after which the file is written anew, if most of them speak of nothing any more.
const LINES_MAX: usize = 16_384;

impl FileJournal {
    /// Reads the journal of this path, which is made if missing.
    ///
    /// # Errors
    /// As the system's; `InvalidData` when a line but the last makes no sense: nothing was changed.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let (path, entries) = (path.into(), MemoryJournal::default());
        if let Ok(file) = File::open(&path) {
            let mut lines = BufReader::new(file).lines().peekable();
            while let Some(line) = lines.next() {
                let line = line?;
                let read = serde_json::from_str::<Line>(&line).ok().and_then(|line| line.apply(&entries));
                if read.is_none() && lines.peek().is_some() {
                    let said = format!("the upload journal {} is damaged", path.display());
                    return Err(io::Error::new(io::ErrorKind::InvalidData, said));
                }
            }
        }
        let file = Mutex::new(Self::rewrite(&path, &entries)?);
        Ok(Self { entries, path, file })
    }

    fn rewrite(path: &Path, entries: &MemoryJournal) -> io::Result<(File, usize)> {
        let draft = path.with_extension("new");
        let mut file = File::create(&draft)?;
        let all = entries.entries();
        for entry in &all {
            writeln!(file, "{}", serde_json::to_string(&Line::of(entry))?)?;
        }
        file.sync_all()?;
        fs::rename(&draft, path)?;
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            File::open(directory)?.sync_all()?;
        }
        Ok((OpenOptions::new().append(true).open(path)?, all.len()))
    }

    fn append(&self, line: Line, sync: bool) -> io::Result<()> {
        let mut text = serde_json::to_string(&line)?;
        text.push('\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.0.write_all(text.as_bytes())?;
        file.1 += 1;
        if sync {
            file.0.sync_data()?;
        }
        line.apply(&self.entries);
        if file.1 > LINES_MAX && self.entries.with(|entries| entries.len()) * 2 < LINES_MAX {
            *file = Self::rewrite(&self.path, &self.entries)?;
        }
        Ok(())
    }
}

impl Journal for FileJournal {
    fn begin(&self, entry: Entry) -> io::Result<()> {
        self.append(Line::of(&entry), true)
    }

    fn named(&self, id: PayloadId, upload: &str) -> io::Result<()> {
        self.append(Line::Named(id.to_string(), upload.to_owned()), true)
    }

    fn part(&self, id: PayloadId, index: u32, done: &PartDone) -> io::Result<()> {
        self.append(Line::Part(id.to_string(), index, done.clone()), false)
    }

    fn settle(&self, id: PayloadId) -> io::Result<()> {
        self.append(Line::Settle(id.to_string()), false)
    }

    fn find(&self, id: PayloadId) -> Option<Entry> {
        self.entries.find(id)
    }

    fn entries(&self) -> Vec<Entry> {
        self.entries.entries()
    }
}
