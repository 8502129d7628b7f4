//! Fork: a copy of this process as it is.
//!
//! The copy is made on the supervisor's thread, while the caller's waits: in a program that has no
//! other threads nobody can hold a lock then, but for what the caller itself holds. In the copy
//! that thread goes on as the watcher, and the user's closure runs on a fresh one. Nothing that the
//! parent's runtimes own is used or dropped, and the copy leaves by `_exit`.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, mpsc};

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use super::attend::{Attendant, NotReady, Ready};
use super::{Answered, Attributes, BEGUN_WITHIN, Exit, Launch, Launched, Pipes, Prepared, What};
use super::{forkserver, frames, prepare};
use crate::error::StartError;
use crate::process::entry::{self, Child};
use crate::process::info;
use crate::process::inherit::to_bytes;
use crate::supervisor::{self, Birth, NewChild, Supervisor};
use crate::sys::clone::{self, Side};
use crate::sys::pidfd::Pidfd;
use crate::sys::{child_setup, signal, tasks};
use crate::wire::frame::Splitter;

/// Whether a process with other threads may be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OtherThreads {
    /// No: their locks would be copied as they are, with nobody to release them.
    Refuse,
    /// The caller knows what it does.
    Accept,
}

/// Copies this process; `main` runs in the copy. Blocks until the copy is made.
///
/// The contract is that of [`ProcessBuilder::fork`](crate::ProcessBuilder::fork).
pub(crate) fn fork(
    (name, path): (String, String),
    attributes: &Arc<Attributes>,
    what: What,
    frame_limit: u32,
    other_threads: OtherThreads,
    main: impl FnOnce(Child) + Send + 'static,
) -> Result<Forked, StartError> {
    if !entry::has_entered() {
        return Err(StartError::NotInitialized);
    }
    let supervisor = supervisor::get().map_err(StartError::os("start the supervisor"))?;
    let launch = Launch {
        name,
        path,
        method: None,
        what,
        main: |_| (),
        payload: Bytes::new(),
        fds: Vec::new(),
        frame_limit,
        attributes: Arc::clone(attributes),
    };
    let mut pipes = Pipes::default();
    let mut prepared = prepare(&launch, &mut pipes)?;
    if !attributes.environment.is_empty() {
        prepared.inheritance.environment = Some(to_bytes(attributes.environment.apply()));
    }
    prepared.inheritance.add_limits(&attributes.limits);
    let (answer, answered) = oneshot::channel();
    let (end, ended) = watch::channel(None);
    // Nobody waits for the handshake of a call: the copy runs the right program, as it is one.
    let answer = (what == What::Worker).then_some(answer);
    let attendant = Attendant::new(&launch.name, what, answer, end);
    let caller = tasks::current();
    let (done, made) = mpsc::sync_channel(1);
    supervisor.post(move || {
        let made = if other_threads == OtherThreads::Accept {
            Ok(())
        } else {
            refuse_other_threads(caller, supervisor.thread_id())
        };
        let made = made.and_then(|()| {
            forkserver::guard_first();
            make(supervisor, prepared, frame_limit, attendant, main)
        });
        // The caller waits for this without a limit.
        let _ = done.send(made);
    });
    let (pid, pidfd) = match made.recv() {
        Ok(made) => made?,
        Err(_) => {
            return Err(StartError::os("fork")(
                std::io::ErrorKind::BrokenPipe.into(),
            ));
        }
    };
    let born = Ready {
        pid,
        pidfd,
        control: None,
    };
    Ok(Forked {
        born,
        answered,
        exit: Exit::new(ended),
        pipes,
    })
}

/// A copy that has been made.
pub(crate) struct Forked {
    born: Ready,
    answered: oneshot::Receiver<Result<Ready, NotReady>>,
    exit: Exit,
    pipes: Pipes,
}

impl Forked {
    /// The copy, which runs or is about to.
    pub(crate) fn at_once(self) -> Launched {
        Launched::new(self.born, self.exit, self.pipes)
    }

    /// Waits until the copy, a worker, is ready.
    pub(crate) async fn wait(self) -> Result<Launched, StartError> {
        match Answered(self.answered).await {
            Ok(Ok(ready)) => Ok(Launched::new(ready, self.exit, self.pipes)),
            Ok(Err(NotReady::Failed(error))) => Err(error),
            Ok(Err(NotReady::Lost)) | Err(_) => Err(StartError::os("fork")(
                std::io::ErrorKind::BrokenPipe.into(),
            )),
        }
    }
}

fn refuse_other_threads(caller: u32, supervisor: u32) -> Result<(), StartError> {
    let threads = tasks::list().map_err(StartError::os("list the threads"))?;
    let others: Vec<String> = threads
        .into_iter()
        .filter(|thread| thread.id != caller && thread.id != supervisor)
        .map(|thread| thread.name)
        .collect();
    if others.is_empty() {
        Ok(())
    } else {
        Err(StartError::MultiThreaded { threads: others })
    }
}

fn make(
    supervisor: &'static Supervisor,
    prepared: Prepared,
    limit: u32,
    attendant: Attendant,
    main: impl FnOnce(Child) + Send + 'static,
) -> Result<(u32, Arc<Pidfd>), StartError> {
    let parent = std::process::id();
    let group = supervisor.guardian.reserve();
    let group = group.map_err(StartError::os("note a process group"))?;
    match clone::fork().map_err(StartError::os("fork"))? {
        Side::Child => {
            // What it has of the parent's runtimes is never dropped.
            std::mem::forget((attendant, group));
            become_child(parent, prepared, main)
        }
        Side::Parent(pid) => {
            let Prepared {
                control, stderr, ..
            } = prepared;
            let pidfd = Pidfd::open(pid).map_err(StartError::os("open a pidfd"))?;
            let pidfd = Arc::new(pidfd);
            group.enter(pid);
            supervisor
                .adopt(NewChild {
                    birth: Birth::Known(pid, Arc::clone(&pidfd), group),
                    control,
                    unsent: Bytes::new(),
                    splitter: Splitter::new(limit),
                    stderr,
                    begun_within: BEGUN_WITHIN,
                    listener: Box::new(attendant),
                })
                .map_err(StartError::os("look after the process"))?;
            Ok((pid, pidfd))
        }
    }
}

fn become_child(parent: u32, prepared: Prepared, main: impl FnOnce(Child) + Send + 'static) -> ! {
    signal::die_with_parent();
    if child_setup::parent() != parent {
        signal::kill_own_group();
    }
    child_setup::lead_group();
    signal::unblock_all();
    supervisor::forget_inherited();
    forkserver::forget_inherited();
    entry::forget_inherited();
    let Prepared {
        control,
        theirs,
        mut inheritance,
        directory,
        standard,
        stderr,
    } = prepared;
    drop((control, stderr));
    let fds: Vec<OwnedFd> = directory.into_iter().chain(standard).collect();
    inheritance.has_directory = fds.len() == 4;
    let name = inheritance.name.clone();
    info::set_current(&inheritance);
    let begun = inheritance
        .take_over(&mut fds.into_iter())
        .and_then(|_| frames::send(theirs.as_fd(), frames::STARTED, 0, &[], &[]));
    if begun.is_err() {
        crate::sys::exit::immediately(entry::PANICKED);
    }
    entry::run_forked(&name, theirs, main)
}
