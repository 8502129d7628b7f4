//! What sleepers listen to: an eventfd that is rung and never read.
//!
//! Every runtime of every process that listens has the bell in its epoll set, edge-triggered. Each
//! ring is a write, and each write is an edge for all of them, whether or not the counter was zero
//! before. So nobody has to empty it, no sleeper can take a ring away from another one, and a
//! sleeper that is killed or dropped takes nothing along.
//!
//! A ring says only: look again. A sleeper stands in line for the next ring before it looks at its own
//! word, since another sleeper of the same runtime may hear a ring and clear it while this one is
//! still looking: tokio wakes all that stand in line, and those only. A readiness that was there
//! before the look is cleared after it; tokio refuses to clear one that is newer, so a ring between
//! the look and the clearing is not lost.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use tokio::io::unix::AsyncFd;
use tokio::runtime::{Handle, Id};

use crate::sys::async_fd::{self, SharedEventFd};
use crate::sys::eventfd::EventFd;
use crate::sys::fork_epoch;

/// How many runtimes of this process stay registered while nobody sleeps.
///
/// Registering costs a system call, so the usual one or two runtimes do it once. To keep more than a
/// few would be to keep the remains of runtimes that are gone.
const RUNTIMES_MAX: usize = 4;

/// An eventfd, and the runtimes of this process that listen to it.
#[derive(Debug)]
pub(crate) struct Bell {
    fd: Arc<EventFd>,
    ears: Mutex<Ears>,
}

#[derive(Debug, Default)]
struct Ears {
    /// The process that they belong to.
    epoch: u64,
    /// All that are alive, by runtime: a second one in the same set is an error.
    known: Vec<(Id, Weak<Ear>)>,
    /// The latest, which stay.
    kept: VecDeque<Arc<Ear>>,
}

/// One runtime's registration.
type Ear = AsyncFd<SharedEventFd>;

impl Bell {
    /// A bell that nobody knows of.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self::from_fd(EventFd::new()?))
    }

    /// A bell that came from another process, which may have sent something else.
    pub(crate) fn received(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self::from_fd(EventFd::received(fd)?))
    }

    fn from_fd(fd: EventFd) -> Self {
        Self {
            fd: Arc::new(fd),
            ears: Mutex::default(),
        }
    }

    /// Wakes everybody who listens, in all processes.
    pub(crate) fn ring(&self) {
        self.fd.raise();
    }

    /// Waits until `look` finds something; it is asked now and after each ring.
    pub(crate) async fn listen<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        if let Some(found) = look() {
            return found;
        }
        loop {
            let ear = self.ear();
            let mut ring = pin!(ear.readable());
            let in_line = poll_fn(|cx| Poll::Ready(ring.as_mut().poll(cx))).await;
            if let Some(found) = look() {
                return found;
            }
            let rung = match in_line {
                Poll::Ready(rung) => rung,
                Poll::Pending => {
                    let rung = ring.await;
                    if let Some(found) = look() {
                        return found;
                    }
                    rung
                }
            };
            // An error means that the runtime of this ear is gone: listen by the present one.
            let Ok(mut rung) = rung else {
                let mut ears = self.ears();
                ears.known
                    .retain(|(_, other)| other.as_ptr() != Arc::as_ptr(&ear));
                ears.kept.retain(|other| !Arc::ptr_eq(other, &ear));
                continue;
            };
            rung.clear_ready();
        }
    }

    /// The registration with the runtime that polls us.
    fn ear(&self) -> Arc<Ear> {
        let id = Handle::current().id();
        let mut ears = self.ears();
        let known = ears.known.iter().find(|(known, _)| *known == id);
        if let Some(ear) = known.and_then(|(_, ear)| ear.upgrade()) {
            return ear;
        }
        let ear = async_fd::watch_event_fd(Arc::clone(&self.fd));
        let ear = Arc::new(ear.expect("an eventfd can be added to the runtime's epoll set"));
        // To keep one would keep what is left of its runtime.
        ears.kept.retain(|kept| !is_of_ended_runtime(kept));
        ears.known.retain(|(_, known)| known.strong_count() > 0);
        ears.known.push((id, Arc::downgrade(&ear)));
        ears.kept.push_back(Arc::clone(&ear));
        if ears.kept.len() > RUNTIMES_MAX {
            // Who sleeps there has a share of it.
            ears.kept.pop_front();
        }
        ear
    }

    fn ears(&self) -> MutexGuard<'_, Ears> {
        let mut ears = self.ears.lock().unwrap_or_else(PoisonError::into_inner);
        let epoch = fork_epoch::current();
        if ears.epoch != epoch {
            // A forked child: dropping its parent's registrations would take the parent's fds out
            // of an epoll set that both share.
            mem::forget(mem::replace(
                &mut *ears,
                Ears {
                    epoch,
                    ..Ears::default()
                },
            ));
        }
        ears
    }
}

/// Whether the runtime of a registration has been shut down.
fn is_of_ended_runtime(ear: &Ear) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    matches!(ear.poll_read_ready(&mut cx), Poll::Ready(Err(_)))
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        EventFd::as_fd(&self.fd)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering::SeqCst;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_ring_that_another_sleeper_hears_is_not_lost_for_one_that_is_looking() {
        let bell = Arc::new(Bell::new().unwrap());
        let looks = Arc::new(AtomicUsize::new(0));
        let other = tokio::spawn({
            let (bell, looks) = (Arc::clone(&bell), Arc::clone(&looks));
            async move {
                let look = || {
                    looks.fetch_add(1, SeqCst);
                    None::<()>
                };
                bell.listen(look).await
            }
        });
        let wait_for_look = move |n| {
            while looks.load(SeqCst) < n {
                thread::yield_now();
            }
            looks.load(SeqCst)
        };

        let found = tokio::spawn(async move {
            let mut n = 0;
            let look = || {
                n += 1;
                if n <= 2 {
                    // While it looks, which is in vain, the other one hears a ring and clears it.
                    let before = wait_for_look(1);
                    bell.ring();
                    wait_for_look(before + 2);
                    return None;
                }
                Some(())
            };
            bell.listen(look).await;
        });

        let found = tokio::time::timeout(Duration::from_secs(30), found).await;
        assert!(found.is_ok(), "the ring is lost");
        other.abort();
    }

    #[test]
    fn a_runtime_that_is_gone_is_not_kept_when_another_one_listens() {
        let bell = Bell::new().unwrap();
        for _ in 0..3 {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let mut looks = 0;
            runtime.block_on(bell.listen(|| {
                looks += 1;
                bell.ring();
                (looks > 2).then_some(())
            }));

            assert_eq!(bell.ears().kept.len(), 1);
        }
    }
}
