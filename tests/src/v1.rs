//! A client as existing v1 programs are: the generated stubs, and files opened and mapped as those programs do it.
//!
//! Nothing of our own client is between a test and the contract here, so what a test sees is what v1 clients see.
//! Methods return what the stub returned; the ones named for a finished deed (`put`, `bytes`) panic when it fails.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use memmap2::MmapMut;
use payload_drivers::gpu::fake;
use payload_wire::pb::admin::v1 as admin;
use payload_wire::pb::core::v1 as core;
use payload_wire::pb::core::v1::payload_descriptor::Location;
use payload_wire::pb::runtime::v1 as rt;
use payload_wire::pb::services::v1::payload_admin_service_client::PayloadAdminServiceClient;
use payload_wire::pb::services::v1::payload_catalog_service_client::PayloadCatalogServiceClient;
use payload_wire::pb::services::v1::payload_data_service_client::PayloadDataServiceClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::server::Server;
use crate::sys;

/// What an RPC gave.
pub type Answer<T> = Result<T, Status>;

/// TIER_UNSPECIFIED, as the wire has it.
pub const UNSPECIFIED: i32 = core::Tier::Unspecified as i32;
/// TIER_GPU.
pub const GPU: i32 = core::Tier::Gpu as i32;
/// TIER_RAM.
pub const RAM: i32 = core::Tier::Ram as i32;
/// TIER_DISK.
pub const DISK: i32 = core::Tier::Disk as i32;
/// TIER_OBJECT.
pub const OBJECT: i32 = core::Tier::Object as i32;
/// TIER_VOID.
pub const VOID: i32 = core::Tier::Void as i32;

/// BEST_EFFORT of promotion and spill policies alike.
pub const BEST_EFFORT: i32 = 1;
/// BLOCKING of promotion and spill policies alike.
pub const BLOCKING: i32 = 2;

/// A stub without a timer of its own: it sends a deadline and leaves its end to the server, as slow clients in other
/// languages do. (tonic's channel gives up by itself, with CANCELLED.)
pub type Untimed = PayloadCatalogServiceClient<Client<HttpConnector, tonic::body::Body>>;

/// An [`Untimed`] stub of the server's.
///
/// # Panics
/// When the address is none.
pub fn untimed(server: &Server) -> Untimed {
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let origin = format!("http://{}", server.address).parse().expect("an address");
    PayloadCatalogServiceClient::with_origin(client, origin)
}

/// A request that the caller waits for so long.
pub fn within<T>(milliseconds: u64, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(std::time::Duration::from_millis(milliseconds));
    request
}

/// A connection to one server.
#[derive(Clone)]
pub struct V1 {
    channel: Channel,
    root: PathBuf,
}

impl V1 {
    /// Connects.
    ///
    /// # Panics
    /// When the server does not answer.
    pub async fn connect(server: &Server) -> Self {
        Self::connect_at(&server.address, server.path("/")).await
    }

    /// Connects to `host:port`, and reaches the server's paths below `root`.
    ///
    /// # Panics
    /// When the server does not answer.
    pub async fn connect_at(address: &str, root: PathBuf) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let channel = endpoint.connect().await.expect("the server answers");
        Self { channel, root }
    }

    /// The connection, for stubs of a test's own.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The stub of PayloadCatalogService.
    pub fn catalog(&self) -> PayloadCatalogServiceClient<Channel> {
        PayloadCatalogServiceClient::new(self.channel())
    }

    /// The stub of PayloadDataService.
    pub fn data(&self) -> PayloadDataServiceClient<Channel> {
        PayloadDataServiceClient::new(self.channel())
    }

    /// AllocatePayload, in full.
    pub async fn allocate(&self, request: rt::AllocatePayloadRequest) -> Answer<rt::AllocatePayloadResponse> {
        Ok(self.catalog().allocate_payload(request).await?.into_inner())
    }

    /// An allocation that must work.
    pub async fn allocated(&self, tier: i32, size_bytes: u64) -> core::PayloadDescriptor {
        shown(self.allocate(allocation(tier, size_bytes)).await.expect("allocated").payload_descriptor)
    }

    /// CommitPayload.
    pub async fn commit(&self, id: &core::PayloadId) -> Answer<core::PayloadDescriptor> {
        let request = rt::CommitPayloadRequest { id: Some(id.clone()), checksum_xxh3_64: None };
        Ok(shown(self.catalog().commit_payload(request).await?.into_inner().payload_descriptor))
    }

    /// Opens the segment or file of a descriptor read-write, sets its length and maps it, as v1 clients do.
    ///
    /// # Panics
    /// When that fails or there is no location.
    pub fn map(&self, descriptor: &core::PayloadDescriptor) -> MmapMut {
        if let Some(Location::Gpu(gpu)) = &descriptor.location {
            let file = device_memory(gpu);
            let mapped = sys::map_read_write(&open_path(&file), false, 0, gpu.length_bytes);
            return mapped.expect("device memory can be mapped here");
        }
        let path = self.path(descriptor);
        let mapped = match descriptor.location.as_ref().expect("a location") {
            Location::Ram(ram) => sys::map_read_write(&path, false, 0, ram.length_bytes),
            Location::Disk(disk) => {
                fs::create_dir_all(path.parent().expect("absolute")).expect("its directory");
                sys::map_read_write(&path, true, disk.offset_bytes, disk.length_bytes)
            }
            Location::Gpu(_) => unreachable!("opened above"),
        };
        mapped.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Where the bytes of a descriptor lie, as this process reaches it.
    ///
    /// # Panics
    /// When there is no location.
    pub fn path(&self, descriptor: &core::PayloadDescriptor) -> PathBuf {
        let path = match descriptor.location.as_ref().expect("a location") {
            Location::Ram(ram) => {
                assert!(ram.shm_name.starts_with('/') && ram.slab_id == 0 && ram.block_index == 0, "{ram:?}");
                format!("/dev/shm{}", ram.shm_name)
            }
            Location::Disk(disk) => disk.path.clone(),
            Location::Gpu(gpu) => panic!("device memory has no path: {gpu:?}"),
        };
        assert!(path.starts_with('/'), "a relative path would be made in the client's own directory: {path}");
        self.root.join(path.trim_start_matches('/'))
    }

    /// Allocates, writes in place and commits.
    pub async fn put(&self, tier: i32, bytes: &[u8]) -> core::PayloadDescriptor {
        let allocated = self.allocated(tier, bytes.len() as u64).await;
        self.map(&allocated).copy_from_slice(bytes);
        self.commit(&id(&allocated)).await.expect("committed")
    }

    /// ResolveSnapshot.
    pub async fn resolve(&self, id: &core::PayloadId) -> Answer<core::PayloadDescriptor> {
        let request = rt::ResolveSnapshotRequest { id: Some(id.clone()) };
        Ok(shown(self.data().resolve_snapshot(request).await?.into_inner().payload_descriptor))
    }

    /// AcquireReadLease, in full.
    pub async fn acquire(
        &self,
        request: rt::AcquireReadLeaseRequest,
    ) -> Answer<rt::AcquireReadLeaseResponse> {
        Ok(self.data().acquire_read_lease(request).await?.into_inner())
    }

    /// A lease on whatever replica there is.
    pub async fn lease(&self, id: &core::PayloadId) -> Answer<rt::AcquireReadLeaseResponse> {
        self.acquire(acquisition(id)).await
    }

    /// ReleaseLease.
    pub async fn release(&self, lease: &rt::AcquireReadLeaseResponse) -> Answer<()> {
        let request = rt::ReleaseLeaseRequest { lease_id: lease.lease_id.clone() };
        self.data().release_lease(request).await.map(tonic::Response::into_inner)
    }

    /// Leases, reads in place, releases; with the tier that was read.
    pub async fn bytes(&self, id: &core::PayloadId) -> (i32, Vec<u8>) {
        self.read(acquisition(id)).await
    }

    /// The same where the payload lies, which may be in a file that others share: as no client of the contract does, but
    /// our own.
    pub async fn bytes_in_place(&self, id: &core::PayloadId) -> (i32, Vec<u8>) {
        self.read(rt::AcquireReadLeaseRequest { accepts_packed: true, ..acquisition(id) }).await
    }

    async fn read(&self, request: rt::AcquireReadLeaseRequest) -> (i32, Vec<u8>) {
        let lease = self.acquire(request).await.expect("leased");
        let descriptor = lease.payload_descriptor.as_ref().expect("a descriptor");
        let bytes = self.look(descriptor);
        self.release(&lease).await.expect("released");
        (descriptor.tier, bytes)
    }

    /// What lies where a descriptor says, read without write access.
    pub fn look(&self, descriptor: &core::PayloadDescriptor) -> Vec<u8> {
        let (path, offset, length) = match descriptor.location.as_ref().expect("a location") {
            Location::Ram(ram) => (self.path(descriptor), 0, ram.length_bytes),
            Location::Disk(disk) => (self.path(descriptor), disk.offset_bytes, disk.length_bytes),
            Location::Gpu(gpu) => return self.map(descriptor)[..gpu.length_bytes as usize].to_vec(),
        };
        let mut bytes = vec![0; usize::try_from(length).expect("small")];
        let read = fs::File::open(&path).and_then(|file| file.read_exact_at(&mut bytes, offset));
        read.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        bytes
    }

    /// Promote, in full.
    pub async fn promote(&self, request: rt::PromoteRequest) -> Answer<core::PayloadDescriptor> {
        Ok(shown(self.catalog().promote(request).await?.into_inner().payload_descriptor))
    }

    /// Promote with no policy, to a tier.
    pub async fn promote_to(&self, id: &core::PayloadId, tier: i32) -> Answer<core::PayloadDescriptor> {
        self.promote(promotion(id, tier)).await
    }

    /// Spill, in full.
    pub async fn spill(&self, request: rt::SpillRequest) -> Answer<Vec<rt::spill_response::Result>> {
        Ok(self.catalog().spill(request).await?.into_inner().results)
    }

    /// Spills one payload with no policy; its result.
    pub async fn spill_to(&self, id: &core::PayloadId, tier: i32) -> rt::spill_response::Result {
        self.spill_one(spilling(id, tier)).await
    }

    /// Spills what the request names, which is one payload; its result.
    pub async fn spill_one(&self, request: rt::SpillRequest) -> rt::spill_response::Result {
        let asked = request.ids.clone();
        let mut results = self.spill(request).await.expect("one result for each id");
        assert_eq!(results.iter().filter_map(|result| result.id.clone()).collect::<Vec<_>>(), asked);
        results.pop().expect("one id was asked for")
    }

    /// Prefetch.
    pub async fn prefetch(&self, id: &core::PayloadId, target_tier: i32) -> Answer<()> {
        let request = rt::PrefetchRequest { id: Some(id.clone()), target_tier };
        self.catalog().prefetch(request).await.map(tonic::Response::into_inner)
    }

    /// Pin.
    pub async fn pin(&self, id: &core::PayloadId, duration_ms: u64) -> Answer<()> {
        let request = rt::PinRequest { id: Some(id.clone()), duration_ms };
        self.catalog().pin(request).await.map(tonic::Response::into_inner)
    }

    /// Unpin.
    pub async fn unpin(&self, id: &core::PayloadId) -> Answer<()> {
        self.catalog().unpin(rt::UnpinRequest { id: Some(id.clone()) }).await.map(tonic::Response::into_inner)
    }

    /// Delete.
    pub async fn delete(&self, id: &core::PayloadId, force: bool) -> Answer<()> {
        let request = rt::DeleteRequest { id: Some(id.clone()), force, expected_version: None };
        self.catalog().delete(request).await.map(tonic::Response::into_inner)
    }

    /// ListPayloads, one page.
    pub async fn list(&self, request: rt::ListPayloadsRequest) -> Answer<rt::ListPayloadsResponse> {
        Ok(self.catalog().list_payloads(request).await?.into_inner())
    }

    /// The listing's row of one payload among the newest 500.
    pub async fn row(&self, id: &core::PayloadId) -> Option<rt::PayloadSummary> {
        let page = self.list(listing(UNSPECIFIED, 500)).await.expect("a page");
        page.payloads.into_iter().find(|row| row.id.as_ref() == Some(id))
    }

    /// Stats.
    pub async fn stats(&self) -> Answer<admin::StatsResponse> {
        let mut stub = PayloadAdminServiceClient::new(self.channel());
        Ok(stub.stats(admin::StatsRequest {}).await?.into_inner())
    }
}

/// The memory of a fake device (`gpu_server`), opened by its handle as existing clients of the contract read it: 72 bytes, of which
/// the first 8 are the allocation's size.
///
/// # Panics
/// When the location is not as the contract says, or its process is gone.
pub fn device_memory(gpu: &core::GpuLocation) -> fs::File {
    let (size, handle) = gpu.ipc_handle.split_at(8);
    assert_eq!(i64::from_le_bytes(size.try_into().expect("8 bytes")), gpu.length_bytes as i64);
    let handle = handle.try_into().expect("64 bytes behind the size");
    let file = fake::open_handle(handle).expect("the server's process has it");
    assert_eq!(
        file.metadata().expect("open").len(),
        gpu.length_bytes,
        "one allocation of exactly the payload"
    );
    file
}

fn open_path(file: &fs::File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// An allocation with nothing else said.
pub fn allocation(preferred_tier: i32, size_bytes: u64) -> rt::AllocatePayloadRequest {
    rt::AllocatePayloadRequest { size_bytes, preferred_tier, ..Default::default() }
}

/// A lease with nothing else said.
pub fn acquisition(id: &core::PayloadId) -> rt::AcquireReadLeaseRequest {
    rt::AcquireReadLeaseRequest { id: Some(id.clone()), ..Default::default() }
}

/// A promotion with nothing else said.
pub fn promotion(id: &core::PayloadId, target_tier: i32) -> rt::PromoteRequest {
    rt::PromoteRequest { id: Some(id.clone()), target_tier, ..Default::default() }
}

/// A spill of one payload with nothing else said.
pub fn spilling(id: &core::PayloadId, target_tier: i32) -> rt::SpillRequest {
    rt::SpillRequest { ids: vec![id.clone()], target_tier, ..Default::default() }
}

/// A first page.
pub fn listing(tier_filter: i32, page_size: i32) -> rt::ListPayloadsRequest {
    rt::ListPayloadsRequest { tier_filter, page_size, page_token: String::new() }
}

/// The id in a descriptor.
///
/// # Panics
/// When there is none.
pub fn id(descriptor: &core::PayloadDescriptor) -> core::PayloadId {
    descriptor.payload_id.clone().expect("every descriptor has its id")
}

/// An id that the server never minted, though it might have.
pub fn stranger() -> core::PayloadId {
    payload_wire::ids::payload_id_to_pb(payload_types::PayloadId::mint(1 << 40, 1))
}

/// `length` bytes that differ from those of every other seed, and between their parts.
pub fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state >> 7).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Asserts that a call was refused with `code` and a sentence that has each of `words`.
///
/// # Panics
/// When it was not.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(answer: Answer<T>, code: Code, words: &[&str]) -> Status {
    let status = answer.expect_err("must be refused");
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().len() > 15, "a sentence says what was wrong: {status}");
    for word in words {
        assert!(status.message().contains(word), "`{word}` in: {status}");
    }
    status
}

/// Asserts that one id of a spill was refused with a sentence that has each of `words`.
///
/// # Panics
/// When it was not.
#[track_caller]
pub fn spill_refused(result: &rt::spill_response::Result, words: &[&str]) {
    assert!(!result.ok, "must be refused: {result:?}");
    assert!(result.error_message.len() > 15, "a sentence says what was wrong: {result:?}");
    for word in words {
        assert!(result.error_message.contains(word), "`{word}` in: {result:?}");
    }
}

/// Asserts that one id of a spill is on `tier` now; its descriptor.
///
/// # Panics
/// When it is not.
#[track_caller]
pub fn spilled(result: rt::spill_response::Result, tier: i32) -> core::PayloadDescriptor {
    assert!(result.ok && result.error_message.is_empty(), "{result:?}");
    let descriptor = result.payload_descriptor.expect("a descriptor of what is kept");
    assert_eq!(descriptor.tier, tier);
    descriptor
}

fn shown(descriptor: Option<core::PayloadDescriptor>) -> core::PayloadDescriptor {
    descriptor.expect("an answer has its descriptor")
}
