//! What the tests of the object store have in common: stores to test, payloads to store, and answers waited for.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use payload_drivers::object::{
    Archive, Compression, Download, FileRange, Journal, MemoryJournal, ObjectConfig, ObjectDriver,
    ObjectError, S3Options, Sidecar, Upload, Uploaded,
};
use payload_types::{ByteCount, Checksum, Generation, PayloadId};
use xxhash_rust::xxh3::xxh3_64;

use crate::seaweed::{ACCESS_KEY, SECRET_KEY, Seaweed};

/// The smallest that S3 takes, so that payloads of a few parts are small.
pub const PART: u64 = 5 << 20;

/// The tests' S3 server; it ends with this process.
pub fn server() -> &'static Seaweed {
    static SERVER: OnceLock<Seaweed> = OnceLock::new();
    SERVER.get_or_init(|| {
        let server = Seaweed::start().expect("an S3 server");
        server.bucket("test");
        server
    })
}

/// A name that no other test has.
pub fn fresh(what: &str) -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    format!("{what}-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// A payload's id that no other test has.
pub fn fresh_id() -> PayloadId {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    PayloadId::mint(7 << 12, u64::from(std::process::id()) << 32 | NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// On the S3 server, below a prefix of its own.
pub fn s3() -> ObjectConfig {
    s3_at(server().endpoint())
}

pub fn s3_at(endpoint: String) -> ObjectConfig {
    ObjectConfig {
        root: format!("s3://test/{}", fresh("prefix")),
        s3: S3Options {
            endpoint: Some(endpoint),
            allow_http: true,
            region: Some("us-east-1".to_owned()),
            access_key: Some(ACCESS_KEY.to_owned()),
            secret_key: Some(SECRET_KEY.to_owned()),
            ..S3Options::default()
        },
        part_bytes: PART,
        parts_in_flight: 4,
        backoff: Duration::from_millis(20),
        ..ObjectConfig::default()
    }
}

/// In a directory.
pub fn local(directory: &Path) -> ObjectConfig {
    ObjectConfig {
        root: format!("file://{}", directory.display()),
        part_bytes: PART,
        parts_in_flight: 4,
        ..ObjectConfig::default()
    }
}

/// A driver with a journal in memory.
pub fn open(config: &ObjectConfig) -> (ObjectDriver, Arc<MemoryJournal>) {
    let journal = Arc::new(MemoryJournal::default());
    let driver = ObjectDriver::open(config.clone(), Arc::clone(&journal) as Arc<dyn Journal>);
    (driver.expect("a driver"), journal)
}

/// Every kind of store, each with a driver that was probed.
pub fn each_store(compression: Compression, test: impl Fn(&ObjectDriver, &MemoryJournal, &Rival)) {
    let directory = tempfile::tempdir().expect("a directory");
    for config in [local(directory.path()), s3()] {
        let config = ObjectConfig { compression, ..config };
        let (driver, journal) = open(&config);
        driver.probe().expect("a store that is up");
        let (rival, _) = open(&ObjectConfig { compression: Compression::None, ..config });
        test(&driver, &journal, &Rival(rival));
    }
}

/// Another program with the same prefix.
pub struct Rival(ObjectDriver);

impl Rival {
    /// Puts an object of its own in a payload's place.
    pub fn replaces(&self, id: PayloadId, bytes: &[u8]) {
        self.removes(id);
        store(&self.0, id, bytes).expect("stored");
    }

    pub fn removes(&self, id: PayloadId) {
        wait(|done| self.0.remove(id, done)).expect("removed");
    }

    pub fn reads(&self, id: PayloadId, size: usize) -> Result<Vec<u8>, ObjectError> {
        fetch(&self.0, id, &Stored::plain(size))
    }
}

/// Bytes that zstd and lz4 make smaller, and that no two ranges have alike.
pub fn bytes(size: u64) -> Vec<u8> {
    let words = (0..size.div_ceil(8)).flat_map(|word| (word / 3 * 0x9E37_79B9).to_le_bytes());
    words.take(size as usize).collect()
}

pub fn file_of(bytes: &[u8]) -> FileRange {
    let mut file: File = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    FileRange { file: Arc::new(file), offset: 0, size: ByteCount(bytes.len() as u64) }
}

/// Waits for the answer of an operation.
pub fn wait<T: Send + 'static>(
    submit: impl FnOnce(Box<dyn FnOnce(Result<T, ObjectError>) + Send>) -> Result<(), ObjectError>,
) -> Result<T, ObjectError> {
    let (sender, answer) = mpsc::sync_channel(1);
    submit(Box::new(move |result| drop(sender.send(result))))?;
    answer.recv_timeout(Duration::from_secs(120)).expect("every operation is answered")
}

pub fn upload_of(id: PayloadId, bytes: &[u8]) -> Upload {
    Upload {
        id,
        generation: Generation(1),
        source: Arc::new(file_of(bytes)),
        expected: Some(Checksum(xxh3_64(bytes))),
        archive: Archive::default(),
    }
}

pub fn store(driver: &ObjectDriver, id: PayloadId, bytes: &[u8]) -> Result<Uploaded, ObjectError> {
    wait(|done| driver.upload(upload_of(id, bytes), done))
}

/// What a download is told of what was stored.
pub struct Stored {
    pub size: usize,
    pub expected: Option<Checksum>,
    pub compression: Compression,
    pub etag: Option<String>,
}

impl Stored {
    pub fn plain(size: usize) -> Self {
        Self { size, expected: None, compression: Compression::None, etag: None }
    }

    pub fn of(uploaded: &Uploaded, size: usize) -> Self {
        Self { size, expected: Some(uploaded.checksum), compression: uploaded.compression, etag: None }
    }
}

pub fn fetch(driver: &ObjectDriver, id: PayloadId, stored: &Stored) -> Result<Vec<u8>, ObjectError> {
    let sink = file_of(&vec![0xEE; stored.size]);
    let download = Download {
        id,
        size: ByteCount(stored.size as u64),
        expected: stored.expected,
        compression: stored.compression,
        etag: stored.etag.clone(),
        sink: Arc::new(sink.clone()),
    };
    wait(|done| driver.download(download, done))?;
    let mut found = vec![0; stored.size];
    std::os::unix::fs::FileExt::read_exact_at(&*sink.file, &mut found, 0).expect("read");
    Ok(found)
}

pub fn sidecar(driver: &ObjectDriver, id: PayloadId) -> Result<Sidecar, ObjectError> {
    wait(|done| driver.sidecar(id, done))
}

/// The names below a directory.
pub fn names(directory: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(directory)
        .expect("readable")
        .map(|entry| entry.expect("readable").path())
        .collect();
    found.sort();
    found
}
