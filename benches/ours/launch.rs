//! Processes: a number in, a number back, joined; many at once; the end of one that is killed.

use std::future::pending;
use std::time::Instant;

use futures::future::join_all;
use tokio_multiprocess::{Process, StartMethod};

use crate::floor::{self, crowd};
use crate::harness::{median, median_us_async, runtime};

/// Start, answer, join, by re-executing this program.
pub(crate) fn by_spawn() -> f64 {
    start_and_join(StartMethod::SPAWN, 100)
}

/// The same in turns with what tokio offers, one child of each: so both find the processors as the
/// other has left them, and none has one of them warm and to itself.
pub(crate) fn by_spawn_in_turns() -> f64 {
    in_turns().0
}

/// The other's figure.
pub(crate) fn by_tokio_command_in_turns() -> f64 {
    in_turns().1
}

fn in_turns() -> (f64, f64) {
    const TURNS: usize = 100;
    runtime().block_on(async {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            let started = Instant::now();
            start_and_join_one(StartMethod::SPAWN).await;
            ours.push(started.elapsed().as_secs_f64() * 1e6);
            let started = Instant::now();
            floor::launch::end_at_once().await;
            theirs.push(started.elapsed().as_secs_f64() * 1e6);
        }
        (median(&ours), median(&theirs))
    })
}

/// Start, answer, join, by the fork server.
pub(crate) fn by_fork_server() -> f64 {
    start_and_join(StartMethod::FORK_SERVER, 300)
}

/// Start, answer, join, by copying this process.
pub(crate) fn by_fork() -> f64 {
    runtime().block_on(median_us_async(200, async || {
        // SAFETY: this process has no thread beside this one and the library's own.
        let forked = unsafe { Process::builder().fork(|| 42_u64) };
        let process = forked.expect("a child");
        assert_eq!(process.join().await.expect("its result"), 42);
    }))
}

/// By the fork server, beside 1 GiB.
pub(crate) fn by_fork_server_with_memory() -> f64 {
    crowd::touch_memory();
    by_fork_server()
}

/// By the fork server, beside ten thousand open files.
pub(crate) fn by_fork_server_with_files() -> f64 {
    let _files = crowd::open_files();
    by_fork_server()
}

/// By the fork server, beside 256 threads.
pub(crate) fn by_fork_server_with_threads() -> f64 {
    crowd::start_threads();
    by_fork_server()
}

/// By re-executing, beside 1 GiB.
pub(crate) fn by_spawn_with_memory() -> f64 {
    crowd::touch_memory();
    by_spawn()
}

/// By re-executing, beside ten thousand open files.
pub(crate) fn by_spawn_with_files() -> f64 {
    let _files = crowd::open_files();
    by_spawn()
}

/// By re-executing, beside 256 threads.
pub(crate) fn by_spawn_with_threads() -> f64 {
    crowd::start_threads();
    by_spawn()
}

/// From a kill to the return of `wait`.
pub(crate) fn exit() -> f64 {
    runtime().block_on(async {
        let mut samples = Vec::new();
        for _ in 0..60 {
            let builder = Process::builder().start_method(StartMethod::SPAWN);
            let process = builder
                .start(sleep_until_killed, ())
                .await
                .expect("a child");
            let started = Instant::now();
            process.kill().expect("a kill");
            process.wait().await;
            samples.push(started.elapsed().as_secs_f64() * 1e6);
        }
        median(&samples)
    })
}

/// Microseconds a child, when 256 are up by re-executing and have answered.
pub(crate) fn many_by_spawn() -> f64 {
    many(StartMethod::SPAWN)
}

/// Microseconds a child, when 256 are up by the fork server and have answered.
pub(crate) fn many_by_fork_server() -> f64 {
    many(StartMethod::FORK_SERVER)
}

fn many(method: StartMethod) -> f64 {
    const CHILDREN: u64 = 256;
    let all = runtime().block_on(median_us_async(3, async || {
        let children = (0..CHILDREN).map(|x| async move {
            let builder = Process::builder().start_method(method);
            let process = builder.start(add_one, x).await.expect("a child");
            assert_eq!(process.join().await.expect("its result"), x + 1);
        });
        join_all(children).await;
    }));
    all / CHILDREN as f64
}

fn start_and_join(method: StartMethod, n: usize) -> f64 {
    runtime().block_on(median_us_async(n, || start_and_join_one(method)))
}

async fn start_and_join_one(method: StartMethod) {
    let builder = Process::builder().start_method(method);
    let process = builder.start(add_one, 41_u64).await.expect("a child");
    assert_eq!(process.join().await.expect("its result"), 42);
}

fn add_one(x: u64) -> u64 {
    x + 1
}

async fn sleep_until_killed((): ()) {
    pending().await
}
