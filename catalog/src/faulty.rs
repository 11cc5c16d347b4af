//! A decorator that makes a store fail by a plan given as values: the same plan gives the same failures. For tests
//! and the simulator.

use std::collections::VecDeque;

use payload_types::effect::CatalogChange;
use payload_types::{Epoch, NamespaceId, PayloadKey, PayloadRow};

use crate::error::StoreError;
use crate::store::Store;

/// What becomes of one call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing: the call goes through.
    None,
    /// Not done, and known not to be done.
    Refused,
    /// Not done, and repeating it will not help.
    Broken,
    /// Not done, and the caller is left in doubt. A read, which changes nothing, is just refused.
    LostBefore,
    /// Done, and the caller is left in doubt.
    LostAfter,
}

/// A store whose `apply` (or `apply_late`), `get` and `flush` fail as planned, one entry a call; past the end of a plan,
/// calls go through.
#[derive(Clone, Debug)]
pub struct Faulty<S> {
    inner: S,
    applies: VecDeque<Fault>,
    reads: VecDeque<Fault>,
    flushes: VecDeque<Fault>,
}

impl<S: Store> Faulty<S> {
    /// Wraps `inner`, with empty plans.
    pub fn new(inner: S) -> Self {
        Self { inner, applies: VecDeque::new(), reads: VecDeque::new(), flushes: VecDeque::new() }
    }

    /// Adds to what becomes of the coming `apply` calls.
    pub fn plan_applies(&mut self, faults: impl IntoIterator<Item = Fault>) {
        self.applies.extend(faults);
    }

    /// Adds to what becomes of the coming `get` calls.
    pub fn plan_reads(&mut self, faults: impl IntoIterator<Item = Fault>) {
        self.reads.extend(faults);
    }

    /// Adds to what becomes of the coming `flush` calls.
    pub fn plan_flushes(&mut self, faults: impl IntoIterator<Item = Fault>) {
        self.flushes.extend(faults);
    }

    /// The store inside: what is durable.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// Takes the store out.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: Store> Store for Faulty<S> {
    fn begin_epoch(&mut self, node: &str) -> Result<Epoch, StoreError> {
        self.inner.begin_epoch(node)
    }

    fn disk_roots(&mut self) -> Result<Vec<String>, StoreError> {
        self.inner.disk_roots()
    }

    fn disk_root_bind(&mut self, node: &str, root_id: &str) -> Result<(), StoreError> {
        self.inner.disk_root_bind(node, root_id)
    }

    fn apply(&mut self, batch: &[CatalogChange]) -> Result<(), StoreError> {
        match self.applies.pop_front().unwrap_or(Fault::None) {
            Fault::None => self.inner.apply(batch),
            Fault::Refused => Err(refused()),
            Fault::Broken => Err(broken()),
            Fault::LostBefore => Err(doubt()),
            Fault::LostAfter => self.inner.apply(batch).and_then(|()| Err(doubt())),
        }
    }

    fn apply_late(&mut self, batch: &[CatalogChange]) -> Result<bool, StoreError> {
        match self.applies.pop_front().unwrap_or(Fault::None) {
            Fault::None => self.inner.apply_late(batch),
            Fault::Refused => Err(refused()),
            Fault::Broken => Err(broken()),
            Fault::LostBefore => Err(doubt()),
            Fault::LostAfter => self.inner.apply_late(batch).and_then(|_| Err(doubt())),
        }
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        match self.flushes.pop_front().unwrap_or(Fault::None) {
            Fault::None => self.inner.flush(),
            Fault::Broken => Err(broken()),
            Fault::Refused | Fault::LostBefore => Err(refused()),
            Fault::LostAfter => self.inner.flush().and_then(|()| Err(refused())),
        }
    }

    fn load(&mut self, each: &mut dyn FnMut(PayloadRow)) -> Result<(), StoreError> {
        self.inner.load(each)
    }

    fn get(&mut self, key: PayloadKey) -> Result<Option<PayloadRow>, StoreError> {
        match self.reads.pop_front().unwrap_or(Fault::None) {
            Fault::None => self.inner.get(key),
            Fault::Broken => Err(broken()),
            Fault::Refused | Fault::LostBefore | Fault::LostAfter => Err(refused()),
        }
    }

    fn count(&mut self) -> Result<u64, StoreError> {
        self.inner.count()
    }

    fn namespace(&mut self, name: &str) -> Result<Option<NamespaceId>, StoreError> {
        self.inner.namespace(name)
    }

    fn log_bytes(&self) -> u64 {
        self.inner.log_bytes()
    }

    fn checkpoint(&mut self) -> Result<(), StoreError> {
        self.inner.checkpoint()
    }

    fn close(self: Box<Self>) -> Result<(), StoreError> {
        Box::new(self.inner).close()
    }
}

fn refused() -> StoreError {
    StoreError::Unavailable("the store refused the call, as planned".to_owned())
}

fn doubt() -> StoreError {
    StoreError::Unknown("the outcome of the transaction was lost, as planned".to_owned())
}

fn broken() -> StoreError {
    StoreError::Corrupt("the store is broken, as planned".to_owned())
}
