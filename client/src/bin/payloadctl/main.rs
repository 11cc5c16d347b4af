//! `payloadctl`: the command line of Payload Manager. Friendly to people, plain to scripts.
//!
//! Each command family has a file with its arguments and its `run`; what they share is in `common` (ids, tiers,
//! durations), `view` (how payloads are shown), `output` (stdout, stderr) and `interrupt` (Ctrl-C).
//!
//!     arguments -> client (gRPC) -> view -> output: a table, or with --json one object a line
//!
//! Exit code: 0 when all was done, 1 when something was not (one sentence each on stderr, the rest is still done),
//! 2 for a wrong command line, 130 after Ctrl-C, 141 when nobody reads the output any more.
#![forbid(unsafe_code)]

mod common;
mod doctor;
mod find;
mod get;
mod interrupt;
mod lease;
mod lifecycle;
mod lineage;
mod list;
mod meta;
mod objects;
mod operations;
mod output;
mod progress;
mod put;
mod scrub;
mod stats;
mod stream;
mod tiering;
mod view;
mod who;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory, Parser, Subcommand};
use payload_client::{ADDRESS_DEFAULT, Client, ClientError};

use crate::output::Output;

/// Stores, reads, moves and lists payloads of a Payload Manager.
#[derive(Parser)]
#[command(name = "payloadctl", version, after_long_help = AFTER_HELP)]
struct Cli {
    /// Where the server listens.
    #[arg(long, global = true, env = "PAYLOAD_MANAGER_ADDR", default_value = ADDRESS_DEFAULT, value_name = "HOST:PORT")]
    addr: String,
    #[command(flatten)]
    who: who::Args,
    /// Print one JSON object a line instead of tables.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Sizes are written like 640, 64KiB, 8GiB or 10GB; durations like 500ms, 0.5s, 10m or 1h.

With --json, fields have the names of the contract; ids are UUID text, tiers and states lower-case words (ram, disk, \
gpu, object; allocated, active, spilling, durable, evicting, deleting, expired, deleted), checksums the 16 hexadecimal \
digits of the XXH3-64 or null, times RFC 3339 (or milliseconds since 1970 where the field's name ends in _ms).

Exit code: 0 when all was done, 1 when something was not (a sentence each on stderr), 2 for a wrong command line.";

#[derive(Subcommand)]
enum Command {
    /// Store files as payloads.
    Put(put::Args),
    /// Fetch payloads into files.
    Get(get::GetArgs),
    /// Write payloads to standard output.
    Cat(get::CatArgs),
    /// List all payloads, newest first.
    Ls(list::LsArgs),
    /// Find payloads by what they are and by their metadata, newest first.
    Find(find::FindArgs),
    /// Show everything about payloads.
    Stat(list::StatArgs),
    /// Reserve space, to be written by another program.
    Allocate(lifecycle::AllocateArgs),
    /// Take over an object that another program uploaded for an allocation on OBJECT.
    Import(objects::ImportArgs),
    /// Delete what earlier runs of the server began to put into the object store and no payload names.
    Sweep(objects::SweepArgs),
    /// Make allocated payloads readable and immutable.
    Commit(lifecycle::CommitArgs),
    /// Lease payloads for reading, and show where their bytes lie.
    Lease(lease::LeaseArgs),
    /// End leases.
    Release(lease::ReleaseArgs),
    /// Delete payloads.
    Rm(lifecycle::RmArgs),
    /// Bring payloads to a faster tier.
    Promote(tiering::PromoteArgs),
    /// Move payloads to a slower tier.
    Spill(tiering::SpillArgs),
    /// Bring payloads to a faster tier in the background.
    Prefetch(tiering::PrefetchArgs),
    /// Keep payloads where they are.
    Pin(tiering::PinArgs),
    /// Let pinned payloads be moved again.
    Unpin(tiering::UnpinArgs),
    /// Show how much each tier holds, and what keeps it.
    Stats,
    /// Show who leases and pins payloads.
    Holders(operations::HoldersArgs),
    /// Tell why payloads are where they are, and what would be evicted next.
    Explain(operations::ExplainArgs),
    /// Verify the bytes of payloads against their checksums.
    Scrub(scrub::Args),
    /// Attach metadata to payloads, and read them back.
    #[command(subcommand)]
    Meta(meta::MetaCommand),
    /// Say and show what payloads were made of.
    #[command(subcommand)]
    Lineage(lineage::LineageCommand),
    /// Append payloads to streams, read and follow them. A stream is named NAMESPACE/NAME.
    #[command(subcommand)]
    Stream(stream::StreamCommand),
    /// Check the server, and this machine's fitness to run one.
    Doctor,
    /// Print the completion script of a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut output = Output::new(cli.json);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime
        .context("cannot start the async runtime")
        .and_then(|runtime| runtime.block_on(run(cli, &mut output)));
    match result.and_then(|()| Ok(output.flush()?)) {
        Ok(()) => output.exit_code(),
        Err(error) => match error.downcast_ref::<ClientError>() {
            Some(client) if client.is_broken_pipe() => ExitCode::from(output::EXIT_BROKEN_PIPE),
            _ if error.is::<interrupt::Interrupted>() => ExitCode::from(interrupt::EXIT_INTERRUPTED),
            _ => {
                output.complain(&format!("{error:#}"));
                output.exit_code()
            }
        },
    }
}

async fn run(cli: Cli, output: &mut Output) -> anyhow::Result<()> {
    match cli.command {
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "payloadctl", output.stdout());
            return Ok(());
        }
        Command::Doctor => return doctor::run(&cli.addr, &cli.who.options()?, output).await,
        _ => {}
    }
    let client = Client::connect_with(&cli.addr, &cli.who.options()?).await?;
    match cli.command {
        Command::Put(args) => put::run(&client, output, args).await,
        Command::Get(args) => get::run_get(&client, output, args).await,
        Command::Cat(args) => get::run_cat(&client, output, args).await,
        Command::Ls(args) => list::run_ls(&client, output, args).await,
        Command::Find(args) => find::run(&client, output, args).await,
        Command::Stat(args) => list::run_stat(&client, output, args).await,
        Command::Allocate(args) => lifecycle::run_allocate(&client, output, args).await,
        Command::Import(args) => objects::run_import(&client, output, args).await,
        Command::Sweep(args) => objects::run_sweep(&client, output, args).await,
        Command::Commit(args) => lifecycle::run_commit(&client, output, args).await,
        Command::Lease(args) => lease::run_lease(&client, output, args).await,
        Command::Release(args) => lease::run_release(&client, output, args).await,
        Command::Rm(args) => lifecycle::run_rm(&client, output, args).await,
        Command::Promote(args) => tiering::run_promote(&client, output, args).await,
        Command::Spill(args) => tiering::run_spill(&client, output, args).await,
        Command::Prefetch(args) => tiering::run_prefetch(&client, output, args).await,
        Command::Pin(args) => tiering::run_pin(&client, output, args).await,
        Command::Unpin(args) => tiering::run_unpin(&client, output, args).await,
        Command::Stats => stats::run(&client, output).await,
        Command::Holders(args) => operations::run_holders(&client, output, args).await,
        Command::Scrub(args) => scrub::run(&client, output, args).await,
        Command::Explain(args) => operations::run_explain(&client, output, args).await,
        Command::Meta(command) => meta::run(&client, output, command).await,
        Command::Lineage(command) => lineage::run(&client, output, command).await,
        Command::Stream(command) => stream::run(&client, output, command).await,
        Command::Doctor | Command::Completions { .. } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_the_command_line_when_checked_by_clap_then_it_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn given_global_flags_when_anywhere_on_the_line_then_understood() {
        for line in [
            "payloadctl --json --addr h:1 stat X",
            "payloadctl stat --json X --addr h:1",
            "payloadctl stat X --addr=h:1 --json",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
            assert!(cli.json && cli.addr == "h:1", "{line}");
        }
    }

    #[test]
    fn given_several_ids_and_a_tier_when_promoted_then_the_last_word_is_the_tier() {
        let cli = Cli::try_parse_from(["payloadctl", "promote", "A", "B", "RAM", "--json"]).expect("valid");
        let Command::Promote(args) = cli.command else { panic!("promote") };
        assert_eq!(
            (args.ids.as_slice(), args.tier),
            (["A".to_owned(), "B".to_owned()].as_slice(), common::TierWord::Ram)
        );
    }
}
