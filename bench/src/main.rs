//! The `payload-bench` binary: command line in, exit code out. Everything else is in the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use payload_bench::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("payload-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
