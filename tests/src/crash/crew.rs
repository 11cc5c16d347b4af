//! The driver's side of the client processes (`load`): starts them, listens to them, and lets them go.
//!
//! ```text
//! Worker::start --ledger's payloads, go--> process --Fact lines--> thread --note--> Ledger
//!                                                       idle, checked --channel--> Worker::is_idle, wait_idle, release
//! ```
//! A worker is over when its pipe ends: then every fact that it wrote has been noted.

use std::io::{BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::fact::Fact;
use super::ledger::{Breach, Ledger, Rule};
use crate::server::{PATIENCE, program};

/// A client process.
pub struct Worker {
    child: Child,
    tasks: Option<ChildStdin>,
    milestones: Receiver<Fact>,
    is_idle: bool,
    listener: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts one at a server, and tells it which payloads there are.
    ///
    /// # Panics
    /// When the program is missing.
    pub fn start(address: &str, seed: u64, ledger: &Arc<Mutex<Ledger>>) -> Self {
        let mut child = Command::new(program("crash"))
            .args(["worker", address, &seed.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a client process starts");
        let mut tasks = child.stdin.take().expect("piped");
        let mut text: String = {
            let ledger = ledger.lock().expect("nobody panicked");
            ledger.known().map(|known| format!("{}\n", Fact::Allocated(known.allocated))).collect()
        };
        text.push_str("go\n");
        // One that has died already is noticed when its facts end.
        let _heard = tasks.write_all(text.as_bytes());
        let out = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, milestones) = mpsc::sync_channel(2);
        let ledger = Arc::clone(ledger);
        let listener = std::thread::spawn(move || listen(out, &ledger, &sender));
        Self { child, tasks: Some(tasks), milestones, is_idle: false, listener: Some(listener) }
    }

    /// True when it has stopped sending.
    pub fn is_idle(&mut self) -> bool {
        self.is_idle = self.is_idle || !matches!(self.milestones.try_recv(), Err(mpsc::TryRecvError::Empty));
        self.is_idle
    }

    /// Waits until it has noticed that the server is gone.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait_idle(&mut self) -> Result<(), Breach> {
        match self.is_idle || self.milestones.recv_timeout(PATIENCE) == Ok(Fact::Idle) {
            true => self.is_idle = true,
            false => {
                return Err(Breach::new(Rule::Answers, "a client still waits for a server that is dead"));
            }
        }
        Ok(())
    }

    /// Lets it compare what it still has mapped, and end.
    ///
    /// # Errors
    /// When it does not come to an end.
    pub fn release(mut self) -> Result<(), Breach> {
        drop(self.tasks.take());
        match self.milestones.recv_timeout(PATIENCE) {
            Ok(Fact::Checked) => Ok(()),
            other => Err(Breach::new(Rule::Answers, format!("a client did not end well: {other:?}"))),
        }
    }

    /// Ends it as a crash would; what it wrote is noted.
    pub fn kill(self) {
        drop(self);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _reaped = self.child.wait();
        if let Some(listener) = self.listener.take() {
            drop(listener.join());
        }
    }
}

fn listen(out: impl std::io::BufRead, ledger: &Mutex<Ledger>, milestones: &SyncSender<Fact>) {
    for line in out.lines().map_while(Result::ok) {
        match line.parse::<Fact>() {
            Ok(fact @ (Fact::Idle | Fact::Checked)) => drop(milestones.send(fact)),
            Ok(fact) => ledger.lock().expect("nobody panicked").note(fact),
            Err(said) => ledger.lock().expect("nobody panicked").break_rule(Rule::Answers, said),
        }
    }
}
