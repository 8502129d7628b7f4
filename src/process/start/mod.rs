//! The ways a process comes to be, behind one door: [`launch`].
//!
//! `spawn` executes the program's file again; `forkserver` asks the helper, which runs in `helper`,
//! for a copy of itself; `fork` copies this process. The first two send the same first message
//! (`frames`) and are told apart by nobody above. `attend` listens to the child for us.

mod attend;
pub(crate) mod fork;
mod forkserver;
pub(super) mod frames;
pub(super) mod helper;
mod rehearsal;
mod spawn;

use std::ffi::{OsStr, OsString};
use std::future::Future;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use self::attend::Attendant;
pub(crate) use self::attend::{Conclusion, Exit, Launched, Signals, What};
use self::frames::Start;
use super::context::StartMethod;
use super::entry;
use super::function::{self, Main};
use super::inherit::{Inheritance, environment_now};
use super::limits::Limits;
use super::stdio::Stdio;
use super::{context, info};
use crate::error::StartError;
use crate::supervisor;
use crate::sys::image::ImageId;
use crate::sys::socket::{self, Wait};
use crate::sys::{pipe, rlimit};
use crate::wire::codec;
use crate::wire::frame::{HEADER_LEN, Header};

/// How long a child may take until it is about to run its main function. Generous, as a machine
/// may start hundreds at once; a child that is there but runs something else is found at once.
pub(crate) const BEGUN_WITHIN: Duration = Duration::from_secs(30);

/// How often a start is repeated whose fork server died in the middle.
const ATTEMPTS: usize = 4;

/// A child to be.
pub(crate) struct Launch {
    pub(crate) name: String,
    /// The numbers that lead to it from the main process.
    pub(crate) path: String,
    /// How; nothing means the default, which falls back to spawn where a fork server cannot work.
    pub(crate) method: Option<StartMethod>,
    pub(crate) what: What,
    pub(crate) main: Main,
    /// For the main function.
    pub(crate) payload: Bytes,
    /// For the main function.
    pub(crate) fds: Vec<Arc<OwnedFd>>,
    /// The longest frame that the child may send before its control socket is handed over.
    pub(crate) frame_limit: u32,
    pub(crate) attributes: Arc<Attributes>,
}

/// What a builder says of its processes, beyond their function.
#[derive(Debug)]
pub(crate) struct Attributes {
    pub(crate) environment: EnvironmentChanges,
    pub(crate) directory: Option<PathBuf>,
    pub(crate) stdin: Stdio,
    pub(crate) stdout: Stdio,
    pub(crate) stderr: Stdio,
    pub(crate) limits: Limits,
}

impl Default for Attributes {
    fn default() -> Self {
        Self {
            environment: EnvironmentChanges::default(),
            directory: None,
            stdin: Stdio::null(),
            stdout: Stdio::inherit(),
            stderr: Stdio::inherit(),
            limits: Limits::new(),
        }
    }
}

/// Changes to the environment, in the order in which they were asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct EnvironmentChanges {
    clear: bool,
    changes: Vec<(OsString, Option<OsString>)>,
}

impl EnvironmentChanges {
    pub(crate) fn set(&mut self, name: &OsStr, value: &OsStr) {
        self.changes.push((name.to_owned(), Some(value.to_owned())));
    }

    pub(crate) fn remove(&mut self, name: &OsStr) {
        self.changes.push((name.to_owned(), None));
    }

    pub(crate) fn clear(&mut self) {
        self.clear = true;
        self.changes.clear();
    }

    /// Whether the child has the environment of this process.
    fn is_empty(&self) -> bool {
        !self.clear && self.changes.is_empty()
    }

    /// The environment of a child that starts now.
    fn apply(&self) -> Vec<(OsString, OsString)> {
        let mut variables = if self.clear {
            Vec::new()
        } else {
            environment_now()
        };
        for (name, value) in &self.changes {
            variables.retain(|(present, _)| present != name);
            if let Some(value) = value {
                variables.push((name.clone(), value.clone()));
            }
        }
        variables
    }
}

/// Our ends of a child's standard streams that are pipes.
#[derive(Debug, Default)]
pub(crate) struct Pipes {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// Starts a child and waits until it is ready: until its main function is about to run, or, of a
/// worker, until it has said so.
///
/// Dropping the future kills a child that is not ready yet.
pub(crate) async fn launch(launch: Launch) -> Result<Launched, StartError> {
    if !entry::has_entered() {
        return Err(StartError::NotInitialized);
    }
    function::place_of_main(launch.main)?;
    let method = launch.method.unwrap_or_else(context::start_method);
    let explicit = launch.method.is_some();
    for _ in 1..ATTEMPTS {
        match attempt(&launch, method, explicit).await {
            Err(Attempt::Lost) => (),
            Err(Attempt::Failed(error)) => return Err(error),
            Ok(launched) => return Ok(launched),
        }
    }
    match attempt(&launch, method, explicit).await {
        Err(Attempt::Failed(error)) => Err(error),
        Err(Attempt::Lost) => Err(StartError::Os {
            what: "start a process: the fork server dies again and again",
            source: io::ErrorKind::BrokenPipe.into(),
        }),
        Ok(launched) => Ok(launched),
    }
}

/// Why an attempt brought no child.
enum Attempt {
    /// The fork server died before it had made one.
    Lost,
    Failed(StartError),
}

impl<E: Into<StartError>> From<E> for Attempt {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

async fn attempt(
    launch: &Launch,
    method: StartMethod,
    explicit: bool,
) -> Result<Launched, Attempt> {
    let (answer, answered) = oneshot::channel();
    let (end, ended) = watch::channel(None);
    let attendant = Attendant::new(&launch.name, launch.what, Some(answer), end);
    let mut pipes = Pipes::default();
    match method {
        StartMethod::SPAWN => spawn::start(launch, attendant, &mut pipes)?,
        StartMethod::FORK_SERVER => match forkserver::server(explicit).await? {
            Some(server) => forkserver::start(&server, launch, attendant, &mut pipes).await?,
            None => spawn::start(launch, attendant, &mut pipes)?,
        },
    }
    let ready = match Answered(answered).await {
        Ok(Ok(ready)) => ready,
        Ok(Err(attend::NotReady::Lost)) | Err(_) => return Err(Attempt::Lost),
        Ok(Err(attend::NotReady::Failed(error))) => return Err(Attempt::Failed(error)),
    };
    Ok(Launched::new(ready, Exit::new(ended), pipes))
}

/// The answer to a start. Dropped before it has come, it has the child killed.
struct Answered(oneshot::Receiver<Result<attend::Ready, attend::NotReady>>);

impl Future for Answered {
    type Output = Result<Result<attend::Ready, attend::NotReady>, oneshot::error::RecvError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context)
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        if self.0.is_terminated() {
            return;
        }
        self.0.close();
        match self.0.try_recv() {
            // It has come, and nobody has seen it.
            Ok(Ok(ready)) => ready.kill(),
            Ok(Err(_)) => (),
            Err(_) => {
                if let Some(supervisor) = supervisor::running() {
                    supervisor.kill_unwanted();
                }
            }
        }
    }
}

/// A child's sockets and its first message, before there is a child.
struct Prepared {
    /// Our end of the control socket.
    control: OwnedFd,
    /// The child's.
    theirs: OwnedFd,
    inheritance: Inheritance,
    directory: Option<OwnedFd>,
    standard: [OwnedFd; 3],
    /// The read end of a stderr that the supervisor passes on.
    stderr: Option<OwnedFd>,
}

fn prepare(launch: &Launch, pipes: &mut Pipes) -> Result<Prepared, StartError> {
    let attributes = &*launch.attributes;
    let (control, theirs) =
        socket::stream_pair().map_err(StartError::os("make a control socket"))?;
    let open = |stdio: &Stdio, number| {
        stdio
            .open(number)
            .map_err(StartError::os("open a standard stream"))
    };
    let stdin = open(&attributes.stdin, 0)?;
    let stdout = open(&attributes.stdout, 1)?;
    pipes.stdin = stdin.ours;
    pipes.stdout = stdout.ours;
    let (stderr, passed_on) = if attributes.stderr.is_inherited() {
        let (read, write) =
            pipe::for_reading().map_err(StartError::os("make a pipe for stderr"))?;
        (write, Some(read))
    } else {
        let stderr = open(&attributes.stderr, 2)?;
        pipes.stderr = stderr.ours;
        (stderr.theirs, None)
    };
    let directory = match &attributes.directory {
        Some(path) => {
            Some(open_directory(path).map_err(StartError::os("open the working directory"))?)
        }
        None => None,
    };
    let mut inheritance = Inheritance {
        name: launch.name.clone(),
        path: launch.path.clone(),
        parent_pid: std::process::id(),
        parent_name: info::own_name(),
        start_method: launch
            .method
            .unwrap_or_else(context::start_method)
            .to_byte(),
        ..Inheritance::default()
    };
    let own_affinity = rlimit::affinity().ok();
    let supervisor = supervisor::get().map_err(StartError::os("start the supervisor"))?;
    if own_affinity.as_ref() != supervisor.affinity() {
        inheritance.affinity = own_affinity;
    }
    Ok(Prepared {
        control,
        theirs,
        inheritance,
        directory,
        standard: [stdin.theirs, stdout.theirs, stderr],
        stderr: passed_on,
    })
}

fn open_directory(path: &std::path::Path) -> io::Result<OwnedFd> {
    let directory = std::fs::File::open(path)?;
    if !directory.metadata()?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    Ok(directory.into())
}

/// Sends the first message as far as it fits; returns the rest.
fn send_start(launch: &Launch, prepared: &mut Prepared) -> Result<Bytes, StartError> {
    let inheritance = &mut prepared.inheritance;
    inheritance.has_directory = prepared.directory.is_some();
    inheritance.add_limits(&launch.attributes.limits);
    let mut encoded = Vec::new();
    codec::encode(inheritance, &mut encoded).map_err(StartError::Encode)?;
    let start = Start {
        main: function::place_of_main(launch.main)?,
        inheritance: encoded.into(),
        payload: launch.payload.clone(),
    };
    let image = ImageId::current().map_err(StartError::os("look at the program's own file"))?;
    let body = start.to_body(image);
    let own = prepared.directory.iter().chain(&prepared.standard);
    let passed = launch.fds.iter().map(|fd| fd.as_fd());
    let fds: Vec<BorrowedFd<'_>> = own.map(AsFd::as_fd).chain(passed).collect();
    // The socket is empty, and holds far more than these frames' headers.
    let (before, fds) = frames::split_fds(&fds);
    let failed = || StartError::os("send the first message");
    for fds in before {
        let header = Header::more_fds(fds.len()).to_bytes();
        let slices = [IoSlice::new(&header)];
        socket::send_with_fds(&prepared.control, &slices, fds, Wait::No).map_err(failed())?;
    }
    let header = frames::header(frames::START, 0, body.len(), fds.len()).map_err(failed())?;
    let header = header.to_bytes();
    let slices = [IoSlice::new(&header), IoSlice::new(&body)];
    let sent = socket::send_with_fds(&prepared.control, &slices, fds, Wait::No).map_err(failed())?;
    // The socket was empty, and holds far more than a header.
    let body = body.freeze();
    Ok(body.slice(sent.saturating_sub(HEADER_LEN)..))
}
