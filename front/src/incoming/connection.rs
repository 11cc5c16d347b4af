//! One accepted connection: its place under the limit, TLS where it is configured, and what a client may not draw out.
//!
//! ```text
//! accepted --[TLS handshake]--> preface and first frame --> calls ... --> closed
//!          '------- within limits.handshake_timeout ------'   '- a write that nobody reads ends it after limits.write_stall
//! ```
//! The handshake runs inside the connection's own first read, in the task that serves it: a slow one holds up nobody, and
//! the connection's place is its own from the beginning.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use payload_types::Peer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};
use tonic::transport::server::Connected;

use super::Place;
use crate::access::tls;
use crate::admission::Permit;

/// What an HTTP/2 client sends first (RFC 9113, 3.4): 24 bytes of preface, and the head of its first frame.
const GREETING_BYTES: usize = 24 + 9;

/// How long a client may take. See the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// `limits.handshake_timeout`.
    pub handshake: Duration,
    /// `limits.write_stall`.
    pub write_stall: Duration,
}

/// Which connection a request came by, as far as handlers need it. Cloned into every request.
#[derive(Clone, Debug)]
pub struct Link {
    peer: Peer,
    /// Without TLS there is none to fill.
    names: Option<Arc<OnceLock<Vec<String>>>>,
}

impl Link {
    /// The client's address and the connection's number.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// The names in the certificate that the client has proved to own.
    pub fn certificate_names(&self) -> &[String] {
        self.names.as_ref().and_then(|names| names.get()).map_or(&[], Vec::as_slice)
    }
}

/// An accepted connection and its place under the limit.
pub struct Connection {
    wire: Wire,
    link: Link,
    greeting: Option<Greeting>,
    patience: Patience,
    /// Since when a write waits for the client to read.
    stalled: Option<Pin<Box<Sleep>>>,
    _place: Place,
    _permit: Permit,
}

enum Wire {
    Plain(TcpStream),
    Greeted(Box<Accept<TcpStream>>),
    Secure(Box<TlsStream<TcpStream>>),
    /// The handshake failed.
    Closed,
}

/// What is still to come before the client may take its time.
struct Greeting {
    end: Pin<Box<Sleep>>,
    bytes_left: usize,
}

impl Connection {
    pub(super) fn new(
        socket: TcpStream,
        acceptor: Option<TlsAcceptor>,
        patience: Patience,
        place: Place,
        permit: Permit,
    ) -> Self {
        let names = acceptor.is_some().then(Arc::default);
        let wire = match acceptor {
            None => Wire::Plain(socket),
            Some(acceptor) => Wire::Greeted(Box::new(acceptor.accept(socket))),
        };
        let greeting =
            Greeting { end: Box::pin(tokio::time::sleep(patience.handshake)), bytes_left: GREETING_BYTES };
        Self {
            wire,
            link: Link { peer: place.peer, names },
            greeting: Some(greeting),
            patience,
            stalled: None,
            _place: place,
            _permit: permit,
        }
    }

    /// Ends the connection of a client that has not begun to speak in time.
    fn poll_greeting(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let Some(greeting) = &mut self.greeting else { return Ok(()) };
        match greeting.end.as_mut().poll(context) {
            Poll::Pending => Ok(()),
            Poll::Ready(()) => {
                tracing::debug!(peer = ?self.link.peer.address(), "a client said nothing within limits.handshake_timeout; closed");
                Err(io::Error::new(io::ErrorKind::TimedOut, "the client did not begin in time"))
            }
        }
    }

    /// Goes on with the TLS handshake, where it is not over.
    fn poll_handshake(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Wire::Greeted(accept) = &mut self.wire else { return Poll::Ready(Ok(())) };
        match ready!(Pin::new(&mut **accept).poll(context)) {
            Ok(stream) => {
                let (_, session) = stream.get_ref();
                let first = session.peer_certificates().and_then(|chain| chain.first());
                if let (Some(certificate), Some(names)) = (first, &self.link.names) {
                    // Empty until now: a connection has one handshake.
                    let _unfilled = names.set(tls::names_of(certificate));
                }
                self.wire = Wire::Secure(Box::new(stream));
                Poll::Ready(Ok(()))
            }
            Err(error) => {
                self.wire = Wire::Closed;
                tracing::info!(peer = ?self.link.peer.address(), %error, "a client's TLS handshake failed");
                Poll::Ready(Err(error))
            }
        }
    }

    /// What came of a write: one that waits is begun to be timed, and ends the connection when it waits too long.
    fn timed<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience.write_stall;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(stalled.as_mut().poll(context));
        tracing::info!(peer = ?self.link.peer.address(), "a client did not read for limits.write_stall; closed");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }
}

fn closed() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl Connected for Connection {
    type ConnectInfo = Link;

    fn connect_info(&self) -> Link {
        self.link.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.poll_greeting(context)?;
        ready!(this.poll_handshake(context))?;
        let before = buffer.filled().len();
        let read = match &mut this.wire {
            Wire::Plain(socket) => Pin::new(socket).poll_read(context, buffer),
            Wire::Secure(stream) => Pin::new(&mut **stream).poll_read(context, buffer),
            Wire::Greeted(_) | Wire::Closed => Poll::Ready(Err(closed())),
        };
        if let Some(greeting) = &mut this.greeting {
            greeting.bytes_left = greeting.bytes_left.saturating_sub(buffer.filled().len() - before);
            if greeting.bytes_left == 0 {
                this.greeting = None;
            }
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.poll_handshake(context))?;
        let written = match &mut this.wire {
            Wire::Plain(socket) => Pin::new(socket).poll_write(context, bytes),
            Wire::Secure(stream) => Pin::new(&mut **stream).poll_write(context, bytes),
            Wire::Greeted(_) | Wire::Closed => Poll::Ready(Err(closed())),
        };
        this.timed(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.poll_handshake(context))?;
        let written = match &mut this.wire {
            Wire::Plain(socket) => Pin::new(socket).poll_write_vectored(context, slices),
            Wire::Secure(stream) => Pin::new(&mut **stream).poll_write_vectored(context, slices),
            Wire::Greeted(_) | Wire::Closed => Poll::Ready(Err(closed())),
        };
        this.timed(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        // Both copy or hand on many slices at once: rustls fills its records from them.
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.poll_handshake(context))?;
        let flushed = match &mut this.wire {
            Wire::Plain(socket) => Pin::new(socket).poll_flush(context),
            Wire::Secure(stream) => Pin::new(&mut **stream).poll_flush(context),
            Wire::Greeted(_) | Wire::Closed => Poll::Ready(Err(closed())),
        };
        this.timed(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let closed = match &mut this.wire {
            Wire::Plain(socket) => Pin::new(socket).poll_shutdown(context),
            Wire::Secure(stream) => Pin::new(&mut **stream).poll_shutdown(context),
            Wire::Greeted(_) | Wire::Closed => Poll::Ready(Ok(())),
        };
        this.timed(context, closed)
    }
}
