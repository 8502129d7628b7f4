//! Every order of steps: an exhaustive search through the protocols.
//!
//! A [`World`] holds the words of one object, the slots, the messages under way, the broker's state
//! and a few clients, each with a short program. A step is one atomic operation of one client or of
//! the broker in the middle of a request, or one message sent or taken. The search takes every step
//! that is possible in every state once, and beside them, within a budget, a *kill*, a *stop* (the
//! process is frozen for good and not dead) or a *cancellation* of any client at any point, and the
//! passing of a waiter's patience. Functions of the protocols are the real ones: a step is taken by
//! running the function again with the results of its earlier steps and stopping after the next.
//!
//! What must hold:
//! - no two live processes have the same permit, and who has one is named in its word;
//! - a word that is promised to a waiter is taken by nobody else;
//! - a lock's new owner sees the mark if and only if the last one died with it;
//! - when nothing can move but time, nobody waits while a permit is free; when a process is stopped,
//!   the same holds once time has passed;
//! - a notification reaches somebody who waited when it was sent, if any of them still does;
//! - when all programs have ended, every permit is there and the words are open;
//! - a generation of a barrier that is complete passes, with distinct numbers and one leader, and
//!   nobody waits at one that can no longer be completed;
//! - nobody sleeps at an event that is up or was raised since.
//!
//! A debug build searches a part; `cargo test --release broker` searches everything, some seven million
//! states in half a minute.
//!
//! Each [`Rule`] that the protocols stand on has a test here that breaks it and sees the search fail.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::barrier::{self, Barrier};
use super::flag;
use super::gate::{self, Gate};
use super::memory::{Answer, Answers, Memory, Rule, Ticket};
use super::slot::{self, Undo, Wake};
use super::word::{self, DUE, NOBODY, QUEUE_BITS, RECOVERED, Tell};

const LEDGER: usize = 0;
const CONDITION: usize = 1;
const STATE: usize = 2;
const WAITING: usize = 3;
const FLAG: usize = 4;
const PERMITS: usize = 5;

/// One line of a client's program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Op {
    /// Take a permit, waiting for it.
    Take,
    /// Give the permit back.
    Give,
    /// Make the permit belong to nobody.
    Forget,
    /// Give back a permit that belongs to nobody.
    Add,
    /// Wait for a notification.
    Wait,
    /// Notify so many waiters.
    Notify(u32),
    /// Arrive at the barrier.
    Arrive,
    /// Make the barrier whole.
    Reset,
    /// Raise the flag.
    Set,
    /// Lower it.
    Clear,
    /// Wait for the flag.
    Await,
}

/// What a client is about to do in its present line.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// The line's function, which may be many steps.
    Line,
    /// Send these, one a step, then go on.
    Send(VecDeque<Message>, Then),
    /// Wait for the answer.
    Wait,
    /// Give this word back, then the program is over.
    GiveUp(usize),
    /// Sleep at the bell, in a wait that began at so many raises.
    Sleep(u64),
    /// Run the action of the barrier.
    Lead,
    /// The program is over.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Then {
    Next,
    Wait,
    End,
    GiveUp(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Message {
    Gate(gate::Request),
    Barrier(barrier::Request),
    /// The setter of an event rings the bell: it reaches all sleepers at once, without the broker.
    Ring,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Life {
    Runs,
    Stopped,
    Dead,
    /// Dead, and the broker knows.
    Swept,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Client {
    program: &'static [Op],
    line: usize,
    phase: Phase,
    /// Results of the steps of the present function.
    log: Vec<u64>,
    life: Life,
    /// The permit's word that it believes to have; `LEDGER` for one of the ledger.
    holds: Option<usize>,
    turn: u32,
    inbox: VecDeque<Message>,
    /// The bell has rung since it last looked.
    bell: bool,
    /// The permit's word that it is giving back.
    gives: Option<usize>,
    /// What the barrier said, for each arrival.
    passed: Vec<Answer>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Machine {
    Gate(Gate),
    Barrier(Barrier),
    Event,
}

/// A notification that was sent: how many have to wake, out of whom (client and turn).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Owed {
    n: u32,
    among: Vec<(usize, u32)>,
    /// The client whose message is not under way yet.
    unsent: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    words: Vec<u64>,
    slots: Vec<u64>,
    clients: Vec<Client>,
    machine: Machine,
    /// The request that the broker is in the middle of, and the results of its steps.
    pending: Option<(Message, Vec<u64>)>,
    now: Duration,
    kills: u32,
    stops: u32,
    cancels: u32,
    /// Permits of the ledger, lent or not.
    ledger: u64,
    /// The lock's last owner died with it.
    died_with_lock: bool,
    owed: Vec<Owed>,
}

/// What can happen next.
#[derive(Clone, Copy, Debug)]
enum Event {
    Step(usize),
    Broker,
    Receive(usize),
    Sweep(usize),
    Time,
    Kill(usize),
    Stop(usize),
    Cancel(usize),
}

/// The words and slots while one step is taken.
struct Replay<'a> {
    words: &'a mut [u64],
    slots: &'a mut [u64],
    /// Who moves: a client's number, or nothing for the broker.
    client: Option<u32>,
    /// A dead client's words are being freed.
    sweeps: bool,
    died_with_lock: &'a mut bool,
    marks_death: bool,
    log: &'a mut Vec<u64>,
    at: usize,
    fresh: bool,
    broken: Option<Rule>,
    fault: &'a mut Option<String>,
}

/// The next step belongs to a later turn.
struct Stopped;

impl Replay<'_> {
    fn step(&mut self, act: impl FnOnce(&mut Self) -> u64) -> Result<u64, Stopped> {
        if let Some(&known) = self.log.get(self.at) {
            self.at += 1;
            return Ok(known);
        }
        if self.fresh {
            return Err(Stopped);
        }
        self.fresh = true;
        let result = act(self);
        self.log.push(result);
        self.at += 1;
        Ok(result)
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
        if old != 0 && new != old {
            *self.died_with_lock = self.sweeps;
        }
    }

    fn fail(&mut self, what: &str) {
        self.fault.get_or_insert_with(|| what.to_owned());
    }
}

/// A failed exchange is recorded as a success of nothing: the two are told apart by this bit, which
/// no word uses.
const FAILED: u64 = 1 << 40;

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
        let result = self.step(|this| {
            let seen = this.words[word];
            if seen != old {
                return seen | FAILED;
            }
            this.write(word, new);
            seen
        })?;
        Ok(if result & FAILED == 0 {
            Ok(result)
        } else {
            Err(result & !FAILED)
        })
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
            // The broker takes back a grant: the mark stays as it was.
            if bits == u64::from(u32::MAX) {
                this.words[word] = next;
                *this.died_with_lock = next & RECOVERED != 0;
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

impl World {
    fn new(machine: Machine, n_permits: usize, programs: &[&'static [Op]]) -> Self {
        let client = |program: &&'static [Op]| Client {
            program,
            line: 0,
            phase: Phase::Line,
            log: Vec::new(),
            life: Life::Runs,
            holds: None,
            turn: 0,
            inbox: VecDeque::new(),
            bell: false,
            gives: None,
            passed: Vec::new(),
        };
        Self {
            words: vec![0; PERMITS + n_permits],
            slots: vec![0; programs.len()],
            clients: programs.iter().map(client).collect(),
            machine,
            pending: None,
            now: Duration::ZERO,
            kills: 0,
            stops: 0,
            cancels: 0,
            ledger: 0,
            died_with_lock: false,
            owed: Vec::new(),
        }
    }

    fn lock(programs: &[&'static [Op]]) -> Self {
        let layout = gate::Layout {
            permits: PERMITS..PERMITS + 1,
            ledger: LEDGER,
            conditions: CONDITION..CONDITION + 1,
            marks_death: true,
        };
        Self::new(Machine::Gate(Gate::new(layout, 0)), 1, programs)
    }

    fn semaphore(n_permits: usize, ledger: u64, programs: &[&'static [Op]]) -> Self {
        let layout = gate::Layout {
            permits: PERMITS..PERMITS + n_permits,
            ledger: LEDGER,
            conditions: 0..0,
            marks_death: false,
        };
        let mut world = Self::new(
            Machine::Gate(Gate::new(layout, ledger)),
            n_permits,
            programs,
        );
        world.words[LEDGER] = ledger;
        world.ledger = ledger;
        world
    }

    fn barrier(parties: usize, has_action: bool, programs: &[&'static [Op]]) -> Self {
        let layout = barrier::Layout {
            state: STATE,
            waiting: WAITING,
        };
        Self::new(
            Machine::Barrier(Barrier::new(layout, parties, has_action, 0)),
            0,
            programs,
        )
    }

    fn event(programs: &[&'static [Op]]) -> Self {
        Self::new(Machine::Event, 0, programs)
    }

    fn budget(self, kills: u32, stops: u32, cancels: u32) -> Self {
        Self {
            kills,
            stops,
            cancels,
            ..self
        }
    }

    fn permits(&self) -> std::ops::Range<usize> {
        PERMITS..self.words.len()
    }

    /// Everything that moves by itself.
    fn steps(&self) -> Vec<Event> {
        let mut events = Vec::new();
        for (i, client) in self.clients.iter().enumerate() {
            if client.life == Life::Runs && self.can_step(i) {
                events.push(Event::Step(i));
            }
            if self.pending.is_none() {
                if !client.inbox.is_empty() {
                    events.push(Event::Receive(i));
                } else if client.life == Life::Dead {
                    events.push(Event::Sweep(i));
                }
            }
        }
        if self.pending.is_some() {
            events.push(Event::Broker);
        }
        events
    }

    fn can_step(&self, i: usize) -> bool {
        let client = &self.clients[i];
        match client.phase {
            Phase::End => false,
            Phase::Wait => slot::answer_of(&AtomicU64::new(self.slots[i])).is_some(),
            Phase::Sleep(_) => client.bell,
            _ => true,
        }
    }

    fn deadline(&self) -> Option<Duration> {
        match &self.machine {
            Machine::Gate(gate) => gate.deadline(),
            _ => None,
        }
    }

    /// What happens to the processes from outside.
    fn blows(&self) -> Vec<Event> {
        let mut events = Vec::new();
        if self.pending.is_none() && self.deadline().is_some() {
            events.push(Event::Time);
        }
        for (i, client) in self.clients.iter().enumerate() {
            if client.life != Life::Runs {
                continue;
            }
            if self.kills > 0 {
                events.push(Event::Kill(i));
            }
            if self.stops > 0 && client.phase != Phase::End {
                events.push(Event::Stop(i));
            }
            if self.cancels > 0
                && matches!(client.phase, Phase::Wait | Phase::Sleep(_) | Phase::Lead)
            {
                events.push(Event::Cancel(i));
            }
        }
        events
    }

    fn apply(&mut self, event: Event, broken: Option<Rule>) -> Result<(), String> {
        let mut fault = None;
        match event {
            Event::Step(i) => self.client_step(i, broken, &mut fault),
            Event::Broker => self.broker_step(broken, &mut fault),
            Event::Receive(i) => {
                let message = self.clients[i].inbox.pop_front().ok_or("no message")?;
                self.pending = Some((message, Vec::new()));
                self.broker_step(broken, &mut fault);
            }
            Event::Sweep(i) => {
                self.clients[i].life = Life::Swept;
                let client = i as u32 + 1;
                let gone = match self.machine {
                    Machine::Gate(_) => Message::Gate(gate::Request::Gone { client }),
                    Machine::Barrier(_) => Message::Barrier(barrier::Request::Gone { client }),
                    Machine::Event if broken == Some(Rule::EventDeathRings) => return Ok(()),
                    Machine::Event => {
                        self.ring();
                        return Ok(());
                    }
                };
                self.pending = Some((gone, Vec::new()));
                self.broker_step(broken, &mut fault);
            }
            Event::Time => {
                self.now = self.deadline().map_or(self.now, |due| due.max(self.now));
                self.pending = Some((Message::Gate(gate::Request::Time), Vec::new()));
                self.broker_step(broken, &mut fault);
            }
            Event::Kill(i) => {
                self.kills -= 1;
                self.leave(i);
                self.clients[i].life = Life::Dead;
                self.clients[i].phase = Phase::End;
                self.clients[i].holds = None;
            }
            Event::Stop(i) => {
                self.stops -= 1;
                self.clients[i].life = Life::Stopped;
            }
            Event::Cancel(i) => {
                self.cancels -= 1;
                self.cancel(i, broken);
            }
        }
        if fault.is_none() {
            fault = self.twice_held();
        }
        fault.map_or(Ok(()), Err)
    }

    /// Client `i` will not take a notification any more, nor arrive.
    fn leave(&mut self, i: usize) {
        let client = &self.clients[i];
        let line = client.program.get(client.line);
        self.owed.retain(|owed| owed.unsent != Some(i));
        if line == Some(&Op::Wait) {
            for owed in &mut self.owed {
                owed.among.retain(|(waiter, _)| *waiter != i);
            }
        }
    }

    fn cancel(&mut self, i: usize, broken: Option<Rule>) {
        let notified = self.clients[i].program.get(self.clients[i].line) == Some(&Op::Wait);
        self.leave(i);
        let ticket = self.ticket(i);
        let breaks = |rule| broken == Some(rule);
        let is_barrier = matches!(self.machine, Machine::Barrier(_));
        let forget = if is_barrier {
            Message::Barrier(barrier::Request::Cancel(ticket))
        } else {
            Message::Gate(gate::Request::Cancel(ticket))
        };
        let client = &mut self.clients[i];
        client.log.clear();
        client.phase = match client.phase {
            Phase::Sleep(_) => Phase::End,
            Phase::Lead => Phase::Send([forget].into(), Then::End),
            _ => {
                let slot = AtomicU64::new(self.slots[i]);
                let undo = slot::undo(slot::end(&slot), notified);
                self.slots[i] = slot.into_inner();
                match undo {
                    Undo::Forget | Undo::BreakUp => Phase::Send([forget].into(), Then::End),
                    _ if breaks(Rule::CancelGivesBack) => Phase::End,
                    Undo::PassOnAndGive(word) if !breaks(Rule::CancelPassesOn) => {
                        let request = gate::Request::Notify { condition: 0, n: 1 };
                        let then = Then::GiveUp(PERMITS + word as usize);
                        Phase::Send([Message::Gate(request)].into(), then)
                    }
                    Undo::Give(word) | Undo::PassOnAndGive(word) => {
                        Phase::GiveUp(PERMITS + word as usize)
                    }
                    Undo::GiveLedger => {
                        let request = gate::Request::ReleaseLedger {
                            client: i as u32 + 1,
                        };
                        Phase::Send([Message::Gate(request)].into(), Then::End)
                    }
                    Undo::Nothing => Phase::End,
                }
            }
        };
    }

    fn ticket(&self, i: usize) -> Ticket {
        Ticket {
            client: i as u32 + 1,
            slot: i as u32,
            turn: self.clients[i].turn,
        }
    }

    fn ring(&mut self) {
        for client in &mut self.clients {
            client.bell = true;
        }
    }

    fn twice_held(&self) -> Option<String> {
        let held: Vec<(usize, usize)> = self
            .clients
            .iter()
            .enumerate()
            .filter_map(|(i, client)| Some((i, client.holds.filter(|word| *word != LEDGER)?)))
            .collect();
        for (n, (i, word)) in held.iter().enumerate() {
            if held[..n].iter().any(|(_, other)| other == word) {
                return Some("two processes have one permit".to_owned());
            }
            if word::owner(self.words[*word]) != *i as u32 + 1 {
                return Some(format!(
                    "client {i} has a permit whose word does not name it"
                ));
            }
        }
        None
    }

    fn broker_step(&mut self, broken: Option<Rule>, fault: &mut Option<String>) {
        let Some((message, mut log)) = self.pending.take() else {
            return;
        };
        let sweeps = matches!(message, Message::Gate(gate::Request::Gone { .. }));
        // Run on a copy: unless the request is finished, its effect on the state is not there yet.
        let mut machine = self.machine.clone();
        let mut replay = Replay {
            words: &mut self.words,
            slots: &mut self.slots,
            client: None,
            sweeps,
            died_with_lock: &mut self.died_with_lock,
            marks_death: marks_death(&self.machine),
            log: &mut log,
            at: 0,
            fresh: false,
            broken,
            fault,
        };
        let done = match (&mut machine, message) {
            (Machine::Gate(gate), Message::Gate(request)) => {
                gate.on(request, self.now, &mut replay)
            }
            (Machine::Barrier(barrier), Message::Barrier(request)) => {
                barrier.on(request, &mut replay)
            }
            _ => Ok(()),
        };
        match done {
            Ok(()) => {
                self.machine = machine;
                if let (Machine::Barrier(barrier), Message::Barrier(request)) =
                    (&self.machine, message)
                    && barrier.tickets().any(|ticket| must_leave(request, *ticket))
                {
                    fault.get_or_insert_with(|| format!("somebody waits on after {request:?}"));
                }
            }
            Err(Stopped) => self.pending = Some((message, log)),
        }
    }

    fn dead(&self) -> Vec<bool> {
        self.clients
            .iter()
            .map(|client| matches!(client.life, Life::Dead | Life::Swept))
            .collect()
    }

    /// Runs one step of a function of client `i`; nothing while it is not finished.
    fn run<T>(
        &mut self,
        i: usize,
        broken: Option<Rule>,
        fault: &mut Option<String>,
        function: impl FnOnce(&mut Replay<'_>) -> Result<T, Stopped>,
    ) -> Option<T> {
        let client = &mut self.clients[i];
        let mut replay = Replay {
            words: &mut self.words,
            slots: &mut self.slots,
            client: Some(i as u32 + 1),
            sweeps: false,
            died_with_lock: &mut self.died_with_lock,
            marks_death: marks_death(&self.machine),
            log: &mut client.log,
            at: 0,
            fresh: false,
            broken,
            fault,
        };
        let done = function(&mut replay).ok();
        if done.is_some() {
            client.log.clear();
        }
        done
    }

    fn client_step(&mut self, i: usize, broken: Option<Rule>, fault: &mut Option<String>) {
        let me = i as u32 + 1;
        match self.clients[i].phase.clone() {
            Phase::Line => self.line(i, broken, fault),
            Phase::Send(mut messages, then) => {
                match messages.pop_front() {
                    Some(Message::Ring) => self.ring(),
                    Some(message) => self.clients[i].inbox.push_back(message),
                    None => (),
                }
                for owed in self.owed.iter_mut().filter(|owed| owed.unsent == Some(i)) {
                    owed.unsent = None;
                }
                let client = &mut self.clients[i];
                if !messages.is_empty() {
                    client.phase = Phase::Send(messages, then);
                    return;
                }
                match then {
                    Then::Next => self.next(i),
                    Then::Wait => client.phase = Phase::Wait,
                    Then::End => client.phase = Phase::End,
                    Then::GiveUp(word) => client.phase = Phase::GiveUp(word),
                }
            }
            Phase::Wait => self.take_answer(i, fault),
            Phase::GiveUp(word) => {
                let Some(tell) = self.run(i, broken, fault, |m| word::give(m, word, me)) else {
                    return;
                };
                self.clients[i].phase = match told(tell, me, word) {
                    Some(message) => Phase::Send([message].into(), Then::End),
                    None => Phase::End,
                };
            }
            Phase::Sleep(since) => {
                self.clients[i].bell = false;
                self.clients[i].phase = Phase::Line;
                self.clients[i].log = vec![since];
                self.line(i, broken, fault);
            }
            Phase::Lead => {
                let done = Message::Barrier(barrier::Request::Done(self.ticket(i)));
                self.clients[i].passed.push(Answer::Lead);
                self.clients[i].phase = Phase::Send([done].into(), Then::Next);
            }
            Phase::End => (),
        }
    }

    fn next(&mut self, i: usize) {
        let client = &mut self.clients[i];
        client.line += 1;
        client.log.clear();
        client.phase = if client.line < client.program.len() {
            Phase::Line
        } else {
            Phase::End
        };
    }

    /// Starts a wait: the slot and the request, which nobody can see one without the other.
    fn ask(&mut self, i: usize, request: impl FnOnce(Ticket) -> Message) {
        let client = &mut self.clients[i];
        client.turn += 1;
        let slot = AtomicU64::new(self.slots[i]);
        slot::begin(&slot, client.turn, Wake::Bell);
        self.slots[i] = slot.into_inner();
        let message = request(self.ticket(i));
        self.clients[i].phase = Phase::Send([message].into(), Then::Wait);
    }

    fn line(&mut self, i: usize, broken: Option<Rule>, fault: &mut Option<String>) {
        let me = i as u32 + 1;
        let permits = self.permits();
        match self.clients[i].program[self.clients[i].line] {
            Op::Take => {
                let taken = self.run(i, broken, fault, |m| word::take(m, permits, 0, me));
                match taken {
                    None => (),
                    Some(Some(taken)) => {
                        self.clients[i].holds = Some(taken.word);
                        self.next(i);
                    }
                    Some(None) => self.ask(i, |t| Message::Gate(gate::Request::Acquire(t))),
                }
            }
            Op::Give | Op::Forget => {
                // It counts as given from the first step on.
                if let Some(word) = self.clients[i].holds.take() {
                    self.clients[i].gives = Some(word);
                }
                let Some(word) = self.clients[i].gives else {
                    return self.next(i);
                };
                let message = if word == LEDGER {
                    Some(Message::Gate(gate::Request::ReleaseLedger { client: me }))
                } else if self.clients[i].program[self.clients[i].line] == Op::Forget {
                    let done = self.run(i, broken, fault, |m| word::disown(m, word, me));
                    let Some(()) = done else { return };
                    None
                } else {
                    let done = self.run(i, broken, fault, |m| word::give(m, word, me));
                    let Some(tell) = done else { return };
                    told(tell, me, word)
                };
                self.clients[i].gives = None;
                match message {
                    Some(message) => {
                        self.clients[i].phase = Phase::Send([message].into(), Then::Next);
                    }
                    None => self.next(i),
                }
            }
            Op::Add => {
                let tell = self.run(i, broken, fault, |m| word::give_nobodys(m, permits));
                let message = match tell {
                    None => return,
                    Some(Some(Tell::Nothing)) => return self.next(i),
                    Some(Some(Tell::Poke)) => gate::Request::Poke,
                    Some(Some(Tell::Release) | None) => gate::Request::Add,
                };
                self.clients[i].phase = Phase::Send([Message::Gate(message)].into(), Then::Next);
            }
            Op::Wait => {
                if self.clients[i].holds.take().is_none() {
                    return self.next(i);
                }
                self.ask(i, |ticket| {
                    Message::Gate(gate::Request::Wait {
                        ticket,
                        condition: 0,
                    })
                });
            }
            Op::Notify(n) => {
                let Some(waiting) = self.run(i, broken, fault, |m| m.load(CONDITION)) else {
                    return;
                };
                // Who waits now, by the truth and not by the word.
                let among: Vec<(usize, u32)> = self
                    .clients
                    .iter()
                    .enumerate()
                    .filter(|(_, client)| {
                        client.life == Life::Runs
                            && client.phase == Phase::Wait
                            && client.program[client.line] == Op::Wait
                    })
                    .map(|(waiter, client)| (waiter, client.turn))
                    // Those whose message the broker has not taken still hold the lock.
                    .filter(|(waiter, _)| self.clients[*waiter].inbox.is_empty())
                    .filter(|(waiter, _)| {
                        slot::answer_of(&AtomicU64::new(self.slots[*waiter])).is_none()
                    })
                    .collect();
                let n_owed = n.min(among.len() as u32);
                let n = n.min(waiting as u32);
                if n_owed > 0 {
                    let unsent = (n > 0).then_some(i);
                    self.owed.push(Owed {
                        n: n_owed,
                        among,
                        unsent,
                    });
                }
                if n == 0 {
                    return self.next(i);
                }
                let request = gate::Request::Notify { condition: 0, n };
                self.clients[i].phase = Phase::Send([Message::Gate(request)].into(), Then::Next);
            }
            Op::Arrive => self.ask(i, |t| Message::Barrier(barrier::Request::Arrive(t))),
            Op::Reset => {
                let reset = Message::Barrier(barrier::Request::Reset);
                self.clients[i].phase = Phase::Send([reset].into(), Then::Next);
            }
            Op::Set => {
                if broken == Some(Rule::EventSetBeforeRing) && self.clients[i].log.is_empty() {
                    self.ring();
                    self.clients[i].log.push(0);
                    return;
                }
                let early = broken == Some(Rule::EventSetBeforeRing);
                if early {
                    self.clients[i].log.remove(0);
                }
                let rings = self.run(i, broken, fault, |m| flag::set(m, FLAG));
                match rings {
                    None if early => self.clients[i].log.insert(0, 0),
                    None => (),
                    Some(true) if !early && broken != Some(Rule::EventSetRings) => {
                        self.clients[i].phase = Phase::Send([Message::Ring].into(), Then::Next);
                    }
                    Some(_) => self.next(i),
                }
            }
            Op::Clear => {
                if self
                    .run(i, broken, fault, |m| flag::clear(m, FLAG))
                    .is_some()
                {
                    self.next(i);
                }
            }
            Op::Await => {
                let mut since = 0;
                let over = self.run(i, broken, fault, |m| {
                    since = flag::raises(m.load(FLAG)?);
                    flag::is_over(m, FLAG, since)
                });
                match over {
                    None => (),
                    Some(true) => self.next(i),
                    Some(false) => self.clients[i].phase = Phase::Sleep(since << 2),
                }
            }
        }
    }

    fn take_answer(&mut self, i: usize, fault: &mut Option<String>) {
        let slot = AtomicU64::new(self.slots[i]);
        let answer = slot::end(&slot);
        self.slots[i] = slot.into_inner();
        let notified = self.clients[i].program[self.clients[i].line] == Op::Wait;
        if notified {
            let turn = self.clients[i].turn;
            let owed = self
                .owed
                .iter_mut()
                .find(|owed| owed.among.contains(&(i, turn)));
            if let Some(owed) = owed {
                owed.n -= 1;
                owed.among.retain(|(waiter, _)| *waiter != i);
            }
            self.owed.retain(|owed| owed.n > 0);
        }
        match answer {
            Some(Answer::Permit(word)) => {
                self.clients[i].holds = Some(PERMITS + word as usize);
                self.next(i);
            }
            Some(Answer::Ledger) => {
                self.clients[i].holds = Some(LEDGER);
                self.next(i);
            }
            Some(Answer::Lead) => self.clients[i].phase = Phase::Lead,
            Some(answer @ (Answer::Passed(_) | Answer::Broken)) => {
                self.clients[i].passed.push(answer);
                self.next(i);
            }
            Some(Answer::Refused) | None => {
                fault.get_or_insert_with(|| "a wait was refused".to_owned());
            }
        }
    }

    /// What must hold when nothing moves but time.
    fn at_rest(&self) -> Result<(), String> {
        let waits = |client: &&Client| client.life == Life::Runs && client.phase == Phase::Wait;
        let n_stopped = self
            .clients
            .iter()
            .filter(|c| c.life == Life::Stopped)
            .count();
        match &self.machine {
            Machine::Gate(gate) => {
                if n_stopped > 0 && gate.deadline().is_some_and(|due| due > self.now) {
                    return Ok(());
                }
                let lent = self
                    .clients
                    .iter()
                    .filter(|c| c.holds == Some(LEDGER))
                    .count() as u64;
                if n_stopped == 0 && lent + self.words[LEDGER] != self.ledger {
                    return Err("the ledger is wrong".to_owned());
                }
                let queued =
                    self.clients.iter().filter(waits).any(|client| {
                        client.program[client.line] == Op::Take || gate.n_queued() > 0
                    });
                let free = self.permits().any(|word| word::is_free(self.words[word]))
                    || self.words[LEDGER] > 0;
                if queued && free {
                    return Err("somebody waits while a permit is free".to_owned());
                }
                let dead = self.dead();
                let owner_is_dead = |word: usize| {
                    let owner = word::owner(self.words[word]);
                    owner != 0 && owner != NOBODY && dead[owner as usize - 1]
                };
                if self.permits().any(owner_is_dead) {
                    return Err("a dead process has a permit".to_owned());
                }
                for owed in &self.owed {
                    let still = |(i, turn): &(usize, u32)| {
                        waits(&&self.clients[*i]) && self.clients[*i].turn == *turn
                    };
                    if n_stopped == 0 && owed.among.iter().any(still) {
                        return Err("a notification was lost".to_owned());
                    }
                }
                self.at_end(n_stopped)
            }
            Machine::Barrier(barrier) => {
                let waits = |ticket: &Ticket| {
                    let client = &self.clients[ticket.slot as usize];
                    waits(&client) && client.turn == ticket.turn
                };
                if n_stopped == 0 && !barrier.tickets().all(waits) {
                    return Err("a barrier counts on a party that is gone".to_owned());
                }
                if n_stopped == 0 && barrier.tickets().count() >= barrier.parties() {
                    return Err("a full barrier does not pass".to_owned());
                }
                let n_waiting = self
                    .clients
                    .iter()
                    .filter(|client| client.phase == Phase::Wait)
                    .count();
                if n_stopped == 0 && n_waiting != barrier.tickets().count() {
                    return Err("a party waits that the barrier does not know".to_owned());
                }
                self.generations(barrier.has_action())
            }
            Machine::Event => {
                for client in &self.clients {
                    if let (Life::Runs, Phase::Sleep(since)) = (client.life, &client.phase) {
                        let word = self.words[FLAG];
                        let over = flag::is_set(word) || flag::raises(word) != since >> 2;
                        if over && n_stopped == 0 {
                            return Err("somebody sleeps at a raised flag".to_owned());
                        }
                    }
                }
                Ok(())
            }
        }
    }

    /// Each generation that passed has distinct numbers, and one leader if there is an action.
    fn generations(&self, has_action: bool) -> Result<(), String> {
        let n_done = self
            .clients
            .iter()
            .map(|client| client.passed.len())
            .min()
            .unwrap_or(0);
        for generation in 0..n_done {
            let answers = self.clients.iter().map(|client| client.passed[generation]);
            let mut answers: Vec<Answer> = answers.collect();
            if answers.contains(&Answer::Broken) {
                // From here on the parties may be of different generations.
                return Ok(());
            }
            let first = if has_action {
                Answer::Lead
            } else {
                Answer::Passed(0)
            };
            let rest = (1..answers.len()).map(|n| Answer::Passed(n as u32));
            let wanted: Vec<Answer> = std::iter::once(first).chain(rest).collect();
            answers.sort_by_key(|answer| match answer {
                Answer::Passed(n) => *n,
                _ => 0,
            });
            if answers != wanted {
                return Err(format!("the parties of a generation were told {answers:?}"));
            }
        }
        Ok(())
    }

    fn at_end(&self, n_stopped: usize) -> Result<(), String> {
        if n_stopped > 0 || self.clients.iter().any(|client| client.phase != Phase::End) {
            return Ok(());
        }
        let held: Vec<usize> = self
            .clients
            .iter()
            .filter_map(|client| client.holds)
            .collect();
        for word in self.permits() {
            if self.words[word] & QUEUE_BITS != 0 {
                return Err("the words are closed though nobody waits".to_owned());
            }
            let owner = word::owner(self.words[word]);
            if owner != 0 && owner != NOBODY && !held.contains(&word) {
                return Err("a permit is lost".to_owned());
            }
        }
        Ok(())
    }
}

/// Whether a ticket may not be at a barrier any more when it has carried out this request.
fn must_leave(request: barrier::Request, ticket: Ticket) -> bool {
    match request {
        barrier::Request::Reset | barrier::Request::Abort => true,
        barrier::Request::Cancel(gone) => gone == ticket,
        barrier::Request::Gone { client } => client == ticket.client,
        _ => false,
    }
}

fn marks_death(machine: &Machine) -> bool {
    // The only gate with conditions is a lock's.
    match machine {
        Machine::Gate(gate) => gate.marks_death(),
        _ => false,
    }
}

fn told(tell: Tell, client: u32, word: usize) -> Option<Message> {
    match tell {
        Tell::Nothing => None,
        Tell::Poke => Some(Message::Gate(gate::Request::Poke)),
        Tell::Release => {
            let permit = (word - PERMITS) as u32;
            Some(Message::Gate(gate::Request::Release { client, permit }))
        }
    }
}

/// How many states are searched: all in release, a part in a debug build, which is some twenty times
/// slower.
const STATES_MAX: usize = if cfg!(debug_assertions) {
    10_000
} else {
    usize::MAX
};

/// Takes every order of events from `start`. Tells how many states there are, or what went wrong.
fn search(start: World, broken: Option<Rule>) -> Result<usize, String> {
    let mut seen = HashSet::new();
    let mut open = vec![start];
    while let Some(world) = open.pop() {
        if broken.is_none() && seen.len() > STATES_MAX {
            break;
        }
        let steps = world.steps();
        if steps.is_empty() {
            world
                .at_rest()
                .map_err(|what| format!("{what}:\n{world:#?}"))?;
        }
        for event in steps.into_iter().chain(world.blows()) {
            let mut next = world.clone();
            next.apply(event, broken)
                .map_err(|what| format!("{what}: {event:?}\n{world:#?}"))?;
            let mut hasher = DefaultHasher::new();
            next.hash(&mut hasher);
            if seen.insert(hasher.finish()) {
                open.push(next);
            }
        }
    }
    Ok(seen.len())
}

mod tests {
    use super::*;

    use Op::{Add, Arrive, Await, Clear, Forget, Give, Notify, Reset, Set, Take, Wait};

    const ONCE: &[Op] = &[Take, Give];
    const TWICE: &[Op] = &[Take, Give, Take, Give];
    const WAITS: &[Op] = &[Take, Wait, Give];
    const ARRIVES: &[Op] = &[Arrive, Arrive];

    fn lock() -> World {
        World::lock(&[ONCE, ONCE, ONCE])
    }

    fn lock_twice() -> World {
        World::lock(&[TWICE, TWICE])
    }

    fn two_permits() -> World {
        World::semaphore(2, 0, &[ONCE, ONCE, ONCE])
    }

    fn without_guards() -> World {
        World::semaphore(1, 0, &[&[Take, Forget, Add], ONCE, ONCE])
    }

    fn ledger() -> World {
        World::semaphore(0, 1, &[ONCE, ONCE, ONCE])
    }

    fn word_and_ledger() -> World {
        World::semaphore(1, 1, &[ONCE, ONCE, ONCE])
    }

    fn notify_one() -> World {
        World::lock(&[WAITS, WAITS, &[Take, Notify(1), Give]])
    }

    fn notify_all() -> World {
        World::lock(&[WAITS, WAITS, &[Take, Notify(u32::MAX), Give]])
    }

    fn barrier() -> World {
        World::barrier(3, false, &[ARRIVES, ARRIVES, ARRIVES])
    }

    fn barrier_with_action() -> World {
        World::barrier(3, true, &[ARRIVES, ARRIVES, ARRIVES])
    }

    fn barrier_with_reset() -> World {
        World::barrier(2, true, &[&[Arrive], &[Arrive], &[Reset]])
    }

    fn event() -> World {
        World::event(&[&[Await], &[Await, Await], &[Set, Clear, Set]])
    }

    fn event_with_two_setters() -> World {
        World::event(&[&[Await, Await], &[Set], &[Clear, Set]])
    }

    /// Searches with each budget of (kills, stops, cancellations).
    fn holds(world: fn() -> World, budgets: &[(u32, u32, u32)]) {
        for (kills, stops, cancels) in budgets {
            match search(world().budget(*kills, *stops, *cancels), None) {
                Ok(n) => println!("{kills} kills, {stops} stops, {cancels} cancels: {n} states"),
                Err(what) => panic!("{what}"),
            }
        }
    }

    #[test]
    fn a_lock_survives_every_order() {
        holds(lock, &[(1, 0, 0), (0, 1, 1), (1, 0, 1), (2, 0, 0)]);
    }

    #[test]
    fn a_lock_taken_again_survives_every_order() {
        holds(lock_twice, &[(1, 0, 1), (1, 1, 1)]);
    }

    #[test]
    fn two_permits_survive_every_order() {
        holds(two_permits, &[(0, 1, 0), (1, 0, 1)]);
    }

    #[test]
    fn permits_without_guards_survive_every_order() {
        holds(without_guards, &[(0, 1, 0)]);
    }

    #[test]
    fn the_ledger_survives_every_order() {
        holds(ledger, &[(1, 0, 1)]);
        holds(word_and_ledger, &[(0, 0, 1), (1, 0, 0)]);
    }

    #[test]
    fn a_condition_survives_every_order() {
        holds(notify_one, &[(1, 0, 0), (0, 0, 1), (0, 1, 0)]);
        holds(notify_all, &[(0, 0, 1), (1, 0, 1)]);
    }

    #[test]
    fn a_barrier_survives_every_order() {
        holds(barrier, &[(1, 0, 1)]);
        holds(barrier_with_action, &[(0, 0, 1), (1, 0, 1)]);
        holds(barrier_with_reset, &[(1, 0, 1)]);
    }

    #[test]
    fn an_event_survives_every_order() {
        holds(event, &[(1, 0, 0), (0, 0, 1)]);
        holds(event_with_two_setters, &[(0, 1, 1), (1, 0, 1)]);
    }

    /// A rule, a world, (kills, stops, cancellations), and what the fault says.
    type Broken = (Rule, fn() -> World, (u32, u32, u32), &'static str);

    /// Every rule, a world in which breaking it shows, and what shows.
    const RULES: [Broken; 34] = [
        (Rule::TakeRespectsDue, lock, (0, 0, 1), "promised"),
        (Rule::GiveRespectsDue, lock, (0, 1, 0), "waits while"),
        (Rule::GivePokes, lock, (0, 0, 0), "waits while"),
        (Rule::GiveIsOneStep, lock, (0, 0, 0), "waits while"),
        (Rule::TakeIsOneStep, lock, (0, 0, 0), "two processes"),
        (Rule::CancelGivesBack, lock, (0, 0, 1), "lost"),
        (Rule::CancelPassesOn, notify_one, (0, 0, 1), "notification"),
        (Rule::QueueShows, lock, (0, 0, 0), "waits while"),
        (Rule::QueueBeforeLook, lock, (0, 0, 0), "waits while"),
        (Rule::UnpokeBeforeLook, lock_twice, (0, 0, 0), "waits while"),
        (Rule::NameBeforeAnswer, lock, (0, 0, 0), "name"),
        (Rule::RefusedGrantGoesOn, lock, (0, 0, 1), "lost"),
        (Rule::DeathFrees, lock, (1, 0, 0), "dead process has"),
        (Rule::DeathUnlinks, lock, (1, 0, 0), "dead process has"),
        (Rule::DeathServes, lock, (1, 0, 0), "waits while"),
        (Rule::DeathMarksAtOnce, lock, (1, 0, 0), "mark"),
        (Rule::DeathReturnsLedger, ledger, (1, 0, 0), "ledger"),
        (Rule::TimeServes, lock, (0, 1, 0), "waits while"),
        (Rule::TimeCloses, lock, (0, 1, 0), "waits while"),
        (Rule::HandOverRearms, lock, (0, 1, 0), "waits while"),
        (Rule::EmptyQueueOpens, lock, (0, 0, 0), "closed"),
        (
            Rule::WaitBeforeRelease,
            notify_one,
            (0, 0, 0),
            "notification",
        ),
        (Rule::GonePassesOn, notify_one, (1, 0, 0), "notification"),
        (Rule::WokenPassesOn, notify_one, (1, 0, 0), "notification"),
        (Rule::BarrierCancelBreaks, barrier, (0, 0, 1), "Cancel"),
        (Rule::BarrierDeathBreaks, barrier, (1, 0, 0), "Gone"),
        (
            Rule::BarrierLeaderDeathBreaks,
            barrier_with_action,
            (1, 0, 0),
            "Gone",
        ),
        (
            Rule::BarrierOneLeader,
            barrier_with_action,
            (0, 0, 0),
            "generation",
        ),
        (
            Rule::BarrierResetReleases,
            barrier_with_reset,
            (0, 0, 0),
            "Reset",
        ),
        (Rule::EventSetRings, event, (0, 0, 0), "sleeps"),
        (Rule::EventSetBeforeRing, event, (0, 0, 0), "sleeps"),
        (Rule::EventLooksAgain, event, (0, 0, 0), "sleeps"),
        (Rule::EventSleeperShows, event, (0, 0, 0), "sleeps"),
        (Rule::EventDeathRings, event, (1, 0, 0), "sleeps"),
    ];

    #[test]
    fn every_broken_rule_is_noticed() {
        let mut unnoticed = Vec::new();
        for (rule, world, (kills, stops, cancels), wanted) in RULES {
            match search(world().budget(kills, stops, cancels), Some(rule)) {
                Ok(n) => unnoticed.push(format!("{rule:?}: not in {n} states")),
                Err(what) => {
                    let what = what.lines().next().unwrap_or_default();
                    println!("{rule:?}: {what}");
                    if !what.contains(wanted) {
                        unnoticed.push(format!("{rule:?}: by something else: {what}"));
                    }
                }
            }
        }
        assert!(unnoticed.is_empty(), "{unnoticed:#?}");
    }
}
