//! Which RPC needs which role: one table. What it does not name needs the highest.
//!
//! A test walks every RPC of the descriptors, so that none is forgotten. A forced Delete needs [`Role::Operator`], which
//! its handler asks for: the table sees no contents.

use super::Role;
use super::Role::{Admin, Operator, Producer, Reader};

/// RPC by RPC, as paths without the packages' common prefix.
#[rustfmt::skip]
static RULES: &[(&str, Role)] = &[
    ("services.v1.PayloadDataService/AcquireReadLease", Reader),
    ("services.v1.PayloadDataService/ReleaseLease", Reader),
    ("services.v1.PayloadDataService/ResolveSnapshot", Reader),
    ("services.v1.PayloadCatalogService/AllocatePayload", Producer),
    ("services.v1.PayloadCatalogService/CommitPayload", Producer),
    ("services.v1.PayloadCatalogService/Delete", Producer),
    ("services.v1.PayloadCatalogService/ImportPayload", Producer),
    ("services.v1.PayloadCatalogService/Promote", Producer),
    ("services.v1.PayloadCatalogService/Spill", Producer),
    ("services.v1.PayloadCatalogService/Prefetch", Reader), // a lease that promotes does the same
    ("services.v1.PayloadCatalogService/Pin", Producer),
    ("services.v1.PayloadCatalogService/Unpin", Producer),
    ("services.v1.PayloadCatalogService/AddLineage", Producer),
    ("services.v1.PayloadCatalogService/GetLineage", Reader),
    ("services.v1.PayloadCatalogService/UpdatePayloadMetadata", Producer),
    ("services.v1.PayloadCatalogService/AppendPayloadMetadataEvent", Producer),
    ("services.v1.PayloadCatalogService/ListPayloads", Reader),
    ("services.v1.PayloadAdminService/Stats", Reader),
    ("services.v1.PayloadStreamService/CreateStream", Producer),
    ("services.v1.PayloadStreamService/DeleteStream", Producer),
    ("services.v1.PayloadStreamService/Append", Producer),
    ("services.v1.PayloadStreamService/Read", Reader),
    ("services.v1.PayloadStreamService/Subscribe", Reader),
    ("services.v1.PayloadStreamService/Commit", Reader), // a consumer says how far it came
    ("services.v1.PayloadStreamService/GetCommitted", Reader),
    ("services.v1.PayloadStreamService/GetRange", Reader),
    ("operations.v1.PayloadBatchService/BatchAcquire", Reader),
    ("operations.v1.PayloadBatchService/BatchRelease", Reader),
    ("operations.v1.PayloadBatchService/BatchAllocate", Producer),
    ("operations.v1.PayloadBatchService/BatchCommit", Producer),
    ("operations.v1.PayloadBatchService/LeaseSession", Reader),
    ("operations.v1.PayloadRecordsService/GetPayloadMetadata", Reader),
    ("operations.v1.PayloadRecordsService/ListPayloadMetadataEvents", Reader),
    ("operations.v1.PayloadRecordsService/FindPayloads", Reader),
    ("operations.v1.PayloadRecordsService/ListStreams", Reader),
    ("operations.v1.PayloadRecordsService/ListConsumerGroups", Reader),
    ("operations.v1.PayloadRecordsService/RemoveConsumerGroup", Producer), // it lets go what the group retains
    ("operations.v1.PayloadOperationsService/NodeInfo", Reader),
    ("operations.v1.PayloadOperationsService/ExplainPayload", Reader),
    ("operations.v1.PayloadOperationsService/ListHolders", Operator),
    ("operations.v1.PayloadOperationsService/Scrub", Operator),
    ("operations.v1.PayloadOperationsService/SweepObjects", Admin),
];

/// What the paths of our services begin with.
const OURS: &str = "/payload.manager.";

/// The name of the RPC at this path, and the role that it needs.
pub(super) fn needed(path: &str) -> (&str, Role) {
    let name = path.rsplit('/').next().unwrap_or(path);
    let Some(own) = path.strip_prefix(OURS) else {
        // Reflection tells what the contract says.
        return (name, Reader);
    };
    (name, RULES.iter().find(|(rpc, _)| *rpc == own).map_or(Admin, |(_, role)| *role))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    use prost::Message as _;

    /// As far as services go; numbers of google/protobuf/descriptor.proto.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Set {
        #[prost(message, repeated, tag = "1")]
        files: Vec<File>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    struct File {
        #[prost(string, tag = "2")]
        package: String,
        #[prost(message, repeated, tag = "6")]
        services: Vec<Named>,
    }
    /// A service, or a method, whose name has the same number.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Named {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(message, repeated, tag = "2")]
        methods: Vec<Method>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    struct Method {
        #[prost(string, tag = "1")]
        name: String,
    }

    fn rpcs() -> BTreeSet<String> {
        let set = Set::decode(payload_wire::FILE_DESCRIPTOR_SET).expect("descriptors");
        let mut rpcs = BTreeSet::new();
        for file in set.files {
            for service in file.services {
                for method in service.methods {
                    rpcs.insert(format!("{}.{}/{}", file.package, service.name, method.name));
                }
            }
        }
        rpcs
    }

    #[test]
    fn given_every_rpc_of_the_descriptors_when_looked_up_then_a_rule_names_it_and_no_rule_is_left_over() {
        let rpcs = rpcs();
        assert!(rpcs.len() >= 42, "{rpcs:?}");
        let ruled: BTreeSet<String> = RULES.iter().map(|(rpc, _)| format!("payload.manager.{rpc}")).collect();
        assert_eq!(ruled.len(), RULES.len(), "no RPC is listed twice");
        assert_eq!(ruled, rpcs);
    }

    #[test]
    fn given_an_rpc_that_no_rule_names_when_looked_up_then_the_highest_role_is_needed() {
        assert_eq!(needed("/payload.manager.operations.v1.New/DropAll"), ("DropAll", Admin));
        assert_eq!(needed("/payload.manager.services.v1.PayloadCatalogService/Delete"), ("Delete", Producer));
    }
}
