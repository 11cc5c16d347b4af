//! Asks a store, once, what it can do: whether we may write, read and delete below our prefix, whether it keeps from replacing what
//! exists when it is asked to, and how far its clock is from ours.
//!
//! The object that this takes has a random name of its own, `.payload-manager-probe-<number>`, and is deleted at the end.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use object_store::{ObjectStoreExt as _, PutMode, PutOptions, PutPayload};

use super::core::Core;
use super::error::{ObjectError, ObjectErrorKind};

/// From here on a difference of clocks is worth a warning: S3 refuses requests from 15 minutes on.
const SKEW_MS_MAX: i64 = 5 * 60 * 1000;

/// What a probe found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Probed {
    /// If-None-Match is honoured, so an object that somebody else made is never replaced.
    pub honours_create: bool,
    /// The store's clock less ours.
    pub clock_skew_ms: i64,
    /// It can sign URLs for clients.
    pub signs: bool,
}

impl Core {
    /// See the module's description.
    pub(crate) async fn probe(self: &Arc<Self>) -> Result<Probed, ObjectError> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let key =
            self.store.named(&format!(".payload-manager-probe-{}-{}", std::process::id(), now.as_nanos()));
        let text = PutPayload::from_static(b"payload-manager");
        let create = || {
            let options = PutOptions::from(PutMode::Create);
            self.store.objects.put_opts(&key, text.clone(), options)
        };
        let first = self.call("storing a probe", create).await;
        let honours_create = match first {
            Ok(_) => match self.call("storing a probe again", create).await {
                Ok(_) => false,
                Err(error) if error.kind == ObjectErrorKind::Conflict => true,
                Err(error) => return Err(error),
            },
            // Some stores do not know the header.
            Err(error) if error.kind == ObjectErrorKind::Config => {
                self.call("storing a probe", || self.store.objects.put(&key, text.clone()))
                    .await
                    .map_err(|_| error)?;
                false
            }
            Err(error) => return Err(error),
        };
        let read = self
            .call("reading a probe", || async { self.store.objects.get(&key).await?.bytes().await })
            .await;
        let removed = self.call("deleting a probe", || self.store.objects.delete(&key)).await;
        if read? != b"payload-manager".as_slice() {
            let said = "the store answers with other bytes than it was given; is something between us that changes them?";
            return Err(ObjectError::new(ObjectErrorKind::Config, said));
        }
        removed?;
        self.honours_create.store(honours_create, Relaxed);
        let clock_skew_ms = self.store.seen.skew_ms.load(Relaxed);
        if clock_skew_ms.abs() > SKEW_MS_MAX {
            tracing::warn!(
                "the object store's clock is {clock_skew_ms} ms from ours; S3 refuses requests from 15 minutes on: set \
                 this machine's clock (NTP)"
            );
        }
        if !honours_create {
            tracing::warn!(
                "the object store replaces objects even when asked not to (If-None-Match); we look before we store \
                 instead, so give no other program the prefix of storage.object.root_path"
            );
        }
        Ok(Probed { honours_create, clock_skew_ms, signs: self.store.signer.is_some() })
    }
}
