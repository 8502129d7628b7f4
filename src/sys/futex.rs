//! A thread asleep on a word, see [futex(2)](https://man7.org/linux/man-pages/man2/futex.2.html).
//!
//! The words lie in memory that several processes share, so the private form is of no use here.

use std::ptr;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Sleeps until somebody wakes the word, unless it does not hold `expected` (any more).
///
/// Comes back for no reason at times: whoever calls looks again.
pub(crate) fn wait(word: &AtomicU32, expected: u32) {
    wait_for(word, expected, None);
}

/// The same for so long at most, if there is a limit.
pub(crate) fn wait_for(word: &AtomicU32, expected: u32, most: Option<Duration>) {
    let most = most.map(|most| libc::timespec {
        tv_sec: most.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: most.subsec_nanos().into(),
    });
    let timeout: *const libc::timespec = most.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: the word is aligned and alive while the call lasts, and so is the timeout; a null one
    // means none.
    let _ = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT,
            expected,
            timeout,
        )
    };
}

/// Wakes every thread that sleeps on the word.
pub(crate) fn wake(word: &AtomicU32) {
    // SAFETY: only the address counts, and nothing is read or written there.
    let _ = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}
