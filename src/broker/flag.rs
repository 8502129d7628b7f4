//! The word of an event, and how its waiters sleep: everything that set, clear and wait decide.
//!
//! ```text
//! 0      SET       the flag is up
//! 1      SLEEPERS  somebody may sleep at the bell
//! 2..63  how often the flag was raised
//! ```
//!
//! A waiter is done when the flag is up or has been raised since it came: a short `set` and `clear`
//! releases everybody who waited before, as in Python. Otherwise it sets SLEEPERS, which fails if
//! the word has changed since the look, and sleeps until the bell rings. The setter raises the flag,
//! counts and takes SLEEPERS in one exchange, then rings if there were any. A ring wakes all; who
//! finds nothing changed goes through the same steps again.
//!
//! **Why no instruction is unsafe.** A setter killed between its exchange and the bell leaves sleepers
//! without SLEEPERS: every death rings at every event that the dead process had open. A waiter that is
//! killed or gives up leaves at most SLEEPERS behind, which costs one ring for nobody. A *stopped*
//! setter's sleepers sleep on until it goes on or dies, or somebody else sets: a stopped process is
//! not dead, and there are deadlines against it.
//!
//! **Orderings.** A setter's exchange is a release and the waiter's look an acquire, so what came before
//! `set` is seen after `wait`.

use std::sync::atomic::Ordering::{AcqRel, Relaxed};

use crate::broker::memory::{Memory, Rule};

const SET: u64 = 1;
const SLEEPERS: u64 = 2;
const ONE_RAISE: u64 = 4;

/// Whether the flag is up.
pub(crate) fn is_set(word: u64) -> bool {
    word & SET != 0
}

/// How often the flag has been raised.
pub(crate) fn raises(word: u64) -> u64 {
    word / ONE_RAISE
}

/// Raises the flag. True when the bell has to be rung.
pub(crate) fn set<M: Memory>(memory: &mut M, word: usize) -> Result<bool, M::Stop> {
    let mut seen = memory.load(word)?;
    loop {
        // Raising it twice is the same as once; sleepers of a clear in between have seen the count.
        let raised = if is_set(seen) {
            seen
        } else {
            seen.wrapping_add(ONE_RAISE) | SET
        };
        match memory.replace(word, seen, raised & !SLEEPERS, AcqRel)? {
            Ok(_) => return Ok(seen & SLEEPERS != 0),
            Err(now) => seen = now,
        }
    }
}

/// Lowers the flag.
pub(crate) fn clear<M: Memory>(memory: &mut M, word: usize) -> Result<(), M::Stop> {
    memory.clear_bits(word, SET).map(drop)
}

/// Whether a wait that began at `since` raises is over; if not, the waiter may sleep now.
///
/// Right after this says no, a ring that it must not miss may come: so whoever sleeps listens to
/// the bell first and asks then.
pub(crate) fn is_over<M: Memory>(memory: &mut M, word: usize, since: u64) -> Result<bool, M::Stop> {
    let mut seen = memory.load(word)?;
    loop {
        if is_set(seen) || raises(seen) != since {
            return Ok(true);
        }
        if seen & SLEEPERS != 0 || memory.breaks(Rule::EventSleeperShows) {
            return Ok(false);
        }
        if memory.breaks(Rule::EventLooksAgain) {
            memory.set_bits(word, SLEEPERS)?;
            return Ok(false);
        }
        // Relaxed: nothing is handed over; the setter's exchange sees the bit or comes first, and
        // then this one fails.
        match memory.replace(word, seen, seen | SLEEPERS, Relaxed)? {
            Ok(_) => return Ok(false),
            Err(now) => seen = now,
        }
    }
}

/// Changes the word, so that a thread that is about to sleep on it looks again.
pub(crate) fn rouse<M: Memory>(memory: &mut M, word: usize) -> Result<(), M::Stop> {
    memory.clear_bits(word, SLEEPERS).map(drop)
}

/// What a thread that sleeps on the word's lower half expects there, after [`is_over`] said no.
pub(crate) fn asleep(since: u64) -> u32 {
    (since.wrapping_mul(ONE_RAISE) | SLEEPERS) as u32
}
