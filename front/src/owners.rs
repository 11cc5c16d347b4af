//! Which process is behind a connection: looked up in /proc when an operator asks, never when a lease is granted.
//!
//! ```text
//! peer address --/proc/net/tcp{,6}: its local end--> socket inode --/proc/*/fd--> process
//! ```
//! A connection from another host, or from another network namespace, has its other end elsewhere and is not found. The
//! processes of other users may not be looked at without CAP_SYS_PTRACE. Blocks: reads every process's descriptors.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The program that has a client's end of a connection open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its name, as `ps` shows it.
    pub program: String,
}

/// Why a process is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unknown {
    /// No socket of this host, or of this network namespace, has the address.
    Elsewhere,
    /// The socket is here, but no process that may be looked at has it open.
    NotPermitted,
}

/// Finds the processes at these addresses, each the client's end of a connection to `server_port`.
pub fn find(
    peers: &BTreeSet<SocketAddr>,
    server_port: u16,
) -> BTreeMap<SocketAddr, Result<Process, Unknown>> {
    let mut inodes = BTreeMap::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        // IPv6 may be switched off; then it has no table and no sockets.
        let text = fs::read_to_string(table).unwrap_or_default();
        for (local, remote_port, inode) in text.lines().skip(1).filter_map(socket) {
            if remote_port == server_port && peers.contains(&local) {
                inodes.insert(inode, local);
            }
        }
    }
    let mut found: BTreeMap<_, _> = peers.iter().map(|peer| (*peer, Err(Unknown::Elsewhere))).collect();
    found.extend(inodes.values().map(|peer| (*peer, Err(Unknown::NotPermitted))));
    if !inodes.is_empty() {
        found.extend(processes(&inodes).into_iter().map(|(peer, process)| (peer, Ok(process))));
    }
    found
}

/// Who has these sockets open. Of several (after a fork) the one with the lowest number.
fn processes(inodes: &BTreeMap<u64, SocketAddr>) -> BTreeMap<SocketAddr, Process> {
    let mut found: BTreeMap<SocketAddr, Process> = BTreeMap::new();
    let Ok(entries) = fs::read_dir("/proc") else { return found };
    for pid in entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok()) {
        // Another user's process, or one that has ended meanwhile.
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for descriptor in descriptors.flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            let Some(peer) = target.to_str().and_then(socket_inode).and_then(|inode| inodes.get(&inode))
            else {
                continue;
            };
            if found.get(peer).is_none_or(|other| pid < other.pid) {
                let program = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                found.insert(*peer, Process { pid, program: program.trim().to_owned() });
            }
        }
    }
    found
}

/// `socket:[12345]` as /proc/PID/fd shows it.
fn socket_inode(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// One line of /proc/net/tcp: local end, port of the remote end, inode (0 when nobody has it open any more).
fn socket(line: &str) -> Option<(SocketAddr, u16, u64)> {
    let mut fields = line.split_ascii_whitespace();
    let local = address(fields.nth(1)?)?;
    let remote = address(fields.next()?)?;
    let inode = fields.nth(6)?.parse().ok()?;
    Some((local, remote.port(), inode)).filter(|_| inode != 0)
}

/// `0100007F:C383` or 32 digits before the colon: words of 4 bytes in the machine's own order.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let words: Vec<[u8; 4]> = (0..ip.len() / 8)
        .map(|word| Some(u32::from_str_radix(ip.get(word * 8..word * 8 + 8)?, 16).ok()?.to_ne_bytes()))
        .collect::<Option<_>>()?;
    let ip = match words[..] {
        [word] => IpAddr::V4(Ipv4Addr::from(word)),
        [a, b, c, d] => {
            let bytes: Vec<u8> = [a, b, c, d].concat();
            IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn given_a_connection_of_this_process_when_looked_up_then_it_is_this_process() {
        for host in ["127.0.0.1", "::1"] {
            let Ok(listener) = TcpListener::bind((host, 0)) else {
                assert_eq!(host, "::1", "only IPv6 may be switched off");
                continue;
            };
            let port = listener.local_addr().expect("bound").port();
            let client = TcpStream::connect((host, port)).expect("connected");
            let peer = client.local_addr().expect("connected");
            let found = find(&BTreeSet::from([peer]), port);
            let process = found[&peer].clone().expect("a process of our own may be looked at");
            assert_eq!(process.pid, std::process::id());
            assert!(!process.program.is_empty());
            assert_eq!(
                find(&BTreeSet::from([peer]), port ^ 1)[&peer],
                Err(Unknown::Elsewhere),
                "another server's"
            );
        }
    }

    #[test]
    fn given_an_address_of_another_host_when_looked_up_then_it_is_elsewhere() {
        let peer: SocketAddr = "192.0.2.1:9".parse().expect("an address");
        assert_eq!(find(&BTreeSet::from([peer]), 1)[&peer], Err(Unknown::Elsewhere));
    }

    #[test]
    fn given_lines_of_the_kernels_tables_when_read_then_ends_and_inode_are_there() {
        let line = "   0: 0100007F:C383 0100007F:A8B2 01 00000000:00000000 00:00000000 00000000  1000        0 42 1 0";
        if cfg!(target_endian = "little") {
            let local = "127.0.0.1:50051".parse().expect("an address");
            assert_eq!(socket(line), Some((local, 0xA8B2, 42)));
            let mapped = address("0000000000000000FFFF00000100007F:0007");
            assert_eq!(mapped, Some("127.0.0.1:7".parse().expect("an address")));
        }
        assert_eq!(socket(&line.replace(" 42 ", " 0 ")), None, "nobody has it open");
        for garbage in ["", "sl local", "  0: xyz:1 0:0", "0: 0100007F 0100007F:1"] {
            assert_eq!(socket(garbage), None, "{garbage}");
        }
    }
}
