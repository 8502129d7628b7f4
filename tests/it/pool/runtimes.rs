//! A pool has no runtime of its own: it lives in those of whoever uses it.

use std::sync::{Arc, Barrier, mpsc};
use std::thread;

use futures::StreamExt;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::OnceCell;
use tokio_multiprocess::Pool;

use crate::soon;

fn square(x: u64) -> u64 {
    x * x
}

fn leave((): ()) {
    std::process::exit(3)
}

fn small() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn large() -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().unwrap()
}

async fn shared() -> &'static Pool {
    static POOL: OnceCell<Pool> = OnceCell::const_new();
    POOL.get_or_init(async || Pool::new(2).await.unwrap()).await
}

async fn use_it() {
    let pool = shared().await;
    assert_eq!(soon(pool.apply(square, 7)).await, Ok(49));
    assert_eq!(soon(pool.map(square, 0..500)).await.unwrap().len(), 500);
    assert_eq!(soon(pool.imap_unordered(square, 0..500).count()).await, 500);
}

#[tokio::test]
async fn a_static_pool_serves_one_test() {
    use_it().await;
}

#[tokio::test]
async fn a_static_pool_serves_another_test() {
    use_it().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_pool_serves_a_third_test() {
    use_it().await;
}

#[test]
fn a_pool_outlives_the_runtimes_it_is_used_in() {
    let pool = small().block_on(async { Pool::new(2).await.unwrap() });
    for _ in 0..5 {
        small().block_on(async {
            assert_eq!(soon(pool.map(square, 0..100)).await.unwrap().len(), 100);
        });
        large().block_on(async {
            assert_eq!(soon(pool.apply(square, 3)).await, Ok(9));
        });
    }
    small().block_on(async { soon(pool.close()).await.unwrap() });
}

#[test]
fn a_runtime_that_is_not_run_holds_up_nobody() {
    let first = small();
    let pool = first.block_on(async {
        let pool = Pool::new(1).await.unwrap();
        pool.apply(square, 1).await.unwrap();
        pool
    });
    // It has readers of the workers and will never run them again.
    let second = small();
    second.block_on(async {
        assert_eq!(soon(pool.apply(square, 3)).await, Ok(9));
        // Nor does it bring up the replacement of a dead worker.
        assert!(soon(pool.apply(leave, ())).await.is_err());
        assert_eq!(soon(pool.map(square, 0..50)).await.unwrap().len(), 50);
        soon(pool.resize(3)).await.unwrap();
        soon(pool.close()).await.unwrap();
    });
    drop(first);
}

#[test]
fn a_task_is_awaited_in_another_runtime_than_it_was_started_in() {
    let pool = small().block_on(async { Pool::new(1).await.unwrap() });
    let first = small();
    let context = first.enter();
    let task = pool.apply_async(square, 4);
    drop(context);
    let mut stream = first.block_on(async {
        let mut stream = pool.imap(square, 0..1000);
        assert_eq!(soon(stream.next()).await, Some(Ok(0)));
        stream
    });
    drop(first);
    large().block_on(async {
        assert_eq!(soon(task).await, Ok(16));
        assert_eq!(soon(stream.by_ref().count()).await, 999);
    });
    // Outside of any runtime, too, a task is taken and a handle dropped.
    let task = pool.apply_async(square, 5);
    drop(stream);
    small().block_on(async { assert_eq!(soon(task).await, Ok(25)) });
}

#[test]
fn a_runtime_that_is_dropped_wakes_those_who_wait_elsewhere() {
    let pool = small().block_on(async { Pool::new(1).await.unwrap() });
    let (started, has_started) = mpsc::channel();
    let waiter = {
        let pool = pool.clone();
        thread::spawn(move || {
            small().block_on(async {
                let task = pool.apply_async(
                    |ms| thread::sleep(std::time::Duration::from_millis(ms)),
                    200,
                );
                started.send(()).unwrap();
                soon(task).await.unwrap();
            });
        })
    };
    has_started.recv().unwrap();
    let other = small();
    other.block_on(async { drop(pool.apply_async(square, 1)) });
    drop(other);
    waiter.join().unwrap();
}

#[test]
fn several_runtimes_use_a_pool_at_once() {
    let pool = small().block_on(async { Pool::new(3).await.unwrap() });
    let together = Arc::new(Barrier::new(4));
    let users: Vec<_> = (0..4)
        .map(|user| {
            let (pool, together) = (pool.clone(), Arc::clone(&together));
            thread::spawn(move || {
                let runtime = if user % 2 == 0 { small() } else { large() };
                together.wait();
                runtime.block_on(async {
                    for x in 0..200 {
                        assert_eq!(soon(pool.apply(square, x)).await, Ok(x * x));
                    }
                    assert_eq!(soon(pool.map(square, 0..5000)).await.unwrap().len(), 5000);
                });
            })
        })
        .collect();
    users.into_iter().for_each(|user| user.join().unwrap());
    small().block_on(async { soon(pool.close()).await.unwrap() });
}

#[test]
fn a_pool_is_dropped_outside_of_any_runtime() {
    let pool = small().block_on(async { Pool::new(2).await.unwrap() });
    drop(pool);
}
