//! One direction of a stream socket, as the two ends see it: frames in, frames out.
//!
//! [`Outlet`] sends and [`Inlet`] receives. Neither belongs to a runtime (see [`reactor`](crate::sys::reactor)),
//! both can be awaited, polled and used by a thread that blocks, and both can be handed over to
//! another process with what they hold. What an outlet still holds when nobody waits for it any
//! more is sent by the [`leftovers`] thread.

mod inlet;
mod leftovers;
mod outlet;

pub(crate) use self::inlet::Inlet;
pub(crate) use self::leftovers::wait_for_leftovers;
pub(crate) use self::outlet::{Encoded, Outlet, Refusal};

/// Where an end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Here,
    /// In a value that is being handed over, which may still fail.
    Leaving,
    Left,
}

/// Why an end cannot be sent away.
const LEAVING: &str = "the end of a pipe is in another message that is being sent";
const LEFT: &str = "the end of a pipe has been sent to another process";
