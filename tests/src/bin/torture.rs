//! `torture --seconds N --from SEED`: direct leases between real processes that are killed, stopped and hostile.
//!
//! Prints how often everything happened. `--bug NAME` plants one, which must be found. Exit code 0 only when nobody read
//! another's bytes under a valid lease.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use payload_tests::torture::Bug;
use payload_tests::torture::reader;
use payload_tests::torture::server::{self, Ended, Options};

/// Direct leases between real processes: readers that are killed and stopped, and a server that uses blocks again at once.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    /// How long.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Reader processes at a time; one more is hostile.
    #[arg(long, default_value_t = 3)]
    readers: usize,
    /// The seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// What is planted.
    #[arg(long)]
    bug: Option<Bug>,
}

#[derive(Subcommand)]
enum Role {
    /// One of the reading processes.
    #[command(hide = true)]
    Reader {
        directory: PathBuf,
        session: u32,
        seed: u64,
        #[arg(long)]
        bug: Option<Bug>,
    },
    /// The hostile one.
    #[command(hide = true)]
    Hostile { directory: PathBuf, session: u32, seed: u64 },
}

fn main() -> anyhow::Result<ExitCode> {
    let Arguments { role, seconds, readers, from, bug } = Arguments::parse();
    let code = match role {
        Some(Role::Reader { directory, session, seed, bug }) => reader::run(&directory, session, seed, bug)?,
        Some(Role::Hostile { directory, session, seed }) => reader::be_hostile(&directory, session, seed)?,
        None => {
            let options = Options { duration: Duration::from_secs_f64(seconds), readers, bug };
            let (tally, code) = match server::run(std::env::current_exe()?, from, options)? {
                Ended::Whole(tally) => (tally, 0),
                Ended::Breached(tally) => (tally, 1),
            };
            for (name, count) in &tally {
                println!("{count:>12}  {name}");
            }
            let what = if code == 0 { "nobody read another's bytes" } else { "a reader was wronged" };
            println!("seed {from}: {what}");
            code
        }
    };
    Ok(ExitCode::from(code as u8))
}
