//! Ctrl-C: nothing of ours may be left in /dev/shm or in --data-dir, where it would take gibibytes.
//!
//! The terminal sends SIGINT to the servers, too; they end by themselves, and the echoes
//! when their standard input closes.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::scratch;

/// The servers' time to end before what they leave is removed.
const SERVERS_END: Duration = Duration::from_millis(500);

/// As a shell reports a program that SIGINT ended: 128 + 2.
const EXIT_INTERRUPTED: i32 = 130;

/// From now on SIGINT removes `directory` and the segments of this process, and ends it.
///
/// # Errors
/// When the system refuses a thread or the signal.
pub fn watch(directory: PathBuf) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Taken over before this returns.
    let entered = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be taken over")?;
    drop(entered);
    let body = move || {
        if runtime.block_on(interrupt.recv()).is_some() {
            std::thread::sleep(SERVERS_END);
            scratch::remove_segments(&scratch::prefix_of_process(std::process::id()));
            drop(std::fs::remove_dir_all(&directory));
            std::process::exit(EXIT_INTERRUPTED);
        }
    };
    std::thread::Builder::new()
        .name("bench-interrupt".to_owned())
        .spawn(body)
        .context("no thread for Ctrl-C")?;
    Ok(())
}
