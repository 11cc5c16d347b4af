//! Tells systemd how the service is (sd_notify): ready, alive, stopping. Without `NOTIFY_SOCKET` it does nothing.
//! (<https://www.freedesktop.org/software/systemd/man/sd_notify.html>)
//!
//! `WATCHDOG=1` says more than that the process runs: it is sent when the front's thread turns and every shard has
//! answered. A datagram is all there is to the protocol, so that no library is needed.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use crate::metrics::Readiness;
use crate::metrics::scrape::Sources;

/// Where the service's manager listens, and how often it wants to hear.
#[derive(Debug)]
pub struct Notifier {
    socket: UnixDatagram,
    /// `None`: there is no watchdog.
    watchdog: Option<Duration>,
}

impl Notifier {
    /// Who is told; `None`: nobody asked.
    pub fn from_environment() -> Option<Self> {
        let watchdog = watchdog_of(|name| std::env::var(name).ok(), std::process::id());
        let path = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty())?;
        match Self::connect(&path, watchdog) {
            Ok(notifier) => Some(notifier),
            Err(error) => {
                tracing::warn!(%error, "NOTIFY_SOCKET cannot be used; the service's manager is told nothing");
                None
            }
        }
    }

    fn connect(path: &OsStr, watchdog: Option<Duration>) -> io::Result<Self> {
        // A name that begins with @ is an abstract one.
        let address = match path.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(path)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        // A manager that does not read must not hold up the front.
        socket.set_nonblocking(true)?;
        Ok(Self { socket, watchdog })
    }

    /// Calls are answered from now on, at this address.
    pub fn ready(&self, address: &str) {
        self.say(&format!("READY=1\nSTATUS=serving {address}\n"));
    }

    /// It ends.
    pub fn stopping(&self) {
        self.say("STOPPING=1\nSTATUS=stopping\n");
    }

    fn say(&self, words: &str) {
        if let Err(error) = self.socket.send(words.as_bytes()) {
            tracing::warn!(%error, "the service's manager could not be told");
        }
    }

    /// Tells the manager, twice in each of its intervals, that shards answer, until the server stops. Whoever has no
    /// watchdog hears nothing.
    pub async fn keep_alive(self: Arc<Self>, sources: Arc<Sources>, readiness: Readiness) {
        let Some(pause) = self.watchdog.map(|watchdog| watchdog / 2) else { return };
        loop {
            // While it stops the manager's own limit (TimeoutStopSec) counts.
            let is_alive = !readiness.get() || tokio::time::timeout(pause, sources.scrape()).await.is_ok();
            if is_alive {
                self.say("WATCHDOG=1\n");
            } else {
                tracing::error!(
                    "a shard does not answer; the watchdog of the service's manager is not told that all is well"
                );
            }
            tokio::time::sleep(pause).await;
        }
    }
}

/// The interval that the manager set for this process.
fn watchdog_of(variable: impl Fn(&str) -> Option<String>, pid: u32) -> Option<Duration> {
    let micros: u64 = variable("WATCHDOG_USEC")?.parse().ok().filter(|micros| *micros > 0)?;
    let is_ours = variable("WATCHDOG_PID").is_none_or(|text| text.parse() == Ok(pid));
    is_ours.then(|| Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_socket_when_told_then_each_message_is_one_datagram() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("bound");
        let notifier = Notifier::connect(path.as_os_str(), None).expect("connected");
        notifier.ready("127.0.0.1:1");
        notifier.stopping();
        let heard = || {
            let mut buffer = [0; 256];
            let length = manager.recv(&mut buffer).expect("a datagram");
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        };
        assert_eq!(heard(), "READY=1\nSTATUS=serving 127.0.0.1:1\n");
        assert!(heard().starts_with("STOPPING=1\n"));
        assert!(Notifier::connect(OsStr::new("/nonexistent/notify"), None).is_err());
    }

    #[test]
    fn given_an_abstract_name_when_told_then_it_is_found() {
        let name = format!("payload-manager-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let manager = UnixDatagram::bind_addr(&address).expect("bound");
        let notifier = Notifier::connect(OsStr::new(&format!("@{name}")), None).expect("connected");
        notifier.ready("x");
        let mut buffer = [0; 64];
        assert!(manager.recv(&mut buffer).is_ok_and(|length| buffer[..length].starts_with(b"READY=1")));
    }

    #[test]
    fn given_watchdog_variables_when_read_then_only_those_of_this_process_count() {
        let of = |usec: &'static str, pid: Option<&'static str>| {
            let variable = move |name: &str| match name {
                "WATCHDOG_USEC" => Some(usec.to_owned()),
                _ => pid.map(str::to_owned),
            };
            watchdog_of(variable, 7)
        };
        assert_eq!(of("30000000", None), Some(Duration::from_secs(30)));
        assert_eq!(of("30000000", Some("7")), Some(Duration::from_secs(30)));
        assert_eq!((of("30000000", Some("8")), of("0", None), of("soon", None)), (None, None, None));
    }
}
