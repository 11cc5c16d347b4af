//! A copy in the making: a file under a private name that gets its public one when it is complete, and is gone
//! without a trace when it is dropped before that. Owned by one transfer.

use std::fs::{File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use payload_types::effect::ReplicaRef;
use payload_types::event::{DriverError, DriverErrorKind};

use super::FileStore;
use crate::fault::{fault, finding};
use crate::naming::Names;

/// See the module's description.
pub(crate) struct Draft<'store> {
    store: &'store FileStore,
    replica: ReplicaRef,
    /// Where it is now.
    path: PathBuf,
    /// Shared with the engine that writes it.
    pub(crate) file: Arc<File>,
    is_complete: bool,
}

impl<'store> Draft<'store> {
    /// An empty file for `replica`.
    pub(crate) fn begin(store: &'store FileStore, replica: ReplicaRef) -> Result<Self, DriverError> {
        let path = store.names.draft(&replica);
        let file = Arc::new(store.make(&replica, &path)?);
        Ok(Self { store, replica, path, file, is_complete: false })
    }

    /// Cuts the file to its size, makes it read-only, puts it on stable storage if `sync`, and gives it its name.
    ///
    /// # Errors
    /// The file is gone then, whatever of it had been done. A failed fdatasync is therefore never repeated.
    pub(crate) fn publish(mut self, sync: bool) -> Result<(), DriverError> {
        let (id, tier) = (self.replica.id, self.replica.tier);
        let tried = |what: &str| format!("{what} the copy of {id} on {tier}");
        let is_file = matches!(self.store.names, Names::Files { .. });
        let sync = sync && is_file;
        let size = self.replica.size;
        let failed = |what: &str, error: &io::Error| self.store.failed(tried(what), error, size);
        // Else what somebody cut since it was hashed would be stretched with zeroes.
        let is_cut = |metadata: Metadata| metadata.blocks() * 512 < size.in_pages().0;
        if !is_file && self.file.metadata().is_ok_and(is_cut) {
            return Err(finding(DriverErrorKind::Io, format!("{}: somebody has cut it", tried("sizing"))));
        }
        self.file.set_len(size.0).map_err(|error| failed("sizing", &error))?;
        self.file
            .set_permissions(Permissions::from_mode(self.store.mode_sealed))
            .map_err(|error| failed("making read-only", &error))?;
        if sync {
            self.store.calls.sync(&self.file).map_err(|error| self.sync_failed(tried("syncing"), &error))?;
        }
        let public = self.store.names.public(&self.replica);
        self.store.calls.rename(&self.path, &public).map_err(|error| failed("naming", &error))?;
        self.path = public;
        if sync {
            let directory = self.store.names.directory(id);
            let synced = self.store.calls.sync_directory(&directory);
            synced.map_err(|error| self.sync_failed(tried("syncing the name of"), &error))?;
        }
        self.is_complete = true;
        Ok(())
    }

    fn sync_failed(&self, tried: String, error: &io::Error) -> DriverError {
        if let Some(health) = &self.store.health {
            health.sync_failed(error);
        }
        fault(tried, error)
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.is_complete {
            self.store.unmake(&self.replica, &self.path);
        }
    }
}
