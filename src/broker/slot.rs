//! One wait's place in its process' mailbox: the single point where an answer and a cancellation meet.
//!
//! A mailbox is memory that one client process shares with the broker. A waiter takes a slot of it,
//! makes it WAITING under a new turn, and sends its request with slot and turn. The broker answers
//! by one exchange from (turn, WAITING) to (turn, ANSWERED); the waiter cancels by one exchange from
//! (turn, WAITING) to (turn, IDLE). Whichever comes first decides, and the other sees that it came
//! too late: an answer that was refused goes to somebody else, a cancellation that finds an answer
//! gives back what it brought. An old request can do nothing to a later wait on the same slot, since
//! the turns differ; so a slot is free again at once, and a cancellation whose message was never
//! sent (or came late) harms nobody.
//!
//! ```text
//! 63..32 turn    31..8 value    7..4 kind of the answer    3..0 IDLE | WAITING | ASLEEP | ANSWERED
//! ```
//! ASLEEP is WAITING by a thread that sleeps on the word itself (a futex) instead of the bell.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};

use crate::broker::memory::Answer;

const IDLE: u64 = 0;
const WAITING: u64 = 1;
const ASLEEP: u64 = 2;
const ANSWERED: u64 = 3;
const STATE: u64 = 0xf;

/// How a waiter learns of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Wake {
    /// The process' bell rings.
    Bell,
    /// The thread sleeps on the slot's lower half.
    Futex,
}

/// Makes the slot wait under `turn`.
pub(crate) fn begin(slot: &AtomicU64, turn: u32, wake: Wake) {
    let state = if wake == Wake::Futex { ASLEEP } else { WAITING };
    // Release: pairs with the broker's acquire in `answer`, though what it needs travels with the
    // request.
    slot.store(u64::from(turn) << 32 | state, Release);
}

/// The answer, if it has come.
pub(crate) fn answer_of(slot: &AtomicU64) -> Option<Answer> {
    // Acquire: pairs with `answer`, so that what the broker wrote before is seen.
    let seen = slot.load(Acquire);
    (seen & STATE == ANSWERED).then(|| decode(seen as u32))
}

/// What a sleeping thread expects to find in the slot's lower half.
pub(crate) fn asleep() -> u32 {
    ASLEEP as u32
}

/// Makes a sleeping thread look again once it is woken, and one that is about to sleep stay awake.
pub(crate) fn rouse(slot: &AtomicU64) {
    let seen = slot.load(Acquire);
    if seen & STATE == ASLEEP {
        // A failure means that the answer has come, which wakes the thread as well.
        let _ = slot.compare_exchange(seen, seen ^ ASLEEP ^ WAITING, AcqRel, Acquire);
    }
}

/// Ends the wait: its answer if it came, else none will come any more.
pub(crate) fn end(slot: &AtomicU64) -> Option<Answer> {
    let mut seen = slot.load(Acquire);
    loop {
        let idle = seen & !u64::from(u32::MAX) | IDLE;
        match slot.compare_exchange(seen, idle, AcqRel, Acquire) {
            Ok(_) => return (seen & STATE == ANSWERED).then(|| decode(seen as u32)),
            Err(now) => seen = now,
        }
    }
}

/// The broker's answer; tells how to wake the waiter, or nothing if it had given up.
pub(crate) fn answer(slot: &AtomicU64, turn: u32, answer: Answer) -> Option<Wake> {
    let turn = u64::from(turn) << 32;
    let answered = turn | u64::from(encode(answer)) | ANSWERED;
    for (state, wake) in [(WAITING, Wake::Bell), (ASLEEP, Wake::Futex)] {
        // AcqRel: pairs with `answer_of` and `end`.
        if slot
            .compare_exchange(turn | state, answered, AcqRel, Acquire)
            .is_ok()
        {
            return Some(wake);
        }
    }
    None
}

/// What a wait that is given up has to put right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Undo {
    /// No answer came, and none will: the broker may forget the ticket.
    Forget,
    /// The permit in this word came: it is given back.
    Give(u32),
    /// A permit of the ledger came: it is given back.
    GiveLedger,
    /// The lock came with a notification, which is passed on before the lock is given back.
    PassOnAndGive(u32),
    /// The barrier wants this party to lead: it breaks instead.
    BreakUp,
    /// Nothing.
    Nothing,
}

/// Decides how a wait is given up that [`end`] ended with `answer`; `notified` if it was one for a
/// condition's notification.
pub(crate) fn undo(answer: Option<Answer>, notified: bool) -> Undo {
    match answer {
        None => Undo::Forget,
        Some(Answer::Permit(word)) if notified => Undo::PassOnAndGive(word),
        Some(Answer::Permit(word)) => Undo::Give(word),
        Some(Answer::Ledger) => Undo::GiveLedger,
        Some(Answer::Lead) => Undo::BreakUp,
        Some(Answer::Passed(_) | Answer::Broken | Answer::Refused) => Undo::Nothing,
    }
}

fn encode(answer: Answer) -> u32 {
    match answer {
        Answer::Permit(index) => index << 8,
        Answer::Ledger => 1 << 4,
        Answer::Passed(index) => index << 8 | 2 << 4,
        Answer::Lead => 3 << 4,
        Answer::Broken => 4 << 4,
        Answer::Refused => 5 << 4,
    }
}

fn decode(bits: u32) -> Answer {
    match bits >> 4 & 0xf {
        0 => Answer::Permit(bits >> 8),
        1 => Answer::Ledger,
        2 => Answer::Passed(bits >> 8),
        3 => Answer::Lead,
        4 => Answer::Broken,
        _ => Answer::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_crosses_over_as_it_was() {
        let answers = [
            Answer::Permit(0),
            Answer::Permit(1023),
            Answer::Ledger,
            Answer::Passed(15),
            Answer::Lead,
            Answer::Broken,
            Answer::Refused,
        ];
        for given in answers {
            let slot = AtomicU64::new(0);
            begin(&slot, 7, Wake::Bell);

            assert_eq!(answer(&slot, 7, given), Some(Wake::Bell));

            assert_eq!((answer_of(&slot), end(&slot)), (Some(given), Some(given)));
        }
    }

    #[test]
    fn an_answer_to_an_earlier_wait_is_refused() {
        let slot = AtomicU64::new(0);
        begin(&slot, 7, Wake::Bell);
        assert_eq!(end(&slot), None);
        begin(&slot, 8, Wake::Futex);

        assert_eq!(answer(&slot, 7, Answer::Ledger), None);

        assert_eq!(answer(&slot, 8, Answer::Ledger), Some(Wake::Futex));
    }
}
