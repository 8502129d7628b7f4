//! An item that comes back unless it is reported as done.

use std::fmt;
use std::ops::Deref;

use super::core::Leased;

/// An item got by [`get_leased`](super::AsyncQueue::get_leased).
///
/// Call [`done`](Self::done) when it is done with. If the lease is dropped instead, or the process
/// dies, somebody else gets the item, before all others that wait in the queue. A lease that is
/// forgotten ([`mem::forget`](std::mem::forget)) lasts as long as its process, and so long the queue
/// does not end and nobody's [`join`](super::AsyncQueue::join) does.
///
/// # Process death
///
/// See above: that is what it is for. An item can so be delivered more than once, to one after the
/// other.
#[must_use = "dropping the lease gives the item back"]
pub struct Lease<T> {
    item: T,
    leased: Leased,
}

impl<T> Lease<T> {
    pub(super) fn new(item: T, leased: Leased) -> Self {
        Self { item, leased }
    }

    /// The item is done with: it will not come again. This is also its `task_done`.
    pub fn done(self) -> T {
        // Fails only where memory that was used cannot be mapped any more, or the creator is gone:
        // then nothing comes again.
        let _ = self.leased.done();
        self.item
    }
}

impl<T> Deref for Lease<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.item
    }
}

impl<T: fmt::Debug> fmt::Debug for Lease<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lease").field(&self.item).finish()
    }
}
