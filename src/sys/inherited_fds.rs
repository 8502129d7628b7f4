//! Descriptors that a forked child has from its parent and must not keep.

use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Closes descriptors whose owners, copied from the parent, are never used or dropped again.
///
/// Only for a forked child, of the parts of its parent that it forgets.
pub(crate) fn close(fds: &[BorrowedFd<'_>]) {
    for fd in fds {
        // SAFETY: the number is open, and its owner is never used again, as said above.
        unsafe { libc::close(fd.as_raw_fd()) };
    }
}
