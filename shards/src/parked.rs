//! Requests that wait for work on their payload, first come first served, each until its deadline.
//!
//! A parked request stands in its payload's list. When the work ends the whole list moves to the shard's ready list,
//! and each is handled again from the start, a bounded number a step: it finds what it wanted done, waits again, or
//! is refused for what is true by then. What joined the work that failed gets that failure instead.

use payload_ledger::list::{Ends, Linked, Links};
use payload_ledger::{SlotKey, Slots, TimerId, list};
use payload_types::effect::ReplyTo;
use payload_types::request::Request;
use payload_types::{Monotonic, PayloadError, limits};

/// Who asks, and what is remembered between two attempts.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// Where the answer goes; `None`: work in the background, already answered.
    pub reply_to: Option<ReplyTo>,
    /// The caller's deadline.
    pub deadline: Option<Monotonic>,
    /// Where it has no deadline: until when it waits for leases.
    pub lease_wait_end: Option<Monotonic>,
    /// Only leases up to this sequence number are waited for.
    pub lease_fence: Option<u64>,
    /// True when the work it joined has succeeded.
    pub joined: bool,
    /// Failures so far of work in the background.
    pub attempts: u32,
}

/// One parked request.
#[derive(Debug)]
pub struct Parked {
    /// Who asks.
    pub caller: Caller,
    /// What.
    pub request: Request,
    /// The payload it waits for; stale when that is gone.
    pub payload: SlotKey,
    /// The operation whose failure is its own failure.
    pub joined: Option<SlotKey>,
    /// That failure.
    pub failure: Option<PayloadError>,
    /// Its deadline, or its next attempt.
    pub timer: Option<TimerId>,
    /// True while it stands in the ready list.
    pub ready: bool,
    /// True for a failed move in the background that waits for its next attempt: it stands in the payload's list of
    /// retries, which nothing wakes but its timer and the payload's end.
    pub retry: bool,
    links: Links,
}

impl Linked for Parked {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

/// Why a request waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// This operation does what it wants.
    Joins(SlotKey),
    /// Something else is being done to its payload.
    Queues,
    /// It failed, and is tried again at its time.
    Retries,
}

/// All parked requests of a shard.
#[derive(Debug)]
pub struct ParkedRequests {
    slots: Slots<Parked>,
    ready: Ends,
    background_len: usize,
}

impl Default for ParkedRequests {
    fn default() -> Self {
        Self {
            slots: Slots::new((limits::REQUESTS_PER_SHARD_MAX + BACKGROUND_MAX) as u32),
            ready: Ends::default(),
            background_len: 0,
        }
    }
}

/// Moves waiting in the background: four rounds of the slots that upkeep has.
pub const BACKGROUND_MAX: usize = 4 * limits::OPS_FOR_UPKEEP;

impl ParkedRequests {
    /// True when one more can wait.
    pub fn has_room(&self, background: bool) -> bool {
        if background {
            self.background_len < BACKGROUND_MAX
        } else {
            (self.slots.len() as usize - self.background_len) < limits::REQUESTS_PER_SHARD_MAX
        }
    }

    /// Requests waiting.
    pub fn len(&self) -> u32 {
        self.slots.len()
    }

    /// True when none waits.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Adds a request to its payload's list.
    ///
    /// # Panics
    /// When there is no room: callers ask `has_room` first.
    pub fn add(
        &mut self,
        ends: &mut Ends,
        payload: SlotKey,
        why: Why,
        caller: Caller,
        request: Request,
    ) -> SlotKey {
        self.background_len += usize::from(caller.reply_to.is_none());
        let (joined, retry) = match why {
            Why::Joins(op) => (Some(op), false),
            Why::Queues => (None, false),
            Why::Retries => (None, true),
        };
        let links = Links::default();
        let parked = Parked {
            caller,
            request,
            payload,
            joined,
            failure: None,
            timer: None,
            ready: false,
            retry,
            links,
        };
        let key = self.slots.insert(parked).expect("the caller checked has_room");
        list::push_back(&mut self.slots, ends, key);
        key
    }

    /// The request, unless it was handled.
    pub fn get(&self, key: SlotKey) -> Option<&Parked> {
        self.slots.get(key)
    }

    /// The request, unless it was handled.
    pub fn get_mut(&mut self, key: SlotKey) -> Option<&mut Parked> {
        self.slots.get_mut(key)
    }

    /// Moves a payload's whole list to the ready list. Requests that joined `ended` learn of its failure, or that it
    /// succeeded.
    pub fn wake(&mut self, ends: &mut Ends, ended: Option<(SlotKey, Option<&PayloadError>)>) {
        let mut next = ends.first(&self.slots);
        while let Some(key) = next {
            let parked = self.slots.get_mut(key).expect("linked requests exist");
            parked.ready = true;
            if let Some((op, failure)) = ended
                && parked.joined == Some(op)
            {
                parked.failure = failure.cloned();
                parked.caller.joined = failure.is_none();
            }
            next = parked.links.next();
        }
        list::append(&mut self.slots, &mut self.ready, ends);
    }

    /// Moves one request to the ready list. `ends` is the list it stands in.
    pub fn wake_one(&mut self, ends: &mut Ends, key: SlotKey) {
        list::unlink(&mut self.slots, ends, key);
        list::push_back(&mut self.slots, &mut self.ready, key);
        self.slots.get_mut(key).expect("just linked").ready = true;
    }

    /// True when a request is ready.
    pub fn has_ready(&self) -> bool {
        self.ready.is_some()
    }

    /// Takes the first ready request out.
    pub fn pop_ready(&mut self) -> Option<Parked> {
        let first = self.ready.first(&self.slots)?;
        let mut ready = self.ready;
        list::unlink(&mut self.slots, &mut ready, first);
        self.ready = ready;
        Some(self.take(first))
    }

    /// Takes a request out before its turn. `ends` is its payload's list, used unless it is ready.
    ///
    /// # Panics
    /// When `key` is stale.
    pub fn remove(&mut self, ends: &mut Ends, key: SlotKey) -> Parked {
        if self.slots.get(key).expect("the caller holds a live key").ready {
            let mut ready = self.ready;
            list::unlink(&mut self.slots, &mut ready, key);
            self.ready = ready;
        } else {
            list::unlink(&mut self.slots, ends, key);
        }
        self.take(key)
    }

    fn take(&mut self, key: SlotKey) -> Parked {
        let parked = self.slots.remove(key).expect("the caller holds a live key");
        self.background_len -= usize::from(parked.caller.reply_to.is_none());
        parked
    }
}
