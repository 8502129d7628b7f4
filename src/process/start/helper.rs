//! The helper process: fork server and guardian.
//!
//! It has one thread, no tokio and no state but a list of process groups. Its parent tells it which
//! groups are the parent's, and asks it for copies of itself. When the parent is gone it kills the
//! groups and leaves; for that it does not ask the kernel to die with its parent, as every other
//! child does. It learns of the parent's end by a pidfd as well as by the end of the socket, of
//! which a process that the parent has forked may hold a copy.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use bytes::BytesMut;

use super::frames;
use crate::process::entry;
use crate::supervisor::{BORN, NOT_BORN, Word};
use crate::sys::clone::{self, Side};
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::pidfd::Pidfd;
use crate::sys::socket::{self, Wait};
use crate::sys::{child_setup, exit, signal, tasks};
use crate::wire::codec;

const PARENT: u64 = 1;
const REQUEST: u64 = 2;

/// The helper's whole life, from before its `main` on.
pub(in crate::process) fn run(hook: Option<&'static extern "C" fn()>) -> ! {
    child_setup::lead_group();
    child_setup::close_leaked();
    child_setup::open_standard_fds();
    signal::unblock_all();
    signal::ignore_sigpipe();
    child_setup::set_name("mp-forkserver");
    let mut groups = BTreeSet::new();
    let parent = child_setup::parent();
    match serve(parent, hook, &mut groups) {
        Ok(never) => match never {},
        Err(error) => {
            for group in groups {
                signal::kill_group(group);
            }
            let orderly = error.kind() == io::ErrorKind::UnexpectedEof;
            exit::immediately(if orderly { 0 } else { 1 })
        }
    }
}

/// Serves until the parent is gone, which is an error as anything else that ends it.
fn serve(
    parent: u32,
    hook: Option<&'static extern "C" fn()>,
    groups: &mut BTreeSet<u32>,
) -> io::Result<Infallible> {
    let control = child_setup::take_control()?;
    // What it would say there is nobody's, and the application's streams end when that ends them.
    for number in [0, 1, 2] {
        let null = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/null")?;
        child_setup::replace_standard(number, null.into())?;
    }
    let epoll = Epoll::new()?;
    epoll.add(&control, REQUEST, Interest::Read)?;
    // If the parent is gone already, somebody else has its place: then the socket's end tells. Also
    // then the socket has to be read to its end, for the groups that are in it.
    let parent = Pidfd::open(parent).ok();
    if let Some(parent) = &parent {
        epoll.add(parent, PARENT, Interest::Read)?;
    }
    let _ = frames::send(&control, frames::READY, 0, &other_threads()?, &[]);
    let mut ready = Vec::new();
    loop {
        epoll.wait(&mut ready, None)?;
        if ready.contains(&REQUEST) {
            request(&control, hook, groups)?;
        } else if ready.contains(&PARENT) {
            // Only once the socket is empty: the last groups may be in it.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// The encoded names of the threads that libraries have started in this process.
fn other_threads() -> io::Result<Vec<u8>> {
    let names: Vec<String> = if tasks::count()? == 1 {
        Vec::new()
    } else {
        let own = tasks::current();
        tasks::list()?
            .into_iter()
            .filter(|it| it.id != own)
            .map(|it| it.name)
            .collect()
    };
    let mut encoded = Vec::new();
    codec::encode(&names, &mut encoded).map_err(io::Error::other)?;
    Ok(encoded)
}

fn request(
    control: &OwnedFd,
    hook: Option<&'static extern "C" fn()>,
    groups: &mut BTreeSet<u32>,
) -> io::Result<()> {
    let mut message = BytesMut::new();
    let mut fds = Vec::new();
    let received =
        socket::recv_with_fds(control, &mut message, Word::LEN_MAX, &mut fds, Wait::Yes)?;
    if received.len == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let Some((word, named)) = Word::from_bytes(&message) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    match word {
        Word::Watch => groups.extend(named),
        Word::Forget => groups.retain(|group| !named.contains(group)),
        Word::Only => *groups = named.into_iter().collect(),
        Word::Fork => {
            // A descriptor that was lost ends the child's stream, which the parent notices.
            let Some(socket) = fds.pop() else {
                return Ok(());
            };
            groups.extend(fork(socket, hook));
        }
    }
    Ok(())
}

/// Makes one child and announces it on its own control socket. Returns its group.
fn fork(socket: OwnedFd, hook: Option<&'static extern "C" fn()>) -> Option<u32> {
    match clone::sibling() {
        Ok(Side::Child) => become_child(socket, hook),
        Ok(Side::Parent((pid, pidfd))) => {
            // If the parent is gone its children are, too.
            let _ = frames::send(&socket, BORN, pid.into(), &[], &[pidfd.as_fd()]);
            Some(pid)
        }
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or_default();
            let _ = frames::send(&socket, NOT_BORN, errno.unsigned_abs().into(), &[], &[]);
            None
        }
    }
}

fn become_child(socket: OwnedFd, hook: Option<&'static extern "C" fn()>) -> ! {
    signal::die_with_parent();
    child_setup::lead_group();
    if child_setup::put_control(socket).is_err() {
        exit::immediately(entry::PANICKED);
    }
    child_setup::close_leaked();
    entry::run_child(hook)
}
