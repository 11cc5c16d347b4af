//! Who waits for which answer: a fixed table of sinks. One per shard, used by its pump only.
//!
//! A sink is called exactly once: by the shard's reply, or with UNAVAILABLE when the shard stops first. The
//! generation inside [`ReplyTo`] makes a second answer, or one to a request of long ago, a caught defect.

use payload_types::effect::ReplyTo;
use payload_types::{PayloadError, limits};

use crate::mailbox::ReplySink;
use crate::pump::Ticket;

/// Who gets an answer.
pub(crate) enum Sink {
    /// The front.
    Call(ReplySink),
    /// A client's ring.
    Ring(Ticket),
}

struct Slot {
    /// How often the slot was taken.
    generation: u32,
    /// `Some` while its request is unanswered.
    sink: Option<Sink>,
}

const _: () = assert!(size_of::<Slot>() <= 32);

/// `limits::REQUESTS_PER_SHARD_MAX` slots x 32 bytes = 128 KiB.
pub(crate) struct ReplySlots {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl ReplySlots {
    pub(crate) fn new() -> Self {
        let len = limits::REQUESTS_PER_SHARD_MAX;
        let index_end = u32::try_from(len).expect("4,096 fits");
        Self {
            slots: (0..len).map(|_| Slot { generation: 0, sink: None }).collect(),
            free: (0..index_end).rev().collect(),
        }
    }

    /// True when one more request can be taken from the lane.
    pub(crate) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// Requests taken and not answered.
    pub(crate) fn unanswered(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Keeps `sink` until its request is answered.
    ///
    /// # Panics
    /// When none is free; ask [`ReplySlots::has_free`] before a request leaves its lane.
    pub(crate) fn hold(&mut self, sink: Sink) -> ReplyTo {
        let index = self.free.pop().expect("a reply slot is free: has_free was asked first");
        let slot = &mut self.slots[index as usize];
        slot.sink = Some(sink);
        slot.generation = slot.generation.wrapping_add(1);
        ReplyTo(u64::from(slot.generation) << 32 | u64::from(index))
    }

    /// Who waits for the answer to this request, which is now to be given.
    ///
    /// # Panics
    /// When `to` was answered before: each request is answered exactly once.
    pub(crate) fn take(&mut self, to: ReplyTo) -> Sink {
        let index = to.0 as u32;
        let slot = &mut self.slots[index as usize];
        assert_eq!(
            u64::from(slot.generation),
            to.0 >> 32,
            "a reply names a request that is still unanswered"
        );
        let sink = slot.sink.take().expect("a request is answered once");
        self.free.push(index);
        sink
    }

    /// The ring that waits for this request, which is not answered yet; `None`: the front does.
    pub(crate) fn ring_of(&mut self, to: ReplyTo) -> Option<&mut Ticket> {
        let slot = &mut self.slots[to.0 as u32 as usize];
        assert_eq!(u64::from(slot.generation), to.0 >> 32, "it names a request that is still unanswered");
        match &mut slot.sink {
            Some(Sink::Ring(ticket)) => Some(ticket),
            Some(Sink::Call(_)) | None => None,
        }
    }

    /// Answers every call that still waits; returns whom the rings are to answer.
    pub(crate) fn answer_all(&mut self, error: &PayloadError) -> Vec<Ticket> {
        let mut tickets = Vec::new();
        for (index, slot) in (0..).zip(&mut self.slots) {
            let Some(sink) = slot.sink.take() else { continue };
            self.free.push(index);
            match sink {
                Sink::Call(reply) => reply(Err(error.clone())),
                Sink::Ring(ticket) => tickets.push(ticket),
            }
        }
        tickets
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use payload_types::ErrorKind;
    use payload_types::reply::Reply;

    use super::*;

    fn answer(slots: &mut ReplySlots, to: ReplyTo) {
        let Sink::Call(reply) = slots.take(to) else { panic!("no test has a ring") };
        reply(Ok(Reply::Deleted));
    }

    #[test]
    fn given_held_sinks_when_some_are_answered_then_the_rest_get_the_error_once() {
        let mut slots = ReplySlots::new();
        let counts = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
        let held: Vec<ReplyTo> = (0..limits::REQUESTS_PER_SHARD_MAX)
            .map(|_| {
                let counts = counts.clone();
                slots.hold(Sink::Call(Box::new(move |result| {
                    counts[usize::from(result.is_err())].fetch_add(1, Ordering::Relaxed);
                })))
            })
            .collect();
        assert!(!slots.has_free());
        for to in held.iter().step_by(2) {
            answer(&mut slots, *to);
        }
        assert_eq!(slots.unanswered(), 2048);
        let stopping = PayloadError::new(ErrorKind::Unavailable, "stopping");
        for _ in 0..2 {
            assert_eq!(slots.answer_all(&stopping), [], "nobody asked over a ring");
        }
        assert_eq!(counts.each_ref().map(|count| count.load(Ordering::Relaxed)), [2048, 2048]);
    }

    #[test]
    #[should_panic(expected = "still unanswered")]
    fn given_a_slot_taken_again_when_the_old_request_is_answered_then_it_panics() {
        let mut slots = ReplySlots::new();
        let old = slots.hold(Sink::Call(Box::new(|_| {})));
        answer(&mut slots, old);
        let _newer = slots.hold(Sink::Call(Box::new(|_| {})));
        answer(&mut slots, old);
    }
}
