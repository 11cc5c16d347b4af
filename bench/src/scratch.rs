//! What one server of ours leaves behind, and its removal: a directory, and segments in /dev/shm.
//!
//! The segments have a prefix of this process and this server, so they can be removed by name: nobody else uses it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context as _;
use payload_types::ByteCount;

/// Servers that this process started, to tell their prefixes apart.
static SERVERS: AtomicU32 = AtomicU32::new(0);

/// A place for a server; dropped, nothing is left of it.
#[derive(Debug)]
pub struct Scratch {
    directory: PathBuf,
    shm_prefix: String,
}

impl Scratch {
    /// A new directory below `parent`, with a configuration for a server on any free loopback port.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(parent: &Path, ram: ByteCount, disk: ByteCount) -> anyhow::Result<Self> {
        let number = SERVERS.fetch_add(1, Ordering::Relaxed);
        let shm_prefix = prefix(std::process::id(), number);
        let scratch = Self { directory: parent.join(format!("server-{number}")), shm_prefix };
        fs::create_dir(&scratch.directory).context("a server's directory cannot be made")?;
        let text = format!(
            "server:\n  bind_address: \"127.0.0.1:0\"\nlogging:\n  level: warn\nstorage:\n  ram:\n    capacity_bytes: {}\n    shm_prefix: {}\n  disk:\n    capacity_bytes: {}\n",
            ram.0, scratch.shm_prefix, disk.0
        );
        fs::write(scratch.config(), text).context("a server's configuration cannot be written")?;
        Ok(scratch)
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.directory.join("config.yaml")
    }

    /// `--data-dir`.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Where the server's messages go.
    pub fn log(&self) -> PathBuf {
        self.directory.join("stderr.log")
    }
}

/// Begins the names of every segment of every server that this process starts.
pub fn prefix_of_process(process: u32) -> String {
    format!("pm-bench-{process:010}-")
}

/// Of one length for every process, so that descriptors of every run have the same size on the wire.
pub fn prefix(process: u32, number: u32) -> String {
    format!("{}{:03}", prefix_of_process(process), number % 1000)
}

/// Removes what begins with `prefix` from /dev/shm, as far as that can be done.
pub fn remove_segments(prefix: &str) {
    let Ok(entries) = fs::read_dir("/dev/shm") else { return };
    for entry in entries.flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()) {
            drop(fs::remove_file(entry.path()));
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is in the context's directory, which goes next.
        drop(fs::remove_dir_all(&self.directory));
        remove_segments(&self.shm_prefix);
    }
}
