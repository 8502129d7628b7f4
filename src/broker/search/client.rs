//! What a client does: its program, line by line, and what becomes of it when it is given up.

use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;

use crate::broker::barrier;
use crate::broker::flag;
use crate::broker::gate;
use crate::broker::memory::{Answer, Memory, Rule, Ticket};
use crate::broker::park::{self, Found, Rouse};
use crate::broker::slot::{self, Undo, Wake};
use crate::broker::turn::{Stopped, Turn};
use crate::broker::vigil::{self, Leave, Place};
use crate::broker::word::{self, Tell};

use super::replay::Replay;
use super::{CONDITION, EXPIRED, FLAG, LEDGER, Life, Machine, Message, Owed, PERMITS, World};

/// How often a sleeper is woken in vain before it queues: less than in a program, as each multiplies
/// the states.
const WAKES_MAX: u32 = 0;

/// One line of a client's program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Op {
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
pub(super) enum Phase {
    /// The line's function, which may be many steps.
    Line,
    /// Send these, one a step, then go on.
    Send(VecDeque<Message>, Box<Self>),
    /// Wait for the answer.
    Wait,
    /// Look for a sleeper, as a permit was freed, then send this and go on.
    Given(Option<Message>, Box<Self>),
    /// Give this word back, then leave.
    GiveUp(usize),
    /// Sleep at the bell, in a wait that began at so many raises.
    Sleep(u64),
    /// Run the action of the barrier.
    Lead,
    /// Look for what a sleep beside the broker waits for.
    Look(Nap),
    /// Fall asleep, unless the word has changed since the look.
    Doze(Nap),
    /// Sleep until the bell rings or the word is woken.
    Asleep(Nap),
    /// Put oneself down in the sleeper's word, if that is of use.
    Park,
    /// Leave the sleeper's word: with this permit, or to queue.
    Unpark(Option<usize>),
    /// Leave the sleeper's word, as the wait is given up.
    Quit,
    /// Give the lock back and keep vigil.
    Release(usize),
    /// Say that one sleeps.
    Say,
    /// Take the lock again, as a notification came.
    Retake,
    /// Take the notification, with the lock in hand.
    Settle,
    /// Leave the vigil, as the wait is given up.
    Leave,
    /// Pass the notification on that the vigil's word holds.
    PassOn(u64),
    /// Clear the vigil's word.
    Close(u64),
    /// Notify so many who keep vigil and so many in all, of those who wait.
    Notify {
        vigils: u32,
        n: u32,
        among: Vec<(usize, u32)>,
    },
    /// The line is over.
    Done,
    /// The program is over.
    End,
}

/// Where one sleeps beside the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Nap {
    /// At the sleeper's word.
    Park,
    /// In a vigil.
    Vigil,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Client {
    pub(super) program: &'static [Op],
    pub(super) line: usize,
    pub(super) phase: Phase,
    /// How it sleeps beside the broker.
    pub(super) wake: Wake,
    /// Results of the steps of the present function.
    pub(super) log: Vec<u64>,
    pub(super) life: Life,
    /// The permit's word that it believes to have; `LEDGER` for one of the ledger.
    pub(super) holds: Option<usize>,
    pub(super) turn: u32,
    pub(super) inbox: VecDeque<Message>,
    /// It is to look again.
    pub(super) bell: bool,
    /// The permit's word that it is giving back.
    pub(super) gives: Option<usize>,
    /// How often it was woken in vain.
    pub(super) n_wakes: u32,
    /// Its vigil.
    pub(super) vigil: Option<Place>,
    /// What the barrier said, for each arrival.
    pub(super) passed: Vec<Answer>,
}

impl Client {
    pub(super) fn new(program: &'static [Op]) -> Self {
        Self {
            program,
            line: 0,
            phase: Phase::Line,
            wake: Wake::Bell,
            log: Vec::new(),
            life: Life::Runs,
            holds: None,
            turn: 0,
            inbox: VecDeque::new(),
            bell: false,
            gives: None,
            n_wakes: 0,
            vigil: None,
            passed: Vec::new(),
        }
    }

    /// The line that it is in.
    pub(super) fn op(&self) -> Option<Op> {
        self.program.get(self.line).copied()
    }

    /// Whether it waits for a notification, as far as it knows.
    pub(super) fn awaits_notification(&self) -> bool {
        let waits = match self.vigil {
            None => self.phase == Phase::Wait,
            Some(_) => self.phase == Phase::Asleep(Nap::Vigil),
        };
        self.life == Life::Runs && self.op() == Some(Op::Wait) && waits
    }
}

impl World {
    /// Client `i` will not take a notification any more, nor arrive.
    pub(super) fn leave(&mut self, i: usize) {
        self.owed.retain(|owed| owed.unsent != Some(i));
        if self.clients[i].op() == Some(Op::Wait) {
            for owed in &mut self.owed {
                owed.among.retain(|(waiter, _)| *waiter != i);
            }
        }
    }

    /// Client `i`'s future is dropped.
    pub(super) fn cancel(&mut self, i: usize, broken: Option<Rule>) {
        let client = &self.clients[i];
        let notified = client.op() == Some(Op::Wait) && client.vigil.is_none();
        self.leave(i);
        let ticket = self.ticket(i);
        let breaks = |rule| broken == Some(rule);
        let is_barrier = matches!(self.machine, Machine::Barrier(_));
        let forget = if is_barrier {
            Message::Barrier(barrier::Request::Cancel(ticket))
        } else {
            Message::Gate(gate::Request::Cancel(ticket))
        };
        let send = |message, then| Phase::Send([message].into(), Box::new(then));
        let after = self.after_giving_up(i);
        let client = &mut self.clients[i];
        client.log.clear();
        client.phase = match client.phase {
            Phase::Sleep(_) => Phase::End,
            Phase::Lead => send(forget, Phase::End),
            Phase::Asleep(Nap::Park) => Phase::Quit,
            Phase::Asleep(Nap::Vigil) => Phase::Leave,
            _ => {
                let slot = AtomicU64::new(self.slots[i]);
                let undo = slot::undo(slot::end(&slot), notified);
                self.slots[i] = slot.into_inner();
                match undo {
                    Undo::Forget | Undo::BreakUp => send(forget, after),
                    _ if breaks(Rule::CancelGivesBack) => Phase::End,
                    Undo::PassOnAndGive(word) if !breaks(Rule::CancelPassesOn) => {
                        let request = gate::Request::Notify { condition: 0, n: 1 };
                        let then = Phase::GiveUp(PERMITS + word as usize);
                        send(Message::Gate(request), then)
                    }
                    Undo::Give(word) | Undo::PassOnAndGive(word) => {
                        Phase::GiveUp(PERMITS + word as usize)
                    }
                    Undo::GiveLedger => {
                        let client = i as u32 + 1;
                        let request = gate::Request::ReleaseLedger { client };
                        send(Message::Gate(request), after)
                    }
                    Undo::Nothing => after,
                }
            }
        };
    }

    /// What comes when a wait for a permit has been given up.
    fn after_giving_up(&self, i: usize) -> Phase {
        match self.clients[i].vigil {
            Some(_) => Phase::Leave,
            None => Phase::End,
        }
    }

    fn ticket(&self, i: usize) -> Ticket {
        Ticket {
            client: i as u32 + 1,
            slot: i as u32,
            turn: self.clients[i].turn,
        }
    }

    /// Runs one step of a function of client `i`; nothing while it is not finished.
    fn run<T>(
        &mut self,
        i: usize,
        broken: Option<Rule>,
        fault: &mut Option<String>,
        function: impl FnOnce(&mut Replay<'_>) -> Result<T, Stopped>,
    ) -> Option<T> {
        let marks_death = self.marks_death();
        let client = &mut self.clients[i];
        let unseen = match client.phase {
            Phase::GiveUp(_) => true,
            _ => matches!(client.op(), Some(Op::Forget | Op::Add)),
        };
        let mut replay = Replay {
            words: &mut self.words,
            slots: &mut self.slots,
            client: Some(i as u32 + 1),
            sweeps: false,
            unseen,
            died_with_lock: &mut self.died_with_lock,
            marks_death,
            turn: Turn::new(std::mem::take(&mut client.log)),
            broken,
            fault,
        };
        let done = function(&mut replay).ok();
        if done.is_none() {
            client.log = replay.turn.into_log();
        }
        done
    }

    fn enter(&mut self, i: usize, phase: Phase) {
        self.clients[i].log.clear();
        match phase {
            Phase::Done => self.next(i),
            phase => self.clients[i].phase = phase,
        }
    }

    /// Sends messages, if there are any, one a step.
    fn send(&mut self, i: usize, messages: impl IntoIterator<Item = Message>, then: Phase) {
        let messages: VecDeque<Message> = messages.into_iter().collect();
        if messages.is_empty() {
            self.enter(i, then);
        } else {
            self.clients[i].phase = Phase::Send(messages, Box::new(then));
        }
    }

    pub(super) fn client_step(
        &mut self,
        i: usize,
        broken: Option<Rule>,
        fault: &mut Option<String>,
    ) {
        let me = i as u32 + 1;
        let (parks, vigils) = (self.park(), self.vigil());
        match self.clients[i].phase.clone() {
            Phase::Line => self.line(i, broken, fault),
            Phase::Send(mut messages, then) => {
                match messages.pop_front() {
                    Some(Message::Ring) => self.ring(),
                    Some(Message::Rouse(whom))
                        if self.knows_bells || matches!(whom, Rouse::Thread(_)) =>
                    {
                        self.rouse(whom);
                    }
                    Some(message) => self.clients[i].inbox.push_back(message),
                    None => (),
                }
                for owed in self.owed.iter_mut().filter(|owed| owed.unsent == Some(i)) {
                    owed.unsent = None;
                }
                self.send(i, messages, *then);
            }
            Phase::Wait => self.take_answer(i, fault),
            Phase::GiveUp(word) => {
                let given = self.run(i, broken, fault, |m| word::give_unseen(m, word, me));
                if let Some(tell) = given {
                    let then = self.after_giving_up(i);
                    self.given(i, told(tell, me, word), then);
                }
            }
            Phase::Sleep(since) => {
                self.clients[i].bell = false;
                self.clients[i].phase = Phase::Line;
                self.clients[i].log = vec![since];
                self.line(i, broken, fault);
            }
            Phase::Lead => {
                self.ask(i, |t| Message::Barrier(barrier::Request::Done(t)));
            }
            Phase::Look(Nap::Park) => {
                let value = park::value(me, self.clients[i].wake);
                let n_wakes = self.clients[i].n_wakes;
                if n_wakes == 0 && broken == Some(Rule::ParkLooksAgain) {
                    self.clients[i].n_wakes = 1;
                    self.clients[i].phase = self.lie_down(i, Nap::Park);
                    return;
                }
                let permits = self.permits();
                let found = self.run(i, broken, fault, |m| {
                    let take = |m: &mut Replay<'_>| word::take(m, permits, 0, me);
                    let is_over =
                        |m: &mut Replay<'_>| Ok(n_wakes > WAKES_MAX || m.load(EXPIRED + i)? != 0);
                    park::look(m, &parks, value, take, is_over)
                });
                let then = match found {
                    None => return,
                    Some(Found::Taken(taken)) => {
                        self.clients[i].holds = Some(taken.word);
                        Phase::Unpark(Some(taken.word))
                    }
                    Some(Found::Queue) => Phase::Unpark(None),
                    Some(Found::Nothing) => self.lie_down(i, Nap::Park),
                    Some(Found::Again) => {
                        self.clients[i].n_wakes += 1;
                        Phase::Look(Nap::Park)
                    }
                };
                self.enter(i, then);
            }
            Phase::Look(Nap::Vigil) => {
                let Some(place) = self.clients[i].vigil else {
                    return;
                };
                let notified = self.run(i, broken, fault, |m| vigil::is_notified(m, place));
                match notified {
                    None => (),
                    Some(true) => self.enter(i, Phase::Retake),
                    Some(false) => {
                        let then = self.lie_down(i, Nap::Vigil);
                        self.enter(i, then);
                    }
                }
            }
            Phase::Doze(nap) => {
                let (word, value) = self.bed(i, nap);
                let client = &mut self.clients[i];
                // As the kernel does it: the comparison and the sleep are one step.
                client.phase = if self.words[word] >> 32 == value >> 32 {
                    client.bell = false;
                    Phase::Asleep(nap)
                } else {
                    Phase::Look(nap)
                };
            }
            Phase::Asleep(nap) => {
                self.clients[i].bell = false;
                self.clients[i].phase = Phase::Look(nap);
            }
            Phase::Park => {
                let value = park::value(me, self.clients[i].wake);
                let is_down = self.run(i, broken, fault, |m| {
                    Ok(park::is_of_use(m, &parks)? && park::put_down(m, &parks, value)?)
                });
                match is_down {
                    None => (),
                    Some(true) => {
                        self.words[EXPIRED + i] = 0;
                        self.clients[i].n_wakes = 0;
                        self.clients[i].bell = false;
                        self.enter(i, Phase::Look(Nap::Park));
                    }
                    Some(false) => {
                        self.ask(i, |ticket| Message::Gate(gate::Request::Acquire(ticket)));
                    }
                }
            }
            Phase::Unpark(taken) => {
                let value = park::value(me, self.clients[i].wake);
                let left = self.run(i, broken, fault, |m| park::leave(m, &parks, value));
                match (left, taken) {
                    (None, _) => (),
                    (Some(()), Some(_)) => self.has_taken(i),
                    (Some(()), None) => {
                        self.ask(i, |ticket| Message::Gate(gate::Request::Acquire(ticket)));
                    }
                }
            }
            Phase::Quit => {
                let value = park::value(me, self.clients[i].wake);
                let left = self.run(i, broken, fault, |m| park::leave(m, &parks, value));
                if left.is_some() {
                    let then = self.after_giving_up(i);
                    self.enter(i, then);
                }
            }
            Phase::Release(word) => {
                self.give(i, word, Phase::Say, broken, fault);
            }
            Phase::Given(message, then) => {
                let sleeper = parks.sleeper;
                if let Some(whom) = self.run(i, broken, fault, |m| park::given(m, sleeper)) {
                    let rouse = whom.map(Message::Rouse);
                    self.send(i, rouse.into_iter().chain(message), *then);
                }
            }
            Phase::Say => {
                let Some(place) = self.clients[i].vigil else {
                    return;
                };
                match self.run(i, broken, fault, |m| vigil::fall_asleep(m, place)) {
                    None => (),
                    Some(true) => {
                        self.clients[i].bell = false;
                        self.enter(i, Phase::Look(Nap::Vigil));
                    }
                    Some(false) => self.enter(i, Phase::Retake),
                }
            }
            Phase::Retake => self.take(i, broken, fault),
            Phase::Settle => {
                let Some(place) = self.clients[i].vigil else {
                    return;
                };
                let taken = self.run(i, broken, fault, |m| vigil::take(m, place));
                if taken.is_some() {
                    self.clients[i].vigil = None;
                    self.is_notified(i);
                    self.next(i);
                }
            }
            Phase::Leave => {
                let Some(place) = self.clients[i].vigil else {
                    return;
                };
                let then = match self.run(i, broken, fault, |m| vigil::leave(m, place)) {
                    None => return,
                    Some(Leave::PassOn(seen)) if broken == Some(Rule::VigilPassesOn) => {
                        Phase::Close(seen)
                    }
                    Some(Leave::PassOn(seen)) => Phase::PassOn(seen),
                    Some(Leave::Close(seen)) => Phase::Close(seen),
                    Some(Leave::Nothing) => Phase::End,
                };
                self.enter(i, then);
            }
            Phase::PassOn(seen) => {
                let notified = self.run(i, broken, fault, |m| notify(m, &vigils, &parks, me));
                let message = match notified {
                    None => return,
                    Some(None) => {
                        let request = gate::Request::Notify { condition: 0, n: 1 };
                        Some(Message::Gate(request))
                    }
                    Some(Some(whom)) => whom.map(Message::Rouse),
                };
                self.send(i, message, Phase::Close(seen));
            }
            Phase::Close(seen) => {
                let Some(place) = self.clients[i].vigil else {
                    return;
                };
                match self.run(i, broken, fault, |m| vigil::close(m, place, seen)) {
                    None => (),
                    Some(true) => {
                        self.clients[i].vigil = None;
                        self.enter(i, Phase::End);
                    }
                    Some(false) => self.enter(i, Phase::Leave),
                }
            }
            Phase::Notify {
                vigils: 0, n: 0, ..
            } => self.next(i),
            Phase::Notify {
                vigils: 0,
                n,
                among,
            } => {
                self.owed.push(Owed {
                    n: n.min(among.len() as u32),
                    among,
                    unsent: Some(i),
                });
                let request = gate::Request::Notify { condition: 0, n };
                self.send(i, [Message::Gate(request)], Phase::Done);
            }
            Phase::Notify {
                vigils: left,
                n,
                among,
            } => {
                let Some(notified) = self.run(i, broken, fault, |m| notify(m, &vigils, &parks, me))
                else {
                    return;
                };
                let (left, n) = match notified {
                    None => (0, n),
                    Some(_) => (left - 1, n - 1),
                };
                if notified.is_some() {
                    self.owed.push(Owed {
                        n: 1,
                        among: among.clone(),
                        unsent: None,
                    });
                }
                let then = Phase::Notify {
                    vigils: left,
                    n,
                    among,
                };
                self.send(i, notified.flatten().map(Message::Rouse), then);
            }
            Phase::Done | Phase::End => (),
        }
    }

    /// What comes when a look has found nothing.
    fn lie_down(&self, i: usize, nap: Nap) -> Phase {
        match self.clients[i].wake {
            // What rings since the look began is heard.
            Wake::Bell => Phase::Asleep(nap),
            Wake::Futex => Phase::Doze(nap),
        }
    }

    /// The word that client `i` sleeps on as a thread, and what stands there.
    fn bed(&self, i: usize, nap: Nap) -> (usize, u64) {
        let client = &self.clients[i];
        match (nap, client.vigil) {
            (Nap::Vigil, Some(place)) => (place.word(), place.asleep()),
            _ => (self.park().sleeper, park::value(i as u32 + 1, client.wake)),
        }
    }

    /// Wakes whoever sleeps beside the broker.
    pub(super) fn rouse(&mut self, whom: Rouse) {
        match whom {
            Rouse::Process(client) => self.clients[client as usize - 1].bell = true,
            Rouse::Thread(word) => {
                for i in 0..self.clients.len() {
                    if let Phase::Asleep(nap) = self.clients[i].phase
                        && self.clients[i].wake == Wake::Futex
                        && self.bed(i, nap).0 == word
                    {
                        self.clients[i].bell = true;
                    }
                }
            }
        }
    }

    /// Gives the word back, and tells whoever has to be told. False while it is not done.
    fn give(
        &mut self,
        i: usize,
        word: usize,
        then: Phase,
        broken: Option<Rule>,
        fault: &mut Option<String>,
    ) -> bool {
        let me = i as u32 + 1;
        let Some(tell) = self.run(i, broken, fault, |m| word::give(m, word, me)) else {
            return false;
        };
        self.given(i, told(tell, me, word), then);
        true
    }

    /// A permit was freed, which a sleeper is told, and the broker this.
    fn given(&mut self, i: usize, message: Option<Message>, then: Phase) {
        if self.sleeps {
            self.enter(i, Phase::Given(message, Box::new(then)));
        } else {
            self.send(i, message, then);
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
        // Who waits for the lock again keeps the turn by which the notification is owed.
        if client.vigil.is_none() {
            client.turn += 1;
        }
        let slot = AtomicU64::new(self.slots[i]);
        slot::begin(&slot, client.turn, Wake::Bell);
        self.slots[i] = slot.into_inner();
        let message = request(self.ticket(i));
        self.send(i, [message], Phase::Wait);
    }

    /// Takes a permit, or sleeps beside the broker, or asks it.
    fn take(&mut self, i: usize, broken: Option<Rule>, fault: &mut Option<String>) {
        let me = i as u32 + 1;
        let permits = self.permits();
        match self.run(i, broken, fault, |m| word::take(m, permits, 0, me)) {
            None => (),
            Some(Some(taken)) => {
                self.clients[i].holds = Some(taken.word);
                self.has_taken(i);
            }
            Some(None) if self.sleeps => self.enter(i, Phase::Park),
            Some(None) => self.ask(i, |ticket| Message::Gate(gate::Request::Acquire(ticket))),
        }
    }

    fn has_taken(&mut self, i: usize) {
        match self.clients[i].vigil {
            Some(_) => self.enter(i, Phase::Settle),
            None => self.next(i),
        }
    }

    /// Client `i` has got what a notification owed it.
    fn is_notified(&mut self, i: usize) {
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

    /// Who waits for a notification now, by the truth and not by what a notifier sees.
    fn waiters(&self) -> Vec<(usize, u32)> {
        let waits = |(i, client): &(usize, &Client)| {
            if client.life != Life::Runs || client.op() != Some(Op::Wait) {
                return false;
            }
            match client.vigil {
                // From the moment on when it is there to be seen. Who comes now has the lock first.
                Some(place) => {
                    matches!(
                        client.phase,
                        Phase::Say
                            | Phase::Look(Nap::Vigil)
                            | Phase::Doze(Nap::Vigil)
                            | Phase::Asleep(Nap::Vigil)
                    ) && !place.is_marked(self.words[place.word()])
                }
                // Those whose message the broker has not taken still hold the lock.
                None => {
                    client.phase == Phase::Wait
                        && client.inbox.is_empty()
                        && slot::answer_of(&AtomicU64::new(self.slots[*i])).is_none()
                }
            }
        };
        let waiters = self.clients.iter().enumerate().filter(waits);
        waiters.map(|(i, client)| (i, client.turn)).collect()
    }

    fn line(&mut self, i: usize, broken: Option<Rule>, fault: &mut Option<String>) {
        let me = i as u32 + 1;
        let permits = self.permits();
        let Some(op) = self.clients[i].op() else {
            return;
        };
        match op {
            Op::Take => self.take(i, broken, fault),
            Op::Give | Op::Forget => {
                // It counts as given from the first step on.
                if let Some(word) = self.clients[i].holds.take() {
                    self.clients[i].gives = Some(word);
                }
                let Some(word) = self.clients[i].gives else {
                    return self.next(i);
                };
                if word == LEDGER {
                    let request = gate::Request::ReleaseLedger { client: me };
                    self.send(i, [Message::Gate(request)], Phase::Done);
                } else if op == Op::Forget {
                    let done = self.run(i, broken, fault, |m| word::disown(m, word, me, false));
                    let Some(()) = done else { return };
                    self.n_forgotten += 1;
                    self.next(i);
                } else if !self.give(i, word, Phase::Done, broken, fault) {
                    return;
                }
                self.clients[i].gives = None;
            }
            Op::Add => {
                let tell = self.run(i, broken, fault, |m| word::give_nobodys(m, permits));
                let tell = match tell {
                    None => return,
                    // Nothing was forgotten.
                    Some(None) => return self.next(i),
                    Some(Some(tell)) => tell,
                };
                match self.n_forgotten.checked_sub(1) {
                    Some(less) => self.n_forgotten = less,
                    None => {
                        fault.get_or_insert_with(|| "a permit was given back twice".to_owned());
                    }
                }
                self.given(i, told(tell, me, 0), Phase::Done);
            }
            Op::Wait => {
                let Some(word) = self.clients[i].holds else {
                    return self.next(i);
                };
                let (vigils, wake) = (self.vigil(), self.clients[i].wake);
                let place = if self.sleeps {
                    self.run(i, broken, fault, |m| vigil::begin(m, &vigils, me, 0, wake))
                } else {
                    Some(None)
                };
                let Some(place) = place else { return };
                self.clients[i].holds = None;
                if place.is_some() {
                    self.clients[i].turn += 1;
                    self.clients[i].vigil = place;
                    return self.enter(i, Phase::Release(word));
                }
                self.ask(i, |ticket| {
                    Message::Gate(gate::Request::Wait {
                        ticket,
                        condition: 0,
                    })
                });
            }
            Op::Notify(n) => {
                let (vigils, sleeps) = (self.vigil(), self.sleeps);
                let seen = self.run(i, broken, fault, |m| {
                    let n_queued = m.load(CONDITION)? as u32;
                    let n_vigils = if sleeps {
                        vigil::n_waiting(m, &vigils, 0)?
                    } else {
                        0
                    };
                    Ok((n_queued, n_vigils))
                });
                let Some((n_queued, n_vigils)) = seen else {
                    return;
                };
                let among = self.waiters();
                if n_queued + n_vigils < n.min(among.len() as u32) {
                    fault.get_or_insert_with(|| {
                        "a notifier does not see who waits: a notification is lost".to_owned()
                    });
                }
                let n = n.min(n_queued + n_vigils);
                let vigils = n.min(n_vigils);
                self.enter(i, Phase::Notify { vigils, n, among });
            }
            Op::Arrive => self.ask(i, |t| Message::Barrier(barrier::Request::Arrive(t))),
            Op::Reset => {
                let reset = Message::Barrier(barrier::Request::Reset);
                self.send(i, [reset], Phase::Done);
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
                        self.send(i, [Message::Ring], Phase::Done);
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
        let client = &self.clients[i];
        if client.op() == Some(Op::Wait) && client.vigil.is_none() {
            self.is_notified(i);
        }
        match answer {
            Some(Answer::Permit(word)) => {
                self.clients[i].holds = Some(PERMITS + word as usize);
                self.has_taken(i);
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
}

/// Notifies the next one who keeps vigil, and puts off its waking if the notifier has the lock. Nothing
/// if nobody keeps vigil.
fn notify(
    memory: &mut Replay<'_>,
    vigils: &vigil::Layout,
    parks: &park::Layout,
    me: u32,
) -> Result<Option<Option<Rouse>>, Stopped> {
    let Some(whom) = vigil::notify_one(memory, vigils, 0)? else {
        return Ok(None);
    };
    if let Some(Rouse::Process(client)) = whom
        && park::put_off(memory, parks.sleeper, parks.permits.start, me, client)?
    {
        return Ok(Some(None));
    }
    Ok(Some(whom))
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
