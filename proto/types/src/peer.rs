//! Who is at the other end of a connection. Small and `Copy`: it travels with every lease.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::session::SessionId;

/// A client's end of its connection to this server, the process of a native session, or nobody.
///
/// An address and a port may come back with another process behind them once a connection was closed; the
/// connection's number does not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Peer {
    /// IPv4 addresses are kept as IPv4-mapped IPv6 ones. Of a native session: pid and uid, then zeroes.
    address: [u8; 16],
    port: u16,
    is_native: bool,
    /// Of a native session: its number.
    connection: u32,
}

impl Peer {
    /// Nobody that is known: a client within the server's own process, or a test.
    pub const UNKNOWN: Self = Self { address: [0; 16], port: 0, is_native: false, connection: 0 };

    /// The client at `address`, by the connection with this number. Numbers begin at 1.
    pub fn new(address: SocketAddr, connection: u32) -> Self {
        let ip = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        Self { address: ip.octets(), port: address.port(), is_native: false, connection }
    }

    /// The process `pid` of user `uid`, as it was when it opened this session.
    pub fn native(pid: u32, uid: u32, session: SessionId) -> Self {
        let mut address = [0; 16];
        address[..4].copy_from_slice(&pid.to_ne_bytes());
        address[4..8].copy_from_slice(&uid.to_ne_bytes());
        Self { address, port: 0, is_native: true, connection: session.get() }
    }

    /// Its native session; `None` where it has none.
    #[inline]
    pub fn session(self) -> Option<SessionId> {
        if self.is_native { SessionId::new(self.connection) } else { None }
    }

    /// The process of its native session.
    pub fn pid(self) -> Option<u32> {
        let pid = [self.address[0], self.address[1], self.address[2], self.address[3]];
        self.is_native.then(|| u32::from_ne_bytes(pid))
    }

    /// The client's address and port; `None` for [`Peer::UNKNOWN`] and for native sessions.
    pub fn address(self) -> Option<SocketAddr> {
        let ip = Ipv6Addr::from(self.address).to_canonical();
        (self != Self::UNKNOWN && !self.is_native).then(|| SocketAddr::new(ip, self.port))
    }

    /// The number of its connection; 0 for [`Peer::UNKNOWN`] and for native sessions.
    pub fn connection(self) -> u32 {
        if self.is_native { 0 } else { self.connection }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address(), self.pid()) {
            (Some(address), _) => address.fmt(formatter),
            (None, Some(pid)) => write!(formatter, "pid {pid} (session {})", self.connection),
            (None, None) => formatter.write_str("unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_addresses_of_both_families_when_kept_then_they_come_back_as_they_were() {
        for text in ["127.0.0.1:50051", "[::1]:7", "[fe80::1]:65535"] {
            let address: SocketAddr = text.parse().expect("an address");
            let peer = Peer::new(address, 7);
            assert_eq!((peer.address(), peer.connection()), (Some(address), 7));
            assert_eq!(peer.to_string(), text);
        }
    }

    #[test]
    fn given_nobody_when_asked_then_there_is_no_address() {
        assert_eq!((Peer::UNKNOWN.address(), Peer::UNKNOWN.to_string()), (None, "unknown".to_owned()));
    }

    #[test]
    fn given_a_native_session_when_kept_then_process_and_session_come_back() {
        let session = SessionId::new(3).expect("not 0");
        let peer = Peer::native(4711, 1000, session);
        assert_eq!((peer.pid(), peer.session()), (Some(4711), Some(session)));
        assert_eq!((peer.address(), peer.connection()), (None, 0));
        assert_eq!(peer.to_string(), "pid 4711 (session 3)");
        let remote = Peer::new("127.0.0.1:1".parse().expect("an address"), 3);
        assert_eq!((remote.pid(), remote.session()), (None, None));
    }

    #[test]
    fn given_a_peer_when_measured_then_a_lease_stays_small() {
        assert_eq!(
            std::mem::size_of::<Peer>(),
            24,
            "16 of the address, 2 of the port, 1 of the kind, 4 of the connection"
        );
    }
}
