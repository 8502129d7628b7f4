//! The lock that its owner can take again: a lock, and who shares the guard.
//!
//! To the other processes it is a [`Lock`](super::Lock). Here, an ownership is one guard of that lock
//! which all guards of the same owner share; it ends with the last of them. So the count of
//! recursion is the count of shares, it lives in the memory of the owning process, and dies with it.
//!
//! Several tasks may wait for the lock as one owner. When one of them has it the others need not wait
//! any more: they are woken, and find the guard that they can share.

use std::fmt;
use std::io;
use std::mem;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures::future::{Either, select};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::sync::Notify;

use super::held::{self, Held};
use crate::broker::layout::{Kind, Shape};
use crate::broker::object::{self, Object};
use crate::error::{CreatorGone, TryLockError};

/// A lock that its owner can take again.
///
/// The owner is not a task or thread, as two arms of a `join!` are one task, and code in `block_on`
/// is none: it is whoever has a guard ([`RLockGuard::again`]), or an explicit [`RLockOwner`].
///
/// This is Python's `multiprocessing.RLock`, where the owner is a thread.
///
/// # Process death
///
/// As for [`Lock`](super::Lock): the next owner gets it and is told.
///
/// # Examples
///
/// ```
/// use tokio_multiprocess::sync::RLock;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let lock = RLock::new()?;
/// let outer = lock.lock().await?;
/// let inner = outer.again();
/// assert_eq!(inner.depth(), 2);
///
/// drop(outer);
/// assert!(lock.is_locked());
/// drop(inner);
/// assert!(!lock.is_locked());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct RLock {
    object: Arc<Object>,
}

/// Somebody who may take an [`RLock`] again while it has it.
///
/// Clones are the same owner. It is not bound to one lock.
#[derive(Clone, Debug, Default)]
pub struct RLockOwner(Arc<Owner>);

#[derive(Debug, Default)]
struct Owner {
    shares: Mutex<Vec<Weak<Share>>>,
    /// Has those look again who wait as this owner: it has got a lock.
    has_got: Notify,
}

/// What the guards of one owner share.
struct Share {
    lock: Mutex<Holds>,
    /// Of a lock that was taken as somebody's.
    owner: Option<Arc<Owner>>,
}

/// What has become of the lock that an owner took.
enum Holds {
    Lock(Held),
    /// It is given back until a condition's wait takes it again.
    Lent,
    /// It was given back by a condition's wait that was dropped.
    Lost,
}

impl RLock {
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

    /// Waits until nobody has the lock and takes it, as a new owner.
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
    pub async fn lock(&self) -> Result<RLockGuard, CreatorGone> {
        let held = Held::lock(&self.object).await?;
        Ok(RLockGuard::new(held, None))
    }

    /// Takes the lock as `owner`: at once if it has it, else when nobody has it.
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
    pub async fn lock_as(&self, owner: &RLockOwner) -> Result<RLockGuard, CreatorGone> {
        let mut taken = pin!(Held::lock(&self.object));
        loop {
            // Before the look: what the owner gets from here on wakes it.
            let has_got = pin!(owner.0.has_got.notified());
            if let Some(guard) = owner.again(&self.object) {
                return Ok(guard);
            }
            // Goes on waiting in its place when that was another lock, or is given back already.
            match select(taken.as_mut(), has_got).await {
                Either::Left((held, _)) => return Ok(owner.guard(held?)),
                Either::Right(((), _)) => (),
            }
        }
    }

    /// Takes the lock if nobody has it, as a new owner.
    ///
    /// # Errors
    ///
    /// [`TryLockError::Busy`] when somebody has it.
    pub fn try_lock(&self) -> Result<RLockGuard, TryLockError> {
        let held = Held::try_lock(&self.object)?;
        Ok(RLockGuard::new(held, None))
    }

    /// Takes the lock as `owner`, if it has it or nobody has it.
    ///
    /// # Errors
    ///
    /// [`TryLockError::Busy`] when somebody else has it.
    pub fn try_lock_as(&self, owner: &RLockOwner) -> Result<RLockGuard, TryLockError> {
        if let Some(guard) = owner.again(&self.object) {
            return Ok(guard);
        }
        let held = Held::try_lock(&self.object)?;
        Ok(owner.guard(held))
    }

    /// Takes the lock as a new owner, and puts the thread to sleep until it is free.
    ///
    /// # Errors
    ///
    /// Fails with [`CreatorGone`] when the process that made the lock has ended.
    pub fn blocking_lock(&self) -> Result<RLockGuard, CreatorGone> {
        let held = Held::lock_blocking(&self.object)?;
        Ok(RLockGuard::new(held, None))
    }

    /// Whether somebody has the lock. A snapshot, good for showing.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        held::is_locked(&self.object)
    }

    pub(super) fn object(&self) -> &Arc<Object> {
        &self.object
    }
}

impl fmt::Debug for RLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RLock")
            .field(&format_args!("{}", held::describe(&self.object)))
            .finish()
    }
}

impl Serialize for RLock {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object::serialize(&self.object, serializer)
    }
}

impl<'de> Deserialize<'de> for RLock {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        object::deserialize(deserializer, Kind::Lock).map(|object| Self { object })
    }
}

impl RLockOwner {
    /// An owner of nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn again(&self, object: &Arc<Object>) -> Option<RLockGuard> {
        let shares = self.shares();
        let shares = shares.iter().filter_map(Weak::upgrade);
        let has_it = |share: &Arc<Share>| {
            let lock = share.lock();
            matches!(&*lock, Holds::Lock(held) if Arc::ptr_eq(held.object(), object))
        };
        shares.into_iter().find(has_it).map(RLockGuard)
    }

    /// The first guard of this owner's hold.
    fn guard(&self, held: Held) -> RLockGuard {
        let guard = RLockGuard::new(held, Some(Arc::clone(&self.0)));
        let mut shares = self.shares();
        shares.retain(|share| share.strong_count() > 0);
        shares.push(Arc::downgrade(&guard.0));
        drop(shares);
        self.0.has_got.notify_waiters();
        guard
    }

    fn shares(&self) -> MutexGuard<'_, Vec<Weak<Share>>> {
        let shares = &self.0.shares;
        shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    fn lock(&self) -> MutexGuard<'_, Holds> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One level of an owner's hold on an [`RLock`], until it is dropped.
///
/// It may be left without the lock by a condition's wait: see [`has_lock`](Self::has_lock).
#[must_use = "dropping the guard gives the lock back at once"]
pub struct RLockGuard(Arc<Share>);

impl RLockGuard {
    fn new(held: Held, owner: Option<Arc<Owner>>) -> Self {
        let lock = Mutex::new(Holds::Lock(held));
        Self(Arc::new(Share { lock, owner }))
    }

    /// Takes the lock once more, for the same owner.
    pub fn again(&self) -> Self {
        Self(Arc::clone(&self.0))
    }

    /// How often its owner has taken it.
    #[must_use]
    pub fn depth(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// Whether the last owner's process died while it held the lock, see
    /// [`LockGuard::recovered`](super::LockGuard::recovered).
    #[must_use]
    pub fn recovered(&self) -> bool {
        matches!(&*self.0.lock(), Holds::Lock(held) if held.recovered())
    }

    /// Whether its owner has the lock now.
    ///
    /// A [`Condition`](super::Condition) gives the lock back for all levels while it waits with one of
    /// them. If that wait is dropped, nobody takes the lock again for them: the other guards of the
    /// owner protect nothing from then on. Drop them and take the lock anew, also as the same
    /// [`RLockOwner`].
    #[must_use]
    pub fn has_lock(&self) -> bool {
        matches!(*self.0.lock(), Holds::Lock(_))
    }

    /// Takes the lock out, for all levels, so that a condition can give it back.
    pub(super) fn hollow_out(self) -> Result<(Hollow, Held), &'static str> {
        let mut lock = self.0.lock();
        match mem::replace(&mut *lock, Holds::Lent) {
            Holds::Lock(held) => {
                drop(lock);
                Ok((Hollow(self), held))
            }
            Holds::Lent => Err("another guard of its owner is waiting with it"),
            Holds::Lost => {
                *lock = Holds::Lost;
                Err("a wait of another guard of its owner was dropped when it had given it back")
            }
        }
    }
}

/// A guard whose owner's lock is with a condition.
#[derive(Debug)]
pub struct Hollow(RLockGuard);

impl Hollow {
    /// Puts the lock back in, for all levels.
    pub(super) fn fill(self, held: Held) -> RLockGuard {
        let share = &self.0.0;
        *share.lock() = Holds::Lock(held);
        if let Some(owner) = &share.owner {
            owner.has_got.notify_waiters();
        }
        self.0.again()
    }
}

impl Drop for Hollow {
    fn drop(&mut self) {
        let mut lock = self.0.0.lock();
        if matches!(*lock, Holds::Lent) {
            *lock = Holds::Lost;
        }
    }
}

impl fmt::Debug for RLockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RLockGuard")
            .field("depth", &self.depth())
            .field("has_lock", &self.has_lock())
            .field("recovered", &self.recovered())
            .finish()
    }
}
