//! Finds the payloads that lie below a store's prefix by their sidecars, to rebuild a catalog from.
//!
//! The one place that lists a bucket, because its caller was told to. Reads only. At most [`READ_AT_ONCE`] sidecars are read at
//! a time, and one is handed on after the other, so memory does not grow with the number of payloads.

use std::sync::Arc;

use futures_util::{TryStreamExt as _, future};
use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use payload_types::{ByteCount, PayloadId};

use super::Looked;
use super::core::Core;
use super::error::{ObjectError, ObjectErrorKind};
use super::sidecar::Sidecar;

/// A sidecar takes a few kilobytes, and two requests: this hides their latency.
const READ_AT_ONCE: usize = 16;

/// The end of a sidecar's name.
const ENDING: &str = ".meta.json";

/// What a sidecar says of its payload, and what the store says of the object; or why the two cannot be used.
pub type Archived = (PayloadId, Result<(Sidecar, Looked), ObjectError>);

impl Core {
    /// Gives each payload with a sidecar to `each`, in the store's order, until it says that it wants no more.
    pub(crate) async fn archived(
        self: &Arc<Self>,
        each: &mut (dyn FnMut(Archived) -> bool + Send),
    ) -> Result<(), ObjectError> {
        let prefix = self.store.prefix();
        let listed = self.store.objects.list(prefix.as_ref());
        let failed = |error| ObjectError::of_store("listing the sidecars", &error);
        let mut found = Box::pin(
            listed
                .map_err(failed)
                .try_filter_map(|meta| future::ok(named_in(&meta.location, prefix.as_ref())))
                .map_ok(|id| async move { Ok((id, self.archived_one(id).await)) })
                .try_buffered(READ_AT_ONCE),
        );
        while let Some(one) = found.try_next().await? {
            if !each(one) {
                break;
            }
        }
        Ok(())
    }

    async fn archived_one(&self, id: PayloadId) -> Result<(Sidecar, Looked), ObjectError> {
        let (key, object) = (self.store.sidecar_key(id), self.store.key(id));
        let read = || async { self.store.objects.get(&key).await?.bytes().await };
        let sidecar = Sidecar::from_json(&self.call("reading a sidecar", read).await?)?;
        if sidecar.id != id {
            let said = format!("the sidecar {key} is that of {}", sidecar.id);
            return Err(ObjectError::new(ObjectErrorKind::Corrupt, said));
        }
        let found = self.call("looking at an object", || self.store.objects.head(&object)).await?;
        let looked = Looked { stored: ByteCount(found.size), etag: found.e_tag };
        Ok((sidecar, looked))
    }
}

/// The payload whose sidecar this is: right below the prefix, and named as we name them.
fn named_in(location: &Path, prefix: Option<&Path>) -> Option<PayloadId> {
    let text = location.as_ref();
    let name = match prefix {
        Some(prefix) => text.strip_prefix(prefix.as_ref())?.strip_prefix('/')?,
        None => text,
    };
    let id: PayloadId = name.strip_suffix(ENDING)?.parse().ok()?;
    (name == format!("{id}{ENDING}")).then_some(id)
}
