//! One step of the protocol on the model's words, and the books that are kept of it.

use std::sync::atomic::Ordering;

use crate::broker::memory::{Memory, Rule};
use crate::broker::queue::steps::Put;
use crate::broker::queue::wait::Bells;
use crate::broker::queue::words::{self, For, Kind, State};
use crate::broker::slot::Wake;
use crate::broker::turn::{Steps, Stopped, Turn};

use super::client::{Op, Outcome};
use super::{CLIENTS, HEADER, Life, SEAT_WORDS, SLOT_WORDS, SLOTS, World};

/// Nobody has to go round so often when nobody else does anything.
const ROUNDS_MAX: u32 = 2;

/// Where a word of the protocol lies in the model.
pub(super) fn place(word: usize) -> usize {
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

/// Where a search begins is the same in the model, whatever was found before; and whoever asks for a
/// patrol says so each time.
fn is_hint(word: usize) -> bool {
    [
        words::SLOT_HINT,
        words::BLOCK_HINT,
        words::BLOCK_FAR_HINT,
        words::PATROLS,
    ]
    .contains(&word)
}

pub(super) struct Replay<'a> {
    pub(super) world: &'a mut World,
    /// Who moves; nothing is the broker.
    pub(super) client: Option<usize>,
    pub(super) turn: Turn,
    pub(super) broken: Option<Rule>,
    pub(super) fault: &'a mut Option<String>,
}

impl Replay<'_> {
    /// A step that nobody else can see, and that sees nobody else: it is taken with the next one.
    fn private(&mut self, act: impl FnOnce(&mut Self) -> u64) -> Result<u64, Stopped> {
        if let Some(known) = self.turn.known()? {
            return Ok(known);
        }
        let result = act(self);
        self.turn.found(result);
        Ok(result)
    }

    /// Whether what comes next comes for the first time.
    fn is_new(&self) -> bool {
        self.turn.is_at_end() && !self.turn.is_fresh()
    }

    /// Of what is finished only the outcome counts.
    pub(super) fn whole<R: Outcome>(
        &mut self,
        run: impl FnOnce(&mut Self) -> Result<R, Stopped>,
    ) -> Result<R, Stopped> {
        if let Some(outcome) = self.turn.begin_part() {
            return Ok(R::from_number(outcome));
        }
        let place = self.turn.place();
        let outcome = run(self)?;
        self.turn.end_part(place, outcome.to_number());
        Ok(outcome)
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

    pub(super) fn fail(&mut self, what: &str) {
        self.fault.get_or_insert_with(|| what.to_owned());
    }

    /// Whose memory of old values it is; the last one is the broker's.
    fn mover(&self) -> usize {
        self.client.unwrap_or(self.world.clients.len())
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
        if self.is_full() {
            for client in &mut self.world.clients {
                client.saw_full |=
                    client.life == Life::Runs && client.is_at(&[Op::Put, Op::PutLarge]);
            }
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
        let leaves = matches!(before.kind, Kind::Reading | Kind::Leased | Kind::Leaving);
        if leaves && after.kind == Kind::Done && self.client.is_some() {
            let item = self.world.items[slot];
            if self.world.got.contains(&item) {
                self.fail("an item was got twice");
            }
            self.world.got.push(item);
            self.world.n_done += usize::from(before.kind == Kind::Leased);
            self.world.got.sort_unstable();
        }
    }

    fn is_full(&self) -> bool {
        let limit = self.world.words[words::LIMIT] as usize;
        limit != 0 && self.world.queued.len() >= limit
    }

    /// A look for room begins, if it does so now.
    pub(super) fn begins_look(&mut self) {
        if let (true, Some(client)) = (self.is_new(), self.client) {
            self.world.clients[client].saw_full = self.is_full();
        }
    }

    /// It ends now.
    pub(super) fn ends_look(&mut self, put: Put) {
        let Some(client) = self.client else { return };
        let saw_full = std::mem::take(&mut self.world.clients[client].saw_full);
        if put == Put::Full && !saw_full {
            self.fail("a put found no room although there was some all the time");
        }
    }

    /// Sleeps until the bell rings.
    pub(super) fn sleep(&mut self, what: For, filled: Option<usize>) -> Result<(), Stopped> {
        let Some(client) = self.client else {
            return Ok(());
        };
        if self.is_new() && !self.world.clients[client].bell {
            self.world.clients[client].asleep = Some((what, filled));
            return Err(Stopped);
        }
        if self.turn.is_at_end() && self.turn.is_fresh() {
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

impl Steps for Replay<'_> {
    fn turn(&mut self) -> &mut Turn {
        &mut self.turn
    }

    fn read(&self, word: usize) -> u64 {
        self.world.words[place(word)]
    }

    /// Writes a word, and keeps the books.
    fn write(&mut self, word: usize, value: u64) {
        let before = std::mem::replace(&mut self.world.words[place(word)], value);
        self.world.n_rounds.fill(0);
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
        if self.is_new() && self.is_private(word) {
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
        self.exchange(word, old, new)
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
        if self.is_new() && fills && self.is_private(word) {
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

    fn recall(&mut self, word: usize) -> Result<Option<u64>, Stopped> {
        if !self.world.recalls {
            return Ok(None);
        }
        let place = usize::from(word == words::TAIL);
        let seen = self.private(|this| this.world.seen[this.mover()][place])?;
        Ok((seen != 0).then_some(seen))
    }

    fn remember(&mut self, word: usize, value: u64) {
        if self.world.recalls && self.turn.is_at_end() {
            let mover = self.mover();
            self.world.seen[mover][usize::from(word == words::TAIL)] = value;
        }
    }

    fn rounds<R>(
        &mut self,
        _: u32,
        mut round: impl FnMut(&mut Self) -> Result<Option<R>, Stopped>,
    ) -> Result<Option<R>, Stopped> {
        let place = self.turn.place();
        loop {
            if let Some(found) = round(self)? {
                return Ok(Some(found));
            }
            self.turn.forget(place);
            let mover = self.mover();
            self.world.n_rounds[mover] += 1;
            if self.world.n_rounds[mover] > ROUNDS_MAX {
                self.fail("it goes round for ever");
                return Err(Stopped);
            }
        }
    }

    fn breaks(&self, rule: Rule) -> bool {
        self.broken == Some(rule)
    }
}

impl Bells for Replay<'_> {
    fn ring(&mut self, seat: usize, _: Wake) -> Result<bool, Stopped> {
        self.step(|this| {
            this.world.n_rounds.fill(0);
            this.world.ask();
            // Nobody else hears it.
            this.world.clients[seat].bell = this.world.clients[seat].life == Life::Runs;
            0
        })
        .map(|_| true)
    }

    fn ask_patrol(&mut self) -> Result<(), Stopped> {
        if !self.world.patrols {
            return Ok(());
        }
        self.step(|this| {
            this.world.ask();
            0
        })
        .map(drop)
    }
}
