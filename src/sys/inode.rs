//! Whether two descriptors are the same thing, see [fstat(2)](https://man7.org/linux/man-pages/man2/fstat.2.html).

use std::io;
use std::os::fd::AsFd;

/// Names a file, memory or socket for as long as somebody has it open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Inode {
    device: u64,
    number: u64,
}

impl Inode {
    /// What `fd` is open on.
    pub(crate) fn of(fd: impl AsFd) -> io::Result<Self> {
        let stat = nix::sys::stat::fstat(fd)?;
        Ok(Self {
            device: stat.st_dev,
            number: stat.st_ino,
        })
    }
}
