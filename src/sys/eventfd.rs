//! The event counter, see [eventfd(2)](https://man7.org/linux/man-pages/man2/eventfd.2.html).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd as Counter};

/// A counter that is readable while it is not zero.
#[derive(Debug)]
pub(crate) struct EventFd(OwnedFd);

impl EventFd {
    /// A counter at zero, non-blocking and closed on exec.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self(Counter::from_value_and_flags(0, flags)?.into()))
    }

    /// Makes the counter readable.
    pub(crate) fn raise(&self) {
        loop {
            match nix::unistd::write(&self.0, &1_u64.to_ne_bytes()) {
                Err(Errno::EINTR) => (),
                // EAGAIN: the counter is at its maximum, so it is positive.
                Ok(_) | Err(Errno::EAGAIN) => return,
                Err(error) => unreachable!("an eventfd refused a write: {error}"),
            }
        }
    }

    /// Puts the counter back to zero.
    pub(crate) fn lower(&self) {
        let mut count = [0; 8];
        loop {
            match nix::unistd::read(&self.0, &mut count) {
                Err(Errno::EINTR) => (),
                // EAGAIN: the counter is zero already.
                Ok(_) | Err(Errno::EAGAIN) => return,
                Err(error) => unreachable!("an eventfd refused a read: {error}"),
            }
        }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for EventFd {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}
