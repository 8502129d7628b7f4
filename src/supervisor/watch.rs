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
    /// It is also called before the end of a child is told.
    hears_of_deaths: bool,
}

/// Calls `callback` on the supervisor's thread whenever a copy of `fd` is ready. It must not wait.
pub(crate) fn watch(
    fd: impl AsFd,
    interest: Interest,
    callback: impl FnMut() + Send + 'static,
) -> io::Result<Watch> {
    add(fd, interest, callback, false)
}

/// The same, and whenever a child has ended, before anybody is told: so that what was to be swept up
/// after it has been.
pub(crate) fn watch_with_deaths(
    fd: impl AsFd,
    interest: Interest,
    callback: impl FnMut() + Send + 'static,
) -> io::Result<Watch> {
    add(fd, interest, callback, true)
}

fn add(
    fd: impl AsFd,
    interest: Interest,
    callback: impl FnMut() + Send + 'static,
    hears_of_deaths: bool,
) -> io::Result<Watch> {
    let supervisor = super::get()?;
    let fd = fd.as_fd().try_clone_to_owned()?;
    let mut entries = supervisor.watched.entries();
    let id = entries.next;
    entries.next += 1;
    supervisor.epoll.add(&fd, BIT | id, interest)?;
    let callback = Arc::new(Mutex::new(callback));
    let entry = Entry {
        fd,
        callback,
        hears_of_deaths,
    };
    entries.by_id.insert(id, entry);
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

    /// A child has ended, and nobody has been told.
    pub(super) fn has_died(&self) {
        let entries = self.entries();
        let those = entries.by_id.values().filter(|entry| entry.hears_of_deaths);
        let callbacks: Vec<_> = those.map(|entry| Arc::clone(&entry.callback)).collect();
        drop(entries);
        for callback in callbacks {
            callback.lock().unwrap_or_else(PoisonError::into_inner)();
        }
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
