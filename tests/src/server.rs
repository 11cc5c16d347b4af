//! A real server for end-to-end tests: the built `payload-manager`, a directory, a segment prefix and a port of its own.
//!
//! ```text
//! Place (directory, prefix, settings) --start--> Server (process, address, what it logged) --kill, stop--> start again
//!       '--launch--> Launch (process that may not listen yet) --listening--> Server
//! ```
//!
//! A [`Place`] outlives its servers: starting again on it is a restart (the port may differ). Dropping a server kills
//! its process; dropping a place removes its directory and everything with its prefix in /dev/shm. Nothing here sleeps
//! to synchronise: everything waited for is polled, up to [`PATIENCE`].

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::sys::{self, Signal};

/// How long anything may take before a test gives up: far longer than any of it takes on two slow cores.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often something waited for is looked at.
const LOOK: Duration = Duration::from_millis(5);

static PLACES: AtomicU32 = AtomicU32::new(0);

/// A program of the workspace: beside the running program, or, for tests, which lie in target/PROFILE/deps, above it.
///
/// # Panics
/// When it was not built.
pub fn program(name: &str) -> PathBuf {
    let running = std::env::current_exe().expect("a running program has a path");
    let beside = running.parent().expect("a program lies in a directory");
    let target = match beside.ends_with("deps") {
        true => beside.parent().expect("deps lies in target/PROFILE"),
        false => beside,
    };
    let path = target.join(name);
    assert!(
        path.is_file(),
        "{} is missing; run tests/run, or cargo build --release --workspace --bins first",
        path.display()
    );
    path
}

/// Looks until `look` finds something.
///
/// # Panics
/// After [`PATIENCE`], naming what did not happen.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(LOOK).await;
    }
}

/// True when this process may mount file systems in a namespace of its own; prints why a test is left out when not.
pub fn may_mount() -> bool {
    let tried = Command::new("unshare").args(["-m", "true"]).stderr(Stdio::null()).status();
    let may = tried.is_ok_and(|status| status.success());
    if !may {
        println!("left out: this needs a mount namespace (`unshare -m`), which only root may make here");
    }
    may
}

/// A data directory, a prefix in /dev/shm, and the settings of the servers started on them one after the other.
pub struct Place {
    directory: TempDir,
    is_kept: bool,
    prefix: String,
    settings: Vec<(String, String)>,
    mounts: Vec<(PathBuf, String)>,
    open_files: Option<u64>,
    program: &'static str,
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

impl Place {
    /// Nothing there yet; 64 MiB of RAM tier and of disk tier, two shards. Committed bytes stay open read-write to
    /// the server's own user, as v1 clients open them, and as tests of hostile ones need it when they are not root.
    pub fn new() -> Self {
        let number = PLACES.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("pme2e-{}-{number}", std::process::id());
        let directory = tempfile::Builder::new().prefix("pm-e2e-").tempdir().expect("a temporary directory");
        let place = Self {
            directory,
            is_kept: false,
            prefix: prefix.clone(),
            settings: Vec::new(),
            mounts: Vec::new(),
            open_files: None,
            program: "payload-manager",
        };
        place
            .with("SERVER__BIND_ADDRESS", "127.0.0.1:0")
            .with("SHARDS__COUNT", "2")
            .with("STORAGE__RAM__SHM_PREFIX", &prefix)
            .with("STORAGE__RAM__CAPACITY_BYTES", "64MiB")
            .with("STORAGE__RAM__SEGMENT_MODE", "0660")
            .with("STORAGE__DISK__FILE_MODE", "0660")
            .with("STORAGE__DISK__CAPACITY_BYTES", "64MiB")
    }

    /// Sets a configuration key by its environment variable, less `PAYLOAD_MANAGER__`. The last word counts.
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.set(key, value);
        self
    }

    /// As [`Place::with`], between two starts.
    pub fn set(&mut self, key: &str, value: &str) {
        let key = format!("PAYLOAD_MANAGER__{key}");
        self.settings.retain(|(other, _)| *other != key);
        self.settings.push((key, value.to_owned()));
    }

    /// Leaves a key to its default.
    pub fn without(mut self, key: &str) -> Self {
        self.settings.retain(|(other, _)| *other != format!("PAYLOAD_MANAGER__{key}"));
        self
    }

    /// The server sees an empty file system of `size` (as mount writes sizes) at `path`, which nobody else sees. It
    /// goes with the server. Only where [`may_mount`].
    pub fn with_tmpfs(mut self, path: &Path, size: &str) -> Self {
        self.mounts.push((path.to_owned(), size.to_owned()));
        self
    }

    /// Servers are this program of the workspace, which takes the same command line.
    pub fn with_program(mut self, name: &'static str) -> Self {
        self.program = name;
        self
    }

    /// The server may have this many files open.
    pub fn with_open_files(mut self, files: u64) -> Self {
        self.open_files = Some(files);
        self
    }

    /// The data directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Leaves everything where it is when this is dropped, and says where that is.
    pub fn keep(&mut self) {
        self.is_kept = true;
        self.directory.disable_cleanup(true);
        eprintln!("kept: {}, /dev/shm/{}-*", self.path().display(), self.prefix);
    }

    /// What names in /dev/shm begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The server's command line and environment.
    pub fn command(&self) -> Command {
        let server = program(self.program);
        let mut command = if self.mounts.is_empty() {
            Command::new(server)
        } else {
            // exec keeps the process id: the server itself is our child.
            let mut script = String::new();
            for (path, size) in &self.mounts {
                script += &format!(
                    "mkdir -p '{0}' && mount -t tmpfs -o size={size} tmpfs '{0}' && ",
                    path.display()
                );
            }
            let mut command = Command::new("unshare");
            command.args(["-m", "sh", "-c", &format!("{script} exec \"$0\" \"$@\"")]).arg(server);
            command
        };
        command.arg("--data-dir").arg(self.path()).arg("serve");
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PAYLOAD_MANAGER")) {
            command.env_remove(name);
        }
        command.envs(self.settings.iter().cloned()).stdin(Stdio::null());
        if let Some(files) = self.open_files {
            sys::open_files_limit(&mut command, files);
        }
        command
    }

    /// Starts a server and waits until it listens.
    ///
    /// # Panics
    /// When it does not; with what it said.
    pub fn start(&self) -> Server {
        self.launch().listening().unwrap_or_else(|said| panic!("the server does not listen; it said: {said}"))
    }

    /// Starts a server's process, and waits for nothing.
    ///
    /// # Panics
    /// When there is no such program.
    pub fn launch(&self) -> Launch {
        let mut child =
            self.command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the server starts");
        let log = Arc::new(Mutex::new(String::new()));
        let reader = log_collect(child.stderr.take().expect("piped"), Arc::clone(&log));
        let out = child.stdout.take().expect("piped");
        let (sender, said) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = BufReader::new(out).read_line(&mut line);
            // Nobody listens any more when the test has given up.
            drop(sender.send(read.map(|_| line)));
        });
        let root = match self.mounts.is_empty() {
            true => PathBuf::from("/"),
            false => PathBuf::from(format!("/proc/{}/root", child.id())),
        };
        let server = Server {
            address: String::new(),
            root,
            prefix: self.prefix.clone(),
            child,
            log,
            reader: Some(reader),
        };
        Launch { server, said }
    }

    /// Starts a server that must not come up, and gives what it said on stderr.
    ///
    /// # Panics
    /// When it serves, or fails with anything but exit code 1.
    pub fn start_refused(&self) -> String {
        let output = ended(self.command());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.stdout.is_empty(), "a server that is refused does not announce itself");
        assert_eq!(output.status.code(), Some(1), "{said}");
        said
    }

    /// Segments in /dev/shm with this place's prefix, without the intent log.
    pub fn segments(&self) -> Vec<String> {
        named(Path::new("/dev/shm"), &self.prefix)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        let own = format!("{}-", self.prefix);
        for entry in fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&own) {
                let _gone_already = fs::remove_file(entry.path());
            }
        }
    }
}

/// What `payloadctl --json` says of a server.
///
/// # Panics
/// As [`ended`].
pub fn payloadctl(server: &Server, args: &[&str]) -> Output {
    let mut command = Command::new(program("payloadctl"));
    command.args(args).arg("--json").env("PAYLOAD_MANAGER_ADDR", &server.address);
    ended(command)
}

/// The objects that a program wrote, one a line.
///
/// # Panics
/// When it wrote something else.
pub fn objects(output: &Output) -> Vec<Value> {
    let text = std::str::from_utf8(&output.stdout).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect()
}

/// Runs a program that ends by itself.
///
/// # Panics
/// When it does not end within [`PATIENCE`].
pub fn ended(mut command: Command) -> Output {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let (out, log) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(String::new())));
    let mut pipe = child.stdout.take().expect("piped");
    let kept = Arc::clone(&out);
    let out_reader =
        std::thread::spawn(move || drop(pipe.read_to_end(&mut kept.lock().expect("nobody panicked"))));
    let log_reader = log_collect(child.stderr.take().expect("piped"), Arc::clone(&log));
    let status = wait(&mut child);
    let status = status.unwrap_or_else(|| {
        drop(child.kill());
        panic!("{command:?} did not end; it said: {}", log.lock().expect("nobody panicked"))
    });
    drop((out_reader.join(), log_reader.join()));
    let stdout = std::mem::take(&mut *out.lock().expect("nobody panicked"));
    let stderr = std::mem::take(&mut *log.lock().expect("nobody panicked")).into_bytes();
    Output { status, stdout, stderr }
}

fn log_collect(pipe: impl std::io::Read + Send + 'static, log: Arc<Mutex<String>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let mut log = log.lock().expect("nobody panicked");
            log.push_str(&line);
            log.push('\n');
        }
    })
}

fn named(directory: &Path, prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let (segments, intents) = (format!("{prefix}-"), format!("{prefix}-intent-"));
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(&segments) && !name.starts_with(&intents))
        .collect()
}

fn wait(child: &mut Child) -> Option<ExitStatus> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().expect("our child") {
            return Some(status);
        }
        std::thread::sleep(LOOK);
    }
    None
}

/// A server's process that may not listen yet.
pub struct Launch {
    server: Server,
    said: mpsc::Receiver<std::io::Result<String>>,
}

impl Launch {
    /// Waits until it listens.
    ///
    /// # Errors
    /// What it logged, when it does not within [`PATIENCE`].
    pub fn listening(self) -> Result<Server, String> {
        let Self { mut server, said } = self;
        let address =
            said.recv_timeout(PATIENCE).ok().and_then(Result::ok).and_then(|line| {
                line.trim().strip_prefix("payload-manager listening on ").map(str::to_owned)
            });
        match address {
            Some(address) => {
                server.address = address;
                Ok(server)
            }
            None => {
                drop(server.child.kill());
                Err(server.log())
            }
        }
    }

    /// What `kill -9` does, wherever in its start it is.
    ///
    /// # Errors
    /// What it logged, when it had ended by itself before.
    pub fn kill(mut self) -> Result<(), String> {
        match self.server.is_running() {
            true => {
                self.server.kill();
                Ok(())
            }
            false => Err(self.server.log()),
        }
    }
}

/// A running server.
pub struct Server {
    /// `host:port` it listens on.
    pub address: String,
    root: PathBuf,
    prefix: String,
    child: Child,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Server {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A path of the server's, as this process reaches it.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").expect("the server shows absolute paths"))
    }

    /// Segments in the server's own /dev/shm.
    pub fn segments(&self) -> Vec<String> {
        named(&self.path("/dev/shm"), &self.prefix)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.log.lock().expect("nobody panicked").clone()
    }

    /// True while its process runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("our child").is_none()
    }

    /// Files it has open.
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("our child's").count()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        sys::signal(self.pid(), signal).expect("it runs");
    }

    /// What `kill -9` does; returns when the process is gone.
    pub fn kill(mut self) {
        self.signal(Signal::Kill);
        self.exit_code();
    }

    /// Asks it to stop, as an init system does, and waits for it.
    ///
    /// # Panics
    /// When it does not exit with 0.
    pub fn stop(mut self) {
        self.signal(Signal::Term);
        assert_eq!(self.exit_code(), Some(0), "{}", self.log());
    }

    /// Waits for its end; `None`: a signal ended it.
    pub fn exit_code(&mut self) -> Option<i32> {
        let status =
            wait(&mut self.child).unwrap_or_else(|| panic!("it did not end; it said: {}", self.log()));
        status.code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _reaped = self.child.wait();
        if let Some(reader) = self.reader.take() {
            drop(reader.join());
        }
        if std::thread::panicking() {
            eprintln!("-- the server's log\n{}", self.log());
        }
    }
}
