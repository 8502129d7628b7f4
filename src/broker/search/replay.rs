//! One step of a protocol: the real function, run again with what its earlier steps found.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::broker::memory::{Answer, Answers, Memory, Rule, Ticket};
use crate::broker::slot;
use crate::broker::turn::{Steps, Stopped, Turn};
use crate::broker::word::{self, DUE, OWNER, RECOVERED};

use super::PERMITS;

/// The words and slots while one step is taken.
pub(super) struct Replay<'a> {
    pub(super) words: &'a mut [u64],
    pub(super) slots: &'a mut [u64],
    /// Who moves: a client's number, or nothing for the broker.
    pub(super) client: Option<u32>,
    /// A dead client's words are being freed.
    pub(super) sweeps: bool,
    /// A word that is given back is as it was taken: nobody has seen the mark.
    pub(super) unseen: bool,
    pub(super) died_with_lock: &'a mut bool,
    pub(super) marks_death: bool,
    pub(super) turn: Turn,
    pub(super) broken: Option<Rule>,
    pub(super) fault: &'a mut Option<String>,
}

impl Replay<'_> {
    fn fail(&mut self, what: &str) {
        self.fault.get_or_insert_with(|| what.to_owned());
    }
}

impl Steps for Replay<'_> {
    fn turn(&mut self) -> &mut Turn {
        &mut self.turn
    }

    fn read(&self, word: usize) -> u64 {
        self.words[word]
    }

    /// Writes a word and watches who owns it.
    fn write(&mut self, word: usize, next: u64) {
        let before = std::mem::replace(&mut self.words[word], next);
        if word < PERMITS {
            return;
        }
        let (old, new) = (word::owner(before), word::owner(next));
        if old == 0 && new != 0 {
            if self.client.is_some() && before & DUE != 0 {
                self.fail("a newcomer took a word that is promised");
            }
            let marked = before & RECOVERED != 0;
            if self.marks_death && marked != *self.died_with_lock {
                self.fail("the mark of a dead owner is wrong");
            }
        }
        if old != 0 && new != old && !self.unseen {
            *self.died_with_lock = self.sweeps;
        }
    }
}

impl Memory for Replay<'_> {
    type Stop = Stopped;

    fn load(&mut self, word: usize) -> Result<u64, Stopped> {
        self.step(|this| this.words[word])
    }

    fn replace(
        &mut self,
        word: usize,
        old: u64,
        new: u64,
        _: Ordering,
    ) -> Result<Result<u64, u64>, Stopped> {
        self.exchange(word, old, new)
    }

    fn set_bits(&mut self, word: usize, bits: u64) -> Result<u64, Stopped> {
        self.step(|this| {
            let seen = this.words[word];
            this.write(word, seen | bits);
            seen
        })
    }

    fn clear_bits(&mut self, word: usize, bits: u64) -> Result<u64, Stopped> {
        self.step(|this| {
            let seen = this.words[word];
            let next = seen & !bits;
            // The broker takes back a grant, or what is given back: the mark stays as it was.
            if bits == OWNER {
                this.words[word] = next;
            } else {
                this.write(word, next);
            }
            seen
        })
    }

    fn store(&mut self, word: usize, value: u64) -> Result<(), Stopped> {
        self.step(|this| {
            this.write(word, value);
            0
        })
        .map(drop)
    }

    fn breaks(&self, rule: Rule) -> bool {
        self.broken == Some(rule)
    }
}

impl Answers for Replay<'_> {
    fn answer(&mut self, ticket: Ticket, answer: Answer) -> Result<bool, Stopped> {
        let taken = self.step(|this| {
            let slot = AtomicU64::new(this.slots[ticket.slot as usize]);
            let taken = slot::answer(&slot, ticket.turn, answer).is_some();
            this.slots[ticket.slot as usize] = slot.into_inner();
            u64::from(taken)
        })?;
        Ok(taken != 0)
    }
}
