//! A thread asleep on a word, see [futex(2)](https://man7.org/linux/man-pages/man2/futex.2.html).
//!
//! The words lie in memory that several processes share, so the private form is of no use here.

use std::sync::atomic::AtomicU32;

/// Sleeps until somebody wakes the word, unless it does not hold `expected` (any more).
///
/// Comes back for no reason at times: whoever calls looks again.
pub(crate) fn wait(word: &AtomicU32, expected: u32) {
    let no_timeout: *const libc::timespec = std::ptr::null();
    // SAFETY: the word is aligned and alive while the call lasts; a null timeout means none.
    let _ = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT,
            expected,
            no_timeout,
        )
    };
}

/// Wakes every thread that sleeps on the word.
pub(crate) fn wake(word: &AtomicU32) {
    // SAFETY: only the address counts, and nothing is read or written there.
    let _ = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}
