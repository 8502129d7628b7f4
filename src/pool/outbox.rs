//! The memory that a worker shares with its pool: what it has started, and what it has finished
//! and not sent yet.
//!
//! A worker's answers are one stream of bytes. They are written here first and go through the
//! socket in batches, so that many small ones cost one system call; when the worker dies, the pool
//! takes from here what did not go through. For that to be exact, the order of the stores counts:
//!
//! 1. an answer's bytes, then `committed`, which says how long the stream is now;
//! 2. only then the next item is counted as started.
//!
//! So at any instruction at which the worker can die, an item is either not started, or started
//! and without an answer (it was running), or its answer is here or in the socket.
//!
//! `base` is the place in the stream of the first byte that lies here. It moves only when all
//! before it is in the socket, and before anything is written over: what the pool has read of the
//! socket then ends in the part that lies here, never before it.
//!
//! The count of started items shares a word with the line that the pool draws when it takes items
//! back. Both sides change it in one atomic step, so for each item either the worker sees the line
//! and lets it be, or the pool sees that it was started.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::sys::memfd::Region;

/// Bytes of the region: header and answers.
const LEN: NonZeroUsize = NonZeroUsize::new(64 << 10).unwrap();
/// Bits 0..32: items started. Bits 32..64: items below this number are void if not started yet.
const STARTED: usize = 0;
/// Place in the stream of the first byte of `DATA`.
const BASE: usize = 64;
/// Length of the stream.
const COMMITTED: usize = 72;
/// The answers, on a cache line of their own.
const DATA: usize = 128;

/// How many bytes of answers fit.
pub(crate) const CAPACITY: usize = LEN.get() - DATA;

/// One side's view of the memory.
#[derive(Debug)]
pub(crate) struct Outbox {
    region: Region,
}

/// Words in the outbox that no honest worker writes.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the worker's outbox is not consistent")]
pub(crate) struct Inconsistent;

impl Outbox {
    /// Makes the memory; the descriptor is for the worker.
    pub(crate) fn create() -> io::Result<(Self, OwnedFd)> {
        let (region, file) = Region::create(c"tokio-multiprocess-worker", LEN)?;
        Ok((Self { region }, file))
    }

    /// The worker's view.
    pub(crate) fn map(file: impl AsFd) -> io::Result<Self> {
        let region = Region::map(file, LEN)?;
        Ok(Self { region })
    }

    // The worker.

    /// Counts the next item as started. Tells whether it is to be run: not if it was taken back.
    pub(crate) fn start_next(&self) -> bool {
        // Release: pairs with the pool's Acquire, so that the answers of all items before are there
        // for whoever sees this one as started. Acquire: nothing of the item happens before.
        let before = self.word(STARTED).fetch_add(1, AcqRel);
        started_of(before) >= line_of(before)
    }

    /// Writes `parts` as the stream's bytes from `position` on, which all fit, and commits them.
    pub(crate) fn commit(&self, position: u64, parts: [&[u8]; 2]) {
        let mut offset = DATA + self.offset(position);
        for part in parts {
            self.region.write(offset, part);
            offset += part.len();
        }
        let len = (parts[0].len() + parts[1].len()) as u64;
        // Release: whoever sees the length sees the bytes.
        self.word(COMMITTED).store(position + len, Release);
    }

    /// Everything up to `position` is in the socket, and what comes next lies at the beginning.
    pub(crate) fn rebase(&self, position: u64) {
        self.word(COMMITTED).store(position, Relaxed);
        self.word(BASE).store(position, Relaxed);
        // Release: the bytes that are written over the old ones come after the new base.
        std::sync::atomic::fence(Release);
    }

    /// How many bytes fit behind `position`.
    pub(crate) fn room(&self, position: u64) -> usize {
        CAPACITY - self.offset(position)
    }

    /// Length of the stream.
    pub(crate) fn committed(&self) -> u64 {
        self.word(COMMITTED).load(Acquire)
    }

    /// Appends the stream's bytes from `from` to `to`, which lie here, to `bytes`.
    pub(crate) fn read(&self, from: u64, to: u64, bytes: &mut Vec<u8>) {
        let len = usize::try_from(to - from).expect("no more than lies here");
        self.region.read(DATA + self.offset(from), len, bytes);
    }

    fn offset(&self, position: u64) -> usize {
        usize::try_from(position - self.word(BASE).load(Relaxed)).expect("a place that lies here")
    }

    // The pool.

    /// Takes back what the worker has not started of the `n_sent` items that it was sent; returns
    /// how many it has started.
    pub(crate) fn recall(&self, n_sent: u64) -> u64 {
        let line = u64::from(low(n_sent)) << 32;
        let word = self.word(STARTED);
        let mut before = word.load(Acquire);
        loop {
            let after = line | u64::from(started_of(before));
            match word.compare_exchange_weak(before, after, AcqRel, Acquire) {
                // Items that were void already count as if the worker had passed them.
                Ok(_) => return u64::from(started_of(before)).min(n_sent),
                Err(now) => before = now,
            }
        }
    }

    /// How many items a worker that is gone had started, of `n_sent`.
    pub(crate) fn started(&self, n_sent: u64) -> u64 {
        u64::from(started_of(self.word(STARTED).load(Acquire))).min(n_sent)
    }

    /// What lies here of the stream of a worker that is gone, of which `received` bytes came
    /// through the socket.
    pub(crate) fn rest(&self, received: u64) -> Result<Vec<u8>, Inconsistent> {
        let base = self.word(BASE).load(Acquire);
        let committed = self.word(COMMITTED).load(Acquire);
        let lies_here = committed
            .checked_sub(base)
            .is_some_and(|len| len <= CAPACITY as u64);
        if !lies_here || received < base {
            // A worker that died between the two stores of `rebase` has nothing here.
            return if committed == received {
                Ok(Vec::new())
            } else {
                Err(Inconsistent)
            };
        }
        let mut bytes = Vec::new();
        if received < committed {
            let offset = usize::try_from(received - base).map_err(|_| Inconsistent)?;
            let len = usize::try_from(committed - received).map_err(|_| Inconsistent)?;
            self.region.read(DATA + offset, len, &mut bytes);
        }
        Ok(bytes)
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        self.region.word64(offset)
    }
}

fn started_of(word: u64) -> u32 {
    low(word)
}

fn line_of(word: u64) -> u32 {
    low(word >> 32)
}

#[expect(clippy::cast_possible_truncation, reason = "half of a word")]
fn low(word: u64) -> u32 {
    word as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both() -> (Outbox, Outbox) {
        let (pool, file) = Outbox::create().unwrap();
        (pool, Outbox::map(&file).unwrap())
    }

    #[test]
    fn what_was_committed_and_not_received_is_found_after_the_death() {
        let (pool, worker) = both();
        worker.commit(0, [b"head", b"body"]);
        worker.commit(8, [b"more", b""]);

        assert_eq!(pool.rest(0).unwrap(), b"headbodymore");
        assert_eq!(pool.rest(5).unwrap(), b"odymore");
        assert_eq!(pool.rest(12).unwrap(), b"");
    }

    #[test]
    fn after_a_flush_the_memory_is_used_again() {
        let (pool, worker) = both();
        worker.commit(0, [b"first", b""]);
        worker.rebase(5);
        assert_eq!(worker.room(5), CAPACITY);
        worker.commit(5, [b"second", b""]);

        assert_eq!(pool.rest(5).unwrap(), b"second");
        assert_eq!(pool.rest(3), Err(Inconsistent));
    }

    #[test]
    fn bytes_beyond_what_was_committed_are_no_harm() {
        // A large answer goes straight to the socket; its worker may die before it commits it.
        let (pool, worker) = both();
        worker.rebase(5);

        assert_eq!(pool.rest(70).unwrap(), b"");
    }

    #[test]
    fn each_item_is_either_started_or_taken_back() {
        let (pool, worker) = both();
        assert!(worker.start_next());

        assert_eq!(pool.recall(3), 1);

        assert_eq!([(); 3].map(|()| worker.start_next()), [false, false, true]);
        assert_eq!(pool.started(10), 4);
    }

    #[test]
    fn a_hostile_worker_s_numbers_are_refused() {
        let (pool, worker) = both();
        worker.word(COMMITTED).store(u64::MAX, Relaxed);
        assert_eq!(pool.rest(0), Err(Inconsistent));
        worker.word(STARTED).store(u64::MAX, Relaxed);
        assert_eq!((pool.started(7), pool.recall(7)), (7, 7));
    }
}
