//! One value with a lock of its own: an [`Array`] of one element.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::array::{Array, ArrayGuard};
use crate::error::{CreatorGone, TryLockError};
use crate::sync::{Held, sealed};

/// One value that tasks of many processes read and write under its lock.
///
/// This is Python's `multiprocessing.Value`. As there, reading, adding one and writing back are
/// three operations, between which others come: to do them as one, hold the
/// [`lock`](Self::lock). A [`Condition`](crate::sync::Condition) can be made for it.
///
/// # Process death
///
/// A process that dies while it holds the lock may leave the value half written: the next guard says
/// so, see [`ValueGuard::recovered`], also if the value was read or written without a guard before. When the creator dies, the lock fails with [`CreatorGone`].
///
/// # Examples
///
/// ```
/// use tokio_multiprocess::Process;
/// use tokio_multiprocess::shared::Value;
///
/// async fn add(total: Value<f64>) {
///     *total.lock().await.expect("the parent is there") += 1.5;
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let total = Value::new(2.0)?;
/// let child = Process::start(add, total.clone()).await?;
/// child.join().await?;
/// assert_eq!(total.get().await?, 3.5);
/// # Ok(()) }
/// ```
pub struct Value<T>(Array<T>);

impl<T: Pod> Value<T> {
    /// Makes a value. This process looks after its lock.
    ///
    /// # Errors
    ///
    /// Fails when the system has no memory or descriptors left.
    ///
    /// # Panics
    ///
    /// For a type that wants to be aligned to more than a kibibyte.
    pub fn new(value: T) -> io::Result<Self> {
        Array::from_slice(&[value]).map(Self)
    }

    /// Reads the value under its lock. Who has a guard of it waits for itself, for ever: read that.
    ///
    /// # Errors
    ///
    /// Fails with [`CreatorGone`] when the process that made the value has ended.
    ///
    /// # Panics
    ///
    /// When it has to wait outside a tokio runtime with I/O enabled.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe, but** a dropped wait loses its place in the queue.
    pub async fn get(&self) -> Result<T, CreatorGone> {
        self.0.get(0).await
    }

    /// Writes the value under its lock. Who has a guard of it waits for itself, for ever: write to that.
    ///
    /// # Errors
    ///
    /// Fails with [`CreatorGone`] when the process that made the value has ended.
    ///
    /// # Panics
    ///
    /// When it has to wait outside a tokio runtime with I/O enabled.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe, but** a dropped wait loses its place in the queue, and has not written.
    pub async fn set(&self, value: T) -> Result<(), CreatorGone> {
        self.0.set(0, value).await
    }

    /// Takes the lock, for more than one operation.
    ///
    /// # Errors
    ///
    /// Fails with [`CreatorGone`] when the process that made the value has ended.
    ///
    /// # Panics
    ///
    /// When it has to wait outside a tokio runtime with I/O enabled.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe, but** a dropped wait loses its place in the queue.
    pub async fn lock(&self) -> Result<ValueGuard<T>, CreatorGone> {
        self.0.lock().await.map(ValueGuard)
    }

    /// Takes the lock if it is free.
    ///
    /// # Errors
    ///
    /// [`TryLockError::Busy`] when somebody has it.
    pub fn try_lock(&self) -> Result<ValueGuard<T>, TryLockError> {
        self.0.try_lock().map(ValueGuard)
    }

    /// Reads the value if nobody has the lock.
    ///
    /// # Errors
    ///
    /// [`TryLockError::Busy`] when somebody has it.
    pub fn try_get(&self) -> Result<T, TryLockError> {
        self.try_lock().map(|guard| *guard.unseen())
    }

    /// Writes the value if nobody has the lock.
    ///
    /// # Errors
    ///
    /// [`TryLockError::Busy`] when somebody has it.
    pub fn try_set(&self, value: T) -> Result<(), TryLockError> {
        self.try_lock().map(|guard| *guard.unseen() = value)
    }

    /// Takes the lock, and puts the thread to sleep until it is free.
    ///
    /// # Errors
    ///
    /// Fails with [`CreatorGone`] when the process that made the value has ended.
    pub fn blocking_lock(&self) -> Result<ValueGuard<T>, CreatorGone> {
        self.0.blocking_lock().map(ValueGuard)
    }

    /// Reads the value, and puts the thread to sleep until it can.
    ///
    /// # Errors
    ///
    /// Fails with [`CreatorGone`] when the process that made the value has ended.
    pub fn blocking_get(&self) -> Result<T, CreatorGone> {
        self.blocking_lock().map(|guard| *guard.unseen())
    }

    /// Writes the value, and puts the thread to sleep until it can.
    ///
    /// # Errors
    ///
    /// Fails with [`CreatorGone`] when the process that made the value has ended.
    pub fn blocking_set(&self, value: T) -> Result<(), CreatorGone> {
        self.blocking_lock().map(|guard| *guard.unseen() = value)
    }
}

impl<T> Clone for Value<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for Value<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.try_get() {
            Ok(value) => f.debug_tuple("Value").field(&value).finish(),
            Err(_) => f.write_str("Value(<locked>)"),
        }
    }
}

impl<T> Serialize for Value<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, T: Pod> Deserialize<'de> for Value<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let array = Array::deserialize(deserializer)?;
        if array.len() != 1 {
            return Err(D::Error::custom("a shared value came as an array"));
        }
        Ok(Self(array))
    }
}

impl<T> sealed::Lockable for Value<T> {
    fn lock_object(&self) -> sealed::LockObject<'_> {
        self.0.lock_object()
    }
}

/// A [`Value`] and its lock, until it is dropped.
#[must_use = "dropping the guard gives the lock back at once"]
pub struct ValueGuard<T>(ArrayGuard<T>);

impl<T> ValueGuard<T> {
    /// Whether the last holder's process died while it held the lock, so that the value may be half
    /// written, see [`LockGuard::recovered`](crate::sync::LockGuard::recovered).
    #[must_use]
    pub fn recovered(&self) -> bool {
        self.0.recovered()
    }

    /// The user does not see this guard.
    fn unseen(self) -> Self {
        Self(self.0.unseen())
    }
}

impl<T: Pod> Deref for ValueGuard<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0[0]
    }
}

impl<T: Pod> DerefMut for ValueGuard<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0[0]
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for ValueGuard<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ValueGuard").field(&**self).finish()
    }
}

impl<T> sealed::Guard for ValueGuard<T> {
    type Rest = usize;

    fn split(self) -> Result<(usize, Held), &'static str> {
        sealed::Guard::split(self.0)
    }

    fn join(rest: usize, held: Held) -> Self {
        Self(sealed::Guard::join(rest, held))
    }
}
