//! What holds for these objects whichever way the other processes were started: one file a primitive.
//!
//! Each public function with a way is a test. `super` runs them for the two safe methods, and
//! tests/fork.rs for the fork.

pub(crate) mod barrier;
pub(crate) mod condition;
pub(crate) mod creator;
pub(crate) mod event;
pub(crate) mod lock;
pub(crate) mod rlock;
pub(crate) mod semaphore;
