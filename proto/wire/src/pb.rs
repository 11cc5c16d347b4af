//! The contract's generated types, clients and servers, one module for each package.
//!
//! Owned by `build.rs`; whoever speaks gRPC uses them. Nothing here is validated: `decode` does that.

/// Package `payload.manager.core`.
pub mod core {
    /// Ids, tiers, states, policies, descriptors.
    #[allow(missing_docs, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("payload.manager.core.v1");
    }
}

/// Package `payload.manager.catalog`.
pub mod catalog {
    /// Metadata, lineage, archives.
    #[allow(missing_docs, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("payload.manager.catalog.v1");
    }
}

/// Package `payload.manager.runtime`.
pub mod runtime {
    /// Requests and responses of the lifecycle, lease, tiering and stream RPCs.
    #[allow(missing_docs, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("payload.manager.runtime.v1");
    }
}

/// Package `payload.manager.admin`.
pub mod admin {
    /// Requests and responses of the admin RPCs.
    #[allow(missing_docs, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("payload.manager.admin.v1");
    }
}

/// Package `payload.manager.services`.
pub mod services {
    /// Clients and servers of the four services.
    #[allow(missing_docs, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("payload.manager.services.v1");
    }
}

/// Package `payload.manager.operations`: ours, no part of the v1 contract.
pub mod operations {
    /// Accounting, holders, explanations, scrubbing, records, batches.
    #[allow(missing_docs, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("payload.manager.operations.v1");
    }
}
