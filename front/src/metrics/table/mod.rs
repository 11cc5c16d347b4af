//! Every metric there is, once: its name, type, unit, labels, meaning, and where its figure comes from. `/metrics`, the
//! OpenTelemetry export and the list in docs/OPERATIONS.md are made from this table; alert rules and dashboards in
//! `deploy/` name nothing else.
//!
//! Four names and their labels are the contract's (`payload.request.count` ...), as existing dashboards know them. All
//! others begin with `payload_manager_` and end with their unit; counters end in `_total`.

mod calls;
mod disk;
mod node;
mod shards;
mod tiers;

use payload_wire::pb::operations::v1::{ArenaAccounting, TierAccounting};

use super::histogram::Distribution;
use super::scrape::{Scrape, ShardScrape};

/// What a family's values mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Grows until the next start.
    Counter,
    /// Observations by size.
    Histogram,
}

/// One metric, with all its label values.
pub struct Family {
    /// As OpenTelemetry is told it; Prometheus sees underscores for dots.
    pub name: &'static str,
    /// What its values mean.
    pub kind: Kind,
    /// As OpenTelemetry writes units (UCUM): `By`, `s`, `ms`, `1`.
    pub unit: &'static str,
    /// Its labels, in the order of [`Sample::labels`].
    pub labels: &'static [&'static str],
    /// One sentence.
    pub help: &'static str,
    /// Where its figures come from.
    pub source: Source,
}

/// Where figures come from.
pub enum Source {
    /// One figure of each tier; the label is the tier's name.
    Tier(fn(&TierAccounting) -> Option<u64>),
    /// One figure of the memory of native sessions.
    Arena(fn(&ArenaAccounting) -> u64),
    /// One figure of the node; `None`: there is none now.
    Node(fn(&Scrape) -> Option<f64>),
    /// One figure of each shard; the label is its number.
    Shard(fn(&ShardScrape) -> f64),
    /// Whatever it pushes.
    Many(fn(&Scrape, &mut Vec<Sample>)),
}

/// One figure.
#[derive(Clone, PartialEq, Debug)]
pub struct Sample {
    /// A value for each of the family's labels.
    pub labels: Vec<String>,
    /// The figure.
    pub value: Value,
}

/// See [`Sample`].
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// Counts and bytes.
    Whole(u64),
    /// Seconds and shares.
    Real(f64),
    /// Observations by size.
    Spread(Distribution),
}

/// All families, in the order in which they are shown.
pub fn families() -> impl Iterator<Item = &'static Family> {
    [calls::FAMILIES, tiers::FAMILIES, node::FAMILIES, disk::FAMILIES, shards::FAMILIES].into_iter().flatten()
}

/// All families with what they are now. One without samples is left out, as its part is not configured.
pub fn collect(scrape: &Scrape) -> Vec<(&'static Family, Vec<Sample>)> {
    families().map(|family| (family, family.samples(scrape))).filter(|(_, found)| !found.is_empty()).collect()
}

impl Family {
    const fn new(name: &'static str, kind: Kind, help: &'static str, source: Source) -> Self {
        Self { name, kind, unit: "1", labels: &[], help, source }
    }

    const fn unit(mut self, unit: &'static str) -> Self {
        self.unit = unit;
        self
    }

    const fn labels(mut self, labels: &'static [&'static str]) -> Self {
        self.labels = labels;
        self
    }

    /// The name as Prometheus wants it.
    pub fn prometheus_name(&self) -> String {
        self.name.replace('.', "_")
    }

    /// What it is now.
    pub fn samples(&self, scrape: &Scrape) -> Vec<Sample> {
        let mut samples = Vec::new();
        let alone = |value| Sample { labels: Vec::new(), value };
        match self.source {
            Source::Tier(figure) => samples.extend(scrape.stats.tiers.iter().filter_map(|tier| {
                let name = tier.tier().as_str_name().trim_start_matches("TIER_").to_ascii_lowercase();
                Some(Sample { labels: vec![name], value: Value::Whole(figure(tier)?) })
            })),
            Source::Arena(figure) => {
                samples
                    .extend(scrape.stats.arenas.as_ref().map(|arenas| alone(Value::Whole(figure(arenas)))));
            }
            Source::Node(figure) => samples.extend(figure(scrape).map(|value| alone(number(value)))),
            Source::Shard(figure) => {
                samples.extend(scrape.shards.iter().map(|shard| Sample {
                    labels: vec![shard.shard.to_string()],
                    value: number(figure(shard)),
                }))
            }
            Source::Many(push) => push(scrape, &mut samples),
        }
        debug_assert!(samples.iter().all(|sample| sample.labels.len() == self.labels.len()), "{}", self.name);
        samples
    }
}

/// Counts stay whole: exact to 2^53, which no count of one machine comes near.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && (0.0..9e15).contains(&value) {
        Value::Whole(value as u64)
    } else {
        Value::Real(value)
    }
}

/// Pushes one sample.
fn push(samples: &mut Vec<Sample>, labels: impl IntoIterator<Item = String>, value: u64) {
    samples.push(Sample { labels: labels.into_iter().collect(), value: Value::Whole(value) });
}

/// The table as docs/OPERATIONS.md shows it.
pub fn families_as_markdown() -> String {
    let mut markdown = "| metric | type | unit | labels | what it is |\n|---|---|---|---|---|\n".to_owned();
    for family in families() {
        let kind = match family.kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
            Kind::Histogram => "histogram",
        };
        let (name, unit, labels) = (family.prometheus_name(), family.unit, family.labels.join(", "));
        let unit = if unit == "1" { "" } else { unit };
        markdown += &format!("| `{name}` | {kind} | {unit} | {labels} | {} |\n", family.help);
    }
    markdown
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    const BEGIN: &str = "<!-- metrics: made by front/src/metrics/table -->";
    const END: &str = "<!-- end of metrics -->";
    /// Set to write the table into the document instead of comparing.
    const WRITE: &str = "PAYLOAD_MANAGER_WRITE_DOCS";
    const CONTRACT: [&str; 4] = [
        "payload.request.count",
        "payload.request.latency_ms",
        "payload.spill.duration_ms",
        "payload.tier.occupancy_bytes",
    ];

    #[test]
    fn given_the_operations_manual_when_read_then_its_metrics_are_the_tables() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/OPERATIONS.md");
        let manual = std::fs::read_to_string(&path).expect("docs/OPERATIONS.md exists");
        let (before, rest) = manual.split_once(BEGIN).expect("the begin marker is there, once");
        let (table, after) = rest.split_once(END).expect("the end marker is there, after it");
        let generated = format!("\n{}", families_as_markdown());
        if std::env::var_os(WRITE).is_some() {
            std::fs::write(&path, format!("{before}{BEGIN}{generated}{END}{after}")).expect("writable");
            return;
        }
        assert_eq!(table, generated, "run this test with {WRITE}=1 and commit docs/OPERATIONS.md");
    }

    #[test]
    fn given_the_table_when_read_then_names_say_their_kind_and_none_comes_twice() {
        let names: BTreeSet<String> = families().map(Family::prometheus_name).collect();
        assert_eq!(names.len(), families().count(), "no name twice");
        for name in CONTRACT {
            assert!(families().any(|family| family.name == name), "{name}");
        }
        for Family { name, kind, help, .. } in families() {
            assert!(help.ends_with('.') && !help.contains('|'), "{name}: {help}");
            if !CONTRACT.contains(name) {
                assert!(name.starts_with("payload_manager_") && !name.contains('.'), "{name}");
                assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            }
        }
    }
}
