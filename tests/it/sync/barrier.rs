//! Barriers between processes.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio_multiprocess::shared::RawValue;
use tokio_multiprocess::sync::{Barrier, Event};
use tokio_multiprocess::{BrokenBarrier, Process};

use crate::soon;

const GENERATIONS: u64 = 50;

async fn keep_step((barrier, steps): (Barrier, RawValue<u64>)) -> Vec<usize> {
    let mut indices = Vec::new();
    for generation in 0..GENERATIONS {
        // Nobody is a generation ahead or behind.
        assert_eq!(steps.update(|n| n + 1) / 3, generation);
        indices.push(barrier.wait().await.unwrap().index());
    }
    indices
}

#[tokio::test]
async fn parties_of_three_processes_keep_step() {
    let (barrier, steps) = (Barrier::new(3).unwrap(), RawValue::new(0).unwrap());
    let mut children = Vec::new();
    for _ in 0..2 {
        let arg = (barrier.clone(), steps.clone());
        children.push(soon(Process::start(keep_step, arg)).await.unwrap());
    }

    let mut indices = vec![soon(keep_step((barrier, steps))).await];
    for child in children {
        indices.push(soon(child.join()).await.unwrap());
    }

    for generation in 0..GENERATIONS as usize {
        let of_all: BTreeSet<usize> = indices.iter().map(|of_one| of_one[generation]).collect();
        assert_eq!(of_all, BTreeSet::from([0, 1, 2]));
    }
}

static ACTIONS: AtomicU32 = AtomicU32::new(0);

#[tokio::test]
async fn one_party_of_each_generation_runs_the_action() {
    let barrier = Barrier::builder(3)
        .action(|()| {
            ACTIONS.fetch_add(1, Ordering::Relaxed);
        })
        .build()
        .unwrap();

    for generation in 1..=10 {
        let (a, b, c) =
            soon(async { tokio::join!(barrier.wait(), barrier.wait(), barrier.wait()) }).await;

        let leaders = [a, b, c].map(|passed| passed.unwrap().is_leader());
        assert_eq!(leaders.iter().filter(|leads| **leads).count(), 1);
        assert_eq!(ACTIONS.load(Ordering::Relaxed), generation);
    }
}

async fn arrive((barrier, there): (Barrier, Event)) -> bool {
    there.set();
    barrier.wait().await.is_ok()
}

#[tokio::test]
async fn a_party_that_is_killed_breaks_the_barrier_until_it_is_reset() {
    let (barrier, there) = (Barrier::new(3).unwrap(), Event::new().unwrap());
    let child = Process::start(arrive, (barrier.clone(), there));
    let child = soon(child).await.unwrap();
    let mut waiter = Box::pin(barrier.wait());
    assert!(futures::poll!(waiter.as_mut()).is_pending());
    soon(async {
        while barrier.n_waiting() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;

    child.kill().unwrap();

    assert_eq!(soon(waiter).await, Err(BrokenBarrier::Broken));
    assert!(barrier.is_broken());
    assert_eq!(soon(barrier.wait()).await, Err(BrokenBarrier::Broken));
    barrier.reset();
    let all = async { tokio::join!(barrier.wait(), barrier.wait(), barrier.wait()) };
    let (a, b, c) = soon(async {
        while barrier.is_broken() {
            tokio::task::yield_now().await;
        }
        all.await
    })
    .await;
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
}

#[tokio::test]
async fn an_abort_and_a_late_party_break_the_barrier() {
    let barrier = Barrier::builder(2)
        .timeout(Duration::from_millis(1))
        .build()
        .unwrap();
    assert_eq!(soon(barrier.wait()).await, Err(BrokenBarrier::Broken));

    let barrier = Barrier::new(2).unwrap();
    let mut waiter = Box::pin(barrier.wait());
    assert!(futures::poll!(waiter.as_mut()).is_pending());
    barrier.abort();
    assert_eq!(soon(waiter).await, Err(BrokenBarrier::Broken));
}

#[tokio::test]
async fn a_single_party_never_waits() {
    let barrier = Barrier::new(1).unwrap();

    for _ in 0..10 {
        assert!(soon(barrier.wait()).await.unwrap().is_leader());
    }
}
