//! A socket in the reactor of whichever runtime awaits it.
//!
//! An endpoint belongs to no runtime: it is registered with the one that is polling when it first
//! has to wait, and again when that has become another one. Waiters of the former runtime keep the
//! former registration alive until they are done. When their runtime comes back meanwhile, its set of
//! descriptors has the socket's number still, and is given a copy of the socket.
//!
//! A forked child inherits the registration and, behind it, the epoll instance of its parent.
//! Deregistering there would make the parent deaf, so the child forgets it instead.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::process;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Handle, Id};

/// One socket registered for one direction with one runtime.
#[derive(Debug)]
pub(crate) struct Registration {
    runtime: Id,
    process: u32,
    /// Always there, until it is dropped or forgotten.
    reactor: Option<AsyncFd<Number>>,
    /// Closed after it has been deregistered.
    _socket: Arc<OwnedFd>,
}

/// The socket's number: the reactor is not to own the socket, see the module.
#[derive(Debug)]
pub(crate) struct Number(RawFd);

impl AsRawFd for Number {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl Registration {
    /// The one in `place` if it is with the current runtime, else a new one that takes its place.
    ///
    /// # Panics
    ///
    /// There is no runtime, or it has no I/O driver: as every socket of tokio.
    pub(crate) fn current(
        place: &mut Option<Arc<Self>>,
        socket: &Arc<OwnedFd>,
        interest: Interest,
    ) -> io::Result<Arc<Self>> {
        let runtime = Handle::current().id();
        match place {
            Some(registration) if registration.runtime == runtime => Ok(Arc::clone(registration)),
            _ => {
                let registration = match Self::new(Arc::clone(socket), runtime, interest) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                        Self::new(Arc::new(socket.try_clone()?), runtime, interest)
                    }
                    registered => registered,
                };
                let registration = Arc::new(registration?);
                *place = Some(Arc::clone(&registration));
                Ok(registration)
            }
        }
    }

    fn new(socket: Arc<OwnedFd>, runtime: Id, interest: Interest) -> io::Result<Self> {
        let number = Number(socket.as_raw_fd());
        // SAFETY: the number is that of an open socket and stays so while the `AsyncFd` is there, since
        // the registration owns both and drops or forgets it first.
        let reactor = unsafe { AsyncFd::register_with_interest(number, interest) }?;
        Ok(Self {
            runtime,
            process: process::id(),
            reactor: Some(reactor),
            _socket: socket,
        })
    }

    /// Whether it is with the runtime that is polling now.
    pub(crate) fn is_current(&self) -> bool {
        self.runtime == Handle::current().id()
    }

    /// Where readiness is told.
    pub(crate) fn reactor(&self) -> &AsyncFd<Number> {
        self.reactor
            .as_ref()
            .expect("a registration is used before it is dropped")
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if self.process != process::id() {
            mem::forget(self.reactor.take());
        }
    }
}
