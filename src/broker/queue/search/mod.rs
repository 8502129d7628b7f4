//! Every order of steps: an exhaustive search through the queue's protocol.
//!
//! A few clients, each with a short program, and the broker take steps, each of them one atomic
//! operation on the words; the search takes every step that is possible in every state once. Beside
//! them, within a budget, a client is *killed* at any step, *stopped* for good at any step, or gives
//! up a wait (a future can be dropped only where it sleeps). The functions are the real ones: a step
//! is taken by running the function again with the results of its earlier steps and stopping after
//! the next. What is behind a client and does not matter to what is before it is forgotten, so that
//! such states are one.
//!
//! A patrol comes when it was asked for and nothing else moves; in some worlds at any time that the
//! broker's patience allows.
//!
//! What must hold:
//! - items of one producer are taken in their order, each of them is got once, and there are never
//!   more than the limit; a put that finds no room had none at some time;
//! - when nothing can move, nobody waits for what is there; while somebody is stopped, the same holds
//!   after the patrols that were asked for;
//! - what was put is got, or still there; slots and blocks of nobody are free.
//!
//! Each rule of the queue in [`Rule`] is broken here, to see the search fail. A debug build searches a
//! part; `cargo test --release --lib queue::search` searches everything, more than a hundred million
//! states in some ten minutes.

mod client;
mod replay;
mod rest;

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use super::keep::N_PATROLS;
use super::sweep;
use super::words::{self, Kind, State};
use crate::broker::memory::Rule;
use crate::broker::turn::{Stopped, Turn};

use client::{Client, Op};
use replay::{Replay, place};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Life {
    Runs,
    Stopped,
    Dead,
    /// Dead, and the broker has swept.
    Swept,
    Ended,
}

/// Clients, seats, slots and blocks of the model.
const CLIENTS: usize = 4;
const SLOTS: usize = 5;
const BLOCKS: usize = 2;
const HEADER: usize = 72;
const SEAT_WORDS: usize = 7;
const SLOT_WORDS: usize = 5;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    words: Vec<u64>,
    clients: Vec<Client>,
    /// What the broker is doing: sweeping a client, or on patrol; and the results of its steps.
    broker: Option<(Option<usize>, Vec<u64>)>,
    kills: u32,
    stops: u32,
    cancels: u32,
    /// Only this client is killed, stopped or cancelled.
    victim: Option<usize>,
    /// Items that are linked and not taken (by slot), in order, by producer and number there.
    queued: Vec<(usize, usize)>,
    /// The same for each slot, from the claim on.
    items: Vec<(usize, usize)>,
    /// Numbers of the items that each producer claimed a slot for, and that were taken last.
    made: Vec<usize>,
    taken: Vec<usize>,
    n_linked: usize,
    /// Puts that have ended well.
    n_put: usize,
    /// Whether what stands in a slot has been linked.
    linked: Vec<bool>,
    /// Whether anything is ever put back.
    puts_back: bool,
    got: Vec<(usize, usize)>,
    /// Items whose reader was killed when it had copied them and gave the slot back.
    n_lost: usize,
    n_done: usize,
    /// Somebody may be stopped, so the broker patrols when it is asked to.
    patrols: bool,
    /// How many patrols are to come at least.
    n_asked: u32,
    patrols_early: bool,
    /// Who was in the middle of something when the broker was asked last, and still is.
    held_up: Vec<bool>,
    /// Processes use what they saw last of the head and the tail, the last one being the broker.
    recalls: bool,
    seen: Vec<[u64; 2]>,
    /// How often each of them had to go round while nobody did anything.
    n_rounds: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Step(usize),
    Broker,
    Sweep(usize),
    Patrol,
    Kill(usize),
    Stop(usize),
    Cancel(usize),
}

impl World {
    fn new(limit: u64, programs: &[&'static [Op]]) -> Self {
        let n_words = HEADER + CLIENTS * SEAT_WORDS + SLOTS * SLOT_WORDS + BLOCKS;
        let mut world = Self {
            words: vec![0; n_words],
            clients: programs
                .iter()
                .map(|program| Client::new(program))
                .collect(),
            broker: None,
            kills: 0,
            stops: 0,
            cancels: 0,
            victim: None,
            queued: Vec::new(),
            items: vec![(0, 0); SLOTS],
            made: vec![0; programs.len()],
            taken: vec![0; programs.len()],
            n_linked: 0,
            n_put: 0,
            linked: vec![false; SLOTS],
            puts_back: programs
                .iter()
                .copied()
                .flatten()
                .any(|op| [Op::PutBack, Op::LeaseBack].contains(op)),
            got: Vec::new(),
            n_lost: 0,
            n_done: 0,
            patrols: false,
            n_asked: 0,
            patrols_early: false,
            held_up: vec![false; programs.len()],
            recalls: false,
            seen: vec![[0; 2]; programs.len() + 1],
            n_rounds: vec![0; programs.len() + 1],
        };
        let mut put = |word: usize, value: u64| world.words[place(word)] = value;
        put(words::LIMIT, limit);
        put(words::SLOTS, SLOTS as u64);
        put(words::BLOCKS, BLOCKS as u64);
        put(words::SEATS, programs.len() as u64);
        put(words::state(0), State::word(Kind::Done, 0, 1));
        put(words::next(0), words::end(1));
        put(words::HEAD, words::link(1, 0));
        put(words::TAIL, words::link(1, 0));
        for i in 0..programs.len() {
            put(words::owner(i), i as u64 + 1);
        }
        world
    }

    fn budget(self, kills: u32, stops: u32, cancels: u32) -> Self {
        Self {
            kills,
            stops,
            cancels,
            patrols: stops > 0,
            puts_back: self.puts_back || kills > 0,
            ..self
        }
    }

    /// The same, when this client has gone on by itself until it has come so far.
    fn when(mut self, client: usize, is_there: impl Fn(&Client) -> bool) -> Self {
        let mut fault = None;
        while !is_there(&self.clients[client]) {
            self.apply(Event::Step(client), None, &mut fault);
        }
        assert_eq!(fault, None);
        self
    }

    /// The same, when this client has carried out so many lines.
    fn after(self, client: usize, n_lines: usize) -> Self {
        self.when(client, |client| {
            client.life == Life::Ended || client.line == n_lines
        })
    }

    /// The same, when it has carried out the first part of the line after them: it has taken an item, or
    /// claimed a slot for one.
    fn holding(self, client: usize, n_lines: usize) -> Self {
        self.when(client, |client| {
            client.line == n_lines && client.is_between_parts()
        })
    }

    /// The same, when this client sleeps, and the patrols that it has asked for are over.
    fn asleep(self, client: usize) -> Self {
        self.when(client, |client| client.asleep.is_some())
    }

    /// The same, where patrols come at any time.
    fn with_early_patrols(self) -> Self {
        Self {
            patrols_early: true,
            ..self
        }
    }

    /// The same, where processes use old values of the head and the tail.
    fn recalls(self) -> Self {
        Self {
            recalls: true,
            ..self
        }
    }

    fn only(self, victim: usize) -> Self {
        Self {
            victim: Some(victim),
            ..self
        }
    }

    /// Everything that moves by itself.
    fn steps(&self) -> Vec<Event> {
        let mut events = Vec::new();
        for (i, client) in self.clients.iter().enumerate() {
            if client.life == Life::Runs && (client.asleep.is_none() || client.bell) {
                events.push(Event::Step(i));
            }
            if client.life == Life::Dead && self.broker.is_none() {
                events.push(Event::Sweep(i));
            }
        }
        if self.broker.is_some() {
            events.push(Event::Broker);
        }
        events
    }

    fn disasters(&self) -> Vec<Event> {
        let mut events = Vec::new();
        if self.patrols_early && self.broker.is_none() && self.may_patrol() {
            events.push(Event::Patrol);
        }
        for (i, client) in self.clients.iter().enumerate() {
            if client.life != Life::Runs || self.victim.is_some_and(|victim| victim != i) {
                continue;
            }
            if self.kills > 0 {
                events.push(Event::Kill(i));
            }
            if self.stops > 0 {
                events.push(Event::Stop(i));
            }
            if self.cancels > 0 && client.asleep.is_some() {
                events.push(Event::Cancel(i));
            }
        }
        events
    }

    /// The broker is asked to patrol.
    fn ask(&mut self) {
        if !self.patrols {
            return;
        }
        self.n_asked = N_PATROLS;
        if self.patrols_early {
            self.held_up = self.clients.iter().map(Client::is_busy).collect();
        }
    }

    /// The first of two patrols may come at once. Before the second one everybody who was in the middle of
    /// something when the broker was asked has come to an end, has announced what it does, or is stopped.
    fn may_patrol(&self) -> bool {
        let is_late = |i: &usize| {
            let acts = self.words[place(words::acting(*i))] != 0;
            self.held_up[*i] && self.clients[*i].is_busy() && !acts
        };
        self.n_asked == N_PATROLS
            || self.n_asked > 0 && !(0..self.clients.len()).any(|i| is_late(&i))
    }

    fn apply(&mut self, event: Event, broken: Option<Rule>, fault: &mut Option<String>) {
        if let Event::Step(i) = event {
            self.held_up[i] &= self.clients[i].is_busy();
        }
        match event {
            Event::Step(i) => self.client_step(i, broken, fault),
            Event::Broker => self.broker_step(broken, fault),
            Event::Sweep(i) => self.broker = Some((Some(i), Vec::new())),
            Event::Patrol => {
                self.n_asked = self.n_asked.saturating_sub(1);
                self.broker = Some((None, Vec::new()));
            }
            Event::Kill(i) => {
                self.kills -= 1;
                let leaves = |slot: &usize| {
                    let state = State::of(self.words[place(words::state(*slot))]);
                    state.kind == Kind::Leaving && state.client == i as u32 + 1
                };
                self.n_lost += (0..SLOTS).filter(leaves).count();
                self.clients[i].becomes(Life::Dead);
            }
            Event::Stop(i) => {
                self.stops -= 1;
                self.clients[i].becomes(Life::Stopped);
            }
            Event::Cancel(i) => {
                self.cancels -= 1;
                self.clients[i].gives_up();
            }
        }
    }

    /// Whether a patrol, which comes again and again while somebody is stopped in the middle of
    /// something, changes nothing.
    fn patrols_in_vain(&self, broken: Option<Rule>) -> bool {
        let mut next = self.clone();
        let mut fault = None;
        next.apply(Event::Patrol, broken, &mut fault);
        while next.broker.is_some() && fault.is_none() {
            next.apply(Event::Broker, broken, &mut fault);
        }
        next.words == self.words && next.clients == self.clients
    }

    fn broker_step(&mut self, broken: Option<Rule>, fault: &mut Option<String>) {
        let Some((what, log)) = self.broker.take() else {
            return;
        };
        let mut replay = Replay {
            world: self,
            client: None,
            turn: Turn::new(log),
            broken,
            fault,
        };
        let mut patrols_again = false;
        let done = match what {
            Some(i) => sweep::sweep(&mut replay, i as u32 + 1, &mut Vec::new()),
            None => sweep::patrol(&mut replay).map(|again| patrols_again = again),
        };
        let log = replay.turn.into_log();
        match (done, what) {
            (Err(Stopped), _) => self.broker = Some((what, log)),
            (Ok(()), Some(i)) => self.clients[i].life = Life::Swept,
            (Ok(()), None) if patrols_again => self.n_asked = self.n_asked.max(1),
            (Ok(()), None) => (),
        }
    }
}

/// Takes every way; tells what went wrong, or how many states there are.
fn search(world: World, broken: Option<Rule>) -> Result<usize, String> {
    let hash = |world: &World| {
        let mut hasher = DefaultHasher::new();
        world.hash(&mut hasher);
        hasher.finish()
    };
    let mut seen = HashSet::from([hash(&world)]);
    let mut open = vec![world];
    while let Some(world) = open.pop() {
        let mut events = world.steps();
        if events.is_empty() {
            if world.n_asked == 0 || world.patrols_in_vain(broken) {
                world.check_quiet()?;
            } else {
                events.push(Event::Patrol);
            }
        }
        events.extend(world.disasters());
        for event in events {
            let mut next = world.clone();
            let mut fault = None;
            next.apply(event, broken, &mut fault);
            if let Some(fault) = fault {
                return Err(fault);
            }
            if seen.insert(hash(&next)) {
                open.push(next);
            }
        }
    }
    Ok(seen.len())
}

fn put_get(limit: u64) -> World {
    World::new(limit, &[&[Op::Put], &[Op::Get]])
}
fn two_put(limit: u64) -> World {
    World::new(limit, &[&[Op::Put], &[Op::Put]])
}
fn two_get() -> World {
    World::new(0, &[&[Op::Put], &[Op::Get], &[Op::Get]])
}
fn full() -> World {
    World::new(1, &[&[Op::Put, Op::Put], &[Op::Get]])
}

/// Somebody sleeps until each of the operations makes something possible, whose client is stopped.
fn announcers() -> Vec<World> {
    use Op::*;
    [
        put_get(0).asleep(1).only(0),
        full().after(0, 1).asleep(0).only(1),
        World::new(1, &[&[Put, Close], &[Put]])
            .after(0, 1)
            .asleep(1)
            .only(0),
        World::new(0, &[&[Close], &[Get]]).asleep(1).only(0),
        World::new(0, &[&[Put, PutBack], &[Get]])
            .holding(0, 1)
            .asleep(1)
            .only(0),
        World::new(0, &[&[Put, Close, Get], &[Get]])
            .holding(0, 2)
            .asleep(1)
            .only(0),
        World::new(0, &[&[Put, Close, Lease], &[Get]])
            .holding(0, 2)
            .asleep(1)
            .only(0),
        World::new(0, &[&[Put, Lease], &[Join]])
            .after(0, 1)
            .asleep(1)
            .only(0),
        World::new(0, &[&[Put, Get, Done], &[Join]])
            .after(0, 2)
            .asleep(1)
            .only(0),
    ]
    .map(|world| world.budget(0, 1, 0).with_early_patrols())
    .into()
}

/// What would take too long in a debug build.
fn if_optimised<R>(large: Vec<R>) -> Vec<R> {
    match cfg!(debug_assertions) {
        true => Vec::new(),
        false => large,
    }
}

/// Searches all of `small`, and in an optimised build all of `large`.
fn search_all(small: Vec<World>, large: Vec<World>) {
    for world in small.into_iter().chain(if_optimised(large)) {
        let begun = std::time::Instant::now();
        let programs: Vec<_> = world.clients.iter().map(|client| client.program).collect();
        let budget = (world.kills, world.stops, world.cancels);
        let n = search(world, None).unwrap_or_else(|error| panic!("{programs:?}: {error}"));
        let took = begun.elapsed();
        eprintln!(
            "{n} states of {programs:?}, kills, stops and cancellations {budget:?}: {took:?}"
        );
    }
}

#[test]
fn every_order_of_puts_and_gets_is_right() {
    let small = vec![
        put_get(0),
        put_get(1),
        two_put(0),
        World::new(0, &[&[Op::Put], &[Op::Close]]),
        World::new(0, &[&[Op::Close], &[Op::Get]]),
        World::new(0, &[&[Op::PutLarge], &[Op::Get]]),
        World::new(0, &[&[Op::Put, Op::Close, Op::PutBack], &[Op::Get]]),
        World::new(0, &[&[Op::Put], &[Op::Lease]]),
        put_get(1).recalls(),
    ];
    let large = vec![
        two_put(1),
        full(),
        full().recalls(),
        World::new(0, &[&[Op::Put, Op::Put], &[Op::Get, Op::Get]]).recalls(),
        World::new(2, &[&[Op::Put, Op::Put, Op::Put], &[Op::Get, Op::Get]]).recalls(),
        World::new(0, &[&[Op::Put, Op::Get], &[Op::Put, Op::Get]]),
        World::new(0, &[&[Op::Put, Op::LeaseBack], &[Op::Lease]]),
        World::new(0, &[&[Op::Put, Op::Lease], &[Op::Join]]),
        two_get(),
        World::new(0, &[&[Op::Put], &[Op::Put], &[Op::Get]]),
        World::new(1, &[&[Op::Put], &[Op::Put], &[Op::Get]]),
        World::new(0, &[&[Op::Put], &[Op::Get], &[Op::Close]]),
        World::new(0, &[&[Op::Put, Op::Close, Op::Get], &[Op::Get]]),
    ];
    search_all(small, large);
}

#[test]
fn every_kill_leaves_it_right() {
    let small = vec![
        World::new(0, &[&[Op::PutLarge, Op::Get]]).budget(1, 0, 0),
        World::new(0, &[&[Op::Put, Op::Lease]]).budget(1, 0, 0),
    ];
    let large = vec![
        put_get(0).budget(1, 0, 0),
        two_put(0).budget(1, 0, 0),
        put_get(1).budget(2, 0, 0),
        two_put(1).budget(1, 0, 0),
        full().budget(1, 0, 0),
        full().budget(1, 0, 0).recalls(),
        World::new(0, &[&[Op::PutLarge], &[Op::Get]]).budget(1, 0, 0),
        World::new(0, &[&[Op::Put, Op::PutBack], &[Op::Get]]).budget(1, 0, 0),
        World::new(0, &[&[Op::Put, Op::Lease], &[Op::Lease]]).budget(1, 0, 0),
        World::new(0, &[&[Op::Close], &[Op::Get]]).budget(1, 0, 0),
        World::new(0, &[&[Op::Put, Op::Close, Op::Get], &[Op::Get]]).budget(1, 0, 0),
        World::new(0, &[&[Op::Put, Op::Get, Op::Done], &[Op::Join]]).budget(1, 0, 0),
        World::new(0, &[&[Op::Put, Op::Lease], &[Op::Join]]).budget(1, 0, 0),
        two_get().after(0, 1).budget(1, 0, 0).only(1),
    ];
    search_all(small, large);
}

#[test]
fn every_stop_and_every_cancellation_leaves_it_right() {
    let small = vec![
        put_get(0).budget(0, 0, 1),
        put_get(0).budget(0, 1, 0),
        put_get(1).budget(0, 1, 0),
    ];
    let large = vec![
        full().budget(0, 1, 0),
        full().budget(0, 0, 1),
        World::new(0, &[&[Op::Put, Op::Get, Op::Done], &[Op::Join]]).budget(0, 1, 0),
        World::new(0, &[&[Op::Put, Op::Lease], &[Op::Join]]).budget(0, 1, 0),
        World::new(0, &[&[Op::Put, Op::Close], &[Op::Get, Op::Get]]).budget(0, 1, 0),
        World::new(0, &[&[Op::Put, Op::PutBack], &[Op::Get]]).budget(0, 1, 0),
        two_get().budget(0, 1, 0),
        two_get().budget(0, 0, 1),
    ];
    // Somebody begins to wait while a put is under way.
    let begins = put_get(0).holding(0, 0).only(0);
    let begins = begins.budget(0, 1, 0).with_early_patrols();
    let large = [begins].into_iter().chain(announcers()).chain(large);
    search_all(small, large.collect());
}

#[test]
fn every_rule_is_needed() {
    use Rule::*;
    let one_and_two = || World::new(0, &[&[Op::Put, Op::Put], &[Op::Get], &[Op::Get]]);
    let two_and_one = || World::new(0, &[&[Op::Put], &[Op::Put], &[Op::Get]]);
    let mut missed = Vec::new();
    for (rule, world) in [
        (QueueMarksBeforeTail, two_put(0).budget(1, 0, 0)),
        (QueueTakeIsOneStep, two_get()),
        (QueueLinkIsOneStep, two_put(0)),
        (QueueReusesPassedSlots, two_put(0)),
        (QueueLimitIsExact, full()),
        (QueueFullMovesHead, full()),
        (QueueWakesAfterLink, put_get(0)),
        (QueueWaiterLooksAgain, put_get(0)),
        (
            QueueReturnIsCounted,
            World::new(0, &[&[Op::Put, Op::PutBack], &[Op::Get]]),
        ),
        (
            QueueOwesBeforeLeaving,
            World::new(0, &[&[Op::Put, Op::Get, Op::Done], &[Op::Join]]),
        ),
        (QueueDeathReturns, put_get(0).budget(1, 0, 0)),
        (QueueDeathFrees, put_get(0).budget(1, 0, 0)),
        (QueueDeathServes, put_get(0).budget(1, 0, 0)),
        (QueuePatrols, two_get().budget(0, 1, 0).only(1)),
        (QueueLookBeginsTurn, one_and_two()),
        (QueueRingsBeforeNote, two_and_one().budget(0, 1, 0).only(0)),
        (QueueWokenPassesOn, two_get().budget(0, 0, 1).only(1)),
        (QueueWaiterAnnounces, put_get(0).only(0).budget(0, 1, 0)),
    ]
    .into_iter()
    .chain(announcers().into_iter().flat_map(|world| {
        let early = world.clone();
        [(QueueAnnounces, world), (QueueActingCounts, early)]
    })) {
        let begun = std::time::Instant::now();
        let found = search(world, Some(rule));
        println!("{rule:?}: {found:?} after {:?}", begun.elapsed());
        if found.is_ok() {
            missed.push(rule);
        }
    }
    assert!(missed.is_empty(), "nobody misses {missed:?}");
}
