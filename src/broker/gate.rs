//! Who waits for a lock or a semaphore, who is next, who died: decisions without I/O or clock.
//!
//! A [`Gate`] is the broker's side of one object with permit words (see [`super::word`] for their
//! bits and for the clients' side): the queue of those who found no word, the queues of the
//! conditions of a lock, and the ledger of permits that have no word. Requests, deaths and the time
//! go in; the words change and waiters are answered.
//!
//! **One queue, first come first served.** Whoever waits has its ticket in exactly one queue: that of
//! the gate or that of one condition. A notification moves tickets from a condition to the gate, in
//! their order, so nobody is woken only to wait again.
//!
//! **Serving** goes word by word: clear POKED, look, free what was given back, and if the word is
//! free name the first waiter in it, then answer that waiter. In this order, since a release after the
//! clearing pokes again, and one before it has left a free word to be seen. A waiter's slot is the
//! one place where grant and cancellation meet: if it was cancelled, the answer is refused and the
//! word goes to the next.
//!
//! **Time.** [`Gate::deadline`] is set only while somebody waits and newcomers may still barge. When
//! it comes, the words are closed (DUE) and served. So an object has at most one timer, which goes
//! off at most once for each waiter, and none at all when nobody waits or the hand-over is decided.
//!
//! **Death.** A dead client's tickets leave, its words are freed (a lock's with the mark RECOVERED, in
//! the same step, so that no newcomer misses it), its ledger returns, and the queue is served even if
//! it held nothing: it may have freed a word and died before it told.
//!
//! **Notifications are never lost.** A notified waiter that cancels or dies before it has the lock
//! passes its notification to the next one of that condition. One that dies with the lock in hand,
//! before anybody could tell whether it saw it, passes it on as well: waking one too many is allowed.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::Ordering::{AcqRel, Release};
use std::time::Duration;

use crate::broker::memory::{Answer, Answers, Rule, Ticket};
use crate::broker::word::{
    DUE, GIVEN, OWNER, POKED, QUEUE_BITS, QUEUED, RECOVERED, freed, is_free, owner,
};

/// How long newcomers may pass a waiter.
///
/// The figure of parking_lot's eventual fairness: long beside a short critical section, short
/// beside what a person notices.
pub(crate) const PATIENCE: Duration = Duration::from_micros(500);

/// The patience of waiters, which a build that breaks rules can make endless: time mends many a breach.
fn patience() -> Duration {
    #[cfg(mutants)]
    if std::env::var_os("TOKIO_MULTIPROCESS_PATIENT").is_some() {
        return Duration::from_secs(1 << 20);
    }
    PATIENCE
}

/// Where things lie among an object's words.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Layout {
    /// The permit words.
    pub(crate) permits: Range<usize>,
    /// How many permits are left in the ledger, for whoever asks. Only the broker writes it.
    pub(crate) ledger: usize,
    /// One word a condition: how many wait there. Only the broker writes them.
    pub(crate) conditions: Range<usize>,
    /// Whether a dead owner leaves a mark.
    pub(crate) marks_death: bool,
}

/// What a client asks for, or what happened to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Request {
    /// A permit, as none was free.
    Acquire(Ticket),
    /// Look again: a word was freed while somebody queued.
    Poke,
    /// The permit in this word (counted from the first permit) is handed back.
    Release { client: u32, permit: u32 },
    /// A permit of the ledger is handed back.
    ReleaseLedger { client: u32 },
    /// A permit of the ledger belongs to nobody in particular any more.
    ForgetLedger { client: u32 },
    /// A permit comes into the ledger, as it has no word.
    Add,
    /// Release the lock and wait for a notification, in one step.
    Wait { ticket: Ticket, condition: u32 },
    /// Wake so many waiters of a condition.
    Notify { condition: u32, n: u32 },
    /// A waiter has given up.
    Cancel(Ticket),
    /// A client's process is dead: nothing of it moves any more.
    Gone { client: u32 },
    /// Time has passed.
    Time,
}

/// The broker's side of a lock (with its conditions) or a semaphore.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Gate {
    layout: Layout,
    queue: VecDeque<Waiter>,
    conditions: BTreeMap<u32, VecDeque<Ticket>>,
    /// Permits beyond those that have a word, and who holds such ones.
    ledger: u64,
    borrowed: BTreeMap<u32, u64>,
    /// When the words are closed to newcomers.
    due: Option<Duration>,
    /// Who got the lock last by a notification of which condition, as long as it has it.
    woken: Option<(u32, u32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Waiter {
    ticket: Ticket,
    /// The condition whose notification it carries.
    notified: Option<u32>,
}

impl Gate {
    /// The state for an object that nobody waits for.
    pub(crate) fn new(layout: Layout, ledger: u64) -> Self {
        Self {
            layout,
            queue: VecDeque::new(),
            conditions: BTreeMap::new(),
            ledger,
            borrowed: BTreeMap::new(),
            due: None,
            woken: None,
        }
    }

    /// When [`Request::Time`] is wanted; never while nobody waits.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.due
    }

    /// Whether a dead owner leaves a mark.
    #[cfg(test)]
    pub(crate) fn marks_death(&self) -> bool {
        self.layout.marks_death
    }

    /// How many wait for a permit.
    #[cfg(test)]
    pub(crate) fn n_queued(&self) -> usize {
        self.queue.len()
    }

    /// Carries out one request.
    pub(crate) fn on<M: Answers>(
        &mut self,
        request: Request,
        now: Duration,
        memory: &mut M,
    ) -> Result<(), M::Stop> {
        match request {
            Request::Acquire(ticket) => {
                self.enqueue(
                    Waiter {
                        ticket,
                        notified: None,
                    },
                    now,
                    memory,
                )?;
                if memory.breaks(Rule::QueueBeforeLook) {
                    return Ok(());
                }
            }
            Request::Poke => (),
            Request::Release { client, permit } => self.release(client, permit, memory)?,
            Request::ReleaseLedger { client } => self.release_ledger(client, memory)?,
            Request::ForgetLedger { client } => drop(self.unlend(client)),
            Request::Add => self.add(memory)?,
            Request::Wait { ticket, condition } => self.wait(ticket, condition, memory)?,
            Request::Notify { condition, n } => self.notify(condition, n, now, memory)?,
            Request::Cancel(ticket) => self.remove(|other| *other == ticket, now, memory)?,
            Request::Gone { client } => return self.gone(client, now, memory),
            Request::Time => {
                if !memory.breaks(Rule::TimeServes) {
                    self.close(now, memory)?;
                }
            }
        }
        self.serve(now, memory)
    }

    fn enqueue<M: Answers>(
        &mut self,
        waiter: Waiter,
        now: Duration,
        memory: &mut M,
    ) -> Result<(), M::Stop> {
        let first = self.queue.is_empty();
        if memory.breaks(Rule::QueueBeforeLook) {
            self.queue.push_back(waiter);
            self.serve(now, memory)?;
            if !self.queue.is_empty() {
                self.show_queue(memory)?;
                self.due = Some(now + patience());
            }
            return Ok(());
        }
        self.queue.push_back(waiter);
        if first {
            if !memory.breaks(Rule::QueueShows) {
                self.show_queue(memory)?;
            }
            self.due = Some(now + patience());
        }
        Ok(())
    }

    fn show_queue<M: Answers>(&self, memory: &mut M) -> Result<(), M::Stop> {
        for word in self.layout.permits.clone() {
            memory.set_bits(word, QUEUED)?;
        }
        Ok(())
    }

    /// Closes the words to newcomers if the first waiter's patience has ended.
    fn close<M: Answers>(&mut self, now: Duration, memory: &mut M) -> Result<(), M::Stop> {
        if self.due.is_none_or(|due| now < due) {
            return Ok(());
        }
        if !memory.breaks(Rule::TimeCloses) {
            for word in self.layout.permits.clone() {
                memory.set_bits(word, DUE)?;
            }
        }
        // From here on every release comes to the broker, so no more timer is needed.
        self.due = None;
        Ok(())
    }

    /// Gives what is free to whoever is next.
    fn serve<M: Answers>(&mut self, now: Duration, memory: &mut M) -> Result<(), M::Stop> {
        let mut opened = false;
        for word in self.layout.permits.clone() {
            let mut seen = if memory.breaks(Rule::UnpokeBeforeLook) {
                let seen = memory.load(word)?;
                memory.clear_bits(word, POKED)?;
                seen & !POKED
            } else {
                let seen = memory.load(word)?;
                // Clear first, then look: see the module's text.
                if seen & POKED == 0 {
                    seen
                } else {
                    memory.clear_bits(word, POKED)? & !POKED
                }
            };
            if owner(seen) == GIVEN && !memory.breaks(Rule::ServeFreesGiven) {
                // Nobody else touches it. It was given back whether or not we were told.
                seen = memory.clear_bits(word, OWNER)? & !OWNER;
            }
            while is_free(seen) {
                let Some(&waiter) = self.queue.front() else {
                    break;
                };
                let client = u64::from(waiter.ticket.client);
                let permit = (word - self.layout.permits.start) as u32;
                if memory.breaks(Rule::NameBeforeAnswer) {
                    self.queue.pop_front();
                    if memory.answer(waiter.ticket, Answer::Permit(permit))? {
                        memory.store(word, seen | client)?;
                        seen |= client;
                    }
                    continue;
                }
                if let Err(now) = memory.replace(word, seen, seen | client, AcqRel)? {
                    seen = now;
                    continue;
                }
                self.queue.pop_front();
                if memory.answer(waiter.ticket, Answer::Permit(permit))? {
                    self.woken = waiter
                        .notified
                        .map(|condition| (waiter.ticket.client, condition));
                    opened |= self.rearm(now, memory);
                    break;
                }
                self.pass_on(waiter, memory)?;
                if memory.breaks(Rule::RefusedGrantGoesOn) {
                    break;
                }
                // Nobody else touches an owned word but to set POKED, which only its owner does.
                seen = memory.clear_bits(word, OWNER)? & !OWNER;
            }
        }
        self.serve_from_ledger(memory)?;
        self.open(opened, memory)
    }

    /// The next waiter's patience begins. True when newcomers may barge again.
    fn rearm<M: Answers>(&mut self, now: Duration, memory: &M) -> bool {
        if self.queue.is_empty() {
            return false;
        }
        let closed = self.due.is_none();
        if !memory.breaks(Rule::HandOverRearms) {
            self.due = Some(now + patience());
        }
        closed
    }

    fn serve_from_ledger<M: Answers>(&mut self, memory: &mut M) -> Result<(), M::Stop> {
        let before = self.ledger;
        while self.ledger > 0 {
            let Some(waiter) = self.queue.pop_front() else {
                break;
            };
            if memory.answer(waiter.ticket, Answer::Ledger)? {
                self.ledger -= 1;
                *self.borrowed.entry(waiter.ticket.client).or_default() += 1;
            }
        }
        if before != self.ledger {
            self.show_ledger(memory)?;
        }
        Ok(())
    }

    fn show_ledger<M: Answers>(&self, memory: &mut M) -> Result<(), M::Stop> {
        memory.store(self.layout.ledger, self.ledger)
    }

    /// Takes back the flags that are no longer true.
    fn open<M: Answers>(&mut self, opened: bool, memory: &mut M) -> Result<(), M::Stop> {
        let bits = if self.queue.is_empty() && !memory.breaks(Rule::EmptyQueueOpens) {
            self.due = None;
            QUEUE_BITS
        } else if opened {
            DUE
        } else {
            return Ok(());
        };
        for word in self.layout.permits.clone() {
            if memory.load(word)? & bits != 0 {
                memory.clear_bits(word, bits)?;
            }
        }
        Ok(())
    }

    fn release<M: Answers>(
        &mut self,
        client: u32,
        permit: u32,
        memory: &mut M,
    ) -> Result<(), M::Stop> {
        let word = self.layout.permits.start + permit as usize;
        if !self.layout.permits.contains(&word) {
            return Ok(());
        }
        self.free(word, client, 0, memory)?;
        Ok(())
    }

    /// Frees the word if `client` has it. True if it had.
    fn free<M: Answers>(
        &mut self,
        word: usize,
        client: u32,
        mark: u64,
        memory: &mut M,
    ) -> Result<bool, M::Stop> {
        let mut seen = memory.load(word)?;
        while owner(seen) == client {
            match memory.replace(word, seen, freed(seen) | mark, Release)? {
                Ok(_) => {
                    self.woken = None;
                    return Ok(true);
                }
                Err(now) => seen = now,
            }
        }
        Ok(false)
    }

    fn release_ledger<M: Answers>(&mut self, client: u32, memory: &mut M) -> Result<(), M::Stop> {
        if !self.unlend(client) {
            return Ok(());
        }
        self.ledger = self.ledger.saturating_add(1);
        self.show_ledger(memory)
    }

    /// A client has one permit of the ledger less; false if it had none.
    fn unlend(&mut self, client: u32) -> bool {
        let Some(borrowed) = self.borrowed.get_mut(&client) else {
            return false;
        };
        *borrowed -= 1;
        if *borrowed == 0 {
            self.borrowed.remove(&client);
        }
        true
    }

    fn add<M: Answers>(&mut self, memory: &mut M) -> Result<(), M::Stop> {
        // A lock has no ledger.
        if self.layout.marks_death {
            return Ok(());
        }
        self.ledger = self.ledger.saturating_add(1);
        self.show_ledger(memory)
    }

    fn wait<M: Answers>(
        &mut self,
        ticket: Ticket,
        condition: u32,
        memory: &mut M,
    ) -> Result<(), M::Stop> {
        let word = self.layout.permits.start;
        let known = (condition as usize) < self.layout.conditions.len();
        if !known || owner(memory.load(word)?) != ticket.client {
            memory.answer(ticket, Answer::Refused)?;
            return Ok(());
        }
        if memory.breaks(Rule::WaitBeforeRelease) {
            self.free(word, ticket.client, 0, memory)?;
            self.conditions
                .entry(condition)
                .or_default()
                .push_back(ticket);
            return self.show_condition(condition, memory);
        }
        // First into the queue, then free: whoever has the lock next sees the waiter.
        self.conditions
            .entry(condition)
            .or_default()
            .push_back(ticket);
        self.show_condition(condition, memory)?;
        self.free(word, ticket.client, 0, memory)?;
        Ok(())
    }

    fn show_condition<M: Answers>(&self, condition: u32, memory: &mut M) -> Result<(), M::Stop> {
        let n_waiting = self.conditions.get(&condition).map_or(0, VecDeque::len);
        memory.store(
            self.layout.conditions.start + condition as usize,
            n_waiting as u64,
        )
    }

    fn notify<M: Answers>(
        &mut self,
        condition: u32,
        n: u32,
        now: Duration,
        memory: &mut M,
    ) -> Result<(), M::Stop> {
        let Some(waiting) = self.conditions.get_mut(&condition) else {
            return Ok(());
        };
        let n = waiting.len().min(n as usize);
        let woken: Vec<Ticket> = waiting.drain(..n).collect();
        if waiting.is_empty() {
            self.conditions.remove(&condition);
        }
        if woken.is_empty() {
            return Ok(());
        }
        self.show_condition(condition, memory)?;
        for ticket in woken {
            self.enqueue(
                Waiter {
                    ticket,
                    notified: Some(condition),
                },
                now,
                memory,
            )?;
        }
        Ok(())
    }

    /// Takes tickets out of all queues; the notifications that they carried go on.
    fn remove<M: Answers>(
        &mut self,
        gone: impl Fn(&Ticket) -> bool,
        now: Duration,
        memory: &mut M,
    ) -> Result<(), M::Stop> {
        let conditions: Vec<u32> = self.conditions.keys().copied().collect();
        for condition in conditions {
            let Some(waiting) = self.conditions.get_mut(&condition) else {
                continue;
            };
            let before = waiting.len();
            waiting.retain(|ticket| !gone(ticket));
            let after = waiting.len();
            if after == 0 {
                self.conditions.remove(&condition);
            }
            if before != after {
                self.show_condition(condition, memory)?;
            }
        }
        let (left, stay) = self.queue.iter().partition(|waiter| gone(&waiter.ticket));
        self.queue = stay;
        let left: VecDeque<Waiter> = left;
        for condition in left.iter().filter_map(|waiter| waiter.notified) {
            if !memory.breaks(Rule::GonePassesOn) {
                self.notify(condition, 1, now, memory)?;
            }
        }
        Ok(())
    }

    fn pass_on<M: Answers>(&mut self, waiter: Waiter, memory: &mut M) -> Result<(), M::Stop> {
        let Some(condition) = waiter.notified else {
            return Ok(());
        };
        if memory.breaks(Rule::GonePassesOn) {
            return Ok(());
        }
        let Some(waiting) = self.conditions.get_mut(&condition) else {
            return Ok(());
        };
        let next = waiting.pop_front();
        if waiting.is_empty() {
            self.conditions.remove(&condition);
        }
        if let Some(ticket) = next {
            // To the front: it takes the place of the one that is gone. The words say QUEUED.
            self.queue.push_front(Waiter {
                ticket,
                notified: Some(condition),
            });
        }
        self.show_condition(condition, memory)
    }

    fn gone<M: Answers>(
        &mut self,
        client: u32,
        now: Duration,
        memory: &mut M,
    ) -> Result<(), M::Stop> {
        if !memory.breaks(Rule::DeathUnlinks) {
            self.remove(|ticket| ticket.client == client, now, memory)?;
        }
        let woken = self.woken.filter(|(woken, _)| *woken == client);
        let mark = if self.layout.marks_death {
            RECOVERED
        } else {
            0
        };
        let mut held = false;
        for word in self.layout.permits.clone() {
            if memory.breaks(Rule::DeathFrees) {
                break;
            }
            if memory.breaks(Rule::DeathMarksAtOnce) {
                if self.free(word, client, 0, memory)? {
                    held = true;
                    memory.set_bits(word, mark)?;
                }
                continue;
            }
            held |= self.free(word, client, mark, memory)?;
        }
        if let (true, Some((_, condition))) = (held, woken)
            && !memory.breaks(Rule::WokenPassesOn)
        {
            self.notify(condition, 1, now, memory)?;
        }
        if let Some(borrowed) = self.borrowed.remove(&client)
            && !memory.breaks(Rule::DeathReturnsLedger)
        {
            self.ledger = self.ledger.saturating_add(borrowed);
            self.show_ledger(memory)?;
        }
        if held || !memory.breaks(Rule::DeathServes) {
            self.serve(now, memory)?;
        }
        Ok(())
    }
}
