//! The blocking client: for programs without an async runtime, and the fastest way to a server on the same host.
//!
//! ```no_run
//! # fn example() -> Result<(), payload_client::ClientError> {
//! use payload_client::blocking::Client;
//! use payload_client::AcquireOptions;
//! use payload_types::ByteCount;
//!
//! let client = Client::connect("127.0.0.1:50051")?;
//! let mut payload = client.allocate(ByteCount(5)).open()?;
//! payload.copy_from_slice(b"hello");
//! let id = payload.commit(None)?.id;
//!
//! let lease = client.acquire(id, &AcquireOptions::default())?;
//! assert_eq!(&*lease, b"hello");
//! # Ok(())
//! # }
//! ```
//!
//! ```text
//! connect host:port --NodeInfo--> same boot id, and a socket: native session      else: gRPC
//! connect /path --Welcome--> native session, and gRPC at the address that it tells, where that leads to the same server
//! allocate, commit, acquire, release, resolve, delete, promote, spill: over the session's rings where there is one
//! everything else (`Client::grpc`): gRPC, on a runtime of this client's own
//! ```
//!
//! Cheap to clone; threads may share one. Not for use inside an async runtime, which its calls would block. Over a native session a lease lives until it is dropped, and what a descriptor
//! says of expiry, policy and checksum is not known (`None`, default): ask [`Client::grpc`] to resolve it. A payload is
//! mapped anew by each lease: a mapping that were kept would keep its memory charged, and from the server's cache.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use payload_local::Submission;
use payload_types::{ByteCount, Checksum, PayloadId, PromotionPolicy, Tier, Version};
use tokio::runtime::{Handle, Runtime};

use crate::allocating::Allocating;
use crate::batch::Each;
use crate::client::{AcquireOptions, AllocateOptions, SOCKET_ONLY, SpillOptions, Spilled};
use crate::connect::{ConnectOptions, is_path};
use crate::descriptor::Descriptor;
use crate::error::ClientError;
use crate::mapping::ReadMapping;
use crate::native::{Session, request};
use crate::payload::Waits;
use crate::{client, interrupt, payload};

/// A connection to a server.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
    deadline: Option<Duration>,
}

#[derive(Debug)]
struct Shared {
    session: Option<Arc<Session>>,
    remote: Option<Remote>,
}

/// The way over gRPC.
#[derive(Debug)]
struct Remote {
    client: client::Client,
    /// Dropped last: what is dropped before it may still run on it.
    runtime: Runtime,
}

/// Reserved space that this process may write to.
#[derive(Debug)]
pub struct WritablePayload {
    /// Taken by what consumes it.
    payload: Option<payload::WritablePayload>,
    /// What came over gRPC goes back on this runtime.
    remote: Option<Arc<Shared>>,
}

/// A replica that is pinned and mapped, until it is dropped.
#[derive(Debug)]
pub struct ReadLease {
    /// Taken while it is dropped.
    lease: Option<payload::ReadLease>,
    /// As of [`WritablePayload`].
    remote: Option<Arc<Shared>>,
}

/// A committed payload that may be leased on this node, and is not known to be durable yet.
#[derive(Debug)]
#[must_use]
pub struct Accepted(payload::Accepted<Waits>);

/// Why the `Option`s above are `Some` whenever a caller can look.
const HELD: &str = "it is taken only by methods that consume the value";

impl Client {
    /// Connects to a server: `host:port`, or the path of a native session's socket. The native path is taken where the
    /// server is on this host and lets this user in; otherwise everything goes over gRPC.
    ///
    /// # Errors
    /// [`ClientError::Connect`] when nobody answers, [`ClientError::Refused`] when a socket was named and its server lets
    /// this process not in, [`ClientError::Input`] for what is neither address nor path.
    pub fn connect(target: &str) -> Result<Self, ClientError> {
        Self::connect_with(target, &ConnectOptions::default())
    }

    /// As [`Client::connect`], with these options.
    ///
    /// # Errors
    /// As there; [`ClientError::Input`] for a certificate, key or token that cannot be used.
    pub fn connect_with(target: &str, options: &ConnectOptions) -> Result<Self, ClientError> {
        if is_path(target) {
            let session = Session::connect(Path::new(target))?;
            let remote = Remote::connect_beside(&session, options);
            return Ok(Self::of(Some(session), remote));
        }
        let remote = Remote::connect(target, options)?;
        let session = remote.native_socket().and_then(|path| Session::connect(&path).ok());
        Ok(Self::of(session, Some(remote)))
    }

    /// Connects to `host:port` and uses gRPC alone.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect_grpc(address: &str) -> Result<Self, ClientError> {
        Self::connect_grpc_with(address, &ConnectOptions::default())
    }

    /// As [`Client::connect_grpc`], with these options.
    ///
    /// # Errors
    /// As [`Client::connect_with`].
    pub fn connect_grpc_with(address: &str, options: &ConnectOptions) -> Result<Self, ClientError> {
        Ok(Self::of(None, Some(Remote::connect(address, options)?)))
    }

    fn of(session: Option<Session>, remote: Option<Remote>) -> Self {
        Self { shared: Arc::new(Shared { session: session.map(Arc::new), remote }), deadline: None }
    }

    /// A client on the same connection whose calls end after `deadline`.
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { shared: Arc::clone(&self.shared), deadline: Some(deadline) }
    }

    /// The native session, where there is one.
    pub fn session(&self) -> Option<&Session> {
        self.shared.session.as_deref()
    }

    /// Whatever only gRPC offers, on this client's runtime: metadata, streams, batches, pins, lists.
    ///
    /// # Errors
    /// Those of `call`; [`ClientError::Input`] when this client was connected by a socket's path, and its server is not
    /// reached by gRPC from here.
    pub fn grpc<T>(
        &self,
        call: impl AsyncFnOnce(&client::Client) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let Some(remote) = &self.shared.remote else {
            return Err(ClientError::Input(SOCKET_ONLY.to_owned()));
        };
        let client = match self.deadline {
            Some(deadline) => remote.client.with_deadline(deadline),
            None => remote.client.clone(),
        };
        remote.runtime.block_on(attended(call(&client)))
    }

    /// Describes an allocation of `size` bytes; [`Allocating::open`] reserves and maps them, on RAM unless
    /// [`Allocating::tier`] says otherwise: `client.allocate(size).tier(..).ttl(..).open()`.
    pub fn allocate(&self, size: ByteCount) -> Allocating<'_, Self> {
        Allocating::new(self, size)
    }

    fn open(&self, size: ByteCount, options: &AllocateOptions) -> Result<WritablePayload, ClientError> {
        let Some(session) = &self.shared.session else {
            let payload = Some(self.grpc(async |client| client.open(size, options).await)?);
            return Ok(WritablePayload { payload, remote: Some(Arc::clone(&self.shared)) });
        };
        let outcome = session.call(&request::allocate(session, size, options, self.deadline))?;
        let payload = payload::WritablePayload::native(session, outcome, options)?;
        Ok(WritablePayload { payload: Some(payload), remote: None })
    }

    /// Leases a replica and maps it.
    ///
    /// # Errors
    /// As behaviour.md says of AcquireReadLease; [`ClientError::Mapping`] when the replica cannot be mapped: the lease is
    /// released then.
    pub fn acquire(&self, id: PayloadId, options: &AcquireOptions) -> Result<ReadLease, ClientError> {
        let Some(session) = &self.shared.session else {
            let lease = self.grpc(async |client| client.acquire(id, options).await)?;
            return Ok(self.remote_lease(lease));
        };
        if let Some(lease) = payload::ReadLease::direct(session, id, options) {
            return Ok(ReadLease { lease: Some(lease.map()?), remote: None });
        }
        let revoked = session.revoked();
        let outcome = session.call(&request::acquire(id, options, self.deadline))?;
        let lease = payload::ReadLease::native(session, outcome, id, revoked)?;
        Ok(ReadLease { lease: Some(lease), remote: None })
    }

    /// Leases many payloads and maps them, with one ring of the doorbell or one call. One result for each, in order.
    ///
    /// # Errors
    /// Of the whole: when the session has ended, or as the call.
    pub fn acquire_many(
        &self,
        ids: &[PayloadId],
        options: &AcquireOptions,
    ) -> Result<Each<ReadLease>, ClientError> {
        let Some(session) = &self.shared.session else {
            let leases = self.grpc(async |client| client.acquire_many(ids, options).await)?;
            return Ok(leases.into_iter().map(|lease| Ok(self.remote_lease(lease?))).collect());
        };
        let revoked = session.revoked();
        let direct = payload::ReadLease::direct_many(session, ids, options);
        let mut answers =
            session.call_many(&request::acquire_rest(ids, &direct, options, self.deadline))?.into_iter();
        let lease = |(id, direct): (&PayloadId, Option<payload::ReadLease>)| {
            let lease = match direct {
                Some(lease) => lease.map()?,
                None => {
                    let answer = answers.next().expect("an answer for each that was asked for");
                    payload::ReadLease::native(session, answer?, *id, revoked)?
                }
            };
            Ok(ReadLease { lease: Some(lease), remote: None })
        };
        Ok(ids.iter().zip(direct).map(lease).collect())
    }

    /// Ends many leases, with one ring of the doorbell or one call, and returns when they have ended.
    ///
    /// # Errors
    /// Of the first that could not be released; all others were.
    pub fn release_many(&self, leases: Vec<ReadLease>) -> Result<(), ClientError> {
        let (mut remote, mut native) = (Vec::new(), Vec::new());
        for mut lease in leases {
            let held = lease.lease.take().expect(HELD);
            match &lease.remote {
                Some(_) => remote.push(held),
                None => native.push(held),
            }
        }
        if !remote.is_empty() {
            self.grpc(async |client| client.release_many(remote).await)?;
        }
        payload::release_many_blocking(native)
    }

    fn remote_lease(&self, lease: payload::ReadLease) -> ReadLease {
        ReadLease { lease: Some(lease), remote: Some(Arc::clone(&self.shared)) }
    }

    /// Describes a payload as it is now.
    ///
    /// # Errors
    /// As behaviour.md says of ResolveSnapshot.
    pub fn resolve(&self, id: PayloadId) -> Result<Descriptor, ClientError> {
        match &self.shared.session {
            Some(session) => session.shown(session.call(&Submission::Resolve { id })?),
            None => self.grpc(async |client| client.resolve(id).await),
        }
    }

    /// Removes a payload; with `force` also a leased one.
    ///
    /// # Errors
    /// As behaviour.md says of Delete.
    pub fn delete(
        &self,
        id: PayloadId,
        force: bool,
        expected_version: Option<Version>,
    ) -> Result<(), ClientError> {
        match &self.shared.session {
            Some(session) => session.call(&Submission::Delete { id, force, expected_version }).map(drop),
            None => self.grpc(async |client| client.delete(id, force, expected_version).await),
        }
    }

    /// Adds a replica on a faster tier.
    ///
    /// # Errors
    /// As behaviour.md says of Promote.
    pub fn promote(
        &self,
        id: PayloadId,
        target: Tier,
        policy: Option<PromotionPolicy>,
        expected_version: Option<Version>,
    ) -> Result<Descriptor, ClientError> {
        let Some(session) = &self.shared.session else {
            return self.grpc(async |client| client.promote(id, target, policy, expected_version).await);
        };
        let wish = request::promote(id, target, policy, expected_version, self.deadline);
        session.shown(session.call(&wish)?)
    }

    /// Moves payloads to a slower tier, all at a time. One result for each, in order.
    ///
    /// # Errors
    /// When the session has ended; what a payload's own spill met is in its result.
    pub fn spill(&self, ids: &[PayloadId], options: &SpillOptions) -> Result<Vec<Spilled>, ClientError> {
        let Some(session) = &self.shared.session else {
            return self.grpc(async |client| client.spill(ids, options).await);
        };
        let wishes: Vec<_> = ids.iter().map(|id| request::spill(*id, options, self.deadline)).collect();
        session.spilled(ids, session.call_many(&wishes)?)
    }
}

impl Allocating<'_, Client> {
    /// Reserves the bytes and maps them.
    ///
    /// # Errors
    /// As behaviour.md says of AllocatePayload; [`ClientError::Mapping`] when the space cannot be mapped: it is given
    /// back then.
    pub fn open(self) -> Result<WritablePayload, ClientError> {
        self.client.open(self.size, &self.options)
    }
}

impl Shared {
    /// On the runtime over which something came.
    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.remote.as_ref().expect("what came over gRPC has a runtime").runtime.block_on(future)
    }
}

/// Waits for a call, and looks now and then whether the caller wants it still.
async fn attended<T>(call: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
    if !interrupt::is_watched() {
        return call.await;
    }
    let mut call = pin!(call);
    loop {
        match tokio::time::timeout(interrupt::EVERY, call.as_mut()).await {
            Ok(result) => return result,
            Err(_) => interrupt::look()?,
        }
    }
}

impl Remote {
    fn connect(address: &str, options: &ConnectOptions) -> Result<Self, ClientError> {
        let runtime =
            Self::runtime().map_err(|reason| ClientError::Io { what: "cannot start a thread", reason })?;
        let client = runtime.block_on(client::Client::connect_grpc_with(address, options))?;
        Ok(Self { client, runtime })
    }

    /// As `client::Client::connect_beside_with`.
    fn connect_beside(session: &Session, options: &ConnectOptions) -> Option<Self> {
        let runtime = Self::runtime().ok()?;
        let client = runtime.block_on(client::Client::connect_beside_with(session, options))?;
        Some(Self { client, runtime })
    }

    fn runtime() -> std::io::Result<Runtime> {
        tokio::runtime::Builder::new_current_thread().enable_all().build()
    }

    /// Where the server serves native sessions, if it is on this host and does.
    fn native_socket(&self) -> Option<std::path::PathBuf> {
        // A server that does not know the call serves no sessions.
        let info = self.runtime.block_on(self.client.node_info()).ok()?;
        if info.is_this_host() { info.native_socket } else { None }
    }
}

impl WritablePayload {
    /// Its id, before anybody else may read it.
    pub fn id(&self) -> PayloadId {
        self.payload().id()
    }

    /// As Allocate answered.
    pub fn descriptor(&self) -> &Descriptor {
        self.payload().descriptor()
    }

    /// Ends writing, and returns when it is durable as its tier says. `checksum` is the XXH3-64 of the bytes when the producer
    /// has it.
    ///
    /// # Errors
    /// As behaviour.md says of CommitPayload. When the server refuses, the allocation is given back; when the outcome is
    /// unknown, it is left as it is.
    pub fn commit(mut self, checksum: Option<Checksum>) -> Result<Descriptor, ClientError> {
        let payload = self.payload.take().expect(HELD);
        match &self.remote {
            None => payload.commit_blocking(checksum),
            Some(shared) => shared.block_on(payload.commit(checksum)),
        }
    }

    /// Ends writing, and returns as soon as the payload may be leased on this node: before it is durable, where the server
    /// can do that. Until [`Accepted::durable`] says so, an end of the server may lose it. Over gRPC it is durable at once.
    ///
    /// # Errors
    /// As [`WritablePayload::commit`].
    pub fn commit_accepted(mut self, checksum: Option<Checksum>) -> Result<Accepted, ClientError> {
        if self.remote.is_some() {
            return Ok(Accepted(payload::Accepted::already(self.commit(checksum)?)));
        }
        self.payload.take().expect(HELD).commit_accepted_blocking(checksum).map(Accepted)
    }

    fn payload(&self) -> &payload::WritablePayload {
        self.payload.as_ref().expect(HELD)
    }
}

impl Accepted {
    /// Its id: it may be leased now, on this node.
    pub fn id(&self) -> PayloadId {
        self.0.id()
    }

    /// As it was accepted.
    pub fn descriptor(&self) -> &Descriptor {
        self.0.descriptor()
    }

    /// True when it was durable as soon as it was accepted.
    pub fn is_durable(&self) -> bool {
        self.0.is_durable()
    }

    /// Waits until it is durable as its tier says. Not waiting for it changes nothing for the payload.
    ///
    /// # Errors
    /// As [`WritablePayload::commit`]: then the payload is gone, for everybody.
    pub fn durable(self) -> Result<Descriptor, ClientError> {
        self.0.durable_blocking()
    }
}

impl ReadLease {
    /// What is leased: its location is the replica that is mapped.
    pub fn descriptor(&self) -> &Descriptor {
        self.lease().descriptor()
    }

    /// Makes sure that all bytes can be loaded: what a hostile process cut off is an error here, and a SIGBUS elsewhere.
    ///
    /// # Errors
    /// [`ClientError::Mapping`] when bytes are gone.
    pub fn prepare(&self) -> Result<(), ClientError> {
        self.lease().prepare()
    }

    /// True while the server vouches for the lease: as `payload_client::ReadLease::is_valid`. Over a native session no
    /// question is asked while nothing was deleted by force.
    pub fn is_valid(&self) -> bool {
        match &self.remote {
            None => self.lease().is_valid_blocking(),
            Some(shared) => shared.block_on(self.lease().is_valid()),
        }
    }

    fn mapping(&self) -> &ReadMapping {
        self.lease().mapping()
    }

    fn lease(&self) -> &payload::ReadLease {
        self.lease.as_ref().expect(HELD)
    }
}

impl Deref for ReadLease {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.mapping()
    }
}

impl Deref for WritablePayload {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.payload()
    }
}

impl DerefMut for WritablePayload {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.payload.as_mut().expect(HELD)
    }
}

impl Drop for ReadLease {
    fn drop(&mut self) {
        // What came over a session cleans up by itself, without waiting.
        if let Some(shared) = &self.remote
            && let Some(lease) = self.lease.take()
            && Handle::try_current().is_err()
        {
            // When it fails the lease ends by its own time.
            let _ends_later = shared.block_on(lease.release());
        }
    }
}

impl Drop for WritablePayload {
    fn drop(&mut self) {
        if let Some(shared) = &self.remote
            && let Some(payload) = self.payload.take()
            && Handle::try_current().is_err()
        {
            shared.block_on(payload.abandon());
        }
    }
}
