//! What a server's payloads take up in /dev/shm and on disk, and a thread that looks at it all the time.
//!
//! ```text
//! every LOOK: names and sizes --again--> those seen both times existed together --> their sum <= capacity
//! ```
//! A directory cannot be read in one instant: a file that went while the listing ran and another that came after it
//! would be summed up though they never were there together. So each look lists twice and counts what both lists
//! have: all of that existed in the moment between them.
//! Limit: what was unlinked while a process still maps it has no name, and is not seen.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::ledger::{Breach, Rule};

/// How often the watch looks.
const LOOK: Duration = Duration::from_millis(15);

/// Memory is taken in pages.
const PAGE_BYTES: u64 = 4096;

/// A uuid as text.
const UUID_CHARS: usize = 36;

/// Where one server keeps payloads.
#[derive(Clone, Debug)]
pub struct Ground {
    /// `storage.ram.shm_prefix`.
    pub prefix: String,
    /// The disk root.
    pub root: PathBuf,
    /// Segment files that a server keeps when nothing lies in them.
    pub segments_kept: usize,
}

/// A file of a payload, or of many.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its file name.
    pub name: String,
    /// The payload's id, as text; empty for a segment file.
    pub uuid: String,
    /// It is what clients open: no copy in the making, and nothing that was dropped.
    pub is_public: bool,
    /// Bytes it takes.
    pub bytes: u64,
    inode: u64,
}

impl Ground {
    /// What lies in /dev/shm with the prefix, but for the intent log.
    pub fn memory(&self) -> Vec<Item> {
        let own = format!("{}-", self.prefix);
        let intents = format!("{own}intent-");
        let read = |name: &str, found: &Metadata| {
            let rest = name.strip_prefix(&own).filter(|_| !name.starts_with(&intents))?;
            let uuid = rest.len().checked_sub(UUID_CHARS).and_then(|at| rest.get(at..)).unwrap_or(rest);
            let is_public = rest.len() == UUID_CHARS;
            let bytes = found.len().next_multiple_of(PAGE_BYTES);
            let (name, uuid, inode) = (name.to_owned(), uuid.to_owned(), found.ino());
            Some(Item { name, uuid, is_public, bytes, inode })
        };
        let mut items = Vec::new();
        collect(Path::new("/dev/shm"), &read, &mut items);
        items
    }

    /// The files below the disk root that one payload has to itself.
    pub fn disk(&self) -> Vec<Item> {
        let read = |name: &str, found: &Metadata| {
            let uuid = name.get(..UUID_CHARS).unwrap_or(name).to_owned();
            let is_public = name.ends_with(".bin");
            // st_blocks counts units of 512 bytes, whatever the file system's own block is (stat(2)).
            Some(Item {
                name: name.to_owned(),
                uuid,
                is_public,
                bytes: found.blocks() * 512,
                inode: found.ino(),
            })
        };
        let mut items = Vec::new();
        collect(&self.root.join("payloads"), &read, &mut items);
        items
    }

    /// The files below the disk root that payloads share, and those that are kept for them (`.free`). Public are those
    /// with a number for a name.
    pub fn segments(&self) -> Vec<Item> {
        let read = |name: &str, found: &Metadata| {
            let number = [".seg", ".free"].into_iter().find_map(|end| name.strip_suffix(end));
            let number = number.filter(|number| number.len() == 8);
            Some(Item {
                name: name.to_owned(),
                uuid: String::new(),
                is_public: number.is_some_and(|number| u32::from_str_radix(number, 16).is_ok()),
                bytes: found.blocks() * 512,
                inode: found.ino(),
            })
        };
        let mut items = Vec::new();
        collect(&self.root.join("segments"), &read, &mut items);
        items
    }

    /// What lies on the disk root itself and is not the server's: its marker, intent log and probe have its name.
    pub fn strangers(&self) -> Vec<String> {
        let names = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let is_own =
            |name: &str| name.starts_with("payload-manager.") || ["payloads", "segments"].contains(&name);
        names.filter(|name| !is_own(name)).collect()
    }

    /// All that takes up the disk tier's capacity.
    fn disk_whole(&self) -> Vec<Item> {
        [self.disk(), self.segments()].concat()
    }
}

fn collect(directory: &Path, read: &impl Fn(&str, &Metadata) -> Option<Item>, items: &mut Vec<Item>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        // What went since it was listed is not there.
        let (Ok(found), name) = (entry.metadata(), entry.file_name()) else { continue };
        match found.is_dir() {
            true => collect(&entry.path(), read, items),
            false => items.extend(read(&name.to_string_lossy(), &found)),
        }
    }
}

/// Bytes that existed together at one moment.
fn together(look: impl Fn() -> Vec<Item>) -> u64 {
    let key = |item: &Item| (item.inode, item.uuid.clone());
    let first: BTreeMap<_, u64> = look().iter().map(|item| (key(item), item.bytes)).collect();
    let second: BTreeMap<_, u64> = look().iter().map(|item| (key(item), item.bytes)).collect();
    second.iter().filter_map(|(key, bytes)| Some(*first.get(key)?.min(bytes))).sum()
}

/// The most that was ever seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Peak {
    /// Bytes in /dev/shm.
    pub memory: u64,
    /// Bytes on disk.
    pub disk: u64,
}

/// What was seen so far.
#[derive(Debug, Default)]
struct Seen {
    peak: Peak,
    breach: Option<Breach>,
}

/// A thread that looks until it is dropped.
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Looks at `ground`, which may hold `capacity`.
    pub fn start(ground: Ground, capacity: Peak) -> Self {
        let (seen, is_over) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (sight, over) = (Arc::clone(&seen), Arc::clone(&is_over));
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                look(&ground, capacity, &sight);
                std::thread::sleep(LOOK);
            }
        });
        Self { seen, is_over, thread: Some(thread) }
    }

    /// The most that was seen so far.
    ///
    /// # Errors
    /// When a capacity was passed, ever.
    pub fn peak(&self) -> Result<Peak, Breach> {
        let seen = self.seen.lock().expect("nobody panicked");
        seen.breach.clone().map_or(Ok(seen.peak), Err)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn look(ground: &Ground, capacity: Peak, seen: &Mutex<Seen>) {
    let now = Peak { memory: together(|| ground.memory()), disk: together(|| ground.disk_whole()) };
    let mut seen = seen.lock().expect("nobody panicked");
    seen.peak = Peak { memory: now.memory.max(seen.peak.memory), disk: now.disk.max(seen.peak.disk) };
    if now.memory > capacity.memory || now.disk > capacity.disk {
        let segments = ground.segments();
        let list = segments.iter().map(|item| format!("{} {}", item.name, item.bytes));
        let detail =
            format!("{now:?} bytes, and the capacity is {capacity:?}; {:?}", list.collect::<Vec<_>>());
        seen.breach.get_or_insert(Breach::new(Rule::Capacity, detail));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "0190a5c0-1234-7abc-8def-0123456789ab";

    #[test]
    fn given_files_that_come_and_go_between_two_lists_when_summed_then_only_those_of_both_count() {
        let item =
            |inode, bytes| Item { name: String::new(), uuid: UUID.to_owned(), is_public: true, bytes, inode };
        let lists = Mutex::new(vec![vec![item(2, 10), item(3, 100)], vec![item(1, 1), item(2, 10)]]);
        let next = || lists.lock().expect("nobody panicked").pop().expect("two");
        assert_eq!(together(next), 10);
    }

    #[test]
    fn given_more_than_the_capacity_when_watched_then_it_is_told_for_good() {
        let directory = tempfile::tempdir().expect("a directory");
        let payloads = directory.path().join("payloads/ab");
        fs::create_dir_all(&payloads).expect("made");
        let ground =
            Ground { prefix: "pmwatch-none".to_owned(), root: directory.path().to_owned(), segments_kept: 0 };
        let segments = directory.path().join("segments");
        fs::create_dir_all(&segments).expect("made");
        for file in [payloads.join(format!("{UUID}-00.bin")), segments.join("0000001a.seg")] {
            let seen = Mutex::default();
            let capacity = Peak { memory: 0, disk: 64 << 10 };
            look(&ground, capacity, &seen);
            assert_eq!(seen.lock().expect("fine").breach, None);
            fs::write(&file, vec![1; 100_000]).expect("written");
            look(&ground, capacity, &seen);
            fs::remove_file(file).expect("removed");
            look(&ground, capacity, &seen);
            let breach = seen.lock().expect("fine").breach.clone();
            assert_eq!(breach.expect("told").rule, Rule::Capacity);
        }
        assert_eq!(ground.strangers(), Vec::<String>::new());
        fs::write(directory.path().join("notes.txt"), "mine").expect("written");
        assert_eq!(ground.strangers(), ["notes.txt"]);
    }
}
