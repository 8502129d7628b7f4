//! How a worker's answers reach the pool: through the outbox, in batches, and never late.
//!
//! An answer is committed to the outbox and stays there until a batch is worth a system call: the
//! input is exhausted, or the outbox is half full. An answer must not wait behind a long item,
//! though, so before an item is started while something lies in the outbox, a timer is set, at most
//! once a millisecond; it goes off in the watching thread, which sends what is there.
//!
//! Both threads send under a mutex that guards how far the stream has been sent. Only the worker's
//! own thread moves the outbox's base.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use super::outbox::{CAPACITY, Outbox};
use crate::process::entry;
use crate::sys::socket::{self, Wait};
use crate::sys::timerfd::TimerFd;
use crate::wire::fds::Outgoing;
use crate::wire::frame::{FDS_PER_FRAME_MAX, HEADER_LEN, Header};

/// So long may an answer wait behind a later item.
const DELAY: Duration = Duration::from_millis(1);
/// The socket is asked for a buffer of this size once something large goes through.
const SEND_BUFFER: usize = 4 << 20;
/// A buffer that has grown beyond this for one large answer is given back.
const SCRATCH_MAX: usize = 16 << 20;

/// The stream of answers, as the worker's thread writes it.
#[derive(Debug)]
pub(crate) struct Answers {
    sender: Arc<Sender>,
    /// The stream's length.
    position: u64,
    /// The frame in the making.
    scratch: Vec<u8>,
    has_large_buffer: bool,
}

#[derive(Debug)]
struct Sender {
    outbox: Outbox,
    control: Arc<OwnedFd>,
    sent: Mutex<Sent>,
    timer: TimerFd,
    /// The timer is set and has not gone off.
    is_set: AtomicBool,
}

#[derive(Debug, Default)]
struct Sent {
    /// How much of the stream is in the socket.
    position: u64,
    buffer: Vec<u8>,
}

impl Answers {
    pub(crate) fn new(outbox: Outbox, control: Arc<OwnedFd>) -> io::Result<Self> {
        let timer = TimerFd::new()?;
        let watched = timer.as_fd().try_clone_to_owned()?;
        let sender = Arc::new(Sender {
            outbox,
            control,
            sent: Mutex::default(),
            timer,
            is_set: AtomicBool::new(false),
        });
        let late = Arc::clone(&sender);
        entry::watch(watched, move || late.send_what_fits())?;
        Ok(Self {
            sender,
            position: 0,
            scratch: Vec::new(),
            has_large_buffer: false,
        })
    }

    /// Counts the next item as started; tells whether it is to be run.
    pub(crate) fn start_next(&self) -> bool {
        if !self.sender.is_set.load(Relaxed) && self.has_unsent() {
            self.sender.set_timer();
        }
        self.sender.outbox.start_next()
    }

    /// Makes and commits one frame; `body` appends its body and returns its kind and descriptors.
    pub(crate) fn push(
        &mut self,
        aux: u64,
        body: impl FnOnce(&mut Vec<u8>) -> (u8, Outgoing),
    ) -> io::Result<()> {
        let mut frame = std::mem::take(&mut self.scratch);
        frame.clear();
        frame.resize(HEADER_LEN, 0);
        let (kind, outgoing) = body(&mut frame);
        let header = Header::new(kind, aux, frame.len() - HEADER_LEN);
        let result = if outgoing.is_empty() {
            frame[..HEADER_LEN].copy_from_slice(&header.to_bytes());
            self.append(&frame)
        } else {
            self.send_with_fds(header, &mut frame, &outgoing.commit())
        };
        if frame.capacity() <= SCRATCH_MAX {
            self.scratch = frame;
        }
        result
    }

    fn append(&mut self, frame: &[u8]) -> io::Result<()> {
        let outbox = &self.sender.outbox;
        if frame.len() > outbox.room(self.position) {
            self.flush()?;
        }
        let outbox = &self.sender.outbox;
        if frame.len() > CAPACITY {
            return self.send_directly(frame);
        }
        outbox.commit(self.position, [frame, &[]]);
        self.position += frame.len() as u64;
        if outbox.room(self.position) < CAPACITY / 2 {
            self.flush()?;
        }
        Ok(())
    }

    fn send_directly(&mut self, frame: &[u8]) -> io::Result<()> {
        let mut sent = self.sender.sent();
        if !self.has_large_buffer && frame.len() > CAPACITY {
            self.has_large_buffer = true;
            // What the kernel grants is good enough.
            let _ = socket::set_send_buffer(&*self.sender.control, SEND_BUFFER);
        }
        socket::send_all(&*self.sender.control, frame)?;
        self.position += frame.len() as u64;
        sent.position = self.position;
        self.sender.outbox.rebase(self.position);
        Ok(())
    }

    /// Sends a frame whose descriptors cannot lie in the outbox.
    fn send_with_fds(
        &mut self,
        header: Header,
        frame: &mut [u8],
        fds: &[Arc<OwnedFd>],
    ) -> io::Result<()> {
        self.flush()?;
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
        let n_before = (fds.len() - 1) / FDS_PER_FRAME_MAX * FDS_PER_FRAME_MAX;
        let (before, last) = fds.split_at(n_before);
        let control = Arc::clone(&self.sender.control);
        for fds in before.chunks(FDS_PER_FRAME_MAX) {
            let more = Header::more_fds(fds.len()).to_bytes();
            let sent = socket::send_with_fds(&*control, &[IoSlice::new(&more)], fds, Wait::Yes)?;
            socket::send_all(&*control, &more[sent..])?;
            self.position += more.len() as u64;
        }
        frame[..HEADER_LEN].copy_from_slice(&header.with_fds(last.len()).to_bytes());
        let sent = socket::send_with_fds(&*control, &[IoSlice::new(frame)], last, Wait::Yes)?;
        self.position += sent as u64;
        self.send_directly(&frame[sent..])
    }

    /// Sends everything, waiting while the socket is full.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if !self.has_unsent() {
            return Ok(());
        }
        let mut sent = self.sender.sent();
        let Sent { position, buffer } = &mut *sent;
        buffer.clear();
        self.sender.outbox.read(*position, self.position, buffer);
        socket::send_all(&*self.sender.control, buffer)?;
        *position = self.position;
        self.sender.outbox.rebase(self.position);
        Ok(())
    }

    /// Whether something lies in the outbox that this thread has not sent.
    fn has_unsent(&self) -> bool {
        self.sender.outbox.room(self.position) < CAPACITY
    }
}

impl Sender {
    fn set_timer(&self) {
        self.is_set.store(true, Relaxed);
        self.timer.set(DELAY);
    }

    /// The timer went off: sends what lies in the outbox, without waiting.
    fn send_what_fits(&self) {
        self.timer.clear();
        self.is_set.store(false, Relaxed);
        let mut sent = match self.sent.try_lock() {
            Ok(sent) => sent,
            Err(TryLockError::Poisoned(sent)) => sent.into_inner(),
            // The worker's thread is sending.
            Err(TryLockError::WouldBlock) => return,
        };
        let Sent { position, buffer } = &mut *sent;
        let end = self.outbox.committed();
        buffer.clear();
        self.outbox.read(*position, end, buffer);
        match socket::send_bytes(&*self.control, buffer, Wait::No) {
            Ok(len) => *position += len as u64,
            // The pool has not made room yet.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
            // The pool is gone, which this thread will notice next.
            Err(_) => return,
        }
        if *position < end {
            self.set_timer();
        }
    }

    fn sent(&self) -> MutexGuard<'_, Sent> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
