//! Test parts shared by the pump's and the reactor's tests: a core that answers by kind of request, and ports that
//! keep or refuse what they get.
//!
//! | request | what the core does |
//! |---|---|
//! | Stats | answers at once |
//! | Release | submits a storage op, answers when it is done |
//! | Resolve | submits a catalog op, answers when it is stored |
//! | Pin | asks the budget arbiter for 1 byte, answers with its reply |
//! | Unpin | gives 1 byte back, and answers |
//! | Prefetch, Promote | never answers |
//! | Delete | answers at once |
//! | Commit | panics |
//! | List | works for 2 ms, then answers |

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use payload_types::effect::{
    BudgetRequest, CatalogChange, CatalogOp, Effect, ReplicaRef, ReplyTo, StorageAction, StorageOp,
    TierSupply, TierUsage, TransferOp,
};
use payload_types::event::{BudgetReply, CatalogAck, Completion, Event, StorageDone};
use payload_types::ids::{LeaseNonce, NamespaceId};
use payload_types::reply::Reply;
use payload_types::request::{List, Request};
use payload_types::{
    ByteCount, Epoch, Generation, LeaseId, Monotonic, Now, OpId, PayloadId, PayloadKey, ShardIndex, Tier,
};

use crate::pump::{Core, Ports};
use crate::sys;

pub(crate) const KEY: PayloadKey =
    PayloadKey { namespace: NamespaceId::DEFAULT, id: PayloadId::from_bytes([1; 16]) };

pub(crate) fn release() -> Request {
    Request::Release { lease: LeaseId::new(ShardIndex(0), 0, LeaseNonce([0; 10])), by: None }
}

pub(crate) fn list() -> Request {
    Request::List(List { namespace: NamespaceId::DEFAULT, tier: None, before: None, page_size: 1 })
}

pub(crate) fn stored(op: OpId) -> Completion {
    Completion::Catalog(CatalogAck { op, result: Ok(()), sequence: 0 })
}

pub(crate) fn synced(op: OpId) -> Completion {
    Completion::Storage(StorageDone::Synced { op, result: Ok(()) })
}

/// See the head of the file.
pub(crate) struct FakeCore {
    shard: ShardIndex,
    outbox: VecDeque<Effect>,
    /// Op ids are the reply's own bits.
    pub(crate) timer: Option<Monotonic>,
    pub(crate) seen: Vec<Event>,
}

impl FakeCore {
    pub(crate) fn new(shard: u16) -> Self {
        Self { shard: ShardIndex(shard), outbox: VecDeque::new(), timer: None, seen: Vec::new() }
    }

    fn reply(&mut self, to: u64) {
        self.outbox.push_back(Effect::Reply { to: ReplyTo(to), result: Ok(Reply::Released) });
    }

    fn request(&mut self, to: u64, request: &Request) {
        let (shard, op) = (self.shard, op_of(to));
        let (tier, bytes) = (Tier::Ram, ByteCount(1));
        let effect = match request {
            Request::Stats => return self.reply(to),
            Request::Prefetch { .. } | Request::Promote { .. } => return,
            Request::Delete { .. } => return self.reply(to),
            Request::Commit { .. } => panic!("a planted defect of the core"),
            Request::List(_) => {
                let start = sys::thread_cpu_ns();
                while sys::thread_cpu_ns() - start < 2_000_000 {}
                return self.reply(to);
            }
            Request::Release { .. } => {
                let replica = ReplicaRef {
                    tier,
                    id: KEY.id,
                    generation: Generation(1),
                    size: bytes,
                    extent: None,
                    block: None,
                };
                Effect::Storage(StorageOp { shard, op, replica, action: StorageAction::Sync })
            }
            Request::Resolve { .. } => {
                let change = CatalogChange::Remove { key: KEY, epoch: Epoch(1) };
                Effect::Catalog(CatalogOp { shard, op, change, batch: None })
            }
            Request::Pin { .. } => Effect::Budget(BudgetRequest::Ask { shard, op, tier, bytes }),
            Request::Unpin { .. } => {
                self.reply(to);
                let (usage, supply) = (TierUsage::default(), TierSupply::default());
                Effect::Budget(BudgetRequest::Return { shard, tier, bytes, recall: None, usage, supply })
            }
            other => panic!("no test sends {other:?}"),
        };
        self.outbox.push_back(effect);
    }
}

fn op_of(to: u64) -> OpId {
    OpId { index: to as u32, generation: (to >> 32) as u32 }
}

impl Core for FakeCore {
    fn step(&mut self, _now: Now, event: Event) {
        match &event {
            Event::Request { reply_to, request, .. } => self.request(reply_to.0, request),
            Event::Timer => self.timer = None,
            Event::Completion(
                Completion::Storage(StorageDone::Synced { op, .. })
                | Completion::Catalog(CatalogAck { op, .. })
                | Completion::Budget(BudgetReply::Granted { op, .. } | BudgetReply::Denied { op, .. }),
            ) => self.reply(u64::from(op.generation) << 32 | u64::from(op.index)),
            Event::Completion(_)
            | Event::SessionClosed { .. }
            | Event::SessionGone { .. }
            | Event::ScanDone(_)
            | Event::Sampled(_) => {}
        }
        self.seen.push(event);
    }

    fn pop(&mut self) -> Option<Effect> {
        self.outbox.pop_front()
    }

    fn has_credit(&self) -> bool {
        self.outbox.is_empty()
    }

    fn next_timer(&self) -> Option<Monotonic> {
        self.timer
    }
}

/// Ports that keep what they accept, and accept nothing while `refuses`.
#[derive(Default)]
pub(crate) struct FakePorts {
    pub(crate) refuses: AtomicBool,
    pub(crate) storage: Mutex<Vec<StorageOp>>,
    pub(crate) catalog: Mutex<Vec<CatalogOp>>,
}

impl FakePorts {
    fn accept<T>(&self, kept: &Mutex<Vec<T>>, op: T) -> Result<(), T> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(op);
        }
        kept.lock().expect("no test panics with it").push(op);
        Ok(())
    }

    /// What was accepted since the last call: (storage, catalog).
    pub(crate) fn taken(&self) -> (Vec<StorageOp>, Vec<CatalogOp>) {
        (
            std::mem::take(&mut *self.storage.lock().expect("no test panics with it")),
            std::mem::take(&mut *self.catalog.lock().expect("no test panics with it")),
        )
    }
}

impl Ports for FakePorts {
    fn storage(&self, op: StorageOp) -> Result<(), StorageOp> {
        self.accept(&self.storage, op)
    }

    fn transfer(&self, op: TransferOp) -> Result<(), TransferOp> {
        panic!("no test copies: {op:?}")
    }

    fn catalog(&self, op: CatalogOp) -> Result<(), CatalogOp> {
        self.accept(&self.catalog, op)
    }

    fn disk_wanted(&self, bytes: ByteCount) {
        panic!("no test has a disk: {bytes}");
    }
}

/// Grants everything, and keeps nothing.
pub(crate) fn generous_arbiter(request: BudgetRequest, out: &mut Vec<(ShardIndex, BudgetReply)>) {
    if let BudgetRequest::Ask { shard, op, tier, bytes } = request {
        out.push((shard, BudgetReply::Granted { op, tier, bytes }));
    }
}
