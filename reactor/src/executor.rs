//! What a shard's thread is, around the pump: a glommio executor, or nothing but the thread.
//!
//! The pump is the executor's only task and parks the thread itself (`doorbell.rs`): measured, that halves the way
//! to a shard and back compared with glommio's own wake (docs/decisions/2026-11-22-shard-sleep.md). What the
//! executor does for a shard is therefore little today; it is there for native sessions, whose sockets need a ring.
//! The rest of the crate sees `Executor::run(body)` only, so that another executor, or none, is a drop-in: where
//! io_uring is refused (Docker's default seccomp profile, `kernel.io_uring_disabled`, RLIMIT_MEMLOCK below
//! glommio's 512 KiB) shards run on plain threads, with the same behaviour.

use glommio::{LocalExecutor, LocalExecutorBuilder, Placement};

use crate::sys;

/// Registered I/O memory of an executor: glommio's minimum, since shards do no I/O. It is registered on three rings:
/// 192 KiB against RLIMIT_MEMLOCK a shard, 3 MiB for 16 shards; a non-root limit is 8 MiB.
const IO_MEMORY_BYTES: usize = 64 << 10;

/// Entries of each ring: a wake-up eventfd and a preemption timer are all that is ever in one.
const RING_DEPTH: usize = 8;

/// Which executors to use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ExecutorChoice {
    /// glommio, or plain threads where io_uring is refused.
    #[default]
    Auto,
    /// glommio, or no start.
    Glommio,
    /// Plain threads.
    Threads,
}

/// An executor of the calling thread.
pub(crate) enum Executor {
    Glommio(Box<LocalExecutor>),
    Thread {
        /// Why it is not glommio, when that was tried.
        refusal: Option<String>,
    },
}

impl Executor {
    /// Makes the calling thread's executor. The thread is pinned before, so nothing here pins.
    pub(crate) fn make(choice: ExecutorChoice) -> Result<Self, String> {
        if choice == ExecutorChoice::Threads {
            return Ok(Self::Thread { refusal: None });
        }
        // Asked before glommio is: it panics, and stays unusable in this process, where its first ring is refused.
        let made = sys::ring_probe().map_err(|error| format!("io_uring_setup: {error}")).and_then(|()| {
            LocalExecutorBuilder::new(Placement::Unbound)
                .io_memory(IO_MEMORY_BYTES)
                .ring_depth(RING_DEPTH)
                .make()
                .map_err(|error| error.to_string())
        });
        match made {
            Ok(executor) => Ok(Self::Glommio(Box::new(executor))),
            Err(refusal) if choice == ExecutorChoice::Auto => Ok(Self::Thread { refusal: Some(refusal) }),
            Err(refusal) => Err(refusal),
        }
    }

    /// Runs `body` to its end on the calling thread.
    pub(crate) fn run<T>(self, body: impl FnOnce() -> T) -> T {
        match self {
            Self::Glommio(executor) => executor.run(async move { body() }),
            Self::Thread { .. } => body(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_either_executor_when_run_then_the_body_runs_on_the_calling_thread() {
        for choice in [ExecutorChoice::Auto, ExecutorChoice::Threads] {
            std::thread::spawn(move || {
                let here = std::thread::current().id();
                let executor = Executor::make(choice).expect("one of them works everywhere");
                assert_eq!(executor.run(|| std::thread::current().id()), here);
            })
            .join()
            .expect("ran");
        }
    }

    #[test]
    fn given_a_kernel_that_refuses_io_uring_when_made_then_auto_is_a_plain_thread_and_says_why() {
        std::thread::spawn(|| {
            crate::sys::tests::refuse_io_uring_on_this_thread();
            let Ok(Executor::Thread { refusal: Some(refusal) }) = Executor::make(ExecutorChoice::Auto) else {
                panic!("io_uring was refused, yet there is an executor on it");
            };
            assert!(!refusal.is_empty());
            assert!(Executor::make(ExecutorChoice::Glommio).is_err());
        })
        .join()
        .expect("fell back");
    }
}
