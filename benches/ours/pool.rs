//! Pools: tiny tasks at once, one by one as a stream, one call at a time, and the memory of the idle.

use std::fs;
use std::time::Instant;

use futures::TryStreamExt;
use tokio_multiprocess::{Pool, StartMethod};

use crate::floor::pool::work;
use crate::harness::{median_us_async, per_op_ns, runtime};

/// Nanoseconds a task of `map`.
pub(crate) fn map(n_workers: usize, n_tasks: u64) -> f64 {
    runtime().block_on(async {
        let pool = warm(n_workers, StartMethod::FORK_SERVER).await;
        let started = Instant::now();
        let results = pool.map(work, 0..n_tasks).await.expect("results");
        let elapsed = started.elapsed();
        assert!(results.into_iter().eq(1..=n_tasks));
        pool.close().await.expect("a clean end");
        per_op_ns(elapsed, n_tasks as usize)
    })
}

/// Nanoseconds a task of `imap_unordered`, its results taken one by one.
pub(crate) fn imap_unordered(n_workers: usize, n_tasks: u64) -> f64 {
    runtime().block_on(async {
        let pool = warm(n_workers, StartMethod::FORK_SERVER).await;
        let started = Instant::now();
        let mut results = pool.imap_unordered(work, 0..n_tasks);
        let mut total = 0;
        while let Some(result) = results.try_next().await.expect("a result") {
            total += result;
        }
        let elapsed = started.elapsed();
        assert_eq!(total, n_tasks * (n_tasks + 1) / 2);
        pool.close().await.expect("a clean end");
        per_op_ns(elapsed, n_tasks as usize)
    })
}

/// Microseconds of one call to an idle pool.
pub(crate) fn apply() -> f64 {
    runtime().block_on(async {
        let pool = warm(2, StartMethod::FORK_SERVER).await;
        let figure = median_us_async(3000, async || {
            assert_eq!(pool.apply(work, 7).await.expect("a result"), 8);
        });
        let figure = figure.await;
        pool.close().await.expect("a clean end");
        figure
    })
}

/// KiB that each of 16 idle workers has for itself.
pub(crate) fn memory(method: StartMethod) -> f64 {
    runtime().block_on(async {
        let pool = warm(16, method).await;
        let stats = pool.stats();
        let pids: Vec<u32> = stats
            .workers
            .iter()
            .filter_map(|worker| worker.pid)
            .collect();
        assert_eq!(pids.len(), 16);
        let total: f64 = pids.into_iter().map(pss_kib).sum();
        pool.close().await.expect("a clean end");
        total / 16.0
    })
}

/// A pool in which every worker has done something.
async fn warm(n_workers: usize, method: StartMethod) -> Pool {
    let builder = Pool::builder().processes(n_workers).start_method(method);
    let pool = builder.build().await.expect("a pool");
    pool.map_chunked(work, 0..4 * n_workers as u64, 1)
        .await
        .expect("results");
    pool
}

/// The proportional set size: pages that n processes share count 1/n.
fn pss_kib(pid: u32) -> f64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("a living process");
    let line = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .expect("a Pss line");
    let number = line
        .split_whitespace()
        .next()
        .and_then(|word| word.parse().ok());
    number.expect("a number of KiB")
}
