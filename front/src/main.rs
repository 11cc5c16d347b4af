//! The `payload-manager` binary: command line in, exit code out. Everything else is in the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use payload_drivers::gpu::Cuda;
use payload_front::cli::{Cli, Command};
use payload_front::config::Loaded;
use payload_front::nodes::{self, Task};
use payload_front::object::rebuild;
use payload_front::program::{self, load};
use payload_front::{database, demo, doctor};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("payload-manager: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    if cli.check_config {
        let loaded = checked(cli)?;
        print!("{}", loaded.to_yaml());
        return Ok(ExitCode::SUCCESS);
    }
    match cli.command() {
        Command::Serve => program::serve(cli, &Cuda).map(|()| ExitCode::SUCCESS),
        Command::Demo { files } => demo::run(&files).map(|()| ExitCode::SUCCESS),
        Command::DemoWorker { addr, .. } => demo::worker::run(&addr).map(|()| ExitCode::SUCCESS),
        Command::Backup { to } => {
            println!("{}", database::backup(&checked(cli)?.config.database, &to)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Migrate { check } => {
            let schema = database::migrate(&checked(cli)?.config, check)?;
            println!("{}", schema.said);
            Ok(if schema.is_current { ExitCode::SUCCESS } else { ExitCode::from(database::PENDING) })
        }
        Command::Nodes { remove, yes, json } => {
            let task = match &remove {
                None => Task::List { json },
                Some(name) if yes => Task::Remove(name),
                Some(name) => Task::Weigh(name),
            };
            let (said, is_done) = nodes::run(&checked(cli)?.config.database, task)?;
            print!("{said}");
            Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::from(database::PENDING) })
        }
        Command::RebuildCatalog { from } => {
            let rebuilt = rebuild::run(&checked(cli)?.config, &from)?;
            print!("{}", rebuilt.said());
            Ok(if rebuilt.passed_over.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Doctor { json } => Ok(doctor(cli, json)),
    }
}

/// As [`load`], with warnings printed and what this version cannot do refused.
fn checked(cli: &Cli) -> anyhow::Result<Loaded> {
    let loaded = load(cli)?;
    loaded.config.check_supported()?;
    warnings_print(&loaded);
    Ok(loaded)
}

fn warnings_print(loaded: &Loaded) {
    for warning in &loaded.warnings {
        eprintln!("payload-manager: warning: {warning}");
    }
}

fn doctor(cli: &Cli, json: bool) -> ExitCode {
    let checks = match load(cli) {
        Ok(loaded) => {
            warnings_print(&loaded);
            doctor::checks(&loaded.config)
        }
        Err(error) => vec![doctor::configuration_fault(&format!("{error:#}"))],
    };
    if json {
        print!("{}", doctor::to_json_lines(&checks));
    } else {
        print!("{}", doctor::to_table(&checks));
    }
    if doctor::has_fault(&checks) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
