//! Values with a lock of their own: a lock's object with room for data behind its words.
//!
//! The elements are plain memory, which only holders of the lock touch. There is no way to give the
//! lock back without its guard, so no safe call lets two processes at them at one time; a holder that
//! dies has stopped for good before the lock goes on.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use bytemuck::Pod;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::broker::layout::{DATA, Kind, Shape};
use crate::broker::object::{self, Object};
use crate::error::{CreatorGone, TryLockError};
use crate::sync::{Held, sealed};

/// A fixed number of values that tasks of many processes read and write under one lock.
///
/// This is Python's `multiprocessing.Array`; for slices, hold the [`lock`](Self::lock).
///
/// # Process death
///
/// As for [`Value`](super::Value): see [`ArrayGuard::recovered`]. A [`set`](Self::set) of one element
/// does not make the others whole, so it is still the next guard that says so.
///
/// # Examples
///
/// ```
/// use tokio_multiprocess::Process;
/// use tokio_multiprocess::shared::Array;
///
/// async fn negate(numbers: Array<i32>) {
///     let mut numbers = numbers.lock().await.expect("the parent is there");
///     numbers.iter_mut().for_each(|n| *n = -*n);
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let numbers = Array::from_slice(&[1, 2, 3])?;
/// let child = Process::start(negate, numbers.clone()).await?;
/// child.join().await?;
/// assert_eq!(numbers.to_vec().await?, [-1, -2, -3]);
/// # Ok(()) }
/// ```
pub struct Array<T> {
    object: Arc<Object>,
    len: usize,
    /// Values are moved between threads and processes, under the lock.
    values: PhantomData<fn() -> T>,
}

impl<T: Pod> Array<T> {
    /// Makes an array of these values. This process looks after its lock.
    ///
    /// # Errors
    ///
    /// Fails when the system has no memory or descriptors left.
    ///
    /// # Panics
    ///
    /// For a type that wants to be aligned to more than a kibibyte.
    pub fn from_slice(values: &[T]) -> io::Result<Self> {
        let array = Self::zeroed(values.len())?;
        // Nobody else has a handle yet.
        array
            .object
            .region()
            .write(DATA, bytemuck::cast_slice(values));
        Ok(array)
    }

    /// Makes an array of zeros. This process looks after its lock.
    ///
    /// # Errors
    ///
    /// Fails when the system has no memory or descriptors left.
    ///
    /// # Panics
    ///
    /// For a type that wants to be aligned to more than a kibibyte.
    pub fn zeroed(len: usize) -> io::Result<Self> {
        assert!(
            align_of::<T>() <= DATA,
            "shared values cannot be aligned so much"
        );
        let data = len
            .checked_mul(size_of::<T>())
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let object = Object::create(Shape::Lock { data })?;
        Ok(Self {
            object,
            len,
            values: PhantomData,
        })
    }

    /// Reads an element under the lock. Who has a guard waits for itself, for ever: read that.
    ///
    /// # Errors
    ///
    /// Fails with [`CreatorGone`] when the process that made the array has ended.
    ///
    /// # Panics
    ///
    /// When there is no such element, or it has to wait outside a tokio runtime with I/O enabled.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe, but** a dropped wait loses its place in the queue.
    pub async fn get(&self, index: usize) -> Result<T, CreatorGone> {
        Ok(self.lock().await?.unseen()[index])
    }

    /// Writes an element under the lock. Who has a guard waits for itself, for ever: write to that.
    ///
    /// # Errors
    ///
    /// Fails with [`CreatorGone`] when the process that made the array has ended.
    ///
    /// # Panics
    ///
    /// When there is no such element, or it has to wait outside a tokio runtime with I/O enabled.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe, but** a dropped wait loses its place in the queue, and has not written.
    pub async fn set(&self, index: usize, value: T) -> Result<(), CreatorGone> {
        self.lock().await?.unseen()[index] = value;
        Ok(())
    }

    /// Reads all elements under the lock. Who has a guard waits for itself, for ever: read that.
    ///
    /// # Errors
    ///
    /// Fails with [`CreatorGone`] when the process that made the array has ended.
    ///
    /// # Panics
    ///
    /// When it has to wait outside a tokio runtime with I/O enabled.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe, but** a dropped wait loses its place in the queue.
    pub async fn to_vec(&self) -> Result<Vec<T>, CreatorGone> {
        Ok(self.lock().await?.unseen().to_vec())
    }

    /// Takes the lock, for more than one operation.
    ///
    /// # Errors
    ///
    /// Fails with [`CreatorGone`] when the process that made the array has ended.
    ///
    /// # Panics
    ///
    /// When it has to wait outside a tokio runtime with I/O enabled.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe, but** a dropped wait loses its place in the queue.
    pub async fn lock(&self) -> Result<ArrayGuard<T>, CreatorGone> {
        Ok(self.guard(Held::lock(&self.object).await?))
    }

    /// Takes the lock if it is free.
    ///
    /// # Errors
    ///
    /// [`TryLockError::Busy`] when somebody has it.
    pub fn try_lock(&self) -> Result<ArrayGuard<T>, TryLockError> {
        Ok(self.guard(Held::try_lock(&self.object)?))
    }

    /// Takes the lock, and puts the thread to sleep until it is free.
    ///
    /// # Errors
    ///
    /// Fails with [`CreatorGone`] when the process that made the array has ended.
    pub fn blocking_lock(&self) -> Result<ArrayGuard<T>, CreatorGone> {
        Ok(self.guard(Held::lock_blocking(&self.object)?))
    }

    fn guard(&self, held: Held) -> ArrayGuard<T> {
        ArrayGuard {
            held,
            len: self.len,
            values: PhantomData,
        }
    }
}

impl<T> Array<T> {
    /// How many elements there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<T> Clone for Array<T> {
    fn clone(&self) -> Self {
        Self {
            object: Arc::clone(&self.object),
            len: self.len,
            values: PhantomData,
        }
    }
}

impl<T> fmt::Debug for Array<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Array")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// The object in a message.
struct Sent<'a>(&'a Object);

impl Serialize for Sent<'_> {
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

impl<T> Serialize for Array<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (
            Sent(&self.object),
            self.len,
            size_of::<T>(),
            align_of::<T>(),
        )
            .serialize(serializer)
    }
}

impl<'de, T: Pod> Deserialize<'de> for Array<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (Received(object), len, size, align) =
            <(Received, usize, usize, usize)>::deserialize(deserializer)?;
        if (size, align) != (size_of::<T>(), align_of::<T>()) {
            return Err(D::Error::custom(
                "shared memory holds values of another type",
            ));
        }
        let end = len
            .checked_mul(size)
            .and_then(|bytes| bytes.checked_add(DATA));
        if align > DATA || end.is_none_or(|end| end > object.region().len()) {
            return Err(D::Error::custom(
                "shared memory is too small for its values",
            ));
        }
        Ok(Self {
            object,
            len,
            values: PhantomData,
        })
    }
}

impl<T> sealed::Lockable for Array<T> {
    fn lock_object(&self) -> sealed::LockObject<'_> {
        sealed::LockObject(&self.object)
    }
}

/// An [`Array`] and its lock, until it is dropped.
#[must_use = "dropping the guard gives the lock back at once"]
pub struct ArrayGuard<T> {
    held: Held,
    len: usize,
    values: PhantomData<fn() -> T>,
}

impl<T> ArrayGuard<T> {
    /// Whether the last holder's process died while it held the lock, so that elements may be half
    /// written, see [`LockGuard::recovered`](crate::sync::LockGuard::recovered).
    #[must_use]
    pub fn recovered(&self) -> bool {
        self.held.recovered()
    }

    /// The user does not see this guard.
    pub(super) fn unseen(self) -> Self {
        Self {
            held: self.held.unseen(),
            ..self
        }
    }
}

impl<T: Pod> Deref for ArrayGuard<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.held.assert_ours();
        // The turn is the lock, which `held` has.
        self.held.object().region().values(DATA, self.len)
    }
}

impl<T: Pod> DerefMut for ArrayGuard<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.held.assert_ours();
        self.held.values_mut(DATA, self.len)
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for ArrayGuard<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ArrayGuard").field(&&**self).finish()
    }
}

impl<T> sealed::Guard for ArrayGuard<T> {
    type Rest = usize;

    fn split(self) -> Result<(usize, Held), &'static str> {
        Ok((self.len, self.held))
    }

    fn join(len: usize, held: Held) -> Self {
        Self {
            held,
            len,
            values: PhantomData,
        }
    }
}
