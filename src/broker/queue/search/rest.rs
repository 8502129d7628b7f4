//! What must hold when nothing moves.

use crate::broker::queue::words::{self, For, Kind, State};

use super::client::{Client, Op};
use super::replay::place;
use super::{BLOCKS, Life, SLOTS, World};

impl World {
    /// Nothing moves: what is wrong with that?
    pub(super) fn check_quiet(&self) -> Result<(), String> {
        let word = |word: usize| self.words[place(word)];
        let state = |slot: usize| State::of(word(words::state(slot)));
        let returned = (0..SLOTS).any(|slot| state(slot).kind == Kind::Returned);
        // The tail itself may be one behind.
        let mut end = word(words::next(words::slot(word(words::TAIL))));
        if !words::is_end(end) && !words::is_closed(end) {
            end = word(words::next(words::slot(end)));
        }
        let is_closed = words::is_closed(end);
        let limit = word(words::LIMIT) as usize;
        // Who was stopped before it counted what it put back still has it, as the others see it.
        let gives_back = |client: &Client| {
            client.life == Life::Stopped && client.is_at(&[Op::PutBack, Op::LeaseBack])
        };
        let is_counted = self.words[words::RETURNS] != self.words[words::RETURNS_SEEN];
        let is_returned = returned && (is_counted || !self.clients.iter().any(gives_back));
        let out = (0..SLOTS).any(|slot| matches!(state(slot).kind, Kind::Reading | Kind::Leased));
        let is_over = is_closed && !out && !returned;
        let has_item = !self.queued.is_empty() || is_returned || is_over;
        let has_room = limit == 0 || self.queued.len() < limit || is_closed;
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
            matches!(kind, Kind::Reading | Kind::Leased | Kind::Leaving)
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
