//! Lets `wire` show where replicas lie: the drivers' names behind the trait that encoding asks for.

use std::num::NonZeroU32;

use payload_drivers::Locator;
use payload_types::{Generation, PayloadId};
use payload_wire::Locate;

/// The names of this node's segments and files.
#[derive(Clone, Debug)]
pub struct Places(pub Locator);

impl Locate for Places {
    fn shm_name(&self, id: PayloadId) -> String {
        self.0.shm_name(id)
    }

    fn disk_path(&self, id: PayloadId, generation: Generation) -> String {
        // The configuration is text, so a root that is no UTF-8 cannot be configured.
        self.0.disk_path(id, generation).to_string_lossy().into_owned()
    }

    fn segment_path(&self, file: NonZeroU32) -> String {
        self.0.segment_path(file).to_string_lossy().into_owned()
    }
}
