//! Lets `wire` show where replicas lie: the drivers' names behind the trait that encoding asks for.

use std::num::NonZeroU32;
use std::sync::Arc;

use payload_drivers::Locator;
use payload_drivers::gpu::Gpu;
use payload_types::{Generation, GpuPlace, PayloadId};
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
    /// The devices, where there are any.
    pub gpu: Option<Gpu>,
}

impl Places {
    /// True when a replica's device was lost: whoever is shown its place could not open it, or reads nothing.
    pub fn is_lost(&self, id: PayloadId, generation: Generation) -> bool {
        let Some(gpu) = &self.gpu else { return true };
        let Some(place) = gpu.places().look(id, generation) else { return true };
        gpu.health().iter().any(|device| device.device == place.device && device.fault.is_some())
    }
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

    fn gpu(&self, id: PayloadId, generation: Generation) -> Option<GpuPlace> {
        self.gpu.as_ref()?.places().look(id, generation)
    }

    fn node(&self) -> Option<(&str, &str)> {
        self.node.as_ref().map(|node| (node.name.as_str(), node.address.as_str()))
    }
}
