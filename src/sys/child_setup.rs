//! What a new child does to itself before any user code runs.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// The descriptor at which a child finds its control socket.
const CONTROL: RawFd = 0;

/// Closes every descriptor above the standard three.
///
/// Only for a child that is just being taken over, in which nothing owns a descriptor yet.
pub(crate) fn close_leaked() {
    // SAFETY: takes numbers; nobody owns what is closed, as said above.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
    if Errno::result(result).is_ok() {
        return;
    }
    // ENOSYS, EPERM: an old kernel or a strict filter; the long way is the same.
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let open: Vec<RawFd> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in open {
        // SAFETY: as above; a number that is closed already gives an error and nothing else.
        unsafe { libc::close(fd) };
    }
}

/// Opens `/dev/null` at each of the standard three that is closed.
pub(crate) fn open_standard_fds() {
    for fd in 0..=2 {
        // SAFETY: takes numbers and looks only.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        if flags == -1 {
            // The lowest free number is taken, which is `fd`, as all below are open.
            if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
                let _ = null.into_raw_fd();
            }
        }
    }
}

/// Takes the control socket that a child finds as descriptor 0. It stays open there as well, until
/// the child's stdin takes its place.
pub(crate) fn take_control() -> io::Result<OwnedFd> {
    copy_standard(CONTROL)
}

/// Makes `socket` the control socket of a copy of a fork server: descriptor 0.
pub(crate) fn put_control(socket: OwnedFd) -> io::Result<()> {
    replace(CONTROL, socket)
}

/// Makes `fd` one of the standard three.
pub(crate) fn replace_standard(number: RawFd, fd: OwnedFd) -> io::Result<()> {
    assert!(
        (0..=2).contains(&number),
        "{number} is no standard descriptor"
    );
    replace(number, fd)
}

fn replace(number: RawFd, fd: OwnedFd) -> io::Result<()> {
    if fd.as_raw_fd() == number {
        // It is where it belongs; it only must stay open across an exec.
        let flags = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty());
        nix::fcntl::fcntl(&fd, flags)?;
        let _ = fd.into_raw_fd();
        return Ok(());
    }
    loop {
        // SAFETY: takes numbers; 0 to 2 are owned by no Rust object, and whoever uses them means
        // whatever is open there.
        let result = unsafe { libc::dup2(fd.as_raw_fd(), number) };
        match Errno::result(result) {
            Err(Errno::EINTR | Errno::EBUSY) => (),
            result => return Ok(result.map(drop)?),
        }
    }
}

/// Copies one of the application's standard three, to be passed on.
pub(crate) fn copy_standard(number: RawFd) -> io::Result<OwnedFd> {
    assert!(
        (0..=2).contains(&number),
        "{number} is no standard descriptor"
    );
    // SAFETY: takes numbers; a closed number is an error.
    let fd = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just made `fd`, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether descriptor 0 is a Unix socket whose peer runs as our user.
pub(crate) fn control_is_ours() -> bool {
    super::socket::is_ours(io::stdin().as_fd())
}

/// Makes this process the leader of a new process group.
pub(crate) fn lead_group() {
    // EPERM: it leads a session, and thereby its group, already.
    let _ = nix::unistd::setpgid(nix::unistd::Pid::from_raw(0), nix::unistd::Pid::from_raw(0));
}

/// Names the calling thread for `ps` and `top`; the first thread's name is the process'.
pub(crate) fn set_name(name: &str) {
    let name: Vec<u8> = name.bytes().filter(|byte| *byte != 0).take(15).collect();
    let name = std::ffi::CString::new(name).expect("zeros were filtered out");
    let _ = nix::sys::prctl::set_name(&name);
}

/// The working directory as a descriptor, which works whatever its name is by now.
pub(crate) fn working_directory() -> io::Result<OwnedFd> {
    let flags =
        nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC;
    Ok(nix::fcntl::open(".", flags, nix::sys::stat::Mode::empty())?)
}

/// Goes to the directory `fd`.
pub(crate) fn go_to_directory(fd: OwnedFd) -> io::Result<()> {
    Ok(nix::unistd::fchdir(fd)?)
}

/// The number of this process' parent.
pub(crate) fn parent() -> u32 {
    nix::unistd::getppid().as_raw().cast_unsigned()
}

/// Tells the kernel not to grant more rights at any exec from now on.
pub(crate) fn no_new_privileges() -> io::Result<()> {
    Ok(nix::sys::prctl::set_no_new_privs()?)
}
