//! Which cores the shards and the front run on. Reads the machine once, at start; the choice itself is pure.
//!
//! Used by `front`: `Machine::detect()?.plan(&wanted)?`, then [`crate::ReactorConfig::cores`] and, on its own threads,
//! [`pin_current_thread`]. The rules, first match wins:
//! - `shards.cores` and `front.cores` are taken as they are, if the process may run on them;
//! - shards spread over NUMA nodes in turn, one hyperthread of a core before its second, highest numbers first
//!   (interrupts go to the low ones), and the front keeps to the cores that are left;
//! - more shards than cores, or fewer than four cores: nothing is pinned, the kernel balances.

use std::fmt;
use std::io;
use std::path::Path;

use payload_types::limits;

use crate::sys;

/// From this many cores on shards are pinned unasked, and the front leaves their cores alone.
const FRONT_APART_CORES: usize = 4;

/// Default shards: one for each four cores (DESIGN §2), at most 16.
const CORES_PER_SHARD: usize = 4;
/// See [`CORES_PER_SHARD`].
const SHARDS_DEFAULT_MAX: usize = 16;

/// One core the process may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Core {
    /// As the kernel numbers it.
    pub id: usize,
    /// Its NUMA node; 0 where the kernel shows none.
    pub node: usize,
    /// 0 for the first hyperthread of a physical core, 1 for the second ...
    pub sibling: usize,
}

/// What the process may use of the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Machine {
    /// Ascending by id; cgroup cpusets and affinity masks are considered.
    pub cores: Vec<Core>,
    /// Cores' worth of time: fewer than `cores` under a cgroup quota (v1 and v2).
    pub parallelism: usize,
}

/// What the configuration asks for; `None` leaves the choice to us.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wanted {
    /// `shards.count`.
    pub shard_count: Option<u16>,
    /// `shards.cores`.
    pub shard_cores: Option<Vec<usize>>,
    /// `front.cores`.
    pub front_cores: Option<Vec<usize>>,
}

/// Who runs where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// 1 ..= `limits::SHARD_COUNT_MAX`.
    pub shard_count: u16,
    /// One for each shard; `None`: not pinned.
    pub shard_cores: Option<Vec<usize>>,
    /// All the front's threads may use; `None`: not pinned.
    pub front_cores: Option<Vec<usize>>,
    /// The NUMA node of each shard's core; empty where shards are not pinned.
    pub shard_nodes: Vec<Option<u16>>,
}

/// Why a wish cannot be met; says which key and what to change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TopologyError(String);

impl fmt::Display for TopologyError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for TopologyError {}

impl Machine {
    /// Reads affinity, cgroups and `/sys/devices/system`.
    ///
    /// # Errors
    /// When the affinity mask cannot be read. A missing `/sys` is no error: all cores count as one node then.
    pub fn detect() -> io::Result<Self> {
        let allowed = sys::allowed_cores()?;
        let parallelism = std::thread::available_parallelism().map_or(1, usize::from);
        let cores = read_cores(Path::new("/sys/devices/system"), &allowed);
        Ok(Self { parallelism: parallelism.min(cores.len()), cores })
    }

    /// Chooses; see the head of the file.
    ///
    /// # Errors
    /// A core that is named twice or may not be used, a count that does not fit its list, or is not
    /// 1 ..= `limits::SHARD_COUNT_MAX`.
    pub fn plan(&self, wanted: &Wanted) -> Result<Plan, TopologyError> {
        let front_wanted = wanted.front_cores.as_deref();
        self.check("front.cores", front_wanted)?;
        self.check("shards.cores", wanted.shard_cores.as_deref())?;
        let default_count = || (self.parallelism / CORES_PER_SHARD).clamp(1, SHARDS_DEFAULT_MAX);
        let listed = wanted.shard_cores.as_ref().map(Vec::len);
        let count = wanted.shard_count.map(usize::from).or(listed).unwrap_or_else(default_count);
        if listed.is_some_and(|listed| listed != count) {
            return Err(TopologyError(format!(
                "shards.cores names {} cores for {count} shards; name one for each shard, or leave shards.count out",
                listed.unwrap_or_default()
            )));
        }
        let shard_count = u16::try_from(count)
            .ok()
            .filter(|count| (1..=limits::SHARD_COUNT_MAX).contains(count))
            .ok_or_else(|| {
                TopologyError(format!(
                    "shards.count is {count}; a node has 1 to {} shards",
                    limits::SHARD_COUNT_MAX
                ))
            })?;
        let shard_cores =
            wanted.shard_cores.clone().or_else(|| self.choose(count, front_wanted.unwrap_or_default()));
        let front_cores =
            front_wanted.map(<[usize]>::to_vec).or_else(|| self.leftover(shard_cores.as_ref()?));
        let node = |id: &usize| {
            let core = self.cores.iter().find(|core| core.id == *id)?;
            u16::try_from(core.node).ok()
        };
        let shard_nodes = shard_cores.iter().flatten().map(node).collect();
        Ok(Plan { shard_count, shard_cores, front_cores, shard_nodes })
    }

    fn check(&self, key: &str, list: Option<&[usize]>) -> Result<(), TopologyError> {
        let Some(list) = list else { return Ok(()) };
        if list.is_empty() {
            return Err(TopologyError(format!("{key} is empty; name at least one core, or leave it out")));
        }
        for (place, core) in list.iter().enumerate() {
            if list[..place].contains(core) {
                return Err(TopologyError(format!("{key} names core {core} twice; name each core once")));
            }
            if !self.cores.iter().any(|allowed| allowed.id == *core) {
                let allowed: Vec<usize> = self.cores.iter().map(|core| core.id).collect();
                return Err(TopologyError(format!(
                    "{key} names core {core}, which this process may not use; it may use {}",
                    as_ranges(&allowed)
                )));
            }
        }
        Ok(())
    }

    /// `count` cores, spread over the nodes; `None` when that would put two shards on one core, or where cores are so
    /// few that the kernel does better: it runs a shard where the front just went to sleep, and wakes no idle core.
    fn choose(&self, count: usize, taken: &[usize]) -> Option<Vec<usize>> {
        let free = |core: &&Core| !taken.contains(&core.id);
        let few = self.cores.iter().filter(free).count() < count;
        // The front's own cores are better than none.
        let mut candidates: Vec<Core> = self.cores.iter().filter(|core| few || free(core)).copied().collect();
        if candidates.len() < count || self.cores.len() < FRONT_APART_CORES {
            return None;
        }
        candidates.sort_by_key(|core| (core.sibling, std::cmp::Reverse(core.id)));
        // A core's turn within its node decides before anything else: that is what spreads.
        let turn = |place: usize| {
            candidates[..place].iter().filter(|core| core.node == candidates[place].node).count()
        };
        let mut turns: Vec<(usize, usize)> =
            (0..candidates.len()).map(|place| (turn(place), place)).collect();
        turns.sort_unstable();
        Some(turns[..count].iter().map(|(_, place)| candidates[*place].id).collect())
    }

    fn leftover(&self, shard_cores: &[usize]) -> Option<Vec<usize>> {
        let left: Vec<usize> =
            self.cores.iter().map(|core| core.id).filter(|core| !shard_cores.contains(core)).collect();
        (self.cores.len() >= FRONT_APART_CORES && !left.is_empty()).then_some(left)
    }
}

/// Keeps the calling thread, and those it starts from now on, on `cores`.
///
/// # Errors
/// What the kernel says; EINVAL when none of them may be used.
pub fn pin_current_thread(cores: &[usize]) -> io::Result<()> {
    sys::pin_current_thread(cores)
}

/// Nodes and hyperthreads of the allowed cores, below `/sys/devices/system` or a copy of it.
fn read_cores(system: &Path, allowed: &[usize]) -> Vec<Core> {
    let node_lists: Vec<(usize, Vec<usize>)> = std::fs::read_dir(system.join("node"))
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
            Some((number, parse_ranges(&std::fs::read_to_string(entry.path().join("cpulist")).ok()?)))
        })
        .collect();
    let sibling = |id: usize| {
        let path = system.join(format!("cpu/cpu{id}/topology/thread_siblings_list"));
        let list = std::fs::read_to_string(path).map(|text| parse_ranges(&text)).unwrap_or_default();
        list.iter().position(|sibling| *sibling == id).unwrap_or(0)
    };
    let node =
        |id: usize| node_lists.iter().find(|(_, list)| list.contains(&id)).map_or(0, |(node, _)| *node);
    allowed.iter().map(|&id| Core { id, node: node(id), sibling: sibling(id) }).collect()
}

/// `0-3,8` as the kernel writes lists; what is no number is left out.
fn parse_ranges(text: &str) -> Vec<usize> {
    text.trim()
        .split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?)
        })
        .flatten()
        .collect()
}

/// The inverse, for messages.
fn as_ranges(cores: &[usize]) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut rest = cores;
    while let Some(first) = rest.first() {
        let len = rest.iter().zip(*first..).take_while(|(core, expected)| **core == *expected).count();
        parts.push(if len == 1 { first.to_string() } else { format!("{first}-{}", first + len - 1) });
        rest = &rest[len..];
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes own alternating blocks of cores; the second half of the ids are second hyperthreads when `threads` is 2.
    fn machine(cores: usize, nodes: usize, threads: usize) -> Machine {
        let physical = cores / threads;
        let core = |id| Core { id, node: id % physical / (physical / nodes), sibling: id / physical };
        Machine { cores: (0..cores).map(core).collect(), parallelism: cores }
    }

    fn plan(machine: &Machine, count: Option<u16>) -> Plan {
        machine.plan(&Wanted { shard_count: count, ..Wanted::default() }).expect("possible")
    }

    #[test]
    fn given_fewer_than_four_cores_when_planned_then_nothing_is_pinned_unless_it_is_asked_for() {
        for cores in [1, 2, 3] {
            let expected =
                Plan { shard_count: 1, shard_cores: None, front_cores: None, shard_nodes: Vec::new() };
            assert_eq!(plan(&machine(cores, 1, 1), None), expected);
        }
        let wanted = Wanted { shard_cores: Some(vec![1]), ..Wanted::default() };
        assert_eq!(machine(2, 1, 1).plan(&wanted).expect("possible").shard_cores, Some(vec![1]));
    }

    #[test]
    fn given_one_core_or_more_shards_than_cores_when_planned_then_nothing_is_pinned() {
        for (cores, count) in [(1, None), (2, Some(3))] {
            let plan = plan(&machine(cores, 1, 1), count);
            assert_eq!((plan.shard_cores, plan.front_cores), (None, None));
        }
    }

    #[test]
    fn given_two_nodes_with_hyperthreads_when_planned_then_shards_spread_over_physical_cores() {
        let machine = machine(32, 2, 2);
        let plan = plan(&machine, None);
        // Node 0 has cores 0-7 and 16-23, node 1 has 8-15 and 24-31.
        assert_eq!(plan.shard_cores, Some(vec![15, 7, 14, 6, 13, 5, 12, 4]));
        assert_eq!(plan.shard_count, 8);
        assert_eq!(as_ranges(&plan.front_cores.expect("apart")), "0-3,8-11,16-31");
    }

    #[test]
    fn given_a_quota_below_the_cores_when_planned_then_the_default_count_follows_the_quota() {
        let machine = Machine { parallelism: 8, ..machine(64, 1, 1) };
        assert_eq!(plan(&machine, None).shard_count, 2);
        assert_eq!(plan(&Machine { parallelism: 64, ..machine }, None).shard_count, 16);
    }

    #[test]
    fn given_cores_for_the_front_when_planned_then_shards_avoid_them() {
        let wanted = Wanted { shard_count: Some(2), front_cores: Some(vec![3, 2]), ..Wanted::default() };
        let plan = machine(4, 1, 1).plan(&wanted).expect("possible");
        assert_eq!((plan.shard_cores, plan.front_cores), (Some(vec![1, 0]), Some(vec![3, 2])));
    }

    #[test]
    fn given_wrong_lists_when_planned_then_the_error_names_the_core_and_what_is_allowed() {
        let machine = Machine {
            cores: [0, 1, 2, 5].map(|id| Core { id, node: 0, sibling: 0 }).to_vec(),
            parallelism: 4,
        };
        let cores = |list: &[usize], count| {
            let wanted = Wanted { shard_cores: Some(list.to_vec()), shard_count: count, front_cores: None };
            machine.plan(&wanted).map_err(|error| error.to_string())
        };
        assert_eq!(cores(&[5, 0], None).expect("allowed").shard_count, 2);
        let unknown = cores(&[0, 4], None).expect_err("4 is not allowed");
        assert!(unknown.contains("core 4") && unknown.contains("0-2,5"), "{unknown}");
        assert!(cores(&[0, 0], None).expect_err("twice").contains("core 0 twice"));
        assert!(cores(&[0, 1], Some(3)).expect_err("too few").contains("2 cores for 3 shards"));
        assert!(cores(&[], None).expect_err("empty").contains("empty"));
        let count = |count| machine.plan(&Wanted { shard_count: Some(count), ..Wanted::default() });
        assert!(count(0).is_err() && count(257).is_err() && count(256).is_ok());
    }

    #[test]
    fn given_a_sys_tree_when_read_then_nodes_and_hyperthreads_are_known() {
        let system = tempfile::tempdir().expect("a directory");
        for (path, text) in [
            ("node/node0/cpulist", "0,2\n"),
            ("node/node1/cpulist", "1,3\n"),
            ("cpu/cpu3/topology/thread_siblings_list", "1,3\n"),
        ] {
            let path = system.path().join(path);
            std::fs::create_dir_all(path.parent().expect("has one")).expect("created");
            std::fs::write(path, text).expect("written");
        }
        let cores = read_cores(system.path(), &[0, 3]);
        let expected = [Core { id: 0, node: 0, sibling: 0 }, Core { id: 3, node: 1, sibling: 1 }];
        assert_eq!(cores, expected);
        assert_eq!(read_cores(Path::new("/nowhere"), &[2]), [Core { id: 2, node: 0, sibling: 0 }]);
    }

    #[test]
    fn given_this_machine_when_detected_then_its_plan_can_be_carried_out() {
        let machine = Machine::detect().expect("affinity can be read");
        let plan = machine.plan(&Wanted::default()).expect("the default is always possible");
        std::thread::spawn(move || {
            pin_current_thread(&plan.shard_cores.unwrap_or_else(|| vec![machine.cores[0].id]))
        })
        .join()
        .expect("joined")
        .expect("allowed");
    }
}
