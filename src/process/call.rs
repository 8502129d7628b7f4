//! The main function of a child that is one call: decode, run, send the result, leave.

use std::io;
use std::mem;
use std::panic::{self, AssertUnwindSafe};

use bytes::{BufMut as _, Bytes, BytesMut};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::entry::{Child, LEFTOVERS_MAX, PANICKED};
use super::function::{Argument, Failure, Function, Later, Ran};
use super::start::frames::{self, FAILED, RESULT};
use crate::error::{Panic, ProcessError};
use crate::sys::exit;
use crate::wire::fds::{self, Outgoing};
use crate::wire::frame::Frame;
use crate::wire::{codec, link};

/// What [`FAILED`] frames say in `aux`.
const BAD_ARGUMENT: u64 = 1;
const BAD_RESULT: u64 = 2;
const PANIC: u64 = 3;

/// The payload for [`main`].
pub(super) fn payload(function: Function, argument: &[u8]) -> Bytes {
    let mut payload = BytesMut::with_capacity(Function::LEN + argument.len());
    payload.put_slice(&function.to_bytes());
    payload.put_slice(argument);
    payload.freeze()
}

/// Runs the function that the payload names.
pub(super) fn main(mut child: Child) {
    let mut encoded = Vec::new();
    let fds = mem::take(&mut child.fds);
    let outcome = match child.payload.split_first_chunk() {
        Some((function, bytes)) => match Function::from_bytes(*function).resolve() {
            Ok(function) => match function.call(Argument { bytes, fds }, &mut encoded) {
                Ran::Done(outgoing) => Ok((encoded, outgoing)),
                Ran::Failed(failure) => Err(failure),
                Ran::Later(future) => run(future),
            },
            Err(error) => Err(Failure::Decode(error.to_string())),
        },
        None => Err(Failure::Decode("the message is too short".to_owned())),
    };
    leave(&child, outcome);
}

/// Runs a closure that a forked child has inherited.
pub(super) fn run_closure<R: Serialize>(child: &Child, closure: impl FnOnce() -> R) {
    let call = AssertUnwindSafe(|| {
        let mut encoded = Vec::new();
        let outgoing = fds::encode_with_fds(&closure(), &mut encoded);
        outgoing
            .map(|outgoing| (encoded, outgoing))
            .map_err(Failure::Encode)
    });
    let outcome = panic::catch_unwind(call).unwrap_or_else(|it| Err(Failure::panicked(it)));
    leave(child, outcome);
}

/// An encoded result and its descriptors, or why there is none.
type Encoded = Result<(Vec<u8>, Outgoing), Failure>;

/// Runs an async function's future on a runtime of this process' own.
fn run(future: Later) -> Encoded {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(future);
            // Blocking tasks that still run do not keep the process from leaving.
            runtime.shutdown_background();
            result
        }
        Err(error) => {
            let message = format!("no runtime can be made: {error}");
            let (location, backtrace) = Default::default();
            Err(Failure::Panicked(Panic {
                message,
                location,
                backtrace,
            }))
        }
    }
}

/// Sends the outcome. Does not return after a failure; what the process leaves with tells it, too.
fn leave(child: &Child, outcome: Encoded) {
    let sent = match outcome {
        Ok((encoded, outgoing)) => {
            // What moves with the result is of no use here any more, whatever becomes of it.
            frames::send_value(&child.control, RESULT, &encoded, &outgoing.commit())
        }
        Err(failure) => {
            let sent = send_failure(child, &failure);
            link::wait_for_leftovers(LEFTOVERS_MAX);
            exit::flush_streams();
            sent.and_then(|()| exit::immediately(PANICKED))
        }
    };
    if sent.is_err() {
        exit::flush_streams();
        exit::immediately(PANICKED);
    }
}

fn send_failure(child: &Child, failure: &Failure) -> io::Result<()> {
    match failure {
        Failure::Decode(error) => child.send(FAILED, BAD_ARGUMENT, error.as_bytes()),
        Failure::Encode(error) => child.send(FAILED, BAD_RESULT, error.as_bytes()),
        Failure::Panicked(panic) => {
            let mut encoded = Vec::new();
            codec::encode(panic, &mut encoded).map_err(io::Error::other)?;
            child.send(FAILED, PANIC, &encoded)
        }
    }
}

/// Reads a [`RESULT`] or [`FAILED`] frame in the parent.
pub(super) fn outcome<R: DeserializeOwned>(frame: Frame) -> Result<R, ProcessError> {
    let Frame { header, body, fds } = frame;
    let text = || String::from_utf8_lossy(&body).into_owned();
    match (header.kind, header.aux) {
        (RESULT, _) => fds::decode_with_fds(&body, fds).map_err(ProcessError::Decode),
        (_, BAD_ARGUMENT) => Err(ProcessError::DecodeArgument(text())),
        (_, BAD_RESULT) => Err(ProcessError::Encode(text())),
        (_, PANIC) => match codec::decode::<Panic>(&body) {
            Ok(panic) => Err(panic.into()),
            Err(error) => Err(ProcessError::Decode(error)),
        },
        (_, aux) => Err(ProcessError::ProtocolViolation(format!(
            "it failed by the number {aux}"
        ))),
    }
}
