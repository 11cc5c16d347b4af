//! Lets `wire` show where replicas lie: the drivers' names behind the trait that encoding asks for.

use std::num::NonZeroU32;
use std::sync::Arc;

use payload_drivers::Locator;
use payload_types::{Generation, PayloadId};
use payload_wire::Locate;

use crate::cluster::OwnNode;
use crate::object::ObjectTier;

/// The names of this node's segments and files.
#[derive(Clone)]
pub struct Places {
    /// The drivers' names.
    pub locator: Locator,
    /// This node, where others share its catalog.
    pub node: Option<OwnNode>,
    /// The object store, where there is one.
    pub objects: Option<Arc<ObjectTier>>,
}

impl Locate for Places {
    fn shm_name(&self, id: PayloadId) -> String {
        self.locator.shm_name(id)
    }

    fn disk_path(&self, id: PayloadId, generation: Generation) -> String {
        // The configuration is text, so a root that is no UTF-8 cannot be configured.
        self.locator.disk_path(id, generation).to_string_lossy().into_owned()
    }

    fn segment_path(&self, file: NonZeroU32) -> String {
        self.locator.segment_path(file).to_string_lossy().into_owned()
    }

    fn object_uri(&self, id: PayloadId) -> String {
        self.objects.as_ref().map(|objects| objects.uri(id)).unwrap_or_default()
    }

    fn node(&self) -> Option<(&str, &str)> {
        self.node.as_ref().map(|node| (node.name.as_str(), node.address.as_str()))
    }
}
