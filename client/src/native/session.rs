//! [`Session`]: a native session with a server on this host.
//!
//! ```text
//! submit:  lock the shard's lane, publish, unlock; the shard sleeps -> ring its doorbell
//! wait:    look; spin while that has paid lately; then doze, look again, FUTEX_WAIT for SLEEP_MAX at most, look at the socket
//! ```
//!
//! Invariants: a waiter never sleeps without a look after it said so (`wake::client_doze`), and never longer than
//! [`SLEEP_MAX`] without a look whether the server is there: everybody has an error within a second of its end. A child of
//! a fork touches nothing: every method refuses there, and dropping sends nothing.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use payload_local::hello::{FEATURE_ARENAS, Welcome};
use payload_local::layout::{NodeView, RING_ENTRIES, SessionView, ShardView};
use payload_local::ring::has_entry;
use payload_local::{Op, Outcome, Shown, Submission, place, segment, wake};
use payload_types::{EvictionPolicy, Location as Lies, PayloadId};

use crate::descriptor::{Descriptor, Location, location_of};
use crate::error::ClientError;
use crate::interrupt;
use crate::mapping::shared::{ForkGuard, SharedWords, futex_wait, futex_wake};
use crate::mapping::socket::{self, Bell};
use crate::mapping::{ReadMapping, WriteMapping};
use crate::native::direct::{Direct, Pinned, Wish};
use crate::native::handshake::{Greeted, greet};
use crate::native::lane::{Answer, Lane};
use crate::native::slabs::Slabs;
use crate::native::waiter::Spin;
use crate::native::watch::Watch;

/// The longest sleep between two looks whether the server lives.
pub(super) const SLEEP_MAX: Duration = Duration::from_millis(400);

/// A session. Threads and tasks may share it.
#[derive(Debug)]
pub struct Session {
    path: PathBuf,
    /// The socket, and the memory that comes over it.
    slabs: Arc<Slabs>,
    welcome: Welcome,
    memory: SharedWords,
    node: SharedWords,
    shards: Vec<Shard>,
    fork: ForkGuard,
    /// Whose turn it is to allocate.
    turn: AtomicU32,
    spin: Spin,
    watch: Arc<Watch>,
    direct: Option<Arc<Direct>>,
}

#[derive(Debug)]
struct Shard {
    lane: Mutex<Lane>,
    /// Where the next completion will be, for who looks without the lock.
    next: AtomicU64,
    bell: std::os::fd::OwnedFd,
}

/// A call that was submitted. Waiting for it takes the answer; dropping it undoes what it brings.
#[derive(Debug)]
#[must_use]
pub struct Call<S: Deref<Target = Session>> {
    session: S,
    shard: u16,
    tag: u32,
    op: Op,
    is_done: bool,
}

/// A call whose session is lent.
pub type Ticket<'a> = Call<&'a Session>;

impl Session {
    /// Connects to the server whose socket is at `path` (`local.socket_path`).
    ///
    /// # Errors
    /// [`ClientError::Connect`] when nobody answers there, [`ClientError::Refused`] when it lets this process not in:
    /// another user, another version, too many sessions.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let Greeted { socket, welcome, memory, node, bells, direct } = greet(path)?;
        let fork =
            ForkGuard::new().map_err(|reason| ClientError::Io { what: "cannot map a page", reason })?;
        let bell =
            Bell::new().map_err(|reason| ClientError::Io { what: "cannot make an eventfd", reason })?;
        let slabs = Slabs::new(socket, bell);
        slabs.share(direct.clone());
        if welcome.features & FEATURE_ARENAS != 0 {
            slabs.start()?;
        }
        let shard = |bell| Shard { lane: Mutex::new(Lane::new()), next: AtomicU64::new(0), bell };
        Ok(Self {
            path: path.to_owned(),
            slabs,
            welcome,
            memory,
            node,
            shards: bells.into_iter().map(shard).collect(),
            fork,
            turn: AtomicU32::new(0),
            spin: Spin::new(),
            watch: Arc::default(),
            direct,
        })
    }

    /// What the server said of itself.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// The path of its socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`ClientError::Server`] as behaviour.md says of the operation; [`ClientError::Ended`] when the server has gone,
    /// within a second; [`ClientError::Forked`] in a child of the process that connected.
    pub fn call(&self, submission: &Submission) -> Result<Outcome, ClientError> {
        self.submit(submission)?.wait()
    }

    /// Asks, and returns what to wait for. Waits only when so many calls are unanswered that the ring is full.
    ///
    /// # Errors
    /// [`ClientError::Ended`], [`ClientError::Forked`].
    pub fn submit(&self, submission: &Submission) -> Result<Ticket<'_>, ClientError> {
        let published = self.publish(submission, true)?;
        Ok(Call::of(self, published, submission.op()))
    }

    /// As [`Session::submit`], of a call that keeps its session.
    ///
    /// # Errors
    /// As [`Session::submit`].
    pub fn submit_owned(self: &Arc<Self>, submission: &Submission) -> Result<Call<Arc<Self>>, ClientError> {
        let published = self.publish(submission, true)?;
        Ok(Call::of(Arc::clone(self), published, submission.op()))
    }

    /// Asks many things at a time, rings each doorbell once, and waits for all answers. They are in order.
    ///
    /// # Errors
    /// As [`Session::submit`]: of the whole. What one of them was refused for is its own answer.
    pub fn call_many(&self, submissions: &[Submission]) -> Result<Vec<Answer>, ClientError> {
        let mut answers = Vec::with_capacity(submissions.len());
        let mut waiting = VecDeque::with_capacity(submissions.len().min(RING_ENTRIES));
        let mut unrung = BTreeSet::new();
        for submission in submissions {
            let published = loop {
                if let Some(published) = self.publish_unrung(submission, true)? {
                    break published;
                }
                // A full ring: what holds places in it are our own calls, or others that somebody waits for. Waiting for
                // room with answers of our own untaken could wait for ever.
                unrung.iter().for_each(|shard| self.ring(*shard));
                unrung.clear();
                match waiting.pop_front() {
                    Some(oldest) => answers.push(Ticket::wait(oldest)),
                    None => break self.publish(submission, true)?,
                }
            };
            unrung.insert(published.0);
            waiting.push_back(Call::of(self, published, submission.op()));
        }
        unrung.iter().for_each(|shard| self.ring(*shard));
        answers.extend(waiting.into_iter().map(Ticket::wait));
        Ok(answers)
    }

    /// Asks for something whose answer nobody needs: a Release, an Abort.
    ///
    /// # Errors
    /// As [`Session::submit`].
    pub fn post(&self, submission: &Submission) -> Result<(), ClientError> {
        self.publish(submission, false).map(drop)
    }

    /// Where a replica's bytes lie; `None` where this process cannot reach them.
    pub fn location(&self, id: PayloadId, shown: &Shown) -> Option<Location> {
        let root = || Some(Path::new(&self.welcome.disk_root)).filter(|root| root.is_absolute());
        let length = shown.size;
        Some(match shown.location? {
            Lies::Segment => Location::Segment {
                shm_name: segment::shm_name(&self.welcome.shm_prefix, id),
                slab_id: 0,
                block_index: 0,
                length,
            },
            Lies::File(generation) => {
                Location::File { path: place::file_path(root()?, id, generation), offset: 0, length }
            }
            Lies::Arena(block) => Location::Block { slab: block.slab, offset: block.offset_bytes(), length },
            // Its URI or handle is the server's to tell, over gRPC.
            Lies::Object | Lies::Gpu(_) => return None,
            Lies::Packed(extent) => Location::File {
                path: place::segment_file_path(root()?, extent.file),
                offset: extent.offset_bytes(),
                length,
            },
        })
    }

    /// What is known of a payload without gRPC: no expiry, policy or checksum.
    pub fn descriptor(&self, id: PayloadId, shown: &Shown) -> Descriptor {
        Descriptor {
            id,
            tier: shown.tier,
            state: shown.state,
            version: shown.version,
            size: shown.size,
            location: self.location(id, shown),
            created_at: Some(id.created_at()),
            expires_at: None,
            policy: EvictionPolicy::default(),
            checksum: None,
            node: None,
        }
    }

    /// True when the server offered arenas, and this session took them.
    pub fn has_arenas(&self) -> bool {
        self.welcome.features & FEATURE_ARENAS != 0
    }

    /// True when leases of payloads in arenas ask nobody.
    pub fn leases_directly(&self) -> bool {
        self.direct.is_some()
    }

    /// What holds a lease that [`Session::pin`] made.
    pub(crate) fn direct(&self) -> Option<&Arc<Direct>> {
        self.direct.as_ref().filter(|_| !self.fork.is_child())
    }

    /// Leases a payload without asking anybody; `None` where that is not possible: then the ring decides.
    #[inline]
    pub(crate) fn pin(&self, id: &PayloadId, wish: Wish) -> Option<Pinned> {
        let direct = self.direct.as_ref().filter(|_| self.check().is_ok())?;
        direct.acquire(&*self.slabs, id, wish)
    }

    /// As [`Session::pin`], of several.
    pub(crate) fn pin_many(&self, ids: &[PayloadId], wish: Wish) -> Vec<Option<Pinned>> {
        match self.direct.as_ref().filter(|_| self.check().is_ok()) {
            Some(direct) => direct.acquire_many(&*self.slabs, ids, wish),
            None => ids.iter().map(|_| None).collect(),
        }
    }

    /// Counts payloads that were deleted by force, on this node. While it stays, all leases are valid.
    pub fn revoked(&self) -> u64 {
        self.memory_view().revoked().load(Ordering::Acquire)
    }

    /// Maps what an allocation of this session holds.
    pub(crate) fn map_to_write(&self, descriptor: &Descriptor) -> Result<WriteMapping, ClientError> {
        match location_of(descriptor)? {
            Location::Block { slab, offset, length } => {
                self.slabs.to_write(*slab, *offset, length.0).map(WriteMapping::of)
            }
            other => WriteMapping::open(other).map(WriteMapping::without_children),
        }
    }

    /// Maps what a lease of this session holds. May wait for a slab, [`Session::must_wait_to_read`] tells.
    pub(crate) fn map_to_read(&self, descriptor: &Descriptor) -> Result<ReadMapping, ClientError> {
        match location_of(descriptor)? {
            Location::Block { slab, offset, length } => {
                self.slabs.to_read(*slab, *offset, length.0).map(ReadMapping::of)
            }
            other => ReadMapping::open(other).map(ReadMapping::without_children),
        }
    }

    /// True when [`Session::map_to_read`] has to ask the server for a slab.
    pub(crate) fn must_wait_to_read(&self, descriptor: &Descriptor) -> bool {
        matches!(&descriptor.location, Some(Location::Block { slab, .. }) if !self.slabs.is_known(*slab))
    }

    /// An allocation is about to be committed, and its mapping is gone: unmaps memory of its own, which the kernel makes
    /// immutable only when nobody could still write to it.
    pub(crate) fn unmap_isolated(&self, descriptor: &Descriptor) {
        if let Some(Location::Block { slab, .. }) = &descriptor.location {
            self.slabs.unmap_isolated(*slab);
        }
    }

    /// True while this shard sleeps, or is about to: a submission would ring its doorbell. For benches.
    ///
    /// # Panics
    /// When there is no such shard.
    pub fn is_asleep(&self, shard: u16) -> bool {
        assert!(shard < self.welcome.shard_count, "the node has this shard");
        self.node_view().sleeping(shard).load(Ordering::Relaxed) != 0
    }

    /// True while the server is there, as far as is known: a call finds out within a second.
    pub fn is_open(&self) -> bool {
        !self.fork.is_child() && self.slabs.ended().is_none() && self.is_same_start()
    }

    fn shard_of(&self, submission: &Submission) -> u16 {
        let count = self.welcome.shard_count;
        match submission {
            Submission::Acquire { id, .. }
            | Submission::Resolve { id }
            | Submission::Delete { id, .. }
            | Submission::Promote { id, .. }
            | Submission::Spill { id, .. }
            | Submission::Commit { id, .. }
            | Submission::Abort { id } => id.shard(count).0,
            // A lease of no shard is unknown to each.
            Submission::Release { lease } => lease.shard().0 % count,
            Submission::Allocate { .. } => {
                (self.turn.fetch_add(1, Ordering::Relaxed) % u32::from(count)) as u16
            }
        }
    }

    fn publish(&self, submission: &Submission, is_attended: bool) -> Result<(u16, u32), ClientError> {
        loop {
            match self.publish_now(submission, is_attended)? {
                Some(published) => return Ok(published),
                None => {
                    let shard = self.shard_of(submission);
                    let wait = || self.wait_until(shard, |lane| lane.has_room().then_some(()));
                    // What nobody waits for gives something back.
                    if is_attended { wait() } else { interrupt::uninterrupted(wait) }?;
                }
            }
        }
    }

    /// Publishes a submission; `None` when its ring is full. Returns its shard and tag.
    pub(super) fn publish_now(
        &self,
        submission: &Submission,
        is_attended: bool,
    ) -> Result<Option<(u16, u32)>, ClientError> {
        let published = self.publish_unrung(submission, is_attended)?;
        if let Some((shard, _)) = published {
            self.ring(shard);
        }
        Ok(published)
    }

    /// As [`Session::publish_now`], and the doorbell is left to the caller.
    pub(super) fn publish_unrung(
        &self,
        submission: &Submission,
        is_attended: bool,
    ) -> Result<Option<(u16, u32)>, ClientError> {
        self.check()?;
        let shard = self.shard_of(submission);
        let view = self.view(shard);
        let mut lane = self.lane(shard);
        let mut tag = lane.submit(&view, submission, is_attended);
        if tag.is_none() {
            self.drain(shard, &mut lane);
            tag = lane.submit(&view, submission, is_attended);
        }
        Ok(tag.map(|tag| (shard, tag)))
    }

    /// What `look` takes of a call if it is there; otherwise `waker` is woken when it may be.
    fn poll_lane<T>(
        &self,
        shard: u16,
        tag: u32,
        waker: &Waker,
        look: impl FnOnce(&mut Lane) -> Option<T>,
    ) -> Poll<Result<T, ClientError>> {
        let mut lane = self.lane(shard);
        if !self.fork.is_child() {
            self.drain(shard, &mut lane);
        }
        match (look(&mut lane), self.check()) {
            (Some(found), _) => Poll::Ready(Ok(found)),
            (None, Err(error)) => Poll::Ready(Err(error)),
            (None, Ok(())) => {
                lane.wake_when_answered(tag, waker);
                Poll::Pending
            }
        }
    }

    /// Nobody waits for this call any more.
    pub(super) fn abandon(&self, shard: u16, tag: u32, op: Op) {
        if self.check().is_err() {
            return;
        }
        let undo = self.lane(shard).abandon(tag, op);
        if let Some(undo) = undo {
            let _ended_with_the_session = self.post(&undo);
        }
    }

    pub(super) fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }

    /// Takes what completions there are of every shard, and sleeps once if there were none.
    pub(super) fn sleep_once(&self) {
        let line = self.memory_view().wake_line();
        let seen = wake::client_doze(&line);
        let mut has_taken = false;
        for shard in 0..self.welcome.shard_count {
            let mut lane = self.lane(shard);
            let before = lane.taken();
            self.drain(shard, &mut lane);
            has_taken |= lane.taken() != before;
        }
        if !has_taken {
            let start = Instant::now();
            futex_wait(line.wake, seen, SLEEP_MAX);
            if start.elapsed() >= SLEEP_MAX {
                self.look_after_server();
            }
        }
        wake::client_rise(&line);
    }

    /// Wakes who sleeps in this process, for nothing: they look again.
    pub(super) fn poke(&self) {
        if !self.fork.is_child() {
            futex_wake(self.memory_view().wake_line().wake);
        }
    }

    /// Rings the shard's doorbell if it sleeps.
    pub(super) fn ring(&self, shard: u16) {
        if wake::must_ring(self.node_view().sleeping(shard)) {
            socket::ring(&self.shards[usize::from(shard)].bell);
        }
    }

    /// Takes what completions there are.
    fn drain(&self, shard: u16, lane: &mut Lane) {
        let has_submitted = lane.drain(&self.view(shard));
        self.shards[usize::from(shard)].next.store(lane.taken(), Ordering::Relaxed);
        if has_submitted {
            self.ring(shard);
        }
    }

    /// Waits until `found` says so of the shard's lane, after its completions were taken.
    fn wait_until<T>(
        &self,
        shard: u16,
        mut found: impl FnMut(&mut Lane) -> Option<T>,
    ) -> Result<T, ClientError> {
        let mut look = || {
            let mut lane = self.lane(shard);
            self.drain(shard, &mut lane);
            found(&mut lane)
        };
        let (view, next) = (self.view(shard), &self.shards[usize::from(shard)].next);
        let mut since_look = Duration::ZERO;
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            self.check()?;
            let seen = next.load(Ordering::Relaxed);
            let something = || has_entry(view.completions, seen) || next.load(Ordering::Relaxed) != seen;
            if self.spin.until(something) {
                continue;
            }
            let line = self.memory_view().wake_line();
            let seen = wake::client_doze(&line);
            let found = look();
            if found.is_none() {
                let start = Instant::now();
                let is_watched = interrupt::is_watched();
                futex_wait(line.wake, seen, if is_watched { interrupt::EVERY } else { SLEEP_MAX });
                let slept = start.elapsed();
                since_look += slept;
                if since_look >= SLEEP_MAX || slept >= SLEEP_MAX {
                    since_look = Duration::ZERO;
                    self.look_after_server();
                }
            }
            wake::client_rise(&line);
            if let Some(found) = found {
                return Ok(found);
            }
            interrupt::look()?;
        }
    }

    /// Refuses where nothing of the session may be touched.
    fn check(&self) -> Result<(), ClientError> {
        if self.fork.is_child() {
            return Err(ClientError::Forked);
        }
        match self.slabs.ended() {
            None => Ok(()),
            Some(reason) => Err(ClientError::Ended { reason: reason.clone() }),
        }
    }

    /// Looks whether the server is still there, and notes it when it is not.
    pub(super) fn look_after_server(&self) {
        if self.slabs.receive() {
            if self.is_same_start() {
                return;
            }
            self.slabs.end("the server has stopped".to_owned());
        }
        // What sleeps meanwhile finds it out by itself.
        for shard in &self.shards {
            lock(&shard.lane).wake_all();
        }
    }

    fn is_same_start(&self) -> bool {
        self.node_view().epoch().load(Ordering::Relaxed) == u64::from(self.welcome.epoch.0)
    }

    fn lane(&self, shard: u16) -> MutexGuard<'_, Lane> {
        lock(&self.shards[usize::from(shard)].lane)
    }

    fn view(&self, shard: u16) -> ShardView<'_, AtomicU64> {
        self.memory_view().shard(shard)
    }

    fn memory_view(&self) -> SessionView<'_, AtomicU64> {
        let view = SessionView::new(self.memory.words(), self.welcome.shard_count);
        view.expect("as many words were mapped as the layout has")
    }

    fn node_view(&self) -> NodeView<'_, AtomicU64> {
        NodeView::new(self.node.words()).expect("a whole node page was mapped")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.fork.is_child() {
            return;
        }
        self.watch.stop();
        self.memory_view().wake_line().client_closed.store(1, Ordering::Relaxed);
        self.slabs.stop();
    }
}

impl<S: Deref<Target = Session>> Call<S> {
    pub(super) fn of(session: S, (shard, tag): (u16, u32), op: Op) -> Self {
        Self { session, shard, tag, op, is_done: false }
    }

    /// Waits for the answer.
    ///
    /// # Errors
    /// As [`Session::call`].
    pub fn wait(mut self) -> Answer {
        let answer = self.session.wait_until(self.shard, |lane| lane.take_answer(self.tag));
        // Either it was taken, or there is no session any more to take it from; or nobody wants it.
        self.is_done = !matches!(answer, Err(ClientError::Cancelled));
        answer?
    }

    /// Waits until a Commit that asked for it is ACCEPTED, and returns what it said; `None` when the server skipped that, or
    /// it was asked before: [`Call::wait`] has the answer then.
    ///
    /// # Errors
    /// As [`Session::submit`].
    pub fn wait_accepted(&self) -> Result<Option<Outcome>, ClientError> {
        self.session.wait_until(self.shard, |lane| lane.take_accepted(self.tag))
    }

    /// [`Call::wait`] of a task.
    pub(super) fn poll_answer(&mut self, waker: &Waker) -> Poll<Answer> {
        let tag = self.tag;
        let answer = self.session.poll_lane(self.shard, tag, waker, |lane| lane.take_answer(tag));
        self.is_done = answer.is_ready();
        answer.map(|answer| answer?)
    }

    /// [`Call::wait_accepted`] of a task.
    pub(super) fn poll_accepted(&self, waker: &Waker) -> Poll<Result<Option<Outcome>, ClientError>> {
        self.session.poll_lane(self.shard, self.tag, waker, |lane| lane.take_accepted(self.tag))
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }
}

impl<S: Deref<Target = Session>> Drop for Call<S> {
    fn drop(&mut self) {
        if !self.is_done {
            self.session.abandon(self.shard, self.tag, self.op);
        }
    }
}

fn lock(lane: &Mutex<Lane>) -> MutexGuard<'_, Lane> {
    // Nothing that is done under it panics half-way.
    lane.lock().unwrap_or_else(PoisonError::into_inner)
}
