//! The thread that works on memories so that nobody has to wait for it: makes them, touches pages ahead of demand, zeroes,
//! and returns them.
//!
//! ```text
//! session thread, driver --Job--> [lane] --> pm-arena: a job, then one piece of touching, then a look at what is leaving
//! ```
//! Touching comes last and in pieces of 2 MiB, taken from all slabs in turn, so a job waits a millisecond for it. A memory that leaves is returned when a write
//! lease proves that nobody has it any more; until then it is charged, and looked at again.
//!
//! Promises: every job that was taken is answered once. A memory that clients still have when the keeper ends is the
//! exception: the kernel keeps it until they let go.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, TrySendError, bounded};
use payload_ledger::arena::PREFAULT_BYTES;
use payload_types::ByteCount;

use super::error::ArenaError;
use super::making::Maker;
use super::slab::{Draft, Frozen, Isolated, Remains, Slab};

/// Jobs that wait at most. Each is a memory that comes or goes, or an order of the books: five a slab.
pub const JOBS_WAITING_MAX: usize = 1024;

/// Zeroing goes in pieces, too: 2 MiB are 0.2 ms.
const ZERO_BYTES: u64 = 2 << 20;

/// How long a memory that somebody has is left alone after a look: doubling between these.
const LOOK_AGAIN_MIN: Duration = Duration::from_millis(5);
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(1);

/// Memories looked at in one turn: a microsecond each.
const LOOKS_MAX: usize = 64;

/// What is called when a job is done, on the keeper's thread. It must neither block nor panic.
pub type Done<T> = Box<dyn FnOnce(T) + Send>;

/// Work for the keeper.
pub enum Job {
    /// A slab, or memory for one large payload.
    Make {
        /// Its size.
        bytes: ByteCount,
        /// Its shard's NUMA node.
        node: Option<u16>,
        /// The memory.
        done: Done<Result<Draft, ArenaError>>,
    },
    /// Memory for a payload with `isolation: sealed`.
    MakeIsolated {
        /// Its size.
        bytes: ByteCount,
        /// Its shard's NUMA node.
        node: Option<u16>,
        /// The memory.
        done: Done<Result<Isolated, ArenaError>>,
    },
    /// Its writer has mapped it. Also reserves what he punched out meanwhile, hence not for a thread that must not wait.
    Seal {
        /// What was offered.
        draft: Draft,
        /// The slab; on an error it comes back, and somebody may have it.
        done: Done<Result<Slab, (Draft, ArenaError)>>,
    },
    /// The commit of a payload with `isolation: sealed`.
    Freeze {
        /// Its memory.
        isolated: Isolated,
        /// It can be written no more; on an error it comes back as it was.
        done: Done<Result<Frozen, (Isolated, ArenaError)>>,
    },
    /// Touch pages from the slab's start up to here. No answer: it is an advice.
    Prefault {
        /// The slab; it may leave meanwhile.
        slab: Weak<Slab>,
        /// How far.
        to: u64,
    },
    /// Zero a range that no block which anybody was told of may touch.
    Zero {
        /// The slab.
        slab: Arc<Slab>,
        /// Of it.
        range: Range<u64>,
        /// It is zero.
        done: Done<()>,
    },
    /// Give a memory back.
    Return {
        /// It.
        memory: Leaving,
        /// Nobody has it any more: its charge of so many bytes ends.
        done: Done<ByteCount>,
    },
}

/// A memory in any state, on its way out.
pub enum Leaving {
    /// Never sealed: its writer died.
    Draft(Draft),
    /// Whoever else holds the `Arc` keeps it from leaving.
    Slab(Arc<Slab>),
    /// Never committed.
    Isolated(Isolated),
    /// Committed.
    Frozen(Frozen),
}

impl Leaving {
    /// Unmaps it; `Err` while somebody in this process uses it.
    fn leave(self) -> Result<Remains, Self> {
        match self {
            Self::Draft(draft) => Ok(draft.leave()),
            Self::Slab(slab) => Arc::try_unwrap(slab).map(Slab::leave).map_err(Self::Slab),
            Self::Isolated(isolated) => Ok(isolated.leave()),
            Self::Frozen(frozen) => Ok(frozen.leave()),
        }
    }
}

/// The handle; the thread ends with it, after what it was given.
pub struct Keeper {
    lane: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts the thread.
    ///
    /// # Panics
    /// When the system refuses it.
    pub fn start(maker: Maker) -> Self {
        let (lane, jobs) = bounded(JOBS_WAITING_MAX);
        let work = Work { maker, touching: VecDeque::new(), leaving: VecDeque::new(), cannot_touch: false };
        let thread = std::thread::Builder::new().name("pm-arena".to_owned()).spawn(move || work.run(&jobs));
        Self { lane: Some(lane), thread: Some(thread.expect("the system has room for the keeper's thread")) }
    }

    /// Takes a job, and never waits.
    ///
    /// # Errors
    /// The job, when [`JOBS_WAITING_MAX`] wait.
    pub fn submit(&self, job: Job) -> Result<(), Job> {
        let lane = self.lane.as_ref().expect("there until the keeper is dropped");
        lane.try_send(job).map_err(|(TrySendError::Full(job) | TrySendError::Disconnected(job))| job)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.lane = None;
        let ended = self.thread.take().map(JoinHandle::join);
        debug_assert!(!matches!(ended, Some(Err(_))), "no job panics");
    }
}

struct Touching {
    slab: Weak<Slab>,
    from: u64,
    to: u64,
}

/// One that leaves: still in use in this process, or only out there.
enum Stage {
    Here(Leaving),
    Out(Remains),
}

struct Exit {
    stage: Stage,
    done: Done<ByteCount>,
    look_at: Instant,
    pause: Duration,
}

struct Work {
    maker: Maker,
    /// At most one entry a slab, so no more than there are slabs.
    touching: VecDeque<Touching>,
    /// No more than there are memories.
    leaving: VecDeque<Exit>,
    /// The kernel cannot: nobody asks again.
    cannot_touch: bool,
}

impl Work {
    fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            let job = if self.touching.is_empty() {
                match self.next_look() {
                    Some(at) => jobs.recv_deadline(at),
                    None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
                }
            } else {
                jobs.try_recv().map_err(|error| match error {
                    TryRecvError::Empty => RecvTimeoutError::Timeout,
                    TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
                })
            };
            match job {
                Ok(job) => self.carry_out(job),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.touch_one();
            self.look();
        }
    }

    fn carry_out(&mut self, job: Job) {
        match job {
            Job::Make { bytes, node, done } => done(self.maker.slab(bytes, node)),
            Job::MakeIsolated { bytes, node, done } => done(self.maker.isolated(bytes, node)),
            Job::Seal { draft, done } => done(draft.seal()),
            Job::Freeze { isolated, done } => done(isolated.freeze()),
            Job::Prefault { slab, to } => self.note_touching(slab, to),
            Job::Zero { slab, range, done } => {
                for start in range.clone().step_by(ZERO_BYTES as usize) {
                    slab.zero(start..range.end.min(start + ZERO_BYTES));
                }
                done(());
            }
            Job::Return { memory, done } => {
                let now = Instant::now();
                let exit = Exit { stage: Stage::Here(memory), done, look_at: now, pause: LOOK_AGAIN_MIN };
                self.leaving.push_front(exit);
            }
        }
    }

    fn note_touching(&mut self, slab: Weak<Slab>, to: u64) {
        if self.cannot_touch {
            return;
        }
        match self.touching.iter_mut().find(|touching| touching.slab.ptr_eq(&slab)) {
            Some(touching) => touching.to = touching.to.max(to),
            None => self.touching.push_back(Touching { slab, from: 0, to }),
        }
    }

    /// What was touched before costs a walk of its page table: 2 MiB are some microseconds.
    fn touch_one(&mut self) {
        let Some(mut next) = self.touching.pop_front() else { return };
        let Some(slab) = next.slab.upgrade() else { return };
        let to = next.to.min(slab.bytes().0);
        let end = to.min(next.from + PREFAULT_BYTES);
        if let Err(error) = slab.populate(next.from..end) {
            tracing::warn!(
                "pages of arena slabs cannot be touched ahead ({error}); who writes first pays for it: use Linux 5.14 or later"
            );
            self.cannot_touch = true;
            self.touching.clear();
            return;
        }
        next.from = end;
        if end < to {
            self.touching.push_back(next);
        }
    }

    fn next_look(&self) -> Option<Instant> {
        self.leaving.iter().map(|exit| exit.look_at).min()
    }

    fn look(&mut self) {
        let now = Instant::now();
        for _ in 0..self.leaving.len().min(LOOKS_MAX) {
            let Some(mut exit) = self.leaving.pop_front() else { return };
            if exit.look_at > now {
                self.leaving.push_back(exit);
                continue;
            }
            let left = match exit.stage {
                Stage::Here(memory) => memory.leave(),
                Stage::Out(remains) => Ok(remains),
            };
            exit.stage = match left {
                Err(memory) => Stage::Here(memory),
                Ok(remains) => match remains.are_nobodys() {
                    Ok(false) => Stage::Out(remains),
                    answer => {
                        if let Err(error) = answer {
                            tracing::warn!("nobody can tell who has a memory that was returned: {error}");
                        }
                        let bytes = remains.bytes;
                        drop(remains);
                        (exit.done)(bytes);
                        continue;
                    }
                },
            };
            exit.look_at = now + exit.pause;
            exit.pause = (exit.pause * 2).min(LOOK_AGAIN_MAX);
            self.leaving.push_back(exit);
        }
    }
}
