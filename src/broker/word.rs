//! The bits of a permit's word, and all that a client does to it.
//!
//! A lock is one such word and a semaphore is an array of them, each for one permit. The word
//! names its owner, so ownership and the knowledge of who has it appear in the same instruction:
//! a process that is killed right before it owns nothing, and right after it is found by the sweep.
//!
//! ```text
//! 63 QUEUED     somebody waits at the broker
//! 62 DUE        somebody has waited long: only the broker may free or give this word
//! 61 POKED      the word was freed while QUEUED, and the broker is told or about to be
//! 60 RECOVERED  the last owner died with it (locks only)
//! 31..0         the owner's number at this object; 0: free; all ones: taken by nobody in particular;
//!               one less: nobody's, and given back for whom the broker chooses
//! ```
//!
//! | who | step | from | to |
//! |---|---|---|---|
//! | client | take | free, not DUE | owner = me |
//! | client | give | mine, not QUEUED | free |
//! | client | give | mine, QUEUED, not DUE | free and POKED, then tells the broker `Poke` |
//! | client | give | mine, DUE | unchanged, tells the broker `Release` |
//! | client | give | nobody's or unseen, DUE | given back, then tells the broker `Poke` |
//! | broker | queue | any | QUEUED |
//! | broker | time | QUEUED | DUE |
//! | broker | grant | free | owner = the waiter |
//! | broker | free | owned by one who released or died, or given back | free |
//!
//! **The mark** of a dead owner is for whoever can be told of it. An owner that took the word for its
//! user, who has not seen it (an operation without a guard, a wait that was given up), gives it back
//! *unseen*, with the mark in it.
//!
//! **Barging.** While a word is not DUE a newcomer may take it past the queue, which keeps a busy
//! lock on the processor that has it. After a waiter's patience the broker sets DUE: from then on
//! the holder hands the word to the broker and newcomers keep off, so the waiter is next.
//!
//! **Why no instruction is unsafe.** Each row is one atomic step on one word.
//! - *Killed before or after a step of `take`:* it owns nothing, or the word says so and the sweep
//!   frees it.
//! - *Killed between freeing and `Poke`:* every death serves the queue of every object that the dead
//!   process had open. *Stopped there instead of killed:* the waiter's patience ends, and the broker
//!   looks at the word by itself. Later releasers that find POKED say nothing; they rely on the same.
//! - *Killed between the decision for `Release` and sending it:* the word still names the dead
//!   process. What belongs to nobody names no process, so whoever gives it back says so in the word
//!   first: no other one can give it back again, and if it is killed before `Poke`, every death serves.
//! - *A flag set between a look and the exchange:* the exchange fails, and the client looks again.
//!
//! **Orderings.** A take is an acquire and pairs with the release of the give (or of the broker's
//! free) that emptied the word. Nothing here depends on the order of two different words; the give
//! is sequentially consistent for the sake of [`super::park`].

use std::ops::Range;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use crate::broker::memory::{Memory, Rule};

/// Somebody waits at the broker.
pub(crate) const QUEUED: u64 = 1 << 63;
/// Only the broker may free or give this word.
pub(crate) const DUE: u64 = 1 << 62;
/// The broker is told that the word was freed, or about to be.
pub(crate) const POKED: u64 = 1 << 61;
/// The last owner died with it.
pub(crate) const RECOVERED: u64 = 1 << 60;
/// What the queue has to do with a word.
pub(crate) const QUEUE_BITS: u64 = QUEUED | DUE | POKED;

/// The owner of a permit that was taken without a guard, or that does not exist (yet).
pub(crate) const NOBODY: u32 = u32::MAX;
/// The owner of a permit that nobody in particular had and that was given back: the broker frees it.
pub(crate) const GIVEN: u32 = NOBODY - 1;
/// The bits of the owner.
pub(crate) const OWNER: u64 = u32::MAX as u64;

/// Who has the word; 0 when it is free.
pub(crate) fn owner(word: u64) -> u32 {
    word as u32
}

/// Whether this is the number of a process.
pub(crate) fn is_process(owner: u32) -> bool {
    owner != 0 && owner < GIVEN
}

/// Whether nobody has the word.
pub(crate) fn is_free(word: u64) -> bool {
    owner(word) == 0
}

/// The same word, with nobody having it, and without the mark of a dead owner.
pub(crate) fn freed(word: u64) -> u64 {
    word & QUEUE_BITS
}

/// A word that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Taken {
    /// Which one.
    pub(crate) word: usize,
    /// Its last owner died with it.
    pub(crate) recovered: bool,
}

/// What a client has to tell the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Tell {
    /// Nothing.
    Nothing,
    /// A word was freed and somebody waits.
    Poke,
    /// This word is to be handed over; it still names its owner.
    Release,
}

/// Takes a free word, the first from number `first` on, round the range.
///
/// Without effect unless it succeeds.
#[inline]
pub(crate) fn take<M: Memory>(
    memory: &mut M,
    words: Range<usize>,
    first: usize,
    me: u32,
) -> Result<Option<Taken>, M::Stop> {
    for i in 0..words.len() {
        let mut word = words.start + first + i;
        if word >= words.end {
            word -= words.len();
        }
        let mut seen = memory.load(word)?;
        while is_free(seen) && (seen & DUE == 0 || memory.breaks(Rule::TakeRespectsDue)) {
            if memory.breaks(Rule::TakeIsOneStep) {
                memory.store(word, seen | u64::from(me))?;
                return Ok(Some(Taken {
                    word,
                    recovered: false,
                }));
            }
            match memory.replace(word, seen, seen | u64::from(me), Acquire)? {
                Ok(before) => {
                    return Ok(Some(Taken {
                        word,
                        recovered: before & RECOVERED != 0,
                    }));
                }
                Err(now) => seen = now,
            }
        }
    }
    Ok(None)
}

/// Frees a word of ours, unless its hand-over is due.
#[inline]
pub(crate) fn give<M: Memory>(memory: &mut M, word: usize, me: u32) -> Result<Tell, M::Stop> {
    // The common case first: no flags, one exchange.
    let mut seen = u64::from(me);
    loop {
        let due = seen & DUE != 0;
        if owner(seen) != me {
            // Only a process that scribbles over the memory could have done this.
            return Ok(Tell::Nothing);
        }
        if due && !memory.breaks(Rule::GiveRespectsDue) {
            return Ok(Tell::Release);
        }
        let queued = seen & QUEUED != 0;
        let next = if queued {
            freed(seen) | POKED
        } else {
            freed(seen)
        };
        if memory.breaks(Rule::GiveIsOneStep) {
            seen = memory.load(word)?;
            let queued = seen & QUEUED != 0;
            memory.store(word, if queued { freed(seen) | POKED } else { 0 })?;
            return Ok(if queued { Tell::Poke } else { Tell::Nothing });
        }
        // SeqCst: the giver looks for a sleeper next, see [`super::park`].
        match memory.replace(word, seen, next, SeqCst)? {
            Ok(_) if due => return Ok(Tell::Release),
            Ok(_) if queued && seen & POKED == 0 && !memory.breaks(Rule::GivePokes) => {
                return Ok(Tell::Poke);
            }
            Ok(_) => return Ok(Tell::Nothing),
            Err(now) => seen = now,
        }
    }
}

/// Gives back a word of ours whose user has not seen whether the last owner died: that is left in it.
pub(crate) fn give_unseen<M: Memory>(
    memory: &mut M,
    word: usize,
    me: u32,
) -> Result<Tell, M::Stop> {
    let mut seen = memory.load(word)?;
    while owner(seen) == me {
        let (mut next, tell) = as_it_is(seen);
        if memory.breaks(Rule::UnseenKeepsMark) {
            next &= !RECOVERED;
        }
        // SeqCst: as in `give`.
        match memory.replace(word, seen, next, SeqCst)? {
            Ok(_) => return Ok(tell),
            Err(now) => seen = now,
        }
    }
    Ok(Tell::Nothing)
}

/// The word given back with its mark, if it has one: freed, or left to the broker if a hand-over is due.
fn as_it_is(seen: u64) -> (u64, Tell) {
    let nobodys = seen & !OWNER;
    if seen & DUE != 0 {
        (nobodys | u64::from(GIVEN), Tell::Poke)
    } else if seen & QUEUED == 0 {
        (nobodys, Tell::Nothing)
    } else if seen & POKED == 0 {
        (nobodys | POKED, Tell::Poke)
    } else {
        (nobodys, Tell::Nothing)
    }
}

/// Makes a word of ours belong to nobody: a permit that is forgotten, with the mark of a dead owner if
/// nobody has `seen_mark`.
pub(crate) fn disown<M: Memory>(
    memory: &mut M,
    word: usize,
    me: u32,
    seen_mark: bool,
) -> Result<(), M::Stop> {
    let mut seen = u64::from(me);
    while owner(seen) == me {
        let mark = if seen_mark { RECOVERED } else { 0 };
        let next = seen & !mark | u64::from(NOBODY);
        match memory.replace(word, seen, next, Release)? {
            Ok(_) => return Ok(()),
            Err(now) => seen = now,
        }
    }
    Ok(())
}

/// Gives back a word that belongs to nobody, if there is one: frees it, or leaves that to the broker
/// if a hand-over is due.
pub(crate) fn give_nobodys<M: Memory>(
    memory: &mut M,
    words: Range<usize>,
) -> Result<Option<Tell>, M::Stop> {
    for word in words {
        let mut seen = memory.load(word)?;
        while owner(seen) == NOBODY {
            if seen & DUE != 0 && memory.breaks(Rule::AddClaims) {
                return Ok(Some(Tell::Poke));
            }
            let (next, tell) = as_it_is(seen);
            // SeqCst: as in `give`.
            match memory.replace(word, seen, next, SeqCst)? {
                Ok(_) => return Ok(Some(tell)),
                Err(now) => seen = now,
            }
        }
    }
    Ok(None)
}

/// How many words are free. A snapshot.
pub(crate) fn count_free<M: Memory>(memory: &mut M, words: Range<usize>) -> Result<usize, M::Stop> {
    let mut n_free = 0;
    for word in words {
        n_free += usize::from(is_free(memory.load(word)?));
    }
    Ok(n_free)
}

/// Gives words to `NOBODY` before an object is used: permits that do not exist yet.
pub(crate) fn withhold<M: Memory>(memory: &mut M, words: Range<usize>) -> Result<(), M::Stop> {
    for word in words {
        // Relaxed would do: the object has not been handed to anybody.
        let _ = memory.replace(word, 0, u64::from(NOBODY), Relaxed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::layout::{self, Shape};
    use crate::broker::memory::Shared;
    use crate::sys::memfd::Region;

    #[test]
    fn what_nobody_has_is_given_back_once_also_when_the_broker_frees_it() {
        let shape = Shape::Semaphore {
            permits: 1,
            bounded: true,
        };
        let (region, _) = Region::create(c"mp-object", shape.len().unwrap()).unwrap();
        shape.write(&region);
        let (mut memory, permits) = (Shared(&region), layout::permits(&region));
        let Ok(_) = take(&mut memory, permits.clone(), 0, 3);
        let Ok(()) = disown(&mut memory, permits.start, 3, true);
        let Ok(_) = memory.set_bits(permits.start, QUEUED | DUE);

        let told = give_nobodys(&mut memory, permits.clone());
        assert_eq!(told, Ok(Some(Tell::Poke)));
        assert_eq!(give_nobodys(&mut memory, permits), Ok(None));
    }
}
