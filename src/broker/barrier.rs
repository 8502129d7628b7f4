//! Who has arrived at a barrier, and when it breaks: decisions without I/O or clock.
//!
//! A generation fills up until all parties have arrived. Without an action they pass at once. With
//! one, the last to arrive is told to lead: it runs the action while the others, now `passing`, wait
//! on. It reports by another wait, in the same slot under the next turn; then all of them pass, and
//! this one with them: a party that gave up before has broken the barrier for the leader as well.
//! Parties that come meanwhile belong to the next generation.
//!
//! Python's rules of breaking: a party that gives up, dies, or fails in the action breaks the
//! barrier; all who wait and all who come find it broken, until a reset. A reset also sends away
//! whoever waits, with the same answer.
//!
//! Two words of the object are for show, written only here: `state` (bit 0 broken, the rest the
//! number of the generation) and `waiting`. A party asks though it sees the barrier broken: it may have
//! said that it is to be reset.

use crate::broker::memory::{Answer, Answers, Rule, Ticket};

/// Bit of the state word: the barrier is broken.
pub(crate) const BROKEN: u64 = 1;

/// What a party asks for, or what happened to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Request {
    /// It has arrived.
    Arrive(Ticket),
    /// It was told to lead and has run the action. It waits again, by the ticket whose turn is the next.
    Done(Ticket),
    /// It breaks the barrier; also said by a leader whose action failed.
    Abort,
    /// It makes the barrier whole and empty.
    Reset,
    /// It has given up.
    Cancel(Ticket),
    /// Its process is dead.
    Gone { client: u32 },
}

/// Where the words for show are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Layout {
    /// Broken or not, and the generation.
    pub(crate) state: usize,
    /// How many have arrived.
    pub(crate) waiting: usize,
}

/// The broker's side of a barrier.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Barrier {
    layout: Layout,
    parties: usize,
    has_action: bool,
    /// Who has arrived for the coming generation, and for later ones while an action runs.
    arrived: Vec<Ticket>,
    /// A full generation whose leader runs the action, the leader first.
    passing: Vec<Ticket>,
    broken: bool,
    generation: u64,
}

impl Barrier {
    /// A barrier that nobody has come to.
    pub(crate) fn new(layout: Layout, parties: usize, has_action: bool, state: u64) -> Self {
        Self {
            layout,
            parties,
            has_action,
            arrived: Vec::new(),
            passing: Vec::new(),
            broken: state & BROKEN != 0,
            generation: state >> 1,
        }
    }

    /// Everybody who waits here.
    #[cfg(test)]
    pub(crate) fn tickets(&self) -> impl Iterator<Item = &Ticket> {
        self.arrived.iter().chain(&self.passing)
    }

    /// How many have to arrive.
    #[cfg(test)]
    pub(crate) fn parties(&self) -> usize {
        self.parties
    }

    /// Carries out one request.
    pub(crate) fn on<M: Answers>(
        &mut self,
        request: Request,
        memory: &mut M,
    ) -> Result<(), M::Stop> {
        match request {
            Request::Arrive(ticket) if self.broken => {
                memory.answer(ticket, Answer::Broken)?;
                return Ok(());
            }
            Request::Arrive(ticket) => {
                self.arrived.push(ticket);
                self.fill(memory)?;
            }
            Request::Done(ticket) => {
                let turn = ticket.turn.wrapping_sub(1);
                let leader = Ticket { turn, ..ticket };
                match self.passing.first_mut() {
                    Some(first) if *first == leader => *first = ticket,
                    _ => {
                        memory.answer(ticket, Answer::Broken)?;
                        return Ok(());
                    }
                }
                self.pass(memory)?;
            }
            Request::Abort => self.break_up(memory)?,
            Request::Reset => {
                // The flag first: who is sent away may come back at once.
                self.broken = false;
                if !memory.breaks(Rule::BarrierResetReleases) {
                    let waiting = self.take_all();
                    self.show(memory)?;
                    return Self::send_away(waiting, memory);
                }
            }
            Request::Cancel(ticket) => {
                let waits = |list: &[Ticket]| list.contains(&ticket);
                if (waits(&self.arrived) || waits(&self.passing))
                    && !memory.breaks(Rule::BarrierCancelBreaks)
                {
                    self.break_up(memory)?;
                }
            }
            Request::Gone { client } => {
                let is_its = |ticket: &Ticket| ticket.client == client;
                let leads = self.passing.first().is_some_and(is_its);
                let rule = if leads {
                    Rule::BarrierLeaderDeathBreaks
                } else {
                    Rule::BarrierDeathBreaks
                };
                let waits = self.arrived.iter().chain(&self.passing).any(is_its);
                if waits && !memory.breaks(rule) {
                    self.break_up(memory)?;
                }
            }
        }
        self.show(memory)
    }

    /// Lets a generation go on if all its parties are here and the one before is through.
    fn fill<M: Answers>(&mut self, memory: &mut M) -> Result<(), M::Stop> {
        if self.arrived.len() < self.parties || !self.passing.is_empty() {
            return Ok(());
        }
        self.passing = self.arrived.drain(..self.parties).collect();
        // The last to arrive is number 0, as it is the one that may lead.
        self.passing.rotate_right(1);
        if !self.has_action {
            return self.pass(memory);
        }
        // If the one that is told to lead had given up, its cancellation is on its way and will
        // break the barrier.
        memory.answer(self.passing[0], Answer::Lead)?;
        if memory.breaks(Rule::BarrierOneLeader) {
            memory.answer(self.passing[1], Answer::Lead)?;
        }
        Ok(())
    }

    /// Releases a full generation.
    fn pass<M: Answers>(&mut self, memory: &mut M) -> Result<(), M::Stop> {
        self.generation += 1;
        let passing = std::mem::take(&mut self.passing);
        self.show(memory)?;
        for (ticket, index) in passing.into_iter().zip(0..) {
            // A refusal is a party that gave up just now: for the others it has passed.
            memory.answer(ticket, Answer::Passed(index))?;
        }
        self.fill(memory)
    }

    fn break_up<M: Answers>(&mut self, memory: &mut M) -> Result<(), M::Stop> {
        self.broken = true;
        let waiting = self.take_all();
        // The flag first, so that who is told and asks finds it broken.
        self.show(memory)?;
        Self::send_away(waiting, memory)
    }

    fn take_all(&mut self) -> Vec<Ticket> {
        let mut waiting = std::mem::take(&mut self.arrived);
        waiting.append(&mut self.passing);
        waiting
    }

    fn send_away<M: Answers>(waiting: Vec<Ticket>, memory: &mut M) -> Result<(), M::Stop> {
        for ticket in waiting {
            // Refused by a leader, which has its answer, and by who has given up.
            memory.answer(ticket, Answer::Broken)?;
        }
        Ok(())
    }

    fn show<M: Answers>(&self, memory: &mut M) -> Result<(), M::Stop> {
        memory.store(
            self.layout.state,
            self.generation << 1 | u64::from(self.broken),
        )?;
        memory.store(
            self.layout.waiting,
            (self.arrived.len() + self.passing.len()) as u64,
        )
    }
}
