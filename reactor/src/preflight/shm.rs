//! Checks of shared memory: mounted, writable, large enough, and able to prove that nobody uses a segment.

use std::path::Path;

use super::{Check, Input, disk, sys};

/// Where POSIX shared memory lives on Linux (shm_overview(7)).
pub(super) const SHM_DIR: &str = "/dev/shm";

/// Shared memory is mounted, writable and has room for the RAM tier.
pub(super) fn space(input: &Input) -> Check {
    space_in(Path::new(SHM_DIR), input)
}

/// [`space`] in this directory.
pub(super) fn space_in(directory: &Path, input: &Input) -> Check {
    const NAME: &str = "shared memory";
    let shown = directory.display();
    let filesystem = match sys::filesystem(directory) {
        Ok(filesystem) => filesystem,
        Err(error) => {
            return Check::fault(
                NAME,
                format!("{shown} cannot be used: {error}"),
                "mount a tmpfs on /dev/shm",
            );
        }
    };
    if let Err(error) = disk::scratch_file(directory, &input.shm_prefix) {
        return Check::fault(
            NAME,
            format!("no segment can be created in {shown}: {error}"),
            "give the server's user write access (mode 1777 is usual), or free space there",
        );
    }
    let (total, free, wanted) = (filesystem.total, filesystem.free, input.ram_capacity);
    if filesystem.kind != sys::TMPFS {
        return Check::warning(
            NAME,
            format!("{shown} is not a tmpfs: segments would be files on a disk"),
            "mount a tmpfs on /dev/shm",
        );
    }
    // tmpfs reports no blocks when it was mounted without a limit.
    if total.0 > 0 && free < wanted {
        return Check::warning(
            NAME,
            format!("{free} of {total} are free in {shown}, less than the RAM tier's {wanted}"),
            "remove what else is there, remount it larger (--shm-size in Docker), or lower \
             storage.ram.capacity_bytes",
        );
    }
    Check::ok(NAME, format!("{free} of {total} free for a RAM tier of {wanted}"))
}

/// F_SETLEASE works on segments.
pub(super) fn leases(input: &Input) -> Check {
    disk::leases_in("shared memory leases", Path::new(SHM_DIR), &input.shm_prefix)
}
