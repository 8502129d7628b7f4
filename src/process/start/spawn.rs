//! Spawn: the program's own file is executed again.
//!
//! By std's fast path, `posix_spawn`, which costs the same whatever this process' size; a
//! `pre_exec` hook would make std fork. It runs on the supervisor's thread, which never ends, since
//! the child asks to be killed when the thread that created it does.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;

use super::attend::Attendant;
use super::{BEGUN_WITHIN, Launch, Pipes, Prepared, forkserver, prepare, send_start};
use crate::error::StartError;
use crate::process::entry;
use crate::supervisor::{self, Birth, NewChild};
use crate::sys::image::EXECUTABLE;
use crate::sys::pidfd::Pidfd;
use crate::wire::frame::Splitter;

pub(super) fn start(
    launch: &Launch,
    attendant: Attendant,
    pipes: &mut Pipes,
) -> Result<(), StartError> {
    let supervisor = supervisor::get().map_err(StartError::os("start the supervisor"))?;
    let mut prepared = prepare(launch, pipes)?;
    let unsent = send_start(launch, &mut prepared)?;
    let frame_limit = launch.frame_limit;
    let mut command = command(entry::CHILD);
    let environment = &launch.attributes.environment;
    if !environment.is_empty() {
        command
            .env_clear()
            .envs(environment.apply())
            .env(entry::MARKER, entry::CHILD);
    }
    supervisor.post(move || {
        forkserver::guard_first();
        make(command, prepared, unsent, frame_limit, attendant);
    });
    Ok(())
}

/// The command that runs this program again, as a child of the given kind.
pub(super) fn command(kind: &str) -> Command {
    let mut command = Command::new(EXECUTABLE);
    let mut arguments = std::env::args_os();
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    command
        .args(arguments)
        .env(entry::MARKER, kind)
        .process_group(0);
    command
}

fn make(mut command: Command, prepared: Prepared, unsent: Bytes, limit: u32, attendant: Attendant) {
    let Prepared {
        control,
        theirs,
        stderr,
        standard,
        ..
    } = prepared;
    drop(standard);
    let reserved = supervisor::get().and_then(|supervisor| supervisor.guardian.reserve());
    let group = match reserved {
        Ok(group) => group,
        Err(error) => return attendant.fail(StartError::os("note a process group")(error)),
    };
    let child = match command.stdin(Stdio::from(theirs)).spawn() {
        Ok(child) => child,
        Err(error) => return attendant.fail(StartError::os("execute the program again")(error)),
    };
    let pid = child.id();
    // The number cannot have been given to another process yet: nobody but this thread reaps our
    // children, unless the application waits for all of its own, which leaves microseconds.
    let pidfd = match Pidfd::open(pid) {
        Ok(pidfd) => pidfd,
        Err(error) => return attendant.fail(StartError::os("open a pidfd")(error)),
    };
    group.enter(pid);
    let adopt = || {
        let supervisor = supervisor::get()?;
        supervisor.adopt(NewChild {
            birth: Birth::Known(pid, Arc::new(pidfd), group),
            control,
            unsent,
            splitter: Splitter::new(limit),
            stderr,
            begun_within: BEGUN_WITHIN,
            listener: Box::new(attendant),
        })
    };
    if let Err(error) = adopt() {
        // The record is dropped, and with it the control socket: the child leaves.
        tracing::error!(%error, pid, "a child cannot be looked after");
    }
}
