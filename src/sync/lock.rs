//! The lock: one word that names its owner, and a queue at the broker.
//!
//! Taking a free lock is one compare-and-swap of the word from "free" to this process' number, giving
//! it back the same in the other direction. Only when it is taken does the taker look for a moment,
//! then sleep until the holder wakes it ([`crate::broker::park`]), and at last queue; the protocol,
//! with its proof, stands in [`crate::broker::word`] and [`crate::broker::gate`].

use std::fmt;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::held::{self, Held};
use crate::broker::layout::{Kind, LOCK, Shape};
use crate::broker::object::{self, Object};
use crate::broker::word;
use crate::error::{CreatorGone, OverRelease, TryLockError};

/// A mutual exclusion between tasks of all processes that have a handle.
///
/// Like tokio's mutex it is held across `.await` and given back when the guard is dropped; the guard
/// is owned and may move into a task. It is fast when free (one atomic instruction, no system call)
/// and fair when contended: a waiter is passed by newcomers for half a millisecond at most.
///
/// This is Python's `multiprocessing.Lock`, but that a death of the holder does not block the others
/// for ever, and that a guard takes the place of `release`. For Python's rule that any process may
/// release there are [`acquire`](Self::acquire) and [`release`](Self::release).
///
/// # Process death
///
/// When a process dies that holds the lock, the next one gets it, and its guard says so:
/// [`LockGuard::recovered`]. When the creator dies, waits fail with [`CreatorGone`].
///
/// # Examples
///
/// ```
/// use tokio_multiprocess::Process;
/// use tokio_multiprocess::sync::Lock;
///
/// async fn count(lock: Lock) -> bool {
///     let guard = lock.lock().await.expect("the parent is there");
///     guard.recovered()
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let lock = Lock::new()?;
/// let mut child = Process::start(count, lock.clone()).await?;
/// assert!(!child.join().await?);
/// assert!(!lock.is_locked());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Lock {
    object: Arc<Object>,
}

impl Lock {
    /// Makes a lock that is free. This process looks after it.
    ///
    /// # Errors
    ///
    /// Fails when the system has no memory or descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            object: Object::create(Shape::Lock { data: 0 })?,
        })
    }

    /// Waits until the lock is free and takes it.
    ///
    /// # Errors
    ///
    /// Fails with [`CreatorGone`] when the process that made the lock has ended.
    ///
    /// # Panics
    ///
    /// When it has to wait outside a tokio runtime with I/O enabled.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe, but** a dropped wait loses its place in the queue.
    #[inline]
    pub async fn lock(&self) -> Result<LockGuard, CreatorGone> {
        if let Some(taken) = held::take_now(&self.object)? {
            return Ok(LockGuard(Held::new(&self.object, taken.recovered)));
        }
        Held::lock(&self.object).await.map(LockGuard)
    }

    /// Like [`lock`](Self::lock), with a guard that borrows this handle: some nanoseconds cheaper, as
    /// no handle has to be counted.
    ///
    /// # Errors
    ///
    /// As for [`lock`](Self::lock).
    ///
    /// # Panics
    ///
    /// As for [`lock`](Self::lock).
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe, but** a dropped wait loses its place in the queue.
    #[inline]
    pub async fn lock_ref(&self) -> Result<LockGuardRef<'_>, CreatorGone> {
        let recovered = match held::take_now(&self.object)? {
            Some(taken) => taken.recovered,
            None => held::wait(&self.object).await?,
        };
        Ok(LockGuardRef {
            object: &self.object,
            recovered,
        })
    }

    /// Takes the lock if it is free.
    ///
    /// # Errors
    ///
    /// [`TryLockError::Busy`] when somebody has it, or is next.
    pub fn try_lock(&self) -> Result<LockGuard, TryLockError> {
        Held::try_lock(&self.object).map(LockGuard)
    }

    /// Like [`try_lock`](Self::try_lock), with a guard that borrows this handle.
    ///
    /// # Errors
    ///
    /// As for [`try_lock`](Self::try_lock).
    #[inline]
    pub fn try_lock_ref(&self) -> Result<LockGuardRef<'_>, TryLockError> {
        let taken = held::take_now(&self.object)?.ok_or(TryLockError::Busy)?;
        Ok(LockGuardRef {
            object: &self.object,
            recovered: taken.recovered,
        })
    }

    /// Takes the lock, and puts the thread to sleep until it is free. For code outside a runtime.
    ///
    /// # Errors
    ///
    /// Fails with [`CreatorGone`] when the process that made the lock has ended.
    pub fn blocking_lock(&self) -> Result<LockGuard, CreatorGone> {
        Held::lock_blocking(&self.object).map(LockGuard)
    }

    /// Whether somebody has the lock. A snapshot, good for showing.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        held::is_locked(&self.object)
    }

    /// Takes the lock without a guard: any process may [`release`](Self::release) it.
    ///
    /// # Errors
    ///
    /// Fails with [`CreatorGone`] when the process that made the lock has ended.
    ///
    /// # Panics
    ///
    /// When it has to wait outside a tokio runtime with I/O enabled.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe, but** a dropped wait loses its place in the queue.
    ///
    /// # Process death
    ///
    /// What was acquired like this belongs to nobody, so nobody's death releases it. If the last
    /// holder died, the next guard says so, see [`LockGuard::recovered`].
    pub async fn acquire(&self) -> Result<(), CreatorGone> {
        let LockGuard(held) = self.lock().await?;
        held.unseen().disown();
        Ok(())
    }

    /// Gives back a lock that was taken by [`acquire`](Self::acquire), here or in another process.
    ///
    /// # Errors
    ///
    /// Fails with [`OverRelease`] when it is free or held by a guard.
    pub fn release(&self) -> Result<(), OverRelease> {
        let Ok(tell) = word::give_nobodys(&mut self.object.words(), LOCK..LOCK + 1);
        self.object.tell(tell.ok_or(OverRelease)?, LOCK);
        Ok(())
    }

    pub(crate) fn object(&self) -> &Arc<Object> {
        &self.object
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lock")
            .field(&format_args!("{}", held::describe(&self.object)))
            .finish()
    }
}

impl Serialize for Lock {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object::serialize(&self.object, serializer)
    }
}

impl<'de> Deserialize<'de> for Lock {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        object::deserialize(deserializer, Kind::Lock).map(|object| Self { object })
    }
}

/// The right to what a [`Lock`] protects, until it is dropped.
#[derive(Debug)]
#[must_use = "dropping the guard gives the lock back at once"]
pub struct LockGuard(pub(super) Held);

impl LockGuard {
    /// Whether the last holder's process died while it held the lock, so that what the lock protects
    /// may be half changed. It is true for one holder, the first that can ask: whoever comes after
    /// this guard finds what it leaves. What takes the lock without showing a guard leaves the mark
    /// for the next one: [`Lock::acquire`], a wait that is dropped, and reading, writing and `{:?}`
    /// of a [`Value`](crate::shared::Value) or [`Array`](crate::shared::Array).
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_multiprocess::Process;
    /// use tokio_multiprocess::sync::Lock;
    ///
    /// async fn die_holding(lock: Lock) {
    ///     let _guard = lock.lock().await.expect("the parent is there");
    ///     std::process::abort();
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let lock = Lock::new()?;
    /// let mut child = Process::start(die_holding, lock.clone()).await?;
    /// child.join().await.unwrap_err();
    ///
    /// assert!(lock.lock().await?.recovered());
    /// assert!(!lock.lock().await?.recovered());
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn recovered(&self) -> bool {
        self.0.recovered()
    }

    /// Leaves the lock taken, by nobody in particular: [`Lock::release`] gives it back. The next guard
    /// is not [`recovered`](Self::recovered), as this one could say so.
    pub fn forget(self) {
        self.0.disown();
    }
}

/// Like [`LockGuard`], borrowed from its [`Lock`].
#[derive(Debug)]
#[must_use = "dropping the guard gives the lock back at once"]
pub struct LockGuardRef<'a> {
    object: &'a Arc<Object>,
    recovered: bool,
}

impl LockGuardRef<'_> {
    /// See [`LockGuard::recovered`].
    #[must_use]
    pub fn recovered(&self) -> bool {
        self.recovered
    }
}

impl Drop for LockGuardRef<'_> {
    #[inline]
    fn drop(&mut self) {
        self.object.give(LOCK);
    }
}
