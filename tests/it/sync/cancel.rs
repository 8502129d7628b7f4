//! Waits that are dropped: at every poll, and at random, with others who wait on.

use std::future::Future;
use std::pin::Pin;

use tokio_multiprocess::sync::{Condition, Lock, Semaphore};

use crate::soon;

const ROUNDS: u32 = 2_000;

/// A simple generator, so that a failure can be seen again.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % n
    }
}

/// Polls so often, with others in between, then gives up; what came of it is dropped as well.
async fn poll_and_drop<F: Future>(mut future: Pin<Box<F>>, n_polls: u64) {
    for _ in 0..n_polls {
        if futures::poll!(future.as_mut()).is_ready() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_cancellations_lose_no_lock_permit_or_notification() {
    let (lock, semaphore) = (Lock::new().unwrap(), Semaphore::new(2).unwrap());
    let condition = Condition::new(&lock).unwrap();
    let mut tasks = Vec::new();
    for seed in 0..4 {
        let (lock, semaphore, condition) = (lock.clone(), semaphore.clone(), condition.clone());
        tasks.push(tokio::spawn(async move {
            let mut random = Random(seed);
            for _ in 0..ROUNDS {
                let n_polls = random.below(4);
                match random.below(5) {
                    0 => poll_and_drop(Box::pin(lock.lock()), n_polls).await,
                    1 => poll_and_drop(Box::pin(semaphore.acquire()), n_polls).await,
                    2 => {
                        let guard = lock.lock().await.unwrap();
                        poll_and_drop(Box::pin(condition.wait(guard)), n_polls).await;
                    }
                    3 => {
                        let _guard = lock.lock().await.unwrap();
                        condition.notify_one();
                    }
                    _ => {
                        let _permit = semaphore.acquire().await.unwrap();
                        tokio::task::yield_now().await;
                    }
                }
            }
        }));
    }
    for task in tasks {
        soon(task).await.unwrap();
    }

    let guard = soon(lock.lock()).await.unwrap();
    let permits = (
        soon(semaphore.acquire()).await.unwrap(),
        soon(semaphore.acquire()).await.unwrap(),
    );
    // A notification finds who still waits.
    let mut waiter = Box::pin(condition.wait(guard));
    assert!(futures::poll!(waiter.as_mut()).is_pending());
    let guard = soon(lock.lock()).await.unwrap();
    condition.notify_all();
    drop(guard);
    drop(soon(waiter).await.unwrap());
    drop(permits);
    assert_eq!(semaphore.available_permits(), 2);
}
