//! A lock that this process has: what every guard is made of.

use std::fmt;
use std::hint;
use std::mem;
use std::sync::Arc;

use bytemuck::Pod;

use crate::broker::layout::LOCK;
use crate::broker::memory::{Answer, Memory};
use crate::broker::message::Says;
use crate::broker::object::{self, Object};
use crate::broker::slot::Wake;
use crate::broker::word::{self, RECOVERED, Taken};
use crate::error::{CreatorGone, TryLockError};
use crate::sys::fork_epoch;

/// How often a taker looks again before it queues, with pauses of 1, 2, 4 … `PAUSES_MAX`.
///
/// Together some microseconds: as long as a short critical section on another processor, and less
/// than it costs to be woken.
const LOOKS: u32 = 40;
const PAUSES_MAX: u32 = 32;

/// The lock of an object, taken; given back when it is dropped.
pub struct Held {
    object: Arc<Object>,
    /// The process that has it: a copy of the guard in a forked child has nothing.
    epoch: u64,
    recovered: bool,
}

impl Held {
    /// Waits for the lock.
    pub(crate) async fn lock(object: &Arc<Object>) -> Result<Self, CreatorGone> {
        if let Some(taken) = take(object)? {
            return Ok(Self::new(object, taken.recovered));
        }
        let answer = object.ask(Wake::Bell, Says::Acquire)?.answer().await?;
        Self::granted(object, answer)
    }

    /// Puts the thread to sleep until it has the lock.
    pub(crate) fn lock_blocking(object: &Arc<Object>) -> Result<Self, CreatorGone> {
        if let Some(taken) = take(object)? {
            return Ok(Self::new(object, taken.recovered));
        }
        let answer = object.ask(Wake::Futex, Says::Acquire)?.answer_blocking()?;
        Self::granted(object, answer)
    }

    /// Takes the lock if nobody has it.
    pub(crate) fn try_lock(object: &Arc<Object>) -> Result<Self, TryLockError> {
        let taken = take_now(object)?.ok_or(TryLockError::Busy)?;
        Ok(Self::new(object, taken.recovered))
    }

    fn new(object: &Arc<Object>, recovered: bool) -> Self {
        Self {
            object: Arc::clone(object),
            epoch: fork_epoch::current(),
            recovered,
        }
    }

    /// What the broker's answer means.
    pub(crate) fn granted(object: &Arc<Object>, answer: Answer) -> Result<Self, CreatorGone> {
        match answer {
            Answer::Permit(_) => Ok(Self::new(object, is_recovered(object))),
            // Only a broker that is not ours answers so.
            _ => Err(CreatorGone),
        }
    }

    /// Whether the last holder died with it.
    pub(crate) fn recovered(&self) -> bool {
        self.recovered
    }

    /// The lock's object.
    pub(crate) fn object(&self) -> &Arc<Object> {
        &self.object
    }

    /// Asserts that this is no copy in a forked child, which must not touch what the lock protects.
    pub(crate) fn assert_ours(&self) {
        let ours = self.epoch == fork_epoch::current();
        assert!(
            ours,
            "a guard was used in a process forked off the one that has it"
        );
    }

    /// Plain values behind the lock.
    pub(crate) fn values_mut<T: Pod>(&mut self, offset: usize, len: usize) -> &mut [T] {
        let Self { object, epoch, .. } = self;
        // The turn is ours; the borrow of a field of this guard stands for it.
        object.region().values_mut(offset, len, epoch)
    }

    /// The lock belongs to nobody in particular from now on.
    pub(crate) fn disown(self) {
        let (object, epoch) = self.into_parts();
        if epoch == fork_epoch::current()
            && let Ok(me) = object.me()
        {
            let Ok(()) = word::disown(&mut object.words(), LOCK, me);
        }
    }

    /// The lock is given back by other means than dropping this.
    pub(crate) fn into_object(self) -> Arc<Object> {
        self.into_parts().0
    }

    fn into_parts(mut self) -> (Arc<Object>, u64) {
        // Dropping a guard of another process does nothing.
        let epoch = mem::replace(&mut self.epoch, 0);
        (Arc::clone(&self.object), epoch)
    }
}

impl Drop for Held {
    #[inline]
    fn drop(&mut self) {
        if self.epoch == fork_epoch::current() {
            self.object.give(LOCK);
        }
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held")
            .field("recovered", &self.recovered)
            .finish_non_exhaustive()
    }
}

/// Whether the lock's word, which we have, carries the mark of a dead holder.
pub(crate) fn is_recovered(object: &Object) -> bool {
    let Ok(word) = object.words().load(LOCK);
    word & RECOVERED != 0
}

/// Takes the lock if it is free now.
#[inline]
pub(crate) fn take_now(object: &Object) -> Result<Option<Taken>, CreatorGone> {
    let me = object.me()?;
    let Ok(taken) = word::take(&mut object.words(), LOCK..LOCK + 1, 0, me);
    Ok(taken)
}

/// Takes the lock if it is free now or gets free within a few microseconds.
#[inline]
pub(crate) fn take(object: &Object) -> Result<Option<Taken>, CreatorGone> {
    match take_now(object)? {
        Some(taken) => Ok(Some(taken)),
        None => spin(|| take_now(object)),
    }
}

/// Tries again for a few microseconds, unless there is but one processor.
#[cold]
pub(crate) fn spin<T, E>(mut take: impl FnMut() -> Result<Option<T>, E>) -> Result<Option<T>, E> {
    if !object::has_several_cpus() {
        return Ok(None);
    }
    let mut pauses = 1;
    for _ in 0..LOOKS {
        for _ in 0..pauses {
            hint::spin_loop();
        }
        pauses = (pauses * 2).min(PAUSES_MAX);
        if let Some(taken) = take()? {
            return Ok(Some(taken));
        }
    }
    Ok(None)
}

/// Whether somebody has the lock.
pub(crate) fn is_locked(object: &Object) -> bool {
    let Ok(seen) = object.words().load(LOCK);
    !word::is_free(seen)
}

/// Who has the lock, in words, for `Debug`.
pub(crate) fn describe(object: &Object) -> String {
    let Ok(seen) = object.words().load(LOCK);
    match word::owner(seen) {
        0 => "free".to_owned(),
        word::NOBODY => "taken without a guard".to_owned(),
        owner if object.me() == Ok(owner) => "held by this process".to_owned(),
        owner => format!("held by another process (its number {owner})"),
    }
}
