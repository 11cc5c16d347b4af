//! A native session: one process's rings, from the handshake until its socket is closed or it has ended.

use std::fmt;
use std::num::NonZeroU32;

/// Names a session; unique in one start of a server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionId(NonZeroU32);

impl SessionId {
    /// The session with this number; `None` for 0.
    pub fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    /// Its number, from 1 on.
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}
