//! The receiving end of a stream socket: whole frames, for whoever asks first.
//!
//! What has been read and is no whole frame yet lives in the endpoint, never in a future, and a
//! frame is taken out in one step: a dropped future leaves everything as it was.
//!
//! Receivers take turns: one waits for the socket, the others wait for it. Else a frame that one
//! of them reads along with its own would lie in the buffer while another waits for the socket to
//! tell of it, and the socket has nothing more to tell.
//!
//! Readiness comes first and the read second: a read that would have to wait costs as much as one
//! that does not. A read that comes back short has emptied the socket, so readiness is cleared
//! without asking again; but the kernel also ends a read behind a frame with descriptors.

use std::io;
use std::mem;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::sync::Mutex as Turn;
use tokio::task::coop;

use super::{LEAVING, LEFT, Life, Pace};
use crate::error::RecvError;
use crate::sys::reactor::Registration;
use crate::sys::socket::{self, Direction, Wait};
use crate::wire::fds::Moving;
use crate::wire::frame::{Frame, FrameError, Splitter};

/// The receiving end of a stream socket.
#[derive(Debug)]
pub(crate) struct Inlet {
    /// Held by the one receiver that waits for the socket.
    turn: Turn<()>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Gone once the end has been handed over.
    socket: Option<Arc<OwnedFd>>,
    life: Life,
    registration: Option<Arc<Registration>>,
    splitter: Splitter,
    limit: u32,
    /// Empty between two reads.
    fds: Vec<OwnedFd>,
    /// How many have the turn or wait for it.
    n_in_turn: usize,
    pace: Pace,
}

/// A frame that has come.
#[derive(Debug)]
pub(crate) enum Next {
    /// Its kind; its body was copied.
    Copied(u8),
    Whole(Frame),
}

/// One that has the turn or waits for it. It leaves when the turn has been given back.
struct InTurn<'a>(&'a Inlet);

impl<'a> InTurn<'a> {
    fn new(inlet: &'a Inlet) -> Self {
        inlet.state().n_in_turn += 1;
        Self(inlet)
    }
}

impl Drop for InTurn<'_> {
    fn drop(&mut self) {
        self.0.state().n_in_turn -= 1;
    }
}

/// What one look at the socket brought.
enum Read {
    /// More bytes; the socket may have others.
    Some,
    /// More bytes, and they were the last.
    Last,
    /// Nothing yet.
    Nothing,
    End,
}

impl Inlet {
    /// The end of a socket from which `rest` has been read already, with the descriptors of each
    /// frame in it that has any.
    pub(crate) fn new(socket: OwnedFd, limit: u32, rest: (&[u8], Vec<Vec<OwnedFd>>)) -> Self {
        let mut splitter = Splitter::new(limit);
        splitter.room().0.extend_from_slice(rest.0);
        for fds in rest.1 {
            splitter.add_fds(fds, false);
        }
        Self {
            turn: Turn::new(()),
            state: Mutex::new(State {
                socket: Some(Arc::new(socket)),
                life: Life::Here,
                registration: None,
                splitter,
                limit,
                fds: Vec::new(),
                n_in_turn: 0,
                pace: Pace::default(),
            }),
        }
    }

    /// Waits for the next frame. A short one is appended to `into`, as for
    /// [`copy_at_hand`](Self::copy_at_hand).
    ///
    /// Cancel safe: see the module.
    pub(crate) async fn next(&self, into: &mut Vec<u8>) -> Result<Next, RecvError> {
        coop::consume_budget().await;
        let _in_turn = InTurn::new(self);
        // Without waiting if it is free, which is the usual case and half the work.
        let _turn = match self.turn.try_lock() {
            Ok(turn) => turn,
            Err(_) => self.turn.lock().await,
        };
        let mut next = self.state().next(into)?;
        loop {
            if let Some(next) = next {
                return Ok(next);
            }
            next = self.fill(|state| state.next(into)).await?;
        }
    }

    /// The next frame if it can be copied right away, as most can: its kind, and its body appended to
    /// `into`. Else, and if something is wrong, nothing, and it is for [`next`](Self::next).
    #[inline]
    pub(crate) fn copy_at_hand(&self, into: &mut Vec<u8>) -> Option<u8> {
        let mut state = self.state();
        if state.life != Life::Here || state.n_in_turn > 0 || !state.pace.is_quick() {
            return None;
        }
        state.splitter.copy_frame(into)
    }

    /// Waits until [`next`](Self::next) would not wait, or would fail.
    pub(crate) async fn ready(&self) {
        let _in_turn = InTurn::new(self);
        let _turn = self.turn.lock().await;
        let mut ready = self.state().is_ready();
        while matches!(ready, Ok(None)) {
            ready = self.fill(State::is_ready).await;
        }
    }

    /// Waits for the socket, reads once, and looks whether that was enough.
    async fn fill<R>(
        &self,
        look: impl FnOnce(&mut State) -> Result<Option<R>, RecvError>,
    ) -> Result<Option<R>, RecvError> {
        let registration = self.state().registration().map_err(RecvError::Io)?;
        let mut ready = match registration.reactor().readable().await {
            Ok(ready) => ready,
            // That runtime is shutting down. In another one the next round registers anew.
            Err(error) => {
                self.state().forget_registration(&registration, error)?;
                return Ok(None);
            }
        };
        let mut state = self.state();
        let read = state.read()?;
        if matches!(read, Read::Last | Read::Nothing) {
            ready.clear_ready();
        }
        read.go_on(&state.splitter)?;
        look(&mut state)
    }

    /// The next frame, for the one that has the endpoint to itself.
    pub(crate) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Result<Frame, RecvError>> {
        let proceed = ready!(coop::poll_proceed(cx));
        loop {
            let registration = {
                let mut state = self.state();
                if let Some(frame) = state.buffered()? {
                    proceed.made_progress();
                    return Poll::Ready(Ok(frame));
                }
                state.registration().map_err(RecvError::Io)?
            };
            let mut ready = match ready!(registration.reactor().poll_read_ready(cx)) {
                Ok(ready) => ready,
                Err(error) => {
                    self.state().forget_registration(&registration, error)?;
                    continue;
                }
            };
            let mut state = self.state();
            let read = state.read()?;
            if matches!(read, Read::Last | Read::Nothing) {
                ready.clear_ready();
            }
            read.go_on(&state.splitter)?;
        }
    }

    /// The next frame, if it is there and nobody waits for it.
    pub(crate) fn try_next(&self) -> Result<Option<Frame>, RecvError> {
        let Ok(_turn) = self.turn.try_lock() else {
            return Ok(None);
        };
        let mut state = self.state();
        loop {
            if let Some(frame) = state.buffered()? {
                return Ok(Some(frame));
            }
            match state.read()? {
                Read::Nothing => return Ok(None),
                read => read.go_on(&state.splitter)?,
            }
        }
    }

    /// Waits for the next frame with the whole thread.
    ///
    /// # Panics
    ///
    /// The thread drives a runtime.
    pub(crate) fn blocking_next(&self) -> Result<Frame, RecvError> {
        let _in_turn = InTurn::new(self);
        let _turn = self.turn.blocking_lock();
        loop {
            let socket = {
                let mut state = self.state();
                if let Some(frame) = state.buffered()? {
                    return Ok(frame);
                }
                let read = state.read()?;
                if !matches!(read, Read::Nothing) {
                    read.go_on(&state.splitter)?;
                    continue;
                }
                Arc::clone(state.socket()?)
            };
            socket::wait_for(&socket, Direction::In).map_err(RecvError::Io)?;
        }
    }

    /// The most bytes of a frame.
    pub(crate) fn limit(&self) -> u32 {
        self.state().limit
    }

    /// Changes the limit from the next frame on.
    pub(crate) fn set_limit(&self, limit: u32) {
        let mut state = self.state();
        state.limit = limit;
        state.splitter.set_limit(limit);
    }

    /// Reserves the end for a hand-over: the socket, what was read ahead, and its descriptors.
    ///
    /// # Errors
    ///
    /// It is not here any more, or somebody is receiving.
    pub(crate) fn reserve(&self) -> Result<Reserved, &'static str> {
        let Ok(_turn) = self.turn.try_lock() else {
            return Err("a task is receiving from the end of a pipe that is to be sent away");
        };
        let mut state = self.state();
        match state.life {
            Life::Here => (),
            Life::Leaving => return Err(LEAVING),
            Life::Left => return Err(LEFT),
        }
        let Some((rest, fds)) = state.splitter.rest() else {
            return Err("a message that has lost its file descriptors must be received first");
        };
        let copy = |fd: &BorrowedFd<'_>| fd.try_clone_to_owned().map(Arc::new);
        let copies = fds.iter().map(|fds| fds.iter().map(copy).collect());
        let Ok(fds) = copies.collect() else {
            return Err("there are no file descriptors left to copy those of a message");
        };
        let socket = Arc::clone(state.socket.as_ref().ok_or(LEFT)?);
        state.life = Life::Leaving;
        Ok(Reserved {
            socket,
            rest,
            fds,
            limit: state.limit,
        })
    }

    #[inline]
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that is done under the lock leaves the state half-changed when it panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What travels when a receiving end is handed over.
#[derive(Debug)]
pub(crate) struct Reserved {
    pub(crate) socket: Arc<OwnedFd>,
    pub(crate) rest: Vec<u8>,
    pub(crate) fds: Vec<Vec<Arc<OwnedFd>>>,
    pub(crate) limit: u32,
}

impl Moving for Inlet {
    fn commit(&self) {
        let mut state = self.state();
        state.life = Life::Left;
        let gone = (state.registration.take(), state.socket.take());
        let splitter = mem::replace(&mut state.splitter, Splitter::new(0));
        drop(state);
        drop((gone, splitter));
    }

    fn restore(&self) {
        self.state().life = Life::Here;
    }
}

impl State {
    #[inline]
    fn socket(&self) -> Result<&Arc<OwnedFd>, RecvError> {
        match (&self.socket, self.life) {
            (Some(socket), Life::Here) => Ok(socket),
            _ => Err(RecvError::Moved),
        }
    }

    #[inline]
    fn buffered(&mut self) -> Result<Option<Frame>, RecvError> {
        self.socket()?;
        self.splitter.next_frame().map_err(describe)
    }

    /// The next frame, copied if it is short.
    #[inline]
    fn next(&mut self, into: &mut Vec<u8>) -> Result<Option<Next>, RecvError> {
        self.socket()?;
        match self.splitter.copy_frame(into) {
            Some(kind) => Ok(Some(Next::Copied(kind))),
            None => Ok(self.buffered()?.map(Next::Whole)),
        }
    }

    fn is_ready(&mut self) -> Result<Option<()>, RecvError> {
        self.socket()?;
        let is_ready = self.splitter.is_frame_ready().map_err(describe)?;
        Ok(is_ready.then_some(()))
    }

    fn registration(&mut self) -> io::Result<Arc<Registration>> {
        let Some(socket) = &self.socket else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        Registration::current(&mut self.registration, socket, Interest::READABLE)
    }

    fn forget_registration(
        &mut self,
        failed: &Arc<Registration>,
        error: io::Error,
    ) -> Result<(), RecvError> {
        if failed.is_current() {
            return Err(RecvError::Io(error));
        }
        self.registration = None;
        Ok(())
    }

    /// Reads what is there, without waiting.
    fn read(&mut self) -> Result<Read, RecvError> {
        let Some(socket) = &self.socket else {
            return Err(RecvError::Moved);
        };
        loop {
            let (buffer, room) = self.splitter.room();
            match socket::recv_with_fds(socket, buffer, room, &mut self.fds, Wait::No) {
                Ok(received) => {
                    let with_fds = received.fds_lost || !self.fds.is_empty();
                    if with_fds {
                        self.splitter
                            .add_fds(mem::take(&mut self.fds), received.fds_lost);
                    }
                    return Ok(match received.len {
                        0 => Read::End,
                        len if len < room && !with_fds => Read::Last,
                        _ => Read::Some,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Read::Nothing);
                }
                // Told once if the peer has left without reading all of what was sent to it; what
                // it has sent is still to be read.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => (),
                Err(error) => return Err(RecvError::Io(error)),
            }
        }
    }
}

impl Read {
    /// Tells a clean end from a torn frame.
    fn go_on(self, splitter: &Splitter) -> Result<(), RecvError> {
        match self {
            Self::End if splitter.is_at_boundary() => Err(RecvError::Closed),
            Self::End => Err(RecvError::Torn),
            _ => Ok(()),
        }
    }
}

fn describe(error: FrameError) -> RecvError {
    match error {
        FrameError::FdsLost => RecvError::OutOfFds,
        FrameError::TooLong { len, limit } => RecvError::TooLong {
            len: len as usize,
            limit: limit as usize,
        },
        other => RecvError::Protocol(other.to_string()),
    }
}
