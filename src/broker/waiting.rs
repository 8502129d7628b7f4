//! A wait under way, and what becomes of it when it is given up.

use std::sync::Arc;
use std::time::Instant;

use crate::broker::link::Link;
use crate::broker::memory::{Answer, Memory, Rule};
use crate::broker::message::{Place, Says};
use crate::broker::object::Object;
use crate::broker::slot::{self, Undo, Wake};
use crate::error::CreatorGone;

/// One request to the broker and its slot in the mailbox.
///
/// Dropping it gives the wait up and puts right whatever came of it meanwhile.
#[derive(Debug)]
pub(crate) struct Waiting {
    object: Arc<Object>,
    link: Arc<Link>,
    place: Place,
    /// The condition that it waits at.
    condition: Option<u32>,
    /// The slot is still ours.
    open: bool,
}

impl Waiting {
    pub(super) fn new(object: Arc<Object>, link: Arc<Link>, place: Place) -> Self {
        Self {
            object,
            link,
            place,
            condition: None,
            open: true,
        }
    }

    /// The same wait, which is one for a notification.
    pub(crate) fn at_condition(mut self, condition: u32) -> Self {
        self.condition = Some(condition);
        self
    }

    /// Waits for the answer.
    pub(crate) async fn answer(mut self) -> Result<Answer, CreatorGone> {
        let link = Arc::clone(&self.link);
        let is_due = link.is_due(self.place);
        link.bell().listen_if(is_due, || self.look()).await
    }

    /// Puts the thread to sleep until the answer comes; asked with [`slot::Wake::Futex`].
    pub(crate) fn answer_blocking(mut self) -> Result<Answer, CreatorGone> {
        loop {
            if let Some(answer) = self.look() {
                return answer;
            }
            self.link.sleep(self.place, None);
        }
    }

    /// The same until a time. Nothing when it has come: then the wait is given up.
    pub(crate) fn answer_blocking_until(
        mut self,
        until: Instant,
    ) -> Result<Option<Answer>, CreatorGone> {
        loop {
            if let Some(answer) = self.look() {
                return answer.map(Some);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.link.sleep(self.place, Some(left));
        }
    }

    /// Waits for the answer to a barrier's party, and stays open: dropping this before the party has
    /// passed breaks the barrier, also when it is told to lead.
    pub(crate) async fn answer_of_barrier(&mut self) -> Result<Answer, CreatorGone> {
        let link = Arc::clone(&self.link);
        let is_due = link.is_due(self.place);
        link.bell().listen_if(is_due, || self.peek()).await
    }

    /// The same for a thread.
    pub(crate) fn answer_of_barrier_blocking(&mut self) -> Result<Answer, CreatorGone> {
        loop {
            if let Some(answer) = self.peek() {
                return answer;
            }
            self.link.sleep(self.place, None);
        }
    }

    /// Tells the broker that the action has been run, and waits on in the same slot.
    pub(crate) fn has_led(mut self, wake: Wake) -> Self {
        self.place = self.link.begin_again(self.place, wake);
        self.object.say(Says::Done(self.place));
        self
    }

    /// Gives back what was granted to a wait that is given up.
    fn give(&self, permit: u32) {
        // None only from a broker that is not ours.
        if let Some(word) = self.object.permit(permit) {
            self.object.give_unseen(word);
        }
    }

    fn peek(&self) -> Option<Result<Answer, CreatorGone>> {
        // Asked before the slot: an answer that came before the end counts.
        let is_gone = self.link.has_ended();
        match self.link.answer_of(self.place) {
            Some(answer) => Some(Ok(answer)),
            None => is_gone.then_some(Err(CreatorGone)),
        }
    }

    fn look(&mut self) -> Option<Result<Answer, CreatorGone>> {
        let found = self.peek()?;
        self.open = false;
        Some(self.link.finish(self.place).map_or(found, Ok))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // In a forked child it is a copy of its parent's wait.
        if !self.open || !self.link.is_ours() {
            return;
        }
        let answer = self.link.finish(self.place);
        let words = self.object.words();
        match slot::undo(answer, self.condition.is_some()) {
            Undo::Give(_) | Undo::PassOnAndGive(_) if words.breaks(Rule::CancelGivesBack) => (),
            Undo::Forget | Undo::BreakUp => self.object.say(Says::Cancel(self.place)),
            Undo::Give(permit) => self.give(permit),
            Undo::GiveLedger => self.object.say(Says::ReleaseLedger),
            Undo::PassOnAndGive(permit) => {
                if let Some(condition) = self.condition
                    && !words.breaks(Rule::CancelPassesOn)
                {
                    self.object.say(Says::Notify(condition, 1));
                }
                self.give(permit);
            }
            Undo::Nothing => (),
        }
    }
}
