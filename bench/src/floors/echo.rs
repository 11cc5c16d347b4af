//! `grpc/echo` and `grpc/echo-hop`: AcquireReadLease of the contract, answered with a canned lease of the same size.
//!
//! ```text
//! plain   socket -> tonic -> handler -> answer
//! hop     socket -> tonic -> handler -> queue, unpark -> parked thread -> oneshot -> handler -> answer
//! ```
//! A process of its own (this program runs itself), as our server is one; one thread for the sockets, with the HTTP/2
//! settings, the accept loop and the limits of `payload-manager`'s front. No router: the service is served directly,
//! which is the least that tonic does. It ends when its standard input closes, so it never outlives the bench.

use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::{self, Thread};
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use crossbeam::queue::ArrayQueue;
use payload_front::admission::Gate;
use payload_front::incoming::{Connections, Incoming, Patience};
use payload_types::reply::LeaseGrant;
use payload_types::{
    ByteCount, Checksum, Descriptor, EvictionPolicy, Generation, LeaseId, LeaseNonce, Location, PayloadId,
    PayloadState, ShardIndex, Tier, Version, WallMs, limits,
};
use payload_wire::pb::core::v1 as core;
use payload_wire::pb::runtime::v1 as pb;
use payload_wire::pb::services::v1::payload_data_service_server::{
    PayloadDataService, PayloadDataServiceServer,
};
use payload_wire::{Locate, encode};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::scratch;
use crate::server::lines;

/// The front's HTTP/2 settings (front/src/serve.rs).
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// See [`STREAM_WINDOW_BYTES`].
const CONNECTION_WINDOW_BYTES: u32 = limits::MESSAGE_BYTES_MAX as u32;
/// See [`STREAM_WINDOW_BYTES`].
const STREAMS_PER_CONNECTION_MAX: u32 = limits::REQUEST_LANE_LEN as u32;
/// See [`STREAM_WINDOW_BYTES`].
const PING_INTERVAL: Duration = Duration::from_secs(60);

/// How long an echo server may take until it serves.
const START_WITHIN: Duration = Duration::from_secs(10);

/// What a payload of the lease rows looks like.
const PAYLOAD_BYTES: u64 = 4096;

/// Who answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Mode {
    /// The handler.
    Plain,
    /// A parked thread.
    Hop,
}

/// A running echo server; dropped, it ends.
#[derive(Debug)]
pub struct EchoServer {
    child: Child,
    address: String,
}

impl EchoServer {
    /// Starts one as a process of its own.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(mode: Mode) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("the bench cannot find its own program")?;
        let name = mode.to_possible_value().context("every mode has a name")?;
        let mut child = Command::new(program)
            .args(["--echo-server", name.get_name()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("the echo server could not be started")?;
        let first_line = lines(&mut child)?;
        let mut server = Self { child, address: String::new() };
        server.address =
            first_line.recv_timeout(START_WITHIN).context("the echo server did not start in time")?;
        Ok(server)
    }

    /// `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        // Its standard input closes with it; killing only makes it sooner.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Serves until standard input closes. Prints its address.
///
/// # Errors
/// When no port can be had.
pub fn serve(mode: Mode) -> anyhow::Result<()> {
    thread::Builder::new()
        .name("echo-parent".to_owned())
        .spawn(|| {
            // Read to its end: the bench never writes.
            drop(std::io::stdin().lock().read(&mut [0]));
            std::process::exit(0);
        })
        .context("no thread to watch the parent")?;
    let hop = match mode {
        Mode::Plain => None,
        Mode::Hop => Some(Hop::start()?),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no loopback port")?;
        println!("{}", listener.local_addr()?);
        let patience = Patience { handshake: Duration::from_secs(10), write_stall: Duration::from_secs(60) };
        let incoming = Incoming::new(listener, Gate::new(64), Connections::default(), None, patience);
        let service = PayloadDataServiceServer::new(Echo { canned: canned(), hop })
            .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(limits::MESSAGE_BYTES_MAX);
        Server::builder()
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .http2_keepalive_interval(Some(PING_INTERVAL))
            .serve_with_incoming(service, incoming)
            .await
            .context("the echo server ended")
    })
}

struct Echo {
    canned: pb::AcquireReadLeaseResponse,
    hop: Option<Hop>,
}

#[tonic::async_trait]
impl PayloadDataService for Echo {
    async fn resolve_snapshot(
        &self,
        _request: Request<pb::ResolveSnapshotRequest>,
    ) -> Result<Response<pb::ResolveSnapshotResponse>, Status> {
        Err(Status::unimplemented("an echo knows AcquireReadLease and ReleaseLease"))
    }

    async fn acquire_read_lease(
        &self,
        request: Request<pb::AcquireReadLeaseRequest>,
    ) -> Result<Response<pb::AcquireReadLeaseResponse>, Status> {
        let mut id = request.into_inner().id;
        if let Some(hop) = &self.hop {
            id = hop.ask(id).await?;
        }
        let mut answer = self.canned.clone();
        if let Some(descriptor) = &mut answer.payload_descriptor {
            descriptor.payload_id = id;
        }
        Ok(Response::new(answer))
    }

    async fn release_lease(
        &self,
        _request: Request<pb::ReleaseLeaseRequest>,
    ) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }
}

/// The way to the parked thread.
struct Hop {
    jobs: Arc<ArrayQueue<Job>>,
    thread: Thread,
}

struct Job {
    id: Option<core::PayloadId>,
    answer: oneshot::Sender<Option<core::PayloadId>>,
}

impl Hop {
    fn start() -> anyhow::Result<Self> {
        let jobs = Arc::new(ArrayQueue::<Job>::new(limits::REQUEST_LANE_LEN));
        let taken = Arc::clone(&jobs);
        let body = move || {
            loop {
                while let Some(Job { id, answer }) = taken.pop() {
                    // Nobody listens when the client hung up.
                    drop(answer.send(id));
                }
                // An unpark that came since the last look makes this return at once.
                thread::park();
            }
        };
        let thread =
            thread::Builder::new().name("echo-hop".to_owned()).spawn(body).context("no thread to hop to")?;
        Ok(Self { jobs, thread: thread.thread().clone() })
    }

    async fn ask(&self, id: Option<core::PayloadId>) -> Result<Option<core::PayloadId>, Status> {
        let (answer, answered) = oneshot::channel();
        self.jobs
            .push(Job { id, answer })
            .map_err(|_full| Status::resource_exhausted("the echo's queue is full"))?;
        self.thread.unpark();
        answered.await.map_err(|_gone| Status::internal("the echo's thread is gone"))
    }
}

struct Names;

impl Locate for Names {
    fn shm_name(&self, id: PayloadId) -> String {
        format!("/{}-{id}", scratch::prefix(0, 0))
    }

    fn disk_path(&self, id: PayloadId, _generation: Generation) -> String {
        format!("/{id}.bin")
    }

    fn segment_path(&self, file: std::num::NonZeroU32) -> String {
        format!("/{file}.seg")
    }
}

/// A lease such as our server grants on a committed payload in RAM.
fn canned() -> pb::AcquireReadLeaseResponse {
    // Three of four moments have as many bytes on the wire as this one: nanoseconds of 2^28 and more.
    let created_at = WallMs::from_millis(1_795_000_000_567);
    encode::leased(
        &LeaseGrant {
            lease: LeaseId::new(ShardIndex(0), 1, LeaseNonce([7; 10])),
            descriptor: Descriptor {
                id: PayloadId::from_bytes([7; 16]),
                tier: Tier::Ram,
                state: PayloadState::Active,
                location: Some(Location::Segment),
                size: ByteCount(PAYLOAD_BYTES),
                version: Version(2),
                created_at,
                expires_at: None,
                policy: EvictionPolicy::default(),
                checksum: Some(Checksum(u64::MAX)),
            },
            expires_at: created_at,
        },
        &Names,
    )
}
