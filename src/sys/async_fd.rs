//! Descriptors that tokio watches.
//!
//! Registered for reading only: an interest in writability costs an epoll event for each message,
//! which about doubles a round trip. Where a write would block, ask for writability then.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys::eventfd::EventFd;

/// Watches `fd` for reading, on the runtime of the caller.
///
/// # Panics
///
/// Outside a tokio runtime, or in one without I/O.
pub(crate) fn watch_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    watch(fd, Interest::READABLE)
}

/// Watches `fd` for `interest`, on the runtime of the caller.
///
/// # Panics
///
/// Outside a tokio runtime, or in one without I/O.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is the same open descriptor until it is dropped, and the `AsyncFd` owns
    // it and gives it out only after it has taken it out of the set.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// Watches a descriptor that others use as well, on the runtime of the caller.
///
/// # Panics
///
/// Outside a tokio runtime, or in one without I/O.
pub(crate) fn watch_shared(
    fd: Arc<OwnedFd>,
    interest: Interest,
) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the `OwnedFd` inside is the same open descriptor until its last `Arc` is dropped, of
    // which the `AsyncFd` holds one until it has taken the descriptor out of the set.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// An event counter that others have a share of.
#[derive(Debug)]
pub(crate) struct SharedEventFd(Arc<EventFd>);

impl AsRawFd for SharedEventFd {
    fn as_raw_fd(&self) -> RawFd {
        EventFd::as_fd(&self.0).as_raw_fd()
    }
}

/// The counter, watched for reading by the runtime of the caller.
pub(crate) fn watch_event_fd(fd: Arc<EventFd>) -> io::Result<AsyncFd<SharedEventFd>> {
    let watched = register(Arc::clone(&fd));
    if watched.as_ref().err().map(io::Error::kind) == Some(io::ErrorKind::AlreadyExists) {
        // An earlier one of the same descriptor is just being taken out by another thread.
        return register(Arc::new(fd.try_clone()?));
    }
    watched
}

fn register(fd: Arc<EventFd>) -> io::Result<AsyncFd<SharedEventFd>> {
    // SAFETY: an `EventFd` is the same open descriptor until it is dropped, and the `AsyncFd` owns
    // a share of it.
    unsafe { AsyncFd::register_with_interest(SharedEventFd(fd), Interest::READABLE) }
        .map_err(io::Error::from)
}
