//! The helper process: fork server and guardian.
//!
//! It has one thread, no tokio and no state but its parent's list of process groups. Its parent asks
//! it for copies of itself. When the parent is gone it kills the groups and leaves; for that it does
//! not ask the kernel to die with its parent, as every other child does. It learns of the parent's
//! end by a pidfd as well as by the end of the socket, of which a process that the parent has forked
//! may hold a copy.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use bytes::BytesMut;

use super::{frames, rehearsal};
use crate::process::entry;
use crate::supervisor::{BORN, List, NOT_BORN};
use crate::sys::clone::{self, Side};
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::pidfd::Pidfd;
use crate::sys::socket::{self, Wait};
use crate::sys::{child_setup, exit, signal, tasks};
use crate::wire::codec;

const PARENT: u64 = 1;
const REQUEST: u64 = 2;

/// Bytes of a message from the parent.
const MESSAGE_LEN: usize = 4;

/// The helper's whole life, from before its `main` on.
pub(in crate::process) fn run(hook: Option<&'static extern "C" fn()>) -> ! {
    child_setup::lead_group();
    child_setup::close_leaked();
    child_setup::open_standard_fds();
    signal::unblock_all();
    signal::ignore_sigpipe();
    child_setup::set_name("mp-forkserver");
    let error = match receive_list() {
        Ok((control, list)) => {
            let error = match serve(&control, hook, &list) {
                Ok(never) => match never {},
                Err(error) => error,
            };
            list.groups().for_each(signal::kill_group);
            error
        }
        Err(error) => error,
    };
    let orderly = error.kind() == io::ErrorKind::UnexpectedEof;
    exit::immediately(if orderly { 0 } else { 1 })
}

/// Takes the control socket, and the parent's list, which is the first message there.
fn receive_list() -> io::Result<(OwnedFd, List)> {
    let control = child_setup::take_control()?;
    let mut message = BytesMut::new();
    let mut fds = Vec::new();
    socket::recv_with_fds(&control, &mut message, MESSAGE_LEN, &mut fds, Wait::Yes)?;
    let file = fds.pop().ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok((control, List::open(file)?))
}

/// Serves until the parent is gone, which is an error as anything else that ends it.
fn serve(
    control: &OwnedFd,
    hook: Option<&'static extern "C" fn()>,
    list: &List,
) -> io::Result<Infallible> {
    // What it would say there is nobody's, and the application's streams end when that ends them.
    for number in [0, 1, 2] {
        let null = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/null")?;
        child_setup::replace_standard(number, null.into())?;
    }
    let epoll = Epoll::new()?;
    epoll.add(control, REQUEST, Interest::Read)?;
    // If the parent is gone already, somebody else has its place: then the socket's end tells.
    let parent = Pidfd::open(child_setup::parent()).ok();
    if let Some(parent) = &parent {
        epoll.add(parent, PARENT, Interest::Read)?;
    }
    if tasks::count()? == 1 {
        rehearsal::rehearse()?;
    }
    let _ = frames::send(control, frames::READY, 0, &other_threads()?, &[]);
    let mut ready = Vec::new();
    loop {
        epoll.wait(&mut ready, None)?;
        if ready.contains(&PARENT) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if ready.contains(&REQUEST) {
            request(control, hook, list)?;
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

/// Makes one child: the message is the number of its group's place on the list, and comes with the
/// child's control socket.
fn request(
    control: &OwnedFd,
    hook: Option<&'static extern "C" fn()>,
    list: &List,
) -> io::Result<()> {
    let mut message = BytesMut::new();
    let mut fds = Vec::new();
    let received = socket::recv_with_fds(control, &mut message, MESSAGE_LEN, &mut fds, Wait::Yes)?;
    if received.len == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let place = message
        .first_chunk()
        .map(|bytes| u32::from_le_bytes(*bytes));
    let place = place.ok_or(io::ErrorKind::InvalidData)?;
    // A descriptor that was lost ends the child's stream, which the parent notices.
    if let Some(socket) = fds.pop() {
        fork(socket, place, hook, list);
    }
    Ok(())
}

/// Makes one child, enters its group, and announces it on its own control socket.
fn fork(socket: OwnedFd, place: u32, hook: Option<&'static extern "C" fn()>, list: &List) {
    // If the parent is gone its children are, too, and nobody hears of them.
    let _ = match clone::sibling() {
        Ok(Side::Child) => become_child(socket, hook),
        Ok(Side::Parent((pid, pidfd))) => {
            list.enter(place, pid);
            frames::send(&socket, BORN, pid.into(), &[], &[pidfd.as_fd()])
        }
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or_default();
            frames::send(&socket, NOT_BORN, errno.unsigned_abs().into(), &[], &[])
        }
    };
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
