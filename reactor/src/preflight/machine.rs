//! The facts of the machine that defaults are computed from: memory and its limits, shared memory, cores, disk.
//!
//! Callers: front's configuration, which takes them as a value so that its tests do not depend on the machine; and
//! the checks of this folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use payload_types::ByteCount;

use super::{Check, shm, sys};

/// A cgroup v1 limit from here on means none: the kernel writes the largest page-aligned `i64`.
const CGROUP_UNLIMITED: u64 = 1 << 62;

/// What a node has to work with.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Physical memory.
    pub memory: ByteCount,
    /// The cgroup's limit on it, where there is one.
    pub memory_limit: Option<ByteCount>,
    /// The size of /dev/shm, where it has a limit.
    pub shm: Option<ByteCount>,
    /// Cores that this process may run on.
    pub cores: usize,
    /// Asks for the space of the filesystem on which a directory lies or will be made.
    pub disk_space: fn(&Path) -> io::Result<DiskSpace>,
}

/// The space of a disk root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskSpace {
    /// What this process may still write.
    pub free: ByteCount,
    /// What the directory holds already; it counts as room for the tier, or the default would shrink at each start.
    pub held: ByteCount,
}

impl Machine {
    /// This machine.
    pub fn probe() -> Self {
        let processes = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self {
            memory: memory_total(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
            memory_limit: cgroup_limit(&processes, Path::new("/sys/fs/cgroup")),
            shm: sys::filesystem(Path::new(shm::SHM_DIR))
                .ok()
                .map(|shm| shm.total)
                .filter(|total| total.0 > 0),
            cores: thread::available_parallelism().map_or(1, usize::from),
            disk_space,
        }
    }

    /// What this process may use of the memory: the smaller of what there is and what the cgroup allows.
    pub fn memory_usable(&self) -> ByteCount {
        self.memory_limit.map_or(self.memory, |limit| limit.min(self.memory))
    }
}

/// `MemTotal` of /proc/meminfo; 0 when it cannot be read.
pub(super) fn memory_total(meminfo: &str) -> ByteCount {
    let kibibytes = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    ByteCount(kibibytes.unwrap_or(0) << 10)
}

/// The smallest memory limit on the way from this process's cgroup to the root, of cgroup v1 and v2.
///
/// `processes` is /proc/self/cgroup, `mount` is where cgroups are mounted. Inside a container the path may name a
/// group that is mounted as the root, so the mount's own files are asked as well.
pub(super) fn cgroup_limit(processes: &str, mount: &Path) -> Option<ByteCount> {
    let mut smallest: Option<u64> = None;
    for line in processes.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let places: &[(&str, &str)] = if controllers.is_empty() {
            &[("", "memory.max"), ("unified", "memory.max")]
        } else if controllers.split(',').any(|controller| controller == "memory") {
            &[("memory", "memory.limit_in_bytes")]
        } else {
            continue;
        };
        for (hierarchy, file) in places {
            for group in Path::new(path.trim_start_matches('/')).ancestors() {
                let text =
                    fs::read_to_string(mount.join(hierarchy).join(group).join(file)).unwrap_or_default();
                let limit = text.trim().parse().ok().filter(|limit| *limit < CGROUP_UNLIMITED);
                smallest = smallest.into_iter().chain(limit).min();
            }
        }
    }
    smallest.map(ByteCount)
}

/// The nearest directory on the way up that exists.
pub(super) fn existing_ancestor(path: &Path) -> PathBuf {
    path.ancestors().find(|ancestor| ancestor.is_dir()).map_or_else(|| PathBuf::from("/"), Path::to_path_buf)
}

/// The space of the filesystem on which `root` lies or will be made.
pub(super) fn disk_space(root: &Path) -> io::Result<DiskSpace> {
    disk_space_until(root, ByteCount(u64::MAX))
}

/// [`disk_space`], where what the root holds already is counted until it and the free space are `enough` together: a
/// root with 10^6 files takes seconds to count.
pub(super) fn disk_space_until(root: &Path, enough: ByteCount) -> io::Result<DiskSpace> {
    let free = sys::filesystem(&existing_ancestor(root))?.free;
    Ok(DiskSpace { free, held: ByteCount(bytes_held(root, enough.0.saturating_sub(free.0))) })
}

/// The disk blocks of the files below `directory`, or of as many of them as have `enough`. A link is not followed;
/// what cannot be read counts as nothing.
fn bytes_held(directory: &Path, enough: u64) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut held = 0u64;
    let mut pending = vec![directory.to_path_buf()];
    while held < enough
        && let Some(directory) = pending.pop()
    {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            if held >= enough {
                break;
            }
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => pending.push(entry.path()),
                // st_blocks counts 512 bytes, whatever the filesystem (stat(2)).
                Ok(metadata) => held = held.saturating_add(metadata.blocks() * 512),
                Err(_) => {}
            }
        }
    }
    held
}

/// The RAM tier fits the memory that this process may use.
pub(super) fn memory(machine: &Machine, ram_capacity: ByteCount) -> Check {
    const NAME: &str = "memory";
    let usable = machine.memory_usable();
    let limit = match machine.memory_limit {
        Some(limit) => format!("a cgroup limit of {limit}"),
        None => format!("{} of memory, no cgroup limit", machine.memory),
    };
    let detail = format!("a RAM tier of {ram_capacity} under {limit}");
    // Segments are charged like any memory: the last tenth is left to the server and its neighbours.
    if ram_capacity.0 > usable.0 / 10 * 9 {
        let fix = "lower storage.ram.capacity_bytes, or raise the limit: beyond it processes are killed";
        return Check::warning(NAME, detail, fix);
    }
    Check::ok(NAME, detail)
}

/// There is a core for each shard.
pub(super) fn cpus(machine: &Machine, shard_count: u16) -> Check {
    const NAME: &str = "cores";
    let nodes = numa_nodes(Path::new("/sys/devices/system/node")).max(1);
    let cores = machine.cores;
    let detail = format!("{cores} cores, {nodes} NUMA node(s), {shard_count} shard(s)");
    if usize::from(shard_count) > cores {
        return Check::warning(
            NAME,
            detail,
            "lower shards.count to the number of cores: shards would take turns",
        );
    }
    Check::ok(NAME, detail)
}

fn numa_nodes(directory: &Path) -> usize {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.strip_prefix("node").is_some_and(|number| number.parse::<u32>().is_ok())).count()
}
