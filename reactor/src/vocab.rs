//! Until the shared vocabulary has it.
#![allow(missing_docs)]
use std::fmt;
use std::num::NonZeroU32;

use payload_types::Peer;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionId(NonZeroU32);
impl SessionId {
    pub fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }
    pub fn get(self) -> u32 {
        self.0.get()
    }
}
impl fmt::Display for SessionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}
pub fn native(_pid: u32, _uid: u32, _id: SessionId) -> Peer {
    Peer::UNKNOWN
}
