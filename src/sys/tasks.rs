//! The threads of this process, see [proc_pid_task(5)](https://man7.org/linux/man-pages/man5/proc_pid_task.5.html).

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

/// A thread by its kernel number and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Thread {
    pub(crate) id: u32,
    pub(crate) name: String,
}

/// How many threads the process has: the directory has a link for each, and two of its own.
///
/// The kernel removes an ended thread a moment after it can be joined.
pub(crate) fn count() -> io::Result<u64> {
    Ok(fs::metadata("/proc/self/task")?.nlink().saturating_sub(2))
}

/// All threads of the process.
pub(crate) fn list() -> io::Result<Vec<Thread>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir("/proc/self/task")? {
        let entry = entry?;
        let Some(id) = entry.file_name().to_str().and_then(|id| id.parse().ok()) else {
            continue;
        };
        // A thread that has ended since has no name any more.
        let Ok(name) = fs::read_to_string(entry.path().join("comm")) else {
            continue;
        };
        threads.push(Thread {
            id,
            name: name.trim_end().to_owned(),
        });
    }
    Ok(threads)
}

/// The kernel's number of the calling thread.
pub(crate) fn current() -> u32 {
    nix::unistd::gettid().as_raw().cast_unsigned()
}
