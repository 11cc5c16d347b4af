//! Counts what goes over gRPC: a relay between the demo's clients and the server, on loopback.
//!
//! ```text
//! demo, worker --TCP--> Meter (counts bytes both ways) --TCP--> server
//! ```
//!
//! Counted on the wire, HTTP/2 framing and headers included, so nothing can be forgotten.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Bytes relayed at a time: no message of the demo is larger.
const RELAY_BYTES: usize = 64 << 10;

/// A running relay; dropping it ends it.
pub struct Meter {
    address: String,
    counts: Arc<Counts>,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Meter {
    /// Relays connections to `server`.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(server: &str) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let counts = Arc::new(Counts::default());
        let (counted, server) = (Arc::clone(&counts), server.to_owned());
        let accepting = tokio::spawn(async move {
            // Two clients connect: the demo and its worker. An error ends the relay, and with it their calls.
            while let Ok((client, _)) = listener.accept().await {
                let Ok(upstream) = TcpStream::connect(&server).await else { return };
                drop((client.set_nodelay(true), upstream.set_nodelay(true)));
                let ((client_in, client_out), (server_in, server_out)) =
                    (client.into_split(), upstream.into_split());
                let (up, down) = (Arc::clone(&counted), Arc::clone(&counted));
                tokio::spawn(async move { relay(client_in, server_out, &up.sent).await });
                tokio::spawn(async move { relay(server_in, client_out, &down.received).await });
            }
        });
        Ok(Self { address, counts, accepting })
    }

    /// Where clients connect.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Bytes so far, in both directions.
    pub fn bytes(&self) -> u64 {
        self.counts.sent.load(Ordering::Relaxed) + self.counts.received.load(Ordering::Relaxed)
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Carries bytes one way until an end closes.
async fn relay(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, count: &AtomicU64) {
    let mut buffer = vec![0; RELAY_BYTES];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        count.fetch_add(read as u64, Ordering::Relaxed);
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
