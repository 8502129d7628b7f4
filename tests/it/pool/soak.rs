//! Many workers, many tasks, many deaths: nothing hangs, nothing innocent fails, nothing is left.

use std::fs;
use std::time::Duration;

use futures::StreamExt;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_multiprocess::{Pool, StartMethod, TaskError};

use crate::alone::alone;
use crate::soon;

const SAFE: [StartMethod; 2] = [StartMethod::SPAWN, StartMethod::FORK_SERVER];

fn square(x: u64) -> u64 {
    x * x
}

/// Each item is innocent, unless it says so itself.
fn work(x: u64) -> u64 {
    match x % 500 {
        100 => std::process::exit(3),
        200 => std::process::abort(),
        300 => {
            let own = Pid::from_raw(std::process::id().cast_signed());
            loop {
                // The first one is taken for a fault that will come again.
                kill(own, Signal::SIGSEGV).unwrap();
            }
        }
        _ => x,
    }
}

fn is_guilty(x: u64) -> bool {
    matches!(x % 500, 100 | 200 | 300)
}

#[test]
fn crashes_fail_the_guilty_alone_and_leave_nothing_behind() {
    alone(async || {
        for method in SAFE {
            let builder = Pool::builder().processes(4).start_method(method);
            let pool = builder.build().await.unwrap();
            let n = 10_000;
            let results: Vec<_> = soon(pool.imap(work, 0..n).collect()).await;
            assert_eq!(results.len(), n as usize);
            for (x, result) in (0..n).zip(results) {
                match result {
                    Ok(value) => assert!(value == x && !is_guilty(x)),
                    Err(TaskError::WorkerDied { .. }) => assert!(is_guilty(x), "{x} is innocent"),
                    Err(other) => panic!("{x}: {other:?}"),
                }
            }
            assert_eq!(soon(pool.map(square, 0..100)).await.unwrap().len(), 100);
            soon(pool.close()).await.unwrap();
        }
    });
}

#[test]
fn random_kills_cost_at_most_one_task_each_and_leave_nothing_behind() {
    alone(async || {
        for method in SAFE {
            let builder = Pool::builder().processes(4).start_method(method);
            let pool = builder.build().await.unwrap();
            let n = 10_000;
            let spin = |x: u64| {
                for i in 0..2000 {
                    std::hint::black_box(i);
                }
                x
            };
            let mut results = pool.imap_unordered(spin, 0..n);
            let (mut n_killed, mut n_lost) = (0, 0);
            let mut seen = vec![false; n as usize];
            let mut n_seen = 0;
            while let Some(result) = soon(results.next()).await {
                n_seen += 1;
                match result {
                    Ok(x) => assert!(!std::mem::replace(&mut seen[x as usize], true), "{x} twice"),
                    Err(TaskError::WorkerDied { .. }) => n_lost += 1,
                    Err(other) => panic!("{other:?}"),
                }
                if n_seen % 250 == 0 {
                    let workers = pool.stats().workers;
                    let victim = workers[n_killed % workers.len()].pid;
                    if let Some(pid) = victim {
                        let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
                        n_killed += 1;
                    }
                }
            }
            assert_eq!(n_seen, n);
            assert!(n_lost <= n_killed, "{n_lost} lost by {n_killed} kills");
            assert_eq!(seen.iter().filter(|seen| !**seen).count(), n_lost);
            drop(results);
            soon(pool.close()).await.unwrap();
        }
    });
}

#[test]
fn workers_that_come_and_go_leave_nothing_behind() {
    alone(async || {
        for method in SAFE {
            let builder = Pool::builder().processes(2).start_method(method);
            let pool = builder.max_tasks_per_child(1).build().await.unwrap();
            assert_eq!(soon(pool.map(square, 0..100)).await.unwrap().len(), 100);
            soon(pool.close()).await.unwrap();
            for _ in 0..10 {
                let pool = Pool::builder()
                    .processes(2)
                    .start_method(method)
                    .build()
                    .await
                    .unwrap();
                drop(pool.apply_async(square, 1));
                let stream = pool.imap(square, 0..);
                drop(pool);
                drop(stream);
            }
        }
    });
}

#[test]
fn two_hundred_workers_fit_into_a_thousand_descriptors() {
    alone(async || {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 1024.min(hard), hard).unwrap();
        let before = fs::read_dir("/proc/self/fd").unwrap().count();
        let pool = soon(Pool::new(200)).await.unwrap();
        let n_fds = fs::read_dir("/proc/self/fd").unwrap().count() - before;
        assert!(n_fds <= 3 * 200 + 8, "{n_fds} descriptors");
        let sums = soon(pool.map(square, 0..20_000)).await.unwrap();
        assert_eq!(sums.len(), 20_000);
        soon(pool.close()).await.unwrap();
    });
}

#[test]
fn queued_tasks_take_memory_and_nothing_else() {
    alone(async || {
        let pool = Pool::new(1).await.unwrap();
        let before = fs::read_dir("/proc/self/fd").unwrap().count();
        let tasks: Vec<_> = (0..20_000).map(|x| pool.apply_async(square, x)).collect();
        assert_eq!(fs::read_dir("/proc/self/fd").unwrap().count(), before);
        for (x, task) in (0..).zip(tasks) {
            assert_eq!(soon(task).await, Ok(x * x));
        }
        soon(pool.close()).await.unwrap();
    });
}

#[test]
fn an_idle_pool_makes_no_wake_up() {
    alone(async || {
        let pool = Pool::new(2).await.unwrap();
        soon(pool.map(square, 0..10_000)).await.unwrap();
        let workers: Vec<u32> = pool
            .stats()
            .workers
            .iter()
            .filter_map(|worker| worker.pid)
            .collect();
        // What the last task has left to do, a timer for example, is over after a while.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let before = n_switches(&workers);
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(n_switches(&workers), before);
        soon(pool.close()).await.unwrap();
    });
}

/// How often the threads of the workers, and the library's here, have gone to sleep.
fn n_switches(workers: &[u32]) -> u64 {
    let mut threads = Vec::new();
    for worker in workers {
        let tasks = fs::read_dir(format!("/proc/{worker}/task")).unwrap();
        threads.extend(tasks.flatten().map(|task| task.path()));
    }
    let own = fs::read_dir("/proc/self/task")
        .unwrap()
        .flatten()
        .map(|task| task.path());
    threads.extend(own.filter(|path| {
        fs::read_to_string(path.join("comm")).is_ok_and(|name| name.starts_with("tmp-"))
    }));
    let count = |path: &std::path::PathBuf| -> u64 {
        let status = fs::read_to_string(path.join("status")).unwrap();
        let lines = status
            .lines()
            .filter(|line| line.contains("ctxt_switches:"));
        lines
            .map(|line| {
                line.split_whitespace()
                    .last()
                    .unwrap()
                    .parse::<u64>()
                    .unwrap()
            })
            .sum()
    };
    threads.iter().map(count).sum()
}
