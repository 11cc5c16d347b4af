//! Lineage: which payloads a payload was made of. Descriptive only; it keeps nothing alive and deletes nothing.

use payload_types::record::LineageEdge;
use payload_types::{PayloadId, limits};
use payload_wire::pb::catalog::v1 as catalog;

use crate::client::{Client, encode_id};
use crate::descriptor::{broken, decode_id};
use crate::error::ClientError;

/// Something that a payload was made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parent {
    /// Which payload.
    pub id: PayloadId,
    /// By what the child was made of it.
    pub operation: String,
    /// As what it served.
    pub role: String,
    /// At most `limits::OPAQUE_BYTES_MAX`, kept byte for byte.
    pub parameters: Vec<u8>,
}

/// Which way lineage is followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Towards what the payload was made of.
    Upstream,
    /// Towards what was made of it.
    Downstream,
}

impl Client {
    /// Says what a payload was made of: all parents, or none when one of them is unknown. An edge that is there already,
    /// with the same operation and role, gets the new parameters; so it may be repeated.
    ///
    /// # Errors
    /// As behaviour.md says of AddLineage.
    pub async fn add_lineage(&self, child: PayloadId, parents: Vec<Parent>) -> Result<(), ClientError> {
        let edge = |parent: Parent| catalog::LineageEdge {
            parent: encode_id(parent.id),
            operation: parent.operation,
            role: parent.role,
            parameters: parent.parameters,
            child: None,
        };
        let request = catalog::AddLineageRequest {
            child: encode_id(child),
            parents: parents.into_iter().map(edge).collect(),
        };
        self.answer(self.catalog().add_lineage(self.request(request)).await)
    }

    /// The edges met from a payload, breadth first, each once; at most `depth_max` steps away, all of them for 0.
    ///
    /// # Errors
    /// As behaviour.md says of GetLineage; RESOURCE_EXHAUSTED when they do not fit into one answer.
    /// [`ClientError::Contract`] when an edge names no child, as those of a server without our own fields do.
    pub async fn lineage(
        &self,
        id: PayloadId,
        direction: Direction,
        depth_max: u32,
    ) -> Result<Vec<LineageEdge>, ClientError> {
        let request = catalog::GetLineageRequest {
            id: encode_id(id),
            upstream: direction == Direction::Upstream,
            max_depth: depth_max,
        };
        let mut catalog = self.catalog().max_decoding_message_size(limits::MESSAGE_BYTES_MAX);
        let answer = self.answer(catalog.get_lineage(self.request(request)).await)?;
        answer.edges.into_iter().map(decode_edge).collect()
    }
}

fn decode_edge(message: catalog::LineageEdge) -> Result<LineageEdge, ClientError> {
    if message.child.is_none() {
        return Err(broken("an edge of the lineage does not name its child"));
    }
    Ok(LineageEdge {
        child: decode_id(message.child.as_ref())?,
        parent: decode_id(message.parent.as_ref())?,
        operation: message.operation,
        role: message.role,
        parameters: message.parameters,
    })
}
