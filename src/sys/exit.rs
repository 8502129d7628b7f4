//! Leaving the process, see [exit(3)](https://man7.org/linux/man-pages/man3/exit.3.html).

use std::io::Write;

/// Writes out what Rust's and C's buffered streams still hold.
pub(crate) fn flush_streams() {
    // Closed or full streams are the program's own affair.
    let _ = std::io::stdout().flush();
    // SAFETY: a null stream means all of them; the C library takes its own locks.
    unsafe { libc::fflush(std::ptr::null_mut()) };
}

/// Ends the process at once, without exit handlers.
pub(crate) fn immediately(code: i32) -> ! {
    // SAFETY: takes a number and does not return; no destructor or handler runs.
    unsafe { libc::_exit(code) }
}
