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

/// What the guardian is told, in one message of eight bytes: what, and of which group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// The group is one of ours.
    Watch(u32),
    /// The group has gone, and its number may be given away.
    Forget(u32),
    /// Make a copy of yourself that serves the socket which comes along.
    Fork,
}

impl Word {
    /// For the wire.
    pub(crate) fn to_bytes(self) -> [u8; 8] {
        let (what, group) = match self {
            Self::Watch(group) => (1_u32, group),
            Self::Forget(group) => (2, group),
            Self::Fork => (3, 0),
        };
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&what.to_le_bytes());
        bytes[4..].copy_from_slice(&group.to_le_bytes());
        bytes
    }

    /// From the wire.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (what, group) = bytes.split_at_checked(4)?;
        let group = u32::from_le_bytes(group.try_into().ok()?);
        match u32::from_le_bytes(what.try_into().ok()?) {
            1 => Some(Self::Watch(group)),
            2 => Some(Self::Forget(group)),
            3 => Some(Self::Fork),
            _ => None,
        }
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
    helper: Option<Arc<OwnedFd>>,
}

impl Guardian {
    /// A group has come to be. `told` says that the helper knows already, having made it itself.
    pub(crate) fn watch(&self, group: u32, told: bool) {
        let mut state = self.state();
        state.groups.insert(group);
        if !told {
            state.tell(Word::Watch(group));
        }
    }

    /// A group has gone; its number is still pinned by the zombie of its leader.
    pub(crate) fn forget(&self, group: u32) {
        let mut state = self.state();
        if state.groups.remove(&group) {
            state.tell(Word::Forget(group));
        }
    }

    /// Whether there is anything to guard.
    pub(crate) fn has_groups(&self) -> bool {
        !self.state().groups.is_empty()
    }

    /// Tells a new helper all groups.
    pub(crate) fn attach(&self, helper: Arc<OwnedFd>) {
        let mut state = self.state();
        state.helper = Some(helper);
        let groups: Vec<u32> = state.groups.iter().copied().collect();
        for group in groups {
            state.tell(Word::Watch(group));
        }
    }

    /// The helper `gone` has gone.
    pub(crate) fn detach(&self, gone: &Arc<OwnedFd>) {
        let mut state = self.state();
        if state
            .helper
            .as_ref()
            .is_some_and(|helper| Arc::ptr_eq(helper, gone))
        {
            state.helper = None;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tell(&mut self, word: Word) {
        let Some(helper) = &self.helper else { return };
        if let Err(error) = send(helper, word) {
            // It is gone or does not read: it is no guardian any more. Ending its stream makes it
            // leave, and its end brings the next one, which is told everything.
            tracing::debug!(%error, "the guardian does not listen");
            let _ = socket::end_sending(helper);
            self.helper = None;
        }
    }
}

fn send(helper: &OwnedFd, word: Word) -> io::Result<()> {
    socket::send_with_fds(helper, &[IoSlice::new(&word.to_bytes())], &[], Wait::No).map(drop)
}
