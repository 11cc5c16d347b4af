//! `doctor`: is there a server, does it serve, and is this machine fit to run one?
//!
//!     server answers? --yes--> its health and tiers, a row each
//!           '--no--> a row saying so
//!     then `payload-manager doctor --json` (beside payloadctl, else in PATH): its rows, added
//!
//! Rows have the fields of `payload-manager doctor`: check, status (ok, warn, fault), detail, fix. A missing server is a
//! warning: this machine may be a client's. Exit code 1 only on a fault, or when nothing at all could be checked.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use payload_client::{Client, ClientError, ConnectOptions};
use payload_types::reply::TierStats;
use payload_types::{ByteCount, PerTier, Tier};
use payload_wire::pb::operations::v1::ArenaAccounting;
use serde::{Deserialize, Serialize};

use crate::common::shown;
use crate::output::{Column, Output, Row, left};
use crate::view::word;

const SERVER_BINARY: &str = "payload-manager";

/// One check.
#[derive(Serialize, Deserialize, Debug)]
struct Check {
    check: String,
    status: String,
    #[serde(default)]
    detail: String,
    #[serde(default)]
    fix: String,
}

const OK: &str = "ok";
const WARN: &str = "warn";
const FAULT: &str = "fault";

impl Check {
    fn new(check: &str, status: &str, detail: String, fix: &str) -> Self {
        Self { check: check.to_owned(), status: status.to_owned(), detail, fix: fix.to_owned() }
    }

    fn is_fault(&self) -> bool {
        self.status.eq_ignore_ascii_case(FAULT)
    }
}

impl Row for Check {
    const COLUMNS: &'static [Column] =
        &[left("CHECK", 16), left("STATUS", 6), left("DETAIL", 0), left("FIX", 0)];
    const LINE_WIDTH: Option<u16> = Some(120);
    fn cells(&self) -> Vec<String> {
        vec![self.check.clone(), self.status.clone(), self.detail.clone(), self.fix.clone()]
    }
}

/// Checks the server, then the machine.
pub async fn run(address: &str, options: &ConnectOptions, output: &mut Output) -> anyhow::Result<()> {
    let mut checks = check_server(address, options).await;
    let has_server = checks.first().is_some_and(|check| check.status == OK);
    match find_binary() {
        Some(binary) => checks.extend(check_machine(&binary)?),
        None if has_server => checks.push(Check::new(
            "machine",
            WARN,
            format!(
                "{SERVER_BINARY} is neither beside payloadctl nor in PATH, so this machine was not checked"
            ),
            "run `payload-manager doctor` where the server is installed",
        )),
        None => {
            let why = checks.first().map(|check| check.detail.clone()).unwrap_or_default();
            anyhow::bail!(
                "nothing could be checked: {why}, and {SERVER_BINARY} is neither beside payloadctl nor in PATH; start a server, or install {SERVER_BINARY} here"
            );
        }
    }
    for check in &checks {
        output.row(check)?;
    }
    let faults: Vec<&str> =
        checks.iter().filter(|check| check.is_fault()).map(|check| check.check.as_str()).collect();
    if !faults.is_empty() {
        output.flush()?;
        output.complain(&format!("doctor found a fault: {}", faults.join(", ")));
    }
    Ok(())
}

/// What the server says of itself.
async fn check_server(address: &str, options: &ConnectOptions) -> Vec<Check> {
    let client = match Client::connect_grpc_with(address, options).await {
        Ok(client) => client,
        Err(ClientError::Connect { address, reason }) => {
            let detail = format!("no server answers at {address} ({reason})");
            return vec![Check::new(
                "server",
                WARN,
                detail,
                "start `payload-manager`, or give its address with --addr",
            )];
        }
        Err(error) => {
            return vec![Check::new("server", FAULT, error.to_string(), "give host:port with --addr")];
        }
    };
    let health = match client.is_serving().await {
        Ok(true) => Check::new("server", OK, format!("{address} is serving"), ""),
        Ok(false) => Check::new(
            "server",
            FAULT,
            format!("{address} answers, and is not serving"),
            "read the server's log",
        ),
        Err(error) => Check::new("server", FAULT, error.to_string(), "check that it is a Payload Manager"),
    };
    let tiers = match client.stats().await {
        Ok(tiers) => Check::new("tiers", OK, describe(&tiers), ""),
        Err(error) => Check::new("tiers", FAULT, error.to_string(), "read the server's log"),
    };
    // A server that tells nothing of it serves no native sessions.
    let arenas = client.accounting().await.ok().and_then(|answer| answer.arenas);
    [health, tiers].into_iter().chain(arenas.as_ref().map(check_arenas)).collect()
}

/// Memory of native sessions.
fn check_arenas(arenas: &ArenaAccounting) -> Check {
    const NAME: &str = "arenas";
    let detail = format!(
        "{} memories of {}, {} of {} made in large pages; {} got fewer than were asked for",
        arenas.memories,
        ByteCount(arenas.memory_bytes),
        ByteCount(arenas.large_bytes_total),
        ByteCount(arenas.made_bytes_total),
        arenas.large_refused_total
    );
    if arenas.memories_held > 0 {
        let detail = format!("{detail}; {} are held by clients that did not map them", arenas.memories_held);
        return Check::new(
            NAME,
            WARN,
            detail,
            "end the programs that hang, or that do not read their socket",
        );
    }
    if arenas.makes_failed_total > 0 {
        let detail = format!("{detail}; {} could not be made", arenas.makes_failed_total);
        return Check::new(NAME, WARN, detail, "read the server's log; raise the limit that it names");
    }
    Check::new(NAME, OK, detail, "")
}

fn describe(tiers: &PerTier<TierStats>) -> String {
    let used = Tier::ALL.into_iter().filter(|tier| tiers[*tier] != TierStats::default());
    let parts: Vec<String> = used
        .map(|tier| {
            format!("{} {} payloads {}", word(tier), tiers[tier].payloads, ByteCount(tiers[tier].bytes))
        })
        .collect();
    if parts.is_empty() { "no payloads".to_owned() } else { parts.join(", ") }
}

/// What `payload-manager doctor` says of this machine.
fn check_machine(binary: &Path) -> anyhow::Result<Vec<Check>> {
    let result = Command::new(binary).args(["doctor", "--json"]).output();
    let ran = result.map_err(|error| anyhow::anyhow!("cannot run {}: {error}", shown(binary)))?;
    let mut checks = parse_checks(&String::from_utf8_lossy(&ran.stdout));
    if checks.is_empty() || (!ran.status.success() && !checks.iter().any(Check::is_fault)) {
        let said = String::from_utf8_lossy(&ran.stderr);
        let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned();
        let detail = format!("`{} doctor` ended with {}: {last}", shown(binary), ran.status);
        checks.push(Check::new("machine", FAULT, detail, "run it by hand"));
    }
    Ok(checks)
}

/// The rows among the lines of `payload-manager doctor --json`; log lines may stand between them.
fn parse_checks(text: &str) -> Vec<Check> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The server's program: beside this one, else in PATH.
fn find_binary() -> Option<PathBuf> {
    let beside = env::current_exe().ok().and_then(|path| Some(path.parent()?.to_owned()));
    let path = env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain(env::split_paths(&path))
        .map(|dir| dir.join(SERVER_BINARY))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_the_servers_rows_when_parsed_then_other_lines_are_passed_over() {
        let text = r#"2026-11-22 INFO hello
{"check":"kernel","status":"ok","detail":"6.18","fix":""}
{"check":"gpu","status":"FAULT","detail":"gone"}
{"other":1}"#;
        let checks = parse_checks(text);
        assert_eq!(checks.len(), 2, "{checks:?}");
        assert!(!checks[0].is_fault() && checks[1].is_fault());
        assert_eq!(checks[1].cells().len(), Check::COLUMNS.len());
    }

    #[test]
    fn given_memory_that_somebody_holds_on_to_when_checked_then_it_is_warned_of() {
        let calm = ArenaAccounting { memories: 2, memory_bytes: 8192, ..ArenaAccounting::default() };
        assert_eq!(check_arenas(&calm).status, OK);
        let troubles =
            [ArenaAccounting { memories_held: 1, ..calm }, ArenaAccounting { makes_failed_total: 1, ..calm }];
        for trouble in troubles {
            let check = check_arenas(&trouble);
            assert!(check.status == WARN && !check.fix.is_empty(), "{check:?}");
        }
    }

    #[test]
    fn given_stats_when_described_then_only_used_tiers_are_named() {
        let mut tiers = PerTier::default();
        assert_eq!(describe(&tiers), "no payloads");
        tiers[Tier::Ram] = TierStats { payloads: 3, bytes: 4096, ..TierStats::default() };
        assert_eq!(describe(&tiers), "ram 3 payloads 4 KiB");
    }
}
