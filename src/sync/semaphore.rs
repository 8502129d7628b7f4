//! Semaphores: an array of words, one for each permit, and a queue at the broker.
//!
//! A counter could not survive a kill: to take one off and to note whose it is are two stores. So
//! each permit is a word that names its owner, as a lock's does, and a dead owner's permits are found
//! by looking. A very large semaphore keeps what is beyond 65,536 permits in a ledger at the broker.
//! The protocol stands in [`crate::broker::word`] and [`crate::broker::gate`].

use std::fmt;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::broker::layout::{self, Kind, Shape};
use crate::broker::memory::Answer;
use crate::broker::message::Says;
use crate::broker::object::{self, Object};
use crate::broker::parking::Parking;
use crate::broker::slot::Wake;
use crate::broker::word;
use crate::error::{CreatorGone, OverRelease, TryLockError};
use crate::sys::fork_epoch;

/// A number of permits that tasks of many processes share.
///
/// Waiters are served in the order in which they came; newcomers may pass them for half a
/// millisecond at most. This is Python's `multiprocessing.Semaphore`: [`release`](Self::release)
/// without a permit adds one, also beyond the number at the start. For a fixed number see
/// [`BoundedSemaphore`].
///
/// # Process death
///
/// The permits of a dead process are given on. Permits that were forgotten belong to nobody and are
/// not.
///
/// # Examples
///
/// ```
/// use tokio_multiprocess::sync::Semaphore;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let downloads = Semaphore::new(2)?;
/// let first = downloads.acquire().await?;
/// let second = downloads.acquire().await?;
/// assert!(downloads.try_acquire().is_err());
///
/// drop(first);
/// assert_eq!(downloads.available_permits(), 1);
/// # drop(second);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Semaphore {
    object: Arc<Object>,
}

/// A [`Semaphore`] whose permits cannot become more than at the start.
///
/// # Process death
///
/// As for [`Semaphore`].
///
/// # Examples
///
/// ```
/// use tokio_multiprocess::sync::BoundedSemaphore;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let slots = BoundedSemaphore::new(1)?;
/// slots.acquire().await?.forget();
///
/// slots.release()?;
/// assert!(slots.release().is_err());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct BoundedSemaphore {
    object: Arc<Object>,
}

macro_rules! both_semaphores {
    ($name:ident) => {
        impl $name {
            /// Waits for a permit.
            ///
            /// # Errors
            ///
            /// Fails with [`CreatorGone`] when the process that made the semaphore has ended.
            ///
            /// # Panics
            ///
            /// When it has to wait outside a tokio runtime with I/O enabled.
            ///
            /// # Cancel safety
            ///
            /// **Cancel safe, but** a dropped wait loses its place in the queue.
            pub async fn acquire(&self) -> Result<Permit, CreatorGone> {
                acquire(&self.object).await
            }

            /// Takes a permit if there is one.
            ///
            /// It finds permits that have a word of their own in the shared memory, of which there is a
            /// fixed number: for a [`Semaphore`] twice as many as it began with, but 16 at least; for a
            /// [`BoundedSemaphore`] as many as it began with; for both 65,536 at most. Permits beyond
            /// these are with the process that looks after the semaphore, and only
            /// [`acquire`](Self::acquire) gets them, as it can wait for the answer.
            ///
            /// # Errors
            ///
            /// [`TryLockError::Busy`] when there is none that it finds, or somebody is next.
            pub fn try_acquire(&self) -> Result<Permit, TryLockError> {
                take(&self.object)?.ok_or(TryLockError::Busy)
            }

            /// Takes a permit, and puts the thread to sleep until there is one.
            ///
            /// # Errors
            ///
            /// Fails with [`CreatorGone`] when the process that made the semaphore has ended.
            pub fn blocking_acquire(&self) -> Result<Permit, CreatorGone> {
                if let Some(permit) = take_soon(&self.object)? {
                    return Ok(permit);
                }
                if let Some(parking) = Parking::begin(&self.object, Wake::Futex)?
                    && let Some(permit) = parking.wait_blocking(|| take(&self.object))?
                {
                    return Ok(permit);
                }
                let answer = self
                    .object
                    .ask(Wake::Futex, Says::Acquire)?
                    .answer_blocking()?;
                granted(&self.object, answer)
            }

            /// How many permits nobody has, also those that [`try_acquire`](Self::try_acquire) does not
            /// find. A snapshot, good for showing.
            #[must_use]
            pub fn available_permits(&self) -> usize {
                available(&self.object)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name))
                    .field("available_permits", &self.available_permits())
                    .finish()
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                object::serialize(&self.object, serializer)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                object::deserialize(deserializer, Kind::Semaphore).map(|object| Self { object })
            }
        }
    };
}

both_semaphores!(Semaphore);
both_semaphores!(BoundedSemaphore);

impl Semaphore {
    /// Makes a semaphore with so many permits. This process looks after it.
    ///
    /// # Errors
    ///
    /// Fails when the system has no memory or descriptors left.
    pub fn new(permits: usize) -> io::Result<Self> {
        Ok(Self {
            object: Object::create(Shape::Semaphore {
                permits,
                bounded: false,
            })?,
        })
    }

    /// Adds a permit, or gives back one that was [forgotten](Permit::forget), here or elsewhere.
    pub fn release(&self) {
        if !give_nobodys(&self.object) {
            self.object.say(Says::Add);
        }
    }
}

impl BoundedSemaphore {
    /// Makes a semaphore with so many permits. This process looks after it.
    ///
    /// # Errors
    ///
    /// Fails when the system has no memory or descriptors left.
    pub fn new(permits: usize) -> io::Result<Self> {
        Ok(Self {
            object: Object::create(Shape::Semaphore {
                permits,
                bounded: true,
            })?,
        })
    }

    /// Gives back a permit that was [forgotten](Permit::forget), here or elsewhere.
    ///
    /// # Errors
    ///
    /// Fails with [`OverRelease`] when no permit is forgotten.
    pub fn release(&self) -> Result<(), OverRelease> {
        if give_nobodys(&self.object) {
            return Ok(());
        }
        if layout::find_ledger(self.object.region()) {
            self.object.say(Says::Add);
            return Ok(());
        }
        Err(OverRelease)
    }
}

async fn acquire(object: &Arc<Object>) -> Result<Permit, CreatorGone> {
    if let Some(permit) = take_soon(object)? {
        return Ok(permit);
    }
    if let Some(parking) = Parking::begin(object, Wake::Bell)?
        && let Some(permit) = parking.wait(|| take(object)).await?
    {
        return Ok(permit);
    }
    let answer = object.ask(Wake::Bell, Says::Acquire)?.answer().await?;
    granted(object, answer)
}

fn take(object: &Arc<Object>) -> Result<Option<Permit>, CreatorGone> {
    let taken = object.take()?;
    Ok(taken.map(|taken| Permit::new(object, Some(taken.word))))
}

fn take_soon(object: &Arc<Object>) -> Result<Option<Permit>, CreatorGone> {
    match take(object)? {
        Some(permit) => Ok(Some(permit)),
        None => object.spin(|| take(object)),
    }
}

fn granted(object: &Arc<Object>, answer: Answer) -> Result<Permit, CreatorGone> {
    match answer {
        Answer::Permit(index) => match object.permit(index) {
            Some(word) => Ok(Permit::new(object, Some(word))),
            // Only a broker that is not ours answers so.
            None => Err(CreatorGone),
        },
        Answer::Ledger => Ok(Permit::new(object, None)),
        // Only a broker that is not ours answers so.
        _ => Err(CreatorGone),
    }
}

fn available(object: &Object) -> usize {
    let Ok(n_free) = word::count_free(&mut object.words(), layout::permits(object.region()));
    n_free.saturating_add(layout::ledger(object.region()) as usize)
}

/// Gives back a word that nobody in particular has. False if there is none.
fn give_nobodys(object: &Object) -> bool {
    let permits = layout::permits(object.region());
    let Ok(tell) = word::give_nobodys(&mut object.words(), permits.clone());
    let Some(tell) = tell else { return false };
    object.tell(tell, permits.start);
    true
}

/// A permit of a [`Semaphore`] or [`BoundedSemaphore`], given back when it is dropped.
#[must_use = "dropping the permit gives it back at once"]
pub struct Permit {
    object: Arc<Object>,
    /// The process that has it: a copy in a forked child has nothing.
    epoch: u64,
    /// Nothing for a permit of the ledger.
    word: Option<usize>,
}

impl Permit {
    fn new(object: &Arc<Object>, word: Option<usize>) -> Self {
        Self {
            object: Arc::clone(object),
            epoch: fork_epoch::current(),
            word,
        }
    }

    /// Leaves the permit taken, by nobody in particular: `release` gives it back.
    pub fn forget(mut self) {
        if self.epoch != fork_epoch::current() {
            return;
        }
        self.epoch = 0;
        match self.word {
            Some(word) => {
                if let Ok(me) = self.object.me() {
                    let Ok(()) = word::disown(&mut self.object.words(), word, me, true);
                }
            }
            None => {
                layout::lose_ledger(self.object.region());
                self.object.say(Says::ForgetLedger);
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.epoch != fork_epoch::current() {
            return;
        }
        match self.word {
            Some(word) => self.object.give_permit(word),
            None => self.object.say(Says::ReleaseLedger),
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").finish_non_exhaustive()
    }
}
