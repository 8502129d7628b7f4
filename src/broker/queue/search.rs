//! Every order of steps: an exhaustive search through the queue's protocol.
//!
//! A few clients, each with a short program, and the broker take steps, each of them one atomic
//! operation on the words; the search takes every step that is possible in every state once. Beside
//! them, within a budget, a client is *killed* at any step, *stopped* for good at any step, or gives
//! up a wait (a future can be dropped only where it sleeps). The functions are the real ones: a step
//! is taken by running the function again with the results of its earlier steps and stopping after
//! the next.
//!
//! What must hold:
//! - items of one producer are taken in their order, each of them is got once, and there are never
//!   more than the limit;
//! - when nothing can move, nobody waits for what is there; while somebody is stopped, the same holds
//!   after a patrol;
//! - what was put is got, or still there; slots and blocks of nobody are free.
//!
//! Rules of the queue in [`Rule`] are broken here, to see the search fail. Two are not:
//! `QueueFullMovesHead`, which would take more than a minute and is broken in tests/kill_queue.rs, and
//! `QueueTakerWakesNext`, which nobody has missed so far: whoever was woken and takes an item passes
//! the wake-up on in any case.

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::atomic::Ordering;

use super::deal;
use super::steps::{self, Got, Put};
use super::sweep;
use super::wait::{self, Bells};
use super::words::{self, For, Kind, State};
use crate::broker::memory::{Memory, Rule};
use crate::broker::slot::Wake;

/// One line of a client's program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Op {
    /// Put an item, waiting for room.
    Put,
    /// The same with one that needs a block.
    PutLarge,
    /// Get an item, waiting for one.
    Get,
    /// Take an item and put it back.
    PutBack,
    /// Report an item as done.
    Done,
    /// Wait until all is done.
    Join,
    /// Close the queue.
    Close,
}
use Op::{Close, Done, Get, Join, PutBack, PutLarge};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Life {
    Runs,
    Stopped,
    Dead,
    /// Dead, and the broker has swept.
    Swept,
    Ended,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Client {
    program: &'static [Op],
    line: usize,
    /// Results of the steps of the present line.
    log: Vec<u64>,
    life: Life,
    bell: bool,
    /// It sleeps, for this, with this slot filled.
    asleep: Option<(For, Option<usize>)>,
    /// It gives up the wait that it slept in.
    gives_up: Option<(For, Option<usize>)>,
}

/// Clients, seats, slots and blocks of the model.
const CLIENTS: usize = 4;
const SLOTS: usize = 5;
const BLOCKS: usize = 2;
const HEADER: usize = 72;
const SEAT_WORDS: usize = 6;
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
    patrolled: bool,
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

/// Where a word of the protocol lies in the model.
fn place(word: usize) -> usize {
    let seats = words::owner(0);
    let slots = words::state(0);
    let blocks = words::block(0);
    if word < HEADER {
        word
    } else if (seats..slots).contains(&word) {
        let (seat, field) = ((word - seats) / 16, (word - seats) % 16);
        HEADER + seat * SEAT_WORDS + field
    } else if (slots..blocks).contains(&word) {
        let (slot, field) = ((word - slots) / 16, (word - slots) % 16);
        HEADER + CLIENTS * SEAT_WORDS + slot * SLOT_WORDS + field
    } else {
        HEADER + CLIENTS * SEAT_WORDS + SLOTS * SLOT_WORDS + (word - blocks)
    }
}

/// Where a search begins is the same in the model, whatever was found before.
fn is_hint(word: usize) -> bool {
    [words::SLOT_HINT, words::BLOCK_HINT].contains(&word)
}

/// The next step belongs to a later turn, or the client sleeps.
struct Stopped;

struct Replay<'a> {
    world: &'a mut World,
    /// Who moves; nothing is the broker.
    client: Option<usize>,
    log: Vec<u64>,
    at: usize,
    fresh: bool,
    broken: Option<Rule>,
    fault: &'a mut Option<String>,
}

/// A failed exchange, in the log; no word uses this bit.
const FAILED: u64 = 1 << 63;

impl Replay<'_> {
    fn step(&mut self, act: impl FnOnce(&mut Self) -> u64) -> Result<u64, Stopped> {
        if let Some(&known) = self.log.get(self.at) {
            self.at += 1;
            return Ok(known);
        }
        if self.fresh {
            return Err(Stopped);
        }
        if self.log.len() > 300 {
            self.fail("it goes round for ever");
        }
        self.fresh = true;
        let result = act(self);
        self.log.push(result);
        self.at += 1;
        Ok(result)
    }

    /// A step that nobody else can see, and that sees nobody else: it is taken with the next one.
    fn private(&mut self, act: impl FnOnce(&mut Self) -> u64) -> Result<u64, Stopped> {
        if let Some(&known) = self.log.get(self.at) {
            self.at += 1;
            return Ok(known);
        }
        if self.fresh {
            return Err(Stopped);
        }
        let result = act(self);
        self.log.push(result);
        self.at += 1;
        Ok(result)
    }

    /// Whether only the one who moves can have to do with the word as it stands.
    fn is_private(&self, word: usize) -> bool {
        let quiet = !self.world.puts_back && [words::RETURNS, words::RETURNS_SEEN].contains(&word);
        let Some(client) = self.client else {
            return quiet;
        };
        let mine = |slot: &usize| {
            let state = State::of(self.world.words[place(words::state(*slot))]);
            state.client == client as u32 + 1
                && (state.kind == Kind::Reading
                    || state.kind == Kind::Writing && !self.is_linked(*slot))
        };
        let of_slot = |slot: usize| words::state(slot)..=words::key(slot);
        let slot = (0..SLOTS).find(|slot| of_slot(*slot).contains(&word));
        // Where these rules are broken, others meddle with what is one's own.
        let breaks_ownership = matches!(
            self.broken,
            Some(
                Rule::QueueLinkIsOneStep
                    | Rule::QueueReusesPassedSlots
                    | Rule::QueueMarksBeforeTail
                    | Rule::QueueTakeIsOneStep
            )
        );
        quiet || slot.as_ref().is_some_and(mine) && !breaks_ownership
    }

    fn is_linked(&self, slot: usize) -> bool {
        self.world.linked[slot]
    }

    fn fail(&mut self, what: &str) {
        self.fault.get_or_insert_with(|| what.to_owned());
    }

    /// Writes a word, and keeps the books.
    fn write(&mut self, word: usize, value: u64) {
        let before = std::mem::replace(&mut self.world.words[place(word)], value);
        for seat in 0..self.world.clients.len() {
            if word == words::owed(seat) && value < before {
                self.world.n_done += 1;
            }
        }
        for slot in 0..SLOTS {
            if word == words::next(slot) && words::is_end(before) && !words::is_end(value) {
                self.linked(before, value);
            }
            if word == words::state(slot) {
                self.changed(slot, State::of(before), State::of(value));
            }
        }
    }

    fn linked(&mut self, before: u64, value: u64) {
        // A slot's end is also written before it is linked, when it gets a later position.
        if words::position(before) != words::position(value) || words::is_closed(value) {
            return;
        }
        let item = self.world.items[words::slot(value)];
        self.world.linked[words::slot(value)] = true;
        self.world.queued.push(item);
        self.world.n_linked += 1;
        let limit = self.world.words[words::LIMIT] as usize;
        if limit != 0 && self.world.queued.len() > limit {
            self.fail("more items than the limit");
        }
    }

    fn changed(&mut self, slot: usize, before: State, after: State) {
        if after.kind == Kind::Writing && before.kind != Kind::Writing {
            let Some(client) = self.client else { return };
            self.world.linked[slot] = false;
            self.world.made[client] += 1;
            self.world.items[slot] = (client, self.world.made[client]);
            if self.world.queued.contains(&self.world.items[slot]) {
                self.fail("a slot was used twice");
            }
        }
        if after.kind == Kind::Reading && before.kind != Kind::Returned {
            let (producer, number) = self.world.items[slot];
            if self.world.queued.first() != Some(&(producer, number)) {
                self.fail("an item was taken that was not the first");
            }
            if number <= self.world.taken[producer] {
                self.fail("items of one producer changed their order");
            }
            self.world.taken[producer] = number;
            self.world.queued.retain(|item| *item != (producer, number));
        }
        let leaves = matches!(before.kind, Kind::Reading | Kind::Leaving);
        if leaves && after.kind == Kind::Done && self.client.is_some() {
            let item = self.world.items[slot];
            if self.world.got.contains(&item) {
                self.fail("an item was got twice");
            }
            self.world.got.push(item);
            self.world.got.sort_unstable();
        }
    }

    /// Sleeps until the bell rings.
    fn sleep(&mut self, what: For, filled: Option<usize>) -> Result<(), Stopped> {
        let Some(client) = self.client else {
            return Ok(());
        };
        if self.at == self.log.len() && !self.fresh && !self.world.clients[client].bell {
            self.world.clients[client].asleep = Some((what, filled));
            return Err(Stopped);
        }
        if self.at == self.log.len() && self.fresh {
            // So that it can be seen asleep, and be cancelled there.
            self.world.clients[client].asleep = Some((what, filled));
        }
        self.step(|this| {
            this.world.clients[client].bell = false;
            this.world.clients[client].asleep = None;
            0
        })
        .map(drop)
    }
}

impl Memory for Replay<'_> {
    type Stop = Stopped;

    fn load(&mut self, word: usize) -> Result<u64, Stopped> {
        // What never changes, or only guides a search, is no step.
        let constants = [words::LIMIT, words::OPTIONS, words::SLOTS];
        if constants.contains(&word)
            || [words::BLOCKS, words::SEATS].contains(&word)
            || is_hint(word)
        {
            return Ok(self.world.words[word]);
        }
        // Its own slot does not change, however it is seen: a reader's is left by a store only.
        if self.at == self.log.len() && !self.fresh && self.is_private(word) {
            return self.private(|this| this.world.words[place(word)]);
        }
        self.step(|this| this.world.words[place(word)])
    }

    fn replace(
        &mut self,
        word: usize,
        old: u64,
        new: u64,
        _: Ordering,
    ) -> Result<Result<u64, u64>, Stopped> {
        let result = self.step(|this| {
            let seen = this.world.words[place(word)];
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
            let seen = this.world.words[place(word)];
            this.write(word, seen | bits);
            seen
        })
    }

    fn clear_bits(&mut self, word: usize, bits: u64) -> Result<u64, Stopped> {
        self.step(|this| {
            let seen = this.world.words[place(word)];
            this.write(word, seen & !bits);
            seen
        })
    }

    fn store(&mut self, word: usize, value: u64) -> Result<(), Stopped> {
        if is_hint(word) {
            return Ok(());
        }
        let fills = State::of(value).kind == Kind::Writing || words::is_end(value);
        if self.at == self.log.len() && !self.fresh && fills && self.is_private(word) {
            return self
                .private(|this| {
                    this.write(word, value);
                    0
                })
                .map(drop);
        }
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

impl Bells for Replay<'_> {
    fn ring(&mut self, seat: usize, _: Wake) -> Result<(), Stopped> {
        self.step(|this| {
            this.world.clients[seat].bell = true;
            0
        })
        .map(drop)
    }
}

/// Waits as the queue above does.
fn wait_for<R>(
    m: &mut Replay<'_>,
    seat: usize,
    what: For,
    filled: Option<usize>,
    mut look: impl FnMut(&mut Replay<'_>) -> Result<Option<R>, Stopped>,
) -> Result<R, Stopped> {
    if let Some(found) = look(m)? {
        return Ok(found);
    }
    let mut looks = wait::begin(m, seat, what, Wake::Bell)?;
    let found = loop {
        if looks {
            if let Some(found) = look(m)? {
                break found;
            }
            wait::again(m, seat, what, Wake::Bell)?;
            if let Some(found) = look(m)? {
                break found;
            }
        }
        looks = true;
        m.sleep(what, filled)?;
    };
    deal::end_wait(m, seat, what)?;
    Ok(found)
}

/// Carries out a line of a program.
fn line(m: &mut Replay<'_>, client: usize, op: Op) -> Result<(), Stopped> {
    let me = client as u32 + 1;
    match op {
        Op::Put | PutLarge => {
            let slot = steps::claim(m, me, client)?.expect("there are enough");
            if op == PutLarge {
                assert!(steps::claim_blocks(m, slot, 1)?, "there are enough");
            }
            let put = wait_for(m, client, For::Room, Some(slot), |m| {
                let put = deal::put(m, me, slot, 0)?;
                Ok((put != Put::Full).then_some(put))
            })?;
            match put {
                Put::Closed => steps::unclaim(m, slot)?,
                _ => m.world.n_put += 1,
            }
        }
        Get | PutBack => {
            let got = wait_for(m, client, For::Item, None, |m| {
                let got = deal::take(m, me, 0)?;
                Ok((got != Got::Empty).then_some(got))
            })?;
            let Got::Slot(slot) = got else {
                let in_hand = |slot: usize| {
                    let state = State::of(m.world.words[place(words::state(slot))]);
                    matches!(state.kind, Kind::Full | Kind::Reading | Kind::Returned)
                };
                if m.fresh && (0..SLOTS).any(in_hand) {
                    m.fail("the end came before the last item");
                }
                return Ok(());
            };
            if op == PutBack {
                return deal::put_back(m, me, slot, 0);
            }
            deal::leave(m, me, client, slot, || ())?;
        }
        Done => drop(deal::done(m, client)?),
        Join => wait_for(m, client, For::Done, None, |m| {
            let is_done = steps::is_done(m)?;
            // Items may have been put since, but what was done stays so.
            if is_done && m.fresh && m.world.n_done < m.world.got.len() {
                m.fail("joined before all was done");
            }
            Ok(is_done.then_some(()))
        })?,
        Close => deal::close(m)?,
    }
    Ok(())
}

impl World {
    fn new(limit: u64, programs: &[&'static [Op]]) -> Self {
        let n_words = HEADER + CLIENTS * SEAT_WORDS + SLOTS * SLOT_WORDS + BLOCKS;
        let client = |program: &&'static [Op]| Client {
            program,
            line: 0,
            log: Vec::new(),
            life: Life::Runs,
            bell: false,
            asleep: None,
            gives_up: None,
        };
        let mut world = Self {
            words: vec![0; n_words],
            clients: programs.iter().map(client).collect(),
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
            puts_back: programs.iter().any(|program| program.contains(&PutBack)),
            got: Vec::new(),
            n_lost: 0,
            n_done: 0,
            patrolled: false,
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
            puts_back: self.puts_back || kills > 0,
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

    fn apply(&mut self, event: Event, broken: Option<Rule>, fault: &mut Option<String>) {
        match event {
            Event::Step(i) => self.client_step(i, broken, fault),
            Event::Broker => self.broker_step(broken, fault),
            Event::Sweep(i) => self.broker = Some((Some(i), Vec::new())),
            Event::Patrol => {
                self.patrolled = true;
                self.broker = Some((None, Vec::new()));
            }
            Event::Kill(i) => {
                self.kills -= 1;
                let leaves = |slot: &usize| {
                    let state = State::of(self.words[place(words::state(*slot))]);
                    state.kind == Kind::Leaving && state.client == i as u32 + 1
                };
                self.n_lost += (0..SLOTS).filter(leaves).count();
                self.clients[i].life = Life::Dead;
                self.clients[i].asleep = None;
                self.clients[i].log.clear();
            }
            Event::Stop(i) => {
                self.stops -= 1;
                self.clients[i].life = Life::Stopped;
            }
            Event::Cancel(i) => {
                self.cancels -= 1;
                let client = &mut self.clients[i];
                client.gives_up = client.asleep.take();
                client.log.clear();
            }
        }
    }

    fn client_step(&mut self, i: usize, broken: Option<Rule>, fault: &mut Option<String>) {
        let log = std::mem::take(&mut self.clients[i].log);
        let (program, at) = (self.clients[i].program, self.clients[i].line);
        let gives_up = self.clients[i].gives_up;
        let mut replay = Replay {
            world: self,
            client: Some(i),
            log,
            at: 0,
            fresh: false,
            broken,
            fault,
        };
        let done = match gives_up {
            Some((what, filled)) => deal::end_wait(&mut replay, i, what)
                .and_then(|()| filled.map_or(Ok(()), |slot| steps::unclaim(&mut replay, slot))),
            None => line(&mut replay, i, program[at]),
        };
        let log = replay.log;
        let client = &mut self.clients[i];
        if done.is_err() {
            client.log = log;
            return;
        }
        client.line += 1;
        client.asleep = None;
        if gives_up.is_some() || client.line == client.program.len() {
            client.life = Life::Ended;
        }
    }

    fn broker_step(&mut self, broken: Option<Rule>, fault: &mut Option<String>) {
        let Some((what, log)) = self.broker.take() else {
            return;
        };
        let mut replay = Replay {
            world: self,
            client: None,
            log,
            at: 0,
            fresh: false,
            broken,
            fault,
        };
        let mut patrols_again = false;
        let done = match what {
            Some(i) => sweep::sweep(&mut replay, i as u32 + 1, &mut Vec::new()),
            None => sweep::patrol(&mut replay).map(|again| patrols_again = again),
        };
        let log = replay.log;
        match (done, what) {
            (Err(Stopped), _) => self.broker = Some((what, log)),
            (Ok(()), Some(i)) => self.clients[i].life = Life::Swept,
            (Ok(()), None) => self.patrolled = !patrols_again,
        }
    }

    /// Nothing moves: what is wrong with that?
    fn check_quiet(&self) -> Result<(), String> {
        let word = |word: usize| self.words[place(word)];
        let state = |slot: usize| State::of(word(words::state(slot)));
        let returned = (0..SLOTS).any(|slot| state(slot).kind == Kind::Returned);
        let last = words::slot(word(words::TAIL));
        let is_closed = words::is_closed(word(words::next(last)));
        let limit = word(words::LIMIT) as usize;
        // What a stopped process has not finished may look to the others as if it had not begun.
        let in_the_middle = |i: usize, ops: &[Op]| {
            let client = &self.clients[i];
            client.life == Life::Stopped
                && client
                    .program
                    .get(client.line)
                    .is_some_and(|op| ops.contains(op))
        };
        let clients = 0..self.clients.len();
        let is_closed = is_closed && !clients.clone().any(|i| in_the_middle(i, &[Close]));
        let is_put = |item: &&(usize, usize)| {
            !(in_the_middle(item.0, &[Op::Put, PutLarge]) && item.1 == self.made[item.0])
        };
        let n_got_half = clients
            .filter(|i| in_the_middle(*i, &[Get, PutBack]))
            .count();
        let returned = returned && n_got_half == 0;
        let out = (0..SLOTS).any(|slot| matches!(state(slot).kind, Kind::Reading | Kind::Leased));
        let is_over = is_closed && !out;
        let has_item = self.queued.iter().any(|item| is_put(&item)) || returned || is_over;
        let has_room = limit == 0 || self.queued.len() + n_got_half < limit || is_closed;
        let owed: u64 = (0..self.clients.len()).map(|i| word(words::owed(i))).sum();
        let is_done = self.queued.is_empty() && !returned && !out && owed == 0;
        for (i, client) in self.clients.iter().enumerate() {
            if client.life != Life::Runs {
                continue;
            }
            match client.asleep {
                Some((For::Item, _)) if has_item => {
                    return Err(format!("client {i} waits for an item that is there"));
                }
                Some((For::Room, _)) if has_room => {
                    return Err(format!("client {i} waits for room that is there"));
                }
                Some((For::Done, _)) if is_done => {
                    return Err(format!("client {i} waits for what is done"));
                }
                _ => (),
            }
        }
        if self
            .clients
            .iter()
            .any(|client| client.life == Life::Stopped)
        {
            return Ok(());
        }
        let held = |slot: &usize| {
            let filling = |client: &Client| matches!(client.asleep, Some((_, Some(filled))) if filled == *slot);
            let kind = state(*slot).kind;
            matches!(kind, Kind::Reading | Kind::Leaving)
                || kind == Kind::Writing && !self.clients.iter().any(filling)
        };
        if let Some(slot) = (0..SLOTS).find(held) {
            return Err(format!("slot {slot} is {:?} for ever", state(slot)));
        }
        for block in 0..BLOCKS {
            let owner = words::block_owner(word(words::block(block)));
            if owner.is_some_and(|slot| matches!(state(slot).kind, Kind::Free | Kind::Done)) {
                return Err(format!("block {block} is lost"));
            }
        }
        let returned = (0..SLOTS).filter(|slot| state(*slot).kind == Kind::Returned);
        if self.n_put > self.n_linked {
            return Err("a put that ended well put nothing".to_owned());
        }
        let there = self.n_lost + self.got.len() + self.queued.len() + returned.count();
        if there != self.n_linked {
            return Err(format!(
                "{} items were put, {there} are left",
                self.n_linked
            ));
        }
        Ok(())
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
            let stopped = world
                .clients
                .iter()
                .any(|client| client.life == Life::Stopped);
            if stopped && !world.patrolled {
                events.push(Event::Patrol);
            } else {
                world.check_quiet()?;
            }
        }
        events.extend(world.disasters());
        for event in events {
            let mut next = world.clone();
            let mut fault = None;
            if !matches!(event, Event::Patrol | Event::Broker) {
                next.patrolled = false;
            }
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
    World::new(limit, &[&[Op::Put], &[Get]])
}
fn two_put(limit: u64) -> World {
    World::new(limit, &[&[Op::Put], &[Op::Put]])
}
fn two_get() -> World {
    World::new(0, &[&[Op::Put], &[Get], &[Get]])
}
fn full() -> World {
    World::new(1, &[&[Op::Put, Op::Put], &[Get]])
}

/// Searches all of `small`, and in an optimised build all of `large`.
fn search_all(small: Vec<World>, large: Vec<World>) {
    let large = if cfg!(debug_assertions) {
        Vec::new()
    } else {
        large
    };
    for world in small.into_iter().chain(large) {
        let begun = std::time::Instant::now();
        let programs: Vec<_> = world.clients.iter().map(|client| client.program).collect();
        let budget = (world.kills, world.stops, world.cancels);
        let n = search(world, None).unwrap_or_else(|error| panic!("{programs:?}: {error}"));
        let took = begun.elapsed();
        println!("{n} states of {programs:?}, kills, stops and cancellations {budget:?}: {took:?}");
    }
}

#[test]
fn every_order_of_puts_and_gets_is_right() {
    let small = vec![
        put_get(0),
        put_get(1),
        two_put(0),
        World::new(0, &[&[Op::Put], &[Close]]),
        World::new(0, &[&[Close], &[Get]]),
        World::new(0, &[&[PutLarge], &[Get]]),
        World::new(0, &[&[Op::Put, Close, PutBack], &[Get]]),
    ];
    let large = vec![
        two_put(1),
        full(),
        World::new(0, &[&[Op::Put, Op::Put], &[Get, Get]]),
        World::new(0, &[&[Op::Put, Get], &[Op::Put, Get]]),
        two_get(),
        World::new(0, &[&[Op::Put], &[Op::Put], &[Get]]),
        World::new(1, &[&[Op::Put], &[Op::Put], &[Get]]),
        World::new(0, &[&[Op::Put], &[Get], &[Close]]),
        World::new(0, &[&[Op::Put, Close, Get], &[Get], &[Get]]),
    ];
    search_all(small, large);
}

#[test]
fn every_kill_leaves_it_right() {
    let small = vec![World::new(0, &[&[PutLarge, Get]]).budget(1, 0, 0)];
    let large = vec![
        put_get(0).budget(1, 0, 0),
        two_put(0).budget(1, 0, 0),
        put_get(1).budget(2, 0, 0),
        two_put(1).budget(1, 0, 0),
        full().budget(1, 0, 0),
        World::new(0, &[&[PutLarge], &[Get]]).budget(1, 0, 0),
        World::new(0, &[&[Op::Put, PutBack], &[Get]]).budget(1, 0, 0),
        World::new(0, &[&[Close], &[Get]]).budget(1, 0, 0),
        World::new(0, &[&[Op::Put, Close, Get], &[Get]]).budget(1, 0, 0),
        World::new(0, &[&[Op::Put, Get, Done], &[Join]]).budget(1, 0, 0),
        two_get().budget(1, 0, 0),
    ];
    search_all(small, large);
}

#[test]
fn every_stop_and_every_cancellation_leaves_it_right() {
    let small = vec![put_get(0).budget(0, 0, 1)];
    let large = vec![
        put_get(0).budget(0, 1, 0),
        put_get(1).budget(0, 1, 0),
        full().budget(0, 1, 0),
        full().budget(0, 0, 1),
        two_get().budget(0, 1, 0),
        two_get().budget(0, 0, 1),
    ];
    search_all(small, large);
}

#[test]
fn every_rule_is_needed() {
    use Rule::*;
    let one_and_two = || World::new(0, &[&[Op::Put, Op::Put], &[Get], &[Get]]);
    let two_and_one = || World::new(0, &[&[Op::Put], &[Op::Put], &[Get]]);
    let mut missed = Vec::new();
    for (rule, world) in [
        (QueueMarksBeforeTail, two_put(0).budget(1, 0, 0)),
        (QueueTakeIsOneStep, two_get()),
        (QueueLinkIsOneStep, two_put(0)),
        (QueueReusesPassedSlots, two_put(0)),
        (QueueLimitIsExact, full()),
        (QueueWakesAfterLink, put_get(0)),
        (QueueWaiterLooksAgain, put_get(0)),
        (
            QueueReturnIsCounted,
            World::new(0, &[&[Op::Put, PutBack], &[Get]]),
        ),
        (
            QueueOwesBeforeLeaving,
            World::new(0, &[&[Op::Put, Get, Done], &[Join]]),
        ),
        (QueueDeathReturns, put_get(0).budget(1, 0, 0)),
        (QueueDeathFrees, put_get(0).budget(1, 0, 0)),
        (QueueDeathServes, put_get(0).budget(1, 0, 0)),
        (QueuePatrols, two_get().budget(0, 1, 0).only(1)),
        (QueueLookBeginsTurn, one_and_two()),
        (QueueRingsBeforeNote, two_and_one().budget(0, 1, 0).only(0)),
        (QueueWokenPassesOn, two_get().budget(0, 0, 1).only(1)),
    ] {
        let begun = std::time::Instant::now();
        let found = search(world, Some(rule));
        println!("{rule:?}: {found:?} after {:?}", begun.elapsed());
        if found.is_ok() {
            missed.push(rule);
        }
    }
    assert!(missed.is_empty(), "nobody misses {missed:?}");
}
