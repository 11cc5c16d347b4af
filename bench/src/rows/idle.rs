//! `idle/cpu`: what a server costs while nobody wants anything from it.
//!
//! CPU time of all its threads, from /proc/PID/task/*/schedstat: nanoseconds, where /proc/PID/stat counts hundredths of
//! a second and would need minutes to tell 0.1 % from nothing.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use payload_client::Client;
use payload_types::ByteCount;

use crate::context::{Context, Skip};
use crate::report::{Figure, Findings};
use crate::rows::native;
use crate::server::Server;

/// gRPC connections, and native sessions, that are open and silent.
const CONNECTIONS: usize = 64;

/// After the last connection was made, until the server is as quiet as it gets.
const SETTLE: Duration = Duration::from_secs(1);

/// Of a server that stores nothing.
const CAPACITY: ByteCount = ByteCount(64 << 20);

/// See the module.
pub fn run(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    context.require_own()?;
    let server = Server::start(context, CAPACITY, CAPACITY)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut clients = Vec::new();
    let mut sessions = Vec::new();
    for _ in 0..CONNECTIONS {
        let client = runtime.block_on(Client::connect_grpc(server.address()))?;
        runtime.block_on(client.stats())?;
        clients.push(client);
    }
    if let Some(socket) = runtime.block_on(clients[0].node_info())?.native_socket {
        sessions = native::idle_sessions(&socket, CONNECTIONS)?;
    }
    let idle = |duration: Duration| runtime.block_on(async { tokio::time::sleep(duration).await });
    idle(SETTLE);
    // All of the time, not the median of its parts: what happens once in a while counts.
    let (started, before) = (Instant::now(), cpu_ns(server.pid())?);
    idle(Duration::from_secs_f64(context.seconds));
    let used_ns = cpu_ns(server.pid())?.saturating_sub(before);
    let value = used_ns as f64 / started.elapsed().as_nanos() as f64 * 100.0;
    // Still connected, or the server was not idle with clients but without.
    for client in &clients {
        runtime.block_on(client.stats()).context("an idle connection was lost")?;
    }
    for session in &sessions {
        anyhow::ensure!(session.is_open(), "an idle session was lost");
    }
    let note = format!(
        "{CONNECTIONS} gRPC connections, {} native sessions, {} µs of CPU time since the server's start",
        sessions.len(),
        (before + used_ns) / 1000
    );
    findings.put("idle/cpu", Figure { value, rounds: 1, ..Figure::default() }.noted(note));
    Ok(())
}

/// What all threads of a process have spent on CPUs. A thread that ended meanwhile takes its share with it.
pub(super) fn cpu_ns(pid: u32) -> anyhow::Result<u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).context("the server's process is gone")?;
    let mut sum = 0;
    for task in tasks {
        let path = task.context("the server's threads cannot be listed")?.path().join("schedstat");
        match fs::read_to_string(&path) {
            Ok(text) => {
                let first = text.split_whitespace().next().context("schedstat is empty")?;
                sum += first.parse::<u64>().context("schedstat is no number")?;
            }
            // A thread that has ended since it was listed.
            Err(error)
                if error.kind() == std::io::ErrorKind::NotFound
                    && Path::new("/proc/self/schedstat").exists() => {}
            Err(error) => return Err(Skip(format!("{} cannot be read: {error}", path.display())).into()),
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn given_a_process_that_works_when_looked_at_then_its_time_grows() {
        let mut busy = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("sh runs");
        let before = cpu_ns(busy.id()).expect("schedstat is there");
        let grown = (0..10_000).any(|_| {
            std::thread::sleep(Duration::from_millis(1));
            cpu_ns(busy.id()).expect("still there") > before + 1_000_000
        });
        busy.kill().expect("killed");
        busy.wait().expect("ended");
        assert!(grown, "ten seconds of work show");
    }
}
