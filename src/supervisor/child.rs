//! One child in the supervisor's care, from its birth to the moment when nothing of it is left.
//!
//! The order at a death is what makes the promises hold: first everything that the child has sent
//! is read (until the socket is empty, not to its end, which a grandchild may hold open); then its
//! process group is killed, while the zombie still pins the group's number; then the guardian
//! forgets the number; then the zombie is reaped; and last, once, the listener is told.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::stderr::Tail;
use super::timer::{self, TimerId};
use super::{Entry, STDERR, Supervisor};
use crate::error::ExitStatus;
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::pidfd::{Ended, Pidfd, Reap};
use crate::sys::pipe;
use crate::sys::signal;
use crate::sys::socket::{self, Wait};
use crate::wire::frame::{Frame, Header, Splitter};

/// What the supervisor takes into care.
pub(crate) struct NewChild {
    pub(crate) birth: Birth,
    pub(crate) control: OwnedFd,
    /// What is still to be written to `control`.
    pub(crate) unsent: Bytes,
    /// For what the child sends, with what has been received already.
    pub(crate) splitter: Splitter,
    /// The read end of its stderr, if that is passed on.
    pub(crate) stderr: Option<OwnedFd>,
    /// How much time it has until [`Listener::has_begun`].
    pub(crate) begun_within: Duration,
    pub(crate) listener: Box<dyn Listener>,
}

/// What is known of a child's number.
pub(crate) enum Birth {
    /// It leads a process group of this number, which has entered the list.
    Known(u32, Arc<Pidfd>, Entry),
    /// The fork server enters it, and tells on the control socket by a frame of this module's kinds.
    Announced(Entry),
    /// It is the guardian, which has no group to be killed.
    Guardian(u32, Arc<Pidfd>),
}

/// Kind of the fork server's frame: the child has the number `aux`, its pidfd comes along.
pub(crate) const BORN: u8 = 0xf0;
/// Kind of the fork server's frame: there is no child, because of the error number `aux`.
pub(crate) const NOT_BORN: u8 = 0xf1;

/// What the fork server says of a child.
#[derive(Debug)]
pub(crate) enum Announcement {
    /// It has this number.
    Born(u32),
    /// There is none.
    NotBorn(io::Error),
}

impl Announcement {
    /// Whether a frame with that header is one.
    pub(crate) fn is_in(header: &Header) -> bool {
        matches!(header.kind, BORN | NOT_BORN)
    }

    pub(crate) fn of(header: &Header) -> Result<Self, String> {
        match header.kind {
            NOT_BORN => {
                let errno = i32::try_from(header.aux).unwrap_or_default();
                Ok(Self::NotBorn(io::Error::from_raw_os_error(errno)))
            }
            BORN => match u32::try_from(header.aux) {
                Ok(pid @ 2..) => Ok(Self::Born(pid)),
                _ => Err("it was announced without a number".to_owned()),
            },
            kind => Err(format!("it was announced by a frame of kind {kind}")),
        }
    }
}

/// The layer above, for one child.
pub(crate) trait Listener: Send {
    /// The child's number is known.
    fn born(&mut self, pid: u32, pidfd: &Arc<Pidfd>);

    /// The child sent `frame`.
    fn frame(&mut self, frame: Frame) -> Next;

    /// Whether the handshake is over, so that there is no limit on its time any more.
    fn has_begun(&self) -> bool;

    /// Whether anybody still wants the child; if not, it is killed.
    fn is_wanted(&self) -> bool {
        true
    }

    /// The control socket is the listener's from now on, with what has been read beyond the last
    /// frame. Called after [`Next::Release`].
    fn released(&mut self, control: Control);

    /// Nothing of the child is left. Called once, last.
    fn ended(self: Box<Self>, end: End);
}

/// What to do after a frame.
#[derive(Debug)]
pub(crate) enum Next {
    /// Read on.
    Continue,
    /// It was the last one. Should more come all the same, it is found when the child has ended.
    Finish,
    /// Hand the control socket over.
    Release,
    /// The child did what it never should: kill it.
    Violation(String),
    /// Nobody wants it any more: kill it.
    Kill,
}

/// A control socket that is handed over.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) socket: OwnedFd,
    /// Bytes that were read beyond the last frame.
    pub(crate) rest: BytesMut,
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct End {
    /// How the process ended; nothing if there never was one.
    pub(crate) status: Option<ExitStatus>,
    pub(crate) stderr_tail: String,
    pub(crate) cause: Option<Cause>,
}

/// Why the supervisor killed it, or could not have it made.
#[derive(Debug)]
pub(crate) enum Cause {
    Violation(String),
    TimedOut(Duration),
    /// The fork server could not make it.
    NotBorn(io::Error),
    /// The fork server is gone, and with it the request.
    Lost,
}

/// Which of a child's descriptors an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Control,
    Pidfd,
    Stderr,
    Deadline,
}

impl Part {
    /// Bits of a token that tell the part.
    pub(super) const BITS: u32 = 2;

    pub(super) fn from_token(token: u64) -> Self {
        match token & ((1 << Self::BITS) - 1) {
            0 => Self::Control,
            1 => Self::Pidfd,
            2 => Self::Stderr,
            _ => Self::Deadline,
        }
    }
}

/// Bytes that are read of one child before others get their turn.
const TURN: usize = 1 << 20;

/// Bytes that are read of a dead child: more than a socket holds, so that all is read, yet an end
/// to what a grandchild with a copy of the socket could write.
const LAST_TURN: usize = 64 << 20;

/// How soon to look again at a process that has ended but cannot be reaped yet, being traced.
pub(super) const TRACED_PAUSE: Duration = Duration::from_millis(20);

pub(super) struct Child {
    id: u64,
    pid: Option<u32>,
    pidfd: Option<Watched<Arc<Pidfd>>>,
    /// The place of the group that it leads, from before its birth until it is about to be reaped.
    group: Option<Entry>,
    control: Option<Watched<OwnedFd>>,
    unsent: Bytes,
    splitter: Splitter,
    stderr: Option<Watched<OwnedFd>>,
    tail: Tail,
    deadline: Option<(Instant, TimerId)>,
    begun_within: Duration,
    cause: Option<Cause>,
    /// It is to be killed, or has been: what it sends is of no interest.
    doomed: bool,
    /// The control socket is to be handed over, but the fork server's word is still to come on it.
    release_when_born: bool,
    /// Our own stderr takes no more, so the child's is not watched.
    stderr_paused: bool,
    listener: Box<dyn Listener>,
}

/// A descriptor in the supervisor's set, for as long as it is here.
///
/// To close it would not be enough: while somebody else holds a copy, be it a process that the
/// application has forked, its events would go on, and nobody could take it out any more.
struct Watched<F: AsFd> {
    fd: F,
    epoll: &'static Epoll,
}

impl<F: AsFd> Watched<F> {
    fn new(fd: F, epoll: &'static Epoll, token: u64, interest: Interest) -> io::Result<Self> {
        epoll.add(&fd, token, interest)?;
        Ok(Self { fd, epoll })
    }
}

impl<F: AsFd> AsFd for Watched<F> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<F: AsFd> Drop for Watched<F> {
    fn drop(&mut self) {
        // It may be out of the set for a while, see `stderr_paused`.
        let _ = self.epoll.remove(&self.fd);
    }
}

impl Child {
    /// The record of a child whose descriptors are in the set. If that takes one of them not, the
    /// listener is dropped, and the child finds its control socket closed.
    pub(super) fn new(id: u64, new: NewChild, epoll: &'static Epoll) -> io::Result<Self> {
        let NewChild {
            birth,
            control,
            unsent,
            splitter,
            stderr,
            begun_within,
            listener,
        } = new;
        let (process, group) = match birth {
            Birth::Known(pid, pidfd, group) => (Some((pid, pidfd)), Some(group)),
            Birth::Announced(group) => (None, Some(group)),
            Birth::Guardian(pid, pidfd) => (Some((pid, pidfd)), None),
        };
        let interest = if unsent.is_empty() {
            Interest::Read
        } else {
            Interest::ReadWrite
        };
        let control = Watched::new(control, epoll, token(id, Part::Control), interest)?;
        let stderr = stderr
            .map(|stderr| Watched::new(stderr, epoll, token(id, Part::Stderr), Interest::Read))
            .transpose()?;
        let mut child = Self {
            id,
            pid: None,
            pidfd: None,
            group,
            control: Some(control),
            unsent,
            splitter,
            stderr,
            tail: Tail::default(),
            deadline: Some((Instant::now() + begun_within, timer::next_id())),
            begun_within,
            cause: None,
            doomed: false,
            release_when_born: false,
            stderr_paused: false,
            listener,
        };
        if let Some((pid, pidfd)) = process {
            child.set_pid(pid, pidfd, epoll)?;
        }
        Ok(child)
    }

    pub(super) fn deadline(&self) -> Option<(Instant, TimerId)> {
        self.deadline
    }

    /// All descriptors of the record.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let control = self.control.as_ref().map(AsFd::as_fd);
        let stderr = self.stderr.as_ref().map(AsFd::as_fd);
        let pidfd = self.pidfd.as_ref().map(AsFd::as_fd);
        control.into_iter().chain(stderr).chain(pidfd)
    }

    /// Kills the child if nobody wants it any more.
    pub(super) fn kill_if_unwanted(&mut self) {
        if !self.listener.is_wanted() {
            self.kill();
        }
    }

    /// Deals with an event; tells whether the child is still there.
    pub(super) fn ready(&mut self, part: Part, supervisor: &'static Supervisor) -> bool {
        match part {
            Part::Control => {
                self.write_unsent(supervisor);
                self.read_control(supervisor, Read::InTurn);
            }
            Part::Stderr => self.read_stderr(supervisor, Read::InTurn),
            Part::Deadline => self.expire(),
            Part::Pidfd => return !self.has_ended(supervisor),
        }
        if self.pidfd.is_none() && self.control.is_none() {
            // There is no process that could be watched, and nobody is left who could make one.
            self.cause.get_or_insert(Cause::Lost);
            if let Some(group) = self.group.take() {
                supervisor.bury(group);
            }
            self.end(None, supervisor);
            return false;
        }
        true
    }

    fn set_pid(&mut self, pid: u32, pidfd: Arc<Pidfd>, epoll: &'static Epoll) -> io::Result<()> {
        self.pid = Some(pid);
        self.listener.born(pid, &pidfd);
        let token = token(self.id, Part::Pidfd);
        self.pidfd = Some(Watched::new(pidfd, epoll, token, Interest::Read)?);
        Ok(())
    }

    fn write_unsent(&mut self, supervisor: &'static Supervisor) {
        let Some(control) = &self.control else { return };
        while !self.unsent.is_empty() {
            match socket::send_bytes(control, &self.unsent, Wait::No) {
                Ok(sent) => drop(self.unsent.split_to(sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // It is gone or going, which reading will tell.
                Err(_) => self.unsent.clear(),
            }
            if self.unsent.is_empty() {
                let _ =
                    supervisor
                        .epoll
                        .modify(control, token(self.id, Part::Control), Interest::Read);
            }
        }
    }

    /// Reads what the child has sent.
    fn read_control(&mut self, supervisor: &'static Supervisor, how: Read) {
        let max = match how {
            Read::InTurn => TURN,
            Read::ToTheLast => LAST_TURN,
        };
        let mut total = 0;
        let mut may_be_more = true;
        while total < max && may_be_more {
            let Some(control) = &self.control else { return };
            let (buffer, room) = self.splitter.room();
            let mut fds = Vec::new();
            match socket::recv_with_fds(control, buffer, room, &mut fds, Wait::No) {
                Ok(received) if received.fds_lost && self.pidfd.is_none() => {
                    self.cause
                        .get_or_insert_with(|| Cause::NotBorn(socket::no_room()));
                    self.control = None;
                    return;
                }
                Ok(received) if received.fds_lost => {
                    return self.violate("its descriptors found no room here".to_owned());
                }
                Ok(received) if received.len == 0 => return self.control_ended(),
                Ok(received) => {
                    total += received.len;
                    // Descriptors end a read, however much follows them.
                    may_be_more = received.len == room || how == Read::ToTheLast;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.control_ended(),
            }
            self.splitter.add_fds(fds, false);
            self.handle_frames(supervisor);
        }
    }

    fn handle_frames(&mut self, supervisor: &'static Supervisor) {
        loop {
            let frame = match self.splitter.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => return,
                Err(error) => return self.violate(error.to_string()),
            };
            if self.pidfd.is_none() && Announcement::is_in(&frame.header) {
                self.announced(frame, supervisor);
                continue;
            }
            if self.doomed {
                continue;
            }
            let next = self.listener.frame(frame);
            if self.listener.has_begun()
                && let Some((_, timer)) = self.deadline.take()
            {
                supervisor.remove_timer(timer);
            }
            match next {
                Next::Continue => (),
                Next::Finish => self.stop_listening(supervisor),
                Next::Kill => return self.kill(),
                Next::Violation(what) => return self.violate(what),
                Next::Release if self.pidfd.is_none() => self.release_when_born = true,
                Next::Release => return self.release(),
            }
        }
    }

    /// The child has said all and is about to end, of which the pidfd tells. Its socket stays open:
    /// the child would take its end for this process' end.
    fn stop_listening(&self, supervisor: &'static Supervisor) {
        if let (Some(control), Some(_)) = (&self.control, &self.pidfd) {
            let _ = supervisor.epoll.remove(control);
        }
    }

    /// The fork server has made the child, or could not.
    fn announced(&mut self, mut frame: Frame, supervisor: &'static Supervisor) {
        let pid = match Announcement::of(&frame.header) {
            Ok(Announcement::Born(pid)) => pid,
            Ok(Announcement::NotBorn(error)) => {
                self.cause = Some(Cause::NotBorn(error));
                self.control = None;
                return;
            }
            Err(violation) => return self.violate(violation),
        };
        let Some(pidfd) = frame.fds.pop() else {
            self.cause = Some(Cause::NotBorn(socket::no_room()));
            self.control = None;
            return;
        };
        if let Err(error) = self.set_pid(pid, Arc::new(pidfd.into()), &supervisor.epoll) {
            // The set took the other two, so the kernel is out of memory.
            tracing::error!(%error, pid, "a child cannot be looked after");
        }
        if self.doomed {
            self.kill();
        }
        if self.release_when_born {
            self.release();
        }
    }

    fn release(&mut self) {
        let Some(control) = self.control.take() else {
            return;
        };
        let socket = match control.as_fd().try_clone_to_owned() {
            Ok(socket) => socket,
            Err(error) => {
                return self.violate(format!("its control socket cannot be kept: {error}"));
            }
        };
        drop(control);
        let limit = 0;
        let splitter = std::mem::replace(&mut self.splitter, Splitter::new(limit));
        let (rest, fds) = splitter.into_rest();
        if !fds.is_empty() {
            return self.violate("descriptors came that no frame claims".to_owned());
        }
        self.listener.released(Control { socket, rest });
    }

    fn read_stderr(&mut self, supervisor: &'static Supervisor, how: Read) {
        let mut buffer = [0; 16 << 10];
        let mut forward = supervisor.forward();
        while let Some(stderr) = &self.stderr {
            if how == Read::InTurn && !forward.has_room(self.id) {
                if !self.stderr_paused {
                    self.stderr_paused = true;
                    let _ = supervisor.epoll.remove(stderr);
                }
                return;
            }
            match pipe::read(stderr, &mut buffer) {
                Ok(len @ 1..) => {
                    self.tail.push(&buffer[..len]);
                    forward.write(&buffer[..len], &supervisor.epoll, STDERR);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Ok(_) | Err(_) => self.stderr = None,
            }
        }
        if let (Some(stderr), true) = (&self.stderr, self.stderr_paused) {
            self.stderr_paused = false;
            let _ = supervisor
                .epoll
                .add(stderr, token(self.id, Part::Stderr), Interest::Read);
        }
    }

    fn expire(&mut self) {
        if self.deadline.take().is_some() && !self.listener.has_begun() {
            self.cause.get_or_insert(Cause::TimedOut(self.begun_within));
            self.kill();
        }
    }

    fn violate(&mut self, what: String) {
        self.cause.get_or_insert(Cause::Violation(what));
        // The stream cannot be read on.
        self.control = None;
        self.kill();
    }

    /// The child has closed its control socket: it is ending, or of no use any more.
    fn control_ended(&mut self) {
        self.control = None;
        self.kill();
    }

    /// Kills it and hears no more of it but its end.
    fn kill(&mut self) {
        self.doomed = true;
        if let Some(pidfd) = &self.pidfd {
            let _ = pidfd.fd.signal(signal::KILL);
            self.control = None;
        }
        // Otherwise the fork server's word is still to come on the control socket; without it the
        // child would be nobody's.
    }

    /// The pidfd is readable: takes the child apart, unless it cannot be reaped yet.
    fn has_ended(&mut self, supervisor: &'static Supervisor) -> bool {
        let Some(pidfd) = self.pidfd.as_ref().map(|it| Arc::clone(&it.fd)) else {
            return false;
        };
        let ended = match pidfd.wait(Reap::No) {
            Some(Ended::No) => {
                // Traced: its tracer has the first word. The pidfd stays readable meanwhile, so it
                // is not watched.
                let _ = supervisor.epoll.remove(&*pidfd);
                let id = self.id;
                let again = Instant::now() + TRACED_PAUSE;
                supervisor.at(again, Box::new(move || supervisor.handle(id, Part::Pidfd)));
                return false;
            }
            Some(_) => {
                self.read_control(supervisor, Read::ToTheLast);
                if let (Some(pid), Some(_)) = (self.pid, &self.group) {
                    // The zombie pins the number, so it can be nobody else's group.
                    signal::kill_group(pid);
                }
                None
            }
            None => {
                self.read_control(supervisor, Read::ToTheLast);
                Some(pidfd.status_after_reaping())
            }
        };
        // From the reaping on its number may be given away.
        self.group = None;
        let ended = ended
            .or_else(|| pidfd.wait(Reap::Yes))
            .unwrap_or_else(|| pidfd.status_after_reaping());
        let status = match ended {
            Ended::Exited(code) => ExitStatus::Exited(code),
            Ended::Signaled {
                signal,
                core_dumped,
            } => ExitStatus::Signaled {
                signal,
                core_dumped,
            },
            Ended::No | Ended::Unknown => ExitStatus::Unknown,
        };
        supervisor.watched.has_died();
        self.end(Some(status), supervisor);
        true
    }

    fn end(&mut self, status: Option<ExitStatus>, supervisor: &'static Supervisor) {
        self.read_stderr(supervisor, Read::ToTheLast);
        let stderr_tail = std::mem::take(&mut self.tail).into_text();
        let listener = std::mem::replace(&mut self.listener, Box::new(Nobody));
        listener.ended(End {
            status,
            stderr_tail,
            cause: self.cause.take(),
        });
    }
}

/// The name of a descriptor in the supervisor's set.
fn token(id: u64, part: Part) -> u64 {
    id << Part::BITS | part as u64
}

/// How to read what a child has sent or written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Read {
    /// What is there now, in moderation: there will be a word if more is to be read. Our own stderr
    /// may be slow: whoever writes to it waits then.
    InTurn,
    /// All that is there: it has ended, so that is at most what a pipe or a socket holds.
    ToTheLast,
}

/// Listens to a child of which nothing is left.
struct Nobody;

impl Listener for Nobody {
    fn born(&mut self, _: u32, _: &Arc<Pidfd>) {}

    fn frame(&mut self, _: Frame) -> Next {
        Next::Continue
    }

    fn has_begun(&self) -> bool {
        true
    }

    fn released(&mut self, _: Control) {}

    fn ended(self: Box<Self>, _: End) {}
}
