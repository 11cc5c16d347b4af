//! [`Client`]: one connection to a server, one method for each RPC.
//!
//! Cheap to clone; clones share the HTTP/2 connection, which carries any number of calls at a time, and the native session,
//! where the server is on this host: then leases and allocations go over it. What moves bytes
//! (`allocate`, `acquire`, `put_bytes`, `read_leased`) is in `payload` and `transfer`, on top of these.
//!
//! ```text
//! method -> request (deadline, if one was set) -> tonic -> answer, decoded and checked by `descriptor`
//! ```
//!
//! Limits: an answer has at most `limits::MESSAGE_BYTES_MAX` bytes; a connection is given up after
//! [`CONNECT_TIMEOUT`], and one whose server fell silent after [`KEEPALIVE_INTERVAL`] + [`KEEPALIVE_TIMEOUT`].

use std::sync::Arc;
use std::time::Duration;

use payload_local::Submission;
use payload_types::reply::TierStats;
use payload_types::tier::SpillTarget;
use payload_types::{
    ByteCount, Checksum, EvictionPolicy, LeaseId, Memory, PayloadId, PerTier, PromotionPolicy, SpillPolicy,
    Tier, Version, limits,
};
use payload_wire::pb::admin::v1 as admin;
use payload_wire::pb::core::v1 as core;
use payload_wire::pb::runtime::v1 as runtime;
use payload_wire::pb::services::v1::payload_admin_service_client::PayloadAdminServiceClient;
use payload_wire::pb::services::v1::payload_catalog_service_client::PayloadCatalogServiceClient;
use payload_wire::pb::services::v1::payload_data_service_client::PayloadDataServiceClient;
use payload_wire::{enums, ids};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::connect::Credentials;
use crate::descriptor::{Descriptor, Lease, Page, decode_id, encode_policy, encode_tier};
use crate::error::ClientError;
use crate::native::{Session, request};

/// Where a server listens when nothing else is configured.
pub const ADDRESS_DEFAULT: &str = "127.0.0.1:50051";

/// How long one attempt to connect may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// While calls are open, a silent server is asked whether it lives.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// How long it may take to answer that.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// HTTP/2 window of one call: a whole message, so that none waits for a window update.
pub(crate) const STREAM_WINDOW_BYTES: u32 = limits::MESSAGE_BYTES_MAX as u32;

/// HTTP/2 window of the connection: four of the largest messages at once.
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 4 * STREAM_WINDOW_BYTES;

/// What is said to who asks for more than leases and allocations, over a socket whose server cannot be reached by gRPC.
pub(crate) const SOCKET_ONLY: &str = "this client was connected by the path of a socket, which serves leases and allocations only, and its server is not reached by gRPC from here; connect to host:port for all else";

/// A connection to a server.
#[derive(Clone, Debug)]
pub struct Client {
    /// Where there is one: leases and allocations go over it.
    pub(crate) session: Option<Arc<Session>>,
    pub(crate) channel: Channel,
    pub(crate) address: String,
    /// Who it says it is.
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) deadline: Option<Duration>,
    pub(crate) request_id: Option<MetadataValue<Ascii>>,
}

/// What an allocation asks for beside its size.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AllocateOptions {
    /// Where; RAM by default.
    pub tier: Tier,
    /// Life after creation, in milliseconds; `None`: no expiry.
    pub ttl_ms: Option<u64>,
    /// Never evicted automatically.
    pub no_evict: bool,
    /// Who is evicted first, and where to.
    pub policy: EvictionPolicy,
    /// Which kind of memory, on RAM. `None`: what is fastest, an arena over a native session whose server has them, else a
    /// segment. Over gRPC there are segments only.
    pub memory: Option<Memory>,
}

impl AllocateOptions {
    /// The same on this tier.
    pub fn tier(self, tier: Tier) -> Self {
        Self { tier, ..self }
    }

    /// The same with a life of so long after creation, in whole milliseconds.
    pub fn ttl(self, ttl: Duration) -> Self {
        Self { ttl_ms: Some(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1)), ..self }
    }

    /// The same with this policy.
    pub fn policy(self, policy: EvictionPolicy) -> Self {
        Self { policy, ..self }
    }

    /// The same in this kind of memory.
    pub fn memory(self, memory: Memory) -> Self {
        Self { memory: Some(memory), ..self }
    }
}

impl Default for AllocateOptions {
    fn default() -> Self {
        Self {
            tier: Tier::Ram,
            ttl_ms: None,
            no_evict: false,
            policy: EvictionPolicy::default(),
            memory: None,
        }
    }
}

/// A reserved payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Allocation {
    /// ALLOCATED, version 1, with its location (none on OBJECT).
    pub descriptor: Descriptor,
    /// Where to upload the bytes: tier OBJECT only.
    pub object_upload_path: Option<String>,
}

impl Allocation {
    pub(crate) fn decode(message: runtime::AllocatePayloadResponse) -> Result<Self, ClientError> {
        Ok(Self {
            descriptor: Descriptor::decode(message.payload_descriptor)?,
            object_upload_path: Some(message.object_upload_path).filter(|path| !path.is_empty()),
        })
    }
}

/// How a payload is leased.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AcquireOptions {
    /// The slowest acceptable tier; `None`: any, the fastest first.
    pub min_tier: Option<Tier>,
    /// What to do when no replica is that fast; `None`: promote first.
    pub promotion_policy: Option<PromotionPolicy>,
    /// Asked-for duration; 0: the server's default. The server clamps it.
    pub lease_ms_min: u64,
    /// Version fencing.
    pub expected_version: Option<Version>,
    /// The location is for a program that cannot read at an offset, or may set the length of the file: a payload that
    /// shares a file on DISK is copied into one of its own first.
    pub own_file: bool,
}

impl AcquireOptions {
    /// The same for a program that maps what it leases: an object is brought in, as far as DISK, rather than shown by its URI.
    pub(crate) fn mappable(&self) -> Self {
        Self { min_tier: self.min_tier.or(Some(Tier::Disk)), ..*self }
    }
}

/// How payloads are moved down.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SpillOptions {
    /// Where to; `None`: each payload's spill_target, else DISK.
    pub target: Option<SpillTarget>,
    /// Whether to answer before it is done; `None`: when it is done.
    pub policy: Option<SpillPolicy>,
    /// Wait for the leases that exist now, instead of refusing.
    pub wait_for_leases: bool,
    /// Data and catalog on stable storage before the answer.
    pub fsync: bool,
    /// Version fencing, for each id.
    pub expected_version: Option<Version>,
}

/// What became of one payload of a Spill.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Spilled {
    /// Which.
    pub id: PayloadId,
    /// The descriptor as it is now (`None`: discarded), or why it stays where it is.
    pub result: Result<Option<Descriptor>, String>,
}

impl Client {
    /// A client on the same connection whose calls end after `deadline`; without one they wait as long as
    /// behaviour.md says.
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline: Some(deadline), ..self.clone() }
    }

    /// A client on the same connection whose calls carry this `x-request-id`: an Allocate, Commit, Append or change of
    /// metadata that is repeated with the same id and the same request, for instance after a deadline or a broken
    /// connection, is done once, and answered as the first time. The server remembers it for 10 minutes, until its end at
    /// most. Take a new id, a UUID, for each such request.
    ///
    /// # Errors
    /// [`ClientError::Input`] when it is not 1 to 128 printable ASCII characters.
    pub fn with_request_id(&self, id: &str) -> Result<Self, ClientError> {
        let is_id = (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
        let value = Some(id).filter(|_| is_id).and_then(|id| id.parse().ok());
        let wrong = || ClientError::Input(format!("`{id}` is no request id; take a UUID"));
        Ok(Self { request_id: Some(value.ok_or_else(wrong)?), ..self.clone() })
    }

    /// The native session, where there is one.
    pub fn session(&self) -> Option<&Session> {
        self.session.as_deref()
    }

    /// The session over which calls go: not one that has ended, and not for calls that are to be remembered by a request id.
    pub(crate) fn native(&self) -> Option<&Arc<Session>> {
        self.session
            .as_ref()
            .filter(|session| !self.has_grpc() || (session.is_open() && self.request_id.is_none()))
    }

    /// The session of a client that has nothing else. Descriptors of gRPC say more (checksum, policy, expiry), and moves may
    /// take long: what answers them goes over gRPC where it can.
    fn native_only(&self) -> Option<&Arc<Session>> {
        self.session.as_ref().filter(|_| !self.has_grpc())
    }

    /// False when it was connected by the path of a socket, and its server is not reached by gRPC.
    pub(crate) fn has_grpc(&self) -> bool {
        !self.address.contains('/')
    }

    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// `host:port`, or the path of the socket.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The connection, for generated clients.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Reserves space: the RPC alone. `allocate` maps it, too.
    ///
    /// # Errors
    /// As behaviour.md says of AllocatePayload.
    pub async fn allocate_payload(
        &self,
        size: ByteCount,
        options: &AllocateOptions,
    ) -> Result<Allocation, ClientError> {
        let request = encode_allocation(size, options);
        Allocation::decode(self.answer(self.catalog().allocate_payload(self.request(request)).await)?)
    }

    /// Makes the bytes immutable, and durable as their tier says. `checksum` is the XXH3-64 of the bytes, if known.
    ///
    /// # Errors
    /// As behaviour.md says of CommitPayload.
    pub async fn commit_payload(
        &self,
        id: PayloadId,
        checksum: Option<Checksum>,
    ) -> Result<Descriptor, ClientError> {
        let request = encode_commit(id, checksum);
        let answer = self.answer(self.catalog().commit_payload(self.request(request)).await)?;
        Descriptor::decode(answer.payload_descriptor)
    }

    /// Removes a payload; with `force` also a leased one.
    ///
    /// # Errors
    /// As behaviour.md says of Delete.
    pub async fn delete(
        &self,
        id: PayloadId,
        force: bool,
        expected_version: Option<Version>,
    ) -> Result<(), ClientError> {
        match self.native() {
            Some(session) => {
                session.call_async(&Submission::Delete { id, force, expected_version }).await.map(drop)
            }
            None => self.delete_over_grpc(id, force, expected_version).await,
        }
    }

    pub(crate) async fn delete_over_grpc(
        &self,
        id: PayloadId,
        force: bool,
        expected_version: Option<Version>,
    ) -> Result<(), ClientError> {
        let request = runtime::DeleteRequest {
            id: encode_id(id),
            force,
            expected_version: expected_version.map(|version| version.0),
        };
        self.answer(self.catalog().delete(self.request(request)).await)
    }

    /// One page of the payloads, newest first. `page_token` is the last page's `next_page_token`; `page_size` 0 is
    /// the server's default.
    ///
    /// # Errors
    /// As behaviour.md says of ListPayloads.
    pub async fn list(
        &self,
        tier: Option<Tier>,
        page_size: u16,
        page_token: Option<String>,
    ) -> Result<Page, ClientError> {
        let request = runtime::ListPayloadsRequest {
            tier_filter: encode_tier(tier),
            page_size: page_size.into(),
            page_token: page_token.unwrap_or_default(),
        };
        Page::decode(self.answer(self.catalog().list_payloads(self.request(request)).await)?)
    }

    /// Describes a payload as it is now. Nothing keeps it so: lease it to read it.
    ///
    /// # Errors
    /// As behaviour.md says of ResolveSnapshot.
    pub async fn resolve(&self, id: PayloadId) -> Result<Descriptor, ClientError> {
        if let Some(session) = self.native_only() {
            return session.shown(session.call_async(&Submission::Resolve { id }).await?);
        }
        let request = runtime::ResolveSnapshotRequest { id: encode_id(id) };
        let answer = self.answer(self.data().resolve_snapshot(self.request(request)).await)?;
        Descriptor::decode(answer.payload_descriptor)
    }

    /// Leases a replica for reading: the RPC alone. `acquire` maps it, too.
    ///
    /// # Errors
    /// As behaviour.md says of AcquireReadLease.
    pub async fn acquire_read_lease(
        &self,
        id: PayloadId,
        options: &AcquireOptions,
    ) -> Result<Lease, ClientError> {
        let request = encode_acquire(id, options);
        Lease::decode(self.answer(self.data().acquire_read_lease(self.request(request)).await)?)
    }

    /// Ends a lease; one that ended already is fine.
    ///
    /// # Errors
    /// As behaviour.md says of ReleaseLease.
    pub async fn release_lease(&self, lease: LeaseId) -> Result<(), ClientError> {
        let request = encode_release(lease);
        self.answer(self.data().release_lease(self.request(request)).await)
    }

    /// Adds a replica on a faster tier, and answers when it is there.
    ///
    /// # Errors
    /// As behaviour.md says of Promote.
    pub async fn promote(
        &self,
        id: PayloadId,
        target: Tier,
        policy: Option<PromotionPolicy>,
        expected_version: Option<Version>,
    ) -> Result<Descriptor, ClientError> {
        if let Some(session) = self.native_only() {
            let wish = request::promote(id, target, policy, expected_version, self.deadline);
            return session.shown(session.call_async(&wish).await?);
        }
        let request = runtime::PromoteRequest {
            id: encode_id(id),
            target_tier: encode_tier(Some(target)),
            policy: encode_promotion(policy),
            expected_version: expected_version.map(|version| version.0),
        };
        let answer = self.answer(self.catalog().promote(self.request(request)).await)?;
        Descriptor::decode(answer.payload_descriptor)
    }

    /// Moves payloads to a slower tier: at most `limits::SPILL_IDS_MAX` a call. One result for each id, in order.
    ///
    /// # Errors
    /// As behaviour.md says of Spill; [`ClientError::Contract`] when the results do not match the ids.
    pub async fn spill(
        &self,
        ids: &[PayloadId],
        options: &SpillOptions,
    ) -> Result<Vec<Spilled>, ClientError> {
        if let Some(session) = self.native_only() {
            let wishes: Vec<_> = ids.iter().map(|id| request::spill(*id, options, self.deadline)).collect();
            return session.spilled(ids, session.call_many_async(&wishes).await?);
        }
        let request = runtime::SpillRequest {
            ids: ids.iter().map(|id| ids::payload_id_to_pb(*id)).collect(),
            policy: match options.policy {
                None => core::SpillPolicy::Unspecified,
                Some(SpillPolicy::BestEffort) => core::SpillPolicy::BestEffort,
                Some(SpillPolicy::Blocking) => core::SpillPolicy::Blocking,
            }
            .into(),
            wait_for_leases: options.wait_for_leases,
            fsync: options.fsync,
            target_tier: enums::spill_target_to_pb(options.target).into(),
            expected_version: options.expected_version.map(|version| version.0),
        };
        let answer = self.answer(self.catalog().spill(self.request(request)).await)?;
        let spilled: Vec<Spilled> =
            answer.results.into_iter().map(decode_spilled).collect::<Result<_, _>>()?;
        if !spilled.iter().map(|spilled| &spilled.id).eq(ids) {
            return Err(ClientError::Contract(
                "Spill's results are not one for each id, in order".to_owned(),
            ));
        }
        Ok(spilled)
    }

    /// Promotes in the background; answered at once.
    ///
    /// # Errors
    /// As behaviour.md says of Prefetch.
    pub async fn prefetch(&self, id: PayloadId, target: Tier) -> Result<(), ClientError> {
        let request = runtime::PrefetchRequest { id: encode_id(id), target_tier: encode_tier(Some(target)) };
        self.answer(self.catalog().prefetch(self.request(request)).await)
    }

    /// Keeps a payload where it is, for so many milliseconds; `None`: until `unpin`.
    ///
    /// # Errors
    /// As behaviour.md says of Pin.
    pub async fn pin(&self, id: PayloadId, duration_ms: Option<u64>) -> Result<(), ClientError> {
        let request = runtime::PinRequest { id: encode_id(id), duration_ms: duration_ms.unwrap_or_default() };
        self.answer(self.catalog().pin(self.request(request)).await)
    }

    /// Ends a pin; a payload that is not pinned is fine.
    ///
    /// # Errors
    /// As behaviour.md says of Unpin.
    pub async fn unpin(&self, id: PayloadId) -> Result<(), ClientError> {
        let request = runtime::UnpinRequest { id: encode_id(id) };
        self.answer(self.catalog().unpin(self.request(request)).await)
    }

    /// What the server holds: payloads by their descriptor's tier, logical bytes of the replicas on each tier.
    ///
    /// # Errors
    /// As behaviour.md says of Stats.
    pub async fn stats(&self) -> Result<PerTier<TierStats>, ClientError> {
        let mut admin = PayloadAdminServiceClient::new(self.channel());
        let answer = self.answer(admin.stats(self.request(admin::StatsRequest {})).await)?;
        let mut tiers = PerTier::default();
        tiers[Tier::Gpu] =
            TierStats { payloads: answer.payloads_gpu, bytes: answer.bytes_gpu, ..TierStats::default() };
        tiers[Tier::Ram] =
            TierStats { payloads: answer.payloads_ram, bytes: answer.bytes_ram, ..TierStats::default() };
        tiers[Tier::Disk] =
            TierStats { payloads: answer.payloads_disk, bytes: answer.bytes_disk, ..TierStats::default() };
        tiers[Tier::Object] = TierStats {
            payloads: answer.payloads_object,
            bytes: answer.bytes_object,
            ..TierStats::default()
        };
        Ok(tiers)
    }

    /// True when the server's health service says that it serves.
    ///
    /// # Errors
    /// When there is no answer, or no health service.
    pub async fn is_serving(&self) -> Result<bool, ClientError> {
        let request = self.request(HealthCheckRequest { service: String::new() });
        let answer = self.answer(HealthClient::new(self.channel()).check(request).await)?;
        Ok(answer.status == i32::from(ServingStatus::Serving))
    }

    pub(crate) fn catalog(&self) -> PayloadCatalogServiceClient<Channel> {
        PayloadCatalogServiceClient::new(self.channel())
    }

    pub(crate) fn data(&self) -> PayloadDataServiceClient<Channel> {
        PayloadDataServiceClient::new(self.channel())
    }

    /// A request whose answer may come for as long as it likes.
    pub(crate) fn lasting<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        self.credentials.put(request.metadata_mut());
        request
    }

    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.lasting(message);
        if let Some(deadline) = self.deadline {
            request.set_timeout(deadline);
        }
        if let Some(id) = &self.request_id {
            request.metadata_mut().insert("x-request-id", id.clone());
        }
        request
    }

    pub(crate) fn answer<T>(&self, result: Result<Response<T>, Status>) -> Result<T, ClientError> {
        result.map(Response::into_inner).map_err(|status| match self.has_grpc() {
            true => ClientError::from_status(&status, &self.address),
            false => ClientError::Input(SOCKET_ONLY.to_owned()),
        })
    }
}

pub(crate) fn encode_id(id: PayloadId) -> Option<core::PayloadId> {
    Some(ids::payload_id_to_pb(id))
}

pub(crate) fn encode_allocation(
    size: ByteCount,
    options: &AllocateOptions,
) -> runtime::AllocatePayloadRequest {
    runtime::AllocatePayloadRequest {
        size_bytes: size.0,
        preferred_tier: encode_tier(Some(options.tier)),
        ttl_ms: options.ttl_ms.unwrap_or_default(),
        no_evict: options.no_evict,
        eviction_policy: encode_policy(&options.policy),
        upload_url_ms: 0,
    }
}

pub(crate) fn encode_commit(id: PayloadId, checksum: Option<Checksum>) -> runtime::CommitPayloadRequest {
    runtime::CommitPayloadRequest { id: encode_id(id), checksum_xxh3_64: checksum.map(|checksum| checksum.0) }
}

pub(crate) fn encode_acquire(id: PayloadId, options: &AcquireOptions) -> runtime::AcquireReadLeaseRequest {
    runtime::AcquireReadLeaseRequest {
        id: encode_id(id),
        min_tier: encode_tier(options.min_tier),
        promotion_policy: encode_promotion(options.promotion_policy),
        min_lease_duration_ms: options.lease_ms_min,
        mode: runtime::LeaseMode::Read.into(),
        expected_version: options.expected_version.map(|version| version.0),
        // `mapping` opens read-only, and maps at the offset.
        accepts_packed: !options.own_file,
        object_url_ms: 0,
    }
}

pub(crate) fn encode_release(lease: LeaseId) -> runtime::ReleaseLeaseRequest {
    runtime::ReleaseLeaseRequest { lease_id: Some(ids::lease_id_to_pb(lease)) }
}

fn encode_promotion(policy: Option<PromotionPolicy>) -> i32 {
    match policy {
        None => core::PromotionPolicy::Unspecified,
        Some(PromotionPolicy::BestEffort) => core::PromotionPolicy::BestEffort,
        Some(PromotionPolicy::Blocking) => core::PromotionPolicy::Blocking,
    }
    .into()
}

fn decode_spilled(message: runtime::spill_response::Result) -> Result<Spilled, ClientError> {
    let result = match message.payload_descriptor {
        _ if !message.ok => Err(message.error_message),
        None => Ok(None),
        descriptor => Ok(Some(Descriptor::decode(descriptor)?)),
    };
    Ok(Spilled { id: decode_id(message.id.as_ref())?, result })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn given_what_is_no_address_when_connected_then_refused_before_any_attempt() {
        for address in ["", "localhost", ":50051", "localhost:port", "localhost:70000", "a:1/b:2"] {
            let error = Client::connect_grpc(address).await.expect_err(address);
            assert!(matches!(error, ClientError::Input(_)), "{address}: {error:?}");
        }
    }

    #[tokio::test]
    async fn given_nobody_listens_when_connected_then_the_error_says_where_and_what_to_do() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let address = free.expect("a free port").to_string();
        let text = Client::connect(&format!("http://{address}/")).await.expect_err("closed").to_string();
        assert!(text.contains(&address) && text.contains("refused") && text.contains("start one"), "{text}");
    }
}
