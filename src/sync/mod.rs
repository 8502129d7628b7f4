//! Locks, semaphores, conditions, barriers and events that tasks of many processes share.
//!
//! Every object here is a *handle*: a clone, or a copy that travelled to another process as an
//! argument, a result or inside a message, is the same object. What can be had at once is had by one
//! atomic instruction; every other wait is an `.await` that can be dropped at any time.
//!
//! # Process death
//!
//! Nobody hangs because somebody died, at whatever instruction:
//!
//! - *A holder dies:* what it held is given on at once. For a lock, the next holder is told, see
//!   [`LockGuard::recovered`].
//! - *A waiter dies or is dropped:* it loses its place, and nobody else loses anything.
//! - *The creator dies:* the process that called `new` looks after the object. When it is gone every
//!   wait fails with [`CreatorGone`](crate::CreatorGone).
//!
//! A process that is stopped (`SIGSTOP`, a debugger, a frozen container) is not dead, and there are
//! [timeouts](tokio::time::timeout) against it:
//!
//! - *A stopped holder* keeps what it holds.
//! - *A stopped waiter* keeps its place, and is given what it waits for when it is next, as one that
//!   will go on.
//! - *A stopped creator* answers nobody. What is free is still had at once and given back; who waits
//!   short is still woken. But who has queued waits until it goes on; and when somebody has queued for
//!   half a millisecond, which closes the lock or semaphore to newcomers, so does everybody else.
//!
//! # What it takes
//!
//! An object takes one descriptor in each process that has a handle, an event two, and a page of memory
//! or more; a process takes a few more for each creator with which it shares objects. Before a wait
//! sleeps it looks again and again for some microseconds, and about a hundred if that has paid before,
//! or to find out whether it pays now.

mod barrier;
mod condition;
mod event;
mod held;
mod lock;
mod rlock;
mod semaphore;

pub use self::barrier::{Barrier, BarrierBuilder, BarrierWaitResult};
pub use self::condition::{Condition, Guard, Lockable};
pub use self::event::Event;
pub use self::lock::{Lock, LockGuard, LockGuardRef};
pub use self::rlock::{RLock, RLockGuard, RLockOwner};
pub use self::semaphore::{BoundedSemaphore, Permit, Semaphore};

pub(crate) use self::condition::sealed;
pub(crate) use self::held::Held;

/// Why a lock could not be taken.
pub type LockError = crate::error::CreatorGone;
