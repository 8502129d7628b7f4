//! An object's memory, mapped as its kind needs it.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::broker::layout::{self, Kind};
use crate::broker::queue::arena::Arena;
use crate::sys::memfd::Region;

/// The memory of an object.
#[derive(Debug)]
pub(crate) enum Mapped {
    /// All of it.
    Whole(Region),
    /// A queue's, which is mapped piece by piece.
    Queue(Box<Arena>),
}

impl Mapped {
    /// Maps an object that may come from another process, and tells what it is.
    pub(crate) fn open(file: &Arc<OwnedFd>) -> io::Result<(Self, Kind)> {
        if !layout::is_length(Region::file_len(file)?) {
            let why = "shared memory is no object of ours";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let page = Region::map_part(file, 0, const { NonZeroUsize::new(4096).unwrap() })?;
        let mapped = if layout::is_queue(&page) {
            Self::Queue(Box::new(Arena::open(Arc::clone(file))?))
        } else {
            Self::Whole(Region::map_all(file)?)
        };
        let kind = layout::kind_of(mapped.region())?;
        Ok((mapped, kind))
    }

    /// The part that every object has.
    #[inline]
    pub(crate) fn region(&self) -> &Region {
        match self {
            Self::Whole(region) => region,
            Self::Queue(arena) => arena.near(),
        }
    }

    /// A queue's memory.
    pub(crate) fn arena(&self) -> Option<&Arena> {
        match self {
            Self::Whole(_) => None,
            Self::Queue(arena) => Some(arena),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::layout::Shape;

    #[test]
    fn memory_that_is_as_long_as_raw_arrays_are_is_no_object() {
        for (len, is_object) in [(4096, true), (4097, false), (8191, false)] {
            let len = NonZeroUsize::new(len).unwrap();
            let (region, file) = Region::create(c"mp-object", len).unwrap();
            Shape::Lock { data: 0 }.write(&region);

            let opened = Mapped::open(&Arc::new(file));

            assert_eq!(opened.is_ok(), is_object, "{len}");
        }
    }
}
