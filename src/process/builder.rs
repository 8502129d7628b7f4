//! What is to be said of a process before it starts.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::context::StartMethod;
use super::entry::Child;
use super::function::{Function, Outcome};
use super::start::fork::{self, OtherThreads};
use super::start::{Attributes, Launch, What, launch};
use super::{Limits, Process, Stdio, call, info};
use crate::error::StartError;
use crate::wire::fds;

/// The longest result that a process may send, and the longest argument: just under 4 GiB.
const MESSAGE_LIMIT: u32 = u32::MAX - 4096;

/// How a process is to be started.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tokio_multiprocess::Process;
///
/// let process = Process::builder()
///     .name("greeter")
///     .env("GREETING", "hello")
///     .start(|name: String| format!("{} {name}", std::env::var("GREETING").unwrap()), "bob".into())
///     .await?;
/// assert_eq!(process.join().await?, "hello bob");
/// # Ok(()) }
/// ```
#[derive(Debug, Default)]
#[must_use = "a builder starts nothing by itself"]
pub struct ProcessBuilder {
    name: Option<String>,
    method: Option<StartMethod>,
    kill_on_drop: bool,
    attributes: Attributes,
}

impl ProcessBuilder {
    /// A process with a number for a name, by the default method, with no stdin, this process'
    /// stdout and stderr, and no limits of its own.
    pub fn new() -> Self {
        Self::default()
    }

    /// Its name, in error messages and, up to 15 bytes, in `ps`. The default is `Process-N`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// How it is started; by default as [`start_method`](crate::start_method) says.
    ///
    /// The process has the same method as its own default.
    pub fn start_method(mut self, method: StartMethod) -> Self {
        self.method = Some(method);
        self
    }

    /// Whether dropping the handle kills the process. By default it runs on.
    pub fn kill_on_drop(mut self, kill: bool) -> Self {
        self.kill_on_drop = kill;
        self
    }

    /// Sets a variable in its environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.attributes
            .environment
            .set(name.as_ref(), value.as_ref());
        self
    }

    /// Removes a variable from its environment.
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.attributes.environment.remove(name.as_ref());
        self
    }

    /// Empties its environment, and forgets what was set or removed before.
    pub fn env_clear(mut self) -> Self {
        self.attributes.environment.clear();
        self
    }

    /// The directory in which it begins.
    pub fn current_dir(mut self, directory: impl AsRef<Path>) -> Self {
        self.attributes.directory = Some(directory.as_ref().to_owned());
        self
    }

    /// Its stdin: nothing to be read, unless set here.
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.attributes.stdin = stdin.into();
        self
    }

    /// Its stdout: that of this process, unless set here.
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.attributes.stdout = stdout.into();
        self
    }

    /// Its stderr. Inherited, as it is by default, it is passed on through this process, which
    /// keeps the last lines for error reports.
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.attributes.stderr = stderr.into();
        self
    }

    /// Bounds on what it may use.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.attributes.limits = limits;
        self
    }

    /// Starts a process that calls `function` with `argument`, as [`Process::start`] does.
    ///
    /// # Errors
    ///
    /// As [`Process::start`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a dropped future kills the process if it has been made already.
    pub async fn start<A, O, M>(
        self,
        function: fn(A) -> O,
        argument: A,
    ) -> Result<Process<O::Output>, StartError>
    where
        A: Serialize + DeserializeOwned + Send + 'static,
        O: Outcome<M> + 'static,
        O::Output: DeserializeOwned,
    {
        let function = Function::of(function)?;
        let mut encoded = Vec::new();
        let outgoing = fds::encode_with_fds(&argument, &mut encoded).map_err(StartError::Encode)?;
        if encoded.len() > MESSAGE_LIMIT as usize {
            let (len, limit) = (encoded.len(), MESSAGE_LIMIT as usize);
            return Err(StartError::TooLong { len, limit });
        }
        let (name, path) = self.name_and_path();
        // Until the process is there the value's handles are this one's: a failed start gives them
        // back to whoever can use them.
        let (fds, moving) = outgoing.into_parts();
        let launched = launch(Launch {
            name: name.clone(),
            path,
            method: self.method,
            what: What::Call,
            main: call::main,
            payload: call::payload(function, &encoded),
            fds,
            frame_limit: MESSAGE_LIMIT,
            attributes: Arc::new(self.attributes),
        })
        .await?;
        moving.commit();
        Ok(Process::new(name, launched, self.kill_on_drop))
    }

    /// Copies this process; the copy runs `function` and ends.
    ///
    /// The closure may capture anything, and nothing is serialised on the way in. It runs on a
    /// fresh thread; the copy has no other threads of this process. It leaves without exit
    /// handlers and without dropping anything of this process. The call blocks for as long as the
    /// copy takes: about 40 us and 20 us more for each MiB that this process has touched.
    ///
    /// # Safety
    ///
    /// In the copy, until it ends:
    ///
    /// - nothing of tokio that existed before may be used, polled or dropped: not a runtime, a
    ///   handle, a task, a socket. Its epoll set is shared with this process, which would go wrong,
    ///   up to memory corruption *in this process*. tokio supports a fork only before its first use;
    /// - memory mapped as shared must not be reached through `&mut` by both;
    /// - random generators and cached process ids are copies: reseed what must differ;
    /// - the caller must hold no lock that `function` takes, stdout's included.
    ///
    /// # Errors
    ///
    /// [`StartError::MultiThreaded`] if this process has threads besides the calling one and the
    /// supervisor's, since the locks that they hold would stay locked in the copy for ever; or the
    /// kernel refused.
    #[expect(unsafe_code, reason = "a fork's contract is the caller's")]
    pub unsafe fn fork<R>(
        self,
        function: impl FnOnce() -> R + Send + 'static,
    ) -> Result<Process<R>, StartError>
    where
        R: Serialize + DeserializeOwned,
    {
        self.copy(OtherThreads::Refuse, function)
    }

    /// Copies this process although it has other threads.
    ///
    /// # Safety
    ///
    /// As [`fork`](Self::fork), and until it ends the copy must not use anything that another
    /// thread of this process may have had locked: glibc repairs its allocator and standard
    /// streams, but not the environment, time zones, locales or `random`; Rust's `println!` and
    /// `std::env`, and the locks of other crates, are not repaired.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    #[expect(unsafe_code, reason = "a fork's contract is the caller's")]
    pub unsafe fn fork_multithreaded<R>(
        self,
        function: impl FnOnce() -> R + Send + 'static,
    ) -> Result<Process<R>, StartError>
    where
        R: Serialize + DeserializeOwned,
    {
        self.copy(OtherThreads::Accept, function)
    }

    fn copy<R>(
        self,
        other_threads: OtherThreads,
        function: impl FnOnce() -> R + Send + 'static,
    ) -> Result<Process<R>, StartError>
    where
        R: Serialize + DeserializeOwned,
    {
        let (name, path) = self.name_and_path();
        let main = move |child: Child| call::run_closure(&child, function);
        let forked = fork::fork(
            (name.clone(), path),
            &Arc::new(self.attributes),
            What::Call,
            MESSAGE_LIMIT,
            other_threads,
            main,
        )?;
        Ok(Process::new(name, forked.at_once(), self.kill_on_drop))
    }

    fn name_and_path(&self) -> (String, String) {
        let path = info::next_child();
        (
            self.name
                .clone()
                .unwrap_or_else(|| format!("Process-{path}")),
            path,
        )
    }
}
