//! What an earlier run began and no row names: ended and deleted, one entry of the journal after the other.
//!
//! The bucket is never listed: what no entry names is left alone, whoever made it.

use std::sync::Arc;

use payload_types::PayloadId;

use super::core::Core;
use super::error::{ObjectError, ObjectErrorKind};
use super::journal::{Entry, EntryKind};

/// What became, or would become, of an entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Swept {
    /// Whose object.
    pub id: PayloadId,
    /// Its key in the store.
    pub key: String,
    /// The payload's size.
    pub size: u64,
    /// What was found.
    pub finding: Finding,
    /// Why it could not be done: it is tried again with the next sweep.
    pub failed: Option<String>,
}

/// See [`Swept`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finding {
    /// A row names the object: only the entry went.
    Named,
    /// An upload in parts that was never completed, or a draft: it was ended, nothing else was there.
    Unfinished,
    /// An object that no row names: it was deleted, with its sidecar.
    Orphan,
}

/// What is to become of an upload's entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Judged {
    /// A row names the object: the entry goes.
    Named,
    /// Nothing will ever name it: its object goes, and the entry.
    Nobodys,
    /// It cannot be said now, or something is under way: both stay.
    Left,
}

impl Core {
    /// Goes through all entries but those under way. `judge` is asked about uploads; `hold` keeps others from an entry's object
    /// for as long as its value lives, and says `None` where something is under way.
    pub(crate) async fn sweep<H>(
        self: &Arc<Self>,
        is_dry: bool,
        judge: &(dyn Fn(&Entry) -> Judged + Send + Sync),
        hold: &(dyn Fn(PayloadId) -> Option<H> + Send + Sync),
    ) -> Vec<Swept> {
        let mut swept = Vec::new();
        for entry in self.journal.entries() {
            let Some(_held) = hold(entry.id) else { continue };
            // It may have been settled since they were listed.
            if self.journal.find(entry.id).is_none_or(|now| now != entry) {
                continue;
            }
            let judged = match entry.kind {
                EntryKind::Upload => judge(&entry),
                EntryKind::Removal => Judged::Nobodys,
            };
            if judged == Judged::Left {
                continue;
            }
            let is_named = judged == Judged::Named;
            let (finding, failed) = match self.sweep_one(&entry, is_dry, is_named).await {
                Ok(finding) => (finding, None),
                Err(error) => (Finding::Orphan, Some(error.message)),
            };
            let key = self.store.key(entry.id).to_string();
            swept.push(Swept { id: entry.id, key, size: entry.size, finding, failed });
        }
        swept
    }

    async fn sweep_one(&self, entry: &Entry, is_dry: bool, is_named: bool) -> Result<Finding, ObjectError> {
        use object_store::ObjectStoreExt as _;
        let key = self.store.key(entry.id);
        let finding = if is_named {
            Finding::Named
        } else {
            match self.call("looking for an object", || self.store.objects.head(&key)).await {
                Ok(_) => Finding::Orphan,
                Err(error) if error.kind == ObjectErrorKind::Missing => Finding::Unfinished,
                Err(error) => return Err(error),
            }
        };
        if is_dry {
            return Ok(finding);
        }
        if finding != Finding::Named {
            self.abort_named(entry).await?;
            self.remove_objects(entry.id).await?;
        }
        self.noted(entry.id, |journal, id| journal.settle(id)).await?;
        Ok(finding)
    }
}
