//! Who is at the other end of a connection. Small and `Copy`: it travels with every lease.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// A client's end of its connection to this server, or nobody's.
///
/// An address and a port may come back with another process behind them once a connection was closed; the
/// connection's number does not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Peer {
    /// IPv4 addresses are kept as IPv4-mapped IPv6 ones.
    address: [u8; 16],
    port: u16,
    connection: u32,
}

impl Peer {
    /// Nobody that is known: a client within the server's own process, or a test.
    pub const UNKNOWN: Self = Self { address: [0; 16], port: 0, connection: 0 };

    /// The client at `address`, by the connection with this number. Numbers begin at 1.
    pub fn new(address: SocketAddr, connection: u32) -> Self {
        let ip = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        Self { address: ip.octets(), port: address.port(), connection }
    }

    /// The client's address and port; `None` for [`Peer::UNKNOWN`].
    pub fn address(self) -> Option<SocketAddr> {
        let ip = Ipv6Addr::from(self.address).to_canonical();
        (self != Self::UNKNOWN).then(|| SocketAddr::new(ip, self.port))
    }

    /// The number of its connection; 0 for [`Peer::UNKNOWN`].
    pub fn connection(self) -> u32 {
        self.connection
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address() {
            Some(address) => address.fmt(formatter),
            None => formatter.write_str("unknown"),
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
    fn given_a_peer_when_measured_then_a_lease_stays_small() {
        assert_eq!(std::mem::size_of::<Peer>(), 24, "16 of the address, 2 of the port, 4 of the connection");
    }
}
