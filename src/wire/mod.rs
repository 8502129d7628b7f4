//! What runs over a socket: frames, and the codec of the values inside them.

pub(crate) mod codec;
pub(crate) mod frame;
mod guard;
