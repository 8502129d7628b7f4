//! Locks, semaphores, conditions, barriers and events: one file a primitive. What is between processes
//! is in the suite.

mod barrier;
mod cancel;
mod condition;
mod creator;
mod event;
mod limit;
mod lock;
mod rlock;
mod semaphore;
mod suite;
