//! The command line: which rows, for how long, where, and how to print them.
//!
//! Exit code: 0 when every row asked for was measured or skipped for a reason that lies outside this program (a
//! missed target is a finding, not a failure); 1 when a row failed; 2 for a wrong command line.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;

use crate::context::Context;
use crate::floors::echo;
use crate::interrupt;
use crate::report::{Findings, Printer, Spec};
use crate::rows::{self, FAMILIES, Family};

/// Seconds for each measured thing of a family.
const SECONDS_DEFAULT: f64 = 12.0;
/// The same with `--quick`: all rows stay below 3 minutes on two cores.
const SECONDS_QUICK: f64 = 6.0;

/// Measures Payload Manager against the floors of this machine.
#[derive(Parser, Clone, Debug)]
#[command(name = "payload-bench", version)]
pub struct Cli {
    /// `all`, `list`, or names of rows, like grpc/acquire.
    #[arg(value_name = "ROW", required_unless_present_any = ["echo_server", "memory_probe"])]
    rows: Vec<String>,

    /// Half the time and less data: all rows in under 3 minutes.
    #[arg(long)]
    quick: bool,

    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,

    /// Measures the gRPC rows against this running server (host:port) instead of one of our own.
    #[arg(long, value_name = "ADDR")]
    target: Option<String>,

    /// Seconds for each measured thing.
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,

    /// Where the disk floors and the server's root lie, in a directory that is removed at the end.
    #[arg(long, value_name = "DIR", default_value = ".")]
    data_dir: PathBuf,

    /// The floors' server: this program runs itself with it.
    #[arg(long, value_name = "MODE", hide = true)]
    echo_server: Option<echo::Mode>,

    /// The process that `memory/payload` measures, with a ttl or without: this program runs itself with it.
    #[arg(long, value_name = "TTL", hide = true)]
    memory_probe: Option<bool>,
}

impl Cli {
    /// Does what the command line says.
    ///
    /// # Errors
    /// When nothing can be measured at all: no scratch directory, no runtime.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        if let Some(mode) = self.echo_server {
            return echo::serve(mode).map(|()| ExitCode::SUCCESS);
        }
        if let Some(with_ttl) = self.memory_probe {
            return rows::memory_probe(with_ttl).map(|()| ExitCode::SUCCESS);
        }
        if self.rows == ["list"] {
            print!("{}", crate::report::list(rows::all()));
            return Ok(ExitCode::SUCCESS);
        }
        let asked = match asked(&self.rows) {
            Ok(asked) => asked,
            Err(sentence) => {
                eprintln!("payload-bench: {sentence}");
                return Ok(ExitCode::from(2));
            }
        };
        let seconds = self.seconds.unwrap_or(if self.quick { SECONDS_QUICK } else { SECONDS_DEFAULT });
        if !(0.01..=3600.0).contains(&seconds) {
            eprintln!("payload-bench: --seconds is {seconds}; give 0.01 to 3600");
            return Ok(ExitCode::from(2));
        }
        let context = Context::new(seconds, self.quick, &self.data_dir, self.target, with_floors(&asked))
            .context("the bench cannot start")?;
        interrupt::watch(context.directory().to_owned())?;
        measure(&context, &asked, self.json)
    }
}

/// The rows that were asked for, in the order of the tables.
fn asked(names: &[String]) -> Result<Vec<&'static Spec>, String> {
    if names == ["all"] {
        return Ok(rows::all().collect());
    }
    if let Some(unknown) = names.iter().find(|name| rows::all().all(|spec| spec.name != name.as_str())) {
        return Err(format!("`{unknown}` is no row; `payload-bench list` names them all"));
    }
    Ok(rows::all().filter(|spec| names.iter().any(|name| name == spec.name)).collect())
}

/// Their names, and those of the floors they are compared with.
fn with_floors(asked: &[&'static Spec]) -> BTreeSet<&'static str> {
    asked.iter().flat_map(|spec| [Some(spec.name), spec.floor]).flatten().collect()
}

fn measure(context: &Context, asked: &[&'static Spec], json: bool) -> anyhow::Result<ExitCode> {
    let mut printer = Printer::new(json);
    let mut failed = false;
    for Family { specs, run } in FAMILIES {
        let specs: Vec<_> =
            specs.iter().filter(|spec| asked.iter().any(|one| one.name == spec.name)).collect();
        if specs.is_empty() {
            continue;
        }
        let names: Vec<_> = specs.iter().map(|spec| spec.name).collect();
        printer.progress(&names.join(", "));
        let mut findings = Findings::default();
        if let Err(error) = run(context, &mut findings) {
            interrupt::wait_if_it_came();
            findings.absent_all(&names, &error);
        }
        failed |= findings.has_failure();
        for spec in specs {
            printer.line(&findings.line(spec, context.cores))?;
        }
    }
    printer.finish()?;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn given_the_definition_when_asserted_then_clap_accepts_it() {
        Cli::command().debug_assert();
        assert!(Cli::try_parse_from(["payload-bench"]).is_err(), "a row is required");
        assert!(Cli::try_parse_from(["payload-bench", "all", "--quick", "--json"]).is_ok());
    }

    #[test]
    fn given_names_when_chosen_then_their_floors_are_measured_too_and_unknown_ones_are_named() {
        let asked = asked(&["grpc/acquire".to_owned()]).expect("a row");
        assert_eq!(with_floors(&asked).into_iter().collect::<Vec<_>>(), ["grpc/acquire", "grpc/echo-hop"]);
        let sentence = super::asked(&["grpc/aquire".to_owned()]).expect_err("mistyped");
        assert!(sentence.contains("`grpc/aquire`") && sentence.contains("list"), "{sentence}");
    }
}
