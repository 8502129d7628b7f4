//! A short sleep beside the queue: whoever frees a permit wakes the sleeper, without the broker.
//!
//! A wait by the broker costs two messages and a wake-up of its thread. Most waits are short, and
//! most objects have one waiter at a time. So each object has a word, SLEEPER, in which one waiter can
//! put itself down. Whoever frees a permit looks at that word and wakes who stands there. It is a
//! newcomer like any other that tries to take what is free; it owns nothing and is promised nothing.
//! Who finds the word taken, or others in the queue, queues; and who has been parked for a millisecond
//! or two, or woken in vain a few times, leaves the word and queues as well.
//!
//! ```text
//! 63..33  some bits of the sleeper's number    32  it is a thread that sleeps on this half of the word
//! 33      without 32: it keeps vigil, see [`super::vigil`]
//! 31..0   the sleeper's number at this object; all zeros: nobody sleeps
//! ```
//!
//! **Why no wake-up is lost.** The sleeper puts itself down and looks for a permit then; the giver
//! frees the permit and looks for a sleeper then. All four are in one total order (sequentially
//! consistent), so one of the two sees the other. A giver takes the sleeper out of the word before it
//! wakes it: so a thread that is about to sleep on the word does not, and the next one can come.
//!
//! **Why no instruction is unsafe.** A giver that is killed, or stopped, between freeing and waking
//! leaves a sleeper behind, whom its own process' [patrol](super::parking) wakes, a millisecond or two
//! later, and who queues then. A sleeper that is killed is taken out of the word by the sweep, and that
//! a dead or stopped sleeper is woken harms nobody, since the permit stays free for all. A cancelled
//! one takes itself out; a wake-up that it has got already tells nobody else anything new.
//!
//! Here stands what is decided; how a waiter sleeps is in [`super::parking`].

use std::ops::Range;
use std::sync::atomic::Ordering::SeqCst;

use crate::broker::memory::{Memory, Rule};
use crate::broker::slot::Wake;
use crate::broker::word::{self, QUEUED};

const ON_FUTEX: u64 = 1 << 32;
/// Put down by a notifier: another value than that of the same process' own sleeper, so that the one
/// does not take the other out.
const NOTIFIED: u64 = 1 << 33;

/// Where things lie among an object's words.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// Who sleeps.
    pub(crate) sleeper: usize,
    /// The permit words, of which all say whether somebody queues.
    pub(crate) permits: Range<usize>,
    /// How many permits only the broker can give.
    pub(crate) ledger: usize,
}

/// Whom a process has to wake, out of which word it has taken it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Rouse {
    /// A thread that sleeps on the upper half of this word.
    Thread(usize),
    /// Whoever sleeps at the bell of the process with this number.
    Process(u32),
}

/// What a sleeper finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found<T> {
    /// What it waits for.
    Taken(T),
    /// It is time to queue.
    Queue,
    /// Nothing: sleep on.
    Nothing,
    /// It was woken in vain and has put itself down again: look again.
    Again,
}

/// What stands in the word for a sleeper.
pub(crate) fn value(me: u32, wake: Wake) -> u64 {
    let me = u64::from(me);
    match wake {
        Wake::Bell => me,
        // Threads of different processes expect different halves, so none takes another's for its own.
        Wake::Futex => me | ON_FUTEX | me << 33,
    }
}

/// Whether nobody queues, and no permit is to be had from the broker only.
pub(crate) fn is_of_use<M: Memory>(memory: &mut M, layout: &Layout) -> Result<bool, M::Stop> {
    // All words say the same.
    Ok(memory.load(layout.permits.start)? & QUEUED == 0 && memory.load(layout.ledger)? == 0)
}

/// Puts a sleeper into the word, unless another one is there. It has to [look](look) then.
pub(crate) fn put_down<M: Memory>(
    memory: &mut M,
    layout: &Layout,
    value: u64,
) -> Result<bool, M::Stop> {
    Ok(memory.replace(layout.sleeper, 0, value, SeqCst)?.is_ok())
}

/// Takes a sleeper out of the word by itself. It is not there if somebody is about to wake it.
pub(crate) fn leave<M: Memory>(memory: &mut M, layout: &Layout, value: u64) -> Result<(), M::Stop> {
    memory.replace(layout.sleeper, value, 0, SeqCst).map(drop)
}

/// Looks for what a sleeper waits for, when it has put itself down and whenever it was woken.
pub(crate) fn look<M: Memory, T>(
    memory: &mut M,
    layout: &Layout,
    value: u64,
    take: impl FnOnce(&mut M) -> Result<Option<T>, M::Stop>,
    is_over: impl FnOnce(&mut M) -> Result<bool, M::Stop>,
) -> Result<Found<T>, M::Stop> {
    if let Some(taken) = take(memory)? {
        return Ok(Found::Taken(taken));
    }
    if is_over(memory)? {
        return Ok(Found::Queue);
    }
    if memory.load(layout.sleeper)? == value {
        return Ok(Found::Nothing);
    }
    // It was woken for a permit that somebody else has got.
    Ok(
        if is_of_use(memory, layout)? && put_down(memory, layout, value)? {
            Found::Again
        } else {
            Found::Queue
        },
    )
}

/// Whether anybody is parked; asked after a permit was freed.
#[inline]
pub(crate) fn has_sleeper<M: Memory>(memory: &mut M, sleeper: usize) -> Result<bool, M::Stop> {
    Ok(memory.load(sleeper)? != 0)
}

/// Takes the sleeper out of the word, as this process has freed a permit.
pub(crate) fn given<M: Memory>(memory: &mut M, sleeper: usize) -> Result<Option<Rouse>, M::Stop> {
    if memory.breaks(Rule::GiveWakesSleeper) {
        return Ok(None);
    }
    take_out(memory, sleeper)
}

/// Takes the sleeper out of the word.
pub(crate) fn take_out<M: Memory>(
    memory: &mut M,
    sleeper: usize,
) -> Result<Option<Rouse>, M::Stop> {
    let seen = memory.load(sleeper)?;
    // A failure means that another one wakes it, or that it left: whoever comes now looks first.
    if seen == 0 || memory.replace(sleeper, seen, 0, SeqCst)?.is_err() {
        return Ok(None);
    }
    Ok(Some(whom(seen, sleeper)))
}

/// Takes `client` out of the word, and nobody else: whoever has come instead is to be woken by a
/// giver.
pub(crate) fn take_out_client<M: Memory>(
    memory: &mut M,
    sleeper: usize,
    client: u32,
) -> Result<Option<Rouse>, M::Stop> {
    let seen = memory.load(sleeper)?;
    let is_out = seen as u32 == client && memory.replace(sleeper, seen, 0, SeqCst)?.is_ok();
    Ok(is_out.then(|| whom(seen, sleeper)))
}

/// The broker's look when it has carried out a request: what was freed, or comes out of the ledger, may
/// be what a sleeper waits for.
pub(crate) fn serve<M: Memory>(memory: &mut M, layout: &Layout) -> Result<Option<Rouse>, M::Stop> {
    if !has_sleeper(memory, layout.sleeper)? {
        return Ok(None);
    }
    let mut has_permit = memory.load(layout.ledger)? > 0;
    for word in layout.permits.clone() {
        has_permit = has_permit || word::is_free(memory.load(word)?);
    }
    if has_permit {
        take_out(memory, layout.sleeper)
    } else {
        Ok(None)
    }
}

/// Has `client`, who wants the lock that this process has, rung when that is given back. False if it
/// is to be rung now: we have not got the lock, or somebody else is parked.
pub(crate) fn put_off<M: Memory>(
    memory: &mut M,
    sleeper: usize,
    lock: usize,
    me: u32,
    client: u32,
) -> Result<bool, M::Stop> {
    if word::owner(memory.load(lock)?) != me {
        return Ok(false);
    }
    let value = u64::from(client) | NOTIFIED;
    if memory.replace(sleeper, 0, value, SeqCst)?.is_err() {
        return Ok(false);
    }
    // Whoever gives the lock back after this sees the sleeper; has it been before?
    if word::owner(memory.load(lock)?) == me {
        return Ok(true);
    }
    // It has: unless somebody has rung it.
    Ok(memory.replace(sleeper, value, 0, SeqCst)?.is_err())
}

fn whom(seen: u64, sleeper: usize) -> Rouse {
    if seen & ON_FUTEX == 0 {
        Rouse::Process(seen as u32)
    } else {
        Rouse::Thread(sleeper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::layout::{self, LOCK, Shape};
    use crate::broker::memory::Shared;
    use crate::sys::memfd::Region;

    #[test]
    fn nobody_takes_another_client_out_for_itself() {
        let shape = Shape::Lock { data: 0 };
        let (region, _) = Region::create(c"mp-object", shape.len().unwrap()).unwrap();
        shape.write(&region);
        let mut memory = Shared(&region);
        let Ok(_) = word::take(&mut memory, LOCK..LOCK + 1, 0, 3);
        let sleeper = layout::SLEEPER;
        assert_eq!(put_off(&mut memory, sleeper, LOCK, 3, 2), Ok(true));

        assert_eq!(take_out_client(&mut memory, sleeper, 1), Ok(None));
        assert_eq!(has_sleeper(&mut memory, sleeper), Ok(true));

        let rung = take_out_client(&mut memory, sleeper, 2);
        assert_eq!(rung, Ok(Some(Rouse::Process(2))));
        assert_eq!(has_sleeper(&mut memory, sleeper), Ok(false));
    }
}
