//! What a client of the crash test tells the driver: one line of text for each thing it is about to do or has learnt.
//!
//! ```text
//! worker process: Fact --to_string--> its standard output --parse--> Fact: driver, Ledger::note
//! ```
//! A line is written *before* the call it announces is sent, and the next one after its answer came: whatever the
//! moment at which worker or server die, what the driver has read never claims less than what was sent, nor more than
//! what was answered. Pure.

use std::fmt;
use std::str::FromStr;

use payload_types::{PayloadId, Tier, WallMs};

/// A call that changes, or might change, what must be true of a payload after a restart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Verb {
    /// CommitPayload.
    Commit,
    /// Delete, or Spill to VOID.
    Delete,
    /// Spill to DISK.
    Spill,
    /// Pin without an end.
    Pin,
    /// Unpin.
    Unpin,
    /// Promote to RAM, or Prefetch: changes nothing that survives.
    Promote,
    /// A lease whose bytes were compared: changes nothing.
    Read,
}

impl Verb {
    /// Every verb, as it is written.
    pub const ALL: [(Self, &'static str); 7] = [
        (Self::Commit, "commit"),
        (Self::Delete, "delete"),
        (Self::Spill, "spill"),
        (Self::Pin, "pin"),
        (Self::Unpin, "unpin"),
        (Self::Promote, "promote"),
        (Self::Read, "read"),
    ];
}

/// What Allocate answered, and what the caller chose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allocated {
    /// Identity.
    pub id: PayloadId,
    /// Of `v1::content`.
    pub seed: u64,
    /// Bytes.
    pub size: u64,
    /// RAM or DISK.
    pub tier: Tier,
    /// When its ttl passes.
    pub expires_at: Option<WallMs>,
    /// `no_evict`: pressure alone never moves it.
    pub is_kept: bool,
    /// Its spill_target is VOID: pressure alone may discard it.
    pub is_expendable: bool,
}

/// One line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fact {
    /// Allocate was answered.
    Allocated(Allocated),
    /// These are about to be committed by one BatchCommit: all or none.
    Batch(Vec<PayloadId>),
    /// The call is about to be sent.
    Asked(Verb, PayloadId),
    /// The call was answered: it is done.
    Did(Verb, PayloadId),
    /// The call was answered: it was not done and never will be.
    Refused(Verb, PayloadId),
    /// Something said that this payload does not exist.
    Missing(PayloadId),
    /// A promise was broken; the rest of the line says which.
    Broken(String),
    /// The server is gone; nothing more will be sent.
    Idle,
    /// What was still mapped after the server's death was compared, and is given back.
    Checked,
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allocated(Allocated { id, seed, size, tier, expires_at, is_kept, is_expendable }) => {
                let expires = expires_at.map_or(0, WallMs::as_millis);
                let tier = if *tier == Tier::Ram { "ram" } else { "disk" };
                write!(f, "allocated {id} {seed} {size} {tier} {expires} {is_kept} {is_expendable}")
            }
            Self::Batch(ids) => {
                f.write_str("batch")?;
                ids.iter().try_for_each(|id| write!(f, " {id}"))
            }
            Self::Asked(verb, id) => write!(f, "asked {} {id}", word(*verb)),
            Self::Did(verb, id) => write!(f, "did {} {id}", word(*verb)),
            Self::Refused(verb, id) => write!(f, "refused {} {id}", word(*verb)),
            Self::Missing(id) => write!(f, "missing {id}"),
            Self::Broken(what) => write!(f, "broken {}", what.replace('\n', " ")),
            Self::Idle => f.write_str("idle"),
            Self::Checked => f.write_str("checked"),
        }
    }
}

impl FromStr for Fact {
    type Err = String;

    /// # Errors
    /// The line itself: a worker that panics, for one, writes something else.
    fn from_str(line: &str) -> Result<Self, String> {
        parse(line).ok_or_else(|| format!("a worker wrote: {line}"))
    }
}

fn word(verb: Verb) -> &'static str {
    Verb::ALL.iter().find(|(other, _)| *other == verb).expect("ALL has every verb").1
}

fn parse(line: &str) -> Option<Fact> {
    if let Some(what) = line.strip_prefix("broken ") {
        return Some(Fact::Broken(what.to_owned()));
    }
    let words: Vec<&str> = line.split(' ').collect();
    Some(match words[..] {
        ["allocated", id, seed, size, tier, expires, is_kept, is_expendable] => Fact::Allocated(Allocated {
            id: id.parse().ok()?,
            seed: seed.parse().ok()?,
            size: size.parse().ok()?,
            tier: match tier {
                "ram" => Tier::Ram,
                "disk" => Tier::Disk,
                _ => return None,
            },
            expires_at: Some(expires.parse().ok()?).filter(|at| *at != 0).map(WallMs::from_millis),
            is_kept: is_kept.parse().ok()?,
            is_expendable: is_expendable.parse().ok()?,
        }),
        [kind @ ("asked" | "did" | "refused"), verb, id] => {
            let (verb, _) = Verb::ALL.into_iter().find(|(_, word)| *word == verb)?;
            let id = id.parse().ok()?;
            match kind {
                "asked" => Fact::Asked(verb, id),
                "did" => Fact::Did(verb, id),
                _ => Fact::Refused(verb, id),
            }
        }
        ["batch", ref ids @ ..] => Fact::Batch(ids.iter().map(|id| id.parse().ok()).collect::<Option<_>>()?),
        ["missing", id] => Fact::Missing(id.parse().ok()?),
        ["idle"] => Fact::Idle,
        ["checked"] => Fact::Checked,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_every_fact_when_written_and_read_then_it_is_the_same() {
        let id = PayloadId::mint(77, 99);
        let allocated = Allocated {
            id,
            seed: 5,
            size: 6,
            tier: Tier::Disk,
            expires_at: Some(WallMs::from_millis(7)),
            is_kept: true,
            is_expendable: false,
        };
        let mut facts = vec![
            Fact::Allocated(allocated),
            Fact::Allocated(Allocated {
                expires_at: None,
                tier: Tier::Ram,
                is_expendable: true,
                ..allocated
            }),
            Fact::Batch(vec![id, PayloadId::mint(1, 2)]),
            Fact::Missing(id),
            Fact::Broken("a b  c".to_owned()),
            Fact::Idle,
            Fact::Checked,
        ];
        for (verb, _) in Verb::ALL {
            facts.extend([Fact::Asked(verb, id), Fact::Did(verb, id), Fact::Refused(verb, id)]);
        }
        for fact in facts {
            assert_eq!(fact.to_string().parse(), Ok(fact));
        }
        assert!("thread main panicked".parse::<Fact>().is_err());
    }
}
