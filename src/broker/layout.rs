//! What lies where in an object's memory.
//!
//! ```text
//! word 0  what it is: a magic number and the kind          word 4  permits left in the ledger
//!      1  the last number that was given to a client            5  who sleeps without the broker
//!      2  how many permits or parties                           6  conditions made so far
//!      3  options                                               7  ledger permits without owner
//! ```
//! Everything from word 2 on is written before anybody else sees the object, except the words of the
//! protocols: the permits of a lock or semaphore, the flag of an event, the state of a barrier, from
//! word 8 on, so that they share no cache line with the counter of clients. A lock has one permit and
//! then, from word 16 on, how many wait at each of its conditions, and from word 80 on those of them
//! who keep vigil and a counter of these. User data, of `Value` and `Array`,
//! begins at byte [`DATA`] of a lock.

use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::Ordering::{Relaxed, Release};

use crate::broker::barrier;
use crate::broker::gate;
use crate::broker::memory::Shared;
use crate::broker::park;
use crate::broker::queue;
use crate::broker::vigil;
use crate::broker::word;
use crate::sys::memfd::Region;

/// The protocols' version: processes of one program share it, so a mismatch is a forgery or a bug.
const MAGIC: u64 = 0x746d_7001_0000_0000;

const KIND: usize = 0;
const CLIENTS: usize = 1;
const SIZE: usize = 2;
const OPTIONS: usize = 3;
const LEDGER: usize = 4;
const CONDITIONS_MADE: usize = 6;
/// Permits of the ledger that were taken without a guard, or forgotten.
const LOOSE: usize = 7;
const FIRST: usize = 8;
const CONDITIONS: usize = 16;

/// Who sleeps until a permit is free, without the broker, see [`super::park`].
pub(crate) const SLEEPER: usize = 5;
/// Who waits for a notification without the broker, see [`super::vigil`].
const VIGILS: Range<usize> = 80..88;
/// How many have done so.
const VIGILS_KEPT: usize = 88;

/// How many conditions a lock can have.
pub(crate) const CONDITIONS_MAX: usize = 64;
/// How many permits have a word of their own; what is beyond goes to the ledger.
pub(crate) const PERMITS_MAX: usize = 1 << 16;
/// Where user data begins in a lock, in bytes; a multiple of every alignment up to it.
pub(crate) const DATA: usize = 1024;

const PAGE: usize = 4096;

/// Whether memory of so many bytes can be an object. Raw arrays have other lengths, so that no bytes are
/// reached without the lock by the one and under it by the other: the length is sealed, so nobody can
/// make the one out of the other.
pub(crate) fn is_length(len: u64) -> bool {
    len.is_multiple_of(PAGE as u64)
}

/// Option: the barrier's generations have an action.
const HAS_ACTION: u64 = 1;

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One permit, conditions, user data; a dead owner leaves a mark.
    Lock,
    /// Permits.
    Semaphore,
    /// Parties that meet.
    Barrier,
    /// A flag.
    Event,
    /// Items, see [`super::queue`].
    Queue,
}

/// What an object is made as.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    /// With so many bytes of user data.
    Lock { data: usize },
    /// With so many permits at the start.
    Semaphore { permits: usize, bounded: bool },
    /// For so many parties.
    Barrier { parties: u32, has_action: bool },
    /// A flag that is down.
    Event,
}

impl Shape {
    fn kind(self) -> Kind {
        match self {
            Self::Lock { .. } => Kind::Lock,
            Self::Semaphore { .. } => Kind::Semaphore,
            Self::Barrier { .. } => Kind::Barrier,
            Self::Event => Kind::Event,
        }
    }

    /// How many words stand for permits. A semaphore has some to spare for permits that are added.
    fn n_words(self) -> usize {
        match self {
            Self::Semaphore {
                permits,
                bounded: true,
            } => permits.min(PERMITS_MAX),
            Self::Semaphore { permits, .. } => permits.saturating_mul(2).clamp(16, PERMITS_MAX),
            _ => 1,
        }
    }

    /// How many bytes the object takes.
    pub(crate) fn len(self) -> Option<NonZeroUsize> {
        let len = match self {
            Self::Lock { data } => DATA.checked_add(data)?,
            Self::Semaphore { .. } => (FIRST + self.n_words()) * 8,
            Self::Barrier { .. } | Self::Event => PAGE,
        };
        NonZeroUsize::new(len.checked_next_multiple_of(PAGE)?)
    }

    /// Writes the object into zeroed memory that nobody else has.
    pub(crate) fn write(self, region: &Region) {
        let put = |at: usize, value: u64| region.word64(at * 8).store(value, Relaxed);
        let n_words = self.n_words();
        match self {
            Self::Lock { .. } => put(SIZE, 1),
            Self::Semaphore { permits, .. } => {
                put(SIZE, n_words as u64);
                put(LEDGER, permits.saturating_sub(n_words) as u64);
                let withheld = FIRST + permits.min(n_words)..FIRST + n_words;
                let Ok(()) = word::withhold(&mut Shared(region), withheld);
            }
            Self::Barrier {
                parties,
                has_action,
            } => {
                put(SIZE, parties.into());
                put(OPTIONS, if has_action { HAS_ACTION } else { 0 });
            }
            Self::Event => (),
        }
        region
            .word64(KIND * 8)
            .store(MAGIC | self.kind() as u64, Release);
    }
}

/// Writes that the memory is a queue, whose words have been written.
pub(crate) fn mark_queue(region: &Region) {
    region
        .word64(KIND * 8)
        .store(MAGIC | Kind::Queue as u64, Release);
}

/// Whether the first page of some memory says that it is a queue.
pub(crate) fn is_queue(page: &Region) -> bool {
    page.word64(KIND * 8).load(Relaxed) == MAGIC | Kind::Queue as u64
}

/// What an object's memory says it is, checked.
pub(crate) fn kind_of(region: &Region) -> io::Result<Kind> {
    let wrong = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "shared memory is no object of ours",
        )
    };
    if region.len() < PAGE {
        return Err(wrong());
    }
    let word = region.word64(KIND * 8).load(Relaxed);
    let kinds = [
        Kind::Lock,
        Kind::Semaphore,
        Kind::Barrier,
        Kind::Event,
        Kind::Queue,
    ];
    let kind = kinds
        .into_iter()
        .find(|kind| word == MAGIC | *kind as u64)
        .ok_or_else(wrong)?;
    let size = size(region);
    let fits = match kind {
        Kind::Lock => size == 1,
        Kind::Semaphore => size <= PERMITS_MAX && (FIRST + size) * 8 <= region.len(),
        Kind::Barrier => size > 0,
        Kind::Event => true,
        Kind::Queue => region.len() == queue::words::NEAR_LEN,
    };
    if fits { Ok(kind) } else { Err(wrong()) }
}

/// The counter of clients: the next one's number is one more. Fails when no numbers are left, as after
/// four billion processes, or when somebody has scribbled over the counter.
pub(crate) fn next_client(region: &Region) -> io::Result<u32> {
    let last = region.word64(CLIENTS * 8).fetch_add(1, Relaxed);
    u32::try_from(last.wrapping_add(1))
        .ok()
        .filter(|id| word::is_process(*id))
        .ok_or_else(|| io::Error::other("a shared object has no numbers left for its users"))
}

/// A new condition of a lock, if it can have one more.
pub(crate) fn next_condition(region: &Region) -> Option<u32> {
    let made = region.word64(CONDITIONS_MADE * 8).fetch_add(1, Relaxed);
    u32::try_from(made)
        .ok()
        .filter(|made| (*made as usize) < CONDITIONS_MAX)
}

/// How many wait at a condition: exact for whoever has the lock.
pub(crate) fn n_waiting(region: &Region, condition: u32) -> u32 {
    // Relaxed: the broker wrote it before it freed the lock, which the caller has taken since.
    region
        .word64((CONDITIONS + condition as usize) * 8)
        .load(Relaxed) as u32
}

/// Number of permit words, or of parties.
#[inline]
pub(crate) fn size(region: &Region) -> usize {
    region.word64(SIZE * 8).load(Relaxed) as usize
}

/// Permits left in the ledger: a snapshot.
pub(crate) fn ledger(region: &Region) -> u64 {
    region.word64(LEDGER * 8).load(Relaxed)
}

/// A permit of the ledger belongs to nobody from now on.
pub(crate) fn lose_ledger(region: &Region) {
    region.word64(LOOSE * 8).fetch_add(1, Relaxed);
}

/// One of those comes back; false if there is none.
pub(crate) fn find_ledger(region: &Region) -> bool {
    let less = |loose: u64| loose.checked_sub(1);
    region
        .word64(LOOSE * 8)
        .fetch_update(Relaxed, Relaxed, less)
        .is_ok()
}

/// Whether a barrier's generations have an action.
pub(crate) fn has_action(region: &Region) -> bool {
    region.word64(OPTIONS * 8).load(Relaxed) & HAS_ACTION != 0
}

/// The words of the permits. All of them lie in the region, also when somebody has scribbled over their
/// number since it was checked.
#[inline]
pub(crate) fn permits(region: &Region) -> Range<usize> {
    let most = (region.len() / 8 - FIRST).min(PERMITS_MAX);
    FIRST..FIRST + size(region).min(most)
}

/// The word of a lock.
pub(crate) const LOCK: usize = FIRST;
/// The word of an event.
pub(crate) const FLAG: usize = FIRST;
/// The words for show of a barrier.
pub(crate) const BARRIER: barrier::Layout = barrier::Layout {
    state: FIRST,
    waiting: FIRST + 1,
};

/// What a sleeper at a lock or a semaphore looks at.
#[inline]
pub(crate) fn park(region: &Region) -> park::Layout {
    park::Layout {
        sleeper: SLEEPER,
        permits: permits(region),
        ledger: LEDGER,
    }
}

/// Who waits for a notification of a lock's conditions.
pub(crate) const VIGIL: vigil::Layout = vigil::Layout {
    vigils: VIGILS,
    kept: VIGILS_KEPT,
    conditions: CONDITIONS,
};

/// How the broker sees a lock or a semaphore.
pub(crate) fn gate(region: &Region, kind: Kind) -> gate::Layout {
    let is_lock = kind == Kind::Lock;
    let conditions = CONDITIONS..CONDITIONS + if is_lock { CONDITIONS_MAX } else { 0 };
    gate::Layout {
        permits: permits(region),
        ledger: LEDGER,
        conditions,
        marks_death: is_lock,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_permits_that_was_scribbled_over_leads_nowhere_else() {
        let shape = Shape::Semaphore {
            permits: 2,
            bounded: false,
        };
        let (region, _) = Region::create(c"mp-object", shape.len().unwrap()).unwrap();
        shape.write(&region);
        assert_eq!(permits(&region).len(), 16);

        region.word64(SIZE * 8).store(u64::MAX, Relaxed);

        assert_eq!(permits(&region).end * 8, region.len());
    }
}
