//! A process with one thread that forks when it is asked to.
//!
//! Its children are children of the one who asks, who gets a pidfd and reaps them, as in ours. The
//! bare one's child writes eight bytes and is gone. The other one's child does what each of our
//! children must: it reads its argument from a control socket, dies with its parent, leads a
//! process group, watches the control socket on its main thread, and runs the user's code on a
//! thread of its own that answers through the control socket.

use std::fs::File;
use std::os::fd::{OwnedFd, RawFd};
use std::thread;

use super::kernel::{
    self, clone_as_sibling, close_from, die_with_parent, epoll_of, epoll_wait, fork, lead_group,
    pipe, put, read, read_exact, reap, reap_pidfd, receive_fd, receive_fds, send_fd, send_fds,
    set_name, socket_pair, write_all,
};
use crate::harness::median_us;

const SAMPLES: usize = 300;

/// What a child says first.
const STARTED: u64 = 7;

/// Start, eight bytes back, reap.
pub(crate) fn bare() -> f64 {
    let (socket, server) = start(|to_parent| write_all(&to_parent, &42_u64.to_ne_bytes()));
    let (from_child, to_parent) = pipe();
    let mut answer = [0; 8];
    let figure = median_us(SAMPLES, || {
        send_fd(&socket, &to_parent);
        let pidfd = receive_fd(&socket).expect("a child");
        read_exact(&from_child, &mut answer);
        reap_pidfd(&pidfd);
    });
    end(socket, server);
    figure
}

/// Start, a word each way, reap, with the duties of a child of ours.
pub(crate) fn with_duties() -> f64 {
    with_duties_beside(|| ())
}

/// The same, asked by a process that did `grow` after it had started the server.
pub(crate) fn with_duties_beside(grow: impl FnOnce()) -> f64 {
    let (socket, server) = start(dutiful_child);
    grow();
    let null = || OwnedFd::from(File::open("/dev/null").expect("/dev/null"));
    let (stdin, stdout) = (null(), null());
    let mut answer = [0; 8];
    let figure = median_us(SAMPLES, || {
        let (control, childs) = socket_pair(libc::SOCK_STREAM);
        let (_from_stderr, stderr) = pipe();
        send_fds(&control, &41_u64.to_ne_bytes(), &[&stdin, &stdout, &stderr]);
        drop(stderr);
        send_fd(&socket, &childs);
        drop(childs);
        let pidfd = receive_fd(&socket).expect("a child");
        read_exact(&control, &mut answer);
        assert_eq!(u64::from_ne_bytes(answer), STARTED);
        read_exact(&control, &mut answer);
        reap_pidfd(&pidfd);
    });
    assert_eq!(u64::from_ne_bytes(answer), 42);
    end(socket, server);
    figure
}

fn start(child: fn(OwnedFd)) -> (OwnedFd, libc::pid_t) {
    let (ours, servers) = socket_pair(libc::SOCK_SEQPACKET);
    let server = fork(|| {
        die_with_parent();
        let tid_address = kernel::tid_address();
        while let Some(fd) = receive_fd(&servers) {
            match clone_as_sibling(tid_address) {
                Some(pidfd) => send_fd(&servers, &pidfd),
                None => {
                    child(fd);
                    kernel::exit_now();
                }
            }
        }
    });
    (ours, server)
}

fn end(socket: OwnedFd, server: libc::pid_t) {
    drop(socket);
    kernel::kill(server);
    reap(server);
}

fn dutiful_child(socket: OwnedFd) {
    const CONTROL: RawFd = 3;
    die_with_parent();
    lead_group();
    put(socket, CONTROL);
    close_from(CONTROL + 1);
    let control = kernel::own(CONTROL);
    let mut argument = [0; 8];
    let streams = receive_fds(&control, &mut argument).expect("a parent");
    for (stream, number) in streams.into_iter().zip(0..) {
        put(stream, number);
    }
    set_name(c"child");
    write_all(&control, &STARTED.to_ne_bytes());
    let (done, finished) = pipe();
    let for_user = control.try_clone().expect("a descriptor");
    let user = thread::Builder::new().name("user".into()).spawn(move || {
        let answer = u64::from_ne_bytes(argument) + 1;
        write_all(&for_user, &answer.to_ne_bytes());
        drop(finished);
    });
    // The parent's end would be seen here, and is the end of the user's thread.
    let epoll = epoll_of(&[&done]);
    epoll_wait(&epoll);
    read(&done, &mut [0]);
    user.expect("a thread").join().expect("no panic");
}
