//! A payload's bytes in this process: [`WritablePayload`] from Allocate to Commit, [`ReadLease`] from Acquire to
//! Release.
//!
//! ```text
//! Client::allocate -> WritablePayload (&mut [u8]) -> commit                              -> Descriptor
//!                                                 -> commit_accepted -> Accepted -> durable -> Descriptor
//! Client::acquire  -> ReadLease (&[u8])           -> release, or drop
//! ```
//!
//! Each remembers which way it came ([`Via`]) and goes back that way. Both clean up when they are dropped half-way: an
//! allocation that was not committed is given back, a lease is released; over a native session at once and without waiting,
//! over gRPC in the background and as far as possible: where that fails the server's own timeouts do it.
//! The mapping is always gone before Commit is asked for, because only then can the server prove that nobody writes
//! any more (DESIGN §5). Limit: a gRPC lease ends at `expires_at`, also while it is held; the mapping stays readable
//! and its bytes the same, but the payload may be moved or deleted meanwhile. A native lease lives until it is released.
//!
//! Bytes cannot be used longer than what keeps them:
//!
//! ```compile_fail,E0505
//! fn outlive(lease: payload_client::ReadLease) -> u8 {
//!     let bytes: &[u8] = &lease;
//!     drop(lease);
//!     bytes[0]
//! }
//! ```
//! ```compile_fail,E0505
//! fn write_after_commit(mut payload: payload_client::WritablePayload) {
//!     let bytes: &mut [u8] = &mut payload;
//!     let _committing = payload.commit(None);
//!     bytes[0] = 1;
//! }
//! ```
//! ```compile_fail,E0596
//! fn write_to_a_lease(lease: payload_client::ReadLease) {
//!     let mut lease = lease;
//!     let bytes: &mut [u8] = &mut lease;
//!     bytes[0] = 1;
//! }
//! ```
//! ```compile_fail,E0382
//! async fn read_after_release(lease: payload_client::ReadLease) -> u8 {
//!     let _released = lease.release().await;
//!     lease[0]
//! }
//! ```

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use payload_local::{Outcome, Submission};
use payload_types::{
    ByteCount, Checksum, ErrorKind, EvictionPolicy, LeaseId, PayloadId, PayloadState, Tier, Version, WallMs,
};
use tokio::runtime::Handle;

use crate::allocating::Allocating;
use crate::batch::Each;
use crate::client::{AcquireOptions, AllocateOptions, Client};
use crate::descriptor::{Descriptor, Location, location_of};
use crate::error::ClientError;
use crate::mapping::{ReadMapping, WriteMapping};
use crate::native::direct::{Pin, Pinned, Wish};
use crate::native::{Call, Pending, Session, request};
use crate::transfer::blocking;

/// Which way something came, and goes back.
#[derive(Debug)]
pub(crate) enum Via {
    /// Over a native session.
    Native(Arc<Session>),
    /// Over gRPC; what is done in the background runs there.
    Grpc(Box<Client>, Handle),
}

/// Reserved space that this process may write to.
#[derive(Debug)]
pub struct WritablePayload {
    via: Via,
    descriptor: Descriptor,
    /// `None` once Commit was asked for, or it was abandoned: nothing is left to clean up.
    mapping: Option<WriteMapping>,
}

/// A replica that is pinned and mapped.
#[derive(Debug)]
pub struct ReadLease {
    via: Via,
    hold: Hold,
    descriptor: Descriptor,
    expires_at: Option<WallMs>,
    /// Over a native session: the count of revocations at which it was valid.
    revoked: AtomicU64,
    /// `None` once it was released.
    mapping: Option<ReadMapping>,
}

/// What keeps a lease.
#[derive(Debug)]
enum Hold {
    /// The server's books.
    Granted(LeaseId),
    /// A cell of this process's own, which the server looks at.
    Direct(Pin),
    /// Nothing any more.
    Over,
}

/// A committed payload that may be leased on this node, and is not known to be durable yet.
#[derive(Debug)]
#[must_use]
pub struct Accepted<W = Pending> {
    descriptor: Descriptor,
    checksum: Option<Checksum>,
    /// `None`: it is durable already.
    rest: Option<(Arc<Session>, W)>,
}

/// What a blocking caller of [`Accepted`] waits for.
pub(crate) type Waits = Call<Arc<Session>>;

impl Client {
    /// Describes an allocation of `size` bytes; awaiting it reserves and maps them, on RAM unless [`Allocating::tier`] says
    /// otherwise: `client.allocate(size).tier(..).ttl(..).await`.
    pub fn allocate(&self, size: ByteCount) -> Allocating<'_, Self> {
        Allocating::new(self, size)
    }

    pub(crate) async fn open(
        &self,
        size: ByteCount,
        options: &AllocateOptions,
    ) -> Result<WritablePayload, ClientError> {
        let Some(session) = self.native() else {
            let descriptor = self.allocate_payload(size, options).await?.descriptor;
            let id = descriptor.id;
            let mapping = location_of(&descriptor).and_then(WriteMapping::open);
            if mapping.is_err() {
                self.discard(id).await;
            }
            let via = Via::Grpc(Box::new(self.clone()), Handle::current());
            return Ok(WritablePayload { via, descriptor, mapping: Some(mapping?) });
        };
        let outcome = session.call_async(&request::allocate(session, size, options, self.deadline())).await?;
        WritablePayload::native(session, outcome, options)
    }

    /// Leases a replica and maps it.
    ///
    /// # Errors
    /// As [`Client::acquire_read_lease`], and [`ClientError::Mapping`] when the replica cannot be mapped; the lease
    /// is released then.
    pub async fn acquire(&self, id: PayloadId, options: &AcquireOptions) -> Result<ReadLease, ClientError> {
        if let Some(session) = self.native() {
            if let Some(lease) = ReadLease::direct(session, id, options) {
                return lease.map_async().await;
            }
            let revoked = session.revoked();
            let wish = request::acquire(id, &options.mappable(), self.deadline());
            let outcome = session.call_async(&wish).await?;
            return ReadLease::native_async(session, outcome, id, revoked).await;
        }
        let lease = self.acquire_read_lease(id, &options.mappable()).await?;
        let lease_id = lease.id;
        let mapped = self.map_lease(lease);
        if mapped.is_err() {
            // The mapping's error is the one to report; an unreleased lease ends by itself.
            let _ended_later = self.release_lease(lease_id).await;
        }
        mapped
    }

    /// Leases many payloads and maps them, with one ring of the doorbell or one call. One result for each, in order.
    ///
    /// # Errors
    /// Of the whole: as [`Client::batch_acquire`], or that the session has ended.
    pub async fn acquire_many(
        &self,
        ids: &[PayloadId],
        options: &AcquireOptions,
    ) -> Result<Each<ReadLease>, ClientError> {
        if let Some(session) = self.native() {
            let revoked = session.revoked();
            let direct = ReadLease::direct_many(session, ids, options);
            let wishes = request::acquire_rest(ids, &direct, options, self.deadline());
            let mut answers = session.call_many_async(&wishes).await?.into_iter();
            let mut leases = Vec::with_capacity(ids.len());
            for (id, direct) in ids.iter().zip(direct) {
                leases.push(match direct {
                    Some(lease) => lease.map_async().await,
                    None => match answers.next().expect("an answer for each that was asked for") {
                        Ok(outcome) => ReadLease::native_async(session, outcome, *id, revoked).await,
                        Err(error) => Err(error),
                    },
                });
            }
            return Ok(leases);
        }
        let mut mapped = Vec::with_capacity(ids.len());
        for some in ids.chunks(payload_types::limits::BATCH_ITEMS_MAX) {
            for lease in self.batch_acquire(some, options).await? {
                mapped.push(match lease {
                    // What cannot be mapped is released when its time is over.
                    Ok(lease) => self.map_lease(lease),
                    Err(error) => Err(error),
                });
            }
        }
        Ok(mapped)
    }

    /// Unmaps the bytes of many leases and ends them.
    ///
    /// # Errors
    /// As [`ReadLease::release`], of the first that could not be released; all others were.
    pub async fn release_many(&self, leases: Vec<ReadLease>) -> Result<(), ClientError> {
        let (mut native, mut remote) = (Vec::new(), Vec::new());
        let mut session = None;
        for mut lease in leases {
            drop(lease.mapping.take());
            let Some(id) = lease.let_go() else { continue };
            match &lease.via {
                Via::Native(of) if session.as_ref().is_none_or(|one| Arc::ptr_eq(one, of)) => {
                    session = Some(Arc::clone(of));
                    native.push(Submission::Release { lease: id });
                }
                Via::Native(of) => of.post(&Submission::Release { lease: id })?,
                Via::Grpc(..) => remote.push(id),
            }
        }
        let mut released = Ok(());
        if let Some(session) = session {
            let answers = session.call_many_async(&native).await?;
            released = answers.into_iter().try_for_each(|answer| answer.map(drop));
        }
        for some in remote.chunks(payload_types::limits::BATCH_ITEMS_MAX) {
            let each = self.batch_release(some).await?;
            released = released.and(each.into_iter().collect());
        }
        released
    }

    pub(crate) fn map_lease(&self, lease: crate::descriptor::Lease) -> Result<ReadLease, ClientError> {
        let mapping = ReadMapping::open(location_of(&lease.descriptor)?)?;
        Ok(ReadLease {
            via: Via::Grpc(Box::new(self.clone()), Handle::current()),
            hold: Hold::Granted(lease.id),
            descriptor: lease.descriptor,
            expires_at: Some(lease.expires_at),
            revoked: AtomicU64::new(0),
            mapping: Some(mapping),
        })
    }

    /// Deletes an allocation that nobody else knows of. When that fails, `leases.allocation_timeout` reclaims it,
    /// and the caller has a better error to report.
    async fn discard(&self, id: PayloadId) {
        let _reclaimed_later = self.delete_over_grpc(id, true, None).await;
    }
}

impl WritablePayload {
    /// Of an Allocate's outcome over `session`; given back if it cannot be mapped.
    pub(crate) fn native(
        session: &Arc<Session>,
        outcome: Outcome,
        options: &AllocateOptions,
    ) -> Result<Self, ClientError> {
        let descriptor = session.allocated(outcome, options)?;
        let mapping = session.map_to_write(&descriptor);
        if mapping.is_err() {
            let _ended_with_the_session = session.post(&Submission::Abort { id: descriptor.id });
        }
        Ok(Self { via: Via::Native(Arc::clone(session)), descriptor, mapping: Some(mapping?) })
    }

    /// Its id, before anybody else may read it.
    pub fn id(&self) -> PayloadId {
        self.descriptor.id
    }

    /// As Allocate answered.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Ends writing, and returns when the payload is durable as its tier says. `checksum` is the XXH3-64 of the bytes when
    /// the producer has it: the server then verifies every copy against what the producer meant, instead of against what
    /// it first read.
    ///
    /// # Errors
    /// As [`Client::commit_payload`]. When the server refuses, the allocation is given back; when the outcome is unknown,
    /// it is left as it is.
    pub async fn commit(mut self, checksum: Option<Checksum>) -> Result<Descriptor, ClientError> {
        self.unmap();
        let id = self.descriptor.id;
        match &self.via {
            Via::Native(session) => {
                let answer = session.call_async(&Submission::Commit { id, checksum, accepted: false }).await;
                self.committed(checksum, answer)
            }
            Via::Grpc(client, _) => {
                let result = client.commit_payload(id, checksum).await;
                if result.as_ref().is_err_and(is_refusal) {
                    client.discard(id).await;
                }
                result
            }
        }
    }

    /// Ends writing, and returns as soon as the payload may be leased on this node: before it is durable, where the server
    /// can do that. Until [`Accepted::durable`] says so, an end of the server may lose it. Over gRPC it is durable at once.
    ///
    /// # Errors
    /// As [`WritablePayload::commit`].
    pub async fn commit_accepted(mut self, checksum: Option<Checksum>) -> Result<Accepted, ClientError> {
        let Via::Native(session) = &self.via else {
            let descriptor = self.commit(checksum).await?;
            return Ok(Accepted { descriptor, checksum, rest: None });
        };
        let session = Arc::clone(session);
        self.unmap();
        let call = session.begin(&self.commit_wish(checksum)).await?;
        match call.accepted().await? {
            Some(outcome) => self.accepted(checksum, outcome, call),
            None => Ok(Accepted { descriptor: self.committed(checksum, call.await)?, checksum, rest: None }),
        }
    }

    /// [`WritablePayload::commit`] of a blocking caller; native ones only.
    pub(crate) fn commit_blocking(mut self, checksum: Option<Checksum>) -> Result<Descriptor, ClientError> {
        self.unmap();
        let id = self.descriptor.id;
        let answer = self.session()?.call(&Submission::Commit { id, checksum, accepted: false });
        self.committed(checksum, answer)
    }

    /// [`WritablePayload::commit_accepted`] of a blocking caller; native ones only.
    pub(crate) fn commit_accepted_blocking(
        mut self,
        checksum: Option<Checksum>,
    ) -> Result<Accepted<Waits>, ClientError> {
        self.unmap();
        let call = self.session()?.submit_owned(&self.commit_wish(checksum))?;
        match call.wait_accepted()? {
            Some(outcome) => self.accepted(checksum, outcome, call),
            None => Ok(Accepted { descriptor: self.committed(checksum, call.wait())?, checksum, rest: None }),
        }
    }

    /// Gives the space back, and waits until that is done as far as it can be.
    pub async fn abandon(mut self) {
        drop(self.mapping.take());
        let id = self.descriptor.id;
        match &self.via {
            Via::Native(session) => {
                let _ended_with_the_session = session.call_async(&Submission::Abort { id }).await;
            }
            Via::Grpc(client, _) => client.discard(id).await,
        }
    }

    fn unmap(&mut self) {
        drop(self.mapping.take());
        if let Via::Native(session) = &self.via {
            session.unmap_isolated(&self.descriptor);
        }
    }

    fn commit_wish(&self, checksum: Option<Checksum>) -> Submission {
        Submission::Commit { id: self.descriptor.id, checksum, accepted: true }
    }

    /// Of the last answer to a native Commit.
    fn committed(
        &self,
        checksum: Option<Checksum>,
        answer: Result<Outcome, ClientError>,
    ) -> Result<Descriptor, ClientError> {
        let session = self.session()?;
        if answer.as_ref().is_err_and(is_refusal) {
            let _ended_with_the_session = session.post(&Submission::Abort { id: self.descriptor.id });
        }
        Ok(Descriptor { policy: self.descriptor.policy, checksum, ..session.shown(answer?)? })
    }

    /// Of stage 1 of a native Commit.
    fn accepted<W>(
        &self,
        checksum: Option<Checksum>,
        outcome: Outcome,
        call: W,
    ) -> Result<Accepted<W>, ClientError> {
        let Via::Native(session) = &self.via else { return Err(not_native()) };
        let policy = self.descriptor.policy;
        let descriptor = Descriptor { policy, checksum, ..session.shown(outcome)? };
        Ok(Accepted { descriptor, checksum, rest: Some((Arc::clone(session), call)) })
    }

    fn session(&self) -> Result<&Arc<Session>, ClientError> {
        match &self.via {
            Via::Native(session) => Ok(session),
            Via::Grpc(..) => Err(not_native()),
        }
    }

    pub(crate) fn mapping(&mut self) -> &mut WriteMapping {
        self.mapping.as_mut().expect(MAPPED)
    }
}

impl<W> Accepted<W> {
    /// Its id: it may be leased now, on this node.
    pub fn id(&self) -> PayloadId {
        self.descriptor.id
    }

    /// As it was accepted.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// True when it was durable as soon as it was accepted.
    pub fn is_durable(&self) -> bool {
        self.rest.is_none()
    }

    fn end(
        session: &Session,
        accepted: Descriptor,
        checksum: Option<Checksum>,
        outcome: Outcome,
    ) -> Result<Descriptor, ClientError> {
        Ok(Descriptor { policy: accepted.policy, checksum, ..session.shown(outcome)? })
    }
}

impl Accepted {
    /// Waits until it is durable as its tier says. Not waiting for it changes nothing for the payload.
    ///
    /// # Errors
    /// As [`WritablePayload::commit`]: then the payload is gone, for everybody.
    pub async fn durable(self) -> Result<Descriptor, ClientError> {
        match self.rest {
            None => Ok(self.descriptor),
            Some((session, call)) => Self::end(&session, self.descriptor, self.checksum, call.await?),
        }
    }
}

impl Accepted<Waits> {
    /// As [`Accepted::durable`], blocking.
    pub(crate) fn durable_blocking(self) -> Result<Descriptor, ClientError> {
        match self.rest {
            None => Ok(self.descriptor),
            Some((session, call)) => Self::end(&session, self.descriptor, self.checksum, call.wait()?),
        }
    }

    pub(crate) fn already(descriptor: Descriptor) -> Self {
        Self { checksum: descriptor.checksum, descriptor, rest: None }
    }
}

impl ReadLease {
    /// Of an Acquire's outcome over `session`; released if it cannot be mapped. `revoked`: as it was before it was asked.
    pub(crate) fn native(
        session: &Arc<Session>,
        outcome: Outcome,
        id: PayloadId,
        revoked: u64,
    ) -> Result<Self, ClientError> {
        let (lease, descriptor) = session.leased(outcome, id)?;
        let mapping = session.map_to_read(&descriptor);
        if mapping.is_err() {
            let _ended_with_the_session = session.post(&Submission::Release { lease });
        }
        let via = Via::Native(Arc::clone(session));
        let mapping = Some(mapping?);
        let hold = Hold::Granted(lease);
        Ok(Self { via, hold, descriptor, expires_at: None, revoked: revoked.into(), mapping })
    }

    /// Without asking anybody, where that is possible. It is not mapped yet where its slab is not known here.
    #[inline]
    pub(crate) fn direct(session: &Arc<Session>, id: PayloadId, options: &AcquireOptions) -> Option<Self> {
        let pinned = session.pin(&id, Wish::of(options)?)?;
        Some(Self::pinned(session, pinned, id))
    }

    /// As [`ReadLease::direct`], of several with one fence.
    pub(crate) fn direct_many(
        session: &Arc<Session>,
        ids: &[PayloadId],
        options: &AcquireOptions,
    ) -> Vec<Option<Self>> {
        let Some(wish) = Wish::of(options) else { return ids.iter().map(|_| None).collect() };
        let pinned = ids.iter().zip(session.pin_many(ids, wish));
        pinned.map(|(id, pinned)| Some(Self::pinned(session, pinned?, *id))).collect()
    }

    #[inline]
    fn pinned(session: &Arc<Session>, mut pinned: Pinned, id: PayloadId) -> Self {
        let mapping = pinned.block().map(ReadMapping::of);
        let Pinned { pin, entry, place, slab: _ } = pinned;
        let length = ByteCount(entry.length);
        let descriptor = Descriptor {
            id,
            tier: Tier::Ram,
            state: PayloadState::Active,
            version: Version(entry.version),
            size: length,
            location: Some(Location::Block { slab: place.slab, offset: place.offset_bytes(), length }),
            created_at: Some(id.created_at()),
            expires_at: entry.expires_at,
            policy: EvictionPolicy::default(),
            checksum: entry.checksum,
            node: None,
        };
        let (via, revoked) = (Via::Native(Arc::clone(session)), session.revoked().into());
        Self { via, hold: Hold::Direct(pin), descriptor, expires_at: None, revoked, mapping }
    }

    /// Maps it where that is left to do, which waits for the server. It is let go of when that fails.
    pub(crate) fn map(mut self) -> Result<Self, ClientError> {
        if let (None, Via::Native(session)) = (&self.mapping, &self.via) {
            self.mapping = Some(session.map_to_read(&self.descriptor)?);
        }
        Ok(self)
    }

    /// As [`ReadLease::map`], by a task: waits on another thread.
    async fn map_async(self) -> Result<Self, ClientError> {
        match self.mapping {
            Some(_) => Ok(self),
            None => blocking(move || self.map()).await,
        }
    }

    /// Empties the cell of a direct lease; of another one, what is to be released. Once.
    #[inline]
    fn let_go(&mut self) -> Option<LeaseId> {
        match (std::mem::replace(&mut self.hold, Hold::Over), &self.via) {
            (Hold::Granted(lease), _) => Some(lease),
            (Hold::Direct(pin), Via::Native(session)) => {
                if let Some(direct) = session.direct() {
                    direct.release(&pin);
                }
                None
            }
            (Hold::Direct(_), Via::Grpc(..)) | (Hold::Over, _) => None,
        }
    }

    /// As [`ReadLease::native`], by a task: waits on another thread where a slab has to be asked for.
    async fn native_async(
        session: &Arc<Session>,
        outcome: Outcome,
        id: PayloadId,
        revoked: u64,
    ) -> Result<Self, ClientError> {
        let must_wait = match &outcome {
            Outcome::Leased(_, shown) => session.must_wait_to_read(&session.descriptor(id, shown)),
            _ => false,
        };
        if !must_wait {
            return Self::native(session, outcome, id, revoked);
        }
        let session = Arc::clone(session);
        blocking(move || Self::native(&session, outcome, id, revoked)).await
    }

    /// True while the server vouches for the lease. False once its payload was deleted by force, its time is over, or the
    /// server is gone: the bytes stay readable, and nobody else can get at them any more. Over a native session no question
    /// is asked while nothing was deleted by force.
    pub async fn is_valid(&self) -> bool {
        match &self.via {
            Via::Native(session) if self.is_taken(session) => false,
            Via::Native(session) => match self.is_surely_valid(session) {
                Some(revoked) => {
                    let answer = session.call_async(&Submission::Resolve { id: self.descriptor.id }).await;
                    self.note_valid(answer.is_ok(), revoked)
                }
                None => true,
            },
            Via::Grpc(client, _) => {
                let is_over = self.expires_at.is_some_and(|end| end <= now());
                !is_over && client.resolve(self.descriptor.id).await.is_ok()
            }
        }
    }

    /// [`ReadLease::is_valid`] of a blocking caller; native ones only.
    pub(crate) fn is_valid_blocking(&self) -> bool {
        let Via::Native(session) = &self.via else { return false };
        if self.is_taken(session) {
            return false;
        }
        match self.is_surely_valid(session) {
            Some(revoked) => {
                let is_there = session.call(&Submission::Resolve { id: self.descriptor.id }).is_ok();
                self.note_valid(is_there, revoked)
            }
            None => true,
        }
    }

    /// A direct lease that the server has taken away.
    fn is_taken(&self, session: &Session) -> bool {
        match &self.hold {
            Hold::Direct(pin) => session.direct().is_none_or(|direct| !direct.is_valid(pin)),
            Hold::Granted(_) | Hold::Over => false,
        }
    }

    /// `None` when it is valid; else what to note when the server says that it is.
    fn is_surely_valid(&self, session: &Session) -> Option<u64> {
        let revoked = session.revoked();
        let is_same = session.is_open() && revoked == self.revoked.load(Ordering::Relaxed);
        (!is_same).then_some(revoked)
    }

    fn note_valid(&self, is_valid: bool, revoked: u64) -> bool {
        if is_valid {
            self.revoked.store(revoked, Ordering::Relaxed);
        }
        is_valid
    }

    /// What is leased: its location is the replica that is mapped. Over a native session, what it says of expiry, policy and
    /// checksum is not known (`None`, default).
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// When the lease ends by itself, by the server's clock; `None`: not before it is released, or this process ends.
    pub fn expires_at(&self) -> Option<WallMs> {
        self.expires_at
    }

    /// The same lease with all that gRPC tells of the payload: checksum, policy and expiry. They are of these bytes, whenever
    /// they are asked for: an id's bytes never change.
    ///
    /// # Errors
    /// As [`Client::resolve`].
    pub async fn described(mut self, client: &Client) -> Result<Self, ClientError> {
        if self.via.is_native() && client.has_grpc() {
            let known = client.resolve(self.descriptor.id).await?;
            self.descriptor.checksum = known.checksum;
            self.descriptor.policy = known.policy;
            self.descriptor.expires_at = known.expires_at;
            self.descriptor.node = known.node;
        }
        Ok(self)
    }

    /// Makes sure that all bytes can be loaded: what a hostile process cut off is an error here, and a SIGBUS elsewhere.
    ///
    /// # Errors
    /// [`ClientError::Mapping`] when bytes are gone.
    pub fn prepare(&self) -> Result<(), ClientError> {
        let mapping = self.mapping();
        mapping.prepare(0..mapping.len())
    }

    /// Unmaps the bytes and ends the lease.
    ///
    /// # Errors
    /// As [`Client::release_lease`]; the lease then ends by itself.
    pub async fn release(mut self) -> Result<(), ClientError> {
        drop(self.mapping.take());
        let Some(lease) = self.let_go() else { return Ok(()) };
        match &self.via {
            Via::Native(session) => session.call_async(&Submission::Release { lease }).await.map(drop),
            Via::Grpc(client, _) => client.release_lease(lease).await,
        }
    }

    pub(crate) fn mapping(&self) -> &ReadMapping {
        self.mapping.as_ref().expect(MAPPED)
    }
}

/// [`Client::release_many`] of a blocking caller; native ones only.
pub(crate) fn release_many_blocking(leases: Vec<ReadLease>) -> Result<(), ClientError> {
    let mut wishes = Vec::with_capacity(leases.len());
    let mut session = None;
    for mut lease in leases {
        drop(lease.mapping.take());
        let (Some(id), Via::Native(of)) = (lease.let_go(), &lease.via) else { continue };
        match session.get_or_insert_with(|| Arc::clone(of)) {
            first if Arc::ptr_eq(first, of) => wishes.push(Submission::Release { lease: id }),
            _ => of.post(&Submission::Release { lease: id })?,
        }
    }
    let Some(session) = session else { return Ok(()) };
    session.call_many(&wishes)?.into_iter().try_for_each(|answer| answer.map(drop))
}

impl Via {
    fn is_native(&self) -> bool {
        matches!(self, Self::Native(_))
    }
}

/// Why the `Option` of either is `Some` whenever a caller can look.
const MAPPED: &str = "the mapping is taken only by methods that consume the value";

impl Deref for WritablePayload {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.mapping.as_ref().expect(MAPPED)
    }
}

impl DerefMut for WritablePayload {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.mapping()
    }
}

impl Deref for ReadLease {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.mapping()
    }
}

impl Drop for WritablePayload {
    fn drop(&mut self) {
        if self.mapping.take().is_none() {
            return;
        }
        let id = self.descriptor.id;
        match &self.via {
            Via::Native(session) => {
                let _ended_with_the_session = session.post(&Submission::Abort { id });
            }
            Via::Grpc(client, runtime) => {
                let client = client.clone();
                runtime.spawn(async move { client.discard(id).await });
            }
        }
    }
}

impl Drop for ReadLease {
    fn drop(&mut self) {
        drop(self.mapping.take());
        let Some(lease) = self.let_go() else { return };
        match &self.via {
            // Without waiting: an ended session has released it, and in a child it is not ours.
            Via::Native(session) => {
                let _ended_with_the_session = session.post(&Submission::Release { lease });
            }
            Via::Grpc(client, runtime) => {
                let client = client.clone();
                runtime.spawn(async move { client.release_lease(lease).await });
            }
        }
    }
}

/// True when the server refused a Commit, and the allocation is of no use any more.
fn is_refusal(error: &ClientError) -> bool {
    let refused = [
        ErrorKind::InvalidArgument,
        ErrorKind::FailedPrecondition,
        ErrorKind::ResourceExhausted,
        ErrorKind::DataLoss,
    ];
    error.kind().is_some_and(|kind| refused.contains(&kind))
}

/// By the clock of this machine.
fn now() -> WallMs {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    WallMs::from_millis(since.as_millis() as u64)
}

fn not_native() -> ClientError {
    ClientError::Input("this payload did not come over a native session".to_owned())
}
