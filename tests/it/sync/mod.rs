//! Locks, semaphores, conditions, barriers and events between processes: one file a primitive.

mod barrier;
mod cancel;
mod condition;
mod creator;
mod event;
mod lock;
mod rlock;
mod semaphore;
