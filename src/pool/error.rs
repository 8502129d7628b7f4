//! What can go wrong in a pool.

use crate::error::{ExitStatus, ForeignFunction, Panic, StartError};

/// Why a task has no result.
///
/// An error of the task's own is no error here: with a function that returns `Result<T, E>` it
/// comes back as a value, `Ok(Err(e))`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// The function panicked; its worker lives on.
    #[error("the task {0}")]
    Panicked(Panic),
    /// The worker died while it ran the task: it crashed, was killed, or called
    /// [`std::process::exit`].
    #[error(
        "worker {pid} died while it ran the task: {status}{}",
        tail(stderr_tail)
    )]
    WorkerDied {
        /// The worker's process id.
        pid: u32,
        /// How it ended.
        status: ExitStatus,
        /// The last lines that it wrote to stderr.
        stderr_tail: String,
    },
    /// The worker sent what no worker sends, and was killed while it ran the task.
    #[error("worker {pid} broke the protocol: {what}")]
    ProtocolViolation {
        /// The worker's process id.
        pid: u32,
        /// What it did.
        what: String,
    },
    /// The task ran longer than allowed, and was stopped.
    #[error("the task ran longer than allowed")]
    TimedOut,
    /// The task was cancelled, or the pool was terminated before the task was finished.
    #[error("the task was cancelled")]
    Cancelled,
    /// The argument could not be serialised here, or the result in the worker.
    #[error("{0}")]
    Encode(String),
    /// The argument could not be read in the worker, or the result here.
    #[error("{0}")]
    Decode(String),
    /// The function is not part of the program's main executable, so workers cannot call it.
    #[error(transparent)]
    ForeignFunction(#[from] ForeignFunction),
    /// A chunk of no items was asked for.
    #[error("a chunk needs at least one item")]
    ChunkSize,
    /// The pool takes no more tasks: it was closed or terminated.
    #[error("the pool is closed")]
    PoolClosed,
    /// Too many workers in a row died before they had finished anything, so the pool has given up.
    #[error("the pool is broken: {0}")]
    Restarts(String),
}

/// Why a pool could not be built or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// A pool of no workers was asked for.
    #[error("a pool needs at least one process")]
    NoProcesses,
    /// A setting that must be at least one was zero; its name.
    #[error("{0} must be at least one")]
    Zero(&'static str),
    /// A worker could not be started; the others were stopped.
    #[error("a worker of the pool cannot be started: {0}")]
    Start(#[from] StartError),
    /// The pool is closed, terminated or broken.
    #[error("the pool is closed")]
    Closed,
}

fn tail(stderr: &str) -> String {
    if stderr.is_empty() {
        String::new()
    } else {
        format!("; it wrote: {}", stderr.trim_end())
    }
}
