//! The items of a queue as a stream.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use futures::{StreamExt, stream};
use serde::de::DeserializeOwned;

use super::QueueReceiver;
use crate::error::GetError;

/// The items of a queue; it ends when the queue is closed and everything has been got.
///
/// An item that cannot be decoded is an error and the stream goes on; after any other error it ends.
/// After its end it stays at its end.
/// Dropping it loses no item.
///
/// # Examples
///
/// ```
/// use futures::TryStreamExt;
/// use tokio_multiprocess::AsyncQueue;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let queue = AsyncQueue::unbounded()?;
/// queue.put(1).await?;
/// queue.put(2).await?;
///
/// let items: Vec<i32> = queue.into_stream().try_collect().await?;
/// assert_eq!(items, [1, 2]);
/// # Ok(()) }
/// ```
#[must_use = "streams do nothing unless polled"]
pub struct QueueStream<T> {
    items: Pin<Box<dyn Stream<Item = Result<T, GetError>> + Send>>,
}

impl<T: DeserializeOwned + Send + 'static> QueueStream<T> {
    pub(super) fn new(receiver: QueueReceiver<T>) -> Self {
        let items = stream::unfold(Some(receiver), |receiver| async move {
            let receiver = receiver?;
            match receiver.get().await {
                Err(GetError::Closed) => None,
                Err(error @ GetError::Decode(_)) => Some((Err(error), Some(receiver))),
                Err(error) => Some((Err(error), None)),
                Ok(item) => Some((Ok(item), Some(receiver))),
            }
        });
        Self {
            items: Box::pin(items.fuse()),
        }
    }
}

impl<T> Stream for QueueStream<T> {
    type Item = Result<T, GetError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.items.as_mut().poll_next(cx)
    }
}

impl<T> fmt::Debug for QueueStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueStream").finish_non_exhaustive()
    }
}
