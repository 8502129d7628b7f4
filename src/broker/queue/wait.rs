//! Who waits at a queue, and who is woken.
//!
//! A process waits with one seat for all of its tasks, at most once for each purpose. It says so in
//! its seat's word, sets its bit, looks once more, and sleeps. Whoever makes the thing possible looks
//! at the bits afterwards, and wakes one seat. So either the sleeper sees the thing or the waker sees
//! the sleeper.
//!
//! **A wake-up is never lost with its waker or its sleeper.**
//! - The waker first rings and then notes that it has: stopped or killed in between, it has woken
//!   somebody who is not marked, so the next one rings once more, which does no harm.
//! - A note is for one turn of the sleeper only, and each look that finds nothing begins another turn,
//!   so a note that comes late hits nothing.
//! - Whoever ends a wait, by success or by giving up, wakes another one if there is something: it may
//!   have been woken for that. And so does every death.
//! - Against processes that are *stopped* the broker looks at the queue twice after it was asked to, the
//!   second time some milliseconds later (a *patrol*), and again as long as it finds somebody to wake,
//!   at no other time. It is asked by each ring, as the sleeper may be stopped before it acts on it; by
//!   whoever is about to make something possible and sees a sleeper, as it may be stopped before it
//!   rings, and then patrols go on until it has rung; and by whoever begins to wait, as those who are
//!   about to have not seen it. Only who is stopped twice, or held up for longer than patrols take and
//!   then stopped, between a look that sees nobody and the ring, leaves a sleeper to the next put or get.
//!
//! While a sleeper is on its way, nobody rings it again: a batch costs one system call.

use std::sync::atomic::Ordering::AcqRel;

use super::steps;
use super::words::{self, For, SEATS, SEATS_MAX};
use crate::broker::memory::{Memory, Rule};
use crate::broker::slot::Wake;

/// Waking processes.
pub(crate) trait Bells: Memory {
    /// Has the waiters in this seat look again. False if that is not sure to reach them should this
    /// process end now.
    fn ring(&mut self, seat: usize, wake: Wake) -> Result<bool, Self::Stop>;

    /// Has the broker patrol in a while.
    fn ask_patrol(&mut self) -> Result<(), Self::Stop>;
}

/// Takes a seat that nobody has. Nothing if all are taken.
pub(crate) fn sit_down<M: Memory>(memory: &mut M, me: u32) -> Result<Option<usize>, M::Stop> {
    for seat in 0..SEATS_MAX {
        let word = words::owner(seat);
        if memory.load(word)? != 0 || memory.replace(word, 0, me.into(), AcqRel)?.is_err() {
            continue;
        }
        let mut n_seats = memory.load(SEATS)?;
        while n_seats <= seat as u64 {
            match memory.replace(SEATS, n_seats, seat as u64 + 1, AcqRel)? {
                Ok(_) => break,
                Err(now) => n_seats = now,
            }
        }
        return Ok(Some(seat));
    }
    Ok(None)
}

/// Says that we wait. True: whoever calls looks now whether it still has to.
pub(crate) fn begin<M: Memory>(
    memory: &mut M,
    seat: usize,
    what: For,
    wake: Wake,
) -> Result<bool, M::Stop> {
    let word = words::wait(seat, what);
    let seen = memory.load(word)?;
    memory.store(word, words::waiting(seen, wake))?;
    let (bits, bit) = words::waits(seat, what);
    memory.set_bits(bits, bit)?;
    Ok(!memory.breaks(Rule::QueueWaiterLooksAgain))
}

/// Begins another turn of our wait, after a look that found nothing. Whoever calls looks again.
///
/// So a waker that rings now and takes note of it after we have looked does not take us for somebody
/// who is on the way.
pub(crate) fn again<M: Memory>(
    memory: &mut M,
    seat: usize,
    what: For,
    wake: Wake,
) -> Result<(), M::Stop> {
    let word = words::wait(seat, what);
    let mut seen = memory.load(word)?;
    if memory.breaks(Rule::QueueLookBeginsTurn) && !words::is_woken(seen) {
        return Ok(());
    }
    // An exchange and no store, so that the look that follows cannot come first.
    while let Err(now) = memory.replace(word, seen, words::waiting(seen, wake), AcqRel)? {
        seen = now;
    }
    Ok(())
}

/// Has nobody else wake us: our word says that we are on the way.
pub(crate) fn accept_no_more<M: Memory>(
    memory: &mut M,
    seat: usize,
    what: For,
) -> Result<(), M::Stop> {
    let word = words::wait(seat, what);
    let mut seen = memory.load(word)?;
    while let Err(now) = memory.replace(word, seen, words::woken(seen), AcqRel)? {
        seen = now;
    }
    Ok(())
}

/// Waits no more.
pub(crate) fn end<M: Memory>(memory: &mut M, seat: usize, what: For) -> Result<(), M::Stop> {
    let (bits, bit) = words::waits(seat, what);
    memory.clear_bits(bits, bit)?;
    let word = words::wait(seat, what);
    let mut seen = memory.load(word)?;
    while let Err(now) = memory.replace(word, seen, words::idle(seen), AcqRel)? {
        seen = now;
    }
    Ok(())
}

/// Whether anybody has said that it waits.
#[inline]
pub(crate) fn is_any<M: Memory>(memory: &mut M, what: For) -> Result<bool, M::Stop> {
    for word in 0..n_words(memory)? {
        if memory.load(words::bits(what) + word)? != 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Carries out `act`, which makes something possible and tells those who wait for it. If somebody does,
/// the broker looks after them until we have, in case we are stopped before.
#[inline]
pub(crate) fn announced<M: Bells, R>(
    memory: &mut M,
    seat: usize,
    what: &[For],
    act: impl FnOnce(&mut M) -> Result<R, M::Stop>,
) -> Result<R, M::Stop> {
    let mut is_any = false;
    for what in what {
        is_any = is_any || self::is_any(memory, *what)?;
    }
    if !is_any || memory.breaks(Rule::QueueAnnounces) {
        return act(memory);
    }
    let acting = words::acting(seat);
    steps::add(memory, acting, 1)?;
    memory.ask_patrol()?;
    let result = act(memory);
    steps::add(memory, acting, u64::MAX)?;
    result
}

/// Whether somebody has announced something and not told yet.
fn is_any_acting<M: Memory>(memory: &mut M) -> Result<bool, M::Stop> {
    let n_seats = memory.load(SEATS)?.min(SEATS_MAX as u64) as usize;
    for seat in 0..n_seats {
        if memory.load(words::acting(seat))? != 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Wakes one that waits and has not been woken, if there is one. `near` is the seat to look at first.
#[inline]
pub(crate) fn wake_one<M: Bells>(memory: &mut M, what: For, near: usize) -> Result<bool, M::Stop> {
    if !is_any(memory, what)? {
        return Ok(false);
    }
    wake_near(memory, what, near)
}

#[cold]
fn wake_near<M: Bells>(memory: &mut M, what: For, near: usize) -> Result<bool, M::Stop> {
    let n_words = n_words(memory)?;
    let (first, rotation) = (near / 64 % n_words.max(1), near as u32 % 64);
    for i in 0..n_words {
        let word = (first + i) % n_words;
        let mut bits = memory
            .load(words::bits(what) + word)?
            .rotate_right(rotation);
        while bits != 0 {
            let at = bits.trailing_zeros();
            bits &= bits - 1;
            let seat = word * 64 + ((at + rotation) % 64) as usize;
            if wake(memory, seat, what)? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Wakes all that wait.
pub(crate) fn wake_all<M: Bells>(memory: &mut M, what: For) -> Result<(), M::Stop> {
    for i in 0..n_words(memory)? {
        let mut bits = memory.load(words::bits(what) + i)?;
        while bits != 0 {
            let seat = i * 64 + bits.trailing_zeros() as usize;
            bits &= bits - 1;
            wake(memory, seat, what)?;
        }
    }
    Ok(())
}

/// The same where mostly nobody waits.
#[inline]
pub(crate) fn serve_any<M: Bells>(memory: &mut M, what: For, near: usize) -> Result<(), M::Stop> {
    if is_any(memory, what)? {
        serve(memory, what, near)?;
    }
    Ok(())
}

/// Wakes one if there is something for it.
pub(crate) fn serve<M: Bells>(memory: &mut M, what: For, near: usize) -> Result<(), M::Stop> {
    if what == For::Done {
        return if steps::is_done(memory)? {
            wake_all(memory, what)
        } else {
            Ok(())
        };
    }
    // Whoever ends its wait wakes the next one if there is more, so one is enough; if it should be
    // stopped, the patrol goes on.
    if steps::is_there(memory, what)? {
        wake_one(memory, what, near)?;
    }
    Ok(())
}

/// Wakes this seat unless it is on its way already.
fn wake<M: Bells>(memory: &mut M, seat: usize, what: For) -> Result<bool, M::Stop> {
    let word = words::wait(seat, what);
    let seen = memory.load(word)?;
    let Some(wake) = words::wakes_by(seen) else {
        return Ok(false);
    };
    let rings_first = !memory.breaks(Rule::QueueRingsBeforeNote);
    if rings_first && !memory.ring(seat, wake)? {
        // So whoever comes next rings as well.
        return Ok(true);
    }
    match memory.replace(word, seen, words::woken(seen), AcqRel)? {
        Ok(_) => {
            if !rings_first {
                memory.ring(seat, wake)?;
            }
            Ok(true)
        }
        // A later turn began after we had looked at the word, and with it a look that sees what we
        // have to offer. In the same turn it has gone, or another waker was first.
        Err(now) => Ok(words::turn(now) != words::turn(seen)),
    }
}

/// Wakes one more that sleeps although there is something for it: whoever was woken for that, or should
/// have woken it, may be stopped. True if it is worth looking again after a while.
pub(crate) fn patrol<M: Bells>(memory: &mut M, what: For) -> Result<bool, M::Stop> {
    if !is_any(memory, what)? {
        return Ok(false);
    }
    // First: who is done by then has told.
    let is_any_acting = !memory.breaks(Rule::QueueActingCounts) && is_any_acting(memory)?;
    let is_there = steps::is_there(memory, what)?;
    Ok(is_there && wake_one(memory, what, 0)? || is_any_acting)
}

#[inline]
fn n_words<M: Memory>(memory: &mut M) -> Result<usize, M::Stop> {
    let n_seats = memory.load(SEATS)?.min(SEATS_MAX as u64) as usize;
    Ok(n_seats.div_ceil(64))
}
