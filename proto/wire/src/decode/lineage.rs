//! AddLineage and GetLineage (behaviour.md, "Metadata and lineage").

use std::collections::BTreeMap;

use payload_types::record::{LineageEdge, RecordChange, RecordQuery};
use payload_types::{NamespaceId, PayloadError, WallMs};

use super::{opaque, text};
use crate::ids;
use crate::pb::catalog::v1 as pb;

/// Decodes AddLineage. The child is the request's; of edges named twice the last one counts, as if they had been added one
/// after the other.
///
/// # Errors
/// `INVALID_ARGUMENT` for a malformed id, parameters over 1 MiB, a text over 64 KiB.
pub fn lineage_add(
    namespace: NamespaceId,
    request: pb::AddLineageRequest,
    at: WallMs,
) -> Result<RecordChange, PayloadError> {
    let child = ids::payload_key(namespace, request.child.as_ref())?;
    let mut parameters = BTreeMap::new();
    for parent in request.parents {
        let id = ids::payload_id(parent.parent.as_ref())?;
        let operation = text("operation", parent.operation)?;
        let role = text("role", parent.role)?;
        parameters.insert((id, operation, role), opaque("parameters", parent.parameters)?);
    }
    let edge = |((parent, operation, role), parameters)| LineageEdge {
        child: child.id,
        parent,
        operation,
        role,
        parameters,
    };
    Ok(RecordChange::LineageAdd { child, edges: parameters.into_iter().map(edge).collect(), at })
}

/// Decodes GetLineage.
///
/// # Errors
/// `INVALID_ARGUMENT` for a malformed id.
pub fn lineage_get(
    namespace: NamespaceId,
    request: &pb::GetLineageRequest,
    at: WallMs,
) -> Result<RecordQuery, PayloadError> {
    Ok(RecordQuery::Lineage {
        key: ids::payload_key(namespace, request.id.as_ref())?,
        upstream: request.upstream,
        depth_max: request.max_depth,
        at,
    })
}

#[cfg(test)]
mod tests {
    use payload_types::ErrorKind::InvalidArgument;
    use payload_types::PayloadId;
    use payload_types::limits::{OPAQUE_BYTES_MAX, TEXT_BYTES_MAX};

    use super::*;
    use crate::decode::testing::{NAMESPACE, id, key, refused};

    const AT: WallMs = WallMs::from_millis(1_000);

    fn parent(byte: u8, operation: &str, parameters: &[u8]) -> pb::LineageEdge {
        pb::LineageEdge {
            parent: id(byte),
            operation: operation.to_owned(),
            role: "in".to_owned(),
            parameters: parameters.to_vec(),
            child: id(99),
        }
    }

    #[test]
    fn given_edges_when_decoded_then_the_child_is_the_requests_and_the_last_of_two_counts() {
        let parents = vec![parent(3, "cut", b"old"), parent(2, "cut", b"\0"), parent(3, "cut", b"new")];
        let change = lineage_add(NAMESPACE, pb::AddLineageRequest { child: id(1), parents }, AT);
        let edge = |byte, parameters: &[u8]| LineageEdge {
            child: PayloadId::from_bytes([1; 16]),
            parent: PayloadId::from_bytes([byte; 16]),
            operation: "cut".to_owned(),
            role: "in".to_owned(),
            parameters: parameters.to_vec(),
        };
        let edges = vec![edge(2, b"\0"), edge(3, b"new")];
        assert_eq!(change, Ok(RecordChange::LineageAdd { child: key(1), edges, at: AT }));
        let none = lineage_add(NAMESPACE, pb::AddLineageRequest { child: id(1), parents: Vec::new() }, AT);
        assert_eq!(none, Ok(RecordChange::LineageAdd { child: key(1), edges: Vec::new(), at: AT }));
    }

    #[test]
    fn given_edges_that_cannot_be_stored_when_decoded_then_invalid_argument_names_the_field() {
        let add = |parent| {
            lineage_add(NAMESPACE, pb::AddLineageRequest { child: id(1), parents: vec![parent] }, AT)
        };
        refused(add(pb::LineageEdge { parent: None, ..parent(2, "", b"") }), InvalidArgument, "not set");
        let long = "a".repeat(TEXT_BYTES_MAX + 1);
        refused(add(parent(2, &long, b"")), InvalidArgument, "operation");
        refused(add(pb::LineageEdge { role: long, ..parent(2, "", b"") }), InvalidArgument, "role");
        refused(add(parent(2, "", &vec![0; OPAQUE_BYTES_MAX + 1])), InvalidArgument, "parameters");
        add(parent(2, "", &vec![0; OPAQUE_BYTES_MAX])).expect("as long as may be");
        let nobody = pb::AddLineageRequest { child: None, parents: Vec::new() };
        refused(lineage_add(NAMESPACE, nobody, AT), InvalidArgument, "not set");
    }

    #[test]
    fn given_a_question_when_decoded_then_depth_and_direction_are_kept() {
        let request = pb::GetLineageRequest { id: id(1), upstream: true, max_depth: 3 };
        let expected = RecordQuery::Lineage { key: key(1), upstream: true, depth_max: 3, at: AT };
        assert_eq!(lineage_get(NAMESPACE, &request, AT), Ok(expected));
        let nobody = pb::GetLineageRequest::default();
        refused(lineage_get(NAMESPACE, &nobody, AT), InvalidArgument, "not set");
    }
}
