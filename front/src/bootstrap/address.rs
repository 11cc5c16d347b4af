//! The listening address: bound before anything else, so that a second server ends here without a trace.
//!
//! Without SO_REUSEPORT: with it two servers could share a port and each would see half of the calls. (std sets
//! SO_REUSEADDR, which on Linux only lets a restart reuse a port whose old connections linger.)

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::{fs, io};

use crate::config::{BindAddress, NodeConfig, ServerConfig};

/// Where the kernel tells this host's name.
const HOST_NAME: &str = "/proc/sys/kernel/hostname";

/// Binds what the configuration names. Connections wait in the backlog until the server answers them. An address that
/// other hosts can reach is warned about; `Config::check_supported` has refused it where TLS is required.
///
/// # Errors
/// One sentence: the address is taken, not ours, or not to be looked up.
pub fn bind(server: &ServerConfig) -> anyhow::Result<TcpListener> {
    let address = &server.bind_address;
    if !address.is_loopback() && server.access_file.is_none() {
        tracing::warn!(
            %address,
            "NO ACCESS CONTROL: whoever can reach this address can read, change and delete every payload; name who may in server.access_file, or bind 127.0.0.1 unless the network is trusted"
        );
    }
    bind_as("server.bind_address", address)
}

/// Binds the address of /metrics, where one is configured.
///
/// # Errors
/// As [`bind`].
pub fn bind_metrics(address: &BindAddress) -> anyhow::Result<TcpListener> {
    if !address.is_loopback() {
        tracing::warn!(
            %address,
            "whoever can reach this address can read the node's figures: how much it holds and how much it is used"
        );
    }
    bind_as("observability.metrics_address", address)
}

/// Binds the address that `key` names.
fn bind_as(key: &str, address: &BindAddress) -> anyhow::Result<TcpListener> {
    let candidates = address.resolve().map_err(|error| {
        anyhow::anyhow!("{key} {address} cannot be looked up: {error}; write an IP address")
    })?;
    let mut refused = None;
    for candidate in candidates {
        match TcpListener::bind(candidate) {
            Ok(listener) => return Ok(listener),
            Err(error) => refused = Some(error),
        }
    }
    Err(match refused {
        Some(error) if error.kind() == io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "the address {address} is taken by another process; stop that one, or set {key} to a free port"
        ),
        Some(error) => anyhow::anyhow!("cannot listen on {address}: {error}; set {key}"),
        None => anyhow::anyhow!("{key} {address} names no address; write an IP address"),
    })
}

/// Where other hosts are told to reach a node that is served at `bound`, on `port`: what is configured; else where it is
/// served, by this host's name where that is every address, which is none to connect to.
pub fn told(node: &NodeConfig, bound: &BindAddress, port: u16) -> BindAddress {
    if let Some(BindAddress { host, port: wanted }) = &node.address {
        let port = if *wanted == 0 { port } else { *wanted };
        return BindAddress { host: host.clone(), port };
    }
    let is_every = bound.host.parse().is_ok_and(|address: IpAddr| address.is_unspecified());
    let named = is_every.then(|| fs::read_to_string(HOST_NAME).ok()).flatten();
    let named = named.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
    BindAddress { host: named.unwrap_or_else(|| bound.host.clone()), port }
}

/// Where programs on this host reach what is served at `bound`, on `port`.
pub fn beside(bound: &BindAddress, port: u16) -> BindAddress {
    let host = match bound.host.parse() {
        Ok(IpAddr::V4(every)) if every.is_unspecified() => Ipv4Addr::LOCALHOST.to_string(),
        Ok(IpAddr::V6(every)) if every.is_unspecified() => Ipv6Addr::LOCALHOST.to_string(),
        _ => bound.host.clone(),
    };
    BindAddress { host, port }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_every_address_when_told_to_programs_beside_it_then_the_loopback_one() {
        let told = |host: &str| beside(&BindAddress { host: host.to_owned(), port: 0 }, 7).to_string();
        assert_eq!(told("0.0.0.0"), "127.0.0.1:7");
        assert_eq!(told("::"), "[::1]:7");
        assert_eq!(told("10.1.2.3"), "10.1.2.3:7");
        assert_eq!(told("localhost"), "localhost:7");
    }

    fn address(host: &str, port: u16) -> BindAddress {
        BindAddress { host: host.to_owned(), port }
    }

    fn server(host: &str, port: u16) -> ServerConfig {
        ServerConfig::plain(address(host, port))
    }

    #[test]
    fn given_a_taken_address_when_bound_then_a_sentence_names_it() {
        let first = bind(&server("127.0.0.1", 0)).expect("a free port");
        let port = first.local_addr().expect("bound").port();
        let error = bind(&server("127.0.0.1", port)).expect_err("taken").to_string();
        assert!(error.contains(&format!("127.0.0.1:{port} is taken")), "{error}");
    }

    #[test]
    fn given_what_is_configured_and_bound_when_told_to_others_then_it_can_be_connected_to() {
        let node = |address| NodeConfig { name: "one".to_owned(), address };
        let told = |configured, bound: &str| {
            told(&node(configured), &BindAddress { host: bound.to_owned(), port: 0 }, 7).to_string()
        };
        assert_eq!(told(None, "127.0.0.1"), "127.0.0.1:7");
        assert_eq!(told(None, "::1"), "[::1]:7");
        assert_eq!(told(Some(address("host", 0)), "0.0.0.0"), "host:7");
        assert_eq!(told(Some(address("host", 9)), "0.0.0.0"), "host:9");
        for every in ["0.0.0.0", "::"] {
            let told = told(None, every);
            assert!(!told.contains(every) && told.ends_with(":7"), "{told}");
        }
    }

    #[test]
    fn given_a_taken_metrics_address_when_bound_then_a_sentence_names_its_key() {
        let first = bind(&server("127.0.0.1", 0)).expect("a free port");
        let port = first.local_addr().expect("bound").port();
        let error = bind_metrics(&address("127.0.0.1", port)).expect_err("taken").to_string();
        assert!(error.contains("is taken") && error.contains("observability.metrics_address"), "{error}");
    }

    #[test]
    fn given_an_address_of_another_host_when_bound_then_a_sentence_names_the_key() {
        // 192.0.2.0/24 is for documentation (RFC 5737): no host has it.
        let error = bind(&server("192.0.2.1", 0)).expect_err("not ours").to_string();
        assert!(error.contains("192.0.2.1:0") && error.contains("server.bind_address"), "{error}");
    }
}
