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
//! leaves a sleeper behind, whom its own process' patrol wakes, a millisecond or two later, and who
//! queues then. A sleeper that is killed is taken out of the word by the sweep, and that a dead or
//! stopped sleeper is woken harms nobody, since the permit stays free for all. A cancelled one takes
//! itself out; a wake-up that it has got already tells nobody else anything new.
//!
//! **Patrol.** The supervisor of a process looks at its parked ones once a millisecond, as long as
//! there are any: then they are in the queue, and there is no more timer.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::broker::layout;
use crate::broker::memory::{Memory, Rule};
use crate::broker::object::Object;
use crate::broker::slot::Wake;
use crate::error::CreatorGone;
use crate::supervisor;
use crate::sys::memfd::Region;
use crate::sys::{fork_epoch, futex};

/// How often the patrol looks.
const PATROL: Duration = Duration::from_millis(1);

/// How often a sleeper is woken in vain before it queues.
const WAKES_MAX: u32 = 4;

const ON_FUTEX: u64 = 1 << 32;
/// Put down by a notifier: another value than that of the same process' own sleeper, so that the one
/// does not take the other out.
const NOTIFIED: u64 = 1 << 33;

/// What an object knows of the one of this process that is parked.
#[derive(Debug, Default)]
pub(crate) struct Park {
    /// Twice the turn, and one more while somebody is parked.
    state: AtomicU64,
    /// The state that the patrol has found twice.
    expired: AtomicU64,
    /// The patrol knows the object.
    is_listed: AtomicBool,
}

impl Park {
    /// In a forked child: nobody of it is parked.
    pub(crate) fn forget(&self) {
        self.state.fetch_and(!1, Relaxed);
        self.is_listed.store(false, Relaxed);
    }
}

/// A sleep under way. Dropping it takes the sleeper out of the word.
#[derive(Debug)]
pub(crate) struct Parking<'a> {
    object: &'a Arc<Object>,
    epoch: u64,
    value: u64,
    state: u64,
    n_wakes: u32,
}

impl<'a> Parking<'a> {
    /// Parks, if nobody else is parked or queues.
    pub(crate) fn begin(object: &'a Arc<Object>, wake: Wake) -> Result<Option<Self>, CreatorGone> {
        let me = object.me()?;
        let park = object.park();
        let state = park.state.load(Relaxed);
        let region = object.region();
        if layout::has_queue(region) || layout::ledger(region) > 0 || state & 1 != 0 {
            return Ok(None);
        }
        let next = state + 3;
        let begun = park.state.compare_exchange(state, next, AcqRel, Relaxed);
        if begun.is_err() {
            return Ok(None);
        }
        let parking = Self {
            object,
            epoch: fork_epoch::current(),
            value: sleeper(me, wake),
            state: next,
            n_wakes: 0,
        };
        let is_in = list(object) && parking.put_down();
        Ok(is_in.then_some(parking))
    }

    /// Puts the sleeper into the word, unless another one is there.
    fn put_down(&self) -> bool {
        let word = word(self.object.region());
        let is_in = word
            .compare_exchange(0, self.value, SeqCst, Relaxed)
            .is_ok();
        // In front of the look for a permit, see the module's text.
        fence(SeqCst);
        is_in
    }

    /// What there is to be had; nothing inside when it is time to queue. Nothing at all: sleep on.
    fn look<T>(
        &mut self,
        take: &mut impl FnMut() -> Result<Option<T>, CreatorGone>,
    ) -> Option<Result<Option<T>, CreatorGone>> {
        if self.n_wakes == 0 && self.object.words().breaks(Rule::ParkLooksAgain) {
            self.n_wakes = 1;
            return None;
        }
        loop {
            match take() {
                Ok(None) => (),
                found => return Some(found),
            }
            let region = self.object.region();
            let is_expired = self.object.park().expired.load(Acquire) == self.state;
            if is_expired || self.n_wakes > WAKES_MAX {
                return Some(Ok(None));
            }
            if word(region).load(SeqCst) == self.value {
                return None;
            }
            // It was woken for a permit that somebody else has got.
            self.n_wakes += 1;
            if layout::has_queue(region) || layout::ledger(region) > 0 || !self.put_down() {
                return Some(Ok(None));
            }
        }
    }

    /// Sleeps until `take` finds something, or it is time to queue.
    pub(crate) async fn wait<T>(
        mut self,
        mut take: impl FnMut() -> Result<Option<T>, CreatorGone>,
    ) -> Result<Option<T>, CreatorGone> {
        let (link, _) = self.object.link();
        link.bell().listen(|| self.look(&mut take)).await
    }

    /// The same for a thread.
    pub(crate) fn wait_blocking<T>(
        mut self,
        mut take: impl FnMut() -> Result<Option<T>, CreatorGone>,
    ) -> Result<Option<T>, CreatorGone> {
        loop {
            if let Some(found) = self.look(&mut take) {
                return found;
            }
            futex::wait(half(self.object.region()), (self.value >> 32) as u32);
        }
    }
}

impl Drop for Parking<'_> {
    fn drop(&mut self) {
        if self.epoch != fork_epoch::current() {
            return;
        }
        // A failure means that somebody is about to wake us.
        let word = word(self.object.region());
        let _ = word.compare_exchange(self.value, 0, SeqCst, Relaxed);
        self.object.park().state.store(self.state + 1, Release);
    }
}

fn sleeper(me: u32, wake: Wake) -> u64 {
    let me = u64::from(me);
    match wake {
        Wake::Bell => me,
        // Threads of different processes expect different halves, so none takes another's for its own.
        Wake::Futex => me | ON_FUTEX | me << 33,
    }
}

fn word(region: &Region) -> &AtomicU64 {
    region.word64(layout::SLEEPER * 8)
}

/// What a thread sleeps on: the upper half.
fn half(region: &Region) -> &std::sync::atomic::AtomicU32 {
    region.word32(layout::SLEEPER * 8 + 4)
}

/// Whether anybody is parked; asked after a permit was freed.
#[inline]
pub(crate) fn has_sleeper(region: &Region) -> bool {
    word(region).load(SeqCst) != 0
}

/// Takes the sleeper out of the word. A thread is woken; the number of a process whose bell is to be
/// rung comes back.
pub(crate) fn take_out(region: &Region) -> Option<u32> {
    let word = word(region);
    let seen = word.load(SeqCst);
    // A failure means that another one wakes it, or that it left: whoever comes now looks first.
    if seen == 0 || word.compare_exchange(seen, 0, SeqCst, Relaxed).is_err() {
        return None;
    }
    if seen & ON_FUTEX == 0 {
        return Some(seen as u32);
    }
    futex::wake(half(region));
    None
}

/// Takes `client` out of the word, and nobody else: whoever has come instead is to be woken by a
/// giver. A thread is woken; the bell is left to the caller.
pub(crate) fn take_out_client(region: &Region, client: u32) {
    let word = word(region);
    let seen = word.load(SeqCst);
    let is_out = seen as u32 == client && word.compare_exchange(seen, 0, SeqCst, Relaxed).is_ok();
    if is_out && seen & ON_FUTEX != 0 {
        futex::wake(half(region));
    }
}

/// Has the next one who frees a permit ring the process of `client`, if nobody is parked.
pub(crate) fn park_for(region: &Region, client: u32) -> bool {
    let value = u64::from(client) | NOTIFIED;
    let put = word(region).compare_exchange(0, value, SeqCst, Relaxed);
    put.is_ok()
}

/// Takes that back. False when somebody has rung it.
pub(crate) fn unpark(region: &Region, client: u32) -> bool {
    let value = u64::from(client) | NOTIFIED;
    let left = word(region).compare_exchange(value, 0, SeqCst, Relaxed);
    left.is_ok()
}

/// The objects of this process at which somebody is parked, or was a moment ago.
#[derive(Debug, Default)]
struct Round {
    /// The process that it belongs to.
    epoch: u64,
    /// With the state that was found last time.
    objects: Vec<(Weak<Object>, u64)>,
    is_due: bool,
}

static ROUND: Mutex<Round> = Mutex::new(Round {
    epoch: 0,
    objects: Vec::new(),
    is_due: false,
});

fn round() -> MutexGuard<'static, Round> {
    ROUND.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has the patrol look after the object. False if there is no patrol to be had.
fn list(object: &Arc<Object>) -> bool {
    if object.park().is_listed.swap(true, AcqRel) {
        return true;
    }
    let mut round = round();
    let epoch = fork_epoch::current();
    if round.epoch != epoch {
        // That of the process that we were forked off.
        *round = Round {
            epoch,
            ..Round::default()
        };
    }
    if !round.is_due && supervisor::after(PATROL, patrol).is_err() {
        object.park().is_listed.store(false, Release);
        return false;
    }
    round.is_due = true;
    round.objects.push((Arc::downgrade(object), 0));
    true
}

/// Wakes whoever has been parked since the last time.
fn patrol() {
    if object_patience_is_endless() {
        return;
    }
    let listed = std::mem::take(&mut round().objects);
    let mut stay = Vec::new();
    for (weak, before) in listed {
        let Some(object) = weak.upgrade() else {
            continue;
        };
        let park = object.park();
        let mut state = park.state.load(Acquire);
        if state & 1 == 0 {
            park.is_listed.store(false, SeqCst);
            state = park.state.load(SeqCst);
            // One that came meanwhile may have relied on us.
            if state & 1 == 0 || park.is_listed.swap(true, AcqRel) {
                continue;
            }
        } else if state == before {
            park.expired.store(state, Release);
            let region = object.region();
            if let Ok(me) = object.me() {
                take_out_client(region, me);
            }
            object.link().0.bell().ring();
            futex::wake(half(region));
        }
        stay.push((weak, state));
    }
    let mut round = round();
    round.objects.append(&mut stay);
    round.is_due = !round.objects.is_empty() && supervisor::after(PATROL, patrol).is_ok();
}

/// Builds that break rules can do without the patrol, as time mends many a breach.
fn object_patience_is_endless() -> bool {
    #[cfg(mutants)]
    return std::env::var_os("TOKIO_MULTIPROCESS_PATIENT").is_some();
    #[cfg(not(mutants))]
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::layout::Shape;

    #[test]
    fn nobody_takes_another_client_out_for_itself() {
        let shape = Shape::Lock { data: 0 };
        let (region, _) = Region::create(c"mp-object", shape.len().unwrap()).unwrap();
        shape.write(&region);
        assert!(park_for(&region, 2));

        take_out_client(&region, 1);
        assert!(has_sleeper(&region));

        take_out_client(&region, 2);
        assert!(!has_sleeper(&region));
    }
}
