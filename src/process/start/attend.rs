//! Listening to one child for whoever started it.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{oneshot, watch};

use super::{Pipes, frames};
use crate::error::{ExitStatus, Panic, StartError};
use crate::process::info;
use crate::supervisor::{Cause, Control, End, Listener, Next};
use crate::sys::pidfd::Pidfd;
use crate::wire::codec;
use crate::wire::frame::Frame;

/// What a child is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// One function call, whose result the child sends before it ends.
    Call,
    /// To serve on its control socket, which is handed over once it is ready.
    Worker,
}

/// A child that is ready.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) pid: u32,
    /// A worker's control socket.
    pub(crate) control: Option<Control>,
    pub(crate) exit: Exit,
    pub(crate) pipes: Pipes,
    pidfd: Arc<Pidfd>,
}

impl Launched {
    pub(super) fn new(ready: Ready, exit: Exit, pipes: Pipes) -> Self {
        let Ready {
            pid,
            pidfd,
            control,
        } = ready;
        Self {
            pid,
            control,
            exit,
            pipes,
            pidfd,
        }
    }

    /// The means to signal it.
    pub(crate) fn signals(&self) -> Signals {
        Signals(Arc::clone(&self.pidfd))
    }
}

/// Signals one process, and never another one that has got its number.
#[derive(Clone, Debug)]
pub(crate) struct Signals(Arc<Pidfd>);

impl Signals {
    /// Sends a signal of [`crate::sys::signal`]; a process that has ended is no error.
    pub(crate) fn send(&self, signal: i32) -> std::io::Result<()> {
        self.0.signal(signal)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How a child ended, and what it left.
pub(crate) struct Conclusion {
    pub(crate) status: ExitStatus,
    pub(crate) stderr_tail: String,
    /// It did what it never should, and was killed for it.
    pub(crate) violation: Option<String>,
    /// The last frame of a [`What::Call`].
    result: Mutex<Option<Frame>>,
}

impl fmt::Debug for Conclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conclusion")
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

/// The news of a child's end.
#[derive(Clone, Debug)]
pub(crate) struct Exit(watch::Receiver<Option<Arc<Conclusion>>>);

impl Exit {
    pub(super) fn new(ended: watch::Receiver<Option<Arc<Conclusion>>>) -> Self {
        Self(ended)
    }

    /// Waits for the end. Works on every runtime, and on none.
    pub(crate) async fn wait(&self) -> Arc<Conclusion> {
        let mut ended = self.0.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(conclusion) => conclusion.clone(),
            // The supervisor drops a listener only after it has told it the end.
            Err(_) => None,
        }
        .unwrap_or_else(|| Arc::new(Conclusion::unknown()))
    }

    /// The end, if it has come.
    pub(crate) fn now(&self) -> Option<Arc<Conclusion>> {
        self.0.borrow().clone()
    }
}

impl Conclusion {
    /// The last frame of a [`What::Call`], once.
    pub(crate) fn take_result(&self) -> Option<Frame> {
        self.result
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn unknown() -> Self {
        let (stderr_tail, violation, result) = (String::new(), None, Mutex::default());
        Self {
            status: ExitStatus::Unknown,
            stderr_tail,
            violation,
            result,
        }
    }
}

/// What whoever waits for the start is told.
pub(super) struct Ready {
    pub(super) pid: u32,
    pub(super) pidfd: Arc<Pidfd>,
    pub(super) control: Option<Control>,
}

impl Ready {
    /// Nobody wants the child any more.
    pub(super) fn kill(&self) {
        // It runs, or has ended by itself.
        let _ = self.pidfd.signal(crate::sys::signal::KILL);
    }
}

/// Why there is no child that is ready.
pub(super) enum NotReady {
    /// The fork server is gone, and the child was not made.
    Lost,
    Failed(StartError),
}

pub(super) type Answer = oneshot::Sender<Result<Ready, NotReady>>;

/// The listener.
pub(super) struct Attendant {
    name: String,
    what: What,
    /// Taken when the start has succeeded or failed.
    answer: Option<Answer>,
    born: Option<(u32, Arc<Pidfd>)>,
    /// The child is the right program.
    started: bool,
    /// Why it is of no use, told by itself.
    refusal: Option<StartError>,
    result: Option<Frame>,
    end: watch::Sender<Option<Arc<Conclusion>>>,
}

impl Attendant {
    pub(super) fn new(
        name: &str,
        what: What,
        answer: Option<Answer>,
        end: watch::Sender<Option<Arc<Conclusion>>>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            what,
            answer,
            born: None,
            started: false,
            refusal: None,
            result: None,
            end,
        }
    }

    /// There will be no child.
    pub(super) fn fail(mut self, error: StartError) {
        if let Some(answer) = self.answer.take() {
            // Nobody waits any more: nobody is told.
            let _ = answer.send(Err(NotReady::Failed(error)));
        }
    }

    /// Answers if there is all that belongs to the answer. Tells whether the child is wanted.
    fn answer(&mut self, control: Option<Control>) -> bool {
        let Some((pid, pidfd)) = &self.born else {
            return true;
        };
        let Some(answer) = self.answer.take() else {
            return true;
        };
        answer
            .send(Ok(Ready {
                pid: *pid,
                pidfd: Arc::clone(pidfd),
                control,
            }))
            .is_ok()
    }

    fn refuse(&mut self, error: StartError) -> Next {
        self.refusal = Some(error);
        Next::Kill
    }
}

impl Listener for Attendant {
    fn born(&mut self, pid: u32, pidfd: &Arc<Pidfd>) {
        self.born = Some((pid, Arc::clone(pidfd)));
        info::add_child(pid, &self.name);
        if self.started && self.what == What::Call && !self.answer(None) {
            // The start was given up.
            let _ = pidfd.signal(crate::sys::signal::KILL);
        }
    }

    fn frame(&mut self, frame: Frame) -> Next {
        match (frame.header.kind, self.what) {
            (frames::STARTED, _) if !self.started => {
                self.started = true;
                let wanted = self.what == What::Worker || self.answer(None);
                if wanted { Next::Continue } else { Next::Kill }
            }
            (frames::REFUSED, _) if !self.started => {
                let why = String::from_utf8_lossy(&frame.body).into_owned();
                self.refuse(StartError::Mismatch(why))
            }
            (frames::READY, What::Worker) if self.started => Next::Release,
            (frames::NOT_READY, What::Worker) if self.started => {
                match codec::decode::<Panic>(&frame.body) {
                    Ok(panic) => self.refuse(StartError::Initializer(panic)),
                    Err(error) => Next::Violation(format!("its report cannot be decoded: {error}")),
                }
            }
            (frames::RESULT | frames::FAILED, What::Call)
                if self.started && self.result.is_none() =>
            {
                self.result = Some(frame);
                Next::Finish
            }
            (kind, _) => Next::Violation(format!("it sent a frame of kind {kind} out of turn")),
        }
    }

    fn has_begun(&self) -> bool {
        self.started || self.answer.is_none()
    }

    fn is_wanted(&self) -> bool {
        !self.answer.as_ref().is_some_and(oneshot::Sender::is_closed)
    }

    fn released(&mut self, control: Control) {
        if !self.answer(Some(control)) {
            // The start was given up, and the control socket with it: the child notices.
            if let Some((_, pidfd)) = &self.born {
                let _ = pidfd.signal(crate::sys::signal::KILL);
            }
        }
    }

    fn ended(mut self: Box<Self>, end: End) {
        let End {
            status,
            stderr_tail,
            cause,
        } = end;
        if let Some((pid, _)) = &self.born {
            info::remove_child(*pid, &self.name);
        }
        let answer = self.answer.take();
        let mut violation = None;
        let failure = match (cause, self.refusal.take(), status) {
            (_, Some(refusal), _) => NotReady::Failed(refusal),
            (Some(Cause::Lost), ..) => NotReady::Lost,
            (Some(Cause::NotBorn(source)), ..) => NotReady::Failed(StartError::Os {
                what: "fork",
                source,
            }),
            (Some(Cause::TimedOut(limit)), ..) => NotReady::Failed(StartError::TimedOut(limit)),
            (Some(Cause::Violation(what)), ..) => {
                violation = Some(what.clone());
                NotReady::Failed(StartError::ProtocolViolation(what))
            }
            (None, None, status) => NotReady::Failed(StartError::Died {
                status: status.unwrap_or(ExitStatus::Unknown),
                stderr_tail: stderr_tail.clone(),
            }),
        };
        if let Some(answer) = answer {
            // Nobody waits any more: nobody is told.
            let _ = answer.send(Err(failure));
        }
        let status = status.unwrap_or(ExitStatus::Unknown);
        let result = Mutex::new(self.result.take());
        let conclusion = Conclusion {
            status,
            stderr_tail,
            violation,
            result,
        };
        self.end.send_replace(Some(Arc::new(conclusion)));
    }
}
