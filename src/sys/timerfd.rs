//! A timer by descriptor, see [timerfd_create(2)](https://man7.org/linux/man-pages/man2/timerfd_create.2.html).

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;

/// A one-shot timer that is readable once its time has come.
#[derive(Debug)]
pub(crate) struct TimerFd(OwnedFd);

impl TimerFd {
    /// A timer that is not set, non-blocking and closed on exec.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
        // SAFETY: takes two numbers.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) };
        let fd = Errno::result(fd)?;
        // SAFETY: the kernel has just opened `fd` and nobody else knows of it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Sets it to go off once, `after` from now.
    pub(crate) fn set(&self, after: Duration) {
        // SAFETY: `itimerspec` is plain data, for which zeros are a value.
        let mut time: libc::itimerspec = unsafe { mem::zeroed() };
        time.it_value.tv_sec = libc::time_t::try_from(after.as_secs()).unwrap_or(libc::time_t::MAX);
        // At least one nanosecond: zero would switch the timer off.
        let nanos = if after.is_zero() {
            1
        } else {
            after.subsec_nanos()
        };
        time.it_value.tv_nsec = nanos.into();
        let old = std::ptr::null_mut();
        // SAFETY: `time` is readable and lives until the call returns; no old value is asked for.
        let result = unsafe { libc::timerfd_settime(self.0.as_raw_fd(), 0, &raw const time, old) };
        Errno::result(result).expect("a timerfd takes every time");
    }

    /// Switches it off.
    pub(crate) fn stop(&self) {
        // SAFETY: `itimerspec` is plain data, for which zeros are a value: the timer is off.
        let time: libc::itimerspec = unsafe { mem::zeroed() };
        let old = std::ptr::null_mut();
        // SAFETY: `time` is readable and lives until the call returns; no old value is asked for.
        let result = unsafe { libc::timerfd_settime(self.0.as_raw_fd(), 0, &raw const time, old) };
        Errno::result(result).expect("a timerfd can be switched off");
    }

    /// Takes the expiry, so that the timer is no longer readable.
    pub(crate) fn clear(&self) {
        // EAGAIN: it has not gone off, which is what is wanted.
        let _ = nix::unistd::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for TimerFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
