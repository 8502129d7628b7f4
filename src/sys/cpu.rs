//! Which processor this is, see [getcpu(2)](https://man7.org/linux/man-pages/man2/getcpu.2.html), and
//! whether there are others, see
//! [sched_setaffinity(2)](https://man7.org/linux/man-pages/man2/sched_setaffinity.2.html).

use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

/// The processor that the thread runs on, or ran on a moment ago.
#[inline]
pub(crate) fn current() -> Option<usize> {
    sched_getcpu().ok()
}

/// Has the process' first thread run on the processor of this thread from now on.
///
/// For the thread that is about to end the process: the other, which sleeps, has to be woken in order
/// to end, and on an idle processor that takes longer than all else.
pub(crate) fn bring_first_thread_here() -> nix::Result<()> {
    let mut here = CpuSet::new();
    here.set(sched_getcpu()?)?;
    sched_setaffinity(Pid::this(), &here)
}

/// Whether the thread may run on more than one processor.
///
/// A share of the machine in a cgroup is not asked for, as that means reading some files: whoever has
/// less than one processor's time may still run on two.
pub(crate) fn has_others() -> bool {
    let mut mask = [0_u64; 128];
    // SAFETY: the kernel writes at most as many bytes as `mask` has.
    let len = unsafe {
        libc::syscall(
            libc::SYS_sched_getaffinity,
            0,
            size_of_val(&mask),
            mask.as_mut_ptr(),
        )
    };
    // It fails on machines with more than 8192 processors.
    len < 0 || mask.iter().map(|word| word.count_ones()).sum::<u32>() > 1
}
