//! Pipes and writes that must not block, see [pipe(7)](https://man7.org/linux/man-pages/man7/pipe.7.html).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A pipe, closed on exec; reading from the first end never blocks.
pub(crate) fn for_reading() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((read, write))
}

/// A pipe, closed on exec; writing to the second end never blocks.
pub(crate) fn for_writing() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&write, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((read, write))
}

/// Reads what is there; 0 is the end.
pub(crate) fn read(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match nix::unistd::read(&fd, buffer) {
            Err(Errno::EINTR) => (),
            result => return Ok(result?),
        }
    }
}

/// Writes at most a page of `bytes` if `fd` can take it now.
///
/// A pipe that polls as writable has room for `PIPE_BUF` bytes, so the write does not block unless
/// another writer comes in between.
pub(crate) fn write_if_ready(fd: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    const PIPE_BUF: usize = 4096;
    let mut asked = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut asked, PollTimeout::ZERO)? == 0 {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    Ok(nix::unistd::write(
        &fd,
        &bytes[..bytes.len().min(PIPE_BUF)],
    )?)
}
