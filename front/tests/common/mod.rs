//! A real server for tests: the built binary, a temporary data directory, a free port, a segment prefix of its own.
//! Dropping it kills the process and removes what it left.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use payload_client::{AllocateOptions, Client, Descriptor};
use payload_types::{ByteCount, Tier};
use tempfile::TempDir;

/// How long a server may take to do what it is told before a test gives up.
const PATIENCE: Duration = Duration::from_secs(30);

static PREFIXES: AtomicU32 = AtomicU32::new(0);

/// A data directory and the settings of the servers that are started on it, one after the other.
pub struct Place {
    pub directory: TempDir,
    pub shm_prefix: String,
    settings: Vec<(String, String)>,
}

impl Place {
    pub fn new() -> Self {
        let number = PREFIXES.fetch_add(1, Ordering::Relaxed);
        // It ends in a letter: no prefix may be the start of another one, or one test removes what is another's.
        let shm_prefix = format!("pmfront{}x{number}p", std::process::id());
        let directory = tempfile::tempdir().expect("a temporary directory");
        let place = Self { directory, shm_prefix: shm_prefix.clone(), settings: Vec::new() };
        place
            .with("STORAGE__RAM__SHM_PREFIX", &shm_prefix)
            .with("STORAGE__RAM__CAPACITY_BYTES", "64MiB")
            .with("STORAGE__DISK__CAPACITY_BYTES", "64MiB")
            .with("SERVER__BIND_ADDRESS", "127.0.0.1:0")
            .with("LOGGING__LEVEL", "error")
    }

    /// Sets a configuration key by its environment variable.
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.settings.push((format!("PAYLOAD_MANAGER__{key}"), value.to_owned()));
        self
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_payload-manager"));
        command
            .args(["--data-dir", self.directory.path().to_str().expect("a path of text"), "serve"])
            .envs(self.settings.iter().cloned())
            .stdin(Stdio::null());
        command
    }

    pub fn start(&self) -> Server {
        let mut child = self.command().stdout(Stdio::piped()).spawn().expect("the server starts");
        let mut line = String::new();
        let out = child.stdout.take().expect("piped");
        BufReader::new(out).read_line(&mut line).expect("the server says where it listens");
        let address = line.trim().strip_prefix("payload-manager listening on ").expect("its one line");
        Server { address: address.to_owned(), child }
    }

    /// Starts one that must not come up, and gives what it said.
    pub fn start_refused(&self) -> String {
        let output = self.command().output().expect("the server runs");
        assert!(!output.status.success(), "it must refuse");
        assert!(output.stdout.is_empty(), "it must not announce itself");
        String::from_utf8(output.stderr).expect("text")
    }

    /// Names under this place's prefix, without the intent log.
    pub fn segments(&self) -> Vec<String> {
        let entries = std::fs::read_dir("/dev/shm").expect("shared memory");
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with(&self.shm_prefix) && !name.contains("-intent-"))
            .collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for entry in std::fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&self.shm_prefix) {
                let _gone_already = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// A running server.
pub struct Server {
    pub address: String,
    child: Child,
}

impl Server {
    pub async fn client(&self) -> Client {
        Client::connect_grpc(&self.address).await.expect("the server answers")
    }

    /// What `kill -9` does.
    pub fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("sh").args(["-c", "kill -\"$1\" \"$0\"", &pid, name]).status();
        assert!(sent.expect("sh").success());
    }

    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            match self.child.try_wait().expect("a child") {
                Some(status) => return status,
                None if start.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(5)),
                None => panic!("the server did not end"),
            }
        }
    }

    pub fn stop(mut self) {
        self.signal("TERM");
        assert_eq!(self.wait().code(), Some(0));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// `len` bytes that differ from those of every other seed.
pub fn bytes(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|index| (index as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

pub async fn put(client: &Client, tier: Tier, bytes: Vec<u8>) -> Descriptor {
    let size = ByteCount(bytes.len() as u64);
    let options = AllocateOptions { tier, ..AllocateOptions::default() };
    client.put_bytes(std::io::Cursor::new(bytes), size, &options).await.expect("put")
}

/// What a reader finds, and on which tier.
pub async fn read(client: &Client, id: payload_types::PayloadId) -> (Tier, Vec<u8>) {
    client
        .read_leased(id, &payload_client::AcquireOptions::default(), |lease| {
            (lease.descriptor().tier, lease.to_vec())
        })
        .await
        .expect("read")
}
