//! `get` and `cat`: payloads into files and to standard output, read in place under a lease and verified.
//!
//!     lease -> map -> copy + hash -> release        get: into a temporary file beside the target, then renamed
//!         '-- on OBJECT, `get`: straight from the store, by a signed URL or from its directory
//!
//! A target is only ever replaced by a whole and verified payload. What is no regular file (a pipe, /dev/stdout) is
//! written to directly.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use payload_client::{AcquireOptions, Client, ClientError, ReadLease};
use payload_types::{PayloadId, Tier};
use tokio::runtime::Handle;

use crate::common::{for_each_id, shown};
use crate::interrupt::Interrupt;
use crate::output::Output;
use crate::progress;
use crate::view::WithPath;

/// Mode of a new file, less the umask.
const FILE_MODE: u32 = 0o666;

/// Arguments of `get`.
#[derive(clap::Args)]
pub struct GetArgs {
    /// What to fetch.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    /// Write to this file (replacing it), or into this directory; the payload's id in the present directory without it.
    #[arg(short, long, value_name = "FILE|DIR")]
    output: Option<PathBuf>,
}

/// Arguments of `cat`.
#[derive(clap::Args)]
pub struct CatArgs {
    /// What to write, one after the other.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

/// Fetches each payload into its file.
pub async fn run_get(client: &Client, output: &mut Output, args: GetArgs) -> anyhow::Result<()> {
    let interrupt = Interrupt::install()?;
    let target = args.output.unwrap_or_else(|| PathBuf::from("."));
    let is_dir = target.is_dir();
    if args.ids.len() > 1 && !is_dir {
        anyhow::bail!(
            "{} is one file for {} payloads; give a directory with -o",
            shown(&target),
            args.ids.len()
        );
    }
    let bar = progress::bar(0);
    let fetch = async |client: &Client, id: PayloadId| {
        interrupt.check().map_err(stopped)?;
        let path = if is_dir { target.join(id.to_string()) } else { target.clone() };
        // `./` of the default says nothing.
        let path = path.strip_prefix(".").map(Path::to_owned).unwrap_or(path);
        let guard = interrupt.clone();
        let found = client.resolve(id).await?;
        bar.inc_length(found.size.0);
        bar.set_message(shown(&path));
        if found.tier == Tier::Object {
            return fetch_object(client, id, path, guard, bar.clone()).await;
        }
        let bar = bar.clone();
        let copy = move |lease: &ReadLease| {
            let checksum = replace(&path, |file| lease.copy_to(guard.guard(bar.wrap_write(file))))?;
            Ok(WithPath::new(lease.descriptor(), Some(checksum), &path))
        };
        client.read_leased(id, &AcquireOptions::default(), copy).await?
    };
    for_each_id(client, output, &args.ids, fetch, |output, _, row| {
        bar.suspend(|| {
            output.row(&row)?;
            output.flush()
        })
    })
    .await?;
    bar.finish_and_clear();
    Ok(interrupt.check()?)
}

/// Writes each payload to standard output.
pub async fn run_cat(client: &Client, output: &mut Output, args: CatArgs) -> anyhow::Result<()> {
    let interrupt = Interrupt::install()?;
    let print = async |client: &Client, id| {
        interrupt.check().map_err(stopped)?;
        let guard = interrupt.clone();
        let copy = move |lease: &ReadLease| {
            // Past the line buffer of `io::stdout`: the bytes go out in the chunks they are read in.
            let stdout = io::stdout().as_fd().try_clone_to_owned().map_err(cannot_write)?;
            lease.copy_to(guard.guard(File::from(stdout)))
        };
        client.read_leased(id, &AcquireOptions::default(), copy).await?
    };
    for_each_id(client, output, &args.ids, print, |_, _, _| Ok(())).await?;
    Ok(interrupt.check()?)
}

/// Fetches an object straight from the store, past the server.
async fn fetch_object(
    client: &Client,
    id: PayloadId,
    path: PathBuf,
    interrupt: Interrupt,
    bar: ProgressBar,
) -> Result<WithPath, ClientError> {
    let (client, runtime) = (client.clone(), Handle::current());
    // `replace` wants the bytes while it is called.
    let fetched = tokio::task::spawn_blocking(move || {
        let (descriptor, checksum) = replace(&path, |file| {
            let writer = interrupt.guard(bar.wrap_write(file.try_clone().map_err(cannot_write)?));
            runtime.block_on(client.fetch(id, writer))
        })?;
        Ok(WithPath::new(&descriptor, Some(checksum), &path))
    });
    fetched.await.unwrap_or_else(|failed| std::panic::resume_unwind(failed.into_panic()))
}

/// Lets `fill` write a file and puts that at `path`, only when it succeeded; whoever has the old file open keeps it.
pub fn replace<T>(path: &Path, fill: impl FnOnce(&File) -> Result<T, ClientError>) -> Result<T, ClientError> {
    let (path, mode) = match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => {
            let file = OpenOptions::new().write(true).open(path).map_err(cannot_write)?;
            return fill(&file);
        }
        // Through a symbolic link: what it leads to is replaced, not the link.
        Ok(metadata) => (fs::canonicalize(path).map_err(cannot_write)?, Some(metadata.permissions())),
        Err(_) => (path.to_owned(), None),
    };
    let dir = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let temporary = tempfile::Builder::new()
        .prefix(".payloadctl-")
        .permissions(Permissions::from_mode(FILE_MODE))
        .tempfile_in(dir)
        .map_err(|error| cannot_create(&error, dir))?;
    let value = fill(temporary.as_file())?;
    if let Some(mode) = mode {
        temporary.as_file().set_permissions(mode).map_err(cannot_write)?;
    }
    temporary.persist(&path).map_err(|error| cannot_write(error.error))?;
    Ok(value)
}

/// Without the temporary name, which means nothing to anybody.
fn cannot_create(error: &io::Error, dir: &Path) -> ClientError {
    ClientError::Input(match error.kind() {
        io::ErrorKind::NotFound => format!("there is no directory {}; make it first", dir.display()),
        kind => format!("cannot make a file in {}: {kind}", dir.display()),
    })
}

fn stopped(interrupted: crate::interrupt::Interrupted) -> ClientError {
    cannot_write(io::Error::other(interrupted))
}

fn cannot_write(reason: io::Error) -> ClientError {
    ClientError::Io { what: "cannot write the output", reason }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .expect("readable")
            .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn given_a_file_when_replaced_then_link_and_mode_stay_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "old").expect("written");
        fs::set_permissions(&file, Permissions::from_mode(0o640)).expect("set");
        std::os::unix::fs::symlink("file", &link).expect("linked");
        replace(&link, |mut out| out.write_all(b"new").map_err(cannot_write)).expect("replaced");
        assert_eq!(fs::read(&file).expect("there"), b"new");
        assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o640);
        assert!(link.is_symlink());
        assert_eq!(names(dir.path()), ["file", "link"]);
    }

    #[test]
    fn given_a_copy_that_fails_when_replaced_then_the_old_file_stays_as_it_was() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("file");
        fs::write(&file, "old").expect("written");
        let result = replace(&file, |mut out| {
            out.write_all(b"half").map_err(cannot_write)?;
            Err::<(), _>(ClientError::Input("no".to_owned()))
        });
        assert_eq!(result.expect_err("failed").to_string(), "no");
        assert_eq!(fs::read(&file).expect("there"), b"old");
        assert_eq!(names(dir.path()), ["file"]);
    }

    #[test]
    fn given_a_device_when_written_then_it_is_not_replaced() {
        replace(Path::new("/dev/null"), |mut out| out.write_all(b"x").map_err(cannot_write))
            .expect("written");
        assert!(!fs::metadata("/dev/null").expect("there").is_file());
    }

    #[test]
    fn given_an_absent_directory_when_written_to_then_the_sentence_names_it() {
        let error = replace(Path::new("/absent/file"), |_| Ok(())).expect_err("absent").to_string();
        assert!(error.contains("/absent") && !error.contains("payloadctl-"), "{error}");
    }
}
