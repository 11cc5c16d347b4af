//! `holders` and `explain`: who keeps a payload where it is, and why.

use std::io::Write as _;

use payload_client::{Client, ClientError};
use payload_types::tier::SpillTarget;
use payload_types::{ByteCount, LeaseId, PayloadId, time};
use payload_wire::pb::operations::v1 as pb;
use payload_wire::{enums, ids};
use serde::Serialize;

use crate::common::for_each_id;
use crate::output::{Block, Column, Output, Row, left, right};
use crate::view::word;

/// Arguments of `holders`.
#[derive(clap::Args)]
pub struct HoldersArgs {
    /// Whose leases and pins to show.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

/// Arguments of `explain`.
#[derive(clap::Args)]
pub struct ExplainArgs {
    /// What to explain.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

/// Shows each holder on a line.
pub async fn run_holders(client: &Client, output: &mut Output, args: HoldersArgs) -> anyhow::Result<()> {
    let mut cut_off = Vec::new();
    let mut has_limbo = false;
    for_each_id(client, output, &args.ids, Client::holders, |output, id, answer| {
        for lease in &answer.leases {
            has_limbo |= lease.limbo;
            output.row(&Holder::of_lease(id, lease)?)?;
        }
        for direct in &answer.direct {
            output.row(&Holder::of_direct(id, direct))?;
        }
        if let Some(pin) = &answer.pin {
            output.row(&Holder::of_pin(id, pin))?;
        }
        for stream in &answer.streams {
            output.row(&Holder::of_stream(id, stream))?;
        }
        if !answer.complete {
            cut_off.push(format!("{id}: {} of {} leases are shown", answer.leases.len(), answer.lease_count));
        }
        Ok(())
    })
    .await?;
    output.flush()?;
    if has_limbo && !output.is_json() {
        writeln!(output.stdout(), "* dropped from there; its space is freed when the lease ends")?;
    }
    for sentence in cut_off {
        output.complain(&sentence);
    }
    Ok(())
}

/// Explains each payload in a block.
pub async fn run_explain(client: &Client, output: &mut Output, args: ExplainArgs) -> anyhow::Result<()> {
    for_each_id(client, output, &args.ids, Client::explain, |output, id, answer| {
        output.block(&Explained::new(id, &answer))
    })
    .await
}

/// One lease or pin, or a stream that keeps the payload.
#[derive(Serialize)]
struct Holder {
    id: String,
    kind: &'static str,
    peer: Option<String>,
    pid: Option<u32>,
    program: Option<String>,
    /// Why the process is not known.
    note: Option<String>,
    lease_id: Option<String>,
    tier: Option<String>,
    bytes: u64,
    age_ms: Option<u64>,
    since: Option<String>,
    expires_at: Option<String>,
    /// The replica was dropped and waits for this lease.
    limbo: bool,
    /// The stream, NAMESPACE/NAME; null: none, or an append that is under way.
    stream: Option<String>,
    /// The newest entry of it that refers to the payload.
    offset: Option<u64>,
    /// Of a `direct` line: how many leases the process holds so; 0 of others.
    leases: u32,
}

impl Holder {
    fn new(id: PayloadId, kind: &'static str, owner: Option<&pb::Owner>) -> Self {
        let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        Self {
            id: id.to_string(),
            kind,
            peer: owner.and_then(|owner| some(&owner.peer)),
            pid: owner.and_then(|owner| owner.pid),
            program: owner.and_then(|owner| some(&owner.program)),
            note: owner.and_then(|owner| some(&owner.note)),
            lease_id: None,
            tier: None,
            bytes: 0,
            age_ms: None,
            since: None,
            expires_at: None,
            limbo: false,
            stream: None,
            offset: None,
            leases: 0,
        }
    }

    fn of_stream(id: PayloadId, holder: &pb::StreamHolder) -> Self {
        let stream = holder.stream.as_ref().map(|stream| format!("{}/{}", stream.namespace, stream.name));
        Self { offset: stream.is_some().then_some(holder.offset), stream, ..Self::new(id, "stream", None) }
    }

    fn of_lease(id: PayloadId, lease: &pb::LeaseHolder) -> Result<Self, ClientError> {
        let lease_id: LeaseId = ids::lease_id(lease.lease_id.as_ref())?;
        Ok(Self {
            lease_id: Some(lease_id.to_string()),
            tier: Some(tier_word(lease.tier)),
            bytes: lease.length_bytes,
            age_ms: Some(lease.age_ms),
            since: lease.acquired_at.map(|time| time.to_string()),
            expires_at: lease.expires_at.map(|time| time.to_string()),
            limbo: lease.limbo,
            ..Self::new(id, "lease", lease.owner.as_ref())
        })
    }

    fn of_direct(id: PayloadId, direct: &pb::DirectHolder) -> Self {
        Self { leases: direct.leases, ..Self::new(id, "direct", direct.owner.as_ref()) }
    }

    fn of_pin(id: PayloadId, pin: &pb::PinHolder) -> Self {
        Self {
            bytes: pin.bytes,
            age_ms: pin.pinned_at.map(|_| pin.age_ms),
            since: pin.pinned_at.map(|time| time.to_string()),
            expires_at: pin.expires_at.map(|time| time.to_string()),
            ..Self::new(id, "pin", pin.owner.as_ref())
        }
    }

    /// `python3 (pid 4711)`, or why that is not known; a stream's entry.
    fn process(&self) -> String {
        if self.kind == "stream" {
            return match (&self.stream, self.offset) {
                (Some(stream), Some(offset)) => format!("entry {offset} of {stream}"),
                _ => "an append that is under way".to_owned(),
            };
        }
        match (self.pid, &self.program, &self.note) {
            (Some(pid), Some(program), _) => format!("{program} (pid {pid})"),
            (Some(pid), None, _) => format!("pid {pid}"),
            (None, _, Some(note)) => note.clone(),
            (None, _, None) => dash(),
        }
    }
}

impl Row for Holder {
    const COLUMNS: &'static [Column] = &[
        left("ID", 36),
        left("KIND", 6),
        left("PEER", 21),
        left("TIER", 6),
        right("SIZE", 10),
        right("AGE", 8),
        left("UNTIL", 24),
        left("LEASE", 36),
        left("PROCESS", 0),
    ];
    fn cells(&self) -> Vec<String> {
        let until = match (&self.expires_at, self.kind) {
            (Some(time), _) => time.clone(),
            (None, "pin") => "unpinned".to_owned(),
            (None, "stream") => "every group passed it".to_owned(),
            (None, _) => dash(),
        };
        let tier = self.tier.clone().unwrap_or_else(|| "all".to_owned());
        vec![
            self.id.clone(),
            self.kind.to_owned(),
            self.peer.clone().unwrap_or_else(dash),
            if self.limbo { format!("{tier}*") } else { tier },
            ByteCount(self.bytes).to_string(),
            self.age_ms.map_or_else(dash, age),
            until,
            match (&self.lease_id, self.leases) {
                (Some(lease), _) => lease.clone(),
                (None, 0) => dash(),
                (None, leases) => format!("{leases} held"),
            },
            self.process(),
        ]
    }
}

/// Why a payload is where it is.
#[derive(Serialize)]
struct Explained {
    id: String,
    tier: String,
    state: String,
    size_bytes: u64,
    priority: String,
    leases: u32,
    pinned: bool,
    pin_ends_at: Option<String>,
    no_evict: bool,
    spill_target: String,
    under_way: Option<String>,
    requests_wait: bool,
    idle_ms: Option<u64>,
    replicas: Vec<Copy>,
    outlook: Vec<Outlook>,
    /// Streams that keep it.
    streams: Vec<Keeping>,
}

/// A stream that keeps a payload.
#[derive(Serialize)]
struct Keeping {
    /// NAMESPACE/NAME; null: an append that is under way.
    stream: Option<String>,
    /// The newest entry that refers to the payload.
    offset: Option<u64>,
}

/// One replica.
#[derive(Serialize)]
struct Copy {
    tier: String,
    since: Option<String>,
    size_bytes: u64,
    charged_bytes: u64,
    leases: u32,
    copies: u32,
    synced: bool,
    evictable: bool,
    kept_because: Vec<String>,
    under_pressure: String,
    /// The shared-memory object or file that holds it.
    place: String,
    offset_bytes: u64,
    /// The number of the segment file that it shares; null: it has its place to itself.
    segment_file: Option<u32>,
}

impl Copy {
    /// Where it lies, for people; `None` on a server that does not tell.
    fn lies_in(&self) -> Option<String> {
        match (self.place.as_str(), self.segment_file) {
            ("", _) => None,
            (place, None) => Some(place.to_owned()),
            (place, Some(file)) => {
                Some(format!("{place} from byte {} on: segment file {file}, shared", self.offset_bytes))
            }
        }
    }
}

/// What a tier would evict next.
#[derive(Serialize)]
struct Outlook {
    tier: String,
    under_pressure: bool,
    place: Option<u32>,
    next_victims: Vec<Victim>,
}

#[derive(Serialize)]
struct Victim {
    id: String,
    size_bytes: u64,
    priority: String,
    idle_ms: Option<u64>,
}

impl Explained {
    fn new(id: PayloadId, answer: &pb::ExplainPayloadResponse) -> Self {
        let descriptor = answer.descriptor.clone().unwrap_or_default();
        let priority = descriptor.eviction_policy.unwrap_or_default().priority();
        Self {
            id: id.to_string(),
            tier: tier_word(descriptor.tier),
            state: contract_word(descriptor.state().as_str_name(), "PAYLOAD_STATE_"),
            size_bytes: descriptor.size_bytes,
            priority: contract_word(priority.as_str_name(), "EVICTION_PRIORITY_"),
            leases: answer.leases,
            pinned: answer.pinned,
            pin_ends_at: answer.pin_ends_at.map(|time| time.to_string()),
            no_evict: answer.no_evict,
            spill_target: tier_word(answer.spill_target),
            under_way: Some(answer.under_way.clone()).filter(|work| !work.is_empty()),
            requests_wait: answer.requests_wait,
            idle_ms: answer.idle_ms,
            replicas: answer.replicas.iter().map(Copy::from).collect(),
            outlook: answer.outlook.iter().map(Outlook::from).collect(),
            streams: answer
                .streams
                .iter()
                .map(|holder| Holder::of_stream(id, holder))
                .map(|Holder { stream, offset, .. }| Keeping { stream, offset })
                .collect(),
        }
    }
}

impl From<&pb::ReplicaExplanation> for Copy {
    fn from(replica: &pb::ReplicaExplanation) -> Self {
        Self {
            tier: tier_word(replica.tier),
            since: replica.since.map(|time| time.to_string()),
            size_bytes: replica.size_bytes,
            charged_bytes: replica.charged_bytes,
            leases: replica.leases,
            copies: replica.copies,
            synced: replica.synced,
            evictable: replica.verdict() == pb::PressureVerdict::Evictable,
            kept_because: replica.kept_because.clone(),
            under_pressure: replica.under_pressure.clone(),
            place: replica.place.clone(),
            offset_bytes: replica.offset_bytes,
            segment_file: replica.segment_file,
        }
    }
}

impl From<&pb::TierOutlook> for Outlook {
    fn from(outlook: &pb::TierOutlook) -> Self {
        let victim = |victim: &pb::Victim| Victim {
            id: ids::payload_id(victim.id.as_ref()).map_or_else(|_| dash(), |id| id.to_string()),
            size_bytes: victim.size_bytes,
            priority: contract_word(victim.priority().as_str_name(), "EVICTION_PRIORITY_"),
            idle_ms: victim.idle_ms,
        };
        Self {
            tier: tier_word(outlook.tier),
            under_pressure: outlook.under_pressure,
            place: outlook.place,
            next_victims: outlook.next_victims.iter().map(victim).collect(),
        }
    }
}

impl Block for Explained {
    fn fields(&self) -> Vec<(&'static str, String)> {
        let pin = match (&self.pin_ends_at, self.pinned) {
            (_, false) => "no".to_owned(),
            (None, true) => "until it is unpinned".to_owned(),
            (Some(end), true) => format!("until {end}"),
        };
        let mut fields = vec![
            ("id", self.id.clone()),
            ("size", ByteCount(self.size_bytes).to_string()),
            ("tier, state", format!("{}, {}", self.tier, self.state)),
            ("leases", self.leases.to_string()),
            ("pinned", pin),
            ("eviction priority", self.priority.clone()),
            ("no evict", self.no_evict.to_string()),
            ("spill target", self.spill_target.clone()),
        ];
        fields.extend(self.idle_ms.map(|idle| ("last leased", format!("{} ago", age(idle)))));
        fields.extend(self.under_way.clone().map(|work| ("under way", work)));
        if self.requests_wait {
            fields.push(("waiting", "requests wait for it".to_owned()));
        }
        for replica in &self.replicas {
            let since = replica.since.clone().unwrap_or_else(|| "before the last start".to_owned());
            let charged = ByteCount(replica.charged_bytes);
            fields.push(("copy on", format!("{} since {since}, charged {charged}", replica.tier)));
            fields.extend(replica.lies_in().map(|place| ("  lies in", place)));
            fields.extend(replica.kept_because.iter().map(|reason| ("  because", reason.clone())));
            fields.push(("  under pressure", replica.under_pressure.clone()));
        }
        for outlook in &self.outlook {
            let place = outlook.place.map(|place| format!("this payload is number {place} there"));
            let now = outlook.under_pressure.then(|| "it is being evicted from now".to_owned());
            let words: Vec<String> = [now, place].into_iter().flatten().collect();
            let words = if words.is_empty() { String::new() } else { format!(" ({})", words.join("; ")) };
            fields.push(("next to go from", format!("{}{words}", outlook.tier)));
            for victim in &outlook.next_victims {
                let idle =
                    victim.idle_ms.map_or_else(String::new, |idle| format!(", idle for {}", age(idle)));
                let size = ByteCount(victim.size_bytes);
                fields.push(("", format!("{} {size}, priority {}{idle}", victim.id, victim.priority)));
            }
            if outlook.next_victims.is_empty() {
                fields.push(("", "nothing: no payload there may be evicted".to_owned()));
            }
        }
        fields
    }
}

fn tier_word(number: i32) -> String {
    match enums::tier_or_void("tier", number) {
        Ok(Some(SpillTarget::Tier(tier))) => word(tier),
        Ok(Some(SpillTarget::Void)) => "void".to_owned(),
        Ok(None) | Err(_) => dash(),
    }
}

fn contract_word(name: &str, prefix: &str) -> String {
    word(name.trim_start_matches(prefix))
}

/// Milliseconds below a second, whole seconds above: what people read of an age.
fn age(milliseconds: u64) -> String {
    let whole = if milliseconds < 1_000 { milliseconds } else { milliseconds / 1_000 * 1_000 };
    time::format_millis(whole)
}

fn dash() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use payload_types::{LeaseNonce, ShardIndex};

    use super::*;

    const ID: PayloadId = PayloadId::from_bytes([7; 16]);

    fn lease() -> pb::LeaseHolder {
        pb::LeaseHolder {
            lease_id: Some(ids::lease_id_to_pb(LeaseId::new(ShardIndex(0), 1, LeaseNonce([1; 10])))),
            owner: Some(pb::Owner {
                peer: "127.0.0.1:9".to_owned(),
                pid: Some(4711),
                program: "worker".to_owned(),
                note: String::new(),
            }),
            tier: 2,
            length_bytes: 4096,
            age_ms: 61_500,
            ..pb::LeaseHolder::default()
        }
    }

    #[test]
    fn given_a_lease_and_a_pin_when_shown_then_each_has_a_cell_for_each_column() {
        let held = Holder::of_lease(ID, &lease()).expect("valid");
        let cells = held.cells();
        assert_eq!(cells.len(), Holder::COLUMNS.len());
        assert!(
            cells.contains(&"worker (pid 4711)".to_owned()) && cells.contains(&"61s".to_owned()),
            "{cells:?}"
        );
        let owner = Some(pb::Owner { note: "set before the last start".to_owned(), ..pb::Owner::default() });
        let pin = Holder::of_pin(ID, &pb::PinHolder { owner, ..pb::PinHolder::default() });
        let cells = pin.cells();
        assert_eq!(cells.len(), Holder::COLUMNS.len());
        assert!(cells.contains(&"set before the last start".to_owned()), "{cells:?}");
        let json = serde_json::to_value(&pin).expect("plain data");
        assert!(json["age_ms"].is_null() && json["pid"].is_null() && json["kind"] == "pin", "{json}");
    }

    #[test]
    fn given_a_dropped_replica_when_shown_then_its_tier_is_marked() {
        let held = Holder::of_lease(ID, &pb::LeaseHolder { limbo: true, ..lease() }).expect("valid");
        assert!(held.cells().contains(&"ram*".to_owned()));
    }

    #[test]
    fn given_an_explanation_when_shown_then_every_replica_and_victim_has_its_lines() {
        let replica = pb::ReplicaExplanation {
            tier: 2,
            kept_because: vec!["it is the only copy of these bytes".to_owned()],
            under_pressure: "copied to DISK, then dropped from RAM".to_owned(),
            verdict: pb::PressureVerdict::Evictable.into(),
            place: "/pm-x".to_owned(),
            ..pb::ReplicaExplanation::default()
        };
        let packed = pb::ReplicaExplanation {
            tier: 3,
            place: "/d/segments/0000001a.seg".to_owned(),
            offset_bytes: 40_960,
            segment_file: Some(26),
            ..pb::ReplicaExplanation::default()
        };
        let victim = pb::Victim {
            id: Some(ids::payload_id_to_pb(ID)),
            size_bytes: 640,
            priority: 1,
            idle_ms: Some(5_000),
        };
        let outlook =
            pb::TierOutlook { tier: 2, next_victims: vec![victim], place: Some(1), under_pressure: true };
        let answer = pb::ExplainPayloadResponse {
            replicas: vec![replica, packed],
            outlook: vec![outlook, pb::TierOutlook { tier: 3, ..pb::TierOutlook::default() }],
            pinned: true,
            ..pb::ExplainPayloadResponse::default()
        };
        let explained = Explained::new(ID, &answer);
        let text: String =
            explained.fields().iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
        for line in [
            "pinned: until it is unpinned",
            "copy on: ram since before the last start, charged 0 B",
            "  lies in: /pm-x",
            "  lies in: /d/segments/0000001a.seg from byte 40960 on: segment file 26, shared",
            "  because: it is the only copy of these bytes",
            "  under pressure: copied to DISK, then dropped from RAM",
            "next to go from: ram (it is being evicted from now; this payload is number 1 there)",
            "640 B, priority low, idle for 5s",
            "nothing: no payload there may be evicted",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        let json = serde_json::to_value(&explained).expect("plain data");
        assert_eq!(json["replicas"][0]["evictable"], true);
        assert!(json["replicas"][0]["segment_file"].is_null(), "{json}");
        assert_eq!(
            (&json["replicas"][1]["segment_file"], &json["replicas"][1]["offset_bytes"]),
            (&26.into(), &40_960.into())
        );
        assert_eq!(json["outlook"][0]["next_victims"][0]["priority"], "low");
    }
}
