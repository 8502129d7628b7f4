//! What runs over a socket: frames, and the values and descriptors inside them.

pub(crate) mod codec;
pub(crate) mod fds;
pub(crate) mod frame;
mod guard;
pub(crate) mod link;
pub(crate) mod scratch;
