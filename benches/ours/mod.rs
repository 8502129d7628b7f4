//! The library at the work that is measured, called as a user would call it.

pub(crate) mod launch;
pub(crate) mod pool;
pub(crate) mod queue;
pub(crate) mod sync;
