//! The blocking client: for programs without an async runtime, and the fastest way to a server on the same host.
//!
//! ```no_run
//! # fn example() -> Result<(), payload_client::ClientError> {
//! use payload_client::blocking::Client;
//! use payload_client::{AcquireOptions, AllocateOptions};
//! use payload_types::ByteCount;
//!
//! let client = Client::connect("127.0.0.1:50051")?;
//! let mut payload = client.allocate(ByteCount(5), &AllocateOptions::default())?;
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
//! connect /path ---------------------------------------------> native session
//! allocate, commit, acquire, release, resolve, delete, promote, spill: over the session's rings where there is one
//! everything else (`Client::grpc`): gRPC, on a runtime of this client's own
//! ```
//!
//! Cheap to clone; threads may share one. Not for use inside an async runtime, which its calls would block. Over a native session a lease lives until it is dropped, and what a descriptor
//! says of expiry, policy and checksum is not known (`None`, default): ask [`Client::grpc`] to resolve it. A payload is
//! mapped anew by each lease: a mapping that were kept would keep its memory charged, and from the server's cache.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use payload_local::{Outcome, Shown, Submission};
use payload_types::{ByteCount, Checksum, ErrorKind, PayloadId, PromotionPolicy, SpillPolicy, Tier, Version};
use tokio::runtime::{Handle, Runtime};

use crate::client::{AcquireOptions, AllocateOptions, SpillOptions, Spilled};
use crate::descriptor::{Descriptor, Location};
use crate::error::ClientError;
use crate::mapping::{ReadMapping, WriteMapping};
use crate::native::Session;
use crate::{client, payload};

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
pub struct WritablePayload(Writable);

#[derive(Debug)]
enum Writable {
    Native(NativePayload),
    /// Taken by what consumes it.
    Remote(Option<payload::WritablePayload>, Arc<Shared>),
}

#[derive(Debug)]
struct NativePayload {
    session: Arc<Session>,
    descriptor: Descriptor,
    /// `None` once Commit was asked for, or it was abandoned.
    mapping: Option<WriteMapping>,
}

/// A replica that is pinned and mapped, until it is dropped.
#[derive(Debug)]
pub struct ReadLease(Readable);

#[derive(Debug)]
enum Readable {
    Native(NativeLease),
    /// Taken while it is dropped.
    Remote(Option<payload::ReadLease>, Arc<Shared>),
}

#[derive(Debug)]
struct NativeLease {
    session: Arc<Session>,
    lease: payload_types::LeaseId,
    descriptor: Descriptor,
    /// `None` while it is dropped.
    mapping: Option<ReadMapping>,
}

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
        if target.contains('/') && !target.starts_with("http://") {
            let session = Session::connect(Path::new(target))?;
            return Ok(Self::of(Some(session), None));
        }
        let remote = Remote::connect(target)?;
        let session = remote.native_socket().and_then(|path| Session::connect(&path).ok());
        Ok(Self::of(session, Some(remote)))
    }

    /// Connects to `host:port` and uses gRPC alone.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect_grpc(address: &str) -> Result<Self, ClientError> {
        Ok(Self::of(None, Some(Remote::connect(address)?)))
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
    /// Those of `call`; [`ClientError::Input`] when this client was connected by a socket's path.
    pub fn grpc<T>(
        &self,
        call: impl AsyncFnOnce(&client::Client) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let Some(remote) = &self.shared.remote else {
            return Err(ClientError::Input(
                "this client was connected by the path of a socket, which serves leases and allocations only; connect to host:port for all else"
                    .to_owned(),
            ));
        };
        let client = match self.deadline {
            Some(deadline) => remote.client.with_deadline(deadline),
            None => remote.client.clone(),
        };
        remote.runtime.block_on(call(&client))
    }

    /// Reserves `size` bytes and maps them. On RAM or DISK.
    ///
    /// # Errors
    /// As behaviour.md says of AllocatePayload; [`ClientError::Mapping`] when the space cannot be mapped: it is given
    /// back then.
    pub fn allocate(
        &self,
        size: ByteCount,
        options: &AllocateOptions,
    ) -> Result<WritablePayload, ClientError> {
        let Some(session) = &self.shared.session else {
            let payload = self.grpc(async |client| client.allocate(size, options).await)?;
            return Ok(WritablePayload(Writable::Remote(Some(payload), Arc::clone(&self.shared))));
        };
        let outcome = session.call(&Submission::Allocate {
            size,
            tier: options.tier,
            ttl_ms: options.ttl_ms.unwrap_or_default(),
            no_evict: options.no_evict,
            policy: options.policy,
            memory: payload_types::Memory::Segment,
            deadline_ms: self.deadline_ms(),
        })?;
        let (id, shown) = payload_of(outcome)?;
        let descriptor = Descriptor { policy: options.policy, ..session.descriptor(id, &shown) };
        // From here on dropping it gives it back.
        let mut payload = NativePayload { session: Arc::clone(session), descriptor, mapping: None };
        match location_of(&payload.descriptor).and_then(WriteMapping::open) {
            Ok(mapping) => payload.mapping = Some(mapping.without_children()),
            Err(error) => {
                let _ended_with_the_session = session.post(&Submission::Abort { id });
                return Err(error);
            }
        }
        Ok(WritablePayload(Writable::Native(payload)))
    }

    /// Leases a replica and maps it.
    ///
    /// # Errors
    /// As behaviour.md says of AcquireReadLease; [`ClientError::Mapping`] when the replica cannot be mapped: the lease is
    /// released then.
    pub fn acquire(&self, id: PayloadId, options: &AcquireOptions) -> Result<ReadLease, ClientError> {
        let Some(session) = &self.shared.session else {
            let lease = self.grpc(async |client| client.acquire(id, options).await)?;
            return Ok(ReadLease(Readable::Remote(Some(lease), Arc::clone(&self.shared))));
        };
        let outcome = session.call(&Submission::Acquire {
            id,
            min_tier: options.min_tier,
            policy: options.promotion_policy.unwrap_or(PromotionPolicy::Blocking),
            accepts_packed: !options.own_file,
            expected_version: options.expected_version,
            deadline_ms: self.deadline_ms(),
        })?;
        let Outcome::Leased(lease, shown) = outcome else { return Err(surprise(&outcome)) };
        // From here on dropping it releases it.
        let mut lease = NativeLease {
            session: Arc::clone(session),
            lease,
            descriptor: session.descriptor(id, &shown),
            mapping: None,
        };
        lease.mapping = Some(ReadMapping::open(location_of(&lease.descriptor)?)?.without_children());
        Ok(ReadLease(Readable::Native(lease)))
    }

    /// Describes a payload as it is now.
    ///
    /// # Errors
    /// As behaviour.md says of ResolveSnapshot.
    pub fn resolve(&self, id: PayloadId) -> Result<Descriptor, ClientError> {
        match &self.shared.session {
            Some(session) => shown_by(session, session.call(&Submission::Resolve { id })?),
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
        let policy = policy.unwrap_or(PromotionPolicy::Blocking);
        let deadline_ms = self.deadline_ms();
        let wish = Submission::Promote { id, target, policy, expected_version, deadline_ms };
        shown_by(session, session.call(&wish)?)
    }

    /// Moves payloads to a slower tier, all at a time. One result for each, in order.
    ///
    /// # Errors
    /// When the session has ended; what a payload's own spill met is in its result.
    pub fn spill(&self, ids: &[PayloadId], options: &SpillOptions) -> Result<Vec<Spilled>, ClientError> {
        let Some(session) = &self.shared.session else {
            return self.grpc(async |client| client.spill(ids, options).await);
        };
        let wish = |id| Submission::Spill {
            id,
            target: options.target,
            policy: options.policy.unwrap_or(SpillPolicy::Blocking),
            wait_for_leases: options.wait_for_leases,
            fsync: options.fsync,
            expected_version: options.expected_version,
            deadline_ms: self.deadline_ms(),
        };
        let tickets = ids.iter().map(|id| session.submit(&wish(*id))).collect::<Result<Vec<_>, _>>()?;
        let result = |(id, ticket): (&PayloadId, crate::native::Ticket<'_>)| {
            let result = match ticket.wait() {
                Ok(Outcome::Done) => Ok(None),
                Ok(outcome) => Ok(Some(shown_by(session, outcome)?)),
                Err(ClientError::Server { message, .. }) => Err(message),
                Err(error) => return Err(error),
            };
            Ok(Spilled { id: *id, result })
        };
        ids.iter().zip(tickets).map(result).collect()
    }

    /// For the server; 0 is its default.
    fn deadline_ms(&self) -> u64 {
        self.deadline.map_or(0, |deadline| (deadline.as_millis() as u64).max(1))
    }
}

impl Shared {
    /// On the runtime over which something came.
    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.remote.as_ref().expect("what came over gRPC has a runtime").runtime.block_on(future)
    }
}

impl Remote {
    fn connect(address: &str) -> Result<Self, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|reason| ClientError::Io { what: "cannot start a thread", reason })?;
        let client = runtime.block_on(client::Client::connect(address))?;
        Ok(Self { client, runtime })
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
        self.descriptor().id
    }

    /// As Allocate answered.
    pub fn descriptor(&self) -> &Descriptor {
        match &self.0 {
            Writable::Native(payload) => &payload.descriptor,
            Writable::Remote(payload, _) => payload.as_ref().expect(HELD).descriptor(),
        }
    }

    /// Ends writing. `checksum` is the XXH3-64 of the bytes when the producer has it.
    ///
    /// # Errors
    /// As behaviour.md says of CommitPayload. When the server refuses, the allocation is given back; when the outcome is
    /// unknown, it is left as it is.
    pub fn commit(mut self, checksum: Option<Checksum>) -> Result<Descriptor, ClientError> {
        match &mut self.0 {
            Writable::Native(payload) => payload.commit(checksum),
            Writable::Remote(payload, shared) => {
                let payload = payload.take().expect(HELD);
                shared.block_on(payload.commit(checksum))
            }
        }
    }
}

impl NativePayload {
    fn commit(&mut self, checksum: Option<Checksum>) -> Result<Descriptor, ClientError> {
        drop(self.mapping.take());
        let id = self.descriptor.id;
        let answer = self.session.call(&Submission::Commit { id, checksum, accepted: false });
        let refused = [
            ErrorKind::InvalidArgument,
            ErrorKind::FailedPrecondition,
            ErrorKind::ResourceExhausted,
            ErrorKind::DataLoss,
        ];
        if answer.as_ref().is_err_and(|error| error.kind().is_some_and(|kind| refused.contains(&kind))) {
            let _ended_with_the_session = self.session.post(&Submission::Abort { id });
        }
        let policy = self.descriptor.policy;
        Ok(Descriptor { policy, checksum, ..shown_by(&self.session, answer?)? })
    }
}

impl ReadLease {
    /// What is leased: its location is the replica that is mapped.
    pub fn descriptor(&self) -> &Descriptor {
        match &self.0 {
            Readable::Native(lease) => &lease.descriptor,
            Readable::Remote(lease, _) => lease.as_ref().expect(HELD).descriptor(),
        }
    }

    /// Makes sure that all bytes can be loaded: what a hostile process cut off is an error here, and a SIGBUS elsewhere.
    ///
    /// # Errors
    /// [`ClientError::Mapping`] when bytes are gone.
    pub fn prepare(&self) -> Result<(), ClientError> {
        let mapping = self.mapping();
        mapping.prepare(0..mapping.len())
    }

    fn mapping(&self) -> &ReadMapping {
        match &self.0 {
            Readable::Native(lease) => lease.mapping.as_ref().expect(HELD),
            Readable::Remote(lease, _) => lease.as_ref().expect(HELD).mapping(),
        }
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
        match &self.0 {
            Writable::Native(payload) => payload.mapping.as_ref().expect(HELD),
            Writable::Remote(payload, _) => payload.as_ref().expect(HELD),
        }
    }
}

impl DerefMut for WritablePayload {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Writable::Native(payload) => payload.mapping.as_mut().expect(HELD),
            Writable::Remote(payload, _) => payload.as_mut().expect(HELD),
        }
    }
}

impl Drop for Readable {
    fn drop(&mut self) {
        if let Self::Remote(lease, shared) = self
            && let Some(lease) = lease.take()
            && Handle::try_current().is_err()
        {
            // When it fails the lease ends by its own time.
            let _ends_later = shared.block_on(lease.release());
        }
    }
}

impl Drop for Writable {
    fn drop(&mut self) {
        if let Self::Remote(payload, shared) = self
            && let Some(payload) = payload.take()
            && Handle::try_current().is_err()
        {
            shared.block_on(payload.abandon());
        }
    }
}

impl Drop for NativeLease {
    fn drop(&mut self) {
        drop(self.mapping.take());
        // Without waiting: an ended session has released it, and in a child it is not ours.
        let _ended_with_the_session = self.session.post(&Submission::Release { lease: self.lease });
    }
}

impl Drop for NativePayload {
    fn drop(&mut self) {
        if self.mapping.take().is_some() {
            let _ended_with_the_session = self.session.post(&Submission::Abort { id: self.descriptor.id });
        }
    }
}

fn location_of(descriptor: &Descriptor) -> Result<&Location, ClientError> {
    descriptor.location.as_ref().ok_or_else(|| {
        ClientError::Mapping(format!(
            "tier {} gives no location that this program can map; ask for RAM or DISK",
            descriptor.tier
        ))
    })
}

fn payload_of(outcome: Outcome) -> Result<(PayloadId, Shown), ClientError> {
    match outcome {
        Outcome::Payload(id, shown) => Ok((id, shown)),
        other => Err(surprise(&other)),
    }
}

fn shown_by(session: &Session, outcome: Outcome) -> Result<Descriptor, ClientError> {
    payload_of(outcome).map(|(id, shown)| session.descriptor(id, &shown))
}

fn surprise(outcome: &Outcome) -> ClientError {
    ClientError::Contract(format!("a completion of another operation came: {outcome:?}"))
}
