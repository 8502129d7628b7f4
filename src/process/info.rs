//! Who this process is, who its parent is, and which children it has.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::context;
use super::inherit::Inheritance;
use crate::sys::async_fd;
use crate::sys::pidfd::Pidfd;

/// A process as its relatives see it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProcessInfo {
    /// Its number.
    pub pid: u32,
    /// Its name, `MainProcess` for the one that nobody here has started.
    pub name: String,
}

/// The process that started this one.
#[derive(Clone, Debug)]
pub struct ParentProcess {
    pid: u32,
    name: String,
    pidfd: Option<Arc<Pidfd>>,
}

impl ParentProcess {
    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it still runs. A child outlives its parent by a moment at most.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.pidfd.is_some() && crate::sys::child_setup::parent() == self.pid
    }

    /// Waits for its end.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: waiting changes nothing.
    ///
    /// # Process death
    ///
    /// The kernel kills this process when its parent dies, so what follows seldom runs.
    pub async fn join(&self) {
        let Some(pidfd) = &self.pidfd else { return };
        let Ok(fd) = pidfd.as_fd().try_clone_to_owned() else {
            return;
        };
        if let Ok(fd) = async_fd::watch_readable(fd) {
            // Fails only when the runtime shuts down, which ends the wait as well.
            let _ = fd.readable().await;
        }
    }
}

/// This process' own data, set where a child begins.
#[derive(Clone)]
struct Own {
    name: String,
    /// The path of numbers from the main process, `1:2` for the second child of its first.
    path: String,
    parent: Option<ParentProcess>,
}

static OWN: RwLock<Option<Own>> = RwLock::new(None);
static CHILDREN_STARTED: AtomicU64 = AtomicU64::new(0);

pub(super) fn set_current(inheritance: &Inheritance) {
    let parent = ParentProcess {
        pid: inheritance.parent_pid,
        name: inheritance.parent_name.clone(),
        pidfd: Pidfd::open(inheritance.parent_pid).ok().map(Arc::new),
    };
    let own = Own {
        name: inheritance.name.clone(),
        path: inheritance.path.clone(),
        parent: Some(parent),
    };
    *OWN.write().unwrap_or_else(PoisonError::into_inner) = Some(own);
    CHILDREN_STARTED.store(0, Relaxed);
    context::inherit(inheritance.start_method);
    std::mem::forget(std::mem::take(&mut *children()));
}

fn own() -> Option<Own> {
    OWN.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// The name of this process.
pub(crate) fn own_name() -> String {
    own().map_or_else(|| "MainProcess".to_owned(), |own| own.name)
}

/// A number for the next child, and the path of numbers that leads to it.
pub(crate) fn next_child() -> String {
    let number = CHILDREN_STARTED.fetch_add(1, Relaxed) + 1;
    match own() {
        Some(own) if !own.path.is_empty() => format!("{}:{number}", own.path),
        _ => number.to_string(),
    }
}

/// The process that calls this.
#[must_use]
pub fn current_process() -> ProcessInfo {
    ProcessInfo {
        pid: std::process::id(),
        name: own_name(),
    }
}

/// The process that started this one, if one of this library's did.
#[must_use]
pub fn parent_process() -> Option<ParentProcess> {
    own()?.parent
}

/// How many processors this process may use at once, by its affinity and its cgroup's quota; at
/// least 1.
#[must_use]
pub fn cpu_count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The children that have not ended, by their numbers.
static CHILDREN: Mutex<BTreeMap<u32, String>> = Mutex::new(BTreeMap::new());

fn children() -> MutexGuard<'static, BTreeMap<u32, String>> {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A child has come to be.
pub(super) fn add_child(pid: u32, name: &str) {
    children().insert(pid, name.to_owned());
}

/// A child has ended. Its number may have been given away already, to another child of ours.
pub(super) fn remove_child(pid: u32, name: &str) {
    let mut children = children();
    if children.get(&pid).is_some_and(|present| present == name) {
        children.remove(&pid);
    }
}

/// The children of this process that have not ended yet, workers of pools included.
#[must_use]
pub fn active_children() -> Vec<ProcessInfo> {
    children()
        .iter()
        .map(|(&pid, name)| ProcessInfo {
            pid,
            name: name.clone(),
        })
        .collect()
}
