//! The pool's end of one worker: what goes out, what has come in, and the memory they share.
//!
//! Everything here is done by whoever is at it, without waiting: sending under the pool's lock,
//! reading under the lock of the inbox. Only when the socket is full, or empty, the worker's
//! reader (see `run`) waits for it.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::Notify;

use super::outbox::Outbox;
use crate::process::start::{Exit, Launched, Signals};
use crate::sys::signal;
use crate::sys::socket::{self, Wait};
use crate::wire::frame::{FDS_PER_FRAME_MAX, FDS_PER_VALUE_MAX, HEADER_LEN, Header};

/// A part of at least this length is sent from where it lies; shorter ones are gathered.
const LARGE: usize = 16 << 10;
/// The most parts that are sent by one call.
const SLICES: usize = 16;
/// How much is read at once when nothing is known of what comes.
const READ: usize = 64 << 10;
/// Less room than this is not worth a call.
const READ_MIN: usize = 4 << 10;
/// How much room is made at once for a long frame: a worker that only claims one gets no more.
const GROWTH: usize = 8 << 20;
/// Sockets are asked for a buffer of this size once something large goes through.
const SEND_BUFFER: usize = 4 << 20;

/// A worker's socket, its memory, and the means to end it.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) pid: u32,
    pub(crate) control: Arc<OwnedFd>,
    pub(crate) exit: Exit,
    pub(crate) outbox: Outbox,
    signals: Signals,
    inbox: Mutex<Inbox>,
    /// Something waits until the socket takes more.
    pub(crate) blocked: AtomicBool,
    /// Tells the readers that `blocked` has changed.
    pub(crate) bell: Notify,
    /// What the worker did that no worker does.
    pub(crate) violation: OnceLock<String>,
}

impl Line {
    /// The line to a worker that has just become ready.
    pub(crate) fn new(launched: Launched, outbox: Outbox) -> Option<Self> {
        let signals = launched.signals();
        let Launched {
            pid, control, exit, ..
        } = launched;
        let control = control?;
        Some(Self {
            pid,
            control: Arc::new(control.socket),
            exit,
            outbox,
            signals,
            inbox: Mutex::new(Inbox::new(control.rest)),
            blocked: AtomicBool::new(false),
            bell: Notify::new(),
            violation: OnceLock::new(),
        })
    }

    /// Kills the worker; its end is still to be awaited.
    pub(crate) fn kill(&self) {
        // An error means that it is gone.
        let _ = self.signals.send(signal::KILL);
    }

    pub(crate) fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_blocked(&self, blocked: bool) {
        if self.blocked.swap(blocked, Relaxed) != blocked {
            self.bell.notify_waiters();
        }
    }
}

/// What is to be sent to one worker.
#[derive(Debug, Default)]
pub(crate) struct Post {
    /// Short parts, gathered.
    gathered: Vec<u8>,
    /// What comes before them.
    parts: VecDeque<Part>,
    has_large_buffer: bool,
}

/// Bytes, and the descriptors that go with the first of them.
#[derive(Debug)]
struct Part {
    bytes: Bytes,
    fds: Vec<Arc<OwnedFd>>,
}

impl Part {
    fn plain(bytes: impl Into<Bytes>) -> Self {
        Self {
            bytes: bytes.into(),
            fds: Vec::new(),
        }
    }
}

impl Post {
    /// Adds a frame whose body is `head` and `tail`, with descriptors.
    pub(crate) fn push(
        &mut self,
        (kind, aux): (u8, u64),
        head: &[&[u8]],
        tail: Tail<'_>,
        fds: &[Arc<OwnedFd>],
    ) {
        let tail_len = match &tail {
            Tail::Small(bytes) => bytes.len(),
            Tail::Shared(bytes) => bytes.len(),
        };
        let len = head.iter().map(|part| part.len()).sum::<usize>() + tail_len;
        let mut header = Header::new(kind, aux, len);
        let mut last = &[][..];
        if !fds.is_empty() {
            self.seal(&[]);
            let n_before = (fds.len() - 1) / FDS_PER_FRAME_MAX * FDS_PER_FRAME_MAX;
            for fds in fds[..n_before].chunks(FDS_PER_FRAME_MAX) {
                self.gathered
                    .extend_from_slice(&Header::more_fds(fds.len()).to_bytes());
                self.seal(fds);
            }
            last = &fds[n_before..];
            header = header.with_fds(last.len());
        }
        self.gathered.extend_from_slice(&header.to_bytes());
        head.iter()
            .for_each(|part| self.gathered.extend_from_slice(part));
        match tail {
            Tail::Shared(bytes) if bytes.len() >= LARGE => {
                self.seal(last);
                self.parts.push_back(Part::plain(bytes));
            }
            Tail::Shared(bytes) => self.gathered.extend_from_slice(&bytes),
            Tail::Small(bytes) => self.gathered.extend_from_slice(bytes),
        }
        if !last.is_empty() {
            self.seal(last);
        }
    }

    /// Makes what is gathered a part, with descriptors.
    fn seal(&mut self, fds: &[Arc<OwnedFd>]) {
        if !self.gathered.is_empty() {
            self.parts.push_back(Part {
                bytes: std::mem::take(&mut self.gathered).into(),
                fds: fds.to_vec(),
            });
        }
    }

    /// Sends what the socket takes. Tells whether that was all.
    pub(crate) fn flush(&mut self, line: &Line) -> bool {
        let sent = self.send(line);
        // A worker that is gone takes nothing; its end will be noticed by itself.
        let rest = match sent {
            Ok(()) => false,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
            Err(_) => {
                self.parts.clear();
                self.gathered.clear();
                false
            }
        };
        line.set_blocked(rest);
        !rest
    }

    fn send(&mut self, line: &Line) -> io::Result<()> {
        if self.parts.is_empty() {
            let mut sent = 0;
            while sent < self.gathered.len() {
                match socket::send_bytes(&*line.control, &self.gathered[sent..], Wait::No) {
                    Ok(len) => sent += len,
                    Err(error) => {
                        self.gathered.drain(..sent);
                        return Err(error);
                    }
                }
            }
            self.gathered.clear();
            return Ok(());
        }
        if !self.has_large_buffer {
            self.has_large_buffer = true;
            // What the kernel grants is good enough.
            let _ = socket::set_send_buffer(&*line.control, SEND_BUFFER);
        }
        self.seal(&[]);
        while let Some(first) = self.parts.front() {
            let fds: Vec<BorrowedFd<'_>> = first.fds.iter().map(|fd| fd.as_fd()).collect();
            let mut slices = vec![IoSlice::new(&first.bytes)];
            let more = self.parts.iter().skip(1);
            let more = more.take_while(|part| part.fds.is_empty()).take(SLICES);
            slices.extend(more.map(|part| IoSlice::new(&part.bytes)));
            let mut sent = socket::send_with_fds(&*line.control, &slices, &fds, Wait::No)?;
            while let Some(part) = self.parts.front_mut() {
                if sent < part.bytes.len() {
                    part.bytes.advance(sent);
                    if sent > 0 {
                        part.fds.clear();
                    }
                    break;
                }
                sent -= part.bytes.len();
                self.parts.pop_front();
            }
        }
        Ok(())
    }
}

/// The end of a frame's body.
#[derive(Debug)]
pub(crate) enum Tail<'a> {
    Small(&'a [u8]),
    Shared(Bytes),
}

/// What has come from one worker and is not taken in yet.
#[derive(Debug)]
pub(crate) struct Inbox {
    buffer: BytesMut,
    /// Descriptors that came with the frames in the buffer.
    fds: Vec<OwnedFd>,
    /// How many of them frames without a body have claimed for the next frame.
    pub(crate) n_fds_ahead: usize,
    /// Some were dropped by the kernel, as this process has no room for them.
    fds_lost: bool,
    /// Bytes of the worker's stream that came through the socket.
    pub(crate) received: u64,
    /// Nothing more is taken in.
    pub(crate) is_closed: bool,
}

/// What reading brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// Something, and there may be more.
    Some,
    /// All there is for now.
    All,
    /// The worker has closed its end.
    End,
}

impl Inbox {
    fn new(rest: BytesMut) -> Self {
        Self {
            received: rest.len() as u64,
            buffer: rest,
            fds: Vec::new(),
            n_fds_ahead: 0,
            fds_lost: false,
            is_closed: false,
        }
    }

    /// Reads once. A frame may have up to `limit` bytes.
    pub(crate) fn read(&mut self, line: &Line, limit: u32) -> Read {
        let wanted = match self.header() {
            Some(header) if header.len <= limit => {
                let rest = (HEADER_LEN + header.len as usize).saturating_sub(self.buffer.len());
                rest.min(GROWTH.max(self.buffer.len()))
            }
            _ => 0,
        };
        let room = self.buffer.capacity() - self.buffer.len();
        if room < wanted {
            self.buffer.reserve(wanted);
        } else if room < READ_MIN {
            self.buffer.reserve(READ);
        }
        let room = self.buffer.capacity() - self.buffer.len();
        let (buffer, fds) = (&mut self.buffer, &mut self.fds);
        match socket::recv_with_fds(&*line.control, buffer, room, fds, Wait::No) {
            Ok(received) => {
                self.fds_lost |= received.fds_lost;
                self.received += received.len as u64;
                match received.len {
                    0 => Read::End,
                    len if len < room && self.fds.is_empty() => Read::All,
                    // A read ends behind a frame with descriptors, whatever comes after it.
                    _ => Read::Some,
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Read::All,
            Err(_) => Read::End,
        }
    }

    /// Adds what the worker left in its outbox.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The first frame, if all of it is here.
    pub(crate) fn peek(&self, limit: u32) -> Result<Option<(Header, &[u8])>, String> {
        frame_at(&self.buffer, limit)
    }

    /// Counts the frames from the second on that continue the first one's row: answers to the next
    /// items without descriptors, at most `n_max` in all. Returns their number and bytes, the first
    /// one's included.
    pub(crate) fn row(
        &self,
        first: Header,
        n_max: u32,
        limit: u32,
        fits: fn(u8) -> bool,
    ) -> (u32, usize) {
        let mut n = 1;
        let mut end = HEADER_LEN + first.len as usize;
        while n < n_max && first.n_fds == 0 {
            match frame_at(&self.buffer[end..], limit) {
                Ok(Some((header, body)))
                    if fits(header.kind)
                        && header.n_fds == 0
                        && header.aux == first.aux + u64::from(n) =>
                {
                    end += HEADER_LEN + body.len();
                    n += 1;
                }
                // What is wrong with it is found when its turn comes.
                _ => break,
            }
        }
        (n, end)
    }

    /// Takes the descriptors of the frame with this header; nothing if they found no room.
    pub(crate) fn claim(&mut self, header: Header) -> Result<Option<Vec<OwnedFd>>, String> {
        let n_fds = std::mem::take(&mut self.n_fds_ahead) + usize::from(header.n_fds);
        if n_fds <= self.fds.len() {
            return Ok(Some(self.fds.drain(..n_fds).collect()));
        }
        if std::mem::take(&mut self.fds_lost) {
            self.fds.clear();
            return Ok(None);
        }
        Err("it claims descriptors that did not come".to_owned())
    }

    /// Whether descriptors are there that no frame can claim.
    pub(crate) fn has_stray_fds(&self) -> bool {
        self.fds.len() > FDS_PER_VALUE_MAX || (self.buffer.is_empty() && !self.fds.is_empty())
    }

    /// Takes the first `len` bytes.
    pub(crate) fn split(&mut self, len: usize) -> Bytes {
        self.buffer.split_to(len).freeze()
    }

    /// Drops the first `len` bytes.
    pub(crate) fn skip(&mut self, len: usize) {
        self.buffer.advance(len);
    }

    fn header(&self) -> Option<Header> {
        Header::from_bytes(self.buffer.first_chunk()?).ok()
    }
}

/// The frame at the beginning of `bytes`, if all of it is here.
#[inline]
pub(crate) fn frame_at(bytes: &[u8], limit: u32) -> Result<Option<(Header, &[u8])>, String> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    let header = Header::from_bytes(header).map_err(|error| error.to_string())?;
    if header.len > limit {
        return Err(format!(
            "its answer of {} bytes exceeds the limit of {limit}",
            header.len
        ));
    }
    Ok(rest.get(..header.len as usize).map(|body| (header, body)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbox(frames: &[(u8, u64, &[u8])]) -> Inbox {
        let mut bytes = BytesMut::new();
        for &(kind, aux, body) in frames {
            bytes.extend_from_slice(&Header::new(kind, aux, body.len()).to_bytes());
            bytes.extend_from_slice(body);
        }
        Inbox::new(bytes)
    }

    #[test]
    fn a_row_ends_where_the_numbers_do_not_follow() {
        let inbox = inbox(&[(1, 5, b"a"), (1, 6, b"bc"), (1, 8, b"d")]);
        let first = inbox.peek(9).unwrap().unwrap().0;

        assert_eq!(inbox.row(first, 9, 9, |_| true), (2, 35));
        assert_eq!(inbox.row(first, 1, 9, |_| true), (1, 17));
        assert_eq!(inbox.row(first, 9, 9, |kind| kind == 0), (1, 17));
    }

    #[test]
    fn a_frame_that_is_too_long_is_refused() {
        assert!(inbox(&[(1, 0, b"abc")]).peek(2).is_err());
    }

    #[test]
    fn descriptors_that_did_not_come_cannot_be_claimed() {
        let mut inbox = inbox(&[]);
        let header = Header::default();
        assert!(inbox.claim(header).unwrap().unwrap().is_empty());
        assert!(inbox.claim(header.with_fds(1)).is_err());
        inbox.fds_lost = true;
        assert!(inbox.claim(header.with_fds(1)).unwrap().is_none());
    }

    #[test]
    fn half_a_frame_is_none_yet() {
        let inbox = inbox(&[(1, 0, b"abc")]);
        assert_eq!(frame_at(&inbox.buffer[..18], 9), Ok(None));
        assert_eq!(frame_at(&inbox.buffer[..3], 9), Ok(None));
    }
}
