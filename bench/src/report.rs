//! What was found, and how it is printed: one JSON object a line for programs, a table for people.
//!
//! The line format is DESIGN §10's; what we add to it follows after `met` and is left out where there is none.

use std::collections::BTreeMap;
use std::io::{self, Write as _};

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde::Serialize;

use crate::context::Skip;
use crate::histogram::{Latencies, Percentiles, Unit};
use crate::series::Series;

/// Which way is better.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// Less.
    Lower,
    /// More.
    Higher,
}

/// A row: what it means, not what it measured.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Spec {
    /// `family/thing`.
    pub name: &'static str,
    /// One sentence for people.
    pub what: &'static str,
    /// Of its value.
    pub unit: &'static str,
    /// The row it is compared with; `None` for a floor, or where the target is absolute.
    pub floor: Option<&'static str>,
    /// Of the ratio to the floor; of the value where there is no floor.
    pub target: Option<f64>,
    /// Of the value.
    pub better: Better,
    /// With fewer it is reported, and neither met nor missed.
    pub cores_min: usize,
}

/// What was measured of a row.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Figure {
    /// The median of the rounds.
    pub value: f64,
    /// See [`Series::spread`].
    pub spread: f64,
    /// How many there were.
    pub rounds: usize,
    /// Of all rounds together.
    pub percentiles: Option<Percentiles>,
    /// The wall time beside a value that is on-CPU time, in the row's unit.
    pub wall: Option<f64>,
    /// What a reader should know.
    pub note: Option<String>,
}

impl Figure {
    /// The median of a series.
    ///
    /// # Errors
    /// When there was no round.
    pub fn of(series: &Series) -> anyhow::Result<Self> {
        let value = series.median().ok_or_else(|| anyhow::anyhow!("no round was measured"))?;
        Ok(Self { value, spread: series.spread(), rounds: series.rounds(), ..Self::default() })
    }

    /// With percentiles.
    #[must_use]
    pub fn with(self, latencies: &Latencies, unit: Unit) -> Self {
        Self { percentiles: latencies.percentiles(unit), ..self }
    }

    /// With a note.
    #[must_use]
    pub fn noted(self, note: impl Into<String>) -> Self {
        Self { note: Some(note.into()), ..self }
    }
}

/// Why a row has no figure.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Absence {
    reason: String,
    is_failure: bool,
}

/// What one family found.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Findings {
    figures: BTreeMap<&'static str, Figure>,
    absences: BTreeMap<&'static str, Absence>,
}

impl Findings {
    /// Keeps a row's figure.
    pub fn put(&mut self, row: &'static str, figure: Figure) {
        self.figures.insert(row, figure);
    }

    /// Says why a row has none. A [`Skip`] is no failure.
    pub fn absent(&mut self, row: &'static str, error: &anyhow::Error) {
        let is_failure = error.downcast_ref::<Skip>().is_none();
        self.absences.insert(row, Absence { reason: format!("{error:#}"), is_failure });
    }

    /// Says why the rest of a family's rows have none.
    pub fn absent_all(&mut self, rows: &[&'static str], error: &anyhow::Error) {
        for row in rows {
            if !self.figures.contains_key(row) && !self.absences.contains_key(row) {
                self.absent(row, error);
            }
        }
    }

    /// True when a row failed.
    pub fn has_failure(&self) -> bool {
        self.absences.values().any(|absence| absence.is_failure)
    }

    /// The row's line, on a machine with so many cores.
    pub fn line(&self, spec: &Spec, cores: usize) -> Line {
        let figure = self.figures.get(spec.name);
        let floor_value = spec.floor.and_then(|floor| self.figures.get(floor)).map(|floor| floor.value);
        let ratio = match (figure, floor_value) {
            (Some(figure), Some(floor)) if floor != 0.0 => Some(rounded(figure.value / floor)),
            _ => None,
        };
        let value = figure.map(|figure| rounded(figure.value));
        let compared = if spec.floor.is_some() { ratio } else { value };
        let met = spec.target.zip(compared).filter(|_| cores >= spec.cores_min).map(|(target, found)| {
            match spec.better {
                Better::Lower => found <= target,
                Better::Higher => found >= target,
            }
        });
        let few_cores = (figure.is_some() && cores < spec.cores_min)
            .then(|| format!("needs {} cores to be met, and there are {cores}", spec.cores_min));
        let note = figure.and_then(|figure| figure.note.clone());
        let skipped = figure.is_none().then(|| match self.absences.get(spec.name) {
            Some(absence) => absence.reason.clone(),
            None => "it was not measured".to_owned(),
        });
        Line {
            bench: spec.name,
            value,
            unit: spec.unit,
            floor: spec.floor,
            floor_value: floor_value.map(rounded),
            ratio,
            target: spec.target,
            better: spec.better,
            met,
            percentiles: figure.and_then(|figure| figure.percentiles),
            wall: figure.and_then(|figure| figure.wall),
            spread: figure.map(|figure| rounded(figure.spread)),
            rounds: figure.map(|figure| figure.rounds),
            note: [note, few_cores].into_iter().flatten().reduce(|one, two| format!("{one}; {two}")),
            skipped,
        }
    }
}

/// Four significant digits: more would only look exact.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let digits = 3 - value.abs().log10().floor() as i32;
    // 10^digits with digits below 0 is not exact; dividing by the exact power is.
    if digits < 0 {
        let scale = 10f64.powi(-digits);
        (value / scale).round() * scale
    } else {
        let scale = 10f64.powi(digits);
        (value * scale).round() / scale
    }
}

/// One line of output.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Line {
    pub bench: &'static str,
    pub value: Option<f64>,
    pub unit: &'static str,
    pub floor: Option<&'static str>,
    pub floor_value: Option<f64>,
    pub ratio: Option<f64>,
    pub target: Option<f64>,
    pub better: Better,
    pub met: Option<bool>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub percentiles: Option<Percentiles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wall: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rounds: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
}

/// Prints lines as they come (JSON) or all at the end (table).
pub struct Printer {
    lines: Option<Vec<Line>>,
}

impl Printer {
    /// For programs or for people.
    pub fn new(json: bool) -> Self {
        Self { lines: (!json).then(Vec::new) }
    }

    /// Tells people what is being measured.
    pub fn progress(&self, rows: &str) {
        if self.lines.is_some() {
            eprintln!("measuring {rows}");
        }
    }

    /// Takes a line.
    ///
    /// # Errors
    /// When standard output is gone.
    pub fn line(&mut self, line: &Line) -> io::Result<()> {
        match &mut self.lines {
            Some(lines) => lines.push(line.clone()),
            None => {
                let mut out = io::stdout().lock();
                serde_json::to_writer(&mut out, line)?;
                writeln!(out)?;
                out.flush()?;
            }
        }
        Ok(())
    }

    /// Prints what was kept back.
    ///
    /// # Errors
    /// When standard output is gone.
    pub fn finish(self) -> io::Result<()> {
        match self.lines {
            Some(lines) => writeln!(io::stdout().lock(), "{}", table(&lines)),
            None => Ok(()),
        }
    }
}

/// Columns of numbers, by their place.
const RIGHT: std::ops::RangeInclusive<usize> = 1..=7;

fn table(lines: &[Line]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header([
        "bench",
        "value",
        "unit",
        "floor",
        "ratio",
        "target",
        "met",
        "spread",
        "p50 / p90 / p99 / p99.9",
        "note",
    ]);
    for line in lines {
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        let sign = if line.better == Better::Lower { "<=" } else { ">=" };
        let percentiles = line.percentiles.map(|found| {
            let Percentiles { p50, p90, p99, p999, percentiles_unit } = found;
            format!(
                "{} / {} / {} / {} {percentiles_unit}",
                rounded(p50),
                rounded(p90),
                rounded(p99),
                rounded(p999)
            )
        });
        let wall = line.wall.map(|wall| format!("wall {} {}", rounded(wall), line.unit));
        let skipped = line.skipped.as_ref().map(|reason| format!("skipped: {reason}"));
        table.add_row([
            line.bench.to_owned(),
            number(line.value),
            line.unit.to_owned(),
            number(line.floor_value),
            number(line.ratio),
            line.target.map_or_else(|| "-".to_owned(), |target| format!("{sign} {target}")),
            line.met.map_or("-", |met| if met { "yes" } else { "NO" }).to_owned(),
            line.spread.map_or_else(|| "-".to_owned(), |spread| format!("{:.0} %", spread * 100.0)),
            percentiles.unwrap_or_else(|| "-".to_owned()),
            [skipped, wall, line.note.clone()].into_iter().flatten().collect::<Vec<_>>().join("; "),
        ]);
    }
    for column in RIGHT {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

/// What `payload-bench list` prints.
pub fn list(specs: impl Iterator<Item = &'static Spec>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["bench", "unit", "floor", "target", "what"]);
    for spec in specs {
        let sign = if spec.better == Better::Lower { "<=" } else { ">=" };
        let cores = if spec.cores_min > 1 { format!(" ({}+ cores)", spec.cores_min) } else { String::new() };
        let target = spec.target.map_or_else(|| "-".to_owned(), |target| format!("{sign} {target}{cores}"));
        table.add_row([spec.name, spec.unit, spec.floor.unwrap_or("-"), &target, spec.what]);
    }
    format!("{table}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOR: Spec = Spec {
        name: "ipc/cacheline",
        what: "",
        unit: "ns",
        floor: None,
        target: None,
        better: Better::Lower,
        cores_min: 1,
    };
    const OURS: Spec =
        Spec { name: "native/lease", floor: Some("ipc/cacheline"), target: Some(3.0), ..FLOOR };

    fn findings(ours: f64, floor: f64) -> Findings {
        let mut findings = Findings::default();
        findings.put("native/lease", Figure { value: ours, rounds: 9, ..Figure::default() });
        findings.put("ipc/cacheline", Figure { value: floor, rounds: 9, ..Figure::default() });
        findings
    }

    #[test]
    fn given_a_figure_and_its_floor_when_printed_then_it_is_the_designs_line() {
        let json = serde_json::to_string(&findings(310.0, 290.0).line(&OURS, 2)).expect("plain values");
        assert_eq!(
            json,
            r#"{"bench":"native/lease","value":310.0,"unit":"ns","floor":"ipc/cacheline","floor_value":290.0,"ratio":1.069,"target":3.0,"better":"lower","met":true,"spread":0.0,"rounds":9}"#
        );
    }

    #[test]
    fn given_a_missed_target_when_judged_then_not_met_and_with_too_few_cores_neither() {
        assert_eq!(findings(900.0, 290.0).line(&OURS, 2).met, Some(false));
        let four = Spec { cores_min: 4, ..OURS };
        let line = findings(900.0, 290.0).line(&four, 2);
        assert_eq!((line.met, line.note.is_some()), (None, true));
        let higher = Spec { better: Better::Higher, ..OURS };
        assert_eq!(findings(900.0, 290.0).line(&higher, 2).met, Some(true));
    }

    #[test]
    fn given_a_row_that_could_not_run_when_printed_then_skipped_says_why_and_only_a_defect_is_a_failure() {
        let mut findings = Findings::default();
        findings.absent_all(&["native/lease"], &Skip("no such device".into()).into());
        let line = findings.line(&OURS, 2);
        assert_eq!((line.value, line.met, line.skipped.as_deref()), (None, None, Some("no such device")));
        assert!(!findings.has_failure());
        findings.absent("ipc/cacheline", &anyhow::anyhow!("broken"));
        assert!(findings.has_failure());
    }

    #[test]
    fn given_values_when_rounded_then_four_digits_stay() {
        for (value, expected) in [
            (0.0, 0.0),
            (1.06896, 1.069),
            (51_234.5, 51_230.0),
            (0.001_234_56, 0.001_235),
            (5_234_567.0, 5_235_000.0),
        ] {
            assert_eq!(rounded(value), expected);
        }
    }
}
