//! What other processes can do to memories of arenas, in each of their states: real memfds, real processes, which do all
//! that a hostile client could.
//!
//! ```text
//! test ──fd 0: the memory──> peer (this program again)      orders and answers: lines over a socket, its fd 2
//! ```

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use payload_drivers::arena::{ArenaError, Job, Keeper, Leaving, Maker, MakerConfig};
use payload_types::ByteCount;

const PEER: &str = "PAYLOAD_DRIVERS_TEST_PEER";
const HOST: &str =
    "given_a_writer_that_mapped_before_the_seal_when_sealed_then_it_writes_on_and_readers_see_it";
const BYTES: ByteCount = ByteCount(256 << 10);

/// Long enough for a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(30);

/// Another process that has the memory.
struct Peer {
    child: Child,
    lines: BufReader<UnixStream>,
}

impl Peer {
    fn start(memory: BorrowedFd<'_>) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("a socket");
        ours.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", HOST, "--nocapture"])
            .env(PEER, "1")
            .stdin(memory.try_clone_to_owned().expect("a descriptor"))
            .stdout(Stdio::null())
            .stderr(OwnedFd::from(theirs))
            .spawn()
            .expect("this program again");
        Self { child, lines: BufReader::new(ours) }
    }

    /// Gives an order; `ok`, a number that was loaded, or the name of an error.
    fn ask(&mut self, order: &str) -> String {
        writeln!(self.lines.get_mut(), "{order}").expect("the peer listens");
        let mut answer = String::new();
        self.lines.read_line(&mut answer).expect("the peer answers");
        answer.trim().to_owned()
    }

    fn end(mut self) {
        assert_eq!(self.ask("exit"), "ok");
        assert!(self.child.wait().expect("its end").success());
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The peer's side. It has the memory as descriptor 0, whatever it reopened, and one mapping.
fn serve() {
    // SAFETY: the parent made descriptor 2 a socket for this process alone.
    let socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(2) });
    let mut answers = socket.try_clone().expect("a descriptor");
    let (mut fd, mut mapping) = (0, std::ptr::null_mut::<u8>());
    for order in BufReader::new(socket).lines() {
        let order = order.expect("a line");
        let mut words = order.split(' ');
        let name = words.next().expect("an order");
        let number: usize = words.next().map_or(0, |word| word.parse().expect("a number"));
        let answer = match name {
            "reopen" => {
                // SAFETY: the path ends with a NUL.
                let opened = unsafe { libc::open(c"/proc/self/fd/0".as_ptr(), libc::O_RDWR) };
                fd = if opened < 0 { fd } else { opened };
                result(opened)
            }
            "map" | "map-read" => {
                let access = if name == "map" { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
                let bytes = BYTES.0 as usize;
                // SAFETY: a new mapping at a place of the kernel's choice.
                let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, libc::MAP_SHARED, fd, 0) };
                if at == libc::MAP_FAILED {
                    result(-1)
                } else {
                    mapping = at.cast();
                    result(0)
                }
            }
            // SAFETY: the range is the mapping that this process made.
            "unmap" => result(unsafe { libc::munmap(mapping.cast(), BYTES.0 as usize) }),
            "protect" => {
                let access = libc::PROT_READ | libc::PROT_WRITE;
                // SAFETY: as above.
                result(unsafe { libc::mprotect(mapping.cast(), BYTES.0 as usize, access) })
            }
            "store" => {
                // SAFETY: the test gives offsets within the mapping, which is writable.
                unsafe { mapping.add(number).write_volatile(7) };
                result(0)
            }
            // SAFETY: the test gives offsets within the mapping.
            "load" => unsafe { mapping.add(number).read_volatile() }.to_string(),
            // SAFETY: one byte of a constant that outlives the call.
            "write" => result(unsafe { libc::pwrite(fd, c"x".as_ptr().cast(), 1, number as i64) } as i32 - 1),
            // SAFETY: integers only.
            "length" => result(unsafe { libc::ftruncate(fd, number as i64) }),
            "punch" => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                // SAFETY: integers only.
                result(unsafe { libc::fallocate(fd, mode, number as i64, 4096) })
            }
            // SAFETY: integers only.
            "seal" => result(unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_WRITE) }),
            "exit" => result(0),
            other => panic!("{other} is no order"),
        };
        writeln!(answers, "{answer}").expect("the test listens");
        if name == "exit" {
            return;
        }
    }
}

fn result(code: i32) -> String {
    if code >= 0 {
        return "ok".to_owned();
    }
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EPERM) => "EPERM".to_owned(),
        Some(libc::EACCES) => "EACCES".to_owned(),
        Some(libc::EBUSY) => "EBUSY".to_owned(),
        Some(libc::EBADF) => "EBADF".to_owned(),
        Some(libc::EINVAL) => "EINVAL".to_owned(),
        _ => error.to_string(),
    }
}

fn maker() -> Maker {
    Maker::new(MakerConfig::default())
}

#[test]
fn given_a_writer_that_mapped_before_the_seal_when_sealed_then_it_writes_on_and_readers_see_it() {
    if std::env::var_os(PEER).is_some() {
        return serve();
    }
    let draft = maker().slab(BYTES, None).expect("memory");
    let mut writer = Peer::start(draft.writer());
    assert_eq!(writer.ask("map"), "ok");
    let slab = draft.seal().expect("sealed");
    assert_eq!(writer.ask("store 4096"), "ok", "after the seal");
    let mut reader = Peer::start(slab.reader().expect("a descriptor").as_fd());
    assert_eq!(reader.ask("map-read"), "ok");
    assert_eq!((reader.ask("load 4096"), reader.ask("load 4095")), ("7".to_owned(), "0".to_owned()));
    assert_eq!(writer.ask("store 4095"), "ok");
    assert_eq!(reader.ask("load 4095"), "7", "and what is written later");
    // The writer has a descriptor that was made to write. It has only its mapping.
    for (order, refused) in [
        ("map", "EPERM"),
        ("write 0", "EPERM"),
        ("punch 0", "EPERM"),
        ("length 0", "EPERM"),
        ("seal", "EPERM"),
    ] {
        assert_eq!(writer.ask(order), refused, "{order}");
    }
    assert_eq!(slab.bytes_in_kernel().expect("known"), BYTES);
    reader.end();
    writer.end();
}

#[test]
fn given_a_sealed_slab_when_a_reader_does_all_it_can_then_it_changes_nothing() {
    let slab = maker().slab(BYTES, None).expect("memory").seal().expect("sealed");
    let mut reader = Peer::start(slab.reader().expect("a descriptor").as_fd());
    // With the descriptor that it was given.
    for (order, refused) in
        [("map", "EACCES"), ("write 0", "EBADF"), ("length 0", "EINVAL"), ("punch 0", "EBADF")]
    {
        assert_eq!(reader.ask(order), refused, "{order}");
    }
    assert_eq!(reader.ask("map-read"), "ok");
    assert_eq!(reader.ask("protect"), "EACCES");
    // With one that it opened to write, as root may in any case.
    assert_eq!(reader.ask("reopen"), "ok");
    for (order, refused) in [
        ("map", "EPERM"),
        ("write 0", "EPERM"),
        ("punch 0", "EPERM"),
        ("length 0", "EPERM"),
        ("length 4096", "EPERM"),
        ("length 1000000", "EPERM"),
        ("seal", "EPERM"),
    ] {
        assert_eq!(reader.ask(order), refused, "{order}, reopened");
    }
    assert_eq!(reader.ask("map-read"), "ok");
    assert_eq!(reader.ask("protect"), "EACCES", "reopened");
    assert_eq!((reader.ask("load 0"), slab.bytes_in_kernel().expect("known")), ("0".to_owned(), BYTES));
    reader.end();
}

#[test]
fn given_a_draft_when_another_process_has_it_then_it_could_write_and_only_its_length_is_safe() {
    // The canary of the test above, and why no reader gets a descriptor of a draft.
    let draft = maker().slab(BYTES, None).expect("memory");
    let mut other = Peer::start(draft.writer());
    assert_eq!(other.ask("reopen"), "ok");
    for order in ["map", "write 0", "punch 4096", "protect"] {
        assert_eq!(other.ask(order), "ok", "{order}");
    }
    for order in ["length 0", "length 4096", "length 1000000"] {
        assert_eq!(other.ask(order), "EPERM", "{order}");
    }
    other.end();
}

#[test]
fn given_a_writer_that_comes_after_the_seal_when_it_maps_then_it_is_refused() {
    let draft = maker().slab(BYTES, None).expect("memory");
    let mut late = Peer::start(draft.writer());
    let _slab = draft.seal().expect("sealed");
    assert_eq!(late.ask("map"), "EPERM");
    assert_eq!(late.ask("map-read"), "ok");
    assert_eq!(late.ask("protect"), "EACCES", "though its descriptor was made to write");
    late.end();
}

#[test]
fn given_a_writer_that_punched_holes_when_sealed_then_all_pages_are_reserved_again() {
    let draft = maker().slab(BYTES, None).expect("memory");
    let mut writer = Peer::start(draft.writer());
    assert_eq!(writer.ask("map"), "ok");
    assert_eq!((writer.ask("store 8192"), writer.ask("punch 8192")), ("ok".to_owned(), "ok".to_owned()));
    let slab = draft.seal().expect("sealed");
    assert_eq!(slab.bytes_in_kernel().expect("known"), BYTES);
    assert_eq!((writer.ask("load 8192"), writer.ask("store 8192")), ("0".to_owned(), "ok".to_owned()));
    writer.end();
}

#[test]
fn given_an_isolated_payload_when_committed_while_mapped_then_refused_and_after_unmapping_nobody_can_write() {
    let isolated = maker().isolated(BYTES, None).expect("memory");
    let mut producer = Peer::start(isolated.writer());
    assert_eq!((producer.ask("map"), producer.ask("store 5")), ("ok".to_owned(), "ok".to_owned()));
    let (isolated, error) = isolated.freeze().err().expect("somebody can write");
    assert!(matches!(error, ArenaError::StillWritable { asked: BYTES, .. }), "{error}");
    assert!(error.to_string().contains("unmap it"), "{error}");
    assert_eq!((producer.ask("store 6"), producer.ask("unmap")), ("ok".to_owned(), "ok".to_owned()));
    let frozen = isolated.freeze().map_err(|(_, error)| error).expect("nobody can write");
    for order in ["map", "write 0", "punch 0", "length 0", "seal"] {
        assert_eq!(producer.ask(order), "EPERM", "{order}");
    }
    let mut reader = Peer::start(frozen.reader().expect("a descriptor").as_fd());
    assert_eq!(reader.ask("map-read"), "ok");
    assert_eq!((reader.ask("load 5"), reader.ask("load 6")), ("7".to_owned(), "7".to_owned()));
    assert_eq!(reader.ask("protect"), "EACCES");
    assert_eq!(reader.ask("reopen"), "ok");
    for order in ["map", "write 0", "punch 0", "length 0", "seal"] {
        assert_eq!(reader.ask(order), "EPERM", "{order}, reopened");
    }
    assert_eq!(frozen.bytes_in_kernel().expect("known"), BYTES);
    reader.end();
    producer.end();
}

#[test]
fn given_a_range_of_a_slab_when_zeroed_then_it_is_and_its_neighbours_stay() {
    let draft = maker().slab(BYTES, None).expect("memory");
    let mut writer = Peer::start(draft.writer());
    assert_eq!(writer.ask("map"), "ok");
    let slab = Arc::new(draft.seal().expect("sealed"));
    for at in [99, 100, 5000, 8191, 8192] {
        assert_eq!(writer.ask(&format!("store {at}")), "ok");
    }
    let keeper = Keeper::start(maker());
    let (done, zeroed) = mpsc::channel();
    let done = Box::new(move |()| done.send(()).expect("the test listens"));
    keeper.submit(Job::Zero { slab: Arc::clone(&slab), range: 100..8192, done }).ok().expect("room");
    zeroed.recv_timeout(PATIENCE).expect("zeroed");
    let found = [99, 100, 5000, 8191, 8192].map(|at| writer.ask(&format!("load {at}")));
    assert_eq!(found, ["7", "0", "0", "0", "7"]);
    writer.end();
}

#[test]
fn given_a_slab_that_others_have_mapped_when_returned_then_it_is_gone_only_after_the_last_of_them() {
    let draft = maker().slab(BYTES, None).expect("memory");
    let mut writer = Peer::start(draft.writer());
    assert_eq!(writer.ask("map"), "ok");
    let slab = Arc::new(draft.seal().expect("sealed"));
    let mut reader = Peer::start(slab.reader().expect("a descriptor").as_fd());
    assert_eq!(reader.ask("map-read"), "ok");
    let keeper = Keeper::start(maker());
    let (done, returned) = mpsc::channel();
    let still_used = Arc::clone(&slab);
    let done = Box::new(move |bytes| done.send(bytes).expect("the test listens"));
    keeper.submit(Job::Return { memory: Leaving::Slab(slab), done }).ok().expect("room");
    // Used here, mapped by a reader, mapped by its writer: each alone keeps it.
    let not_yet = || returned.recv_timeout(Duration::from_millis(60)).is_err();
    assert!(not_yet());
    drop(still_used);
    assert!(not_yet());
    writer.end();
    assert!(not_yet());
    assert_eq!(reader.ask("load 0"), "0", "what is mapped stays readable");
    reader.end();
    assert_eq!(returned.recv_timeout(PATIENCE).expect("returned"), BYTES);
}

#[test]
fn given_memories_that_only_their_writer_has_when_returned_then_each_is_gone_only_after_him() {
    let keeper = Keeper::start(maker());
    let made = || maker().slab(BYTES, None).expect("memory");
    let draft = made();
    let mut of_draft = Peer::start(draft.writer());
    let to_seal = made();
    let mut of_slab = Peer::start(to_seal.writer());
    assert_eq!(of_slab.ask("map"), "ok");
    let slab = to_seal.seal().map_err(|(_, error)| error).expect("sealed");
    let isolated = maker().isolated(BYTES, None).expect("memory");
    let of_isolated = Peer::start(isolated.writer());
    let to_freeze = maker().isolated(BYTES, None).expect("memory");
    let of_frozen = Peer::start(to_freeze.writer());
    let frozen = to_freeze.freeze().map_err(|(_, error)| error).expect("not mapped");
    assert_eq!(of_draft.ask("map"), "ok");
    for (memory, writer) in [
        (Leaving::Draft(draft), of_draft),
        (Leaving::Slab(Arc::new(slab)), of_slab),
        (Leaving::Isolated(isolated), of_isolated),
        (Leaving::Frozen(frozen), of_frozen),
    ] {
        let (done, returned) = mpsc::channel();
        let done = Box::new(move |bytes| done.send(bytes).expect("the test listens"));
        keeper.submit(Job::Return { memory, done }).ok().expect("room");
        assert!(returned.recv_timeout(Duration::from_millis(60)).is_err(), "returned under its writer");
        writer.end();
        assert_eq!(returned.recv_timeout(PATIENCE).expect("returned"), BYTES);
    }
}

#[test]
fn given_memories_of_any_state_when_returned_then_each_is_answered() {
    let keeper = Keeper::start(maker());
    let (done, returned) = mpsc::channel();
    let made = || maker().slab(BYTES, None).expect("memory");
    let isolated = || maker().isolated(BYTES, None).expect("memory");
    let frozen = isolated().freeze().map_err(|(_, error)| error).expect("nobody has it");
    for memory in [
        Leaving::Draft(made()),
        Leaving::Slab(Arc::new(made().seal().expect("sealed"))),
        Leaving::Isolated(isolated()),
        Leaving::Frozen(frozen),
    ] {
        let done = done.clone();
        let done = Box::new(move |bytes| done.send(bytes).expect("the test listens"));
        keeper.submit(Job::Return { memory, done }).ok().expect("room");
    }
    for _ in 0..4 {
        assert_eq!(returned.recv_timeout(PATIENCE).expect("returned"), BYTES);
    }
}
