//! A buffer for one short message at a time, kept by each thread.
//!
//! A message is encoded before the end of a pipe is locked, and decoded after it has been unlocked,
//! as the code of a user's value may do anything. In between it needs a place; and to own a part of
//! a shared buffer costs more than to copy some hundred bytes.

use std::cell::Cell;
use std::mem;
use std::ops::{Deref, DerefMut};

/// A larger buffer is not kept.
const KEPT: usize = 64 << 10;

thread_local! {
    static SPARE: Cell<Buffer> = const { Cell::new(None) };
}

/// Boxed, since it changes hands several times a message, and to move a vector right after it was
/// changed means waiting until the processor has stored the change. Nothing is an empty one.
type Buffer = Option<Box<Vec<u8>>>;

/// An empty buffer at first, which goes back to the thread when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Scratch(Buffer);

impl Scratch {
    /// The thread's buffer, or a new one if that is in use.
    #[inline]
    pub(crate) fn new() -> Self {
        // At the end of a thread there is none any more.
        Self(SPARE.try_with(Cell::take).unwrap_or_default())
    }
}

impl From<Vec<u8>> for Scratch {
    fn from(buffer: Vec<u8>) -> Self {
        Self(Some(Box::new(buffer)))
    }
}

impl Deref for Scratch {
    type Target = Vec<u8>;

    #[inline]
    fn deref(&self) -> &Vec<u8> {
        static EMPTY: Vec<u8> = Vec::new();
        self.0.as_deref().unwrap_or(&EMPTY)
    }
}

impl DerefMut for Scratch {
    #[inline]
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        self.0.get_or_insert_default()
    }
}

impl Drop for Scratch {
    #[inline]
    fn drop(&mut self) {
        if let Some(mut spare) = mem::take(&mut self.0)
            && (1..=KEPT).contains(&spare.capacity())
        {
            spare.clear();
            let _ = SPARE.try_with(|place| place.set(Some(spare)));
        }
    }
}
