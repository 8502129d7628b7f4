//! The sending end of a stream socket: whole frames, from whoever has one.
//!
//! A frame is *accepted* in one step, into the queue of the endpoint or into the socket. Before
//! that a dropped future has sent nothing, after it the frame will be sent whole: by whoever writes
//! next, since every writer writes the queue from its front, or by the
//! [`leftovers`](super::leftovers) thread, which is called when a future is dropped while it waits
//! for its frame to be written, and when the endpoint is dropped.
//!
//! So there is one writer at a time, whoever holds the state's lock, and it never waits under that
//! lock. Who has to wait is told twice: by the socket that there is room, and by another writer
//! that it has made progress; the socket may have nothing more to tell once another has used the
//! room. The socket is asked only after it has refused: while it is registered for writability,
//! every read of the peer wakes the reactor, so an endpoint that has not been refused for a while
//! gives the registration up.
//!
//! Small frames are put together into one buffer. Long ones are written from where they were
//! encoded, and a slice of the caller's from where it is ([`send_slice`](Outlet::send_slice)); only
//! when that future is dropped half-way is the rest copied into the queue.
//!
//! Once a frame is accepted nothing but the end of the pipe can be reported of it. What the kernel does
//! not take for another reason than a full socket, such as too many descriptors in flight, stays in the
//! queue, and the leftovers thread tries again.
//!
//! Back-pressure is waiting at the *gate*, which is fair. While nobody waits there and there is room
//! a frame passes by it.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::iter;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::process;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::thread;
use std::time::Duration;

use futures::future::{Either, select};
use tokio::io::Interest;
use tokio::sync::{Mutex as Gate, MutexGuard as GateGuard, Notify};
use tokio::task::coop;

use super::{LEAVING, LEFT, Life, Pace, leftovers};
use crate::sys::eventfd::EventFd;
use crate::sys::reactor::Registration;
use crate::sys::socket::{self, Direction, Wait};
use crate::wire::fds::{Moving, Outgoing};
use crate::wire::frame::{FDS_PER_FRAME_MAX, HEADER_LEN, Header};
use crate::wire::scratch::Scratch;

/// While so many bytes are queued, no further frame is accepted.
const QUEUED_MAX: usize = 64 << 10;

/// A frame up to this length is copied behind others, a longer one is not copied.
const COPIED_MAX: usize = 8 << 10;

/// A buffer up to this size is kept whatever is sent, and a larger one than the other never.
const KEPT: usize = 256 << 10;
const KEPT_MAX: usize = 16 << 20;

/// The registration is given up after so many writes that were not refused.
const CALM_MAX: u32 = 64;

/// How many slices are written at once.
const SLICES: usize = 8;

/// Why a frame was not accepted; after it was, that it may not have been read.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Nobody will read it.
    Closed,
    /// The end is not here any more.
    Moved,
    /// There is no room now.
    Full,
    Os(io::Error),
}

/// The sending end of a stream socket.
#[derive(Debug)]
pub(crate) struct Outlet(Arc<Shared>);

/// The endpoint, which may outlive its handle until what it holds is sent.
#[derive(Debug)]
pub(super) struct Shared {
    /// The most bytes of a frame.
    limit: AtomicU32,
    /// Whether frames tend to be too long to be copied.
    is_for_long: AtomicBool,
    /// Held by the one that waits for room, and while a caller's slice is written.
    gate: Gate<()>,
    state: Mutex<State>,
    /// Told when somebody has written bytes, or the end's life has changed.
    progress: Notify,
}

#[derive(Debug)]
struct State {
    /// Gone once the end has been closed or handed over.
    socket: Option<Arc<OwnedFd>>,
    /// Whose memory this is: a forked child must not send what its parent will send.
    process: u32,
    life: Life,
    /// The peer is gone, or this end was closed, and so is what was queued.
    is_closed: bool,
    queue: VecDeque<Segment>,
    queued: usize,
    /// How many bytes were ever queued, and how many of them have left the queue.
    accepted: u64,
    written: u64,
    /// A caller's slice is being written; the queue is empty until it is done.
    is_lent: bool,
    /// How many hold the gate or wait for it.
    n_at_gate: usize,
    registration: Option<Arc<Registration>>,
    /// The socket had no room when it was last written to.
    is_full: bool,
    /// How many writes were not refused since one was.
    calm: u32,
    /// How many tasks wait for progress.
    n_waiting: usize,
    /// The task that polls.
    waker: Option<Waker>,
    /// The threads that wait for progress.
    bells: Vec<Arc<EventFd>>,
    /// Empty buffers for the queue, and to encode long frames into.
    spares: Vec<Vec<u8>>,
    recent_len: usize,
    pace: Pace,
}

/// Bytes that are written from one buffer, with descriptors attached to the first of them.
#[derive(Debug)]
struct Segment {
    bytes: Vec<u8>,
    start: usize,
    fds: Vec<Arc<OwnedFd>>,
}

/// A frame, with room for its header in front.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) bytes: Scratch,
    pub(crate) outgoing: Outgoing,
}

/// When an accepted frame is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Write {
    Now,
    /// With others, or when it is asked for.
    Later,
}

/// How a frame is brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// By one that does not hold the gate, so only if nobody is there.
    PastGate,
    ThroughGate,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug)]
enum Accepted {
    /// All of it is in the socket.
    Written,
    /// It is in the queue, which has to be written up to this byte.
    Queued(u64),
    /// There is no room, nothing has happened.
    NoRoom,
}

/// Whether a full socket is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    /// Not until the reactor tells of room.
    IfRoom,
    Always,
}

/// What a look at the queue showed.
enum Look<S> {
    Done,
    /// The socket is full, and this tells of room.
    Full(S),
    /// Nothing can be done here: the end is on its way somewhere else, which may fail, or somebody else
    /// has been told to try again.
    OnHold,
}

/// Whether the queue was written as far as somebody wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Enough {
    Yes,
    No,
    /// No, and the kernel does not take more for a reason that will pass.
    Refused,
}

impl Outlet {
    /// The end of a socket that is to send `queued` first.
    pub(crate) fn new(socket: OwnedFd, limit: u32, queued: Vec<(Vec<u8>, Vec<OwnedFd>)>) -> Self {
        let mut state = State {
            socket: Some(Arc::new(socket)),
            process: process::id(),
            life: Life::Here,
            is_closed: false,
            queue: VecDeque::new(),
            queued: 0,
            accepted: 0,
            written: 0,
            is_lent: false,
            n_at_gate: 0,
            registration: None,
            is_full: false,
            calm: 0,
            n_waiting: 0,
            waker: None,
            bells: Vec::new(),
            spares: Vec::new(),
            recent_len: 0,
            pace: Pace::default(),
        };
        for (bytes, fds) in queued {
            state.push(Segment {
                bytes,
                start: 0,
                fds: fds.into_iter().map(Arc::new).collect(),
            });
        }
        Self(Arc::new(Shared {
            limit: AtomicU32::new(limit),
            is_for_long: AtomicBool::new(false),
            gate: Gate::new(()),
            state: Mutex::new(state),
            progress: Notify::new(),
        }))
    }

    #[cfg(test)]
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    /// A buffer to encode a frame into, behind room for a header.
    #[inline]
    pub(crate) fn buffer(&self) -> Scratch {
        // Relaxed: either will do.
        let mut buffer = match self.0.is_for_long.load(Relaxed) {
            true => self.0.state().spares.pop().unwrap_or_default().into(),
            false => Scratch::new(),
        };
        buffer.extend_from_slice(&[0; HEADER_LEN]);
        buffer
    }

    /// The most bytes of a frame.
    pub(crate) fn limit(&self) -> u32 {
        // Relaxed: it guards nothing.
        self.0.limit.load(Relaxed)
    }

    /// Changes the limit from the next frame on.
    pub(crate) fn set_limit(&self, limit: u32) {
        self.0.limit.store(limit, Relaxed);
    }

    /// Accepts a frame as soon as there is room, and waits until it is in the socket.
    ///
    /// Cancel safe: the future is dropped before the frame is accepted, and nothing is sent, or
    /// after it, and all of it is.
    pub(crate) async fn send(&self, encoded: Encoded) -> Result<(), Refusal> {
        match self.0.accept(encoded, Write::Now).await? {
            Some(target) => self.0.written(target).await,
            None => Ok(()),
        }
    }

    /// Accepts a frame as soon as there is room. It is written with those behind it.
    pub(crate) async fn feed(&self, encoded: Encoded) -> Result<(), Refusal> {
        self.0.accept(encoded, Write::Later).await.map(drop)
    }

    /// The same if the frame can be put behind others right away, as most can.
    #[inline]
    pub(crate) fn feed_behind(&self, encoded: &Encoded) -> bool {
        encoded.outgoing.is_empty() && self.0.state().append(&encoded.bytes)
    }

    /// Waits until all that was accepted is in the socket.
    pub(crate) async fn flush(&self) -> Result<(), Refusal> {
        let target = self.0.state().accepted;
        self.0.written(target).await
    }

    /// Accepts a frame if there is room now.
    pub(crate) fn try_send(&self, mut encoded: Encoded) -> Result<(), Refusal> {
        match self.0.try_accept(&mut encoded, Write::Now, Way::PastGate)? {
            Accepted::NoRoom => return Err(Refusal::Full),
            Accepted::Written => (),
            Accepted::Queued(_) => leftovers::adopt(&self.0),
        }
        Ok(())
    }

    /// Accepts a frame for later, for a task that has seen [`poll_room`](Self::poll_room).
    pub(crate) fn start_send(&self, mut encoded: Encoded) -> Result<(), Refusal> {
        match self
            .0
            .try_accept(&mut encoded, Write::Later, Way::PastGate)?
        {
            Accepted::NoRoom => Err(Refusal::Full),
            _ => Ok(()),
        }
    }

    /// Waits until a frame would be accepted.
    pub(crate) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        let proceed = ready!(coop::poll_proceed(cx));
        ready!(self.0.poll_until(cx, State::has_room))?;
        proceed.made_progress();
        Poll::Ready(Ok(()))
    }

    /// Waits until all that was accepted is in the socket.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.0.poll_until(cx, |state| Ok(state.queue.is_empty()))
    }

    /// Closes the end, whose peer reads what is in the socket and then the end.
    pub(crate) fn close(&self) {
        let mut state = self.0.state();
        state.close();
        drop((state.registration.take(), state.socket.take()));
    }

    /// The same as [`send`](Self::send) with the whole thread.
    ///
    /// # Panics
    ///
    /// The thread drives a runtime.
    pub(crate) fn blocking_send(&self, mut encoded: Encoded) -> Result<(), Refusal> {
        let at_gate = AtGate::new(&self.0);
        let gate = self.0.gate.blocking_lock();
        let target = loop {
            match self
                .0
                .try_accept(&mut encoded, Write::Now, Way::ThroughGate)?
            {
                Accepted::Written => return Ok(()),
                Accepted::Queued(target) => break target,
                Accepted::NoRoom => self.0.blocking_until(State::has_room)?,
            }
        };
        drop((gate, at_gate));
        while let Err(refusal) = self.0.blocking_until(|state| Ok(state.written >= target)) {
            let Refusal::Os(error) = refusal else {
                return Err(refusal);
            };
            // A failure to wait is that of memory, and passes.
            tracing::debug!(%error, "a pipe is written by another thread");
            leftovers::adopt(&self.0);
            thread::sleep(leftovers::AGAIN);
        }
        Ok(())
    }

    /// Sends a frame whose body is `body`, which is copied only into the socket.
    ///
    /// Cancel safe: see [`send`](Self::send). When the future is dropped half-way, the rest of
    /// `body` is copied.
    pub(crate) async fn send_slice(&self, header: Header, body: &[u8]) -> Result<(), Refusal> {
        let shared = &self.0;
        let _at_gate = AtGate::new(shared);
        let gate = shared.gate.lock().await;
        shared.until(|state| Ok(state.queue.is_empty())).await?;
        let mut lent = Lent::new(shared, header, body, gate)?;
        match shared.until(|state| lent.write(state)).await {
            Err(Refusal::Os(_)) if lent.sent > 0 => {
                // It has begun, so it is sent.
                drop(lent);
                let target = shared.state().accepted;
                shared.written(target).await
            }
            result => result,
        }
    }

    /// Reserves the end for a hand-over: the socket, what it holds, and that it is moving.
    ///
    /// # Errors
    ///
    /// It is not here any more, or a message is half-way in the socket.
    pub(crate) fn reserve(&self) -> Result<Reserved, &'static str> {
        let mut state = self.0.state();
        match state.life {
            Life::Here => (),
            Life::Leaving => return Err(LEAVING),
            Life::Left => return Err(LEFT),
        }
        if state.is_lent {
            return Err("a task is sending by the end of a pipe that is to be sent away");
        }
        let Some(socket) = &state.socket else {
            return Err("the end of a pipe has been closed");
        };
        let socket = Arc::clone(socket);
        let rest =
            |segment: &Segment| (segment.bytes[segment.start..].to_vec(), segment.fds.clone());
        let queued = state.queue.iter().map(rest).collect();
        state.life = Life::Leaving;
        Ok(Reserved {
            socket,
            queued,
            limit: self.limit(),
            moving: Arc::clone(&self.0) as _,
        })
    }
}

/// What travels when a sending end is handed over.
pub(crate) struct Reserved {
    pub(crate) socket: Arc<OwnedFd>,
    pub(crate) queued: Vec<(Vec<u8>, Vec<Arc<OwnedFd>>)>,
    pub(crate) limit: u32,
    pub(crate) moving: Arc<dyn Moving>,
}

impl Moving for Shared {
    fn commit(&self) {
        let mut state = self.state();
        state.life = Life::Left;
        let gone = (state.registration.take(), state.socket.take());
        let queue = mem::take(&mut state.queue);
        // Whoever waits for them to be written is done: they have moved along.
        state.written = state.accepted;
        state.queued = 0;
        drop(state);
        drop((gone, queue));
        self.tell(0);
    }

    fn restore(&self) {
        self.state().life = Life::Here;
        self.tell(0);
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        let mut state = self.0.state();
        if state.process != process::id() {
            state.close();
        }
        if state.life != Life::Here || state.queue.is_empty() {
            return;
        }
        if !matches!(state.write(), Ok(true)) && !state.is_closed {
            drop(state);
            leftovers::adopt(&self.0);
        }
    }
}

impl Shared {
    #[inline]
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that is done under the lock leaves the state half-changed when it panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells those who wait, of whom the caller is `own`, that the state has changed.
    fn tell(&self, own: usize) {
        let (n_waiting, waker) = {
            let mut state = self.state();
            state.bells.iter().for_each(|bell| bell.raise());
            (state.n_waiting, state.waker.take())
        };
        if n_waiting > own {
            self.progress.notify_waiters();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Waits for room; gives the byte up to which the queue is to be written, or nothing if the
    /// frame is in the socket.
    async fn accept(
        self: &Arc<Self>,
        mut encoded: Encoded,
        write: Write,
    ) -> Result<Option<u64>, Refusal> {
        coop::consume_budget().await;
        match self.try_accept(&mut encoded, write, Way::PastGate)? {
            Accepted::Written => return Ok(None),
            Accepted::Queued(target) => return Ok(Some(target)),
            Accepted::NoRoom => (),
        }
        let _at_gate = AtGate::new(self);
        let _gate = self.gate.lock().await;
        loop {
            match self.try_accept(&mut encoded, write, Way::ThroughGate)? {
                Accepted::Written => return Ok(None),
                Accepted::Queued(target) => return Ok(Some(target)),
                Accepted::NoRoom => self.until(State::has_room).await?,
            }
        }
    }

    fn try_accept(
        &self,
        encoded: &mut Encoded,
        write: Write,
        way: Way,
    ) -> Result<Accepted, Refusal> {
        let mut state = self.state();
        if way == Way::PastGate && state.n_at_gate > 0 {
            state.check()?;
            return Ok(Accepted::NoRoom);
        }
        let written = state.written;
        let accepted = state.accept(encoded, write);
        let has_news = state.written != written && state.is_awaited(0);
        let is_for_long = state.recent_len > COPIED_MAX;
        drop(state);
        if self.is_for_long.load(Relaxed) != is_for_long {
            self.is_for_long.store(is_for_long, Relaxed);
        }
        if has_news {
            self.tell(0);
        }
        if !encoded.outgoing.is_empty()
            && matches!(accepted, Ok(Accepted::Written | Accepted::Queued(_)))
        {
            // Outside the lock, as it takes the locks of other endpoints.
            drop(mem::take(&mut encoded.outgoing).commit());
        }
        accepted
    }

    /// Waits until the queue has been written up to `target`.
    async fn written(self: &Arc<Self>, target: u64) -> Result<(), Refusal> {
        let mut unwritten = Unwritten(Some(self));
        let result = self.until(|state| Ok(state.written >= target)).await;
        if let Err(Refusal::Os(error)) = result {
            // This runtime cannot wait for the socket. Somebody else can.
            tracing::debug!(%error, "a pipe is written by another thread");
            drop(unwritten);
            return self.heard(target).await;
        }
        unwritten.0 = None;
        result
    }

    /// Waits until somebody else has written the queue up to `target`.
    async fn heard(&self, target: u64) -> Result<(), Refusal> {
        let _waiting = Waiting::new(self);
        loop {
            let mut progress = pin!(self.progress.notified());
            progress.as_mut().enable();
            {
                let state = self.state();
                if state.is_closed {
                    return Err(Refusal::Closed);
                }
                if state.written >= target {
                    return Ok(());
                }
            }
            progress.await;
        }
    }

    /// Writes, and waits for room and writes, until `done`.
    async fn until(
        self: &Arc<Self>,
        mut done: impl FnMut(&mut State) -> io::Result<bool>,
    ) -> Result<(), Refusal> {
        // Seen first without the cost of waiting.
        if let Look::Done = self.look_as_task(Attempt::IfRoom, 0, &mut done)? {
            return Ok(());
        }
        let _waiting = Waiting::new(self);
        loop {
            let mut progress = pin!(self.progress.notified());
            // From here on no progress is missed.
            progress.as_mut().enable();
            let registration = match self.look_as_task(Attempt::IfRoom, 1, &mut done)? {
                Look::Done => return Ok(()),
                Look::OnHold => {
                    progress.await;
                    continue;
                }
                Look::Full(registration) => registration,
            };
            let writable = pin!(registration.reactor().writable());
            match select(writable, progress).await {
                Either::Left((Ok(mut ready), _)) => {
                    match self.look_as_task(Attempt::Always, 1, &mut done)? {
                        Look::Done => return Ok(()),
                        Look::Full(_) => ready.clear_ready(),
                        Look::OnHold => (),
                    }
                }
                Either::Left((Err(error), _)) => self.forget(&registration, error)?,
                Either::Right(_) => (),
            }
        }
    }

    /// The same for the one task that polls.
    fn poll_until(
        self: &Arc<Self>,
        cx: &mut Context<'_>,
        mut done: impl FnMut(&mut State) -> io::Result<bool>,
    ) -> Poll<Result<(), Refusal>> {
        loop {
            if let Look::Done = self.look_as_task(Attempt::IfRoom, 0, &mut done)? {
                return Poll::Ready(Ok(()));
            }
            let former = self.state().waker.replace(cx.waker().clone());
            // What it ends, if it was the last of a task, is not ended under the lock.
            drop(former);
            // Looked at again, now that no progress is missed.
            let registration = match self.look_as_task(Attempt::IfRoom, 0, &mut done)? {
                Look::Done => return Poll::Ready(Ok(())),
                Look::OnHold => return Poll::Pending,
                Look::Full(registration) => registration,
            };
            match ready!(registration.reactor().poll_write_ready(cx)) {
                Ok(mut ready) => match self.look_as_task(Attempt::Always, 0, &mut done)? {
                    Look::Done => return Poll::Ready(Ok(())),
                    Look::Full(_) => ready.clear_ready(),
                    Look::OnHold => (),
                },
                Err(error) => self.forget(&registration, error)?,
            }
        }
    }

    /// The same with the whole thread.
    fn blocking_until(
        self: &Arc<Self>,
        mut done: impl FnMut(&mut State) -> io::Result<bool>,
    ) -> Result<(), Refusal> {
        let socket = |state: &mut State| state.socket();
        // Seen first without the cost of waiting.
        if let Look::Done = self.look(Attempt::Always, 0, &mut done, socket)? {
            return Ok(());
        }
        let listening = Listening::new(self);
        loop {
            // From here on no progress is missed.
            let (bell, limit) = listening.bell();
            match self.look(Attempt::Always, 0, &mut done, socket)? {
                Look::Done => return Ok(()),
                Look::OnHold => socket::wait_for_any(bell.as_slice(), limit),
                Look::Full(socket) => {
                    let room = (socket.as_fd(), Direction::Out);
                    let awaited: Vec<_> = bell.into_iter().chain([room]).collect();
                    socket::wait_for_any(&awaited, limit)
                }
            }
            .map_err(Refusal::Os)?;
        }
    }

    /// As [`look`](Self::look); a task waits for room by the reactor of its runtime.
    fn look_as_task(
        self: &Arc<Self>,
        attempt: Attempt,
        own: usize,
        done: &mut impl FnMut(&mut State) -> io::Result<bool>,
    ) -> Result<Look<Arc<Registration>>, Refusal> {
        self.look(attempt, own, done, State::registration)
    }

    /// Writes what can be written, and asks whether that is enough; `own` of those who wait for progress
    /// are the caller.
    fn look<S>(
        self: &Arc<Self>,
        attempt: Attempt,
        own: usize,
        done: &mut impl FnMut(&mut State) -> io::Result<bool>,
        full: impl FnOnce(&mut State) -> io::Result<S>,
    ) -> Result<Look<S>, Refusal> {
        let mut state = self.state();
        let written = state.written;
        let enough = state.look(attempt, done);
        let has_news = (state.written != written || enough.is_err()) && state.is_awaited(own);
        let is_refused = matches!(enough, Ok(Enough::Refused));
        let look = match enough {
            Err(refusal) => Err(refusal),
            Ok(Enough::Yes) => Ok(Look::Done),
            Ok(Enough::No) if state.life != Life::Leaving => {
                full(&mut state).map(Look::Full).map_err(Refusal::Os)
            }
            Ok(_) => Ok(Look::OnHold),
        };
        drop(state);
        if has_news {
            self.tell(own);
        }
        if is_refused {
            leftovers::adopt(self);
        }
        look
    }

    fn forget(&self, failed: &Arc<Registration>, error: io::Error) -> Result<(), Refusal> {
        if failed.is_current() {
            return Err(Refusal::Os(error));
        }
        self.state().registration = None;
        Ok(())
    }

    /// Whether there is anything to write, now or when a hand-over has failed.
    pub(super) fn has_leftovers(&self) -> bool {
        let state = self.state();
        state.life != Life::Left
            && !state.is_closed
            && state.socket.is_some()
            && !state.queue.is_empty()
    }

    /// Writes what can be written, for the thread that does nothing else.
    pub(super) fn write_leftovers(&self) -> Leftover {
        let mut state = self.state();
        let written = state.written;
        let result = match state.life {
            Life::Here => state.write(),
            Life::Leaving => Err(io::ErrorKind::ResourceBusy.into()),
            Life::Left => Ok(true),
        };
        let leftover = match (result, &state.socket) {
            (Ok(true), _) | (_, None) => Leftover::Nothing,
            _ if state.is_closed => Leftover::Nothing,
            (Ok(false), Some(socket)) => Leftover::Wait(Arc::clone(socket)),
            (Err(_), _) => Leftover::TryLater,
        };
        let has_news = state.written != written && state.is_awaited(0);
        drop(state);
        if has_news {
            self.tell(0);
        }
        leftover
    }
}

/// What an endpoint still holds.
pub(super) enum Leftover {
    Nothing,
    /// Bytes for which this socket has no room.
    Wait(Arc<OwnedFd>),
    /// Bytes that the kernel does not take for another reason, which will pass.
    TryLater,
}

/// Has the rest written by somebody else when a future is dropped.
struct Unwritten<'a>(Option<&'a Arc<Shared>>);

impl Drop for Unwritten<'_> {
    fn drop(&mut self) {
        if let Some(shared) = self.0 {
            leftovers::adopt(shared);
        }
    }
}

/// One that holds the gate or waits for it. It leaves when the gate has been given back.
struct AtGate<'a>(&'a Shared);

impl<'a> AtGate<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.state().n_at_gate += 1;
        Self(shared)
    }
}

impl Drop for AtGate<'_> {
    fn drop(&mut self) {
        self.0.state().n_at_gate -= 1;
    }
}

/// One that waits for progress.
struct Waiting<'a>(&'a Shared);

impl<'a> Waiting<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.state().n_waiting += 1;
        Self(shared)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state().n_waiting -= 1;
    }
}

/// A thread that waits for progress.
struct Listening<'a> {
    shared: &'a Shared,
    /// None if there was no descriptor left: then it looks again and again.
    bell: Option<Arc<EventFd>>,
}

impl<'a> Listening<'a> {
    fn new(shared: &'a Shared) -> Self {
        let bell = EventFd::new().ok().map(Arc::new);
        shared.state().bells.extend(bell.clone());
        Self { shared, bell }
    }

    /// What tells of progress from now on, and how long to wait for it.
    fn bell(&self) -> (Option<(BorrowedFd<'_>, Direction)>, Option<Duration>) {
        match &self.bell {
            Some(bell) => {
                bell.lower();
                (Some((bell.as_fd(), Direction::In)), None)
            }
            None => (None, Some(leftovers::AGAIN)),
        }
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        if let Some(own) = &self.bell {
            let mut state = self.shared.state();
            state.bells.retain(|bell| !Arc::ptr_eq(bell, own));
        }
    }
}

/// A frame whose body stays with the caller while it is written.
struct Lent<'a> {
    shared: &'a Arc<Shared>,
    header: [u8; HEADER_LEN],
    body: &'a [u8],
    /// Bytes of both that are in the socket.
    sent: usize,
    /// Given back last.
    _gate: GateGuard<'a, ()>,
}

impl<'a> Lent<'a> {
    fn new(
        shared: &'a Arc<Shared>,
        header: Header,
        body: &'a [u8],
        gate: GateGuard<'a, ()>,
    ) -> Result<Self, Refusal> {
        let mut state = shared.state();
        state.check()?;
        state.is_lent = true;
        Ok(Self {
            shared,
            header: header.to_bytes(),
            body,
            sent: 0,
            _gate: gate,
        })
    }

    fn is_whole(&self) -> bool {
        self.sent == HEADER_LEN + self.body.len()
    }

    fn rest(&self) -> (&[u8], &[u8]) {
        let header = &self.header[self.sent.min(HEADER_LEN)..];
        let body = &self.body[self.sent.saturating_sub(HEADER_LEN)..];
        (header, body)
    }

    /// Writes what the socket takes, and whether that was all of it.
    fn write(&mut self, state: &mut State) -> io::Result<bool> {
        if self.is_whole() {
            return Ok(true);
        }
        let (header, body) = self.rest();
        let slices = [IoSlice::new(header), IoSlice::new(body)];
        let sent = state.write_slices(&slices, header.len() + body.len())?;
        self.sent += sent;
        Ok(self.is_whole())
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.is_lent = false;
        if self.sent == 0 || self.is_whole() || state.is_closed {
            return;
        }
        let (header, body) = self.rest();
        let bytes = [header, body].concat();
        state.push(Segment {
            bytes,
            start: 0,
            fds: Vec::new(),
        });
        drop(state);
        leftovers::adopt(self.shared);
    }
}

impl State {
    #[inline]
    fn check(&self) -> Result<(), Refusal> {
        match self.life {
            Life::Here if self.is_closed => Err(Refusal::Closed),
            Life::Here => Ok(()),
            Life::Leaving | Life::Left => Err(Refusal::Moved),
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "what is waited for may fail")]
    fn has_room(&mut self) -> io::Result<bool> {
        Ok(self.queued < QUEUED_MAX)
    }

    /// Whether anybody beside the `own` that the caller is waits for progress.
    fn is_awaited(&self, own: usize) -> bool {
        self.n_waiting > own || self.waker.is_some() || !self.bells.is_empty()
    }

    fn socket(&self) -> io::Result<Arc<OwnedFd>> {
        let socket = self.socket.as_ref().map(Arc::clone);
        socket.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn registration(&mut self) -> io::Result<Arc<Registration>> {
        let Some(socket) = &self.socket else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        Registration::current(&mut self.registration, socket, Interest::WRITABLE)
    }

    fn close(&mut self) {
        self.is_closed = true;
        self.queue.clear();
        self.queued = 0;
        self.written = self.accepted;
    }

    /// Writes what can be written, and whether that is enough.
    fn look(
        &mut self,
        attempt: Attempt,
        done: &mut impl FnMut(&mut Self) -> io::Result<bool>,
    ) -> Result<Enough, Refusal> {
        let may_write = attempt == Attempt::Always || !self.is_full;
        let mut enough = Enough::No;
        match self.life {
            Life::Here => {
                if may_write && self.write().is_err() {
                    enough = Enough::Refused;
                }
            }
            Life::Left => (),
            Life::Leaving => return Ok(Enough::No),
        }
        let done = done(self);
        match done {
            _ if self.is_closed => Err(Refusal::Closed),
            Ok(true) => Ok(Enough::Yes),
            Ok(false) => Ok(enough),
            Err(error) => Err(Refusal::Os(error)),
        }
    }

    /// Puts a frame behind others if that takes nothing but copying it.
    #[inline]
    fn append(&mut self, frame: &[u8]) -> bool {
        let len = frame.len();
        if self.queued >= QUEUED_MAX || self.n_at_gate > 0 || self.check().is_err() {
            return false;
        }
        if !self.pace.is_quick() {
            return false;
        }
        match self.queue.back_mut() {
            Some(last) if len <= COPIED_MAX && len <= last.bytes.capacity() - last.bytes.len() => {
                last.bytes.extend_from_slice(frame);
                self.queued += len;
                self.accepted += len as u64;
                self.note_len(len);
                true
            }
            _ => false,
        }
    }

    /// Remembers about how long the longest of the last frames was.
    #[inline]
    fn note_len(&mut self, len: usize) {
        self.recent_len = len.max(self.recent_len - self.recent_len / 16);
    }

    /// Accepts a frame, unless there is no room.
    fn accept(&mut self, encoded: &mut Encoded, write: Write) -> Result<Accepted, Refusal> {
        self.check()?;
        if self.queued >= QUEUED_MAX {
            if self.write().is_err() {
                self.check()?;
            }
            if self.queued >= QUEUED_MAX {
                return Ok(Accepted::NoRoom);
            }
        }
        let len = encoded.bytes.len();
        self.note_len(len);
        let mut start = 0;
        if self.queue.is_empty() && write == Write::Now && encoded.outgoing.is_empty() {
            start = self
                .write_slices(&[IoSlice::new(&encoded.bytes)], len)
                .map_err(|error| self.refusal(error))?;
            if start == len {
                if len > COPIED_MAX {
                    self.recycle(mem::take(&mut *encoded.bytes));
                }
                return Ok(Accepted::Written);
            }
        }
        let n_before = self.queue.len();
        self.push_frame(&mut encoded.bytes, start, encoded.outgoing.fds());
        let n_own = self.queue.len() - n_before;
        if write == Write::Now
            && start == 0
            && let Err(error) = self.write()
        {
            let refusal = self.refusal(error);
            self.check()?;
            if self.take_back(n_own) {
                return Err(refusal);
            }
        }
        match self.queue.is_empty() {
            true => Ok(Accepted::Written),
            false => Ok(Accepted::Queued(self.accepted)),
        }
    }

    /// Takes the last `n` segments, which are one frame, off the queue if none of it has been sent.
    fn take_back(&mut self, n: usize) -> bool {
        let Some(first) = self.queue.len().checked_sub(n) else {
            return false;
        };
        // It may also lie behind others in one segment.
        if n == 0 || self.queue[first].start > 0 {
            return false;
        }
        let lens = self.queue.drain(first..).map(|segment| segment.bytes.len());
        let len: usize = lens.sum();
        self.queued -= len;
        self.accepted -= len as u64;
        true
    }

    fn refusal(&self, error: io::Error) -> Refusal {
        if self.is_closed {
            Refusal::Closed
        } else {
            Refusal::Os(error)
        }
    }

    /// Queues a frame, of which `start` bytes have been written already.
    fn push_frame(&mut self, bytes: &mut Vec<u8>, start: usize, fds: &[Arc<OwnedFd>]) {
        if fds.is_empty() && bytes.len() <= COPIED_MAX {
            return self.push_copy(&bytes[start..]);
        }
        let n_ahead = match fds.len() {
            0 => 0,
            n_fds => (n_fds - 1) / FDS_PER_FRAME_MAX * FDS_PER_FRAME_MAX,
        };
        for group in fds[..n_ahead].chunks(FDS_PER_FRAME_MAX) {
            self.push(Segment {
                bytes: Header::more_fds(group.len()).to_bytes().to_vec(),
                start: 0,
                fds: group.to_vec(),
            });
        }
        self.push(Segment {
            bytes: mem::take(bytes),
            start,
            fds: fds[n_ahead..].to_vec(),
        });
    }

    /// Queues a copy, behind others in one buffer if there is room.
    fn push_copy(&mut self, bytes: &[u8]) {
        match self.queue.back_mut() {
            Some(last) if last.bytes.len() + bytes.len() <= QUEUED_MAX + COPIED_MAX => {
                last.bytes.extend_from_slice(bytes);
                self.queued += bytes.len();
                self.accepted += bytes.len() as u64;
            }
            _ => {
                let mut buffer = self.spares.pop().unwrap_or_default();
                buffer.extend_from_slice(bytes);
                self.push(Segment {
                    bytes: buffer,
                    start: 0,
                    fds: Vec::new(),
                });
            }
        }
    }

    fn push(&mut self, segment: Segment) {
        let len = segment.bytes.len() - segment.start;
        self.queued += len;
        self.accepted += len as u64;
        self.queue.push_back(segment);
    }

    /// Writes what the socket takes of the queue; whether that was all.
    fn write(&mut self) -> io::Result<bool> {
        while let Some(first) = self.queue.front() {
            // Descriptors are attached to the first byte of a write.
            let more = self.queue.iter().skip(1);
            let more = more.take_while(|segment| segment.fds.is_empty());
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut len = 0;
            let mut n_slices = 0;
            for segment in iter::once(first).chain(more).take(SLICES) {
                let rest = &segment.bytes[segment.start..];
                slices[n_slices] = IoSlice::new(rest);
                len += rest.len();
                n_slices += 1;
            }
            let fds: Vec<BorrowedFd<'_>> = first.fds.iter().map(AsFd::as_fd).collect();
            let result = send(self.socket.as_ref(), &slices[..n_slices], &fds);
            let sent = self.note(result, len)?;
            self.advance(sent);
            if sent < len {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes what the socket takes of `slices`, which are `len` bytes.
    fn write_slices(&mut self, slices: &[IoSlice<'_>], len: usize) -> io::Result<usize> {
        let result = send(self.socket.as_ref(), slices, &[]);
        self.note(result, len)
    }

    /// Takes note of how a write of `len` bytes went.
    fn note(&mut self, result: io::Result<usize>, len: usize) -> io::Result<usize> {
        match result {
            Ok(sent) => {
                self.is_full = sent < len;
                self.calm = if self.is_full {
                    0
                } else {
                    self.calm.saturating_add(1)
                };
                if self.calm > CALM_MAX && !self.is_awaited(0) {
                    self.registration = None;
                }
                Ok(sent)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.is_full = true;
                self.calm = 0;
                Ok(0)
            }
            Err(error) => {
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) {
                    self.close();
                }
                Err(error)
            }
        }
    }

    /// Takes `sent` bytes off the queue.
    fn advance(&mut self, mut sent: usize) {
        self.written += sent as u64;
        self.queued -= sent;
        while sent > 0 {
            let first = self
                .queue
                .front_mut()
                .expect("no more is sent than is queued");
            let rest = first.bytes.len() - first.start;
            // They have left with the first byte.
            first.fds = Vec::new();
            if sent < rest {
                first.start += sent;
                return;
            }
            sent -= rest;
            let first = self.queue.pop_front().expect("it was just looked at");
            self.recycle(first.bytes);
        }
    }

    /// Keeps a buffer for the next frame.
    fn recycle(&mut self, mut bytes: Vec<u8>) {
        let kept = (4 * self.recent_len).clamp(KEPT, KEPT_MAX);
        if self.spares.len() < 2 && bytes.capacity() <= kept {
            bytes.clear();
            self.spares.push(bytes);
        }
    }
}

fn send(
    socket: Option<&Arc<OwnedFd>>,
    slices: &[IoSlice<'_>],
    fds: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let socket = socket.ok_or(io::ErrorKind::BrokenPipe)?;
    socket::send_with_fds(socket, slices, fds, Wait::No)
}
