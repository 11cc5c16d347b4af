//! `scrub`: verifies the bytes of all payloads, or of some, and shows what is wrong with them.
//!
//! Findings are rows on stdout, as they are made; how far it is stands on stderr, where that is a terminal. The exit
//! code is 1 when anything damaged was found, or could not be read.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressStyle};
use payload_client::Client;
use payload_client::operations::ScrubEvent;
use payload_types::{ByteCount, PayloadError, PayloadId, Tier};
use payload_wire::pb::operations::v1::{ScrubFinding, ScrubProgress};
use payload_wire::{enums, ids};
use serde::Serialize;

use crate::common::{TierWord, parse_id};
use crate::interrupt::Interrupt;
use crate::output::{Column, Output, Row, left};
use crate::view::word;

const PROGRESS_TEMPLATE: &str = "{bar:24} {bytes}/{total_bytes}  {bytes_per_sec}  {eta}  {msg}";

/// Arguments of `scrub`.
#[derive(clap::Args)]
pub struct Args {
    /// What to verify; without it: everything.
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// Only replicas on this tier.
    #[arg(long, value_enum, ignore_case = true)]
    tier: Option<TierWord>,
    /// Read at most so many bytes a second, like 20MB or 1GiB/s; without it the server's default, 100MB/s.
    #[arg(long, value_name = "SIZE", value_parser = rate)]
    rate: Option<u64>,
}

/// A bad replica.
#[derive(Serialize)]
struct Finding {
    id: String,
    tier: String,
    what: String,
    outcome: String,
    message: String,
}

impl Row for Finding {
    const COLUMNS: &'static [Column] =
        &[left("ID", 36), left("TIER", 6), left("WHAT", 10), left("OUTCOME", 14), left("MESSAGE", 20)];
    fn cells(&self) -> Vec<String> {
        [&self.id, &self.tier, &self.what, &self.outcome, &self.message].map(Clone::clone).to_vec()
    }
}

/// What was looked at in all.
#[derive(Serialize, Default)]
struct Summary {
    checked: u64,
    checked_bytes: u64,
    unverifiable: u64,
    skipped: u64,
    findings: u64,
}

impl Summary {
    fn add(&mut self, progress: &ScrubProgress) {
        self.checked += progress.checked;
        self.checked_bytes += progress.checked_bytes;
        self.unverifiable += progress.unverifiable;
        self.skipped += progress.skipped;
    }

    fn sentence(&self) -> String {
        let mut text = format!("verified {} replicas, {}", self.checked, ByteCount(self.checked_bytes));
        if self.unverifiable > 0 {
            text += &format!(
                "; {} of them have no checksum yet and were only found to be there",
                self.unverifiable
            );
        }
        if self.skipped > 0 {
            text += &format!("; {} payloads were not committed, or gone meanwhile", self.skipped);
        }
        text
    }
}

/// Scrubs.
pub async fn run(client: &Client, output: &mut Output, args: Args) -> anyhow::Result<()> {
    let interrupt = Interrupt::install()?;
    let (tier, rate) = (args.tier.map(Tier::from), args.rate.unwrap_or_default());
    let mut summary = Summary::default();
    let bar = progress_bar();
    if args.ids.is_empty() {
        scrub(client, output, (None, tier, rate), (&bar, &interrupt), &mut summary).await?;
    }
    for text in &args.ids {
        let id = match parse_id(text) {
            Ok(id) => id,
            Err(error) => {
                output.fail(text, &error)?;
                continue;
            }
        };
        scrub(client, output, (Some(id), tier, rate), (&bar, &interrupt), &mut summary).await?;
    }
    bar.finish_and_clear();
    output.flush()?;
    if output.is_json() {
        output.object(&summary)?;
    } else {
        use std::io::Write as _;
        writeln!(output.stdout(), "{}", summary.sentence())?;
    }
    if summary.findings > 0 {
        output.flush()?;
        output.complain(&format!(
            "{} of {} replicas are not what was committed or could not be read",
            summary.findings, summary.checked
        ));
    }
    Ok(())
}

async fn scrub(
    client: &Client,
    output: &mut Output,
    (id, tier, rate): (Option<PayloadId>, Option<Tier>, u64),
    (bar, interrupt): (&ProgressBar, &Interrupt),
    summary: &mut Summary,
) -> anyhow::Result<()> {
    let failed = |output: &mut Output, error| match id {
        Some(id) => Ok(output.fail(&id.to_string(), &error)?),
        None => Err(anyhow::Error::from(error)),
    };
    let mut events = match client.scrub(id, tier, rate).await {
        Ok(events) => events,
        Err(error) => return failed(output, error),
    };
    loop {
        interrupt.check()?;
        match events.next().await {
            Ok(None) => return Ok(()),
            Ok(Some(ScrubEvent::Finding(finding))) => {
                summary.findings += 1;
                let row = Finding::from(&finding);
                bar.suspend(|| output.row(&row).and_then(|()| output.flush()))?;
            }
            Ok(Some(ScrubEvent::Progress(progress))) => {
                bar.set_length(progress.total_bytes);
                bar.set_position(progress.checked_bytes);
                bar.set_message(format!("{} found", summary.findings));
                if progress.done {
                    summary.add(&progress);
                }
            }
            Err(error) => return failed(output, error),
        }
    }
}

impl From<&ScrubFinding> for Finding {
    fn from(finding: &ScrubFinding) -> Self {
        let lower = |name: &str, prefix: &str| name.trim_start_matches(prefix).to_ascii_lowercase();
        Self {
            id: ids::payload_id(finding.id.as_ref()).map_or("unknown".to_owned(), |id| id.to_string()),
            tier: enums::tier_required("tier", finding.tier).map_or("unknown".to_owned(), word),
            what: lower(finding.what().as_str_name(), "SCRUB_FAULT_"),
            outcome: lower(finding.outcome().as_str_name(), "SCRUB_OUTCOME_"),
            message: finding.message.clone(),
        }
    }
}

/// Reads bytes a second: a size, with or without `/s`.
fn rate(text: &str) -> Result<u64, PayloadError> {
    match text.trim_end_matches("/s").parse::<ByteCount>()? {
        ByteCount(0) => {
            Err(PayloadError::invalid(format!("`{text}` is no rate; leave the flag out for the server's")))
        }
        ByteCount(bytes) => Ok(bytes),
    }
}

/// Drawn on stderr, and only where that is a terminal.
fn progress_bar() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(PROGRESS_TEMPLATE).expect("the template is constant and tested");
    ProgressBar::new(0).with_style(style)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_rates_when_read_then_a_size_a_second_with_or_without_saying_so() {
        assert_eq!((rate("100MB"), rate("1GiB/s")), (Ok(100_000_000), Ok(1 << 30)));
        assert!(rate("0").expect_err("nothing").message.contains("leave the flag out"));
        assert!(rate("fast").is_err());
    }

    #[test]
    fn given_a_finding_when_shown_then_its_words_are_lower_case() {
        let finding =
            Finding::from(&ScrubFinding { id: None, tier: 3, what: 1, outcome: 2, message: "m".into() });
        assert_eq!(finding.cells(), ["unknown", "disk", "corrupt", "data_loss", "m"]);
    }

    #[test]
    fn given_the_progress_bar_when_drawn_then_its_template_is_valid() {
        ProgressStyle::with_template(PROGRESS_TEMPLATE).expect("valid");
    }
}
