//! Descriptors of the layers above that the supervisor's thread listens to.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use super::Supervisor;
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::inherited_fds;

/// The bit of an epoll token that tells a watched descriptor from a child.
pub(super) const BIT: u64 = 1 << 63;

/// Ends the watching when it is dropped.
pub(crate) struct Watch {
    id: u64,
    supervisor: &'static Supervisor,
}

/// What is watched, by number.
#[derive(Default)]
pub(super) struct Watched(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    next: u64,
    by_id: HashMap<u64, Entry>,
}

struct Entry {
    fd: OwnedFd,
    /// Shared, so that it is called without the table's lock. Only the supervisor's thread calls.
    callback: Arc<Mutex<dyn FnMut() + Send>>,
}

/// Calls `callback` on the supervisor's thread whenever a copy of `fd` is ready. It must not wait.
pub(crate) fn watch(
    fd: impl AsFd,
    interest: Interest,
    callback: impl FnMut() + Send + 'static,
) -> io::Result<Watch> {
    let supervisor = super::get()?;
    let fd = fd.as_fd().try_clone_to_owned()?;
    let mut entries = supervisor.watched.entries();
    let id = entries.next;
    entries.next += 1;
    supervisor.epoll.add(&fd, BIT | id, interest)?;
    let callback = Arc::new(Mutex::new(callback));
    entries.by_id.insert(id, Entry { fd, callback });
    Ok(Watch { id, supervisor })
}

impl Watched {
    /// Deals with the event of a token with [`BIT`].
    pub(super) fn ready(&self, token: u64) {
        // Gone: an event that was on its way when the watching ended.
        let entries = self.entries();
        let Some(entry) = entries.by_id.get(&(token & !BIT)) else {
            return;
        };
        let callback = Arc::clone(&entry.callback);
        drop(entries);
        callback.lock().unwrap_or_else(PoisonError::into_inner)();
    }

    /// In a forked child: closes what its parent watched.
    pub(super) fn close_inherited(&self) {
        let entries = self.entries();
        let fds: Vec<_> = entries
            .by_id
            .values()
            .map(|entry| entry.fd.as_fd())
            .collect();
        inherited_fds::close(&fds);
    }

    fn forget(&self, id: u64, epoll: &Epoll) {
        let entry = self.entries().by_id.remove(&id);
        if let Some(entry) = entry {
            // Before it is closed, as the description lives on in other copies.
            let _ = epoll.remove(&entry.fd);
        }
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watch").field(&self.id).finish()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.supervisor
            .watched
            .forget(self.id, &self.supervisor.epoll);
    }
}
