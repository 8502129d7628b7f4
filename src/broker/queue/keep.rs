//! What the broker keeps for a queue: descriptors of items, and when to patrol.
//!
//! An item's descriptors are given to the broker before the item is put, under a key that stands in
//! the item's slot. Whoever takes the item asks for them and gets copies; they are dropped when the
//! item has left the queue. So a consumer that dies in between takes nothing along.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// Time between two patrols: more than a process that is not stopped takes to act on a wake-up, or from
/// the look at who waits to the wake-up.
pub(crate) const PATIENCE: Duration = Duration::from_millis(10);

/// How many patrols follow when the broker is asked. One may be due already and come before whoever is
/// about to act has acted; the second one does not.
pub(crate) const N_PATROLS: u32 = 2;

/// Descriptors of one item.
pub(crate) type Fds = Vec<Arc<OwnedFd>>;

/// Somebody who wants an item's descriptors: the peer, its number for the queue, and its ticket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) peer: u64,
    pub(crate) object: u32,
    pub(crate) ticket: u32,
}

/// The broker's side of a queue.
#[derive(Debug, Default)]
pub(crate) struct Keep {
    deposits: HashMap<u64, Fds>,
    /// What has come of each client that is alive.
    come: HashMap<u32, Come>,
    wanted: Vec<(u64, Wanted)>,
    /// Nobody can get any more, so nobody will want what comes.
    is_unread: bool,
    /// When to look after sleepers, and how often more at least.
    pub(crate) patrol: Option<Duration>,
    pub(crate) n_patrols: u32,
    /// How many kinds of handles there still are: 2, or less when a pipe has hung up.
    pub(crate) n_ends: u32,
}

/// Which numbers of a client have come; they begin at 1, and threads may overtake each other.
#[derive(Debug, Default)]
struct Come {
    /// All up to this one.
    up_to: u32,
    beyond: HashSet<u32>,
}

impl Come {
    fn insert(&mut self, number: u32) {
        self.beyond.insert(number);
        while self.beyond.remove(&self.up_to.wrapping_add(1)) {
            self.up_to = self.up_to.wrapping_add(1);
        }
    }

    fn contains(&self, number: u32) -> bool {
        // Numbers come round again.
        let later = number.wrapping_sub(self.up_to).cast_signed();
        later <= 0 || self.beyond.contains(&number)
    }
}

/// The key of a deposit: who made it, and its number there.
pub(crate) fn key(client: u32, number: u32) -> u64 {
    u64::from(client) << 32 | u64::from(number)
}

/// Who made the deposit with this key.
pub(crate) fn client_of(key: u64) -> u32 {
    (key >> 32) as u32
}

impl Keep {
    /// Takes descriptors in; who waits for them gets them.
    pub(crate) fn deposit(&mut self, key: u64, fds: Fds) -> Vec<(Wanted, Fds)> {
        let for_key = |(wanted, _): &mut (u64, Wanted)| *wanted == key;
        let wanted: Vec<_> = self.wanted.extract_if(.., for_key).collect();
        let answers = wanted
            .into_iter()
            .map(|(_, wanted)| (wanted, fds.clone()))
            .collect();
        if !self.is_unread {
            self.deposits.insert(key, fds);
        }
        let come = self.come.entry(client_of(key)).or_default();
        come.insert(key as u32);
        answers
    }

    /// Descriptors that have come.
    pub(crate) fn look_up(&self, key: u64) -> Option<Fds> {
        self.deposits.get(&key).cloned()
    }

    /// Whether they have come, and been forgotten if they are not to be found.
    pub(crate) fn has_come(&self, key: u64) -> bool {
        let come = self.come.get(&client_of(key));
        come.is_some_and(|come| come.contains(key as u32))
    }

    /// Somebody wants descriptors that are still on their way.
    pub(crate) fn expect(&mut self, key: u64, wanted: Wanted) {
        self.wanted.push((key, wanted));
    }

    /// The item has left.
    pub(crate) fn forget(&mut self, key: u64) {
        self.deposits.remove(&key);
    }

    /// Nobody can get any more.
    pub(crate) fn abandon(&mut self) {
        self.is_unread = true;
        self.deposits.clear();
    }

    /// A process is gone: nothing of it is still on its way. Who waits for it in vain.
    pub(crate) fn gone(&mut self, client: u32) -> Vec<Wanted> {
        self.come.remove(&client);
        let of_client = |(key, _): &mut (u64, Wanted)| client_of(*key) == client;
        let lost = self.wanted.extract_if(.., of_client);
        lost.map(|(_, wanted)| wanted).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_forgotten_is_not_expected_any_more() {
        let mut keep = Keep::default();
        assert!(!keep.has_come(key(7, 1)));

        for number in [1, 3] {
            let _ = keep.deposit(key(7, number), Fds::new());
            keep.forget(key(7, number));
        }

        let come = [1, 2, 3, 4].map(|number| keep.has_come(key(7, number)));
        assert_eq!(come, [true, false, true, false]);
        let _ = keep.deposit(key(7, 2), Fds::new());
        let come = [1, 2, 3, 4].map(|number| keep.has_come(key(7, number)));
        assert_eq!(come, [true, true, true, false]);
    }
}
