//! The answer to ExplainPayload: facts as fields, and the same as sentences for people.

use payload_types::report::{
    Explanation, Kept, Outlook, Pressure, ReplicaReport, StreamHold, VICTIMS_SHOWN, Victim, Work,
};
use payload_types::tier::SpillTarget;
use payload_types::{Extent, Location, Monotonic, Now, Pin, Tier, WallMs, time};

use super::{Locate, descriptor, timestamp};
use crate::pb::operations::v1 as pb;
use crate::{enums, ids};

/// Why a payload is where it is, at `now`. `outlook` is what its tiers would evict next.
pub fn explained(
    explanation: &Explanation,
    outlook: Vec<pb::TierOutlook>,
    now: Now,
    locate: &impl Locate,
) -> pb::ExplainPayloadResponse {
    let idle = |since: Monotonic| if explanation.leases > 0 { 0 } else { now.monotonic.millis_since(since) };
    let wall = now.wall;
    pb::ExplainPayloadResponse {
        descriptor: Some(descriptor(&explanation.descriptor, locate)),
        replicas: explanation
            .replicas
            .iter()
            .map(|replica| shown(explanation, replica, wall, locate))
            .collect(),
        leases: explanation.leases,
        pinned: explanation.pin != Pin::None,
        pin_ends_at: match explanation.pin {
            Pin::Until(end) => Some(timestamp(end)),
            Pin::Forever | Pin::None => None,
        },
        no_evict: explanation.no_evict,
        spill_target: enums::spill_target_to_pb(Some(explanation.spill_target)).into(),
        under_way: explanation.work.map(work).unwrap_or_default(),
        requests_wait: explanation.requests_wait,
        idle_ms: explanation.used_at.map(idle),
        outlook,
        streams: super::holders::stream_holders(&explanation.streams),
    }
}

fn shown(
    explanation: &Explanation,
    replica: &ReplicaReport,
    now: WallMs,
    locate: &impl Locate,
) -> pb::ReplicaExplanation {
    let (id, size) = (explanation.descriptor.id, explanation.descriptor.size);
    let (place, extent) = match replica.location {
        Location::Segment => (locate.shm_name(id), None),
        Location::File(generation) => (locate.disk_path(id, generation), None),
        // It has no name: only native sessions of this node can map it.
        Location::Arena(_) => (String::new(), None),
        // Which device, as `payloadctl doctor` numbers them; its handle is for whoever leases it.
        Location::Gpu(generation) => {
            let device = locate.gpu(id, generation).map(|place| format!("GPU {}", place.device));
            (device.unwrap_or_default(), None)
        }
        Location::Object => (locate.object_uri(id), None),
        Location::Packed(extent) => (locate.segment_path(extent.file), Some(extent)),
    };
    let verdict = match replica.pressure {
        Pressure::Stays(_) => pb::PressureVerdict::Kept,
        Pressure::Drop { .. } | Pressure::Move { .. } | Pressure::Discard => pb::PressureVerdict::Evictable,
    };
    pb::ReplicaExplanation {
        tier: enums::tier_to_pb(replica.tier).into(),
        since: replica.since.map(timestamp),
        size_bytes: size.0,
        charged_bytes: size.in_pages().0,
        leases: replica.leases,
        copies: replica.copies,
        synced: replica.synced,
        verdict: verdict.into(),
        kept_because: here_because(explanation, replica, now),
        under_pressure: under_pressure(explanation, replica, now),
        place,
        offset_bytes: extent.map_or(0, Extent::offset_bytes),
        segment_file: extent.map(|extent| extent.file.get()),
    }
}

/// What a tier would evict next: the parts of all shards, merged. `is_own` is true for the payload's fastest tier.
pub fn outlook(tier: Tier, parts: Vec<Outlook>, now: Monotonic) -> pb::TierOutlook {
    let under_pressure = parts.iter().any(|part| part.under_pressure);
    let before: Option<u32> = parts.iter().map(|part| part.before).sum();
    let mut victims: Vec<Victim> = parts.into_iter().flat_map(|part| part.victims).collect();
    victims.sort_by_key(|victim| victim.rank);
    victims.truncate(VICTIMS_SHOWN);
    let victim = |victim: Victim| pb::Victim {
        id: Some(ids::payload_id_to_pb(victim.id)),
        size_bytes: victim.size.0,
        priority: enums::eviction_priority_to_pb(victim.rank.priority).into(),
        idle_ms: Some(now.millis_since(victim.rank.used_at)),
    };
    pb::TierOutlook {
        tier: enums::tier_to_pb(tier).into(),
        next_victims: victims.into_iter().map(victim).collect(),
        place: before.map(|before| before + 1),
        under_pressure,
    }
}

/// Why the replica is where it is.
fn here_because(explanation: &Explanation, replica: &ReplicaReport, now: WallMs) -> Vec<String> {
    let mut reasons = Vec::new();
    let others: Vec<Tier> =
        explanation.replicas.iter().map(|other| other.tier).filter(|tier| *tier != replica.tier).collect();
    if others.is_empty() {
        reasons.push("it is the only copy of these bytes".to_owned());
    }
    if let Some(slower) = others.iter().find(|other| replica.tier.is_faster_than(**other)) {
        reasons.push(format!("it serves readers faster than the copy on {slower} would"));
    }
    if let Some(faster) = others.iter().find(|other| other.is_faster_than(replica.tier)) {
        reasons.push(if replica.tier.is_durable() {
            format!("it keeps the bytes when the copy on {faster} is dropped or lost")
        } else {
            format!("it stays beside the copy on {faster} until space is wanted here")
        });
    }
    if replica.leases > 0 {
        reasons.push(format!("{} read it now", count(replica.leases, "lease", "leases")));
    }
    if replica.copies > 0 {
        reasons.push(format!("{} read it now", count(replica.copies, "copy", "copies")));
    }
    match explanation.pin {
        Pin::None => {}
        pin => reasons.push(format!("the payload is {}", pinned(pin, now))),
    }
    if !explanation.streams.is_empty() {
        reasons.push(held(&explanation.streams));
    }
    if let Some(floor) = explanation.descriptor.policy.min_residency
        && replica.tier <= floor
    {
        reasons.push(format!("min_residency_tier is {floor}"));
    }
    reasons
}

fn under_pressure(explanation: &Explanation, replica: &ReplicaReport, now: WallMs) -> String {
    let tier = replica.tier;
    match &replica.pressure {
        Pressure::Drop { twin } => {
            format!("dropped from {tier} without a write: {twin} has the same bytes")
        }
        Pressure::Move { to } => format!("copied to {to}, then dropped from {tier}"),
        Pressure::Discard => "discarded: its spill_target is VOID".to_owned(),
        Pressure::Stays(why) => {
            let reasons: Vec<String> = why.iter().map(|why| kept(explanation, *why, now)).collect();
            format!("stays on {tier}: {}", reasons.join("; "))
        }
    }
}

fn kept(explanation: &Explanation, why: Kept, now: WallMs) -> String {
    match why {
        Kept::Uncommitted => "it is not committed; its producer may still write".to_owned(),
        Kept::Leased(leases) => format!("it is leased ({} held)", count(leases, "lease", "leases")),
        Kept::Pinned(pin) => format!("it is {}", pinned(pin, now)),
        Kept::NoEvict => "it was allocated with no_evict".to_owned(),
        Kept::PriorityNever => "its priority is NEVER".to_owned(),
        Kept::MinResidency(floor) => {
            format!("it must stay on {floor} or faster (min_residency_tier), and would leave it")
        }
        Kept::Busy(what) => format!("it is busy: {}", work(what)),
        Kept::Damaged => "its bytes were found damaged, so there is nothing to copy".to_owned(),
        Kept::Nowhere => match explanation.spill_target {
            SpillTarget::Tier(target) => {
                format!("no slower tier that it could go to is configured (spill_target {target})")
            }
            SpillTarget::Void => "it may not be discarded from here".to_owned(),
        },
        Kept::Ending => "it is being removed anyway".to_owned(),
        Kept::Behind(faster) => format!("the copy on {faster} goes first"),
        Kept::PassedOver => "its eviction failed a moment ago and is tried again soon".to_owned(),
    }
}

fn work(work: Work) -> String {
    match work {
        Work::Committing => "committing".to_owned(),
        Work::Copying { from, to } => format!("being copied from {from} to {to}"),
        Work::Syncing(tier) => format!("being brought to stable storage on {tier}"),
        Work::Marking => "being marked as damaged".to_owned(),
        Work::Removing => "being removed".to_owned(),
        Work::Pinning => "its pin is being stored".to_owned(),
        Work::Enrolling => "it is being noted in the catalog".to_owned(),
    }
}

fn held(streams: &[StreamHold]) -> String {
    let one = |hold: &StreamHold| match &hold.stream {
        Some(stream) => {
            format!("entry {} of stream `{}` in namespace `{}`", hold.offset, stream.name, stream.namespace)
        }
        None => "an append that is under way".to_owned(),
    };
    let all: Vec<String> = streams.iter().map(one).collect();
    format!("the payload stays until every group has passed {}", all.join(", "))
}

fn pinned(pin: Pin, now: WallMs) -> String {
    match pin {
        Pin::Until(end) => {
            let left = end.as_millis().saturating_sub(now.as_millis());
            format!("pinned for another {}", time::format_millis(left.div_ceil(1_000) * 1_000))
        }
        Pin::Forever | Pin::None => "pinned until it is unpinned".to_owned(),
    }
}

fn count(number: u32, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use payload_types::{
        ByteCount, Descriptor, EvictionPolicy, EvictionPriority, PayloadId, PayloadState, Rank, Version,
    };

    use super::*;
    use crate::encode::descriptor::tests::Names;

    const NOW: Now = Now { monotonic: Monotonic(10_000_000_000), wall: WallMs::from_millis(10_000) };

    fn replica(tier: Tier, pressure: Pressure) -> ReplicaReport {
        let since = Some(WallMs::from_millis(4_000));
        let location = match tier {
            Tier::Disk => Location::Packed(Extent::from_bits(7 << 32 | 3).expect("an extent")),
            _ => Location::Segment,
        };
        ReplicaReport { tier, location, since, leases: 0, copies: 0, synced: false, pressure }
    }

    fn explanation(replicas: Vec<ReplicaReport>) -> Explanation {
        Explanation {
            descriptor: Descriptor {
                id: PayloadId::from_bytes([1; 16]),
                tier: Tier::Ram,
                state: PayloadState::Active,
                location: None,
                size: ByteCount(640),
                version: Version(2),
                created_at: WallMs::from_millis(1_500),
                expires_at: None,
                policy: EvictionPolicy::default(),
                checksum: None,
            },
            leases: 0,
            pin: Pin::None,
            streams: Vec::new(),
            no_evict: false,
            spill_target: SpillTarget::Tier(Tier::Disk),
            work: None,
            requests_wait: false,
            used_at: None,
            rank: None,
            replicas,
        }
    }

    fn answer(explanation: &Explanation) -> pb::ExplainPayloadResponse {
        explained(explanation, Vec::new(), NOW, &Names)
    }

    #[test]
    fn given_a_durable_twin_when_explained_then_the_fast_copy_goes_without_a_write() {
        let ram = replica(Tier::Ram, Pressure::Drop { twin: Tier::Disk });
        let disk = replica(Tier::Disk, Pressure::Stays(vec![Kept::Nowhere]));
        let answer = answer(&explanation(vec![ram, disk]));
        let [ram, disk] = &answer.replicas[..] else { panic!("two replicas: {answer:?}") };
        assert_eq!(ram.verdict(), pb::PressureVerdict::Evictable);
        assert_eq!(ram.under_pressure, "dropped from RAM without a write: DISK has the same bytes");
        assert_eq!(ram.kept_because, ["it serves readers faster than the copy on DISK would"]);
        assert_eq!((ram.size_bytes, ram.charged_bytes), (640, 4096));
        let id = PayloadId::from_bytes([1; 16]);
        assert_eq!((&ram.place, ram.offset_bytes, ram.segment_file), (&Names.shm_name(id), 0, None));
        let file = Names.segment_path(NonZeroU32::new(7).expect("not 0"));
        assert_eq!((&disk.place, disk.offset_bytes, disk.segment_file), (&file, 3 * 4096, Some(7)));
        assert_eq!(disk.verdict(), pb::PressureVerdict::Kept);
        assert!(disk.under_pressure.contains("no slower tier"), "{}", disk.under_pressure);
        assert_eq!(disk.kept_because, ["it keeps the bytes when the copy on RAM is dropped or lost"]);
    }

    #[test]
    fn given_every_reason_to_stay_when_explained_then_each_is_named() {
        let pin = Pin::Until(WallMs::from_millis(15_000));
        for (why, words) in [
            (Kept::Uncommitted, "not committed"),
            (Kept::Leased(1), "1 lease held"),
            (Kept::Leased(3), "3 leases held"),
            (Kept::Pinned(pin), "pinned for another 5s"),
            (Kept::Pinned(Pin::Forever), "until it is unpinned"),
            (Kept::NoEvict, "no_evict"),
            (Kept::PriorityNever, "NEVER"),
            (Kept::MinResidency(Tier::Ram), "must stay on RAM"),
            (Kept::Busy(Work::Copying { from: Tier::Ram, to: Tier::Disk }), "copied from RAM to DISK"),
            (Kept::Damaged, "damaged"),
            (Kept::Nowhere, "spill_target DISK"),
            (Kept::Ending, "removed anyway"),
            (Kept::Behind(Tier::Gpu), "copy on GPU goes first"),
            (Kept::PassedOver, "failed a moment ago"),
        ] {
            let answer = answer(&explanation(vec![replica(Tier::Ram, Pressure::Stays(vec![why]))]));
            let sentence = &answer.replicas[0].under_pressure;
            assert!(sentence.starts_with("stays on RAM: ") && sentence.contains(words), "{sentence}");
        }
    }

    #[test]
    fn given_victims_of_two_shards_when_merged_then_the_first_five_and_the_payloads_place() {
        let victim = |number: u8, priority, used_at| Victim {
            id: PayloadId::from_bytes([number; 16]),
            size: ByteCount(100),
            rank: Rank { priority, used_at: Monotonic(used_at) },
        };
        let (low, normal) = (EvictionPriority::Low, EvictionPriority::Normal);
        let part =
            |victims: Vec<Victim>, before| Outlook { victims, before, under_pressure: before == Some(1) };
        let one = part(vec![victim(1, low, 9_000_000_000), victim(2, normal, 1)], Some(1));
        let other = part((3..8).map(|number| victim(number, normal, u64::from(number))).collect(), Some(2));
        let shown = outlook(Tier::Ram, vec![one.clone(), other], NOW.monotonic);
        let order: Vec<u8> =
            shown.next_victims.iter().map(|victim| victim.id.as_ref().expect("named").value[0]).collect();
        assert_eq!(order, [1, 2, 3, 4, 5]);
        assert_eq!((shown.place, shown.under_pressure), (Some(4), true));
        assert_eq!((shown.next_victims[0].idle_ms, shown.next_victims[0].priority), (Some(1_000), 1));
        let far = outlook(Tier::Ram, vec![one, part(Vec::new(), None)], NOW.monotonic);
        assert_eq!(far.place, None, "beyond what a shard looks at");
    }

    #[test]
    fn given_a_pinned_and_leased_payload_when_explained_then_fields_and_sentences_agree() {
        let mut ram = replica(Tier::Ram, Pressure::Stays(vec![Kept::Leased(2), Kept::Pinned(Pin::Forever)]));
        ram.leases = 2;
        let mut leased = explanation(vec![ram]);
        (leased.leases, leased.pin) = (2, Pin::Forever);
        leased.used_at = Some(Monotonic(7_000_000_000));
        let answer = answer(&leased);
        assert_eq!((answer.leases, answer.pinned, answer.pin_ends_at), (2, true, None));
        assert_eq!((answer.idle_ms, answer.spill_target), (Some(0), 3));
        let reasons = &answer.replicas[0].kept_because;
        assert!(reasons.iter().any(|reason| reason == "2 leases read it now"), "{reasons:?}");
        assert!(reasons.iter().any(|reason| reason == "it is the only copy of these bytes"), "{reasons:?}");
    }
}
