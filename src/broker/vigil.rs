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

use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

use crate::broker::layout::{self, VIGILS, VIGILS_KEPT};
use crate::broker::memory::{Memory, Rule};
use crate::broker::message::Says;
use crate::broker::object::Object;
use crate::broker::slot::Wake;
use crate::error::CreatorGone;
use crate::sys::memfd::Region;
use crate::sys::{fork_epoch, futex};

const TAKEN: u64 = 0;
const AWAKE: u64 = 1 << 32;
const ASLEEP: u64 = 2 << 32;
const NOTIFIED: u64 = 3 << 32;
const STATE: u64 = 3 << 32;
const ON_FUTEX: u64 = 1 << 34;
const CONDITION: u32 = 35;
const TURN: u32 = 41;
const TURNS: u64 = 1 << (64 - TURN);

/// A wait for a notification under way. Dropping it gives it up.
#[derive(Debug)]
pub(crate) struct Vigil {
    object: Arc<Object>,
    epoch: u64,
    at: usize,
    /// The word without its state.
    value: u64,
    condition: u32,
}

impl Vigil {
    /// Takes a word, if one is free and nobody waits by the broker. The caller holds the lock.
    pub(crate) fn begin(
        object: &Arc<Object>,
        condition: u32,
        wake: Wake,
    ) -> Result<Option<Self>, CreatorGone> {
        let me = object.me()?;
        let region = object.region();
        if layout::n_waiting(region, condition) > 0 {
            return Ok(None);
        }
        // Relaxed: ordered by the lock.
        let turn = region.word64(VIGILS_KEPT * 8).fetch_add(1, Relaxed) % TURNS;
        let on_futex = if wake == Wake::Futex { ON_FUTEX } else { 0 };
        let value = u64::from(me) | on_futex | u64::from(condition) << CONDITION | turn << TURN;
        let free = VIGILS.into_iter().find(|at| {
            let word = word(region, *at);
            let seen = word.load(Relaxed);
            // Who has taken it has had the lock before us.
            seen & STATE == TAKEN
                && word
                    .compare_exchange(seen, value | AWAKE, AcqRel, Relaxed)
                    .is_ok()
        });
        Ok(free.map(|at| Self {
            object: Arc::clone(object),
            epoch: fork_epoch::current(),
            at,
            value,
            condition,
        }))
    }

    fn look(&self) -> Option<Result<(), CreatorGone>> {
        // Acquire: pairs with the notifier's mark.
        let seen = word(self.object.region(), self.at).load(Acquire);
        if seen != self.value | AWAKE && seen != self.value | ASLEEP {
            return Some(Ok(()));
        }
        self.object.is_orphan().then_some(Err(CreatorGone))
    }

    /// Looks for a while, then says that it sleeps; true if that was not necessary.
    fn is_notified_soon(&self) -> bool {
        let word = word(self.object.region(), self.at);
        let awake = self.value | AWAKE;
        let found = self
            .object
            .spin(|| Ok::<_, CreatorGone>((word.load(Acquire) != awake).then_some(())));
        if found == Ok(Some(())) {
            return true;
        }
        let asleep = self.value | ASLEEP;
        word.compare_exchange(awake, asleep, AcqRel, Acquire)
            .is_err()
    }

    /// Waits for the notification.
    pub(crate) async fn notified(&self) -> Result<(), CreatorGone> {
        if self.is_notified_soon() {
            return Ok(());
        }
        let (link, _) = self.object.link();
        link.bell().listen(|| self.look()).await
    }

    /// The same for a thread.
    pub(crate) fn notified_blocking(&self) -> Result<(), CreatorGone> {
        if self.is_notified_soon() {
            return Ok(());
        }
        loop {
            if let Some(over) = self.look() {
                return over;
            }
            let expected = (self.value | ASLEEP) >> 32;
            futex::wait(half(self.object.region(), self.at), expected as u32);
        }
    }

    /// The notification has been taken, with the lock in hand.
    pub(crate) fn take(self) {
        let word = word(self.object.region(), self.at);
        let _ = word.compare_exchange(self.value | NOTIFIED, self.value | TAKEN, AcqRel, Relaxed);
    }
}

impl Drop for Vigil {
    fn drop(&mut self) {
        // In a forked child it is a copy of its parent's wait.
        if self.epoch != fork_epoch::current() {
            return;
        }
        let word = word(self.object.region(), self.at);
        let mut seen = word.load(Acquire);
        while seen & !STATE == self.value && seen & STATE != TAKEN {
            if seen & STATE == NOTIFIED && !self.object.words().breaks(Rule::VigilPassesOn) {
                self.object.pass_on(self.condition);
            }
            match word.compare_exchange(seen, 0, AcqRel, Acquire) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }
}

impl Object {
    /// A notification goes to the next waiter.
    fn pass_on(&self, condition: u32) {
        if self.notify_vigils(condition, 1) == 0 {
            self.say(Says::Notify(condition, 1));
        }
    }

    /// Notifies up to `n` who keep vigil; how many there were.
    pub(crate) fn notify_vigils(&self, condition: u32, n: u32) -> u32 {
        for done in 0..n {
            match notify_one(self.region(), condition) {
                None => return done,
                Some(Some(client)) => self.ring_with_lock(client),
                Some(None) => (),
            }
        }
        n
    }
}

fn word(region: &Region, at: usize) -> &AtomicU64 {
    region.word64(at * 8)
}

fn half(region: &Region, at: usize) -> &AtomicU32 {
    region.word32(at * 8 + 4)
}

fn condition_of(seen: u64) -> u32 {
    (seen >> CONDITION) as u32 & (layout::CONDITIONS_MAX as u32 - 1)
}

fn waits(seen: u64, condition: u32) -> bool {
    matches!(seen & STATE, AWAKE | ASLEEP) && condition_of(seen) == condition
}

/// How many keep vigil at a condition.
pub(crate) fn n_waiting(region: &Region, condition: u32) -> u32 {
    let waiting = VIGILS.filter(|at| waits(word(region, *at).load(Acquire), condition));
    waiting.count() as u32
}

/// Notifies the one that has waited longest; a thread is woken, the number of a process to be rung
/// comes back. Nothing at all if nobody waits.
pub(crate) fn notify_one(region: &Region, condition: u32) -> Option<Option<u32>> {
    loop {
        let now = region.word64(VIGILS_KEPT * 8).load(Relaxed);
        let seen = VIGILS.map(|at| (at, word(region, at).load(Acquire)));
        let waiting = seen.filter(|(_, seen)| waits(*seen, condition));
        let (at, seen) = waiting.max_by_key(|(_, seen)| now.wrapping_sub(seen >> TURN) % TURNS)?;
        let marked = seen & !STATE | NOTIFIED;
        // A failure means that it sleeps now, or has given up.
        if word(region, at)
            .compare_exchange(seen, marked, AcqRel, Relaxed)
            .is_err()
        {
            continue;
        }
        if seen & STATE != ASLEEP {
            return Some(None);
        }
        if seen & ON_FUTEX != 0 {
            futex::wake(half(region, at));
            return Some(None);
        }
        return Some(Some(seen as u32));
    }
}

/// Sweeps up after a dead process, which held the lock or not: its own words, with notifications that
/// have to go on; and who is to be rung, as the dead one may have been about to.
pub(crate) fn sweep(
    region: &Region,
    dead: u32,
    held: bool,
    mut pass_on: impl FnMut(u32),
    mut ring: impl FnMut(u32),
) {
    for at in VIGILS {
        let word = word(region, at);
        let seen = word.load(Acquire);
        let client = seen as u32;
        if client == dead && seen != 0 {
            if seen & STATE == NOTIFIED || held && seen & STATE == TAKEN {
                pass_on(condition_of(seen));
            }
            // Nothing of the dead moves any more, and no notifier marks what is marked.
            let cleared = word.compare_exchange(seen, 0, AcqRel, Acquire);
            if cleared.is_err_and(|now| now as u32 == dead) {
                // It was notified just now.
                pass_on(condition_of(seen));
                word.store(0, Release);
            }
        } else if seen & STATE == NOTIFIED {
            futex::wake(half(region, at));
            ring(client);
        }
    }
}

/// The creator is gone: threads of this process look again.
pub(crate) fn rouse(region: &Region, me: u32) {
    for at in VIGILS {
        let word = word(region, at);
        let seen = word.load(Acquire);
        if seen as u32 == me && seen & ON_FUTEX != 0 && seen & STATE == ASLEEP {
            // As if notified; what comes next finds the creator gone.
            let _ = word.compare_exchange(seen, seen & !STATE | NOTIFIED, AcqRel, Relaxed);
            futex::wake(half(region, at));
        }
    }
}
