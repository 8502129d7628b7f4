//! A process that runs, or has run.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::unix::pipe;

use super::function::Outcome;
use super::start::{Conclusion, Exit, Launched, Pipes, Signals};
use super::{ProcessBuilder, call};
use crate::error::{ExitStatus, ProcessError, StartError};
use crate::sys::signal;

/// A process of this program that runs one function.
///
/// The function is a `fn`, an `async fn`, or a closure that captures nothing; the argument and the
/// result travel by serde. The process has this one's environment, working directory, limits and
/// stdout; its stdin is empty. What it writes to stderr is passed on and complete when it has ended.
///
/// Dropping the handle lets the process run on, as dropping a tokio handle does; it is reaped all
/// the same. It dies with this process, whatever ends that.
///
/// # Process death
///
/// [`join`](Self::join) tells a result from a panic, an exit code and a signal, and never hangs
/// after the process has ended. Whatever is left in its process group then is killed.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tokio_multiprocess::{Process, ProcessError};
///
/// let process = Process::start(|(a, b): (u32, u32)| a * b, (6, 7)).await?;
/// assert_eq!(process.join().await?, 42);
///
/// let process = Process::start(|code: i32| -> () { std::process::exit(code) }, 3).await?;
/// assert!(matches!(process.join().await, Err(ProcessError::Exited(3))));
/// # Ok(()) }
/// ```
pub struct Process<R> {
    pid: u32,
    name: String,
    exit: Exit,
    signals: Signals,
    pipes: Pipes,
    kill_on_drop: bool,
    taken: AtomicBool,
    result: PhantomData<fn() -> R>,
}

impl Process<()> {
    /// What is to be said of a process before it starts.
    pub fn builder() -> ProcessBuilder {
        ProcessBuilder::new()
    }
}

impl<R> Process<R> {
    /// Starts a process that calls `function` with `argument`.
    ///
    /// Comes back when the process is about to call it.
    ///
    /// # Errors
    ///
    /// The argument does not encode; the function lies in a shared library; the program was not
    /// prepared (see [`init`](crate::init)); the kernel refused; the process ended, or did not
    /// answer in time.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a dropped future kills the process if it has been made already.
    pub async fn start<A, O, M>(function: fn(A) -> O, argument: A) -> Result<Self, StartError>
    where
        A: Serialize + DeserializeOwned + Send + 'static,
        O: Outcome<M, Output = R> + 'static,
        R: DeserializeOwned,
    {
        ProcessBuilder::new().start(function, argument).await
    }

    pub(super) fn new(name: String, launched: Launched, kill_on_drop: bool) -> Self {
        let signals = launched.signals();
        let Launched {
            pid, exit, pipes, ..
        } = launched;
        let taken = AtomicBool::new(false);
        Self {
            pid,
            name,
            exit,
            signals,
            pipes,
            kill_on_drop,
            taken,
            result: PhantomData,
        }
    }

    /// Waits for the process' end and takes its result.
    ///
    /// # Errors
    ///
    /// The function panicked; the process left before the function returned, by an exit or by a
    /// signal; the result cannot be encoded there or decoded here; or it was taken before.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a dropped future takes nothing, and another `join` gets the result.
    pub async fn join(&self) -> Result<R, ProcessError>
    where
        R: DeserializeOwned,
    {
        let conclusion = self.exit.wait().await;
        if self.taken.swap(true, Relaxed) {
            return Err(ProcessError::ResultTaken);
        }
        self.conclude(&conclusion)
    }

    /// Waits for the process' end. It may be called any number of times, and takes no result.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: waiting changes nothing.
    pub async fn wait(&self) -> ExitStatus {
        self.exit.wait().await.status
    }

    /// As [`join`](Self::join), for threads without a runtime. Blocks until the process has ended.
    ///
    /// # Errors
    ///
    /// As [`join`](Self::join).
    pub fn blocking_join(&self) -> Result<R, ProcessError>
    where
        R: DeserializeOwned,
    {
        futures::executor::block_on(self.join())
    }

    /// As [`wait`](Self::wait), for threads without a runtime. Blocks until the process has ended.
    pub fn blocking_wait(&self) -> ExitStatus {
        futures::executor::block_on(self.wait())
    }

    fn conclude(&self, conclusion: &Conclusion) -> Result<R, ProcessError>
    where
        R: DeserializeOwned,
    {
        if let Some(violation) = &conclusion.violation {
            return Err(ProcessError::ProtocolViolation(violation.clone()));
        }
        if let Some(frame) = conclusion.take_result() {
            return call::outcome(frame);
        }
        Err(match conclusion.status {
            ExitStatus::Exited(code) => ProcessError::Exited(code),
            ExitStatus::Signaled {
                signal,
                core_dumped,
            } => ProcessError::Signaled {
                signal,
                core_dumped,
            },
            ExitStatus::Unknown => ProcessError::Unknown,
        })
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it has not ended yet.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.exit.now().is_none()
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.exit.now().map(|conclusion| conclusion.status)
    }

    /// The last lines, 4 KiB at most, that it wrote to stderr, once it has ended; nothing if its
    /// stderr was not inherited.
    #[must_use]
    pub fn stderr_tail(&self) -> Option<String> {
        self.exit
            .now()
            .map(|conclusion| conclusion.stderr_tail.clone())
    }

    /// Asks it to end, by `SIGTERM`. A process that has ended is no error.
    ///
    /// # Errors
    ///
    /// The process has taken on another user's rights, so that it may not be signalled.
    pub fn terminate(&self) -> io::Result<()> {
        self.signals.send(signal::TERMINATE)
    }

    /// Kills it, by `SIGKILL`. A process that has ended is no error.
    ///
    /// # Errors
    ///
    /// As [`terminate`](Self::terminate).
    pub fn kill(&self) -> io::Result<()> {
        self.signals.send(signal::KILL)
    }

    /// Interrupts it as Ctrl-C would, by `SIGINT`. A process that has ended is no error.
    ///
    /// # Errors
    ///
    /// As [`terminate`](Self::terminate).
    pub fn interrupt(&self) -> io::Result<()> {
        self.signals.send(signal::INTERRUPT)
    }

    /// Our end of its stdin, if that is [`piped`](crate::Stdio::piped); once.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn stdin(&mut self) -> Option<pipe::Sender> {
        self.pipes
            .stdin
            .take()
            .and_then(|fd| pipe::Sender::from_owned_fd_unchecked(fd).ok())
    }

    /// Our end of its stdout, if that is [`piped`](crate::Stdio::piped); once.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn stdout(&mut self) -> Option<pipe::Receiver> {
        receiver(self.pipes.stdout.take())
    }

    /// Our end of its stderr, if that is [`piped`](crate::Stdio::piped); once.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn stderr(&mut self) -> Option<pipe::Receiver> {
        receiver(self.pipes.stderr.take())
    }
}

fn receiver(fd: Option<OwnedFd>) -> Option<pipe::Receiver> {
    fd.and_then(|fd| pipe::Receiver::from_owned_fd_unchecked(fd).ok())
}

/// The process' pidfd, Python's `sentinel`: readable once the process has ended.
impl<R> AsFd for Process<R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}

impl<R> fmt::Debug for Process<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("pid", &self.pid)
            .field("name", &self.name)
            .field("exit_status", &self.exit_status())
            .finish_non_exhaustive()
    }
}

impl<R> Drop for Process<R> {
    fn drop(&mut self) {
        if self.kill_on_drop {
            // It has taken on another user's rights: then it is out of our reach.
            let _ = self.kill();
        }
    }
}

impl<R: DeserializeOwned + 'static> IntoFuture for Process<R> {
    type Output = Result<R, ProcessError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.join().await })
    }
}
