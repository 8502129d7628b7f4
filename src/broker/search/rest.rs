//! What must hold: at any time, and when nothing moves but time.

use crate::broker::flag;
use crate::broker::memory::{Answer, Ticket};
use crate::broker::word::{self, GIVEN, QUEUE_BITS};

use super::client::{Client, Nap, Op, Phase};
use super::{EXPIRED, FLAG, LEDGER, Life, Machine, World};

impl World {
    pub(super) fn twice_held(&self) -> Option<String> {
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

    fn dead(&self) -> Vec<bool> {
        self.clients
            .iter()
            .map(|client| matches!(client.life, Life::Dead | Life::Swept))
            .collect()
    }

    /// What must hold when nothing moves but time.
    pub(super) fn at_rest(&self) -> Result<(), String> {
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
                let is_given = |word: usize| word::owner(self.words[word]) == GIVEN;
                if n_stopped == 0 && self.permits().any(is_given) {
                    return Err("a permit that was given back is free for nobody".to_owned());
                }
                let is_asleep = |i: &usize| {
                    let client = &self.clients[*i];
                    client.life == Life::Runs && client.phase == Phase::Asleep(Nap::Park)
                };
                let asleep: Vec<usize> = (0..self.clients.len()).filter(is_asleep).collect();
                // Who is killed or stopped before it wakes leaves that to the sleeper's patrol.
                if !asleep.is_empty() && free && !self.is_hurt {
                    return Err("somebody sleeps while a permit is free".to_owned());
                }
                if asleep.iter().any(|i| self.words[EXPIRED + i] != 0) {
                    return Err("the patrol has woken nobody".to_owned());
                }
                let dead = self.dead();
                let owner_is_dead = |word: usize| {
                    let owner = word::owner(self.words[word]);
                    word::is_process(owner) && dead[owner as usize - 1]
                };
                if self.permits().any(owner_is_dead) {
                    return Err("a dead process has a permit".to_owned());
                }
                for owed in &self.owed {
                    let still = |(i, turn): &(usize, u32)| {
                        let client = &self.clients[*i];
                        client.awaits_notification() && client.turn == *turn
                    };
                    // Who is asleep may have the notification, and comes when its patrol wakes it.
                    if n_stopped == 0 && asleep.is_empty() && owed.among.iter().any(still) {
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
                self.generations()
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

    /// Each generation passes with distinct numbers, or is broken for all.
    fn generations(&self) -> Result<(), String> {
        let n_done = self
            .clients
            .iter()
            .map(|client| client.passed.len())
            .min()
            .unwrap_or(0);
        for generation in 0..n_done {
            let answers = self.clients.iter().map(|client| client.passed[generation]);
            let mut answers: Vec<Answer> = answers.collect();
            if answers.iter().all(|answer| *answer == Answer::Broken) {
                // From here on the parties may be of different generations.
                return Ok(());
            }
            let wanted = (0..answers.len()).map(|n| Answer::Passed(n as u32));
            let wanted: Vec<Answer> = wanted.collect();
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
            if word::is_process(owner) && !held.contains(&word) {
                return Err("a permit is lost".to_owned());
            }
        }
        if self.words[self.park().sleeper] != 0 {
            return Err("somebody is left in the sleeper's word".to_owned());
        }
        Ok(())
    }
}
