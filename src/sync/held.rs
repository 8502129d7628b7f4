//! A lock that this process has: what every guard is made of.

use std::fmt;
use std::mem;
use std::sync::Arc;

use bytemuck::Pod;

use crate::broker::layout::LOCK;
use crate::broker::memory::{Answer, Memory};
use crate::broker::message::Says;
use crate::broker::object::Object;
use crate::broker::parking::Parking;
use crate::broker::slot::Wake;
use crate::broker::word::{self, RECOVERED, Taken};
use crate::error::{CreatorGone, TryLockError};
use crate::sys::fork_epoch;

/// The lock of an object, taken; given back when it is dropped.
pub struct Held {
    object: Arc<Object>,
    /// The process that has it: a copy of the guard in a forked child has nothing.
    epoch: u64,
    mark: Mark,
}

/// What the last holder left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    /// Nothing to be told.
    None,
    /// It died with the lock, which the user can ask.
    Shown,
    /// It died with the lock, of which the next holder is to be told, as this one's user gets no guard.
    Unseen,
}

impl Held {
    /// Waits for the lock.
    pub(crate) async fn lock(object: &Arc<Object>) -> Result<Self, CreatorGone> {
        let recovered = wait(object).await?;
        Ok(Self::new(object, recovered))
    }

    /// Puts the thread to sleep until it has the lock.
    pub(crate) fn lock_blocking(object: &Arc<Object>) -> Result<Self, CreatorGone> {
        if let Some(taken) = take(object)? {
            return Ok(Self::new(object, taken.recovered));
        }
        if let Some(parking) = Parking::begin(object, Wake::Futex)?
            && let Some(taken) = parking.wait_blocking(|| take_now(object))?
        {
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

    /// The lock was taken by other means.
    #[inline]
    pub(crate) fn new(object: &Arc<Object>, recovered: bool) -> Self {
        Self {
            object: Arc::clone(object),
            epoch: fork_epoch::current(),
            mark: if recovered { Mark::Shown } else { Mark::None },
        }
    }

    /// What the broker's answer means.
    pub(crate) fn granted(object: &Arc<Object>, answer: Answer) -> Result<Self, CreatorGone> {
        let recovered = granted(object, answer)?;
        Ok(Self::new(object, recovered))
    }

    /// Whether the last holder died with it.
    pub(crate) fn recovered(&self) -> bool {
        self.mark != Mark::None
    }

    /// The user will not see this, so it is the next holder who is told of a death.
    pub(crate) fn unseen(mut self) -> Self {
        if self.mark == Mark::Shown {
            self.mark = Mark::Unseen;
        }
        self
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
        let seen_mark = self.mark != Mark::Unseen;
        let (object, epoch) = self.into_parts();
        if epoch == fork_epoch::current()
            && let Ok(me) = object.me()
        {
            let Ok(()) = word::disown(&mut object.words(), LOCK, me, seen_mark);
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
        if self.epoch != fork_epoch::current() {
            return;
        }
        if self.mark == Mark::Unseen {
            self.object.give_unseen(LOCK);
        } else {
            self.object.give(LOCK);
        }
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held")
            .field("recovered", &self.recovered())
            .finish_non_exhaustive()
    }
}

/// Waits for the lock. True when the last holder died with it.
pub(crate) async fn wait(object: &Arc<Object>) -> Result<bool, CreatorGone> {
    if let Some(taken) = take(object)? {
        return Ok(taken.recovered);
    }
    if let Some(parking) = Parking::begin(object, Wake::Bell)?
        && let Some(taken) = parking.wait(|| take_now(object)).await?
    {
        return Ok(taken.recovered);
    }
    let answer = object.ask(Wake::Bell, Says::Acquire)?.answer().await?;
    // The word is ours; from here on whatever the caller makes of it gives it back.
    granted(object, answer)
}

/// What the broker's answer means: whether the lock's word, which we have, carries the mark of a dead
/// holder.
fn granted(object: &Object, answer: Answer) -> Result<bool, CreatorGone> {
    match answer {
        Answer::Permit(_) => {
            let Ok(word) = object.words().load(LOCK);
            Ok(word & RECOVERED != 0)
        }
        // Only a broker that is not ours answers so.
        _ => Err(CreatorGone),
    }
}

/// Takes the lock if it is free now.
#[inline]
pub(crate) fn take_now(object: &Object) -> Result<Option<Taken>, CreatorGone> {
    let me = object.me()?;
    if object.take_plain(LOCK, me) {
        return Ok(Some(Taken {
            word: LOCK,
            recovered: false,
        }));
    }
    take_marked(object, me)
}

/// The same when the word has flags, if it is free.
#[cold]
fn take_marked(object: &Object, me: u32) -> Result<Option<Taken>, CreatorGone> {
    let Ok(taken) = word::take(&mut object.words(), LOCK..LOCK + 1, 0, me);
    Ok(taken)
}

/// Takes the lock if it is free now or gets free within a few microseconds.
#[inline]
pub(crate) fn take(object: &Object) -> Result<Option<Taken>, CreatorGone> {
    match take_now(object)? {
        Some(taken) => Ok(Some(taken)),
        None => object.spin(|| take_now(object)),
    }
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
        word::GIVEN => "being handed over".to_owned(),
        owner if object.me() == Ok(owner) => "held by this process".to_owned(),
        owner => format!("held by another process (its number {owner})"),
    }
}
