//! The command line of `payload-manager`. Parsing only; main does what it says.

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

/// Payload Manager: leases on bytes that stay where they are.
///
/// Without a command it serves. `payload-manager FILE` serves with that configuration.
#[derive(Parser, Clone, PartialEq, Eq, Debug)]
#[command(name = "payload-manager", version, args_conflicts_with_subcommands = false)]
pub struct Cli {
    /// The YAML configuration; without one the embedded defaults hold.
    #[arg(long, value_name = "FILE", global = true, env = "PAYLOAD_MANAGER_CONFIG")]
    pub config: Option<PathBuf>,

    /// Where the catalog and the disk tier lie unless the configuration says otherwise.
    #[arg(
        long,
        value_name = "DIR",
        global = true,
        default_value = "./payload-data",
        env = "PAYLOAD_MANAGER_DATA_DIR"
    )]
    pub data_dir: PathBuf,

    /// Validate the configuration, print the effective one, and exit.
    #[arg(long, global = true)]
    pub check_config: bool,

    /// The same as --config FILE.
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The commands.
#[derive(Subcommand, Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Serve until SIGTERM or SIGINT (this is also what happens without a command).
    Serve,
    /// Show the whole round on this machine: put, lease, read in place, spill, promote, verify.
    Demo {
        /// What to put; without any, files of this repository and generated samples.
        #[arg(value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Check whether this machine and this configuration can serve.
    Doctor {
        /// One JSON object a line instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Copy the catalog to a new file, also while a server uses it (SQLite; for PostgreSQL use pg_dump).
    Backup {
        /// The copy; it must not be there yet.
        #[arg(value_name = "FILE")]
        to: PathBuf,
    },
    /// Bring the catalog's schema up to date, as every start does, and exit.
    Migrate {
        /// Change nothing: exit code 0 when there is nothing to do, 3 when a start would migrate, naming what.
        #[arg(long)]
        check: bool,
    },
    /// List the nodes that share the catalog, or remove one that is gone for good (PostgreSQL).
    Nodes {
        /// The name of the node to remove, with all that the catalog keeps of its payloads.
        #[arg(long, value_name = "NODE")]
        remove: Option<String>,
        /// Remove it; without this, say what would be forgotten, and exit with code 3.
        #[arg(long, requires = "remove")]
        yes: bool,
        /// One JSON object a line instead of a table.
        #[arg(long, conflicts_with = "remove")]
        json: bool,
    },
    /// Fill a new, empty catalog from the sidecars of an object store, when the old one is lost.
    RebuildCatalog {
        /// Where the objects lie: s3://bucket/prefix, file:///directory, ...; spoken to as storage.object says.
        #[arg(long, value_name = "URL")]
        from: String,
    },
    /// The demo's second process: leases payloads and reads them in place.
    #[command(hide = true)]
    DemoWorker {
        /// The server's `host:port`.
        addr: String,
        /// What to read: payload ids.
        ids: Vec<String>,
    },
}

impl Cli {
    /// The command; serving is the default.
    pub fn command(&self) -> Command {
        self.command.clone().unwrap_or(Command::Serve)
    }

    /// The configuration file, however it was given.
    ///
    /// # Errors
    /// A sentence, when two are given, or when the one given without `--config` does not exist: then it was
    /// most likely meant as a command.
    pub fn config_file(&self) -> Result<Option<&Path>, String> {
        match (&self.config, &self.file) {
            (Some(config), Some(file)) => Err(format!(
                "two configurations are given, {} and {}; give one",
                config.display(),
                file.display()
            )),
            (None, Some(file)) if !file.exists() => Err(format!(
                "`{}` is neither a command (serve, demo, doctor, backup, migrate, nodes, rebuild-catalog) nor a configuration file",
                file.display()
            )),
            (config, file) => Ok(config.as_deref().or(file.as_deref())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["payload-manager"], line].concat())
    }

    fn file_of(line: &[&str]) -> Result<Option<PathBuf>, String> {
        parse(line).expect("it parses").config_file().map(|file| file.map(Path::to_path_buf))
    }

    #[test]
    fn given_the_definition_when_asserted_then_clap_accepts_it() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn given_no_arguments_when_parsed_then_it_serves_with_defaults() {
        let cli = parse(&[]).expect("it parses");
        assert_eq!(cli.command(), Command::Serve);
        assert_eq!((cli.data_dir, cli.check_config), (PathBuf::from("./payload-data"), false));
    }

    #[test]
    fn given_flags_before_or_after_a_command_when_parsed_then_they_hold() {
        for line in [
            &["--data-dir", "d", "--check-config", "--config", "f", "doctor", "--json"][..],
            &["doctor", "--json", "--data-dir", "d", "--check-config", "--config", "f"],
        ] {
            let cli = parse(line).expect("it parses");
            assert_eq!(cli.command(), Command::Doctor { json: true }, "{line:?}");
            assert_eq!((cli.data_dir.as_path(), cli.check_config), (Path::new("d"), true), "{line:?}");
            assert_eq!(cli.config_file(), Ok(Some(Path::new("f"))));
        }
    }

    #[test]
    fn given_a_file_without_a_flag_when_parsed_then_it_is_the_configuration() {
        let file = tempfile::NamedTempFile::new().expect("the temporary directory is writable");
        let path = file.path().to_str().expect("UTF-8");
        assert_eq!(file_of(&[path]), Ok(Some(path.into())));
        assert_eq!(file_of(&[path, "--check-config"]), Ok(Some(path.into())));
        assert_eq!(
            file_of(&["--config", "missing.yaml"]),
            Ok(Some("missing.yaml".into())),
            "loading reports it"
        );
        assert!(file_of(&[path, "--config", path]).is_err());
    }

    #[test]
    fn given_a_mistyped_command_when_parsed_then_the_sentence_names_the_commands() {
        let sentence = file_of(&["serv"]).expect_err("no such file");
        assert!(
            sentence.contains("serve, demo, doctor, backup, migrate, nodes, rebuild-catalog"),
            "{sentence}"
        );
    }

    #[test]
    fn given_what_is_to_be_done_with_the_catalog_when_parsed_then_it_is_no_configuration() {
        let cli = parse(&["--data-dir", "d", "backup", "copy.db"]).expect("it parses");
        assert_eq!((cli.command(), cli.file), (Command::Backup { to: "copy.db".into() }, None));
        assert_eq!(
            parse(&["migrate"]).map(|cli| cli.command()).ok(),
            Some(Command::Migrate { check: false })
        );
        let check = parse(&["migrate", "--check"]).expect("it parses");
        assert_eq!(check.command(), Command::Migrate { check: true });
        assert!(parse(&["backup"]).is_err(), "a backup needs a name");
    }

    #[test]
    fn given_demo_files_when_parsed_then_they_are_the_demos() {
        let cli = parse(&["demo", "a", "b"]).expect("it parses");
        assert_eq!(cli.command(), Command::Demo { files: vec!["a".into(), "b".into()] });
        assert_eq!(cli.file, None);
    }
}
