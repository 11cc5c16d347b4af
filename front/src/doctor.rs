//! `payload-manager doctor`: whether this machine can serve with this configuration, as rows of check, status, detail
//! and fix.
//!
//! Called by main. Looks and changes nothing: beside a running server it reports what that one holds as a warning.
//! The system's rows come from `payload_reactor::preflight`; the rows about the configuration are made here.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use comfy_table::{ContentArrangement, Table, presets};
use payload_reactor::SocketError;
use payload_reactor::preflight::{self, Check, Status};

use crate::config::{Config, DatabaseConfig, LocalConfig, ServerConfig};

/// Width of the table; longer sentences are wrapped.
const TABLE_COLUMNS: u16 = 120;
/// The first bytes of every SQLite file (sqlite.org/fileformat2.html).
const SQLITE_MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Makes every check.
pub fn checks(config: &Config) -> Vec<Check> {
    let mut checks = preflight::run(&preflight::Input {
        ram_capacity: config.storage.ram.capacity,
        shm_prefix: config.storage.ram.shm_prefix.clone(),
        disk_root: config.storage.disk.root_path.clone(),
        disk_capacity: config.storage.disk.capacity,
        shard_count: config.shards.count,
        gpu_configured: !config.storage.gpu.is_empty(),
    });
    checks.push(address(&config.server));
    checks.push(database(&config.database));
    checks.push(disk_root(&config.storage.disk.root_path));
    checks.push(native_sessions(&config.local));
    checks
}

/// The row of a configuration that cannot be loaded: without one, nothing else can be checked.
pub fn configuration_fault(sentence: &str) -> Check {
    Check::fault("configuration", sentence, "correct it; `payload-manager --check-config` shows the result")
}

/// True when the server would not start, or not keep its promises.
pub fn has_fault(checks: &[Check]) -> bool {
    checks.iter().any(|check| check.status == Status::Fault)
}

/// One object a line: `{"check": "kernel", "status": "ok", "detail": "...", "fix": ""}`.
pub fn to_json_lines(checks: &[Check]) -> String {
    let line = |check: &Check| {
        let object = serde_json::json!({
            "check": check.name,
            "status": check.status.as_str(),
            "detail": check.detail,
            "fix": check.fix.as_deref().unwrap_or(""),
        });
        format!("{object}\n")
    };
    checks.iter().map(line).collect()
}

/// A table for people, and its sum.
pub fn to_table(checks: &[Check]) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(TABLE_COLUMNS)
        .set_header(vec!["CHECK", "STATUS", "DETAIL", "FIX"]);
    for check in checks {
        let fix = check.fix.as_deref().unwrap_or("");
        table.add_row(vec![check.name, check.status.as_str(), &check.detail, fix]);
    }
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    let (warnings, faults) = (count(Status::Warning), count(Status::Fault));
    format!("{table}\n{} checks, {warnings} warning(s), {faults} fault(s)\n", checks.len())
}

/// The address is free, or served already.
fn address(server: &ServerConfig) -> Check {
    const NAME: &str = "address";
    const FIX: &str = "set server.bind_address to an address of this host and a free port";
    let address = &server.bind_address;
    let candidates = match address.resolve() {
        Ok(candidates) if !candidates.is_empty() => candidates,
        Ok(_) => return Check::fault(NAME, format!("{address} names no address"), FIX),
        Err(error) => return Check::fault(NAME, format!("{address} cannot be looked up: {error}"), FIX),
    };
    let is_open = !address.is_loopback();
    let is_plain = server.tls.is_none();
    if is_open && is_plain && server.require_tls {
        let detail =
            format!("{address} can be reached by other hosts without TLS, which require_tls forbids");
        return Check::fault(NAME, detail, "set server.tls.certificate and private_key, or bind 127.0.0.1");
    }
    match TcpListener::bind(&candidates[..]) {
        Ok(_) if is_open && (is_plain || server.access_file.is_none()) => Check::warning(
            NAME,
            match is_plain {
                true => format!("{address} is free; other hosts can reach it, without TLS"),
                false => {
                    format!("{address} is free; other hosts can reach it, and everybody may do everything")
                }
            },
            "bind 127.0.0.1, or set server.tls and server.access_file, unless everybody on that network may read and delete payloads",
        ),
        Ok(_) => Check::ok(NAME, format!("{address} is free")),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Check::warning(
            NAME,
            format!("{address} is served already"),
            "nothing, if that is this server; else stop that program, or set server.bind_address to a free port",
        ),
        Err(error) => Check::fault(NAME, format!("{address} cannot be bound: {error}"), FIX),
    }
}

/// Programs on this host can reach the server's memory.
fn native_sessions(local: &LocalConfig) -> Check {
    const NAME: &str = "native sessions";
    let shown = local.socket_path.display();
    if !local.enabled {
        let detail = "native sessions are switched off: programs on this host go through gRPC, too";
        return Check::warning(NAME, detail, "remove local.enabled: false unless that is wanted");
    }
    match payload_reactor::probe_socket(&local.socket_path, local.socket_group.as_deref()) {
        Ok(()) => Check::ok(NAME, format!("the socket {shown} can be made")),
        Err(error @ SocketError::Served { .. }) => Check::warning(
            NAME,
            error.to_string(),
            "nothing, if that is this server; else stop that program, or set local.socket_path",
        ),
        Err(error) => Check::fault(NAME, error.to_string(), "set local.socket_path, or local.enabled: false"),
    }
}

/// The catalog can be opened, or a server has it open.
fn database(database: &DatabaseConfig) -> Check {
    const NAME: &str = "catalog";
    match database {
        DatabaseConfig::Sqlite { path, .. } => sqlite(path),
        DatabaseConfig::Memory => Check::warning(
            NAME,
            "the catalog is kept in memory: payloads are forgotten when the server ends",
            "remove database.memory unless this is a test",
        ),
        #[cfg(feature = "postgres")]
        DatabaseConfig::Postgres { connection_uri, pooled, .. } => {
            match payload_catalog::PostgresStore::probe(&connection_uri.0, *pooled) {
                Ok(()) => Check::ok(NAME, "the PostgreSQL server lets this one in"),
                Err(error) => {
                    let fix = "start it, or set database.postgres.connection_uri";
                    Check::fault(NAME, format!("PostgreSQL: {error}"), fix)
                }
            }
        }
        #[cfg(not(feature = "postgres"))]
        DatabaseConfig::Postgres { .. } => {
            Check::fault(NAME, "this server was built without PostgreSQL", "use database.sqlite")
        }
    }
}

fn sqlite(path: &Path) -> Check {
    const NAME: &str = "catalog";
    let shown = path.display();
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return sqlite_to_be_made(path),
        Err(error) => {
            let fix = "give the server's user read and write access, or set database.sqlite.path";
            return Check::fault(NAME, format!("{shown} cannot be opened: {error}"), fix);
        }
    };
    match starts_as_sqlite(file) {
        Ok(true) => {}
        Ok(false) => {
            let detail = format!("{shown} is not an SQLite database; it was left as it is");
            return Check::fault(NAME, detail, "move it away, or set database.sqlite.path to another file");
        }
        Err(error) => {
            let fix = "check the disk it lies on, or set database.sqlite.path to another file";
            return Check::fault(NAME, format!("{shown} cannot be read: {error}"), fix);
        }
    }
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    match is_locked(Path::new(&lock_path)) {
        Ok(true) => Check::warning(
            NAME,
            format!("{shown} is in use by a server"),
            "nothing, if that is this server; else stop it, or set database.sqlite.path to another file",
        ),
        _ => Check::ok(NAME, format!("{shown} can be opened")),
    }
}

fn sqlite_to_be_made(path: &Path) -> Check {
    const NAME: &str = "catalog";
    let directory = existing_ancestor(path.parent().unwrap_or(path));
    match tempfile::tempfile_in(&directory) {
        Ok(_) => Check::ok(NAME, format!("{} will be made", path.display())),
        Err(error) => Check::fault(
            NAME,
            format!("{} cannot be made: {error}", path.display()),
            "give the server's user write access to the directory, or set database.sqlite.path",
        ),
    }
}

/// An empty file is as good as a new one.
fn starts_as_sqlite(file: File) -> io::Result<bool> {
    let mut start = Vec::with_capacity(SQLITE_MAGIC.len());
    file.take(SQLITE_MAGIC.len() as u64).read_to_end(&mut start)?;
    Ok(start.is_empty() || start == SQLITE_MAGIC)
}

/// The disk root is nobody else's.
fn disk_root(root: &Path) -> Check {
    const NAME: &str = "disk lock";
    let shown = root.display();
    match is_locked(root) {
        Ok(true) => Check::warning(
            NAME,
            format!("{shown} is in use by a server"),
            "nothing, if that is this server; else stop it, or set storage.disk.root_path to another directory",
        ),
        Ok(false) => Check::ok(NAME, format!("{shown} is free")),
        Err(error) if error.kind() == ErrorKind::NotFound => Check::ok(NAME, format!("{shown} will be made")),
        Err(error) => Check::fault(
            NAME,
            format!("{shown} cannot be locked: {error}"),
            "give the server's user access, or set storage.disk.root_path to a directory on a local filesystem",
        ),
    }
}

/// True while another process holds the lock of this file or directory; the lock is let go at once.
fn is_locked(path: &Path) -> io::Result<bool> {
    match File::open(path)?.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn existing_ancestor(path: &Path) -> PathBuf {
    path.ancestors().find(|ancestor| ancestor.is_dir()).map_or_else(|| PathBuf::from("/"), Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use payload_catalog::Synchronous;

    use super::*;
    use crate::config::BindAddress;

    fn server(host: &str, port: u16, require_tls: bool) -> ServerConfig {
        ServerConfig { require_tls, ..ServerConfig::plain(BindAddress { host: host.into(), port }) }
    }

    #[test]
    fn given_addresses_when_checked_then_taken_is_a_warning_and_foreign_a_fault() {
        assert_eq!(address(&server("127.0.0.1", 0, true)).status, Status::Ok);
        assert_eq!(address(&server("0.0.0.0", 0, true)).status, Status::Fault, "TLS required");
        // An address of TEST-NET-1 (RFC 5737) belongs to no host.
        assert_eq!(address(&server("192.0.2.1", 0, false)).status, Status::Fault);
        let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = taken.local_addr().expect("bound").port();
        let check = address(&server("127.0.0.1", port, false));
        assert_eq!(check.status, Status::Warning);
        assert!(check.detail.contains("served already"), "{check:?}");
    }

    #[test]
    fn given_catalog_files_when_checked_then_foreign_ones_are_faults_and_untouched() {
        let directory = tempfile::tempdir().expect("writable");
        let path = directory.path().join("catalog.db");
        let at = |path: &Path| {
            database(&DatabaseConfig::Sqlite { path: path.into(), synchronous: Synchronous::Full })
        };
        assert_eq!(at(&path).status, Status::Ok, "will be made");
        assert!(!path.exists(), "but not by doctor");
        std::fs::write(&path, "a letter to my aunt, by chance called catalog.db").expect("writable");
        assert_eq!(at(&path).status, Status::Fault);
        std::fs::write(&path, [&SQLITE_MAGIC[..], b"more"].concat()).expect("writable");
        assert_eq!(at(&path).status, Status::Ok);
        let lock = File::create(directory.path().join("catalog.db.lock")).expect("writable");
        lock.try_lock().expect("nobody has it");
        assert_eq!(at(&path).status, Status::Warning, "in use");
        assert_eq!(at(directory.path()).status, Status::Fault, "a directory");
        assert_eq!(at(Path::new("/proc/catalog.db")).status, Status::Fault);
        assert_eq!(database(&DatabaseConfig::Memory).status, Status::Warning);
    }

    #[test]
    fn given_a_disk_root_when_another_holds_it_then_warning() {
        let directory = tempfile::tempdir().expect("writable");
        assert_eq!(disk_root(directory.path()).status, Status::Ok);
        assert_eq!(disk_root(&directory.path().join("later")).status, Status::Ok);
        let lock = File::open(directory.path()).expect("readable");
        lock.try_lock().expect("nobody has it");
        assert_eq!(disk_root(directory.path()).status, Status::Warning);
    }

    #[test]
    fn given_checks_when_printed_then_each_is_a_row_and_a_line() {
        let checks = [
            Check::ok("kernel", "Linux 6.18"),
            Check::warning("cores", "1 core", "add one"),
            configuration_fault("`shards.count` is 0"),
        ];
        let lines = to_json_lines(&checks);
        let objects: Vec<serde_json::Value> =
            lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(objects.len(), 3);
        assert_eq!((objects[0]["check"].as_str(), objects[0]["fix"].as_str()), (Some("kernel"), Some("")));
        assert_eq!(
            (objects[1]["status"].as_str(), objects[2]["status"].as_str()),
            (Some("warn"), Some("fault"))
        );
        let table = to_table(&checks);
        assert!(
            table.contains("add one") && table.ends_with("3 checks, 1 warning(s), 1 fault(s)\n"),
            "{table}"
        );
        assert!(has_fault(&checks) && !has_fault(&checks[..2]));
    }
}
