//! Unix sockets of whole messages (SOCK_SEQPACKET), with descriptors beside them, and who is at the other end.
//!
//! Nothing here waits: sockets are non-blocking, and a message that does not fit is an error.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::memory::owned;

/// The longest path of a socket: `sun_path` has 108 bytes with its end.
pub(crate) const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Descriptors of one message (SCM_MAX_FD of the kernel).
const DESCRIPTORS_MAX: usize = 253;

/// linux/socket.h of 6.5 and later; older kernels answer ENOPROTOOPT.
const SO_PEERPIDFD: libc::c_int = 77;

/// Supplementary groups of a peer that are looked at; NGROUPS_MAX is 65,536, and people are in a few.
const GROUPS_MAX: usize = 1024;

/// A process at the other end, as it was when it connected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Credentials {
    pub pid: u32,
    pub uid: u32,
    /// Its groups, the primary one first.
    pub gids: Vec<u32>,
}

/// A message that was received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Received {
    /// How many bytes are in the buffer; 0 also at the end of the connection.
    pub length: usize,
    /// There were more bytes than the buffer holds; they are gone.
    pub is_cut: bool,
    /// Descriptors came with it; the kernel has closed them again.
    pub had_descriptors: bool,
}

/// Binds a new socket to `path`, which must not exist, and listens.
pub(crate) fn listen(path: &Path, waiting_max: i32) -> io::Result<OwnedFd> {
    let socket = seqpacket()?;
    let (address, length) = address(path)?;
    // SAFETY: the kernel reads `length` bytes of `address`, which lives through the call and is that long.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: takes integers.
    if unsafe { libc::listen(socket.as_raw_fd(), waiting_max) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// The next connection that waits; `None` when there is none.
pub(crate) fn accept(listener: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no address is asked for.
    let fd =
        unsafe { libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags) };
    match owned(fd) {
        Ok(socket) => Ok(Some(socket)),
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ECONNABORTED | libc::EINTR)) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Who is at the other end.
pub(crate) fn credentials(socket: &OwnedFd) -> io::Result<Credentials> {
    let mut found = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `found`, which is that long and lives through the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut found).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut gids = vec![0; GROUPS_MAX];
    let mut length = (GROUPS_MAX * size_of::<u32>()) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `gids`, which is that long and lives through the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            gids.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    // Who is in more groups than that is known by the primary one.
    gids.truncate(if result == 0 { length as usize / size_of::<u32>() } else { 0 });
    gids.insert(0, found.gid);
    Ok(Credentials { pid: u32::try_from(found.pid).unwrap_or(0), uid: found.uid, gids })
}

/// A descriptor that becomes readable when the process at the other end has ended; `None` when it has already.
///
/// # Errors
/// Where the kernel cannot tell.
pub(crate) fn process_of(socket: &OwnedFd, pid: u32) -> io::Result<Option<OwnedFd>> {
    let mut fd: libc::c_int = -1;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `fd`, which is that long and lives through the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut length,
        )
    };
    let found = if result == 0 {
        owned(fd)
    } else {
        let refusal = io::Error::last_os_error();
        if refusal.raw_os_error() == Some(libc::ENOPROTOOPT) { open_process(pid) } else { Err(refusal) }
    };
    match found {
        Ok(process) => Ok(Some(process)),
        // ESRCH and EINVAL: it was waited for already.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EINVAL | libc::ENODATA)) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// By number: another process may have it by now, which would only be watched in vain.
fn open_process(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    owned(libc::c_int::try_from(fd).unwrap_or(-1))
}

/// Sends one message with descriptors, whole or not at all.
///
/// # Errors
/// `WouldBlock` when the other end does not read.
pub(crate) fn send(socket: &OwnedFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    assert!(descriptors.len() <= DESCRIPTORS_MAX, "the kernel lets {DESCRIPTORS_MAX} travel");
    let fds: Vec<libc::c_int> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // Eight bytes an element, so that the header at its start is aligned.
    let mut control = [0u64; 160];
    let mut message = empty_message(&mut part);
    if !fds.is_empty() {
        let payload = size_of_val(fds.as_slice()) as u32;
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: computes a size.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(payload) } as usize;
        assert!(message.msg_controllen <= size_of_val(&control), "253 descriptors fit");
        // SAFETY: the control buffer is longer than one header, so its first header lies within it.
        let header = unsafe { &mut *libc::CMSG_FIRSTHDR(&raw const message) };
        header.cmsg_level = libc::SOL_SOCKET;
        header.cmsg_type = libc::SCM_RIGHTS;
        // SAFETY: computes a size.
        header.cmsg_len = unsafe { libc::CMSG_LEN(payload) } as usize;
        // SAFETY: computes an address behind the header, within the control buffer.
        let place = unsafe { libc::CMSG_DATA(header) };
        // SAFETY: `place` has room for `payload` bytes by the assertion above, and the two do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(fds.as_ptr().cast(), place, payload as usize) };
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the message names `bytes` and `control`, which live through the call; the kernel only reads them.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Receives one message. There is no room for descriptors, so the kernel closes whatever comes with it.
///
/// # Errors
/// `WouldBlock` when there is none.
pub(crate) fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut message = empty_message(&mut part);
    // SAFETY: the message names `buffer`, which lives through the call; the kernel writes at most its length.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    Ok(Received {
        length,
        is_cut: message.msg_flags & libc::MSG_TRUNC != 0,
        had_descriptors: message.msg_flags & libc::MSG_CTRUNC != 0,
    })
}

/// Ends the connection for every process that has a copy of either end.
pub(crate) fn end(socket: &OwnedFd) {
    // SAFETY: takes integers. It fails when the other end is gone already.
    let _ = unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RDWR) };
}

/// The number of the group with this name, asked of the system's user database: may take a while.
pub(crate) fn group_by_name(name: &str) -> io::Result<Option<u32>> {
    let name = CString::new(name)?;
    let mut texts = vec![0; 16 << 10];
    loop {
        match group_entry(&name, &mut texts) {
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) && texts.len() < 1 << 20 => {
                texts.resize(texts.len() * 2, 0);
            }
            found => return found,
        }
    }
}

fn group_entry(name: &CStr, texts: &mut [libc::c_char]) -> io::Result<Option<u32>> {
    let mut group = MaybeUninit::<libc::group>::uninit();
    let mut found = std::ptr::null_mut();
    // SAFETY: the function writes one entry to `group`, its texts to `texts`, whose length it is told, and an address or
    // null to `found`; all three live through the call.
    let error = unsafe {
        libc::getgrnam_r(name.as_ptr(), group.as_mut_ptr(), texts.as_mut_ptr(), texts.len(), &raw mut found)
    };
    match (error, found.is_null()) {
        (0, true) => Ok(None),
        // SAFETY: the function says that it has filled the entry.
        (0, false) => Ok(Some(unsafe { group.assume_init() }.gr_gid)),
        (error, _) => Err(io::Error::from_raw_os_error(error)),
    }
}

/// The user that this process acts as.
pub(crate) fn own_uid() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

fn seqpacket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: takes integers.
    owned(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })
}

fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    let bytes = OsStr::as_bytes(path.as_os_str());
    if bytes.is_empty() || bytes.len() > SOCKET_PATH_BYTES_MAX || bytes.contains(&0) {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    let mut address =
        libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; 108] };
    for (place, byte) in address.sun_path.iter_mut().zip(bytes) {
        *place = byte.cast_signed();
    }
    Ok((address, size_of::<libc::sockaddr_un>() as libc::socklen_t))
}

fn empty_message(part: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: all zero is an empty message: null pointers with lengths of 0.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = part;
    message.msg_iovlen = 1;
    message
}

/// A client's side, for tests.
#[cfg(test)]
pub(crate) mod client {
    use super::*;

    /// Connects to `path`.
    pub(crate) fn connect(path: &Path) -> io::Result<OwnedFd> {
        let socket = seqpacket()?;
        let (address, length) = address(path)?;
        // SAFETY: the kernel reads `length` bytes of `address`, which lives through the call and is that long.
        match unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) } {
            0 => Ok(socket),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Receives one message with its descriptors.
    pub(crate) fn receive_with(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let mut control = [0u64; 160];
        let mut message = empty_message(&mut part);
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: the message names `buffer` and `control`, which live through the call.
        let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
        let mut descriptors = Vec::new();
        // SAFETY: the kernel has filled the message; its first header lies in `control`, or there is none.
        let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_ref() };
        if let Some(header) = header {
            // SAFETY: computes an address behind the header, and a size.
            let (data, head) = unsafe { (libc::CMSG_DATA(header), libc::CMSG_LEN(0) as usize) };
            for index in 0..(header.cmsg_len - head) / size_of::<libc::c_int>() {
                // SAFETY: as many descriptors were written there.
                let fd = unsafe { data.cast::<libc::c_int>().add(index).read_unaligned() };
                descriptors.push(owned(fd)?);
            }
        }
        Ok((length, descriptors))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    fn connected() -> (OwnedFd, OwnedFd) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        let listener = listen(&path, 4).expect("listens");
        assert!(accept(&listener).expect("nobody waits").is_none());
        let client = client::connect(&path).expect("connected");
        (accept(&listener).expect("accepted").expect("somebody waits"), client)
    }

    #[test]
    fn given_a_client_of_this_process_when_asked_who_it_is_then_this_process() {
        let (server, _client) = connected();
        let found = credentials(&server).expect("known");
        assert_eq!((found.pid, found.uid), (std::process::id(), own_uid()));
        assert!(!found.gids.is_empty());
        assert!(process_of(&server, found.pid).expect("known").is_some());
    }

    #[test]
    fn given_messages_with_descriptors_when_sent_then_they_arrive_and_unwanted_ones_are_closed() {
        let (server, client) = connected();
        let file = File::open("/proc/self/status").expect("a file");
        send(&server, b"two", &[file.as_fd(), file.as_fd()]).expect("sent");
        let mut buffer = [0; 8];
        let (length, descriptors) = client::receive_with(&client, &mut buffer).expect("received");
        assert_eq!((&buffer[..length], descriptors.len()), (&b"two"[..], 2));

        let open = || std::fs::read_dir("/proc/self/fd").expect("ours").count();
        send(&client, b"extra", &[file.as_fd()]).expect("sent");
        let before = open();
        let received = receive(&server, &mut buffer).expect("received");
        assert_eq!(received, Received { length: 5, is_cut: false, had_descriptors: true });
        // Other tests of this process open and close descriptors, too; what was sent is not among them for long.
        assert!(open() <= before + 8, "{} descriptors after {before}", open());

        send(&client, &[1; 20], &[]).expect("sent");
        assert!(receive(&server, &mut buffer).expect("received").is_cut);
        assert_eq!(
            receive(&server, &mut buffer).expect_err("nothing is there").kind(),
            io::ErrorKind::WouldBlock
        );
        drop(client);
        assert_eq!(receive(&server, &mut buffer).expect("ended").length, 0);
    }

    #[test]
    fn given_a_path_that_is_too_long_when_listened_on_then_refused() {
        let long = format!("/tmp/{}", "x".repeat(SOCKET_PATH_BYTES_MAX));
        let error = listen(Path::new(&long), 1).expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    }

    #[test]
    fn given_names_of_groups_when_looked_up_then_their_numbers() {
        assert_eq!(group_by_name("root").expect("asked"), Some(0));
        assert_eq!(group_by_name("no-group-has-this-name").expect("asked"), None);
    }
}
