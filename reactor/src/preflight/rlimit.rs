//! This process's resource limits: raising them, and the checks that report them.
//!
//! The soft limits are conservative defaults of login shells; a server raises them to what it is allowed.

use std::fs;
use std::io;

use payload_types::ByteCount;

use super::Check;
use super::sys::{self, Limit, Resource};

/// A glommio executor refuses to start with less; shards run on plain threads then.
const MEMLOCK_BYTES_MIN: u64 = 512 << 10;
/// What a shard may lock: 64 KiB of buffers registered on each of its executor's three rings, and the 9 MiB of
/// staging of a transfer thread, of which there are about as many as shards.
const MEMLOCK_BYTES_PER_SHARD: u64 = 3 * (64 << 10) + (9 << 20);
/// Descriptors: no payload needs one of its own, so 1,024 serve several hundred connections.
const NOFILE_MIN: u64 = 256;
/// See [`NOFILE_MIN`].
const NOFILE_WANTED: u64 = 1024;
/// The bit of CAP_IPC_LOCK in a capability set (capabilities(7)): locked memory is not counted for its holders.
const CAP_IPC_LOCK: u32 = 14;

/// A limit after it was raised as far as allowed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Raised {
    /// What was enforced before; 0 when it could not be read.
    pub before: u64,
    /// What is enforced now; `u64::MAX` for no limit.
    pub soft: u64,
    /// One sentence when that is less than the server wants: what it is short of, and what to do.
    pub missing: Option<String>,
}

/// Raises the soft RLIMIT_MEMLOCK to the hard one, and the hard one too where it is too small to start an executor
/// and this process may. Never fails: a limit that cannot be raised is reported as it is.
pub fn raise_memlock(shard_count: u16) -> Raised {
    raised(Resource::Memlock, || memlock(shard_count))
}

/// Raises the soft RLIMIT_NOFILE to the hard one. Never fails, as [`raise_memlock`].
pub fn raise_nofile() -> Raised {
    raised(Resource::Nofile, nofile)
}

fn raised(resource: Resource, raise_and_check: impl FnOnce() -> Check) -> Raised {
    let soft = || sys::limit(resource).map_or(0, |limit| limit.soft);
    let before = soft();
    let check = raise_and_check();
    let missing = check.fix.map(|fix| format!("{}; {fix}", check.detail));
    Raised { before, soft: soft(), missing }
}

/// Raises the limit and returns what is enforced then.
fn raise(resource: Resource, minimum: u64) -> io::Result<u64> {
    let Limit { hard, .. } = sys::limit(resource)?;
    let enough = hard.max(minimum);
    // A hard limit below the minimum may be raised by privileged processes only; the others take what there is, and
    // where even that is refused, what they had.
    let _ = sys::set_limit(resource, Limit { soft: enough, hard: enough })
        .or_else(|_| sys::set_limit(resource, Limit { soft: hard, hard }));
    sys::limit(resource).map(|limit| limit.soft)
}

/// Enough memory may be locked for every shard. Never a fault: with less, everything works more slowly.
pub(super) fn memlock(shard_count: u16) -> Check {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    match raise(Resource::Memlock, MEMLOCK_BYTES_MIN) {
        Ok(soft) => memlock_of(soft, shard_count, may_lock(&status)),
        Err(error) => Check::warning(
            "locked memory",
            format!("RLIMIT_MEMLOCK cannot be read: {error}"),
            "allow getrlimit in the sandbox around the server",
        ),
    }
}

/// True when the capability set in `/proc/self/status` has CAP_IPC_LOCK.
pub(super) fn may_lock(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok())
        .is_some_and(|capabilities| capabilities >> CAP_IPC_LOCK & 1 == 1)
}

/// [`memlock`] with this soft limit.
pub(super) fn memlock_of(soft: u64, shard_count: u16, may_lock: bool) -> Check {
    const NAME: &str = "locked memory";
    const FIX: &str = "raise `ulimit -l` (LimitMEMLOCK=infinity in systemd, --ulimit memlock=-1 in Docker)";
    let wanted = MEMLOCK_BYTES_PER_SHARD * u64::from(shard_count);
    if soft == u64::MAX {
        return Check::ok(NAME, "unlimited");
    }
    let shown = ByteCount(soft);
    if soft < MEMLOCK_BYTES_MIN {
        let needed = ByteCount(MEMLOCK_BYTES_MIN);
        let detail = format!("RLIMIT_MEMLOCK is {shown}; below {needed} shards fall back to plain threads");
        return Check::warning(NAME, detail, FIX);
    }
    if soft < wanted && !may_lock {
        let wanted = ByteCount(wanted);
        let detail =
            format!("RLIMIT_MEMLOCK is {shown}; below {wanted} some transfers use unregistered buffers");
        return Check::warning(NAME, detail, FIX);
    }
    Check::ok(NAME, format!("{shown} for {shard_count} shard(s)"))
}

/// Enough descriptors may be open.
pub(super) fn nofile() -> Check {
    match raise(Resource::Nofile, NOFILE_MIN) {
        Ok(soft) => nofile_of(soft),
        Err(error) => Check::warning(
            "open files",
            format!("RLIMIT_NOFILE cannot be read: {error}"),
            "allow getrlimit in the sandbox around the server",
        ),
    }
}

/// [`nofile`] with this soft limit.
pub(super) fn nofile_of(soft: u64) -> Check {
    const NAME: &str = "open files";
    const FIX: &str =
        "raise `ulimit -n` (LimitNOFILE= in systemd, --ulimit nofile= in Docker) to 1024 or more";
    if soft < NOFILE_MIN {
        Check::fault(NAME, format!("RLIMIT_NOFILE is {soft}; the server needs {NOFILE_MIN}"), FIX)
    } else if soft < NOFILE_WANTED {
        Check::warning(NAME, format!("RLIMIT_NOFILE is {soft}; connections beyond it are refused"), FIX)
    } else {
        Check::ok(NAME, if soft == u64::MAX { "unlimited".to_owned() } else { soft.to_string() })
    }
}
