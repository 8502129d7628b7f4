//! Every moment at which a task can go wrong, in every way, by every start method.
//!
//! An argument and a result are encoded, decoded and dropped, and a task runs: at each of these
//! moments the user's code may fail, panic, end the process, or crash it. The task gets an error
//! that names what happened, its neighbours do not notice, and the pool goes on. What would end the
//! application itself (its own code that exits or crashes while it encodes an argument) is no
//! matter of the pool's and is left out.

#![allow(
    unsafe_code,
    reason = "a segmentation fault has to be made, and fork is unsafe"
)]

mod campaign;

use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;

use futures::{FutureExt, StreamExt};
use nix::sys::signal::Signal;
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio_multiprocess::{Pool, TaskError};

use campaign::Case;
use campaign::method::{Method, runtime};

fn main() -> ExitCode {
    tokio_multiprocess::init();
    campaign::main(&[
        Case {
            name: "every_crash_is_a_typed_error_by_spawn",
            run: |_| matrix(Method::Spawn),
        },
        Case {
            name: "every_crash_is_a_typed_error_by_fork_server",
            run: |_| matrix(Method::ForkServer),
        },
        Case {
            name: "every_crash_is_a_typed_error_by_fork",
            run: |_| matrix(Method::Fork),
        },
    ])
}

/// When it goes off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Moment {
    EncodeArgument,
    DecodeArgument,
    Run,
    DropArgument,
    EncodeResult,
    DropResult,
    DecodeResult,
}

/// What it does then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Way {
    Error,
    Panic,
    Exit,
    Segfault,
}

/// A value, as argument or as result, that goes off once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Plan {
    moment: Moment,
    way: Way,
}

#[derive(Debug)]
struct Argument(Plan);

#[derive(Debug)]
struct Product {
    plan: Plan,
    /// False in the application, whose drop must not hurt.
    in_worker: bool,
}

impl Plan {
    /// Goes off if this is the moment; an error is the caller's to make.
    fn is_error_at(self, moment: Moment) -> bool {
        if self.moment != moment {
            return false;
        }
        match self.way {
            Way::Error => true,
            Way::Panic => panic!("panicked on purpose"),
            Way::Exit => std::process::exit(7),
            Way::Segfault => {
                // SAFETY: it is not safe: the fault is what the test is about.
                unsafe { std::ptr::without_provenance::<u8>(8).read_volatile() };
                false
            }
        }
    }
}

impl Serialize for Argument {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_error_at(Moment::EncodeArgument) {
            return Err(S::Error::custom("failed on purpose"));
        }
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Argument {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let plan = Plan::deserialize(deserializer)?;
        if plan.is_error_at(Moment::DecodeArgument) {
            return Err(D::Error::custom("failed on purpose"));
        }
        Ok(Self(plan))
    }
}

impl Drop for Argument {
    fn drop(&mut self) {
        if in_worker() {
            self.0.is_error_at(Moment::DropArgument);
        }
    }
}

impl Serialize for Product {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.plan.is_error_at(Moment::EncodeResult) {
            return Err(S::Error::custom("failed on purpose"));
        }
        self.plan.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Product {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let plan = Plan::deserialize(deserializer)?;
        if plan.is_error_at(Moment::DecodeResult) {
            return Err(D::Error::custom("failed on purpose"));
        }
        Ok(Self {
            plan,
            in_worker: false,
        })
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        if self.in_worker {
            self.plan.is_error_at(Moment::DropResult);
        }
    }
}

fn in_worker() -> bool {
    tokio_multiprocess::parent_process().is_some()
}

fn task(argument: Argument) -> Result<Product, String> {
    let plan = argument.0;
    if plan.is_error_at(Moment::Run) {
        return Err("failed on purpose".to_owned());
    }
    Ok(Product {
        plan,
        in_worker: true,
    })
}

fn double(x: u64) -> u64 {
    x * 2
}

/// What the task has to come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The task's own error came back as a value.
    Value,
    Encode,
    Decode,
    Panicked,
    Died,
    /// The panic of the application's own code reached the caller.
    Unwound,
}

/// All that can happen. What is not here would happen in the application.
const MATRIX: [(Moment, Way, Outcome); 22] = {
    use Moment::*;
    use Way::*;
    [
        (EncodeArgument, Error, Outcome::Encode),
        (EncodeArgument, Panic, Outcome::Unwound),
        (DecodeArgument, Error, Outcome::Decode),
        (DecodeArgument, Panic, Outcome::Panicked),
        (DecodeArgument, Exit, Outcome::Died),
        (DecodeArgument, Segfault, Outcome::Died),
        (Run, Error, Outcome::Value),
        (Run, Panic, Outcome::Panicked),
        (Run, Exit, Outcome::Died),
        (Run, Segfault, Outcome::Died),
        (DropArgument, Panic, Outcome::Panicked),
        (DropArgument, Exit, Outcome::Died),
        (DropArgument, Segfault, Outcome::Died),
        (EncodeResult, Error, Outcome::Encode),
        (EncodeResult, Panic, Outcome::Panicked),
        (EncodeResult, Exit, Outcome::Died),
        (EncodeResult, Segfault, Outcome::Died),
        (DropResult, Panic, Outcome::Panicked),
        (DropResult, Exit, Outcome::Died),
        (DropResult, Segfault, Outcome::Died),
        (DecodeResult, Error, Outcome::Decode),
        (DecodeResult, Panic, Outcome::Unwound),
    ]
};

fn matrix(method: Method) -> String {
    runtime().block_on(async {
        let pool = method.pool().processes(2).build().await.expect("a pool");
        for (moment, way, expected) in MATRIX {
            // Neighbours before and behind, so that some wait in the worker that crashes.
            let before: Vec<_> = (0..8).map(|x| pool.apply_async(double, x)).collect();
            let submit = || pool.apply_async(task, Argument(Plan { moment, way }));
            let submitted = panic::catch_unwind(AssertUnwindSafe(submit));
            let behind: Vec<_> = (8..16).map(|x| pool.apply_async(double, x)).collect();
            let result = match submitted {
                Ok(task) => AssertUnwindSafe(task).catch_unwind().await,
                Err(panic) => Err(panic),
            };
            let outcome = result.map_or(Outcome::Unwound, |result| judge(way, result));
            assert_eq!(outcome, expected, "{moment:?}, {way:?}");
            for (x, neighbour) in (0..).zip(before.into_iter().chain(behind)) {
                let doubled = neighbour.await;
                assert_eq!(
                    doubled.ok(),
                    Some(x * 2),
                    "a neighbour of {moment:?}, {way:?}"
                );
            }
        }
        one_by_one(&pool).await;
        pool.close().await.expect("a clean end");
    });
    format!(
        "{} crashes, each a typed error; 0 neighbours harmed",
        MATRIX.len()
    )
}

/// The same once more through the stream, where the errors come as items.
async fn one_by_one(pool: &Pool) {
    let cases: Vec<_> = MATRIX
        .into_iter()
        .filter(|(_, _, expected)| *expected != Outcome::Unwound)
        .collect();
    let arguments = cases.clone().into_iter();
    let arguments = arguments.map(|(moment, way, _)| Argument(Plan { moment, way }));
    let results: Vec<_> = pool.imap(task, arguments).collect().await;
    assert_eq!(results.len(), cases.len());
    for ((moment, way, expected), result) in cases.into_iter().zip(results) {
        let outcome = judge(way, result);
        assert_eq!(
            outcome, expected,
            "{moment:?}, {way:?}, as an item of a stream"
        );
    }
}

fn judge(way: Way, result: Result<Result<Product, String>, TaskError>) -> Outcome {
    match result {
        Ok(Err(own)) => {
            assert_eq!(own, "failed on purpose");
            Outcome::Value
        }
        Ok(Ok(product)) => panic!("{product:?} came through"),
        Err(TaskError::Encode(..)) => Outcome::Encode,
        Err(TaskError::Decode(..)) => Outcome::Decode,
        Err(error @ TaskError::Panicked(..)) => {
            assert!(error.to_string().contains("panicked on purpose"), "{error}");
            Outcome::Panicked
        }
        Err(TaskError::WorkerDied { status, .. }) => {
            match way {
                Way::Exit => assert_eq!(status.code(), Some(7)),
                _ => assert_eq!(status.signal(), Some(Signal::SIGSEGV as i32)),
            }
            Outcome::Died
        }
        Err(other) => panic!("{other}"),
    }
}
