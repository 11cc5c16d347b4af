//! Accepts connections: a bounded number of them, and without a busy loop when descriptors run out.
//!
//! Why not tonic's own `TcpIncoming`: it retries a failed `accept` at once, so that a process at its limit of
//! descriptors burns a whole core until somebody hangs up, and it knows no limit on connections.
//!
//! ```text
//! listener --accept--> over the limit? close it (the client sees UNAVAILABLE and may retry)
//!                      else TCP_NODELAY, Connection{socket, TLS, place} --> tonic
//! ```
//! Every connection has a number that never comes back: an address and a port do, once they are closed.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use payload_types::Peer;
use tokio::net::TcpListener;
use tokio::time::Sleep;
use tokio_stream::Stream;

use crate::access::tls::Tls;
use crate::admission::Gate;

mod connection;

pub use connection::{Connection, Link, Patience};

/// How long accepting rests after an error such as EMFILE: long enough to cost nothing, short against a client's
/// connect timeout.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// Connections refused in one poll before the runtime gets its turn back.
const REFUSED_PER_POLL_MAX: usize = 64;

/// The numbers of the connections that are open now. Cheap to clone; locked when one opens or closes, never for a
/// request.
#[derive(Clone, Debug, Default)]
pub struct Connections {
    inner: Arc<Mutex<Numbers>>,
}

#[derive(Debug, Default)]
struct Numbers {
    last: u32,
    open: BTreeSet<u32>,
}

impl Connections {
    /// True while the connection that this peer came by is open: until then its address is nobody else's.
    pub fn is_open(&self, peer: Peer) -> bool {
        self.numbers(|numbers| numbers.open.contains(&peer.connection()))
    }

    /// Connections open now.
    pub fn count(&self) -> usize {
        self.numbers(|numbers| numbers.open.len())
    }

    fn numbers<R>(&self, with: impl FnOnce(&mut Numbers) -> R) -> R {
        with(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn enter(&self, address: SocketAddr) -> Place {
        let number = self.numbers(|numbers| {
            // 4 billion connections later a number may be in use still, by a very old connection.
            loop {
                numbers.last = numbers.last.wrapping_add(1).max(1);
                if numbers.open.insert(numbers.last) {
                    break numbers.last;
                }
            }
        });
        Place { connections: self.clone(), peer: Peer::new(address, number) }
    }
}

/// One open connection among all of them, until it is dropped.
#[derive(Debug)]
struct Place {
    connections: Connections,
    peer: Peer,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.numbers(|numbers| numbers.open.remove(&self.peer.connection()));
    }
}

/// Who sent a request.
pub fn peer_of<T>(request: &tonic::Request<T>) -> Peer {
    request.extensions().get::<Link>().map_or(Peer::UNKNOWN, Link::peer)
}

/// The stream of accepted connections. Dropping it closes the listening socket.
pub struct Incoming {
    listener: TcpListener,
    gate: Gate,
    connections: Connections,
    tls: Option<Tls>,
    patience: Patience,
    rest: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    /// Accepts from `listener` while `gate` has room, and keeps `connections` up to date; over TLS where it is given.
    pub fn new(
        listener: TcpListener,
        gate: Gate,
        connections: Connections,
        tls: Option<Tls>,
        patience: Patience,
    ) -> Self {
        Self { listener, gate, connections, tls, patience, rest: None }
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(rest) = self.rest.as_mut() {
            ready!(rest.as_mut().poll(context));
            self.rest = None;
        }
        for _ in 0..REFUSED_PER_POLL_MAX {
            match ready!(self.listener.poll_accept(context)) {
                Ok((socket, peer)) => match self.gate.enter() {
                    Some(permit) => {
                        if let Err(error) = socket.set_nodelay(true) {
                            tracing::debug!(%peer, %error, "TCP_NODELAY refused");
                        }
                        let place = self.connections.enter(peer);
                        let acceptor = self.tls.as_ref().map(Tls::acceptor);
                        let connection = Connection::new(socket, acceptor, self.patience, place, permit);
                        return Poll::Ready(Some(Ok(connection)));
                    }
                    None => tracing::warn!(
                        %peer,
                        limit = self.gate.limit(),
                        "connection refused: as many are open as limits.connections allows"
                    ),
                },
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed; resting before the next try");
                    let mut rest = Box::pin(tokio::time::sleep(ACCEPT_REST));
                    // Polled once, so that the timer knows whom to wake.
                    if rest.as_mut().poll(context).is_pending() {
                        self.rest = Some(rest);
                    }
                    return Poll::Pending;
                }
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpStream;
    use tokio_stream::StreamExt;
    use tonic::transport::server::Connected as _;

    const PATIENT: Patience =
        Patience { handshake: Duration::from_secs(60), write_stall: Duration::from_secs(60) };

    #[test]
    fn given_a_full_gate_when_a_client_connects_then_it_is_closed_and_the_next_place_is_usable() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
            let address = listener.local_addr().expect("bound");
            let connections = Connections::default();
            let mut incoming = Incoming::new(listener, Gate::new(1), connections.clone(), None, PATIENT);

            let first_client = TcpStream::connect(address).await.expect("connect");
            let first = incoming.next().await.expect("endless").expect("accepted");

            // The second is refused while the first lives: its socket reads as closed.
            let mut second_client = TcpStream::connect(address).await.expect("backlog takes it");
            let mut buffer = [0; 1];
            tokio::select! {
                _ = incoming.next() => panic!("the gate was full"),
                read = second_client.read(&mut buffer) => assert!(matches!(read, Ok(0) | Err(_))),
            }

            let peer = first.connect_info().peer();
            assert!(connections.is_open(peer) && connections.count() == 1);
            assert_eq!(peer.address(), Some(first_client.local_addr().expect("connected")));
            drop(first);
            assert!(!connections.is_open(peer), "whoever has that address next is somebody else");
            let _third_client = TcpStream::connect(address).await.expect("connect");
            let third = incoming.next().await.expect("endless").expect("accepted");
            assert_ne!(third.connect_info().peer().connection(), peer.connection());
        });
    }
}
