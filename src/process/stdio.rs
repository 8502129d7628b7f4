//! What a child's standard streams are.

use std::io;
use std::os::fd::OwnedFd;

use crate::sys::{child_setup, pipe};

/// What becomes of one of a child's standard streams.
///
/// As with [`std::process::Stdio`]; a file or a socket is passed by [`From`].
#[derive(Debug, Default)]
pub struct Stdio(Kind);

#[derive(Debug, Default)]
enum Kind {
    #[default]
    Inherit,
    Null,
    Piped,
    Fd(OwnedFd),
}

impl Stdio {
    /// The child uses this process' stream.
    #[must_use]
    pub fn inherit() -> Self {
        Self(Kind::Inherit)
    }

    /// The child reads nothing, and what it writes is dropped.
    #[must_use]
    pub fn null() -> Self {
        Self(Kind::Null)
    }

    /// The stream is a pipe, whose other end [`Process`](crate::Process) has.
    #[must_use]
    pub fn piped() -> Self {
        Self(Kind::Piped)
    }

    /// What the child gets as descriptor `number`, and our end of a pipe.
    pub(super) fn open(&self, number: i32) -> io::Result<Opened> {
        let (theirs, ours) = match &self.0 {
            Kind::Inherit => match child_setup::copy_standard(number) {
                Ok(fd) => (fd, None),
                // Closed here: the child gets the null device in its place.
                Err(_) => (null()?, None),
            },
            Kind::Null => (null()?, None),
            Kind::Fd(fd) => (fd.try_clone()?, None),
            Kind::Piped if number == 0 => {
                let (read, write) = pipe::for_writing()?;
                (read, Some(write))
            }
            Kind::Piped => {
                let (read, write) = pipe::for_reading()?;
                (write, Some(read))
            }
        };
        Ok(Opened { theirs, ours })
    }

    pub(super) fn is_inherited(&self) -> bool {
        matches!(self.0, Kind::Inherit)
    }
}

/// Both ends of a stream.
pub(super) struct Opened {
    pub(super) theirs: OwnedFd,
    pub(super) ours: Option<OwnedFd>,
}

fn null() -> io::Result<OwnedFd> {
    Ok(std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")?
        .into())
}

impl From<OwnedFd> for Stdio {
    fn from(fd: OwnedFd) -> Self {
        Self(Kind::Fd(fd))
    }
}

impl From<std::fs::File> for Stdio {
    fn from(file: std::fs::File) -> Self {
        Self(Kind::Fd(file.into()))
    }
}
