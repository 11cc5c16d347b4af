//! SIGINT and SIGTERM: no process of ours may be left, and nothing in /dev/shm or --data-dir, where it would take
//! gibibytes.
//!
//! The echoes end by themselves when their standard input closes.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::{scratch, server};

/// The server's time to end before what it leaves is removed.
const SERVER_ENDS: Duration = Duration::from_millis(500);

/// As a shell reports a program that a signal ended: 128 + its number.
const EXIT_SIGNAL: i32 = 128;

static CAME: AtomicBool = AtomicBool::new(false);

/// Never returns once a signal came: what fails from then on fails because of it, and is not to be reported.
pub fn wait_if_it_came() {
    while CAME.load(Ordering::Relaxed) {
        std::thread::park();
    }
}

/// From now on SIGINT and SIGTERM end the server, remove `directory` and the segments, and end this process.
///
/// # Errors
/// When the system refuses a thread or the signal.
pub fn watch(directory: PathBuf) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Taken over before this returns.
    let entered = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be taken over")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be taken over")?;
    drop(entered);
    let body = move || {
        let kind = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => SignalKind::interrupt(),
                _ = terminate.recv() => SignalKind::terminate(),
            }
        });
        CAME.store(true, Ordering::Relaxed);
        server::running_ask_to_end();
        std::thread::sleep(SERVER_ENDS);
        scratch::remove_segments(&scratch::prefix_of_process(std::process::id()));
        drop(std::fs::remove_dir_all(&directory));
        std::process::exit(EXIT_SIGNAL + kind.as_raw_value());
    };
    std::thread::Builder::new()
        .name("bench-interrupt".to_owned())
        .spawn(body)
        .context("no thread for signals")?;
    Ok(())
}
