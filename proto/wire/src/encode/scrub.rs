//! What a scrub found, as its stream tells it.

use payload_types::PayloadId;
use payload_types::scrub::{ScrubFault, ScrubOutcome, ScrubVerdict, ScrubbedReplica};

use crate::pb::operations::v1 as pb;
use crate::{enums, ids};

/// The finding about a replica; `None` when there is nothing wrong with it.
pub fn scrub_finding(id: PayloadId, seen: &ScrubbedReplica) -> Option<pb::ScrubFinding> {
    let (what, outcome, message) = match &seen.verdict {
        ScrubVerdict::Sound | ScrubVerdict::Unverifiable => return None,
        ScrubVerdict::Unreadable { message } => {
            (pb::ScrubFault::Unreadable, pb::ScrubOutcome::Unchanged, message)
        }
        ScrubVerdict::Bad { fault, outcome, message } => {
            let what = match fault {
                ScrubFault::Corrupt => pb::ScrubFault::Corrupt,
                ScrubFault::Missing => pb::ScrubFault::Missing,
                ScrubFault::Truncated => pb::ScrubFault::Truncated,
            };
            let outcome = match outcome {
                ScrubOutcome::OtherReplica => pb::ScrubOutcome::OtherReplica,
                ScrubOutcome::DataLoss => pb::ScrubOutcome::DataLoss,
                ScrubOutcome::Unchanged => pb::ScrubOutcome::Unchanged,
            };
            (what, outcome, message)
        }
    };
    Some(pb::ScrubFinding {
        id: Some(ids::payload_id_to_pb(id)),
        tier: enums::tier_to_pb(seen.tier).into(),
        what: what.into(),
        outcome: outcome.into(),
        message: message.clone(),
    })
}

#[cfg(test)]
mod tests {
    use payload_types::{ByteCount, Generation, Tier};

    use super::*;

    #[test]
    fn given_verdicts_when_written_then_only_what_is_wrong_is_a_finding() {
        let id = PayloadId::mint(1 << 40, 7);
        let seen = |verdict| ScrubbedReplica {
            tier: Tier::Disk,
            generation: Generation(1),
            size: ByteCount(9),
            verdict,
        };
        assert_eq!(scrub_finding(id, &seen(ScrubVerdict::Sound)), None);
        assert_eq!(scrub_finding(id, &seen(ScrubVerdict::Unverifiable)), None);
        let verdict = ScrubVerdict::Bad {
            fault: ScrubFault::Truncated,
            outcome: ScrubOutcome::DataLoss,
            message: "cut".into(),
        };
        let found = scrub_finding(id, &seen(verdict)).expect("a finding");
        assert_eq!((found.what(), found.outcome()), (pb::ScrubFault::Truncated, pb::ScrubOutcome::DataLoss));
        assert_eq!((found.tier, found.message.as_str()), (enums::tier_to_pb(Tier::Disk) as i32, "cut"));
        let unread = scrub_finding(id, &seen(ScrubVerdict::Unreadable { message: "EIO".into() }));
        assert_eq!(unread.expect("a finding").outcome(), pb::ScrubOutcome::Unchanged);
    }
}
