//! Commits that happen together or not at all (BatchCommit).
//!
//! ```text
//! front: Request::Commit { batch } to each payload's shard --> shard: seals, then CatalogOp { batch }
//!        --> catalog writer: keeps the parts until all are there --> one transaction --> an acknowledgement a part
//! front: some shard refused its part --> catalog writer: Completion::BatchRefused to each shard whose part it has
//! ```
//! Every part is either refused by its shard, which the front hears, or reaches the writer, which answers it; so nobody
//! waits for a part that never comes.

/// Names a batch. Minted by the front; never used twice while the server runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BatchId(pub u64);

/// What marks a commit as a part of a batch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BatchPart {
    /// Of which.
    pub batch: BatchId,
    /// How many parts that has, 1 ..= `limits::BATCH_ITEMS_MAX`.
    pub len: u32,
}
