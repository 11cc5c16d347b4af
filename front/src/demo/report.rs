//! What the demo prints: one row a payload, one row a step, and what went over gRPC.

use std::time::Duration;

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};
use payload_types::ByteCount;

/// The steps, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Allocate, write in place, commit.
    Put,
    /// The worker reads from RAM.
    ReadRam,
    /// Moved to disk.
    Spill,
    /// The worker reads from disk.
    ReadDisk,
    /// Copied back.
    Promote,
    /// The worker reads from RAM again.
    ReadAgain,
    /// Deleted.
    Delete,
}

impl Step {
    /// Every step, in order.
    pub const ALL: [Self; 7] =
        [Self::Put, Self::ReadRam, Self::Spill, Self::ReadDisk, Self::Promote, Self::ReadAgain, Self::Delete];

    fn what(self) -> (&'static str, &'static str) {
        match self {
            Self::Put => ("put: allocate, write in place, commit", "demo -> RAM"),
            Self::ReadRam => ("lease, map, hash, release", "RAM -> worker"),
            Self::Spill => ("spill, fdatasync, verified", "RAM -> DISK"),
            Self::ReadDisk => ("lease, map, hash, release", "DISK -> worker"),
            Self::Promote => ("promote, verified", "DISK -> RAM"),
            Self::ReadAgain => ("lease, map, hash, release", "RAM -> worker"),
            Self::Delete => ("delete", "-"),
        }
    }
}

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// One entry a payload.
    pub payloads: Vec<PayloadLine>,
    times: [Duration; Step::ALL.len()],
}

/// One payload's row.
#[derive(Clone, Debug)]
pub struct PayloadLine {
    /// The input's name.
    pub name: String,
    /// Its size.
    pub size: ByteCount,
    /// XXH3-64.
    pub checksum: String,
    /// Its payload id.
    pub id: String,
    /// Where it lay first.
    pub segment: String,
    /// Where it lay then.
    pub file: String,
}

impl Report {
    /// Adds to a step's time.
    pub fn add(&mut self, step: Step, took: Duration) {
        self.times[step as usize] += took;
    }

    /// Both tables and the last lines, for a run in which every byte matched.
    pub fn print(&self, wire_bytes: u64) {
        let total: u64 = self.payloads.iter().map(|line| line.size.0).sum();
        println!("{}", self.payload_table());
        if let Some(line) = self.payloads.last() {
            println!(
                "\n{} lay in shared memory as {},\nthen on disk as {}, and so did the others.\n",
                line.name, line.segment, line.file
            );
        }
        println!("{}\n", self.step_table(total));
        // Put, spill and promote move every byte once, the three reads once each.
        let moved = ByteCount(total.saturating_mul(6));
        println!(
            "payload bytes over gRPC: 0 (the contract has no field for them; {moved} were moved or read in place)"
        );
        println!(
            "control bytes over gRPC: {wire_bytes}, counted on the wire, HTTP/2 framing included: {:.0} for each payload",
            wire_bytes as f64 / self.payloads.len().max(1) as f64
        );
        println!(
            "every byte matched: {} payloads, {}, each verified three times by another process",
            self.payloads.len(),
            ByteCount(total)
        );
    }

    fn payload_table(&self) -> Table {
        let mut table = table(&["payload", "size", "XXH3-64", "id"]);
        for line in &self.payloads {
            table.add_row([&line.name, &line.size.to_string(), &line.checksum, &line.id]);
        }
        align_right(&mut table, &[1]);
        table
    }

    fn step_table(&self, total: u64) -> Table {
        let mut table = table(&["step", "where", "payloads", "bytes", "time", "bandwidth", "checksums"]);
        for step in Step::ALL {
            let (what, place) = step.what();
            let took = self.times[step as usize];
            let moves = step != Step::Delete;
            let checked = matches!(step, Step::ReadRam | Step::ReadDisk | Step::ReadAgain);
            table.add_row([
                what.to_owned(),
                place.to_owned(),
                self.payloads.len().to_string(),
                if moves { ByteCount(total).to_string() } else { "-".to_owned() },
                format!("{:.1} ms", took.as_secs_f64() * 1e3),
                if moves { bandwidth(total, took) } else { "-".to_owned() },
                if checked { "all match".to_owned() } else { "-".to_owned() },
            ]);
        }
        align_right(&mut table, &[2, 3, 4, 5]);
        table
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY).set_header(header);
    table
}

fn align_right(table: &mut Table, columns: &[usize]) {
    for column in columns {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// In MiB/s, whatever the size: rows are compared.
fn bandwidth(bytes: u64, took: Duration) -> String {
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    format!("{:.0} MiB/s", mebibytes / took.as_secs_f64().max(1e-9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_report_when_printed_then_every_step_and_payload_has_its_row() {
        let mut report = Report::default();
        report.payloads.push(PayloadLine {
            name: "README.md".to_owned(),
            size: ByteCount(2 << 20),
            checksum: "0123".to_owned(),
            id: "0190".to_owned(),
            segment: "/pm-x".to_owned(),
            file: "payloads/x.bin".to_owned(),
        });
        report.add(Step::Spill, Duration::from_millis(250));
        report.add(Step::Spill, Duration::from_millis(250));
        let steps = report.step_table(2 << 20).to_string();
        assert!(steps.contains("500.0 ms") && steps.contains("4 MiB/s"), "{steps}");
        assert_eq!(steps.matches("all match").count(), 3);
        assert!(report.payload_table().to_string().contains("README.md"));
    }
}
