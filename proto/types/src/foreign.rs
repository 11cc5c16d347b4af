//! Payloads of other nodes that share the catalog: what their rows say, and who serves them.
//!
//! Made by the catalog's readers, shown by the front. A row says less than its own node knows: nothing of payloads that are
//! not committed, of leases, and of faster replicas that a durable one stands behind.

use std::sync::Arc;

use crate::descriptor::Descriptor;
use crate::error::{ErrorKind, PayloadError};
use crate::reply::Summary;

/// A node that was silent for so long does not run, or cannot reach the catalog: five heartbeats of 2 s.
pub const NODE_SILENT_MS_MAX: u64 = 10_000;

/// A node as the catalog knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OtherNode {
    /// `node.name`.
    pub name: String,
    /// `host:port` of its gRPC.
    pub address: String,
    /// Milliseconds since it last said that it runs; `None`: it has stopped in order.
    pub silent_ms: Option<u64>,
}

/// A payload that another node owns.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Foreign {
    /// What its row says. Never with a location: the bytes are the other node's to lease.
    pub descriptor: Descriptor,
    /// Its node found that its bytes did not survive a restart.
    pub is_lost: bool,
    /// Who owns it.
    pub node: Arc<OtherNode>,
}

/// Those of one page.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ForeignPage {
    /// Newest first, at most as many as were asked for; none is lost.
    pub rows: Vec<Foreign>,
    /// All that match the filter, whatever the cursor.
    pub total: u64,
}

impl Foreign {
    /// Its row in a listing. Leases are known to its own node only.
    pub fn summary(&self) -> Summary {
        let Descriptor { id, tier, state, size, created_at, expires_at, .. } = self.descriptor;
        Summary { id, tier, state, size, created_at, expires_at, leases: 0 }
    }

    /// The answer to whoever asks this node for what only the owner can do.
    pub fn elsewhere(&self) -> PayloadError {
        let OtherNode { name, address, silent_ms } = &*self.node;
        let id = self.descriptor.id;
        match silent_ms {
            _ if self.is_lost => self.lost(),
            None => PayloadError::precondition(format!(
                "payload {id} is on node `{name}` at {address}, which has stopped; start that node again, and call it there"
            )),
            Some(silent) if *silent > NODE_SILENT_MS_MAX => PayloadError::precondition(format!(
                "payload {id} is on node `{name}` at {address}, which was last heard of {} s ago; see that it runs and reaches the catalog, and call it there",
                silent / 1000
            )),
            Some(_) => PayloadError::precondition(format!(
                "payload {id} is on node `{name}`; call that node, at {address}"
            )),
        }
    }

    /// The answer to whoever asks for a payload whose bytes are gone.
    pub fn lost(&self) -> PayloadError {
        PayloadError::new(
            ErrorKind::NotFound,
            format!(
                "payload {} of node `{}` is LOST: its bytes did not survive a restart of that node; delete it there, at {}, and make it anew",
                self.descriptor.id, self.node.name, self.node.address
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ByteCount, EvictionPolicy, PayloadId, PayloadState, Tier, Version, WallMs};

    fn foreign(silent_ms: Option<u64>, is_lost: bool) -> Foreign {
        let descriptor = Descriptor {
            id: PayloadId::from_bytes([1; 16]),
            tier: Tier::Disk,
            state: PayloadState::Durable,
            location: None,
            size: ByteCount(640),
            version: Version(2),
            created_at: WallMs::from_millis(1),
            expires_at: None,
            policy: EvictionPolicy::default(),
            checksum: None,
        };
        let node = OtherNode { name: "two".to_owned(), address: "h2:50051".to_owned(), silent_ms };
        Foreign { descriptor, is_lost, node: Arc::new(node) }
    }

    #[test]
    fn given_nodes_in_every_state_when_their_payloads_are_asked_for_then_name_and_address_are_told() {
        for (silent_ms, words) in [
            (Some(0), "call that node, at h2:50051"),
            (Some(NODE_SILENT_MS_MAX), "call that node"),
            (Some(34_900), "last heard of 34 s ago"),
            (None, "has stopped"),
        ] {
            let told = foreign(silent_ms, false).elsewhere();
            assert_eq!(told.kind, ErrorKind::FailedPrecondition);
            for words in [words, "`two`", "h2:50051", "01010101-"] {
                assert!(told.message.contains(words), "{told}");
            }
        }
        let lost = foreign(Some(0), true).elsewhere();
        assert!(lost.kind == ErrorKind::NotFound && lost.message.contains("LOST"), "{lost}");
    }
}
