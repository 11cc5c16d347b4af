//! Up to 1,000 payloads in one call: allocate, commit all or none, lease, release.
//!
//! One result for each item, in order: an item's own refusal is the error that the call for one item would give. An error
//! of the whole call says that there is no result of any item.

use payload_types::{ByteCount, Checksum, LeaseId, PayloadId, limits};
use payload_wire::ids;
use payload_wire::pb::operations::v1 as operations;
use payload_wire::pb::operations::v1::payload_batch_service_client::PayloadBatchServiceClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::client::{
    AcquireOptions, AllocateOptions, Allocation, Client, encode_acquire, encode_allocation, encode_commit,
};
use crate::descriptor::{Descriptor, Lease};
use crate::error::ClientError;

/// What became of each item, in order.
pub type Each<T> = Vec<Result<T, ClientError>>;

/// What became of a BatchCommit.
#[derive(Debug)]
pub enum BatchCommit {
    /// Every payload is committed.
    Committed(Vec<Descriptor>),
    /// None is: why, for each. ABORTED (`ErrorKind::LeaseConflict`): nothing is wrong with this one, but another was refused.
    Refused(Vec<ClientError>),
}

impl Client {
    /// Reserves space for each item.
    ///
    /// # Errors
    /// INVALID_ARGUMENT unless there are 1 to 1,000 items; [`ClientError::Contract`] when the results do not match them.
    pub async fn batch_allocate(
        &self,
        items: &[(ByteCount, AllocateOptions)],
    ) -> Result<Each<Allocation>, ClientError> {
        use operations::batch_allocate_result::Outcome;
        let items_sent = items.iter().map(|(size, options)| encode_allocation(*size, options)).collect();
        let request = operations::BatchAllocateRequest { items: items_sent };
        let answer = self.answer(self.batches().batch_allocate(self.request(request)).await)?;
        let results = answer.results.into_iter().map(|result| match result.outcome {
            Some(Outcome::Allocated(allocated)) => Allocation::decode(allocated),
            Some(Outcome::Error(error)) => Err(self.refusal(error)),
            None => Err(empty()),
        });
        counted(results.collect(), items.len())
    }

    /// Commits all of the payloads in one transaction, or none.
    ///
    /// # Errors
    /// INVALID_ARGUMENT unless there are 1 to 1,000 payloads, each once. DEADLINE_EXCEEDED, UNAVAILABLE and a broken
    /// connection: all are committed or none is, which is not known; resolve one of them.
    pub async fn batch_commit(
        &self,
        items: &[(PayloadId, Option<Checksum>)],
    ) -> Result<BatchCommit, ClientError> {
        use operations::batch_commit_result::Outcome;
        let items_sent = items.iter().map(|(id, checksum)| encode_commit(*id, *checksum)).collect();
        let request = operations::BatchCommitRequest { items: items_sent };
        let answer = self.answer(self.batches().batch_commit(self.request(request)).await)?;
        let results = answer.results.into_iter().map(|result| match result.outcome {
            Some(Outcome::Committed(committed)) => Descriptor::decode(committed.payload_descriptor),
            Some(Outcome::Error(error)) => Err(self.refusal(error)),
            None => Err(empty()),
        });
        let results = counted(results.collect(), items.len())?;
        if answer.committed {
            return Ok(BatchCommit::Committed(results.into_iter().collect::<Result<_, _>>()?));
        }
        let refused: Vec<ClientError> = results.into_iter().filter_map(Result::err).collect();
        if refused.len() < items.len() {
            return Err(ClientError::Contract("BatchCommit committed a part of the batch".to_owned()));
        }
        Ok(BatchCommit::Refused(refused))
    }

    /// Leases each payload; one that is named twice is leased twice.
    ///
    /// # Errors
    /// INVALID_ARGUMENT unless there are 1 to 1,000; [`ClientError::Contract`] when the results do not match them.
    pub async fn batch_acquire(
        &self,
        payloads: &[PayloadId],
        options: &AcquireOptions,
    ) -> Result<Each<Lease>, ClientError> {
        use operations::batch_acquire_result::Outcome;
        let items = payloads.iter().map(|id| encode_acquire(*id, options)).collect();
        let request = operations::BatchAcquireRequest { items };
        let answer = self.answer(self.batches().batch_acquire(self.request(request)).await)?;
        let results = answer.results.into_iter().map(|result| match result.outcome {
            Some(Outcome::Acquired(lease)) => Lease::decode(lease),
            Some(Outcome::Error(error)) => Err(self.refusal(error)),
            None => Err(empty()),
        });
        counted(results.collect(), payloads.len())
    }

    /// Ends leases; those that ended already are fine.
    ///
    /// # Errors
    /// INVALID_ARGUMENT unless there are 1 to 1,000; [`ClientError::Contract`] when the results do not match them.
    pub async fn batch_release(&self, leases: &[LeaseId]) -> Result<Each<()>, ClientError> {
        let lease_ids = leases.iter().map(|lease| ids::lease_id_to_pb(*lease)).collect();
        let request = operations::BatchReleaseRequest { lease_ids };
        let answer = self.answer(self.batches().batch_release(self.request(request)).await)?;
        let results = answer.results.into_iter().map(|result| match result.error {
            Some(error) => Err(self.refusal(error)),
            None => Ok(()),
        });
        counted(results.collect(), leases.len())
    }

    pub(crate) fn batches(&self) -> PayloadBatchServiceClient<Channel> {
        PayloadBatchServiceClient::new(self.channel()).max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
    }

    /// As the call for one item would have failed.
    pub(crate) fn refusal(&self, error: operations::BatchError) -> ClientError {
        ClientError::from_status(&Status::new(Code::from_i32(error.code), error.message), self.address())
    }
}

fn counted<T>(results: Each<T>, asked: usize) -> Result<Each<T>, ClientError> {
    if results.len() == asked {
        return Ok(results);
    }
    Err(ClientError::Contract(format!("a batch of {asked} items has {} results", results.len())))
}

pub(crate) fn empty() -> ClientError {
    ClientError::Contract("a result says neither what was done nor why not".to_owned())
}
