//! The steps that the protocols are made of: single atomic operations on an object's shared words.
//!
//! Every protocol of the broker and of its clients is written once, over [`Memory`]. In a program
//! the trait is a handful of atomic instructions on a mapping and nothing can stop it
//! (`Stop = Infallible`, so that each `?` compiles to nothing). In the exhaustive search it is a
//! model that carries out one step and then stops, so that another process can take its step
//! between any two.

use std::convert::Infallible;
use std::sync::atomic::Ordering::{self, AcqRel, Relaxed, Release, SeqCst};

use crate::sys::memfd::Region;

/// Atomic operations on the 64-bit words of one object, each of them one step.
pub(crate) trait Memory {
    /// Why a step was not taken.
    type Stop;

    /// Reads the word (sequentially consistent, which costs no more than acquire where it matters).
    fn load(&mut self, word: usize) -> Result<u64, Self::Stop>;

    /// Replaces `old` by `new`, or tells what stood there instead.
    fn replace(
        &mut self,
        word: usize,
        old: u64,
        new: u64,
        order: Ordering,
    ) -> Result<Result<u64, u64>, Self::Stop>;

    /// Sets bits and tells what stood there before (acquire and release).
    fn set_bits(&mut self, word: usize, bits: u64) -> Result<u64, Self::Stop>;

    /// Clears bits and tells what stood there before (acquire and release).
    fn clear_bits(&mut self, word: usize, bits: u64) -> Result<u64, Self::Stop>;

    /// Writes the word (release).
    fn store(&mut self, word: usize, value: u64) -> Result<(), Self::Stop>;

    /// Writes the word before anything that is looked at afterwards: for whoever makes something
    /// possible and then looks whether somebody waits for it. A processor may carry out loads that
    /// follow a plain store first.
    #[inline]
    fn store_first(&mut self, word: usize, value: u64) -> Result<(), Self::Stop> {
        self.store(word, value)
    }

    /// What this process saw last in a word that only grows, so that it need not be fetched from
    /// another processor's cache as long as the old value says enough. Nothing: look.
    #[inline]
    fn recall(&mut self, word: usize) -> Result<Option<u64>, Self::Stop> {
        let _ = word;
        Ok(None)
    }

    /// For [`recall`](Self::recall).
    #[inline]
    fn remember(&mut self, word: usize, value: u64) {
        let _ = (word, value);
    }

    /// Goes round until a round finds something, at most so many times. Nothing that an earlier round
    /// saw may matter to a later one: the search forgets it.
    #[inline]
    fn rounds<R>(
        &mut self,
        n_max: u32,
        mut round: impl FnMut(&mut Self) -> Result<Option<R>, Self::Stop>,
    ) -> Result<Option<R>, Self::Stop> {
        for _ in 0..n_max {
            if let Some(found) = round(self)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Whether `rule` is broken on purpose, to see that the tests notice.
    fn breaks(&self, rule: Rule) -> bool {
        let _ = rule;
        false
    }
}

/// What the broker needs beside the words: the commit point of each wait.
pub(crate) trait Answers: Memory {
    /// Answers a waiter. False when it had given up before: then it was not told anything.
    fn answer(&mut self, ticket: Ticket, answer: Answer) -> Result<bool, Self::Stop>;
}

/// One wait of one client of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ticket {
    /// The waiting process' number at this object.
    pub(crate) client: u32,
    /// Where in that process' mailbox the answer goes.
    pub(crate) slot: u32,
    /// Which wait on that slot this is; an older one has been given up.
    pub(crate) turn: u32,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Answer {
    /// The permit word with this index names the waiter.
    Permit(u32),
    /// A permit of the ledger, which no word stands for.
    Ledger,
    /// The barrier let the waiter pass, as number so-and-so of its generation.
    Passed(u32),
    /// The waiter is the last party to arrive: it runs the action and reports.
    Lead,
    /// The barrier is broken.
    Broken,
    /// The request made no sense, such as a wait on a condition by one without the lock.
    Refused,
}

/// The words of a real object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shared<'a>(pub(crate) &'a Region);

impl Memory for Shared<'_> {
    type Stop = Infallible;

    #[inline]
    fn load(&mut self, word: usize) -> Result<u64, Infallible> {
        Ok(self.0.word64(word * 8).load(SeqCst))
    }

    #[inline]
    fn replace(
        &mut self,
        word: usize,
        old: u64,
        new: u64,
        order: Ordering,
    ) -> Result<Result<u64, u64>, Infallible> {
        // Relaxed: a failure tells nothing but that the caller has to look again.
        Ok(self
            .0
            .word64(word * 8)
            .compare_exchange(old, new, order, Relaxed))
    }

    #[inline]
    fn set_bits(&mut self, word: usize, bits: u64) -> Result<u64, Infallible> {
        Ok(self.0.word64(word * 8).fetch_or(bits, AcqRel))
    }

    #[inline]
    fn clear_bits(&mut self, word: usize, bits: u64) -> Result<u64, Infallible> {
        Ok(self.0.word64(word * 8).fetch_and(!bits, AcqRel))
    }

    #[inline]
    fn store(&mut self, word: usize, value: u64) -> Result<(), Infallible> {
        self.0.word64(word * 8).store(value, Release);
        Ok(())
    }

    #[cfg(mutants)]
    fn breaks(&self, rule: Rule) -> bool {
        Rule::broken() == Some(rule)
    }
}

#[cfg(mutants)]
impl Rule {
    const ALL: [Self; 62] = [
        Self::TakeRespectsDue,
        Self::GiveRespectsDue,
        Self::GivePokes,
        Self::AddClaims,
        Self::ServeFreesGiven,
        Self::UnseenKeepsMark,
        Self::GiveIsOneStep,
        Self::TakeIsOneStep,
        Self::CancelGivesBack,
        Self::CancelPassesOn,
        Self::QueueShows,
        Self::QueueBeforeLook,
        Self::UnpokeBeforeLook,
        Self::NameBeforeAnswer,
        Self::RefusedGrantGoesOn,
        Self::DeathFrees,
        Self::DeathUnlinks,
        Self::DeathServes,
        Self::DeathMarksAtOnce,
        Self::DeathReturnsLedger,
        Self::TimeServes,
        Self::TimeCloses,
        Self::HandOverRearms,
        Self::EmptyQueueOpens,
        Self::WaitBeforeRelease,
        Self::GonePassesOn,
        Self::WokenPassesOn,
        Self::BarrierCancelBreaks,
        Self::BarrierDeathBreaks,
        Self::BarrierLeaderDeathBreaks,
        Self::BarrierOneLeader,
        Self::BarrierResetReleases,
        Self::ParkLooksAgain,
        Self::GiveWakesSleeper,
        Self::VigilSleepIsOneStep,
        Self::VigilPassesOn,
        Self::VigilDeathPassesOn,
        Self::EventSetRings,
        Self::EventSetBeforeRing,
        Self::EventLooksAgain,
        Self::EventSleeperShows,
        Self::EventDeathRings,
        Self::QueueMarksBeforeTail,
        Self::QueueTakeIsOneStep,
        Self::QueueLinkIsOneStep,
        Self::QueueReusesPassedSlots,
        Self::QueueLimitIsExact,
        Self::QueueFullMovesHead,
        Self::QueueWakesAfterLink,
        Self::QueueWaiterLooksAgain,
        Self::QueueLookBeginsTurn,
        Self::QueueRingsBeforeNote,
        Self::QueueWokenPassesOn,
        Self::QueueReturnIsCounted,
        Self::QueueOwesBeforeLeaving,
        Self::QueueDeathReturns,
        Self::QueueDeathFrees,
        Self::QueueDeathServes,
        Self::QueuePatrols,
        Self::QueueAnnounces,
        Self::QueueWaiterAnnounces,
        Self::QueueActingCounts,
    ];

    /// The rule that this build breaks, by the environment.
    fn broken() -> Option<Self> {
        use std::sync::OnceLock;
        static BROKEN: OnceLock<Option<Rule>> = OnceLock::new();
        *BROKEN.get_or_init(|| {
            let name = std::env::var("TOKIO_MULTIPROCESS_BREAKS").ok()?;
            Self::ALL
                .into_iter()
                .find(|rule| format!("{rule:?}") == name)
        })
    }
}

/// The rules that the protocols stand on. The tests break each of them and must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Rule {
    /// A newcomer leaves a word alone whose hand-over is due.
    TakeRespectsDue,
    /// A holder does not free a word whose hand-over is due, but asks the broker to.
    GiveRespectsDue,
    /// Who frees a word that somebody queues for tells the broker.
    GivePokes,
    /// What belongs to nobody is claimed by whoever gives it back, also when only the broker may free it.
    AddClaims,
    /// The broker frees what was given back like this whenever it serves.
    ServeFreesGiven,
    /// The mark of a dead owner stays until it can have been seen.
    UnseenKeepsMark,
    /// A word is freed together with the look at its flags, in one step.
    GiveIsOneStep,
    /// A free word is taken by a compare-and-swap.
    TakeIsOneStep,
    /// A cancelled wait that was answered all the same gives back what it got.
    CancelGivesBack,
    /// A cancelled wait that was woken by a notification passes it on.
    CancelPassesOn,
    /// Somebody who queues makes the words say so.
    QueueShows,
    /// The broker first shows the queue, then looks whether a word is free.
    QueueBeforeLook,
    /// The broker clears the poke first, then looks whether the word is free.
    UnpokeBeforeLook,
    /// The word names its new owner before the owner is told.
    NameBeforeAnswer,
    /// A permit meant for a waiter that had given up goes to the next.
    RefusedGrantGoesOn,
    /// A dead owner's words are freed.
    DeathFrees,
    /// A dead waiter leaves the queue.
    DeathUnlinks,
    /// Every death serves the queue, also of one who held nothing.
    DeathServes,
    /// A lock's word is freed and marked as recovered in one step.
    DeathMarksAtOnce,
    /// A dead process' permits of the ledger return to it.
    DeathReturnsLedger,
    /// Time serves a queue whose releaser was stopped before it told.
    TimeServes,
    /// Time closes the words to newcomers.
    TimeCloses,
    /// A hand-over starts the next waiter's time.
    HandOverRearms,
    /// Words without a queue are open to all.
    EmptyQueueOpens,
    /// A waiter stands in the condition's queue before the lock is free.
    WaitBeforeRelease,
    /// A notified waiter that is gone before it got the lock passes the notification on.
    GonePassesOn,
    /// A notified waiter that died with the lock before anybody could see passes it on.
    WokenPassesOn,
    /// A party that gives up breaks the barrier.
    BarrierCancelBreaks,
    /// A party that dies breaks the barrier.
    BarrierDeathBreaks,
    /// A party that dies while it runs the action breaks the barrier.
    BarrierLeaderDeathBreaks,
    /// Only one party a generation runs the action.
    BarrierOneLeader,
    /// A reset releases whoever waits.
    BarrierResetReleases,
    /// Who parks looks again for a permit.
    ParkLooksAgain,
    /// Who frees a permit wakes the sleeper.
    GiveWakesSleeper,
    /// A waiter falls asleep by an exchange, which fails if it has been notified.
    VigilSleepIsOneStep,
    /// A notified waiter that gives up passes the notification on.
    VigilPassesOn,
    /// A notified waiter that dies passes the notification on.
    VigilDeathPassesOn,
    /// A set that may have sleepers rings.
    EventSetRings,
    /// The flag is up before the bell rings.
    EventSetBeforeRing,
    /// A waiter says that it sleeps and looks again.
    EventLooksAgain,
    /// A waiter says that it sleeps at all.
    EventSleeperShows,
    /// Every death rings.
    EventDeathRings,
    /// A slot is marked as full before the tail moves on from it.
    QueueMarksBeforeTail,
    /// An item is taken, and its taker named, by one exchange.
    QueueTakeIsOneStep,
    /// An item is linked by one exchange.
    QueueLinkIsOneStep,
    /// A slot is used again only when the head has passed it.
    QueueReusesPassedSlots,
    /// There are never more items than the limit says.
    QueueLimitIsExact,
    /// A producer that finds no room first completes what a consumer left half done.
    QueueFullMovesHead,
    /// A producer looks for sleepers when its item can be seen.
    QueueWakesAfterLink,
    /// A waiter says that it waits and looks again.
    QueueWaiterLooksAgain,
    /// A look that finds nothing begins another turn of the wait.
    QueueLookBeginsTurn,
    /// A waker rings before it notes that it has.
    QueueRingsBeforeNote,
    /// A woken waiter that gives up wakes another one.
    QueueWokenPassesOn,
    /// Who puts an item back has the others look for it.
    QueueReturnIsCounted,
    /// What was got is owed before the slot is left.
    QueueOwesBeforeLeaving,
    /// What a dead process was reading goes back.
    QueueDeathReturns,
    /// What a dead process was writing is freed.
    QueueDeathFrees,
    /// Every death wakes whoever there is something for.
    QueueDeathServes,
    /// A stopped sleeper that was woken is passed over.
    QueuePatrols,
    /// Who makes something possible that somebody waits for first asks for a patrol.
    QueueAnnounces,
    /// Who begins to wait asks for a patrol.
    QueueWaiterAnnounces,
    /// Patrols go on until whoever asked for them has told.
    QueueActingCounts,
}
