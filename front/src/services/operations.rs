//! `PayloadOperationsService`: who holds a payload, why it is where it is, and whether its bytes are still good;
//! and who this node is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use payload_reactor::{DirectLeases, SessionInfo, SessionList, clock};
use payload_types::reply::Reply;
use payload_types::report::{Explanation, Holders, LeaseHold};
use payload_types::request::Request as Ask;
use payload_types::{PayloadError, PayloadKey, Peer, SessionId};
use payload_wire::pb::operations::v1 as pb;
use payload_wire::pb::operations::v1::payload_operations_service_server::PayloadOperationsService;
use payload_wire::status::to_status;
use payload_wire::{decode, encode};
use tonic::{Request, Response, Status};

use super::router::{NAMESPACE, Router, mismatch};
use super::scrub;
use crate::access::audit::Asked;
use crate::deadline::Deadline;
use crate::incoming::Connections;
use crate::object;
use crate::owners::{self, Process, Unknown};

/// Leases of one answer. 10,000 of about 150 bytes are 1.5 MB, less than half a message.
const LEASES_MAX: usize = 10_000;

/// Questions to the shard for one answer: the leases of a full one, and as many again for lists that began anew because
/// the lease where they stopped had ended.
const PARTS_MAX: usize = 2 * LEASES_MAX / payload_types::limits::ITEMS_PER_TURN_MAX;

/// See the module.
pub struct OperationsService {
    router: Arc<Router>,
    connections: Connections,
    server_port: u16,
    node: pb::NodeInfoResponse,
    /// `None`: native sessions are not served.
    sessions: Option<(SessionList, DirectLeases)>,
}

impl OperationsService {
    /// Serves from the shards behind `router`; `connections` are those to `server_port`, and `node` is what is told of
    /// this node.
    pub fn new(
        router: Arc<Router>,
        connections: Connections,
        server_port: u16,
        node: pb::NodeInfoResponse,
        sessions: Option<(SessionList, DirectLeases)>,
    ) -> Self {
        Self { router, connections, server_port, node, sessions }
    }

    async fn holders_part(
        &self,
        key: PayloadKey,
        after: Option<&LeaseHold>,
        deadline: Option<Deadline>,
    ) -> Result<Holders, PayloadError> {
        let ask = Ask::Holders { key, after: after.map(|hold| hold.lease) };
        match self.router.ask_owner(ask, deadline).await? {
            Reply::Holders(part) => Ok(part),
            other => Err(mismatch("ListHolders", &other)),
        }
    }

    /// Sessions that lease it without asking.
    fn direct_holders(&self, key: PayloadKey) -> Vec<pb::DirectHolder> {
        let Some((sessions, direct)) = &self.sessions else { return Vec::new() };
        let shown = |(session, leases): (SessionId, u32)| {
            let owner = match sessions.get(session) {
                Some(info) => {
                    let peer = Peer::native(info.pid, info.uid, session);
                    owner_native(peer, info.pid, Some(info))
                }
                None => pb::Owner {
                    peer: format!("session {session}"),
                    note: "its session has ended; its process is not dead, or was a moment ago".to_owned(),
                    ..pb::Owner::default()
                },
            };
            pb::DirectHolder { owner: Some(owner), leases }
        };
        direct.holders(key.namespace, &key.id).into_iter().map(shown).collect()
    }

    /// What the tiers that hold the payload would evict next, and its place there.
    async fn outlook(
        &self,
        explanation: &Explanation,
        deadline: Option<Deadline>,
    ) -> Result<Vec<pb::TierOutlook>, PayloadError> {
        let mut outlook = Vec::new();
        for tier in explanation.replicas.iter().map(|replica| replica.tier) {
            let rank = explanation.rank.filter(|_| tier == explanation.descriptor.tier);
            let mut parts = Vec::new();
            for reply in self.router.ask_all(&Ask::Outlook { tier, rank }, deadline).await? {
                let Reply::Outlook(part) = reply else { return Err(mismatch("ExplainPayload", &reply)) };
                parts.push(part);
            }
            outlook.push(encode::outlook(tier, parts, clock::monotonic()));
        }
        Ok(outlook)
    }

    /// The processes behind those peers whose connections are still open: only then is their address theirs.
    async fn processes(&self, peers: &BTreeSet<Peer>) -> BTreeMap<SocketAddr, Result<Process, Unknown>> {
        let open = peers.iter().filter(|peer| self.connections.is_open(**peer));
        let addresses: BTreeSet<SocketAddr> = open.filter_map(|peer| peer.address()).collect();
        let port = self.server_port;
        // Nothing but a panic keeps an answer from coming; then nobody is known.
        let found = tokio::task::spawn_blocking(move || owners::find(&addresses, port)).await;
        found.unwrap_or_default()
    }
}

/// How an owner is shown.
fn owner(peer: Peer, is_open: bool, processes: &BTreeMap<SocketAddr, Result<Process, Unknown>>) -> pb::Owner {
    let Some(address) = peer.address() else {
        return pb::Owner { note: "not known".to_owned(), ..pb::Owner::default() };
    };
    let note =
        |note: &str| pb::Owner { peer: peer.to_string(), note: note.to_owned(), ..pb::Owner::default() };
    if !is_open {
        return note("its connection is closed");
    }
    match processes.get(&address) {
        Some(Ok(process)) => {
            pb::Owner { pid: Some(process.pid), program: process.program.clone(), ..note("") }
        }
        Some(Err(Unknown::NotPermitted)) => note("its process may not be looked at by this server's user"),
        Some(Err(Unknown::Elsewhere)) | None => {
            note("its process is on another host, or in another network namespace")
        }
    }
}

/// How the process of a native session is shown. Its session is closed when it has ended, so the number is its own.
fn owner_native(peer: Peer, pid: u32, session: Option<SessionInfo>) -> pb::Owner {
    let shown = pb::Owner { peer: peer.to_string(), pid: Some(pid), ..pb::Owner::default() };
    match session {
        Some(info) => pb::Owner { program: info.program, ..shown },
        None => {
            pb::Owner { note: "its session has ended; what it holds is being given back".to_owned(), ..shown }
        }
    }
}

#[tonic::async_trait]
impl PayloadOperationsService for OperationsService {
    type ScrubStream = scrub::ScrubStream;

    async fn list_holders(
        &self,
        request: Request<pb::ListHoldersRequest>,
    ) -> Result<Response<pb::ListHoldersResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        let key = decode::holders(NAMESPACE, request.get_ref()).map_err(to_status)?;
        let first = self.holders_part(key, None, deadline).await.map_err(to_status)?;
        let (mut leases, mut more) = (first.leases.clone(), first.more);
        let mut seen: BTreeSet<_> = leases.iter().map(|hold| *hold.lease.as_bytes()).collect();
        for _ in 1..PARTS_MAX {
            if !more || leases.len() >= LEASES_MAX {
                break;
            }
            let part = self.holders_part(key, leases.last(), deadline).await.map_err(to_status)?;
            more = part.more;
            leases.extend(part.leases.into_iter().filter(|hold| seen.insert(*hold.lease.as_bytes())));
        }
        let pinned_by = first.pin.and_then(|pin| pin.owner).map(|owner| owner.peer);
        let peers = leases.iter().map(|hold| hold.owner).chain(pinned_by).collect();
        let processes = self.processes(&peers).await;
        let session = |peer: Peer| self.sessions.as_ref()?.0.get(peer.session()?);
        let owner = |peer: Peer| match peer.pid() {
            Some(pid) => owner_native(peer, pid, session(peer)),
            None => owner(peer, self.connections.is_open(peer), &processes),
        };
        let mut shown = encode::holders(&first, &leases, !more, clock::now().wall, owner);
        shown.direct = self.direct_holders(key);
        Ok(Response::new(shown))
    }

    async fn explain_payload(
        &self,
        request: Request<pb::ExplainPayloadRequest>,
    ) -> Result<Response<pb::ExplainPayloadResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        let key = decode::explain(NAMESPACE, request.get_ref()).map_err(to_status)?;
        match self.router.ask_owner(Ask::Explain { key }, deadline).await.map_err(to_status)? {
            Reply::Explained(explanation) => {
                let outlook = self.outlook(&explanation, deadline).await.map_err(to_status)?;
                let (now, locate) = (clock::now(), &self.router.locator);
                Ok(Response::new(encode::explained(&explanation, outlook, now, locate)))
            }
            other => Err(to_status(mismatch("ExplainPayload", &other))),
        }
    }

    async fn scrub(&self, request: Request<pb::ScrubRequest>) -> Result<Response<Self::ScrubStream>, Status> {
        let wanted = decode::scrub(NAMESPACE, request.get_ref()).map_err(to_status)?;
        Ok(Response::new(scrub::start(Arc::clone(&self.router), wanted)))
    }

    async fn sweep_objects(
        &self,
        request: Request<pb::SweepObjectsRequest>,
    ) -> Result<Response<pb::SweepObjectsResponse>, Status> {
        let asked = Asked::by(&request);
        let is_dry = request.into_inner().dry_run;
        let tier = self.router.objects.clone().ok_or_else(|| to_status(object::unconfigured()))?;
        let swept = tokio::task::spawn_blocking(move || tier.sweep(is_dry)).await;
        let swept = swept.map_err(|_stopped| Status::unavailable("the server is stopping"))?;
        let answer =
            Response::new(pb::SweepObjectsResponse { objects: swept.iter().map(object::swept).collect() });
        match is_dry {
            true => Ok(answer),
            false => asked.told("sweep-objects", format_args!("{} objects", swept.len()), Ok(answer)),
        }
    }

    async fn node_info(
        &self,
        _request: Request<pb::NodeInfoRequest>,
    ) -> Result<Response<pb::NodeInfoResponse>, Status> {
        Ok(Response::new(self.node.clone()))
    }
}

#[cfg(test)]
mod tests {
    use payload_types::SessionId;

    use super::*;

    #[test]
    fn given_peers_when_shown_then_what_is_not_known_says_why() {
        let address: SocketAddr = "127.0.0.1:9".parse().expect("an address");
        let peer = Peer::new(address, 1);
        let process = Process { pid: 7, program: "worker".to_owned() };
        let shown = owner(peer, true, &BTreeMap::from([(address, Ok(process))]));
        assert_eq!((shown.pid, shown.program.as_str(), shown.note.as_str()), (Some(7), "worker", ""));
        assert_eq!(shown.peer, "127.0.0.1:9");
        for (is_open, found, words) in [
            (false, None, "closed"),
            (true, Some(Unknown::NotPermitted), "may not be looked at"),
            (true, Some(Unknown::Elsewhere), "another host"),
            (true, None, "another host"),
        ] {
            let found = found.map(|unknown| (address, Err(unknown))).into_iter().collect();
            let shown = owner(peer, is_open, &found);
            assert!(shown.pid.is_none() && shown.note.contains(words), "{shown:?}");
        }
        assert_eq!(owner(Peer::UNKNOWN, false, &BTreeMap::new()).note, "not known");
    }

    #[test]
    fn given_a_native_session_when_shown_then_its_process_is_named_even_after_its_end() {
        let id = SessionId::new(3).expect("not 0");
        let peer = Peer::native(4711, 1000, id);
        let since = clock::now().wall;
        let info = SessionInfo { id, pid: 4711, uid: 1000, program: "worker".to_owned(), since };
        let shown = owner_native(peer, 4711, Some(info));
        assert_eq!((shown.pid, shown.program.as_str(), shown.note.as_str()), (Some(4711), "worker", ""));
        assert_eq!(shown.peer, "pid 4711 (session 3)");
        let shown = owner_native(peer, 4711, None);
        assert!(shown.pid == Some(4711) && shown.note.contains("has ended"), "{shown:?}");
    }
}
