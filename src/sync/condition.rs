//! The condition: a few words of its lock, and behind them a queue at the lock's broker.
//!
//! The first few waiters put themselves down in words that a notifier looks at, and are woken by the
//! release of the lock: see [`crate::broker::vigil`]. For those who come later the broker keeps a
//! queue. There `wait` is one message that gives the lock back and queues, so no notification can come in
//! between. `notify` moves waiters from the condition's queue to the lock's, so each is woken when it
//! has the lock and not before. How many wait stands in a word of the lock's memory, so a `notify`
//! that finds nobody is one load. See [`crate::broker::gate`].

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::held::Held;
use super::lock::{Lock, LockGuard};
use super::rlock::{Hollow, RLock, RLockGuard};
use crate::broker::layout::{self, CONDITIONS_MAX, Kind};
use crate::broker::message::Says;
use crate::broker::object::{self, Object};
use crate::broker::slot::Wake;
use crate::broker::vigil;
use crate::broker::waiting::Waiting;
use crate::broker::watching::Vigil;
use crate::error::CreatorGone;

/// Lets holders of a lock wait for something that others bring about while they hold it.
///
/// This is Python's `multiprocessing.Condition`, but that a timeout of `wait` is a method of its own
/// ([`wait_timeout`](Self::wait_timeout)), that `notify` never waits for the woken (so a
/// dead one cannot block it), and that the lock has to be there first. Waiting gives back all levels
/// of an [`RLock`](super::RLock) and takes them again.
///
/// A waiter may wake without a notification, when another one was notified and died: look again, as
/// [`wait_while`](Self::wait_while) does.
///
/// # Process death
///
/// A notified waiter that dies before it has the lock passes the notification to the next one. A
/// notifier that dies in the middle of it has notified or not. One that is *stopped* there may leave
/// the notified waiter asleep until it goes on or dies.
///
/// # Examples
///
/// ```
/// use tokio_multiprocess::sync::{Condition, Event, Lock};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let lock = Lock::new()?;
/// let changed = Condition::new(&lock)?;
/// let (theirs, done) = (changed.clone(), Event::new()?);
/// let (guard, flag) = (lock.lock().await?, done.clone());
/// let waiter = tokio::spawn(async move { theirs.wait_while(guard, |_| !flag.is_set()).await });
///
/// let guard = lock.lock().await?; // once the waiter waits
/// done.set();
/// changed.notify_one();
/// drop(guard);
/// waiter.await??;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Condition {
    /// The lock's.
    object: Arc<Object>,
    index: u32,
}

/// What a [`Condition`] can be made for: a lock, or what contains one.
pub trait Lockable: sealed::Lockable {}

/// What a [`Condition`] can wait with: a guard of a lock.
pub trait Guard: sealed::Guard {}

impl<T: sealed::Lockable> Lockable for T {}
impl<T: sealed::Guard> Guard for T {}

pub(crate) mod sealed {
    use super::{Arc, Held, Object};

    /// The object of a lock, which is nobody's business outside.
    #[derive(Debug)]
    pub struct LockObject<'a>(pub(crate) &'a Arc<Object>);

    pub trait Lockable {
        fn lock_object(&self) -> LockObject<'_>;
    }

    pub trait Guard: Sized {
        /// The guard without the lock.
        type Rest;
        /// Takes the lock out, or says why it is not there.
        fn split(self) -> Result<(Self::Rest, Held), &'static str>;
        /// Puts the lock back in.
        fn join(rest: Self::Rest, held: Held) -> Self;
    }
}

impl sealed::Lockable for Lock {
    fn lock_object(&self) -> sealed::LockObject<'_> {
        sealed::LockObject(self.object())
    }
}

impl sealed::Lockable for RLock {
    fn lock_object(&self) -> sealed::LockObject<'_> {
        sealed::LockObject(self.object())
    }
}

impl sealed::Guard for LockGuard {
    type Rest = ();

    fn split(self) -> Result<((), Held), &'static str> {
        Ok(((), self.0))
    }

    fn join((): (), held: Held) -> Self {
        Self(held)
    }
}

impl sealed::Guard for RLockGuard {
    type Rest = Hollow;

    fn split(self) -> Result<(Hollow, Held), &'static str> {
        self.hollow_out()
    }

    fn join(rest: Hollow, held: Held) -> Self {
        rest.fill(held)
    }
}

impl Condition {
    /// Makes a condition that belongs to `lock`.
    ///
    /// # Errors
    ///
    /// Fails when 64 conditions have been made for the lock, by whatever process: a condition that is
    /// dropped makes no room for another one.
    pub fn new(lock: &impl Lockable) -> io::Result<Self> {
        let object = Arc::clone(lock.lock_object().0);
        let index = layout::next_condition(object.region()).ok_or_else(|| {
            io::Error::other(format!("a lock can have {CONDITIONS_MAX} conditions"))
        })?;
        Ok(Self { object, index })
    }

    /// Gives the lock back, waits for a notification, and takes the lock again.
    ///
    /// # Errors
    ///
    /// Fails with [`CreatorGone`] when the process that made the lock has ended.
    ///
    /// # Panics
    ///
    /// When the guard is of another lock, or an [`RLockGuard`] that [has no lock](RLockGuard::has_lock);
    /// and outside a tokio runtime with I/O enabled.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe, but** the lock is given back and not taken again: there is no guard, and other
    /// guards of the same [`RLock`]'s owner [have no lock](RLockGuard::has_lock) any more. To give up
    /// after a time and go on with the lock there is [`wait_timeout`](Self::wait_timeout). A
    /// notification that came meanwhile passes to the next waiter.
    pub async fn wait<G: Guard>(&self, guard: G) -> Result<G, CreatorGone> {
        let (rest, held) = self.split(guard);
        if let Some(vigil) = Vigil::begin(&self.object, self.index, Wake::Bell)? {
            drop(held);
            vigil.notified().await?;
            let held = Held::lock(&self.object).await?;
            vigil.take();
            return Ok(G::join(rest, held));
        }
        let waiting = self.begin(held, Wake::Bell)?;
        let answer = waiting.answer().await?;
        Ok(G::join(rest, Held::granted(&self.object, answer)?))
    }

    /// Like [`wait`](Self::wait), but for so long at most, and takes the lock again in any case. True if
    /// a notification came.
    ///
    /// This is Python's `wait(timeout)`. To take the lock again has no limit of time.
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait).
    ///
    /// # Panics
    ///
    /// As for [`wait`](Self::wait), and in a runtime without time enabled.
    ///
    /// # Cancel safety
    ///
    /// As for [`wait`](Self::wait).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_multiprocess::sync::{Condition, Lock};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let lock = Lock::new()?;
    /// let changed = Condition::new(&lock)?;
    /// let guard = lock.lock().await?;
    ///
    /// let (guard, notified) = changed.wait_timeout(guard, Duration::from_millis(1)).await?;
    /// assert!(!notified && lock.is_locked());
    /// # drop(guard);
    /// # Ok(()) }
    /// ```
    pub async fn wait_timeout<G: Guard>(
        &self,
        guard: G,
        timeout: Duration,
    ) -> Result<(G, bool), CreatorGone> {
        let (rest, held) = self.split(guard);
        if let Some(vigil) = Vigil::begin(&self.object, self.index, Wake::Bell)? {
            drop(held);
            if let Ok(over) = tokio::time::timeout(timeout, vigil.notified()).await {
                over?;
            }
            let held = Held::lock(&self.object).await?;
            // With the lock in hand, as one may have come since.
            let is_notified = vigil.take();
            return Ok((G::join(rest, held), is_notified));
        }
        let waiting = self.begin(held, Wake::Bell)?;
        match tokio::time::timeout(timeout, waiting.answer()).await {
            Ok(answer) => {
                let held = Held::granted(&self.object, answer?)?;
                Ok((G::join(rest, held), true))
            }
            // A notification that came too late has been passed on.
            Err(_) => {
                let held = Held::lock(&self.object).await?;
                Ok((G::join(rest, held), false))
            }
        }
    }

    /// Waits as long as `condition` is true. The lock is held whenever it is asked.
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait).
    ///
    /// # Panics
    ///
    /// As for [`wait`](Self::wait).
    ///
    /// # Cancel safety
    ///
    /// As for [`wait`](Self::wait).
    pub async fn wait_while<G: Guard>(
        &self,
        mut guard: G,
        mut condition: impl FnMut(&mut G) -> bool,
    ) -> Result<G, CreatorGone> {
        while condition(&mut guard) {
            guard = self.wait(guard).await?;
        }
        Ok(guard)
    }

    /// Like [`wait`](Self::wait), but puts the thread to sleep. For code outside a runtime.
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait).
    ///
    /// # Panics
    ///
    /// When the guard is of another lock, or an [`RLockGuard`] that [has no lock](RLockGuard::has_lock).
    pub fn blocking_wait<G: Guard>(&self, guard: G) -> Result<G, CreatorGone> {
        let (rest, held) = self.split(guard);
        if let Some(vigil) = Vigil::begin(&self.object, self.index, Wake::Futex)? {
            drop(held);
            vigil.notified_blocking(None)?;
            let held = Held::lock_blocking(&self.object)?;
            vigil.take();
            return Ok(G::join(rest, held));
        }
        let answer = self.begin(held, Wake::Futex)?.answer_blocking()?;
        Ok(G::join(rest, Held::granted(&self.object, answer)?))
    }

    /// Like [`wait_timeout`](Self::wait_timeout), but puts the thread to sleep. For code outside a
    /// runtime.
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait).
    ///
    /// # Panics
    ///
    /// When the guard is of another lock, or an [`RLockGuard`] that [has no lock](RLockGuard::has_lock).
    pub fn blocking_wait_timeout<G: Guard>(
        &self,
        guard: G,
        timeout: Duration,
    ) -> Result<(G, bool), CreatorGone> {
        let Some(until) = Instant::now().checked_add(timeout) else {
            // Later than there is time.
            return Ok((self.blocking_wait(guard)?, true));
        };
        let (rest, held) = self.split(guard);
        if let Some(vigil) = Vigil::begin(&self.object, self.index, Wake::Futex)? {
            drop(held);
            vigil.notified_blocking(Some(until))?;
            let held = Held::lock_blocking(&self.object)?;
            // With the lock in hand, as one may have come since.
            let is_notified = vigil.take();
            return Ok((G::join(rest, held), is_notified));
        }
        let waiting = self.begin(held, Wake::Futex)?;
        let answer = waiting.answer_blocking_until(until)?;
        let is_notified = answer.is_some();
        let held = match answer {
            Some(answer) => Held::granted(&self.object, answer)?,
            // A notification that came too late has been passed on.
            None => Held::lock_blocking(&self.object)?,
        };
        Ok((G::join(rest, held), is_notified))
    }

    /// Wakes one waiter, which goes on when it has the lock. Nothing is remembered if nobody waits.
    ///
    /// To be sure that a waiter is not missed, hold the lock.
    pub fn notify_one(&self) {
        self.notify(1);
    }

    /// Wakes up to `n` waiters, those who have waited longest.
    pub fn notify(&self, n: usize) {
        // Those who wait now, and nobody who comes later.
        let n_queued = layout::n_waiting(self.object.region(), self.index);
        let Ok(n_vigils) = vigil::n_waiting(&mut self.object.words(), &layout::VIGIL, self.index);
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        let n = n.min(n_queued.saturating_add(n_vigils));
        let n_notified = self.object.notify_vigils(self.index, n.min(n_vigils));
        let n = n - n_notified;
        if n > 0 && n_queued > 0 {
            self.object.say(Says::Notify(self.index, n));
        }
    }

    /// Wakes all waiters.
    pub fn notify_all(&self) {
        self.notify(usize::MAX);
    }

    /// How many wait. For a holder of the lock it is exact, but that those who have just given up may be
    /// counted still; for others it is a snapshot.
    #[must_use]
    pub fn n_waiting(&self) -> usize {
        let n_queued = layout::n_waiting(self.object.region(), self.index);
        let Ok(n_vigils) = vigil::n_waiting(&mut self.object.words(), &layout::VIGIL, self.index);
        n_queued as usize + n_vigils as usize
    }

    fn split<G: Guard>(&self, guard: G) -> (G::Rest, Held) {
        let (rest, held) = guard
            .split()
            .unwrap_or_else(|why| panic!("a condition waits with a guard without a lock: {why}"));
        let same = Arc::ptr_eq(held.object(), &self.object);
        assert!(same, "a condition waits with a guard of another lock");
        (rest, held)
    }

    fn begin(&self, held: Held, wake: Wake) -> Result<Waiting, CreatorGone> {
        let says = |place| Says::Wait(place, self.index);
        // The message gives the lock back.
        let object = held.into_object();
        Ok(object.ask(wake, says)?.at_condition(self.index))
    }
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Condition")
            .field("n_waiting", &self.n_waiting())
            .finish_non_exhaustive()
    }
}

/// The lock's object and the index, in a message.
struct Parts<'a>(&'a Object);

impl Serialize for Parts<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object::serialize(self.0, serializer)
    }
}

struct Received(Arc<Object>);

impl<'de> Deserialize<'de> for Received {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        object::deserialize(deserializer, Kind::Lock).map(Self)
    }
}

impl Serialize for Condition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (Parts(&self.object), self.index).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Condition {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (Received(object), index) = Deserialize::deserialize(deserializer)?;
        if index as usize >= CONDITIONS_MAX {
            return Err(D::Error::custom("a condition has an impossible number"));
        }
        Ok(Self { object, index })
    }
}
