//! Waits for a notification without the broker: a few words of the lock that the notifier looks at.
//!
//! Who waits at a condition while nobody waits there by the broker takes one of a lock's eight words
//! and puts itself down, holding the lock, then gives the lock back and sleeps. A notifier marks the
//! oldest ones of its condition first, and tells the broker only of what is left; so waiters are
//! notified in the order in which they came.
//!
//! ```text
//! 63..41 turn    40..35 condition    34 a thread that sleeps on this half of the word
//! 33..32 TAKEN | AWAKE | ASLEEP | NOTIFIED    31..0 the waiter's number at this object; all zeros: free
//! ```
//! A waiter that is still looking is AWAKE and need not be rung. One that is ASLEEP is not rung
//! either while the notifier holds the lock, without which it could do nothing: it is put down as the
//! lock's [sleeper](super::park), and the lock's release rings.
//!
//! **The notification belongs to the word** until its waiter has the lock again, and makes it TAKEN.
//! A waiter that gives up before passes the notification on first and clears the word then. If it
//! dies, the sweep does the same: also if it dies with what it has taken and the lock in hand, as
//! nobody could tell whether it saw what it was told. Killed between the two, it passes on twice:
//! waking one too many is allowed. Whoever holds the lock later finds a word that is TAKEN free.
//!
//! **Why no instruction is unsafe.** A waiter killed between its two steps holds the lock, and the
//! sweep clears its word. A notifier killed between the mark and the ring is followed by the sweep,
//! which rings all who are marked. A *stopped* notifier's waiter sleeps until it goes on or dies, as
//! with an event, unless it is stopped before the mark: then nobody has been notified.
//!
//! Here stands what is decided; how a waiter sleeps is in [`super::watching`].

use std::ops::Range;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};

use crate::broker::layout::CONDITIONS_MAX;
use crate::broker::memory::{Memory, Rule};
use crate::broker::park::Rouse;
use crate::broker::slot::Wake;

const TAKEN: u64 = 0;
const AWAKE: u64 = 1 << 32;
const ASLEEP: u64 = 2 << 32;
const NOTIFIED: u64 = 3 << 32;
const STATE: u64 = 3 << 32;
const ON_FUTEX: u64 = 1 << 34;
const CONDITION: u32 = 35;
const TURN: u32 = 41;
const TURNS: u64 = 1 << (64 - TURN);

/// Where things lie among a lock's words.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// The words of those who keep vigil.
    pub(crate) vigils: Range<usize>,
    /// How many have done so.
    pub(crate) kept: usize,
    /// For each condition, how many wait by the broker, from this word on.
    pub(crate) conditions: usize,
}

/// A word that somebody keeps vigil in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    at: usize,
    /// The word without its state.
    value: u64,
}

impl Place {
    /// The word.
    pub(crate) fn word(self) -> usize {
        self.at
    }

    /// What stands there while its waiter sleeps.
    pub(crate) fn asleep(self) -> u64 {
        self.value | ASLEEP
    }

    /// The condition that it is at.
    pub(crate) fn condition(self) -> u32 {
        condition_of(self.value)
    }

    /// Whether the word's contents say that this wait is notified.
    pub(crate) fn is_marked(self, seen: u64) -> bool {
        seen != self.value | AWAKE && seen != self.value | ASLEEP
    }

    /// Whether a word's contents are of this wait, and not over.
    fn is_open(self, seen: u64) -> bool {
        seen & !STATE == self.value && seen & STATE != TAKEN
    }
}

/// Takes a word, if one is free and nobody waits by the broker. The caller holds the lock.
pub(crate) fn begin<M: Memory>(
    memory: &mut M,
    layout: &Layout,
    me: u32,
    condition: u32,
    wake: Wake,
) -> Result<Option<Place>, M::Stop> {
    if memory.load(layout.conditions + condition as usize)? > 0 {
        return Ok(None);
    }
    // The lock makes the two one.
    let turn = memory.load(layout.kept)?;
    memory.store(layout.kept, turn.wrapping_add(1))?;
    let on_futex = if wake == Wake::Futex { ON_FUTEX } else { 0 };
    let at_condition = u64::from(condition) << CONDITION;
    let value = u64::from(me) | on_futex | at_condition | (turn % TURNS) << TURN;
    for at in layout.vigils.clone() {
        let seen = memory.load(at)?;
        // Who has taken it has had the lock before us.
        if seen & STATE == TAKEN && memory.replace(at, seen, value | AWAKE, AcqRel)?.is_ok() {
            return Ok(Some(Place { at, value }));
        }
    }
    Ok(None)
}

/// Whether the waiter has been notified.
pub(crate) fn is_notified<M: Memory>(memory: &mut M, place: Place) -> Result<bool, M::Stop> {
    Ok(place.is_marked(memory.load(place.at)?))
}

/// Says that the waiter sleeps from now on. False if it has been notified.
pub(crate) fn fall_asleep<M: Memory>(memory: &mut M, place: Place) -> Result<bool, M::Stop> {
    let asleep = place.value | ASLEEP;
    if memory.breaks(Rule::VigilSleepIsOneStep) {
        memory.store(place.at, asleep)?;
        return Ok(true);
    }
    let said = memory.replace(place.at, place.value | AWAKE, asleep, AcqRel)?;
    Ok(said.is_ok())
}

/// Takes the notification, with the lock in hand. False if there is none (yet).
pub(crate) fn take<M: Memory>(memory: &mut M, place: Place) -> Result<bool, M::Stop> {
    let taken = place.value | TAKEN;
    let exchanged = memory.replace(place.at, place.value | NOTIFIED, taken, AcqRel)?;
    Ok(exchanged.is_ok())
}

/// What a wait that is given up has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Leave {
    /// Pass the notification on, then [close](close) the word that holds this.
    PassOn(u64),
    /// Close the word that holds this.
    Close(u64),
    /// Nothing.
    Nothing,
}

/// Gives a wait up, as far as to know what to do.
pub(crate) fn leave<M: Memory>(memory: &mut M, place: Place) -> Result<Leave, M::Stop> {
    let seen = memory.load(place.at)?;
    Ok(if !place.is_open(seen) {
        Leave::Nothing
    } else if seen & STATE == NOTIFIED {
        Leave::PassOn(seen)
    } else {
        Leave::Close(seen)
    })
}

/// Clears the word. False if it has changed: [leave](leave) it again.
pub(crate) fn close<M: Memory>(memory: &mut M, place: Place, seen: u64) -> Result<bool, M::Stop> {
    Ok(memory.replace(place.at, seen, 0, AcqRel)?.is_ok())
}

fn condition_of(seen: u64) -> u32 {
    (seen >> CONDITION) as u32 & (CONDITIONS_MAX as u32 - 1)
}

fn waits(seen: u64, condition: u32) -> bool {
    matches!(seen & STATE, AWAKE | ASLEEP) && condition_of(seen) == condition
}

/// How many keep vigil at a condition.
pub(crate) fn n_waiting<M: Memory>(
    memory: &mut M,
    layout: &Layout,
    condition: u32,
) -> Result<u32, M::Stop> {
    let mut n_waiting = 0;
    for at in layout.vigils.clone() {
        n_waiting += u32::from(waits(memory.load(at)?, condition));
    }
    Ok(n_waiting)
}

/// Notifies the one that has waited longest: whom to wake, if it sleeps. Nothing at all if nobody waits.
pub(crate) fn notify_one<M: Memory>(
    memory: &mut M,
    layout: &Layout,
    condition: u32,
) -> Result<Option<Option<Rouse>>, M::Stop> {
    loop {
        let now = memory.load(layout.kept)?;
        let age = |seen: u64| now.wrapping_sub(seen >> TURN) % TURNS;
        let mut oldest: Option<(usize, u64)> = None;
        for at in layout.vigils.clone() {
            let seen = memory.load(at)?;
            if waits(seen, condition) && oldest.is_none_or(|(_, old)| age(seen) >= age(old)) {
                oldest = Some((at, seen));
            }
        }
        let Some((at, seen)) = oldest else {
            return Ok(None);
        };
        let marked = seen & !STATE | NOTIFIED;
        // A failure means that it sleeps now, or has given up.
        if memory.replace(at, seen, marked, AcqRel)?.is_err() {
            continue;
        }
        let sleeps = seen & STATE == ASLEEP;
        return Ok(Some(sleeps.then(|| whom(at, seen))));
    }
}

fn whom(at: usize, seen: u64) -> Rouse {
    if seen & ON_FUTEX == 0 {
        Rouse::Process(seen as u32)
    } else {
        Rouse::Thread(at)
    }
}

/// What is left to do after a [sweep](sweep).
#[derive(Debug, Default)]
pub(crate) struct Swept {
    /// Who is to be woken.
    pub(crate) roused: Vec<Rouse>,
    /// Conditions of which a notification has to go on to those who wait by the broker.
    pub(crate) unheard: Vec<u32>,
}

/// Sweeps up after a dead process, which held the lock or not: its own words, with notifications that
/// have to go on; and who is to be woken, as the dead one may have been about to.
pub(crate) fn sweep<M: Memory>(
    memory: &mut M,
    layout: &Layout,
    dead: u32,
    held: bool,
) -> Result<Swept, M::Stop> {
    let mut swept = Swept::default();
    for at in layout.vigils.clone() {
        let seen = memory.load(at)?;
        if seen as u32 == dead && seen != 0 {
            if seen & STATE == NOTIFIED || held && seen & STATE == TAKEN {
                pass_on(memory, layout, condition_of(seen), &mut swept)?;
            }
            // Nothing of the dead moves any more, and no notifier marks what is marked.
            let cleared = memory.replace(at, seen, 0, AcqRel)?;
            if cleared.is_err_and(|now| now as u32 == dead) {
                // It was notified just now.
                pass_on(memory, layout, condition_of(seen), &mut swept)?;
                memory.store(at, 0)?;
            }
        } else if seen & STATE == NOTIFIED {
            swept.roused.push(whom(at, seen));
        }
    }
    Ok(swept)
}

/// A notification of the dead goes to the next waiter.
fn pass_on<M: Memory>(
    memory: &mut M,
    layout: &Layout,
    condition: u32,
    swept: &mut Swept,
) -> Result<(), M::Stop> {
    if memory.breaks(Rule::VigilDeathPassesOn) {
        return Ok(());
    }
    match notify_one(memory, layout, condition)? {
        Some(whom) => swept.roused.extend(whom),
        None => swept.unheard.push(condition),
    }
    Ok(())
}

/// The creator is gone: threads of this process look again.
pub(crate) fn rouse<M: Memory>(
    memory: &mut M,
    layout: &Layout,
    me: u32,
    mut rouse: impl FnMut(Rouse),
) -> Result<(), M::Stop> {
    for at in layout.vigils.clone() {
        let seen = memory.load(at)?;
        if seen as u32 == me && seen & ON_FUTEX != 0 && seen & STATE == ASLEEP {
            // As if notified; what comes next finds the creator gone.
            let _ = memory.replace(at, seen, seen & !STATE | NOTIFIED, Relaxed)?;
            rouse(Rouse::Thread(at));
        }
    }
    Ok(())
}
