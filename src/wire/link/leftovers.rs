//! What endpoints still hold when nobody waits for it any more, sent by a thread of its own.
//!
//! A frame that was accepted is sent, also when its future or its endpoint has been dropped, in
//! whatever runtime or none. The thread is there only while something is left: it starts with the
//! first endpoint that is passed to it, sleeps until a socket has room, and ends with the last.

use std::io;
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
const AGAIN: Duration = Duration::from_millis(20);

static LEFTOVERS: Mutex<Leftovers> = Mutex::new(Leftovers {
    endpoints: Vec::new(),
    thread: None,
});

/// Told when nothing is left.
static ALL_SENT: Condvar = Condvar::new();

struct Leftovers {
    endpoints: Vec<Arc<Shared>>,
    /// The thread that is running, unless this is a forked child of its process.
    thread: Option<(u32, Arc<EventFd>)>,
}

/// Sends what `endpoint` holds as soon as its peer reads.
pub(super) fn adopt(endpoint: &Arc<Shared>) {
    let mut leftovers = lock();
    if leftovers
        .endpoints
        .iter()
        .any(|known| Arc::ptr_eq(known, endpoint))
    {
        return;
    }
    match &leftovers.thread {
        Some((process, doorbell)) if *process == process::id() => {
            doorbell.raise();
            leftovers.endpoints.push(Arc::clone(endpoint));
        }
        _ => {
            // What a forked child has inherited, its parent sends.
            leftovers.endpoints = vec![Arc::clone(endpoint)];
            leftovers.thread = None;
            match start() {
                Ok(doorbell) => leftovers.thread = Some((process::id(), doorbell)),
                Err(error) => {
                    tracing::warn!("cannot start the thread that sends what is left: {error}");
                    leftovers.endpoints.clear();
                }
            }
        }
    }
}

/// Waits until nothing is left, at most for `limit`, before this process leaves.
pub(crate) fn wait_for_leftovers(limit: Duration) {
    let until = Instant::now() + limit;
    let mut leftovers = lock();
    while matches!(&leftovers.thread, Some((process, _)) if *process == process::id()) {
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

fn start() -> io::Result<Arc<EventFd>> {
    let doorbell = Arc::new(EventFd::new()?);
    let rung = Arc::clone(&doorbell);
    thread::Builder::new()
        .name("mp-leftovers".to_owned())
        .spawn(move || run(&rung))?;
    Ok(doorbell)
}

fn run(doorbell: &EventFd) {
    loop {
        doorbell.lower();
        let endpoints = lock().endpoints.clone();
        let mut full: Vec<Arc<OwnedFd>> = Vec::new();
        let mut done = Vec::new();
        let mut limit = None;
        for endpoint in endpoints {
            match endpoint.write_leftovers() {
                Leftover::Nothing => done.push(endpoint),
                Leftover::Wait(socket) => full.push(socket),
                Leftover::TryLater => limit = Some(AGAIN),
            }
        }
        let mut leftovers = lock();
        let is_done =
            |endpoint: &Arc<Shared>| done.iter().any(|other| Arc::ptr_eq(endpoint, other));
        leftovers.endpoints.retain(|endpoint| !is_done(endpoint));
        if leftovers.endpoints.is_empty() {
            leftovers.thread = None;
            ALL_SENT.notify_all();
            return;
        }
        drop(leftovers);
        drop(done);
        let room = full.iter().map(|socket| (socket.as_fd(), Direction::Out));
        let rung = (doorbell.as_fd(), Direction::In);
        let awaited: Vec<(BorrowedFd<'_>, Direction)> = room.chain([rung]).collect();
        // A failure is that of memory, and passes.
        if socket::wait_for_any(&awaited, limit).is_err() {
            thread::sleep(AGAIN);
        }
    }
}
