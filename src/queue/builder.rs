//! How a queue is made when there is more to choose than its capacity.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::num::NonZeroUsize;

use super::AsyncQueue;

/// Makes an [`AsyncQueue`].
///
/// # Examples
///
/// ```
/// use std::num::NonZeroUsize;
///
/// use tokio_multiprocess::AsyncQueue;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let queue = AsyncQueue::builder().capacity(NonZeroUsize::MIN).leases().build()?;
/// queue.put(7).await?;
///
/// drop(queue.get_leased().await?); // not done with: it comes again
/// let lease = queue.get_leased().await?;
/// assert_eq!(*lease, 7);
/// lease.done();
/// # Ok(()) }
/// ```
pub struct QueueBuilder<T> {
    capacity: Option<NonZeroUsize>,
    leases: bool,
    item: PhantomData<fn(T) -> T>,
}

impl<T> QueueBuilder<T> {
    pub(super) fn new() -> Self {
        Self {
            capacity: None,
            leases: false,
            item: PhantomData,
        }
    }

    /// How many items there is room for. Without it only the memory limits the queue.
    #[must_use]
    pub fn capacity(mut self, capacity: NonZeroUsize) -> Self {
        self.capacity = Some(capacity);
        self
    }

    /// Lets consumers [lease](AsyncQueue::get_leased) items, so that what they are not done with when
    /// they die is delivered again.
    ///
    /// An item that comes back is let in beyond the capacity, before all others.
    #[must_use]
    pub fn leases(mut self) -> Self {
        self.leases = true;
        self
    }

    /// Makes the queue. This process looks after it.
    ///
    /// # Errors
    ///
    /// Fails when the system has no memory or descriptors left.
    pub fn build(self) -> io::Result<AsyncQueue<T>> {
        /// Half of the positions, which are told apart by their distance.
        const MOST: usize = 1 << 34;
        let limit = self.capacity.map_or(0, |n| n.get().min(MOST));
        AsyncQueue::create(limit as u64, self.leases)
    }
}

impl<T> fmt::Debug for QueueBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueBuilder")
            .field("capacity", &self.capacity)
            .field("leases", &self.leases)
            .finish()
    }
}
