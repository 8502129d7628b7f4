//! What a pool tells about itself.

use std::time::Duration;

/// A pool at one moment, from [`Pool::stats`](super::Pool::stats).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// The workers that are there, starting ones included.
    pub workers: Vec<WorkerStats>,
    /// Tasks and items that wait for a worker.
    pub queued: usize,
    /// Tasks and items that were finished, whatever became of them.
    pub finished: u64,
    /// Workers that ended without being asked to.
    pub restarts: u64,
}

/// One worker of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerStats {
    /// Its process id; nothing while it is being started.
    pub pid: Option<u32>,
    /// What it is doing.
    pub state: WorkerState,
    /// The task that it is at.
    pub running: Option<RunningTask>,
    /// Tasks and items that it has finished.
    pub tasks_done: u64,
    /// Memory that it occupies, in bytes.
    pub resident_bytes: Option<u64>,
    /// How long it has been working in its life, as far as results came back.
    pub working: Duration,
    /// How long it has been waiting for work.
    pub waiting: Duration,
}

/// What a worker is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkerState {
    /// Its process is being started.
    Starting,
    /// It waits for work.
    Idle,
    /// It runs a task.
    Busy,
    /// It gets no more work, and leaves when it has finished what it has.
    Leaving,
}

/// The task that a worker is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunningTask {
    /// The task's [`id`](super::Task::id); nothing for an item of a stream.
    pub id: Option<u64>,
    /// How long it has been running, as far as this process can see.
    pub since: Duration,
}

/// The resident memory of a process, by its directory in `/proc`; nothing if it is gone.
pub(crate) fn resident_bytes(process: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_occupies_memory_and_one_that_is_gone_does_not() {
        assert!(resident_bytes("self").is_some_and(|bytes| bytes > 100_000));
        assert_eq!(resident_bytes("0"), None);
    }
}
