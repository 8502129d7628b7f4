//! What endpoints still hold when nobody waits for it any more, sent by a thread of its own.
//!
//! A frame that was accepted is sent, also when its future or its endpoint has been dropped, in
//! whatever runtime or none. The thread is there only while something is left: it starts with the
//! first endpoint that is passed to it, sleeps until a socket has room, and ends with the last.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::outlet::{Leftover, Shared};
use crate::sys::eventfd::EventFd;
use crate::sys::socket::{self, Direction};

/// How long to wait for what will pass without being told: a hand-over, or the kernel's limit of
/// descriptors in flight.
pub(super) const AGAIN: Duration = Duration::from_millis(20);

static LEFTOVERS: Mutex<Leftovers> = Mutex::new(Leftovers {
    endpoints: Vec::new(),
    process: 0,
    is_running: false,
    doorbell: None,
});

/// Told when nothing is left.
static ALL_SENT: Condvar = Condvar::new();

struct Leftovers {
    endpoints: Vec<Arc<Shared>>,
    /// Whose endpoints and whose thread: what a forked child has inherited, its parent sends.
    process: u32,
    is_running: bool,
    /// Wakes the thread for what has come. Without one, as there was no descriptor left, it looks
    /// again and again.
    doorbell: Option<Arc<EventFd>>,
}

/// Sends what `endpoint` holds as soon as its peer reads.
pub(super) fn adopt(endpoint: &Arc<Shared>) {
    let mut leftovers = lock();
    if leftovers.process != process::id() {
        leftovers.process = process::id();
        leftovers.is_running = false;
        // The parent's, whose counters the child shares; and so are its sockets.
        leftovers.doorbell = None;
        leftovers.endpoints.clear();
    }
    let endpoints = &mut leftovers.endpoints;
    if endpoints.iter().all(|known| !Arc::ptr_eq(known, endpoint)) {
        endpoints.push(Arc::clone(endpoint));
    }
    if leftovers.is_running {
        if let Some(doorbell) = &leftovers.doorbell {
            doorbell.raise();
        }
        return;
    }
    if leftovers.doorbell.is_none() {
        leftovers.doorbell = EventFd::new().ok().map(Arc::new);
    }
    let doorbell = leftovers.doorbell.clone();
    let thread = thread::Builder::new().name("mp-leftovers".to_owned());
    match thread.spawn(move || run(doorbell.as_deref())) {
        Ok(_) => leftovers.is_running = true,
        // Until the next time, when there may be room for a thread again.
        Err(error) => {
            tracing::warn!("cannot start the thread that sends what is left: {error}");
        }
    }
}

/// Waits until nothing is left, at most for `limit`, before this process leaves.
pub(crate) fn wait_for_leftovers(limit: Duration) {
    let until = Instant::now() + limit;
    let mut leftovers = lock();
    while leftovers.is_running && leftovers.process == process::id() {
        let Some(left) = until.checked_duration_since(Instant::now()) else {
            return;
        };
        let waited = ALL_SENT.wait_timeout(leftovers, left);
        leftovers = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
}

fn lock() -> MutexGuard<'static, Leftovers> {
    LEFTOVERS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(doorbell: Option<&EventFd>) {
    loop {
        if let Some(doorbell) = doorbell {
            doorbell.lower();
        }
        let endpoints = lock().endpoints.clone();
        let mut full: Vec<Arc<OwnedFd>> = Vec::new();
        let mut written = Vec::new();
        let mut limit = doorbell.is_none().then_some(AGAIN);
        for endpoint in &endpoints {
            match endpoint.write_leftovers() {
                Leftover::Nothing => written.push(endpoint),
                Leftover::Wait(socket) => full.push(socket),
                Leftover::TryLater => limit = Some(AGAIN),
            }
        }
        let mut leftovers = lock();
        let has_more = forget_empty(&mut leftovers.endpoints, &written);
        if leftovers.endpoints.is_empty() {
            leftovers.is_running = false;
            leftovers.doorbell = None;
            ALL_SENT.notify_all();
            return;
        }
        drop(leftovers);
        // What they end, if these were the last, is not ended under the lock.
        drop(endpoints);
        if has_more {
            continue;
        }
        let room = full.iter().map(|socket| (socket.as_fd(), Direction::Out));
        let rung = doorbell.map(|doorbell| (doorbell.as_fd(), Direction::In));
        let awaited: Vec<(BorrowedFd<'_>, Direction)> = room.chain(rung).collect();
        // A failure is that of memory, and passes.
        if socket::wait_for_any(&awaited, limit).is_err() {
            thread::sleep(AGAIN);
        }
    }
}

/// Forgets the endpoints that hold nothing, and tells whether one that was written to the end just now
/// holds something again.
///
/// Called under the lock: somebody may have queued more since the writing, and have been content that
/// the endpoint is known here. Nothing would tell of it while the thread sleeps, and the endpoint would
/// stay open when its user has sent that by himself and dropped it.
fn forget_empty(endpoints: &mut Vec<Arc<Shared>>, written: &[&Arc<Shared>]) -> bool {
    let mut has_more = false;
    endpoints.retain(|endpoint| {
        let has_leftovers = endpoint.has_leftovers();
        has_more |= has_leftovers && written.iter().any(|it| Arc::ptr_eq(it, endpoint));
        has_leftovers
    });
    has_more
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::super::{Encoded, Outlet};
    use super::*;
    use crate::wire::fds::Outgoing;
    use crate::wire::frame::{HEADER_LEN, Header};

    #[test]
    fn an_endpoint_that_got_more_is_kept_and_written_before_the_thread_sleeps() {
        let (ours, _peer) = UnixStream::pair().unwrap();
        let outlet = Outlet::new(ours.into(), u32::MAX, Vec::new());
        let shared = outlet.shared();
        let mut known = vec![Arc::clone(shared)];
        let mut bytes = outlet.buffer();
        bytes[..HEADER_LEN].copy_from_slice(&Header::new(1, 0, 0).to_bytes());
        let outgoing = Outgoing::default();
        outlet.start_send(Encoded { bytes, outgoing }).unwrap();

        assert!(forget_empty(&mut known, &[shared]));
        assert_eq!(known.len(), 1);
        // One for whose room the thread waits is no reason to look again.
        assert!(!forget_empty(&mut known, &[]));

        assert!(matches!(shared.write_leftovers(), Leftover::Nothing));
        assert!(!forget_empty(&mut known, &[shared]));
        assert!(known.is_empty());
    }
}
