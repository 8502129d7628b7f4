//! What has to happen when. No clock: the time is an argument.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use super::Job;

/// Names a timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TimerId(u64);

/// A name that no other timer of this process has.
pub(super) fn next_id() -> TimerId {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    TimerId(NEXT.fetch_add(1, Relaxed))
}

/// Jobs in the order of their times.
#[derive(Default)]
pub(super) struct Timers {
    jobs: BTreeMap<(Instant, TimerId), Job>,
    times: std::collections::HashMap<TimerId, Instant>,
}

impl Timers {
    /// Adds a job; tells whether it is the first one now.
    pub(super) fn insert(&mut self, id: TimerId, time: Instant, job: Job) -> bool {
        let earlier = self.next().is_none_or(|next| time < next);
        self.jobs.insert((time, id), job);
        self.times.insert(id, time);
        earlier
    }

    /// Takes a job back.
    pub(super) fn remove(&mut self, id: TimerId) -> Option<Job> {
        let time = self.times.remove(&id)?;
        self.jobs.remove(&(time, id))
    }

    /// When the first job is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.jobs.first_key_value().map(|((time, _), _)| *time)
    }

    /// Takes the jobs whose time has come.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Job> {
        let mut due = Vec::new();
        while let Some(entry) = self.jobs.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let ((_, id), job) = entry.remove_entry();
            self.times.remove(&id);
            due.push(job);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn jobs_become_due_in_the_order_of_their_times_unless_taken_back() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let [a, b, c] = [next_id(), next_id(), next_id()];
        let mut timers = Timers::default();

        assert!(timers.insert(a, at(2), Box::new(|| ())));
        assert!(timers.insert(b, at(1), Box::new(|| ())));
        assert!(!timers.insert(c, at(3), Box::new(|| ())));
        assert!(timers.remove(b).is_some());

        assert_eq!(timers.next(), Some(at(2)));
        assert_eq!(timers.take_due(at(1)).len(), 0);
        assert_eq!(timers.take_due(at(3)).len(), 2);
        assert_eq!(timers.next(), None);
        assert!(timers.remove(a).is_none());
    }
}
