//! Which processor this is, see [getcpu(2)](https://man7.org/linux/man-pages/man2/getcpu.2.html).

/// The processor that the thread runs on, or ran on a moment ago.
#[inline]
pub(crate) fn current() -> Option<usize> {
    nix::sched::sched_getcpu().ok()
}
