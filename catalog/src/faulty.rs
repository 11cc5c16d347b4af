//! A decorator that makes a store fail by a plan given as values: the same plan gives the same failures. For tests
//! and the simulator.

use std::collections::VecDeque;

use payload_types::effect::CatalogChange;
use payload_types::record::RecordOutcome;
use payload_types::upload::UploadEntry;
use payload_types::{Epoch, Health, NamespaceId, PayloadKey, PayloadRow, WallMs};

use crate::change::Change;
use crate::error::{StoreError, Taken};
use crate::store::{Reader, Store};

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

/// A store whose `apply` (or `apply_late`), reads (`get`, `resolve`) and `flush` fail as planned, one entry a call; past
/// the end of a plan, calls go through.
#[derive(Clone, Debug)]
pub struct Faulty<S> {
    inner: S,
    applies: VecDeque<Fault>,
    reads: VecDeque<Fault>,
    flushes: VecDeque<Fault>,
    /// Keys that another node has.
    claimed: Vec<PayloadKey>,
    /// The last apply was made and its caller left in doubt: what it met, and whether it was durable.
    doubt: Option<(Vec<RecordOutcome>, bool)>,
}

impl<S: Store> Faulty<S> {
    /// Wraps `inner`, with empty plans.
    pub fn new(inner: S) -> Self {
        Self {
            inner,
            applies: VecDeque::new(),
            reads: VecDeque::new(),
            flushes: VecDeque::new(),
            claimed: Vec::new(),
            doubt: None,
        }
    }

    /// Adds to what becomes of the coming `apply` calls.
    pub fn plan_applies(&mut self, faults: impl IntoIterator<Item = Fault>) {
        self.applies.extend(faults);
    }

    /// Adds to what becomes of the coming `get` and `resolve` calls.
    pub fn plan_reads(&mut self, faults: impl IntoIterator<Item = Fault>) {
        self.reads.extend(faults);
    }

    /// Adds to what becomes of the coming `flush` calls.
    pub fn plan_flushes(&mut self, faults: impl IntoIterator<Item = Fault>) {
        self.flushes.extend(faults);
    }

    /// Another node, `two` at two:1, has a payload of this id: no batch that puts it is made.
    pub fn claim(&mut self, key: PayloadKey) {
        self.claimed.push(key);
    }

    fn claims(&self, batch: &[Change]) -> Result<(), StoreError> {
        let key = |change: &Change| match change {
            Change::Row(CatalogChange::Put(row)) => Some(row.key),
            Change::Row(CatalogChange::Remove { .. }) | Change::Record(_) => None,
        };
        let claimed = batch.iter().filter_map(key).filter(|key| self.claimed.contains(key));
        let taken = |key| Taken { key, node: "two".to_owned(), address: "two:1".to_owned() };
        let taken: Vec<Taken> = claimed.map(taken).collect();
        if taken.is_empty() { Ok(()) } else { Err(StoreError::Taken(taken)) }
    }

    /// The store inside: what is durable.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// Takes the store out.
    pub fn into_inner(self) -> S {
        self.inner
    }

    /// One call of `apply` or `apply_late`, by the plan. A batch that was made while its caller was left in doubt is not
    /// made again.
    fn make(
        &mut self,
        apply: impl FnOnce(&mut S) -> Result<(Vec<RecordOutcome>, bool), StoreError>,
    ) -> Result<(Vec<RecordOutcome>, bool), StoreError> {
        let fault = self.applies.pop_front().unwrap_or(Fault::None);
        match fault {
            Fault::Refused => return Err(refused()),
            Fault::Broken => return Err(broken()),
            Fault::LostBefore => return Err(doubt()),
            Fault::None | Fault::LostAfter => {}
        }
        let made = match self.doubt.take() {
            Some(made) => made,
            None => apply(&mut self.inner)?,
        };
        if fault == Fault::LostAfter {
            self.doubt = Some(made);
            return Err(doubt());
        }
        Ok(made)
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

    fn apply(&mut self, batch: &[Change]) -> Result<Vec<RecordOutcome>, StoreError> {
        self.claims(batch)?;
        self.make(|inner| Ok((inner.apply(batch)?, true))).map(|(outcomes, _)| outcomes)
    }

    fn apply_late(&mut self, batch: &[Change]) -> Result<bool, StoreError> {
        self.claims(batch)?;
        self.make(|inner| Ok((Vec::new(), inner.apply_late(batch)?))).map(|(_, durable)| durable)
    }

    fn resolve(&mut self, _batch: &[Change]) -> Result<Option<Vec<RecordOutcome>>, StoreError> {
        match self.reads.pop_front().unwrap_or(Fault::None) {
            Fault::None => Ok(self.doubt.take().map(|(outcomes, _)| outcomes)),
            Fault::Broken => Err(broken()),
            Fault::Refused | Fault::LostBefore | Fault::LostAfter => Err(refused()),
        }
    }

    fn reader(&self) -> Result<Box<dyn Reader>, StoreError> {
        self.inner.reader()
    }

    fn sweep_is_due(&mut self, at: WallMs) -> Result<bool, StoreError> {
        self.inner.sweep_is_due(at)
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

    fn health_note(&mut self, keys: &[PayloadKey], health: Health) -> Result<(), StoreError> {
        self.inner.health_note(keys, health)
    }

    fn uploads(&mut self) -> Result<Vec<UploadEntry>, StoreError> {
        self.inner.uploads()
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
