//! The event counter, see [eventfd(2)](https://man7.org/linux/man-pages/man2/eventfd.2.html).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd as Counter};
use nix::sys::stat::{SFlag, fstat};

/// A counter that is readable while it is not zero.
#[derive(Debug)]
pub(crate) struct EventFd(OwnedFd);

impl EventFd {
    /// A counter at zero, non-blocking and closed on exec.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self(Counter::from_value_and_flags(0, flags)?.into()))
    }

    /// The same counter by another descriptor.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// A counter that came from another process, which may have sent something else.
    pub(crate) fn received(fd: OwnedFd) -> io::Result<Self> {
        // It has no type of a file, as have pipes, sockets and devices; others of that kind refuse to
        // be written to, or do not wait.
        let has_type = fstat(&fd)?.st_mode & SFlag::S_IFMT.bits() != 0;
        let flags = OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL)?);
        if has_type || !flags.contains(OFlag::O_NONBLOCK) {
            let wrong = "a descriptor is no event counter";
            return Err(io::Error::new(io::ErrorKind::InvalidData, wrong));
        }
        Ok(Self(fd))
    }

    /// Makes the counter readable.
    pub(crate) fn raise(&self) {
        // Not when it is at its maximum, where it is positive, nor when it is no counter of ours at all:
        // then nobody who keeps to the rules listens to it.
        while nix::unistd::write(&self.0, &1_u64.to_ne_bytes()) == Err(Errno::EINTR) {}
    }

    /// Puts the counter back to zero.
    pub(crate) fn lower(&self) {
        let mut count = [0; 8];
        // EAGAIN: the counter is zero already.
        while nix::unistd::read(&self.0, &mut count) == Err(Errno::EINTR) {}
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::pipe;

    use super::*;

    #[test]
    fn only_a_counter_that_does_not_wait_is_received_as_one() {
        let counter = EventFd::new().unwrap();
        let (_reader, writer) = pipe().unwrap();
        let null = OpenOptions::new().write(true).open("/dev/null").unwrap();
        let waits = Counter::from_value_and_flags(0, EfdFlags::empty()).unwrap();

        assert!(EventFd::received(counter.0).is_ok());
        assert!(EventFd::received(writer.into()).is_err());
        assert!(EventFd::received(null.into()).is_err());
        assert!(EventFd::received(waits.into()).is_err());
    }

    #[test]
    fn to_raise_what_cannot_be_written_to_is_no_fault() {
        let (reader, _writer) = pipe().unwrap();

        EventFd(reader.into()).raise();
    }
}
