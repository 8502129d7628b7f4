//! The main function of a child that is one call: decode, run, send the result, leave.

use std::future::Future;
use std::io;
use std::pin::Pin;

use bytes::{BufMut as _, Bytes, BytesMut};

use super::entry::{Child, PANICKED};
use super::function::{Failure, Function, Ran};
use super::start::frames::{FAILED, RESULT};
use crate::error::{Panic, ProcessError};
use crate::sys::exit;
use crate::wire::codec;
use crate::wire::frame::Frame;

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
pub(super) fn main(child: Child) {
    let mut encoded = Vec::new();
    let outcome = match child.payload.split_first_chunk() {
        Some((function, argument)) => match Function::from_bytes(*function).resolve() {
            Ok(function) => match function.call(argument, &mut encoded) {
                Ran::Done => Ok(encoded),
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
pub(super) fn run_closure<R: serde::Serialize>(child: &Child, closure: impl FnOnce() -> R) {
    let value = std::panic::catch_unwind(std::panic::AssertUnwindSafe(closure));
    let outcome = match value {
        Ok(value) => {
            let mut encoded = Vec::new();
            codec::encode(&value, &mut encoded)
                .map(|()| encoded)
                .map_err(Failure::Encode)
        }
        Err(payload) => Err(Failure::panicked(payload)),
    };
    leave(child, outcome);
}

/// Runs an async function's future on a runtime of this process' own.
fn run(
    future: Pin<Box<dyn Future<Output = Result<Vec<u8>, Failure>>>>,
) -> Result<Vec<u8>, Failure> {
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
fn leave(child: &Child, outcome: Result<Vec<u8>, Failure>) {
    let (sent, code) = match outcome {
        Ok(encoded) => (child.send(RESULT, 0, &encoded), 0),
        Err(failure) => (send_failure(child, &failure), PANICKED),
    };
    if sent.is_err() || code != 0 {
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
pub(super) fn outcome<R: serde::de::DeserializeOwned>(frame: &Frame) -> Result<R, ProcessError> {
    let text = || String::from_utf8_lossy(&frame.body).into_owned();
    match (frame.header.kind, frame.header.aux) {
        (RESULT, _) => codec::decode(&frame.body).map_err(ProcessError::Decode),
        (_, BAD_ARGUMENT) => Err(ProcessError::DecodeArgument(text())),
        (_, BAD_RESULT) => Err(ProcessError::Encode(text())),
        (_, PANIC) => match codec::decode::<Panic>(&frame.body) {
            Ok(panic) => Err(panic.into()),
            Err(error) => Err(ProcessError::Decode(error)),
        },
        (_, aux) => Err(ProcessError::ProtocolViolation(format!(
            "it failed by the number {aux}"
        ))),
    }
}
