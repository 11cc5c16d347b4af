//! A real PostgreSQL server for tests: a data directory, a socket directory and a port of its own. And PgBouncer before it.
//!
//! ```text
//! Postgres::start --initdb, pg_ctl start--> databases, made one a test --crash, start_again--> ... --drop--> nothing left
//!       '--> a shell that waits for this process' end, however it ends, and then stops the server and removes its files
//! ```
//!
//! initdb refuses root, so the server runs as `postgres` where this process is root. Catalog's tests, end-to-end tests
//! and the bench include this file; it uses nothing but std.

use std::fs;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Where Debian keeps the servers of each version, beside what is on the path.
const DEBIAN: &str = "/usr/lib/postgresql";

/// Tries to find a port that is still free when the server starts.
const PORTS_TRIED: usize = 5;

/// A pooler listens within a second; on a busy machine within ten.
const POOLER_LOOKS: usize = 1000;
/// See [`POOLER_LOOKS`].
const POOLER_LOOK: Duration = Duration::from_millis(10);

static SERVERS: AtomicU32 = AtomicU32::new(0);
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// See the module.
pub struct Postgres {
    directory: PathBuf,
    programs: PathBuf,
    user: Option<(u32, u32)>,
    port: u16,
    /// Stops the server when its standard input is closed: when this value is dropped, or this process ends.
    guard: Child,
}

impl Postgres {
    /// Starts a server with an empty cluster.
    ///
    /// # Errors
    /// Why there is none: no PostgreSQL is installed, or what it said.
    pub fn start() -> Result<Self, String> {
        let programs = programs()?;
        let is_root = fs::metadata("/proc/self")
            .map(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
            .map_err(|error| format!("/proc cannot be read: {error}"))?;
        let user = if is_root { Some(postgres_user()?) } else { None };
        let number = SERVERS.fetch_add(1, Ordering::Relaxed);
        // Short: the path of a Unix socket has at most 107 bytes.
        let directory = std::env::temp_dir().join(format!("pm-pg-{}-{number}", std::process::id()));
        fs::create_dir(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        if let Some((uid, gid)) = user {
            chown(&directory, Some(uid), Some(gid)).map_err(|error| error.to_string())?;
        }
        let guard = guard(&directory, &programs, user)?;
        let mut server = Self { directory, programs, user, port: 0, guard };
        server.said(
            "initdb",
            &["-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"],
        )?;
        let settings = "listen_addresses = '127.0.0.1'\nlog_statement = 'none'\nmax_connections = 120\n\
            shared_buffers = '64MB'\nrestart_after_crash = on\n";
        let path = server.directory.join("data/postgresql.auto.conf");
        fs::write(&path, settings).map_err(|error| error.to_string())?;
        let mut tried = Err("no port is free".to_owned());
        for _ in 0..PORTS_TRIED {
            server.port = free_port()?;
            tried = server.start_again();
            if tried.is_ok() {
                break;
            }
        }
        tried.map(|()| server)
    }

    /// Starts the server, on the same port, after [`Postgres::crash`] or [`Postgres::stop`]. Returns once it answers.
    ///
    /// # Errors
    /// What pg_ctl said.
    pub fn start_again(&self) -> Result<(), String> {
        let options = format!("-p {} -k {}", self.port, self.directory.display());
        self.said("pg_ctl", &["-D", "data", "-w", "-t", "60", "-l", "log", "-o", &options, "start"])
    }

    /// Lets the server speak TLS, as `localhost`, by a certificate of an authority of its own; returns that one's
    /// certificate. Connections that are open are closed.
    ///
    /// # Errors
    /// What openssl or pg_ctl said. PostgreSQL's package brings openssl along.
    pub fn speak_tls(&self) -> Result<PathBuf, String> {
        let openssl = |arguments: &str| {
            let mut command = command(Path::new("openssl"), &self.directory, self.user);
            command.args(arguments.split(' '));
            run(command).map(drop)
        };
        let authority = "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -subj /CN=test -days 2";
        openssl(&format!("{authority} -addext basicConstraints=critical,CA:TRUE"))?;
        openssl("req -newkey rsa:2048 -nodes -keyout data/server.key -out server.csr -subj /CN=localhost")?;
        fs::write(self.directory.join("san.cnf"), "subjectAltName = DNS:localhost\n")
            .map_err(|error| error.to_string())?;
        let signed = "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2";
        openssl(&format!("{signed} -extfile san.cnf -out data/server.crt"))?;
        self.sql("postgres", "ALTER SYSTEM SET ssl = on")?;
        self.stop();
        self.start_again()?;
        Ok(self.directory.join("ca.pem"))
    }

    /// Ends every process of the server at once, as a loss of power does, but for what the kernel has in memory.
    ///
    /// # Panics
    /// When the server did not run.
    pub fn crash(&self) {
        self.said("pg_ctl", &["-D", "data", "-m", "immediate", "stop"]).expect("it runs");
    }

    /// Ends the server in order; open connections are closed.
    ///
    /// # Panics
    /// When the server did not run.
    pub fn stop(&self) {
        self.said("pg_ctl", &["-D", "data", "-m", "fast", "stop"]).expect("it runs");
    }

    /// Stops every process of the server where it is, as a machine that hangs does: connections stay, nobody answers.
    ///
    /// # Panics
    /// When the server did not run.
    pub fn freeze(&self) {
        // The postmaster first: then no process is added while the others are told.
        self.signal("STOP");
        self.signal("STOP");
    }

    /// Lets a server go on after [`Postgres::freeze`].
    ///
    /// # Panics
    /// When the server did not run.
    pub fn thaw(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let text = fs::read_to_string(self.directory.join("data/postmaster.pid")).expect("it runs");
        let postmaster = text.lines().next().expect("its first line is the process").to_owned();
        let children = fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children"));
        let children = children.expect("the kernel names a process' children");
        let mut command = command(Path::new("/bin/sh"), &self.directory, self.user);
        // A child that has ended meanwhile is none to be told.
        command.args(["-c", "kill -s \"$0\" \"$@\" || true", name, &postmaster]);
        command.args(children.split_whitespace());
        run(command).expect("signals are sent");
    }

    /// Makes an empty database, and returns the URI of it.
    ///
    /// # Panics
    /// When the server does not answer.
    pub fn database(&self) -> String {
        let name = format!("test{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}")).expect("a database");
        format!("postgresql://postgres@127.0.0.1:{}/{name}", self.port)
    }

    /// Runs a statement with psql, and returns what it printed: a line a row, unadorned.
    ///
    /// # Errors
    /// What psql said.
    pub fn sql(&self, database: &str, statement: &str) -> Result<String, String> {
        let mut command = self.client("psql", database);
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement]);
        run(command)
    }

    fn client(&self, program: &str, database: &str) -> Command {
        let (port, host) = (self.port.to_string(), self.directory.display().to_string());
        let mut command = self.command(program);
        command.args(["-h", &host, "-p", &port, "-U", "postgres", "-d", database]);
        command
    }

    /// A dump of a database by pg_dump, with these arguments.
    ///
    /// # Errors
    /// What pg_dump said.
    pub fn dump(&self, database: &str, args: &[&str]) -> Result<String, String> {
        let mut command = self.client("pg_dump", database);
        command.args(args);
        run(command)
    }

    /// Runs a script of psql's, as pg_dump writes it.
    ///
    /// # Errors
    /// What psql said.
    pub fn sql_file(&self, database: &str, script: &str) -> Result<String, String> {
        let path = self.directory.join("script.sql");
        fs::write(&path, script).map_err(|error| error.to_string())?;
        let mut command = self.client("psql", database);
        command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f"]).arg(&path);
        run(command)
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    fn command(&self, program: &str) -> Command {
        command(&self.programs.join(program), &self.directory, self.user)
    }

    fn said(&self, program: &str, args: &[&str]) -> Result<(), String> {
        let mut command = self.command(program);
        command.args(args);
        run(command).map(|_| ()).map_err(|said| format!("{said}\n{}", self.log()))
    }
}

/// PgBouncer before a server, pooling by transaction: what follows a transaction of one connection runs on any of two
/// connections to the server. Ends when dropped, or with this process; keep it no longer than its server.
pub struct Pooler {
    port: u16,
    /// Stops the pooler when its standard input is closed.
    guard: Child,
}

impl Postgres {
    /// Starts a pooler before this server.
    ///
    /// # Errors
    /// Why there is none: no PgBouncer is installed, or what it said.
    pub fn pooler(&self) -> Result<Pooler, String> {
        let found =
            std::env::split_paths("/usr/sbin:/usr/bin:/usr/local/bin").map(|place| place.join("pgbouncer"));
        let program = found.into_iter().find(|path| path.is_file());
        let program = program.ok_or("no PgBouncer is installed (Debian's package: pgbouncer)")?;
        let port = free_port()?;
        let name = format!("pooler-{port}");
        // An idle connection goes soon: each test has a database of its own, and the server few connections.
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
            listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 2\n\
            max_client_conn = 400\nserver_idle_timeout = 1\nserver_login_retry = 0.1\n",
            self.port
        );
        let ini = self.directory.join(format!("{name}.ini"));
        fs::write(&ini, settings).map_err(|error| format!("{}: {error}", ini.display()))?;
        let script = "\"$0\" -q \"$1.ini\" > \"$1.log\" 2>&1 < /dev/null & read forever; kill $!; wait";
        let mut command = command(Path::new("/bin/sh"), &self.directory, self.user);
        command.process_group(0).args(["-c", script]).arg(&program).arg(&name);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let guard = command.spawn().map_err(|error| format!("/bin/sh: {error}"))?;
        let pooler = Pooler { port, guard };
        for _ in 0..POOLER_LOOKS {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Ok(pooler);
            }
            std::thread::sleep(POOLER_LOOK);
        }
        let log = fs::read_to_string(self.directory.join(format!("{name}.log"))).unwrap_or_default();
        Err(format!("PgBouncer does not listen; it said: {log}"))
    }
}

impl Pooler {
    /// The URI of a database, as [`Postgres::database`] gave it, through this.
    pub fn uri(&self, direct: &str) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/{}", self.port, name_of(direct))
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _reaped = self.guard.wait();
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Closes its standard input; then it stops the server.
        drop(self.guard.stdin.take());
        let _reaped = self.guard.wait();
    }
}

/// The name of the database in a URI of [`Postgres::database`].
pub fn name_of(uri: &str) -> &str {
    uri.rsplit('/').next().expect("a path")
}

fn command(program: &Path, directory: &Path, user: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(directory).env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C");
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
    command
}

/// Runs a program to its end. Its output goes through files: a server that it starts keeps pipes open.
fn run(mut command: Command) -> Result<String, String> {
    let name = format!("{command:?}");
    let (out, error) = (tempfile()?, tempfile()?);
    let reopened = |file: &fs::File| file.try_clone().map_err(|error| error.to_string());
    command.stdin(Stdio::null()).stdout(reopened(&out)?).stderr(reopened(&error)?);
    let status = command.status().map_err(|error| format!("{name}: {error}"))?;
    let (out, error) = (contents(out)?, contents(error)?);
    if status.success() { Ok(out) } else { Err(format!("{name} failed: {out}{error}")) }
}

/// A file without a name.
fn tempfile() -> Result<fs::File, String> {
    static FILES: AtomicU32 = AtomicU32::new(0);
    let number = FILES.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("pm-pg-said-{}-{number}", std::process::id()));
    let file = fs::File::options().read(true).write(true).create_new(true).open(&path);
    let removed = fs::remove_file(&path);
    file.and_then(|file| removed.map(|()| file)).map_err(|error| format!("{}: {error}", path.display()))
}

fn contents(mut file: fs::File) -> Result<String, String> {
    use std::io::{Read as _, Seek as _};
    let mut text = String::new();
    file.rewind().and_then(|()| file.read_to_string(&mut text)).map_err(|error| error.to_string())?;
    Ok(text)
}

/// A shell that outlives this process, to clean up behind it.
fn guard(directory: &Path, programs: &Path, user: Option<(u32, u32)>) -> Result<Child, String> {
    let script = "read forever; \"$0/pg_ctl\" -D data -m immediate stop > guard 2>&1; cd / && rm -rf \"$1\"";
    let mut command = command(Path::new("/bin/sh"), directory, user);
    // Its own group: an interrupt of the tests must not end it before its work is done.
    command.process_group(0).args(["-c", script]).arg(programs).arg(directory);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map_err(|error| format!("/bin/sh: {error}"))
}

/// The directory of initdb, pg_ctl and psql: the newest of Debian's, or one on the path.
fn programs() -> Result<PathBuf, String> {
    let mut versions: Vec<(u32, PathBuf)> = match fs::read_dir(DEBIAN) {
        Ok(entries) => entries
            .flatten()
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
            .collect(),
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(format!("{DEBIAN}: {error}")),
    };
    versions.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = versions.into_iter().rev().map(|(_, place)| place).chain(std::env::split_paths(&path));
    let has_all =
        |place: &PathBuf| ["initdb", "pg_ctl", "psql"].iter().all(|name| place.join(name).is_file());
    places
        .into_iter()
        .find(has_all)
        .ok_or_else(|| "no PostgreSQL server is installed (Debian's package: postgresql)".to_owned())
}

/// User and group of `postgres`.
fn postgres_user() -> Result<(u32, u32), String> {
    let users = fs::read_to_string("/etc/passwd").map_err(|error| format!("/etc/passwd: {error}"))?;
    let found = users.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, ..] = fields[..] else { return None };
        (name == "postgres").then(|| Some((uid.parse().ok()?, gid.parse().ok()?)))?
    });
    found.ok_or_else(|| "there is no user `postgres`, and the server does not run as root".to_owned())
}

fn free_port() -> Result<u16, String> {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|error| error.to_string())
}
