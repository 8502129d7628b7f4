//! Messages that the socket had no room for, and the rule that one empties the box at a time.

use std::collections::VecDeque;
use std::mem;

/// What the socket had no room for, in the order in which it was said.
#[derive(Debug)]
pub(crate) struct Outbox<T> {
    messages: VecDeque<T>,
    /// Somebody empties it. Never two at once: they would send a message twice, and lose another.
    is_emptied: bool,
}

impl<T> Default for Outbox<T> {
    fn default() -> Self {
        Self {
            messages: VecDeque::new(),
            is_emptied: false,
        }
    }
}

impl<T> Outbox<T> {
    /// Puts a message in. True when the caller has to see to it that somebody empties the box.
    pub(crate) fn put(&mut self, message: T) -> bool {
        self.messages.push_back(message);
        !mem::replace(&mut self.is_emptied, true)
    }

    /// Whether such a message is in it.
    pub(crate) fn contains(&self, is_it: impl Fn(&T) -> bool) -> bool {
        self.messages.iter().any(is_it)
    }

    /// The next message for whoever empties the box. When there is none, it has to end.
    pub(crate) fn next(&mut self) -> Option<T> {
        let next = self.messages.pop_front();
        self.is_emptied = next.is_some();
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_in_an_outbox_until_it_is_being_sent() {
        let mut outbox = Outbox::default();
        assert!(!outbox.contains(|message| *message == 1));

        outbox.put(1);
        assert!(outbox.contains(|message| *message == 1));

        outbox.next();
        assert!(!outbox.contains(|message| *message == 1));
    }

    #[test]
    fn an_outbox_is_emptied_by_one_at_a_time() {
        let mut outbox = Outbox::default();
        assert!(outbox.put(1));
        assert!(!outbox.put(2));
        assert_eq!((outbox.next(), outbox.next()), (Some(1), Some(2)));

        // The second one is being sent still.
        assert!(!outbox.put(3));

        assert_eq!((outbox.next(), outbox.next()), (Some(3), None));
        assert!(outbox.put(4));
    }
}
