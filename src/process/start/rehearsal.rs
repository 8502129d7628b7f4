//! What every child does first, done once in the fork server, so that its copies find it done.
//!
//! The first call of a function of a shared library looks its symbol up, a first thread has its
//! stack and its heap mapped, a page that nobody has touched is a page fault. A copy inherits what
//! the original has behind it: looked up symbols, a stack and a heap that an ended thread has given
//! back, pages that only need to be copied. It would cost each child about a tenth of a millisecond.

use std::io;
use std::os::fd::AsFd as _;
use std::thread;
use std::time::{Duration, Instant};

use super::frames;
use crate::process::inherit::Inheritance;
use crate::process::{entry, panic};
use crate::sys::image::ImageId;
use crate::sys::{exit, overflow, rlimit, socket, tasks};
use crate::wire::codec;

/// How long the kernel may take to remove the thread that has ended.
const REMOVED_WITHIN: Duration = Duration::from_secs(1);

/// Rehearses a child's first steps, in a process with one thread. It has one thread afterwards.
pub(super) fn rehearse() -> io::Result<()> {
    ImageId::current()?;
    panic::note_panics();
    let (there, here) = socket::stream_pair()?;
    let mut message = Vec::new();
    codec::encode(&Inheritance::default(), &mut message).map_err(io::Error::other)?;
    frames::send(&there, frames::START, 0, &message, &[there.as_fd()])?;
    let frame = entry::receive_frame(&here)?;
    let user = thread::Builder::new()
        .name("rehearsal".to_owned())
        .stack_size(rlimit::stack_size())
        .spawn(move || {
            overflow::look_at_this_stack()?;
            codec::decode::<Inheritance>(&frame.body).map_err(io::Error::other)?;
            exit::flush_streams();
            Ok(())
        })?;
    let rehearsed = user.join();
    let since = Instant::now();
    while tasks::count()? != 1 && since.elapsed() < REMOVED_WITHIN {
        // It has ended; the kernel is about to strike it off.
        thread::yield_now();
    }
    rehearsed.unwrap_or_else(|_| Err(io::Error::other("the rehearsal panicked")))
}
