//! Starting and stopping the shards' threads.
//!
//! ```text
//!   start: spawn pm-shard-N -> pin -> executor -> "ready" -> ... all ready, or none keeps running
//!   stop:  Closing: requests are answered UNAVAILABLE, ops in flight go on, no timer fires
//!          -> all shards drained, or the drain timeout -> Stopping: pumps answer who still waits, and leave -> join
//! ```
//! `front` stops in this order: its listeners, the reactor, the drivers, the catalog writer; each then finds that
//! nobody sends any more.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use payload_types::ShardIndex;

use crate::clock;
use crate::executor::{Executor, ExecutorChoice};
use crate::mailbox::{Mailboxes, Phase, Shared};
use crate::pump::{ArbiterStep, Core, Ports, Pump, Unfinished};
use crate::run::{self, AbortOnPanic};
use crate::spin::{Spin, SpinPolicy};
use crate::stall;
use crate::sys;

/// Default of [`ReactorConfig::drain_timeout`].
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// While stopping: pause between two looks at what is still in flight.
const DRAIN_PAUSE: Duration = Duration::from_millis(1);

/// How the shards run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReactorConfig {
    /// The core of each shard, from [`crate::topology::Plan::shard_cores`]; `None`: not pinned.
    pub cores: Option<Vec<usize>>,
    /// `shards.spin`.
    pub spin: SpinPolicy,
    /// glommio or plain threads.
    pub executor: ExecutorChoice,
    /// How long a stop waits for ops in flight.
    pub drain_timeout: Duration,
}

impl Default for ReactorConfig {
    fn default() -> Self {
        Self {
            cores: None,
            spin: SpinPolicy::default(),
            executor: ExecutorChoice::default(),
            drain_timeout: DRAIN_TIMEOUT,
        }
    }
}

/// Why the shards do not run.
#[derive(Debug)]
pub enum StartError {
    /// `shards`, mailboxes and cores are not of one number.
    Counts {
        /// Mailboxes.
        mailboxes: usize,
        /// Shards given.
        shards: usize,
        /// Cores given; `None`: unpinned.
        cores: Option<usize>,
    },
    /// A thread could not be started.
    Thread(io::Error),
    /// glommio was asked for, and refused.
    Executor {
        /// On which shard.
        shard: ShardIndex,
        /// glommio's reason.
        reason: String,
    },
}

impl fmt::Display for StartError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Counts { mailboxes, shards, cores } => {
                write!(formatter, "{shards} shards, {mailboxes} mailboxes and {cores:?} cores do not match")
            }
            Self::Thread(error) => write!(
                formatter,
                "the thread of a shard could not be started: {error}; raise the limit of threads (ulimit -u, pids.max)"
            ),
            Self::Executor { shard, reason } => write!(
                formatter,
                "shard {} could not start a glommio executor: {reason}; permit io_uring and RLIMIT_MEMLOCK, or use plain threads",
                shard.0
            ),
        }
    }
}

impl std::error::Error for StartError {}

/// The running shards. Dropped, it stops them as [`Reactor::shutdown`] does.
pub struct Reactor {
    shared: Arc<Shared>,
    shards: Vec<JoinHandle<Unfinished>>,
    stall_log: Option<JoinHandle<()>>,
    drain_timeout: Duration,
}

impl Reactor {
    /// As [`Reactor::start`], for any core.
    pub(crate) fn start_cores<C: Core + Send + 'static>(
        config: ReactorConfig,
        mailboxes: Mailboxes,
        shards: Vec<C>,
        arbiter: ArbiterStep,
        ports: Arc<dyn Ports>,
    ) -> Result<Self, StartError> {
        let shared = mailboxes.0;
        let drain_timeout = config.drain_timeout;
        let mut reactor = Self { shared, shards: Vec::new(), stall_log: None, drain_timeout };
        match reactor.spawn_all(&config, shards, arbiter, ports) {
            Ok(()) => Ok(reactor),
            Err(error) => {
                reactor.drain_timeout = Duration::ZERO;
                reactor.stop();
                reactor.shared.boxes.iter().for_each(|mailbox| mailbox.close());
                Err(error)
            }
        }
    }

    fn spawn_all<C: Core + Send + 'static>(
        &mut self,
        config: &ReactorConfig,
        shards: Vec<C>,
        arbiter: ArbiterStep,
        ports: Arc<dyn Ports>,
    ) -> Result<(), StartError> {
        let (mailboxes, given) = (self.shared.boxes.len(), shards.len());
        let cores = config.cores.as_ref().map(Vec::len);
        if given != mailboxes || cores.is_some_and(|cores| cores != mailboxes) {
            return Err(StartError::Counts { mailboxes, shards: given, cores });
        }
        let available = std::thread::available_parallelism().map_or(1, usize::from);
        // One core for the front.
        let cores_to_spare = given + 1 < available;
        let (ready, started) = sync_channel(mailboxes);
        let mut arbiter = Some(arbiter);
        for (index, core) in (0..).zip(shards) {
            let shard = ShardIndex(index);
            let (shared, ports) = (self.shared.clone(), ports.clone());
            let seat = Seat {
                shard,
                core: config.cores.as_ref().map(|cores| cores[usize::from(index)]),
                executor: config.executor,
                spin: Spin::new(config.spin, cores_to_spare),
                pump: Pump::new(core, shard, shared.clone(), ports, arbiter.take()),
                shared,
                ready: ready.clone(),
            };
            self.shards.push(spawn(format!("pm-shard-{index}"), || seat.run())?);
        }
        drop(ready);
        let shared = self.shared.clone();
        self.stall_log = Some(spawn("pm-stalls".into(), move || stall::log_until_stopped(&shared))?);
        await_ready(&started, mailboxes)
    }

    /// Stops: new requests are answered UNAVAILABLE, ops in flight get the drain timeout, then the threads are
    /// joined. Blocks until that is done; call it where blocking is allowed.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        if self.shards.is_empty() && self.stall_log.is_none() {
            return;
        }
        self.shared.enter(Phase::Closing);
        let timeout_ms = u64::try_from(self.drain_timeout.as_millis()).unwrap_or(u64::MAX);
        let end = clock::monotonic().plus_millis(timeout_ms);
        let drained = || self.shared.boxes.iter().all(|mailbox| mailbox.drained.load(Ordering::Acquire));
        while !drained() && clock::monotonic() < end {
            std::thread::sleep(DRAIN_PAUSE);
        }
        self.shared.enter(Phase::Stopping);
        let mut unfinished = Unfinished::default();
        for thread in self.shards.drain(..) {
            let left = thread.join().expect("a shard that panics ends the process");
            unfinished.requests += left.requests;
            unfinished.ops += left.ops;
        }
        if let Some(thread) = self.stall_log.take() {
            thread.join().expect("logging does not panic");
        }
        if unfinished != Unfinished::default() {
            let Unfinished { requests, ops } = unfinished;
            tracing::warn!(
                requests,
                ops,
                "stopped before all work was done: these requests were answered UNAVAILABLE, these ops are left to the next start's recovery"
            );
        }
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        self.stop();
    }
}

fn spawn<T: Send + 'static>(
    name: String,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, StartError> {
    std::thread::Builder::new().name(name).spawn(body).map_err(StartError::Thread)
}

fn await_ready(started: &Receiver<Result<(), StartError>>, shards: usize) -> Result<(), StartError> {
    for _ in 0..shards {
        started.recv().expect("every shard's thread reports before it runs")?;
    }
    Ok(())
}

/// What one shard's thread is given.
struct Seat<C> {
    shard: ShardIndex,
    core: Option<usize>,
    executor: ExecutorChoice,
    spin: Spin,
    pump: Pump<C>,
    shared: Arc<Shared>,
    ready: SyncSender<Result<(), StartError>>,
}

impl<C: Core> Seat<C> {
    fn run(self) -> Unfinished {
        let Self { shard, core, executor, spin, pump, shared, ready } = self;
        let _guard = AbortOnPanic(shard);
        if let Some(core) = core
            && let Err(error) = sys::pin_current_thread(&[core])
        {
            tracing::warn!(shard = shard.0, core, %error, "this shard runs unpinned: its core was refused");
        }
        let executor = match Executor::make(executor) {
            Ok(executor) => executor,
            Err(reason) => {
                // The receiver may be gone: another shard failed first.
                let _ = ready.send(Err(StartError::Executor { shard, reason }));
                return pump.close();
            }
        };
        if let Executor::Thread { refusal: Some(refusal) } = &executor {
            tracing::warn!(
                shard = shard.0,
                refusal,
                "this shard runs on a plain thread: io_uring was refused"
            );
        }
        let _ = ready.send(Ok(()));
        drop(ready);
        executor.run(|| run::run(pump, spin, || shared.stall_bell.ring()))
    }
}

#[cfg(test)]
mod tests;
