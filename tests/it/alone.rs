//! Tests that need a process to themselves, and whether they leave it as it was.
//!
//! Such a test starts this binary again for itself alone. There it may change what all threads
//! share, and what it leaves behind can be counted: descriptors, threads, and children that run or
//! are zombies. The count begins when the library has started what it starts once and keeps: its
//! thread, the fork server, and the broker of shared objects.

use std::any::type_name;
use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use tokio::runtime::Builder;
use tokio_multiprocess::{Process, StartMethod};

/// In the environment of a process that was started for one test.
const MARK: &str = "ALONE";

/// Runs the body of the test that calls this in a process of its own, which must end as it began.
pub(crate) fn alone<F: AsyncFnOnce()>(body: F) {
    if std::env::var_os(MARK).is_some() {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(leaving_nothing_behind(body));
        return;
    }
    // The type of a closure is named after the function that it stands in.
    let name = type_name::<F>().split_once("::").unwrap().1;
    let name = name.strip_suffix("::{{closure}}").unwrap();
    let mut test = Command::new(std::env::current_exe().unwrap());
    test.args([name, "--exact", "--nocapture"]).env(MARK, "1");
    let output = test.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let passed = output.status.success() && text.contains("1 passed");
    assert!(passed, "{}\n{text}{errors}", output.status);
}

async fn leaving_nothing_behind<F: AsyncFnOnce()>(body: F) {
    for method in [StartMethod::SPAWN, StartMethod::FORK_SERVER] {
        let builder = Process::builder().start_method(method);
        let child = builder.start(|()| (), ()).await.unwrap();
        child.join().await.unwrap();
    }
    drop(tokio_multiprocess::sync::Lock::new().unwrap());
    let before = settled_belongings();
    crate::soon(body()).await;

    // What the library's thread still tidies up after a join has no event to wait for here.
    let since = Instant::now();
    while belongings().counts() != before.counts() {
        if since.elapsed() > Duration::from_secs(10) {
            panic!(
                "it began with {before:#?} and ends with {:#?}",
                belongings()
            );
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// What a process has that it could leave behind.
#[derive(Debug, PartialEq)]
pub(crate) struct Belongings {
    /// What each descriptor is open for.
    fds: Vec<String>,
    threads: Vec<String>,
    children: BTreeSet<u32>,
}

impl Belongings {
    fn counts(&self) -> [usize; 3] {
        [self.fds.len(), self.threads.len(), self.children.len()]
    }
}

/// After a first start, the last descriptors of the child before may still be closing.
fn settled_belongings() -> Belongings {
    let mut last = belongings();
    loop {
        std::thread::sleep(Duration::from_millis(20));
        let now = belongings();
        if now == last {
            return now;
        }
        last = now;
    }
}

fn belongings() -> Belongings {
    let fds = fs::read_dir("/proc/self/fd").unwrap();
    let targets = fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    let threads = fs::read_dir("/proc/self/task").unwrap();
    let names = threads.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    Belongings {
        fds: targets.map(|target| target.display().to_string()).collect(),
        threads: names.collect(),
        children: children_of(std::process::id()),
    }
}

/// The children of a process, zombies too.
pub(crate) fn children_of(pid: u32) -> BTreeSet<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return BTreeSet::new();
    };
    let lists =
        tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok());
    let lists = lists.collect::<Vec<_>>();
    let pids = lists.iter().flat_map(|list| list.split_whitespace());
    pids.map(|pid| pid.parse().unwrap()).collect()
}
