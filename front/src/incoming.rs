//! Accepts connections: a bounded number of them, and without a busy loop when descriptors run out.
//!
//! Why not tonic's own `TcpIncoming`: it retries a failed `accept` at once, so that a process at its limit of
//! descriptors burns a whole core until somebody hangs up, and it knows no limit on connections.
//!
//! ```text
//! listener --accept--> over the limit? close it (the client sees UNAVAILABLE and may retry)
//!                      else TCP_NODELAY, Connection{socket, permit} --> tonic
//! ```

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Sleep;
use tokio_stream::Stream;
use tonic::transport::server::Connected;

use crate::admission::{Gate, Permit};

/// How long accepting rests after an error such as EMFILE: long enough to cost nothing, short against a client's
/// connect timeout.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// Connections refused in one poll before the runtime gets its turn back.
const REFUSED_PER_POLL_MAX: usize = 64;

/// The stream of accepted connections. Dropping it closes the listening socket.
pub struct Incoming {
    listener: TcpListener,
    gate: Gate,
    rest: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    /// Accepts from `listener` while `gate` has room.
    pub fn new(listener: TcpListener, gate: Gate) -> Self {
        Self { listener, gate, rest: None }
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
                        return Poll::Ready(Some(Ok(Connection { socket, _permit: permit })));
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

/// An accepted connection and its place under the limit.
pub struct Connection {
    socket: TcpStream,
    _permit: Permit,
}

impl Connected for Connection {
    // Nothing asks for the peer's address yet; tonic clones this into every request.
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio_stream::StreamExt;

    #[test]
    fn given_a_full_gate_when_a_client_connects_then_it_is_closed_and_the_next_place_is_usable() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
            let address = listener.local_addr().expect("bound");
            let mut incoming = Incoming::new(listener, Gate::new(1));

            let _first_client = TcpStream::connect(address).await.expect("connect");
            let first = incoming.next().await.expect("endless").expect("accepted");

            // The second is refused while the first lives: its socket reads as closed.
            let mut second_client = TcpStream::connect(address).await.expect("backlog takes it");
            let mut buffer = [0; 1];
            tokio::select! {
                _ = incoming.next() => panic!("the gate was full"),
                read = second_client.read(&mut buffer) => assert!(matches!(read, Ok(0) | Err(_))),
            }

            drop(first);
            let _third_client = TcpStream::connect(address).await.expect("connect");
            assert!(incoming.next().await.expect("endless").is_ok());
        });
    }
}
