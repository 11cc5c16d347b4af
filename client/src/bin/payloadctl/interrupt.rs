//! Ctrl-C for commands that hold something on the server: the first one makes the present transfer fail, so that its
//! allocation is deleted or its lease released; the second ends the program at once.
//!
//! Used by `put`, `get`, `cat` and `lease --hold`; the others hold nothing and simply end.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// As a shell reports a program that SIGINT ended: 128 + 2.
pub const EXIT_INTERRUPTED: u8 = 130;

/// The run was ended by a signal, and what it held was given back.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Whether SIGINT or SIGTERM came.
#[derive(Clone, Default)]
pub struct Interrupt {
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    fired: AtomicBool,
    notify: Notify,
}

impl Interrupt {
    /// Takes both signals over.
    pub fn install() -> io::Result<Self> {
        let interrupt = Self::default();
        let mut sigint = signal(SignalKind::interrupt())?;
        let mut sigterm = signal(SignalKind::terminate())?;
        let told = interrupt.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = sigint.recv() => {}
                    _ = sigterm.recv() => {}
                }
                if told.state.fired.swap(true, Ordering::Relaxed) {
                    std::process::exit(EXIT_INTERRUPTED.into());
                }
                told.state.notify.notify_waiters();
            }
        });
        Ok(interrupt)
    }

    /// An error once a signal came.
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.state.fired.load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
    }

    /// Waits for a signal.
    pub async fn wait(&self) {
        // Registered before the flag is looked at, so that no signal falls between the two.
        let notified = self.state.notify.notified();
        if self.check().is_ok() {
            notified.await;
        }
    }

    /// `inner`, failing once a signal came.
    pub fn guard<T>(&self, inner: T) -> Guarded<T> {
        Guarded { inner, interrupt: self.clone() }
    }
}

/// See [`Interrupt::guard`].
pub struct Guarded<T> {
    inner: T,
    interrupt: Interrupt,
}

impl<T: Read> Read for Guarded<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.interrupt.check().map_err(io::Error::other)?;
        self.inner.read(buffer)
    }
}

impl<T: Write> Write for Guarded<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.interrupt.check().map_err(io::Error::other)?;
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_signal_when_a_guarded_stream_is_used_then_it_fails() {
        let interrupt = Interrupt::default();
        let mut reader = interrupt.guard(&b"abc"[..]);
        assert_eq!(reader.read(&mut [0; 1]).expect("no signal yet"), 1);
        interrupt.state.fired.store(true, Ordering::Relaxed);
        assert_eq!(reader.read(&mut [0; 1]).expect_err("after it").to_string(), "interrupted");
        interrupt.guard(Vec::new()).write(b"x").expect_err("after it");
    }
}
