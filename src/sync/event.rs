//! The event: a word that says whether the flag is up, and a bell.
//!
//! Asking is one load. A waiter that finds the flag down says in the word that it sleeps and listens
//! to the bell; whoever raises the flag rings if the word says so, and wakes all waiters of all
//! processes directly. The broker only rings again after a death. See [`crate::broker::flag`].

use std::fmt;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::broker::flag;
use crate::broker::layout::{FLAG, Kind, Shape};
use crate::broker::memory::{Memory, Rule};
use crate::broker::object::{self, Object};
use crate::error::CreatorGone;
use crate::sys::futex;

/// A flag that tasks in many processes can wait for.
///
/// An event starts down. [`set`](Self::set) raises it and releases every waiter in every process, and
/// it stays up until [`clear`](Self::clear). A waiter that was there when the flag was raised is
/// released even if it is lowered again before the waiter runs.
///
/// This is Python's `multiprocessing.Event`, but that `wait` takes no timeout, since
/// [`tokio::time::timeout`] can be put around it.
///
/// # Process death
///
/// A process that dies in the middle of `set` has raised the flag or not; if it has, the waiters
/// wake. A waiter that dies takes nothing with it.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tokio_multiprocess::sync::Event;
///
/// let ready = Event::new()?;
/// let waiter = ready.clone();
/// let task = tokio::spawn(async move { waiter.wait().await });
///
/// ready.set();
/// task.await??;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Event {
    object: Arc<Object>,
}

impl Event {
    /// Makes an event that is down. This process looks after it.
    ///
    /// # Errors
    ///
    /// Fails when the system has no memory or descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            object: Object::create(Shape::Event)?,
        })
    }

    /// Raises the flag and releases every waiter. Setting it twice is the same as once.
    pub fn set(&self) {
        // In a forked child: the broker has to know who may die in the middle of this.
        let _ = self.object.me();
        let mut words = self.object.words();
        let late = !words.breaks(Rule::EventSetBeforeRing);
        if !late {
            self.ring();
        }
        let Ok(has_sleepers) = flag::set(&mut words, FLAG);
        if has_sleepers && late && !words.breaks(Rule::EventSetRings) {
            self.ring();
        }
    }

    fn ring(&self) {
        self.object.bell().ring();
        futex::wake(self.object.region().word32(FLAG * 8));
    }

    /// Lowers the flag.
    pub fn clear(&self) {
        let Ok(()) = flag::clear(&mut self.object.words(), FLAG);
    }

    /// Whether the flag is up.
    #[must_use]
    #[inline]
    pub fn is_set(&self) -> bool {
        let Ok(seen) = self.object.words().load(FLAG);
        flag::is_set(seen)
    }

    /// Waits until the flag is up.
    ///
    /// # Errors
    ///
    /// Fails with [`CreatorGone`] when the process that made the event has ended.
    ///
    /// # Panics
    ///
    /// When it has to wait outside a tokio runtime with I/O enabled.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe:** dropping the future takes nothing from the event or from other waiters.
    pub async fn wait(&self) -> Result<(), CreatorGone> {
        self.object.me()?;
        let since = self.raises();
        if self.is_raised_soon(since) {
            return Ok(());
        }
        self.object.bell().listen(|| self.look(since)).await
    }

    /// Puts the thread to sleep until the flag is up. For code outside a runtime.
    ///
    /// # Errors
    ///
    /// Fails with [`CreatorGone`] when the process that made the event has ended.
    pub fn blocking_wait(&self) -> Result<(), CreatorGone> {
        self.object.me()?;
        let since = self.raises();
        if self.is_raised_soon(since) {
            return Ok(());
        }
        loop {
            if let Some(over) = self.look(since) {
                return over;
            }
            futex::wait(self.object.region().word32(FLAG * 8), flag::asleep(since));
        }
    }

    /// Looks for a moment, without saying so in the word.
    fn is_raised_soon(&self, since: u64) -> bool {
        if self.is_set() {
            return true;
        }
        let look = || Ok::<_, CreatorGone>((self.is_set() || self.raises() != since).then_some(()));
        self.object.spin(look) == Ok(Some(()))
    }

    fn raises(&self) -> u64 {
        let Ok(seen) = self.object.words().load(FLAG);
        flag::raises(seen)
    }

    fn look(&self, since: u64) -> Option<Result<(), CreatorGone>> {
        let Ok(over) = flag::is_over(&mut self.object.words(), FLAG, since);
        match over {
            true => Some(Ok(())),
            false if self.object.is_orphan() => Some(Err(CreatorGone)),
            false => None,
        }
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("is_set", &self.is_set())
            .finish()
    }
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object::serialize(&self.object, serializer)
    }
}

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        object::deserialize(deserializer, Kind::Event).map(|object| Self { object })
    }
}
