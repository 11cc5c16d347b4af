//! Checks of the disk root: writable, enough space, O_DIRECT, and file leases.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use payload_types::ByteCount;

use super::machine::{self, existing_ancestor};
use super::{Check, Input, sys};

/// Begins the names of the files that the checks create on the disk root.
const SCRATCH_PREFIX: &str = ".payload-manager";
/// The fix of checks that need a file.
const FIRST_WRITABLE: &str = "make the directory writable first";

/// A new empty file without a name: a server that is killed meanwhile leaves nothing. Where the file system has no
/// such files, one whose name is already gone again.
pub(super) fn scratch_file(directory: &Path, prefix: &str) -> io::Result<File> {
    if let Ok(file) = nameless(directory, 0) {
        return Ok(file);
    }
    // Whatever was wrong, this says it better.
    let path = scratch_path(directory, prefix);
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// O_TMPFILE (open(2)), with `flags`.
fn nameless(directory: &Path, flags: libc::c_int) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE | flags).open(directory)
}

fn scratch_path(directory: &Path, prefix: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    directory.join(format!("{prefix}-preflight-{}-{number}", std::process::id()))
}

/// Files can be created on the disk root, or where it will be made.
pub(super) fn writable(input: &Input) -> Check {
    const NAME: &str = "disk root";
    let directory = existing_ancestor(&input.disk_root);
    let shown = input.disk_root.display();
    match scratch_file(&directory, SCRATCH_PREFIX) {
        Ok(_) if directory == input.disk_root => Check::ok(NAME, format!("{shown} is writable")),
        Ok(_) => Check::ok(NAME, format!("{shown} will be made; {} is writable", directory.display())),
        Err(error) => Check::fault(
            NAME,
            format!("no file can be created in {}: {error}", directory.display()),
            "give the server's user write access, or set storage.disk.root_path to a writable directory",
        ),
    }
}

/// The disk has room for the tier.
pub(super) fn space(input: &Input) -> Check {
    const NAME: &str = "disk space";
    match machine::disk_space_until(&input.disk_root, input.disk_capacity) {
        Ok(space) => space_of(space.free, space.held, input.disk_capacity),
        Err(error) => Check::warning(
            NAME,
            format!("the free space of {} cannot be asked for: {error}", input.disk_root.display()),
            "check that storage.disk.root_path is on a mounted filesystem",
        ),
    }
}

/// [`space`] with this much free, this much already held by the root, and this capacity.
pub(super) fn space_of(free: ByteCount, held: ByteCount, capacity: ByteCount) -> Check {
    const NAME: &str = "disk space";
    let enough = free >= capacity;
    let detail = if enough {
        format!("{free} free, for a disk tier of {capacity}")
    } else {
        format!("{free} free, {held} held already, for a disk tier of {capacity}")
    };
    if free.0.saturating_add(held.0) < capacity.0 {
        let fix = "free space on that filesystem, or lower storage.disk.capacity_bytes";
        return Check::warning(NAME, detail, fix);
    }
    Check::ok(NAME, detail)
}

/// Files on the disk root can be read and written without the page cache.
pub(super) fn direct_io(input: &Input) -> Check {
    const NAME: &str = "direct I/O";
    const FIX: &str = "put storage.disk.root_path on ext4, xfs or another filesystem with O_DIRECT";
    let directory = existing_ancestor(&input.disk_root);
    if nameless(&directory, libc::O_DIRECT).is_ok() {
        return Check::ok(NAME, "O_DIRECT works on the disk root");
    }
    let path = scratch_path(&directory, SCRATCH_PREFIX);
    let opened =
        OpenOptions::new().write(true).create_new(true).mode(0o600).custom_flags(libc::O_DIRECT).open(&path);
    // Where O_DIRECT is refused (EINVAL) the kernel has created the file all the same.
    let removed = fs::remove_file(&path);
    match opened {
        Ok(_) if removed.is_ok() => Check::ok(NAME, "O_DIRECT works on the disk root"),
        Ok(_) => Check::warning(NAME, "a file made on the disk root could not be removed", FIX),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Check::warning(
            NAME,
            "the filesystem of the disk root has no O_DIRECT: transfers go through the page cache",
            FIX,
        ),
        Err(error) => Check::warning(NAME, format!("not checked: {error}"), FIRST_WRITABLE),
    }
}

/// F_SETLEASE works on the disk root.
pub(super) fn leases(input: &Input) -> Check {
    leases_in("disk leases", &existing_ancestor(&input.disk_root), SCRATCH_PREFIX)
}

/// F_SETLEASE works on files of this directory.
pub(super) fn leases_in(name: &'static str, directory: &Path, prefix: &str) -> Check {
    let shown = directory.display();
    let file = match scratch_file(directory, prefix) {
        Ok(file) => file,
        Err(error) => {
            let detail = format!("not checked: no file can be created in {shown} ({error})");
            return Check::warning(name, detail, FIRST_WRITABLE);
        }
    };
    match sys::write_lease_probe(&file) {
        Ok(()) => Check::ok(name, format!("F_SETLEASE works in {shown}")),
        Err(error) => {
            let network = sys::filesystem(directory).is_ok_and(|filesystem| filesystem.kind == sys::NFS);
            let fix = if network {
                "use a local filesystem: NFS cannot tell whether a client still has a file open"
            } else {
                "use a local filesystem that has file leases (/proc/sys/fs/leases-enable must be 1)"
            };
            let detail = format!(
                "F_SETLEASE fails in {shown}: {error}; space that clients may still map would never be reused"
            );
            Check::fault(name, detail, fix)
        }
    }
}
