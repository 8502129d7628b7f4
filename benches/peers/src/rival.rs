//! The process on the other side.
//!
//! It is a fork of this one, made while there is one thread and no runtime: all channels here can
//! be given to a child that way, so none of them pays for how its ends travel.

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::kernel;

/// Where the two processes run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Both on one core: what is measured is the work.
    OneCore,
    /// Wherever the kernel puts them: what is measured is mostly waking an idle core.
    Anywhere,
}

impl Place {
    /// Goes there; children follow.
    pub(crate) fn take(self) {
        if self == Self::OneCore {
            let mut first = CpuSet::new();
            first.set(0).expect("a first core");
            sched_setaffinity(Pid::from_raw(0), &first).expect("an affinity");
        }
    }
}

/// A process that runs `body` and ends, at the latest when it is dropped or this process ends.
pub(crate) struct Rival(libc::pid_t);

impl Rival {
    /// Starts it.
    pub(crate) fn start(body: impl FnOnce()) -> Self {
        Self(kernel::fork(|| {
            kernel::die_with_parent();
            body();
        }))
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        kernel::kill(self.0);
        kernel::reap(self.0);
    }
}
