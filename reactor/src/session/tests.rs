//! Real sockets, real threads, a fake core: how sessions begin and end.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use payload_local::entry::{Completion, Outcome, Submission};
use payload_local::hello::{ClientFrame, FRAME_BYTES_MAX, Hello, MAGIC, RefusalKind, ServerFrame, Welcome};
use payload_local::layout::{NODE_PAGE_BYTES, NodeView, SessionView, session_bytes};
use payload_local::ring::ClientRings;
use payload_local::wake;
use payload_types::{ErrorKind, Monotonic};

use super::*;
use crate::clock;
use crate::executor::ExecutorChoice;
use crate::fake::{FakeCore, FakePorts, KEY, generous_arbiter};
use crate::mailbox::Mailboxes;
use crate::start::{Reactor, ReactorConfig};
use crate::sys::memory::{SharedMemory, Writers};
use crate::sys::poll::{Poll, Trigger};
use crate::sys::socket::{self, client};

/// Long enough for any machine; only a test that fails waits for it.
const PATIENCE_MS: u64 = 30_000;

struct Server {
    reactor: Option<Reactor>,
    sessions: Option<SessionServer>,
    list: SessionList,
    ports: Arc<FakePorts>,
    handle: ReactorHandle,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Server {
    fn start(shards: u16, change: impl FnOnce(&mut SessionConfig)) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("native.sock");
        let mut config = SessionConfig {
            dead_grace_ms: 50,
            socket_path: path.clone(),
            socket_mode: 0o600,
            socket_group: None,
            allowed: Allowed::default(),
            sessions_max: 4,
            epoch: Epoch(9),
            boot_id: "0190a5c0-1234-7abc-8def-0123456789ab".to_owned(),
            namespace: NamespaceId::DEFAULT,
            shm_prefix: "pm-test".to_owned(),
            disk_root: "/data/disk".to_owned(),
            address: "127.0.0.1:50051".to_owned(),
        };
        change(&mut config);
        let mailboxes = Mailboxes::new(shards);
        let (handle, ports) = (mailboxes.handle(), Arc::new(FakePorts::default()));
        let cores = (0..shards).map(FakeCore::new).collect();
        let reactor_config = ReactorConfig { executor: ExecutorChoice::Threads, ..ReactorConfig::default() };
        let arbiter = Box::new(generous_arbiter);
        let reactor = Reactor::start_cores(reactor_config, mailboxes, cores, arbiter, ports.clone());
        let sessions = SessionServer::start(config, None, &handle).expect("served");
        let (reactor, list) = (Some(reactor.expect("threads")), sessions.list());
        Self { reactor, sessions: Some(sessions), list, ports, handle, path, _directory: directory }
    }

    fn connect(&self) -> Client {
        Client::connect(&self.path, &Hello::new("a test")).expect("let in")
    }
}

/// A session's client.
struct Client {
    socket: OwnedFd,
    welcome: Welcome,
    memory: SharedMemory,
    node: SharedMemory,
    bells: Vec<File>,
    rings: Vec<ClientRings>,
}

/// Receives a frame, waiting for it.
fn receive(socket: &OwnedFd) -> io::Result<(Option<ServerFrame>, Vec<OwnedFd>)> {
    let poll = Poll::new()?;
    poll.add(socket.as_fd(), 0, Trigger::Level)?;
    let mut buffer = [0; FRAME_BYTES_MAX];
    loop {
        match client::receive_with(socket, &mut buffer) {
            Ok((0, _)) => return Ok((None, Vec::new())),
            Ok((length, descriptors)) => {
                let frame = ServerFrame::decode(&buffer[..length]).expect("a frame of this version");
                return Ok((Some(frame), descriptors));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                assert!(poll.wait(Some(PATIENCE_MS)).count() > 0, "the server says nothing");
            }
            Err(error) => return Err(error),
        }
    }
}

/// What the server says at the end of a connection.
fn last_words(socket: &OwnedFd) -> ServerFrame {
    let (frame, descriptors) = receive(socket).expect("told");
    assert!(descriptors.is_empty());
    assert!(matches!(receive(socket), Ok((None, _)) | Err(_)), "and the connection is closed");
    frame.expect("told why")
}

fn refusal(socket: &OwnedFd) -> (RefusalKind, String) {
    match last_words(socket) {
        ServerFrame::Refusal { kind, text } => (kind, text),
        other => panic!("not refused: {other:?}"),
    }
}

fn send(socket: &OwnedFd, frame: &ClientFrame) {
    socket::send(socket, &frame.encode(), &[]).expect("sent");
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let end = clock::monotonic().plus_millis(PATIENCE_MS);
    while !condition() {
        assert!(clock::monotonic() < end, "{what} did not come true");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("ours").count()
}

impl Client {
    fn connect(path: &Path, hello: &Hello) -> Result<Self, ServerFrame> {
        let socket = client::connect(path).expect("connected");
        send(&socket, &ClientFrame::Hello(hello.clone()));
        let (frame, mut descriptors) = receive(&socket).expect("answered");
        let welcome = match frame.expect("answered") {
            ServerFrame::Welcome(welcome) => *welcome,
            other => return Err(other),
        };
        while descriptors.len() < usize::from(welcome.shard_count) + 2 {
            let (frame, more) = receive(&socket).expect("the other bells");
            assert!(matches!(frame, Some(ServerFrame::Doorbells { .. })));
            descriptors.extend(more);
        }
        let bells = descriptors.drain(2..).map(File::from).collect();
        let bytes = session_bytes(welcome.shard_count);
        let memory = SharedMemory::map(&descriptors[0], bytes, Writers::Everybody).expect("mapped");
        assert!(
            SharedMemory::map(&descriptors[1], NODE_PAGE_BYTES, Writers::Everybody).is_err(),
            "read-only"
        );
        let node = SharedMemory::map(&descriptors[1], NODE_PAGE_BYTES, Writers::OnlyHere).expect("mapped");
        let rings = (0..welcome.shard_count).map(|_| ClientRings::new()).collect();
        Ok(Self { socket, welcome, memory, node, bells, rings })
    }

    fn view(&self) -> SessionView<'_, AtomicU64> {
        SessionView::new(self.memory.words(), self.welcome.shard_count).expect("long enough")
    }

    fn submit(&mut self, shard: u16, submission: &Submission, tag: u32) {
        let view = SessionView::new(self.memory.words(), self.welcome.shard_count).expect("long enough");
        let rings = &mut self.rings[usize::from(shard)];
        assert!(rings.submit(&view.shard(shard), &submission.encode(tag), submission.completions()));
        let node = NodeView::new(self.node.words()).expect("long enough");
        if wake::must_ring(node.sleeping(shard)) {
            io::Write::write_all(&mut &self.bells[usize::from(shard)], &1u64.to_ne_bytes()).expect("rung");
        }
    }

    fn take(&mut self, shard: u16) -> Option<Completion> {
        let view = SessionView::new(self.memory.words(), self.welcome.shard_count).expect("long enough");
        let (_, contents) = self.rings[usize::from(shard)].take(&view.shard(shard), |_| 1)?;
        Some(Completion::decode(&contents).expect("this version"))
    }

    fn ask(&mut self, shard: u16, submission: &Submission) -> Completion {
        self.submit(shard, submission, 1);
        let end = clock::monotonic().plus_millis(PATIENCE_MS);
        loop {
            if let Some(answer) = self.take(shard) {
                return answer;
            }
            assert!(clock::monotonic() < end, "a wake was lost");
            std::thread::yield_now();
        }
    }
}

fn delete() -> Submission {
    Submission::Delete { id: KEY.id, force: false, expected_version: None }
}

#[test]
fn given_a_client_when_it_connects_then_it_is_told_where_it_is_and_its_requests_are_answered() {
    let server = Server::start(3, |_| {});
    let owner = KEY.id.shard(3).0;
    let mut client = server.connect();
    let welcome = &client.welcome;
    assert_eq!((welcome.shard_count, welcome.epoch, welcome.session), (3, Epoch(9), 1));
    assert_eq!((welcome.shm_prefix.as_str(), welcome.disk_root.as_str()), ("pm-test", "/data/disk"));
    let node = NodeView::new(client.node.words()).expect("long enough");
    let hash = node.boot_hash().load(Ordering::Relaxed);
    assert_eq!((node.epoch().load(Ordering::Relaxed), hash), (9, welcome.boot_hash));
    assert_ne!(hash, 0);
    for round in 0..200 {
        assert_eq!(client.ask(owner, &delete()).outcome, Outcome::Done);
        if round % 50 == 0 {
            // Long enough for the shard to fall asleep.
            wait_until("it sleeps", || {
                let node = NodeView::new(client.node.words()).expect("long enough");
                node.sleeping(owner).load(Ordering::Relaxed) != 0
            });
        }
    }
    let [info] = &server.list.all()[..] else { panic!("one session") };
    assert_eq!((info.pid, info.program.as_str()), (std::process::id(), "a test"));
    assert_eq!(server.list.get(info.id).as_ref(), Some(info));
}

#[test]
fn given_more_shards_than_one_message_has_bells_for_when_connected_then_the_others_follow() {
    let server = Server::start(256, |_| {});
    let mut client = server.connect();
    assert_eq!(client.bells.len(), 256);
    let owner = KEY.id.shard(256).0;
    assert_eq!(client.ask(owner, &delete()).outcome, Outcome::Done);
    for shard in [0, 249, 250, 255] {
        let kind = match client.ask(shard, &delete()).outcome {
            Outcome::Refused { kind, .. } => Some(kind),
            _ => None,
        };
        let expected = (shard != owner).then_some(ErrorKind::InvalidArgument);
        assert_eq!(kind, expected, "shard {shard} answers on its ring");
    }
}

#[test]
fn given_clients_that_are_not_let_in_when_they_say_hello_then_each_hears_why() {
    let server = Server::start(1, |config| config.sessions_max = 1);
    let newer = Hello { version_min: 2, version_max: 7, ..Hello::new("newer") };
    let refused = Client::connect(&server.path, &newer).err().expect("refused");
    assert!(
        matches!(&refused, ServerFrame::Refusal { kind: RefusalKind::Version, text } if text.contains("2 to 7")),
        "{refused:?}"
    );
    let first = server.connect();
    let full = Client::connect(&server.path, &Hello::new("second")).err().expect("refused");
    assert!(
        matches!(&full, ServerFrame::Refusal { kind: RefusalKind::Full, text } if text.contains("local.sessions_max")),
        "{full:?}"
    );
    drop(first);
    wait_until("its place is free", || server.list.count() == 0);
    server.connect();

    let nobody = socket::own_uid() ^ 1;
    let strict = Server::start(1, |config| config.allowed = Allowed { uids: vec![nobody], gids: vec![] });
    let refused = Client::connect(&strict.path, &Hello::new("me")).err().expect("refused");
    assert!(
        matches!(&refused, ServerFrame::Refusal { kind: RefusalKind::User, text } if text.contains("local.allowed_uids")),
        "{refused:?}"
    );
    assert_eq!(strict.list.count(), 0);
}

#[test]
fn given_users_and_groups_when_asked_for_then_only_those_allowed_pass() {
    let (own, other) = (socket::own_uid(), socket::own_uid() + 1);
    let default = Allowed::default();
    assert!(default.permits(own, &[5]) && default.permits(0, &[]) && !default.permits(other, &[0]));
    let named = Allowed { uids: vec![other], gids: vec![7] };
    assert!(named.permits(other, &[]) && named.permits(own, &[3, 7]));
    assert!(!named.permits(own, &[3]), "once users are named, they alone");
}

#[test]
fn given_messages_that_are_no_hello_when_received_then_refused_and_nothing_is_left_open() {
    let server = Server::start(1, |_| {});
    let hello = ClientFrame::Hello(Hello::new("x")).encode();
    let mut wrong_magic = hello.clone();
    wrong_magic[0] = b'X';
    let too_long = [&hello[..], &[0; FRAME_BYTES_MAX]].concat();
    for (bytes, words) in [
        (&wrong_magic[..], "PMNATIVE"),
        (&hello[..20], "too early"),
        (&MAGIC[..], "too early"),
        (&too_long[..], "longer"),
    ] {
        let socket = client::connect(&server.path).expect("connected");
        socket::send(&socket, bytes, &[]).expect("sent");
        let (kind, text) = refusal(&socket);
        assert_eq!(kind, RefusalKind::Malformed);
        assert!(text.contains(words), "{text}");
    }
    // Descriptors are closed, however many come.
    let file = File::open("/proc/self/status").expect("a file");
    let before = open_descriptors();
    for _ in 0..50 {
        let socket = client::connect(&server.path).expect("connected");
        socket::send(&socket, &hello, &[file.as_fd(); 100]).expect("sent");
        assert_eq!(refusal(&socket).0, RefusalKind::Malformed);
    }
    // Other tests of this process have some, too, but not 5,000.
    assert!(open_descriptors() < before + 1000, "{} descriptors after {before}", open_descriptors());
    assert_eq!(server.list.count(), 0);
    server.connect();
}

#[test]
fn given_clients_that_never_say_hello_when_a_second_has_passed_then_they_are_gone_and_others_come_in() {
    let server = Server::start(1, |_| {});
    let silent: Vec<OwnedFd> =
        (0..HANDSHAKES_MAX).map(|_| client::connect(&server.path).expect("connected")).collect();
    // No place for another handshake now, and then there is.
    let late = server.connect();
    assert_eq!(late.welcome.session, 1);
    for socket in &silent {
        let (kind, text) = refusal(socket);
        assert!(kind == RefusalKind::Malformed && text.contains("no Hello within 1000 ms"), "{text}");
    }
}

#[test]
fn given_open_sessions_when_they_end_any_way_then_the_shards_let_go_and_the_reason_is_told() {
    let server = Server::start(2, |_| {});
    let gone = || server.list.count() == 0;

    let mut client = server.connect();
    client.ask(KEY.id.shard(2).0, &delete());
    send(&client.socket, &ClientFrame::Bye);
    wait_until("it said Bye", gone);
    let waited_for = client.view().wake_line().wake.load(Ordering::Relaxed);
    assert_ne!(waited_for, 0, "who sleeps is woken");

    drop(server.connect().socket);
    wait_until("its socket is closed", gone);

    let client = server.connect();
    send(&client.socket, &ClientFrame::Hello(Hello::new("again")));
    let ServerFrame::Closed { text } = last_words(&client.socket) else { panic!("closed") };
    assert!(text.contains("second Hello"), "{text}");

    let mut client = server.connect();
    for tag in 0..256 {
        let mut contents = delete().encode(tag);
        contents[6] = 1;
        let view = SessionView::new(client.memory.words(), 2).expect("long enough");
        assert!(client.rings[0].submit(&view.shard(0), &contents, 0));
    }
    client
        .bells
        .iter()
        .for_each(|mut bell| io::Write::write_all(&mut bell, &1u64.to_ne_bytes()).expect("rung"));
    let ServerFrame::Closed { text } = last_words(&client.socket) else { panic!("closed") };
    assert!(text.contains("no submissions"), "{text}");
    wait_until("it is closed", gone);

    // All slots come back: many more sessions than there may be at a time.
    for _ in 0..50 {
        server.connect();
        wait_until("it has ended", gone);
    }
}

#[test]
fn given_a_session_whose_request_is_out_when_it_ends_then_its_memory_stays_until_the_answer() {
    let server = Server::start(1, |_| {});
    let mut client = server.connect();
    let lease =
        payload_types::LeaseId::new(payload_types::ShardIndex(0), 0, payload_types::LeaseNonce([0; 10]));
    client.submit(0, &Submission::Release { lease }, 7);
    let op = loop {
        if let Some(op) = server.ports.taken().0.pop() {
            break op.op;
        }
        std::thread::yield_now();
    };
    drop(client.socket);
    wait_until("it has ended", || server.list.count() == 0);
    server.handle.complete(payload_types::ShardIndex(0), crate::fake::synced(op));
    let view = SessionView::new(client.memory.words(), 1).expect("long enough");
    let rings = &mut client.rings[0];
    wait_until("the answer is there", || rings.has_completion(&view.shard(0)));
}

#[test]
fn given_a_stopping_server_when_clients_look_then_every_one_knows_and_the_socket_is_gone() {
    let mut server = Server::start(1, |_| {});
    let mut client = server.connect();
    let waiting = client::connect(&server.path).expect("connected");
    let mut sessions = server.sessions.take().expect("served");
    sessions.refuse_new();
    assert!(!server.path.exists());
    send(&waiting, &ClientFrame::Hello(Hello::new("late")));
    assert_eq!(refusal(&waiting).0, RefusalKind::Stopping);
    assert_eq!(client.ask(0, &delete()).outcome, Outcome::Done, "sessions go on");
    server.reactor.take().expect("runs").shutdown();
    let woken = client.view().wake_line().wake.load(Ordering::Relaxed);
    sessions.shutdown();
    let ServerFrame::Closed { text } = last_words(&client.socket) else { panic!("closed") };
    assert!(text.contains("stopped"), "{text}");
    let node = NodeView::new(client.node.words()).expect("long enough");
    assert_eq!(node.epoch().load(Ordering::Relaxed), 0);
    assert_ne!(client.view().wake_line().wake.load(Ordering::Relaxed), woken, "who sleeps is woken");
}

/// Names the socket for the process that [`dies_by_a_signal`] starts.
const SOCKET: &str = "PAYLOAD_REACTOR_TEST_SOCKET";

/// Not a test by itself: the body of the process that the next one kills. It opens a session, lets a child of its own
/// inherit the socket, says so, and waits.
#[test]
fn dies_by_a_signal() {
    let Some(path) = std::env::var_os(SOCKET) else { return };
    let client = Client::connect(Path::new(&path), &Hello::new("a victim")).expect("let in");
    let inherited = client.socket.as_fd().try_clone_to_owned().expect("a copy");
    // Standard input keeps the socket open in a process that outlives this one.
    let mut child = Command::new("sleep").arg("60").stdin(Stdio::from(inherited)).spawn().expect("started");
    println!("victim {}", child.id());
    child.wait().expect("it is killed first");
}

#[test]
fn given_a_killed_process_whose_child_has_the_socket_when_it_dies_then_its_session_ends_all_the_same() {
    let server = Server::start(1, |_| {});
    let mut victim = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "session::tests::dies_by_a_signal", "--nocapture"])
        .env(SOCKET, &server.path)
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let output = io::BufReader::new(victim.stdout.take().expect("piped"));
    let said = io::BufRead::lines(output).map_while(Result::ok);
    let child =
        said.filter_map(|line| Some(line.split_once("victim ")?.1.to_owned())).next().expect("it came in");
    wait_until("it is listed", || server.list.count() == 1);
    assert_eq!(server.list.all()[0].pid, victim.id());
    let start: Monotonic = clock::monotonic();
    victim.kill().expect("killed");
    victim.wait().expect("dead");
    wait_until("its session has ended", || server.list.count() == 0);
    assert!(clock::monotonic().millis_since(start) < PATIENCE_MS);
    assert!(Path::new(&format!("/proc/{child}")).exists(), "somebody still had the socket");
    Command::new("kill").arg(&child).status().expect("killed");
}
