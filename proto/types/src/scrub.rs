//! What a scrub asks of a shard and what it finds: a payload's replicas, read again and compared with its checksum.

use crate::ids::{Generation, PayloadKey};
use crate::tier::Tier;
use crate::units::ByteCount;

/// Verifies the replicas of one payload, one after another. Nothing waits for it: leases, moves and deletes go on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scrub {
    /// Target.
    pub key: PayloadKey,
    /// Only this tier's replica; `None`: all.
    pub tier: Option<Tier>,
    /// The node's pace of verifying; 0: as fast as it can be read.
    pub bytes_per_second: u64,
    /// What was found so far; empty when a client asks.
    pub seen: Vec<ScrubbedReplica>,
}

/// One replica that was looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScrubbedReplica {
    /// Where.
    pub tier: Tier,
    /// Which one.
    pub generation: Generation,
    /// Its bytes.
    pub size: ByteCount,
    /// How it is.
    pub verdict: ScrubVerdict,
}

/// How a replica is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ScrubVerdict {
    /// Its bytes have the payload's checksum.
    Sound,
    /// It is there at its full size, and no checksum of the payload is known yet.
    Unverifiable,
    /// It could not be read now; says nothing about its bytes.
    Unreadable {
        /// What the system answered.
        message: String,
    },
    /// Its bytes are not what was committed.
    Bad {
        /// What is wrong.
        fault: ScrubFault,
        /// What was done.
        outcome: ScrubOutcome,
        /// For people.
        message: String,
    },
}

/// What is wrong with a replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScrubFault {
    /// It does not have its checksum.
    Corrupt,
    /// It is not there.
    Missing,
    /// It is shorter than its size.
    Truncated,
}

/// What was done about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScrubOutcome {
    /// It was dropped, and written anew where the payload's durability rests on it; another replica was sound.
    OtherReplica,
    /// No sound replica is left: the payload answers DATA_LOSS from now on.
    DataLoss,
    /// Another replica serves the payload, and writing this one anew failed; it is never served alone, and the next
    /// spill or scrub tries again.
    Unchanged,
}
