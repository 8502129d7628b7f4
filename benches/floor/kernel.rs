//! System calls, with nothing around them. What fails ends the measurement.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// A connected pair of sockets of the given kind.
pub(crate) fn socket_pair(kind: libc::c_int) -> (OwnedFd, OwnedFd) {
    let mut fds = [-1; 2];
    // SAFETY: `fds` has room for the two numbers that the call writes.
    let returned = unsafe {
        libc::socketpair(
            libc::AF_UNIX,
            kind | libc::SOCK_CLOEXEC,
            0,
            fds.as_mut_ptr(),
        )
    };
    check(returned, "socketpair");
    (own(fds[0]), own(fds[1]))
}

/// A pipe's end to read from, and its end to write to.
pub(crate) fn pipe() -> (OwnedFd, OwnedFd) {
    let mut fds = [-1; 2];
    // SAFETY: `fds` has room for the two numbers that the call writes.
    check(
        unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) },
        "pipe2",
    );
    (own(fds[0]), own(fds[1]))
}

/// Takes ownership of a number that the kernel has just handed out.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: callers pass numbers that a system call returned to them and to nobody else.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Reads once; 0 is the end of the stream.
pub(crate) fn read(fd: &OwnedFd, into: &mut [u8]) -> usize {
    let n = try_read(fd.as_raw_fd(), into);
    n.unwrap_or_else(|error| panic!("read: {error}"))
}

/// Reads once, and may be refused.
pub(crate) fn try_read(fd: RawFd, into: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of `into`.
    let n = unsafe { libc::read(fd, into.as_mut_ptr().cast(), into.len()) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Fills `into`.
pub(crate) fn read_exact(fd: &OwnedFd, into: &mut [u8]) {
    let mut filled = 0;
    while filled < into.len() {
        let n = read(fd, &mut into[filled..]);
        assert!(n > 0, "the other end is gone");
        filled += n;
    }
}

/// Writes once, and may be refused.
pub(crate) fn try_write(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of `bytes`.
    let n = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Writes all of `bytes`.
pub(crate) fn write_all(fd: &OwnedFd, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let n = try_write(fd.as_raw_fd(), bytes).unwrap_or_else(|error| panic!("write: {error}"));
        bytes = &bytes[n..];
    }
}

/// Makes `fd` refuse rather than wait.
pub(crate) fn set_nonblocking(fd: &OwnedFd) {
    // SAFETY: changes the flags of a descriptor that is open.
    check(
        unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) },
        "fcntl",
    );
}

/// Runs `body` in a copy of this process, which must have no other threads, and ends the copy.
pub(crate) fn fork(body: impl FnOnce()) -> libc::pid_t {
    // SAFETY: measurements that fork are single-threaded, so no lock is held by anybody else.
    let pid = check(unsafe { libc::fork() }, "fork");
    if pid == 0 {
        body();
        exit_now();
    }
    pid
}

/// A copy of this process whose parent is this process's parent, and the copy's pidfd.
///
/// `tid_address` is where libc keeps the thread's id; the kernel puts the copy's own id there.
/// Returns `None` in the copy.
pub(crate) fn clone_as_sibling(tid_address: *mut libc::c_void) -> Option<OwnedFd> {
    let flags = libc::CLONE_PARENT
        | libc::CLONE_PIDFD
        | libc::CLONE_CHILD_SETTID
        | libc::CLONE_CHILD_CLEARTID
        | libc::SIGCHLD;
    let mut pidfd: RawFd = -1;
    #[cfg(target_arch = "x86_64")]
    let (second_last, last) = (tid_address, ptr::null_mut::<libc::c_void>());
    #[cfg(target_arch = "aarch64")]
    let (second_last, last) = (ptr::null_mut::<libc::c_void>(), tid_address);
    // SAFETY: no memory is shared and no stack is given, so this is fork in a single-threaded
    // process; `pidfd` and `tid_address` are written while they are alive.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::c_long::from(flags),
            ptr::null_mut::<libc::c_void>(),
            &raw mut pidfd,
            second_last,
            last,
        )
    };
    assert!(pid >= 0, "clone: {}", io::Error::last_os_error());
    (pid != 0).then(|| own(pidfd))
}

/// Where libc keeps this thread's id.
pub(crate) fn tid_address() -> *mut libc::c_void {
    let mut address = ptr::null_mut::<libc::c_void>();
    // SAFETY: the kernel writes one pointer to `address`.
    let returned = unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut address) };
    check(returned, "prctl");
    address
}

/// Runs this program with `argument`, by vfork and exec.
pub(crate) fn vfork_exec(argument: &std::ffi::CStr) -> libc::pid_t {
    extern "C" fn exec(argv: *mut libc::c_void) -> libc::c_int {
        // SAFETY: `argv` is the array below, which outlives the call because vfork waits for exec.
        unsafe { libc::execv(c"/proc/self/exe".as_ptr(), argv.cast()) };
        exit_now()
    }
    let argv = [c"floor".as_ptr(), argument.as_ptr(), ptr::null()];
    let mut stack = [0_u128; 1024];
    let top = stack.as_mut_ptr_range().end;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the child runs on `stack`, of which it needs a few frames, and this thread sleeps
    // until the child has called exec; `argv` is alive until then.
    let pid = unsafe { libc::clone(exec, top.cast(), flags, argv.as_ptr().cast_mut().cast()) };
    check(pid, "clone")
}

/// Waits for the end of a child by its number.
pub(crate) fn reap(pid: libc::pid_t) {
    // SAFETY: no status is asked for.
    check(unsafe { libc::waitpid(pid, ptr::null_mut(), 0) }, "waitpid");
}

/// Waits for the end of a child by its pidfd.
pub(crate) fn reap_pidfd(pidfd: &OwnedFd) {
    // SAFETY: the null pointer says that no details are asked for.
    let returned = unsafe {
        libc::waitid(
            libc::P_PIDFD,
            pidfd.as_raw_fd() as u32,
            ptr::null_mut(),
            libc::WEXITED,
        )
    };
    check(returned, "waitid");
}

/// A pidfd for a child of this process.
pub(crate) fn pidfd_open(pid: libc::pid_t) -> OwnedFd {
    // SAFETY: takes two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    assert!(fd >= 0, "pidfd_open: {}", io::Error::last_os_error());
    own(fd as RawFd)
}

/// Sends SIGKILL to a child of this process that is not reaped.
pub(crate) fn kill(pid: libc::pid_t) {
    // SAFETY: takes two numbers.
    check(unsafe { libc::kill(pid, libc::SIGKILL) }, "kill");
}

/// Asks the kernel to end this process when the thread that created it ends.
pub(crate) fn die_with_parent() {
    // SAFETY: takes two numbers.
    check(
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) },
        "prctl",
    );
}

/// Makes this process the leader of a group of its own.
pub(crate) fn lead_group() {
    // SAFETY: takes two numbers.
    check(unsafe { libc::setpgid(0, 0) }, "setpgid");
}

/// Ends this process without a word.
pub(crate) fn exit_now() -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(0) }
}

/// A new epoll that tells when one of `fds` is readable, by its place in the list.
pub(crate) fn epoll_of(fds: &[&OwnedFd]) -> OwnedFd {
    // SAFETY: takes a number.
    let epoll = own(check(
        unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) },
        "epoll_create1",
    ));
    for (u64, fd) in (0..).zip(fds) {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64,
        };
        let (epoll, fd) = (epoll.as_raw_fd(), fd.as_raw_fd());
        // SAFETY: `event` is read during the call only.
        let returned = unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event) };
        check(returned, "epoll_ctl");
    }
    epoll
}

/// Waits until one of the descriptors of `epoll` is ready, and says which.
pub(crate) fn epoll_wait(epoll: &OwnedFd) -> u64 {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: there is room for the one event that is asked for.
    let returned = unsafe { libc::epoll_wait(epoll.as_raw_fd(), &raw mut event, 1, -1) };
    check(returned, "epoll_wait");
    event.u64
}

/// Sends one byte and one descriptor.
pub(crate) fn send_fd(socket: &OwnedFd, fd: &OwnedFd) {
    send_fds(socket, &[0], &[fd]);
}

/// Sends a few bytes and descriptors.
pub(crate) fn send_fds(socket: &OwnedFd, bytes: &[u8], fds: &[&OwnedFd]) {
    let fds: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let slices = [IoSlice::new(bytes)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    let sent = sendmsg::<()>(socket.as_raw_fd(), &slices, &rights, flags, None);
    assert_eq!(sent, Ok(bytes.len()), "sendmsg");
}

/// Receives what [`send_fd`] sent; `None` if the other end is gone.
pub(crate) fn receive_fd(socket: &OwnedFd) -> Option<OwnedFd> {
    receive_fds(socket, &mut [0])?.pop()
}

/// Receives what [`send_fds`] sent, at most three descriptors; `None` if the other end is gone.
pub(crate) fn receive_fds(socket: &OwnedFd, into: &mut [u8]) -> Option<Vec<OwnedFd>> {
    let mut bytes = [IoSliceMut::new(into)];
    let mut room = nix::cmsg_space!([RawFd; 3]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut bytes, Some(&mut room), flags);
    let received = received.unwrap_or_else(|error| panic!("recvmsg: {error}"));
    if received.bytes == 0 {
        return None;
    }
    match received.cmsgs().ok()?.next()? {
        ControlMessageOwned::ScmRights(fds) => Some(fds.into_iter().map(own).collect()),
        other => panic!("{other:?}"),
    }
}

/// Makes `fd` the descriptor `number`.
pub(crate) fn put(fd: OwnedFd, number: RawFd) {
    if fd.as_raw_fd() == number {
        return std::mem::forget(fd);
    }
    // SAFETY: takes two numbers; what `number` was before is nobody's here.
    check(unsafe { libc::dup2(fd.as_raw_fd(), number) }, "dup2");
}

/// Closes every descriptor from `first` on.
pub(crate) fn close_from(first: RawFd) {
    // SAFETY: takes numbers; the caller's descriptors lie below.
    let returned = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    assert_eq!(returned, 0, "close_range");
}

/// Names the calling thread.
pub(crate) fn set_name(name: &std::ffi::CStr) {
    // SAFETY: reads a string that lives until the call returns.
    check(
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) },
        "prctl",
    );
}

fn check(returned: libc::c_int, what: &str) -> libc::c_int {
    assert!(returned >= 0, "{what}: {}", io::Error::last_os_error());
    returned
}
