//! The slabs of a session: those that it writes, and those that it reads of others. Each is mapped once.
//!
//! ```text
//! SlabOffered --> mapped to write, SlabMapped --> (sealed by the server)       Allocate answers a block: already known
//! Acquire answers a block of an unknown slab --SlabWanted--> SlabOpened: mapped to read; or SlabRefused
//! SlabClosed  --> forgotten; unmapped with the last lease in it
//! ```
//!
//! One thread a session (`pm-client-slabs`) reads the socket, because the server must not wait for a program that computes:
//! it has a second for each offer. The thread touches pages ahead of the writer as well, as far again as was used so far:
//! pages that exist in the server still have to be mapped here, one fault each (docs/decisions, arenas).
//!
//! Invariants: frames are read and acted on in order (`reading`), whoever reads them; what has ended is told by `ended`.
//! Limits: the server's, of slabs a session; a wait for a slab ends after [`SLAB_WITHIN`]; [`WANTED_MAX`] are asked for at a time,
//! each once, however many callers wait for it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use payload_local::hello::{ClientFrame, ServerFrame};
use payload_types::{ErrorKind, SlabId};

use crate::error::{ClientError, reason_of};
use crate::mapping::shared::SharedWords;
use crate::mapping::slab::{Block, SlabMap};
use crate::mapping::socket::{Bell, Message, Socket};
use crate::native::direct::{Direct, Mappings};

#[cfg(test)]
mod tests;

/// How long a caller waits for a slab that it does not know.
const SLAB_WITHIN: Duration = Duration::from_secs(1);

/// Slabs that are asked for at a time: so many frames wait at the server at most (12 + 4 bytes each, in the socket's buffer).
/// Callers that want more wait for one of these, within their own [`SLAB_WITHIN`].
const WANTED_MAX: usize = 64;

/// Touching ahead begins with this many bytes: one large page.
const TOUCH_BYTES_MIN: usize = 2 << 20;

/// The longest sleep of the thread. It is woken for all that happens; this only bounds what a lost wake costs.
const NAP: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub(super) struct Slabs {
    socket: Socket,
    /// Why the session has ended.
    ended: OnceLock<String>,
    bell: Bell,
    reading: Mutex<()>,
    state: Mutex<State>,
    changed: Condvar,
    /// Tables of direct leases come over the same socket.
    direct: OnceLock<Arc<Direct>>,
}

#[derive(Debug, Default)]
struct State {
    known: HashMap<SlabId, Slab>,
    /// Those that somebody waits for.
    wanted: HashMap<SlabId, Wanted>,
    is_over: bool,
}

/// A slab that was asked for.
#[derive(Debug, Default)]
struct Wanted {
    callers: usize,
    /// Why it is not to be had.
    refused: Option<String>,
}

#[derive(Debug)]
struct Slab {
    map: Arc<SlabMap>,
    /// For one payload, which the kernel makes immutable at Commit.
    is_isolated: bool,
    /// Bytes from its start that are touched, or about to be.
    touched: usize,
    /// Those that the thread has touched.
    touched_already: usize,
}

impl Slabs {
    pub(super) fn new(socket: Socket, bell: Bell) -> Arc<Self> {
        Arc::new(Self {
            socket,
            ended: OnceLock::new(),
            bell,
            reading: Mutex::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
            direct: OnceLock::new(),
        })
    }

    /// Who is given tables of direct leases.
    pub(super) fn share(&self, direct: Option<Arc<Direct>>) {
        if let Some(direct) = direct {
            let _first = self.direct.set(direct);
        }
    }

    /// Starts the thread that answers offers.
    ///
    /// # Errors
    /// [`ClientError::Io`] when there is none to be had.
    pub(super) fn start(self: &Arc<Self>) -> Result<(), ClientError> {
        let slabs = Arc::clone(self);
        let spawned =
            std::thread::Builder::new().name("pm-client-slabs".to_owned()).spawn(move || slabs.run());
        spawned.map(drop).map_err(|reason| ClientError::Io { what: "cannot start a thread", reason })
    }

    /// The session is over: says so to the server, and to the thread.
    pub(super) fn stop(&self) {
        let _said = self.socket.send(&ClientFrame::Bye.encode());
        self.lock().is_over = true;
        self.bell.ring();
    }

    /// Why the session has ended, if it has.
    pub(super) fn ended(&self) -> Option<&String> {
        self.ended.get()
    }

    /// The session has ended. The first reason stays.
    pub(super) fn end(&self, reason: String) {
        let _already = self.ended.set(reason);
        self.changed.notify_all();
    }

    /// Acts on what the server sent. True when the socket is still open.
    pub(super) fn receive(&self) -> bool {
        let _in_order = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let reason = match self.socket.receive_now() {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return true,
                Err(error) => format!("its socket failed: {}", reason_of(&error)),
                Ok(message) if message.bytes.is_empty() => "the server is gone".to_owned(),
                Ok(message) => match self.act(message) {
                    Ok(()) => continue,
                    Err(reason) => reason,
                },
            };
            self.end(reason);
            return false;
        }
    }

    /// The bytes of an allocation of this session.
    ///
    /// # Errors
    /// [`ClientError::Contract`] when the server never offered that slab, or it has no such bytes.
    pub(super) fn to_write(&self, slab: SlabId, offset: u64, length: u64) -> Result<Block, ClientError> {
        let mut state = self.lock();
        let known = state.known.get_mut(&slab).filter(|known| known.map.is_writable());
        let known = known.ok_or_else(|| broken(format!("slab {slab} was never offered to be written")))?;
        let block = block_of(&known.map, slab, offset, length)?;
        let used = (offset + length) as usize;
        if known.touched < known.map.len() && used.saturating_mul(2) > known.touched {
            let goal = used.saturating_mul(2).next_power_of_two().max(TOUCH_BYTES_MIN);
            known.touched = goal.min(known.map.len());
            self.bell.ring();
        }
        Ok(block)
    }

    /// The bytes of a lease. Waits for a slab that is not known yet.
    ///
    /// # Errors
    /// UNAVAILABLE when the server does not give it, and why; [`ClientError::Ended`].
    pub(super) fn to_read(&self, slab: SlabId, offset: u64, length: u64) -> Result<Block, ClientError> {
        let map = match self.known(slab) {
            Some(map) => map,
            None => self.want(slab)?,
        };
        block_of(&map, slab, offset, length)
    }

    /// True when no waiting is needed to read from `slab`.
    pub(super) fn is_known(&self, slab: SlabId) -> bool {
        self.known(slab).is_some()
    }

    /// Unmaps a slab of one payload, whose last block is gone: the kernel is to make it immutable. Others stay.
    pub(super) fn unmap_isolated(&self, slab: SlabId) {
        let mut state = self.lock();
        if state.known.get(&slab).is_some_and(|known| known.is_isolated) {
            // What is touched meanwhile holds it for an instant: Commit says so then, and may be asked again.
            let unmapped = state.known.remove(&slab);
            drop(state);
            drop(unmapped);
        }
    }

    fn want(&self, slab: SlabId) -> Result<Arc<SlabMap>, ClientError> {
        let until = Instant::now() + SLAB_WITHIN;
        let mut state = self.lock();
        while state.wanted.len() >= WANTED_MAX && !state.wanted.contains_key(&slab) {
            state = self.wait(state, until)?;
        }
        let wanted = state.wanted.entry(slab).or_default();
        wanted.callers += 1;
        let is_first = wanted.callers == 1;
        drop(state);
        let opened = self.opened(slab, is_first, until);
        let mut state = self.lock();
        if let Some(wanted) = state.wanted.get_mut(&slab) {
            wanted.callers -= 1;
            if wanted.callers == 0 {
                state.wanted.remove(&slab);
                drop(state);
                self.changed.notify_all();
            }
        }
        opened
    }

    /// Asks for a slab, if nobody has, and waits for it.
    fn opened(&self, slab: SlabId, must_ask: bool, until: Instant) -> Result<Arc<SlabMap>, ClientError> {
        if must_ask {
            let sent = self.socket.send(&ClientFrame::SlabWanted { slab }.encode());
            sent.map_err(|reason| ClientError::Io { what: "cannot ask for a slab", reason })?;
        }
        let mut state = self.lock();
        loop {
            if let Some(known) = state.known.get(&slab) {
                return Ok(Arc::clone(&known.map));
            }
            if let Some(message) = state.wanted.get(&slab).and_then(|wanted| wanted.refused.clone()) {
                return Err(ClientError::Server { kind: ErrorKind::Unavailable, message });
            }
            state = self.wait(state, until)?;
        }
    }

    /// Waits until something changes.
    ///
    /// # Errors
    /// UNAVAILABLE when it is too late; [`ClientError::Ended`].
    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        until: Instant,
    ) -> Result<MutexGuard<'a, State>, ClientError> {
        if let Some(reason) = self.ended.get() {
            return Err(ClientError::Ended { reason: reason.clone() });
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let message =
                "the server did not open the memory of this payload within a second; try again".to_owned();
            return Err(ClientError::Server { kind: ErrorKind::Unavailable, message });
        }
        Ok(self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Acts on one frame; an error says why the session ends.
    fn act(&self, Message { bytes, descriptors }: Message) -> Result<(), String> {
        let unasked = || "the server sent what it must not".to_owned();
        match ServerFrame::decode(&bytes) {
            Ok(ServerFrame::Closed { text }) => Err(text),
            Ok(ServerFrame::SlabOffered { slab, isolated, large_pages, bytes }) => {
                let map = mapped(descriptors, bytes.0, true).ok_or_else(unasked)?.map_err(unmapped)?;
                // What has large pages has them already.
                let touched = if large_pages { map.len() } else { 0 };
                self.note(slab, map, isolated, touched);
                let sent = self.socket.send(&ClientFrame::SlabMapped { slab }.encode());
                sent.map_err(|error| format!("its socket failed: {}", reason_of(&error)))
            }
            Ok(ServerFrame::SlabOpened { slab, bytes }) => {
                let map = mapped(descriptors, bytes.0, false).ok_or_else(unasked)?;
                match map {
                    Ok(map) => self.note(slab, map, false, usize::MAX),
                    Err(error) => self.refuse(slab, unmapped(error)),
                }
                Ok(())
            }
            Ok(ServerFrame::IndexOffered { shard, bytes, .. }) => {
                let [table]: [OwnedFd; 1] = descriptors.try_into().map_err(|_| unasked())?;
                let direct = self.direct.get().ok_or_else(unasked)?;
                // Without it the old one is closed, and its payloads are leased over the ring.
                if let Ok(table) = SharedWords::map_table(&table, bytes.0) {
                    direct.take_table(shard, table);
                }
                Ok(())
            }
            Ok(ServerFrame::SlabRefused { slab, text }) => {
                self.refuse(slab, text);
                Ok(())
            }
            Ok(ServerFrame::SlabClosed { slab }) => {
                let closed = self.lock().known.remove(&slab);
                drop(closed);
                Ok(())
            }
            _ => Err(unasked()),
        }
    }

    fn note(&self, slab: SlabId, map: SlabMap, is_isolated: bool, touched: usize) {
        let touched = touched.min(map.len());
        let new = Slab { map: Arc::new(map), is_isolated, touched, touched_already: touched };
        // Two that wanted the same one: the first mapping stays.
        self.lock().known.entry(slab).or_insert(new);
        self.changed.notify_all();
    }

    fn refuse(&self, slab: SlabId, text: String) {
        // Of one that nobody waits for any more there is nothing to say.
        if let Some(wanted) = self.lock().wanted.get_mut(&slab) {
            wanted.refused = Some(text);
        }
        self.changed.notify_all();
    }

    fn run(&self) {
        loop {
            self.socket.wait(&self.bell, NAP);
            if self.lock().is_over || !self.receive() {
                return;
            }
            self.touch();
        }
    }

    /// Touches what is to be touched ahead.
    fn touch(&self) {
        let mut due = Vec::new();
        for slab in self.lock().known.values_mut() {
            if slab.touched_already < slab.touched {
                due.push((Arc::clone(&slab.map), slab.touched_already..slab.touched));
                slab.touched_already = slab.touched;
            }
        }
        for (map, range) in due {
            // What cannot be had now is had at the first write, or not at all then.
            let _later = map.touch(range);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change of it is whole whenever the lock is free.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mappings for Slabs {
    fn known(&self, slab: SlabId) -> Option<Arc<SlabMap>> {
        self.lock().known.get(&slab).map(|known| Arc::clone(&known.map))
    }
}

/// `None` when there is not exactly one descriptor.
fn mapped(descriptors: Vec<OwnedFd>, bytes: u64, is_writable: bool) -> Option<std::io::Result<SlabMap>> {
    let [file]: [OwnedFd; 1] = descriptors.try_into().ok()?;
    Some(SlabMap::map(file, bytes, is_writable))
}

fn unmapped(error: std::io::Error) -> String {
    format!("this process cannot map memory of the session: {}", reason_of(&error))
}

fn block_of(map: &Arc<SlabMap>, slab: SlabId, offset: u64, length: u64) -> Result<Block, ClientError> {
    Block::new(Arc::clone(map), offset, length).ok_or_else(|| {
        broken(format!("slab {slab} of {} bytes has none at {offset}, {length} of them", map.len()))
    })
}

fn broken(what: String) -> ClientError {
    ClientError::Contract(what)
}
