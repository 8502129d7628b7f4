//! What can go wrong, in one place: every error a caller may match on.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExitStatus {
    /// It left with this code, from 0 to 255.
    Exited(i32),
    /// A signal ended it.
    Signaled {
        /// The signal's number, 9 for `SIGKILL`.
        signal: i32,
        /// Whether the kernel wrote a core dump.
        core_dumped: bool,
    },
    /// It is gone, but something else in the application took its status: a `waitpid(-1)`, or an
    /// ignored `SIGCHLD` before Linux 6.15.
    Unknown,
}

impl ExitStatus {
    /// Whether it left with code 0.
    #[must_use]
    pub fn success(self) -> bool {
        self == Self::Exited(0)
    }

    /// The code it left with, unless a signal ended it.
    #[must_use]
    pub fn code(self) -> Option<i32> {
        match self {
            Self::Exited(code) => Some(code),
            _ => None,
        }
    }

    /// The signal that ended it.
    #[must_use]
    pub fn signal(self) -> Option<i32> {
        match self {
            Self::Signaled { signal, .. } => Some(signal),
            _ => None,
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Exited(code) => write!(f, "exit code {code}"),
            Self::Signaled {
                signal,
                core_dumped,
            } => {
                match usize::try_from(signal).ok().and_then(|n| SIGNALS.get(n)) {
                    Some(name) if signal > 0 => write!(f, "signal {signal} (SIG{name})")?,
                    _ => write!(f, "signal {signal}")?,
                }
                if core_dumped {
                    f.write_str(", core dumped")
                } else {
                    Ok(())
                }
            }
            Self::Unknown => f.write_str("unknown exit status"),
        }
    }
}

/// Names of the classic signals by number, as on x86-64 and aarch64.
const SIGNALS: [&str; 32] = [
    "", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// A panic in another process, as far as it can be told here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Panic {
    /// What the panic said, or `Box<dyn Any>` for a payload that is no text.
    pub message: String,
    /// Where it happened: `file:line:column`; empty if the program's own panic hook hides it.
    pub location: String,
    /// The stack at that place, one frame after the other; empty if it could not be taken.
    pub backtrace: String,
}

impl Panic {
    fn text(message: &str, location: &str) -> String {
        if location.is_empty() {
            format!("panicked: {message}")
        } else {
            format!("panicked at {location}: {message}")
        }
    }
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Self::text(&self.message, &self.location))
    }
}

impl From<Panic> for ProcessError {
    fn from(panic: Panic) -> Self {
        let Panic {
            message,
            location,
            backtrace,
        } = panic;
        Self::Panicked {
            message,
            location,
            backtrace,
        }
    }
}

/// A function that other processes of this program could not call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the function lies outside the program's main executable, in a shared library perhaps")]
pub struct ForeignFunction;

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The program has not been prepared: neither did the hook run before `main` (feature
    /// `auto-init`) nor was [`init`](crate::init) called. A child would run the whole program again.
    #[error("neither did the `auto-init` hook run nor was `tokio_multiprocess::init()` called")]
    NotInitialized,
    /// The function is not part of the program's main executable.
    #[error(transparent)]
    ForeignFunction(#[from] ForeignFunction),
    /// The argument could not be serialised.
    #[error("the argument cannot be encoded: {0}")]
    Encode(String),
    /// The argument is longer than the limit.
    #[error("the argument takes {len} bytes, more than the limit of {limit}")]
    TooLong {
        /// Bytes that it takes.
        len: usize,
        /// Bytes that are allowed.
        limit: usize,
    },
    /// The kernel refused.
    #[error("cannot {what}: {source}")]
    Os {
        /// What was asked of it.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// The child ended before it was ready.
    #[error("the process ended before it was ready: {status}{}", tail(stderr_tail))]
    Died {
        /// How it ended.
        status: ExitStatus,
        /// The last lines that it wrote to stderr.
        stderr_tail: String,
    },
    /// The child did not answer in time, and was killed.
    #[error("the process did not answer within {0:?}")]
    TimedOut(std::time::Duration),
    /// The child runs another program or another version of this library, and was killed.
    #[error("the process is not this program: {0}")]
    Mismatch(String),
    /// The child sent what it never should, and was killed.
    #[error("the process broke the protocol: {0}")]
    ProtocolViolation(String),
    /// A fork server was asked for that cannot fork safely, as a library has started threads in it.
    #[error("the fork server is not single-threaded: {}", threads.join(", "))]
    ForkServerHasThreads {
        /// The threads' names.
        threads: Vec<String>,
    },
    /// A fork was asked for in a process that has other threads, whose locks the child would copy.
    #[error("cannot fork while other threads run: {}", threads.join(", "))]
    MultiThreaded {
        /// The threads' names.
        threads: Vec<String>,
    },
    /// The initializer of a pool's worker failed.
    #[error("the initializer {0}")]
    Initializer(Panic),
}

impl StartError {
    pub(crate) fn os(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Os { what, source }
    }
}

fn tail(stderr: &str) -> String {
    if stderr.is_empty() {
        String::new()
    } else {
        format!("; it wrote: {}", stderr.trim_end())
    }
}

/// Why a process has no result.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// Its function panicked.
    #[error("the process {}", Panic::text(message, location))]
    Panicked {
        /// What the panic said.
        message: String,
        /// Where it happened: `file:line:column`.
        location: String,
        /// The stack at that place.
        backtrace: String,
    },
    /// It left before its function returned, by [`std::process::exit`] for example, with this code.
    #[error("the process left with exit code {0}")]
    Exited(i32),
    /// A signal ended it before its function returned.
    #[error("the process was ended by {}", ExitStatus::Signaled { signal: *signal, core_dumped: *core_dumped })]
    Signaled {
        /// The signal's number.
        signal: i32,
        /// Whether the kernel wrote a core dump.
        core_dumped: bool,
    },
    /// It is gone without a result, and something else took its status.
    #[error("the process is gone, and something else took its exit status")]
    Unknown,
    /// Its argument could not be read there.
    #[error("the argument cannot be decoded: {0}")]
    DecodeArgument(String),
    /// Its result could not be serialised there.
    #[error("the result cannot be encoded: {0}")]
    Encode(String),
    /// Its result could not be read here.
    #[error("the result cannot be decoded: {0}")]
    Decode(String),
    /// It sent what it never should, and was killed.
    #[error("the process broke the protocol: {0}")]
    ProtocolViolation(String),
    /// The result was taken by an earlier `join`.
    #[error("the result was taken before")]
    ResultTaken,
}

/// The process that created a shared object has ended, so nobody looks after the object any more.
///
/// Every wait on what another process has created can fail with this, and none waits for ever
/// instead. There is nothing to be repaired: the objects are of no more use, make new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("the process that created the object has ended")]
pub struct CreatorGone;

/// Why something could not be had at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum TryLockError {
    /// Somebody else has it.
    #[error("somebody else has it")]
    Busy,
    /// See [`CreatorGone`].
    #[error(transparent)]
    CreatorGone(#[from] CreatorGone),
}

/// A release without a guard for which there was no acquire without a guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("released more often than acquired")]
pub struct OverRelease;

/// Why a party did not pass a barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum BrokenBarrier {
    /// A party gave up, timed out, died or panicked in the action, or the barrier was aborted or
    /// reset.
    #[error("the barrier is broken")]
    Broken,
    /// See [`CreatorGone`].
    #[error(transparent)]
    CreatorGone(#[from] CreatorGone),
}

/// A value that was not sent, and why.
///
/// What it moves, the end of a pipe perhaps, is usable again.
#[non_exhaustive]
pub struct SendError<T> {
    /// The value.
    pub value: T,
    /// Why it was not sent.
    pub failure: SendFailure,
}

impl<T> SendError<T> {
    pub(crate) fn new(value: T, failure: SendFailure) -> Self {
        Self { value, failure }
    }

    /// The value that was not sent.
    pub fn into_inner(self) -> T {
        self.value
    }

    /// Whether nobody will ever receive by that pipe.
    pub fn is_closed(&self) -> bool {
        matches!(self.failure, SendFailure::Closed)
    }

    /// Whether there is no room now.
    pub fn is_full(&self) -> bool {
        matches!(self.failure, SendFailure::Full)
    }
}

impl<T> fmt::Debug for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("SendError");
        debug
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}

impl<T> fmt::Display for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.failure.fmt(f)
    }
}

impl<T> std::error::Error for SendError<T> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.failure.source()
    }
}

/// Why something was not sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendFailure {
    /// The other end is gone, or this one was closed.
    #[error("the pipe is closed")]
    Closed,
    /// This end has been sent to another process.
    #[error("this end of the pipe has been sent to another process")]
    Moved,
    /// There is no room now. Only what does not wait fails so.
    #[error("the pipe is full")]
    Full,
    /// The value could not be serialised.
    #[error("the message cannot be encoded: {0}")]
    Encode(String),
    /// The message is longer than the limit of this end.
    #[error("the message takes {len} bytes, more than the limit of {limit}")]
    TooLong {
        /// Bytes that it takes.
        len: usize,
        /// Bytes that are allowed.
        limit: usize,
    },
    /// The kernel refused.
    #[error("cannot send: {0}")]
    Io(#[source] io::Error),
}

/// Why nothing was received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// The other end is gone, and everything that it has sent has been received.
    #[error("the pipe is closed")]
    Closed,
    /// The other end died inside of a message.
    #[error("the pipe ends inside of a message")]
    Torn,
    /// This end has been sent to another process.
    #[error("this end of the pipe has been sent to another process")]
    Moved,
    /// The message is no value of this type. It is lost, the next one can be received.
    #[error("the message cannot be decoded: {0}")]
    Decode(String),
    /// The message is longer than the limit of this end. Receiving again fails again, unless the
    /// limit is raised.
    #[error("a message of {len} bytes exceeds the limit of {limit}")]
    TooLong {
        /// Bytes that it takes.
        len: usize,
        /// Bytes that are allowed.
        limit: usize,
    },
    /// The message brought file descriptors and this process has no room for them. It is lost, the
    /// next one can be received.
    #[error("the message is lost, as this process has no room for its file descriptors")]
    OutOfFds,
    /// The other end sent what this library never sends. Nothing more can be received.
    #[error("the other end broke the protocol: {0}")]
    Protocol(String),
    /// The kernel refused.
    #[error("cannot receive: {0}")]
    Io(#[source] io::Error),
}

impl RecvError {
    /// Whether receiving again fails again.
    pub(crate) fn is_lasting(&self) -> bool {
        !matches!(self, Self::Decode(_) | Self::OutOfFds)
    }
}

/// Why nothing was received at once.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TryRecvError {
    /// There is no message yet.
    #[error("the pipe is empty")]
    Empty,
    /// There will be none.
    #[error(transparent)]
    Failed(#[from] RecvError),
}

/// Why an item was not put into a queue. It comes back with the error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PutError<T> {
    /// There is no room now; only what does not wait fails so.
    #[error("the queue is full")]
    Full(T),
    /// The queue was closed, or nobody can get from it any more.
    #[error("the queue is closed")]
    Closed(T),
    /// See [`CreatorGone`].
    #[error("the process that created the queue has ended")]
    CreatorGone(T),
    /// The item could not be serialised.
    #[error("the item cannot be encoded: {1}")]
    Encode(T, String),
    /// The system has no memory or descriptors left.
    #[error("the item cannot be put: {1}")]
    System(T, io::Error),
}

impl<T> PutError<T> {
    /// The item that was not put.
    #[must_use]
    pub fn into_item(self) -> T {
        match self {
            Self::Full(item)
            | Self::Closed(item)
            | Self::CreatorGone(item)
            | Self::Encode(item, _)
            | Self::System(item, _) => item,
        }
    }
}

/// Why no item came out of a queue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GetError {
    /// There is nothing now; only what does not wait fails so.
    #[error("the queue is empty")]
    Empty,
    /// There is nothing, and nothing will come: the queue was closed, or nobody can put any more.
    #[error("the queue is closed")]
    Closed,
    /// See [`CreatorGone`].
    #[error(transparent)]
    CreatorGone(#[from] CreatorGone),
    /// An item came that could not be read.
    #[error("the item cannot be decoded: {0}")]
    Decode(String),
    /// The queue was not made with leases.
    #[error("the queue was made without leases")]
    NoLeases,
    /// The system has no memory or descriptors left.
    #[error("the item cannot be got: {0}")]
    System(io::Error),
}

/// Why an item could not be reported as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum TaskDoneError {
    /// Every item that was got has been reported already.
    #[error("reported more items as done than were got")]
    TooMany,
    /// See [`CreatorGone`].
    #[error(transparent)]
    CreatorGone(#[from] CreatorGone),
}
