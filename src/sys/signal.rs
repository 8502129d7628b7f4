//! Signals of the calling process and thread, see [signal(7)](https://man7.org/linux/man-pages/man7/signal.7.html).

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal};
use nix::sys::signal::{kill, pthread_sigmask, sigaction};
use nix::unistd::Pid;

/// The signal that cannot be caught.
pub(crate) const KILL: i32 = Signal::SIGKILL as i32;
/// The polite request to end.
pub(crate) const TERMINATE: i32 = Signal::SIGTERM as i32;
/// What Ctrl-C sends.
pub(crate) const INTERRUPT: i32 = Signal::SIGINT as i32;

/// Blocks every signal in this thread, so that the application's handlers run on its own threads.
pub(crate) fn block_all() {
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)
        .expect("a full signal mask is valid");
}

/// Lets every signal through in this thread.
pub(crate) fn unblock_all() {
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
        .expect("an empty signal mask is valid");
}

/// Makes a write to a closed pipe an error instead of a death, as std does before `main`.
pub(crate) fn ignore_sigpipe() {
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: ignoring a signal installs no handler that could do something unsafe.
    unsafe { sigaction(Signal::SIGPIPE, &ignore) }.expect("SIGPIPE can be ignored");
}

/// Kills the child `pid` of this process, which must not have been reaped. One that has ended is no
/// error.
pub(crate) fn kill_child(pid: u32) {
    assert!(pid > 1, "no child of ours has the number {pid}");
    let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
}

/// Kills the process group `group`. A group that is gone is no error.
pub(crate) fn kill_group(group: u32) {
    // 0 would mean our own group and 1, negated, everybody.
    assert!(group > 1, "no process group of ours has the number {group}");
    let _ = kill(Pid::from_raw(-group.cast_signed()), Signal::SIGKILL);
}

/// Kills this process and, if it leads its group, all others in the group.
pub(crate) fn kill_own_group() -> ! {
    let own = Pid::this();
    if nix::unistd::getpgrp() == own {
        kill_group(own.as_raw().cast_unsigned());
    }
    let _ = kill(own, Signal::SIGKILL);
    unreachable!("a process has survived its own SIGKILL");
}

/// Asks the kernel to kill this process when the thread that created it ends.
pub(crate) fn die_with_parent() {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).expect("SIGKILL is a signal");
}
