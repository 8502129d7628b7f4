//! Readiness of many descriptors, see [epoll(7)](https://man7.org/linux/man-pages/man7/epoll.7.html).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll as Set, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// A set of descriptors, each with a token of the caller's.
#[derive(Debug)]
pub(crate) struct Epoll(Set);

/// What a descriptor is watched for, level-triggered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    /// Bytes or the end can be read.
    Read,
    /// Bytes or the end can be read, or bytes can be written.
    ReadWrite,
    /// The other side has gone; bytes that arrive do not count.
    HangUp,
    /// Bytes can be written.
    Write,
}

impl Interest {
    fn flags(self) -> EpollFlags {
        match self {
            Self::Read => EpollFlags::EPOLLIN,
            Self::ReadWrite => EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT,
            Self::HangUp => EpollFlags::EPOLLRDHUP,
            Self::Write => EpollFlags::EPOLLOUT,
        }
    }
}

impl Epoll {
    /// An empty set, closed on exec.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Set::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    /// Watches `fd`; its events come with `token`.
    pub(crate) fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(self.0.add(fd, EpollEvent::new(interest.flags(), token))?)
    }

    /// Changes what `fd` is watched for.
    pub(crate) fn modify(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        let mut event = EpollEvent::new(interest.flags(), token);
        Ok(self.0.modify(fd, &mut event)?)
    }

    /// Forgets `fd`, which matters while another process holds a copy of it.
    pub(crate) fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(self.0.delete(fd)?)
    }

    /// Waits for events, at most for `timeout`, and puts their tokens into `ready`.
    pub(crate) fn wait(&self, ready: &mut Vec<u64>, timeout: Option<Duration>) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        let timeout = timeout.map_or(EpollTimeout::NONE, milliseconds);
        ready.clear();
        let n_events = match self.0.wait(&mut events, timeout) {
            // EINTR: a signal handler ran; the caller looks at its clock and comes back.
            Err(Errno::EINTR) => 0,
            result => result?,
        };
        ready.extend(events[..n_events].iter().map(EpollEvent::data));
        Ok(())
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

/// Rounds up, so that a wait never ends just before its time and then spins.
fn milliseconds(timeout: Duration) -> EpollTimeout {
    let rounded = timeout.as_nanos().div_ceil(1_000_000);
    EpollTimeout::try_from(i32::try_from(rounded).unwrap_or(i32::MAX)).unwrap_or(EpollTimeout::MAX)
}
