//! `crash --rounds N --from SEED`: kills a real server N times under load, and verifies it after every restart.
//!
//! Prints how often everything happened. A failure prints its seed and round, what was broken and the server's log;
//! `--keep` leaves the data directory and the segments behind. Exit code 0 only when every promise was kept.
//! `crash pressure` puts more than fits instead; `crash worker ADDRESS SEED` is one of the client processes.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use payload_tests::crash::pressure::Pressure;
use payload_tests::crash::watch::Peak;
use payload_tests::crash::{self, Failure, Options, Passed};
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
    /// Puts far more than memory and disk hold, at full speed, and kills the server meanwhile.
    Pressure {
        /// `storage.ram.capacity_bytes`, in MiB.
        #[arg(long, default_value_t = 256)]
        ram_mib: u64,
        /// `storage.disk.capacity_bytes`, in MiB.
        #[arg(long, default_value_t = 1024)]
        disk_mib: u64,
        /// What is put in all, in MiB.
        #[arg(long, default_value_t = 10 * 1024)]
        put_mib: u64,
        /// How often the server is killed.
        #[arg(long, default_value_t = 3)]
        kills: u64,
        /// The seed.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// After a failure, leave the data directory and the segments.
        #[arg(long)]
        keep: bool,
    },
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
    let Arguments { role, rounds, from, seconds_per_round, keep } = Arguments::parse();
    let load_max = Duration::from_secs_f64(seconds_per_round);
    let options = Options { rounds, load_max, patience: PATIENCE, keep };
    match role {
        Some(Role::Worker { address, seed }) => match crash::load::run(&address, seed) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("worker: {error:#}");
                ExitCode::FAILURE
            }
        },
        Some(Role::Pressure { ram_mib, disk_mib, put_mib, kills, from, keep }) => {
            let capacity = Peak { memory: ram_mib << 20, disk: disk_mib << 20 };
            let pressure = Pressure { capacity, put_bytes: put_mib << 20, kills };
            told(from, || crash::press(from, Options { keep, ..options }, pressure))
        }
        None => told(from, || crash::run(from, options)),
    }
}

fn told(seed: u64, run: impl FnOnce() -> Result<Passed, Box<Failure>>) -> ExitCode {
    let start = Instant::now();
    match run() {
        Ok(Passed { tally, peak: Peak { memory, disk } }) => {
            for (name, count) in &tally {
                println!("{count:>10}  {name}");
            }
            let (memory, disk) = (memory >> 20, disk >> 20);
            let took = start.elapsed();
            println!(
                "seed {seed}, {took:?}: every promise was kept; at most {memory} MiB in memory, {disk} MiB on disk"
            );
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}
