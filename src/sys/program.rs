//! Running a program's file in a child, see [execve(2)](https://man7.org/linux/man-pages/man2/execve.2.html).
//!
//! As `posix_spawn` does, by a child that borrows this process' memory until its `exec`, so that
//! the price does not depend on this process' size. The C library's call resets every signal's
//! action in the child first, some 120 calls of the kernel, since it cannot know that none will
//! come; here all are blocked and stay so, and whoever takes the child over lets them through. And
//! the kernel hands over the pidfd with the number, so nobody can reap the child in between.

use std::ffi::{CString, OsString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

use super::pidfd::Pidfd;

/// A program's file, its arguments and its environment.
#[derive(Debug)]
pub(crate) struct Program {
    file: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Program {
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] for a NUL in any of it.
    pub(crate) fn new(
        file: &str,
        arguments: impl IntoIterator<Item = OsString>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> io::Result<Self> {
        let arguments = arguments.into_iter().map(OsString::into_vec);
        let variables = environment.into_iter().map(|(name, value)| {
            // With room for the NUL, so that it is not moved once more.
            let mut variable = Vec::with_capacity(name.len() + value.len() + 2);
            variable.extend_from_slice(name.as_bytes());
            variable.push(b'=');
            variable.extend_from_slice(value.as_bytes());
            variable
        });
        Ok(Self {
            file: CString::new(file)?,
            arguments: arguments.map(CString::new).collect::<Result<_, _>>()?,
            environment: variables.map(CString::new).collect::<Result<_, _>>()?,
        })
    }

    /// Runs it in a child that leads a process group of its own, has `stdin` as descriptor 0 and
    /// blocks every signal. What is not closed on exec it inherits.
    ///
    /// # Errors
    ///
    /// What the kernel says of the copy or the `exec`; there is no child then.
    pub(crate) fn start(&self, stdin: impl AsFd) -> io::Result<(u32, Pidfd)> {
        let arguments = pointers(&self.arguments);
        let environment = pointers(&self.environment);
        let plan = Plan {
            file: self.file.as_ptr(),
            arguments: arguments.as_ptr(),
            environment: environment.as_ptr(),
            stdin: stdin.as_fd().as_raw_fd(),
            errno: AtomicI32::new(0),
        };
        let mut stack: Vec<u128> = Vec::with_capacity(STACK_LEN / size_of::<u128>());
        let stack_end = stack.spare_capacity_mut().as_mut_ptr_range().end;
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
        let mut pidfd: RawFd = -1;
        let mut mask = SigSet::empty();
        pthread_sigmask(
            SigmaskHow::SIG_SETMASK,
            Some(&SigSet::all()),
            Some(&mut mask),
        )?;
        // SAFETY: the stack ends at an address that is aligned for any type and is used by the child
        // alone; this thread sleeps (CLONE_VFORK) until the child has left this memory, so `plan`
        // and the stack outlive their use and nobody else touches this thread's errno; the child
        // blocks every signal, so no handler runs in it. The kernel writes a descriptor to `pidfd`.
        let pid = unsafe {
            libc::clone(
                become_program,
                stack_end.cast(),
                flags,
                (&raw const plan).cast_mut().cast(),
                &raw mut pidfd,
            )
        };
        let pid = Errno::result(pid);
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
        let pid = pid?.cast_unsigned();
        // SAFETY: the kernel has just opened `pidfd` (closed on exec); nobody else knows of it.
        let pidfd = Pidfd::from(unsafe { OwnedFd::from_raw_fd(pidfd) });
        match plan.errno.load(Relaxed) {
            0 => Ok((pid, pidfd)),
            errno => {
                pidfd.wait_until_reaped();
                Err(io::Error::from_raw_os_error(errno))
            }
        }
    }
}

/// What the child needs; a `Program` as the kernel wants it.
struct Plan {
    file: *const c_char,
    /// Ends with a null pointer, as the next.
    arguments: *const *const c_char,
    environment: *const *const c_char,
    stdin: RawFd,
    /// Why the child could not become the program.
    errno: AtomicI32,
}

/// Bytes of the child's stack, which a handful of calls of the kernel use.
const STACK_LEN: usize = 32 << 10;

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    let pointers = strings.iter().map(|string| string.as_ptr());
    pointers.chain([ptr::null()]).collect()
}

/// The child's whole life in its parent's memory. Only calls of the kernel are allowed here.
extern "C" fn become_program(plan: *mut c_void) -> c_int {
    // SAFETY: it is the plan of `start`, which waits.
    let plan = unsafe { &*plan.cast::<Plan>() };
    // SAFETY: takes numbers; a new child leads no session, so it cannot fail.
    unsafe { libc::setpgid(0, 0) };
    let placed = if plan.stdin == libc::STDIN_FILENO {
        // SAFETY: takes numbers; the child's table of descriptors is its own.
        unsafe { libc::fcntl(plan.stdin, libc::F_SETFD, 0) }
    } else {
        // SAFETY: as above.
        unsafe { libc::dup2(plan.stdin, libc::STDIN_FILENO) }
    };
    if placed != -1 {
        // SAFETY: a path and two arrays that end with a null pointer, all of which outlive the call.
        unsafe { libc::execve(plan.file, plan.arguments, plan.environment) };
    }
    plan.errno.store(Errno::last_raw(), Relaxed);
    // SAFETY: takes a number; nothing of the parent's is run or flushed.
    unsafe { libc::_exit(127) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::sys::pidfd::{Ended, Reap};

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn a_program_gets_its_arguments_and_environment_and_leads_a_group() {
        let script = r#"test "$1$WORD" = "a b=c" && test "$(ps -o pgid= -p $$ | tr -d ' ')" = $$"#;
        let arguments = ["sh", "-c", script, "sh", "a b"].map(OsString::from);
        let path = std::env::var_os("PATH").unwrap();
        let environment = [("WORD".into(), "=c".into()), ("PATH".into(), path)];
        let program = Program::new("/bin/sh", arguments, environment).unwrap();

        let (_, pidfd) = program.start(null()).unwrap();

        let mut fds = [nix::poll::PollFd::new(
            pidfd.as_fd(),
            nix::poll::PollFlags::POLLIN,
        )];
        nix::poll::poll(&mut fds, nix::poll::PollTimeout::NONE).unwrap();
        assert_eq!(pidfd.wait(Reap::Yes), Some(Ended::Exited(0)));
    }

    #[test]
    fn a_file_that_cannot_be_executed_is_an_error_and_leaves_no_child() {
        let program = Program::new("/dev/null", [], []).unwrap();

        let error = program.start(null()).unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(SigSet::thread_get_mask().unwrap() != SigSet::all());
    }

    #[test]
    fn a_nul_is_invalid_input() {
        let error = Program::new("/bin/true", ["a\0b".into()], []).unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
