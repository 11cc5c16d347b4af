//! How a session begins: Hello, Welcome, and the descriptors that come with it. Anything else is an error that says what
//! the server said.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use payload_local::direct::page::{STATUS_BYTES, written_bytes};
use payload_local::hello::{
    ClientFrame, FEATURE_ADDRESS, FEATURE_ARENAS, FEATURE_DIRECT, Hello, ServerFrame, Welcome,
    doorbells_in_message,
};
use payload_local::layout::{NODE_PAGE_BYTES, session_bytes};

use crate::error::{ClientError, reason_of};
use crate::mapping::shared::SharedWords;
use crate::mapping::socket::{Message, Socket};
use crate::native::direct::Direct;

/// How long the server may take for each message of the handshake. It answers within a turn of its session thread.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What a handshake ends with.
pub(super) struct Greeted {
    pub(super) socket: Socket,
    pub(super) welcome: Welcome,
    pub(super) memory: SharedWords,
    pub(super) node: SharedWords,
    /// One a shard.
    pub(super) bells: Vec<OwnedFd>,
    /// With feature DIRECT.
    pub(super) direct: Option<Arc<Direct>>,
}

/// Greets the server at `path`.
///
/// # Errors
/// [`ClientError::Connect`] when nobody answers there, [`ClientError::Refused`] when the server lets no one in, and
/// [`ClientError::Contract`] when what it says is none of the protocol.
pub(super) fn greet(path: &Path) -> Result<Greeted, ClientError> {
    let failed = |error: &io::Error| ClientError::Connect {
        address: path.display().to_string(),
        reason: match error.kind() {
            io::ErrorKind::WouldBlock => format!("no answer within {} s", ANSWER_WITHIN.as_secs()),
            _ => reason_of(error),
        },
    };
    let socket = Socket::connect(path, ANSWER_WITHIN).map_err(|error| failed(&error))?;
    let program = std::env::args_os().next().unwrap_or_default();
    let program = Path::new(&program).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let features = FEATURE_ARENAS | FEATURE_DIRECT | FEATURE_ADDRESS;
    let hello = Hello { features, ..Hello::new(&program) };
    socket.send(&ClientFrame::Hello(hello).encode()).map_err(|error| failed(&error))?;
    let Message { bytes, descriptors } = socket.receive().map_err(|error| failed(&error))?;
    let welcome = match frame(&bytes)? {
        ServerFrame::Welcome(welcome) => *welcome,
        ServerFrame::Refusal { text, .. } | ServerFrame::Closed { text } => {
            return Err(ClientError::Refused { address: path.display().to_string(), reason: text });
        }
        _ => return Err(broken("its first frame is no Welcome")),
    };
    let expected = 2 + usize::from(doorbells_in_message(welcome.shard_count, 0));
    let mut descriptors = counted(descriptors, expected)?.into_iter();
    let mut next = || descriptors.next().ok_or_else(|| broken("a descriptor is missing"));
    let (memory, node) = (next()?, next()?);
    let mut bells: Vec<OwnedFd> = descriptors.collect();
    while bells.len() < usize::from(welcome.shard_count) {
        let Message { bytes, descriptors } = socket.receive().map_err(|error| failed(&error))?;
        let first = bells.len() as u16;
        match frame(&bytes)? {
            ServerFrame::Doorbells { first: stated } if stated == first => {}
            other => {
                return Err(broken(&format!("doorbells from {first} on were due, and it sent {other:?}")));
            }
        }
        let expected = usize::from(doorbells_in_message(welcome.shard_count, first));
        bells.extend(counted(descriptors, expected)?);
    }
    let mapped = |error: io::Error| {
        ClientError::Mapping(format!(
            "the memory of a native session cannot be mapped: {}",
            reason_of(&error)
        ))
    };
    let memory = SharedWords::map(&memory, session_bytes(welcome.shard_count)).map_err(mapped)?;
    let node = SharedWords::map_read_only(&node, NODE_PAGE_BYTES).map_err(mapped)?;
    let direct = match welcome.features & FEATURE_DIRECT {
        0 => None,
        _ => Some(receive_pages(&socket, welcome.shard_count, &failed, &mapped)?),
    };
    Ok(Greeted { socket, welcome, memory, node, bells, direct })
}

/// The tables that there are, and the pages, which come last.
fn receive_pages(
    socket: &Socket,
    shard_count: u16,
    failed: &impl Fn(&io::Error) -> ClientError,
    mapped: &impl Fn(io::Error) -> ClientError,
) -> Result<Arc<Direct>, ClientError> {
    let mut tables = Vec::new();
    loop {
        let Message { bytes, descriptors } = socket.receive().map_err(|error| failed(&error))?;
        match frame(&bytes)? {
            ServerFrame::IndexOffered { shard, bytes, .. } => {
                let [table] = of_frame(descriptors)?;
                tables.push((shard, SharedWords::map_table(&table, bytes.0).map_err(mapped)?));
            }
            ServerFrame::Pages { shard_count: stated } if stated == shard_count => {
                let [cells, status] = of_frame(descriptors)?;
                let cells = SharedWords::map(&cells, written_bytes(shard_count)).map_err(mapped)?;
                let status = SharedWords::map_read_only(&status, STATUS_BYTES).map_err(mapped)?;
                let direct = Direct::new(cells, status, shard_count).map_err(mapped)?;
                tables.into_iter().for_each(|(shard, table)| direct.take_table(shard, table));
                return Ok(direct);
            }
            other => return Err(broken(&format!("tables and pages were due, and it sent {other:?}"))),
        }
    }
}

fn of_frame<const COUNT: usize>(descriptors: Vec<OwnedFd>) -> Result<[OwnedFd; COUNT], ClientError> {
    counted(descriptors, COUNT)?.try_into().map_err(|_| broken("descriptors were lost"))
}

fn frame(bytes: &[u8]) -> Result<ServerFrame, ClientError> {
    if bytes.is_empty() {
        return Err(broken("it closed the connection instead of answering"));
    }
    ServerFrame::decode(bytes).map_err(|error| broken(&error.message))
}

fn counted(descriptors: Vec<OwnedFd>, expected: usize) -> Result<Vec<OwnedFd>, ClientError> {
    if descriptors.len() == expected {
        return Ok(descriptors);
    }
    Err(broken(&format!("{} descriptors came, and {expected} were due", descriptors.len())))
}

fn broken(what: &str) -> ClientError {
    ClientError::Contract(format!("in the handshake of a native session, {what}"))
}
