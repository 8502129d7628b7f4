//! Who waits for a shared object, who is next, who died: the slow path of everything in `sync`.
//!
//! Each object (a lock, a semaphore, an event, a barrier) is a page of shared memory with a few
//! words in it. What can be had at once is had by one atomic instruction on a word, by whoever holds
//! the object; the *broker*, which runs in the supervisor thread of the process that created the
//! object, does the rest: it keeps the queues, answers the waiters, and repairs the words after a
//! death.
//!
//! Read in this order: [`memory`] (the steps of the protocols), [`word`] (locks and semaphores, the
//! clients' side), [`gate`] (the broker's side), [`barrier`], [`flag`] (events), [`slot`] (where an
//! answer and a cancellation meet), [`park`] and [`vigil`] (short sleeps that the broker knows nothing
//! of). What of these needs a runtime, a thread or a clock is in [`waiting`], [`parking`] and
//! [`watching`]. The exhaustive search that takes all of them through every order of steps, crashes
//! and cancellations is [`search`].

pub(crate) mod barrier;
pub(crate) mod bell;
pub(crate) mod flag;
pub(crate) mod gate;
pub(crate) mod layout;
pub(crate) mod link;
pub(crate) mod mapped;
pub(crate) mod memory;
pub(crate) mod message;
pub(crate) mod object;
pub(crate) mod outbox;
pub(crate) mod park;
pub(crate) mod parking;
pub(crate) mod queue;
#[cfg(test)]
mod search;
pub(crate) mod serve;
pub(crate) mod slot;
pub(crate) mod spin;
#[cfg(test)]
mod turn;
pub(crate) mod vigil;
pub(crate) mod waiting;
pub(crate) mod watching;
pub(crate) mod word;
