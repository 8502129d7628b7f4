//! What lies where in a queue's memory, and the bits of its words.
//!
//! The file is sparse: it is as long as a queue could ever get, and pages that nobody touched do not
//! exist. Words are addressed by their place in the file, in units of 8 bytes.
//!
//! ```text
//! 0        the header: see the constants       then  4096 slots, 4096 block words, 4096 blocks
//! 1 page   512 seats, one a process            far   the slots, block words and blocks beyond 4096
//! ```
//! A *link* is a position in the queue and the slot that stands there, in one word:
//! ```text
//! 63..28 position (counts every item that was ever put)    27..0 slot
//! ```
//! A slot's *state* says whose it is:
//! ```text
//! 63..60 kind    59..36 the process' number    35..0 position
//! ```
//! Positions have 36 bits, and a word that was read once is written back only if it is unchanged. So
//! a process would have to be stopped between two instructions for exactly 68,719,476,736 items (or
//! a multiple) and go on just while the same slot stands there again to be fooled.

use crate::broker::slot::Wake;

/// The most items that can wait: 0 for no limit.
pub(crate) const LIMIT: usize = 8;
/// Bit 0: items can be leased. Bit 1: see [`UNREAD`].
pub(crate) const OPTIONS: usize = 9;
/// Nobody can get any more: what is left, or comes back, is dropped.
pub(crate) const UNREAD: u64 = 2;
/// How many slots are in use; the others have never been touched.
pub(crate) const SLOTS: usize = 10;
/// The same for blocks.
pub(crate) const BLOCKS: usize = 11;
/// The same for seats.
pub(crate) const SEATS: usize = 12;
/// How often items were put back by a reader that gave up or died.
pub(crate) const RETURNS: usize = 13;
/// Up to which of them everything has been looked at.
pub(crate) const RETURNS_SEEN: usize = 14;
/// Where a search for a free slot, and for a free block, may begin: no more than a hint.
pub(crate) const SLOT_HINT: usize = 15;
pub(crate) const BLOCK_HINT: usize = 40;
/// The same for a block where all are in use around that one.
pub(crate) const BLOCK_FAR_HINT: usize = 41;
/// The last item that was taken.
pub(crate) const HEAD: usize = 16;
/// The last item that was put, or the one before it.
pub(crate) const TAIL: usize = 32;
/// Which seats wait, a bit a seat, for each [`For`].
const WAITING: usize = 48;
/// How many patrols there have been (see [`super::wait`]).
pub(crate) const PATROLS: usize = 72;
/// Where a producer and a consumer last ran.
pub(crate) const PUT_CPU: usize = 80;
pub(crate) const GET_CPU: usize = 96;

const PAGE: usize = 4096;
const SEAT_LEN: usize = 128;
/// How many processes can use a queue at one time.
pub(crate) const SEATS_MAX: usize = 512;
/// Bytes of a slot, header and small item.
pub(crate) const SLOT_LEN: usize = 128;
/// Where the item's bytes begin in a slot, and how many there is room for.
pub(crate) const INLINE: usize = 40;
pub(crate) const INLINE_MAX: usize = SLOT_LEN - INLINE;
/// Bytes of a block.
pub(crate) const BLOCK_LEN: usize = 4096;
/// How many slots, and how many blocks, lie near.
pub(crate) const NEAR: usize = 4096;
/// How many slots or blocks a queue can have.
pub(crate) const MOST: usize = (1 << 28) - 16;

const NEAR_SLOTS: usize = PAGE + SEATS_MAX * SEAT_LEN;
const NEAR_BLOCK_WORDS: usize = NEAR_SLOTS + NEAR * SLOT_LEN;
const NEAR_BLOCKS: usize = NEAR_BLOCK_WORDS + NEAR * 8;
/// Bytes of the near part.
pub(crate) const NEAR_LEN: usize = NEAR_BLOCKS + NEAR * BLOCK_LEN;

/// Where the far parts begin.
pub(crate) const FAR_SLOTS: usize = 1 << 36;
pub(crate) const FAR_BLOCK_WORDS: usize = 1 << 37;
pub(crate) const FAR_BLOCKS: usize = 1 << 40;
/// Bytes of the file.
pub(crate) const FILE_LEN: usize = 1 << 41;

/// Slots and blocks in use at first.
pub(crate) const AT_FIRST: u64 = 32;

/// What somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum For {
    /// An item.
    Item = 0,
    /// Room for an item.
    Room = 1,
    /// That all items are done with.
    Done = 2,
}

/// Byte at which slot `index` begins.
#[inline]
pub(crate) fn slot_at(index: usize) -> usize {
    let base = if index < NEAR { NEAR_SLOTS } else { FAR_SLOTS };
    base + index * SLOT_LEN
}

/// Byte at which block `index` begins.
#[inline]
pub(crate) fn block_at(index: usize) -> usize {
    let base = if index < NEAR {
        NEAR_BLOCKS
    } else {
        FAR_BLOCKS
    };
    base + index * BLOCK_LEN
}

/// The word that says whose block `index` is.
#[inline]
pub(crate) fn block(index: usize) -> usize {
    let base = if index < NEAR {
        NEAR_BLOCK_WORDS
    } else {
        FAR_BLOCK_WORDS
    };
    base / 8 + index
}

/// The words of a slot.
#[inline]
pub(crate) fn state(slot: usize) -> usize {
    slot_at(slot) / 8
}
#[inline]
pub(crate) fn next(slot: usize) -> usize {
    slot_at(slot) / 8 + 1
}
/// Bytes of the item, and the number of its descriptors in the upper 16 bits.
#[inline]
pub(crate) fn len(slot: usize) -> usize {
    slot_at(slot) / 8 + 2
}
/// How many descriptors, according to such a word.
#[inline]
pub(crate) fn n_fds(len: u64) -> usize {
    (len >> 48) as usize
}
/// The first block, plus one; 0: the item lies in the slot.
#[inline]
pub(crate) fn chain(slot: usize) -> usize {
    slot_at(slot) / 8 + 3
}
/// Under which key the broker keeps the item's descriptors.
#[inline]
pub(crate) fn key(slot: usize) -> usize {
    slot_at(slot) / 8 + 4
}

/// The words of a seat: whose it is.
#[inline]
pub(crate) fn owner(seat: usize) -> usize {
    (PAGE + seat * SEAT_LEN) / 8
}
/// How it waits.
#[inline]
pub(crate) fn wait(seat: usize, what: For) -> usize {
    owner(seat) + 1 + what as usize
}
/// How many items it has got and not reported as done.
#[inline]
pub(crate) fn owed(seat: usize) -> usize {
    owner(seat) + 4
}
/// What its sleeping threads sleep on.
#[inline]
pub(crate) fn futex(seat: usize) -> usize {
    owner(seat) + 5
}

/// How many of its threads have announced what they are about to do and have not told yet.
#[inline]
pub(crate) fn acting(seat: usize) -> usize {
    owner(seat) + 6
}

/// The word and the bit that say whether a seat waits.
#[inline]
pub(crate) fn waits(seat: usize, what: For) -> (usize, u64) {
    (bits(what) + seat / 64, 1 << (seat % 64))
}

/// The first word of the bits.
#[inline]
pub(crate) fn bits(what: For) -> usize {
    WAITING + what as usize * (SEATS_MAX / 64)
}

const POSITION_BITS: u32 = 36;
const POSITION: u64 = (1 << POSITION_BITS) - 1;
const INDEX_BITS: u32 = 28;
const INDEX: u64 = (1 << INDEX_BITS) - 1;
/// Instead of a slot in a link: nothing comes after this (yet), or nothing ever will.
const NONE: u64 = INDEX;
const CLOSED: u64 = INDEX - 1;

/// The position after `position`.
pub(crate) fn after(position: u64) -> u64 {
    (position + 1) & POSITION
}

/// How many positions `later` is behind `earlier`; negative if it is not.
#[inline]
pub(crate) fn distance(earlier: u64, later: u64) -> i64 {
    let shift = 64 - POSITION_BITS;
    (later.wrapping_sub(earlier) << shift).cast_signed() >> shift
}

/// A position and what stands there.
#[inline]
pub(crate) fn link(position: u64, slot: usize) -> u64 {
    position << INDEX_BITS | slot as u64
}
/// The end of the queue.
#[inline]
pub(crate) fn end(position: u64) -> u64 {
    position << INDEX_BITS | NONE
}
/// The end of a queue that nothing is put into any more.
#[inline]
pub(crate) fn closed(position: u64) -> u64 {
    position << INDEX_BITS | CLOSED
}
#[inline]
pub(crate) fn position(link: u64) -> u64 {
    link >> INDEX_BITS
}
#[inline]
pub(crate) fn is_end(link: u64) -> bool {
    link & INDEX == NONE
}
#[inline]
pub(crate) fn is_closed(link: u64) -> bool {
    link & INDEX == CLOSED
}
/// The slot of a link that is neither.
#[inline]
pub(crate) fn slot(link: u64) -> usize {
    (link & INDEX) as usize
}

/// Whose a slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Nobody's, and never linked since.
    Free = 0,
    /// Of the process that fills it, under the position that it tries to get.
    Writing = 1,
    /// The queue's.
    Full = 2,
    /// Of the process that took it, which has not got the whole item yet.
    Reading = 3,
    /// Of the process that has a lease of the item.
    Leased = 4,
    /// Of the process that has got the item and gives the blocks back.
    Leaving = 5,
    /// The queue's again: the item was taken and put back.
    Returned = 6,
    /// Nobody's, once the head has passed its position.
    Done = 7,
}

/// A slot's state in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) kind: Kind,
    pub(crate) client: u32,
    pub(crate) position: u64,
}

/// The largest number of a process that fits.
pub(crate) const CLIENT_MAX: u32 = (1 << 24) - 1;

impl State {
    #[inline]
    pub(crate) fn word(kind: Kind, client: u32, position: u64) -> u64 {
        (kind as u64) << 60 | u64::from(client & CLIENT_MAX) << POSITION_BITS | position
    }

    #[inline]
    pub(crate) fn of(word: u64) -> Self {
        let kind = match word >> 60 {
            0 => Kind::Free,
            1 => Kind::Writing,
            2 => Kind::Full,
            3 => Kind::Reading,
            4 => Kind::Leased,
            5 => Kind::Leaving,
            6 => Kind::Returned,
            _ => Kind::Done,
        };
        Self {
            kind,
            client: (word >> POSITION_BITS) as u32 & CLIENT_MAX,
            position: word & POSITION,
        }
    }
}

/// A block of slot `owner`, which is followed by `next` (plus one; 0: by none).
pub(crate) fn block_of(owner: usize, next: u64) -> u64 {
    (owner as u64 + 1) << 32 | next
}
/// The slot that a block belongs to.
pub(crate) fn block_owner(word: u64) -> Option<usize> {
    (word >> 32).checked_sub(1).map(|slot| slot as usize)
}
/// The block after it.
pub(crate) fn block_next(word: u64) -> Option<usize> {
    (word & 0xffff_ffff)
        .checked_sub(1)
        .map(|next| next as usize)
}

/// How a seat waits: the turn and one of the constants below.
///
/// A turn ends with each wake-up, so a waker that is late changes nothing for a later wait.
const WAIT: u64 = 3;
const IDLE: u64 = 0;
const LISTENS: u64 = 1;
const SLEEPS: u64 = 2;
const WOKEN: u64 = 3;

/// The next turn, waiting.
pub(crate) fn waiting(word: u64, wake: Wake) -> u64 {
    let how = match wake {
        Wake::Bell => LISTENS,
        Wake::Futex => SLEEPS,
    };
    (word & !WAIT).wrapping_add(WAIT + 1) | how
}
/// Which turn.
pub(crate) fn turn(word: u64) -> u64 {
    word & !WAIT
}
/// The same turn, woken.
pub(crate) fn woken(word: u64) -> u64 {
    word & !WAIT | WOKEN
}
/// The same turn, over.
pub(crate) fn idle(word: u64) -> u64 {
    word & !WAIT | IDLE
}
/// How it is to be woken, if it waits.
#[inline]
pub(crate) fn wakes_by(word: u64) -> Option<Wake> {
    match word & WAIT {
        LISTENS => Some(Wake::Bell),
        SLEEPS => Some(Wake::Futex),
        _ => None,
    }
}
/// Whether it has been woken and has not acted on it.
pub(crate) fn is_woken(word: u64) -> bool {
    word & WAIT == WOKEN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_apart() {
        assert!(bits(For::Done) + SEATS_MAX / 64 <= PATROLS);
        assert!(owner(SEATS_MAX) * 8 <= slot_at(0));
        assert!(slot_at(NEAR - 1) + SLOT_LEN <= block(0) * 8);
        assert!(block_at(NEAR - 1) + BLOCK_LEN <= NEAR_LEN);
        assert!(NEAR_LEN <= slot_at(NEAR));
        assert!(slot_at(MOST) <= FAR_BLOCK_WORDS);
        assert!(block(MOST) * 8 <= FAR_BLOCKS);
        assert!(block_at(MOST) <= FILE_LEN);
        assert_eq!(slot_at(NEAR) % PAGE + block_at(NEAR) % PAGE, 0);
    }

    #[test]
    fn positions_wrap_around() {
        assert_eq!(distance(POSITION, after(POSITION)), 1);
        assert_eq!(distance(5, 3), -2);
    }

    #[test]
    fn a_state_comes_back_as_it_was() {
        for kind in [Kind::Free, Kind::Reading, Kind::Returned, Kind::Done] {
            let state = State::of(State::word(kind, CLIENT_MAX, POSITION));

            assert_eq!((state.kind, state.client), (kind, CLIENT_MAX));
            assert_eq!(state.position, POSITION);
        }
    }
}
