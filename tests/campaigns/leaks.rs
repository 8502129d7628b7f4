//! Processes and pools come and go, and nothing grows.
//!
//! `cargo test --test campaign_leaks -- --long`: 1,000 processes by each start method.

#![allow(unsafe_code, reason = "fork is unsafe")]

mod campaign;

use std::process::ExitCode;
use std::sync::OnceLock;
use std::thread;
use std::time::Instant;

use futures::TryStreamExt;
use nix::sys::resource::{Resource, setrlimit};
use tokio_multiprocess::{Pool, Process, StartMethod};

use campaign::census::{Census, private_kib};
use campaign::method::{Method, runtime};
use campaign::{Case, Plan};

/// What the allocator may keep for itself after a thousand rounds.
const KEPT_KIB_MAX: usize = 256;

fn main() -> ExitCode {
    tokio_multiprocess::init();
    campaign::main(&[
        Case {
            name: "a_thousand_processes_leave_nothing_by_spawn",
            run: |plan| cycles(Method::Spawn, plan),
        },
        Case {
            name: "a_thousand_processes_leave_nothing_by_fork_server",
            run: |plan| cycles(Method::ForkServer, plan),
        },
        Case {
            name: "a_thousand_processes_leave_nothing_by_fork",
            run: |plan| cycles(Method::Fork, plan),
        },
        Case {
            name: "pools_leave_nothing_however_they_end",
            run: pools,
        },
        Case {
            name: "two_hundred_workers_fit_into_a_limit_of_1024_files",
            run: |_| many_workers(),
        },
        Case {
            name: "a_static_pool_serves_runtimes_one_after_the_other_and_at_once",
            run: |_| static_pool(),
        },
    ])
}

fn add_one(x: u64) -> u64 {
    x + 1
}

/// Starts and joins processes, one at a time.
fn cycles(method: Method, plan: &mut Plan) -> String {
    let n_cycles = plan.size(100, 1_000);
    runtime().block_on(async {
        for x in 0..30 {
            cycle(method, x).await;
        }
        let before = Census::take_at_rest();
        let kib_before = private_kib();
        let started = Instant::now();
        for x in 0..n_cycles as u64 {
            cycle(method, x).await;
        }
        let each = started.elapsed() / u32::try_from(n_cycles).expect("few enough");
        before.is_reached_again();
        let grown = private_kib().saturating_sub(kib_before);
        assert!(grown <= KEPT_KIB_MAX, "{grown} KiB are kept");
        format!(
            "{n_cycles} cycles of {each:?}; descriptors, threads, zombies +0; memory +{grown} KiB"
        )
    })
}

async fn cycle(method: Method, x: u64) {
    let process = match method {
        Method::Spawn => start(StartMethod::SPAWN, x).await,
        Method::ForkServer => start(StartMethod::FORK_SERVER, x).await,
        // SAFETY: this process has no thread beside this one and the library's own.
        Method::Fork => unsafe { Process::builder().fork(move || x + 1) }.expect("a child"),
    };
    assert_eq!(process.join().await.expect("its result"), x + 1);
}

async fn start(method: StartMethod, x: u64) -> Process<u64> {
    let builder = Process::builder().start_method(method);
    builder.start(add_one, x).await.expect("a child")
}

/// Pools that are closed, terminated, dropped, and dropped with a stream still running.
fn pools(plan: &mut Plan) -> String {
    let n_rounds = plan.size(3, 30);
    runtime().block_on(async {
        for method in Method::ALL {
            pool_ends(method).await;
        }
        let before = Census::take_at_rest();
        for _ in 0..n_rounds {
            for method in Method::ALL {
                pool_ends(method).await;
            }
        }
        before.is_reached_again();
    });
    format!(
        "{} pools, descriptors, threads, zombies, children +0",
        n_rounds * 12
    )
}

async fn pool_ends(method: Method) {
    for end in 0..4 {
        let pool = method.pool().processes(2).build().await.expect("a pool");
        let results = pool.map(add_one, 0..100).await.expect("results");
        assert!(results.into_iter().eq(1..=100));
        match end {
            0 => pool.close().await.expect("a clean end"),
            1 => pool.terminate().await.expect("an end"),
            2 => drop(pool),
            _ => {
                let mut endless = pool.imap_unordered(add_one, 0..);
                endless.try_next().await.expect("a result");
            }
        }
    }
}

fn many_workers() -> String {
    const WORKERS: usize = 200;
    setrlimit(Resource::RLIMIT_NOFILE, 1024, 1024).expect("a lower limit");
    runtime().block_on(async {
        let small = Pool::new(1).await.expect("a pool");
        small.map(add_one, 0..10).await.expect("results");
        small.close().await.expect("a clean end");
        let before = Census::take_at_rest();
        let pool = Pool::new(WORKERS).await.expect("a pool");
        let results = pool
            .map_chunked(add_one, 0..10_000, 1)
            .await
            .expect("results");
        assert!(results.into_iter().eq(1..=10_000));
        let living = |pool: &Pool| {
            let workers = pool.stats().workers;
            workers.iter().filter(|worker| worker.pid.is_some()).count()
        };
        assert_eq!(living(&pool), WORKERS);
        let each = (Census::take().descriptors - before.descriptors) as f64 / WORKERS as f64;
        assert!(each <= 3.0, "{each} descriptors a worker");
        pool.close().await.expect("a clean end");
        before.is_reached_again();
        format!("{WORKERS} workers, {each:.2} descriptors each, 10,000 tasks")
    })
}

fn static_pool() -> String {
    static POOL: OnceLock<Pool> = OnceLock::new();
    let first = runtime();
    let pool = first.block_on(Pool::new(2)).expect("a pool");
    let pool = POOL.get_or_init(|| pool);
    let ask = async || {
        let results = pool.map(add_one, 0..500).await.expect("results");
        assert!(results.into_iter().eq(1..=500));
    };
    first.block_on(ask());

    // One after the other, each dropped before the next, the first one before all of them.
    drop(first);
    for _ in 0..5 {
        runtime().block_on(ask());
    }

    // At once, on both flavours; whoever drives the pool may leave first.
    thread::scope(|scope| {
        for i in 0..4 {
            scope.spawn(move || {
                let runtime = if i % 2 == 0 {
                    runtime()
                } else {
                    multi_threaded()
                };
                for _ in 0..20 {
                    runtime.block_on(ask());
                }
            });
        }
    });

    // Dropped while a stream of it was running, and a task was awaited.
    let interrupted = runtime();
    interrupted.block_on(async {
        let mut endless = pool.imap_unordered(add_one, 0..);
        endless.try_next().await.expect("a result");
        tokio::spawn(async move { while endless.try_next().await.is_ok() {} });
        tokio::task::yield_now().await;
    });
    drop(interrupted);
    runtime().block_on(ask());
    "5 runtimes in a row, 4 at once, 1 dropped in the middle of its work".to_owned()
}

fn multi_threaded() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
}
