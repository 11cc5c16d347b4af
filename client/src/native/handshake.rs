//! How a session begins: Hello, Welcome, and the descriptors that come with it. Anything else is an error that says what
//! the server said.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use payload_local::hello::{ClientFrame, FEATURE_ARENAS, Hello, ServerFrame, Welcome, doorbells_in_message};
use payload_local::layout::{NODE_PAGE_BYTES, session_bytes};

use crate::error::{ClientError, reason_of};
use crate::mapping::shared::SharedWords;
use crate::mapping::socket::{Message, Socket};

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
    let hello = Hello { features: FEATURE_ARENAS, ..Hello::new(&program) };
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
    Ok(Greeted { socket, welcome, memory, node, bells })
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
