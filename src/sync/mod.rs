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
//! A process that is stopped (`SIGSTOP`) is not dead: what it holds stays held, and there are
//! [timeouts](tokio::time::timeout) against it.

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
