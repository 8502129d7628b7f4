//! The two halves of a queue: what can only put and what can only get.

use std::fmt;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::core::Core;
use super::{End, GET, Lease, PUT, QueueStream, Received, ReceivedEnd, Shared, keep};
use crate::error::{CreatorGone, GetError, PutError, TaskDoneError};

/// The half of an [`AsyncQueue`](super::AsyncQueue) that can put.
///
/// When the last of them is gone, in all processes and in all messages under way, the queue closes by
/// itself, and consumers see its end once they have got everything.
///
/// # Process death
///
/// The handles of a dead process are gone. For the rest see [`AsyncQueue`](super::AsyncQueue).
///
/// # Examples
///
/// ```
/// use tokio_multiprocess::{AsyncQueue, GetError};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (sender, receiver) = AsyncQueue::<u8>::bounded(1)?.split();
///
/// drop(sender);
/// assert!(matches!(receiver.get().await, Err(GetError::Closed)));
/// # Ok(()) }
/// ```
pub struct QueueSender<T> {
    core: Arc<Core>,
    end: Arc<OwnedFd>,
    item: PhantomData<fn(T)>,
}

/// The half of an [`AsyncQueue`](super::AsyncQueue) that can get.
///
/// When the last of them is gone, in all processes and in all messages under way, the queue closes by
/// itself, and producers get their items back.
///
/// # Process death
///
/// The handles of a dead process are gone. For the rest see [`AsyncQueue`](super::AsyncQueue).
///
/// # Examples
///
/// ```
/// use tokio_multiprocess::{AsyncQueue, PutError};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (sender, receiver) = AsyncQueue::bounded(1)?.split();
/// sender.put("first").await?;
///
/// drop(receiver);
/// assert!(matches!(sender.put("second").await, Err(PutError::Closed("second"))));
/// # Ok(()) }
/// ```
pub struct QueueReceiver<T> {
    core: Arc<Core>,
    end: Arc<OwnedFd>,
    item: PhantomData<fn() -> T>,
}

macro_rules! both_halves {
    ($name:ident, $which:ident) => {
        impl<T> $name<T> {
            pub(super) fn new(core: Arc<Core>, end: Arc<OwnedFd>) -> Self {
                Self {
                    core,
                    end,
                    item: PhantomData,
                }
            }

            /// How many items are in the queue at this moment.
            #[must_use]
            pub fn len(&self) -> usize {
                self.core.len()
            }

            /// Whether nothing is in the queue at this moment.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// Whether there is no room at this moment.
            #[must_use]
            pub fn is_full(&self) -> bool {
                self.capacity().is_some_and(|most| self.len() >= most.get())
            }

            /// How many items there is room for; nothing for a queue that only the memory limits.
            #[must_use]
            pub fn capacity(&self) -> Option<NonZeroUsize> {
                NonZeroUsize::new(self.core.limit() as usize)
            }

            /// Lets nothing in any more, see [`AsyncQueue::close`](super::AsyncQueue::close).
            pub fn close(&self) {
                self.core.close();
            }

            /// Whether nothing gets in any more.
            #[must_use]
            pub fn is_closed(&self) -> bool {
                self.core.is_closed()
            }

            /// Waits until every item that was put has been got and reported as done.
            ///
            /// When nobody can get any more, what is left is dropped with its descriptors. That counts as done
            /// then, as does what was got and not reported: nobody else would report it.
            ///
            /// # Errors
            ///
            /// Fails with [`CreatorGone`] when the process that made the queue has ended.
            ///
            /// # Cancel safety
            ///
            /// **Cancel safe:** a dropped wait changes nothing.
            pub async fn join(&self) -> Result<(), CreatorGone> {
                self.core.join().await.map_err(|_| CreatorGone)
            }
        }

        impl<T> Clone for $name<T> {
            fn clone(&self) -> Self {
                Self::new(Arc::clone(&self.core), Arc::clone(&self.end))
            }
        }

        impl<T> fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                super::describe(stringify!($name), &self.core, f)
            }
        }

        impl<T> Serialize for $name<T> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                (Shared(self.core.object()), End(Arc::clone(&self.end))).serialize(serializer)
            }
        }

        impl<'de, T> Deserialize<'de> for $name<T> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let (Received(object), ReceivedEnd(end)) = Deserialize::deserialize(deserializer)?;
                let core = Core::of(object).map_err(D::Error::custom)?;
                let end = keep(&core, $which, end);
                Ok(Self::new(core, end))
            }
        }
    };
}

both_halves!(QueueSender, PUT);
both_halves!(QueueReceiver, GET);

impl<T: Serialize> QueueSender<T> {
    /// Puts an item into the queue, waiting until there is room.
    ///
    /// # Errors
    ///
    /// The item comes back, see [`AsyncQueue::put`](super::AsyncQueue::put).
    ///
    /// # Panics
    ///
    /// When it has to wait outside a tokio runtime with I/O enabled.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe:** the item of a dropped future was not put. To keep it, make it a clone.
    pub async fn put(&self, item: T) -> Result<(), PutError<T>> {
        super::put(&self.core, item).await
    }

    /// Puts an item if there is room now.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put), and [`PutError::Full`].
    pub fn try_put(&self, item: T) -> Result<(), PutError<T>> {
        super::try_put(&self.core, item)
    }

    /// Puts an item, with the thread asleep until there is room.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    ///
    /// # Panics
    ///
    /// When called from asynchronous code.
    pub fn blocking_put(&self, item: T) -> Result<(), PutError<T>> {
        super::blocking_put(&self.core, item)
    }
}

impl<T> QueueReceiver<T> {
    /// Reports that an item that was got is done with, see
    /// [`AsyncQueue::task_done`](super::AsyncQueue::task_done).
    ///
    /// # Errors
    ///
    /// [`TaskDoneError::TooMany`] when every item that was got has been reported already.
    pub fn task_done(&self) -> Result<(), TaskDoneError> {
        super::task_done(&self.core)
    }
}

impl<T: DeserializeOwned> QueueReceiver<T> {
    /// Gets the first item, waiting until there is one.
    ///
    /// # Errors
    ///
    /// [`GetError::Closed`] when there is nothing and nobody can put any more; for the others see
    /// [`AsyncQueue::get`](super::AsyncQueue::get).
    ///
    /// # Panics
    ///
    /// When it has to wait outside a tokio runtime with I/O enabled.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe:** a dropped future takes no item along.
    pub async fn get(&self) -> Result<T, GetError> {
        super::get(&self.core).await
    }

    /// Gets the first item if there is one now, see
    /// [`AsyncQueue::try_get`](super::AsyncQueue::try_get).
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get), and [`GetError::Empty`].
    pub fn try_get(&self) -> Result<T, GetError> {
        super::try_get(&self.core)
    }

    /// Gets the first item, with the thread asleep until there is one.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    ///
    /// # Panics
    ///
    /// When called from asynchronous code.
    pub fn blocking_get(&self) -> Result<T, GetError> {
        super::blocking_get(&self.core)
    }

    /// Gets the first item with a lease, see
    /// [`AsyncQueue::get_leased`](super::AsyncQueue::get_leased).
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get), and [`GetError::NoLeases`] for a queue that was made without.
    ///
    /// # Panics
    ///
    /// When it has to wait outside a tokio runtime with I/O enabled.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe:** a dropped future takes no item along.
    pub async fn get_leased(&self) -> Result<Lease<T>, GetError> {
        super::get_leased(&self.core).await
    }

    /// The items as a stream.
    pub fn into_stream(self) -> QueueStream<T>
    where
        T: Send + 'static,
    {
        QueueStream::new(self)
    }
}
