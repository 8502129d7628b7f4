//! Times operations: each one by itself where a single one is long enough, many at once where not.

use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};

/// The runtime that ours and the floors in tokio are measured on: the one with the least to do.
pub(crate) fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// The middle one of `figures`.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut figures = figures.to_vec();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Microseconds of `operation`: the median of `n`, after a tenth as many to warm up.
pub(crate) fn median_us(n: usize, mut operation: impl FnMut()) -> f64 {
    let mut one = || {
        let started = Instant::now();
        operation();
        started.elapsed()
    };
    for _ in 0..warm_up(n) {
        one();
    }
    median(&(0..n).map(|_| us(one())).collect::<Vec<_>>())
}

/// The same for an operation that is awaited.
pub(crate) async fn median_us_async(n: usize, mut operation: impl AsyncFnMut()) -> f64 {
    let mut samples = Vec::with_capacity(n);
    for i in 0..warm_up(n) + n {
        let started = Instant::now();
        operation().await;
        if i >= warm_up(n) {
            samples.push(us(started.elapsed()));
        }
    }
    median(&samples)
}

/// Nanoseconds of one of `n` operations that took `elapsed` together.
pub(crate) fn per_op_ns(elapsed: Duration, n: usize) -> f64 {
    elapsed.as_secs_f64() * 1e9 / n as f64
}

fn us(elapsed: Duration) -> f64 {
    elapsed.as_secs_f64() * 1e6
}

fn warm_up(n: usize) -> usize {
    n / 10 + 1
}
