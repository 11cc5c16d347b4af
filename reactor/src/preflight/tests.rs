//! Tests of the checks: the real machine for what it can do, made-up facts for what it cannot show.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use payload_types::ByteCount;

use super::{Check, Input, Machine, Status, disk, gpu, kernel, machine, rlimit, run, shm};

/// A directory of this test, removed when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("preflight-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).expect("the temporary directory is writable");
        Self(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().expect("it has one")).expect("created");
        fs::write(path, text).expect("written");
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// For a test of this name: each has its own prefix, because tests run side by side.
fn input(test: &str, disk_root: PathBuf) -> Input {
    Input {
        ram_capacity: ByteCount(1 << 20),
        shm_prefix: format!("pm-{test}-{}", std::process::id()),
        disk_root,
        disk_capacity: ByteCount(1 << 20),
        shard_count: 1,
        gpu_configured: false,
    }
}

fn assert_complete(check: &Check) {
    assert!(!check.detail.is_empty(), "{check:?}");
    assert_eq!(check.fix.is_none(), check.status == Status::Ok, "only what is not ok has a fix: {check:?}");
}

#[test]
fn given_this_machine_when_checked_then_each_row_is_complete_and_nothing_is_left_behind() {
    let scratch = Scratch::new("run");
    let input = input("run", scratch.0.join("not/made/yet"));
    let checks = run(&input);
    assert_eq!(checks.len(), 14);
    checks.iter().for_each(assert_complete);
    assert_eq!(fs::read_dir(&scratch.0).expect("readable").count(), 0, "the disk root is untouched");
    let left = fs::read_dir(shm::SHM_DIR).into_iter().flatten().flatten();
    assert!(
        left.map(|entry| entry.file_name())
            .all(|name| !name.to_string_lossy().starts_with(&input.shm_prefix))
    );
}

#[test]
fn given_this_machine_when_probed_then_it_has_memory_cores_and_disk() {
    let machine = Machine::probe();
    assert!(machine.memory.0 > 1 << 20 && machine.cores > 0);
    assert!(machine.memory_usable() <= machine.memory);
    let space = (machine.disk_space)(Path::new("/no/such/directory")).expect("/ has a filesystem");
    assert_eq!(space.held, ByteCount(0));
}

#[test]
fn given_files_in_the_root_when_space_is_asked_then_they_count_as_held() {
    let scratch = Scratch::new("held");
    scratch.write("a/b/file", &"x".repeat(100_000));
    let space = machine::disk_space(&scratch.0).expect("it exists");
    assert!(space.held.0 >= 100_000, "{space:?}");
    let known = machine::disk_space_until(&scratch.0, ByteCount(1)).expect("it exists");
    assert_eq!(known.held, ByteCount(0), "what is free is enough: nothing is counted");
}

#[test]
fn given_kernels_of_all_ages_when_checked_then_old_ones_are_told_apart() {
    let status = |release: &str| kernel::version_of(release).status;
    assert_eq!(status("6.18.44-fc"), Status::Ok);
    assert_eq!(status("5.14.0-70.el9"), Status::Ok);
    assert_eq!(status("5.10.0-9-amd64"), Status::Warning);
    assert_eq!(status("4.18.0"), Status::Warning);
    assert_eq!(status("unknown"), Status::Warning);
}

#[test]
fn given_io_uring_refused_when_checked_then_the_fix_fits_the_reason() {
    let outcome = |errno, disabled| kernel::ring_outcome(Err(io::Error::from_raw_os_error(errno)), disabled);
    assert_eq!(kernel::ring_outcome(Ok(()), None).status, Status::Ok);
    for (errno, disabled, word) in [
        (libc::EPERM, Some("2"), "sysctl"),
        (libc::EPERM, Some("1"), "group"),
        (libc::EPERM, Some("0"), "seccomp"),
        (libc::EPERM, None, "seccomp"),
        (libc::ENOSYS, None, "CONFIG_IO_URING"),
        (libc::ENOMEM, Some("0"), "ulimit -l"),
        (libc::EMFILE, Some("0"), "io_uring_setup(2)"),
    ] {
        let check = outcome(errno, disabled);
        assert_eq!(check.status, Status::Warning, "the server runs without it");
        assert!(check.fix.as_ref().is_some_and(|fix| fix.contains(word)), "{word}: {check:?}");
    }
}

#[test]
fn given_clocks_when_checked_then_unset_and_slow_ones_are_warned_about() {
    assert_eq!(kernel::clock_of(0, "tsc").status, Status::Warning);
    assert_eq!(kernel::clock_of(1_795_000_000, "hpet").status, Status::Warning);
    assert_eq!(kernel::clock_of(1_795_000_000, "tsc").status, Status::Ok);
    assert_eq!(kernel::clock_of(1_795_000_000, "").status, Status::Ok);
}

#[test]
fn given_memlock_limits_when_checked_then_what_is_too_small_is_warned_about() {
    assert_eq!(rlimit::memlock_of(64 << 10, 1, true).status, Status::Warning);
    assert_eq!(rlimit::memlock_of(8 << 20, 1, false).status, Status::Warning);
    assert_eq!(rlimit::memlock_of(8 << 20, 1, true).status, Status::Ok, "privileged: not counted");
    assert_eq!(rlimit::memlock_of(u64::MAX, 256, false).status, Status::Ok);
    assert!(rlimit::may_lock("Name: x\nCapEff:\t000001ffffffffff\n"));
    assert!(!rlimit::may_lock("CapEff:\t0000000000000000\n"));
    assert!(!rlimit::may_lock(""));
}

#[test]
fn given_limits_of_this_process_when_raised_then_never_lower_than_before() {
    let (memlock, nofile) = (rlimit::raise_memlock(1), rlimit::raise_nofile());
    assert!(memlock.soft >= memlock.before && nofile.soft >= nofile.before);
    assert_eq!(rlimit::raise_nofile().before, nofile.soft, "raising is lasting");
    let hopeless = rlimit::raise_memlock(u16::MAX);
    let unlimited = hopeless.soft >= (10 << 20) * u64::from(u16::MAX);
    let privileged = rlimit::may_lock(&fs::read_to_string("/proc/self/status").expect("Linux"));
    assert_eq!(hopeless.missing.is_none(), unlimited || privileged, "{hopeless:?}");
}

#[test]
fn given_descriptor_limits_when_checked_then_1024_is_enough() {
    assert_eq!(rlimit::nofile_of(100).status, Status::Fault);
    assert_eq!(rlimit::nofile_of(512).status, Status::Warning);
    assert_eq!(rlimit::nofile_of(1024).status, Status::Ok);
}

#[test]
fn given_no_shared_memory_when_checked_then_fault_and_on_a_plain_directory_warning() {
    let scratch = Scratch::new("shm");
    let input = input("space", scratch.0.clone());
    assert_eq!(shm::space_in(Path::new("/no/such/mount"), &input).status, Status::Fault);
    let on_disk = shm::space_in(&scratch.0, &input);
    if on_disk.status == Status::Ok {
        assert!(on_disk.detail.contains("free"), "the temporary directory is a tmpfs here: {on_disk:?}");
    } else {
        assert!(on_disk.detail.contains("not a tmpfs"), "{on_disk:?}");
    }
    let huge = Input { ram_capacity: ByteCount(u64::MAX), ..input };
    let check = shm::space(&huge);
    assert_ne!(check.status, Status::Ok, "{check:?}");
}

#[test]
fn given_cgroups_of_both_versions_when_read_then_the_smallest_limit_on_the_way_up_counts() {
    let scratch = Scratch::new("cgroup");
    scratch.write("memory/a/memory.limit_in_bytes", "3000\n");
    scratch.write("memory/a/b/memory.limit_in_bytes", "9223372036854771712\n");
    scratch.write("memory/memory.limit_in_bytes", "9223372036854771712\n");
    let limit = |text: &str| machine::cgroup_limit(text, &scratch.0);
    assert_eq!(limit("4:memory:/a/b\n0::/\n"), Some(ByteCount(3000)), "v1, from the parent");
    assert_eq!(limit("4:cpu,memory:/elsewhere\n"), None, "unlimited");
    scratch.write("x/memory.max", "max\n");
    scratch.write("x/y/memory.max", "5000\n");
    assert_eq!(limit("0::/x/y\n"), Some(ByteCount(5000)), "v2");
    assert_eq!(limit("0::/x\n"), None, "v2 without a limit");
    scratch.write("memory.max", "4000\n");
    assert_eq!(limit("0::/not/mounted/here\n"), Some(ByteCount(4000)), "a container's own root");
    assert_eq!(limit(""), None);
}

#[test]
fn given_meminfo_when_read_then_kibibytes() {
    assert_eq!(machine::memory_total("MemTotal:       1024 kB\nMemFree: 1 kB\n"), ByteCount(1 << 20));
    assert_eq!(machine::memory_total(""), ByteCount(0));
}

#[test]
fn given_a_ram_tier_as_large_as_the_limit_when_checked_then_warning() {
    let facts =
        Machine { memory: ByteCount(100 << 20), memory_limit: Some(ByteCount(10 << 20)), ..Machine::probe() };
    assert_eq!(machine::memory(&facts, ByteCount(10 << 20)).status, Status::Warning);
    assert_eq!(machine::memory(&facts, ByteCount(4 << 20)).status, Status::Ok);
    let facts = Machine { cores: 2, ..facts };
    assert_eq!(machine::cpus(&facts, 3).status, Status::Warning);
    assert_eq!(machine::cpus(&facts, 2).status, Status::Ok);
}

#[test]
fn given_an_unusable_disk_root_when_checked_then_fault_with_a_fix() {
    // /proc is a directory in which even the superuser can create nothing.
    let input = input("unusable", PathBuf::from("/proc/payloads"));
    let check = disk::writable(&input);
    assert_eq!(check.status, Status::Fault);
    assert_complete(&check);
    assert_ne!(disk::direct_io(&input).status, Status::Ok);
    let leases = disk::leases(&input);
    assert!(leases.status == Status::Warning && leases.detail.contains("not checked"), "{leases:?}");
    let room = |free, held| disk::space_of(ByteCount(free), ByteCount(held), ByteCount(100)).status;
    assert_eq!([room(99, 0), room(60, 40)], [Status::Warning, Status::Ok]);
}

#[test]
fn given_gpu_drivers_when_checked_then_never_a_fault() {
    let scratch = Scratch::new("gpu");
    assert_eq!(gpu::driver_under(&scratch.0, false, false).status, Status::Ok);
    assert_eq!(gpu::driver_under(&scratch.0, false, true).status, Status::Warning);
    let version = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n";
    scratch.write("proc/driver/nvidia/version", version);
    let look = |configured| gpu::driver_under(&scratch.0, true, configured);
    let warning = |what: &str, fix: &str| {
        let check = look(true);
        assert_eq!(check.status, Status::Warning, "{check:?}");
        assert!(check.detail.contains(what), "{check:?}");
        assert!(check.fix.as_ref().is_some_and(|found| found.contains(fix)), "{check:?}");
        assert_eq!(look(false).status, Status::Ok, "who did not configure it does not care");
    };
    warning("no device is visible", "--gpus all");
    scratch.write("dev/nvidia0", "");
    warning("nvidia-uvm is missing", "nvidia-modprobe");
    scratch.write("dev/nvidiactl", "");
    scratch.write("dev/nvidia-uvm", "");
    let check = look(true);
    assert_eq!((check.status, check.detail.as_str()), (Status::Ok, "1 device(s), driver 550.54.15"));
    let check = gpu::driver_under(&scratch.0, false, true);
    assert_eq!(check.status, Status::Warning, "no library");
    assert!(check.detail.contains("libcuda.so.1"), "{check:?}");
    scratch.write("proc/driver/nvidia/capabilities/gpu0/mig/config", "");
    assert_eq!(look(true).status, Status::Ok, "it could be split, and is not");
    scratch.write("proc/driver/nvidia/capabilities/gpu0/mig/gi7/access", "");
    warning("(MIG)", "CUDA_VISIBLE_DEVICES");
    fs::set_permissions(scratch.0.join("dev/nvidia0"), fs::Permissions::from_mode(0o000)).expect("its owner");
    // Root may use everything.
    if fs::File::open(scratch.0.join("dev/nvidia0")).is_err() {
        warning("may not use /dev/nvidia0", "group");
    }
}
