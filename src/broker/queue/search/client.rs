//! What clients do: their programs, one step at a time.

use crate::broker::memory::{Memory, Rule};
use crate::broker::queue::deal::{self, Dealer};
use crate::broker::queue::steps::{self, Got, Put};
use crate::broker::queue::wait;
use crate::broker::queue::words::{self, For, Kind, State};
use crate::broker::slot::Wake;
use crate::broker::turn::{self, Stopped, Turn};

use super::replay::{Replay, place};
use super::{Life, SLOTS, World};

/// One line of a client's program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Op {
    /// Put an item, waiting for room.
    Put,
    /// The same with one that needs a block.
    PutLarge,
    /// Get an item, waiting for one.
    Get,
    /// Take an item and put it back.
    PutBack,
    /// Get an item by a lease, and report it as done.
    Lease,
    /// Get an item by a lease, and give it back.
    LeaseBack,
    /// Report an item as done.
    Done,
    /// Wait until all is done.
    Join,
    /// Close the queue.
    Close,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Client {
    pub(super) program: &'static [Op],
    pub(super) line: usize,
    /// Results of the steps of the present line.
    log: Vec<u64>,
    pub(super) life: Life,
    pub(super) bell: bool,
    /// It sleeps, for this, with this slot filled.
    pub(super) asleep: Option<(For, Option<usize>)>,
    /// The queue was full at some time since it began to put.
    pub(super) saw_full: bool,
    /// It gives up the wait that it slept in.
    gives_up: Option<(For, Option<usize>)>,
}

impl Client {
    pub(super) fn new(program: &'static [Op]) -> Self {
        Self {
            program,
            line: 0,
            log: Vec::new(),
            life: Life::Runs,
            bell: false,
            asleep: None,
            saw_full: false,
            gives_up: None,
        }
    }

    /// It does nothing any more, and nothing of what it knew matters.
    pub(super) fn becomes(&mut self, life: Life) {
        self.life = life;
        self.log.clear();
        self.bell = false;
        self.asleep = None;
        self.saw_full = false;
        self.gives_up = None;
        if life != Life::Stopped {
            self.line = 0;
        }
    }

    pub(super) fn gives_up(&mut self) {
        self.gives_up = self.asleep.take();
        self.log.clear();
    }

    /// Whether it has finished a part of its line and not begun the next one.
    pub(super) fn is_between_parts(&self) -> bool {
        !self.log.is_empty() && turn::is_between_parts(&self.log)
    }

    /// Whether it is in the middle of something, and not asleep. Between taking an item and what it does
    /// with it, it may be busy with other things for as long as it likes.
    pub(super) fn is_busy(&self) -> bool {
        let begun = !turn::is_between_parts(&self.log) || self.gives_up.is_some();
        self.life == Life::Runs && self.asleep.is_none() && begun
    }

    /// Whether it is or was in the middle of one of these.
    pub(super) fn is_at(&self, ops: &[Op]) -> bool {
        let at = self.program.get(self.line);
        at.is_some_and(|op| ops.contains(op))
    }
}

/// What a finished part has come to, as a small number.
pub(super) trait Outcome {
    fn to_number(&self) -> u64;
    fn from_number(number: u64) -> Self;
}

impl Outcome for () {
    fn to_number(&self) -> u64 {
        0
    }
    fn from_number(_: u64) -> Self {}
}

impl Outcome for bool {
    fn to_number(&self) -> u64 {
        u64::from(*self)
    }
    fn from_number(number: u64) -> Self {
        number != 0
    }
}

impl Outcome for usize {
    fn to_number(&self) -> u64 {
        *self as u64
    }
    fn from_number(number: u64) -> Self {
        number as Self
    }
}

impl Outcome for Put {
    fn to_number(&self) -> u64 {
        *self as u64
    }
    fn from_number(number: u64) -> Self {
        [Self::Done, Self::Full, Self::Closed][number as usize]
    }
}

impl Outcome for Got {
    fn to_number(&self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Closed => 1,
            Self::Slot(slot) => 2 + *slot as u64,
        }
    }
    fn from_number(number: u64) -> Self {
        match number {
            0 => Self::Empty,
            1 => Self::Closed,
            slot => Self::Slot(slot as usize - 2),
        }
    }
}

impl<R: Outcome> Outcome for Option<R> {
    fn to_number(&self) -> u64 {
        self.as_ref().map_or(0, |outcome| outcome.to_number() + 1)
    }
    fn from_number(number: u64) -> Self {
        number.checked_sub(1).map(R::from_number)
    }
}

/// Waits as the queue above does.
fn wait_for<R: Outcome>(
    m: &mut Replay<'_>,
    seat: usize,
    what: For,
    filled: Option<usize>,
    mut look: impl FnMut(&mut Replay<'_>) -> Result<Option<R>, Stopped>,
) -> Result<R, Stopped> {
    if let Some(found) = m.whole(&mut look)? {
        return Ok(found);
    }
    if !m.whole(|m| deal::begin_wait(m, seat, what, Wake::Bell))? {
        m.sleep(what, filled)?;
    }
    let found = m.whole(|m| {
        m.rounds(1, |m| {
            if let Some(found) = m.whole(&mut look)? {
                return Ok(Some(found));
            }
            m.whole(|m| wait::again(m, seat, what, Wake::Bell))?;
            if let Some(found) = m.whole(&mut look)? {
                return Ok(Some(found));
            }
            m.sleep(what, filled)?;
            Ok(None)
        })
    })?;
    m.whole(|m| deal::end_wait(m, seat, what))?;
    found.ok_or(Stopped)
}

fn dealer(client: usize) -> Dealer {
    Dealer {
        me: client as u32 + 1,
        seat: client,
    }
}

/// Takes an item, waiting for one. Nothing if that is the end.
fn take(m: &mut Replay<'_>, client: usize) -> Result<Option<usize>, Stopped> {
    let got = m.whole(|m| {
        wait_for(m, client, For::Item, None, |m| {
            let got = deal::take(m, dealer(client), 0)?;
            Ok((got != Got::Empty).then_some(got))
        })
    })?;
    if let Got::Slot(slot) = got {
        return Ok(Some(slot));
    }
    let in_hand = |slot: usize| {
        let state = State::of(m.world.words[place(words::state(slot))]);
        matches!(
            state.kind,
            Kind::Full | Kind::Reading | Kind::Leased | Kind::Returned
        )
    };
    if m.turn.is_fresh() && (0..SLOTS).any(in_hand) {
        m.fail("the end came before the last item");
    }
    Ok(None)
}

/// Carries out a line of a program.
fn line(m: &mut Replay<'_>, client: usize, op: Op) -> Result<(), Stopped> {
    let me = client as u32 + 1;
    match op {
        Op::Put | Op::PutLarge => {
            let slot = m.whole(|m| {
                let slot = steps::claim(m, me, client)?.expect("there are enough");
                if op == Op::PutLarge {
                    assert!(steps::claim_blocks(m, slot, 1)?, "there are enough");
                }
                Ok(slot)
            })?;
            let put = m.whole(|m| {
                wait_for(m, client, For::Room, Some(slot), |m| {
                    m.begins_look();
                    let put = deal::put(m, dealer(client), slot, 0)?;
                    m.ends_look(put);
                    Ok((put != Put::Full).then_some(put))
                })
            })?;
            match put {
                Put::Closed => steps::unclaim(m, slot)?,
                _ => m.world.n_put += 1,
            }
        }
        Op::Get | Op::PutBack | Op::Lease | Op::LeaseBack => {
            let Some(slot) = take(m, client)? else {
                return Ok(());
            };
            if matches!(op, Op::Lease | Op::LeaseBack) {
                m.whole(|m| steps::lease(m, me, slot))?;
            }
            match op {
                Op::Get => deal::leave(m, dealer(client), slot, || ())?,
                Op::Lease => deal::settle_lease(m, dealer(client), slot, || ())?,
                _ => deal::put_back(m, dealer(client), slot, 0)?,
            }
        }
        Op::Done => drop(deal::done(m, dealer(client))?),
        Op::Join => wait_for(m, client, For::Done, None, |m| {
            let is_done = steps::is_done(m)?;
            // Items may have been put since, but what was done stays so.
            if is_done && m.turn.is_fresh() && m.world.n_done < m.world.got.len() {
                m.fail("joined before all was done");
            }
            Ok(is_done.then_some(()))
        })?,
        Op::Close => deal::close(m, dealer(client))?,
    }
    Ok(())
}

impl World {
    pub(super) fn client_step(
        &mut self,
        i: usize,
        broken: Option<Rule>,
        fault: &mut Option<String>,
    ) {
        let client = &mut self.clients[i];
        let log = std::mem::take(&mut client.log);
        let (program, at, gives_up) = (client.program, client.line, client.gives_up);
        let mut replay = Replay {
            world: self,
            client: Some(i),
            turn: Turn::new(log),
            broken,
            fault,
        };
        let done = match gives_up {
            Some((what, filled)) => deal::end_wait(&mut replay, i, what)
                .and_then(|()| filled.map_or(Ok(()), |slot| steps::unclaim(&mut replay, slot))),
            None => line(&mut replay, i, program[at]),
        };
        let log = replay.turn.into_log();
        let client = &mut self.clients[i];
        if done.is_err() {
            client.log = log;
            return;
        }
        client.line += 1;
        client.asleep = None;
        if gives_up.is_some() || client.line == client.program.len() {
            client.becomes(Life::Ended);
        }
    }
}
