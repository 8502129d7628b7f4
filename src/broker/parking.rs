//! A sleep beside the queue under way, as [`super::park`] decides about it, and the patrol.
//!
//! The supervisor of a process looks at its parked ones once a millisecond, as long as there are any:
//! then they are in the queue, and there is no more timer.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::broker::layout;
use crate::broker::memory::{Memory, Rule};
use crate::broker::object::Object;
use crate::broker::park::{self, Found};
use crate::broker::slot::Wake;
use crate::error::CreatorGone;
use crate::supervisor;
use crate::sys::memfd::Region;
use crate::sys::{fork_epoch, futex};

/// How often the patrol looks.
const PATROL: Duration = Duration::from_millis(1);

/// How often a sleeper is woken in vain before it queues.
const WAKES_MAX: u32 = 4;

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
        if state & 1 != 0 {
            return Ok(None);
        }
        let (mut words, layout) = (object.words(), layout::park(object.region()));
        let Ok(is_of_use) = park::is_of_use(&mut words, &layout);
        if !is_of_use {
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
            value: park::value(me, wake),
            state: next,
            n_wakes: 0,
        };
        if !list(object) {
            return Ok(None);
        }
        let Ok(is_in) = park::put_down(&mut words, &layout, parking.value);
        Ok(is_in.then_some(parking))
    }

    /// What there is to be had; nothing inside when it is time to queue. Nothing at all: sleep on.
    fn look<T>(
        &mut self,
        take: &mut impl FnMut() -> Result<Option<T>, CreatorGone>,
    ) -> Option<Result<Option<T>, CreatorGone>> {
        let (object, state) = (self.object, self.state);
        let (mut words, layout) = (object.words(), layout::park(object.region()));
        if self.n_wakes == 0 && words.breaks(Rule::ParkLooksAgain) {
            self.n_wakes = 1;
            return None;
        }
        loop {
            let is_worn_out = self.n_wakes > WAKES_MAX;
            let Ok(found) = park::look(
                &mut words,
                &layout,
                self.value,
                |_| Ok(take().transpose()),
                |_| Ok(is_worn_out || object.park().expired.load(Acquire) == state),
            );
            match found {
                Found::Taken(taken) => return Some(taken.map(Some)),
                Found::Queue => return Some(Ok(None)),
                Found::Nothing => return None,
                Found::Again => self.n_wakes += 1,
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
        let layout = layout::park(self.object.region());
        let Ok(()) = park::leave(&mut self.object.words(), &layout, self.value);
        self.object.park().state.store(self.state + 1, Release);
    }
}

/// What a parked thread sleeps on.
fn half(region: &Region) -> &AtomicU32 {
    region.word32(layout::SLEEPER * 8 + 4)
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
    if patience_is_endless() {
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
            if let Ok(me) = object.me() {
                let Ok(_) = park::take_out_client(&mut object.words(), layout::SLEEPER, me);
            }
            // Also one that somebody else has taken out and not woken.
            object.link().0.bell().ring();
            futex::wake(half(object.region()));
        }
        stay.push((weak, state));
    }
    let mut round = round();
    round.objects.append(&mut stay);
    round.is_due = !round.objects.is_empty() && supervisor::after(PATROL, patrol).is_ok();
}

/// Builds that break rules can do without the patrol, as time mends many a breach.
fn patience_is_endless() -> bool {
    #[cfg(mutants)]
    return std::env::var_os("TOKIO_MULTIPROCESS_PATIENT").is_some();
    #[cfg(not(mutants))]
    false
}
