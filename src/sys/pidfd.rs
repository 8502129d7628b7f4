//! A process by descriptor, see [pidfd_open(2)](https://man7.org/linux/man-pages/man2/pidfd_open.2.html).
//!
//! A pidfd names one process for ever: it can be signalled, waited for and reaped through it
//! without the danger that the number has been given to another process meanwhile.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;

/// A descriptor that is readable once its process has ended.
#[derive(Debug)]
pub(crate) struct Pidfd(OwnedFd);

/// What the kernel says of a process' end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It runs.
    No,
    /// It left with this code.
    Exited(i32),
    /// A signal ended it.
    Signaled {
        /// The signal's number.
        signal: i32,
        /// Whether a core was dumped.
        core_dumped: bool,
    },
    /// It is gone, and somebody else has taken its status.
    Unknown,
}

/// Whether a look at the status also takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reap {
    /// Leave the zombie, which pins the numbers of the process and its group.
    No,
    /// Take the status; the number may be given away afterwards.
    Yes,
}

impl Pidfd {
    /// The process that has the number `pid` now.
    pub(crate) fn open(pid: u32) -> io::Result<Self> {
        // SAFETY: takes two numbers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = Errno::result(fd)?;
        let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel has just opened `fd` (closed on exec) and nobody else knows of it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The same; nothing if there is no process with that number, or a thread has it by now.
    pub(crate) fn of_living(pid: u32) -> io::Result<Option<Self>> {
        match Self::open(pid) {
            Ok(pidfd) => Ok(Some(pidfd)),
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ESRCH | Errno::EINVAL | Errno::ENOENT) => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Sends `signal`. A process that has ended already is no error.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<()> {
        let fd = self.0.as_raw_fd();
        let no_info: *const libc::siginfo_t = ptr::null();
        // SAFETY: takes numbers and a null pointer, which means no info.
        let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, no_info, 0) };
        match Errno::result(result) {
            Ok(_) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Looks how the process, a child of this one, has ended; nothing if somebody else has taken
    /// its status, or if `SIGCHLD` is ignored.
    pub(crate) fn wait(&self, reap: Reap) -> Option<Ended> {
        wait(libc::P_PIDFD, self.0.as_raw_fd().cast_unsigned(), reap)
    }

    /// Waits for the end of the process, a child of this one that is about to end, and takes its
    /// status.
    pub(crate) fn wait_until_reaped(&self) {
        let options = libc::WEXITED | libc::__WALL;
        let fd = self.0.as_raw_fd().cast_unsigned();
        loop {
            // SAFETY: takes numbers and a null pointer, which means that the status is not wanted.
            let result = unsafe { libc::waitid(libc::P_PIDFD, fd, ptr::null_mut(), options) };
            match Errno::result(result) {
                Err(Errno::EINTR) => (),
                // Done, or somebody else has done it.
                _ => return,
            }
        }
    }

    /// Asks the pidfd itself, which knows the status of a reaped process since Linux 6.15.
    pub(crate) fn status_after_reaping(&self) -> Ended {
        const PIDFD_INFO_EXIT: u64 = 1 << 3;
        let mut info = PidfdInfo {
            mask: PIDFD_INFO_EXIT,
            ..PidfdInfo::default()
        };
        // SAFETY: the request encodes the size of `info`, which is writable and alive.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
        if Errno::result(result).is_err() || info.mask & PIDFD_INFO_EXIT == 0 {
            return Ended::Unknown;
        }
        let code = info.exit_code;
        match code & 0x7f {
            0 => Ended::Exited(code >> 8 & 0xff),
            signal => Ended::Signaled {
                signal,
                core_dumped: code & 0x80 != 0,
            },
        }
    }
}

/// As [`Pidfd::wait`], for a child for whose pidfd there is no room. Its number is its own until it
/// is reaped.
pub(crate) fn wait_by_number(pid: u32, reap: Reap) -> Option<Ended> {
    wait(libc::P_PID, pid, reap)
}

fn wait(kind: libc::idtype_t, id: u32, reap: Reap) -> Option<Ended> {
    let look = if reap == Reap::No { libc::WNOWAIT } else { 0 };
    let options = libc::WEXITED | libc::WNOHANG | libc::__WALL | look;
    // SAFETY: `siginfo_t` is plain data, for which zeros are a value.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    loop {
        // SAFETY: `info` is writable and lives until the call returns.
        let result = unsafe { libc::waitid(kind, id, &raw mut info, options) };
        match Errno::result(result) {
            Ok(_) => break,
            Err(Errno::EINTR) => (),
            Err(_) => return None,
        }
    }
    // SAFETY: a successful `waitid` fills the fields of SIGCHLD, or leaves them zero.
    let pid = unsafe { info.si_pid() };
    // SAFETY: as above.
    let status = unsafe { info.si_status() };
    Some(match (pid, info.si_code) {
        (0, _) => Ended::No,
        (_, libc::CLD_EXITED) => Ended::Exited(status),
        (_, code) => Ended::Signaled {
            signal: status,
            core_dumped: code == libc::CLD_DUMPED,
        },
    })
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Pidfd {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

/// `struct pidfd_info` of `linux/pidfd.h`, first version (64 bytes).
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup_id: u64,
    ids: [u32; 11],
    exit_code: i32,
}

/// `_IOWR(0xFF, 11, struct pidfd_info)`.
const PIDFD_GET_INFO: libc::Ioctl =
    (3 << 30 | (size_of::<PidfdInfo>() as u64) << 16 | 0xff << 8 | 11) as libc::Ioctl;
