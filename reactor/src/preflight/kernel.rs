//! Checks of the kernel: its version, io_uring, the clock.

use std::fs;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Check, sys};

/// glommio's own minimum; older kernels get plain threads and plain reads and writes.
const VERSION_MIN: (u32, u32) = (5, 8);
/// Registered buffers on shared memory work from here on (FACTS.md).
const VERSION_WANTED: (u32, u32) = (5, 14);
/// 2025-01-01, in seconds since 1970: no machine that runs this program has an honest clock before it.
const CLOCK_SECONDS_MIN: u64 = 1_735_689_600;

/// The kernel is recent enough.
pub(super) fn version() -> Check {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    version_of(release.trim())
}

/// [`version`] of this release.
pub(super) fn version_of(release: &str) -> Check {
    const NAME: &str = "kernel";
    let mut numbers =
        release.split(|symbol: char| !symbol.is_ascii_digit()).map_while(|part| part.parse().ok());
    let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
        return Check::warning(
            NAME,
            format!("the kernel's release `{release}` cannot be read as a version"),
            "make sure that it is Linux 5.14 or newer, with /proc mounted",
        );
    };
    if (major, minor) < VERSION_MIN {
        Check::warning(
            NAME,
            format!("Linux {release} lacks the io_uring calls that the reactor uses (5.8)"),
            "boot Linux 5.14 or newer; until then the server uses plain threads, which is slower",
        )
    } else if (major, minor) < VERSION_WANTED {
        Check::warning(
            NAME,
            format!("Linux {release} cannot register shared memory for I/O (5.14)"),
            "boot Linux 5.14 or newer; until then copies between tiers are slower",
        )
    } else {
        Check::ok(NAME, format!("Linux {release}"))
    }
}

/// io_uring is permitted. Where it is not, shards and transfers run on plain threads: slower, but complete.
pub(super) fn io_uring() -> Check {
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
    ring_outcome(sys::ring_probe(), disabled.as_deref().map(str::trim))
}

/// [`io_uring`], told how setting up a ring ended and what the sysctl `kernel.io_uring_disabled` says.
pub(super) fn ring_outcome(probe: io::Result<()>, disabled: Option<&str>) -> Check {
    const NAME: &str = "io_uring";
    let Err(error) = probe else { return Check::ok(NAME, "a ring could be set up") };
    let (detail, fix) = match (error.raw_os_error(), disabled) {
        (Some(libc::EPERM), Some("2")) => (
            "kernel.io_uring_disabled is 2: nobody may use io_uring".to_owned(),
            "run `sysctl -w kernel.io_uring_disabled=0` on the host",
        ),
        (Some(libc::EPERM), Some("1")) => (
            "kernel.io_uring_disabled is 1: only the group kernel.io_uring_group may use io_uring".to_owned(),
            "run `sysctl -w kernel.io_uring_disabled=0`, or add the server's user to that group",
        ),
        (Some(libc::EPERM | libc::EACCES), _) => (
            "io_uring is refused to this process, most likely by a container's seccomp profile".to_owned(),
            "start the container with a seccomp profile that allows io_uring_setup, io_uring_enter and \
             io_uring_register",
        ),
        (Some(libc::ENOSYS), _) => (
            "this kernel, or the sandbox around it, has no io_uring".to_owned(),
            "run on a kernel built with CONFIG_IO_URING, or outside the sandbox",
        ),
        (Some(libc::ENOMEM), _) => (
            "setting up a ring needs more locked memory than RLIMIT_MEMLOCK allows".to_owned(),
            "raise `ulimit -l` (LimitMEMLOCK= in systemd, --ulimit memlock=-1 in Docker)",
        ),
        _ => (format!("setting up a ring failed: {error}"), "see io_uring_setup(2) for this error"),
    };
    Check::warning(NAME, format!("{detail}; the server falls back to plain threads, reads and writes"), fix)
}

/// The wall clock is set, and cheap to read.
pub(super) fn clock() -> Check {
    const SOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let source = fs::read_to_string(SOURCE).unwrap_or_default();
    clock_of(seconds, source.trim())
}

/// [`clock`] with these seconds since 1970 and this clock source; empty: unknown.
pub(super) fn clock_of(seconds: u64, source: &str) -> Check {
    const NAME: &str = "clock";
    if seconds < CLOCK_SECONDS_MIN {
        return Check::warning(
            NAME,
            "the wall clock is set to a time before 2025; payload ids and expiry times would be wrong",
            "set the clock, for example by starting an NTP client",
        );
    }
    if matches!(source, "hpet" | "acpi_pm" | "jiffies" | "pit") {
        return Check::warning(
            NAME,
            format!("the clock source is {source}: reading the time costs microseconds"),
            "boot with a usable tsc (or kvm-clock) clock source",
        );
    }
    let source = if source.is_empty() { "unknown" } else { source };
    Check::ok(NAME, format!("set; clock source {source}"))
}
