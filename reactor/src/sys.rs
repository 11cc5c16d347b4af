//! The system calls of this crate, as safe functions. With its parts below the only files of the crate with `unsafe`.
#![allow(unsafe_code)]

pub(crate) mod memory;
pub(crate) mod poll;
pub(crate) mod socket;

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// CPUs a mask can name: the most that Linux is built for (CONFIG_NR_CPUS of x86-64 goes up to 8,192).
const MASK_WORDS: usize = 8192 / 64;

/// A CPU set of any size; glibc's `cpu_set_t` ends at 1,024.
type Mask = [u64; MASK_WORDS];

/// The cores this thread may run on, ascending. cgroup cpusets are in it: the kernel intersects them.
pub(crate) fn allowed_cores() -> io::Result<Vec<usize>> {
    let mut mask: Mask = [0; MASK_WORDS];
    // SAFETY: the kernel writes at most `size_of::<Mask>()` bytes to `mask`, which lives through the call and is
    // aligned more strictly than `cpu_set_t` needs; pid 0 is the calling thread.
    let result = unsafe { libc::sched_getaffinity(0, size_of::<Mask>(), mask.as_mut_ptr().cast()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((0..MASK_WORDS * 64).filter(|core| mask[core / 64] >> (core % 64) & 1 == 1).collect())
}

/// Lets the calling thread run on `cores` only. Threads it starts later inherit that.
pub(crate) fn pin_current_thread(cores: &[usize]) -> io::Result<()> {
    let mut mask: Mask = [0; MASK_WORDS];
    for core in cores {
        *mask.get_mut(core / 64).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))? |=
            1 << (core % 64);
    }
    // SAFETY: the kernel only reads `size_of::<Mask>()` bytes of `mask`, which lives through the call; pid 0 is the
    // calling thread.
    let result = unsafe { libc::sched_setaffinity(0, size_of::<Mask>(), mask.as_ptr().cast()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Nanoseconds the calling thread has spent on a CPU. A real system call (0.54 µs where measured), unlike the
/// other clocks: see `stall.rs` for when it is read.
pub(crate) fn thread_cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for one timespec and lives through the call.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(result, 0, "every Linux has CLOCK_THREAD_CPUTIME_ID");
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Whether this thread may use io_uring, found out by setting up a ring of two entries and closing it again.
pub(crate) fn ring_probe() -> io::Result<()> {
    // `struct io_uring_params` (linux/io_uring.h) has 120 bytes; all zero asks for a plain ring.
    let mut params = [0u64; 15];
    // SAFETY: the kernel reads and writes the 120 bytes of `params`, which lives through the call.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 2, params.as_mut_ptr()) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the call returned this descriptor just now, so nobody else closes it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A seccomp filter, as Docker's default profile has it: `io_uring_setup` answers EPERM on this thread.
    pub(crate) fn refuse_io_uring_on_this_thread() {
        let op = |code: u32, jump_true, jump_false, value| libc::sock_filter {
            code: code as u16,
            jt: jump_true,
            jf: jump_false,
            k: value,
        };
        let mut filter = [
            // The number of the system call is the first word of seccomp_data.
            op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_io_uring_setup as u32),
            op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
            op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: takes four integers; it only keeps this thread from gaining privileges.
        let privileges = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        // SAFETY: the kernel copies the program, which lives through the call and names `filter`'s length.
        let installed =
            unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
        assert_eq!((privileges, installed), (0, 0), "{}", io::Error::last_os_error());
    }

    #[test]
    fn given_a_pinned_thread_when_asked_then_only_that_core_is_allowed() {
        let cores = allowed_cores().expect("affinity can be read");
        let last = *cores.last().expect("this thread runs somewhere");
        std::thread::spawn(move || {
            pin_current_thread(&[last]).expect("an allowed core");
            assert_eq!(allowed_cores().expect("affinity can be read"), [last]);
        })
        .join()
        .expect("pinned");
        assert!(pin_current_thread(&[100_000]).is_err());
    }

    #[test]
    fn given_a_sleep_when_measured_then_cpu_time_stands_still_and_work_moves_it() {
        let before = thread_cpu_ns();
        std::thread::sleep(std::time::Duration::from_millis(50));
        let slept = thread_cpu_ns() - before;
        assert!(slept < 25_000_000, "{slept} ns on the CPU during a sleep of 50 ms");
        let mut value = 1u64;
        for step in 0..3_000_000u64 {
            value = std::hint::black_box(value.wrapping_mul(step | 1));
        }
        assert!(thread_cpu_ns() - before > slept);
    }
}
