//! `crash --rounds N --from SEED`: kills a real server N times under load, and verifies it after every restart.
//!
//! Prints how often everything happened. A failure prints its seed and round, what was broken and the server's log;
//! `--keep` leaves the data directory and the segments behind. Exit code 0 only when every promise was kept.
//! `crash worker ADDRESS SEED` is one of its client processes.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use payload_tests::crash::{self, Options};
use payload_tests::server::PATIENCE;

/// Kills a real server under load, again and again, and verifies every acknowledged payload after each restart.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    /// How many rounds; each ends with a kill.
    #[arg(long, default_value_t = 50)]
    rounds: u64,
    /// The seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// The longest load of a round, in seconds.
    #[arg(long, default_value_t = 0.5)]
    seconds_per_round: f64,
    /// After a failure, leave the data directory and the segments.
    #[arg(long)]
    keep: bool,
}

#[derive(Subcommand)]
enum Role {
    /// A client process: payloads on standard input, facts on standard output.
    #[command(hide = true)]
    Worker {
        /// The server's, `host:port`.
        address: String,
        /// What it does.
        seed: u64,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Role::Worker { address, seed }) = arguments.role {
        return match crash::load::run(&address, seed) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("worker: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let load_max = Duration::from_secs_f64(arguments.seconds_per_round);
    let options = Options { rounds: arguments.rounds, load_max, patience: PATIENCE, keep: arguments.keep };
    let start = Instant::now();
    match crash::run(arguments.from, options) {
        Ok(passed) => {
            for (name, count) in &passed.tally {
                println!("{count:>10}  {name}");
            }
            println!(
                "seed {}, {} rounds in {:?}: every promise was kept; at most {} MiB in memory, {} MiB on disk",
                arguments.from,
                arguments.rounds,
                start.elapsed(),
                passed.peak.memory >> 20,
                passed.peak.disk >> 20
            );
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}
