//! The leanest programs for the same work: no library, no codec, no checks that a user would need.
//!
//! They say what the kernel charges on this machine at this moment. Where one of our promises costs
//! something in every child (a thread for the user's code, a watch on the parent), there is a floor
//! with that duty and one without.

pub(crate) mod crowd;
pub(crate) mod exit;
pub(crate) mod fork_server;
mod kernel;
pub(crate) mod launch;
pub(crate) mod pool;
pub(crate) mod sync;
