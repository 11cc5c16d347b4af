//! `python/lease`: what a lease costs who reads with numpy.
//!
//! A script of the Python package does the passes and prints how long each took (`client/python/bench/lease.py`). Client and
//! server are awake and pinned as for `native/lease`. Skipped where no Python has the package: `tests/python` installs it
//! into `target/python`; PAYLOAD_PYTHON names another interpreter.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use payload_types::ByteCount;

use crate::context::{Context, ROUNDS, Skip};
use crate::floors::ipc;
use crate::histogram::{Latencies, Unit};
use crate::report::{Figure, Findings};
use crate::scratch::Scratch;
use crate::series::Series;
use crate::server::Server;

/// Room for its thousand payloads, several times.
const CAPACITY: ByteCount = ByteCount(512 << 20);

const SCRIPT: &str = include_str!("../../../client/python/bench/lease.py");

/// Acquire + read + release of a numpy view.
pub fn lease(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    context.require_own()?;
    if context.cores < 2 {
        return Err(Skip("two that are awake need two cores".to_owned()).into());
    }
    let python = interpreter()?;
    let scratch = Scratch::new(context.directory(), CAPACITY, CAPACITY)?;
    let mut config = OpenOptions::new().append(true).open(scratch.config())?;
    write!(config, "shards:\n  count: 1\n  spin: \"on\"\n")?;
    if let Some(core) = ipc::core(1) {
        writeln!(config, "  cores: [{core}]")?;
    }
    let server = Server::start_in(scratch)?;
    let core = ipc::core(0).map_or("-1".to_owned(), |core| core.to_string());
    let arguments = [
        server.address().to_owned(),
        core,
        ROUNDS.to_string(),
        context.slice(ROUNDS).as_secs_f64().to_string(),
    ];
    let said = Command::new(python).args(["-c", SCRIPT]).args(arguments).output()?;
    let complaint = String::from_utf8_lossy(&said.stderr);
    anyhow::ensure!(said.status.success(), "the script failed: {}", complaint.trim());
    let (mut series, mut all) = (Series::default(), Latencies::default());
    for round in String::from_utf8(said.stdout).context("the script prints numbers")?.lines() {
        let mut passes = Latencies::default();
        for nanos in round.split_whitespace() {
            passes.record(Duration::from_nanos(nanos.parse().context("the script prints numbers")?));
        }
        series.push(passes.p50(Unit::Microseconds));
        all.merge(&passes);
    }
    findings.put("python/lease", Figure::of(&series)?.with(&all, Unit::Microseconds));
    Ok(())
}

/// An interpreter that has the package.
fn interpreter() -> anyhow::Result<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|exe| {
        // target/release/payload-bench -> target/python
        Some(exe.parent()?.parent()?.join("python/bin/python"))
    });
    let named = std::env::var_os("PAYLOAD_PYTHON").map(PathBuf::from);
    let python =
        named.or_else(|| beside.filter(|python| python.exists())).unwrap_or_else(|| PathBuf::from("python3"));
    let import = Command::new(&python).args(["-c", "import payload_manager, numpy"]).output();
    if import.is_ok_and(|import| import.status.success()) {
        return Ok(python);
    }
    let reason = format!(
        "{} has no payload_manager and numpy; tests/python installs them, PAYLOAD_PYTHON names another interpreter",
        python.display()
    );
    Err(Skip(reason).into())
}
