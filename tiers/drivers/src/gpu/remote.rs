//! What the object store's threads have of a device: a replica's bytes to upload, and a new replica to download into. They wait for
//! the device's copying threads, which do it between copies, a part of an object at a time.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use crossbeam::channel::Sender;
use payload_types::ByteCount;
use payload_types::effect::ReplicaRef;
use payload_types::event::{DriverError, DriverErrorKind};

use super::lanes::{Copying, Work};
use super::places::Held;
use super::store::GpuStore;
use crate::fault::finding;
use crate::object::{Sink, Source};

/// The devices, for threads that may block. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Remote {
    pub(super) store: Arc<GpuStore>,
    /// The copies' lane of each device.
    pub(super) lanes: Arc<[Sender<Work>]>,
}

impl Remote {
    fn ask<T: Send + 'static>(
        &self,
        slot: usize,
        work: impl FnOnce(&mut Copying<'_>) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, DriverError> {
        let (reply, answer) = mpsc::sync_channel(1);
        let asked = self.lanes[slot].send(Work::Ask(Box::new(move |copying| {
            let _ = reply.send(work(copying)); // nobody waits at the end
        })));
        let stopping = || finding(DriverErrorKind::Io, "the server is stopping");
        asked.map_err(|_closed| stopping())?;
        answer.recv().unwrap_or_else(|_dropped| Err(stopping()))
    }

    /// A replica's bytes, to be uploaded.
    ///
    /// # Errors
    /// `Missing`; `DeviceLost`.
    pub(crate) fn source(&self, from: &ReplicaRef) -> Result<GpuSource, DriverError> {
        Ok(GpuSource { held: self.store.find(from)?, remote: self.clone() })
    }

    /// Room for a new replica, whose bytes are to come.
    ///
    /// # Errors
    /// As for a copy to the device.
    pub(crate) fn draft(&self, to: ReplicaRef) -> Result<GpuDraft, DriverError> {
        let slot = self.store.charge(&to)?;
        let made = self.ask(slot, move |copying| copying.store().allocate(slot, &to).map(Arc::new));
        let held = made.inspect_err(|_| self.store.discharge(slot, &to))?;
        let is_published = AtomicBool::new(false);
        Ok(GpuDraft(Arc::new(Draft { remote: self.clone(), replica: to, held, is_published })))
    }
}

/// See [`Remote::source`].
pub(crate) struct GpuSource {
    remote: Remote,
    held: Arc<Held>,
}

impl Source for GpuSource {
    fn size(&self) -> ByteCount {
        self.held.place.size
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        if offset + into.len() as u64 > self.held.place.size.0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (held, length) = (Arc::clone(&self.held), into.len());
        let read = self.remote.ask(held.slot, move |copying| copying.read(&held, offset, length));
        into.copy_from_slice(&read.map_err(|error| io::Error::other(error.message))?);
        Ok(())
    }
}

/// See [`Remote::draft`]. It is gone when its last sink is dropped, unless it was published.
pub(crate) struct GpuDraft(Arc<Draft>);

struct Draft {
    remote: Remote,
    replica: ReplicaRef,
    held: Arc<Held>,
    is_published: AtomicBool,
}

impl GpuDraft {
    pub(crate) fn sink(&self) -> Arc<dyn Sink> {
        Arc::new(GpuSink(Arc::clone(&self.0)))
    }

    /// All of it is there, and is what was expected: from now on it is shown.
    pub(crate) fn publish(self) {
        let Draft { remote, replica, held, is_published } = &*self.0;
        is_published.store(true, Ordering::Release);
        remote.store.places.enter(replica, Arc::clone(held));
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let (slot, replica) = (self.held.slot, self.replica);
        if *self.is_published.get_mut() {
            return;
        }
        let held = Arc::clone(&self.held);
        let released = self.remote.ask(slot, move |copying| {
            copying.store().release(slot, &held.allocation);
            copying.store().discharge(slot, &replica);
            Ok(())
        });
        if let Err(error) = released {
            tracing::debug!("device memory is left to the end of the process: {}", error.message);
        }
    }
}

struct GpuSink(Arc<Draft>);

impl Sink for GpuSink {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (held, bytes) = (Arc::clone(&self.0.held), bytes.to_vec());
        let written = self.0.remote.ask(held.slot, move |copying| copying.write(&held, offset, &bytes));
        written.map_err(|error| io::Error::other(error.message))
    }
}
