//! Copying a process: [fork(2)](https://man7.org/linux/man-pages/man2/fork.2.html), and
//! [clone(2)](https://man7.org/linux/man-pages/man2/clone.2.html) for a sibling.
//!
//! A fork server makes its children with `CLONE_PARENT`, so that they are the application's own.
//! It uses the legacy call, because Docker's seccomp profile blocks `clone3`. glibc knows nothing of
//! such a call; what it caches of the thread must be put right in the copy: the thread id, which
//! the kernel writes to the place that it was given at the thread's creation, and the list of
//! robust mutexes, which is registered anew.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;

use super::pidfd::Pidfd;
use super::tasks;

/// Which of the two processes a call comes back in.
#[derive(Debug)]
pub(crate) enum Side<P> {
    /// The process that asked.
    Parent(P),
    /// The copy.
    Child,
}

/// Makes a copy of this single-threaded process that is a child of this process' parent.
///
/// Handlers of `pthread_atfork` do not run.
///
/// # Errors
///
/// [`io::ErrorKind::ResourceBusy`] when the process has other threads.
pub(crate) fn sibling() -> io::Result<Side<(u32, Pidfd)>> {
    if tasks::count()? != 1 {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    const PR_GET_TID_ADDRESS: libc::c_int = 40;
    let mut tid_address: *mut libc::c_int = ptr::null_mut();
    // SAFETY: the kernel writes one pointer to `tid_address`.
    let result = unsafe { libc::prctl(PR_GET_TID_ADDRESS, &raw mut tid_address) };
    Errno::result(result)?;
    let robust_list = RobustList::of_this_thread()?;

    let flags = libc::CLONE_PARENT
        | libc::CLONE_PIDFD
        | libc::CLONE_CHILD_SETTID
        | libc::CLONE_CHILD_CLEARTID
        | libc::SIGCHLD;
    let mut pidfd: RawFd = -1;
    let no_stack: *mut libc::c_void = ptr::null_mut();
    let no_tls: *mut libc::c_void = ptr::null_mut();
    #[cfg(target_arch = "x86_64")]
    // SAFETY: no stack means a copy of this one; the process has one thread, as just checked, so
    // no lock of the C library is held by a thread that the copy lacks; `tid_address` is where the
    // C library keeps this thread's id.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            flags,
            no_stack,
            &raw mut pidfd,
            tid_address,
            no_tls,
        )
    };
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: as above; the last two arguments are swapped on other architectures.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            flags,
            no_stack,
            &raw mut pidfd,
            no_tls,
            tid_address,
        )
    };
    match Errno::result(pid)? {
        0 => {
            robust_list.register()?;
            Ok(Side::Child)
        }
        pid => {
            // SAFETY: the kernel has just opened `pidfd` (closed on exec); nobody else knows of it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Side::Parent((
                u32::try_from(pid).map_err(io::Error::other)?,
                pidfd.into(),
            )))
        }
    }
}

/// Copies this process by the C library's `fork`.
///
/// If the process has other threads, the child may do only what is safe in a signal handler until
/// it ends, or must know that no other thread held a lock that it needs. This is the contract of
/// the public `unsafe fn`s, the only way here, to which their callers have agreed.
pub(crate) fn fork() -> io::Result<Side<u32>> {
    // SAFETY: the caller of the public `unsafe fn` answers for what the child does.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => {
            Ok(Side::Parent(child.as_raw().cast_unsigned()))
        }
        nix::unistd::ForkResult::Child => Ok(Side::Child),
    }
}

/// Where the kernel finds the robust mutexes that a thread holds.
struct RobustList {
    head: *mut *mut libc::c_void,
    len: libc::size_t,
}

impl RobustList {
    fn of_this_thread() -> io::Result<Self> {
        let mut list = Self {
            head: ptr::null_mut(),
            len: 0,
        };
        // SAFETY: 0 is the calling thread; the kernel writes one pointer and one size.
        let result = unsafe {
            libc::syscall(
                libc::SYS_get_robust_list,
                0,
                &raw mut list.head,
                &raw mut list.len,
            )
        };
        Errno::result(result)?;
        Ok(list)
    }

    /// Empties the list in the copy, which holds no mutex of its original, and tells the kernel.
    fn register(&self) -> io::Result<()> {
        if self.head.is_null() {
            return Ok(());
        }
        // SAFETY: the first word of the head is the link, which points at the head of an empty
        // list; the C library keeps the head in the thread's descriptor, which the copy has too.
        unsafe { self.head.write(self.head.cast()) };
        // SAFETY: the head is valid for as long as the thread lives.
        let result = unsafe { libc::syscall(libc::SYS_set_robust_list, self.head, self.len) };
        Errno::result(result)?;
        Ok(())
    }
}
