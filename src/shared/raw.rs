//! Numbers without a lock: each element is one atomic word.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytemuck::Pod;
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::atomic::Atomic;
use super::atomic::sealed::Place;
use crate::broker::layout;
use crate::sys::memfd::Region;
use crate::wire::fds;

/// One value without a lock.
///
/// Numbers are read and written by atomic operations. For other types there is only
/// [`as_ptr`](Self::as_ptr), whose use is up to you; with a lock they are a
/// [`Value`](super::Value). This is Python's `RawValue`.
///
/// # Process death
///
/// Each operation is one instruction, so a death leaves the value before it or after it.
///
/// # Examples
///
/// ```
/// use tokio_multiprocess::Process;
/// use tokio_multiprocess::shared::RawValue;
///
/// fn count(counter: RawValue<u64>) {
///     for _ in 0..1000 {
///         counter.update(|n| n + 1);
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let counter = RawValue::new(0_u64)?;
/// let child = Process::start(count, counter.clone()).await?;
/// count(counter.clone());
/// child.join().await?;
/// assert_eq!(counter.load(), 2000);
/// # Ok(()) }
/// ```
pub struct RawValue<T>(RawArray<T>);

/// A fixed number of values without a lock, see [`RawValue`]. This is Python's `RawArray`.
///
/// # Process death
///
/// Each operation is one instruction on one element.
///
/// # Examples
///
/// ```
/// use tokio_multiprocess::shared::RawArray;
///
/// # fn main() -> std::io::Result<()> {
/// let seen = RawArray::<u32>::zeroed(3)?;
/// seen.store(1, 7);
/// assert_eq!(seen.to_vec(), [0, 7, 0]);
/// # Ok(()) }
/// ```
pub struct RawArray<T> {
    memory: Arc<Memory>,
    len: usize,
    /// Shared by all threads of all processes.
    values: PhantomData<fn() -> T>,
}

struct Memory {
    region: Region,
    file: Arc<OwnedFd>,
}

impl<T: Pod> RawValue<T> {
    /// Makes a value.
    ///
    /// # Errors
    ///
    /// Fails when the system has no memory or descriptors left.
    pub fn new(value: T) -> io::Result<Self> {
        RawArray::from_slice(&[value]).map(Self)
    }

    /// Where the value lies, as long as a handle of this process is alive. Other processes may read
    /// and write there at any time.
    #[must_use]
    pub fn as_ptr(&self) -> *mut T {
        self.0.as_ptr()
    }
}

impl<T: Atomic> RawValue<T> {
    /// Reads the value.
    #[must_use]
    #[inline]
    pub fn load(&self) -> T {
        self.0.load(0)
    }

    /// Writes the value.
    #[inline]
    pub fn store(&self, value: T) {
        self.0.store(0, value);
    }

    /// Replaces the value by `next` of it, in one step, and comes back with the old one.
    #[inline]
    pub fn update(&self, next: impl FnMut(T) -> T) -> T {
        self.0.update(0, next)
    }

    /// Replaces the value by `next` of it, in one step, unless that is nothing.
    ///
    /// # Errors
    ///
    /// The value for which `next` was nothing.
    pub fn try_update(&self, next: impl FnMut(T) -> Option<T>) -> Result<T, T> {
        self.0.try_update(0, next)
    }
}

impl<T: Pod> RawArray<T> {
    /// Makes an array of these values.
    ///
    /// # Errors
    ///
    /// Fails when the system has no memory or descriptors left.
    pub fn from_slice(values: &[T]) -> io::Result<Self> {
        let array = Self::zeroed(values.len())?;
        array.memory.region.write(0, bytemuck::cast_slice(values));
        Ok(array)
    }

    /// Makes an array of zeros.
    ///
    /// # Errors
    ///
    /// Fails when the system has no memory or descriptors left.
    pub fn zeroed(len: usize) -> io::Result<Self> {
        let bytes = n_bytes::<T>(len).ok_or(io::ErrorKind::OutOfMemory)?;
        let (region, file) = Region::create(c"mp-array", bytes)?;
        Ok(Self::of(region, file, len))
    }

    fn of(region: Region, file: OwnedFd, len: usize) -> Self {
        let memory = Arc::new(Memory {
            region,
            file: Arc::new(file),
        });
        Self {
            memory,
            len,
            values: PhantomData,
        }
    }

    /// Where the elements lie, as long as a handle of this process is alive. Other processes may
    /// read and write there at any time.
    #[must_use]
    pub fn as_ptr(&self) -> *mut T {
        self.memory.region.address(0, self.len)
    }
}

impl<T> RawArray<T> {
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

impl<T: Atomic> RawArray<T> {
    /// Reads an element.
    ///
    /// # Panics
    ///
    /// When there is no such element.
    #[must_use]
    #[inline]
    pub fn load(&self, index: usize) -> T {
        T::load(self.place(index))
    }

    /// Writes an element.
    ///
    /// # Panics
    ///
    /// When there is no such element.
    #[inline]
    pub fn store(&self, index: usize, value: T) {
        T::store(self.place(index), value);
    }

    /// Replaces an element by `next` of it, in one step, and comes back with the old one.
    ///
    /// # Panics
    ///
    /// When there is no such element.
    #[inline]
    pub fn update(&self, index: usize, mut next: impl FnMut(T) -> T) -> T {
        let (Ok(old) | Err(old)) = T::update(self.place(index), |value| Some(next(value)));
        old
    }

    /// Replaces an element by `next` of it, in one step, unless that is nothing.
    ///
    /// # Errors
    ///
    /// The element for which `next` was nothing.
    ///
    /// # Panics
    ///
    /// When there is no such element.
    pub fn try_update(&self, index: usize, next: impl FnMut(T) -> Option<T>) -> Result<T, T> {
        T::update(self.place(index), next)
    }

    /// Reads all elements, one after the other: others may write meanwhile.
    #[must_use]
    pub fn to_vec(&self) -> Vec<T> {
        (0..self.len).map(|index| self.load(index)).collect()
    }

    #[inline]
    fn place(&self, index: usize) -> Place<'_> {
        assert!(index < self.len, "element {index} of {}", self.len);
        Place(&self.memory.region, index * size_of::<T>())
    }
}

/// At least one, as there is no memory of no bytes; and one more than needed for what is as long as an
/// object, so that no memory is ever both.
fn n_bytes<T>(len: usize) -> Option<NonZeroUsize> {
    let bytes = len.checked_mul(size_of::<T>())?;
    let more = usize::from(layout::is_length(bytes as u64));
    NonZeroUsize::new(bytes.checked_add(more)?)
}

impl<T> Clone for RawValue<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Clone for RawArray<T> {
    fn clone(&self) -> Self {
        Self {
            memory: Arc::clone(&self.memory),
            len: self.len,
            values: PhantomData,
        }
    }
}

impl<T: Atomic + fmt::Debug> fmt::Debug for RawValue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RawValue").field(&self.load()).finish()
    }
}

impl<T> fmt::Debug for RawArray<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawArray")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl<T> Serialize for RawValue<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, T: Pod> Deserialize<'de> for RawValue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let array = RawArray::deserialize(deserializer)?;
        if array.len != 1 {
            return Err(D::Error::custom("a shared value came as an array"));
        }
        Ok(Self(array))
    }
}

impl<T> Serialize for RawArray<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let file = fds::list(Arc::clone(&self.memory.file), None).map_err(S::Error::custom)?;
        (file, self.len, size_of::<T>(), align_of::<T>()).serialize(serializer)
    }
}

impl<'de, T: Pod> Deserialize<'de> for RawArray<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (file, len, size, align) = <(u32, usize, usize, usize)>::deserialize(deserializer)?;
        let file = fds::take(file).map_err(D::Error::custom)?;
        if (size, align) != (size_of::<T>(), align_of::<T>()) {
            return Err(D::Error::custom(
                "shared memory holds values of another type",
            ));
        }
        let bytes = n_bytes::<T>(len);
        let bytes = bytes.ok_or_else(|| D::Error::custom("shared memory of impossible length"))?;
        let region = Region::map(&file, bytes).map_err(D::Error::custom)?;
        Ok(Self::of(region, file, len))
    }
}
