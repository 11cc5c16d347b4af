//! What a step wants done, in order. Bounded: a step runs only while there is room for its worst case.

use std::collections::VecDeque;

use payload_types::direct::Publish;
use payload_types::effect::{Effect, ReplyTo};
use payload_types::limits;
use payload_types::reply::ReplyResult;

/// Room for two worst-case steps: one may be handled while the effects of the one before are still being carried out.
pub const OUTBOX_LEN: usize = 2 * limits::OUTBOX_STEP_MAX;

/// The effects of the steps so far that were not carried out yet.
#[derive(Debug)]
pub struct Outbox {
    /// What readers are shown changes before anything else happens: no answer may tell of what they do not see yet, and no
    /// scan may look for what they still can begin to read.
    publications: VecDeque<Publish>,
    effects: VecDeque<Effect>,
}

impl Default for Outbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Outbox {
    /// An empty outbox, with all the memory it will ever take.
    pub fn new() -> Self {
        Self { publications: VecDeque::new(), effects: VecDeque::with_capacity(OUTBOX_LEN) }
    }

    /// True when one more step may run.
    pub fn has_credit(&self) -> bool {
        let len = self.effects.len().max(self.publications.len());
        len + limits::OUTBOX_STEP_MAX <= OUTBOX_LEN
    }

    /// The oldest effect.
    pub fn pop(&mut self) -> Option<Effect> {
        match self.publications.pop_front() {
            Some(publication) => Some(Effect::Publish(publication)),
            None => self.effects.pop_front(),
        }
    }

    /// Effects waiting.
    pub fn len(&self) -> usize {
        self.publications.len() + self.effects.len()
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.publications.is_empty() && self.effects.is_empty()
    }

    pub(crate) fn push(&mut self, effect: Effect) {
        assert!(self.effects.len() < OUTBOX_LEN, "a step stays within its worst case");
        self.effects.push_back(effect);
    }

    pub(crate) fn publish(&mut self, publications: &mut VecDeque<Publish>) {
        self.publications.append(publications);
    }

    pub(crate) fn reply(&mut self, to: ReplyTo, result: ReplyResult) {
        self.push(Effect::Reply { to, result });
    }
}
