//! Connected Unix sockets that carry bytes and file descriptors.
//!
//! Every call passes `MSG_DONTWAIT` or not by itself: `O_NONBLOCK` lives in the open file
//! description, which the other holders of a passed or inherited socket share. Every receive asks
//! for `MSG_CMSG_CLOEXEC`, every send for `MSG_NOSIGNAL`.
//! See [unix(7)](https://man7.org/linux/man-pages/man7/unix.7.html).

use std::io::{self, IoSlice};
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use bytes::BytesMut;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, getsockopt, send,
    sendmsg, setsockopt, shutdown, socketpair, sockopt,
};

/// The most descriptors that the kernel takes in one message (`SCM_MAX_FD`).
pub(crate) const FDS_PER_MESSAGE: usize = 253;

/// Whether a call may put the thread to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Come back with [`io::ErrorKind::WouldBlock`].
    No,
    /// Sleep until it can go on.
    Yes,
}

impl Wait {
    fn flags(self) -> MsgFlags {
        match self {
            Self::No => MsgFlags::MSG_DONTWAIT,
            Self::Yes => MsgFlags::empty(),
        }
    }
}

/// What a receive brought.
#[derive(Debug, Default)]
pub(crate) struct Received {
    /// Bytes read; 0 is the end of the stream.
    pub(crate) len: usize,
    /// The kernel dropped descriptors: this process has no free descriptor left.
    pub(crate) fds_lost: bool,
}

/// Two connected stream sockets, closed on exec.
pub(crate) fn stream_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    pair(SockType::Stream)
}

/// Two connected sockets that keep the bounds of messages, closed on exec.
pub(crate) fn seqpacket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    pair(SockType::SeqPacket)
}

fn pair(kind: SockType) -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::Unix,
        kind,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?)
}

/// Asks for a send buffer of `bytes`; the kernel grants at most `net.core.wmem_max`.
pub(crate) fn set_send_buffer(fd: impl AsFd, bytes: usize) -> io::Result<()> {
    Ok(setsockopt(&fd, sockopt::SndBuf, &bytes)?)
}

/// Writes what fits of `bytes`.
pub(crate) fn send_bytes(fd: impl AsFd, bytes: &[u8], wait: Wait) -> io::Result<usize> {
    loop {
        match send(
            fd.as_fd().as_raw_fd(),
            bytes,
            MsgFlags::MSG_NOSIGNAL | wait.flags(),
        ) {
            Err(Errno::EINTR) => (),
            result => return Ok(result?),
        }
    }
}

/// Writes what fits of `slices`, with `fds` attached to the first byte.
///
/// All descriptors go along as soon as one byte does, so after a short write the caller sends the
/// rest without them.
pub(crate) fn send_with_fds(
    fd: impl AsFd,
    slices: &[IoSlice<'_>],
    fds: &[BorrowedFd<'_>],
    wait: Wait,
) -> io::Result<usize> {
    assert!(
        fds.len() <= FDS_PER_MESSAGE,
        "{} descriptors in one message",
        fds.len()
    );
    if let ([slice], []) = (slices, fds) {
        return send_bytes(fd, slice, wait);
    }
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_NOSIGNAL | wait.flags();
    loop {
        match sendmsg::<()>(fd.as_fd().as_raw_fd(), slices, control, flags, None) {
            Err(Errno::EINTR) => (),
            result => return Ok(result?),
        }
    }
}

/// Writes all of `bytes`, sleeping while the buffer is full.
pub(crate) fn send_all(fd: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let sent = send_bytes(&fd, bytes, Wait::Yes)?;
        bytes = &bytes[sent..];
    }
    Ok(())
}

/// Appends at most `max` bytes of what is there to `buffer`, and the descriptors that came along
/// to `fds`.
///
/// nix's `recvmsg` refuses to walk a truncated control buffer, though the kernel has installed the
/// descriptors that it holds; they would leak, so the walk is done here.
pub(crate) fn recv_with_fds(
    fd: impl AsFd,
    buffer: &mut BytesMut,
    max: usize,
    fds: &mut Vec<OwnedFd>,
    wait: Wait,
) -> io::Result<Received> {
    buffer.reserve(max);
    let room = &mut buffer.spare_capacity_mut()[..max];
    let mut control = MaybeUninit::<ControlBuffer>::uninit();
    let mut slice = libc::iovec {
        iov_base: room.as_mut_ptr().cast(),
        iov_len: room.len(),
    };
    // SAFETY: `msghdr` is plain data, for which zeros are a value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of::<ControlBuffer>() as _;
    let flags = libc::MSG_CMSG_CLOEXEC | wait.flags().bits();
    let len = loop {
        // SAFETY: `message` points at one slice over `room` and at `control`, both writable for
        // the lengths given and alive until the call returns.
        let len = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut message, flags) };
        match Errno::result(len) {
            Err(Errno::EINTR) => (),
            result => break result?.cast_unsigned(),
        }
    };
    take_rights(&message, fds);
    // SAFETY: the kernel has written `len` bytes behind the end, where there was room for `max`.
    unsafe { buffer.set_len(buffer.len() + len) };
    Ok(Received {
        len,
        fds_lost: message.msg_flags & libc::MSG_CTRUNC != 0,
    })
}

/// Room for one `SCM_RIGHTS` message of [`FDS_PER_MESSAGE`] descriptors, aligned for its header.
#[repr(C, align(8))]
struct ControlBuffer {
    _bytes: [u8; 16 + 4 * 254],
}

/// Takes ownership of the descriptors that the kernel put into the control buffer of `message`.
fn take_rights(message: &libc::msghdr, fds: &mut Vec<OwnedFd>) {
    // SAFETY: the kernel filled `message`, whose control buffer is alive and holds what
    // `msg_controllen` covers.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !next.is_null() {
        // SAFETY: the macros return null or a header that lies wholly in the control buffer, which
        // is aligned for it.
        let header = unsafe { *next };
        if (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: computes a size and touches no memory.
            let empty = unsafe { libc::CMSG_LEN(0) } as usize;
            // SAFETY: `next` is a header, and its data follow it in the same buffer.
            let data = unsafe { libc::CMSG_DATA(next) }.cast::<RawFd>();
            for i in 0..(header.cmsg_len - empty) / size_of::<RawFd>() {
                // SAFETY: the header's length covers descriptor `i`.
                let place = unsafe { data.add(i) };
                // SAFETY: `place` is inside the control buffer; it may be unaligned.
                let raw = unsafe { place.read_unaligned() };
                // SAFETY: the kernel has just installed `raw` for this process, and nobody else
                // knows of it, so it is open and owned by nobody.
                fds.push(unsafe { OwnedFd::from_raw_fd(raw) });
            }
        }
        // SAFETY: `next` is a header in the control buffer of `message`.
        next = unsafe { libc::CMSG_NXTHDR(message, next) };
    }
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Bytes or the end can be read.
    In,
    /// Bytes can be written, or never again.
    Out,
}

/// Sleeps until `fd` is ready.
pub(crate) fn wait_for(fd: impl AsFd, direction: Direction) -> io::Result<()> {
    wait_for_any(&[(fd.as_fd(), direction)], None)
}

/// Sleeps until one of `fds` is ready, at most for `limit`. It may wake up for nothing.
pub(crate) fn wait_for_any(
    fds: &[(BorrowedFd<'_>, Direction)],
    limit: Option<Duration>,
) -> io::Result<()> {
    let asked = |&(fd, direction)| {
        let events = match direction {
            Direction::In => PollFlags::POLLIN,
            Direction::Out => PollFlags::POLLOUT,
        };
        PollFd::new(fd, events)
    };
    let mut asked: Vec<PollFd<'_>> = fds.iter().map(asked).collect();
    let limit = match limit {
        Some(limit) => PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX),
        None => PollTimeout::NONE,
    };
    match poll(&mut asked, limit) {
        // EINTR: the caller looks again, as it does after every return.
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Ends the sending direction: the peer reads what is in the buffer and then the end.
pub(crate) fn end_sending(fd: impl AsFd) -> io::Result<()> {
    Ok(shutdown(fd.as_fd().as_raw_fd(), Shutdown::Write)?)
}

/// The error of a process in which a descriptor that was sent to it has found no room.
pub(crate) fn no_room() -> io::Error {
    Errno::EMFILE.into()
}

/// The process that made the pair that `fd` is an end of, if there is such a process in ours' namespace.
pub(crate) fn creator(fd: impl AsFd) -> Option<u32> {
    let peer = getsockopt(&fd, sockopt::PeerCredentials).ok()?;
    u32::try_from(peer.pid()).ok().filter(|pid| *pid != 0)
}

/// Whether `fd` is a Unix socket whose peer runs as this process' user.
pub(crate) fn is_ours(fd: BorrowedFd<'_>) -> bool {
    let Ok(peer) = getsockopt(&fd, sockopt::PeerCredentials) else {
        return false;
    };
    peer.uid() == nix::unistd::Uid::current().as_raw()
        && nix::sys::socket::getsockname::<nix::sys::socket::UnixAddr>(fd.as_raw_fd()).is_ok()
}
