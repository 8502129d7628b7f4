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
//! - what belongs to nobody is given back as often as it was forgotten, and is free then;
//! - a lock's new owner sees the mark if and only if the last one died with it;
//! - when nothing can move but time, nobody waits while a permit is free; when a process is stopped,
//!   the same holds once time has passed;
//! - a notification reaches somebody who waited when it was sent, if any of them still does;
//! - when all programs have ended, every permit is there and the words are open;
//! - a generation of a barrier that is complete passes, with distinct numbers and one leader, or is
//!   broken for all of its parties, and nobody waits at one that can no longer be completed;
//! - nobody sleeps at an event that is up or was raised since;
//! - nobody sleeps beside the broker while a permit is free, unless somebody was killed or stopped:
//!   then until the sleeper's patrol comes.
//!
//! A debug build searches a part; `cargo test --release broker` searches everything, some ninety
//! million states in three minutes.
//!
//! Who sleeps beside the broker ([`super::park`], [`super::vigil`]) is searched in worlds of its own, as
//! it multiplies the states. A process that sleeps is rung at once, as its bell is known, or by the
//! broker, when that comes to read it: both are searched.
//!
//! Each [`Rule`] that the protocols stand on has a test here that breaks it and sees the search fail.

mod broker;
mod client;
mod replay;
mod rest;
mod rules;

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::barrier::{self, Barrier};
use super::gate::{self, Gate};
use super::memory::Rule;
use super::park::{self, Rouse};
use super::slot::{self, Wake};
use super::vigil;

use broker::Pending;
use client::{Client, Nap, Op, Phase};

const LEDGER: usize = 0;
const CONDITION: usize = 1;
const STATE: usize = 2;
const WAITING: usize = 3;
const FLAG: usize = 4;
const SLEEPER: usize = 5;
/// How many have kept vigil, and the words of those who do.
const KEPT: usize = 6;
const VIGILS: usize = 7;
/// For each client: the patrol has found it parked.
const EXPIRED: usize = 9;
const PERMITS: usize = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Message {
    Gate(gate::Request),
    Barrier(barrier::Request),
    /// The setter of an event rings the bell: it reaches all sleepers at once, without the broker.
    Ring,
    /// Wakes who sleeps beside the broker.
    Rouse(Rouse),
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
    pending: Option<Pending>,
    now: Duration,
    kills: u32,
    stops: u32,
    cancels: u32,
    /// Permits of the ledger, lent or not.
    ledger: u64,
    /// Permits that belong to nobody until they are given back.
    n_forgotten: u32,
    /// The lock's last owner died with it.
    died_with_lock: bool,
    owed: Vec<Owed>,
    /// Clients sleep beside the broker before they ask it, at a lock in so many vigils at once.
    sleeps: bool,
    n_vigils: usize,
    /// Processes ring each other themselves, not by the broker.
    knows_bells: bool,
    /// Somebody was killed or stopped.
    is_hurt: bool,
}

/// What can happen next.
#[derive(Clone, Copy, Debug)]
enum Event {
    Step(usize),
    Broker,
    Receive(usize),
    Sweep(usize),
    Time,
    Patrol(usize),
    Kill(usize),
    Stop(usize),
    Cancel(usize),
}

impl World {
    fn new(machine: Machine, n_permits: usize, programs: &[&'static [Op]]) -> Self {
        Self {
            words: vec![0; PERMITS + n_permits],
            slots: vec![0; programs.len()],
            clients: programs
                .iter()
                .map(|program| Client::new(program))
                .collect(),
            machine,
            pending: None,
            now: Duration::ZERO,
            kills: 0,
            stops: 0,
            cancels: 0,
            ledger: 0,
            n_forgotten: 0,
            died_with_lock: false,
            owed: Vec::new(),
            sleeps: false,
            n_vigils: 0,
            knows_bells: true,
            is_hurt: false,
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

    /// The same, where clients sleep beside the broker: as threads those that `threads` says.
    fn with_sleepers(mut self, n_vigils: usize, threads: &[usize]) -> Self {
        self.sleeps = true;
        self.n_vigils = n_vigils;
        for i in threads {
            self.clients[*i].wake = Wake::Futex;
        }
        self
    }

    /// The same, where no process knows another one's bell.
    fn without_bells(self) -> Self {
        Self {
            knows_bells: false,
            ..self
        }
    }

    /// The same, when these clients have gone on by themselves, one after the other, until they wait.
    fn when_waiting(mut self, clients: &[usize]) -> Self {
        for client in clients {
            loop {
                let moves = |event: &Event| !matches!(event, Event::Step(i) if i != client);
                let Some(event) = self.steps().into_iter().find(moves) else {
                    break;
                };
                self.apply(event, None)
                    .expect("nothing goes wrong when one goes on by itself");
            }
        }
        self
    }

    fn park(&self) -> park::Layout {
        park::Layout {
            sleeper: SLEEPER,
            permits: self.permits(),
            ledger: LEDGER,
        }
    }

    fn vigil(&self) -> vigil::Layout {
        vigil::Layout {
            vigils: VIGILS..VIGILS + self.n_vigils,
            kept: KEPT,
            conditions: CONDITION,
        }
    }

    fn marks_death(&self) -> bool {
        // The only gate with conditions is a lock's.
        match &self.machine {
            Machine::Gate(gate) => gate.marks_death(),
            _ => false,
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
            Phase::Sleep(_) | Phase::Asleep(_) => client.bell,
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
            let parked = [
                Phase::Look(Nap::Park),
                Phase::Doze(Nap::Park),
                Phase::Asleep(Nap::Park),
            ];
            if parked.contains(&client.phase) && self.words[EXPIRED + i] == 0 {
                events.push(Event::Patrol(i));
            }
            if self.kills > 0 {
                events.push(Event::Kill(i));
            }
            if self.stops > 0 && client.phase != Phase::End {
                events.push(Event::Stop(i));
            }
            let waits = match client.phase {
                Phase::Wait | Phase::Sleep(_) | Phase::Lead => true,
                // A thread's wait is not given up.
                Phase::Asleep(_) => client.wake == Wake::Bell,
                _ => false,
            };
            if self.cancels > 0 && waits {
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
                if let Message::Rouse(whom) = message {
                    self.rouse(whom);
                    return Ok(());
                }
                self.begin(message);
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
                self.begin(gone);
                self.broker_step(broken, &mut fault);
            }
            Event::Time => {
                self.now = self.deadline().map_or(self.now, |due| due.max(self.now));
                self.begin(Message::Gate(gate::Request::Time));
                self.broker_step(broken, &mut fault);
            }
            Event::Patrol(i) => self.patrol(i),
            Event::Kill(i) => {
                self.kills -= 1;
                self.is_hurt = true;
                self.leave(i);
                self.clients[i].life = Life::Dead;
                self.clients[i].phase = Phase::End;
                self.clients[i].holds = None;
                self.clients[i].vigil = None;
            }
            Event::Stop(i) => {
                self.stops -= 1;
                self.is_hurt = true;
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

    /// The supervisor of client `i`'s process finds it parked for long.
    fn patrol(&mut self, i: usize) {
        self.words[EXPIRED + i] = 1;
        // One step stands for the look and the exchange: if another one comes between, the exchange
        // does nothing, as if the look came later.
        if self.words[SLEEPER] as u32 == i as u32 + 1 {
            self.words[SLEEPER] = 0;
        }
        let client = &mut self.clients[i];
        if client.wake == Wake::Bell || client.phase == Phase::Asleep(Nap::Park) {
            client.bell = true;
        }
    }

    fn ring(&mut self) {
        for client in &mut self.clients {
            client.bell = true;
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
    let mut open = vec![(start, 0)];
    while let Some((world, hash)) = open.pop() {
        if broken.is_none() && seen.len() > STATES_MAX {
            break;
        }
        let mut events = world.steps();
        if events.is_empty() {
            world
                .at_rest()
                .map_err(|what| format!("{what}:\n{world:#?}"))?;
        }
        events.extend(world.blows());
        // Another one first in each state: else the blows would all come as early as they can, or as
        // late, until everything else has been seen.
        let first = hash as usize % events.len().max(1);
        events.rotate_left(first);
        for event in events {
            let mut next = world.clone();
            next.apply(event, broken)
                .map_err(|what| format!("{what}: {event:?}\n{world:#?}"))?;
            let mut hasher = DefaultHasher::new();
            next.hash(&mut hasher);
            let hash = hasher.finish();
            if seen.insert(hash) {
                open.push((next, hash));
            }
        }
    }
    Ok(seen.len())
}
