//! The file that clients connect to: made at start, where a dead server's may lie, and removed at the end.

use std::fmt;
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::sys::socket::{self, SOCKET_PATH_BYTES_MAX};

/// Connections that the kernel keeps while the session thread does something else.
const WAITING_MAX: i32 = 128;

/// Why there is no socket.
#[derive(Debug)]
pub enum SocketError {
    /// The path does not fit into the kernel's address.
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// Something else has the name.
    Foreign {
        /// The path.
        path: PathBuf,
    },
    /// A server answers there.
    Served {
        /// The path.
        path: PathBuf,
    },
    /// The group is not known.
    Group {
        /// Its name.
        name: String,
    },
    /// The system refused.
    System {
        /// What was tried.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// Its reason.
        error: io::Error,
    },
}

impl fmt::Display for SocketError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { path } => write!(
                formatter,
                "the socket's path {} has {} bytes, and the system takes {SOCKET_PATH_BYTES_MAX}; set local.socket_path to a shorter one",
                path.display(),
                path.as_os_str().len()
            ),
            Self::Foreign { path } => write!(
                formatter,
                "{} exists and is no socket; remove it, or set local.socket_path to another path",
                path.display()
            ),
            Self::Served { path } => write!(
                formatter,
                "another server listens on {}; stop it, or set local.socket_path to another path",
                path.display()
            ),
            Self::Group { name } => write!(
                formatter,
                "the system knows no group `{name}`; correct local.socket_group, or write the group's number"
            ),
            Self::System { what, path, error } => write!(
                formatter,
                "{what} {} failed: {error}; correct local.socket_path, local.socket_mode or local.socket_group, or set local.enabled: false",
                path.display()
            ),
        }
    }
}

impl std::error::Error for SocketError {}

/// The socket's file. Dropped, it is removed.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
}

impl SocketFile {
    /// Makes it, and listens. A socket that nobody answers on is a dead server's, and is replaced.
    pub(super) fn listen(
        path: &Path,
        mode: u32,
        group: Option<&str>,
    ) -> Result<(Self, OwnedFd), SocketError> {
        let failed = |what| move |error| SocketError::System { what, path: path.to_owned(), error };
        if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(SocketError::TooLong { path: path.to_owned() });
        }
        let group = group.map(group_number).transpose()?;
        if is_stale(path)? {
            fs::remove_file(path).map_err(failed("removing the dead server's socket"))?;
        }
        let listener = socket::listen(path, WAITING_MAX).map_err(failed("making the socket"))?;
        let file = Self { path: path.to_owned() };
        if let Some(group) = group {
            chown(path, None, Some(group)).map_err(failed("giving the socket to its group:"))?;
        }
        fs::set_permissions(path, Permissions::from_mode(mode))
            .map_err(failed("setting the permissions of the socket"))?;
        Ok((file, listener))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "the socket could not be removed; the next start does it");
        }
    }
}

/// Whether a server could make its socket there; changes nothing.
///
/// # Errors
/// [`SocketError`]: why it could not.
pub fn probe_socket(path: &Path, group: Option<&str>) -> Result<(), SocketError> {
    if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        return Err(SocketError::TooLong { path: path.to_owned() });
    }
    group.map(group_number).transpose()?;
    is_stale(path).map(|_| ())
}

/// True when a dead server's socket is there, false when nothing is.
fn is_stale(path: &Path) -> Result<bool, SocketError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => {
            return Err(SocketError::System { what: "looking at", path: path.to_owned(), error });
        }
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::Foreign { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    // A socket of whole messages that is served refuses a stream as of the wrong kind.
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(true),
        _ => Err(SocketError::Served { path: path.to_owned() }),
    }
}

fn group_number(name: &str) -> Result<u32, SocketError> {
    let unknown = || SocketError::Group { name: name.to_owned() };
    match name.parse() {
        Ok(number) => Ok(number),
        Err(_) => socket::group_by_name(name).ok().flatten().ok_or_else(unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_path_when_served_again_then_only_what_is_dead_is_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        let (file, listener) = SocketFile::listen(&path, 0o640, Some("0")).expect("listens");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        let served = SocketFile::listen(&path, 0o640, None).expect_err("refused");
        assert!(matches!(served, SocketError::Served { .. }), "{served}");
        assert!(matches!(probe_socket(&path, None), Err(SocketError::Served { .. })));

        // As a server that was killed leaves it.
        drop(listener);
        std::mem::forget(file);
        probe_socket(&path, Some("root")).expect("it would be replaced");
        let (file, _listener) = SocketFile::listen(&path, 0o600, None).expect("replaced");
        drop(file);
        assert!(!path.exists(), "removed at the end");

        fs::write(&path, "somebody's").expect("written");
        let foreign = SocketFile::listen(&path, 0o640, None).expect_err("refused");
        assert!(matches!(foreign, SocketError::Foreign { .. }), "{foreign}");
        assert_eq!(fs::read_to_string(&path).expect("still there"), "somebody's");
    }

    #[test]
    fn given_what_cannot_be_served_when_asked_for_then_the_error_names_the_key() {
        let long = PathBuf::from(format!("/tmp/{}", "x".repeat(200)));
        for (path, group, words) in [
            (long.as_path(), None, "107; set local.socket_path"),
            (Path::new("/no/such/directory/s"), None, "local.enabled: false"),
            (Path::new("/tmp/s"), Some("no-group-has-this-name"), "correct local.socket_group"),
        ] {
            let error = SocketFile::listen(path, 0o660, group).expect_err("refused").to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
