//! What a process holds: descriptors, threads, children, memory. Nothing may grow.

use std::fs;
use std::time::{Duration, Instant};

/// How long things that end by themselves may take to be gone.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// What this process and its helpers hold at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Census {
    /// Open files of this process.
    pub(crate) descriptors: usize,
    threads: usize,
    zombies: usize,
    children: Vec<Child>,
}

/// A living child: what it holds counts as ours.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Child {
    name: String,
    descriptors: usize,
    threads: usize,
}

impl Census {
    /// Counts, once all who have ended are reaped and nothing changes any more: a file that the
    /// library reads for a moment is not to be counted among what it keeps.
    pub(crate) fn take_at_rest() -> Self {
        let deadline = Instant::now() + SETTLE_MAX;
        let mut before = Self::take();
        loop {
            // The kernel takes ended threads off its list when it pleases, and tells nobody.
            std::thread::sleep(Duration::from_millis(20));
            let now = Self::take();
            if now.zombies == 0 && now == before {
                return now;
            }
            assert!(
                Instant::now() < deadline,
                "it does not come to rest: {now:#?}"
            );
            before = now;
        }
    }

    /// Counts.
    pub(crate) fn take() -> Self {
        let own = std::process::id();
        let children = children_of(own);
        let living = children.iter().filter(|child| child.state != 'Z');
        let mut living: Vec<Child> = living
            .map(|child| Child {
                name: child.name.clone(),
                descriptors: entries(&format!("/proc/{}/fd", child.pid)),
                threads: entries(&format!("/proc/{}/task", child.pid)),
            })
            .collect();
        living.sort_by(|a, b| a.name.cmp(&b.name));
        Self {
            // One of them is the directory that is being read.
            descriptors: entries("/proc/self/fd"),
            threads: entries("/proc/self/task"),
            zombies: children.iter().filter(|child| child.state == 'Z').count(),
            children: living,
        }
    }

    /// Waits until nothing is more than it was when `self` was taken.
    ///
    /// # Panics
    ///
    /// If something has still grown after a while.
    pub(crate) fn is_reached_again(&self) {
        let deadline = Instant::now() + SETTLE_MAX;
        loop {
            let now = Self::take();
            if !now.has_grown_since(self) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "leaked: before {self:#?}\nnow {now:#?}"
            );
            // As above: only the lists in /proc tell.
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn has_grown_since(&self, before: &Self) -> bool {
        self.descriptors > before.descriptors
            || self.threads > before.threads
            || self.zombies > before.zombies
            || self.children != before.children
    }
}

/// A process as the kernel lists it.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    pub(crate) name: String,
    pub(crate) state: char,
}

/// All processes that have `pid` as their parent.
pub(crate) fn children_of(pid: u32) -> Vec<Listed> {
    all()
        .into_iter()
        .filter(|process| process.parent == pid)
        .collect()
}

/// All processes that descend from `pid`, zombies too.
pub(crate) fn descendants_of(pid: u32) -> Vec<Listed> {
    let all = all();
    let mut found: Vec<Listed> = Vec::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        let children = all.iter().filter(|process| process.parent == parent);
        parents.extend(children.clone().map(|child| child.pid));
        found.extend(children.cloned());
    }
    found
}

/// KiB of memory that only this process has.
pub(crate) fn private_kib() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("this process's status");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .expect("RssAnon");
    let number = line
        .split_whitespace()
        .next()
        .and_then(|number| number.parse().ok());
    number.expect("a number of KiB")
}

fn all() -> Vec<Listed> {
    let entries = fs::read_dir("/proc").expect("/proc");
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names
        .filter_map(|name| listed(name.parse().ok()?))
        .collect()
}

/// `pid (name) state parent ...`; a name may contain anything, spaces and brackets too.
fn listed(pid: u32) -> Option<Listed> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, tail) = stat.rsplit_once(") ")?;
    let (_, name) = head.split_once('(')?;
    let mut fields = tail.split(' ');
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    Some(Listed {
        pid,
        parent,
        name: name.to_owned(),
        state,
    })
}

fn entries(directory: &str) -> usize {
    fs::read_dir(directory).map_or(0, Iterator::count)
}
