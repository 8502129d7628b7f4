//! The fork server: a small helper process, copied on request.
//!
//! Its copies cost about 0.1 ms whatever the size of this process, its threads and descriptors,
//! since the helper has none of that. It is this same program, taken over before `main`, with one
//! thread and no tokio. By `CLONE_PARENT` each copy is a child of this process, so it is reaped
//! exactly and outlives the helper. A request is one message with the new child's control socket;
//! whoever starts a process sends it directly, so that no other thread need wake up.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::sync::{oneshot, watch};

use super::attend::Attendant;
use super::{Attempt, BEGUN_WITHIN, Launch, Pipes, frames, prepare, send_start, spawn};
use crate::error::StartError;
use crate::process::entry;
use crate::process::inherit::{Snapshot, environment_now};
use crate::supervisor::{self, Announcement, Birth, Control, End, Entry, Listener, NewChild, Next};
use crate::sys::pidfd::Pidfd;
use crate::sys::socket::{self, Wait};
use crate::wire::codec;
use crate::wire::frame::{Frame, HEADER_LEN, Header, Splitter};

/// A helper that serves.
pub(super) struct Server {
    socket: Arc<OwnedFd>,
    /// What its copies inherit.
    snapshot: Snapshot,
    /// Its threads, if it has others than the one that serves; it is only the guardian then.
    threads: Vec<String>,
}

#[derive(Default)]
enum State {
    #[default]
    Absent,
    /// Its first word is awaited.
    Starting(watch::Receiver<Option<Answer>>),
    Serving(Arc<Server>),
}

type Answer = Result<Arc<Server>, String>;

static STATE: Mutex<State> = Mutex::new(State::Absent);

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets the parent's helper in a forked child, which will start its own.
pub(super) fn forget_inherited() {
    // Not dropped: tasks of the parent's runtime may wait in it.
    std::mem::forget(std::mem::take(&mut *state()));
}

/// Starts the helper if there is none, so that somebody guards the processes of this one.
fn guard() {
    drop(current());
}

/// Starts the helper at once if there is none, on the supervisor's thread.
///
/// A process that does not come from the helper is made after this: so there is no moment at which
/// it could have made others and nobody knew of it.
pub(super) fn guard_first() {
    let mut state = state();
    if let State::Absent = *state {
        let (sender, receiver) = watch::channel(None);
        *state = State::Starting(receiver);
        drop(state);
        begin(sender);
    }
}

/// The fork server, started if need be. Nothing if it cannot fork and none was asked for
/// explicitly.
pub(super) async fn server(explicit: bool) -> Result<Option<Arc<Server>>, StartError> {
    let server = match current() {
        Ok(server) => server,
        Err(answer) => wait_for(answer).await?,
    };
    if server.threads.is_empty() {
        return Ok(Some(server));
    }
    if explicit {
        return Err(StartError::ForkServerHasThreads {
            threads: server.threads.clone(),
        });
    }
    static WARNED: AtomicBool = AtomicBool::new(false);
    if !WARNED.swap(true, Relaxed) {
        let threads = server.threads.join(", ");
        tracing::warn!(
            threads,
            "the fork server is not single-threaded: processes are spawned"
        );
    }
    Ok(None)
}

async fn wait_for(mut answer: watch::Receiver<Option<Answer>>) -> Result<Arc<Server>, StartError> {
    let failed = |why: String| StartError::Os {
        what: "start the fork server",
        source: io::Error::other(why),
    };
    match answer.wait_for(Option::is_some).await {
        Ok(answer) => match &*answer {
            Some(Ok(server)) => Ok(Arc::clone(server)),
            Some(Err(why)) => Err(failed(why.clone())),
            None => Err(failed("it has not answered".to_owned())),
        },
        Err(_) => Err(failed("it has not answered".to_owned())),
    }
}

/// The helper, or the answer to wait for, after having it started if there is none.
fn current() -> Result<Arc<Server>, watch::Receiver<Option<Answer>>> {
    let mut state = state();
    match &*state {
        State::Serving(server) => return Ok(Arc::clone(server)),
        State::Starting(answer) => return Err(answer.clone()),
        State::Absent => (),
    }
    let (sender, receiver) = watch::channel(None);
    *state = State::Starting(receiver.clone());
    drop(state);
    match supervisor::get() {
        Ok(supervisor) => supervisor.post(move || begin(sender)),
        Err(error) => give_up(&sender, &error),
    }
    Err(receiver)
}

fn give_up(sender: &watch::Sender<Option<Answer>>, error: &io::Error) {
    *state() = State::Absent;
    sender.send_replace(Some(Err(error.to_string())));
}

/// Starts the helper, on the supervisor's thread.
fn begin(sender: watch::Sender<Option<Answer>>) {
    let started = supervisor::get().and_then(|supervisor| {
        let snapshot = Snapshot::take();
        let (control, theirs) = socket::seqpacket_pair()?;
        // It waits in the socket, so the helper does its duty even if this process ends at once.
        let list = [supervisor.guardian.file()];
        socket::send_with_fds(&control, &[IoSlice::new(&[0])], &list, Wait::No)?;
        let requests = Arc::new(control.try_clone()?);
        let program = spawn::program(entry::HELPER, environment_now())?;
        let (pid, pidfd) = program.start(theirs)?;
        let since = Instant::now();
        let listener = HelperListener {
            sender: sender.clone(),
            requests: Arc::clone(&requests),
            snapshot: Some(snapshot),
            since,
        };
        supervisor.adopt(NewChild {
            birth: Birth::Guardian(pid, Arc::new(pidfd)),
            control,
            unsent: Bytes::new(),
            splitter: Splitter::new(64 << 10),
            stderr: None,
            begun_within: BEGUN_WITHIN,
            listener: Box::new(listener),
        })
    });
    if let Err(error) = started {
        give_up(&sender, &error);
    }
}

/// Asks for a child and takes it into care.
pub(super) async fn start(
    server: &Server,
    launch: &Launch,
    attendant: Attendant,
    pipes: &mut Pipes,
) -> Result<(), Attempt> {
    let supervisor = supervisor::get().map_err(StartError::os("start the supervisor"))?;
    let mut prepared = prepare(launch, pipes)?;
    let group = supervisor.guardian.reserve();
    let group = group.map_err(StartError::os("note a process group"))?;
    // First the request: the helper makes the child while the message to it is put together.
    if let Err(error) = request(server, &prepared.theirs, &group).await {
        if error.kind() == io::ErrorKind::TimedOut {
            return Err(StartError::TimedOut(BEGUN_WITHIN).into());
        }
        // Gone; its end may not have been noticed yet.
        forget(server);
        return Err(Attempt::Lost);
    }
    let environment = launch.attributes.environment.apply();
    let changed = server
        .snapshot
        .changes(environment, &mut prepared.inheritance)
        .map_err(StartError::os("open the working directory"))?;
    if prepared.directory.is_none() {
        prepared.directory = changed;
    }
    let unsent = match send_start(launch, &mut prepared) {
        Ok(unsent) => unsent,
        Err(StartError::Os { source, .. }) if is_gone(&source) => Bytes::new(),
        // The child finds its socket closed, and leaves; it is adopted to be reaped.
        Err(error) => {
            attendant_of_nobody(supervisor, prepared, group)?;
            return Err(Attempt::Failed(error));
        }
    };
    let super::Prepared {
        control,
        theirs,
        stderr,
        ..
    } = prepared;
    drop(theirs);
    let mut splitter = Splitter::new(launch.frame_limit);
    let birth = birth(supervisor, &control, &mut splitter, group)?;
    supervisor
        .adopt(NewChild {
            birth,
            control,
            unsent,
            splitter,
            stderr,
            begun_within: BEGUN_WITHIN,
            listener: Box::new(attendant),
        })
        .map_err(StartError::os("look after the process"))?;
    Ok(())
}

/// Sends the request. Many at once fill the socket, of which the helper takes one in 0.1 ms.
async fn request(server: &Server, theirs: &OwnedFd, group: &Entry) -> io::Result<()> {
    const PAUSE: Duration = Duration::from_millis(1);
    let place = group.place().to_le_bytes();
    let slices = [IoSlice::new(&place)];
    let since = Instant::now();
    loop {
        match socket::send_with_fds(&server.socket, &slices, &[theirs.as_fd()], Wait::No) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
            sent => return sent.map(drop),
        }
        if since.elapsed() > BEGUN_WITHIN {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let (wake, woken) = oneshot::channel();
        supervisor::after(PAUSE, move || {
            // Nobody waits any more: nobody is woken.
            let _ = wake.send(());
        })?;
        // The supervisor never drops a timer that has not gone off.
        let _ = woken.await;
    }
}

/// Reads the helper's word on the child if it has come, as it mostly has: the supervisor need not
/// wake up for it then.
fn birth(
    supervisor: &'static supervisor::Supervisor,
    control: &OwnedFd,
    splitter: &mut Splitter,
    group: Entry,
) -> Result<Birth, Attempt> {
    let mut word = BytesMut::new();
    let mut fds = Vec::new();
    let fds_lost = match socket::recv_with_fds(control, &mut word, HEADER_LEN, &mut fds, Wait::No) {
        // The supervisor will find it, or the end.
        Err(_) => return Ok(Birth::Announced(group)),
        Ok(received) if received.len == 0 => {
            // It may have made the child before it died.
            supervisor.bury(group);
            return Err(Attempt::Lost);
        }
        Ok(received) => received.fds_lost,
    };
    let header = word.first_chunk().map(Header::from_bytes);
    let header = header.and_then(Result::ok).filter(Announcement::is_in);
    let Some(header) = header else {
        // The child was faster than the helper, whose word the supervisor will find.
        splitter.room().0.extend_from_slice(&word);
        splitter.add_fds(fds, fds_lost);
        return Ok(Birth::Announced(group));
    };
    let announced = Announcement::of(&header).map_err(StartError::ProtocolViolation)?;
    match (announced, fds.pop()) {
        (Announcement::Born(pid), Some(pidfd)) => {
            Ok(Birth::Known(pid, Arc::new(pidfd.into()), group))
        }
        (Announcement::Born(_), None) => {
            supervisor.bury(group);
            Err(StartError::os("keep a pidfd")(socket::no_room()).into())
        }
        (Announcement::NotBorn(error), _) => Err(StartError::os("fork")(error).into()),
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

/// Looks after a child that was asked for and cannot be told what to do.
fn attendant_of_nobody(
    supervisor: &'static supervisor::Supervisor,
    prepared: super::Prepared,
    group: Entry,
) -> Result<(), StartError> {
    let (answer, _) = oneshot::channel();
    let (end, _) = watch::channel(None);
    let super::Prepared {
        control,
        theirs,
        stderr,
        ..
    } = prepared;
    drop(theirs);
    socket::end_sending(&control).map_err(StartError::os("close a control socket"))?;
    supervisor
        .adopt(NewChild {
            birth: Birth::Announced(group),
            control,
            unsent: Bytes::new(),
            splitter: Splitter::new(0),
            stderr,
            begun_within: BEGUN_WITHIN,
            listener: Box::new(Attendant::new("", super::What::Call, Some(answer), end)),
        })
        .map_err(StartError::os("look after the process"))
}

/// Takes a helper that does not listen out of service.
fn forget(server: &Server) {
    let mut state = state();
    if let State::Serving(serving) = &*state
        && Arc::ptr_eq(&serving.socket, &server.socket)
    {
        *state = State::Absent;
    }
}

/// Listens to the helper.
struct HelperListener {
    sender: watch::Sender<Option<Answer>>,
    requests: Arc<OwnedFd>,
    snapshot: Option<Snapshot>,
    since: Instant,
}

impl Listener for HelperListener {
    fn born(&mut self, _: u32, _: &Arc<Pidfd>) {}

    fn frame(&mut self, frame: Frame) -> Next {
        let Some(snapshot) = self
            .snapshot
            .take()
            .filter(|_| frame.header.kind == frames::READY)
        else {
            return Next::Violation("the fork server sent what it never should".to_owned());
        };
        let threads = match codec::decode(&frame.body) {
            Ok(threads) => threads,
            Err(error) => return Next::Violation(error),
        };
        let socket = Arc::clone(&self.requests);
        let server = Arc::new(Server {
            socket,
            snapshot,
            threads,
        });
        *state() = State::Serving(Arc::clone(&server));
        self.sender.send_replace(Some(Ok(server)));
        Next::Continue
    }

    fn has_begun(&self) -> bool {
        self.snapshot.is_none()
    }

    fn released(&mut self, _: Control) {}

    fn ended(self: Box<Self>, end: End) {
        /// A helper that lived shorter than this is replaced after a pause of the same length.
        const SHORT_LIFE: Duration = Duration::from_millis(200);
        let was_serving = self.snapshot.is_none();
        {
            let mut state = state();
            let is_mine = match &*state {
                State::Serving(server) => Arc::ptr_eq(&server.socket, &self.requests),
                State::Starting(_) => !was_serving,
                State::Absent => false,
            };
            if is_mine {
                *state = State::Absent;
            }
        }
        let status = end.status;
        self.sender.send_if_modified(|answer| {
            let silent = answer.is_none();
            if silent {
                *answer = Some(Err(format!("it ended before it served: {status:?}")));
            }
            silent
        });
        let Some(supervisor) = supervisor::running() else {
            return;
        };
        if supervisor.guardian.has_groups() {
            if self.since.elapsed() > SHORT_LIFE {
                guard();
            } else if let Err(error) = supervisor::after(SHORT_LIFE, guard) {
                tracing::warn!(%error, "nobody guards the processes until the next start");
            }
        }
    }
}
