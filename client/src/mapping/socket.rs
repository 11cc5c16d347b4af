//! The Unix socket of a native session: SOCK_SEQPACKET, which the standard library has not, with descriptors beside the
//! frames. And the doorbells that come that way.
//!
//! Used by `native` alone. Limits: a message has at most `FRAME_BYTES_MAX` bytes and as many descriptors as the kernel lets
//! travel; all of them are owned from the moment they arrive, and closed if nobody takes them.

use std::ffi::OsStr;
use std::io;
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use payload_local::hello::FRAME_BYTES_MAX;

/// SCM_MAX_FD of the kernel.
const DESCRIPTORS_MAX: usize = 253;

/// Words of the buffer for descriptors: 253 of them are 1,012 bytes, and the header has 16.
const CONTROL_WORDS: usize = 136;

/// A connected socket.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
}

/// One message.
#[derive(Debug)]
pub(crate) struct Message {
    /// Its bytes; empty when the other side has closed.
    pub(crate) bytes: Vec<u8>,
    /// What came beside them.
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl Socket {
    /// Connects to the socket at `path`. Sending and receiving give up after `timeout`.
    ///
    /// # Errors
    /// What the system says; `InvalidInput` for a path that is too long for a socket.
    pub(crate) fn connect(path: &Path, timeout: Duration) -> io::Result<Self> {
        let (address, length) = address_of(path.as_os_str())?;
        // SAFETY: takes plain numbers, and returns a descriptor or -1.
        let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0) };
        // SAFETY: a descriptor that socket(2) has just made is nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(checked(fd as isize)? as RawFd) };
        let timeout = libc::timeval {
            tv_sec: timeout.as_secs() as libc::time_t,
            tv_usec: timeout.subsec_micros().into(),
        };
        for option in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
            let size = size_of::<libc::timeval>() as libc::socklen_t;
            let value = (&raw const timeout).cast();
            // SAFETY: `value` points to a timeval of `size` bytes, which the call only reads.
            let set = unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option, value, size) };
            checked(set as isize)?;
        }
        // SAFETY: `address` holds `length` bytes of a sockaddr_un, which the call only reads.
        let connected = unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), length) };
        checked(connected as isize)?;
        Ok(Self { fd })
    }

    /// Two that are connected, with the same timeout.
    ///
    /// # Errors
    /// What the system says.
    #[cfg(test)]
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let mut fds: [RawFd; 2] = [-1; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        // SAFETY: two descriptors are written to `fds`, which has room for them.
        checked(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) } as isize)?;
        // SAFETY: descriptors that socketpair(2) has just made are nobody else's.
        let [one, other] = fds.map(|fd| Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } });
        Ok((one, other))
    }

    /// Sends one message without descriptors.
    ///
    /// # Errors
    /// What the system says; no signal is raised when the other side is gone.
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let flags = libc::MSG_NOSIGNAL;
        // SAFETY: the bytes are readable for their length, and the call only reads them.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
        checked(sent).map(drop)
    }

    /// Receives one message, waiting for it at most as long as the socket's timeout.
    ///
    /// # Errors
    /// What the system says; `InvalidData` for one that does not fit.
    pub(crate) fn receive(&self) -> io::Result<Message> {
        self.receive_with(0)
    }

    /// Receives a message if there is one.
    ///
    /// # Errors
    /// As [`Socket::receive`]; `WouldBlock` when there is none.
    pub(crate) fn receive_now(&self) -> io::Result<Message> {
        self.receive_with(libc::MSG_DONTWAIT)
    }

    /// Sleeps until there is a message, the other side has closed, or `bell` rings, which it stops; `timeout` at most.
    pub(crate) fn wait(&self, bell: &Bell, timeout: Duration) {
        let of = |fd: &OwnedFd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let mut both = [of(&self.fd), of(&bell.0)];
        let millis = libc::c_int::try_from(timeout.as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: `both` are two pollfds of open descriptors, which the call reads and writes.
        let ready = unsafe { libc::poll(both.as_mut_ptr(), both.len() as libc::nfds_t, millis) };
        if ready > 0 && both[1].revents != 0 {
            let mut count = 0u64;
            // SAFETY: eight bytes of a local value are written at most; a bell that stopped by itself says EAGAIN.
            unsafe {
                libc::read(bell.0.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>());
            }
        }
    }

    fn receive_with(&self, flags: libc::c_int) -> io::Result<Message> {
        let mut bytes = vec![0u8; FRAME_BYTES_MAX];
        let mut control = [0u64; CONTROL_WORDS];
        let mut vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: a msghdr of zeros is a valid one, without an address, buffers or control.
        let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: the message points to buffers of the lengths that it states; they live until the call has returned.
        let received =
            unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, flags | libc::MSG_CMSG_CLOEXEC) };
        let length = checked(received)?;
        let descriptors = descriptors_of(&message);
        if message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
            let reason = "a message is longer than any of the protocol, or its descriptors exceed this process's limit (ulimit -n)";
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        bytes.truncate(length);
        Ok(Message { bytes, descriptors })
    }
}

/// An eventfd of this process's own: wakes the thread that waits for a socket.
#[derive(Debug)]
pub(crate) struct Bell(OwnedFd);

impl Bell {
    /// One that is silent.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: takes plain numbers, and returns a descriptor or -1.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        // SAFETY: a descriptor that eventfd(2) has just made is nobody else's.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(checked(fd as isize)? as RawFd) }))
    }

    /// Wakes who waits, now or the next time.
    pub(crate) fn ring(&self) {
        ring(&self.0);
    }
}

/// All descriptors of a message that was received.
fn descriptors_of(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut found = Vec::new();
    // SAFETY: the kernel wrote the control buffer and its length into `message`; both outlive this call.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: FIRSTHDR and NXTHDR return headers that lie within the buffer.
        let (level, kind, length) =
            unsafe { ((*header).cmsg_level, (*header).cmsg_type, (*header).cmsg_len) };
        if (level, kind) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: the data of a header starts where CMSG_DATA says.
            let data = unsafe { libc::CMSG_DATA(header) };
            let head = data as usize - header as usize;
            let count = (length.saturating_sub(head) / size_of::<RawFd>()).min(DESCRIPTORS_MAX);
            for index in 0..count {
                // SAFETY: SCM_RIGHTS carries `count` descriptors, which may lie unaligned; each is new in this process
                // and nobody else's.
                found.push(unsafe { OwnedFd::from_raw_fd(data.cast::<RawFd>().add(index).read_unaligned()) });
            }
        }
        // SAFETY: as for FIRSTHDR.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    found
}

fn address_of(path: &OsStr) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    // SAFETY: a sockaddr_un of zeros is a valid one.
    let mut address: libc::sockaddr_un = unsafe { MaybeUninit::zeroed().assume_init() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_bytes();
    // One byte is the 0 that ends it.
    if bytes.is_empty() || bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        let reason = format!("the path of a socket has 1 to {} bytes", address.sun_path.len() - 1);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    let length = offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + 1;
    Ok((address, length as libc::socklen_t))
}

/// Rings a doorbell: adds 1 to an eventfd. A full one rings already.
pub(crate) fn ring(bell: &OwnedFd) {
    let one = 1u64;
    // SAFETY: eight bytes of a local value are read; the descriptor is open. A failure means that it rings already, or
    // that the server is gone, which every waiter finds out by its own look.
    unsafe {
        libc::write(bell.as_raw_fd(), (&raw const one).cast(), size_of::<u64>());
    }
}

fn checked(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_path_without_a_socket_when_connected_then_the_systems_word() {
        let dir = tempfile::tempdir().expect("a directory");
        let absent = dir.path().join("absent.sock");
        let error = Socket::connect(&absent, Duration::from_secs(1)).expect_err("absent");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let long = dir.path().join("x".repeat(200));
        let error = Socket::connect(&long, Duration::from_secs(1)).expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn given_a_stream_socket_when_connected_then_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("stream.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&path).expect("bound");
        assert!(Socket::connect(&path, Duration::from_secs(1)).is_err());
    }
}
