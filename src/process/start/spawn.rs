//! Spawn: the program's own file is executed again.
//!
//! It runs on the supervisor's thread, which never ends, since the child asks to be killed when the
//! thread that created it does.

use std::ffi::OsString;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::attend::Attendant;
use super::{BEGUN_WITHIN, Launch, Pipes, Prepared, forkserver, prepare, send_start};
use crate::error::StartError;
use crate::process::entry;
use crate::supervisor::{self, Birth, NewChild};
use crate::sys::image::EXECUTABLE;
use crate::sys::program::Program;
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
    let program = program(entry::CHILD, launch.attributes.environment.apply())
        .map_err(StartError::os("execute the program again"))?;
    supervisor.post(move || {
        forkserver::guard_first();
        make(&program, prepared, unsent, frame_limit, attendant);
    });
    Ok(())
}

/// This program, to be run again as a child of the given kind.
pub(super) fn program(
    kind: &str,
    mut environment: Vec<(OsString, OsString)>,
) -> io::Result<Program> {
    environment.push((entry::MARKER.into(), kind.into()));
    Program::new(EXECUTABLE, std::env::args_os(), environment)
}

fn make(program: &Program, prepared: Prepared, unsent: Bytes, limit: u32, attendant: Attendant) {
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
    let (pid, pidfd) = match program.start(&theirs) {
        Ok(child) => child,
        Err(error) => return attendant.fail(StartError::os("execute the program again")(error)),
    };
    drop(theirs);
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
