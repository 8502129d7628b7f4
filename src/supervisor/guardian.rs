//! Who kills when this process is gone: the list of process groups, kept also by the guardian.
//!
//! `PR_SET_PDEATHSIG` ends a child but not its subprocesses, and a watcher thread dies with its
//! process. So a helper process is told every group of ours, notices the end of this process, and
//! kills what is on its list. It may die too; the one that takes its place is told all again.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::sys::socket::{self, Wait};

/// What the guardian is told: a word, and the groups that it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// The groups are ours.
    Watch,
    /// The groups have gone, and their numbers may be given away.
    Forget,
    /// Make a copy of yourself that serves the socket which comes along.
    Fork,
    /// The groups are ours, and none that was named before is.
    Only,
}

/// The most groups in one message.
const GROUPS_MAX: usize = 1000;

impl Word {
    /// The most bytes in one message.
    pub(crate) const LEN_MAX: usize = 4 + 4 * GROUPS_MAX;

    /// For the wire.
    pub(crate) fn to_bytes(self, groups: &[u32]) -> Vec<u8> {
        let what: u32 = match self {
            Self::Watch => 1,
            Self::Forget => 2,
            Self::Fork => 3,
            Self::Only => 4,
        };
        let words = std::iter::once(&what).chain(groups);
        words.flat_map(|word| word.to_le_bytes()).collect()
    }

    /// From the wire. No group may be the one of the kernel's threads, or everybody's.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<(Self, Vec<u32>)> {
        let (words, []) = bytes.as_chunks() else {
            return None;
        };
        let mut words = words.iter().map(|word| u32::from_le_bytes(*word));
        let word = match words.next()? {
            1 => Self::Watch,
            2 => Self::Forget,
            3 => Self::Fork,
            4 => Self::Only,
            _ => return None,
        };
        let groups: Vec<u32> = words.collect();
        groups
            .iter()
            .all(|group| *group > 1)
            .then_some((word, groups))
    }
}

/// The groups of this process' children, and the helper that knows them too.
#[derive(Debug, Default)]
pub(crate) struct Guardian {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    groups: BTreeSet<u32>,
    helper: Option<Helper>,
}

#[derive(Debug)]
struct Helper {
    socket: Arc<OwnedFd>,
    /// It reads: until then its socket may be full.
    is_up: bool,
    /// A word did not fit before it was up, so it is told all when it is.
    is_behind: bool,
}

impl Guardian {
    /// A group has come to be. `told` says that the helper knows already, having made it itself.
    pub(crate) fn watch(&self, group: u32, told: bool) {
        let mut state = self.state();
        state.groups.insert(group);
        if !told {
            state.tell(Word::Watch, &[group]);
        }
    }

    /// A group has gone; its number is still pinned by the zombie of its leader.
    pub(crate) fn forget(&self, group: u32) {
        let mut state = self.state();
        if state.groups.remove(&group) {
            state.tell(Word::Forget, &[group]);
        }
    }

    /// Whether there is anything to guard.
    pub(crate) fn has_groups(&self) -> bool {
        !self.state().groups.is_empty()
    }

    /// A helper has been made. What it is told waits in its socket, so it does its duty even if
    /// this process ends before the helper is up.
    pub(crate) fn attach(&self, helper: Arc<OwnedFd>) {
        let mut state = self.state();
        state.helper = Some(Helper {
            socket: helper,
            is_up: false,
            is_behind: false,
        });
        state.tell_all();
    }

    /// The helper is up: it makes no copies before this, and misses no word after it.
    pub(crate) fn is_up(&self, helper: &Arc<OwnedFd>) {
        let mut state = self.state();
        let Some(attached) = &mut state.helper else {
            return;
        };
        if Arc::ptr_eq(&attached.socket, helper) {
            attached.is_up = true;
            if std::mem::take(&mut attached.is_behind) {
                state.tell_all();
            }
        }
    }

    /// The helper `gone` has gone.
    pub(crate) fn detach(&self, gone: &Arc<OwnedFd>) {
        let mut state = self.state();
        if state
            .helper
            .as_ref()
            .is_some_and(|helper| Arc::ptr_eq(&helper.socket, gone))
        {
            state.helper = None;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tell(&mut self, word: Word, groups: &[u32]) {
        let Some(helper) = &mut self.helper else {
            return;
        };
        if helper.is_behind {
            return;
        }
        match send(&helper.socket, word, groups) {
            Ok(()) => (),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !helper.is_up => {
                helper.is_behind = true;
            }
            Err(error) => {
                // It is gone or does not read: it is no guardian any more. Ending its stream makes
                // it leave, and its end brings the next one, which is told everything.
                tracing::debug!(%error, "the guardian does not listen");
                let _ = socket::end_sending(&helper.socket);
                self.helper = None;
            }
        }
    }

    fn tell_all(&mut self) {
        let groups: Vec<u32> = self.groups.iter().copied().collect();
        let (first, rest) = groups.split_at(groups.len().min(GROUPS_MAX));
        self.tell(Word::Only, first);
        for groups in rest.chunks(GROUPS_MAX) {
            self.tell(Word::Watch, groups);
        }
    }
}

fn send(helper: &OwnedFd, word: Word, groups: &[u32]) -> io::Result<()> {
    let bytes = word.to_bytes(groups);
    socket::send_with_fds(helper, &[IoSlice::new(&bytes)], &[], Wait::No).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;

    fn heard(helper: &OwnedFd) -> Vec<(Word, Vec<u32>)> {
        let mut heard = Vec::new();
        loop {
            let mut message = BytesMut::new();
            let len = Word::LEN_MAX;
            match socket::recv_with_fds(helper, &mut message, len, &mut Vec::new(), Wait::No) {
                Ok(_) => heard.push(Word::from_bytes(&message).unwrap()),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    return heard;
                }
            }
        }
    }

    #[test]
    fn a_helper_that_is_not_up_yet_finds_in_its_socket_what_it_has_to_know() {
        let guardian = Guardian::default();
        let (ours, helpers) = socket::seqpacket_pair().unwrap();
        guardian.watch(7, false);
        guardian.attach(Arc::new(ours));
        guardian.watch(9, false);
        guardian.forget(7);

        let words = [
            (Word::Only, vec![7]),
            (Word::Watch, vec![9]),
            (Word::Forget, vec![7]),
        ];
        assert_eq!(heard(&helpers), words);
    }

    #[test]
    fn a_helper_whose_socket_was_full_is_told_all_when_it_is_up() {
        let guardian = Guardian::default();
        let (ours, helpers) = socket::seqpacket_pair().unwrap();
        let ours = Arc::new(ours);
        guardian.attach(Arc::clone(&ours));
        let groups = 2..5000;
        groups
            .clone()
            .for_each(|group| guardian.watch(group, false));
        assert!(
            heard(&helpers).len() < groups.len(),
            "the socket was not full"
        );

        guardian.is_up(&ours);

        let words = heard(&helpers);
        assert_eq!(words[0].0, Word::Only);
        assert!(words[1..].iter().all(|(word, _)| *word == Word::Watch));
        let told = words.into_iter().flat_map(|(_, groups)| groups);
        assert!(told.eq(groups));
    }
}
