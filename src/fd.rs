//! Files and sockets inside messages: a new name for a descriptor in another process.
//!
//! [`Fd`] is a shell around anything that has a descriptor. Serialising it lists a copy of the
//! descriptor beside the message, deserialising it takes the copy that came; both sides then hold
//! the same open file. The two functions of the module do the same for a field that keeps its
//! plain type, by `#[serde(with = "tokio_multiprocess::fd")]`.

use std::io;
use std::net;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net as unix;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::runtime::Handle;

use crate::wire::fds;

/// A file, a socket or a plain descriptor that can travel in arguments, results and messages.
///
/// The receiver gets a descriptor of its own for the same open file, so the file's position, its
/// flags such as `O_NONBLOCK`, and a socket's connection are shared, as they are between a
/// process and its child. The sender keeps its own; a connection ends when the last copy is
/// closed.
///
/// It travels in what this library sends and nowhere else: serialising it with another serializer
/// is an error that says so.
///
/// A tokio socket must be received where a runtime is at hand, which is true for every `async`
/// way to receive.
///
/// # Examples
///
/// ```
/// use std::net::{TcpListener, TcpStream};
///
/// use serde::{Deserialize, Serialize};
/// use tokio_multiprocess::fd::Fd;
///
/// #[derive(Serialize, Deserialize)]
/// struct Connection {
///     /// A field may keep its plain type,
///     #[serde(with = "tokio_multiprocess::fd")]
///     stream: TcpStream,
///     /// and anything else is put into the shell.
///     listeners: Vec<Fd<TcpListener>>,
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fd<T>(pub T);

impl<T> Fd<T> {
    /// The file or socket inside.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> From<T> for Fd<T> {
    fn from(inner: T) -> Self {
        Self(inner)
    }
}

impl<T> Deref for Fd<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Fd<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: AsFd> AsFd for Fd<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl<T: AsFd> Serialize for Fd<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize(&self.0, serializer)
    }
}

impl<'de, T: FromFd> Deserialize<'de> for Fd<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize(deserializer).map(Self)
    }
}

/// Serialises a copy of the descriptor, for `#[serde(with = "tokio_multiprocess::fd")]`.
///
/// # Errors
///
/// The value is not being sent by this library, or there is no descriptor left to copy it.
pub fn serialize<T: AsFd, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    fds::serialize_copy(value, serializer)
}

/// Takes the descriptor that came with the message, for
/// `#[serde(with = "tokio_multiprocess::fd")]`.
///
/// # Errors
///
/// The message claims a descriptor that did not come with it, or [`FromFd::from_fd`] refuses it.
pub fn deserialize<'de, T: FromFd, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    let fd = fds::deserialize(deserializer)?;
    T::from_fd(fd).map_err(|error| {
        D::Error::custom(format_args!(
            "the file descriptor is of no use here: {error}"
        ))
    })
}

/// What can be made of a descriptor that came with a message.
pub trait FromFd: Sized {
    /// Takes over the descriptor.
    ///
    /// # Errors
    ///
    /// The descriptor cannot serve as such a thing. tokio's sockets need a runtime to be at hand.
    fn from_fd(fd: OwnedFd) -> io::Result<Self>;
}

macro_rules! from_owned_fd {
    ($($plain:ty),* $(,)?) => {$(
        impl FromFd for $plain {
            fn from_fd(fd: OwnedFd) -> io::Result<Self> {
                Ok(fd.into())
            }
        }
    )*};
}

from_owned_fd! {
    OwnedFd,
    std::fs::File,
    io::PipeReader,
    io::PipeWriter,
    std::process::Stdio,
    net::TcpListener,
    net::TcpStream,
    net::UdpSocket,
    unix::UnixDatagram,
    unix::UnixListener,
    unix::UnixStream,
}

macro_rules! from_std {
    ($($tokio:ty => $std:ty),* $(,)?) => {$(
        impl FromFd for $tokio {
            fn from_fd(fd: OwnedFd) -> io::Result<Self> {
                // Asked first, as tokio panics.
                Handle::try_current().map_err(io::Error::other)?;
                let socket = <$std>::from(fd);
                socket.set_nonblocking(true)?;
                Self::from_std(socket)
            }
        }
    )*};
}

from_std! {
    tokio::net::TcpListener => net::TcpListener,
    tokio::net::TcpStream => net::TcpStream,
    tokio::net::UdpSocket => net::UdpSocket,
    tokio::net::UnixDatagram => unix::UnixDatagram,
    tokio::net::UnixListener => unix::UnixListener,
    tokio::net::UnixStream => unix::UnixStream,
}

macro_rules! from_pipe {
    ($($end:ident),*) => {$(
        impl FromFd for tokio::net::unix::pipe::$end {
            fn from_fd(fd: OwnedFd) -> io::Result<Self> {
                Handle::try_current().map_err(io::Error::other)?;
                Self::from_owned_fd(fd)
            }
        }
    )*};
}

from_pipe! { Receiver, Sender }

impl FromFd for tokio::fs::File {
    fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        Ok(std::fs::File::from(fd).into())
    }
}
