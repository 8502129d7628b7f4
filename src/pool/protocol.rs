//! What a pool and its workers say to each other, once a worker is ready.
//!
//! Frames as everywhere (see [`crate::wire::frame`]). The parent sends runs of items, each with
//! the function that they are for; the worker answers one frame an item. Items are numbered per
//! worker from 0 on: a run tells the number of its first item, an answer that of its item.

use serde::{Deserialize, Serialize};

use crate::process::function::Function;

/// Parent to worker: run these items. `aux` is the number of the first one.
pub(crate) const RUN: u8 = 16;
/// Parent to worker: drop the asynchronous task with the number `aux`.
pub(crate) const INTERRUPT: u8 = 17;
/// Parent to worker: that was all; finish and leave.
pub(crate) const STOP: u8 = 18;

/// Worker to parent: the item's encoded value.
pub(crate) const DONE: u8 = 32;
/// Worker to parent: the argument could not be decoded, and why.
pub(crate) const NOT_DECODED: u8 = 33;
/// Worker to parent: the value could not be encoded, and why.
pub(crate) const NOT_ENCODED: u8 = 34;
/// Worker to parent: the function panicked; the encoded panic.
pub(crate) const PANICKED: u8 = 35;
/// Worker to parent: the task was dropped at an await point, as asked for.
pub(crate) const INTERRUPTED: u8 = 36;
/// Worker to parent: how long items of one function took, see [`Busy`].
pub(crate) const BUSY: u8 = 37;
/// Worker to parent: this process has grown too large, replace it.
pub(crate) const OUTGROWN: u8 = 38;

/// Whether a frame of this kind answers an item.
pub(crate) fn is_answer(kind: u8) -> bool {
    (DONE..=INTERRUPTED).contains(&kind)
}

/// Bytes before the items of a run.
pub(crate) const RUN_LEN: usize = Function::LEN + 12;

/// The fixed part of a run's body, followed by the items: length (4 bytes) and bytes of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) function: Function,
    /// Comes back in [`Busy`].
    pub(crate) class: u32,
    pub(crate) n_items: u32,
    /// The function returns a future.
    pub(crate) is_async: bool,
}

impl Run {
    pub(crate) fn to_bytes(self) -> [u8; RUN_LEN] {
        let mut bytes = [0; RUN_LEN];
        bytes[..16].copy_from_slice(&self.function.to_bytes());
        bytes[16..20].copy_from_slice(&self.class.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.n_items.to_le_bytes());
        bytes[24] = u8::from(self.is_async);
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8; RUN_LEN]) -> Self {
        let (function, rest) = bytes
            .split_first_chunk()
            .expect("a run is longer than a function");
        let number =
            |at: usize| u32::from_le_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        Self {
            function: Function::from_bytes(*function),
            class: number(0),
            n_items: number(4),
            is_async: rest[8] != 0,
        }
    }
}

/// The body of a [`BUSY`] frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Busy {
    pub(crate) class: u32,
    pub(crate) items: u32,
    pub(crate) ns: u64,
}

/// Bytes of a [`Busy`].
pub(crate) const BUSY_LEN: usize = 16;

impl Busy {
    pub(crate) fn to_bytes(self) -> [u8; BUSY_LEN] {
        let mut bytes = [0; BUSY_LEN];
        bytes[..4].copy_from_slice(&self.class.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.items.to_le_bytes());
        bytes[8..].copy_from_slice(&self.ns.to_le_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (class, rest) = bytes.split_first_chunk()?;
        let (items, rest) = rest.split_first_chunk()?;
        let ns = rest.try_into().ok()?;
        Some(Self {
            class: u32::from_le_bytes(*class),
            items: u32::from_le_bytes(*items),
            ns: u64::from_le_bytes(ns),
        })
    }
}

/// What a worker is told when it is started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Orders {
    /// Tasks at once.
    pub(crate) slots: u32,
    /// The longest answer.
    pub(crate) limit: u32,
    /// Resident bytes from which on it asks to be replaced.
    pub(crate) memory_limit: Option<u64>,
    pub(crate) initializer: Option<Initializer>,
    /// The place of a function without argument.
    pub(crate) finalizer: Option<[u8; 8]>,
}

/// What a worker calls before it takes tasks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Initializer {
    pub(crate) function: [u8; Function::LEN],
    /// Encoded; descriptors that it holds come behind that of the outbox.
    pub(crate) argument: Vec<u8>,
}

/// The bytes of the items from number `from` on, `len` of them, in `items`: length (4 bytes) and
/// bytes of each. Nothing if there are not so many.
pub(crate) fn slice_of_items(items: &[u8], from: u32, len: u32) -> Option<std::ops::Range<usize>> {
    let skip = |start: usize, n: u32| {
        let mut at = start;
        for _ in 0..n {
            let item_len = u32::from_le_bytes(*items.get(at..)?.first_chunk()?);
            at = at
                .checked_add(4 + item_len as usize)
                .filter(|&end| end <= items.len())?;
        }
        Some(at)
    };
    let start = skip(0, from)?;
    Some(start..skip(start, len)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_and_a_report_come_back_as_they_were() {
        let run = Run {
            function: Function::from_bytes(std::array::from_fn(|i| i as u8)),
            class: 7,
            n_items: 1 << 20,
            is_async: true,
        };
        let busy = Busy {
            class: 1,
            items: 2,
            ns: 3 << 40,
        };

        assert_eq!(Run::from_bytes(&run.to_bytes()), run);
        assert_eq!(Busy::from_bytes(&busy.to_bytes()), Some(busy));
    }

    #[test]
    fn items_are_found_by_their_number() {
        let items = [&[1, 0, 0, 0, 9][..], &[0, 0, 0, 0], &[2, 0, 0, 0, 7, 8]].concat();

        assert_eq!(slice_of_items(&items, 0, 3), Some(0..15));
        assert_eq!(slice_of_items(&items, 1, 1), Some(5..9));
        assert_eq!(slice_of_items(&items, 2, 1), Some(9..15));
        assert_eq!(slice_of_items(&items, 2, 2), None);
    }
}
