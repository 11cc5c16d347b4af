//! The session thread: accepts, greets, opens, watches and closes.
//!
//! ```text
//! accepted -> greeting (at most HANDSHAKE_MS) -> open -> closing: the socket is closed, shards have it still -> gone
//! ```
//! One epoll for the listener, the bell, each connection's socket and its process. Nothing here waits for a client:
//! sockets are non-blocking, and who does not read its messages misses them. A connection that ends takes its place in
//! `connections` along; its session's slot is taken again only when no shard has it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use payload_local::hello::{
    ADDRESS_BYTES_MAX, ClientFrame, FEATURE_ADDRESS, FEATURE_ARENAS, FEATURE_DIRECT, FRAME_BYTES_MAX, Hello,
    RefusalKind, ServerFrame, Welcome, doorbells_in_message,
};
use payload_types::{Monotonic, Peer, SessionId};

use super::direct::Direct;
use super::share::{Identity, NodePage, Session};
use super::slabs::{Message, Slabs};
use super::{
    GONE_UNDER_WAY_MAX, HANDSHAKE_MS, HANDSHAKES_MAX, Orders, SESSIONS_MAX, SessionConfig, SessionInfo,
    SessionList, SessionNote,
};
use crate::clock;
use crate::mailbox::Shared;
use crate::sys::poll::{Bell, Poll, Trigger};
use crate::sys::socket::{self, Credentials};

/// Connections accepted before others are looked after.
const ACCEPTED_PER_TURN_MAX: usize = 16;

/// A listener that fails (no descriptors left) is tried again after this.
const LISTEN_PAUSE_MS: u64 = 100;

/// Shards whose lanes are full of sessions that come and go are told again after this.
const GONE_AGAIN_MS: u64 = 5;

/// What an epoll token names: its kind in the upper half, a connection's index in the lower one.
const TOKEN_LISTENER: u64 = 0;
const TOKEN_BELL: u64 = 1;
const TOKEN_SOCKET: u64 = 2;
const TOKEN_PROCESS: u64 = 3;
/// The process of a session that has ended; the lower half is the session's number.
const TOKEN_GHOST: u64 = 4;

/// Processes that outlived sessions with memory, as many as are watched: while there are more, no session gets slabs.
const GHOSTS_MAX: usize = SESSIONS_MAX as usize;

fn token(kind: u64, index: usize) -> u64 {
    kind << 32 | index as u64
}

/// What a [`Registry`] is made of.
pub(super) struct Parts {
    pub config: SessionConfig,
    pub boot_hash: u64,
    pub shared: Arc<Shared>,
    pub node: Arc<NodePage>,
    pub bell: Arc<Bell>,
    pub orders: Arc<Orders>,
    pub list: SessionList,
    /// `None`: there is no feature ARENAS.
    pub slabs: Option<Slabs>,
    /// `None`: there is no feature DIRECT.
    pub direct: Option<Direct>,
}

/// A client's connection.
struct Connection {
    socket: OwnedFd,
    credentials: Credentials,
    /// Readable when the process has ended; `None` where the kernel cannot tell, then the socket alone does.
    process: Option<OwnedFd>,
    /// It said that it is done.
    said_bye: bool,
    stage: Stage,
}

enum Stage {
    /// It must say Hello before that.
    Greeting {
        until: Monotonic,
    },
    Open(Open),
}

struct Open {
    session: Arc<Session>,
    /// One for each shard.
    bells: Vec<Bell>,
}

/// A process that has outlived its session.
struct Ghost {
    session: SessionId,
    process: OwnedFd,
    /// Shards wait for its end: it could write to slabs.
    has_memory: bool,
}

/// See the head of the file.
pub(super) struct Registry {
    parts: Parts,
    shard_count: u16,
    poll: Poll,
    listener: OwnedFd,
    /// When the listener is watched again; `None`: it is watched.
    listens_again_at: Option<Monotonic>,
    connections: Vec<Option<Connection>>,
    /// Closed ones that some shard still has.
    closing: Vec<Arc<Session>>,
    /// Processes that could write to slabs, or lease directly, when their sessions ended.
    ghosts: Vec<Ghost>,
    /// Sessions whose shards are to hear that the process is gone: no more than were closed since the last turn of them.
    gone: VecDeque<SessionId>,
    /// Of sessions; the one that was free for longest is taken first.
    slots_free: VecDeque<u16>,
    session_last: u32,
}

impl Registry {
    pub(super) fn new(parts: Parts, listener: OwnedFd) -> io::Result<Self> {
        let poll = Poll::new()?;
        poll.add(listener.as_fd(), token(TOKEN_LISTENER, 0), Trigger::Level)?;
        poll.add(parts.bell.as_fd(), token(TOKEN_BELL, 0), Trigger::Edge)?;
        let shard_count = u16::try_from(parts.shared.boxes.len()).expect("at most 256 shards");
        let connections =
            (0..usize::from(parts.config.sessions_max) + HANDSHAKES_MAX).map(|_| None).collect();
        Ok(Self {
            parts,
            shard_count,
            poll,
            listener,
            listens_again_at: None,
            connections,
            closing: Vec::new(),
            ghosts: Vec::new(),
            gone: VecDeque::new(),
            slots_free: (0..SESSIONS_MAX).collect(),
            session_last: 0,
        })
    }

    /// Serves until it is told to end.
    pub(super) fn run(mut self) {
        let _guard = AbortOnPanic;
        while !self.parts.orders.is_ending() {
            let timeout_ms =
                self.next_look().map(|at| at.0.saturating_sub(clock::monotonic().0).div_ceil(1_000_000));
            let happened: Vec<u64> = self.poll.wait(timeout_ms).map(|happened| happened.token).collect();
            // The listener last: what it accepts must not take the place of one that this very batch speaks of.
            for token in &happened {
                self.hear(*token);
            }
            if happened.contains(&token(TOKEN_LISTENER, 0)) {
                self.accept();
            }
            self.serve_slabs();
            self.end_faulty();
            self.end_silent();
            self.tell_gone();
            self.forget_closed();
            self.listen_again();
        }
        self.end();
    }

    /// When something is due that no descriptor tells.
    fn next_look(&self) -> Option<Monotonic> {
        let greetings = self.connections.iter().flatten().filter_map(|connection| match connection.stage {
            Stage::Greeting { until } => Some(until),
            Stage::Open(_) => None,
        });
        let now = clock::monotonic();
        let slabs = self.parts.slabs.as_ref().and_then(|slabs| slabs.next_look(now));
        let direct = self.parts.direct.as_ref().and_then(Direct::next_look);
        let gone = (!self.gone.is_empty()).then(|| now.plus_millis(GONE_AGAIN_MS));
        greetings.chain(self.listens_again_at).chain(slabs).chain(direct).chain(gone).min()
    }

    fn hear(&mut self, token: u64) {
        let index = token as u32 as usize;
        match token >> 32 {
            TOKEN_SOCKET => self.read(index),
            TOKEN_PROCESS => self.close(index, None),
            TOKEN_GHOST => self.end_ghost(token as u32),
            // Rung: whatever it is for is looked at after every batch.
            _ => {}
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTED_PER_TURN_MAX {
            let free = self.connections.iter().position(Option::is_none);
            let (Some(index), true) = (free, self.greetings() < HANDSHAKES_MAX) else {
                // A place gets free within HANDSHAKE_MS; who comes meanwhile waits in the kernel.
                return self.pause_listening();
            };
            match socket::accept(&self.listener) {
                Ok(Some(socket)) => self.greet(index, socket),
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%error, "a native session could not be accepted; trying again");
                    return self.pause_listening();
                }
            }
        }
    }

    fn greetings(&self) -> usize {
        let greeting = |connection: &&Connection| matches!(connection.stage, Stage::Greeting { .. });
        self.connections.iter().flatten().filter(greeting).count()
    }

    fn pause_listening(&mut self) {
        if self.listens_again_at.is_none() {
            self.poll.remove(self.listener.as_fd());
            self.listens_again_at = Some(clock::monotonic().plus_millis(LISTEN_PAUSE_MS));
        }
    }

    fn listen_again(&mut self) {
        if self.listens_again_at.is_some_and(|at| at <= clock::monotonic()) {
            let again = self.poll.add(self.listener.as_fd(), token(TOKEN_LISTENER, 0), Trigger::Level);
            self.listens_again_at = match again {
                Ok(()) => None,
                Err(_) => Some(clock::monotonic().plus_millis(LISTEN_PAUSE_MS)),
            };
        }
    }

    fn greet(&mut self, index: usize, socket: OwnedFd) {
        let Ok(credentials) = socket::credentials(&socket) else { return };
        let process = match socket::process_of(&socket, credentials.pid) {
            Ok(None) => return,
            Ok(process) => process,
            Err(error) => {
                tracing::debug!(%error, pid = credentials.pid, "this process cannot be watched, only its socket");
                None
            }
        };
        let watched =
            self.poll.add(socket.as_fd(), token(TOKEN_SOCKET, index), Trigger::Level).and_then(|()| {
                let Some(process) = &process else { return Ok(()) };
                self.poll.add(process.as_fd(), token(TOKEN_PROCESS, index), Trigger::Level)
            });
        if let Err(error) = watched {
            tracing::warn!(%error, "a native session could not be watched, and was refused");
            return;
        }
        let until = clock::monotonic().plus_millis(HANDSHAKE_MS);
        let stage = Stage::Greeting { until };
        let said_bye = false;
        self.connections[index] = Some(Connection { socket, credentials, process, said_bye, stage });
    }

    /// Reads one message, if the connection is still there; more make its socket readable again.
    fn read(&mut self, index: usize) {
        let Some(connection) = self.connections.get(index).and_then(Option::as_ref) else { return };
        let mut buffer = [0; FRAME_BYTES_MAX];
        let received = match socket::receive(&connection.socket, &mut buffer) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => return self.close(index, None),
        };
        if received.had_descriptors {
            return self.reject(index, "descriptors came with a message; this server takes none");
        }
        if received.length == 0 {
            return self.close(index, None);
        }
        if received.is_cut {
            return self.reject(index, "a message is longer than every frame of the protocol");
        }
        let greeting = matches!(connection.stage, Stage::Greeting { .. });
        match ClientFrame::decode(&buffer[..received.length]) {
            Ok(ClientFrame::Hello(hello)) if greeting => self.admit(index, &hello),
            Ok(ClientFrame::Hello(_)) => self.reject(index, "a second Hello; a session has one"),
            Ok(ClientFrame::Bye) => {
                self.connections[index].as_mut().expect("who spoke is there").said_bye = true;
                self.close(index, None);
            }
            Ok(frame @ (ClientFrame::SlabMapped { .. } | ClientFrame::SlabWanted { .. })) => {
                self.hear_of_slab(index, &frame);
            }
            Err(error) => self.reject(index, &error.message),
        }
    }

    fn hear_of_slab(&mut self, index: usize, frame: &ClientFrame) {
        let session = match self.connections[index].as_ref().map(|connection| &connection.stage) {
            Some(Stage::Open(open)) if open.session.identity.arenas => open.session.identity.id,
            _ => return self.reject(index, "a frame of slabs, and this session has no feature ARENAS"),
        };
        let slabs = self.parts.slabs.as_mut().expect("a session with the feature");
        match frame {
            ClientFrame::SlabMapped { slab } => {
                if let Err(fault) = slabs.mapped(session, *slab) {
                    self.reject(index, &fault);
                }
            }
            ClientFrame::SlabWanted { slab } => slabs.wanted(session, *slab),
            ClientFrame::Hello(_) | ClientFrame::Bye => unreachable!("no frame of slabs"),
        }
    }

    /// Work on slabs, what clients are told of it, and the end of those who do not answer.
    fn serve_slabs(&mut self) {
        let Some(slabs) = &mut self.parts.slabs else { return };
        let now = clock::now();
        let mut messages = slabs.turn(now.monotonic);
        let silent = slabs.silent(now.monotonic);
        if let Some(direct) = &mut self.parts.direct {
            messages.extend(direct.turn(now));
        }
        for Message { session, frame, descriptor } in messages {
            let Some(index) = self.index_of(session) else { continue };
            let Some(connection) = &self.connections[index] else { continue };
            let descriptors: Vec<BorrowedFd<'_>> = descriptor.iter().map(AsFd::as_fd).collect();
            if let Err(error) = socket::send(&connection.socket, &frame.encode(), &descriptors) {
                self.close(
                    index,
                    Some(&format!("a message about a slab could not be sent ({error}); read the socket")),
                );
            }
        }
        for (session, fault) in silent {
            if let Some(index) = self.index_of(session) {
                self.close(index, Some(&fault));
            }
        }
    }

    fn index_of(&self, session: SessionId) -> Option<usize> {
        self.connections.iter().position(|connection| {
            let stage = connection.as_ref().map(|connection| &connection.stage);
            matches!(stage, Some(Stage::Open(open)) if open.session.identity.id == session)
        })
    }

    /// A session has ended: its shards hear that nobody can write to its memory, now or when its process has ended. Who said
    /// Bye is believed: nothing of what it has is reused before a write lease proves it to be nobody's.
    fn await_end(&mut self, session: SessionId, said_bye: bool, process: Option<OwnedFd>) {
        let has_memory = self.parts.slabs.as_mut().is_some_and(|slabs| slabs.closed(session));
        let has_pages = self.parts.direct.as_mut().is_some_and(|direct| direct.closed(session));
        if let Some(direct) = self.parts.direct.as_mut().filter(|_| has_pages && said_bye) {
            direct.forget(session);
        }
        let process = process.filter(|_| (has_memory || has_pages) && !said_bye);
        let watched = process.filter(|process| {
            let token = token(TOKEN_GHOST, session.get() as usize);
            let added = self.poll.add(process.as_fd(), token, Trigger::Level);
            if let Err(error) = &added {
                tracing::warn!(%session, %error, "the process of a session that ended cannot be watched");
            }
            added.is_ok()
        });
        if watched.is_none() || !has_memory {
            self.gone.push_back(session);
        }
        // What cannot be watched keeps its cells for good: that it is dead could not be proven.
        self.ghosts.extend(watched.map(|process| Ghost { session, process, has_memory }));
    }

    fn end_ghost(&mut self, number: u32) {
        if let Some(at) = self.ghosts.iter().position(|ghost| ghost.session.get() == number) {
            let Ghost { session, process, has_memory } = self.ghosts.swap_remove(at);
            self.poll.remove(process.as_fd());
            if has_memory {
                self.gone.push_back(session);
            }
            if let Some(direct) = &mut self.parts.direct {
                direct.dead(session, clock::monotonic());
            }
        }
    }

    fn tell_gone(&mut self) {
        let has_room =
            |shared: &Shared| shared.boxes.iter().all(|mailbox| mailbox.sessions.len() < GONE_UNDER_WAY_MAX);
        while has_room(&self.parts.shared)
            && let Some(session) = self.gone.pop_front()
        {
            for mailbox in &self.parts.shared.boxes {
                mailbox.tell(SessionNote::Gone(session));
            }
        }
    }

    /// The client broke the protocol.
    fn reject(&mut self, index: usize, text: &str) {
        match self.connections[index].as_ref().map(|connection| &connection.stage) {
            Some(Stage::Greeting { .. }) => self.refuse(index, RefusalKind::Malformed, text.to_owned()),
            _ => self.close(index, Some(text)),
        }
    }

    fn admit(&mut self, index: usize, hello: &Hello) {
        let Some(connection) = &self.connections[index] else { return };
        let Credentials { uid, gids, .. } = &connection.credentials;
        if let Err(frame) = hello.version() {
            return self.send_last(index, &frame);
        }
        if self.parts.orders.is_refusing() {
            let text = "the server is stopping and opens no sessions; try again once it is back";
            return self.refuse(index, RefusalKind::Stopping, text.to_owned());
        }
        if !self.parts.config.allowed.permits(*uid, gids) {
            let text = format!(
                "user {uid} may not open native sessions; add it to local.allowed_uids, or one of its groups to local.allowed_gids"
            );
            return self.refuse(index, RefusalKind::User, text);
        }
        let (open, max) = (self.parts.list.count(), usize::from(self.parts.config.sessions_max));
        if open >= max || self.slots_free.is_empty() {
            let text = format!(
                "the server has {open} native sessions, and {max} are its limit (local.sessions_max); close some, or raise it"
            );
            return self.refuse(index, RefusalKind::Full, text);
        }
        if let Err(error) = self.open(index, hello) {
            let text =
                format!("the server has not enough memory or descriptors for another session: {error}");
            tracing::warn!(%error, "a native session could not be opened");
            self.refuse(index, RefusalKind::Unable, text);
        }
    }

    /// Makes the session, hands it to the client, and then to the shards.
    fn open(&mut self, index: usize, hello: &Hello) -> io::Result<()> {
        let connection = self.connections[index].as_ref().expect("who asked is there");
        let (pid, uid) = (connection.credentials.pid, connection.credentials.uid);
        self.session_last += 1;
        let id = SessionId::new(self.session_last).expect("4 billion sessions in one start");
        let slot = self.slots_free.pop_front().expect("looked at before");
        let peer = Peer::native(pid, uid, id);
        // Memory that a client can write to is given back by the end of its process, which has to be seen.
        let arenas = hello.features & FEATURE_ARENAS != 0
            && self.parts.slabs.is_some()
            && connection.process.is_some()
            && self.ghosts.len() < GHOSTS_MAX;
        let direct = arenas && hello.features & FEATURE_DIRECT != 0 && self.parts.direct.is_some();
        let namespace = self.parts.config.namespace;
        let identity = Identity { id, slot, peer, namespace, arenas, direct };
        let made = self.make(identity).and_then(|(session, memory, bells)| {
            self.welcome(index, hello, identity, &memory, &bells)?;
            self.watch(&bells)?;
            // Last: who has pages may lease, and they stay until he is dead.
            if let Err(error) = self.show_pages(index, identity) {
                self.unwatch(&bells);
                return Err(error);
            }
            Ok((session, bells))
        });
        let (session, bells) = match made {
            Ok(made) => made,
            Err(error) => {
                if let Some(direct) = &mut self.parts.direct {
                    direct.forget(id);
                }
                self.slots_free.push_back(slot);
                return Err(error);
            }
        };
        tracing::debug!(session = %id, pid, uid, program = hello.program, "native session opened");
        let info = SessionInfo { id, pid, uid, program: hello.program.clone(), since: clock::now().wall };
        self.parts.list.locked(|sessions| sessions.insert(id, info));
        if let Some(slabs) = self.parts.slabs.as_mut().filter(|_| arenas) {
            slabs.opened(id);
        }
        if let Some(pages) = self.parts.direct.as_mut().filter(|_| direct) {
            pages.opened(id, namespace);
        }
        for mailbox in &self.parts.shared.boxes {
            mailbox.tell(SessionNote::Attach(Arc::clone(&session)));
        }
        let connection = self.connections[index].as_mut().expect("who asked is there");
        connection.stage = Stage::Open(Open { session, bells });
        Ok(())
    }

    fn make(&self, identity: Identity) -> io::Result<(Arc<Session>, OwnedFd, Vec<Bell>)> {
        let (node, bell) = (Arc::clone(&self.parts.node), Arc::clone(&self.parts.bell));
        let (session, memory) = Session::make(identity, self.shard_count, node, bell)?;
        let bells = (0..self.shard_count).map(|_| Bell::new()).collect::<io::Result<Vec<_>>>()?;
        Ok((Arc::new(session), memory, bells))
    }

    fn welcome(
        &self,
        index: usize,
        hello: &Hello,
        identity: Identity,
        memory: &OwnedFd,
        bells: &[Bell],
    ) -> io::Result<()> {
        let connection = self.connections[index].as_ref().expect("who asked is there");
        let config = &self.parts.config;
        let is_told =
            hello.features & FEATURE_ADDRESS != 0 && (1..=ADDRESS_BYTES_MAX).contains(&config.address.len());
        let welcome = Welcome {
            version: hello.version().expect("checked before"),
            shard_count: self.shard_count,
            session: identity.id.get(),
            namespace: identity.namespace,
            features: if identity.arenas { FEATURE_ARENAS } else { 0 }
                | if identity.direct { FEATURE_DIRECT } else { 0 }
                | if is_told { FEATURE_ADDRESS } else { 0 },
            epoch: config.epoch,
            boot_hash: self.parts.boot_hash,
            shm_prefix: config.shm_prefix.clone(),
            disk_root: config.disk_root.clone(),
            address: if is_told { config.address.clone() } else { String::new() },
        };
        let mut frame = ServerFrame::Welcome(Box::new(welcome));
        let mut descriptors: Vec<BorrowedFd<'_>> = vec![memory.as_fd(), self.parts.node.fd()];
        let mut first = 0;
        while first < self.shard_count {
            let end = first + doorbells_in_message(self.shard_count, first);
            descriptors.extend(bells[usize::from(first)..usize::from(end)].iter().map(AsFd::as_fd));
            socket::send(&connection.socket, &frame.encode(), &descriptors)?;
            descriptors.clear();
            first = end;
            frame = ServerFrame::Doorbells { first };
        }
        Ok(())
    }

    /// The tables, and the pages to lease from them.
    fn show_pages(&mut self, index: usize, identity: Identity) -> io::Result<()> {
        let Some(direct) = self.parts.direct.as_mut().filter(|_| identity.direct) else { return Ok(()) };
        let [cells, status] = direct.open(identity.id, identity.namespace, clock::now().wall)?;
        let connection = self.connections[index].as_ref().expect("who asked is there");
        for (frame, table) in direct.offers(identity.namespace) {
            if let Err(error) = socket::send(&connection.socket, &frame.encode(), &[table.descriptor()]) {
                // It leases over that shard's ring, until the shard has another table.
                tracing::debug!(session = %identity.id, %error, "a table of direct leases was not sent");
                break;
            }
        }
        let frame = ServerFrame::Pages { shard_count: self.shard_count };
        socket::send(&connection.socket, &frame.encode(), &[cells.as_fd(), status.as_fd()])
    }

    /// From now on the client's bells wake the shards.
    fn watch(&self, bells: &[Bell]) -> io::Result<()> {
        for (at, (mailbox, bell)) in self.parts.shared.boxes.iter().zip(bells).enumerate() {
            if let Err(error) = mailbox.doorbell.watch().and_then(|watch| watch.add(bell)) {
                self.unwatch(&bells[..at]);
                return Err(error);
            }
        }
        Ok(())
    }

    fn unwatch(&self, bells: &[Bell]) {
        for (mailbox, bell) in self.parts.shared.boxes.iter().zip(bells) {
            mailbox.doorbell.watch().expect("made at the start").remove(bell);
        }
    }

    fn refuse(&mut self, index: usize, kind: RefusalKind, text: String) {
        self.send_last(index, &ServerFrame::Refusal { kind, text });
    }

    /// Sends a frame if the client reads, and ends the connection.
    fn send_last(&mut self, index: usize, frame: &ServerFrame) {
        if let Some(connection) = &self.connections[index] {
            // Who does not read does not hear why.
            let _ = socket::send(&connection.socket, &frame.encode(), &[]);
        }
        self.close(index, None);
    }

    /// Ends a connection, and the session behind it. `reason` is the server's own; the client hears it.
    fn close(&mut self, index: usize, reason: Option<&str>) {
        let Some(connection) = self.connections.get_mut(index).and_then(Option::take) else { return };
        let Connection { socket, credentials, process, said_bye, stage } = connection;
        if let Some(text) = reason {
            let _ = socket::send(&socket, &ServerFrame::Closed { text: text.to_owned() }.encode(), &[]);
        }
        socket::end(&socket);
        self.poll.remove(socket.as_fd());
        if let Some(process) = &process {
            self.poll.remove(process.as_fd());
        }
        let Stage::Open(Open { session, bells }) = stage else { return };
        let id = session.identity.id;
        match reason {
            Some(reason) => {
                tracing::warn!(session = %id, pid = credentials.pid, reason, "native session closed")
            }
            None => tracing::debug!(session = %id, pid = credentials.pid, "native session ended"),
        }
        self.unwatch(&bells);
        self.parts.list.locked(|sessions| sessions.remove(&id));
        for mailbox in &self.parts.shared.boxes {
            mailbox.tell(SessionNote::Close(id));
        }
        session.wake_all();
        self.closing.push(session);
        self.await_end(id, said_bye, process);
    }

    /// Closes sessions of which a shard has found out that they break the protocol.
    fn end_faulty(&mut self) {
        for index in 0..self.connections.len() {
            let Some(Connection { stage: Stage::Open(open), .. }) = &self.connections[index] else {
                continue;
            };
            let Some(fault) = open.session.fault().map(str::to_owned) else { continue };
            self.close(index, Some(&fault));
        }
    }

    /// Refuses who took too long to say Hello.
    fn end_silent(&mut self) {
        let now = clock::monotonic();
        for index in 0..self.connections.len() {
            let Some(Connection { stage: Stage::Greeting { until }, .. }) = &self.connections[index] else {
                continue;
            };
            if *until <= now {
                let text = format!("no Hello within {HANDSHAKE_MS} ms");
                self.refuse(index, RefusalKind::Malformed, text);
            }
        }
    }

    /// Unmaps what no shard has any more.
    fn forget_closed(&mut self) {
        let slots_free = &mut self.slots_free;
        self.closing.retain_mut(|session| {
            let is_last = Arc::get_mut(session).is_some();
            if is_last {
                slots_free.push_back(session.identity.slot);
            }
            !is_last
        });
    }

    /// The server has stopped: every client hears so, now or by looking at the node page.
    fn end(mut self) {
        self.parts.node.end();
        for index in 0..self.connections.len() {
            let text = "the server has stopped";
            match self.connections[index].as_ref().map(|connection| &connection.stage) {
                Some(Stage::Greeting { .. }) => {
                    self.refuse(index, RefusalKind::Stopping, text.to_owned());
                }
                Some(Stage::Open(_)) => self.close(index, Some(text)),
                None => {}
            }
        }
    }
}

/// Ends the process when the session thread panics: nobody else would give back what dead clients held.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(
                "the session thread panicked; the server ends, since nobody can end native sessions"
            );
            std::process::abort();
        }
    }
}
