//! Direct leases as small states: readers that lease, read and are killed at any moment, with a store buffer each and a device that
//! may read on behind a dead one; a server that moves a payload, replaces its table, drops, scans, revokes and uses blocks again.
//!
//! ```text
//! reader   look (old table or new) -> store claim (into its buffer) -> fence (buffer empty) -> look again -> read, maybe by a device
//!          -> is_valid -> store 0 -> again (twice);  killed between any two of these: what is buffered may or may not arrive
//! server   copy into the new table -> close the old one -> withdraw -> fence -> read a cell at a time -> free, or wait, or
//!          take away: revoke -> fence -> use the block again;   a dead session's cells are dropped after proof and grace
//! ```
//! A store leaves its buffer at any later time, in order, as on x86 (ARM's reordering is loom's part). One payload in block 0; the
//! promise is about the bytes that a read has seen: whoever holds a lease that is valid never reads a block that was used again.

use super::Model;

/// A bug that is planted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// A reader does not fence between its claim and its second look.
    ReaderFence,
    /// A reader does not look a second time.
    SecondLook,
    /// A reader of the old table does not look whether it is closed.
    LookAtClosed,
    /// The server does not close the old table.
    Close,
    /// The server reads cells before it withdraws.
    ScanFirst,
    /// The server uses a block again without having read the cells.
    NoScan,
    /// The server leaves out the cells of a session whose socket is closed, alive or not.
    ClosedIsDead,
    /// The server drops a dead session's cells at once, while its device reads.
    NoGrace,
    /// The server uses the block again first, and revokes then.
    RevokeLate,
    /// The server revokes in the cells that it remembers of none.
    RevokeNobody,
    /// A reader asks whether its lease is valid before it reads.
    ValidEarly,
    /// The server never looks again at what was held once.
    LookOnce,
    /// The server keeps a dead session's cells for ever.
    NeverDropped,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::ReaderFence,
        Self::SecondLook,
        Self::LookAtClosed,
        Self::Close,
        Self::ScanFirst,
        Self::NoScan,
        Self::ClosedIsDead,
        Self::NoGrace,
        Self::RevokeLate,
        Self::RevokeNobody,
        Self::ValidEarly,
        Self::LookOnce,
        Self::NeverDropped,
    ];

    /// Whether what it breaks is that everything comes to an end.
    pub fn is_leak(self) -> bool {
        matches!(self, Self::LookOnce | Self::NeverDropped)
    }
}

/// Readers.
const READERS: usize = 2;

/// The model.
#[derive(Clone, Copy, Debug)]
pub struct Leases {
    /// What is planted.
    pub bug: Option<Bug>,
    /// Whether the server may take leases away.
    pub revokes: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Reads {
    Look,
    Claimed,
    Fenced,
    Leased,
    Read,
    Released,
    Done,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Life {
    Alive,
    /// Its socket is closed, and it goes on.
    SocketClosed,
    Dead,
    /// Dead, proven, and its grace is over: nothing of it reads any more.
    Dropped,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Reader {
    at: Reads,
    life: Life,
    rounds_left: u8,
    uses_old: bool,
    cell: bool,
    /// Stores that are on their way to the cell, oldest first.
    buffer: [Option<bool>; 2],
    /// What the last read has seen: true when the block was used again.
    has_read_other: bool,
    /// What `is_valid` has said.
    said_valid: bool,
    /// A device reads the block for it.
    device: bool,
    /// Something that had to hold did not.
    wronged: bool,
    revoked: bool,
    /// What the scan under way has found in its cell.
    found: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Serves {
    Copy,
    Close,
    Withdraw,
    Scan(u8),
    Decide,
    Revoke(u8),
    Reuse,
    Done,
}

/// See the module.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct State {
    readers: [Reader; READERS],
    server: Serves,
    old_readable: bool,
    new_readable: bool,
    closed: bool,
    /// The block was used again.
    reused: bool,
}

impl Reader {
    /// A store of its own; two may be on their way.
    fn store(mut self, value: bool) -> Option<Self> {
        let free = self.buffer.iter().position(Option::is_none)?;
        self.buffer[free] = Some(value);
        Some(self)
    }

    fn arrives(mut self) -> Self {
        self.cell = self.buffer[0].take().expect("looked at before");
        self.buffer.rotate_left(1);
        self
    }

    fn next_round(self) -> Self {
        let (rounds_left, at) = match self.rounds_left {
            0 => (0, Reads::Done),
            left => (left - 1, Reads::Look),
        };
        Self { at, rounds_left, has_read_other: false, said_valid: false, ..self }
    }
}

impl Leases {
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    // Long because: one arm a step of the protocol.
    fn reader_steps(&self, state: &State, which: usize, add: &mut impl FnMut(&'static str, Reader)) {
        let reader = state.readers[which];
        if reader.buffer[0].is_some() && reader.life != Life::Dropped {
            add("a store arrives", reader.arrives());
        }
        if reader.device {
            // It reads to its end, whoever is dead; what it reads counts.
            let wronged = reader.wronged || state.reused && !reader.revoked;
            add("a device has read", Reader { device: false, wronged, ..reader });
        }
        match reader.life {
            Life::Alive => {
                add("a socket is closed", Reader { life: Life::SocketClosed, ..reader });
                add("a reader is killed", Reader { life: Life::Dead, at: Reads::Done, ..reader });
            }
            Life::SocketClosed => {
                add("a reader is killed", Reader { life: Life::Dead, at: Reads::Done, ..reader });
            }
            // Proof needs the process to be gone, which empties its buffer; grace outlasts every device.
            Life::Dead if reader.buffer[0].is_none() && !self.has(Bug::NeverDropped) => {
                if !reader.device || self.has(Bug::NoGrace) {
                    add("a dead session's cells are dropped", Reader { life: Life::Dropped, ..reader });
                }
            }
            Life::Dead | Life::Dropped => {}
        }
        if matches!(reader.life, Life::Dead | Life::Dropped) {
            return;
        }
        match reader.at {
            Reads::Look => {
                add("a reader leaves", Reader { at: Reads::Done, ..reader });
                for uses_old in [true, false] {
                    let readable = if uses_old { state.old_readable } else { state.new_readable };
                    // Nobody has the new table before the old one is closed.
                    if readable
                        && (uses_old || state.closed || self.has(Bug::Close) && state.server != Serves::Copy)
                    {
                        let claimed = Reader { at: Reads::Claimed, uses_old, ..reader };
                        claimed.store(true).into_iter().for_each(|claimed| add("a reader claims", claimed));
                    }
                }
            }
            Reads::Claimed => {
                if reader.buffer[0].is_none() || self.has(Bug::ReaderFence) {
                    add("a reader fences", Reader { at: Reads::Fenced, ..reader });
                }
            }
            Reads::Fenced => {
                let readable = if reader.uses_old { state.old_readable } else { state.new_readable };
                let closed = reader.uses_old && state.closed && !self.has(Bug::LookAtClosed);
                if readable && !closed || self.has(Bug::SecondLook) {
                    let said_valid = self.has(Bug::ValidEarly) && !reader.revoked;
                    add("a reader has leased", Reader { at: Reads::Leased, said_valid, ..reader });
                } else {
                    let missed = Reader { at: Reads::Released, ..reader }.store(false);
                    missed.into_iter().for_each(|missed| add("a reader misses", missed));
                }
            }
            Reads::Leased => {
                let read = Reader { at: Reads::Read, has_read_other: state.reused, ..reader };
                add("a reader reads", read);
                if !reader.device && which == 0 {
                    add("a reader has a device read", Reader { device: true, ..reader });
                }
            }
            // It lets go only when its device is done.
            Reads::Read if !reader.device => {
                let valid = if self.has(Bug::ValidEarly) { reader.said_valid } else { !reader.revoked };
                let wronged = reader.wronged || valid && reader.has_read_other;
                let released = Reader { at: Reads::Released, wronged, ..reader }.store(false);
                released.into_iter().for_each(|released| add("a reader releases", released));
            }
            Reads::Released => add("a reader goes on", reader.next_round()),
            Reads::Read | Reads::Done => {}
        }
    }

    // Long because: one arm a step of the protocol.
    fn server_step(&self, state: &State) -> Vec<(&'static str, State)> {
        let mut steps = Vec::new();
        let after = |server| State { server, ..*state };
        match state.server {
            Serves::Copy => {
                steps.push(("the table is copied", State { new_readable: true, ..after(Serves::Close) }));
            }
            Serves::Close => {
                let closed = !self.has(Bug::Close);
                let first = if self.has(Bug::ScanFirst) { Serves::Scan(0) } else { Serves::Withdraw };
                steps.push(("the old table is closed", State { closed, ..after(first) }));
            }
            Serves::Withdraw => {
                let next = match self.bug {
                    Some(Bug::NoScan) => Serves::Reuse,
                    Some(Bug::ScanFirst) => Serves::Decide,
                    _ => Serves::Scan(0),
                };
                // The old table is not written any more.
                steps.push(("the payload is withdrawn", State { new_readable: false, ..after(next) }));
            }
            Serves::Scan(which) => {
                let mut next = *state;
                let reader = &mut next.readers[usize::from(which)];
                let is_read = match reader.life {
                    Life::Alive | Life::Dead => true,
                    Life::SocketClosed => !self.has(Bug::ClosedIsDead),
                    Life::Dropped => false,
                };
                reader.found = is_read && reader.cell;
                next.server = match usize::from(which) + 1 {
                    READERS if self.has(Bug::ScanFirst) => Serves::Withdraw,
                    READERS => Serves::Decide,
                    _ => Serves::Scan(which + 1),
                };
                steps.push(("a cell is read", next));
            }
            Serves::Decide => {
                let held = state.readers.iter().any(|reader| reader.found);
                if !held {
                    steps.push(("nobody holds it", after(Serves::Reuse)));
                } else if !self.has(Bug::LookOnce) {
                    steps.push(("it is looked for again", after(Serves::Scan(0))));
                }
                if held && self.revokes && !self.has(Bug::ScanFirst) {
                    let reused = state.reused || self.has(Bug::RevokeLate);
                    steps.push(("leases shall be taken away", State { reused, ..after(Serves::Revoke(0)) }));
                }
            }
            Serves::Revoke(which) => {
                let mut next = *state;
                let reader = &mut next.readers[usize::from(which)];
                reader.revoked |= reader.found && reader.cell && !self.has(Bug::RevokeNobody);
                // Grace outlasts every device, also of who is alive.
                let waits = reader.found && reader.device;
                next.server = match usize::from(which) + 1 {
                    READERS => Serves::Reuse,
                    _ => Serves::Revoke(which + 1),
                };
                if !waits {
                    steps.push(("a lease is taken away", next));
                }
            }
            Serves::Reuse => {
                steps.push(("the block is used again", State { reused: true, ..after(Serves::Done) }))
            }
            Serves::Done => {}
        }
        steps
    }
}

impl Model for Leases {
    type State = State;

    fn start(&self) -> State {
        let reader = Reader {
            at: Reads::Look,
            life: Life::Alive,
            rounds_left: 1,
            uses_old: true,
            cell: false,
            buffer: [None; 2],
            has_read_other: false,
            said_valid: false,
            device: false,
            wronged: false,
            revoked: false,
            found: false,
        };
        State {
            readers: [reader; READERS],
            server: Serves::Copy,
            old_readable: true,
            new_readable: false,
            closed: false,
            reused: false,
        }
    }

    fn steps(&self, state: &State) -> Vec<(&'static str, State)> {
        let mut steps = self.server_step(state);
        for which in 0..READERS {
            self.reader_steps(state, which, &mut |name, reader| {
                let mut next = *state;
                next.readers[which] = reader;
                steps.push((name, next));
            });
        }
        steps
    }

    fn broken(&self, state: &State) -> Option<&'static str> {
        let is_wronged = state.readers.iter().any(|reader| reader.wronged);
        is_wronged.then_some("who holds a valid lease never reads a block that was used again")
    }

    fn is_end(&self, state: &State) -> bool {
        state.server == Serves::Done
    }
}
