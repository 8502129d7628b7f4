//! A wait for a notification under way, as [`super::vigil`] decides about it.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Instant;

use crate::broker::layout;
use crate::broker::memory::{Memory, Rule};
use crate::broker::message::Says;
use crate::broker::object::Object;
use crate::broker::slot::Wake;
use crate::broker::vigil::{self, Leave, Place};
use crate::error::CreatorGone;
use crate::sys::{fork_epoch, futex};

/// A wait for a notification under way. Dropping it gives it up.
#[derive(Debug)]
pub(crate) struct Vigil {
    object: Arc<Object>,
    epoch: u64,
    place: Place,
}

impl Vigil {
    /// Takes a word, if one is free and nobody waits by the broker. The caller holds the lock.
    pub(crate) fn begin(
        object: &Arc<Object>,
        condition: u32,
        wake: Wake,
    ) -> Result<Option<Self>, CreatorGone> {
        let me = object.me()?;
        let mut words = object.words();
        let Ok(place) = vigil::begin(&mut words, &layout::VIGIL, me, condition, wake);
        Ok(place.map(|place| Self {
            object: Arc::clone(object),
            epoch: fork_epoch::current(),
            place,
        }))
    }

    fn is_notified(&self) -> bool {
        let Ok(is_notified) = vigil::is_notified(&mut self.object.words(), self.place);
        is_notified
    }

    fn look(&self) -> Option<Result<(), CreatorGone>> {
        if self.is_notified() {
            return Some(Ok(()));
        }
        self.object.is_orphan().then_some(Err(CreatorGone))
    }

    /// Looks for a while, then says that it sleeps; true if that was not necessary.
    fn is_notified_soon(&self) -> bool {
        let look = || Ok::<_, CreatorGone>(self.is_notified().then_some(()));
        if self.object.spin(look) == Ok(Some(())) {
            return true;
        }
        let Ok(sleeps) = vigil::fall_asleep(&mut self.object.words(), self.place);
        !sleeps
    }

    /// Waits for the notification.
    pub(crate) async fn notified(&self) -> Result<(), CreatorGone> {
        if self.is_notified_soon() {
            return Ok(());
        }
        let (link, _) = self.object.link();
        link.bell().listen(|| self.look()).await
    }

    /// The same for a thread, until a time if there is a limit.
    pub(crate) fn notified_blocking(&self, until: Option<Instant>) -> Result<(), CreatorGone> {
        if self.is_notified_soon() {
            return Ok(());
        }
        loop {
            if let Some(over) = self.look() {
                return over;
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(());
            }
            let expected = (self.place.asleep() >> 32) as u32;
            futex::wait_for(self.half(), expected, left);
        }
    }

    /// What a thread sleeps on.
    fn half(&self) -> &AtomicU32 {
        self.object.region().word32(self.place.word() * 8 + 4)
    }

    /// Takes the notification, with the lock in hand. False if there is none: then the wait is over
    /// without.
    pub(crate) fn take(self) -> bool {
        let Ok(is_taken) = vigil::take(&mut self.object.words(), self.place);
        is_taken
    }
}

impl Drop for Vigil {
    fn drop(&mut self) {
        // In a forked child it is a copy of its parent's wait.
        if self.epoch != fork_epoch::current() {
            return;
        }
        let mut words = self.object.words();
        loop {
            let Ok(leave) = vigil::leave(&mut words, self.place);
            let seen = match leave {
                Leave::Nothing => return,
                Leave::Close(seen) => seen,
                Leave::PassOn(seen) => {
                    if !words.breaks(Rule::VigilPassesOn) {
                        self.object.pass_on(self.place.condition());
                    }
                    seen
                }
            };
            let Ok(is_closed) = vigil::close(&mut words, self.place, seen);
            if is_closed {
                return;
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
            let Ok(notified) = vigil::notify_one(&mut self.words(), &layout::VIGIL, condition);
            match notified {
                None => return done,
                Some(Some(rouse)) => self.rouse_with_lock(rouse),
                Some(None) => (),
            }
        }
        n
    }
}
