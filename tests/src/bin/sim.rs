//! `sim --seeds N --from S [--steps K] [--verbose SEED]`: runs seeds of the simulator until one fails.
//!
//! Prints how often each situation was met. A failure prints its seed, what was broken, and the last things that
//! happened; `--verbose SEED` prints all of that seed's run. Exit code 0 only when every seed passed.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use payload_tests::sim::{self, Canary, Coverage, Options};

/// Runs whole nodes in virtual time and checks every promise after every step.
#[derive(Parser)]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Tasks of a run before its clients stop.
    #[arg(long, default_value_t = sim::STEPS_DEFAULT)]
    steps: u64,
    /// Run only this seed and print everything that happens.
    #[arg(long)]
    verbose: Option<u64>,
    /// Many payloads on a full disk, each in a file of its own.
    #[arg(long)]
    crammed: bool,
    /// Plant this bug, by its name in `Canary`.
    #[arg(long, value_parser = canary)]
    canary: Option<Canary>,
    /// Go on after a failure, and print one line for each.
    #[arg(long)]
    keep_going: bool,
}

fn canary(name: &str) -> Result<Canary, String> {
    let found = Canary::ALL.into_iter().find(|canary| format!("{canary:?}") == name);
    found.ok_or_else(|| format!("{name} is none of {:?}", Canary::ALL))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (from, seeds) = arguments.verbose.map_or((arguments.from, arguments.seeds), |seed| (seed, 1));
    let options = Options {
        steps: arguments.steps,
        canary: arguments.canary,
        verbose: arguments.verbose.is_some(),
        crammed: arguments.crammed,
        ..Options::default()
    };
    if arguments.keep_going {
        // A panic inside a shard is reported with its seed; the hook would print it without.
        std::panic::set_hook(Box::new(|_| {}));
    }
    let (mut coverage, mut tasks, mut failures) = (Coverage::default(), 0, 0);
    for seed in from..from + seeds {
        match sim::run(seed, options) {
            Ok(passed) => {
                coverage.add(&passed.coverage);
                tasks += passed.tasks;
            }
            Err(failure) if arguments.keep_going => {
                failures += 1;
                println!(
                    "seed {seed} task {}: {:?}: {}",
                    failure.task, failure.breach.rule, failure.breach.detail
                );
            }
            Err(failure) => {
                eprintln!("{failure}");
                return ExitCode::FAILURE;
            }
        }
    }
    for (name, count) in coverage.counts() {
        println!("{count:>10}  {name}");
    }
    println!("{seeds} seeds from {from}, {tasks} tasks, {failures} failures");
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
