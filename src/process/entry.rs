//! Where a child begins.
//!
//! A start runs the program's own file again, with a marker in the environment and a socket as
//! descriptor 0. The hook before `main` (or [`init`], first in `main`) sees both and takes the
//! process over; `main` never runs in it. In every other process the hook sets a flag and returns:
//! the flag is what allows this process to start others.
//!
//! The hook trusts nothing that an attacker could set. A program with raised rights is left alone,
//! so is a process whose descriptor 0 is no Unix socket of the same user; otherwise a set-uid
//! program could be made to run a chosen place of its code.
//!
//! In a child the first thread only watches: it kills the process when the parent has gone, also
//! while the user's code spins. That code runs on a thread of its own, since std has not prepared
//! the first one when `main` was never called.

use std::env;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::function::{self, Main};
use super::inherit::Inheritance;
use super::start::frames::{self, Start};
use super::{info, panic, start};
use crate::error::Panic;
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::socket::{self, Wait};
use crate::sys::{
    child_setup, cpu, entry_hook, environment, exit, image, overflow, rlimit, signal,
};
use crate::wire::frame::{Frame, HEADER_LEN, Header, MORE_FDS};
use crate::wire::{codec, link};

/// The variable that marks a child; its value tells which kind.
pub(super) const MARKER: &str = concat!(
    "TOKIO_MULTIPROCESS_",
    env!("CARGO_PKG_VERSION_MAJOR"),
    "_",
    env!("CARGO_PKG_VERSION_MINOR")
);
/// The marker's value in a process that is one child.
pub(super) const CHILD: &str = "child";
/// The marker's value in the helper, which is fork server and guardian.
pub(super) const HELPER: &str = "helper";

/// The exit code of a child whose function panicked, as of a Rust program whose `main` does.
pub(crate) const PANICKED: i32 = 101;

/// The hook has run or `init` was called, in the main image.
static ENTERED: AtomicBool = AtomicBool::new(false);

#[cfg(feature = "auto-init")]
entry_hook::before_main!(HOOK, hook);

#[cfg(feature = "auto-init")]
extern "C" fn hook() {
    enter(Some(&HOOK));
}

/// Prepares the program for starting processes. Call it first in `main`.
///
/// With the feature `auto-init`, which is on by default, this has happened before `main` and the
/// call does nothing; without it, no process can be started before this was called. In a child it
/// does not return.
pub fn init() {
    enter(None);
}

/// Whether this process may start others.
pub(super) fn has_entered() -> bool {
    #[cfg(feature = "auto-init")]
    // The address keeps the linker from dropping the hook with everything that is unused.
    std::hint::black_box(&raw const HOOK);
    ENTERED.load(Relaxed)
}

fn enter(hook: Option<&'static extern "C" fn()>) {
    if has_entered_flag() || !image::contains((&raw const ENTERED).addr()) {
        // A shared library is not what a child's `exec` would load.
        return;
    }
    match env::var(MARKER) {
        Ok(kind) if !image::runs_with_raised_rights() && child_setup::control_is_ours() => {
            environment::remove(MARKER);
            match kind.as_str() {
                CHILD => run_spawned(hook),
                HELPER => start::helper::run(hook),
                _ => (),
            }
        }
        _ => (),
    }
    ENTERED.store(true, Relaxed);
}

fn has_entered_flag() -> bool {
    ENTERED.load(Relaxed)
}

/// What a child's main function gets.
pub(crate) struct Child {
    /// The link to the parent, for blocking use.
    pub(crate) control: OwnedFd,
    /// What the parent passed along for the main function.
    pub(crate) payload: Bytes,
    /// Descriptors that came with it.
    pub(crate) fds: Vec<OwnedFd>,
}

impl Child {
    /// Sends one frame to the parent, waiting while the socket is full.
    pub(crate) fn send(&self, kind: u8, aux: u64, body: &[u8]) -> io::Result<()> {
        frames::send(&self.control, kind, aux, body, &[])
    }

    /// A worker: tells the parent that it serves from now on.
    pub(crate) fn say_ready(&self) -> io::Result<()> {
        self.send(frames::READY, 0, &[])
    }

    /// A worker: tells the parent that it cannot serve.
    pub(crate) fn say_not_ready(&self, why: &Panic) -> io::Result<()> {
        let mut body = Vec::new();
        codec::encode(why, &mut body).map_err(io::Error::other)?;
        self.send(frames::NOT_READY, 0, &body)
    }
}

/// A spawned child, from before its `main` on.
fn run_spawned(hook: Option<&'static extern "C" fn()>) -> ! {
    signal::die_with_parent();
    child_setup::lead_group();
    child_setup::close_leaked();
    child_setup::open_standard_fds();
    run_child(hook)
}

/// The common course of every child that begins without state of its parent's: what arrives on
/// descriptor 0 says what to do.
pub(super) fn run_child(hook: Option<&'static extern "C" fn()>) -> ! {
    // It was created by a thread that blocks every signal.
    signal::unblock_all();
    signal::ignore_sigpipe();
    match receive_start() {
        Ok((start, child)) => {
            if let Some(hook) = hook {
                entry_hook::run_later_init_functions(hook);
            }
            ENTERED.store(true, Relaxed);
            run_main(start, child)
        }
        Err(error) => {
            eprintln!("a process started by tokio-multiprocess cannot begin: {error}");
            exit::immediately(PANICKED)
        }
    }
}

/// Reads the first frame, becomes what it says, and tells the parent so.
fn receive_start() -> io::Result<(Begin, Child)> {
    let control = child_setup::take_control()?;
    let Frame { body, fds, .. } = receive_frame(&control)?;
    let start = match Start::from_body(body) {
        Ok(start) => start,
        Err(mismatch) => {
            frames::send(&control, frames::REFUSED, 0, mismatch.as_bytes(), &[])?;
            exit::immediately(PANICKED)
        }
    };
    let mut fds = fds.into_iter();
    let inheritance: Inheritance = codec::decode(&start.inheritance).map_err(io::Error::other)?;
    let stack_size = inheritance.take_over(&mut fds)?;
    if child_setup::parent() != inheritance.parent_pid {
        // It died before this process could ask to die with it.
        signal::kill_own_group();
    }
    let name = inheritance.name.clone();
    info::set_current(&inheritance);
    let main = function::main_at(start.main).map_err(io::Error::other)?;
    frames::send(&control, frames::STARTED, 0, &[], &[])?;
    let begin = Begin {
        main,
        name,
        stack_size,
    };
    Ok((
        begin,
        Child {
            control,
            payload: start.payload,
            fds: fds.collect(),
        },
    ))
}

/// What a child is to run.
struct Begin {
    main: Main,
    name: String,
    stack_size: usize,
}

/// Reads exactly one message, waiting for it.
pub(super) fn receive_frame(control: &OwnedFd) -> io::Result<Frame> {
    let mut fds = Vec::new();
    let mut n_fds = 0;
    loop {
        let mut bytes = BytesMut::new();
        receive_until(control, HEADER_LEN, &mut bytes, &mut fds)?;
        let header = bytes.first_chunk().map(Header::from_bytes).transpose();
        let Some(header) = header.map_err(io::Error::other)? else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        n_fds += usize::from(header.n_fds);
        if fds.len() != n_fds {
            return Err(io::Error::other("descriptors are missing"));
        }
        if header.kind == MORE_FDS {
            continue;
        }
        bytes.clear();
        receive_until(control, header.len as usize, &mut bytes, &mut fds)?;
        return Ok(Frame {
            header,
            body: bytes.freeze(),
            fds,
        });
    }
}

fn receive_until(
    control: &OwnedFd,
    len: usize,
    bytes: &mut BytesMut,
    fds: &mut Vec<OwnedFd>,
) -> io::Result<()> {
    while bytes.len() < len {
        let max = len - bytes.len();
        let received = socket::recv_with_fds(control, bytes, max, fds, Wait::Yes)?;
        if received.fds_lost {
            return Err(io::Error::other(
                "descriptors found no room, see RLIMIT_NOFILE",
            ));
        }
        if received.len == 0 {
            // The parent has changed its mind or is gone.
            exit::immediately(0);
        }
    }
    Ok(())
}

/// How long a process whose function has returned waits until its pipes have sent what they have
/// accepted. A parent that awaits its end before it reads must not wait for ever.
pub(super) const LEFTOVERS_MAX: Duration = Duration::from_secs(1);

/// Runs the main function on a thread of its own; this thread watches.
fn run_main(begin: Begin, child: Child) -> ! {
    child_setup::set_name(&begin.name);
    panic::note_panics();
    // Open for as long as the process lives.
    let watched = child.control.as_fd().try_clone_to_owned();
    let watched = watched.and_then(|control| Ok((watch_link(&control)?, control)));
    let thread_name = begin.name.clone();
    let main = move || {
        // Without a handler an overflow is a plain SIGSEGV.
        let _ = overflow::report_in_this_thread(&thread_name);
        (begin.main)(child);
        link::wait_for_leftovers(LEFTOVERS_MAX);
        exit::flush_streams();
        let _ = cpu::bring_first_thread_here();
        std::process::exit(0)
    };
    let thread = thread::Builder::new()
        .name(begin.name)
        .stack_size(begin.stack_size);
    match (thread.spawn(main), watched) {
        (Ok(_), Ok((epoll, _control))) => watch_parent(&epoll),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("a process started by tokio-multiprocess cannot begin: {error}");
            exit::immediately(PANICKED)
        }
    }
}

/// Runs a forked child's closure in the same way; nothing of the parent's exit handlers may run.
pub(super) fn run_forked(
    name: &str,
    control: OwnedFd,
    main: impl FnOnce(Child) + Send + 'static,
) -> ! {
    child_setup::set_name(name);
    panic::note_panics();
    let watched = control.as_fd().try_clone_to_owned();
    let watched = watched.and_then(|control| Ok((watch_link(&control)?, control)));
    let child = Child {
        control,
        payload: Bytes::new(),
        fds: Vec::new(),
    };
    let main = move || {
        main(child);
        link::wait_for_leftovers(LEFTOVERS_MAX);
        exit::flush_streams();
        let _ = cpu::bring_first_thread_here();
        exit::immediately(0)
    };
    let thread = thread::Builder::new()
        .name(name.to_owned())
        .stack_size(rlimit::stack_size());
    match (thread.spawn(main), watched) {
        (Ok(_), Ok((epoll, _control))) => watch_parent(&epoll),
        _ => exit::immediately(PANICKED),
    }
}

/// What the watching thread looks after besides the parent.
type Callback = Box<dyn FnMut() + Send>;

/// The watching thread's descriptors; a forked child of a child begins with a set of its own.
struct Watcher {
    epoll: Arc<Epoll>,
    callbacks: Vec<(OwnedFd, Callback)>,
}

static WATCHER: Mutex<Option<Watcher>> = Mutex::new(None);

/// Has the watching thread of this child call `callback` whenever `fd` is readable, for good.
pub(crate) fn watch(fd: OwnedFd, callback: impl FnMut() + Send + 'static) -> io::Result<()> {
    with_watcher(|watcher| {
        watcher
            .epoll
            .add(&fd, watcher.callbacks.len() as u64 + 1, Interest::Read)?;
        watcher.callbacks.push((fd, Box::new(callback)));
        Ok(())
    })
}

fn with_watcher<T>(action: impl FnOnce(&mut Watcher) -> io::Result<T>) -> io::Result<T> {
    let mut watcher = WATCHER.lock().unwrap_or_else(PoisonError::into_inner);
    let watcher = match &mut *watcher {
        Some(watcher) => watcher,
        None => {
            let epoll = Arc::new(Epoll::new()?);
            watcher.insert(Watcher {
                epoll,
                callbacks: Vec::new(),
            })
        }
    };
    action(watcher)
}

/// Forgets the parent's watcher in a forked child: its set of descriptors is shared with the parent.
pub(super) fn forget_inherited() {
    std::mem::forget(
        WATCHER
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(),
    );
}

/// The epoll token of the link to the parent.
const PARENT: u64 = 0;

/// Has the parent's end noticed from now on. To be called before the user's code runs, which may
/// close whatever it finds.
fn watch_link(control: &OwnedFd) -> io::Result<Arc<Epoll>> {
    with_watcher(|watcher| {
        watcher.epoll.add(control, PARENT, Interest::HangUp)?;
        Ok(Arc::clone(&watcher.epoll))
    })
}

/// Waits for the parent's end, and ends this process and its group then.
fn watch_parent(epoll: &Epoll) -> ! {
    let mut ready = Vec::new();
    loop {
        if epoll.wait(&mut ready, None).is_err() || ready.contains(&PARENT) {
            signal::kill_own_group();
        }
        let called = with_watcher(|watcher| {
            for token in &ready {
                let index = usize::try_from(*token - 1).unwrap_or(usize::MAX);
                if let Some((_, callback)) = watcher.callbacks.get_mut(index) {
                    callback();
                }
            }
            Ok(())
        });
        debug_assert!(called.is_ok(), "there is a watcher");
    }
}
