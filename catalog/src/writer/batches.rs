//! Batches of commits on their way to the writer: the parts of each are kept until all are there.
//!
//! ```text
//!   part --> not all are there: kept            refuse --> what is kept goes back, and so does what comes later
//!        --> the last of them: the whole batch  forget --> every part was answered; nothing more comes
//! ```
//! Pure: [`super::WriterHandle`] calls it, and so does the simulator. A batch that nobody refuses is forgotten when its last
//! part comes. Bounded by the shards' slots (`limits::OPS_FOR_BATCHES`) and the front's gate (`limits::BATCHES_MAX`).

use std::collections::BTreeMap;

use payload_types::effect::CatalogOp;
use payload_types::{BatchId, BatchPart};

/// What is kept of one batch.
#[derive(Debug)]
enum Batch {
    /// The parts that are there.
    Gathers(Vec<CatalogOp>),
    /// One was refused.
    Refused,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Batches {
    open: BTreeMap<BatchId, Batch>,
}

/// What follows when a part arrives.
#[derive(PartialEq, Eq, Debug)]
pub enum Arrival {
    /// Others are missing.
    Kept,
    /// The last one: these belong into one transaction.
    Whole(Vec<CatalogOp>),
    /// Another was refused: this one goes back.
    Refused(CatalogOp),
}

impl Batches {
    /// A part arrives: `op`, with its mark.
    pub fn part(&mut self, op: CatalogOp, mark: BatchPart) -> Arrival {
        let batch = self.open.entry(mark.batch).or_insert_with(|| Batch::Gathers(Vec::new()));
        let Batch::Gathers(parts) = batch else { return Arrival::Refused(op) };
        parts.push(op);
        if parts.len() < mark.len as usize {
            return Arrival::Kept;
        }
        let whole = std::mem::take(parts);
        self.open.remove(&mark.batch);
        Arrival::Whole(whole)
    }

    /// Takes the last part of a whole batch out again: there is no room for the batch now. The part is to come again.
    ///
    /// # Panics
    /// Unless these are the parts of one batch.
    pub fn part_again(&mut self, mut whole: Vec<CatalogOp>) -> CatalogOp {
        let last = whole.pop().expect("a batch has parts");
        let mark = last.batch.expect("a part is marked");
        self.open.insert(mark.batch, Batch::Gathers(whole));
        last
    }

    /// A part was refused by its shard: all others go back, those that are here now and those that
    /// come later.
    #[must_use = "each of them is to be answered"]
    pub fn refuse(&mut self, batch: BatchId) -> Vec<CatalogOp> {
        match self.open.insert(batch, Batch::Refused) {
            Some(Batch::Gathers(parts)) => parts,
            Some(Batch::Refused) | None => Vec::new(),
        }
    }

    /// Every part of a refused batch was answered.
    pub fn forget(&mut self, batch: BatchId) {
        self.open.remove(&batch);
    }

    /// Batches that are kept.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// True when none is.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use payload_types::effect::CatalogChange;
    use payload_types::{Epoch, NamespaceId, OpId, PayloadId, PayloadKey, ShardIndex};

    use super::*;

    const BATCH: BatchPart = BatchPart { batch: BatchId(7), len: 3 };

    fn op(number: u32) -> CatalogOp {
        let key = PayloadKey { namespace: NamespaceId::DEFAULT, id: PayloadId::mint(1, u64::from(number)) };
        let change = CatalogChange::Remove { key, epoch: Epoch(1) };
        let op = OpId { index: number, generation: 1 };
        CatalogOp { shard: ShardIndex(number as u16), op, change, batch: Some(BATCH) }
    }

    #[test]
    fn given_parts_when_the_last_one_comes_then_all_of_them_go_together() {
        let mut batches = Batches::default();
        assert_eq!(batches.part(op(1), BATCH), Arrival::Kept);
        assert_eq!(batches.part(op(2), BATCH), Arrival::Kept);
        assert_eq!(batches.part(op(3), BATCH), Arrival::Whole(vec![op(1), op(2), op(3)]));
        assert!(batches.is_empty());
    }

    #[test]
    fn given_a_refusal_when_parts_are_there_or_come_later_then_each_goes_back_once() {
        let mut batches = Batches::default();
        assert_eq!(batches.part(op(1), BATCH), Arrival::Kept);
        assert_eq!(batches.refuse(BATCH.batch), [op(1)]);
        assert_eq!(batches.refuse(BATCH.batch), []);
        assert_eq!(batches.part(op(2), BATCH), Arrival::Refused(op(2)));
        assert_eq!(batches.len(), 1, "a part may still come");
        batches.forget(BATCH.batch);
        assert!(batches.is_empty());
    }

    #[test]
    fn given_a_refusal_before_any_part_when_parts_come_then_they_go_back() {
        let mut batches = Batches::default();
        assert_eq!(batches.refuse(BATCH.batch), []);
        assert_eq!(batches.part(op(1), BATCH), Arrival::Refused(op(1)));
    }

    #[test]
    fn given_no_room_for_a_batch_when_its_last_part_comes_again_then_it_is_whole_again() {
        let mut batches = Batches::default();
        assert_eq!(batches.part(op(1), BATCH), Arrival::Kept);
        assert_eq!(batches.part(op(2), BATCH), Arrival::Kept);
        let Arrival::Whole(whole) = batches.part(op(3), BATCH) else { panic!("all are there") };
        assert_eq!(batches.part_again(whole), op(3));
        assert_eq!(batches.part(op(3), BATCH), Arrival::Whole(vec![op(1), op(2), op(3)]));
    }
}
