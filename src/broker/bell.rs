//! What sleepers listen to: an eventfd that is rung and never read.
//!
//! Every runtime of every process that listens has the bell in its epoll set, edge-triggered. Each
//! ring is a write, and each write is an edge for all of them, whether or not the counter was zero
//! before. So nobody has to empty it, no sleeper can take a ring away from another one, and a
//! sleeper that is killed or dropped takes nothing along.
//!
//! A ring says only: look again. In each runtime an [`Ear`] hears it, which no task has to poll: the
//! runtime's driver calls it as the waker of the registration. It clears the ring, sees to it that the
//! next one is heard, and only then goes through the sleepers. A sleeper of whom it can tell that there
//! is nothing for him sleeps on: a thousand of them cost a load each, and not a thousand tasks' turns.
//!
//! A sleeper lies down at the ear before it looks at its own word, so either it sees what was there
//! before the ring, or the ring finds it lying there. A ring that comes while an earlier one is cleared
//! is not cleared with it: tokio refuses to clear a readiness that is newer.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};

use tokio::io::unix::AsyncFd;
use tokio::runtime::{Handle, Id};
use tokio::task::unconstrained;

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

/// One runtime's registration, and who sleeps there.
struct Ear {
    fd: AsyncFd<SharedEventFd>,
    /// Calls [`hear`](Self::hear).
    waker: Waker,
    sleepers: Mutex<Sleepers>,
}

#[derive(Default)]
struct Sleepers {
    next: u64,
    by_number: BTreeMap<u64, Sleeper>,
    /// The runtime has been shut down: nothing is heard any more.
    is_deaf: bool,
}

struct Sleeper {
    /// Taken by the ring that wakes it; it brings another one when it is polled.
    waker: Option<Waker>,
    is_due: Option<Due>,
}

/// Whether there is something for a sleeper. Nobody, that is: it looks after each ring.
type Due = Arc<dyn Fn() -> bool + Send + Sync>;

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
        match look() {
            Some(found) => found,
            None => self.sleep(None, look).await,
        }
    }

    /// The same, but after a ring `look` is asked only if there is something for it. That must not take
    /// long: a ring asks everybody.
    pub(crate) async fn listen_if<T>(
        &self,
        is_due: impl Fn() -> bool + Send + Sync + 'static,
        mut look: impl FnMut() -> Option<T>,
    ) -> T {
        match look() {
            Some(found) => found,
            None => self.sleep(Some(Arc::new(is_due)), look).await,
        }
    }

    async fn sleep<T>(&self, is_due: Option<Due>, mut look: impl FnMut() -> Option<T>) -> T {
        let mut bed: Option<Bed> = None;
        poll_fn(|cx| {
            // Not twice unless it comes from another runtime, or that of its ear is gone.
            while !bed.as_ref().is_some_and(|bed| bed.lie_down(cx.waker())) {
                bed = Some(self.bed(is_due.clone()));
            }
            look().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// A place at the ear of the runtime that polls us.
    fn bed(&self, is_due: Option<Due>) -> Bed {
        let id = Handle::current().id();
        Bed::new(self.ear(id), id, is_due)
    }

    /// The registration with the runtime that polls us, which has this id.
    fn ear(&self, id: Id) -> Arc<Ear> {
        let mut ears = self.ears();
        let known = ears.known.iter().find(|(known, _)| *known == id);
        if let Some(ear) = known.and_then(|(_, ear)| ear.upgrade())
            && !ear.is_deaf()
        {
            return ear;
        }
        let ear = Ear::new(Arc::clone(&self.fd));
        let ear = ear.expect("an eventfd can be added to the runtime's epoll set");
        // To keep one would keep what is left of its runtime.
        ears.kept.retain(|kept| !kept.is_deaf());
        ears.known
            .retain(|(_, known)| known.upgrade().is_some_and(|known| !known.is_deaf()));
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

impl Ear {
    /// Registers with the runtime that polls us.
    fn new(fd: Arc<EventFd>) -> io::Result<Arc<Self>> {
        let fd = async_fd::watch_event_fd(fd)?;
        let ear = Arc::new_cyclic(|ear| Self {
            fd,
            waker: Arc::new(Hearer(Weak::clone(ear))).into(),
            sleepers: Mutex::default(),
        });
        ear.hear();
        Ok(ear)
    }

    /// Has everybody look for whom there is something, now and at the next ring.
    fn hear(&self) {
        let mut cx = Context::from_waker(&self.waker);
        let is_deaf = loop {
            // Outside of tasks' budgets: it is called again only by the next ring.
            let rung = pin!(unconstrained(poll_fn(|cx| self.fd.poll_read_ready(cx)))).poll(&mut cx);
            match rung {
                // What hangs up is no counter, and stays ready for ever.
                Poll::Ready(Ok(rung)) if rung.ready().is_read_closed() => break false,
                Poll::Ready(Ok(mut rung)) => rung.clear_ready(),
                Poll::Ready(Err(_)) => break true,
                Poll::Pending => break false,
            }
        };
        let mut sleepers = self.sleepers();
        sleepers.is_deaf |= is_deaf;
        let looks = |sleeper: &&mut Sleeper| {
            is_deaf || sleeper.is_due.as_ref().is_none_or(|is_due| is_due())
        };
        let due = sleepers.by_number.values_mut().filter(looks);
        let due: Vec<_> = due.filter_map(|sleeper| sleeper.waker.take()).collect();
        drop(sleepers);
        for waker in due {
            waker.wake();
        }
    }

    /// Whether its runtime has been shut down.
    fn is_deaf(&self) -> bool {
        self.sleepers().is_deaf
    }

    fn sleepers(&self) -> MutexGuard<'_, Sleepers> {
        self.sleepers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Ear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ear")
            .field("fd", &self.fd)
            .finish_non_exhaustive()
    }
}

/// Is what the driver wakes. The registration keeps it, so it must not keep the registration.
struct Hearer(Weak<Ear>);

impl Wake for Hearer {
    fn wake(self: Arc<Self>) {
        if let Some(ear) = self.0.upgrade() {
            ear.hear();
        }
    }
}

/// A sleeper's place at an ear, until it is dropped.
struct Bed {
    ear: Arc<Ear>,
    /// The ear's.
    runtime: Id,
    number: u64,
    epoch: u64,
}

impl Bed {
    fn new(ear: Arc<Ear>, runtime: Id, is_due: Option<Due>) -> Self {
        let mut sleepers = ear.sleepers();
        let number = sleepers.next;
        sleepers.next += 1;
        let sleeper = Sleeper {
            waker: None,
            is_due,
        };
        sleepers.by_number.insert(number, sleeper);
        drop(sleepers);
        Self {
            ear,
            runtime,
            number,
            epoch: fork_epoch::current(),
        }
    }

    /// Has this waker called by the next ring. False if that would not be heard: another process or
    /// another runtime polls us now, or the ear's is gone.
    fn lie_down(&self, waker: &Waker) -> bool {
        let is_elsewhere = Handle::try_current().is_ok_and(|handle| handle.id() != self.runtime);
        if is_elsewhere || self.epoch != fork_epoch::current() {
            return false;
        }
        let mut sleepers = self.ear.sleepers();
        if let Some(sleeper) = sleepers.by_number.get_mut(&self.number) {
            match &mut sleeper.waker {
                Some(known) => known.clone_from(waker),
                none => *none = Some(waker.clone()),
            }
        }
        !sleepers.is_deaf
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if self.epoch != fork_epoch::current() {
            // A copy of its parent's, as in `ears`.
            mem::forget(Arc::clone(&self.ear));
            return;
        }
        let sleeper = self.ear.sleepers().by_number.remove(&self.number);
        // Behind the lock: what its condition holds may listen itself.
        drop(sleeper);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        EventFd::as_fd(&self.fd)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::atomic::Ordering::SeqCst;
    use std::sync::atomic::{AtomicBool, AtomicUsize};
    use std::thread;
    use std::time::{Duration, Instant};

    use futures::{join, poll};
    use tokio::runtime::{Builder, Runtime};
    use tokio::task::JoinSet;
    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_all().build().unwrap()
    }

    impl Bell {
        fn n_asleep(&self) -> usize {
            let ears = self.ears();
            let ears = ears.kept.iter();
            ears.map(|ear| ear.sleepers().by_number.len()).sum()
        }

        /// Rings, and comes back when somebody else in this runtime has heard it.
        async fn ring_and_hear(&self) {
            let mut beside = pin!(self.listen(|| None::<()>));
            let woken = Arc::new(Woken::default());
            assert!(woken.polls(beside.as_mut()).is_pending());
            self.ring();
            let begun = Instant::now();
            while woken.0.load(SeqCst) == 0 {
                assert!(begun.elapsed() < PATIENCE, "the ring is lost");
                tokio::task::yield_now().await;
            }
        }
    }

    /// How often somebody was woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Woken {
        fn polls<F: Future>(self: &Arc<Self>, future: Pin<&mut F>) -> Poll<F::Output> {
            let waker = Waker::from(Arc::clone(self));
            future.poll(&mut Context::from_waker(&waker))
        }
    }

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    /// Whether somebody wakes it: when its time is over, a future is asked once more.
    async fn is_woken<F: Future>(sleeper: F) -> bool {
        let begun = Instant::now();
        timeout(PATIENCE, sleeper).await.is_ok() && begun.elapsed() < PATIENCE
    }

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
            let begun = Instant::now();
            while looks.load(SeqCst) < n {
                assert!(begun.elapsed() < PATIENCE, "the other one hears nothing");
                thread::yield_now();
            }
            looks.load(SeqCst)
        };

        let found = tokio::spawn(async move {
            let mut n = 0;
            let look = || {
                n += 1;
                if n <= 2 {
                    // While it looks, which is in vain, the other one hears a ring.
                    let before = wait_for_look(2);
                    bell.ring();
                    wait_for_look(before + 1);
                    return None;
                }
                Some(())
            };
            bell.listen(look).await;
        });

        let found = timeout(PATIENCE, found).await;
        assert!(matches!(found, Ok(Ok(()))), "the ring is lost");
        other.abort();
    }

    #[tokio::test]
    async fn a_ring_wakes_nobody_for_whom_there_is_nothing() {
        let bell = Arc::new(Bell::new().unwrap());
        let looks = Arc::new(AtomicUsize::new(0));
        let mut others = JoinSet::new();
        for _ in 0..100 {
            let (bell, looks) = (Arc::clone(&bell), Arc::clone(&looks));
            others.spawn(async move {
                let look = || {
                    looks.fetch_add(1, SeqCst);
                    None::<()>
                };
                bell.listen_if(|| false, look).await
            });
        }
        let is_due = Arc::new(AtomicBool::new(false));
        let one = tokio::spawn({
            let (bell, is_due) = (Arc::clone(&bell), Arc::clone(&is_due));
            async move {
                let asked = Arc::clone(&is_due);
                let look = || is_due.load(SeqCst).then_some(());
                bell.listen_if(move || asked.load(SeqCst), look).await;
            }
        });
        while bell.n_asleep() < 101 {
            tokio::task::yield_now().await;
        }
        let before = looks.load(SeqCst);

        bell.ring_and_hear().await;
        is_due.store(true, SeqCst);
        bell.ring();

        assert!(is_woken(one).await, "the ring is lost");
        assert_eq!(looks.load(SeqCst), before);
        others.shutdown().await;
        assert_eq!(bell.n_asleep(), 0, "who is gone sleeps on");
    }

    #[test]
    fn a_sleeper_hears_by_the_runtime_that_polled_it_last_be_the_first_idle_or_gone() {
        for is_gone in [false, true] {
            let bell = Bell::new().unwrap();
            let is_due = AtomicBool::new(false);
            let mut sleeper = Box::pin(bell.listen(|| is_due.load(SeqCst).then_some(())));
            let first = runtime();
            first.block_on(async { assert!(poll!(sleeper.as_mut()).is_pending()) });
            let _idle = (!is_gone).then_some(first);

            runtime().block_on(async {
                // It is polled before the ring.
                let (is_woken, ()) = join!(is_woken(sleeper), async {
                    is_due.store(true, SeqCst);
                    bell.ring();
                });
                assert!(is_woken, "the ring is lost; the first is gone: {is_gone}");
            });
        }
    }

    #[test]
    fn a_sleeper_that_is_not_polled_is_woken_once() {
        let bell = Bell::new().unwrap();
        let woken = Arc::new(Woken::default());
        let mut sleeper = pin!(bell.listen(|| None::<()>));
        runtime().block_on(async {
            assert!(woken.polls(sleeper.as_mut()).is_pending());

            for _ in 0..3 {
                bell.ring_and_hear().await;
            }
        });

        assert_eq!(woken.0.load(SeqCst), 1);
    }

    #[test]
    fn the_end_of_a_runtime_wakes_its_sleepers() {
        let bell = Bell::new().unwrap();
        let woken = Arc::new(Woken::default());
        let mut sleeper = pin!(bell.listen_if(|| false, || None::<()>));
        let runtime = runtime();
        runtime.block_on(async { assert!(woken.polls(sleeper.as_mut()).is_pending()) });

        drop(runtime);

        assert_eq!(woken.0.load(SeqCst), 1);
    }

    #[test]
    fn a_runtime_that_is_gone_is_not_kept_when_another_one_listens() {
        let bell = Bell::new().unwrap();
        for _ in 0..3 {
            let mut looks = 0;
            runtime().block_on(bell.listen(|| {
                looks += 1;
                bell.ring();
                (looks > 2).then_some(())
            }));

            assert_eq!(bell.ears().kept.len(), 1);
        }
    }
}
