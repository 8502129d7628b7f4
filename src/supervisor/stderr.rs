//! What children write to stderr: passed on to ours, and its end kept for error reports.
//!
//! The supervisor must never block, so it writes to our own stderr only while that takes bytes.
//! When it does not, the rest waits, and children that write more wait in their full pipes, as
//! they would if they wrote there themselves.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use crate::sys::child_setup;
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::pipe;

/// Bytes of a child's stderr that are kept for error reports.
const TAIL_LEN: usize = 4 << 10;

/// Bytes that may wait for our own stderr before children have to.
const PENDING_LEN: usize = 64 << 10;

/// The last bytes of a stream.
#[derive(Debug, Default)]
pub(super) struct Tail(VecDeque<u8>);

impl Tail {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0
            .extend(&bytes[bytes.len().saturating_sub(TAIL_LEN)..]);
        let surplus = self.0.len().saturating_sub(TAIL_LEN);
        self.0.drain(..surplus);
    }

    /// As text, from the first whole line on if the beginning was cut off.
    pub(super) fn into_text(self) -> String {
        let bytes: Vec<u8> = self.0.into();
        let text = String::from_utf8_lossy(&bytes);
        match text.split_once('\n') {
            Some((_, rest)) if bytes.len() == TAIL_LEN && !rest.is_empty() => rest.to_owned(),
            _ => text.into_owned(),
        }
    }
}

/// The way to our own stderr.
#[derive(Debug, Default)]
pub(super) struct Forward {
    pending: VecDeque<u8>,
    /// Our stderr while it takes no more, and the children that wait for it.
    blocked: Option<OwnedFd>,
    waiting: Vec<u64>,
}

impl Forward {
    /// Whether a child's stderr may be read on; if not, `child` is named once it may.
    pub(super) fn has_room(&mut self, child: u64) -> bool {
        let room = self.pending.len() < PENDING_LEN;
        if !room {
            self.waiting.push(child);
        }
        room
    }

    /// Passes `bytes` on, now or as soon as our stderr takes them.
    pub(super) fn write(&mut self, bytes: &[u8], epoll: &Epoll, token: u64) {
        self.pending.extend(bytes);
        if self.blocked.is_none() {
            self.flush(epoll, token);
        }
    }

    /// Goes on after our stderr has become writable; returns the children that waited.
    pub(super) fn continue_writing(&mut self, epoll: &Epoll, token: u64) -> Vec<u64> {
        if let Some(stderr) = self.blocked.take() {
            // It was added before; closing the copy alone would leave it in the set.
            let _ = epoll.remove(&stderr);
        }
        self.flush(epoll, token);
        if self.pending.len() < PENDING_LEN {
            std::mem::take(&mut self.waiting)
        } else {
            Vec::new()
        }
    }

    fn flush(&mut self, epoll: &Epoll, token: u64) {
        while !self.pending.is_empty() {
            let (bytes, _) = self.pending.as_slices();
            match pipe::write_if_ready(io::stderr(), bytes) {
                Ok(written) => drop(self.pending.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.wait_until_writable(epoll, token).is_ok() {
                        return;
                    }
                    self.pending.clear();
                }
                // Closed, or its reader is gone: nobody wants it.
                Err(_) => self.pending.clear(),
            }
        }
    }

    fn wait_until_writable(&mut self, epoll: &Epoll, token: u64) -> io::Result<()> {
        let stderr = child_setup::copy_standard(2)?;
        epoll.add(&stderr, token, Interest::Write)?;
        self.blocked = Some(stderr);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_keeps_the_last_whole_lines() {
        let mut tail = Tail::default();
        tail.push(b"short\n");
        assert_eq!(tail.into_text(), "short\n");

        let mut tail = Tail::default();
        for i in 0..1000 {
            tail.push(format!("line {i}\n").as_bytes());
        }
        let text = tail.into_text();
        assert!(
            text.starts_with("line ") && text.ends_with("line 999\n"),
            "{text}"
        );
        assert!(text.len() <= TAIL_LEN);
    }
}
