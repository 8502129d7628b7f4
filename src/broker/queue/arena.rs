//! A queue's memory as one process has it mapped.
//!
//! The near part is mapped from the beginning. Far slots and blocks are mapped as they are needed, in
//! pieces of which each is as long as all before it, so that a piece is found by counting bits.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering::{self, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Arc, OnceLock};

use super::wait::Bells;
use super::words::{
    self, BLOCK_LEN, FAR_BLOCK_WORDS, FAR_BLOCKS, FAR_SLOTS, FILE_LEN, HEAD, MOST, NEAR, NEAR_LEN,
    SLOT_LEN, TAIL,
};
use crate::broker::memory::{Memory, Rule, Shared};
use crate::broker::slot::Wake;
use crate::sys::futex;
use crate::sys::memfd::Region;

/// Pieces of each far part: as many as it takes to double `NEAR` up to the most.
const PIECES: usize = 16;

/// The file and its mappings.
#[derive(Debug)]
pub(crate) struct Arena {
    near: Region,
    file: Arc<OwnedFd>,
    slots: [OnceLock<Region>; PIECES],
    block_words: [OnceLock<Region>; PIECES],
    blocks: [OnceLock<Region>; PIECES],
    /// The head and the tail as they were seen last; 0 at first.
    seen: [AtomicU64; 2],
}

/// Which of those.
#[inline]
fn place_of(word: usize) -> Option<usize> {
    [HEAD, TAIL].iter().position(|known| *known == word)
}

/// A part of the memory could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotMapped;

impl From<NotMapped> for io::Error {
    fn from(NotMapped: NotMapped) -> Self {
        Self::new(
            io::ErrorKind::OutOfMemory,
            "a part of the queue's memory could not be mapped",
        )
    }
}

impl Arena {
    /// A file for a new queue, all zeros.
    pub(crate) fn create() -> io::Result<OwnedFd> {
        Region::create_sparse(c"mp-queue", const { NonZeroUsize::new(FILE_LEN).unwrap() })
    }

    /// Maps what is always needed.
    pub(crate) fn open(file: Arc<OwnedFd>) -> io::Result<Self> {
        // Also sees to it that the far parts are there.
        Region::map_part(
            &file,
            FILE_LEN - BLOCK_LEN,
            const { NonZeroUsize::new(BLOCK_LEN).unwrap() },
        )?;
        let near = Region::map_part(&file, 0, const { NonZeroUsize::new(NEAR_LEN).unwrap() })?;
        if cfg!(mutants) {
            // Which rule is broken is found out here, and not in the middle of what is looked at.
            let _ = Shared(&near).breaks(Rule::QueuePatrols);
        }
        Ok(Self {
            near,
            file,
            slots: [const { OnceLock::new() }; PIECES],
            block_words: [const { OnceLock::new() }; PIECES],
            blocks: [const { OnceLock::new() }; PIECES],
            seen: [const { AtomicU64::new(0) }; 2],
        })
    }

    /// The file.
    pub(crate) fn file(&self) -> &Arc<OwnedFd> {
        &self.file
    }

    /// The header and the seats, among others.
    pub(crate) fn near(&self) -> &Region {
        &self.near
    }

    #[inline]
    fn word(&self, word: usize) -> Result<&AtomicU64, NotMapped> {
        let at = word * 8;
        if at < NEAR_LEN {
            return Ok(self.near.word64(at));
        }
        let (region, at) = self.far(at)?;
        Ok(region.word64(at))
    }

    /// What threads in this seat sleep on.
    pub(crate) fn futex(&self, seat: usize) -> &AtomicU32 {
        self.near.word32(words::futex(seat) * 8)
    }

    /// Wakes the threads that sleep in this seat.
    pub(crate) fn rouse(&self, seat: usize) {
        // First the word, so that a thread that is about to sleep stays awake.
        self.futex(seat).fetch_add(1, SeqCst);
        futex::wake(self.futex(seat));
    }

    /// Wakes the sleeping threads of this process.
    pub(crate) fn rouse_all_of(&self, me: u32) {
        for seat in 0..words::SEATS_MAX {
            if self.near.word64(words::owner(seat) * 8).load(SeqCst) == u64::from(me) {
                self.rouse(seat);
            }
        }
    }

    /// The mapping that byte `at` of the far part lies in, and its place there.
    #[cold]
    fn far(&self, at: usize) -> Result<(&Region, usize), NotMapped> {
        let (base, len, pieces) = match at {
            FAR_BLOCKS.. => (FAR_BLOCKS, BLOCK_LEN, &self.blocks),
            FAR_BLOCK_WORDS.. => (FAR_BLOCK_WORDS, 8, &self.block_words),
            _ => (FAR_SLOTS, SLOT_LEN, &self.slots),
        };
        let index = at.checked_sub(base).ok_or(NotMapped)? / len;
        let piece = (index / NEAR).checked_ilog2().ok_or(NotMapped)? as usize;
        let place = pieces.get(piece).ok_or(NotMapped)?;
        let start = base + (NEAR << piece) * len;
        let region = match place.get() {
            Some(region) => region,
            None => {
                let bytes = NonZeroUsize::new((NEAR << piece) * len).ok_or(NotMapped)?;
                let mapped =
                    Region::map_part(self.file.as_fd(), start, bytes).map_err(|_| NotMapped)?;
                place.get_or_init(|| mapped)
            }
        };
        Ok((region, at - start))
    }

    fn bytes(&self, at: usize) -> Result<(&Region, usize), NotMapped> {
        if at < NEAR_LEN {
            return Ok((&self.near, at));
        }
        self.far(at)
    }

    /// Writes an item into a slot of ours, whose chain is long enough.
    #[inline]
    pub(crate) fn write(&self, slot: usize, bytes: &[u8]) -> Result<(), NotMapped> {
        if bytes.len() <= words::INLINE_MAX {
            let (region, at) = self.bytes(words::slot_at(slot))?;
            region.write(at + words::INLINE, bytes);
            return Ok(());
        }
        let mut rest = bytes;
        self.runs(slot, bytes.len(), |region, at, len| {
            let (now, later) = rest.split_at(len);
            region.write(at, now);
            rest = later;
        })
        .map(drop)
    }

    /// Appends the item in a slot of ours, of `len` bytes, to `bytes`. False if the slot does not hold
    /// so many: then somebody has scribbled over it.
    #[inline]
    pub(crate) fn read(
        &self,
        slot: usize,
        len: usize,
        bytes: &mut Vec<u8>,
    ) -> Result<bool, NotMapped> {
        if len <= words::INLINE_MAX {
            let (region, at) = self.bytes(words::slot_at(slot))?;
            region.read(at + words::INLINE, len, bytes);
            return Ok(true);
        }
        // Grows with what is there, not with what is claimed.
        self.runs(slot, len, |region, at, len| region.read(at, len, bytes))
    }

    /// Calls `each` for the stretches of memory that the first `len` bytes of a chain lie in.
    fn runs(
        &self,
        slot: usize,
        len: usize,
        mut each: impl FnMut(&Region, usize, usize),
    ) -> Result<bool, NotMapped> {
        let mut left = len;
        let mut next = self.word(words::chain(slot))?.load(Ordering::Acquire);
        let mut run: Option<(usize, usize)> = None;
        // A chain that somebody has scribbled over may lead round and round.
        let n_blocks = self.word(words::BLOCKS)?.load(Ordering::Acquire);
        if left.div_ceil(BLOCK_LEN) as u64 > n_blocks.min(MOST as u64) {
            return Ok(false);
        }
        while left > 0 {
            let Some(block) = next.checked_sub(1).filter(|block| *block < MOST as u64) else {
                return Ok(false);
            };
            let block = block as usize;
            let word = self.word(words::block(block))?.load(Ordering::Acquire);
            if words::block_owner(word) != Some(slot) {
                return Ok(false);
            }
            next = words::block_next(word).map_or(0, |next| next as u64 + 1);
            let now = left.min(BLOCK_LEN);
            left -= now;
            match &mut run {
                // A piece begins at a power of two, and no run goes over its beginning.
                Some((first, bytes))
                    if *first + *bytes / BLOCK_LEN == block && !block.is_power_of_two() =>
                {
                    *bytes += now;
                }
                _ => {
                    if let Some((first, bytes)) = run.replace((block, now)) {
                        let (region, at) = self.bytes(words::block_at(first))?;
                        each(region, at, bytes);
                    }
                }
            }
        }
        if let Some((first, bytes)) = run {
            let (region, at) = self.bytes(words::block_at(first))?;
            each(region, at, bytes);
        }
        Ok(true)
    }
}

// Sequentially consistent where the protocol rests on "I have written mine before I look at yours":
// on x86-64 this costs nothing for loads, and an exchange is so in any case.
impl Memory for &Arena {
    type Stop = NotMapped;

    #[inline]
    fn load(&mut self, word: usize) -> Result<u64, NotMapped> {
        Ok(self.word(word)?.load(SeqCst))
    }

    #[inline]
    fn replace(
        &mut self,
        word: usize,
        old: u64,
        new: u64,
        _: Ordering,
    ) -> Result<Result<u64, u64>, NotMapped> {
        Ok(self.word(word)?.compare_exchange(old, new, SeqCst, SeqCst))
    }

    #[inline]
    fn set_bits(&mut self, word: usize, bits: u64) -> Result<u64, NotMapped> {
        Ok(self.word(word)?.fetch_or(bits, SeqCst))
    }

    #[inline]
    fn clear_bits(&mut self, word: usize, bits: u64) -> Result<u64, NotMapped> {
        Ok(self.word(word)?.fetch_and(!bits, SeqCst))
    }

    #[inline]
    fn store(&mut self, word: usize, value: u64) -> Result<(), NotMapped> {
        self.word(word)?.store(value, Release);
        Ok(())
    }

    // An exchange on x86-64, where it is cheaper than a fence behind the store.
    #[inline]
    fn store_first(&mut self, word: usize, value: u64) -> Result<(), NotMapped> {
        self.word(word)?.store(value, SeqCst);
        Ok(())
    }

    // Relaxed: an old value is as good as a new one, but for having to look more often.
    #[inline]
    fn recall(&mut self, word: usize) -> Result<Option<u64>, NotMapped> {
        let seen = place_of(word).map_or(0, |place| self.seen[place].load(Relaxed));
        Ok((seen != 0).then_some(seen))
    }

    #[inline]
    fn remember(&mut self, word: usize, value: u64) {
        if let Some(place) = place_of(word) {
            self.seen[place].store(value, Relaxed);
        }
    }

    #[inline]
    fn breaks(&self, rule: Rule) -> bool {
        Shared(&self.near).breaks(rule)
    }
}

/// A queue's memory with a way to ring bells.
pub(crate) struct WithBells<'a, R, A> {
    pub(crate) arena: &'a Arena,
    /// Wakes the process in a seat, by its bell or as a thread.
    pub(crate) ring: R,
    /// Has the broker patrol in a while.
    pub(crate) ask: A,
}

impl<R, A> Memory for WithBells<'_, R, A>
where
    R: FnMut(usize, Wake) -> Result<bool, NotMapped>,
    A: FnMut() -> Result<(), NotMapped>,
{
    type Stop = NotMapped;

    #[inline]
    fn load(&mut self, word: usize) -> Result<u64, NotMapped> {
        let mut arena = self.arena;
        arena.load(word)
    }

    #[inline]
    fn replace(
        &mut self,
        word: usize,
        old: u64,
        new: u64,
        order: Ordering,
    ) -> Result<Result<u64, u64>, NotMapped> {
        let mut arena = self.arena;
        arena.replace(word, old, new, order)
    }

    #[inline]
    fn set_bits(&mut self, word: usize, bits: u64) -> Result<u64, NotMapped> {
        let mut arena = self.arena;
        arena.set_bits(word, bits)
    }

    #[inline]
    fn clear_bits(&mut self, word: usize, bits: u64) -> Result<u64, NotMapped> {
        let mut arena = self.arena;
        arena.clear_bits(word, bits)
    }

    #[inline]
    fn store(&mut self, word: usize, value: u64) -> Result<(), NotMapped> {
        let mut arena = self.arena;
        arena.store(word, value)
    }

    #[inline]
    fn store_first(&mut self, word: usize, value: u64) -> Result<(), NotMapped> {
        let mut arena = self.arena;
        arena.store_first(word, value)
    }

    #[inline]
    fn recall(&mut self, word: usize) -> Result<Option<u64>, NotMapped> {
        let mut arena = self.arena;
        arena.recall(word)
    }

    #[inline]
    fn remember(&mut self, word: usize, value: u64) {
        let mut arena = self.arena;
        arena.remember(word, value);
    }

    #[inline]
    fn breaks(&self, rule: Rule) -> bool {
        Shared(&self.arena.near).breaks(rule)
    }
}

impl<R, A> Bells for WithBells<'_, R, A>
where
    R: FnMut(usize, Wake) -> Result<bool, NotMapped>,
    A: FnMut() -> Result<(), NotMapped>,
{
    fn ring(&mut self, seat: usize, wake: Wake) -> Result<bool, NotMapped> {
        (self.ring)(seat, wake)
    }

    #[inline]
    fn ask_patrol(&mut self) -> Result<(), NotMapped> {
        (self.ask)()
    }
}
