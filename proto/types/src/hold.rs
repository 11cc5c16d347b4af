//! Holds: what keeps a payload that a stream's entries refer to (`retain_payloads` of CreateStream).
//!
//! ```text
//!   front: Take -> every shard of the payloads -> Held -> append -> Settle (the entries it got, or none)
//!   front: Floor -> every shard, whenever the stream's floor moved; Again for entries behind a floor that went back
//! ```
//! A payload with a hold is not expired by its ttl, not discarded, and not deleted without force. A shard keeps one hold a
//! stream and payload: the newest entry's offset, which is behind the floor for as long as any entry's is.

use crate::ids::PayloadKey;
use crate::record::StreamName;

/// Payloads, or entries, of one message: what a shard does in one turn.
pub const HOLD_ITEMS_MAX: usize = crate::limits::ITEMS_PER_TURN_MAX;

/// A stream that retains payloads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HoldingStream {
    /// Its incarnation.
    pub stream: u64,
    /// Its name, for whoever asks why a payload stays.
    pub name: StreamName,
}

/// Entries of a stream that retains payloads; at most [`HOLD_ITEMS_MAX`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HeldEntries {
    /// Whose.
    pub stream: HoldingStream,
    /// Offset and payload.
    pub entries: Vec<(u64, PayloadKey)>,
}

/// What a shard is told of holds. -> `Reply::Held`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Hold {
    /// An append is about to refer to these payloads, of which each must be there: none is held when one is not.
    Take {
        /// Names this hold until it is settled; used once.
        token: u64,
        /// At most [`HOLD_ITEMS_MAX`].
        payloads: Vec<PayloadKey>,
    },
    /// The append was made, or not: what was taken under this token ends.
    Settle {
        /// As in `Take`.
        token: u64,
        /// What the append made of it; `None`: nothing.
        held: Option<HeldEntries>,
    },
    /// These entries are held again: a group went back. Payloads that are gone meanwhile are left out.
    Again(HeldEntries),
    /// Entries before `floor` hold nothing any more. The newest one counts, whether it is higher or lower.
    Floor {
        /// The stream's incarnation.
        stream: u64,
        /// The first offset that is held.
        floor: u64,
    },
}
