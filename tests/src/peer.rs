//! A v1 client in a process of its own (`tests/src/bin/peer.rs`), for tests: starts it, gives it tasks, reads its answers.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use payload_wire::pb::core::v1::PayloadId;
use xxhash_rust::xxh3::xxh3_64;

use crate::server::{Server, program};

/// The process; it is killed when this is dropped.
pub struct Peer {
    child: Child,
    tasks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts one that talks to `server`.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(server: &Server) -> Self {
        let mut child = Command::new(program("peer"))
            .arg(&server.address)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a second process");
        let (tasks, answers) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        Self { child, tasks, answers: BufReader::new(answers) }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives it a task, and waits for the answer; empty when it panicked.
    pub fn ask(&mut self, task: &str) -> String {
        writeln!(self.tasks, "{task}").expect("it listens");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("it answers");
        answer.trim().to_owned()
    }

    /// A task about one payload.
    pub fn ask_bytes(&mut self, verb: &str, id: &PayloadId) -> String {
        let name: String = id.value.iter().map(|byte| format!("{byte:02x}")).collect();
        self.ask(&format!("{verb} {name}"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// What it answers of bytes read on a tier.
pub fn answer(tier: i32, bytes: &[u8]) -> String {
    format!("{tier} {} {:016x}", bytes.len(), xxh3_64(bytes))
}
